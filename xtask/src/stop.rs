//! Ctrl-C and SIGTERM, as a flag that long work looks at: what was started gets stopped, what is half written removed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};

/// Set when someone wants an end.
pub(crate) fn flag() -> anyhow::Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    static LISTENING: OnceLock<()> = OnceLock::new();
    if LISTENING.set(()).is_ok() {
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")?;
    }
    Ok(&STOP)
}

pub(crate) fn check(flag: &AtomicBool) -> anyhow::Result<()> {
    ensure!(!flag.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
