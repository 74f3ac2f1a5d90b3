//! The plumbing, from outside.

mod listen;
mod sse;
