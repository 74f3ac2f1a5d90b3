//! A histogram of durations with fixed buckets, written from any thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of durations up to each bound, and their sum.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// Upper bounds in seconds, ascending; the last bucket, beyond them all, is implied.
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    nanoseconds: AtomicU64,
}

/// A histogram's values at one moment.
pub(crate) struct Snapshot {
    /// The bounds with the number of observations up to each.
    pub(crate) cumulative: Vec<(f64, u64)>,
    pub(crate) count: u64,
    pub(crate) sum_seconds: f64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, nanoseconds: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(self.bounds.len());
        for (index, bucket) in self.counts.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if let Some(bound) = self.bounds.get(index) {
                cumulative.push((*bound, count));
            }
        }
        let sum_seconds = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        Snapshot { cumulative, count, sum_seconds }
    }
}
