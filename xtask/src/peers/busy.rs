//! `busy`: a process that keeps one core at integer arithmetic, as something else on the machine would.

use std::hint::black_box;
use std::io::Write;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::programs::apart;
use crate::process::Running;

const STARTED: &str = "busy";
const START_MAX: Duration = Duration::from_secs(10);
/// Some milliseconds: how long it may outlive who started it.
const STEPS: u32 = 1 << 22;

/// Keep one core busy until this program's parent ends, for `peers`
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let parent = parent_id();
    println!("{STARTED}");
    std::io::stdout().flush()?;
    let mut state = black_box(1u64);
    while parent_id() == parent {
        for _ in 0..STEPS {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        black_box(state);
    }
    Ok(ExitCode::SUCCESS)
}

/// A busy process, at the priority of what is measured; it ends when this is dropped.
pub(super) struct Busy {
    process: Running,
}

impl Busy {
    /// Starts one by `own`, this program, and waits until it is busy.
    pub(super) fn start(own: &Path, stop: &AtomicBool) -> anyhow::Result<Busy> {
        let mut process = Running::start(apart(own).arg("busy"))?;
        process.find(|text| text.contains(STARTED).then_some(()), START_MAX, stop)?;
        Ok(Busy { process })
    }

    /// Fails if it did not last until now: what was measured then was not beside it.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.process.ensure_alive()
    }
}
