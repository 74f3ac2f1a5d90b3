//! A small HTTP client over plain sockets.

use crate::process::{Listening, PATIENCE};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The text of a completion, and why it ended.
    pub(crate) fn completion(&self) -> (String, String) {
        assert_eq!(self.status, 200, "{}", self.body);
        let choice = &self.json()["choices"][0];
        let field = |name: &str| choice[name].as_str().unwrap_or_default().to_owned();
        (field("text"), field("finish_reason"))
    }

    /// The same of a streamed one, which must have ended in order.
    pub(crate) fn streamed_completion(&self) -> (String, String) {
        assert_eq!(self.status, 200, "{}", self.body);
        assert!(self.body.trim_end().ends_with("data: [DONE]"), "the stream broke off: {}", self.body);
        let (mut text, mut reason) = (String::new(), String::new());
        let events =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|&data| data != "[DONE]");
        for event in events {
            let event: Value = serde_json::from_str(event).expect("an event is JSON");
            let choice = &event["choices"][0];
            text += choice["text"].as_str().unwrap_or_default();
            reason += choice["finish_reason"].as_str().unwrap_or_default();
        }
        (text, reason)
    }
}

/// A request that was sent; dropping it closes the connection.
pub(crate) struct Exchange {
    stream: BufReader<TcpStream>,
    /// What of the answer's head has been read.
    head: Vec<u8>,
}

impl Exchange {
    pub(crate) fn start(address: SocketAddr, method: &str, path: &str, body: &str) -> Self {
        Self::start_as(&address.to_string(), address, method, path, body)
    }

    /// The same, by another name of the server.
    pub(crate) fn start_as(host: &str, address: SocketAddr, method: &str, path: &str, body: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time is set");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("the server reads");
        Self { stream: BufReader::new(stream), head: Vec::new() }
    }

    /// Waits for the head of the answer.
    pub(crate) fn began(&mut self) {
        while !self.head.ends_with(b"\r\n\r\n") {
            let read = self.stream.read_until(b'\n', &mut self.head).expect("the server answers");
            assert!(read > 0, "no answer");
        }
    }

    pub(crate) fn finish(mut self) -> Response {
        self.began();
        let head = String::from_utf8(self.head).expect("a head is ASCII");
        let mut body = Vec::new();
        self.stream.read_to_end(&mut body).expect("the server answers");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { dechunk(&body) } else { body };
        Response { status, body: String::from_utf8(body).expect("answers are text") }
    }
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").expect("the length of a chunk");
        let len = str::from_utf8(&body[..end]).ok().and_then(|len| usize::from_str_radix(len, 16).ok());
        let len = len.expect("a hexadecimal length");
        if len == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[end + 2..][..len]);
        body = &body[end + 2 + len + 2..];
    }
}

impl Listening {
    pub(crate) fn get(&self, path: &str) -> Response {
        Exchange::start(self.address, "GET", path, "").finish()
    }

    pub(crate) fn begin(&self, path: &str, body: &Value) -> Exchange {
        Exchange::start(self.address, "POST", path, &body.to_string())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.begin(path, body).finish()
    }

    /// The value of a metric, labels included in its name.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {page}"))
    }
}
