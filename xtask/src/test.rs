//! `test`: everything that must hold before a change goes in, and a table of what ran, where, and what did not.
//!
//! Stages go on after one has failed, so that one run says all there is to say. What a machine cannot do is skipped and
//! said; nothing is skipped in silence.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use engine::Isa;

use crate::{aarch64, conformance, process, stop};

mod clients;
mod install;

/// Packages in the lock file: what is built from other people's code is to stay small enough to know.
const PACKAGES_MAX: usize = 320;

/// Check everything: format, lints, tests, reference data, and real clients against a real server
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs more than Rust: emulated processors and real clients
    #[arg(long)]
    quick: bool,
    /// Skip what lacks a program instead of installing it
    #[arg(long)]
    no_install: bool,
}

/// What a stage came to.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// So many checks, all good, and what else there is to say.
    Passed(usize, String),
    Failed(Count, String),
    Skipped(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

impl Outcome {
    fn of(count: Count, note: impl Into<String>) -> Outcome {
        match count {
            Count { passed, failed: 0 } => Outcome::Passed(passed, note.into()),
            count => Outcome::Failed(count, note.into()),
        }
    }

    /// One check that either holds or does not.
    fn one(result: anyhow::Result<String>) -> Outcome {
        match result {
            Ok(note) => Outcome::Passed(1, note),
            Err(error) => Outcome::Failed(Count { passed: 0, failed: 1 }, format!("{error:#}")),
        }
    }

    fn count(&self) -> Count {
        match self {
            Outcome::Passed(passed, _) => Count { passed: *passed, failed: 0 },
            Outcome::Failed(count, _) => *count,
            Outcome::Skipped(_) => Count::default(),
        }
    }
}

type Stage<'a> = (&'static str, &'a dyn Fn() -> anyhow::Result<Outcome>);

/// Exit code 1 if anything fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let stop = stop::flag()?;
    let root = root()?;
    std::env::set_current_dir(&root)?;
    let extended = |stage: &dyn Fn() -> anyhow::Result<Outcome>| {
        if args.quick { Ok(Outcome::Skipped("--quick".to_owned())) } else { stage() }
    };
    let install = !args.no_install;
    let stages: [Stage<'_>; 9] = [
        ("packages", &|| Ok(Outcome::one(packages(&root)))),
        ("format", &|| Ok(Outcome::one(cargo(&["fmt", "--all", "--check"])))),
        ("tests", &tests),
        ("lints", &|| Ok(Outcome::one(cargo(&LINTS)))),
        ("reference data", &reference_data),
        ("emulated Arm", &|| extended(&|| emulated(install))),
        ("OpenAI client", &|| extended(&|| clients::openai(&root, stop))),
        ("encoder", &|| extended(&|| clients::encoder(&root, stop))),
        ("chat page", &|| extended(&|| clients::chat_page(&root, install, stop))),
    ];

    let mut lines = Vec::new();
    for (name, stage) in stages {
        eprintln!("== {name}");
        let started = Instant::now();
        let outcome = stage().unwrap_or_else(|error| Outcome::one(Err(error)));
        stop::check(stop)?;
        lines.push(Line { name, outcome, duration: started.elapsed() });
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    let counts = lines.iter().map(|line| line.outcome.count());
    let count = counts
        .fold(Count::default(), |a, b| Count { passed: a.passed + b.passed, failed: a.failed + b.failed });
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn root() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    Ok(root.to_owned())
}

/// The cargo that started this.
fn cargo_command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

fn cargo(args: &[&str]) -> anyhow::Result<String> {
    process::show(&mut cargo_command(args)).with_context(|| format!("cargo {}", args[0]))?;
    Ok(String::new())
}

const LINTS: [&str; 7] = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];

fn packages(root: &Path) -> anyhow::Result<String> {
    let lock = fs::read_to_string(root.join("Cargo.lock"))?;
    let count = lock.lines().filter(|line| *line == "[[package]]").count();
    ensure!(count <= PACKAGES_MAX, "{count} packages in Cargo.lock, at most {PACKAGES_MAX} are allowed");
    Ok(format!("{count} in Cargo.lock, at most {PACKAGES_MAX}"))
}

/// All tests of the workspace, as they print; counted by what each harness says at its end.
fn tests() -> anyhow::Result<Outcome> {
    let mut command = cargo_command(&["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut printed = Printed::default();
    for line in BufReader::new(child.stdout.take().expect("it was piped")).lines() {
        let line = line?;
        println!("{line}");
        printed.add(&line);
    }
    let status = child.wait()?;
    if !status.success() && printed.count.failed == 0 {
        bail!("cargo test ended, {status}");
    }
    Ok(Outcome::of(printed.count, printed.note()))
}

/// What tests say of themselves.
#[derive(Debug, Default)]
struct Printed {
    count: Count,
    ignored: usize,
    /// Those that every test that names its instruction sets ran on.
    instruction_sets: Option<Vec<String>>,
    skips: Vec<String>,
}

impl Printed {
    fn add(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = result.split([' ', ';']).collect();
            let number = |what: &str| {
                words
                    .windows(2)
                    .find(|pair| pair[1] == what)
                    .and_then(|pair| pair[0].parse().ok())
                    .unwrap_or(0)
            };
            self.count.passed += number("passed");
            self.count.failed += number("failed");
            self.ignored += number("ignored");
        } else if let Some((_, sets)) = line.split_once(" ran on: ") {
            let sets: Vec<String> = sets.split(", ").map(str::to_owned).collect();
            let common = self.instruction_sets.get_or_insert_with(|| sets.clone());
            common.retain(|set| sets.contains(set));
        } else if line.contains("skipped") && !line.starts_with("test ") && !line.starts_with("---- ") {
            self.skips.push(line.to_owned());
        }
    }

    fn note(&self) -> String {
        let mut parts = Vec::new();
        if let Some(sets) = &self.instruction_sets {
            parts.push(format!("kernels on {}", sets.join(", ")));
        }
        if self.ignored > 0 {
            parts.push(format!("{} ignored", self.ignored));
        }
        parts.extend(self.skips.iter().cloned());
        parts.join("; ")
    }
}

/// The whole of the reference data, and its logits on every instruction set that this processor has.
fn reference_data() -> anyhow::Result<Outcome> {
    let dir = conformance::default_dir();
    if !dir.is_dir() {
        let reason = "no folder of reference data beside the repository or in $DUNLIN_SHARED";
        return Ok(Outcome::Skipped(reason.to_owned()));
    }
    let (mut count, mut notes) = (Count::default(), Vec::new());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let (passed, failed, unknown) = conformance::check_folder(&dir, isa)?;
        count = Count { passed: count.passed + passed, failed: count.failed + failed };
        notes.push(format!("{isa}: {passed} pass, {failed} fail, {unknown} not yet known"));
    }
    Ok(Outcome::of(count, notes.join("; ")))
}

/// The kernels' tests on processors that this machine is not.
fn emulated(install: bool) -> anyhow::Result<Outcome> {
    let runs = match aarch64::test(install)? {
        aarch64::Outcome::Ran(runs) => runs,
        aarch64::Outcome::Skipped(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let passed = runs.iter().map(|run| run.tests).sum();
    let notes: Vec<String> =
        runs.iter().map(|run| format!("{} on {}", run.instruction_sets.join(", "), run.processor)).collect();
    Ok(Outcome::Passed(passed, notes.join("; ")))
}

struct Line {
    name: &'static str,
    outcome: Outcome,
    duration: Duration,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.duration.as_secs();
        let (verdict, figures, note) = match &self.outcome {
            Outcome::Passed(passed, note) => ("ok", format!("{passed} passed in {seconds} s"), note),
            Outcome::Failed(Count { passed, failed }, note) => {
                ("FAILED", format!("{passed} passed, {failed} failed in {seconds} s"), note)
            }
            Outcome::Skipped(reason) => ("skipped", String::new(), reason),
        };
        let line = format!("{:15} {verdict:8}{figures:24} {note}", self.name);
        f.write_str(line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_harnesses_print_is_counted() {
        let mut printed = Printed::default();
        for line in [
            "test a ... ok",
            "softmax ran on: scalar, avx2, avx512-vnni",
            "q4 ran on: scalar, avx2",
            "reference data: skipped, there is no folder",
            "test result: ok. 11 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        ] {
            printed.add(line);
        }
        assert_eq!(printed.count, Count { passed: 14, failed: 1 });
        assert_eq!(
            printed.note(),
            "kernels on scalar, avx2; 2 ignored; reference data: skipped, there is no folder"
        );
    }

    #[test]
    fn lines_say_what_ran_and_what_did_not() {
        let line = |outcome| {
            let line = Line { name: "tests", outcome, duration: Duration::from_secs(3) }.to_string();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(Outcome::Passed(5, "well".to_owned())), "tests ok 5 passed in 3 s well");
        assert_eq!(line(Outcome::Skipped("--quick".to_owned())), "tests skipped --quick");
        let failed = Outcome::one(Err(anyhow::anyhow!("no")));
        assert_eq!(failed.count(), Count { passed: 0, failed: 1 });
        assert_eq!(line(failed), "tests FAILED 0 passed, 1 failed in 3 s no");
    }
}
