//! Integer tiles: `vpmaddubsw` of unsigned weights and signed activations into 16-bit sums, added up as far as they fit,
//! then `vpmaddwd` into 32 bits. Signed weights go by `|w| * (x with the sign of w)`, not the other way round: a weight may
//! be -128, which has no negative in a byte, and an activation is never less than -127.
//!
//! All 16 rows, two registers, meet [`TOKENS`] tokens at once, so that an activation is loaded for both and a weight for
//! all. More tokens go in blocks, over weights that were unpacked once for all of them.

use super::strip::{Cells, Scaled, Strip};
use crate::arch::x86_64::fetch_ahead;
use crate::format::GROUP;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use crate::panel::RECORD;
use std::arch::x86_64::*;

/// Tokens of a block: 8 sums, 2 registers of weights and what is on its way fit 16 registers.
pub(super) const TOKENS: usize = 4;

/// How far ahead of their use weights are fetched, in bytes. A group takes some hundred instructions, so a processor that
/// looks three hundred ahead sees little of what it will read. Beside another program decode of Q4_K_M was faster in four
/// pairs of five, by a fifth in the median, and of Q4_0 the same.
const PREFETCH_BYTES: usize = 2048;

/// Sums of tokens, two registers of 8 rows each.
pub(super) type Sums<V, const U: usize> = [[V; 2]; U];

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn integer_tile<L: Scaled, const T: usize>(args: &TileArgs) {
    for s in 0..args.strip_count {
        // SAFETY: strips, panel records and output rows lie where the contract says.
        unsafe {
            let strip = args.strips.add(s * args.strip_bytes);
            let mut acc = [[_mm256_setzero_ps(); 2]; T];
            for g in 0..args.cols / GROUP {
                let (block, i) = (strip.add(L::BLOCKS.start(g)), g % L::BLOCKS.groups);
                prefetch::<L>(block, i);
                let cells = L::cells(strip.add(L::BLOCKS.cells(g)));
                let scales = [L::scales(block, i, 0), L::scales(block, i, 1)];
                let record = args.panel.add(g * RECORD * T);
                match T {
                    1 => group::<L, T, 1>(&cells, &scales, record, 0, &mut acc),
                    2 => group::<L, T, 2>(&cells, &scales, record, 0, &mut acc),
                    _ => (0..T)
                        .step_by(TOKENS)
                        .for_each(|first| group::<L, T, TOKENS>(&cells, &scales, record, first, &mut acc)),
                }
            }
            store(args, s, &acc);
        }
    }
}

/// Writes or adds what a strip comes to.
///
/// # Safety
/// The contract of [`TileArgs`]; `s < strip_count`; the caller has the features.
#[inline(always)]
pub(super) unsafe fn store<const T: usize>(args: &TileArgs, s: usize, acc: &Sums<__m256, T>) {
    for (t, acc) in acc.iter().enumerate() {
        for (part, &acc) in acc.iter().enumerate() {
            // SAFETY: `out` has `T` rows of `16 * strip_count` floats that nobody else uses.
            unsafe {
                let out = args.out.add(t * args.out_stride + s * STRIP + part * 8);
                _mm256_storeu_ps(out, if args.add { _mm256_add_ps(_mm256_loadu_ps(out), acc) } else { acc });
            }
        }
    }
}

/// Adds one group for tokens `first .. first + U` of a panel of `T`.
///
/// # Safety
/// `record` is one of a panel of `T` tokens; `first + U <= T`; the caller has the features.
#[inline(always)]
unsafe fn group<L: Scaled, const T: usize, const U: usize>(
    cells: &Cells,
    scales: &[([__m256; 2], [__m256; 2]); 2],
    record: *const u8,
    first: usize,
    acc: &mut Sums<__m256, T>,
) {
    let halves = if L::HALVES { 2 } else { 1 };
    for h in 0..halves {
        // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words.
        unsafe {
            let mut dots = [[_mm256_setzero_si256(); 2]; U];
            let ones = [_mm256_set1_epi16(1); 2];
            let range = (8 / halves * h, 8 / halves);
            multiply::<L, U>(cells, range, record.add(first * GROUP), &ones, &mut dots);
            for t in 0..U {
                let field = |field: usize| tail::<T>(record, field, first + t);
                let float = |at: *const u8| _mm256_set1_ps(at.cast::<f32>().read_unaligned());
                let offset = offset::<L>(field(if L::HALVES { 3 + h } else { 2 }));
                let d = float(field(0));
                for part in 0..2 {
                    let (scale, min) = &scales[part];
                    let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dots[t][part], offset));
                    let acc = &mut acc[first + t][part];
                    *acc = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale[h], d), *acc);
                    if L::MIN {
                        let d_sum = float(field(if L::HALVES { 5 + h } else { 1 }));
                        *acc = _mm256_fnmadd_ps(min[h], d_sum, *acc);
                    }
                }
            }
        }
    }
}

/// Adds the products of some cells, `(first, count)`, with `U` tokens' activations, times 16-bit factors for each register
/// of rows, to `dots`.
///
/// # Safety
/// `x` points at `U` x 32 activations; the caller has the features.
#[inline(always)]
pub(super) unsafe fn multiply<L: Strip, const U: usize>(
    cells: &Cells,
    (first, count): (usize, usize),
    x: *const u8,
    factors: &[__m256i; 2],
    dots: &mut Sums<__m256i, U>,
) {
    let sums_max = L::SUMS.min(count);
    // SAFETY: cell `cell` of token `t` lies in the activations.
    unsafe {
        // Not `step_by`: the compiler unrolls this loop, and only then are cells in registers.
        for chunk in 0..count / sums_max {
            let mut sums = [[_mm256_setzero_si256(); 2]; U];
            for cell in first + chunk * sums_max..first + (chunk + 1) * sums_max {
                for (t, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(x.add(t * GROUP + cell * 4).cast::<i32>().read_unaligned());
                    for (part, sum) in sums.iter_mut().enumerate() {
                        let weights = cells[part][cell];
                        let product = if L::SIGNED {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights))
                        } else {
                            _mm256_maddubs_epi16(weights, x)
                        };
                        *sum = _mm256_add_epi16(*sum, product);
                    }
                }
            }
            for (dots, sums) in dots.iter_mut().zip(sums) {
                for part in 0..2 {
                    let sum = _mm256_madd_epi16(sums[part], factors[part]);
                    dots[part] = _mm256_add_epi32(dots[part], sum);
                }
            }
        }
    }
}

/// What the weights' offset adds to a sum, from the word at `at`, which is -8 times the sum of the activations.
///
/// # Safety
/// 4 bytes are readable at `at`; the caller has the features.
#[inline(always)]
unsafe fn offset<L: Strip>(at: *const u8) -> __m256i {
    // SAFETY: the caller's contract.
    unsafe {
        let word = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
        // A shift takes its count as a constant.
        match L::OFFSET {
            0 => _mm256_setzero_si256(),
            8 => word,
            16 => _mm256_slli_epi32::<1>(word),
            _ => unreachable!("no layout of groups has this offset"),
        }
    }
}

/// Fetches weights ahead.
#[inline(always)]
pub(super) fn prefetch<L: Strip>(block: *const u8, i: usize) {
    fetch_ahead(L::BLOCKS, block, i, PREFETCH_BYTES);
}

/// Where a field of token `t` lies.
///
/// # Safety
/// `record` is one of a panel of `T` tokens, more than `t`.
#[inline(always)]
pub(super) unsafe fn tail<const T: usize>(record: *const u8, field: usize, t: usize) -> *const u8 {
    // SAFETY: a record holds `T` x 32 bytes and then `T` words for each field.
    unsafe { record.add(T * GROUP + (field * T + t) * 4) }
}
