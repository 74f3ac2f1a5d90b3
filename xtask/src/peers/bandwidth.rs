//! How fast memory can be read right now: what bounds decoding, and what swings on shared machines.

use std::hint::black_box;
use std::time::Instant;

/// Larger than any last-level cache, as weights are.
const BUFFER_BYTES: usize = 512 << 20;
const PASSES: usize = 4;
/// A core has more reads under way when they come from several places at once.
const STREAMS: usize = 8;
/// Words that are read from one place before the next: 512 bytes.
const RUN_WORDS: usize = 64;

/// Bytes per second that `threads` threads read together; the best of some passes, as noise only takes away.
pub(super) fn read_bytes_per_s(threads: usize) -> f64 {
    let words = vec![1u64; BUFFER_BYTES / size_of::<u64>()];
    let part = words.len() / threads;
    let pass = || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks_exact(part) {
                scope.spawn(|| black_box(sum(part)));
            }
        });
        (part * threads * size_of::<u64>()) as f64 / started.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

fn sum(words: &[u64]) -> u64 {
    let streams: Vec<&[u64]> = words.chunks_exact(words.len() / STREAMS).collect();
    let mut sums = [0u64; 16];
    for start in (0..words.len() / STREAMS / RUN_WORDS).map(|run| run * RUN_WORDS) {
        for stream in &streams {
            for words in stream[start..start + RUN_WORDS].as_chunks::<16>().0 {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(*word);
                }
            }
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..(STREAMS * RUN_WORDS * 3) as u64).collect();
        assert_eq!(sum(&words), words.iter().sum::<u64>());
    }
}
