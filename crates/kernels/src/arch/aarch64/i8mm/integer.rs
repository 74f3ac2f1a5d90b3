//! Integer tiles: 16 rows x 4 tokens of `smmla`, 16 sums in registers at once.

use crate::arch::aarch64::dotprod::integer::Sdot;
use crate::arch::aarch64::neon::integer::{Dot, tile};
use crate::arch::aarch64::neon::strip::{Cells, PairedCells, Strip};
use crate::isa::TileArgs;
use std::arch::aarch64::*;
use std::arch::asm;

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn integer_tile<L: Strip, const T: usize>(args: &TileArgs) {
    // SAFETY: the same contract.
    unsafe { tile::<Smmla, L, T, 4>(args) }
}

/// Only used from within [`integer_tile`], which has the feature.
enum Smmla {}

impl Dot for Smmla {
    type Unpacked = PairedCells;

    #[inline(always)]
    unsafe fn arrange(cells: &mut [[int8x16_t; 4]; 8]) {
        for [even, odd] in cells.as_chunks_mut::<2>().0 {
            for (even, odd) in even.iter_mut().zip(odd) {
                // SAFETY: register arithmetic; the caller has the feature.
                unsafe {
                    let (first, second) = (vreinterpretq_s32_s8(*even), vreinterpretq_s32_s8(*odd));
                    *even = vreinterpretq_s8_s32(vzip1q_s32(first, second));
                    *odd = vreinterpretq_s8_s32(vzip2q_s32(first, second));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot<C: Cells, const U: usize, const Q: usize, const FIRST: usize, const N: usize>(
        cells: *const u8,
        quad: usize,
        x: *const i8,
        start: [int32x4_t; U],
    ) -> [[int32x4_t; Q]; U] {
        if !C::PAIRED {
            // SAFETY: the same contract.
            return unsafe { Sdot::dot::<C, U, Q, FIRST, N>(cells, quad, x, start) };
        }
        let mut dots = start.map(|start| [start; Q]);
        // SAFETY: the same contract.
        unsafe {
            if FIRST == 0 {
                four_cells::<C, U, Q>(cells, 0, quad, x, &mut dots);
            }
            if FIRST + N == 8 {
                four_cells::<C, U, Q>(cells, 4, quad, x, &mut dots);
            }
        }
        dots
    }
}

/// Adds cells `first .. first + 4` times 16 activations of each token.
///
/// # Safety
/// The contract of [`Dot::dot`]; cells are paired and `U` is even.
#[inline(always)]
unsafe fn four_cells<C: Cells, const U: usize, const Q: usize>(
    cells: *const u8,
    first: usize,
    quad: usize,
    x: *const i8,
    dots: &mut [[int32x4_t; Q]; U],
) {
    // SAFETY: the same contract.
    unsafe {
        let x = |t: usize| vreinterpretq_s64_s8(vld1q_s8(x.add(t * 32 + first * 4)));
        // Of tokens 2 i and 2 i + 1, 8 activations for the first pair of cells and 8 for the second.
        let x: [[int8x16_t; 2]; U] = std::array::from_fn(|t| {
            let (even, odd) = (x(t / 2 * 2), x(t / 2 * 2 + 1));
            [vreinterpretq_s8_s64(vzip1q_s64(even, odd)), vreinterpretq_s8_s64(vzip2q_s64(even, odd))]
        });
        for pair in 0..2 {
            for q in 0..Q {
                let cell = first + 2 * pair;
                let rows = [C::load(cells, cell, quad + q), C::load(cells, cell + 1, quad + q)];
                for t in 0..U {
                    dots[t][q] = smmla(dots[t][q], rows[t % 2], x[t][pair]);
                }
            }
        }
    }
}

/// `acc` plus 2 rows of 8 weights times 2 tokens' 8 activations. Written out because `vmmlaq_s32` is not stable
/// (rust-lang/rust#117223).
///
/// # Safety
/// The processor has the matrix instructions.
#[inline(always)]
pub(super) unsafe fn smmla(mut acc: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: register arithmetic; the caller has the feature.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {weights:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            weights = in(vreg) weights,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
