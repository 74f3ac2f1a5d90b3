//! The commands, one file each. The doc comments of their arguments are the help.

mod completions;
mod inspect;
mod pack;
mod run;
mod serve;
mod up;

use crate::error::CliError;
use clap::{Parser, Subcommand};
use engine::model::families;

/// Serve quantized language models on this machine's processor.
///
/// One binary, no set-up: `dunlin up` answers from a small model that is built in; `dunlin serve MODEL.gguf` serves yours
/// over an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "dunlin", version, max_term_width = 100, arg_required_else_help = true, after_help = after_help())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Columns of a line of help.
const HELP_COLS: usize = 100;

fn after_help() -> String {
    let mut families = String::new();
    let mut line = String::from(" ");
    for (name, _) in families::all() {
        if line.len() + 1 + name.len() > HELP_COLS {
            families += &line;
            families.push('\n');
            line = String::from(" ");
        }
        line.push(' ');
        line += name;
    }
    families += &line;
    format!(
        "{EXAMPLES}\n\nModel families (general.architecture of a GGUF file):\n{families}\n\n{CONVENTIONS}"
    )
}

const EXAMPLES: &str = "\
Examples:
  dunlin up                                   a model, a server and a chat page, at once
  dunlin run \"what can you do?\"               one answer from the built-in model
  dunlin run model.gguf                       talk to a model in the terminal
  dunlin serve model.gguf --port 8000         an OpenAI-compatible server
  dunlin inspect model.gguf                   what a model is, and whether it fits this machine
  dunlin pack model.gguf                      packs its weights ahead of the first start";

const CONVENTIONS: &str = "\
What a command answers goes to standard output, what it says about its work to standard error.

Exit codes:
  0 success               3 a file cannot be read     5 not enough memory
  1 any other failure     4 a model cannot be used    6 the network address cannot be used
  2 wrong usage           130 stopped by a second signal";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(up::UpArgs),
    Serve(serve::ServeArgs),
    Run(run::RunArgs),
    Inspect(inspect::InspectArgs),
    Pack(pack::PackArgs),
    Completions(completions::CompletionsArgs),
}

pub(crate) fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Up(args) => up::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
