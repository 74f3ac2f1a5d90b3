//! `peers`: dunlin and llama.cpp side by side on the same files.
//!
//! Every sample is a fresh process. A round goes through the tasks; in each, all contenders take one sample, in an order
//! that rotates from round to round, so that what else the machine does falls on all of them alike; ratios are made
//! within rounds. llama.cpp runs in both of its settings, with and without repacked weights (after a long context also
//! with and without flash attention), and for each figure the best one is the reference. Servers get one slot and a
//! context of 4096 tokens, and otherwise their defaults; all listen on the loopback only.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};
use engine::KvFormat;
use serde_json::json;

use crate::synth::{self, Preset, ShapeName};
use crate::{process, stop};

mod bench;
pub(crate) mod busy;
mod contender;
pub(crate) mod engine_bench;
mod figure;
mod machine;
mod programs;
mod report;
mod server;
mod task;

use bench::Work;
use contender::Contender;
use machine::{Machine, Probe};
use programs::{Programs, Setting};
use report::{Comparison, Round, Sample, Turn};
use task::{Group, Task};

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
    #[arg(long, value_delimiter = ',', default_value = "engine,start,memory")]
    measure: Vec<Group>,
    /// Threads that compute; each number is a comparison of its own
    #[arg(long, value_delimiter = ',', default_value = "2")]
    threads: Vec<usize>,
    /// For `depth`: tokens of context before the first that counts
    #[arg(long, value_delimiter = ',', default_value = "4096")]
    depth: Vec<usize>,
    /// For `depth`: formats of the key-value cache, by llama.cpp's names
    #[arg(long, value_delimiter = ',', default_value = KvFormat::F16.name())]
    kv: Vec<KvFormat>,
    /// For `batch`: sequences at once
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    streams: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder of llama.cpp's programs [default: $LLAMA_CPP_BIN, or where PATH has them]
    #[arg(long, default_value_os_t = llama_dir(), hide_default_value = true)]
    llama_dir: PathBuf,
    /// Where synthetic models and packed weights are kept
    #[arg(long, default_value = "target/peers")]
    work_dir: PathBuf,
    /// One JSON object with every sample
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The tables for the documentation
    #[arg(long)]
    markdown: bool,
}

fn llama_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("LLAMA_CPP_BIN") {
        return dir.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|dir| dir.join("llama-bench").is_file());
    found.unwrap_or_else(|| PathBuf::from("."))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        return run_optimized();
    }
    let at_least_one = |list: &[usize]| !list.is_empty() && !list.contains(&0);
    ensure!(args.rounds > 0, "there must be a round");
    ensure!(at_least_one(&args.threads), "there must be a thread");
    ensure!(at_least_one(&args.streams), "there must be a stream");
    let tasks = Task::of(&args.measure, &args.depth, &args.kv, &args.streams);
    let stop = stop::flag()?;
    let programs = programs(args, &tasks)?;
    let machine = Machine::look(&programs)?;
    let models = models(args, stop)?;
    if !args.json {
        println!("{machine}");
    }
    let mut comparisons = Vec::new();
    let result = compare_all(args, &tasks, &programs, &models, stop, &mut comparisons);
    if args.json {
        let comparisons: Vec<_> = comparisons.iter().map(Comparison::json).collect();
        println!("{:#}", json!({ "machine": machine.json(), "comparisons": comparisons }));
    } else {
        println!(
            "median (min-max); * the reference; ratio: times better than the reference, pair by pair, above 1 is better"
        );
    }
    result?;
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

/// All programs that the tasks need, or an error before hours of work.
fn programs(args: &Args, tasks: &[Task]) -> anyhow::Result<Programs> {
    let cache_dir = args.work_dir.join("cache");
    fs::create_dir_all(&cache_dir).with_context(|| format!("cannot make {}", cache_dir.display()))?;
    let dunlin = target_dir()?.join("release/dunlin");
    let own = std::env::current_exe()?;
    let programs = Programs { own, dunlin, llama_dir: args.llama_dir.clone(), cache_dir };
    programs.llama("llama-bench")?;
    if tasks.iter().any(Task::starts_servers) {
        programs.llama("llama-server")?;
        ensure!(programs.dunlin.is_file(), "there is no {}", programs.dunlin.display());
    }
    if args.measure.contains(&Group::Batch) {
        programs.llama("llama-batched-bench")?;
    }
    Ok(programs)
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

/// Prints each comparison when it is done. After an error or an interrupt the rounds that were whole are kept.
fn compare_all(
    args: &Args,
    tasks: &[Task],
    programs: &Programs,
    models: &[PathBuf],
    stop: &AtomicBool,
    comparisons: &mut Vec<Comparison>,
) -> anyhow::Result<()> {
    for model in models {
        let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for &threads in &args.threads {
            let model_bytes = read_through(model)?;
            let setting = Setting { programs, model, threads, stop };
            let mut comparison = Comparison { model: name.clone(), model_bytes, threads, rounds: Vec::new() };
            let result = compare(&setting, tasks, args.rounds, &mut comparison);
            if !comparison.rounds.is_empty() {
                if args.markdown {
                    println!("{}", comparison.markdown());
                } else if !args.json {
                    println!("{}", comparison.text());
                }
                comparisons.push(comparison);
            }
            result?;
        }
    }
    Ok(())
}

fn compare(
    setting: &Setting<'_>,
    tasks: &[Task],
    rounds: usize,
    comparison: &mut Comparison,
) -> anyhow::Result<()> {
    let title = format!("{}, threads: {}", comparison.model, setting.threads);
    prepare(setting, tasks, &title)?;
    for number in 0..rounds {
        let mut round = Round::default();
        let mut before = Probe::take(setting.threads);
        for task in tasks {
            let contenders = task.contenders();
            let mut samples = Vec::new();
            for turn in 0..contenders.len() {
                let contender = contenders[(turn + number) % contenders.len()];
                eprint!("{title}: round {} of {rounds}: {task}: {}", number + 1, contender.name());
                let new = task.samples(setting, contender).with_context(|| contender.name());
                eprintln!("{}", new.as_ref().map_or(String::new(), |new| values(new)));
                samples.extend(new?);
                stop::check(setting.stop)?;
            }
            let after = Probe::take(setting.threads);
            round.turns.push(Turn { before, samples, after });
            before = after;
        }
        comparison.rounds.push(round);
    }
    Ok(())
}

/// Brings the packed weights into their file and the page cache, and whatever else a first start does; not counted.
fn prepare(setting: &Setting<'_>, tasks: &[Task], title: &str) -> anyhow::Result<()> {
    eprintln!("{title}: preparing");
    let little = Work { prefill_tokens: 1, decode_tokens: 1, depth: 0, kv: KvFormat::F16 };
    let failed = || format!("{} cannot get ready", Contender::Dunlin.name());
    bench::one(setting, Contender::Dunlin, little).with_context(failed)?;
    if tasks.iter().any(Task::starts_servers) {
        server::start(setting, Contender::Dunlin).with_context(failed)?;
    }
    Ok(())
}

fn values(samples: &[Sample]) -> String {
    let value = |sample: &Sample| format!(" {:.2}", sample.value * sample.figure.scale());
    format!(":{}", samples.iter().map(value).collect::<String>())
}

/// Brings a file into the page cache; returns its length in bytes.
fn read_through(path: &Path) -> anyhow::Result<u64> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(io::copy(&mut file, &mut io::sink())?)
}
