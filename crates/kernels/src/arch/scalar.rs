//! The scalar reference: plain Rust on every processor, in the same order of operations as the vector tiles.

use super::per_width;
use crate::attention::PAGE;
use crate::elementwise::{Plain, elementwise};
use crate::format::GROUP;
use crate::isa::{CacheTiles, Isa, MixArgs, ScoreArgs, Table, TileArgs};
use crate::layout::{self, Bytes, Layout, STRIP};
use crate::panel::RECORD;
use half::{bf16, f16};
use std::hint::black_box;
use std::slice;

elementwise!(Plain);

macro_rules! tiles {
    ($layout:ident, $tile:ident) => {{
        unsafe fn tile<const T: usize>(args: &TileArgs) {
            // SAFETY: the same contract.
            unsafe { $tile::<T>(args, Layout::$layout) }
        }
        per_width!(tile)
    }};
}

pub(crate) static TABLE: Table = Table {
    isa: Isa::Scalar,
    f32: tiles!(F32, float_tile),
    f16: tiles!(F16, float_tile),
    bf16: tiles!(BF16, float_tile),
    q8: tiles!(Q8, integer_tile),
    q4: tiles!(Q4, integer_tile),
    iq4_nl: tiles!(Iq4Nl, integer_tile),
    mxfp4: tiles!(Mxfp4, integer_tile),
    q4k: tiles!(Q4K, integer_tile),
    q5k: tiles!(Q5K, integer_tile),
    q3k: tiles!(Q3K, integer_tile),
    q6k: tiles!(Q6K, integer_tile),
    iq4_xs: tiles!(Iq4Xs, integer_tile),
    w8: tiles!(W8, integer_tile),
    w8_half: tiles!(W8Half, integer_tile),
    cache_f32: CacheTiles { score: per_width!(score, F32), mix: per_width!(mix, F32) },
    cache_f16: CacheTiles { score: per_width!(score, F16), mix: per_width!(mix, F16) },
    cache_bf16: CacheTiles { score: per_width!(score, Bf16), mix: per_width!(mix, Bf16) },
    mix_q8: per_width!(mix, I8),
    quantize_row,
    rms_scale,
    scale,
    mean_scale,
    center_scale,
    silu_mul,
    gelu_mul,
    exact_gelu_mul,
    clamped_swiglu,
    add_scaled,
    add_product,
    silu,
    sigmoid_mul,
    remember,
    soft_cap,
    softmax_tile,
    max,
    exp_sum,
    dots,
};

/// # Safety
/// The contract of [`TileArgs`].
unsafe fn integer_tile<const T: usize>(args: &TileArgs, layout: Layout) {
    let groups = args.cols / GROUP;
    for s in 0..args.strip_count {
        // SAFETY: the contract gives `strip_count` strips and a panel of `groups` records.
        let (strip, panel) = unsafe {
            let strip = slice::from_raw_parts(args.strips.add(s * args.strip_bytes), args.strip_bytes);
            (strip, slice::from_raw_parts(args.panel, groups * RECORD * T))
        };
        let mut acc = [[0f32; STRIP]; T];
        for (g, record) in panel.chunks_exact(RECORD * T).enumerate() {
            let weights = layout::unpack_group(layout, Bytes::Signed, strip, g);
            let float = |field: usize, t: usize| {
                let at = T * GROUP + (field * T + t) * 4;
                f32::from_le_bytes(record[at..at + 4].try_into().expect("4 bytes"))
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                let x: &[u8; GROUP] = record[t * GROUP..][..GROUP].try_into().expect("32 bytes");
                let d = float(0, t);
                // Both halves of a super-block's groups have one minimum, for the sum over both.
                let sums =
                    if layout.has_superblocks() { [float(1, t), 0.0] } else { [float(5, t), float(6, t)] };
                for (acc, w) in acc.iter_mut().zip(&weights) {
                    for h in 0..2 {
                        let range = h * 16..(h + 1) * 16;
                        let dot: i32 = w.q[range.clone()]
                            .iter()
                            .zip(&x[range])
                            .map(|(&w, &x)| i32::from(w) * i32::from(x as i8))
                            .sum();
                        *acc += dot as f32 * (w.scale[h] * d) - w.min[h] * sums[h];
                    }
                }
            }
        }
        // SAFETY: the same contract.
        unsafe { store(args, s, &acc) }
    }
}

/// # Safety
/// The contract of [`TileArgs`].
unsafe fn float_tile<const T: usize>(args: &TileArgs, layout: Layout) {
    for s in 0..args.strip_count {
        // SAFETY: the contract gives `strip_count` strips and a panel of `cols` x `T` floats.
        let (strip, panel) = unsafe {
            let strip = slice::from_raw_parts(args.strips.add(s * args.strip_bytes), args.strip_bytes);
            (strip, slice::from_raw_parts(args.panel.cast::<f32>(), args.cols * T))
        };
        let mut acc = [[0f32; STRIP]; T];
        for (c, x) in panel.chunks_exact(T).enumerate() {
            for r in 0..STRIP {
                let w = layout::float_weight(layout, strip, r, c);
                for (acc, x) in acc.iter_mut().zip(x) {
                    acc[r] += w * x;
                }
            }
        }
        // SAFETY: the same contract.
        unsafe { store(args, s, &acc) }
    }
}

/// Multiply-adds of words, 16 that do not wait for each other. Needs no promise; a table's functions are unsafe.
unsafe fn dots(rounds: u64) -> u64 {
    let weight = black_box(3i32);
    let mut sums = [black_box(-5i32); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.wrapping_mul(weight).wrapping_add(1);
        }
    }
    black_box(sums);
    rounds * 16
}

/// # Safety
/// The contract of [`TileArgs`].
unsafe fn store<const T: usize>(args: &TileArgs, strip: usize, acc: &[[f32; STRIP]; T]) {
    for (t, acc) in acc.iter().enumerate() {
        // SAFETY: `out` has `T` rows of `16 * strip_count` floats that nobody else uses.
        let out =
            unsafe { slice::from_raw_parts_mut(args.out.add(t * args.out_stride + strip * STRIP), STRIP) };
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = if args.add { *out + acc } else { *acc };
        }
    }
}

/// One element of a cache.
trait Element {
    /// Elements that have scales.
    const SCALED: bool = false;
    /// # Safety
    /// There is an `i`-th element at `at`.
    unsafe fn load(at: *const u8, i: usize) -> f32;
}

enum F32 {}
enum F16 {}
enum Bf16 {}
enum I8 {}

impl Element for F32 {
    unsafe fn load(at: *const u8, i: usize) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { at.cast::<f32>().add(i).read_unaligned() }
    }
}

impl Element for F16 {
    unsafe fn load(at: *const u8, i: usize) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { at.cast::<f16>().add(i).read_unaligned() }.to_f32()
    }
}

impl Element for Bf16 {
    unsafe fn load(at: *const u8, i: usize) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { at.cast::<bf16>().add(i).read_unaligned() }.to_f32()
    }
}

impl Element for I8 {
    const SCALED: bool = true;

    unsafe fn load(at: *const u8, i: usize) -> f32 {
        // SAFETY: the trait's contract.
        f32::from(unsafe { at.add(i).read() } as i8)
    }
}

/// # Safety
/// The contract of [`ScoreArgs`].
unsafe fn score<E: Element, const T: usize>(args: &ScoreArgs) {
    let &ScoreArgs { q, k, dim, blocks, out, .. } = args;
    // SAFETY: the contract gives `dim * T` floats, `blocks * dim * 16` elements and `T` rows of PAGE floats.
    unsafe {
        for b in 0..blocks {
            let mut acc = [[0f32; STRIP]; T];
            for c in 0..dim {
                for j in 0..STRIP {
                    let k = E::load(k, (b * dim + c) * STRIP + j);
                    for (t, acc) in acc.iter_mut().enumerate() {
                        acc[j] += *q.add(c * T + t) * k;
                    }
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                out.add(t * PAGE + b * STRIP).cast::<[f32; STRIP]>().write_unaligned(*acc);
            }
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`].
unsafe fn mix<E: Element, const T: usize>(args: &MixArgs) {
    let &MixArgs { weight, v, scales, dims, count, alpha, out, .. } = args;
    // SAFETY: the contract gives `T` rows of PAGE weights, `count` rows of `dims` elements with their scales, `T` alphas
    // and `T` rows of `dims` floats.
    unsafe {
        for t in 0..T {
            let out = slice::from_raw_parts_mut(out.add(t * dims), dims);
            for o in out.iter_mut() {
                *o *= *alpha.add(t);
            }
            for p in 0..count {
                let w = *weight.add(t * PAGE + p);
                for (j, o) in out.iter_mut().enumerate() {
                    let scale = if E::SCALED { *scales.add(j / GROUP * PAGE + p) } else { 1.0 };
                    *o += w * (E::load(v, p * dims + j) * scale);
                }
            }
        }
    }
}
