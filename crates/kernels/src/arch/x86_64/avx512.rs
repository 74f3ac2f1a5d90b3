//! AVX-512 with VNNI: a register holds a cell of 16 rows x 4 columns, `vpdpbusd` multiplies it by 4 activations that are
//! broadcast from memory.

mod float;
mod integer;
mod peak;
mod strip;

use crate::arch::table;
use crate::elementwise::{LANES, Lanes, elementwise};
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
}

elementwise!(
    Registers,
    target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
);

pub(crate) static TABLE: Table = table!(Avx512Vnni);

use float::{float_tile, mix, score};
use integer::{integer_tile, integer_tile as superblock_tile};
use peak::dots;
