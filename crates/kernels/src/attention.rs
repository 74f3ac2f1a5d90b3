//! Attention over a paged key-value cache: rotary embedding, writing keys and values, and the softmax over them.
//!
//! A page holds [`PAGE`] positions of one layer. Keys lie like packed weights, 16 positions interleaved, so a tile scores
//! 16 positions for up to 12 query rows at once; values lie a row per position, so a tile mixes 16 dimensions at once.
//! The query rows that share a key-value head (the heads of its group, times the tokens of a prefill) go through
//! together, so a key is read once for all of them. Softmax is online (Milakov and Gimelshein, 2018), page by page;
//! after each [`SPAN`] the running maximum starts afresh and the parts are merged, so that the arithmetic of a row
//! depends on its position only, never on how the work was cut.

use crate::Context;
use crate::elementwise;
use crate::isa::width_index;
use crate::ops::{Rows, for_each_token};
use crate::panel::PANEL_WIDTHS;
use crate::shared::SharedMut;
use half::{bf16, f16};
use std::cell::RefCell;

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
}

impl KvFormat {
    pub const fn bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::F16 | KvFormat::BF16 => 2,
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
        }
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
    fn value_stride(self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Bytes of one page of one layer, keys and values.
    pub fn page_bytes(self) -> usize {
        self.format.bytes() * PAGE * self.heads * (self.head_dim + self.value_stride())
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
        let rows = shape.pages * shape.heads * PAGE;
        let bytes = rows * shape.format.bytes();
        let (keys, values) =
            (LazyBytes::new(bytes * shape.head_dim), LazyBytes::new(bytes * shape.value_stride()));
        Self { shape, keys, values }
    }

    /// Where a head's keys start, in elements.
    fn key_start(&self, page: usize, head: usize) -> usize {
        (page * self.shape.heads + head) * PAGE * self.shape.head_dim
    }

    /// Where a head's values start, in elements.
    fn value_start(&self, page: usize, head: usize) -> usize {
        (page * self.shape.heads + head) * PAGE * self.shape.value_stride()
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
    let stride = shape.value_stride();
    let key_start: Vec<_> = place.iter().map(|&(page, _)| layer.key_start(page, 0)).collect();
    let value_start: Vec<_> = place.iter().map(|&(page, _)| layer.value_start(page, 0)).collect();
    let (q, k) = (q.shared(), k.shared());
    let (format, size) = (shape.format, shape.format.bytes());
    let keys = SharedMut::new(layer.keys.as_mut_slice());
    let values = SharedMut::new(layer.values.as_mut_slice());
    for_each_token(context, place.len(), &|t| {
        let slot = place[t].1;
        // SAFETY: each token has its own rows, and its own slot in the cache.
        let (q, k) = unsafe { (q.row(t), k.row(t)) };
        prepare_heads(context, q, dim, norms.map(|n| (n.query, n.epsilon)), rotary, t);
        prepare_heads(context, k, dim, norms.map(|n| (n.key, n.epsilon)), rotary, t);
        for head in 0..shape.heads {
            let (k, v) = (&k[head * dim..][..dim], &v.row(t)[head * dim..][..dim]);
            let key = key_start[t] + head * PAGE * dim + slot / 16 * 16 * dim + slot % 16;
            for (c, &k) in k.iter().enumerate() {
                // SAFETY: element `slot` of column `c`, this token's own.
                format.store(k, unsafe { keys.slice((key + c * 16) * size, size) });
            }
            // SAFETY: this token's own row.
            let out =
                unsafe { values.slice((value_start[t] + (head * PAGE + slot) * stride) * size, dim * size) };
            for (out, &v) in out.chunks_exact_mut(size).zip(v) {
                format.store(v, out);
            }
        }
    });
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
    let (dim, width) = (shape.head_dim, shape.heads * shape.head_dim);
    assert!(q.cols().is_multiple_of(width), "whole groups of query heads");
    assert_eq!((q.count(), q.cols()), (out.count(), out.cols()), "queries and output");
    let group = q.cols() / width;
    // An item is a block of rows of one sequence and key-value head. Later blocks of a prefill have more positions to
    // attend to, so they come first.
    let mut items = Vec::new();
    for chunk in chunks {
        assert!(chunk.pages.len() * PAGE >= chunk.position + chunk.tokens, "pages for every position");
        assert!(chunk.pages.iter().all(|&p| (p as usize) < shape.pages), "pages of the cache");
        let rows = chunk.tokens * group;
        for block in (0..rows.div_ceil(ROWS_MAX)).rev() {
            let first = block * ROWS_MAX;
            for head in 0..shape.heads {
                items.push((chunk, head, first, ROWS_MAX.min(rows - first)));
            }
        }
    }
    let out = out.shared();
    context.pool.run(items.len(), &|item| {
        let (chunk, head, first, count) = items[item];
        let row = |r: usize| (chunk.row + (first + r) / group, (head * group + (first + r) % group) * dim);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.load_queries(count, dim, scale, |r| {
                let (token, start) = row(r);
                &q.row(token)[start..][..dim]
            });
            let last = |r: usize| chunk.position + (first + r) / group;
            attend_block(context, layer, head, chunk.pages, count, last, scratch);
            for r in 0..count {
                let (token, start) = row(r);
                // SAFETY: each item writes the heads of its own rows.
                let out = unsafe { out.part(token, start, dim) };
                scratch.finish(r, out);
            }
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// One block of query rows on its way through the cache.
#[derive(Default)]
struct Scratch {
    width: usize,
    /// `[dim][width]`, scaled.
    queries: Vec<f32>,
    /// `[width][PAGE]`
    scores: Vec<f32>,
    /// This span's and the merged sums of values, `[width][value stride]`.
    span: Vec<f32>,
    merged: Vec<f32>,
    stride: usize,
    span_state: [State; ROWS_MAX],
    merged_state: [State; ROWS_MAX],
    alpha: [f32; ROWS_MAX],
}

/// A row's largest score and the sum of `e^(score - max)`.
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
    if before == f32::NEG_INFINITY { 0.0 } else { elementwise::exp(before - after) }
}

impl Scratch {
    fn load_queries<'q>(&mut self, count: usize, dim: usize, scale: f32, row: impl Fn(usize) -> &'q [f32]) {
        let wide_enough = PANEL_WIDTHS.iter().rev().find(|&&w| w >= count);
        self.width = *wide_enough.expect("a block has at most the widest panel's rows");
        self.stride = dim.next_multiple_of(16);
        let resize = |v: &mut Vec<f32>, len: usize| {
            v.clear();
            v.resize(len, 0.0);
        };
        resize(&mut self.queries, dim * self.width);
        resize(&mut self.scores, PAGE * self.width);
        resize(&mut self.span, self.stride * self.width);
        resize(&mut self.merged, self.stride * self.width);
        self.span_state = Default::default();
        self.merged_state = Default::default();
        for r in 0..count {
            for (c, &q) in row(r).iter().enumerate() {
                self.queries[c * self.width + r] = q * scale;
            }
        }
    }

    /// Folds the finished span into the merged sums and starts a new one.
    fn merge_span(&mut self) {
        for r in 0..self.width {
            let (span, merged) = (&mut self.span_state[r], &mut self.merged_state[r]);
            let max = span.max.max(merged.max);
            let (a, b) = (rescale(merged.max, max), rescale(span.max, max));
            *merged = State { max, sum: merged.sum * a + span.sum * b };
            *span = State::default();
            let range = r * self.stride..(r + 1) * self.stride;
            for (m, s) in self.merged[range.clone()].iter_mut().zip(&mut self.span[range]) {
                *m = *m * a + *s * b;
                *s = 0.0;
            }
        }
    }

    fn finish(&self, row: usize, out: &mut [f32]) {
        let inverse = 1.0 / self.merged_state[row].sum;
        for (out, sum) in out.iter_mut().zip(&self.merged[row * self.stride..]) {
            *out = sum * inverse;
        }
    }
}

/// Takes a block of rows through the pages; `last(r)` is the last position that row `r` may see.
fn attend_block(
    context: Context<'_>,
    layer: &KvLayer,
    head: usize,
    pages: &[u32],
    count: usize,
    last: impl Fn(usize) -> usize,
    scratch: &mut Scratch,
) {
    let (dim, stride, width) = (layer.shape.head_dim, scratch.stride, scratch.width);
    let positions = last(count - 1) + 1;
    let index = width_index(width);
    let (tiles, size) = (context.table.cache_tiles(layer.shape.format), layer.shape.format.bytes());
    let (score, mix) = (tiles.score[index], tiles.mix[index]);
    for (p, &page) in pages[..positions.div_ceil(PAGE)].iter().enumerate() {
        let start = p * PAGE;
        let seen = PAGE.min(positions - start);
        let keys = &layer.keys.as_slice()[layer.key_start(page as usize, head) * size..][..PAGE * dim * size];
        for (block, keys) in keys.chunks_exact(16 * dim * size).take(seen.div_ceil(16)).enumerate() {
            let out = scratch.scores[block * 16..].as_mut_ptr();
            // SAFETY: `queries` is dim x width, `keys` dim x 16, and each of `width` rows of PAGE scores has 16 from
            // `block * 16` on; the table proves the instruction set.
            unsafe { score(scratch.queries.as_ptr(), keys.as_ptr(), dim, out, PAGE) };
        }
        for r in 0..width {
            let scores = &mut scratch.scores[r * PAGE..][..seen.next_multiple_of(16)];
            // Rows that only fill up the panel see what the last one sees.
            let visible = (last(r.min(count - 1)) + 1).saturating_sub(start).min(scores.len());
            scores[visible..].fill(f32::NEG_INFINITY);
            let state = &mut scratch.span_state[r];
            // SAFETY: the table proves the instruction set.
            let (max, sum) = unsafe { (context.table.softmax_tile)(scores, state.max) };
            let alpha = rescale(state.max, max);
            scratch.alpha[r] = alpha;
            *state = State { max, sum: state.sum * alpha + sum };
        }
        let values =
            &layer.values.as_slice()[layer.value_start(page as usize, head) * size..][..PAGE * stride * size];
        for block in (0..stride).step_by(16) {
            let out = scratch.span[block..].as_mut_ptr();
            // SAFETY: `scores` is width x PAGE, `values` has PAGE rows of `stride`, of which 16 from `block` on are read,
            // `alpha` and `span` have `width` rows; the table proves the instruction set.
            unsafe {
                let (weight, v) = (scratch.scores.as_ptr(), values[block * size..].as_ptr());
                mix(weight, v, stride, seen, scratch.alpha.as_ptr(), out, stride);
            }
        }
        if (p + 1) % (SPAN / PAGE) == 0 {
            scratch.merge_span();
        }
    }
    scratch.merge_span();
}
