//! SIGINT and SIGTERM: the first asks, the second insists.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// What a shell reports for a program that SIGINT ended.
const EXIT_CODE: i32 = 130;

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Resolves when one of them comes.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ends the program without waiting for anything.
#[allow(
    clippy::exit,
    reason = "the engine may be in the middle of a long step, and returning would wait for it"
)]
pub(super) fn end_at_once() -> ! {
    std::process::exit(EXIT_CODE)
}
