//! Accepting connections and ending them in order. It speaks HTTP/1.1 only and knows no route.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::stall::Stall;

/// How far a server is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Open,
    /// Connections end with the answer they are giving, idle ones at once. New ones are still taken, so that
    /// health checks hear that the server is draining; the routes decide what else they hear.
    Draining,
    /// What is left is cut.
    Closed,
}

/// What a peer may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    /// From the first moment of waiting for a request to the end of its head: so also how long a connection may idle.
    pub header_time_max: Duration,
    /// A request's head, and what is read ahead of a body. Reading goes in growing steps, so that up to twice as much
    /// may pass.
    pub head_bytes_max: usize,
    /// How long a peer may take nothing of what is being sent.
    pub write_stall_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            header_time_max: Duration::from_secs(30),
            head_bytes_max: 64 * 1024,
            write_stall_max: Duration::from_secs(30),
        }
    }
}

/// An answer for those who come when all connections are taken.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\
retry-after: 1\r\ncontent-length: 127\r\n\r\n\
{\"error\":{\"message\":\"the server has no connection left\",\"type\":\"unavailable_error\",\"param\":null,\"code\":\"too_many_connections\"}}";

/// hyper refuses to work with less.
const HEAD_BYTES_MIN: usize = 8192;

/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `stage` is [`Stage::Closed`], or [`Stage::Draining`] with no connection left.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, mut stage: watch::Receiver<Stage>) {
    let mut connections = JoinSet::new();
    loop {
        let now = *stage.borrow_and_update();
        if now == Stage::Closed || (now == Stage::Draining && connections.is_empty()) {
            break;
        }
        tokio::select! {
            changed = stage.changed() => if changed.is_err() { break },
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() >= limits.connections_max => refuse(&stream),
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, router.clone(), limits.clone(), stage.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
        }
    }
    connections.shutdown().await;
}

fn refuse(stream: &TcpStream) {
    // The socket is fresh and its buffer empty; a peer that cannot even take this gets the closed connection.
    let _ = stream.try_write(FULL);
}

/// Answers one connection's requests. Errors are the peer's doing (it left, or broke the protocol) and end it.
async fn converse(stream: TcpStream, router: Router, limits: Limits, mut stage: watch::Receiver<Stage>) {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let opened = *stage.borrow_and_update();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time_max)
        .max_buf_size(limits.head_bytes_max.max(HEAD_BYTES_MIN))
        .serve_connection(
            TokioIo::new(Stall::new(stream, limits.write_stall_max)),
            TowerToHyperService::new(router),
        );
    let mut connection = pin!(connection);
    let draining = async {
        match opened {
            Stage::Open => drop(stage.wait_for(|stage| *stage >= Stage::Draining).await),
            // A connection opened while draining is for a health check: its answer closes it.
            _ => std::future::pending().await,
        }
    };
    let mut draining = pin!(draining);
    let mut told = false;
    std::future::poll_fn(|cx| {
        if !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_for_a_full_server_is_as_long_as_it_says() {
        let text = str::from_utf8(super::FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "the body has {} bytes",
            body.len()
        );
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
