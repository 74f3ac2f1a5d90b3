//! What this machine gives us: processors worth computing on, and memory that is free. It only reads, under a root that
//! tests can choose.

mod cgroup;
mod memory;
mod processors;
mod quota;
#[cfg(test)]
mod tree;

pub(crate) use memory::Memory;
pub(crate) use processors::Processors;
use std::path::Path;

/// The root of the running system.
fn root() -> &'static Path {
    Path::new("/")
}

/// Threads that make computing faster: one for each of the fast cores that this process may use, and no more than its
/// CPU quota lets run all the time.
pub(crate) fn threads() -> usize {
    // The standard library sees affinity and quota too, and stands in where /proc does not tell.
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    threads_of(processors().as_ref(), cpu_quota(), usable)
}

fn threads_of(processors: Option<&Processors>, quota: Option<f64>, usable: usize) -> usize {
    let fast = processors.map_or(usable, |processors| processors.fast_cores().len());
    // Rounded down: whoever has used up the quota is stopped for the rest of the period, in the middle of a step.
    let running = quota.map_or(usable, |quota| quota as usize);
    fast.min(running).min(usable).max(1)
}

/// Processors that this process may use; `None` where the kernel does not say.
pub(crate) fn processors() -> Option<Processors> {
    Processors::read(root())
}

/// How many processors' time the control groups around this process leave it; `None` without a limit.
pub(crate) fn cpu_quota() -> Option<f64> {
    quota::read(root())
}

/// Memory that a new program could take; `None` where the system does not say.
pub(crate) fn memory() -> Option<Memory> {
    memory::available(root())
}

#[cfg(test)]
mod tests;
