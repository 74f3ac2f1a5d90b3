//! Integer tiles. [`tile`] walks strips, groups and tokens for all Arm instruction sets; a [`Dot`] multiplies. This one
//! is `smull` and `smlal` into 16-bit sums, as many as fit, then `sadalp` into 32 bits.

use super::strip::{ByteCells, Cells, Strip};
use crate::isa::TileArgs;
use crate::layout::STRIP;
use crate::panel::RECORD;
use std::arch::aarch64::*;
use std::arch::asm;

/// How an instruction set multiplies cells.
pub(in crate::arch::aarch64) trait Dot {
    /// How it wants cells that were unpacked for many tokens.
    type Unpacked: Cells;

    /// Brings 8 cells of bytes into the order of [`Dot::Unpacked`].
    ///
    /// # Safety
    /// The caller has the features.
    unsafe fn arrange(_cells: &mut [[int8x16_t; 4]; 8]) {}

    /// `N` cells from `FIRST` on, rows `4 * quad ..` in `Q` registers, times `U` tokens' columns, added to `start`. `FIRST`
    /// is 0 or 4 and `N` 4 or 8; constants, or the compiler rolls halves that are unpacked differently into one loop. Where
    /// [`Cells::PAIRED`], sums 2 i and 2 i + 1 are rows 0 and 1, and 2 and 3, of tokens 2 i and 2 i + 1, and so is `start`.
    ///
    /// # Safety
    /// `cells` points at a group's cells as `C` reads them and `x` at `U` x 32 activations; `FIRST + N <= 8`;
    /// `quad + Q <= 4`; the caller has the features.
    unsafe fn dot<C: Cells, const U: usize, const Q: usize, const FIRST: usize, const N: usize>(
        cells: *const u8,
        quad: usize,
        x: *const i8,
        start: [int32x4_t; U],
    ) -> [[int32x4_t; Q]; U];
}

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "neon")]
pub(super) unsafe fn integer_tile<L: Strip, const T: usize>(args: &TileArgs) {
    // SAFETY: the same contract.
    unsafe { tile::<Smlal, L, T, 2>(args) }
}

/// Only used from within [`integer_tile`], which has the feature.
enum Smlal {}

impl Dot for Smlal {
    type Unpacked = ByteCells;

    #[inline(always)]
    unsafe fn dot<C: Cells, const U: usize, const Q: usize, const FIRST: usize, const N: usize>(
        cells: *const u8,
        quad: usize,
        x: *const i8,
        start: [int32x4_t; U],
    ) -> [[int32x4_t; Q]; U] {
        let mut dots = start.map(|start| [start; Q]);
        // SAFETY: the same contract.
        let weights: [[int8x16_t; N]; Q] =
            unsafe { std::array::from_fn(|q| std::array::from_fn(|i| C::load(cells, FIRST + i, quad + q))) };
        for (t, dots) in dots.iter_mut().enumerate() {
            // SAFETY: the same contract.
            let x: [int8x16_t; N] =
                unsafe { std::array::from_fn(|i| four_columns(x.add(t * 32 + (FIRST + i) * 4))) };
            for (dot, weights) in dots.iter_mut().zip(&weights) {
                // SAFETY: the same contract.
                unsafe { *dot = vaddq_s32(*dot, products::<C, N>(weights, &x)) };
            }
        }
        dots
    }
}

/// Sums of 4 rows over `N` cells.
///
/// # Safety
/// The weights are in the range of `C`; the caller has NEON.
#[inline(always)]
unsafe fn products<C: Cells, const N: usize>(weights: &[int8x16_t; N], x: &[int8x16_t; N]) -> int32x4_t {
    // SAFETY: register arithmetic; the caller has the feature.
    unsafe {
        let mut sums = [vdupq_n_s32(0); 2];
        for first in (0..N).step_by(C::SUMS) {
            let mut short = multiply(weights[first], x[first]);
            for i in first + 1..N.min(first + C::SUMS) {
                multiply_add(&mut short, weights[i], x[i]);
            }
            sums = match first {
                0 => short.map(|short| vpaddlq_s16(short)),
                _ => [vpadalq_s16(sums[0], short[0]), vpadalq_s16(sums[1], short[1])],
            };
        }
        add_pairs(sums)
    }
}

/// 4 activations, repeated for 4 rows.
///
/// # Safety
/// 4 bytes are readable at `x`; the caller has NEON.
#[inline(always)]
unsafe fn four_columns(x: *const i8) -> int8x16_t {
    // SAFETY: the caller's contract.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned())) }
}

// The intrinsics of what follows are transparent to the compiler, which finds "better" ways: it zero-extends nibbles to
// multiply them in 16 bits, moves the upper halves of weights to registers of their own, and takes pairs apart.

/// Products of rows 0 and 1, then of rows 2 and 3.
///
/// # Safety
/// The caller has NEON.
#[inline(always)]
unsafe fn multiply(weights: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    let (low, high);
    // SAFETY: register arithmetic; the caller has the feature.
    unsafe {
        asm!(
            "smull {low:v}.8h, {weights:v}.8b, {x:v}.8b",
            "smull2 {high:v}.8h, {weights:v}.16b, {x:v}.16b",
            low = out(vreg) low,
            high = out(vreg) high,
            weights = in(vreg) weights,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// # Safety
/// The caller has NEON.
#[inline(always)]
unsafe fn multiply_add(sums: &mut [int16x8_t; 2], weights: int8x16_t, x: int8x16_t) {
    // SAFETY: register arithmetic; the caller has the feature.
    unsafe {
        asm!(
            "smlal {low:v}.8h, {weights:v}.8b, {x:v}.8b",
            "smlal2 {high:v}.8h, {weights:v}.16b, {x:v}.16b",
            low = inout(vreg) sums[0],
            high = inout(vreg) sums[1],
            weights = in(vreg) weights,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
}

/// # Safety
/// The caller has NEON.
#[inline(always)]
unsafe fn add_pairs(sums: [int32x4_t; 2]) -> int32x4_t {
    let four;
    // SAFETY: register arithmetic; the caller has the feature.
    unsafe {
        asm!(
            "addp {four:v}.4s, {low:v}.4s, {high:v}.4s",
            four = lateout(vreg) four,
            low = in(vreg) sums[0],
            high = in(vreg) sums[1],
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    four
}

/// All strips of a call, `Q` registers of 4 rows at once.
///
/// # Safety
/// The contract of [`TileArgs`]; the caller has the features of `D`.
#[inline(always)]
pub(in crate::arch::aarch64) unsafe fn tile<D: Dot, L: Strip, const T: usize, const Q: usize>(
    args: &TileArgs,
) {
    for s in 0..args.strip_count {
        // SAFETY: the same contract; `s` is below `strip_count`.
        unsafe {
            if T <= 4 {
                few_tokens::<D, L, T, Q>(args, s);
            } else {
                many_tokens::<D, L, T, Q>(args, s);
            }
        }
    }
}

/// Up to 4 tokens: weights go from memory straight into products.
///
/// # Safety
/// The contract of [`TileArgs`]; `s < strip_count`; the caller has the features.
#[inline(always)]
unsafe fn few_tokens<D: Dot, L: Strip, const T: usize, const Q: usize>(args: &TileArgs, s: usize) {
    let groups = args.cols / 32;
    // SAFETY: strips, panel records and output rows lie where the contract says.
    unsafe {
        let strip = args.strips.add(s * args.strip_bytes);
        let mut acc = [[vdupq_n_f32(0.0); 4]; T];
        let mut sums = acc;
        for g in 0..groups {
            let record = args.panel.add(g * RECORD * T);
            let scales = L::scales(strip.add(L::BLOCKS.start(g)), g % L::BLOCKS.groups);
            let cells = strip.add(L::BLOCKS.cells(g));
            group::<D, L, L::Cells, T, T, Q>(cells, [&scales; 2], record, 0, &mut acc, &mut sums);
            if ends_superblock::<L>(g) {
                settle::<L::Cells, T, T>(record, 0, &mut acc, &mut sums);
            }
        }
        store(args, s, &acc);
    }
}

/// More tokens, 4 at a time: weights are unpacked into bytes once for all of them.
///
/// # Safety
/// The contract of [`TileArgs`]; `s < strip_count`; the caller has the features.
#[inline(always)]
unsafe fn many_tokens<D: Dot, L: Strip, const T: usize, const Q: usize>(args: &TileArgs, s: usize) {
    let groups = args.cols / 32;
    // SAFETY: strips, panel records and output rows lie where the contract says.
    unsafe {
        let strip = args.strips.add(s * args.strip_bytes);
        let mut acc = [[vdupq_n_f32(0.0); 4]; T];
        let mut sums = acc;
        let mut unpacked = [[vdupq_n_s8(0); 4]; 8];
        for g in 0..groups {
            let record = args.panel.add(g * RECORD * T);
            let scales = L::scales(strip.add(L::BLOCKS.start(g)), g % L::BLOCKS.groups);
            let mut cells = strip.add(L::BLOCKS.cells(g));
            if D::Unpacked::PAIRED || !L::Cells::ARE_BYTES {
                for (cell, quads) in unpacked.iter_mut().enumerate() {
                    for (quad, weights) in quads.iter_mut().enumerate() {
                        *weights = L::Cells::load(cells, cell, quad);
                    }
                }
                D::arrange(&mut unpacked);
                cells = unpacked.as_ptr().cast();
            }
            let pairs;
            let scales = if D::Unpacked::PAIRED {
                let ([scale, scale_odd], [min, min_odd]) = (row_pairs(&scales.0), row_pairs(&scales.1));
                pairs = [(scale, min), (scale_odd, min_odd)];
                [&pairs[0], &pairs[1]]
            } else {
                [&scales; 2]
            };
            let blocks = acc.as_chunks_mut::<4>().0.iter_mut().zip(sums.as_chunks_mut::<4>().0);
            for (block, (acc, sums)) in blocks.enumerate() {
                group::<D, L, D::Unpacked, T, 4, Q>(cells, scales, record, block * 4, acc, sums);
                if ends_superblock::<L>(g) {
                    settle::<D::Unpacked, T, 4>(record, block * 4, acc, sums);
                }
            }
        }
        if D::Unpacked::PAIRED {
            separate(&mut acc);
        }
        store(args, s, &acc);
    }
}

/// Scales and minimums of a group: per half, 4 registers for 16 rows.
pub(in crate::arch::aarch64) type Scales = [[float32x4_t; 4]; 2];

/// Scales of rows 0, 0, 1 and 1 of each four, and of rows 2, 2, 3 and 3.
///
/// # Safety
/// The caller has NEON.
#[inline(always)]
unsafe fn row_pairs(scales: &Scales) -> [Scales; 2] {
    // Loops, because the compiler does not always inline `map` of an array of arrays.
    let mut pairs = [*scales; 2];
    for h in 0..2 {
        for quad in 0..4 {
            let four = scales[h][quad];
            // SAFETY: register arithmetic; the caller has the feature.
            unsafe {
                pairs[0][h][quad] = vzip1q_f32(four, four);
                pairs[1][h][quad] = vzip2q_f32(four, four);
            }
        }
    }
    pairs
}

/// Turns sums of pairs of rows and tokens into sums of four rows of a token.
///
/// # Safety
/// The caller has NEON.
#[inline(always)]
unsafe fn separate<const T: usize>(acc: &mut [[float32x4_t; 4]; T]) {
    for [even, odd] in acc.as_chunks_mut::<2>().0 {
        for (even, odd) in even.iter_mut().zip(odd) {
            // SAFETY: register arithmetic; the caller has the feature.
            unsafe { (*even, *odd) = (vuzp1q_f32(*even, *odd), vuzp2q_f32(*even, *odd)) };
        }
    }
}

/// Whether group `g` is the last of a super-block, whose sums are then scaled.
#[inline(always)]
fn ends_superblock<L: Strip>(g: usize) -> bool {
    L::BLOCKS.has_superblocks() && (g + 1).is_multiple_of(L::BLOCKS.groups)
}

/// Scales the sums of a super-block by its activations' scale, adds them to the accumulators and starts them anew.
///
/// # Safety
/// `record` is one of a panel of `T` tokens; `first + U <= T`; the caller has NEON.
#[inline(always)]
unsafe fn settle<C: Cells, const T: usize, const U: usize>(
    record: *const u8,
    first: usize,
    acc: &mut [[float32x4_t; 4]; U],
    sums: &mut [[float32x4_t; 4]; U],
) {
    // SAFETY: the scales are the first words after `T` x 32 bytes.
    unsafe {
        let at = record.add(T * 32 + first * 4);
        let d = if C::PAIRED { token_pairs::<U>(at) } else { tokens::<U>(at) };
        for t in 0..U {
            for quad in 0..4 {
                acc[t][quad] = vfmaq_f32(acc[t][quad], sums[t][quad], vreinterpretq_f32_s32(d[t]));
                sums[t][quad] = vdupq_n_f32(0.0);
            }
        }
    }
}

/// Adds one group to the accumulators of tokens `first .. first + U`, or where there are super-blocks to the sums of this
/// one, still without the activations' scale. Scales and minimums are those of accumulators with an even and with an odd
/// number, which differ where [`Cells::PAIRED`].
///
/// # Safety
/// `cells` is a group of a strip of `L` as `C` reads it; `record` is the same group of a panel of `T` tokens;
/// `first + U <= T`; the caller has the features of `D`.
#[inline(always)]
unsafe fn group<D: Dot, L: Strip, C: Cells, const T: usize, const U: usize, const Q: usize>(
    cells: *const u8,
    scales: [&(Scales, Scales); 2],
    record: *const u8,
    first: usize,
    acc: &mut [[float32x4_t; 4]; U],
    sums: &mut [[float32x4_t; 4]; U],
) {
    // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words.
    unsafe {
        let x: *const i8 = record.add(first * 32).cast();
        let tail = record.add(T * 32 + first * 4);
        let words = |field: usize| {
            let at = tail.add(field * T * 4);
            if C::PAIRED { token_pairs::<U>(at) } else { tokens::<U>(at) }
        };
        let floats = |field: usize| words(field).map(|x| vreinterpretq_f32_s32(x));
        let magic = vdupq_n_s32(MAGIC.to_bits() as i32);
        // What a group's offset comes to, from words that are -8 times the sums of activations, or of super-blocks -128 times
        // the sum of a group and -32 times that of a half; a shift takes its count as a constant.
        let start = |field: usize| match L::OFFSET {
            0 => [magic; U],
            -16 => words(field).map(|x| vsubq_s32(magic, vshrq_n_s32::<3>(x))),
            4 => words(field).map(|x| vaddq_s32(vshrq_n_s32::<3>(x), magic)),
            8 | 32 => words(field).map(|x| vaddq_s32(x, magic)),
            _ => unreachable!("no layout has this offset"),
        };
        let d = floats(0);
        for quad in (0..4).step_by(Q) {
            if L::HALVES {
                let dots = D::dot::<C, U, Q, 0, 4>(cells, quad, x, start(3));
                accumulate::<L, U, Q, 0>(dots, d, floats(5), quad, scales, acc, sums);
                let dots = D::dot::<C, U, Q, 4, 4>(cells, quad, x, start(4));
                accumulate::<L, U, Q, 1>(dots, d, floats(6), quad, scales, acc, sums);
            } else {
                let dots = D::dot::<C, U, Q, 0, 8>(cells, quad, x, start(2));
                accumulate::<L, U, Q, 0>(dots, d, floats(1), quad, scales, acc, sums);
            }
        }
    }
}

/// 1.5 * 2^23. Sums start from its bits: as floats they then are it plus the sum, as long as that stays within 2^22 of 0,
/// and a subtraction is half the work of a conversion. The largest sum is 32 x 127 x 128, an eighth of
/// that.
const MAGIC: f32 = 12_582_912.0;

/// Adds the sums of half `H` of a group, or of all of it.
///
/// # Safety
/// `quad + Q <= 4`; the caller has NEON.
#[inline(always)]
unsafe fn accumulate<L: Strip, const U: usize, const Q: usize, const H: usize>(
    dots: [[int32x4_t; Q]; U],
    d: [float32x4_t; U],
    d_sum: [float32x4_t; U],
    quad: usize,
    scales: [&(Scales, Scales); 2],
    acc: &mut [[float32x4_t; 4]; U],
    sums: &mut [[float32x4_t; 4]; U],
) {
    for t in 0..U {
        let (scale, min) = (&scales[t % 2].0[H], &scales[t % 2].1[H]);
        for q in 0..Q {
            // SAFETY: register arithmetic; the caller has the feature.
            unsafe {
                let dot = vsubq_f32(vreinterpretq_f32_s32(dots[t][q]), vdupq_n_f32(MAGIC));
                let (acc, sum) = (&mut acc[t][quad + q], &mut sums[t][quad + q]);
                if L::BLOCKS.has_superblocks() {
                    *sum = vfmaq_f32(*sum, dot, scale[quad + q]);
                } else {
                    *acc = vfmaq_f32(*acc, dot, vmulq_f32(scale[quad + q], d[t]));
                }
                if L::MIN {
                    *acc = vfmsq_f32(*acc, min[quad + q], d_sum[t]);
                }
            }
        }
    }
}

/// The words of `U` tokens, each in every lane of a register.
///
/// # Safety
/// `U` words are readable at `at`; the caller has NEON.
#[inline(always)]
unsafe fn tokens<const U: usize>(at: *const u8) -> [int32x4_t; U] {
    // SAFETY: the caller's contract.
    unsafe {
        if U == 4 {
            let four = vreinterpretq_s32_u8(vld1q_u8(at));
            let lanes = [
                vdupq_laneq_s32::<0>(four),
                vdupq_laneq_s32::<1>(four),
                vdupq_laneq_s32::<2>(four),
                vdupq_laneq_s32::<3>(four),
            ];
            std::array::from_fn(|t| lanes[t])
        } else {
            std::array::from_fn(|t| vdupq_n_s32(at.add(t * 4).cast::<i32>().read_unaligned()))
        }
    }
}

/// The words of `U` tokens, those of tokens 2 i and 2 i + 1 twice in registers 2 i and 2 i + 1.
///
/// # Safety
/// `U` words are readable at `at`; the caller has NEON.
#[inline(always)]
unsafe fn token_pairs<const U: usize>(at: *const u8) -> [int32x4_t; U] {
    // SAFETY: the caller's contract; `U` is even where there are pairs.
    unsafe {
        std::array::from_fn(|t| {
            vreinterpretq_s32_s64(vdupq_n_s64(at.add(t / 2 * 8).cast::<i64>().read_unaligned()))
        })
    }
}

/// # Safety
/// The contract of [`TileArgs`]; `s < strip_count`; the caller has NEON.
#[inline(always)]
unsafe fn store<const T: usize>(args: &TileArgs, s: usize, acc: &[[float32x4_t; 4]; T]) {
    for (t, acc) in acc.iter().enumerate() {
        for (quad, &acc) in acc.iter().enumerate() {
            // SAFETY: `out` has `T` rows of `16 * strip_count` floats that nobody else uses.
            unsafe {
                let out = args.out.add(t * args.out_stride + s * STRIP + quad * 4);
                vst1q_f32(out, if args.add { vaddq_f32(vld1q_f32(out), acc) } else { acc });
            }
        }
    }
}
