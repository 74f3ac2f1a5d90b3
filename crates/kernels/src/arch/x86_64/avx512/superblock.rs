//! Tiles of super-blocks: the weights' integer scales meet the sums of each group, their common scale and that of the
//! activations only the sum of all eight. Minimums are a sum of integers of their own: `vpdpwssd` of two groups'
//! minimums and sums of activations at once.

use super::integer::{GROUPS_IN_TURN as GROUPS, dots, in_turns, prefetch, word};
use super::strip::{Strip, halves};
use crate::format::{GROUP, SUPERBLOCK};
use crate::isa::TileArgs;
use crate::layout::{MINS, SCALES, STRIP};
use crate::panel::RECORD;
use std::arch::x86_64::*;

const _: () = assert!(GROUPS * GROUP == SUPERBLOCK);

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn superblock_tile<L: Strip, const T: usize>(args: &TileArgs) {
    // SAFETY: the same contract; a turn is a super-block.
    unsafe {
        in_turns(args, |strip, groups, acc: &mut [__m512; T]| {
            let block = strip.add(L::BLOCKS.start(groups.start));
            let records = args.panel.add(groups.start * RECORD * T);
            let mut sums = [_mm512_setzero_ps(); T];
            for i in 0..GROUPS {
                group::<L, T>(block, i, records.add(i * RECORD * T), &mut sums);
            }
            settle::<L, T>(block, records, &sums, acc);
        });
    }
}

/// Adds the products of group `i`, times its integer scales.
///
/// # Safety
/// `block` is a super-block of `L` and `record` the same group of a panel of `T` tokens; `i` is below 8; the caller has the
/// features.
#[inline(always)]
unsafe fn group<L: Strip, const T: usize>(
    block: *const u8,
    i: usize,
    record: *const u8,
    sums: &mut [__m512; T],
) {
    let halves = if L::HALVES { 2 } else { 1 };
    prefetch::<L, T>(block, i);
    // SAFETY: a super-block has 16 bytes of scales per half or group in front of its cells.
    unsafe {
        let cells = L::cells(block.add(L::BLOCKS.cells(i)));
        for h in 0..halves {
            let bytes = _mm_loadu_si128(block.add(SCALES + (i * halves + h) * STRIP).cast());
            let scale = if L::MIN { _mm512_cvtepu8_epi32(bytes) } else { _mm512_cvtepi8_epi32(bytes) };
            let scale = _mm512_cvtepi32_ps(scale);
            // Words hold -128 times the sum of the activations and -32 times that of each half.
            let start = |t: usize| match L::OFFSET {
                0 => _mm512_setzero_si512(),
                4 => _mm512_srai_epi32::<3>(word::<T>(record, 3 + h, t)),
                32 => word::<T>(record, 3 + h, t),
                128 => word::<T>(record, 2, t),
                _ => unreachable!("no layout of super-blocks has this offset"),
            };
            let dots = dots::<L, T>(&cells, h, record, start);
            for t in 0..T {
                sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, sums[t]);
            }
        }
    }
}

/// Adds a super-block's sums, scaled and less its minimums.
///
/// # Safety
/// `block` is a super-block of `L`, `records` the same of a panel of `T` tokens; the caller has the features.
#[inline(always)]
unsafe fn settle<L: Strip, const T: usize>(
    block: *const u8,
    records: *const u8,
    sums: &[__m512; T],
    acc: &mut [__m512; T],
) {
    // SAFETY: a super-block starts with 16 halves, and 16 more and 8 x 16 bytes of minimums where there are such.
    unsafe {
        let scale = halves(block);
        for t in 0..T {
            let mut sum = _mm512_mul_ps(sums[t], scale);
            if L::MIN {
                let mut below = _mm512_setzero_si512();
                for i in (0..GROUPS).step_by(2) {
                    let min = |i: usize| _mm_loadu_si128(block.add(MINS + i * STRIP).cast());
                    let (a, b) = (min(i), min(i + 1));
                    let pairs = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
                    let pairs = _mm512_cvtepu8_epi16(pairs);
                    below = _mm512_dpwssd_epi32(below, pairs, word::<T>(records.add(i * RECORD * T), 6, t));
                }
                sum = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(below), halves(block.add(2 * STRIP)), sum);
            }
            acc[t] = _mm512_fmadd_ps(sum, _mm512_castsi512_ps(word::<T>(records, 0, t)), acc[t]);
        }
    }
}
