//! How fast this processor multiplies bytes: what bounds the tokens per second of every prompt.

use crate::Context;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pieces that a pass is shared out in; several a thread, so that a slow thread delays a pass by little.
const PIECES: usize = 64;

/// Some 50 us of VNNI a piece: long beside what it takes to claim one.
const ROUNDS: u64 = 1 << 14;

/// A median of fewer passes would be an accident.
const PASSES_MIN: usize = 3;

/// Multiply-adds of bytes per second that all threads of the pool do together, on registers alone, by the instructions
/// that the set's integer tiles multiply with: the median of as many passes as fit in `time`, three at least. The scalar
/// set multiplies words, since it has no such instruction.
pub fn macs_per_s(context: Context<'_>, time: Duration) -> f64 {
    let began = Instant::now();
    let mut speeds = Vec::new();
    while speeds.len() < PASSES_MIN || began.elapsed() < time {
        let macs = AtomicU64::new(0);
        let start = Instant::now();
        context.pool.run(PIECES, &|_| {
            // SAFETY: the table proves that the processor has the instruction set.
            let done = unsafe { (context.table.dots)(ROUNDS) };
            macs.fetch_add(done, Ordering::Relaxed);
        });
        speeds.push(macs.into_inner() as f64 / start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE));
    }
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}
