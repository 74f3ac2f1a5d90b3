//! How strips are read on Arm: 4 of the 16 rows and 4 columns to a register, weights as signed bytes.

use super::float::{Column, F16};
use super::integer::Scales;
use crate::format::{IQ4_VALUES, MXFP4_VALUES};
use crate::layout::{Blocks, CELL, HIGH_BITS, MINS, SCALES, STRIP};
use std::arch::aarch64::*;

/// How one layout's strip is read. Only called from within tiles, which have the features.
pub(in crate::arch::aarch64) trait Strip {
    const BLOCKS: Blocks;
    /// Two scales per group, one for each 16 columns.
    const HALVES: bool = false;
    /// Weights have a minimum to subtract.
    const MIN: bool = false;
    /// How far above their value weights come out of [`Cells::load`].
    const OFFSET: i32 = 0;
    type Cells: Cells;

    /// Scales and minimums of group `i` of a block.
    ///
    /// # Safety
    /// `block` is a block of this layout with more than `i` groups; the processor has NEON.
    unsafe fn scales(block: *const u8, i: usize) -> (Scales, Scales);
}

/// How a group's 8 cells are stored.
pub(in crate::arch::aarch64) trait Cells {
    /// Cells of bytes, nothing to unpack.
    const ARE_BYTES: bool = false;
    /// Registers hold two rows of 8 columns: an even cell rows 0 and 1 of a quad with the columns of the odd one after it,
    /// that one rows 2 and 3.
    const PAIRED: bool = false;
    /// Products that fit a 16-bit sum: `32767 / (127 * largest weight)`, as a power of two, at most 8.
    const SUMS: usize;

    /// Rows `4 * quad ..` of a cell.
    ///
    /// # Safety
    /// `cells` points at a group's cells; `cell < 8`, `quad < 4`; the processor has NEON.
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t;
}

/// 8 cells of bytes.
pub(in crate::arch::aarch64) enum ByteCells {}
/// 8 cells of bytes in pairs of rows.
pub(in crate::arch::aarch64) enum PairedCells {}
/// 4 cells of nibble pairs.
pub(in crate::arch::aarch64) enum NibbleCells {}
/// 4 cells of nibble pairs that stand for the values of IQ4_NL.
pub(in crate::arch::aarch64) enum Iq4Cells {}
/// 4 cells of nibble pairs that stand for the values of MXFP4.
pub(in crate::arch::aarch64) enum Mxfp4Cells {}
/// 4 cells of nibble pairs and 1 of fifth bits.
pub(in crate::arch::aarch64) enum FiveBitCells {}
/// 3 cells of three-bit fields.
pub(in crate::arch::aarch64) enum ThreeBitCells {}
/// 4 cells of nibble pairs and 2 of bit pairs.
pub(in crate::arch::aarch64) enum SixBitCells {}

impl Cells for ByteCells {
    const ARE_BYTES: bool = true;
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 8 cells of 64 bytes.
        unsafe { vld1q_s8(cells.add(cell * CELL + quad * 16).cast()) }
    }
}

impl Cells for PairedCells {
    const ARE_BYTES: bool = true;
    const PAIRED: bool = true;
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: the same contract.
        unsafe { ByteCells::load(cells, cell, quad) }
    }
}

impl Cells for NibbleCells {
    const SUMS: usize = 8;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: the same contract.
        unsafe { vreinterpretq_s8_u8(nibbles(cells, cell, quad)) }
    }
}

impl Cells for Iq4Cells {
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: the same contract; a table has 16 values.
        unsafe { vqtbl1q_s8(vld1q_s8(IQ4_VALUES.as_ptr()), nibbles(cells, cell, quad)) }
    }
}

impl Cells for Mxfp4Cells {
    const SUMS: usize = 8;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: the same contract; a table has 16 values.
        unsafe { vqtbl1q_s8(vld1q_s8(MXFP4_VALUES.as_ptr()), nibbles(cells, cell, quad)) }
    }
}

/// Rows `4 * quad ..` of a cell out of 4 cells of nibble pairs.
///
/// # Safety
/// The contract of [`Cells::load`].
#[inline(always)]
unsafe fn nibbles(cells: *const u8, cell: usize, quad: usize) -> uint8x16_t {
    // SAFETY: 4 cells of 64 bytes.
    unsafe {
        let pair = vld1q_u8(cells.add(cell % 4 * CELL + quad * 16));
        if cell < 4 { vandq_u8(pair, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(pair) }
    }
}

impl Cells for FiveBitCells {
    const SUMS: usize = 8;

    /// 16 below the value of the nibble and the fifth bit: ones above a nibble take 16 away.
    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 4 and 1 cells of 64 bytes.
        unsafe {
            let pair = vld1q_u8(cells.add(cell % 4 * CELL + quad * 16));
            let bits = vld1q_u8(cells.add(HIGH_BITS + quad * 16));
            let below = vtstq_u8(bits, vdupq_n_u8(1 << cell));
            vreinterpretq_s8_u8(if cell < 4 {
                vsliq_n_u8::<4>(pair, below)
            } else {
                vsriq_n_u8::<4>(below, pair)
            })
        }
    }
}

impl Cells for ThreeBitCells {
    const SUMS: usize = 8;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 3 cells of 64 bytes.
        unsafe {
            let fields = |number: usize| vld1q_u8(cells.add(number * CELL + quad * 16));
            let mask = vdupq_n_u8(7);
            vreinterpretq_s8_u8(match cell {
                6 => vandq_u8(vsliq_n_u8::<2>(vshrq_n_u8::<3>(fields(0)), vshrq_n_u8::<3>(fields(1))), mask),
                7 => vandq_u8(vsliq_n_u8::<2>(vshrq_n_u8::<3>(fields(2)), vshrq_n_u8::<4>(fields(1))), mask),
                _ if cell.is_multiple_of(2) => vandq_u8(fields(cell / 2), mask),
                _ => vshrq_n_u8::<5>(fields(cell / 2)),
            })
        }
    }
}

impl Cells for SixBitCells {
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 4 and 2 cells of 64 bytes.
        unsafe {
            let pair = vld1q_u8(cells.add(cell % 4 * CELL + quad * 16));
            let bits = vld1q_u8(cells.add(HIGH_BITS + cell % 2 * CELL + quad * 16));
            // `sli` and `sri` shift one operand over or under what they keep of the other.
            let mask = vdupq_n_u8(0x3f);
            vreinterpretq_s8_u8(match cell / 2 {
                0 => vandq_u8(vsliq_n_u8::<4>(pair, bits), mask),
                1 => vandq_u8(vsliq_n_u8::<4>(pair, vshrq_n_u8::<2>(bits)), mask),
                2 => vandq_u8(vsriq_n_u8::<4>(bits, pair), mask),
                _ => vsriq_n_u8::<4>(vshrq_n_u8::<2>(bits), pair),
            })
        }
    }
}

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes are readable at `at`; the caller has NEON.
#[inline(always)]
unsafe fn halves(at: *const u8) -> [float32x4_t; 4] {
    // SAFETY: the caller's contract.
    unsafe { F16::load::<4>(at) }
}

/// 16 floats.
///
/// # Safety
/// 64 bytes are readable at `at`; the caller has NEON.
#[inline(always)]
unsafe fn floats(at: *const u8) -> [float32x4_t; 4] {
    // SAFETY: the caller's contract.
    unsafe { std::array::from_fn(|quad| vreinterpretq_f32_u8(vld1q_u8(at.add(quad * 16)))) }
}

/// `d` times 16 bytes that are signed or not.
///
/// # Safety
/// 16 bytes are readable at `at`; the caller has NEON.
#[inline(always)]
unsafe fn times_bytes<const SIGNED: bool>(d: [float32x4_t; 4], at: *const u8) -> [float32x4_t; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        let b = vld1q_u8(at);
        let (low, high) = if SIGNED {
            let b = vreinterpretq_s8_u8(b);
            (vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b))
        } else {
            (vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(b))), vreinterpretq_s16_u16(vmovl_high_u8(b)))
        };
        let words = [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ];
        std::array::from_fn(|quad| vmulq_f32(d[quad], vcvtq_f32_s32(words[quad])))
    }
}

/// `d` of `Q8`, `Q4` and `Iq4Nl`.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn d_of_pair(block: *const u8, i: usize) -> (Scales, Scales) {
    // SAFETY: the block starts with 2 x 16 halves.
    let d = unsafe { halves(block.add(i * 2 * STRIP)) };
    ([d; 2], [d; 2])
}

/// E8M0 exponents of `Mxfp4` as half of the powers of two they stand for.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn powers_of_two(block: *const u8, i: usize) -> (Scales, Scales) {
    // SAFETY: the block starts with 4 x 16 bytes.
    unsafe {
        let e = vld1q_u8(block.add(i * STRIP));
        // The upper halves of floats: an exponent of e - 1 where that is above 0; below, the bits of the two subnormal
        // powers, which are then larger.
        let upper = |normal: uint16x8_t, subnormal: uint16x8_t| {
            let normal = vsubq_s16(vreinterpretq_s16_u16(normal), vdupq_n_s16(1 << 7));
            let subnormal = vaddq_s16(vreinterpretq_s16_u16(subnormal), vdupq_n_s16(1 << 5));
            vreinterpretq_u16_s16(vmaxq_s16(normal, subnormal))
        };
        let low = upper(vshll_n_u8::<7>(vget_low_u8(e)), vshll_n_u8::<5>(vget_low_u8(e)));
        let high = upper(vshll_high_n_u8::<7>(e), vshll_high_n_u8::<5>(e));
        let zeros = vdupq_n_u16(0);
        let words = [
            vzip1q_u16(zeros, low),
            vzip2q_u16(zeros, low),
            vzip1q_u16(zeros, high),
            vzip2q_u16(zeros, high),
        ];
        let d = words.map(|word| vreinterpretq_f32_u16(word));
        ([d; 2], [d; 2])
    }
}

/// `d * scale` and `dmin * min` of `Q4K` and `Q5K`.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn scales_and_mins(block: *const u8, i: usize) -> (Scales, Scales) {
    // SAFETY: the block has 2 x 16 halves and 2 x 8 x 16 bytes in front of its cells.
    unsafe {
        let scale = times_bytes::<false>(halves(block), block.add(SCALES + i * STRIP));
        let min = times_bytes::<false>(halves(block.add(32)), block.add(MINS + i * STRIP));
        ([scale; 2], [min; 2])
    }
}

/// `d * scale` of `Iq4Xs`.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn signed_scales(block: *const u8, i: usize) -> (Scales, Scales) {
    // SAFETY: the block starts with 16 halves and, a line further, 8 x 16 bytes.
    let scale = unsafe { times_bytes::<true>(halves(block), block.add(SCALES + i * STRIP)) };
    ([scale; 2], [scale; 2])
}

/// `d * scale` of `Q3K` and `Q6K`.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn scales_by_halves(block: *const u8, i: usize) -> (Scales, Scales) {
    // SAFETY: the block starts with 16 halves and, a line further, 16 x 16 bytes.
    unsafe {
        let d = halves(block);
        let at = block.add(SCALES + i * 2 * STRIP);
        let scale = [times_bytes::<true>(d, at), times_bytes::<true>(d, at.add(STRIP))];
        (scale, scale)
    }
}

/// Scale and minimum of `W8`.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn scale_and_min(block: *const u8, _: usize) -> (Scales, Scales) {
    // SAFETY: the block starts with 2 x 16 floats.
    unsafe { ([floats(block); 2], [floats(block.add(64)); 2]) }
}

/// Scales and minimums of `W8Half`.
///
/// # Safety
/// The contract of [`Strip::scales`].
#[inline(always)]
unsafe fn scale_and_min_by_halves(block: *const u8, _: usize) -> (Scales, Scales) {
    // SAFETY: the block starts with 4 x 16 floats.
    unsafe { ([0, 64].map(|at| floats(block.add(at))), [128, 192].map(|at| floats(block.add(at)))) }
}

/// A strip is where its groups lie, a reader of their scales, how its cells are stored, and constants of [`Strip`].
macro_rules! strip {
    (
        $(#[$doc:meta])*
        $name:ident = $blocks:ident, $scales:ident, $cells:ident;
        $(const $constant:ident: $type:ty = $value:expr;)*
    ) => {
        $(#[$doc])*
        pub(in crate::arch::aarch64) enum $name {}

        impl Strip for $name {
            const BLOCKS: Blocks = Blocks::$blocks;
            $(const $constant: $type = $value;)*
            type Cells = $cells;

            #[inline(always)]
            unsafe fn scales(block: *const u8, i: usize) -> (Scales, Scales) {
                // SAFETY: the same contract.
                unsafe { $scales(block, i) }
            }
        }
    };
}

strip! {
    /// `d * q`
    Q8 = Q8, d_of_pair, ByteCells;
}
strip! {
    /// `d * (q - 8)`
    Q4 = Q4, d_of_pair, NibbleCells;
    const OFFSET: i32 = 8;
}
strip! {
    /// `d * IQ4_VALUES[q]`
    Iq4Nl = Q4, d_of_pair, Iq4Cells;
}
strip! {
    /// `2^(e - 128) * MXFP4_VALUES[q]`
    Mxfp4 = MXFP4, powers_of_two, Mxfp4Cells;
}
strip! {
    /// `d * scale * q - dmin * min`
    Q4K = Q4K, scales_and_mins, NibbleCells;
    const MIN: bool = true;
}
strip! {
    /// `d * scale * q - dmin * min`
    Q5K = Q5K, scales_and_mins, FiveBitCells;
    const MIN: bool = true;
    const OFFSET: i32 = -16;
}
strip! {
    /// `d * scale * (q - 4)`
    Q3K = Q3K, scales_by_halves, ThreeBitCells;
    const HALVES: bool = true;
    const OFFSET: i32 = 4;
}
strip! {
    /// `d * scale * (q - 32)`
    Q6K = Q6K, scales_by_halves, SixBitCells;
    const HALVES: bool = true;
    const OFFSET: i32 = 32;
}
strip! {
    /// `d * scale * IQ4_VALUES[q]`
    Iq4Xs = IQ4_XS, signed_scales, Iq4Cells;
}
strip! {
    /// `scale * q - min`
    W8 = W8, scale_and_min, ByteCells;
    const MIN: bool = true;
}
strip! {
    /// `scale * q - min` by halves
    W8Half = W8_HALF, scale_and_min_by_halves, ByteCells;
    const HALVES: bool = true;
    const MIN: bool = true;
}
