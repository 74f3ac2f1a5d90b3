//! The most that `smmla` does.

use super::integer::smmla;
use std::arch::aarch64::*;
use std::hint::black_box;

/// As many as `sdot` has.
const CHAINS: usize = 20;

/// # Safety
/// The processor has these features.
#[target_feature(enable = "neon,i8mm")]
pub(super) unsafe fn dots(rounds: u64) -> u64 {
    let (weights, x) = (vdupq_n_s8(black_box(3)), vdupq_n_s8(black_box(-5)));
    let mut sums = [vdupq_n_s32(0); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: this function has the feature.
            *sum = unsafe { smmla(*sum, weights, x) };
        }
    }
    black_box(sums);
    rounds * CHAINS as u64 * 32
}
