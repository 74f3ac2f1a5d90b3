//! Float tiles: one load and widening of 16 rows' weights per column, one `vfmadd` per token.

use crate::attention::PAGE;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use std::arch::x86_64::*;

/// 16 weights of one column, widened to f32.
pub(super) trait Column {
    const BYTES: usize;
    /// # Safety
    /// `16 * BYTES` bytes are readable at `at`; the caller has AVX-512.
    unsafe fn load(at: *const u8) -> __m512;
}

pub(super) enum F32 {}
pub(super) enum F16 {}
pub(super) enum Bf16 {}

impl Column for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

impl Column for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

impl Column for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn float_tile<C: Column, const T: usize>(args: &TileArgs) {
    let mut s = 0;
    // SAFETY: the same contract; `s` stays below `strip_count`.
    unsafe {
        // Several strips at once where one token's accumulator alone would be waited for.
        if T <= 2 {
            while s + 4 <= args.strip_count {
                strips::<C, T, 4>(args, s);
                s += 4;
            }
        }
        while s < args.strip_count {
            strips::<C, T, 1>(args, s);
            s += 1;
        }
    }
}

/// # Safety
/// The contract of [`TileArgs`]; `first + S <= strip_count`; the caller has the features.
#[inline(always)]
unsafe fn strips<C: Column, const T: usize, const S: usize>(args: &TileArgs, first: usize) {
    // SAFETY: strips, panel and output rows lie where the contract says.
    unsafe {
        let strip: [*const u8; S] = std::array::from_fn(|s| args.strips.add((first + s) * args.strip_bytes));
        let panel: *const f32 = args.panel.cast();
        let mut acc = [[_mm512_setzero_ps(); T]; S];
        for c in 0..args.cols {
            for s in 0..S {
                let weights = C::load(strip[s].add(c * STRIP * C::BYTES));
                for t in 0..T {
                    acc[s][t] = _mm512_fmadd_ps(weights, _mm512_set1_ps(*panel.add(c * T + t)), acc[s][t]);
                }
            }
        }
        for s in 0..S {
            for t in 0..T {
                let out = args.out.add(t * args.out_stride + (first + s) * STRIP);
                let sum = if args.add { _mm512_add_ps(_mm512_loadu_ps(out), acc[s][t]) } else { acc[s][t] };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// # Safety
/// The contract of [`crate::isa::ScoreFn`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn score<C: Column, const T: usize>(
    q: *const f32,
    k: *const u8,
    dim: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the contract gives `dim * T` floats, `dim * 16` elements and `T` rows of 16 floats.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); T];
        for c in 0..dim {
            let k = C::load(k.add(c * STRIP * C::BYTES));
            for t in 0..T {
                acc[t] = _mm512_fmadd_ps(k, _mm512_set1_ps(*q.add(c * T + t)), acc[t]);
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(out.add(t * out_stride), acc[t]);
        }
    }
}

/// # Safety
/// The contract of [`crate::isa::MixFn`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
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
        let mut acc: [__m512; T] = std::array::from_fn(|t| {
            _mm512_mul_ps(_mm512_loadu_ps(out.add(t * out_stride)), _mm512_set1_ps(*alpha.add(t)))
        });
        for p in 0..count {
            let v = C::load(v.add(p * v_stride * C::BYTES));
            for t in 0..T {
                acc[t] = _mm512_fmadd_ps(v, _mm512_set1_ps(*weight.add(t * PAGE + p)), acc[t]);
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(out.add(t * out_stride), acc[t]);
        }
    }
}
