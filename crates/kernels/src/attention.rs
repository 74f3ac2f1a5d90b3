//! Attention over a paged key-value cache: rotary embedding, writing keys and values, and the softmax over them.
//!
//! A page holds [`PAGE`] positions of one layer. Keys lie like packed weights, 16 positions interleaved, so a tile scores
//! 16 positions for up to 12 query rows at once; values lie a row per position, so a tile mixes 16 dimensions at once.
//! The query rows that share a key-value head (the heads of its group, times the tokens of a prefill) go through
//! together, so a key is read once for all of them. Softmax is online (Milakov and Gimelshein, 2018), page by page;
//! after each [`SPAN`] the running maximum starts afresh and the parts are merged, so that the arithmetic of a row
//! depends on its position only, never on how the work was cut. Where there are few rows and heads for many threads, the
//! spans are shared out too.
//!
//! In a `Q8_0` cache, keys are strips of [`Layout::Q8`]: queries are quantized like activations and scored by the integer
//! tiles of the weights. Values are bytes with a scale for each 32 dimensions and are mixed as floats.

use crate::Context;
use crate::elementwise;
use crate::format::GROUP;
use crate::isa::{MixArgs, MixFn, ScoreArgs, ScoreFn, TileArgs, TileFn, width_index};
use crate::layout::{Blocks, Bytes, Layout, STRIP};
use crate::ops::{Rows, SharedRows, for_each_token};
use crate::panel::{PANEL_WIDTHS, RECORD};
use crate::shared::SharedMut;
use half::{bf16, f16};
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Positions in a page of the cache.
pub const PAGE: usize = 128;

/// Positions that are summed with one running maximum.
pub const SPAN: usize = 512;

/// Query rows that go through together.
const ROWS_MAX: usize = PANEL_WIDTHS[0];

/// The longest head; what the scratch space of a thread is made for.
pub const HEAD_DIM_MAX: usize = 512;

/// How the elements of a cache are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// As computed; for comparing engines.
    F32,
    #[default]
    F16,
    BF16,
    /// 8 bits with an f16 scale for each 32 dimensions of a key or value: half the memory of `F16`.
    Q8_0,
}

impl KvFormat {
    pub const ALL: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::BF16, KvFormat::Q8_0];

    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::BF16 => "bf16",
            KvFormat::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one element without its scale.
    const fn element_bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::F16 | KvFormat::BF16 => 2,
            KvFormat::Q8_0 => 1,
        }
    }

    /// Heads are filled up to a multiple of this many dimensions.
    const fn dim_multiple(self) -> usize {
        match self {
            KvFormat::Q8_0 => GROUP,
            _ => STRIP,
        }
    }

    /// Stores the nearest value, the largest finite half beyond that: an infinity in the cache would turn masked
    /// positions into NaN.
    #[inline(always)]
    fn store(self, x: f32, out: &mut [u8]) {
        match self {
            KvFormat::F32 => out.copy_from_slice(&x.to_le_bytes()),
            KvFormat::F16 => out.copy_from_slice(&f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes()),
            KvFormat::BF16 => out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
            KvFormat::Q8_0 => unreachable!("a quantized element is not stored alone"),
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        KvFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known: Vec<_> = KvFormat::ALL.iter().map(|format| format.name()).collect();
            format!("no cache format is called '{name}'; known are {}", known.join(", "))
        })
    }
}

/// The shape of a cache: the same for every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub format: KvFormat,
    pub pages: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Dimensions of a stored value, the ones that fill it up included.
    fn value_dims(self) -> usize {
        self.head_dim.next_multiple_of(self.format.dim_multiple())
    }

    /// Bytes of the keys of 16 positions of one head.
    fn key_block_bytes(self) -> usize {
        match self.format {
            KvFormat::Q8_0 => Layout::Q8.strip_bytes(self.value_dims()),
            format => STRIP * self.head_dim * format.element_bytes(),
        }
    }

    /// Bytes of the keys of one page of one head.
    fn key_bytes(self) -> usize {
        PAGE / STRIP * self.key_block_bytes()
    }

    /// Bytes of the values of one page of one head: rows of elements, then, where there are scales, `PAGE` halves for
    /// each group of dimensions.
    fn value_bytes(self) -> usize {
        let scales = match self.format {
            KvFormat::Q8_0 => self.value_dims() / GROUP * PAGE * 2,
            _ => 0,
        };
        self.value_scales() + scales
    }

    /// Where the scales of a page's values start.
    fn value_scales(self) -> usize {
        PAGE * self.value_dims() * self.format.element_bytes()
    }

    /// Bytes of one page of one layer, keys and values.
    pub fn page_bytes(self) -> usize {
        self.heads * (self.key_bytes() + self.value_bytes())
    }
}

/// Keys and values of one layer. Memory that no token has touched costs nothing: it is mapped when first written.
#[derive(Debug)]
pub struct KvLayer {
    shape: KvShape,
    keys: LazyBytes,
    values: LazyBytes,
}

/// Zeroes that start on a cache line and are not there before they are touched.
#[derive(Debug)]
struct LazyBytes {
    data: Vec<u8>,
    start: usize,
    len: usize,
}

impl LazyBytes {
    fn new(len: usize) -> Self {
        const LINE: usize = 64;
        let data = vec![0; len + LINE];
        let start = data.as_ptr().align_offset(LINE).min(LINE);
        Self { data, start, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.data[self.start..][..self.len]
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.data[self.start..][..self.len]
    }
}

impl KvLayer {
    /// # Panics
    /// If heads are longer than [`HEAD_DIM_MAX`].
    pub fn new(shape: KvShape) -> Self {
        assert!(shape.head_dim <= HEAD_DIM_MAX, "heads of {} are longer than {HEAD_DIM_MAX}", shape.head_dim);
        let heads = shape.pages * shape.heads;
        let (keys, values) =
            (LazyBytes::new(heads * shape.key_bytes()), LazyBytes::new(heads * shape.value_bytes()));
        Self { shape, keys, values }
    }

    /// Where a head's keys lie.
    fn keys_of(&self, page: usize, head: usize) -> Range<usize> {
        let start = (page * self.shape.heads + head) * self.shape.key_bytes();
        start..start + self.shape.key_bytes()
    }

    /// Where a head's values lie.
    fn values_of(&self, page: usize, head: usize) -> Range<usize> {
        let start = (page * self.shape.heads + head) * self.shape.value_bytes();
        start..start + self.shape.value_bytes()
    }
}

/// Some consecutive tokens of one sequence in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Where its rows begin in the batch.
    pub row: usize,
    pub tokens: usize,
    /// The position of its first token in the sequence.
    pub position: usize,
    /// The sequence's pages, enough for `position + tokens` positions.
    pub pages: &'a [u32],
}

/// Which elements of a head a rotary embedding turns together (Su et al., 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Elements `2 i` and `2 i + 1`.
    Adjacent,
    /// Elements `i` and `i + n / 2`, of `n` that are turned.
    Halves,
}

/// The turns of every token of a batch.
#[derive(Debug)]
pub struct Rotary {
    pub pairing: Pairing,
    /// Elements of a head that are turned, from its start.
    pub dims: usize,
    cos_sin: Vec<(f32, f32)>,
}

impl Rotary {
    /// `frequencies[i]` is how far pair `i` turns from one position to the next, in radians.
    pub fn new(pairing: Pairing, frequencies: &[f32], positions: impl Iterator<Item = usize>) -> Self {
        let turn = |p: usize, f: f32| {
            let (sin, cos) = (p as f64 * f64::from(f)).sin_cos();
            (cos as f32, sin as f32)
        };
        let cos_sin = positions.flat_map(|p| frequencies.iter().map(move |&f| turn(p, f))).collect();
        Self { pairing, dims: frequencies.len() * 2, cos_sin }
    }

    fn turn(&self, token: usize, head: &mut [f32]) {
        let half = self.dims / 2;
        let turns = &self.cos_sin[token * half..][..half];
        match self.pairing {
            Pairing::Adjacent => {
                for (pair, &(cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
            Pairing::Halves => {
                let (first, second) = head[..self.dims].split_at_mut(half);
                for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// Norms over each head of queries and keys, before they are turned.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub epsilon: f32,
}

/// Normalizes and turns the heads of `q` and `k` in place, and writes `k` and `v` to the cache.
///
/// # Panics
/// If rows, heads or pages do not fit together.
#[allow(clippy::too_many_arguments, reason = "everything that a token brings to attention")]
pub fn rotate_and_store(
    context: Context<'_>,
    q: &mut Rows,
    k: &mut Rows,
    v: &Rows,
    norms: Option<HeadNorms<'_>>,
    rotary: Option<&Rotary>,
    layer: &mut KvLayer,
    chunks: &[Chunk<'_>],
) {
    let shape = layer.shape;
    let dim = shape.head_dim;
    assert_eq!(
        (k.cols(), v.cols()),
        (shape.heads * dim, shape.heads * dim),
        "keys and values of the cache's shape"
    );
    assert!(q.cols().is_multiple_of(dim), "whole heads of queries");
    let place = places(chunks, q.count(), shape.pages);
    let key_start: Vec<_> = place.iter().map(|&(page, _)| layer.keys_of(page, 0).start).collect();
    let value_start: Vec<_> = place.iter().map(|&(page, _)| layer.values_of(page, 0).start).collect();
    let (q, k) = (q.shared(), k.shared());
    let keys = SharedMut::new(layer.keys.as_mut_slice());
    let values = SharedMut::new(layer.values.as_mut_slice());
    for_each_token(context, place.len(), &|t| {
        // SAFETY: each token has its own rows.
        let (q, k) = unsafe { (q.row(t), k.row(t)) };
        prepare_heads(context, q, dim, norms.map(|n| (n.query, n.epsilon)), rotary, t);
        prepare_heads(context, k, dim, norms.map(|n| (n.key, n.epsilon)), rotary, t);
        for head in 0..shape.heads {
            let (k, v) = (&k[head * dim..][..dim], &v.row(t)[head * dim..][..dim]);
            let key = key_start[t] + head * shape.key_bytes();
            let value = value_start[t] + head * shape.value_bytes();
            // SAFETY: each token has its own slot in the cache.
            unsafe {
                match shape.format {
                    KvFormat::Q8_0 => {
                        let bytes = context.table.isa.bytes();
                        store_quantized(shape, bytes, place[t].1, k, v, (&keys, key), (&values, value));
                    }
                    _ => store_floats(shape, place[t].1, k, v, (&keys, key), (&values, value)),
                }
            }
        }
    });
}

/// Stores one position of one head; `keys` and `values` come with where the head's page starts.
///
/// # Safety
/// Nobody else touches this slot.
unsafe fn store_floats(
    shape: KvShape,
    slot: usize,
    k: &[f32],
    v: &[f32],
    keys: (&SharedMut<'_, u8>, usize),
    values: (&SharedMut<'_, u8>, usize),
) {
    let (format, size) = (shape.format, shape.format.element_bytes());
    let block = keys.1 + slot / STRIP * shape.key_block_bytes();
    for (c, &k) in k.iter().enumerate() {
        // SAFETY: element `slot` of column `c`, this position's own.
        format.store(k, unsafe { keys.0.slice(block + (c * STRIP + slot % STRIP) * size, size) });
    }
    // SAFETY: this position's own row.
    let row = unsafe { values.0.slice(values.1 + slot * shape.value_dims() * size, v.len() * size) };
    for (out, &v) in row.chunks_exact_mut(size).zip(v) {
        format.store(v, out);
    }
}

/// As [`store_floats`], in groups of 32 dimensions.
///
/// # Safety
/// As [`store_floats`].
unsafe fn store_quantized(
    shape: KvShape,
    bytes: Bytes,
    slot: usize,
    k: &[f32],
    v: &[f32],
    keys: (&SharedMut<'_, u8>, usize),
    values: (&SharedMut<'_, u8>, usize),
) {
    let lane = slot % STRIP;
    let block = keys.1 + slot / STRIP * shape.key_block_bytes();
    for (g, k) in k.chunks(GROUP).enumerate() {
        let (q, d) = quantize(k);
        // SAFETY: this position's own scale and cells of group `g`.
        unsafe {
            keys.0
                .slice(block + Blocks::Q8.start(g) + (g % Blocks::Q8.groups * STRIP + lane) * 2, 2)
                .copy_from_slice(&d.to_le_bytes());
            for (cell, four) in q.as_chunks::<4>().0.iter().enumerate() {
                let out = keys.0.slice(block + Blocks::Q8.cells(g) + cell * 64 + lane * 4, 4);
                match bytes {
                    Bytes::Signed => out.copy_from_slice(&four.map(|q| q as u8)),
                    Bytes::Unsigned => out.copy_from_slice(&four.map(|q| q as u8 ^ 0x80)),
                }
            }
        }
    }
    for (g, v) in v.chunks(GROUP).enumerate() {
        let (q, d) = quantize(v);
        // SAFETY: this position's own elements and scale of group `g`.
        unsafe {
            let row = values.1 + slot * shape.value_dims() + g * GROUP;
            values.0.slice(row, GROUP).copy_from_slice(&q.map(|q| q as u8));
            let scale = values.1 + shape.value_scales() + (g * PAGE + slot) * 2;
            values.0.slice(scale, 2).copy_from_slice(&d.to_le_bytes());
        }
    }
}

/// Up to 32 floats, filled up with zeros, as `d * q`; the nearest to each that the rounded scale allows.
fn quantize(x: &[f32]) -> ([i8; GROUP], f16) {
    let mut group = [0f32; GROUP];
    group[..x.len()].copy_from_slice(x);
    let amax = group.iter().fold(0f32, |a, x| a.max(x.abs())).min(65504.0 * 127.0);
    let d = f16::from_f32(amax / 127.0);
    let inverse = if d > f16::ZERO { 1.0 / d.to_f32() } else { 0.0 };
    (group.map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8), d)
}

/// Page and slot of every token of a batch.
fn places(chunks: &[Chunk<'_>], tokens: usize, pages: usize) -> Vec<(usize, usize)> {
    let mut places = vec![(usize::MAX, 0); tokens];
    for chunk in chunks {
        for i in 0..chunk.tokens {
            let position = chunk.position + i;
            let page = chunk.pages[position / PAGE] as usize;
            assert!(page < pages, "page {page} of {pages}");
            places[chunk.row + i] = (page, position % PAGE);
        }
    }
    assert!(places.iter().all(|p| p.0 != usize::MAX), "every row belongs to a chunk");
    // Two tokens in one place would race.
    let mut sorted = places.clone();
    sorted.sort_unstable();
    assert!(sorted.windows(2).all(|w| w[0] != w[1]), "two tokens share a place in the cache");
    places
}

fn prepare_heads(
    context: Context<'_>,
    row: &mut [f32],
    dim: usize,
    norm: Option<(&[f32], f32)>,
    rotary: Option<&Rotary>,
    token: usize,
) {
    for head in row.chunks_exact_mut(dim) {
        if let Some((weight, epsilon)) = norm {
            let mut out = [0.0; HEAD_DIM_MAX];
            // SAFETY: the table proves the instruction set.
            unsafe { (context.table.rms_norm)(head, weight, epsilon, &mut out[..dim]) };
            head.copy_from_slice(&out[..dim]);
        }
        if let Some(rotary) = rotary {
            rotary.turn(token, head);
        }
    }
}

/// Causal attention of every row of `q` over its sequence's cache, written to `out`. `scale` multiplies the scores.
///
/// # Panics
/// If rows, heads or pages do not fit together.
pub fn attend(
    context: Context<'_>,
    layer: &KvLayer,
    q: &Rows,
    scale: f32,
    chunks: &[Chunk<'_>],
    out: &mut Rows,
) {
    let shape = layer.shape;
    let width = shape.heads * shape.head_dim;
    assert!(q.cols().is_multiple_of(width), "whole groups of query heads");
    assert_eq!((q.count(), q.cols()), (out.count(), out.cols()), "queries and output");
    let group = q.cols() / width;
    let mut blocks = Vec::new();
    for chunk in chunks {
        assert!(chunk.pages.len() * PAGE >= chunk.position + chunk.tokens, "pages for every position");
        assert!(chunk.pages.iter().all(|&p| (p as usize) < shape.pages), "pages of the cache");
        let rows = chunk.tokens * group;
        // A head's blocks follow each other, so that its keys and values stay in the cache; later blocks have more
        // positions to attend to and come first.
        for head in 0..shape.heads {
            for first in (0..rows).step_by(ROWS_MAX).rev() {
                blocks.push(Block { chunk, group, head, first, count: ROWS_MAX.min(rows - first) });
            }
        }
    }
    let out = out.shared();
    let whole = Task { context, layer, q, scale, out: &out };
    if blocks.len() >= BLOCKS_PER_THREAD * context.pool.threads()
        || blocks.iter().all(|block| block.spans() == 1)
    {
        context
            .pool
            .run(blocks.len(), &|i| SCRATCH.with_borrow_mut(|scratch| whole.block(&blocks[i], scratch)));
    } else {
        whole.by_spans(&blocks);
    }
}

/// With fewer blocks than this for each thread, spans are shared out instead.
const BLOCKS_PER_THREAD: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Up to [`ROWS_MAX`] query rows of one sequence and key-value head: `first..first + count` of its tokens times the heads
/// of the group.
struct Block<'a> {
    chunk: &'a Chunk<'a>,
    group: usize,
    head: usize,
    first: usize,
    count: usize,
}

impl Block<'_> {
    /// Row of the batch and query head of row `r`.
    fn place(&self, r: usize) -> (usize, usize) {
        let row = self.first + r;
        (self.chunk.row + row / self.group, self.head * self.group + row % self.group)
    }

    /// Positions that row `r` may see.
    fn seen(&self, r: usize) -> usize {
        self.chunk.position + (self.first + r) / self.group + 1
    }

    fn spans(&self) -> usize {
        self.seen(self.count - 1).div_ceil(SPAN)
    }
}

/// Query rows on their way through the cache, and sums of values on their way to the output.
#[derive(Default)]
struct Scratch {
    width: usize,
    queries: Queries,
    /// `[width][PAGE]`
    scores: Vec<f32>,
    /// Scales of the values of one page, a group of dimensions after the other.
    scales: Vec<f32>,
    alpha: [f32; ROWS_MAX],
    span: Partial,
    merged: Partial,
}

/// As the tiles of the cache's format want them.
#[derive(Default)]
struct Queries {
    /// `[dim][width]`
    floats: Vec<f32>,
    /// An integer panel of `width` rows.
    integers: Vec<u8>,
    row: Vec<f32>,
}

/// Of each row the largest score, the sum of `e^(score - max)`, and the sum of values weighted with that.
#[derive(Clone, Default)]
struct Partial {
    states: [State; ROWS_MAX],
    /// `[width][value dims]`
    sums: Vec<f32>,
}

#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

impl Default for State {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// What a sum with maximum `before` is multiplied by when the maximum becomes `after`.
fn rescale(before: f32, after: f32) -> f32 {
    if before == f32::NEG_INFINITY { 0.0 } else { elementwise::exp::<elementwise::Plain>(before - after) }
}

impl Partial {
    fn reset(&mut self, len: usize) {
        self.states = Default::default();
        self.sums.clear();
        self.sums.resize(len, 0.0);
    }

    /// Folds a span of later positions in.
    fn merge(&mut self, span: &Partial, width: usize) {
        let dims = self.sums.len() / width;
        for r in 0..width {
            let (span_state, merged) = (span.states[r], &mut self.states[r]);
            let max = span_state.max.max(merged.max);
            let (a, b) = (rescale(merged.max, max), rescale(span_state.max, max));
            *merged = State { max, sum: merged.sum * a + span_state.sum * b };
            let range = r * dims..(r + 1) * dims;
            for (m, s) in self.sums[range.clone()].iter_mut().zip(&span.sums[range]) {
                *m = *m * a + *s * b;
            }
        }
    }
}

/// One call of [`attend`].
struct Task<'a> {
    context: Context<'a>,
    layer: &'a KvLayer,
    q: &'a Rows,
    scale: f32,
    out: &'a SharedRows<'a>,
}

impl Task<'_> {
    /// A block, span after span.
    fn block(&self, block: &Block<'_>, scratch: &mut Scratch) {
        self.load_queries(block, scratch);
        scratch.merged.reset(scratch.width * self.layer.shape.value_dims());
        for span in 0..block.spans() {
            self.span(block, span, scratch);
            scratch.merged.merge(&scratch.span, scratch.width);
        }
        self.finish(block, &scratch.merged);
    }

    /// Every span of every block for itself; who finishes a block's last one merges them, in order.
    fn by_spans(&self, blocks: &[Block<'_>]) {
        let spans: Vec<(usize, usize)> =
            (0..blocks.len()).flat_map(|b| (0..blocks[b].spans()).map(move |s| (b, s))).collect();
        let first_of: Vec<usize> = blocks
            .iter()
            .scan(0, |next, block| {
                let first = *next;
                *next += block.spans();
                Some(first)
            })
            .collect();
        let left: Vec<_> = blocks.iter().map(|block| AtomicUsize::new(block.spans())).collect();
        let mut partials = vec![Partial::default(); spans.len()];
        let partials = SharedMut::new(&mut partials);
        self.context.pool.run(spans.len(), &|i| {
            let (b, s) = spans[i];
            let block = &blocks[b];
            SCRATCH.with_borrow_mut(|scratch| {
                self.load_queries(block, scratch);
                self.span(block, s, scratch);
                // SAFETY: each item writes its own, and the last of a block reads what the others have released.
                let own = unsafe { partials.slice(i, 1) };
                own[0].clone_from(&scratch.span);
                if left[b].fetch_sub(1, Ordering::AcqRel) == 1 {
                    // SAFETY: as above.
                    let spans = unsafe { partials.slice(first_of[b], block.spans()) };
                    scratch.merged.reset(scratch.width * self.layer.shape.value_dims());
                    for span in spans {
                        scratch.merged.merge(span, scratch.width);
                    }
                    self.finish(block, &scratch.merged);
                }
            });
        });
    }

    fn load_queries(&self, block: &Block<'_>, scratch: &mut Scratch) {
        let shape = self.layer.shape;
        let dim = shape.head_dim;
        let wide_enough = PANEL_WIDTHS.iter().rev().find(|&&w| w >= block.count);
        let width = *wide_enough.expect("a block has at most the widest panel's rows");
        scratch.width = width;
        scratch.scores.resize(PAGE * ROWS_MAX, 0.0);
        let query = |r: usize| {
            let (token, head) = block.place(r);
            &self.q.row(token)[head * dim..][..dim]
        };
        let Queries { floats, integers, row } = &mut scratch.queries;
        if shape.format == KvFormat::Q8_0 {
            let dims = shape.value_dims();
            integers.clear();
            integers.resize(dims / GROUP * RECORD * width, 0);
            row.clear();
            row.resize(dims, 0.0);
            for r in 0..block.count {
                row.iter_mut().zip(query(r)).for_each(|(x, q)| *x = q * self.scale);
                // SAFETY: the panel was just made for `width` rows of `dims`; the table proves the instruction set.
                unsafe { (self.context.table.quantize_row)(row, integers.as_mut_ptr(), width, r) };
            }
            return;
        }
        floats.clear();
        floats.resize(dim * width, 0.0);
        for r in 0..block.count {
            for (c, &q) in query(r).iter().enumerate() {
                floats[c * width + r] = q * self.scale;
            }
        }
    }

    /// Takes a block's rows through one span of positions, into `scratch.span`.
    fn span(&self, block: &Block<'_>, span: usize, scratch: &mut Scratch) {
        let (shape, width) = (self.layer.shape, scratch.width);
        let dims = shape.value_dims();
        scratch.span.reset(width * dims);
        let positions = block.seen(block.count - 1);
        let pages = span * (SPAN / PAGE)..((span + 1) * (SPAN / PAGE)).min(positions.div_ceil(PAGE));
        for p in pages {
            let page = block.chunk.pages[p] as usize;
            let start = p * PAGE;
            let seen = PAGE.min(positions - start);
            let keys = |page: usize| &self.layer.keys.as_slice()[self.layer.keys_of(page, block.head)];
            let values = &self.layer.values.as_slice()[self.layer.values_of(page, block.head)];
            self.score(keys(page), seen, scratch, values);
            for r in 0..width {
                let scores = &mut scratch.scores[r * PAGE..][..seen.next_multiple_of(STRIP)];
                // Rows that only fill up the panel see what the last one sees.
                let visible = block.seen(r.min(block.count - 1)).saturating_sub(start).min(scores.len());
                scores[visible..].fill(f32::NEG_INFINITY);
                let state = &mut scratch.span.states[r];
                // SAFETY: the table proves the instruction set.
                let (max, sum) = unsafe { (self.context.table.softmax_tile)(scores, state.max) };
                let alpha = rescale(state.max, max);
                scratch.alpha[r] = alpha;
                *state = State { max, sum: state.sum * alpha + sum };
            }
            let next = block.chunk.pages.get(p + 1).map_or(page, |&next| next as usize);
            self.mix(values, seen, scratch, keys(next));
        }
    }

    /// Scores of one page, `seen` positions of it, rounded up to whole blocks; `next` is what will be read after it.
    fn score(&self, keys: &[u8], seen: usize, scratch: &mut Scratch, next: &[u8]) {
        let shape = self.layer.shape;
        let (index, blocks) = (width_index(scratch.width), seen.div_ceil(STRIP));
        let (queries, out) = (&scratch.queries, scratch.scores.as_mut_ptr());
        let keys = &keys[..blocks * shape.key_block_bytes()];
        let float = |tiles: &[ScoreFn]| {
            let (q, k, next) = (queries.floats.as_ptr(), keys.as_ptr(), next.as_ptr());
            // SAFETY: `floats` is dim x width, `keys` holds `blocks` blocks of dim x 16, and each of `width` rows of PAGE
            // scores has room for them; the table proves the instruction set.
            unsafe { tiles[index](&ScoreArgs { q, k, dim: shape.head_dim, blocks, out, next }) }
        };
        let integer = |tiles: &[TileFn]| {
            let args = TileArgs {
                strips: keys.as_ptr(),
                strip_bytes: shape.key_block_bytes(),
                strip_count: blocks,
                cols: shape.value_dims(),
                panel: queries.integers.as_ptr(),
                out,
                out_stride: PAGE,
                add: false,
            };
            // SAFETY: a block of keys is a strip of 16 positions, stored as the instruction set wants bytes; the panel
            // and the scores are made for `width` rows; the table proves the instruction set.
            unsafe { tiles[index](&args) }
        };
        let table = self.context.table;
        match shape.format {
            KvFormat::F32 => float(&table.cache_f32.score),
            KvFormat::F16 => float(&table.cache_f16.score),
            KvFormat::BF16 => float(&table.cache_bf16.score),
            KvFormat::Q8_0 => integer(&table.q8),
        }
    }

    /// Adds `seen` values of one page, weighted with the scores, to the span's sums; `next` is what will be read after it.
    fn mix(&self, values: &[u8], seen: usize, scratch: &mut Scratch, next: &[u8]) {
        let shape = self.layer.shape;
        let dims = shape.value_dims();
        if shape.format == KvFormat::Q8_0 {
            let halves = values[shape.value_scales()..].as_chunks::<2>().0;
            scratch.scales.clear();
            scratch.scales.extend(halves.iter().map(|&half| f16::from_le_bytes(half).to_f32()));
        }
        let table = self.context.table;
        let tiles: &[MixFn] = match shape.format {
            KvFormat::F32 => &table.cache_f32.mix,
            KvFormat::F16 => &table.cache_f16.mix,
            KvFormat::BF16 => &table.cache_bf16.mix,
            KvFormat::Q8_0 => &table.mix_q8,
        };
        let args = MixArgs {
            weight: scratch.scores.as_ptr(),
            v: values.as_ptr(),
            scales: scratch.scales.as_ptr(),
            dims,
            count: seen,
            alpha: scratch.alpha.as_ptr(),
            out: scratch.span.sums.as_mut_ptr(),
            next: next.as_ptr(),
        };
        // SAFETY: `weight` is width x PAGE, `values` has PAGE rows of `dims` elements, `scales`, where the format has
        // any, PAGE for each 32 of them, `alpha` and `out` have `width` rows; the table proves the instruction set.
        unsafe { tiles[width_index(scratch.width)](&args) }
    }

    /// Divides by the sums of weights.
    fn finish(&self, block: &Block<'_>, merged: &Partial) {
        let (dim, dims) = (self.layer.shape.head_dim, self.layer.shape.value_dims());
        for r in 0..block.count {
            let (token, head) = block.place(r);
            // SAFETY: a block writes the heads of its own rows.
            let out = unsafe { self.out.part(token, head * dim, dim) };
            let inverse = 1.0 / merged.states[r].sum;
            for (out, sum) in out.iter_mut().zip(&merged.sums[r * dims..]) {
                *out = sum * inverse;
            }
        }
    }
}
