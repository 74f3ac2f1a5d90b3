//! An OpenAI-compatible server as a user meets it: how long from the start of its process to the first token, and what
//! memory it holds then.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use crate::process::Running;
use crate::stop;

const HOST: &str = "127.0.0.1";
const START_MAX: Duration = Duration::from_secs(180);
/// How often a server that is not ready is asked again; the figures are no finer.
const POLL: Duration = Duration::from_millis(2);
const PROMPT: &str = "Once upon a time";
const TOKENS: usize = 16;

/// What one start of a server showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// From the start of the process to the first token of a streamed completion.
    pub(super) first_token_s: f64,
    /// After the whole answer.
    pub(super) memory: Memory,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// RssAnon: what the process holds for itself.
    pub(super) anonymous_bytes: u64,
    /// RssFile: pages of mapped files, which the kernel can drop and other processes share.
    pub(super) file_bytes: u64,
    /// Private_Clean and Private_Dirty: mapped files count for as long as nobody else maps them.
    pub(super) private_bytes: u64,
}

/// A port that is free now.
pub(super) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

/// Starts the server, asks for one completion, and stops it. `command` must make it listen on `port`.
pub(super) fn sample(command: &mut Command, port: u16, stop: &AtomicBool) -> anyhow::Result<Sample> {
    let started = Instant::now();
    let mut server = Running::start(command)?;
    let first_token_s = loop {
        server.ensure_alive()?;
        stop::check(stop)?;
        ensure!(started.elapsed() < START_MAX, "no answer within {} s", START_MAX.as_secs());
        if let Some(first_token_s) = complete(port, started)? {
            break first_token_s;
        }
        thread::sleep(POLL);
    };
    Ok(Sample { first_token_s, memory: Memory::of(server.id())? })
}

/// Streams a completion to its end and returns when its first token came; `None` where the server is not ready.
fn complete(port: u16, started: Instant) -> anyhow::Result<Option<f64>> {
    let Ok(mut stream) = TcpStream::connect((HOST, port)) else { return Ok(None) };
    stream.set_read_timeout(Some(START_MAX))?;
    let body =
        json!({ "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": true }).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next().context("the server closed the connection")??;
    match status.split(' ').nth(1) {
        Some("200") => {}
        Some("503") => return Ok(None),
        _ => {
            let answer: Vec<String> = lines.map_while(Result::ok).collect();
            bail!("the server answered {status:?}: {}", answer.last().map_or("", String::as_str));
        }
    }
    let mut first_token_s = None;
    for line in lines {
        match line?.strip_prefix("data: ") {
            Some(event) if event.starts_with('{') => {
                first_token_s.get_or_insert_with(|| started.elapsed().as_secs_f64());
            }
            Some("[DONE]") => break,
            _ => {}
        }
    }
    ensure!(first_token_s.is_some(), "the server's stream held no token");
    Ok(first_token_s)
}

impl Memory {
    fn of(id: u32) -> anyhow::Result<Memory> {
        let read = |file: &str| {
            let path = format!("/proc/{id}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        Ok(Memory {
            anonymous_bytes: field(&status, "RssAnon")?,
            file_bytes: field(&status, "RssFile")?,
            private_bytes: field(&rollup, "Private_Clean")? + field(&rollup, "Private_Dirty")?,
        })
    }
}

/// `name:  123 kB` among the lines of `text`, as bytes.
fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.with_context(|| format!("there is no {name}"))?.trim();
    let kilobytes: u64 =
        value.trim_end_matches("kB").trim().parse().with_context(|| format!("{name} is {value}"))?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let text = "RssAnon:\t     120 kB\nRssFile:\t    4096 kB\nPrivate_Clean:       8 kB\n";
        assert_eq!(field(text, "RssFile").unwrap(), 4096 * 1024);
        assert_eq!(field(text, "Private_Clean").unwrap(), 8 * 1024);
        assert!(field(text, "Rss").is_err());
    }

    #[test]
    fn memory_of_this_process() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(
            memory.anonymous_bytes > 0 && memory.file_bytes > 0 && memory.private_bytes > 0,
            "{memory:?}"
        );
    }
}
