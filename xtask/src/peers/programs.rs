//! The programs that are compared, and what they are given alike.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};

use super::contender::Contender;

/// Both servers' context: what `dunlin serve` has by default. llama-server's default is what the model was trained for.
const CONTEXT_TOKENS: usize = 4096;

pub(super) struct Programs {
    /// This program, which can be the engine alone and a busy process.
    pub(super) own: PathBuf,
    pub(super) dunlin: PathBuf,
    pub(super) llama_dir: PathBuf,
    pub(super) cache_dir: PathBuf,
}

/// What every contender of a comparison gets.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) programs: &'a Programs,
    pub(super) model: &'a Path,
    pub(super) threads: usize,
    pub(super) stop: &'a AtomicBool,
}

impl Programs {
    /// One of llama.cpp's programs.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn llama(&self, name: &str) -> anyhow::Result<PathBuf> {
        let program = self.llama_dir.join(name);
        ensure!(
            program.is_file(),
            "there is no {}; --llama-dir names the folder of llama.cpp's programs, and `cmake --build FOLDER --target \
             {name}` builds this one",
            program.display()
        );
        Ok(program)
    }

    /// The first line that llama.cpp says of its version.
    pub(super) fn llama_version(&self) -> anyhow::Result<String> {
        let program = self.llama("llama-bench")?;
        let out = Command::new(&program).arg("--version").output();
        let out = out.with_context(|| format!("cannot run {}", program.display()))?;
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().find(|line| line.starts_with("version")).unwrap_or("version unknown").to_owned())
    }
}

impl Setting<'_> {
    /// A server of `contender` that listens on `port` of the loopback: one slot, and otherwise its defaults.
    pub(super) fn server(&self, contender: Contender, port: u16) -> anyhow::Result<Command> {
        let mut command = match contender {
            Contender::Dunlin => {
                let mut command = apart(&self.programs.dunlin);
                command.arg("serve").arg(self.model).arg("--cache-dir").arg(&self.programs.cache_dir);
                command
            }
            Contender::Llama(llama) => {
                let mut command = apart(&self.programs.llama("llama-server")?);
                command.arg("-m").arg(self.model);
                if !llama.repack {
                    command.arg("--no-repack");
                }
                command
            }
        };
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--parallel", "1"]);
        command.args(["--threads", &self.threads.to_string(), "--ctx-size", &CONTEXT_TOKENS.to_string()]);
        Ok(command)
    }
}

/// A command in a process group of its own: Ctrl-C reaches only who started it, who then says that it was interrupted
/// instead of that a program failed.
pub(super) fn apart(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}
