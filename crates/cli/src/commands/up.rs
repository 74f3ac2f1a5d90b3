//! `dunlin up`: a model, a server and a chat page with one command and no set-up.

use crate::error::CliError;
use crate::loading::LoadArgs;
use crate::serving::{LogFormat, Manner, ServingArgs, serve};
use crate::source::Source;
use clap::Args;
use std::path::PathBuf;

/// Start a model, a server and a chat page, with nothing to install, download or configure.
///
/// Without --model it serves a small model that is built in: it reads device telemetry and answers questions about dunlin.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin up
  dunlin up --model model.gguf
  dunlin up --host 0.0.0.0 --port 80        for the whole network")]
pub(crate) struct UpArgs {
    /// A GGUF file to serve instead of the built-in model
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,

    /// Port to listen on; 0 lets the system choose one [default: 8080, or the next that is free]
    #[arg(long)]
    port: Option<u16>,

    /// A line on standard error for every answer
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Off)]
    log: LogFormat,

    #[command(flatten)]
    serving: ServingArgs,

    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &UpArgs) -> Result<(), CliError> {
    let plan = args.load.plan(Source::or_demo(args.model.as_deref()), args.serving.engine())?;
    serve(plan, &args.serving, &Manner { port: args.port, log: args.log, greeting })
}

/// Where to go, what to try and how to stop.
fn greeting(url: &str) -> String {
    format!(
        "\n  chat   open {url}/ in a browser\n  API    curl {url}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is dunlin?\"}}]}}'\n  stop   Ctrl-C\n"
    )
}
