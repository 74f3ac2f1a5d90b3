//! Layers that keep a state of fixed size instead of keys and values: causal convolutions, and memories that are written by
//! keys and read by queries (Mamba-2, Dao and Gu, 2024; gated delta rule, Yang et al., 2024).
//!
//! A sequence has a *slot* in each layer. Tokens go through it one after the other, so what comes out does not depend on how
//! a sequence was cut; heads and channels are shared out over threads.

use crate::Context;
use crate::ops::{Rows, are_disjoint};
use crate::shared::SharedMut;

/// Channels that one item of a convolution takes.
const CONVOLUTION_CHANNELS: usize = 256;

/// The shape of one layer's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateShape {
    pub slots: usize,
    /// Channels of the convolution.
    pub channels: usize,
    /// Tokens that the convolution sees, its own among them.
    pub taps: usize,
    pub memory: MemoryShape,
}

/// A matrix of `key_dim` x `value_dim` for each head; no heads, no memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryShape {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl StateShape {
    fn past(self) -> usize {
        (self.taps - 1) * self.channels
    }

    fn memory(self) -> usize {
        self.memory.heads * self.memory.key_dim * self.memory.value_dim
    }

    /// Bytes of one slot.
    pub fn slot_bytes(self) -> usize {
        (self.past() + self.memory()) * size_of::<f32>()
    }
}

/// The states of one layer. A slot begins anew with the token at position 0.
#[derive(Clone, Debug)]
pub struct StateLayer {
    shape: StateShape,
    /// By slot: the last inputs of the convolution, a row of all channels each, oldest first.
    past: Vec<f32>,
    /// By slot and head: `[key_dim][value_dim]`.
    memory: Vec<f32>,
}

/// Some consecutive tokens of one sequence in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Where its rows begin in the batch.
    pub row: usize,
    pub tokens: usize,
    /// Whether its first token is the sequence's first.
    pub is_start: bool,
    /// Where the sequence's state is.
    pub slot: usize,
    /// Where the state after its tokens goes: the same slot, or one beside it, so that what was before is still there.
    pub into: usize,
}

impl StateLayer {
    /// # Panics
    /// If the convolution sees no token.
    pub fn new(shape: StateShape) -> Self {
        assert!(shape.taps > 0, "a convolution over nothing");
        let (past, memory) = (shape.slots * shape.past(), shape.slots * shape.memory());
        Self { shape, past: vec![0.0; past], memory: vec![0.0; memory] }
    }
}

impl StateLayer {
    /// The states of a slot: what the convolution has seen, then the memory.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot(&self, slot: usize) -> [&[f32]; 2] {
        let (past, memory) = (self.shape.past(), self.shape.memory());
        [&self.past[slot * past..][..past], &self.memory[slot * memory..][..memory]]
    }

    /// As [`StateLayer::slot`], to be written.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot_mut(&mut self, slot: usize) -> [&mut [f32]; 2] {
        let (past, memory) = (self.shape.past(), self.shape.memory());
        [&mut self.past[slot * past..][..past], &mut self.memory[slot * memory..][..memory]]
    }

    /// Makes slot `to` the same as slot `from`.
    ///
    /// # Panics
    /// If there are no such slots.
    pub fn copy_slot(&mut self, from: usize, to: usize) {
        let lens = [self.shape.past(), self.shape.memory()];
        for (states, len) in [&mut self.past, &mut self.memory].into_iter().zip(lens) {
            states.copy_within(from * len..(from + 1) * len, to * len);
        }
    }
}

/// Spans of a layer's slots, each slot and each row in one of them at most.
fn check_spans(spans: &[Span], shape: StateShape, tokens: usize) {
    assert!(spans.iter().all(|span| span.slot.max(span.into) < shape.slots), "slots of the layer");
    assert!(
        are_disjoint(spans.iter().map(|span| span.row..span.row + span.tokens), tokens),
        "rows of the batch"
    );
    let beside = spans.iter().filter(|span| span.into != span.slot);
    let mut slots: Vec<usize> = spans.iter().map(|s| s.slot).chain(beside.map(|s| s.into)).collect();
    slots.sort_unstable();
    assert!(slots.windows(2).all(|two| two[0] != two[1]), "two spans share a slot");
}

/// Weights of a causal convolution for each channel by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Convolution {
    /// A row of all channels for each tap, oldest token first.
    pub taps: Vec<Vec<f32>>,
    pub bias: Option<Vec<f32>>,
}

/// Convolves the columns of `x` from `first` on, as many as there are channels: `out[t]` is the bias plus the sum over taps of
/// tap times earlier row.
///
/// # Panics
/// If the shapes do not fit together.
pub fn convolve(
    context: Context<'_>,
    convolution: &Convolution,
    x: &Rows,
    first: usize,
    layer: &mut StateLayer,
    spans: &[Span],
    out: &mut Rows,
) {
    let shape = layer.shape;
    let (channels, taps) = (shape.channels, shape.taps);
    assert!(convolution.taps.len() == taps, "taps of the layer");
    assert!(convolution.taps.iter().chain(&convolution.bias).all(|row| row.len() == channels), "channels");
    assert!(first + channels <= x.cols(), "columns of the input");
    check_spans(spans, shape, x.count());
    out.reset(x.count(), channels);
    let (past, out) = (SharedMut::new(&mut layer.past), out.shared());
    let parts = channels.div_ceil(CONVOLUTION_CHANNELS);
    context.pool.run(spans.len() * parts, &|item| {
        let (span, part) = (&spans[item / parts], item % parts);
        if span.tokens == 0 {
            return;
        }
        let range = part * CONVOLUTION_CHANNELS..channels.min((part + 1) * CONVOLUTION_CHANNELS);
        let len = range.len();
        let past_in = |slot: usize, i: usize| {
            // SAFETY: each item has its own channels of its own slots.
            unsafe { past.slice(slot * shape.past() + i * channels + range.start, len) }
        };
        let past = |i: usize| past_in(span.slot, i);
        if span.is_start {
            (0..taps - 1).for_each(|i| past(i).fill(0.0));
        }
        let input = |t: usize| &x.row(span.row + t)[first + range.start..][..len];
        for t in 0..span.tokens {
            // SAFETY: each item has its own columns of its own rows; the table proves the instruction set.
            unsafe {
                let sum = out.part(span.row + t, range.start, len);
                match &convolution.bias {
                    Some(bias) => sum.copy_from_slice(&bias[range.clone()]),
                    None => sum.fill(0.0),
                }
                for (i, tap) in convolution.taps.iter().enumerate() {
                    let back = taps - 1 - i;
                    let earlier = if t >= back { input(t - back) } else { past(t + i) };
                    (context.table.add_product)(sum, earlier, &tap[range.clone()]);
                }
            }
        }
        // What the next token will see, oldest first.
        for i in 0..taps - 1 {
            let from_end = taps - 1 - i;
            let seen =
                if from_end <= span.tokens { input(span.tokens - from_end) } else { past(i + span.tokens) };
            past_in(span.into, i).copy_from_slice(seen);
        }
    });
}

/// How memories are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Values times the token's rate are added.
    Add,
    /// What a key already reads is taken from the value first: the delta rule.
    Delta,
}

/// Where a token's heads lie in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadColumns {
    /// The first column of each.
    pub queries: usize,
    pub keys: usize,
    pub values: usize,
    /// Queries and keys are shared by several value heads.
    pub key_heads: usize,
    pub sharing: Sharing,
}

/// Which value heads share a head of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Neighbours.
    Neighbours,
    /// Those that are as many apart as there are heads of queries and keys.
    Apart,
}

/// One token and one head: `state = decay * state + key (x) u`, `out = query . state`, where `u` is the value times `rate`, or
/// with the delta rule what is left of it after `key . (decay * state)` is taken away.
///
/// The unsafe contract of every such function: `state` points at `key_dim` rows of `value_dim` floats, `key` and `query` at
/// `key_dim`, `value` and `out` at `value_dim`, and nobody else uses `state` and `out`.
pub(crate) struct RememberArgs {
    pub(crate) state: *mut f32,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) key: *const f32,
    pub(crate) query: *const f32,
    pub(crate) value: *const f32,
    pub(crate) decay: f32,
    pub(crate) rate: f32,
    pub(crate) rule: Rule,
    pub(crate) out: *mut f32,
}

/// Takes every token through the memories of its sequence's slot: a decay and a rate for each head, and what the query reads
/// after the value was written.
///
/// # Panics
/// If the shapes do not fit together.
#[allow(clippy::too_many_arguments, reason = "everything that a token brings to a memory")]
pub fn remember(
    context: Context<'_>,
    rule: Rule,
    x: &Rows,
    columns: HeadColumns,
    decays: &Rows,
    rates: &Rows,
    layer: &mut StateLayer,
    spans: &[Span],
    out: &mut Rows,
) {
    let MemoryShape { heads, key_dim, value_dim } = layer.shape.memory;
    assert!(heads.is_multiple_of(columns.key_heads), "whole groups of heads");
    let fits = |start: usize, len: usize| start + len <= x.cols();
    let key_width = columns.key_heads * key_dim;
    assert!(
        fits(columns.queries, key_width) && fits(columns.keys, key_width),
        "queries and keys of the input"
    );
    assert!(fits(columns.values, heads * value_dim), "values of the input");
    assert!((decays.count(), decays.cols()) == (x.count(), heads), "decays of all heads");
    assert!((rates.count(), rates.cols()) == (x.count(), heads), "rates of all heads");
    check_spans(spans, layer.shape, x.count());
    out.reset(x.count(), heads * value_dim);
    let memory_len = layer.shape.memory();
    let (memory, out) = (SharedMut::new(&mut layer.memory), out.shared());
    context.pool.run(spans.len() * heads, &|item| {
        let (span, head) = (&spans[item / heads], item % heads);
        let key_head = match columns.sharing {
            Sharing::Neighbours => head / (heads / columns.key_heads),
            Sharing::Apart => head % columns.key_heads,
        };
        let len = key_dim * value_dim;
        // SAFETY: each item has its own head of its own slots.
        let state_in = |slot: usize| unsafe { memory.slice(slot * memory_len + head * len, len) };
        let state = state_in(span.into);
        if span.is_start {
            state.fill(0.0);
        } else if span.into != span.slot {
            state.copy_from_slice(state_in(span.slot));
        }
        for t in span.row..span.row + span.tokens {
            let part = |start: usize, len: usize| x.row(t)[start..][..len].as_ptr();
            // SAFETY: each item has its own columns of its own rows; lengths are as the contract wants; the table proves
            // the instruction set.
            unsafe {
                (context.table.remember)(&RememberArgs {
                    state: state.as_mut_ptr(),
                    key_dim,
                    value_dim,
                    key: part(columns.keys + key_head * key_dim, key_dim),
                    query: part(columns.queries + key_head * key_dim, key_dim),
                    value: part(columns.values + head * value_dim, value_dim),
                    decay: decays.row(t)[head],
                    rate: rates.row(t)[head],
                    rule,
                    out: out.part(t, head * value_dim, value_dim).as_mut_ptr(),
                });
            }
        }
    });
}

/// Value dimensions that go through a memory together.
const BLOCK: usize = 64;

/// # Safety
/// The contract of [`RememberArgs`]; the processor has the instruction set that this is compiled for.
#[inline(always)]
pub(crate) unsafe fn remember_body(args: &RememberArgs) {
    let mut first = 0;
    // SAFETY: the same contract; blocks of columns lie within the rows.
    unsafe {
        while first + BLOCK <= args.value_dim {
            remember_block::<BLOCK>(args, first);
            first += BLOCK;
        }
        while first + 16 <= args.value_dim {
            remember_block::<16>(args, first);
            first += 16;
        }
        while first < args.value_dim {
            remember_block::<1>(args, first);
            first += 1;
        }
    }
}

/// # Safety
/// As [`remember_body`], for `N` columns from `first` on.
#[inline(always)]
unsafe fn remember_block<const N: usize>(args: &RememberArgs, first: usize) {
    // SAFETY: the contract.
    let (keys, queries, value, out) = unsafe {
        (
            std::slice::from_raw_parts(args.key, args.key_dim),
            std::slice::from_raw_parts(args.query, args.key_dim),
            &*args.value.add(first).cast::<[f32; N]>(),
            &mut *args.out.add(first).cast::<[f32; N]>(),
        )
    };
    // SAFETY: the contract, for every row.
    let row = |i: usize| unsafe { &mut *args.state.add(i * args.value_dim + first).cast::<[f32; N]>() };
    let mut written = *value;
    if args.rule == Rule::Delta {
        let mut known = [0f32; N];
        for (i, key) in keys.iter().enumerate() {
            let state = row(i);
            for j in 0..N {
                known[j] += key * state[j];
            }
        }
        for j in 0..N {
            written[j] -= args.decay * known[j];
        }
    }
    written.iter_mut().for_each(|u| *u *= args.rate);
    let mut read = [0f32; N];
    for (i, (key, query)) in keys.iter().zip(queries).enumerate() {
        let state = row(i);
        for j in 0..N {
            state[j] = args.decay * state[j] + key * written[j];
            read[j] += query * state[j];
        }
    }
    *out = read;
}
