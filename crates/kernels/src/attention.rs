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
//! In a `Q8_0` cache, keys are strips of [`Layout::Q8`](crate::layout::Layout::Q8): queries are quantized like activations and scored by the integer
//! tiles of the weights. Values are bytes with a scale for each 32 dimensions and are mixed as floats.

mod cache;
mod store;
mod turn;

pub use cache::{KvFormat, KvLayer, KvShape};
pub use store::{HeadNorms, Pairing, Preparation, Rotary, rotate, rotate_and_store};
pub use turn::turn_pages;

use crate::Context;
use crate::elementwise;
use crate::format::GROUP;
use crate::isa::{MixArgs, MixFn, ScoreArgs, ScoreFn, TileArgs, TileFn, width_index};
use crate::layout::STRIP;
use crate::ops::{Rows, SharedRows, are_disjoint};
use crate::panel::{PANEL_WIDTHS, RECORD};
use crate::shared::SharedMut;
use half::f16;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Positions in a page of the cache.
pub const PAGE: usize = 128;

/// Positions that are summed with one running maximum.
pub const SPAN: usize = 512;

/// The longest head (that of a latent key of DeepSeek's models).
pub const HEAD_DIM_MAX: usize = 576;

/// Query rows that go through together.
const ROWS_MAX: usize = PANEL_WIDTHS[0];

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

/// Which positions a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Its own and all before it.
    Causal,
    /// Its own and the ones before it, so many in all.
    Window(usize),
    /// All of its chunk's sequence.
    Everything,
    /// Of these the ones that are no further away than half of so many.
    Around(usize),
}

impl Mask {
    /// The positions that the token at `position` sees, of a sequence of `len`.
    fn visible(self, position: usize, len: usize) -> Range<usize> {
        match self {
            Mask::Causal => 0..position + 1,
            Mask::Window(window) => (position + 1).saturating_sub(window)..position + 1,
            Mask::Everything => 0..len,
            Mask::Around(width) => position.saturating_sub(width / 2)..len.min(position + width / 2 + 1),
        }
    }
}

/// How scores are made and what they are for.
#[derive(Clone, Copy, Debug)]
pub struct Scoring<'a> {
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    pub mask: Mask,
    /// A score for each query head that takes its share of the softmax and has no value ("attention sinks", Xiao et al., 2023).
    pub sinks: Option<&'a [f32]>,
    /// For each query head, what a score loses for each position that a key is away ("ALiBi", Press, Smith and Lewis, 2022).
    pub slopes: Option<&'a [f32]>,
}

impl Scoring<'_> {
    /// Causal attention and nothing else.
    pub fn causal(scale: f32) -> Self {
        Scoring { scale, soft_cap: None, mask: Mask::Causal, sinks: None, slopes: None }
    }
}

/// Attention of every row of `q` over its sequence's cache, written to `out`.
///
/// # Panics
/// If rows, heads or pages do not fit together.
pub fn attend(
    context: Context<'_>,
    layer: &KvLayer,
    q: &Rows,
    scoring: Scoring<'_>,
    chunks: &[Chunk<'_>],
    out: &mut Rows,
) {
    let shape = layer.shape;
    let width = shape.heads * shape.key_dim;
    assert!(q.cols().is_multiple_of(width), "whole groups of query heads");
    let group = q.cols() / width;
    let heads = shape.heads * group;
    assert_eq!((q.count(), heads * shape.value_dim), (out.count(), out.cols()), "queries and output");
    assert!(scoring.sinks.is_none_or(|sinks| sinks.len() == heads), "a sink for each head");
    assert!(scoring.slopes.is_none_or(|slopes| slopes.len() == heads), "a slope for each head");
    let rows = chunks.iter().map(|chunk| chunk.row..chunk.row + chunk.tokens);
    assert!(are_disjoint(rows, q.count()), "rows of the batch, each in one chunk");
    let mask = scoring.mask;
    let mut blocks = Vec::new();
    for chunk in chunks {
        assert!(chunk.pages.len() * PAGE >= chunk.position + chunk.tokens, "pages for every position");
        assert!(chunk.pages.iter().all(|&p| (p as usize) < shape.pages), "pages of the cache");
        let rows = chunk.tokens * group;
        // A head's blocks follow each other, so that its keys and values stay in the cache; later blocks have more
        // positions to attend to and come first.
        for head in 0..shape.heads {
            for first in (0..rows).step_by(ROWS_MAX).rev() {
                blocks.push(Block { chunk, mask, group, head, first, count: ROWS_MAX.min(rows - first) });
            }
        }
    }
    let out = out.shared();
    let whole = Task { context, layer, q, scoring, out: &out };
    if blocks.len() >= BLOCKS_PER_THREAD * context.pool.threads()
        || blocks.iter().all(|block| block.spans().len() == 1)
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
    mask: Mask,
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

    /// The position of row `r` in its sequence.
    fn position(&self, r: usize) -> usize {
        self.chunk.position + (self.first + r) / self.group
    }

    /// Positions that row `r` sees.
    fn visible(&self, r: usize) -> Range<usize> {
        self.mask.visible(self.position(r), self.chunk.position + self.chunk.tokens)
    }

    /// From the first position that a row sees to the last.
    fn seen(&self) -> Range<usize> {
        self.visible(0).start..self.visible(self.count - 1).end
    }

    fn spans(&self) -> Range<usize> {
        let seen = self.seen();
        seen.start / SPAN..seen.end.div_ceil(SPAN)
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
    scoring: Scoring<'a>,
    out: &'a SharedRows<'a>,
}

impl Task<'_> {
    /// A block, span after span.
    fn block(&self, block: &Block<'_>, scratch: &mut Scratch) {
        self.load_queries(block, scratch);
        scratch.merged.reset(scratch.width * self.layer.shape.value_dims());
        for span in block.spans() {
            self.span(block, span, scratch);
            scratch.merged.merge(&scratch.span, scratch.width);
        }
        self.finish(block, &scratch.merged);
    }

    /// Every span of every block for itself; who finishes a block's last one merges them, in order.
    fn by_spans(&self, blocks: &[Block<'_>]) {
        let spans: Vec<(usize, usize)> =
            (0..blocks.len()).flat_map(|b| blocks[b].spans().map(move |s| (b, s))).collect();
        let first_of: Vec<usize> = blocks
            .iter()
            .scan(0, |next, block| {
                let first = *next;
                *next += block.spans().len();
                Some(first)
            })
            .collect();
        let left: Vec<_> = blocks.iter().map(|block| AtomicUsize::new(block.spans().len())).collect();
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
                    let spans = unsafe { partials.slice(first_of[b], block.spans().len()) };
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
        let (dim, scale) = (shape.key_dim, self.scoring.scale);
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
            let dims = shape.key_dims();
            integers.clear();
            integers.resize(dims / GROUP * RECORD * width, 0);
            row.clear();
            row.resize(dims, 0.0);
            for r in 0..block.count {
                row.iter_mut().zip(query(r)).for_each(|(x, q)| *x = q * scale);
                // SAFETY: the panel was just made for `width` rows of `dims`; the table proves the instruction set.
                unsafe { (self.context.table.quantize_row)(row, GROUP, integers.as_mut_ptr(), width, r) };
            }
            return;
        }
        floats.clear();
        floats.resize(dim * width, 0.0);
        for r in 0..block.count {
            for (c, &q) in query(r).iter().enumerate() {
                floats[c * width + r] = q * scale;
            }
        }
    }

    /// Takes a block's rows through one span of positions, into `scratch.span`.
    fn span(&self, block: &Block<'_>, span: usize, scratch: &mut Scratch) {
        let (shape, width) = (self.layer.shape, scratch.width);
        let dims = shape.value_dims();
        scratch.span.reset(width * dims);
        let positions = block.seen();
        let pages = (span * (SPAN / PAGE)).max(positions.start / PAGE)
            ..((span + 1) * (SPAN / PAGE)).min(positions.end.div_ceil(PAGE));
        for p in pages {
            let page = block.chunk.pages[p] as usize;
            let start = p * PAGE;
            let seen = PAGE.min(positions.end - start);
            let keys = |page: usize| &self.layer.keys.as_slice()[self.layer.keys_of(page, block.head)];
            let values = &self.layer.values.as_slice()[self.layer.values_of(page, block.head)];
            self.score(keys(page), seen, scratch, values);
            for r in 0..width {
                let scores = &mut scratch.scores[r * PAGE..][..seen.next_multiple_of(STRIP)];
                // Rows that only fill up the panel see what the last one sees.
                let row = r.min(block.count - 1);
                let visible = block.visible(row);
                let within = |position: usize| position.saturating_sub(start).min(scores.len());
                let (first, end) = (within(visible.start), within(visible.end));
                if let Some(cap) = self.scoring.soft_cap {
                    // SAFETY: the table proves the instruction set.
                    unsafe { (self.context.table.soft_cap)(&mut scores[first..end], cap) };
                }
                if let Some(slopes) = self.scoring.slopes {
                    let (slope, own) = (slopes[block.place(row).1], block.position(row));
                    for (position, score) in scores[first..end].iter_mut().enumerate() {
                        *score -= slope * (start + first + position).abs_diff(own) as f32;
                    }
                }
                scores[..first].fill(f32::NEG_INFINITY);
                scores[end..].fill(f32::NEG_INFINITY);
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
            unsafe { tiles[index](&ScoreArgs { q, k, dim: shape.key_dim, blocks, out, next }) }
        };
        let integer = |tiles: &[TileFn]| {
            let args = TileArgs {
                strips: keys.as_ptr(),
                strip_bytes: shape.key_block_bytes(),
                strip_count: blocks,
                cols: shape.key_dims(),
                panel: queries.integers.as_ptr(),
                out,
                out_stride: PAGE,
                add: false,
                twin: None,
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
        let (dim, dims) = (self.layer.shape.value_dim, self.layer.shape.value_dims());
        for r in 0..block.count {
            let (token, head) = block.place(r);
            // SAFETY: a block writes the heads of its own rows.
            let out = unsafe { self.out.part(token, head * dim, dim) };
            let state = merged.states[r];
            let factor = match self.scoring.sinks {
                None => 1.0 / state.sum,
                Some(sinks) => {
                    let max = state.max.max(sinks[head]);
                    let (own, sink) = (rescale(state.max, max), rescale(sinks[head], max));
                    own / (state.sum * own + sink)
                }
            };
            for (out, sum) in out.iter_mut().zip(&merged.sums[r * dims..]) {
                *out = sum * factor;
            }
        }
    }
}
