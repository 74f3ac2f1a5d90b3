//! A small HTTP client that shows what is on the wire, and a server to talk to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use serve::{Access, Config, Environment, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::{Fake, Script};

/// How long anything may take before a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits `future`, which must not hang.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened in {PATIENCE:?}"),
    }
}

/// Awaits a condition that another thread brings about.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    soon(what, wait).await;
}

/// A configuration in which ids and times are always the same.
pub(crate) fn config() -> Config {
    let next = AtomicU64::new(1);
    let environment = Environment {
        unix_seconds: Arc::new(|| 1_234_567_890),
        unique: Arc::new(move || next.fetch_add(1, Ordering::Relaxed).to_string()),
    };
    Config { environment, ..Config::default() }
}

/// A server on a port of its own.
pub(crate) struct Running {
    pub(crate) server: Server,
    pub(crate) fake: Arc<Fake>,
    pub(crate) address: SocketAddr,
    pub(crate) accesses: Arc<Mutex<Vec<Access>>>,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// A server with a scripted model.
pub(crate) async fn start(script: Script) -> Running {
    start_with(script, config()).await
}

pub(crate) async fn start_with(script: Script, config: Config) -> Running {
    let fake = Fake::new(script);
    let running = start_without_model(Arc::clone(&fake), config).await;
    running.server.ready(fake);
    running
}

/// A server that is loading; its fake is for later.
pub(crate) async fn start_without_model(fake: Arc<Fake>, config: Config) -> Running {
    start_at("127.0.0.1:0".parse().unwrap(), fake, config).await
}

/// The same at any address.
pub(crate) async fn start_at(address: SocketAddr, fake: Arc<Fake>, mut config: Config) -> Running {
    let accesses: Arc<Mutex<Vec<Access>>> = Arc::default();
    let log = Arc::clone(&accesses);
    config.on_access = Some(Arc::new(move |access| log.lock().unwrap().push(access.clone())));
    let server = Server::new(config);
    let listener = wire::listen::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, asked) = oneshot::channel::<()>();
    let runner = server.clone();
    let task = tokio::spawn(async move { runner.run(listener, async move { drop(asked.await) }).await });
    Running { server, fake, address, accesses, shutdown: Some(shutdown), task }
}

impl Running {
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.connect().await.send("GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: impl ToString) -> Response {
        self.connect().await.post(path, body.to_string().as_bytes()).await
    }

    /// Asks the server to end, as SIGTERM would.
    pub(crate) fn shut_down(&mut self) {
        drop(self.shutdown.take());
    }

    /// Waits for the server's end.
    pub(crate) async fn ended(&mut self) {
        soon("the server's end", &mut self.task).await.unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        serve::Backend::shut_down(&*self.fake);
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    address: SocketAddr,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), address, buffer: Vec::new() }
    }

    pub(crate) async fn post(&mut self, path: &str, body: &[u8]) -> Response {
        self.send("POST", path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.write(method, path, headers, body).await;
        self.response_to(method).await
    }

    /// A whole response that was not asked for by [`Client::send`].
    pub(crate) async fn read(&mut self) -> Response {
        self.response_to("GET").await
    }

    async fn response_to(&mut self, method: &str) -> Response {
        let mut response = self.head().await;
        response.body = soon("a body", self.whole_body(method, &response)).await;
        response
    }

    pub(crate) async fn write(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if method == "POST" && !headers.iter().any(|(name, _)| *name == "content-length") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.raw(&[head.as_bytes(), body].concat()).await;
    }

    /// Whether the server took the bytes. It may answer, and close, before it has read everything.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// The head of a response; the body is left to be read.
    pub(crate) async fn head(&mut self) -> Response {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            assert!(soon("a head", self.fill()).await, "closed before a response");
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = str::from_utf8(&head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Response { status, headers, body: Vec::new() }
    }

    async fn whole_body(&mut self, method: &str, head: &Response) -> Vec<u8> {
        if method == "HEAD" || head.status == 204 || head.status == 304 {
            return Vec::new();
        }
        if let Some(length) = head.header("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length {
                assert!(self.fill().await, "closed within a body");
            }
            return self.buffer.drain(..length).collect();
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await {
            body.extend(chunk);
        }
        body
    }

    /// The next chunk of a chunked body; `None` at its end, or where the connection was cut.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                break end;
            }
            if !self.fill().await {
                return None;
            }
        };
        let length = usize::from_str_radix(str::from_utf8(&self.buffer[..line]).unwrap(), 16).unwrap();
        while self.buffer.len() < line + 2 + length + 2 {
            if !self.fill().await {
                return None;
            }
        }
        let chunk: Vec<u8> = self.buffer.drain(..line + 2 + length + 2).skip(line + 2).take(length).collect();
        (!chunk.is_empty()).then_some(chunk)
    }

    async fn fill(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0)
    }

    /// Whether the server has closed the connection without saying more.
    pub(crate) async fn closed(&mut self) -> bool {
        !soon("the connection's end", self.fill()).await
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A response that is a stream of events, being read.
pub(crate) struct Events {
    client: Client,
    parser: wire::sse::Parser,
    pending: std::collections::VecDeque<String>,
    pub(crate) comments: usize,
}

impl Events {
    pub(crate) async fn open(running: &Running, path: &str, body: Value) -> Self {
        let mut client = running.connect().await;
        let body = body.to_string();
        client.write("POST", path, &[("content-type", "application/json")], body.as_bytes()).await;
        let head = client.head().await;
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
        let parser = wire::sse::Parser::new(1 << 20);
        Self { client, parser, pending: Default::default(), comments: 0 }
    }

    /// The data of the next event; `None` at the stream's end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        while self.pending.is_empty() {
            let chunk = soon("an event", self.client.chunk()).await?;
            self.comments += usize::from(chunk.starts_with(b":"));
            let mut events = Vec::new();
            self.parser.feed(&chunk, &mut events).unwrap();
            self.pending.extend(events.into_iter().map(|event| event.data));
        }
        self.pending.pop_front()
    }

    pub(crate) async fn comment(&mut self) {
        while self.comments == 0 {
            let chunk = soon("a comment", self.client.chunk()).await.expect("the stream goes on");
            self.comments += usize::from(chunk.starts_with(b":"));
        }
    }

    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        rest
    }
}

/// The text in a chat stream's events.
pub(crate) fn text_of(events: &[String]) -> String {
    let parsed = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    parsed.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}
