//! AVX-512 with VNNI: a register holds a cell of 16 rows x 4 columns, `vpdpbusd` multiplies it by 4 activations that are
//! broadcast from memory.

mod float;
mod integer;
mod peak;
mod strip;
mod superblock;

use crate::arch::table;
use crate::arch::x86_64::half_sums;
use crate::elementwise::{LANES, Lanes, elementwise};
use crate::format::GROUP;
use crate::isa::Table;
use float::{Bf16, F16, F32, I8};
use std::arch::x86_64::*;
use strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};

enum Registers {}

impl Lanes for Registers {
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn max(lanes: [f32; LANES]) -> f32 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_reduce_max_ps(_mm512_loadu_ps(lanes.as_ptr())) }
    }

    #[inline(always)]
    unsafe fn sum(lanes: [f32; LANES]) -> f32 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_reduce_add_ps(_mm512_loadu_ps(lanes.as_ptr())) }
    }

    #[inline(always)]
    unsafe fn quantize(x: &[f32; GROUP], inverse: f32) -> ([i8; GROUP], [i32; 2]) {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let sixteen = |i: usize| {
                let scaled = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr().add(i * 16)), _mm512_set1_ps(inverse));
                let clamped =
                    _mm512_max_ps(_mm512_min_ps(scaled, _mm512_set1_ps(127.0)), _mm512_set1_ps(-127.0));
                _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped))
            };
            let q = _mm256_set_m128i(sixteen(1), sixteen(0));
            let mut bytes = [0; GROUP];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), q);
            (bytes, half_sums(q))
        }
    }
}

elementwise!(
    Registers,
    target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
);

pub(crate) static TABLE: Table = table!(Avx512Vnni);

use float::{float_tile, mix, score};
use integer::integer_tile;
use peak::dots;
use superblock::superblock_tile;
