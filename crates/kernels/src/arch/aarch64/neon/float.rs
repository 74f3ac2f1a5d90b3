//! Float tiles: one load and widening of a column's weights, one `fmla` per 4 rows and token.

use crate::attention::PAGE;
use crate::isa::{MixArgs, ScoreArgs, TileArgs};
use crate::layout::STRIP;
use std::arch::aarch64::*;

/// Weights of one column, widened to f32.
pub(in crate::arch::aarch64) trait Column {
    const BYTES: usize;
    /// Elements of a cache that have scales.
    const SCALED: bool = false;
    /// `4 * Q` rows; `Q` is even.
    ///
    /// # Safety
    /// `4 * Q * BYTES` bytes are readable at `at`; the caller has NEON.
    unsafe fn load<const Q: usize>(at: *const u8) -> [float32x4_t; Q];
}

pub(in crate::arch::aarch64) enum F32 {}
pub(in crate::arch::aarch64) enum F16 {}
pub(in crate::arch::aarch64) enum Bf16 {}
pub(in crate::arch::aarch64) enum I8 {}

impl Column for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<const Q: usize>(at: *const u8) -> [float32x4_t; Q] {
        // SAFETY: the trait's contract; bytes, since a strip need not be aligned.
        unsafe { std::array::from_fn(|q| vreinterpretq_f32_u8(vld1q_u8(at.add(q * 16)))) }
    }
}

impl Column for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<const Q: usize>(at: *const u8) -> [float32x4_t; Q] {
        // SAFETY: the trait's contract.
        unsafe {
            std::array::from_fn(|q| {
                let eight = vreinterpretq_u16_u8(vld1q_u8(at.add(q / 2 * 16)));
                let four = if q % 2 == 0 { vget_low_u16(eight) } else { vget_high_u16(eight) };
                vcvt_f32_f16(vreinterpret_f16_u16(four))
            })
        }
    }
}

impl Column for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<const Q: usize>(at: *const u8) -> [float32x4_t; Q] {
        // SAFETY: the trait's contract.
        unsafe {
            std::array::from_fn(|q| {
                let eight = vreinterpretq_u16_u8(vld1q_u8(at.add(q / 2 * 16)));
                let four = if q % 2 == 0 { vget_low_u16(eight) } else { vget_high_u16(eight) };
                vreinterpretq_f32_u32(vshll_n_u16::<16>(four))
            })
        }
    }
}

impl Column for I8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<const Q: usize>(at: *const u8) -> [float32x4_t; Q] {
        // SAFETY: the trait's contract.
        unsafe {
            std::array::from_fn(|q| {
                let eight = vmovl_s8(vreinterpret_s8_u8(vld1_u8(at.add(q / 2 * 8))));
                let four = if q % 2 == 0 { vget_low_s16(eight) } else { vget_high_s16(eight) };
                vcvtq_f32_s32(vmovl_s16(four))
            })
        }
    }
}

/// # Safety
/// The contract of [`TileArgs`], and the processor has NEON.
#[target_feature(enable = "neon")]
pub(in crate::arch::aarch64) unsafe fn float_tile<C: Column, const T: usize>(args: &TileArgs) {
    for s in 0..args.strip_count {
        // SAFETY: the same contract; `s` is below `strip_count`.
        unsafe {
            let strip = args.strips.add(s * args.strip_bytes);
            let out = args.out.add(s * STRIP);
            columns::<C, T>(strip, args.panel.cast(), args.cols, out, args.out_stride, args.add);
        }
    }
}

/// # Safety
/// The contract of [`ScoreArgs`], and the processor has NEON.
#[target_feature(enable = "neon")]
pub(in crate::arch::aarch64) unsafe fn score<C: Column, const T: usize>(args: &ScoreArgs) {
    let &ScoreArgs { q, k, dim, blocks, out, .. } = args;
    for b in 0..blocks {
        // SAFETY: the contract gives blocks that are strips of `dim` columns, and a float panel of `T` tokens.
        unsafe {
            let strip = k.add(b * dim * STRIP * C::BYTES);
            columns::<C, T>(strip, q, dim, out.add(b * STRIP), PAGE, false);
        }
    }
}

/// A strip times a float panel. Few tokens take all 16 rows at once, lest sums wait for themselves; of more, 8 rows are
/// what the registers hold.
///
/// # Safety
/// The contract of [`TileArgs`] for one strip; the caller has NEON.
#[inline(always)]
unsafe fn columns<C: Column, const T: usize>(
    strip: *const u8,
    panel: *const f32,
    cols: usize,
    out: *mut f32,
    out_stride: usize,
    add: bool,
) {
    // SAFETY: the same contract.
    unsafe {
        if T <= 4 {
            rows::<C, T, 4>(strip, panel, cols, out, out_stride, add);
        } else {
            rows::<C, T, 2>(strip, panel, cols, out, out_stride, add);
            let second = strip.add(8 * C::BYTES);
            rows::<C, T, 2>(second, panel, cols, out.add(8), out_stride, add);
        }
    }
}

/// # Safety
/// The contract of [`columns`] for `4 * Q` rows.
#[inline(always)]
unsafe fn rows<C: Column, const T: usize, const Q: usize>(
    strip: *const u8,
    panel: *const f32,
    cols: usize,
    out: *mut f32,
    out_stride: usize,
    add: bool,
) {
    // SAFETY: strip, panel and output rows lie where the contract says.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); Q]; T];
        for c in 0..cols {
            let weights = C::load::<Q>(strip.add(c * STRIP * C::BYTES));
            for t in 0..T {
                let x = *panel.add(c * T + t);
                for q in 0..Q {
                    acc[t][q] = vfmaq_n_f32(acc[t][q], weights[q], x);
                }
            }
        }
        for t in 0..T {
            for q in 0..Q {
                let out = out.add(t * out_stride + q * 4);
                vst1q_f32(out, if add { vaddq_f32(vld1q_f32(out), acc[t][q]) } else { acc[t][q] });
            }
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`], and the processor has NEON.
#[target_feature(enable = "neon")]
pub(in crate::arch::aarch64) unsafe fn mix<C: Column, const T: usize>(args: &MixArgs) {
    // SAFETY: the same contract; `dims` is a multiple of 16. As in `columns`, few rows take all 16 at once.
    unsafe {
        for d in (0..args.dims).step_by(16) {
            if T <= 4 {
                mix_lanes::<C, T, 4>(args, d);
            } else {
                mix_lanes::<C, T, 2>(args, d);
                mix_lanes::<C, T, 2>(args, d + 8);
            }
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`] for `4 * Q` dimensions from `first` on; the caller has NEON.
#[inline(always)]
unsafe fn mix_lanes<C: Column, const T: usize, const Q: usize>(args: &MixArgs, first: usize) {
    let &MixArgs { weight, dims, count, alpha, .. } = args;
    // SAFETY: the contract gives `T` rows of PAGE weights, `count` rows of elements, PAGE scales, `T` alphas and `T` rows
    // of floats.
    unsafe {
        let at = |t: usize, q: usize| args.out.add(t * dims + first + q * 4);
        let scales = if C::SCALED { args.scales.add(first / 32 * PAGE) } else { args.scales };
        let mut acc: [[float32x4_t; Q]; T] =
            std::array::from_fn(|t| std::array::from_fn(|q| vmulq_n_f32(vld1q_f32(at(t, q)), *alpha.add(t))));
        for p in 0..count {
            let mut v = C::load::<Q>(args.v.add((p * dims + first) * C::BYTES));
            if C::SCALED {
                v = v.map(|v| vmulq_n_f32(v, *scales.add(p)));
            }
            for t in 0..T {
                let w = *weight.add(t * PAGE + p);
                for q in 0..Q {
                    acc[t][q] = vfmaq_n_f32(acc[t][q], v[q], w);
                }
            }
        }
        for t in 0..T {
            for q in 0..Q {
                vst1q_f32(at(t, q), acc[t][q]);
            }
        }
    }
}
