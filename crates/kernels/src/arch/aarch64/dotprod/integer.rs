//! Integer tiles: 16 rows x 4 tokens of `sdot`, 16 sums in registers at once.

use crate::arch::aarch64::neon::integer::{Dot, tile};
use crate::arch::aarch64::neon::strip::{ByteCells, Cells, Strip};
use crate::isa::TileArgs;
use std::arch::aarch64::*;
use std::arch::asm;

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn integer_tile<L: Strip, const T: usize>(args: &TileArgs) {
    // SAFETY: the same contract.
    unsafe { tile::<Sdot, L, T, 4>(args) }
}

/// Only used from within tiles that have the feature.
pub(in crate::arch::aarch64) enum Sdot {}

impl Dot for Sdot {
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
        unsafe {
            if FIRST == 0 {
                four_cells::<C, U, Q, 0>(cells, quad, x, &mut dots);
            }
            if FIRST + N == 8 {
                four_cells::<C, U, Q, 4>(cells, quad, x, &mut dots);
            }
        }
        dots
    }
}

/// Adds cells `FIRST .. FIRST + 4` times 16 activations of each token.
///
/// # Safety
/// The contract of [`Dot::dot`].
#[inline(always)]
unsafe fn four_cells<C: Cells, const U: usize, const Q: usize, const FIRST: usize>(
    cells: *const u8,
    quad: usize,
    x: *const i8,
    dots: &mut [[int32x4_t; Q]; U],
) {
    // SAFETY: the same contract.
    unsafe {
        let x: [int8x16_t; U] = std::array::from_fn(|t| vld1q_s8(x.add(t * 32 + FIRST * 4)));
        one_cell::<C, U, Q, 0>(cells, FIRST, quad, &x, dots);
        one_cell::<C, U, Q, 1>(cells, FIRST + 1, quad, &x, dots);
        one_cell::<C, U, Q, 2>(cells, FIRST + 2, quad, &x, dots);
        one_cell::<C, U, Q, 3>(cells, FIRST + 3, quad, &x, dots);
    }
}

/// Adds a cell times quarter `LANE` of every token's 16 activations.
///
/// # Safety
/// The contract of [`Dot::dot`].
#[inline(always)]
unsafe fn one_cell<C: Cells, const U: usize, const Q: usize, const LANE: usize>(
    cells: *const u8,
    cell: usize,
    quad: usize,
    x: &[int8x16_t; U],
    dots: &mut [[int32x4_t; Q]; U],
) {
    for q in 0..Q {
        // SAFETY: the same contract.
        unsafe {
            let weights = C::load(cells, cell, quad + q);
            for t in 0..U {
                dots[t][q] = sdot::<LANE>(dots[t][q], weights, x[t]);
            }
        }
    }
}

/// `acc` plus 4 rows of 4 weights times quarter `LANE` of `x`. Written out because `vdotq_laneq_s32` is not stable
/// (rust-lang/rust#117224).
///
/// # Safety
/// The processor has the dot product instructions.
#[inline(always)]
pub(super) unsafe fn sdot<const LANE: usize>(
    mut acc: int32x4_t,
    weights: int8x16_t,
    x: int8x16_t,
) -> int32x4_t {
    // SAFETY: register arithmetic; the caller has the feature.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {weights:v}.16b, {x:v}.4b[{lane}]",
            acc = inout(vreg) acc,
            weights = in(vreg) weights,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
