//! The chores of this repository: test, synth, conformance, peers.
#![forbid(unsafe_code)]

fn main() {}
