//! What happens between two synchronizations of a transformer's forward pass, one call each.

use crate::Context;
use crate::format::SUPERBLOCK;
use crate::isa::{TileArgs, Twin, width_index};
use crate::layout::{Layout, STRIP};
use crate::matrix::Matrix;
use crate::panel::{Activations, Kinds, PANEL_WIDTHS, panels};
use crate::shared::SharedMut;
use std::ops::Range;

/// A row-major buffer of floats whose rows have room for whole strips.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    data: Vec<f32>,
    count: usize,
    cols: usize,
    stride: usize,
}

impl Rows {
    pub fn new(count: usize, cols: usize) -> Self {
        let mut rows = Self::default();
        rows.reset(count, cols);
        rows
    }

    /// Makes it `count` x `cols`; the contents are undefined.
    pub fn reset(&mut self, count: usize, cols: usize) {
        (self.count, self.cols, self.stride) = (count, cols, cols.next_multiple_of(STRIP));
        let len = count * self.stride;
        if self.data.len() < len {
            self.data.resize(len, 0.0);
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.count, "row {i} of {}", self.count);
        &self.data[i * self.stride..][..self.cols]
    }

    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.count, "row {i} of {}", self.count);
        &mut self.data[i * self.stride..][..self.cols]
    }

    /// Drops all rows but these.
    ///
    /// # Panics
    /// If they are not in ascending order, or there is no such row.
    pub fn keep(&mut self, rows: &[usize]) {
        assert!(rows.is_sorted_by(|a, b| a < b), "rows in ascending order");
        for (to, &from) in rows.iter().enumerate() {
            assert!(from < self.count, "row {from} of {}", self.count);
            self.data.copy_within(from * self.stride..(from + 1) * self.stride, to * self.stride);
        }
        self.count = rows.len();
    }

    pub(crate) fn shared(&mut self) -> SharedRows<'_> {
        let len = self.count * self.stride;
        SharedRows { data: SharedMut::new(&mut self.data[..len]), cols: self.cols, stride: self.stride }
    }
}

/// Rows that several threads write in different places.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows<'a> {
    data: SharedMut<'a, f32>,
    cols: usize,
    pub(crate) stride: usize,
}

impl<'a> SharedRows<'a> {
    /// # Safety
    /// No two parts that live at the same time overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract above is what a borrow would check")]
    pub(crate) unsafe fn part(&self, row: usize, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start + len <= self.stride, "{start}..+{len} of {}", self.stride);
        // SAFETY: the caller's contract.
        unsafe { self.data.slice(row * self.stride + start, len) }
    }

    /// # Safety
    /// No two rows that live at the same time overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract above is what a borrow would check")]
    pub(crate) unsafe fn row(&self, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { self.part(row, 0, self.cols) }
    }

    fn pointer(&self, row: usize, start: usize) -> *mut f32 {
        self.data.pointer(row * self.stride + start)
    }
}

/// Operations on fewer tokens than this are not worth waking another thread for.
const TOKENS_INLINE_MAX: usize = 4;

/// No more panels than this are too few to give each to one thread.
const PANELS_SHARED_MAX: usize = 4;

/// Columns that are normed at once, a multiple of those that share a scale: they stay in the first-level cache.
const NORM_COLS: usize = 1024;

/// Bytes of packed weights in one item of a multiplication: the part of a 1 MiB second-level cache that a block of
/// weights may take while the panels of a prefill pass by.
const ITEM_BYTES_MAX: usize = 256 * 1024;

/// Panels in one item: few enough that a thread with nothing left to do does not wait long for the others.
const ITEM_PANELS_MAX: usize = 12;

/// Items per thread that make up for one thread being slower than another.
const ITEMS_PER_THREAD: usize = 8;

/// Calls `f` for every token, on all threads if there are enough of them to pay.
pub(crate) fn for_each_token(context: Context<'_>, tokens: usize, f: &(dyn Fn(usize) + Sync)) {
    if tokens <= TOKENS_INLINE_MAX {
        return (0..tokens).for_each(f);
    }
    // Whole panels where there are enough: their tokens share cache lines.
    let wide = PANEL_WIDTHS[0];
    let per_item = if tokens > wide * context.pool.threads().max(PANELS_SHARED_MAX) { wide } else { 4 };
    context.pool.run(tokens.div_ceil(per_item), &|item| {
        (item * per_item..tokens.min((item + 1) * per_item)).for_each(f);
    });
}

/// Calls `f` for parts of the columns of every token, which together are all and begin where a scale does, on all threads if
/// there are enough to pay.
fn for_each_part(context: Context<'_>, tokens: usize, cols: usize, f: &(dyn Fn(usize, Range<usize>) + Sync)) {
    let threads = context.pool.threads();
    let width = cols.div_ceil(threads).next_multiple_of(SUPERBLOCK);
    // Few panels, whose tokens share cache lines: all of them go through the same columns together.
    let shared = TOKENS_INLINE_MAX + 1..=PANELS_SHARED_MAX * PANEL_WIDTHS[0];
    if shared.contains(&tokens) && cols.div_ceil(width) == threads {
        context.pool.run(threads, &|part| {
            (0..tokens).for_each(|token| f(token, part * width..cols.min((part + 1) * width)));
        });
    } else {
        for_each_token(context, tokens, &|token| f(token, 0..cols));
    }
}

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

/// One matrix of a multiplication: `out[t] = matrix x activations[t]`, or added to `out[t]`.
pub struct Product<'a> {
    pub matrix: &'a Matrix,
    pub out: &'a mut Rows,
    pub add: bool,
}

impl<'a> Product<'a> {
    pub fn new(matrix: &'a Matrix, out: &'a mut Rows) -> Self {
        Self { matrix, out, add: false }
    }
}

/// Multiplies the same activations by several matrices, in one go over all threads.
///
/// # Panics
/// If a matrix's columns are not those of the activations, they lack the kind of panel it needs, or an output has not
/// the shape tokens x rows.
pub fn multiply(context: Context<'_>, activations: &Activations, products: &mut [Product<'_>]) {
    let tokens = activations.tokens();
    if tokens == 0 {
        return;
    }
    let mut first_item = 0;
    let parts: Vec<_> = products
        .iter_mut()
        .map(|product| {
            check_shapes(activations, product.matrix, product.out);
            let matrix = product.matrix;
            // Where they are read in twos, a strip of the first half comes with one of the second.
            let halves =
                if reads_twins(context, matrix, tokens) && matrix.strips().is_multiple_of(2) { 2 } else { 1 };
            let strips = matrix.strips() / halves;
            let chunk = strips_per_item(context, matrix, tokens) / halves;
            let blocks = panel_blocks(matrix, tokens);
            let part = Part {
                first_item,
                strips,
                chunk,
                blocks,
                matrix,
                out: product.out.shared(),
                add: product.add,
            };
            first_item += strips.div_ceil(chunk) * blocks;
            part
        })
        .collect();
    context.pool.run(first_item, &|item| {
        let part = parts.iter().rev().find(|part| part.first_item <= item);
        part.expect("the first part starts at item 0").run(context, activations, item);
    });
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
    matrix: &'a Matrix,
    out: SharedRows<'a>,
    add: bool,
}

impl Part<'_> {
    fn run(&self, context: Context<'_>, activations: &Activations, item: usize) {
        let &Part { first_item, strips, chunk, blocks, matrix, ref out, add } = self;
        let item = item - first_item;
        let start = item / blocks * chunk;
        let count = chunk.min(strips - start);
        let multiply = |bytes: &[u8], twin: Option<&[u8]>| {
            let twin = twin.map(|bytes| Strips { bytes, start: strips + start, out });
            let own = Strips { bytes, start, out };
            for panel in block_of_panels(activations.tokens(), item % blocks, blocks) {
                tile(context, matrix, own, twin, activations, panel, add);
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

/// The gated half of a feed-forward layer: `gate_out[t] = silu(gate x activations[t]) * (up x activations[t])`.
/// `up_out` is scratch space of the same shape.
///
/// # Panics
/// As [`multiply`], and if the two matrices differ in shape.
pub fn multiply_swiglu(
    context: Context<'_>,
    activations: &Activations,
    gate: &Matrix,
    up: &Matrix,
    gate_out: &mut Rows,
    up_out: &mut Rows,
) {
    assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "gate and up differ in shape");
    check_shapes(activations, gate, gate_out);
    check_shapes(activations, up, up_out);
    let tokens = activations.tokens();
    if tokens == 0 {
        return;
    }
    let (chunk, blocks) = (strips_per_item(context, gate, tokens), panel_blocks(gate, tokens));
    let alike = |matrix: &Matrix| (matrix.layout(), matrix.bytes_kind(), matrix.is_plain());
    let twins = reads_twins(context, gate, tokens) && alike(gate) == alike(up);
    let (gate_out, up_out) = (gate_out.shared(), up_out.shared());
    context.pool.run(gate.strips().div_ceil(chunk) * blocks, &|item| {
        let start = item / blocks * chunk;
        let count = chunk.min(gate.strips() - start);
        let multiply = |gate_bytes: &[u8], up_bytes: &[u8]| {
            let gates = Strips { bytes: gate_bytes, start, out: &gate_out };
            let ups = Strips { bytes: up_bytes, start, out: &up_out };
            for panel in block_of_panels(tokens, item % blocks, blocks) {
                if twins {
                    tile(context, gate, gates, Some(ups), activations, panel.clone(), false);
                } else {
                    tile(context, gate, gates, None, activations, panel.clone(), false);
                    tile(context, up, ups, None, activations, panel.clone(), false);
                }
                for t in panel {
                    // SAFETY: this item alone touches these columns, and the table proves the instruction set.
                    unsafe {
                        let gate = gate_out.part(t, start * STRIP, count * STRIP);
                        let up = up_out.part(t, start * STRIP, count * STRIP);
                        (context.table.silu_mul)(gate, up);
                    }
                }
            }
        };
        gate.with_strips(start, count, |gate| up.with_strips(start, count, |up| multiply(gate, up)));
    });
}

fn check_shapes(activations: &Activations, matrix: &Matrix, out: &Rows) {
    assert_eq!(matrix.cols(), activations.cols(), "columns of {matrix:?} and of the activations");
    assert_eq!((out.count(), out.cols()), (activations.tokens(), matrix.rows()), "output of {matrix:?}");
}

/// Blocks that a batch's panels are cut into, each an item of its own with some strips; those of the same strips follow each
/// other, so that their thread finds them in its caches. One block where each item packs its strips anew.
fn panel_blocks(matrix: &Matrix, tokens: usize) -> usize {
    if matrix.is_plain() { 1 } else { panels(tokens).count().div_ceil(ITEM_PANELS_MAX) }
}

/// The panels of block `block` of `blocks`.
fn block_of_panels(tokens: usize, block: usize, blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let most = if blocks == 1 { usize::MAX } else { ITEM_PANELS_MAX };
    panels(tokens).skip(block * ITEM_PANELS_MAX).take(most)
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

/// Root-mean-square norm of every row of `x`, written as activations.
///
/// # Panics
/// If `weight` has not the rows' length.
pub fn rms_norm(
    context: Context<'_>,
    x: &Rows,
    weight: &[f32],
    epsilon: f32,
    kinds: Kinds,
    out: &mut Activations,
) {
    assert_eq!(weight.len(), x.cols(), "weights of a norm");
    out.reset(x.count(), x.cols(), kinds);
    let writer = out.writer();
    for_each_part(context, x.count(), x.cols(), &|t, cols| {
        let mut normed = [0.0; NORM_COLS];
        let parts = x.row(t)[cols.clone()].chunks(NORM_COLS).zip(weight[cols.clone()].chunks(NORM_COLS));
        // SAFETY: each element is written once; the table proves the instruction set.
        unsafe {
            let scale = (context.table.rms_scale)(x.row(t), epsilon);
            for (i, (x, weight)) in parts.enumerate() {
                let normed = &mut normed[..x.len()];
                (context.table.scale)(x, scale, weight, normed);
                writer.write(context.table, t, cols.start + i * NORM_COLS, normed);
            }
        }
    });
}

/// Every row of `x` as activations.
pub fn activate(context: Context<'_>, x: &Rows, kinds: Kinds, out: &mut Activations) {
    out.reset(x.count(), x.cols(), kinds);
    let writer = out.writer();
    for_each_part(context, x.count(), x.cols(), &|t, cols| {
        // SAFETY: each element is written once.
        unsafe { writer.write(context.table, t, cols.start, &x.row(t)[cols]) }
    });
}

/// Adds a bias to every row.
///
/// # Panics
/// If `bias` has not the rows' length.
pub fn add_bias(x: &mut Rows, bias: &[f32]) {
    assert_eq!(x.cols(), bias.len(), "length of a bias");
    for t in 0..x.count() {
        for (x, b) in x.row_mut(t).iter_mut().zip(bias) {
            *x += b;
        }
    }
}

/// The largest value of `x`, negative infinity of nothing.
pub fn max(context: Context<'_>, x: &[f32]) -> f32 {
    // SAFETY: the table proves the instruction set.
    unsafe { (context.table.max)(x) }
}

/// The logarithm of the sum of `e^x`, the denominator of a log-softmax.
pub fn log_sum_exp(context: Context<'_>, x: &[f32]) -> f32 {
    let max = max(context, x);
    if !max.is_finite() {
        return max;
    }
    // SAFETY: the table proves the instruction set.
    max + unsafe { (context.table.exp_sum)(x, max) }.ln()
}

/// Multiplies every element.
pub fn scale(x: &mut Rows, factor: f32) {
    for t in 0..x.count() {
        x.row_mut(t).iter_mut().for_each(|x| *x *= factor);
    }
}

/// `x += y`.
///
/// # Panics
/// If the shapes differ.
pub fn add(x: &mut Rows, y: &Rows) {
    assert_eq!((x.count(), x.cols()), (y.count(), y.cols()), "shapes of a sum");
    for t in 0..x.count() {
        for (x, y) in x.row_mut(t).iter_mut().zip(y.row(t)) {
            *x += y;
        }
    }
}

/// `gate = silu(gate) * up`.
///
/// # Panics
/// If the shapes differ.
pub fn silu_mul(context: Context<'_>, gate: &mut Rows, up: &Rows) {
    assert_eq!((gate.count(), gate.cols()), (up.count(), up.cols()), "shapes of gate and up");
    let tokens = gate.count();
    let gate = gate.shared();
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { (context.table.silu_mul)(gate.row(t), up.row(t)) });
}
