//! `dunlin serve`: an OpenAI-compatible server for one model.

use crate::defaults;
use crate::error::CliError;
use crate::loading::LoadArgs;
use crate::serving::{LogFormat, Manner, ServingArgs, serve};
use crate::source::Source;
use clap::Args;
use std::path::PathBuf;

/// Serve a model over an OpenAI-compatible API.
///
/// The port answers at once: /health says `loading` while the model loads, then `ok`. SIGTERM or Ctrl-C lets what runs
/// finish; a second one ends at once. The first line on standard output is `listening on http://ADDRESS`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin serve model.gguf
  dunlin serve model.gguf --host 0.0.0.0 --port 8000 --alias assistant
  dunlin serve model.gguf --parallel 8 --ctx-size 2048     more clients, shorter conversations
  curl http://127.0.0.1:8080/health

API: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /apply-template,
/health and /metrics; a chat page at /.")]
pub(crate) struct ServeArgs {
    /// The model, a GGUF file; any part of a split one
    model: PathBuf,

    /// Port to listen on; 0 lets the system choose one
    #[arg(long, default_value_t = defaults::PORT)]
    port: u16,

    /// A line on standard error for every answer; health checks that succeed are left out
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log: LogFormat,

    #[command(flatten)]
    serving: ServingArgs,

    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &ServeArgs) -> Result<(), CliError> {
    let plan = args.load.plan(Source::File(args.model.clone()), args.serving.engine())?;
    let manner =
        Manner { port: Some(args.port), log: args.log, greeting: |url| format!("chat page: {url}/") };
    serve(plan, &args.serving, &manner)
}
