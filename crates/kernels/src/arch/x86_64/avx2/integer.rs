//! Integer tiles: `vpmaddubsw` of unsigned weights and signed activations into 16-bit sums, added up as far as they fit,
//! then `vpmaddwd` into 32 bits. Signed weights go by `|w| * (x with the sign of w)`, not the other way round: a weight may
//! be -128, which has no negative in a byte, and an activation is never less than -127.

use super::strip::Strip;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use crate::panel::RECORD;
use std::arch::x86_64::*;

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn integer_tile<L: Strip, const T: usize>(args: &TileArgs) {
    for s in 0..args.strip_count {
        // SAFETY: the same contract; `s` is below `strip_count` and the tokens below `T`.
        unsafe {
            match T {
                1 => tokens::<L, T, 1>(args, s, 0),
                2 => tokens::<L, T, 2>(args, s, 0),
                _ => (0..T).step_by(4).for_each(|t| tokens::<L, T, 4>(args, s, t)),
            }
        }
    }
}

/// Tokens `first .. first + U` of a panel of `T`.
///
/// # Safety
/// The contract of [`TileArgs`]; `s < strip_count`; `first + U <= T`; the caller has the features.
#[inline(always)]
unsafe fn tokens<L: Strip, const T: usize, const U: usize>(args: &TileArgs, s: usize, first: usize) {
    let groups = args.cols / 32;
    // SAFETY: strips, panel records and output rows lie where the contract says.
    unsafe {
        let strip = args.strips.add(s * args.strip_bytes);
        let mut acc = [[_mm256_setzero_ps(); U]; 2];
        for g in 0..groups {
            let record = args.panel.add(g * RECORD * T);
            for (part, acc) in acc.iter_mut().enumerate() {
                group::<L, T, U>(strip, g, part, record, first, acc);
            }
        }
        for t in 0..U {
            for (part, acc) in acc.iter().enumerate() {
                let out = args.out.add((first + t) * args.out_stride + s * STRIP + part * 8);
                let sum = if args.add { _mm256_add_ps(_mm256_loadu_ps(out), acc[t]) } else { acc[t] };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// # Safety
/// `strip` is a strip of `L` with more than `g` groups and `record` group `g` of a panel of `T` tokens; the contract of
/// [`tokens`].
#[inline(always)]
unsafe fn group<L: Strip, const T: usize, const U: usize>(
    strip: *const u8,
    g: usize,
    part: usize,
    record: *const u8,
    first: usize,
    acc: &mut [__m256; U],
) {
    // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words.
    unsafe {
        let (scale, min) = L::scales(strip.add(L::BLOCKS.start(g)), g % L::BLOCKS.groups, part);
        let cells = L::cells(strip.add(L::BLOCKS.cells(g) + part * 32));
        let ones = _mm256_set1_epi16(1);
        for t in 0..U {
            let tail = record.add(T * 32 + (first + t) * 4);
            let word =
                |field: usize| _mm256_set1_epi32(tail.add(field * T * 4).cast::<i32>().read_unaligned());
            let float = |field: usize| _mm256_set1_ps(tail.add(field * T * 4).cast::<f32>().read_unaligned());
            let mut halves = [_mm256_setzero_si256(); 2];
            for (h, dot) in halves.iter_mut().enumerate() {
                for chunk in (4 * h..4 * h + 4).step_by(L::SUMS) {
                    let mut sum = _mm256_setzero_si256();
                    for (cell, &weights) in cells.iter().enumerate().skip(chunk).take(L::SUMS) {
                        let x = record.add((first + t) * 32 + cell * 4).cast::<i32>().read_unaligned();
                        let x = _mm256_set1_epi32(x);
                        let product = if L::SIGNED {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights))
                        } else {
                            _mm256_maddubs_epi16(weights, x)
                        };
                        sum = _mm256_add_epi16(sum, product);
                    }
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(sum, ones));
                }
            }
            // The word is -8 times the sum of the activations; a shift takes its count as a constant.
            let offset = |field: usize| match L::OFFSET {
                0 => _mm256_setzero_si256(),
                4 => _mm256_srai_epi32::<1>(word(field)),
                8 => word(field),
                16 => _mm256_slli_epi32::<1>(word(field)),
                32 => _mm256_slli_epi32::<2>(word(field)),
                _ => unreachable!("no layout has this offset"),
            };
            if L::HALVES {
                for h in 0..2 {
                    let dot = _mm256_add_epi32(halves[h], offset(3 + h));
                    acc[t] =
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scale[h], float(0)), acc[t]);
                    if L::MIN {
                        acc[t] = _mm256_fnmadd_ps(min[h], float(5 + h), acc[t]);
                    }
                }
            } else {
                let dot = _mm256_add_epi32(_mm256_add_epi32(halves[0], halves[1]), offset(2));
                acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scale[0], float(0)), acc[t]);
                if L::MIN {
                    acc[t] = _mm256_fnmadd_ps(min[0], float(1), acc[t]);
                }
            }
        }
    }
}
