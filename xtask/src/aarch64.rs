//! `aarch64`: runs the kernels' tests for Arm on an x86-64 Debian: its cross compiler and its own Rust, whose standard
//! library comes for arm64 too, and QEMU as the processor.

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::{debian, harness};

/// Run the kernels' tests on emulated Arm processors
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Skip instead of installing the packages that are missing
    #[arg(long)]
    no_install: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    println!("{}", test(!args.no_install)?);
    Ok(ExitCode::SUCCESS)
}

/// What came of [`test`].
#[derive(Debug)]
pub(crate) enum Outcome {
    Ran(Vec<Run>),
    /// Why not.
    Skipped(String),
}

/// The suite on one processor.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) processor: &'static str,
    /// Those that every test ran on.
    pub(crate) instruction_sets: Vec<String>,
    pub(crate) tests: usize,
    pub(crate) duration: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Skipped(reason) => write!(f, "aarch64: skipped, {reason}"),
            Outcome::Ran(runs) => {
                for (i, run) in runs.iter().enumerate() {
                    let newline = if i == 0 { "" } else { "\n" };
                    let (sets, seconds) = (run.instruction_sets.join(", "), run.duration.as_secs());
                    write!(
                        f,
                        "{newline}aarch64: {}: {} tests on {sets} in {seconds} s",
                        run.processor, run.tests
                    )?;
                }
                Ok(())
            }
        }
    }
}

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Debian's Rust lies beside whichever one built this, so it is called by its full path.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";

const PACKAGES: [&str; 6] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev:arm64",
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "qemu-user-static",
];

/// Processors to emulate and the instruction sets that the tests must run on there: the Raspberry Pi 5's, an Armv8.0 one
/// without dot products, and whatever the emulator can do, since Debian's knows no processor by name that has matrix
/// instructions.
const PROCESSORS: [(&str, &[&str]); 3] = [
    ("cortex-a76", &["scalar", "neon", "neon-dotprod"]),
    ("cortex-a53", &["scalar", "neon"]),
    ("max", &["scalar", "neon", "neon-dotprod", "neon-i8mm"]),
];

/// Tests the kernels on every emulated processor. Skips where the tools cannot be had; fails where a test fails or an
/// instruction set that a processor has was not tested.
pub(crate) fn test(install: bool) -> anyhow::Result<Outcome> {
    if let Some(reason) = missing_tools(install)? {
        return Ok(Outcome::Skipped(reason));
    }
    PROCESSORS
        .into_iter()
        .map(|(processor, sets)| test_on(processor, sets))
        .collect::<anyhow::Result<_>>()
        .map(Outcome::Ran)
}

/// Installs what is missing where that is possible; otherwise says why there is nothing to run.
fn missing_tools(install: bool) -> anyhow::Result<Option<String>> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Ok(Some("the cross compiler is set up for x86-64 Linux only".to_owned()));
    }
    debian::provide(&PACKAGES, Some("arm64"), install)
}

fn test_on(processor: &'static str, expected: &[&str]) -> anyhow::Result<Run> {
    eprintln!("the kernels' tests on an emulated {processor} (minutes)");
    let start = Instant::now();
    let out = cargo_test(processor)?;
    let stdout = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("on {processor}: {}\n{stdout}{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    let (instruction_sets, tests) = (harness::instruction_sets(&stdout), harness::passed(&stdout));
    for set in expected {
        ensure!(
            instruction_sets.iter().any(|ran| ran == set),
            "{set} was not tested on {processor}:\n{stdout}"
        );
    }
    Ok(Run { processor, instruction_sets, tests, duration: start.elapsed() })
}

fn cargo_test(processor: &str) -> anyhow::Result<Output> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let variable = |name: &str| format!("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_{name}");
    Command::new(CARGO)
        .args(["test", "--package", "kernels", "--target", TARGET, "--target-dir", "target/aarch64"])
        .args(["--", "--nocapture"])
        .current_dir(root)
        .env("RUSTC", RUSTC)
        .env(variable("LINKER"), LINKER)
        .env(variable("RUNNER"), format!("{EMULATOR} -cpu {processor}"))
        // The emulator has no Arm libraries to load.
        .env(variable("RUSTFLAGS"), "-C target-feature=+crt-static")
        // What the cargo that runs this set for its own compiler.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUST_BACKTRACE")
        .output()
        .with_context(|| format!("running {CARGO}"))
}
