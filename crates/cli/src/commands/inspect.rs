//! `dunlin inspect`: what a model is made of, and what it takes to run it here. Nothing is packed.

mod facts;
mod print;

use crate::defaults;
use crate::error::CliError;
use crate::machine;
use crate::source::Source;
use crate::talk;
use clap::Args;
use facts::Facts;
use kernels::{Pool, bandwidth};
use std::path::PathBuf;
use std::time::Duration;

/// Explain a model: what it is made of, whether it is supported, and what it takes to run it on this machine.
///
/// The speed is an estimate: reading memory bounds how fast tokens come, so the bandwidth is measured here and divided by
/// the bytes that one token reads, of weights and, late in a conversation, of keys and values.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin inspect model.gguf
  dunlin inspect model.gguf --tensors
  dunlin inspect model.gguf --ctx-size 32768
  dunlin inspect model.gguf --json | jq .memory
  dunlin inspect model.gguf --json | jq -r .model.layers.pattern")]
pub(crate) struct InspectArgs {
    /// A GGUF file; any part of a split one [default: the built-in model]
    model: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// Tokens of context to compute memory and speed for [default: the model's, at most 4096]
    #[arg(long, short, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    ctx_size: Option<u32>,

    /// Do not measure this machine's memory
    #[arg(long)]
    no_measure: bool,
}

pub(crate) fn run(args: &InspectArgs) -> Result<(), CliError> {
    let source = Source::or_demo(args.model.as_deref());
    let gguf = source.open()?;
    let bandwidth = (!args.no_measure).then(measure_bandwidth);
    let context_tokens = args.ctx_size.map(|tokens| tokens as usize);
    let facts = Facts::gather(&gguf, &source, context_tokens, bandwidth, args.tensors);
    match args.json {
        true => talk::write_line(serde_json::to_string_pretty(&facts)?),
        false => talk::write(print::text(&facts).as_bytes()),
    }
}

/// Bytes per second, on as many threads as would compute.
fn measure_bandwidth() -> f64 {
    // A small board must not be pushed out of memory by a measurement.
    let spare = machine::memory().map_or(u64::MAX, |memory| memory.available_bytes / 4);
    let buffer_bytes = defaults::BANDWIDTH_BUFFER_BYTES.min(spare) as usize;
    let time = Duration::from_millis(defaults::BANDWIDTH_MILLISECONDS);
    bandwidth::read(&Pool::new(machine::threads()), buffer_bytes, time)
}
