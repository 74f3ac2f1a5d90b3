//! `peers`: dunlin and llama.cpp side by side on the same files.
//!
//! Every sample is a fresh process. A round takes one sample of each contender, in an order that rotates from round to
//! round, so that what else the machine does falls on all of them alike; ratios are made within rounds. llama.cpp runs in
//! both of its settings, with and without repacked weights, and for each figure the better one is the reference.
//! Servers get one slot and a context of 4096 tokens, and otherwise their defaults; all listen on the loopback only.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, ensure};
use kernels::{Pool, bandwidth};
use serde_json::json;

use crate::synth::{self, Preset, ShapeName};
use crate::{process, stop};

mod contender;
pub(crate) mod engine_bench;
mod report;
mod server;

use contender::{Contender, Programs};
use report::{Comparison, Figure, Round};

/// Larger than any last-level cache, as weights are.
const PROBE_BYTES: usize = 512 << 20;
const PROBE_TIME: Duration = Duration::from_millis(300);

/// Compare dunlin with llama.cpp on this machine
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Models to compare on
    models: Vec<PathBuf>,
    /// Without models: the shape of synthetic ones
    #[arg(long, default_value = "1b")]
    shape: ShapeName,
    /// Without models: the weight formats of synthetic ones
    #[arg(long, value_delimiter = ',', default_value = "q4_0,q4_k_m,q8_0,q6_k")]
    types: Vec<Preset>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder of llama-bench and llama-server [default: $LLAMA_CPP_BIN, or where PATH has them]
    #[arg(long, default_value_os_t = llama_dir(), hide_default_value = true)]
    llama_dir: PathBuf,
    /// Where synthetic models and packed weights are kept
    #[arg(long, default_value = "target/peers")]
    work_dir: PathBuf,
    /// Only the engines: no server is started
    #[arg(long)]
    no_servers: bool,
    /// One JSON object with every sample
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The table for the documentation
    #[arg(long)]
    markdown: bool,
}

fn llama_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("LLAMA_CPP_BIN") {
        return dir.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|dir| dir.join("llama-server").is_file());
    found.unwrap_or_else(|| PathBuf::from("."))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        return run_optimized();
    }
    let stop = stop::flag()?;
    let cache_dir = args.work_dir.join("cache");
    fs::create_dir_all(&cache_dir).with_context(|| format!("cannot make {}", cache_dir.display()))?;
    let dunlin = if args.no_servers { None } else { own_server()? };
    let programs = Programs { dunlin, llama_dir: args.llama_dir.clone(), cache_dir, threads: args.threads };
    let machine = Machine::look(&programs)?;
    ensure!(args.rounds > 0, "there must be a round");
    if !args.json {
        println!("{machine}");
    }

    let mut comparisons = Vec::new();
    for model in models(args, stop)? {
        let comparison = compare(&programs, &model, args, stop)?;
        if args.markdown {
            println!("{}", comparison.markdown());
        } else if !args.json {
            println!("{}", comparison.text());
        }
        comparisons.push(comparison);
    }
    if args.json {
        let comparisons: Vec<_> = comparisons.iter().map(Comparison::json).collect();
        println!("{:#}", json!({ "machine": machine.json(), "comparisons": comparisons }));
    } else {
        println!(
            "median (min-max); * the reference; ratio: times better than the reference, pair by pair, above 1 is better"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds what is measured, and this program too, with optimization, and becomes that. Returns only to fail.
fn run_optimized() -> anyhow::Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::show(Command::new(cargo).args([
        "build",
        "--release",
        "--package",
        "xtask",
        "--package",
        "cli",
    ]))?;
    let program = target_dir()?.join("release/xtask");
    let error = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// The folder that has the one this program lies in.
fn target_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).context("this program lies in no target folder")?.to_owned())
}

/// The `dunlin` beside this program, if it can serve.
fn own_server() -> anyhow::Result<Option<PathBuf>> {
    let program = target_dir()?.join("release/dunlin");
    let help = Command::new(&program).args(["serve", "--help"]).output();
    if help.is_ok_and(|out| out.status.success()) {
        return Ok(Some(program));
    }
    eprintln!("{} does not serve: no start-up time and memory of dunlin", program.display());
    Ok(None)
}

/// The files to compare on; synthetic ones are made where they are missing.
fn models(args: &Args, stop: &AtomicBool) -> anyhow::Result<Vec<PathBuf>> {
    if !args.models.is_empty() {
        return Ok(args.models.clone());
    }
    let dir = args.work_dir.join("models");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    args.types.iter().map(|&preset| synth::kept(&dir, args.shape, preset, stop)).collect()
}

fn compare(programs: &Programs, model: &Path, args: &Args, stop: &AtomicBool) -> anyhow::Result<Comparison> {
    let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let model_bytes = read_through(model)?;
    // Packs the weights and brings them into the page cache; not counted.
    eprintln!("{name}: preparing");
    let bytes_per_token = programs.speed(Contender::Dunlin, model, stop)?.bytes_per_token;

    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let mut round = Round { bandwidth_before: read_bytes_per_s(args.threads), ..Round::default() };
        for turn in 0..Contender::ALL.len() {
            let at = (turn + number) % Contender::ALL.len();
            round.samples[at] = samples(programs, Contender::ALL[at], model, args, stop)?;
        }
        round.bandwidth_after = read_bytes_per_s(args.threads);
        eprintln!("{name}: round {} of {}: {}", number + 1, args.rounds, summary(&round));
        rounds.push(round);
    }
    Ok(Comparison { model: name, model_bytes, bytes_per_token, rounds })
}

/// How fast all threads read memory right now: what bounds decoding, and what swings on shared machines.
fn read_bytes_per_s(threads: usize) -> f64 {
    bandwidth::read(&Pool::new(threads), PROBE_BYTES, PROBE_TIME)
}

fn samples(
    programs: &Programs,
    contender: Contender,
    model: &Path,
    args: &Args,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<(Figure, f64)>> {
    let speed = programs.speed(contender, model, stop)?;
    let mut samples =
        vec![(Figure::Prefill, speed.prefill_tokens_per_s), (Figure::Decode, speed.decode_tokens_per_s)];
    let served = if args.no_servers { None } else { programs.serve(contender, model, stop)? };
    if let Some(served) = served {
        samples.extend([
            (Figure::FirstToken, served.first_token_s),
            (Figure::AnonymousMemory, served.memory.anonymous_bytes as f64),
            (Figure::FileMemory, served.memory.file_bytes as f64),
            (Figure::PrivateMemory, served.memory.private_bytes as f64),
        ]);
    }
    Ok(samples)
}

/// One line while it runs.
fn summary(round: &Round) -> String {
    let mut out = format!("read {:.1} GB/s before", round.bandwidth_before / 1e9);
    for contender in Contender::ALL {
        let figure = |figure| round.sample(figure, contender).unwrap_or(f64::NAN);
        let (prefill, decode) = (figure(Figure::Prefill), figure(Figure::Decode));
        out += &format!(", {} {prefill:.0} / {decode:.1}", contender.name());
    }
    out + &format!(", read {:.1} GB/s after", round.bandwidth_after / 1e9)
}

/// Brings a file into the page cache; returns its length in bytes.
fn read_through(path: &Path) -> anyhow::Result<u64> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(io::copy(&mut file, &mut io::sink())?)
}

/// What figures must be read with.
struct Machine {
    processor: String,
    cores: usize,
    threads: usize,
    isa: &'static str,
    /// Runnable tasks over the last minute, before anything was started here.
    load: String,
    llama: String,
}

impl Machine {
    fn look(programs: &Programs) -> anyhow::Result<Machine> {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Machine {
            processor: model.map_or("unknown processor", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            threads: programs.threads,
            isa: engine::Isa::detect().name(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            llama: programs.llama_version()?,
        })
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "threads": self.threads,
            "isa": self.isa,
            "load_average_before": self.load,
            "llama_cpp": self.llama,
            "prefill_tokens": contender::PREFILL_TOKENS,
            "decode_tokens": contender::DECODE_TOKENS,
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} cores, {}; {} threads; load average {} before; llama.cpp {}",
            self.processor, self.cores, self.isa, self.threads, self.load, self.llama
        )
    }
}
