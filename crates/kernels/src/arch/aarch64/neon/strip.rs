//! How strips are read on Arm: 4 of the 16 rows and 4 columns to a register, weights as signed bytes.

use super::float::{Column, F16};
use super::integer::Scales;
use crate::layout::{
    PairLayout, Q4_GROUP, Q4K_BLOCK, Q4K_HEADER, Q6K_BLOCK, Q6K_GROUP, Q6K_HEADER, Q6K_SCALES, STRIP,
    W8_GROUP, W8_HALF_GROUP,
};
use std::arch::aarch64::*;

/// How one layout's strip is read. Only called from within tiles, which have the features.
pub(in crate::arch::aarch64) trait Strip {
    /// Two scales per group, one for each 16 columns.
    const HALVES: bool = false;
    /// Weights have a minimum to subtract.
    const MIN: bool = false;
    /// Weights are stored `8 << shift` above their value.
    const OFFSET_SHIFT: Option<u32> = None;
    type Cells: Cells;

    /// Scales and minimums of group `g`.
    ///
    /// # Safety
    /// `strip` is a strip of this layout with more than `g` groups; the processor has NEON.
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales);
    /// Where the cells of group `g` lie.
    ///
    /// # Safety
    /// As [`Strip::scales`].
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8;
}

/// How a group's 8 cells are stored.
pub(in crate::arch::aarch64) trait Cells {
    /// Cells of bytes, nothing to unpack.
    const ARE_BYTES: bool = false;
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
/// 4 cells of nibble pairs.
pub(in crate::arch::aarch64) enum NibbleCells {}
/// 4 cells of nibble pairs and 2 of bit pairs.
pub(in crate::arch::aarch64) enum SixBitCells {}

impl Cells for ByteCells {
    const ARE_BYTES: bool = true;
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 8 cells of 64 bytes.
        unsafe { vld1q_s8(cells.add(cell * 64 + quad * 16).cast()) }
    }
}

impl Cells for NibbleCells {
    const SUMS: usize = 8;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 4 cells of 64 bytes.
        unsafe {
            let pair = vld1q_u8(cells.add(cell % 4 * 64 + quad * 16));
            vreinterpretq_s8_u8(if cell < 4 { vandq_u8(pair, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(pair) })
        }
    }
}

impl Cells for SixBitCells {
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn load(cells: *const u8, cell: usize, quad: usize) -> int8x16_t {
        // SAFETY: 4 and 2 cells of 64 bytes.
        unsafe {
            let pair = vld1q_u8(cells.add(cell % 4 * 64 + quad * 16));
            let bits = vld1q_u8(cells.add(Q4_GROUP + cell % 2 * 64 + quad * 16));
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

/// `d * q`
pub(in crate::arch::aarch64) enum Q8 {}
/// `d * (q - 8)`
pub(in crate::arch::aarch64) enum Q4 {}
/// `d * scale * q - dmin * min`
pub(in crate::arch::aarch64) enum Q4K {}
/// `d * scale * (q - 32)`
pub(in crate::arch::aarch64) enum Q6K {}
/// `scale * q - min`
pub(in crate::arch::aarch64) enum W8 {}
/// `scale * q - min` by halves
pub(in crate::arch::aarch64) enum W8Half {}

impl Strip for Q8 {
    type Cells = ByteCells;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales) {
        // SAFETY: group `g` has 16 halves.
        let d = unsafe { halves(strip.add(PairLayout::Q8.scales(g))) };
        ([d; 2], [d; 2])
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8 {
        // SAFETY: within the strip.
        unsafe { strip.add(PairLayout::Q8.cells(g)) }
    }
}

impl Strip for Q4 {
    const OFFSET_SHIFT: Option<u32> = Some(0);
    type Cells = NibbleCells;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales) {
        // SAFETY: group `g` has 16 halves.
        let d = unsafe { halves(strip.add(PairLayout::Q4.scales(g))) };
        ([d; 2], [d; 2])
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8 {
        // SAFETY: within the strip.
        unsafe { strip.add(PairLayout::Q4.cells(g)) }
    }
}

impl Strip for Q4K {
    const MIN: bool = true;
    type Cells = NibbleCells;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales) {
        // SAFETY: block `g / 8` has 2 x 16 halves and 2 x 8 x 16 bytes in front of its cells.
        unsafe {
            let block = strip.add(g / 8 * Q4K_BLOCK);
            let at = block.add(64 + g % 8 * STRIP);
            let scale = times_bytes::<false>(halves(block), at);
            let min = times_bytes::<false>(halves(block.add(32)), at.add(128));
            ([scale; 2], [min; 2])
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8 {
        // SAFETY: within the strip.
        unsafe { strip.add(g / 8 * Q4K_BLOCK + Q4K_HEADER + g % 8 * Q4_GROUP) }
    }
}

impl Strip for Q6K {
    const HALVES: bool = true;
    const OFFSET_SHIFT: Option<u32> = Some(2);
    type Cells = SixBitCells;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales) {
        // SAFETY: block `g / 8` starts with 16 halves and, a line further, 16 x 16 bytes.
        unsafe {
            let block = strip.add(g / 8 * Q6K_BLOCK);
            let d = halves(block);
            let at = block.add(Q6K_SCALES + g % 8 * 2 * STRIP);
            let scale = [times_bytes::<true>(d, at), times_bytes::<true>(d, at.add(STRIP))];
            (scale, scale)
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8 {
        // SAFETY: within the strip.
        unsafe { strip.add(g / 8 * Q6K_BLOCK + Q6K_HEADER + g % 8 * Q6K_GROUP) }
    }
}

impl Strip for W8 {
    const MIN: bool = true;
    type Cells = ByteCells;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales) {
        // SAFETY: group `g` starts with 2 x 16 floats.
        unsafe {
            let at = strip.add(g * W8_GROUP);
            ([floats(at); 2], [floats(at.add(64)); 2])
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8 {
        // SAFETY: within the strip.
        unsafe { strip.add(g * W8_GROUP + 2 * 64) }
    }
}

impl Strip for W8Half {
    const HALVES: bool = true;
    const MIN: bool = true;
    type Cells = ByteCells;

    #[inline(always)]
    unsafe fn scales(strip: *const u8, g: usize) -> (Scales, Scales) {
        // SAFETY: group `g` starts with 4 x 16 floats.
        unsafe {
            let at = strip.add(g * W8_HALF_GROUP);
            ([floats(at), floats(at.add(64))], [floats(at.add(128)), floats(at.add(192))])
        }
    }

    #[inline(always)]
    unsafe fn cells(strip: *const u8, g: usize) -> *const u8 {
        // SAFETY: within the strip.
        unsafe { strip.add(g * W8_HALF_GROUP + 4 * 64) }
    }
}
