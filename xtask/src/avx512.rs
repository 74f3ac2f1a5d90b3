//! `avx512`: runs the kernels' tests on AVX-512 VNNI where the processor has none: in a small Linux that boots on the
//! emulator Bochs. QEMU has no AVX-512, and Bochs emulates whole machines, so the tests travel in the image of a CD.
//!
//! Emulation says whether results are right, never how fast they come.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{harness, stop};

mod emulator;
mod image;
mod tools;

/// Run the kernels' tests on an emulated processor with AVX-512 VNNI
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only tests whose names contain one of these [default: a choice that takes minutes]
    filter: Vec<String>,
    /// Run all tests, which takes long
    #[arg(long, conflicts_with = "filter")]
    all: bool,
    /// End the emulator after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    limit: u64,
    /// Say what is missing instead of installing it
    #[arg(long)]
    no_install: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask avx512
  cargo xtask avx512 elementwise:: --limit 600
  cargo xtask avx512 --all --limit 7200";

const SET: &str = "avx512-vnni";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Below the repository; holds the kernel, what is built for the emulator, and a folder for each run.
const DIR: &str = "target/avx512";

/// Products in all formats, the edges of their range, and all elementwise functions.
const DEFAULT_FILTERS: [&str; 4] = [
    "matrix::products_match_double_precision",
    "matrix::every_exponent_of_mxfp4_counts",
    "matrix::the_largest_products_fit_their_sums",
    "elementwise::",
];

/// The exit code is that of the tests; 1 too if they did not run on AVX-512 VNNI.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let stop = stop::flag()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let dir = root.join(DIR);
    let kernel = tools::provide(&dir, !args.no_install, stop)?;
    let tests = build(root, &dir)?;
    let run_dir = RunDir::create(&dir)?;
    let result = test(args, &kernel, &tests, &run_dir.0, stop);
    // What failed can be looked at; what was interrupted was not wanted.
    if result.as_ref().is_ok_and(|status| *status == 0) || stop::check(stop).is_err() {
        run_dir.remove()?;
    } else {
        eprintln!("avx512: what was run lies in {}", run_dir.0.display());
    }
    result.map(ExitCode::from)
}

/// Boots the emulated machine for one run of the tests and returns their exit status.
fn test(args: &Args, kernel: &Path, tests: &[PathBuf], dir: &Path, stop: &AtomicBool) -> anyhow::Result<u8> {
    let iso = image::write(dir, kernel, tests, &filters(args), stop)?;
    eprintln!("the kernels' tests on an emulated {} (minutes)", emulator::PROCESSOR);
    let started = Instant::now();
    let ended = emulator::run(dir, &iso, Duration::from_secs(args.limit), stop)?;
    let (name, seconds) = (emulator::PROCESSOR, started.elapsed().as_secs());
    if ended.status != 0 {
        println!("avx512: {name}: failed with exit status {} after {seconds} s", ended.status);
        return Ok(ended.status);
    }
    let (tests, sets) = (harness::passed(&ended.printed), instruction_sets(&ended.printed)?.join(", "));
    println!("avx512: {name}: {tests} tests on {sets} in {seconds} s");
    Ok(0)
}

/// What the tests ran on; an error if [`SET`] is not among it, so that no test passes on nothing.
fn instruction_sets(printed: &str) -> anyhow::Result<Vec<String>> {
    let sets = harness::instruction_sets(printed);
    let ran = sets.iter().any(|ran| ran == SET);
    ensure!(ran, "no test ran on {SET} (choose some that print what they ran on)");
    Ok(sets)
}

fn filters(args: &Args) -> Vec<String> {
    if args.all || !args.filter.is_empty() {
        return args.filter.clone();
    }
    DEFAULT_FILTERS.map(str::to_owned).to_vec()
}

/// Builds the tests with the cargo that started this and returns their programs. They are static, since the emulated
/// machine has no libraries, and optimized, since it is slow.
fn build(root: &Path, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["test", "--release", "--package", "kernels", "--lib", "--test", "it", "--no-run"])
        .args(["--target", TARGET, "--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(dir.join("build"))
        .current_dir(root)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        // Either would take the place of the flags above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit());
    let out = command.output().context("cannot start cargo")?;
    ensure!(out.status.success(), "cargo test --no-run ended, {}", out.status);
    let mut programs = programs(&String::from_utf8_lossy(&out.stdout));
    // Cargo names them in the order in which they were done.
    programs.sort_unstable();
    ensure!(!programs.is_empty(), "cargo built no tests");
    Ok(programs)
}

/// The test programs among cargo's messages, one JSON object a line.
fn programs(messages: &str) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))).collect()
}

/// A folder for one run.
struct RunDir(PathBuf);

impl RunDir {
    fn create(dir: &Path) -> anyhow::Result<RunDir> {
        let dir = dir.join(format!("run-{}", std::process::id()));
        // A run that had the same process number may have failed and left it.
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(RunDir(dir))
    }

    fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","executable":null}
{"reason":"compiler-artifact","executable":"/target/deps/it-1"}
not JSON
{"reason":"build-finished","success":true}
"#;
        assert_eq!(programs(messages), [PathBuf::from("/target/deps/it-1")]);
    }

    #[test]
    fn tests_that_ran_on_nothing_do_not_pass() {
        let check =
            |printed: &str, passes| assert_eq!(instruction_sets(printed).is_ok(), passes, "{printed}");
        check("a ran on: scalar, avx512-vnni\n", true);
        check("a ran on: scalar, avx2\n", false);
        check("test result: ok. 1 passed; 0 failed\n", false);
    }

    #[test]
    fn filters_are_the_users_or_else_the_quick_ones() {
        let check = |all, given: &[&str], expected: &[&str]| {
            let filter = given.iter().map(|&filter| filter.to_owned()).collect();
            assert_eq!(filters(&Args { filter, all, limit: 1, no_install: true }), expected);
        };
        check(false, &[], &DEFAULT_FILTERS);
        check(false, &["peak"], &["peak"]);
        check(true, &[], &[]);
    }
}
