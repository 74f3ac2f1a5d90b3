//! The engines without their servers: each run is a fresh process that prints what it measured.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::contender::{Contender, Llama};
use super::programs::{Setting, apart};
use crate::process::output;
use engine::KvFormat;

/// A hang, not a slow machine: a thread that fills 4096 tokens of a 7B model twice is busy for some quarter of an hour.
const BENCH_MAX: Duration = Duration::from_secs(3600);
/// llama.cpp gives each sequence of a batch a cache of whole multiples of this.
const SEQUENCE_TOKENS: usize = 256;

/// What one process computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// None: not measured.
    pub(super) prefill_tokens: usize,
    /// None: not measured.
    pub(super) decode_tokens: usize,
    /// Tokens of context before the first.
    pub(super) depth: usize,
    pub(super) kv: KvFormat,
}

/// A speed, and what dunlin says that it takes; llama.cpp does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Speed {
    pub(super) tokens_per_s: f64,
    pub(super) takes: Option<Takes>,
}

/// What bounds the computation of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Takes {
    pub(super) bound: Bound,
    pub(super) per_token: f64,
    /// What the machine did a second, probed in the same process in turns with what is measured.
    pub(super) most_per_s: f64,
}

/// What there is only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// Bytes of weights, keys and values that are read.
    Read,
    /// Multiply-adds with weights.
    Macs,
}

impl Bound {
    pub(super) fn name(self) -> &'static str {
        match self {
            Bound::Read => "the memory read",
            Bound::Macs => "the dot products",
        }
    }

    /// What [`engine-bench`](super::engine_bench) calls it, for a token and for a second.
    pub(super) fn keys(self) -> (&'static str, &'static str) {
        match self {
            Bound::Read => ("read_bytes_per_token", "read_bytes_per_s"),
            Bound::Macs => ("macs_per_token", "macs_per_s"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Speeds {
    pub(super) prefill: Option<Speed>,
    pub(super) decode: Option<Speed>,
}

/// One sequence.
pub(super) fn one(setting: &Setting<'_>, contender: Contender, work: Work) -> anyhow::Result<Speeds> {
    match contender {
        Contender::Dunlin => {
            let mut command = own_command(setting, work.kv, work.prefill_tokens, work.decode_tokens);
            command.args(["--depth", &work.depth.to_string()]);
            own_speeds(&output(&mut command, BENCH_MAX, setting.stop)?)
        }
        Contender::Llama(llama) => {
            let mut command = llama_command(setting, llama, work)?;
            llama_speeds(&output(&mut command, BENCH_MAX, setting.stop)?, work)
        }
    }
}

/// Several sequences at once, each of `prompt_tokens` tokens before it decodes: the speed of all together for each number
/// of streams.
pub(super) fn batch(
    setting: &Setting<'_>,
    contender: Contender,
    streams: &[usize],
    prompt_tokens: usize,
    decode_tokens: usize,
) -> anyhow::Result<Vec<(usize, Speed)>> {
    let list = streams.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let speeds = match contender {
        Contender::Dunlin => {
            let mut command = own_command(setting, KvFormat::F16, prompt_tokens, decode_tokens);
            command.args(["--streams", &list]);
            own_batch(&output(&mut command, BENCH_MAX, setting.stop)?)?
        }
        Contender::Llama(llama) => {
            let mut command = apart(&setting.programs.llama("llama-batched-bench")?);
            command.arg("-m").arg(setting.model).args(["-npl", &list, "--output-format", "jsonl"]);
            command.args(["-npp", &prompt_tokens.to_string(), "-ntg", &decode_tokens.to_string()]);
            command.arg(if llama.repack { "--repack" } else { "--no-repack" });
            let (threads, context) =
                (setting.threads.to_string(), context_tokens(streams, prompt_tokens + decode_tokens));
            command.args(["-t", &threads, "-tb", &threads, "-c", &context.to_string()]);
            llama_batch(&output(&mut command, BENCH_MAX, setting.stop)?)?
        }
    };
    for wanted in streams {
        ensure!(speeds.iter().any(|speed| speed.0 == *wanted), "no speed of {wanted} streams");
    }
    Ok(speeds)
}

fn context_tokens(streams: &[usize], tokens: usize) -> usize {
    streams.iter().max().unwrap_or(&1) * tokens.next_multiple_of(SEQUENCE_TOKENS)
}

fn own_command(setting: &Setting<'_>, kv: KvFormat, prefill_tokens: usize, decode_tokens: usize) -> Command {
    let mut command = apart(&setting.programs.own);
    command.arg("engine-bench").arg(setting.model).arg("--cache-dir").arg(&setting.programs.cache_dir);
    command.args(["--threads", &setting.threads.to_string(), "--kv", kv.name()]);
    command.args(["--prefill", &prefill_tokens.to_string(), "--decode", &decode_tokens.to_string()]);
    command
}

fn llama_command(setting: &Setting<'_>, llama: Llama, work: Work) -> anyhow::Result<Command> {
    let mut command = apart(&setting.programs.llama("llama-bench")?);
    command.arg("-m").arg(setting.model).args(["-r", "1", "-o", "json"]);
    command.args(["--repack", if llama.repack { "1" } else { "0" }]);
    command.args(["-p", &work.prefill_tokens.to_string(), "-n", &work.decode_tokens.to_string()]);
    command.args(["-d", &work.depth.to_string(), "-ctk", work.kv.name(), "-ctv", work.kv.name()]);
    command.args(["-t", &setting.threads.to_string()]);
    if let Some(flash_attention) = llama.flash_attention {
        command.args(["-fa", if flash_attention { "on" } else { "off" }]);
    }
    Ok(command)
}

fn parse(out: &str) -> anyhow::Result<Value> {
    serde_json::from_str(out).with_context(|| format!("not JSON: {out}"))
}

fn own_speeds(out: &str) -> anyhow::Result<Speeds> {
    let json = parse(out)?;
    let of = |name: &str| Some(&json[name]).filter(|value| !value.is_null()).map(own_speed).transpose();
    Ok(Speeds { prefill: of("prefill")?, decode: of("decode")? })
}

fn own_batch(out: &str) -> anyhow::Result<Vec<(usize, Speed)>> {
    let json = parse(out)?;
    let entries = json["batch"].as_array().context("engine-bench printed no batch")?;
    let entry = |entry| Ok((positive(entry, "streams")? as usize, own_speed(entry)?));
    entries.iter().map(entry).collect()
}

fn own_speed(json: &Value) -> anyhow::Result<Speed> {
    let takes = |bound: Bound| {
        let (per_token, most_per_s) = bound.keys();
        let (per_token, most_per_s) = (positive(json, per_token)?, positive(json, most_per_s)?);
        Ok::<_, anyhow::Error>(Takes { bound, per_token, most_per_s })
    };
    let bound = [Bound::Read, Bound::Macs].into_iter().find(|bound| !json[bound.keys().0].is_null());
    Ok(Speed { tokens_per_s: positive(json, "tokens_per_s")?, takes: bound.map(takes).transpose()? })
}

/// `llama-bench` prints one object per test.
fn llama_speeds(out: &str, work: Work) -> anyhow::Result<Speeds> {
    let json = parse(out)?;
    let tests = json.as_array().context("llama-bench printed no array")?;
    let speed = |prompt: usize, generated: usize| -> anyhow::Result<Option<Speed>> {
        if prompt + generated == 0 {
            return Ok(None);
        }
        let is = |test: &&Value| {
            test["n_prompt"] == prompt && test["n_gen"] == generated && test["n_depth"] == work.depth
        };
        let test = tests.iter().find(is).context("llama-bench left out a test")?;
        Ok(Some(Speed { tokens_per_s: positive(test, "avg_ts")?, takes: None }))
    };
    Ok(Speeds { prefill: speed(work.prefill_tokens, 0)?, decode: speed(0, work.decode_tokens)? })
}

/// `llama-batched-bench` prints an object a line among others.
fn llama_batch(out: &str) -> anyhow::Result<Vec<(usize, Speed)>> {
    let entry = |line| {
        let json = parse(line)?;
        let speed = Speed { tokens_per_s: positive(&json, "speed_tg")?, takes: None };
        Ok((positive(&json, "pl")? as usize, speed))
    };
    out.lines().filter(|line| line.starts_with('{')).map(entry).collect()
}

fn positive(json: &Value, key: &str) -> anyhow::Result<f64> {
    let number = json[key].as_f64().filter(|number| number.is_finite() && *number > 0.0);
    number.with_context(|| format!("no {key} in {json}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { prefill_tokens: 512, decode_tokens: 64, depth: 64, kv: KvFormat::F16 };

    fn speed(tokens_per_s: f64) -> Speed {
        Speed { tokens_per_s, takes: None }
    }

    #[test]
    fn each_test_of_llama_bench_is_found() {
        let out = include_str!("captured/llama-bench.json");
        let speeds = llama_speeds(out, WORK).unwrap();
        assert_eq!(speeds, Speeds { prefill: Some(speed(385.145972)), decode: Some(speed(198.811039)) });
        let decode = llama_speeds(out, Work { prefill_tokens: 0, ..WORK }).unwrap();
        assert_eq!(decode, Speeds { prefill: None, ..speeds });
        assert!(llama_speeds(out, Work { depth: 4096, ..WORK }).is_err());
        assert!(llama_speeds("[]", WORK).is_err());
    }

    #[test]
    fn each_line_of_llama_batched_bench_is_found() {
        let out = include_str!("captured/llama-batched-bench.jsonl");
        assert_eq!(llama_batch(out).unwrap(), [(1, speed(180.361465)), (2, speed(201.772766))]);
        assert!(llama_batch("{\"pl\": 1}").is_err());
        assert_eq!(llama_batch("|    PP |\n").unwrap(), []);
    }

    #[test]
    fn what_the_engine_takes_is_kept() {
        let out = r#"{"prefill":{"tokens_per_s":300,"macs_per_token":1e9,"macs_per_s":4e11},"decode":null}"#;
        let takes = Takes { bound: Bound::Macs, per_token: 1e9, most_per_s: 4e11 };
        let prefill = Speed { tokens_per_s: 300.0, takes: Some(takes) };
        assert_eq!(own_speeds(out).unwrap(), Speeds { prefill: Some(prefill), decode: None });
        let entry = r#"{"streams":4,"tokens_per_s":90.5,"read_bytes_per_token":2e8,"read_bytes_per_s":3e10}"#;
        let takes = Takes { bound: Bound::Read, per_token: 2e8, most_per_s: 3e10 };
        let expected = Speed { tokens_per_s: 90.5, takes: Some(takes) };
        assert_eq!(own_batch(&format!(r#"{{"batch":[{entry}]}}"#)).unwrap(), [(4, expected)]);
        assert!(own_speeds(r#"{"decode":{"tokens_per_s":0}}"#).is_err());
        assert!(own_speeds(r#"{"decode":{"tokens_per_s":1,"read_bytes_per_token":2}}"#).is_err());
    }

    #[test]
    fn every_sequence_has_a_cache_of_whole_multiples() {
        assert_eq!(context_tokens(&[1, 8, 2], 192), 8 * 256);
        assert_eq!(context_tokens(&[2], 257), 2 * 512);
    }
}
