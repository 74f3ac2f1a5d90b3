//! The API from outside: over real sockets, with a scripted model behind it.

mod adapters;
mod allocations;
mod answers;
mod client;
mod drain;
mod encoding;
mod fake;
mod leaving;
mod limits;
mod mutations;
mod real;
mod refusals;
mod status;
mod streaming;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
