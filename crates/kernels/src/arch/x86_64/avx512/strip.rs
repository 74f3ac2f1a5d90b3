//! How strips are read: a cell of 16 rows x 4 columns to a register, weights as unsigned bytes.

use crate::arch::x86_64::raised;
use crate::format::{IQ4_VALUES, MXFP4_VALUES};
use crate::layout::{Blocks, CELL, HIGH_BITS, STRIP};
use std::arch::x86_64::*;

/// How one layout's strip is read. The functions are only called from within tiles, which have the features.
pub(super) trait Strip {
    const BLOCKS: Blocks;
    /// Two scales per group, one for each 16 columns.
    const HALVES: bool = false;
    /// Weights have a minimum to subtract.
    const MIN: bool = false;
    /// How far above their value weights come out of [`Strip::cells`].
    const OFFSET: i32 = 0;

    /// The 8 cells of a group, weights as unsigned bytes.
    ///
    /// # Safety
    /// `at` is where a group's cells lie in a strip of this layout; the processor has the features of the tiles.
    unsafe fn cells(at: *const u8) -> [__m512i; 8];
}

/// A layout whose groups have floats for scales.
pub(super) trait Scaled: Strip {
    /// The scales of group `i` of a block, per half where [`Strip::HALVES`], and what to subtract where [`Strip::MIN`].
    ///
    /// # Safety
    /// `block` is a block of this layout with more than `i` groups; the processor has the features of the tiles.
    unsafe fn scales(block: *const u8, i: usize) -> ([__m512; 2], [__m512; 2]);
}

/// The values of IQ4_NL and IQ4_XS, 128 above.
static IQ4_RAISED: [u8; 16] = raised(IQ4_VALUES, 128);
/// The values of MXFP4, 16 above.
static MXFP4_RAISED: [u8; 16] = raised(MXFP4_VALUES, 16);

/// Reads 64 bytes.
///
/// # Safety
/// 64 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: the caller's contract.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
pub(super) unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// `d` of `Q8`, `Q4` and `Iq4Nl`.
///
/// # Safety
/// The contract of [`Scaled::scales`].
#[inline(always)]
unsafe fn d_of_pair(block: *const u8, i: usize) -> ([__m512; 2], [__m512; 2]) {
    // SAFETY: the block starts with 2 x 16 halves.
    let d = unsafe { halves(block.add(i * 2 * STRIP)) };
    ([d; 2], [d; 2])
}

/// E8M0 exponents of `Mxfp4` as half of the powers of two they stand for.
///
/// # Safety
/// The contract of [`Scaled::scales`].
#[inline(always)]
unsafe fn powers_of_two(block: *const u8, i: usize) -> ([__m512; 2], [__m512; 2]) {
    // SAFETY: the block starts with 4 x 16 bytes.
    unsafe {
        let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.add(i * STRIP).cast()));
        let one = _mm512_set1_epi32(1);
        // An exponent of e - 1 where that is above 0; below, the bits of the two subnormal powers, which are then larger.
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, one));
        let subnormal = _mm512_slli_epi32::<21>(_mm512_add_epi32(e, one));
        let d = _mm512_castsi512_ps(_mm512_max_epi32(normal, subnormal));
        ([d; 2], [d; 2])
    }
}

/// Eight cells of bytes as they are.
///
/// # Safety
/// 512 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn byte_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe { std::array::from_fn(|j| load(at.add(j * CELL))) }
}

/// Four cells of nibble pairs as eight cells of bytes.
///
/// # Safety
/// 256 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn nibble_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        std::array::from_fn(|j| {
            let pair = load(at.add(j % 4 * CELL));
            _mm512_and_si512(if j < 4 { pair } else { _mm512_srli_epi16::<4>(pair) }, mask)
        })
    }
}

/// Cells of nibble pairs as what `table` has for each nibble.
///
/// # Safety
/// 256 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn lookup_cells(at: *const u8, table: &[u8; 16]) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        nibble_cells(at).map(|nibbles| _mm512_shuffle_epi8(table, nibbles))
    }
}

/// Four cells of nibble pairs and one of fifth bits, clear where a weight has it.
///
/// # Safety
/// 320 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn five_bit_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let low = nibble_cells(at);
        let bits = load(at.add(HIGH_BITS));
        let mask = _mm512_set1_epi8(0x10);
        std::array::from_fn(|j| {
            let high = match j {
                0 => _mm512_slli_epi16::<4>(bits),
                1 => _mm512_slli_epi16::<3>(bits),
                2 => _mm512_slli_epi16::<2>(bits),
                3 => _mm512_slli_epi16::<1>(bits),
                4 => bits,
                5 => _mm512_srli_epi16::<1>(bits),
                6 => _mm512_srli_epi16::<2>(bits),
                _ => _mm512_srli_epi16::<3>(bits),
            };
            // low | (!high & mask) in one instruction: 0xF2 is a | (!b & c).
            _mm512_ternarylogic_epi32::<0xF2>(low[j], high, mask)
        })
    }
}

/// Three cells of three-bit fields.
///
/// # Safety
/// 192 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn three_bit_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let [a, b, c]: [__m512i; 3] = std::array::from_fn(|i| load(at.add(i * CELL)));
        let (two, three) = (_mm512_set1_epi8(3), _mm512_set1_epi8(7));
        let low = |fields: __m512i| _mm512_and_si512(fields, three);
        let high = |fields: __m512i| _mm512_and_si512(_mm512_srli_epi16::<5>(fields), three);
        // Two bits of the first and the third of the second: 0xCA takes `b` where `a` has a bit and `c` where not.
        let both = |first: __m512i, second: __m512i| {
            let first = _mm512_srli_epi16::<3>(first);
            _mm512_and_si512(_mm512_ternarylogic_epi32::<0xCA>(two, first, second), three)
        };
        let (six, seven) = (both(a, _mm512_srli_epi16::<1>(b)), both(c, _mm512_srli_epi16::<2>(b)));
        [low(a), high(a), low(b), high(b), low(c), high(c), six, seven]
    }
}

/// Four cells of nibble pairs and two of bit pairs.
///
/// # Safety
/// 384 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn six_bit_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let low = nibble_cells(at);
        let bits = [load(at.add(HIGH_BITS)), load(at.add(HIGH_BITS + CELL))];
        let mask = _mm512_set1_epi8(0x30);
        std::array::from_fn(|j| {
            let pair = bits[j % 2];
            let high = match j / 2 {
                0 => _mm512_slli_epi16::<4>(pair),
                1 => _mm512_slli_epi16::<2>(pair),
                2 => pair,
                _ => _mm512_srli_epi16::<2>(pair),
            };
            // low | (high & mask) in one instruction: 0xF8 is a | (b & c).
            _mm512_ternarylogic_epi32::<0xF8>(low[j], high, mask)
        })
    }
}

/// The cells of IQ4_NL and IQ4_XS.
///
/// # Safety
/// 256 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn iq4_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe { lookup_cells(at, &IQ4_RAISED) }
}

/// The cells of MXFP4.
///
/// # Safety
/// 256 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn mxfp4_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe { lookup_cells(at, &MXFP4_RAISED) }
}

/// Scale and minimum of `W8`.
///
/// # Safety
/// The contract of [`Scaled::scales`].
#[inline(always)]
unsafe fn floats(block: *const u8, _: usize) -> ([__m512; 2], [__m512; 2]) {
    // SAFETY: the block starts with 2 x 16 floats.
    let [scale, min] = unsafe { [_mm512_loadu_ps(block.cast()), _mm512_loadu_ps(block.add(64).cast())] };
    ([scale; 2], [min; 2])
}

/// Scales and minimums of `W8Half`.
///
/// # Safety
/// The contract of [`Scaled::scales`].
#[inline(always)]
unsafe fn floats_by_halves(block: *const u8, _: usize) -> ([__m512; 2], [__m512; 2]) {
    // SAFETY: the block starts with 4 x 16 floats.
    let four = |i: usize| unsafe { _mm512_loadu_ps(block.add(i * 64).cast()) };
    ([four(0), four(1)], [four(2), four(3)])
}

/// A strip is where its groups lie, a reader of their cells and, where scales are floats, one of these, and constants of
/// [`Strip`].
macro_rules! strip {
    (
        $(#[$doc:meta])*
        $name:ident = $blocks:ident, $cells:ident $(, $scales:ident)?;
        $(const $constant:ident: $type:ty = $value:expr;)*
    ) => {
        $(#[$doc])*
        pub(super) enum $name {}

        impl Strip for $name {
            const BLOCKS: Blocks = Blocks::$blocks;
            $(const $constant: $type = $value;)*

            #[inline(always)]
            unsafe fn cells(at: *const u8) -> [__m512i; 8] {
                // SAFETY: the same contract.
                unsafe { $cells(at) }
            }
        }

        $(
            impl Scaled for $name {
                #[inline(always)]
                unsafe fn scales(block: *const u8, i: usize) -> ([__m512; 2], [__m512; 2]) {
                    // SAFETY: the same contract.
                    unsafe { $scales(block, i) }
                }
            }
        )?
    };
}

strip! {
    /// `d * q`
    Q8 = Q8, byte_cells, d_of_pair;
    const OFFSET: i32 = 128;
}
strip! {
    /// `d * (q - 8)`
    Q4 = Q4, nibble_cells, d_of_pair;
    const OFFSET: i32 = 8;
}
strip! {
    /// `d * IQ4_VALUES[q]`
    Iq4Nl = Q4, iq4_cells, d_of_pair;
    const OFFSET: i32 = 128;
}
strip! {
    /// `2^(e - 128) * MXFP4_VALUES[q]`
    Mxfp4 = MXFP4, mxfp4_cells, powers_of_two;
    const OFFSET: i32 = 16;
}
strip! {
    /// `d * scale * q - dmin * min`
    Q4K = Q4K, nibble_cells;
    const MIN: bool = true;
}
strip! {
    /// `d * scale * q - dmin * min`
    Q5K = Q5K, five_bit_cells;
    const MIN: bool = true;
}
strip! {
    /// `d * scale * (q - 4)`
    Q3K = Q3K, three_bit_cells;
    const HALVES: bool = true;
    const OFFSET: i32 = 4;
}
strip! {
    /// `d * scale * (q - 32)`
    Q6K = Q6K, six_bit_cells;
    const HALVES: bool = true;
    const OFFSET: i32 = 32;
}
strip! {
    /// `d * scale * IQ4_VALUES[q]`
    Iq4Xs = IQ4_XS, iq4_cells;
    const OFFSET: i32 = 128;
}
strip! {
    /// `scale * q - min`
    W8 = W8, byte_cells, floats;
    const MIN: bool = true;
}
strip! {
    /// `scale * q - min` by halves
    W8Half = W8_HALF, byte_cells, floats_by_halves;
    const HALVES: bool = true;
    const MIN: bool = true;
}
