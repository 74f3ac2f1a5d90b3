//! The binary as its users meet it: commands, exit codes, and a server over real sockets.
#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

mod adapters;
mod errors;
mod help;
mod http;
mod inspect;
mod pack;
mod process;
mod run;
mod serve;
mod up;
