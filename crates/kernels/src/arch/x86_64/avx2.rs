//! AVX2: two registers hold a cell of 16 rows x 4 columns, `vpmaddubsw` multiplies each by 4 activations that are
//! broadcast from memory.

mod float;
mod integer;
mod peak;
mod strip;
mod superblock;

use crate::arch::table;
use crate::arch::x86_64::half_sums;
use crate::elementwise::{Lanes, elementwise};
use crate::format::GROUP;
use crate::isa::Table;
use float::{Bf16, F16, F32, I8};
use std::arch::x86_64::*;
use strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};

enum Registers {}

impl Lanes for Registers {
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn quantize(x: &[f32; GROUP], inverse: f32) -> ([i8; GROUP], [i32; 2]) {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let eight = |i: usize| {
                let scaled = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(i * 8)), _mm256_set1_ps(inverse));
                let clamped =
                    _mm256_max_ps(_mm256_min_ps(scaled, _mm256_set1_ps(127.0)), _mm256_set1_ps(-127.0));
                _mm256_cvtps_epi32(clamped)
            };
            let (low, high) =
                (_mm256_packs_epi32(eight(0), eight(1)), _mm256_packs_epi32(eight(2), eight(3)));
            // Packing goes by halves of the registers, so fours of columns come out as 0 2 4 6, 1 3 5 7.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
            let mut bytes = [0; GROUP];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), q);
            (bytes, half_sums(q))
        }
    }
}

elementwise!(Registers, target_feature(enable = "avx2,fma,f16c"));

pub(crate) static TABLE: Table = table!(Avx2);

use float::{float_tile, mix, score};
use integer::integer_tile;
use peak::dots;
use superblock::superblock_tile;
