//! The most that `vpdpbusd` does.

use std::arch::x86_64::*;
use std::hint::black_box;

/// Sums that do not wait for each other: more than the 5 cycles of latency times the 2 units that processors have.
const CHAINS: usize = 12;

/// # Safety
/// The processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn dots(rounds: u64) -> u64 {
    let (weights, x) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-5)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, x);
        }
    }
    black_box(sums);
    rounds * CHAINS as u64 * 64
}
