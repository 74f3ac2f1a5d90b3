//! Matrices times activations, cut into items of some strips and some panels.

use super::rows::{Rows, SharedRows};
use super::{ActivationFunction, are_disjoint};
use crate::Context;
use crate::isa::{TileArgs, Twin, width_index};
use crate::layout::{Layout, STRIP};
use crate::matrix::Matrix;
use crate::panel::{Activations, Kinds, panels};
use std::ops::Range;

/// Bytes of packed weights in one item of a multiplication: the part of a 1 MiB second-level cache that a block of
/// weights may take while the panels of a prefill pass by.
const ITEM_BYTES_MAX: usize = 256 * 1024;

/// Panels in one item: few enough that a thread with nothing left to do does not wait long for the others.
const ITEM_PANELS_MAX: usize = 12;

/// Items per thread that make up for one thread being slower than another.
const ITEMS_PER_THREAD: usize = 8;

/// What the panels of a matrix's activations must hold.
pub fn kinds_for<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> Kinds {
    let mut kinds = Kinds::default();
    for matrix in matrices {
        match matrix.layout() {
            Layout::F32 | Layout::F16 => kinds.float = true,
            Layout::BF16 => kinds.bf16 = true,
            layout if layout.has_superblocks() => kinds.superblock = true,
            _ => kinds.integer = true,
        }
    }
    kinds
}

/// `scale * (matrix x) + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    pub matrix: &'a Matrix,
    pub scale: f32,
    pub bias: Option<&'a [f32]>,
}

impl<'a> Affine<'a> {
    /// Nothing follows the matrix.
    pub fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.bias.is_none()
    }

    /// What follows the matrix, for the rows of some strips of some tokens.
    ///
    /// # Safety
    /// Nobody else uses these elements of `out`.
    unsafe fn finish(&self, out: &SharedRows<'_>, strips: Range<usize>, tokens: Range<usize>) {
        if self.is_plain() {
            return;
        }
        let rows = strips.start * STRIP..self.matrix.rows().min(strips.end * STRIP);
        for t in tokens {
            // SAFETY: the caller's contract.
            let out = unsafe { out.part(t, rows.start, rows.len()) };
            if self.scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= self.scale);
            }
            if let Some(bias) = self.bias {
                out.iter_mut().zip(&bias[rows.clone()]).for_each(|(x, b)| *x += b);
            }
        }
    }
}

impl<'a> From<&'a Matrix> for Affine<'a> {
    fn from(matrix: &'a Matrix) -> Self {
        Affine { matrix, scale: 1.0, bias: None }
    }
}

/// One matrix of a multiplication: `out[t] = scale * (matrix x activations[t]) + bias`, or added to `out[t]`.
pub struct Product<'a> {
    pub affine: Affine<'a>,
    pub out: &'a mut Rows,
    pub add: bool,
}

impl<'a> Product<'a> {
    pub fn new(affine: impl Into<Affine<'a>>, out: &'a mut Rows) -> Self {
        Self { affine: affine.into(), out, add: false }
    }
}

/// Multiplies the same activations by several matrices, in one go over all threads.
///
/// # Panics
/// If a matrix's columns are not those of the activations, they lack the kind of panel it needs, an output has not the shape
/// tokens x rows, or a product with a scale or a bias is to be added.
pub fn multiply(context: Context<'_>, activations: &Activations, products: &mut [Product<'_>]) {
    let tokens = 0..activations.tokens();
    let mut parts = Parts::default();
    for Product { affine, out, add } in products {
        check_output(activations, affine.matrix, out);
        parts.push(context, activations, *affine, tokens.clone(), out.shared(), *add);
    }
    parts.run(context, activations);
}

/// The tokens of a group and their matrix, one of several of the same shape.
pub struct Group<'a> {
    pub affine: Affine<'a>,
    pub tokens: Range<usize>,
}

/// Multiplies each group of the activations by a matrix of its own: `out[t] = scale * (matrix x activations[t]) + bias`.
///
/// # Panics
/// As [`multiply`], and if the tokens are not a group of the activations.
pub fn multiply_groups(
    context: Context<'_>,
    activations: &Activations,
    groups: &[Group<'_>],
    out: &mut Rows,
) {
    groups.iter().for_each(|group| check_output(activations, group.affine.matrix, out));
    check_order(groups.iter().map(|group| group.tokens.clone()), activations);
    let out = out.shared();
    let mut parts = Parts::default();
    for group in groups {
        parts.push(context, activations, group.affine, group.tokens.clone(), out, false);
    }
    parts.run(context, activations);
}

/// The products of a multiplication.
#[derive(Default)]
struct Parts<'a> {
    parts: Vec<Part<'a>>,
    items: usize,
}

/// One product of a multiplication, cut into items.
struct Part<'a> {
    first_item: usize,
    /// All of the matrix, or half of it where each strip comes with one of the other half.
    strips: usize,
    /// Strips of an item.
    chunk: usize,
    /// Items of the same strips.
    blocks: usize,
    affine: Affine<'a>,
    tokens: Range<usize>,
    out: SharedRows<'a>,
    add: bool,
}

impl<'a> Parts<'a> {
    fn push(
        &mut self,
        context: Context<'_>,
        activations: &Activations,
        affine: Affine<'a>,
        tokens: Range<usize>,
        out: SharedRows<'a>,
        add: bool,
    ) {
        let matrix = affine.matrix;
        check_input(activations, matrix, &tokens);
        assert!(!add || affine.is_plain(), "what follows a matrix is not added");
        if tokens.is_empty() {
            return;
        }
        // Where they are read in twos, a strip of the first half comes with one of the second.
        let twins = reads_twins(context, matrix, tokens.len()) && matrix.strips().is_multiple_of(2);
        let halves = if twins { 2 } else { 1 };
        let strips = matrix.strips() / halves;
        let chunk = strips_per_item(context, matrix, tokens.len()) / halves;
        let blocks = panel_blocks(matrix, tokens.len());
        let first_item = self.items;
        self.items += strips.div_ceil(chunk) * blocks;
        self.parts.push(Part { first_item, strips, chunk, blocks, affine, tokens, out, add });
    }

    fn run(&self, context: Context<'_>, activations: &Activations) {
        context.pool.run(self.items, &|item| {
            let part = self.parts.partition_point(|part| part.first_item <= item) - 1;
            self.parts[part].run(context, activations, item);
        });
    }
}

impl Part<'_> {
    fn run(&self, context: Context<'_>, activations: &Activations, item: usize) {
        let &Part { first_item, strips, chunk, blocks, affine, ref tokens, ref out, add } = self;
        let matrix = affine.matrix;
        let item = item - first_item;
        let start = item / blocks * chunk;
        let count = chunk.min(strips - start);
        let multiply = |bytes: &[u8], twin: Option<&[u8]>| {
            let own = Strips { bytes, start, out };
            let twin = twin.map(|bytes| Strips { bytes, start: strips + start, out });
            for panel in block_of_panels(tokens, item % blocks, blocks) {
                tile(context, matrix, own, twin, activations, panel.clone(), add);
                for strips in [Some(own), twin].into_iter().flatten() {
                    // SAFETY: this item alone touches these rows.
                    unsafe { affine.finish(out, strips.start..strips.start + count, panel.clone()) };
                }
            }
        };
        matrix.with_strips(start, count, |bytes| {
            if strips == matrix.strips() {
                multiply(bytes, None);
            } else {
                matrix.with_strips(strips + start, count, |twin| multiply(bytes, Some(twin)));
            }
        });
    }
}

/// The two matrices of the gated half of a feed-forward layer, for a group of tokens.
pub struct Gated<'a> {
    pub gate: Affine<'a>,
    pub up: Affine<'a>,
    pub tokens: Range<usize>,
}

/// The gated half of feed-forward layers: `gate_out[t] = function(gate x activations[t]) * (up x activations[t])`.
/// `up_out` is scratch space of the same shape.
///
/// # Panics
/// As [`multiply_groups`], and if gate and up differ in shape.
pub fn multiply_gated(
    context: Context<'_>,
    activations: &Activations,
    function: ActivationFunction,
    groups: &[Gated<'_>],
    gate_out: &mut Rows,
    up_out: &mut Rows,
) {
    check_order(groups.iter().map(|group| group.tokens.clone()), activations);
    let mut first_items = Vec::with_capacity(groups.len());
    let mut items = 0;
    for Gated { gate, up, tokens } in groups {
        let (gate, up) = (gate.matrix, up.matrix);
        assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "gate and up differ in shape");
        for (matrix, out) in [(gate, &*gate_out), (up, &*up_out)] {
            check_input(activations, matrix, tokens);
            check_output(activations, matrix, out);
        }
        first_items.push(items);
        items += gated_items(context, gate, tokens.len());
    }
    let (gate_out, up_out) = (gate_out.shared(), up_out.shared());
    let gate_mul = context.table.gate_mul(function);
    context.pool.run(items, &|item| {
        let group = first_items.partition_point(|&first| first <= item) - 1;
        let (Gated { gate, up, tokens }, item) = (&groups[group], item - first_items[group]);
        let (chunk, blocks) =
            (strips_per_item(context, gate.matrix, tokens.len()), panel_blocks(gate.matrix, tokens.len()));
        let start = item / blocks * chunk;
        let count = chunk.min(gate.matrix.strips() - start);
        let alike = |matrix: &Matrix| (matrix.layout(), matrix.bytes_kind(), matrix.is_plain());
        let twins = reads_twins(context, gate.matrix, tokens.len()) && alike(gate.matrix) == alike(up.matrix);
        let multiply = |gate_bytes: &[u8], up_bytes: &[u8]| {
            let gates = Strips { bytes: gate_bytes, start, out: &gate_out };
            let ups = Strips { bytes: up_bytes, start, out: &up_out };
            for panel in block_of_panels(tokens, item % blocks, blocks) {
                if twins {
                    tile(context, gate.matrix, gates, Some(ups), activations, panel.clone(), false);
                } else {
                    tile(context, gate.matrix, gates, None, activations, panel.clone(), false);
                    tile(context, up.matrix, ups, None, activations, panel.clone(), false);
                }
                // SAFETY: this item alone touches these columns, and the table proves the instruction set.
                unsafe {
                    gate.finish(&gate_out, start..start + count, panel.clone());
                    up.finish(&up_out, start..start + count, panel.clone());
                    for t in panel {
                        let gate = gate_out.part(t, start * STRIP, count * STRIP);
                        gate_mul(gate, up_out.part(t, start * STRIP, count * STRIP));
                    }
                }
            }
        };
        gate.matrix.with_strips(start, count, |gate| {
            up.matrix.with_strips(start, count, |up| multiply(gate, up));
        });
    });
}

/// Items of one group of [`multiply_gated`].
fn gated_items(context: Context<'_>, gate: &Matrix, tokens: usize) -> usize {
    if tokens == 0 {
        return 0;
    }
    gate.strips().div_ceil(strips_per_item(context, gate, tokens)) * panel_blocks(gate, tokens)
}

/// Groups in their order, each once: what one item writes is nobody else's.
fn check_order(groups: impl Iterator<Item = Range<usize>>, activations: &Activations) {
    assert!(are_disjoint(groups, activations.tokens()), "groups in their order, each once");
}

fn check_input(activations: &Activations, matrix: &Matrix, tokens: &Range<usize>) {
    assert_eq!(matrix.cols(), activations.cols(), "columns of {matrix:?} and of the activations");
    assert!(activations.is_group(tokens), "tokens {tokens:?} are no group of the activations");
}

fn check_output(activations: &Activations, matrix: &Matrix, out: &Rows) {
    assert_eq!((out.count(), out.cols()), (activations.tokens(), matrix.rows()), "output of {matrix:?}");
}

/// Blocks that a batch's panels are cut into, each an item of its own with some strips; those of the same strips follow each
/// other, so that their thread finds them in its caches. One block where each item packs its strips anew.
fn panel_blocks(matrix: &Matrix, tokens: usize) -> usize {
    if matrix.is_plain() { 1 } else { panels(tokens).count().div_ceil(ITEM_PANELS_MAX) }
}

/// The panels of block `block` of `blocks` of some tokens.
fn block_of_panels(tokens: &Range<usize>, block: usize, blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let most = if blocks == 1 { usize::MAX } else { ITEM_PANELS_MAX };
    let start = tokens.start;
    let panels = panels(tokens.len()).map(move |panel| start + panel.start..start + panel.end);
    panels.skip(block * ITEM_PANELS_MAX).take(most)
}

/// Strips that one item multiplies, twins among them: few enough for the caches and for balance, in fours.
fn strips_per_item(context: Context<'_>, matrix: &Matrix, tokens: usize) -> usize {
    let cached = if tokens > 2 { ITEM_BYTES_MAX / matrix.strip_bytes().max(1) } else { 4 };
    let balanced = matrix.strips() / (context.pool.threads() * ITEMS_PER_THREAD);
    let most = matrix.strips().div_ceil(crate::pool::ITEMS_MAX);
    (cached.min(balanced) / 4 * 4).max(4).max(most)
}

/// Whether a multiplication goes faster where strips come with twins.
fn reads_twins(context: Context<'_>, matrix: &Matrix, tokens: usize) -> bool {
    context.table.isa.reads_twins() && tokens == 1 && !matrix.layout().is_float() && !matrix.is_plain()
}

/// Packed strips of a matrix, from strip `start` on, and the output of the whole matrix.
#[derive(Clone, Copy)]
struct Strips<'a> {
    bytes: &'a [u8],
    start: usize,
    out: &'a SharedRows<'a>,
}

/// Strips of a matrix times one panel; twins are of the same matrix or of one of its shape and layout.
fn tile(
    context: Context<'_>,
    matrix: &Matrix,
    strips: Strips<'_>,
    twin: Option<Strips<'_>>,
    activations: &Activations,
    panel: Range<usize>,
    add: bool,
) {
    assert_eq!(
        matrix.bytes_kind(),
        context.table.isa.bytes(),
        "{matrix:?} is packed for another instruction set"
    );
    let strip_bytes = matrix.strip_bytes();
    let args = TileArgs {
        strips: strips.bytes.as_ptr(),
        strip_bytes,
        strip_count: strips.bytes.len() / strip_bytes,
        cols: matrix.cols(),
        panel: match matrix.layout() {
            Layout::F32 | Layout::F16 => activations.float_panel(panel.start),
            Layout::BF16 => activations.bf16_panel(panel.start),
            layout if layout.has_superblocks() => activations.superblock_panel(panel.start),
            _ => activations.integer_panel(panel.start),
        },
        out: strips.out.pointer(panel.start, strips.start * STRIP),
        out_stride: strips.out.stride,
        add,
        twin: twin.map(|twin| {
            assert_eq!((twin.bytes.len(), twin.out.stride), (strips.bytes.len(), strips.out.stride), "twins");
            Twin { strips: twin.bytes.as_ptr(), out: twin.out.pointer(panel.start, twin.start * STRIP) }
        }),
    };
    let tile = context.table.tiles(matrix.layout())[width_index(panel.len())];
    // SAFETY: the strips are whole ones of the matrix, and twins as many of its layout; the panel is one of `panels(tokens)`
    // with the matrix's columns (all checked by the callers); rows of `out` have room for whole strips and this item
    // alone writes these; the table proves the instruction set.
    unsafe { tile(&args) }
}
