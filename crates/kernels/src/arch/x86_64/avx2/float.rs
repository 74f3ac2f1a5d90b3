//! Float tiles: one load and widening of 8 rows' weights per column and register, one `vfmadd` per token.

use crate::attention::PAGE;
use crate::isa::{MixArgs, ScoreArgs, TileArgs};
use crate::layout::STRIP;
use std::arch::x86_64::*;

/// 8 weights of one column, widened to f32.
pub(super) trait Column {
    const BYTES: usize;
    /// Elements of a cache that have scales.
    const SCALED: bool = false;
    /// # Safety
    /// `8 * BYTES` bytes are readable at `at`; the caller has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;
}

pub(super) enum F32 {}
pub(super) enum F16 {}
pub(super) enum Bf16 {}
pub(super) enum I8 {}

impl Column for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

impl Column for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

impl Column for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

impl Column for I8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }
}

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn float_tile<C: Column, const T: usize>(args: &TileArgs) {
    for s in 0..args.strip_count {
        // SAFETY: the same contract; `s` is below `strip_count` and the tokens below `T`.
        unsafe {
            let strip = args.strips.add(s * args.strip_bytes);
            let out = args.out.add(s * STRIP);
            match T {
                1 => tokens::<C, T, 1>(args, strip, out, 0),
                2 => tokens::<C, T, 2>(args, strip, out, 0),
                _ => (0..T).step_by(4).for_each(|t| tokens::<C, T, 4>(args, strip, out, t)),
            }
        }
    }
}

/// # Safety
/// The contract of [`TileArgs`] for one strip; `first + U <= T`; the caller has the features.
#[inline(always)]
unsafe fn tokens<C: Column, const T: usize, const U: usize>(
    args: &TileArgs,
    strip: *const u8,
    out: *mut f32,
    first: usize,
) {
    // SAFETY: strip, panel and output rows lie where the contract says.
    unsafe {
        let panel: *const f32 = args.panel.cast();
        let mut acc = [[_mm256_setzero_ps(); 2]; U];
        for c in 0..args.cols {
            let at = strip.add(c * STRIP * C::BYTES);
            let weights = [C::load(at), C::load(at.add(8 * C::BYTES))];
            for t in 0..U {
                let x = _mm256_set1_ps(*panel.add(c * T + first + t));
                for part in 0..2 {
                    acc[t][part] = _mm256_fmadd_ps(weights[part], x, acc[t][part]);
                }
            }
        }
        for t in 0..U {
            for part in 0..2 {
                let out = out.add((first + t) * args.out_stride + part * 8);
                let sum =
                    if args.add { _mm256_add_ps(_mm256_loadu_ps(out), acc[t][part]) } else { acc[t][part] };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// # Safety
/// The contract of [`ScoreArgs`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn score<C: Column, const T: usize>(args: &ScoreArgs) {
    let &ScoreArgs { q, k, dim, blocks, out, .. } = args;
    for b in 0..blocks {
        // SAFETY: the same contract.
        unsafe {
            let (k, out) = (k.add(b * dim * STRIP * C::BYTES), out.add(b * STRIP));
            // Both halves of a block at once where a few rows' sums alone would be waited for.
            if T <= 4 {
                score_lanes::<C, T, 2>(q, k, dim, out);
            } else {
                score_lanes::<C, T, 1>(q, k, dim, out);
                score_lanes::<C, T, 1>(q, k.add(8 * C::BYTES), dim, out.add(8));
            }
        }
    }
}

/// # Safety
/// The contract of [`ScoreArgs`] for `8 * B` positions of a block; the caller has the features.
#[inline(always)]
unsafe fn score_lanes<C: Column, const T: usize, const B: usize>(
    q: *const f32,
    k: *const u8,
    dim: usize,
    out: *mut f32,
) {
    // SAFETY: the contract gives `dim * T` floats, `dim * 16` elements and `T` rows of PAGE floats.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); B]; T];
        for c in 0..dim {
            let k: [__m256; B] = std::array::from_fn(|b| C::load(k.add((c * STRIP + b * 8) * C::BYTES)));
            for t in 0..T {
                let q = _mm256_set1_ps(*q.add(c * T + t));
                for b in 0..B {
                    acc[t][b] = _mm256_fmadd_ps(k[b], q, acc[t][b]);
                }
            }
        }
        for t in 0..T {
            for b in 0..B {
                _mm256_storeu_ps(out.add(t * PAGE + b * 8), acc[t][b]);
            }
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn mix<C: Column, const T: usize>(args: &MixArgs) {
    // SAFETY: the same contract; `dims` is a multiple of 16.
    unsafe {
        for d in (0..args.dims).step_by(16) {
            if T <= 4 {
                mix_lanes::<C, T, 2>(args, d);
            } else {
                mix_lanes::<C, T, 1>(args, d);
                mix_lanes::<C, T, 1>(args, d + 8);
            }
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`] for `8 * B` dimensions from `first` on; the caller has the features.
#[inline(always)]
unsafe fn mix_lanes<C: Column, const T: usize, const B: usize>(args: &MixArgs, first: usize) {
    let &MixArgs { weight, dims, count, alpha, .. } = args;
    // SAFETY: the contract gives `T` rows of PAGE weights, `count` rows of elements, PAGE scales, `T` alphas and `T` rows
    // of floats.
    unsafe {
        let at = |t: usize, b: usize| args.out.add(t * dims + first + b * 8);
        let scales = if C::SCALED { args.scales.add(first / 32 * PAGE) } else { args.scales };
        let mut acc: [[__m256; B]; T] = std::array::from_fn(|t| {
            let alpha = _mm256_set1_ps(*alpha.add(t));
            std::array::from_fn(|b| _mm256_mul_ps(_mm256_loadu_ps(at(t, b)), alpha))
        });
        for p in 0..count {
            let v: [__m256; B] = std::array::from_fn(|b| {
                let v = C::load(args.v.add((p * dims + first + b * 8) * C::BYTES));
                if C::SCALED { _mm256_mul_ps(v, _mm256_set1_ps(*scales.add(p))) } else { v }
            });
            for t in 0..T {
                let weight = _mm256_set1_ps(*weight.add(t * PAGE + p));
                for b in 0..B {
                    acc[t][b] = _mm256_fmadd_ps(v[b], weight, acc[t][b]);
                }
            }
        }
        for t in 0..T {
            for b in 0..B {
                _mm256_storeu_ps(at(t, b), acc[t][b]);
            }
        }
    }
}
