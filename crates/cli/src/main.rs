//! dunlin: one binary that serves quantized models. Parse, run, exit code.
#![forbid(unsafe_code)]

mod commands;
mod defaults;
mod error;
mod loading;
mod machine;
mod pinning;
mod progress;
mod serving;
mod source;
mod talk;

use clap::Parser;
use commands::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
