//! The chores of this repository: test, synth, conformance, peers, and tests on emulated processors.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // commands talk: data on stdout, the rest on stderr

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod aarch64;
mod avx512;
mod chat;
mod conformance;
mod debian;
mod encode;
mod harness;
mod peers;
mod process;
mod stop;
mod synth;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The chores of this repository", version = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Aarch64(aarch64::Args),
    Avx512(avx512::Args),
    #[command(hide = true)]
    Busy(peers::busy::Args),
    Chat(chat::Args),
    Conformance(conformance::Args),
    Encode(encode::Args),
    #[command(hide = true)]
    EngineBench(peers::engine_bench::Args),
    Peers(peers::Args),
    Synth(synth::Args),
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Aarch64(args) => aarch64::run(&args),
        Command::Avx512(args) => avx512::run(&args),
        Command::Busy(args) => peers::busy::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Encode(args) => encode::run(&args),
        Command::EngineBench(args) => peers::engine_bench::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Test(args) => test::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
