//! Programs that are run and looked at: none outlives the one who started it.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};

use crate::stop;

/// How often a running program and the stop flag are looked at.
const POLL: Duration = Duration::from_millis(5);
/// Of what a failed program wrote, the end is quoted.
const QUOTED_BYTES_MAX: usize = 4000;

/// A child that is killed and reaped when this is dropped.
pub(crate) struct Running {
    child: Child,
    name: String,
    stdout: Written,
    stderr: Written,
}

/// What a child has written so far.
struct Written {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts `command` without input; what it writes is kept.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Running> {
        let name = name_of(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdout = Written::by(child.stdout.take().expect("it was piped"));
        let stderr = Written::by(child.stderr.take().expect("it was piped"));
        Ok(Running { child, name, stdout, stderr })
    }

    /// Waits until `find` finds something in what was written to stdout or stderr.
    pub(crate) fn find<T>(
        &mut self,
        find: impl Fn(&str) -> Option<T>,
        time_max: Duration,
        stop: &AtomicBool,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        loop {
            if let Some(found) = find(&self.stdout.text()).or_else(|| find(&self.stderr.text())) {
                return Ok(found);
            }
            self.ensure_alive()?;
            stop::check(stop)?;
            if started.elapsed() > time_max {
                bail!("{} did not write what was waited for:\n{}", self.name, end(&self.stderr.text()));
            }
            thread::sleep(POLL);
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails, quoting what it wrote, if the program has ended.
    pub(crate) fn ensure_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.failure(status)),
            None => Ok(()),
        }
    }

    /// Waits for the end and returns what was written to stdout.
    pub(crate) fn finish(mut self, time_max: Duration, stop: &AtomicBool) -> anyhow::Result<String> {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            stop::check(stop)?;
            if started.elapsed() > time_max {
                bail!("{} did not end within {} s", self.name, time_max.as_secs());
            }
            thread::sleep(POLL);
        };
        if !status.success() {
            return Err(self.failure(status));
        }
        Ok(self.stdout.whole())
    }

    fn failure(&mut self, status: ExitStatus) -> anyhow::Error {
        let (stdout, stderr) = (self.stdout.whole(), self.stderr.whole());
        anyhow!("{} ended, {status}\n{}{}", self.name, end(&stdout), end(&stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended and been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Written {
    fn by(mut stream: impl Read + Send + 'static) -> Written {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            // A stream that breaks off has been read as far as it went.
            while let Ok(len @ 1..) = stream.read(&mut piece) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..len]);
            }
        });
        Written { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Once the child has ended: all of it.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // It does not panic.
            let _ = reader.join();
        }
        self.text()
    }
}

fn end(text: &str) -> &str {
    let mut start = text.len().saturating_sub(QUOTED_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// Runs `command` to its end and returns what it wrote to stdout; an error if it fails.
pub(crate) fn output(command: &mut Command, time_max: Duration, stop: &AtomicBool) -> anyhow::Result<String> {
    Running::start(command)?.finish(time_max, stop)
}

/// Runs `command` with this program's own stdout and stderr; an error if it fails.
pub(crate) fn show(command: &mut Command) -> anyhow::Result<()> {
    let name = name_of(command);
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    ensure!(status.success(), "{name} ended, {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn failures_quote_what_was_written() {
        let stop = AtomicBool::new(false);
        let minute = Duration::from_secs(60);
        assert_eq!(output(&mut shell("echo yes"), minute, &stop).unwrap(), "yes\n");
        let error = output(&mut shell("echo no >&2; exit 3"), minute, &stop).unwrap_err().to_string();
        assert_eq!(error, "sh ended, exit status: 3\nno\n");
    }

    #[test]
    fn what_is_waited_for_is_found_while_the_program_runs() {
        let mut running = Running::start(&mut shell("echo at 7 >&2; exec sleep 600")).unwrap();
        let find = |text: &str| text.strip_prefix("at ")?.strip_suffix('\n')?.parse::<u16>().ok();
        assert_eq!(running.find(find, Duration::from_secs(60), &AtomicBool::new(false)).unwrap(), 7);
    }

    #[test]
    fn nothing_outlives_an_interrupt() {
        let running = Running::start(&mut shell("exec sleep 600")).unwrap();
        let id = running.id();
        assert!(running.finish(Duration::from_secs(60), &AtomicBool::new(true)).is_err());
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists(), "process {id} is still there");
    }
}
