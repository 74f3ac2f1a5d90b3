//! Who is measured, and with which flags.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::server::{self, Sample};
use crate::process::output;

/// Both servers' context: what `dunlin serve` has by default. llama-server's default is what the model was trained for.
const CONTEXT_TOKENS: usize = 4096;
pub(super) const PREFILL_TOKENS: usize = 512;
pub(super) const DECODE_TOKENS: usize = 64;
const BENCH_MAX: Duration = Duration::from_secs(900);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Dunlin,
    /// llama.cpp rewrites weights into layouts of its own when it loads them: its default.
    LlamaRepacked,
    /// llama.cpp computes on the weights as they lie in the file.
    LlamaPlain,
}

impl Contender {
    pub(super) const ALL: [Contender; 3] =
        [Contender::Dunlin, Contender::LlamaRepacked, Contender::LlamaPlain];

    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::Dunlin => "dunlin",
            Contender::LlamaRepacked => "llama.cpp repack 1",
            Contender::LlamaPlain => "llama.cpp repack 0",
        }
    }

    pub(super) fn key(self) -> &'static str {
        match self {
            Contender::Dunlin => "dunlin",
            Contender::LlamaRepacked => "llama_cpp_repack_1",
            Contender::LlamaPlain => "llama_cpp_repack_0",
        }
    }
}

/// Tokens per second in one fresh process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    pub(super) prefill_tokens_per_s: f64,
    pub(super) decode_tokens_per_s: f64,
    /// Bytes of weights that a decoded token reads; only dunlin says.
    pub(super) bytes_per_token: Option<u64>,
}

/// The programs, and what they are given alike.
pub(super) struct Programs {
    /// `None` where this build's `dunlin` does not serve yet.
    pub(super) dunlin: Option<PathBuf>,
    pub(super) llama_dir: PathBuf,
    pub(super) cache_dir: PathBuf,
    pub(super) threads: usize,
}

impl Programs {
    pub(super) fn speed(
        &self,
        contender: Contender,
        model: &Path,
        stop: &AtomicBool,
    ) -> anyhow::Result<Speed> {
        let mut command = self.bench_command(contender, model)?;
        let out = output(&mut command, BENCH_MAX, stop).with_context(|| contender.name())?;
        let json: Value = serde_json::from_str(&out).with_context(|| format!("not JSON: {out}"))?;
        match contender {
            Contender::Dunlin => own_speed(&json),
            Contender::LlamaRepacked | Contender::LlamaPlain => llama_speed(&json),
        }
    }

    fn bench_command(&self, contender: Contender, model: &Path) -> anyhow::Result<Command> {
        let repack = match contender {
            Contender::Dunlin => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("engine-bench").arg(model).arg("--cache-dir").arg(&self.cache_dir);
                command.args(["--prefill", &PREFILL_TOKENS.to_string()]);
                command.args(["--decode", &DECODE_TOKENS.to_string()]);
                command.args(["--threads", &self.threads.to_string()]);
                return Ok(command);
            }
            Contender::LlamaRepacked => "1",
            Contender::LlamaPlain => "0",
        };
        let mut command = Command::new(self.llama_dir.join("llama-bench"));
        command.arg("-m").arg(model).args(["--repack", repack, "-r", "1", "-o", "json"]);
        command.args(["-p", &PREFILL_TOKENS.to_string(), "-n", &DECODE_TOKENS.to_string()]);
        command.args(["-t", &self.threads.to_string()]);
        Ok(command)
    }

    /// `None` where the contender cannot serve.
    pub(super) fn serve(
        &self,
        contender: Contender,
        model: &Path,
        stop: &AtomicBool,
    ) -> anyhow::Result<Option<Sample>> {
        let port = server::free_port()?;
        let Some(mut command) = self.server_command(contender, model, port) else { return Ok(None) };
        server::sample(&mut command, port, stop).map(Some).with_context(|| contender.name())
    }

    fn server_command(&self, contender: Contender, model: &Path, port: u16) -> Option<Command> {
        let mut command = match contender {
            Contender::Dunlin => {
                let mut command = Command::new(self.dunlin.as_ref()?);
                command.arg("serve").arg(model).arg("--cache-dir").arg(&self.cache_dir);
                command
            }
            Contender::LlamaRepacked | Contender::LlamaPlain => {
                let mut command = Command::new(self.llama_dir.join("llama-server"));
                command.arg("-m").arg(model);
                if contender == Contender::LlamaPlain {
                    command.arg("--no-repack");
                }
                command
            }
        };
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--parallel", "1"]);
        command.args(["--threads", &self.threads.to_string(), "--ctx-size", &CONTEXT_TOKENS.to_string()]);
        Some(command)
    }

    /// The first line that llama.cpp says of its version.
    pub(super) fn llama_version(&self) -> anyhow::Result<String> {
        let program = self.llama_dir.join("llama-server");
        let out = Command::new(&program).arg("--version").output();
        let out = out.with_context(|| {
            format!("cannot run {}; --llama-dir names the folder of llama.cpp's programs", program.display())
        })?;
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().find(|line| line.starts_with("version")).unwrap_or("version unknown").to_owned())
    }
}

fn own_speed(json: &Value) -> anyhow::Result<Speed> {
    let number = |key: &str| json[key].as_f64().with_context(|| format!("no {key} in {json}"));
    Ok(Speed {
        prefill_tokens_per_s: number("prefill_tokens_per_s")?,
        decode_tokens_per_s: number("decode_tokens_per_s")?,
        bytes_per_token: json["bytes_per_token"].as_u64(),
    })
}

/// `llama-bench` prints one object per test.
fn llama_speed(json: &Value) -> anyhow::Result<Speed> {
    let tests = json.as_array().context("llama-bench printed no array")?;
    let speed = |prompt: usize, generated: usize| -> anyhow::Result<f64> {
        let is = |test: &&Value| test["n_prompt"] == prompt && test["n_gen"] == generated;
        let test = tests.iter().find(is).context("llama-bench left out a test")?;
        let speed = test["avg_ts"].as_f64().unwrap_or(0.0);
        ensure!(speed > 0.0, "llama-bench measured nothing: {test}");
        Ok(speed)
    };
    Ok(Speed {
        prefill_tokens_per_s: speed(PREFILL_TOKENS, 0)?,
        decode_tokens_per_s: speed(0, DECODE_TOKENS)?,
        bytes_per_token: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_test_of_llama_bench_is_found() {
        let out = json!([
            { "n_prompt": 512, "n_gen": 0, "avg_ts": 200.5 },
            { "n_prompt": 0, "n_gen": 64, "avg_ts": 40.25 },
        ]);
        let speed = llama_speed(&out).unwrap();
        assert_eq!((speed.prefill_tokens_per_s, speed.decode_tokens_per_s), (200.5, 40.25));
        assert!(llama_speed(&json!([])).is_err());
    }
}
