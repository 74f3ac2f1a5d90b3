//! What a token leaves in the cache: its key, normalized and turned, and its value.

use super::cache::{KvFormat, KvLayer, KvShape};
use super::{Chunk, HEAD_DIM_MAX, PAGE};
use crate::Context;
use crate::elementwise::{Plain, largest, rounded};
use crate::format::GROUP;
use crate::layout::{Blocks, Bytes, STRIP};
use crate::ops::{Rows, for_each_token};
use crate::shared::SharedMut;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The largest finite half.
pub(super) const F16_MAX: f32 = 65504.0;

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
    /// `frequencies[i]` is how far pair `i` turns from one position to the next, in radians; what is turned becomes longer
    /// by `magnitude`.
    pub fn new(
        pairing: Pairing,
        frequencies: &[f32],
        magnitude: f32,
        positions: impl Iterator<Item = usize>,
    ) -> Self {
        let turn = |p: usize, f: f32| {
            let (sin, cos) = (p as f64 * f64::from(f)).sin_cos();
            (cos as f32 * magnitude, sin as f32 * magnitude)
        };
        let cos_sin = positions.flat_map(|p| frequencies.iter().map(move |&f| turn(p, f))).collect();
        Self { pairing, dims: frequencies.len() * 2, cos_sin }
    }

    /// Drops the turns of all tokens but these.
    ///
    /// # Panics
    /// If they are not in ascending order, or there is no such token.
    pub fn keep(&mut self, tokens: &[usize]) {
        assert!(tokens.is_sorted_by(|a, b| a < b), "tokens in ascending order");
        let pairs = self.dims / 2;
        for (to, &from) in tokens.iter().enumerate() {
            self.cos_sin.copy_within(from * pairs..(from + 1) * pairs, to * pairs);
        }
        self.cos_sin.truncate(tokens.len() * pairs);
    }

    pub(super) fn turn(&self, token: usize, head: &mut [f32]) {
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

/// Root-mean-square norms of queries and keys, before they are turned: over each head, or over all heads at once where the
/// weights are for all.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub epsilon: f32,
}

/// What becomes of queries and keys before they meet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preparation<'a> {
    pub norms: Option<HeadNorms<'a>>,
    pub rotary: Option<&'a Rotary>,
    /// Each token's queries are multiplied by one of these, at last.
    pub query_scales: Option<&'a [f32]>,
}

/// Prepares the heads of `q` in place, `dim` elements each, where their keys are in the cache already.
///
/// # Panics
/// If rows and heads do not fit together.
pub fn rotate(context: Context<'_>, q: &mut Rows, dim: usize, preparation: Preparation<'_>) {
    assert!(q.cols().is_multiple_of(dim), "whole heads of queries");
    assert!(
        preparation.query_scales.is_none_or(|scales| scales.len() == q.count()),
        "a scale for each token"
    );
    let tokens = q.count();
    let q = q.shared();
    // SAFETY: each token has its own row.
    for_each_token(context, tokens, &|t| prepare_queries(context, unsafe { q.row(t) }, dim, preparation, t));
}

/// Prepares the heads of `q` and `k` in place, and writes `k` and `v` to the cache.
///
/// # Panics
/// If rows, heads or pages do not fit together.
pub fn rotate_and_store(
    context: Context<'_>,
    q: &mut Rows,
    k: &mut Rows,
    v: &Rows,
    preparation: Preparation<'_>,
    layer: &mut KvLayer,
    chunks: &[Chunk<'_>],
) {
    let Preparation { norms, rotary, query_scales } = preparation;
    let shape = layer.shape;
    let (dim, value_dim) = (shape.key_dim, shape.value_dim);
    assert_eq!(
        (k.cols(), v.cols()),
        (shape.heads * dim, shape.heads * value_dim),
        "keys and values of the cache's shape"
    );
    assert!(q.cols().is_multiple_of(dim), "whole heads of queries");
    assert!(query_scales.is_none_or(|scales| scales.len() == q.count()), "a scale for each token");
    let place = places(chunks, q.count(), shape.pages);
    let key_start: Vec<_> = place.iter().map(|&(page, _)| layer.keys_of(page, 0).start).collect();
    let value_start: Vec<_> = place.iter().map(|&(page, _)| layer.values_of(page, 0).start).collect();
    let (q, k) = (q.shared(), k.shared());
    let keys = SharedMut::new(layer.keys.as_mut_slice());
    let values = SharedMut::new(layer.values.as_mut_slice());
    for_each_token(context, place.len(), &|t| {
        // SAFETY: each token has its own rows.
        let (q, k) = unsafe { (q.row(t), k.row(t)) };
        prepare_queries(context, q, dim, preparation, t);
        prepare_heads(context, k, dim, norms.map(|n| (n.key, n.epsilon)), rotary, t);
        for head in 0..shape.heads {
            let (k, v) = (&k[head * dim..][..dim], &v.row(t)[head * value_dim..][..value_dim]);
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
    // SAFETY: the same contract.
    unsafe {
        match shape.format {
            KvFormat::F32 => store_as(shape, slot, (k, v), keys, values, |x, out: &mut [[u8; 4]]| {
                out.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_le_bytes());
            }),
            // The largest finite half beyond that: an infinity in the cache would turn masked positions into NaN.
            KvFormat::F16 => store_as(shape, slot, (k, v), keys, values, |x, out: &mut [[u8; 2]]| {
                let mut finite = [0.0; CONVERTED];
                finite.iter_mut().zip(x).for_each(|(out, x)| *out = x.clamp(-F16_MAX, F16_MAX));
                let mut halves = [f16::ZERO; CONVERTED];
                halves[..x.len()].convert_from_f32_slice(&finite[..x.len()]);
                out.iter_mut().zip(halves).for_each(|(out, x)| *out = x.to_le_bytes());
            }),
            KvFormat::BF16 => store_as(shape, slot, (k, v), keys, values, |x, out: &mut [[u8; 2]]| {
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = bf16::from_f32(x).to_le_bytes());
            }),
            KvFormat::Q8_0 => unreachable!("these are not floats"),
        }
    }
}

/// Elements that are converted at once.
const CONVERTED: usize = 64;

/// Puts a position's elements in their places, those of its key a strip apart.
///
/// # Safety
/// As [`store_floats`].
#[inline(always)]
unsafe fn store_as<const SIZE: usize>(
    shape: KvShape,
    slot: usize,
    (k, v): (&[f32], &[f32]),
    keys: (&SharedMut<'_, u8>, usize),
    values: (&SharedMut<'_, u8>, usize),
    convert: impl Fn(&[f32], &mut [[u8; SIZE]]),
) {
    let mut converted = [[0; SIZE]; CONVERTED];
    let first = keys.1 + slot / STRIP * shape.key_block_bytes() + slot % STRIP * SIZE;
    for (i, part) in k.chunks(CONVERTED).enumerate() {
        convert(part, &mut converted[..part.len()]);
        for (c, element) in converted[..part.len()].iter().enumerate() {
            let column = i * CONVERTED + c;
            // SAFETY: element `slot` of the column, this position's own.
            let out = unsafe { keys.0.slice(first + column * STRIP * SIZE, SIZE) };
            out.copy_from_slice(element);
        }
    }
    // SAFETY: this position's own row.
    let row = unsafe { values.0.slice(values.1 + slot * shape.value_dims() * SIZE, v.len() * SIZE) };
    for (out, part) in row.as_chunks_mut::<SIZE>().0.chunks_mut(CONVERTED).zip(v.chunks(CONVERTED)) {
        convert(part, out);
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
pub(super) fn quantize(x: &[f32]) -> ([i8; GROUP], f16) {
    let mut group = [0f32; GROUP];
    group[..x.len()].copy_from_slice(x);
    // SAFETY: nothing in particular is needed.
    let amax = unsafe { largest::<Plain>(&[group]) };
    let d = f16::from_f32(amax.min(F16_MAX * 127.0) / 127.0);
    let inverse = if d > f16::ZERO { 1.0 / d.to_f32() } else { 0.0 };
    (rounded(&group, inverse), d)
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

fn prepare_queries(
    context: Context<'_>,
    row: &mut [f32],
    dim: usize,
    preparation: Preparation<'_>,
    token: usize,
) {
    let Preparation { norms, rotary, query_scales } = preparation;
    prepare_heads(context, row, dim, norms.map(|n| (n.query, n.epsilon)), rotary, token);
    if let Some(scales) = query_scales {
        row.iter_mut().for_each(|x| *x *= scales[token]);
    }
}

fn prepare_heads(
    context: Context<'_>,
    row: &mut [f32],
    dim: usize,
    norm: Option<(&[f32], f32)>,
    rotary: Option<&Rotary>,
    token: usize,
) {
    if let Some((weight, epsilon)) = norm {
        norm_in_place(context, row, weight, epsilon);
    }
    if let Some(rotary) = rotary {
        row.chunks_exact_mut(dim).for_each(|head| rotary.turn(token, head));
    }
}

/// A norm of every part of `row` that is as long as the weights.
fn norm_in_place(context: Context<'_>, row: &mut [f32], weight: &[f32], epsilon: f32) {
    assert!(row.len().is_multiple_of(weight.len()), "whole norms");
    let mut out = [0.0; HEAD_DIM_MAX];
    for part in row.chunks_exact_mut(weight.len()) {
        // SAFETY: the table proves the instruction set.
        let scale = unsafe { (context.table.rms_scale)(part, epsilon) };
        for (part, weight) in part.chunks_mut(HEAD_DIM_MAX).zip(weight.chunks(HEAD_DIM_MAX)) {
            let out = &mut out[..part.len()];
            // SAFETY: the table proves the instruction set.
            unsafe { (context.table.scale)(part, scale, weight, out) };
            part.copy_from_slice(out);
        }
    }
}
