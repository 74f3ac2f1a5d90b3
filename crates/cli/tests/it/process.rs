//! Starting dunlin, waiting for it, and the files that tests need.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails instead of hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn demo() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/dunlin-demo.gguf").to_owned()
}

/// A file of the data that is shared between checkouts, where there is some.
pub(crate) fn shared(path: &str) -> Option<String> {
    let root = std::env::var_os("DUNLIN_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let candidates =
        [root.join(path), Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared").join(path)];
    let found = candidates.into_iter().find(|path| path.is_file());
    found.map(|path| path.to_string_lossy().into_owned())
}

pub(crate) fn dunlin(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command
        .args(arguments)
        .env("COLUMNS", "100")
        .env("DUNLIN_CACHE_DIR", "/nonexistent")
        .stdin(Stdio::null());
    command
}

/// Runs dunlin to its end, with `input` on its standard input.
pub(crate) fn output(arguments: &[&str], input: &str) -> Output {
    let mut command = dunlin(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary was built");
    // A program that ends without reading its input is judged by its output.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("a child can be waited for")
}

/// What it printed, where it succeeded.
pub(crate) fn stdout(arguments: &[&str], input: &str) -> String {
    let output = output(arguments, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("output is text")
}

/// Asks `condition` until it holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A dunlin that listens; killed when dropped.
pub(crate) struct Listening {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) stderr: BufReader<ChildStderr>,
}

impl Listening {
    /// Starts a command that serves, on a port of its own, and waits until it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = dunlin(arguments);
        command.args(["--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary was built");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("standard output can be read");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let address =
            line.trim().strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        let Some(address) = address else {
            let said: Vec<_> = stderr.lines().map_while(Result::ok).collect();
            panic!("{arguments:?} printed {line:?} and said {said:?}");
        };
        Self { child, address, stderr }
    }

    /// The same, once it has its model.
    pub(crate) fn ready(arguments: &[&str]) -> Self {
        let server = Self::start(arguments);
        until("the model is loaded", || server.get("/health").status == 200);
        server
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill can be run").success());
    }

    /// Waits for the end; its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        until("the server ends", || {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Reads standard error up to a line that contains `text`.
    pub(crate) fn says(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stderr.read_line(&mut line).expect("standard error can be read");
            assert!(read > 0, "it ended without saying {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// All that is left on standard error.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("standard error is text");
        rest
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that is gone with the value.
pub(crate) struct TemporaryFile(PathBuf);

impl TemporaryFile {
    pub(crate) fn new(ending: &str, bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("dunlin-it-{}-{}.{ending}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).expect("the folder for temporary files can be written");
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("the folder for temporary files has a plain name")
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
