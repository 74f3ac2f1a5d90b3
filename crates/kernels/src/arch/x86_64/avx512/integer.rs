//! Integer tiles: 8 `vpdpbusd` per group of 32 columns, strip and token, then one conversion and one or two `vfmadd`.

use super::strip::{Scaled, Strip};
use crate::arch::x86_64::fetch_ahead;
use crate::format::GROUP;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use crate::panel::RECORD;
use std::arch::x86_64::*;
use std::ops::Range;

/// How far ahead of their use weights are fetched for panels of four tokens and more, in bytes.
const PREFETCH_BYTES: usize = 4096;

/// Groups of one strip that are read before its twin's, 2 KiB and more in one piece: those of a super-block.
pub(super) const GROUPS_IN_TURN: usize = 8;

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn integer_tile<L: Scaled, const T: usize>(args: &TileArgs) {
    // SAFETY: the same contract; a turn has groups of the strip.
    unsafe {
        in_turns(args, |strip, groups, acc: &mut [__m512; T]| {
            for g in groups {
                group::<L, T>(strip, g, args.panel.add(g * RECORD * T), acc);
            }
        });
    }
}

/// Calls `turn` for up to [`GROUPS_IN_TURN`] groups after the other of each strip, with the sums to add them to, and writes
/// or adds what a strip comes to.
///
/// Strips go one by one, so that a decode reads memory as one stream, or with their twins, as two. One or two tokens fetch
/// nothing ahead by hand: that would cost a quarter of their speed (`docs/design/0001-packed-strips.md`).
///
/// # Safety
/// The contract of [`TileArgs`]; the caller has the features.
#[inline(always)]
pub(super) unsafe fn in_turns<const T: usize>(
    args: &TileArgs,
    turn: impl Fn(*const u8, Range<usize>, &mut [__m512; T]),
) {
    // SAFETY: the contract gives `strip_count` strips, twins where they are, and outputs for each.
    unsafe {
        for s in 0..args.strip_count {
            let at =
                |strips: *const u8, out: *mut f32| (strips.add(s * args.strip_bytes), out.add(s * STRIP));
            let own = at(args.strips, args.out);
            match args.twin {
                Some(twin) if T == 1 => strips(args, [own, at(twin.strips, twin.out)], &turn),
                _ => strips(args, [own], &turn),
            }
        }
    }
}

/// Strips, each with where its rows of the output begin.
///
/// # Safety
/// As [`in_turns`].
#[inline(always)]
unsafe fn strips<const T: usize, const S: usize>(
    args: &TileArgs,
    places: [(*const u8, *mut f32); S],
    turn: &impl Fn(*const u8, Range<usize>, &mut [__m512; T]),
) {
    let groups = args.cols / GROUP;
    // SAFETY: the same contract.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); T]; S];
        for first in (0..groups).step_by(GROUPS_IN_TURN) {
            for s in 0..S {
                turn(places[s].0, first..groups.min(first + GROUPS_IN_TURN), &mut acc[s]);
            }
        }
        for s in 0..S {
            store(args, places[s].1, &acc[s]);
        }
    }
}

/// Writes or adds what a strip comes to.
///
/// # Safety
/// The contract of [`TileArgs`]; `out` is where the strip's rows begin in the first row of outputs; the caller has the
/// features.
#[inline(always)]
unsafe fn store<const T: usize>(args: &TileArgs, out: *mut f32, acc: &[__m512; T]) {
    for (t, &acc) in acc.iter().enumerate() {
        // SAFETY: the contract gives `T` rows of 16 floats that nobody else uses.
        unsafe {
            let out = out.add(t * args.out_stride);
            _mm512_storeu_ps(out, if args.add { _mm512_add_ps(_mm512_loadu_ps(out), acc) } else { acc });
        }
    }
}

/// # Safety
/// `strip` is a strip of `L` with more than `g` groups and `record` group `g` of a panel of `T` tokens; the caller has the
/// features.
#[inline(always)]
unsafe fn group<L: Scaled, const T: usize>(
    strip: *const u8,
    g: usize,
    record: *const u8,
    acc: &mut [__m512; T],
) {
    // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words.
    unsafe {
        let (block, i) = (strip.add(L::BLOCKS.start(g)), g % L::BLOCKS.groups);
        prefetch::<L, T>(block, i);
        let (scale, min) = L::scales(block, i);
        let cells = L::cells(strip.add(L::BLOCKS.cells(g)));
        let float = |field: usize, t: usize| _mm512_castsi512_ps(word::<T>(record, field, t));
        let halves = if L::HALVES { 2 } else { 1 };
        for h in 0..halves {
            // The word is -8 times the sum of the activations; a shift takes its count as a constant.
            let start = |t: usize| {
                let word = word::<T>(record, if L::HALVES { 3 + h } else { 2 }, t);
                match L::OFFSET {
                    0 => _mm512_setzero_si512(),
                    8 => word,
                    16 => _mm512_slli_epi32::<1>(word),
                    128 => _mm512_slli_epi32::<4>(word),
                    _ => unreachable!("no layout of groups has this offset"),
                }
            };
            let dots = dots::<L, T>(&cells, h, record, start);
            for t in 0..T {
                let scale = _mm512_mul_ps(scale[h], float(0, t));
                acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, acc[t]);
                if L::MIN {
                    acc[t] = _mm512_fnmadd_ps(min[h], float(if L::HALVES { 5 + h } else { 1 }, t), acc[t]);
                }
            }
        }
    }
}

/// The products of a group, or of half `h` of it where [`Strip::HALVES`], with `T` tokens, added to what `start` gives.
///
/// # Safety
/// `record` is one of a panel of `T` tokens; the caller has the features.
#[inline(always)]
pub(super) unsafe fn dots<L: Strip, const T: usize>(
    cells: &[__m512i; 8],
    h: usize,
    record: *const u8,
    start: impl Fn(usize) -> __m512i,
) -> [__m512i; T] {
    let mut dots: [__m512i; T] = std::array::from_fn(start);
    // SAFETY: a record starts with `T` x 32 bytes.
    unsafe {
        let x = |t: usize, cell: usize| {
            _mm512_set1_epi32(record.add(t * GROUP + cell * 4).cast::<i32>().read_unaligned())
        };
        if L::HALVES {
            for cell in 4 * h..4 * h + 4 {
                for t in 0..T {
                    dots[t] = _mm512_dpbusd_epi32(dots[t], cells[cell], x(t, cell));
                }
            }
        } else if T <= 2 {
            // Two chains, since few tokens leave the unit waiting for one.
            let mut others = [_mm512_setzero_si512(); T];
            for cell in 0..4 {
                for t in 0..T {
                    dots[t] = _mm512_dpbusd_epi32(dots[t], cells[cell], x(t, cell));
                    others[t] = _mm512_dpbusd_epi32(others[t], cells[cell + 4], x(t, cell + 4));
                }
            }
            for t in 0..T {
                dots[t] = _mm512_add_epi32(dots[t], others[t]);
            }
        } else {
            for (cell, &weights) in cells.iter().enumerate() {
                for t in 0..T {
                    dots[t] = _mm512_dpbusd_epi32(dots[t], weights, x(t, cell));
                }
            }
        }
    }
    dots
}

/// A word of token `t` in all lanes.
///
/// # Safety
/// `record` is one of a panel of `T` tokens, more than `t`; the caller has the features.
#[inline(always)]
pub(super) unsafe fn word<const T: usize>(record: *const u8, field: usize, t: usize) -> __m512i {
    // SAFETY: a record holds `T` x 32 bytes and then `T` words for each field.
    unsafe {
        let at = record.add(T * GROUP + (field * T + t) * 4);
        _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
    }
}

/// Fetches weights ahead where tokens are many.
#[inline(always)]
pub(super) fn prefetch<L: Strip, const T: usize>(block: *const u8, i: usize) {
    if T >= 4 {
        fetch_ahead(L::BLOCKS, block, i, PREFETCH_BYTES);
    }
}
