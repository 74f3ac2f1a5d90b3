//! Float tiles: one load and widening of 8 rows' weights per column and register, one `vfmadd` per token.

use crate::attention::PAGE;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use std::arch::x86_64::*;

/// 8 weights of one column, widened to f32.
pub(super) trait Column {
    const BYTES: usize;
    /// # Safety
    /// `8 * BYTES` bytes are readable at `at`; the caller has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;
}

pub(super) enum F32 {}
pub(super) enum F16 {}
pub(super) enum Bf16 {}

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
/// The contract of [`crate::isa::ScoreFn`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn score<C: Column, const T: usize>(
    q: *const f32,
    k: *const u8,
    dim: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the contract gives `dim * T` floats, `dim * 16` elements and `T` rows of 16 floats; 8 at a time.
    unsafe {
        for part in 0..2 {
            let mut acc = [_mm256_setzero_ps(); T];
            for c in 0..dim {
                let k = C::load(k.add((c * STRIP + part * 8) * C::BYTES));
                for t in 0..T {
                    acc[t] = _mm256_fmadd_ps(k, _mm256_set1_ps(*q.add(c * T + t)), acc[t]);
                }
            }
            for t in 0..T {
                _mm256_storeu_ps(out.add(t * out_stride + part * 8), acc[t]);
            }
        }
    }
}

/// # Safety
/// The contract of [`crate::isa::MixFn`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn mix<C: Column, const T: usize>(
    weight: *const f32,
    v: *const u8,
    v_stride: usize,
    count: usize,
    alpha: *const f32,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the contract gives `T` rows of PAGE weights, `count` rows of 16 elements, `T` alphas, `T` rows of 16 floats.
    unsafe {
        for part in 0..2 {
            let out = out.add(part * 8);
            let mut acc: [__m256; T] = std::array::from_fn(|t| {
                _mm256_mul_ps(_mm256_loadu_ps(out.add(t * out_stride)), _mm256_set1_ps(*alpha.add(t)))
            });
            for p in 0..count {
                let v = C::load(v.add((p * v_stride + part * 8) * C::BYTES));
                for t in 0..T {
                    acc[t] = _mm256_fmadd_ps(v, _mm256_set1_ps(*weight.add(t * PAGE + p)), acc[t]);
                }
            }
            for t in 0..T {
                _mm256_storeu_ps(out.add(t * out_stride), acc[t]);
            }
        }
    }
}
