//! How fast this machine reads memory: what bounds the tokens per second of every model that does not fit in a cache.

use crate::Pool;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Pieces that a pass is shared out in; several a thread, so that a slow thread delays a pass by little.
const PIECES: usize = 64;

/// A core has more reads under way when they come from several places at once: an AMD EPYC core read 15-20 GB/s from
/// one to four places and 30-34 GB/s from eight.
const STREAMS: usize = 8;

/// Words that are read from one place before the next: 512 bytes.
const RUN: usize = 64;

/// A median of fewer passes would be an accident.
const PASSES_MIN: usize = 3;

/// Memory to read, filled already.
pub struct Buffer {
    data: Vec<u64>,
    piece: usize,
}

impl Buffer {
    /// Of `bytes`, which should be far more than the caches hold.
    pub fn new(bytes: usize) -> Buffer {
        let piece = (bytes / 8 / PIECES).next_multiple_of(STREAMS * RUN).max(STREAMS * RUN);
        // Ones, not zeros: pages of zeros that nobody has written to are all the same page.
        Buffer { data: vec![1; piece * PIECES], piece }
    }

    /// Bytes per second that all threads of `pool` read together, in one pass over everything.
    pub fn read(&self, pool: &Pool) -> f64 {
        let start = Instant::now();
        pool.run(PIECES, &|i| {
            black_box(fold(&self.data[i * self.piece..][..self.piece]));
        });
        (self.data.len() * 8) as f64 / start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Bytes per second that all threads of `pool` read together from a [`Buffer`] of `buffer_bytes`: the median of as many
/// passes as fit in `time`, three at least.
pub fn read(pool: &Pool, buffer_bytes: usize, time: Duration) -> f64 {
    let buffer = Buffer::new(buffer_bytes);
    let began = Instant::now();
    let mut speeds = Vec::new();
    while speeds.len() < PASSES_MIN || began.elapsed() < time {
        speeds.push(buffer.read(pool));
    }
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

/// Reads all of `data`, some of every stream in turn, in a way that compiles to wide loads.
fn fold(data: &[u64]) -> [u64; 16] {
    let streams: Vec<&[u64]> = data.chunks_exact(data.len() / STREAMS).collect();
    let mut sums = [0u64; 16];
    for start in (0..data.len() / STREAMS).step_by(RUN) {
        let runs = streams.iter().flat_map(|stream| stream[start..start + RUN].as_chunks::<16>().0);
        for chunk in runs {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum ^= x;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        let data: Vec<u64> = (0..(STREAMS * RUN * 3) as u64).map(|i| i * 0x9e37_79b9).collect();
        let whole = data.iter().fold(0, |sum, x| sum ^ x);
        assert_eq!(fold(&data).iter().fold(0, |sum, x| sum ^ x), whole);
    }

    #[test]
    fn a_bandwidth_is_a_positive_number_whatever_the_buffer() {
        let pool = Pool::new(2);
        for bytes in [0, 1, 1 << 20] {
            let bandwidth = read(&pool, bytes, Duration::ZERO);
            assert!(bandwidth.is_finite() && bandwidth > 0.0, "{bytes} bytes: {bandwidth}");
        }
    }
}
