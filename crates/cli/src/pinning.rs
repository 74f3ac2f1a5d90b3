//! Threads that stay on their processors, where the user asks for it.

use crate::error::{CliError, Kind};
use crate::machine;
use engine::Pool;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::thread;

/// A processor for each of `threads` threads, which the system lets this process choose.
///
/// # Errors
/// If there are fewer, or the system does not let it.
pub(crate) fn choose(threads: usize) -> Result<Vec<usize>, CliError> {
    let processors = machine::processors().ok_or_else(|| {
        CliError::new(Kind::Failed, "the system does not say which processors this process may use")
            .with_hint("leave out --pin; the system then moves threads as it likes")
    })?;
    let best_first = processors.best_first();
    let Some(chosen) = best_first.get(..threads) else {
        let there = best_first.len();
        let message = format!("{threads} threads cannot have a processor each: this process may use {there}");
        return Err(CliError::new(Kind::Usage, message)
            .with_hint(format!("choose --threads from 1 to {there}, or leave out --pin")));
    };
    check(chosen)?;
    Ok(chosen.to_vec())
}

/// Tries them all, on a thread that ends, so that nothing else is pinned.
fn check(processors: &[usize]) -> Result<(), CliError> {
    let attempt = || processors.iter().try_for_each(|&cpu| pin(cpu).map_err(|error| (cpu, error)));
    let refused = thread::scope(|scope| scope.spawn(attempt).join().expect("it does not panic"));
    refused.map_err(|(cpu, error)| {
        CliError::new(Kind::Failed, format!("cannot keep a thread on processor {cpu}: {error}"))
            .with_hint("this system does not let programs choose processors; leave out --pin")
    })
}

/// A pool with a thread for each of `processors`; the first is for the thread that enters the pool.
pub(crate) fn pool(processors: Vec<usize>) -> Pool {
    let threads = processors.len();
    Pool::with_start(threads, move |number| {
        // It was possible a moment ago. Whoever takes the processor away since then moves the thread as well.
        let _ = pin(processors[number]);
    })
}

/// Keeps the calling thread on one processor.
fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::other(format!("only {} can be named", CpuSet::MAX_CPU)));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::{Barrier, Mutex};

    fn allowed() -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    }

    #[test]
    fn all_threads_of_a_pinned_pool_are_where_they_should_be() {
        let first = choose(1).unwrap()[0];
        let before = allowed();
        // A machine with one processor has no second: all share the first.
        let pool = pool(vec![first; 3]);
        let (barrier, seen) = (Barrier::new(3), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            scope.spawn(|| {
                pool.enter();
                pool.run(3, &|_| {
                    barrier.wait();
                    seen.lock().unwrap().push(allowed());
                });
            });
        });
        assert_eq!(seen.into_inner().unwrap(), vec![first.to_string(); 3]);
        assert_eq!(allowed(), before, "who made the pool is not pinned");
    }

    #[test]
    fn what_cannot_be_pinned_is_refused() {
        let too_many = choose(5000).unwrap_err();
        assert_eq!(too_many.kind(), Kind::Usage);
        assert!(too_many.message().starts_with("5000 threads cannot have a processor each"));
        assert!(check(&[CpuSet::MAX_CPU]).unwrap_err().message().contains("processor 1024"));
    }
}
