//! Integer tiles: 8 `vpdpbusd` per group of 32 columns, strip and token, then one conversion and one or two `vfmadd`.

use super::strip::Strip;
use crate::isa::TileArgs;
use crate::layout::STRIP;
use crate::panel::RECORD;
use std::arch::x86_64::*;

/// Strips go one by one, so that a decode reads memory as one stream; nothing is fetched ahead by hand. Four strips at
/// once reached 60-75% of what a plain read of memory does, one strip with prefetches 80-95%, one without 95-100%.
///
/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn integer_tile<L: Strip, const T: usize>(args: &TileArgs) {
    let groups = args.cols / 32;
    for s in 0..args.strip_count {
        // SAFETY: strips, panel records and output rows lie where the contract says.
        unsafe {
            let strip = args.strips.add(s * args.strip_bytes);
            let mut acc = [_mm512_setzero_ps(); T];
            for g in 0..groups {
                group::<L, T>(strip, g, args.panel.add(g * RECORD * T), &mut acc);
            }
            for (t, acc) in acc.into_iter().enumerate() {
                let out = args.out.add(t * args.out_stride + s * STRIP);
                let sum = if args.add { _mm512_add_ps(_mm512_loadu_ps(out), acc) } else { acc };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// # Safety
/// `strip` is a strip of `L` with more than `g` groups and `record` group `g` of a panel of `T` tokens; the caller has the
/// features.
#[inline(always)]
unsafe fn group<L: Strip, const T: usize>(
    strip: *const u8,
    g: usize,
    record: *const u8,
    acc: &mut [__m512; T],
) {
    // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words.
    unsafe {
        let (scale, min) = L::scales(strip.add(L::BLOCKS.start(g)), g % L::BLOCKS.groups);
        let cells = L::cells(strip.add(L::BLOCKS.cells(g)));
        let tail = record.add(T * 32);
        let word = |field: usize, t: usize| {
            _mm512_set1_epi32(tail.add((field * T + t) * 4).cast::<i32>().read_unaligned())
        };
        let float = |field: usize, t: usize| {
            _mm512_set1_ps(tail.add((field * T + t) * 4).cast::<f32>().read_unaligned())
        };
        let x = |t: usize, cell: usize| {
            _mm512_set1_epi32(record.add(t * 32 + cell * 4).cast::<i32>().read_unaligned())
        };
        // The word is -8 times the sum of the activations; a shift takes its count as a constant.
        let start = |field: usize, t: usize| match L::OFFSET {
            0 => _mm512_setzero_si512(),
            4 => _mm512_srai_epi32::<1>(word(field, t)),
            8 => word(field, t),
            16 => _mm512_slli_epi32::<1>(word(field, t)),
            32 => _mm512_slli_epi32::<2>(word(field, t)),
            128 => _mm512_slli_epi32::<4>(word(field, t)),
            _ => unreachable!("no layout has this offset"),
        };
        if L::HALVES {
            for h in 0..2 {
                let mut dot: [__m512i; T] = std::array::from_fn(|t| start(3 + h, t));
                for cell in 4 * h..4 * h + 4 {
                    for t in 0..T {
                        dot[t] = _mm512_dpbusd_epi32(dot[t], cells[cell], x(t, cell));
                    }
                }
                for t in 0..T {
                    acc[t] = _mm512_fmadd_ps(
                        _mm512_cvtepi32_ps(dot[t]),
                        _mm512_mul_ps(scale[h], float(0, t)),
                        acc[t],
                    );
                    if L::MIN {
                        acc[t] = _mm512_fnmadd_ps(min[h], float(5 + h, t), acc[t]);
                    }
                }
            }
        } else {
            let mut dot: [__m512i; T] = std::array::from_fn(|t| start(2, t));
            if T <= 2 {
                // Two chains, since few tokens leave the unit waiting for one.
                let mut other = [_mm512_setzero_si512(); T];
                for cell in 0..4 {
                    for t in 0..T {
                        dot[t] = _mm512_dpbusd_epi32(dot[t], cells[cell], x(t, cell));
                        other[t] = _mm512_dpbusd_epi32(other[t], cells[cell + 4], x(t, cell + 4));
                    }
                }
                for t in 0..T {
                    dot[t] = _mm512_add_epi32(dot[t], other[t]);
                }
            } else {
                for (cell, &weights) in cells.iter().enumerate() {
                    for t in 0..T {
                        dot[t] = _mm512_dpbusd_epi32(dot[t], weights, x(t, cell));
                    }
                }
            }
            for t in 0..T {
                acc[t] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), _mm512_mul_ps(scale[0], float(0, t)), acc[t]);
                if L::MIN {
                    acc[t] = _mm512_fnmadd_ps(min[0], float(1, t), acc[t]);
                }
            }
        }
    }
}
