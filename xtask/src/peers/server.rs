//! An OpenAI-compatible server as a user meets it: how long from the start of its process to the first token, what memory
//! it holds then, and how fast tokens arrive.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::busy::Busy;
use super::contender::Contender;
use super::programs::Setting;
use crate::process::Running;
use crate::stop;

const HOST: &str = "127.0.0.1";
/// Loading and repacking 8 GB from a slow disk.
const START_MAX: Duration = Duration::from_secs(600);
/// How often a server that is not ready is asked again; the figures are no finer.
const POLL: Duration = Duration::from_millis(2);
const PROMPT: &str = "Once upon a time";
/// What a start is followed by.
const START_TOKENS: usize = 16;
/// What a speed is taken from.
pub(super) const SPEED_TOKENS: usize = 48;

/// What one start of a server showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
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

/// Tokens per second of one server, by when they arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speeds {
    pub(super) quiet: f64,
    /// Beside a busy process.
    pub(super) busy: f64,
}

/// Starts a server, asks for one completion, and stops it.
pub(super) fn start(setting: &Setting<'_>, contender: Contender) -> anyhow::Result<Start> {
    let server = Server::start(setting, contender)?;
    Ok(Start { first_token_s: server.first_token_s, memory: Memory::of(server.process.id())? })
}

/// Starts a server, and has it generate with the machine quiet and beside a busy process.
pub(super) fn speeds(setting: &Setting<'_>, contender: Contender) -> anyhow::Result<Speeds> {
    let server = Server::start(setting, contender)?;
    let quiet = server.tokens_per_s(setting.stop)?;
    let busy = Busy::start(&setting.programs.own, setting.stop)?;
    let beside_busy = server.tokens_per_s(setting.stop)?;
    busy.end()?;
    Ok(Speeds { quiet, busy: beside_busy })
}

/// A server that has answered once; it ends when this is dropped.
struct Server {
    process: Running,
    port: u16,
    first_token_s: f64,
}

impl Server {
    fn start(setting: &Setting<'_>, contender: Contender) -> anyhow::Result<Server> {
        let port = free_port()?;
        let mut command = setting.server(contender, port)?;
        let started = Instant::now();
        let mut process = Running::start(&mut command)?;
        loop {
            process.ensure_alive()?;
            stop::check(setting.stop)?;
            ensure!(started.elapsed() < START_MAX, "no answer within {} s", START_MAX.as_secs());
            if let Some(answer) = complete(port, START_TOKENS, setting.stop)? {
                let first_token_s = (answer.first_arrival - started).as_secs_f64();
                return Ok(Server { process, port, first_token_s });
            }
            thread::sleep(POLL);
        }
    }

    fn tokens_per_s(&self, stop: &AtomicBool) -> anyhow::Result<f64> {
        let answer = complete(self.port, SPEED_TOKENS, stop)?.context("the server is not ready any more")?;
        answer.tokens_per_s()
    }
}

/// A port that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

/// A streamed completion.
#[derive(Clone, Copy, Debug)]
struct Answer {
    first_arrival: Instant,
    last_arrival: Instant,
    /// By the server's own count.
    tokens: u64,
}

impl Answer {
    /// What came first is taken for one token; a server may hold back text that is no whole character.
    fn tokens_per_s(self) -> anyhow::Result<f64> {
        let seconds = (self.last_arrival - self.first_arrival).as_secs_f64();
        ensure!(self.tokens > 1 && seconds > 0.0, "the server's stream was too short: {self:?}");
        Ok((self.tokens - 1) as f64 / seconds)
    }
}

/// Streams a completion of `tokens` tokens to its end; `None` where the server is not ready.
fn complete(port: u16, tokens: usize, stop: &AtomicBool) -> anyhow::Result<Option<Answer>> {
    let Ok(mut stream) = TcpStream::connect((HOST, port)) else { return Ok(None) };
    stream.set_read_timeout(Some(START_MAX))?;
    let body = json!({
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": { "include_usage": true },
    })
    .to_string();
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
    let (mut arrivals, mut tokens) = (None, 0);
    for line in lines {
        stop::check(stop)?;
        match event(&line?) {
            Event::Text => {
                let now = Instant::now();
                arrivals = Some((arrivals.map_or(now, |(first, _)| first), now));
            }
            Event::Usage(count) => tokens = count,
            Event::Done => break,
            Event::Other => {}
        }
    }
    let (first_arrival, last_arrival) = arrivals.context("the server's stream held no token")?;
    Ok(Some(Answer { first_arrival, last_arrival, tokens }))
}

/// What a line of a stream says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Text,
    /// Tokens of the whole answer.
    Usage(u64),
    Done,
    /// Nothing that counts here.
    Other,
}

fn event(line: &str) -> Event {
    let Some(data) = line.strip_prefix("data: ") else { return Event::Other };
    if data == "[DONE]" {
        return Event::Done;
    }
    let json: Value = serde_json::from_str(data).unwrap_or_default();
    if let Some(tokens) = json["usage"]["completion_tokens"].as_u64() {
        return Event::Usage(tokens);
    }
    match json["choices"][0]["text"].as_str() {
        Some(text) if !text.is_empty() => Event::Text,
        _ => Event::Other,
    }
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

    fn events(captured: &str) -> Vec<Event> {
        captured.lines().map(event).filter(|event| *event != Event::Other).collect()
    }

    #[test]
    fn both_servers_tell_their_tokens() {
        let llama = events(include_str!("captured/llama-server.sse"));
        assert_eq!(llama, [Event::Text, Event::Usage(4), Event::Done]);
        let dunlin = events(include_str!("captured/dunlin-serve.sse"));
        assert_eq!(dunlin, [Event::Text, Event::Usage(3), Event::Done]);
        assert_eq!(event("data: not json"), Event::Other);
    }

    #[test]
    fn speed_is_what_came_after_the_first_token() {
        let first_arrival = Instant::now();
        let answer = |milliseconds, tokens| {
            let last_arrival = first_arrival + Duration::from_millis(milliseconds);
            Answer { first_arrival, last_arrival, tokens }.tokens_per_s()
        };
        assert_eq!(answer(500, 6).unwrap(), 10.0);
        assert!(answer(500, 1).is_err());
        assert!(answer(0, 6).is_err());
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
