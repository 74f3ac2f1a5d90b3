//! What holds where the user said nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Only this machine, until the user says otherwise.
pub(crate) const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(crate) const PORT: u16 = 8080;
/// How many ports after [`PORT`] are tried where the user named none.
pub(crate) const PORTS_TRIED: u16 = 100;

/// Tokens of a context, where the model was trained for more: memory for it is set aside.
pub(crate) const CONTEXT_TOKENS_MAX: usize = 4096;
/// Generations that compute at once.
pub(crate) const PARALLEL: usize = 4;
/// Generations that may wait.
pub(crate) const WAITING_MAX: usize = 64;
/// Seconds that generations may go on after the server was asked to end.
pub(crate) const DRAIN_SECONDS: f64 = 30.0;
/// Threads that speak HTTP. Computing is done elsewhere, so two are plenty.
pub(crate) const HTTP_THREADS: usize = 2;

/// Memory beside weights and key-value cache: activations, logits, buffers of connections.
pub(crate) const WORKING_BYTES: u64 = 64 << 20;

/// The most that is read from standard input as a prompt.
pub(crate) const STDIN_BYTES_MAX: u64 = 64 << 20;
/// How long standard input may be silent before a prompt on the command line is answered without it.
pub(crate) const STDIN_SILENCE_MAX: Duration = Duration::from_secs(2);

/// What `inspect` reads to measure the memory: far more than the caches hold.
pub(crate) const BANDWIDTH_BUFFER_BYTES: u64 = 256 << 20;
pub(crate) const BANDWIDTH_MILLISECONDS: u64 = 300;
/// Weights smaller than this may stay in the last-level cache of a server's processor.
pub(crate) const CACHES_BYTES: u64 = 64 << 20;
