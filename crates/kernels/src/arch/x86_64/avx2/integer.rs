//! Integer tiles: `vpmaddubsw` of unsigned weights and signed activations into 16-bit sums, added up as far as they fit,
//! then `vpmaddwd` into 32 bits. Signed weights go by `|w| * (x with the sign of w)`, not the other way round: a weight may
//! be -128, which has no negative in a byte, and an activation is never less than -127.

use crate::isa::TileArgs;
use crate::layout::{
    PairLayout, Q4_GROUP, Q4K_BLOCK, Q4K_HEADER, Q6K_BLOCK, Q6K_GROUP, Q6K_HEADER, Q6K_SCALES, STRIP,
    W8_GROUP, W8_HALF_GROUP,
};
use crate::panel::RECORD;
use std::arch::x86_64::*;

/// How one layout's strip is read, 8 of its 16 rows at a time. Only called from within [`integer_tile`].
pub(super) trait Strip {
    /// Two scales per group, one for each 16 columns.
    const HALVES: bool = false;
    /// Weights have a minimum to subtract.
    const MIN: bool = false;
    /// Weights are stored `8 << shift` above their value.
    const OFFSET_SHIFT: Option<u32> = None;
    /// Weights are signed bytes.
    const SIGNED: bool = false;
    /// Products of two that fit a 16-bit sum: `32767 / (2 * 127 * largest weight)`, as a power of two.
    const SUMS: usize;

    /// Scales and minimums of rows `8 * part ..` of group `g`.
    ///
    /// # Safety
    /// `strip` is a strip of this layout with more than `g` groups; the processor has the features of [`integer_tile`].
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]);
    /// The 8 cells of group `g`, rows `8 * part ..`.
    ///
    /// # Safety
    /// As [`Strip::scales`].
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8];
}

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
/// `record` is group `g` of a panel of `T` tokens; the contracts of [`Strip::scales`] and [`tokens`].
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
        let (scale, min) = L::scales(strip, g, part);
        let cells = L::cells(strip, g, part);
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
            let offset = |field: usize| match L::OFFSET_SHIFT {
                None => _mm256_setzero_si256(),
                Some(0) => word(field),
                Some(_) => _mm256_slli_epi32::<2>(word(field)),
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

/// # Safety
/// 32 bytes are readable at `at`; the caller has AVX2.
#[inline(always)]
unsafe fn load(at: *const u8) -> __m256i {
    // SAFETY: the caller's contract.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

/// 8 halves as floats.
///
/// # Safety
/// 16 bytes are readable at `at`; the caller has F16C.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's contract.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// 8 bytes at `at` as floats.
///
/// # Safety
/// 8 bytes are readable at `at`; the caller has AVX2.
#[inline(always)]
unsafe fn bytes<const SIGNED: bool>(at: *const u8) -> __m256 {
    // SAFETY: the caller's contract.
    unsafe {
        let b = _mm_loadl_epi64(at.cast());
        _mm256_cvtepi32_ps(if SIGNED { _mm256_cvtepi8_epi32(b) } else { _mm256_cvtepu8_epi32(b) })
    }
}

/// Four half cells of nibble pairs, 64 bytes apart, as eight half cells of bytes.
///
/// # Safety
/// 3 x 64 + 32 bytes are readable at `at`; the caller has AVX2.
#[inline(always)]
unsafe fn nibble_cells(at: *const u8) -> [__m256i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        std::array::from_fn(|j| {
            let pair = load(at.add(j % 4 * 64));
            _mm256_and_si256(if j < 4 { pair } else { _mm256_srli_epi16::<4>(pair) }, mask)
        })
    }
}

/// `d * q`
pub(super) enum Q8 {}
/// `d * (q - 8)`
pub(super) enum Q4 {}
/// `d * scale * q - dmin * min`
pub(super) enum Q4K {}
/// `d * scale * (q - 32)`
pub(super) enum Q6K {}
/// `scale * q - min`
pub(super) enum W8 {}
/// `scale * q - min` by halves
pub(super) enum W8Half {}

impl Strip for Q8 {
    const SIGNED: bool = true;
    const SUMS: usize = 1;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: group `g` has 16 halves.
        let d = unsafe { halves(strip.add(PairLayout::Q8.scales(g) + part * 16)) };
        ([d; 2], [d; 2])
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8] {
        let at = strip.wrapping_add(PairLayout::Q8.cells(g) + part * 32);
        // SAFETY: group `g` has 8 cells.
        unsafe { std::array::from_fn(|j| load(at.add(j * 64))) }
    }
}

impl Strip for Q4 {
    const OFFSET_SHIFT: Option<u32> = Some(0);
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: group `g` has 16 halves.
        let d = unsafe { halves(strip.add(PairLayout::Q4.scales(g) + part * 16)) };
        ([d; 2], [d; 2])
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8] {
        // SAFETY: group `g` has 4 cells of nibble pairs.
        unsafe { nibble_cells(strip.add(PairLayout::Q4.cells(g) + part * 32)) }
    }
}

impl Strip for Q4K {
    const MIN: bool = true;
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: block `g / 8` has 2 x 16 halves and 2 x 8 x 16 bytes in front of its cells.
        unsafe {
            let block = strip.add(g / 8 * Q4K_BLOCK);
            let at = block.add(64 + g % 8 * STRIP + part * 8);
            let scale = _mm256_mul_ps(halves(block.add(part * 16)), bytes::<false>(at));
            let min = _mm256_mul_ps(halves(block.add(32 + part * 16)), bytes::<false>(at.add(128)));
            ([scale; 2], [min; 2])
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8] {
        // SAFETY: group `g` has 4 cells of nibble pairs.
        unsafe { nibble_cells(strip.add(g / 8 * Q4K_BLOCK + Q4K_HEADER + g % 8 * Q4_GROUP + part * 32)) }
    }
}

impl Strip for Q6K {
    const HALVES: bool = true;
    const OFFSET_SHIFT: Option<u32> = Some(2);
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: block `g / 8` has 16 halves in front and 16 x 16 bytes before its cells.
        unsafe {
            let block = strip.add(g / 8 * Q6K_BLOCK);
            let d = halves(block.add(part * 16));
            let at = block.add(Q6K_SCALES + g % 8 * 2 * STRIP + part * 8);
            let scale = std::array::from_fn(|h| _mm256_mul_ps(d, bytes::<true>(at.add(h * STRIP))));
            (scale, scale)
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8] {
        let block = g / 8 * Q6K_BLOCK + Q6K_HEADER;
        // SAFETY: group `g` has 4 cells of nibble pairs and 2 of bit pairs.
        unsafe {
            let at = strip.add(block + g % 8 * Q6K_GROUP + part * 32);
            let low = nibble_cells(at);
            let bits = [load(at.add(Q4_GROUP)), load(at.add(Q4_GROUP + 64))];
            let mask = _mm256_set1_epi8(0x30);
            std::array::from_fn(|j| {
                let pair = bits[j % 2];
                let high = match j / 2 {
                    0 => _mm256_slli_epi16::<4>(pair),
                    1 => _mm256_slli_epi16::<2>(pair),
                    2 => pair,
                    _ => _mm256_srli_epi16::<2>(pair),
                };
                _mm256_or_si256(low[j], _mm256_and_si256(high, mask))
            })
        }
    }
}

impl Strip for W8 {
    const MIN: bool = true;
    const SIGNED: bool = true;
    const SUMS: usize = 1;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: group `g` starts with 2 x 16 floats.
        unsafe {
            let at: *const f32 = strip.add(g * W8_GROUP + part * 32).cast();
            ([_mm256_loadu_ps(at); 2], [_mm256_loadu_ps(at.add(16)); 2])
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8] {
        let at = strip.wrapping_add(g * W8_GROUP + 128 + part * 32);
        // SAFETY: group `g` has 8 cells.
        unsafe { std::array::from_fn(|j| load(at.add(j * 64))) }
    }
}

impl Strip for W8Half {
    const HALVES: bool = true;
    const MIN: bool = true;
    const SIGNED: bool = true;
    const SUMS: usize = 1;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: group `g` starts with 4 x 16 floats.
        unsafe {
            let at: *const f32 = strip.add(g * W8_HALF_GROUP + part * 32).cast();
            let eight = |i: usize| _mm256_loadu_ps(at.add(i * 16));
            ([eight(0), eight(1)], [eight(2), eight(3)])
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize, part: usize) -> [__m256i; 8] {
        let at = strip.wrapping_add(g * W8_HALF_GROUP + 256 + part * 32);
        // SAFETY: group `g` has 8 cells.
        unsafe { std::array::from_fn(|j| load(at.add(j * 64))) }
    }
}
