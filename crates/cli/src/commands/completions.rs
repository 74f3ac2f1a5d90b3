//! `dunlin completions`: scripts that complete commands in a shell.

use super::Cli;
use crate::error::CliError;
use crate::talk;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

/// Print a script that completes dunlin's commands in your shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(dunlin completions bash)                                    bash, this session
  dunlin completions bash > ~/.local/share/bash-completion/completions/dunlin
  dunlin completions zsh > ~/.zfunc/_dunlin                            zsh, with ~/.zfunc in $fpath
  dunlin completions fish > ~/.config/fish/completions/dunlin.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell to write for.
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "dunlin", &mut script);
    talk::write(&script)
}
