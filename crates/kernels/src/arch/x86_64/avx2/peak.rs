//! The most that `vpmaddubsw` does when its products are also added up.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums that do not wait for each other: the 6 cycles that a product and its addition take, times 2 units.
const CHAINS: usize = 12;

/// # Safety
/// The processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots(rounds: u64) -> u64 {
    let weights = _mm256_set1_epi8(black_box(3));
    let mut sums = [_mm256_set1_epi8(black_box(-5)); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // Of the sum itself: a product that is the same in every round would be made once.
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(weights, *sum));
        }
    }
    black_box(sums);
    rounds * CHAINS as u64 * 32
}
