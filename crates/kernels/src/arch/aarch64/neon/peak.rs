//! The most that `smlal` does.

use std::arch::aarch64::*;
use std::hint::black_box;

/// Sums that do not wait for each other: more than the 4 or 5 cycles of latency times the 2 units that processors have.
const CHAINS: usize = 12;

/// # Safety
/// The processor has these features.
#[target_feature(enable = "neon")]
pub(super) unsafe fn dots(rounds: u64) -> u64 {
    let weights = vdup_n_s8(black_box(3));
    let mut sums = [vdupq_n_s16(black_box(-5)); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // Of the sum itself: a product that is the same in every round would be made once.
            *sum = vmlal_s8(*sum, weights, vget_low_s8(vreinterpretq_s8_s16(*sum)));
        }
    }
    black_box(sums);
    rounds * CHAINS as u64 * 8
}
