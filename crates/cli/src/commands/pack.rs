//! `dunlin pack`: packs a model's weights ahead of the first start, or checks what was packed.

use crate::error::{CliError, Kind};
use crate::loading::{self, isa_parser};
use crate::machine;
use crate::progress::PackingBar;
use crate::source::Source;
use crate::talk;
use anyhow::Context;
use clap::Args;
use engine::model::packed::{self, Fault, PackedFile};
use engine::{Isa, Pool};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use stdx::units::Bytes;

/// Pack a model's weights ahead of time, so that the first start is as fast as every other.
///
/// The file is the one that `serve`, `up` and `run` look for; its path goes to standard output. One that is there is read
/// and kept if it is sound. Where the weights take no more than 64 MiB there is none: they are packed into memory at
/// every start.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin pack model.gguf
  dunlin pack model.gguf --cache-dir /var/cache/dunlin     for a service that looks there
  dunlin pack model.gguf --verify                          exit code 1 if it is damaged or missing
  dunlin pack model.gguf --json | jq -r .path")]
pub(crate) struct PackArgs {
    /// The model, a GGUF file; any part of a split one
    model: PathBuf,

    /// Only read the packed file and say whether it is sound
    #[arg(long, conflicts_with = "force")]
    verify: bool,

    /// Make the file anew even if there is a sound one
    #[arg(long)]
    force: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Threads that compute [default: the fast cores this process may use, within its CPU quota]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Instruction set to pack for, which this processor need not have; all but avx512-vnni share a file [default: the
    /// fastest of this processor]
    #[arg(long, value_name = "SET", value_parser = isa_parser())]
    isa: Option<Isa>,

    /// Folder for packed weights [default: $DUNLIN_CACHE_DIR, $XDG_CACHE_HOME/dunlin or ~/.cache/dunlin]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// The weights are small, so that no file is used.
    InMemory,
    Created,
    /// The file was there and is sound.
    Sound,
    Damaged,
    /// There is none that can be opened.
    Missing,
}

#[derive(Serialize)]
struct Report<'a> {
    /// Null where no file is used.
    path: Option<&'a str>,
    state: State,
    /// What is wrong with a file that is damaged or missing.
    fault: Option<String>,
    /// The size that the file has or should have.
    bytes: u64,
    /// Time to make or to read it.
    seconds: f64,
    bytes_per_second: Option<f64>,
}

pub(crate) fn run(args: &PackArgs) -> Result<(), CliError> {
    let isa = args.isa.unwrap_or_else(Isa::detect);
    let gguf = Source::File(args.model.clone()).open()?;
    let file = PackedFile::new(&gguf, isa, &folder(args)?)?;
    if file.packed_bytes() <= packed::MEMORY_BYTES_MAX {
        return report_small(args, &file);
    }
    let stop = stop_flag()?;
    let pool = Pool::new(args.threads.map_or_else(machine::threads, usize::from));
    let mut began = Instant::now();
    let checked = if args.force { None } else { Some(file.check(&pool, &stop)) };
    let state = match checked {
        Some(Ok(())) => State::Sound,
        Some(Err(fault @ Fault::Stopped)) => return Err(CliError::new(Kind::Failed, fault.to_string())),
        Some(Err(fault)) if args.verify => {
            let state = match fault.is_damage() {
                true => State::Damaged,
                false => State::Missing,
            };
            report(args, &file, state, Some(&fault), began)?;
            return Err(refusal(&file, &fault));
        }
        fault => {
            if let Some(Err(fault)) = fault.filter(|checked| checked.as_ref().is_err_and(Fault::is_damage)) {
                talk::say(format_args!(
                    "{} is damaged and will be made anew: {fault}",
                    file.path().display()
                ));
            }
            began = Instant::now();
            make(&file, &gguf, &pool, &stop, args.force)?;
            State::Created
        }
    };
    report(args, &file, state, None, began)
}

fn folder(args: &PackArgs) -> Result<PathBuf, CliError> {
    let folder = args.cache_dir.clone().or_else(loading::cache_dir).ok_or_else(|| {
        CliError::new(Kind::Usage, "no folder for packed weights is known: $HOME is not set")
            .with_hint("name one: --cache-dir FOLDER")
    })?;
    Ok(loading::packed_folder(folder))
}

/// Raised by Ctrl-C and SIGTERM: what was begun is removed before the end.
fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    ctrlc::set_handler(move || raised.store(true, Ordering::Release))?;
    Ok(stop)
}

fn make(
    file: &PackedFile,
    gguf: &engine::gguf::Gguf,
    pool: &Pool,
    stop: &AtomicBool,
    force: bool,
) -> Result<(), CliError> {
    if force {
        // A sound file would be taken for one that another process has just made.
        let removed = fs::remove_file(file.path());
        removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    }
    let mut bar = PackingBar::new();
    let made = file.make(gguf, pool, stop, &mut |progress| bar.update(progress));
    drop(bar);
    let path = file.path().display();
    made.with_context(|| format!("cannot write {path}")).map_err(|error| {
        let hint = format!("it takes {}; --cache-dir FOLDER puts it elsewhere", Bytes(file.len_bytes()));
        CliError::from(error).with_hint(hint)
    })
}

fn refusal(file: &PackedFile, fault: &Fault) -> CliError {
    let path = file.path().display();
    let message = if fault.is_missing() {
        format!("there is no packed file {path}")
    } else if fault.is_damage() {
        format!("the packed file {path} is damaged: {fault}")
    } else {
        format!("the packed file {path} cannot be read: {fault}")
    };
    CliError::new(Kind::Failed, message).with_hint("without --verify it is made anew")
}

fn report_small(args: &PackArgs, file: &PackedFile) -> Result<(), CliError> {
    let bytes = file.packed_bytes();
    talk::say(format_args!(
        "nothing to do: weights of {} are packed into memory at every start, files are for more than {}",
        Bytes(bytes),
        Bytes(packed::MEMORY_BYTES_MAX),
    ));
    let state = State::InMemory;
    let report = Report { path: None, state, fault: None, bytes, seconds: 0.0, bytes_per_second: None };
    if args.json { talk::write_line(serde_json::to_string_pretty(&report)?) } else { Ok(()) }
}

fn report(
    args: &PackArgs,
    file: &PackedFile,
    state: State,
    fault: Option<&Fault>,
    began: Instant,
) -> Result<(), CliError> {
    let (bytes, seconds) = (file.len_bytes(), began.elapsed().as_secs_f64());
    let whole = matches!(state, State::Created | State::Sound);
    let bytes_per_second = whole.then(|| (bytes as f64 / seconds).round());
    if args.json {
        let path = file.path().to_string_lossy();
        let fault = fault.map(ToString::to_string);
        let report = Report { path: Some(&path), state, fault, bytes, seconds, bytes_per_second };
        return talk::write_line(serde_json::to_string_pretty(&report)?);
    }
    if let Some(bytes_per_second) = bytes_per_second {
        let did = if state == State::Created { "packed" } else { "there and sound: read" };
        let speed = bytes_per_second / 1e9;
        talk::say(format_args!("{did} {} in {seconds:.2} s, {speed:.2} GB/s", Bytes(bytes)));
        talk::write_line(file.path().display())?;
    }
    Ok(())
}
