//! NEON of Armv8.0: four registers hold a cell of 16 rows x 4 columns, `smlal` multiplies each by 4 activations that are
//! broadcast from memory into 16-bit sums.

pub(super) mod float;
pub(super) mod integer;
mod peak;
pub(super) mod strip;

use crate::arch::table;
use crate::elementwise::{Lanes, elementwise};
use crate::format::GROUP;
use crate::isa::Table;
use float::{Bf16, F16, F32, I8};
use std::arch::aarch64::*;
use strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};

pub(super) enum Registers {}

impl Lanes for Registers {
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn quantize(x: &[f32; GROUP], inverse: f32) -> ([i8; GROUP], [i32; 2]) {
        // SAFETY: the caller vouches for NEON.
        unsafe {
            let four = |i: usize| {
                let scaled = vmulq_n_f32(vld1q_f32(x.as_ptr().add(i * 4)), inverse);
                let clamped = vmaxq_f32(vminq_f32(scaled, vdupq_n_f32(127.0)), vdupq_n_f32(-127.0));
                vcvtnq_s32_f32(clamped)
            };
            let eight = |i: usize| vmovn_high_s32(vmovn_s32(four(2 * i)), four(2 * i + 1));
            let sixteen = |i: usize| vmovn_high_s16(vmovn_s16(eight(2 * i)), eight(2 * i + 1));
            let halves = [sixteen(0), sixteen(1)];
            let mut bytes = [0; GROUP];
            vst1q_s8(bytes.as_mut_ptr(), halves[0]);
            vst1q_s8(bytes.as_mut_ptr().add(16), halves[1]);
            (bytes, halves.map(|half| i32::from(vaddlvq_s8(half))))
        }
    }
}

elementwise!(Registers, target_feature(enable = "neon"));

pub(crate) static TABLE: Table = table!(Neon);

use float::{float_tile, mix, score};
use integer::{integer_tile, integer_tile as superblock_tile};
use peak::dots;
