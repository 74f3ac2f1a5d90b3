//! Integer tiles: 8 `vpdpbusd` per group of 32 columns, strip and token, then one conversion and one or two `vfmadd`.

use super::strip::{Scaled, Strip};
use crate::format::GROUP;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use crate::panel::RECORD;
use std::arch::x86_64::*;

/// How far ahead of their use weights are fetched for panels of four tokens and more, in bytes.
const PREFETCH_BYTES: usize = 4096;

/// Groups of one strip that are read before its twin's: 2 KiB and more in one piece.
const GROUPS_IN_TURN: usize = 8;

/// Strips go one by one, so that a decode reads memory as one stream, or with their twins, as two. One or two tokens fetch
/// nothing ahead by hand, which costs a quarter of their speed (`docs/design/0001-packed-strips.md`).
///
/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn integer_tile<L: Scaled, const T: usize>(args: &TileArgs) {
    for s in 0..args.strip_count {
        // SAFETY: the same contract.
        unsafe {
            match place(args, s) {
                (own, Some(twin)) if T == 1 => strips::<L, T, 2>(args, [own, twin]),
                (own, _) => strips::<L, T, 1>(args, [own]),
            }
        }
    }
}

/// Where a strip lies and where its rows of the output begin.
pub(super) type Place = (*const u8, *mut f32);

/// The place of strip `s` and that of its twin.
///
/// # Safety
/// The contract of [`TileArgs`]; `s < strip_count`.
#[inline(always)]
pub(super) unsafe fn place(args: &TileArgs, s: usize) -> (Place, Option<Place>) {
    // SAFETY: the contract gives `strip_count` strips and as many rows of outputs.
    let at =
        |strips: *const u8, out: *mut f32| unsafe { (strips.add(s * args.strip_bytes), out.add(s * STRIP)) };
    (at(args.strips, args.out), args.twin.map(|twin| at(twin.strips, twin.out)))
}

/// # Safety
/// The contract of [`TileArgs`]; `places` are of its strips; the caller has the features.
#[inline(always)]
unsafe fn strips<L: Scaled, const T: usize, const S: usize>(args: &TileArgs, places: [Place; S]) {
    let groups = args.cols / GROUP;
    // SAFETY: strips, panel records and output rows lie where the contract says.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); T]; S];
        for first in (0..groups).step_by(GROUPS_IN_TURN) {
            for s in 0..S {
                for g in first..groups.min(first + GROUPS_IN_TURN) {
                    group::<L, T>(places[s].0, g, args.panel.add(g * RECORD * T), &mut acc[s]);
                }
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
pub(super) unsafe fn store<const T: usize>(args: &TileArgs, out: *mut f32, acc: &[__m512; T]) {
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

/// Fetches group `i`'s share of the lines of a block that lies ahead of this one.
#[inline(always)]
pub(super) fn prefetch<L: Strip, const T: usize>(block: *const u8, i: usize) {
    if T < 4 {
        return;
    }
    let lines = (L::BLOCKS.bytes() / 64).div_ceil(L::BLOCKS.groups);
    for line in i * lines..(i + 1) * lines {
        // SAFETY: a prefetch reads nothing that a program could see, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(PREFETCH_BYTES + line * 64).cast()) };
    }
}
