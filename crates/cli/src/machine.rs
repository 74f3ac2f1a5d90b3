//! What this machine gives us: processors worth computing on, and memory that is free. It only reads, under a root that
//! tests can choose.

mod memory;
mod threads;
#[cfg(test)]
mod tree;

pub(crate) use memory::Memory;
use std::path::Path;

/// The root of the running system.
fn root() -> &'static Path {
    Path::new("/")
}

/// Threads that make computing faster: the processors this process may use, by affinity and cgroup quota, but one for
/// each physical core.
pub(crate) fn threads() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    usable.min(threads::physical_cores(root()).unwrap_or(usable)).max(1)
}

/// Memory that a new program could take; `None` where the system does not say.
pub(crate) fn memory() -> Option<Memory> {
    memory::available(root())
}
