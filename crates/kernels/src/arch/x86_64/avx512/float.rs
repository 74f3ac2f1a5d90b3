//! Float tiles: one load and widening of 16 rows' weights per column, one `vfmadd` per token.

use crate::attention::PAGE;
use crate::isa::{MixArgs, ScoreArgs, TileArgs};
use crate::layout::STRIP;
use std::arch::x86_64::*;

/// 16 weights of one column, widened to f32.
pub(super) trait Column {
    const BYTES: usize;
    /// Elements of a cache that have scales.
    const SCALED: bool = false;
    /// # Safety
    /// `16 * BYTES` bytes are readable at `at`; the caller has AVX-512.
    unsafe fn load(at: *const u8) -> __m512;
}

pub(super) enum F32 {}
pub(super) enum F16 {}
pub(super) enum Bf16 {}
pub(super) enum I8 {}

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

impl Column for I8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
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
/// The contract of [`ScoreArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn score<C: Column, const T: usize>(args: &ScoreArgs) {
    let mut b = 0;
    // SAFETY: the same contract; `b` stays below `blocks`.
    unsafe {
        // Several blocks at once where a few rows' sums alone would be waited for.
        if T <= 4 {
            while b + 4 <= args.blocks {
                score_blocks::<C, T, 4>(args, b);
                b += 4;
            }
        }
        while b < args.blocks {
            score_blocks::<C, T, 1>(args, b);
            b += 1;
        }
    }
}

/// Asks for as many bytes as one step of four blocks reads, `step` steps after `next`. Few rows take less time than memory
/// does, and the processor's own prefetching stops at the end of each 4 KiB.
///
/// # Safety
/// The caller has SSE.
#[inline(always)]
unsafe fn fetch<C: Column>(next: *const u8, step: usize) {
    for line in 0..C::BYTES {
        // SAFETY: the caller's contract; a prefetch reads nothing that a program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add((step * C::BYTES + line) * 64).cast()) }
    }
}

/// # Safety
/// The contract of [`ScoreArgs`] for `B` blocks from `first` on; the caller has the features.
#[inline(always)]
unsafe fn score_blocks<C: Column, const T: usize, const B: usize>(args: &ScoreArgs, first: usize) {
    let &ScoreArgs { q, dim, .. } = args;
    // SAFETY: the contract gives `dim * T` floats, `B * dim * 16` elements and `T` rows of PAGE floats.
    unsafe {
        let start = first * dim * STRIP * C::BYTES;
        let (k, next) = (args.k.add(start), args.next.wrapping_add(start));
        let out = args.out.add(first * STRIP);
        let mut acc = [[_mm512_setzero_ps(); B]; T];
        for c in 0..dim {
            if B == 4 {
                fetch::<C>(next, c);
            }
            let k: [__m512; B] = std::array::from_fn(|b| C::load(k.add((b * dim + c) * STRIP * C::BYTES)));
            for t in 0..T {
                let q = _mm512_set1_ps(*q.add(c * T + t));
                for b in 0..B {
                    acc[t][b] = _mm512_fmadd_ps(k[b], q, acc[t][b]);
                }
            }
        }
        for t in 0..T {
            for b in 0..B {
                _mm512_storeu_ps(out.add(t * PAGE + b * STRIP), acc[t][b]);
            }
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn mix<C: Column, const T: usize>(args: &MixArgs) {
    let mut d = 0;
    // SAFETY: the same contract; `d` stays below `dims`.
    unsafe {
        // Several blocks at once, for more sums than a product takes cycles.
        if T <= 4 {
            while d + 64 <= args.dims {
                mix_blocks::<C, T, 4>(args, d);
                d += 64;
            }
        }
        while d + 32 <= args.dims {
            mix_blocks::<C, T, 2>(args, d);
            d += 32;
        }
        while d < args.dims {
            mix_blocks::<C, T, 1>(args, d);
            d += 16;
        }
    }
}

/// # Safety
/// The contract of [`MixArgs`] for `16 * B` dimensions from `first` on, which is a multiple of 32 where the cache is
/// quantized; the caller has the features.
#[inline(always)]
unsafe fn mix_blocks<C: Column, const T: usize, const B: usize>(args: &MixArgs, first: usize) {
    let &MixArgs { weight, dims, count, alpha, .. } = args;
    // SAFETY: the contract gives `T` rows of PAGE weights, `count` rows of elements, PAGE scales for each two blocks, `T`
    // alphas and `T` rows of floats.
    unsafe {
        let at = |t: usize, b: usize| args.out.add(t * dims + first + b * 16);
        let scales = if C::SCALED { args.scales.add(first / 32 * PAGE) } else { args.scales };
        let next = args.next.wrapping_add(first * PAGE * C::BYTES);
        let mut acc: [[__m512; B]; T] = std::array::from_fn(|t| {
            let alpha = _mm512_set1_ps(*alpha.add(t));
            std::array::from_fn(|b| _mm512_mul_ps(_mm512_loadu_ps(at(t, b)), alpha))
        });
        for p in 0..count {
            if B == 4 {
                fetch::<C>(next, p);
            }
            let v: [__m512; B] = std::array::from_fn(|b| {
                let v = C::load(args.v.add((p * dims + first + b * 16) * C::BYTES));
                if C::SCALED { _mm512_mul_ps(v, _mm512_set1_ps(*scales.add(b / 2 * PAGE + p))) } else { v }
            });
            for t in 0..T {
                let weight = _mm512_set1_ps(*weight.add(t * PAGE + p));
                for b in 0..B {
                    acc[t][b] = _mm512_fmadd_ps(v[b], weight, acc[t][b]);
                }
            }
        }
        for t in 0..T {
            for b in 0..B {
                _mm512_storeu_ps(at(t, b), acc[t][b]);
            }
        }
    }
}
