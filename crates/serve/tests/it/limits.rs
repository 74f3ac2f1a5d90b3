//! Limits of bodies, heads and connections; and which pages may ask.

use std::time::Duration;

use serde_json::json;
use serve::Config;

use crate::client::{config, soon, start, start_at, start_with};
use crate::fake::{Fake, Script};

#[tokio::test]
async fn bodies_that_are_too_long_or_too_slow() {
    let mut config = config();
    config.limits.body_bytes_max = 64;
    config.body_time_max = Duration::from_millis(10);
    let running = start_with(Script::default(), config).await;

    let announced = running.post("/v1/completions", json!({"prompt": "x".repeat(100)})).await;
    let mut client = running.connect().await;
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n64\r\n{}\r\n0\r\n\r\n",
        "x".repeat(100)
    );
    client.raw(chunked.as_bytes()).await;
    let found = client.head().await;
    assert_eq!((announced.status, found.status), (413, 413));
    assert_eq!(
        announced.json()["error"],
        json!({"message": "the body is longer than 64 bytes", "type": "invalid_request_error", "param": null, "code": "body_too_large"})
    );

    let mut client = running.connect().await;
    client.write("POST", "/v1/completions", &[("content-length", "10")], b"{").await;
    assert_eq!(client.head().await.status, 408);
}

#[tokio::test]
async fn bodies_in_pieces_are_put_together() {
    let running = start(Script::default()).await;
    let mut client = running.connect().await;
    client.raw(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for piece in ["{\"con", "tent\"", ":\"a\"}"] {
        client.raw(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await;
    }
    client.raw(b"0\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("15")));
}

#[tokio::test]
async fn a_head_that_does_not_end() {
    let mut config = config();
    config.connections.header_time_max = Duration::from_millis(10);
    let running = start_with(Script::default(), config).await;
    let mut client = running.connect().await;
    client.raw(b"GET /health HTTP/1.1\r\nx: ").await;
    assert!(client.closed().await);
}

#[tokio::test]
async fn a_head_that_is_too_long() {
    let running = start(Script::default()).await;
    let long = "x".repeat(300_000);
    let response = running.connect().await.send("GET", "/health", &[("x", &long)], b"").await;
    assert_eq!(response.status, 431);
}

#[tokio::test]
async fn large_bodies_wait_for_each_other_and_small_ones_do_not() {
    let mut config = config();
    config.bodies_bytes_max = 100_000;
    config.body_time_max = Duration::from_millis(200);
    let running = start_with(Script::default(), config).await;
    let large = json!({"content": "x".repeat(90_000)}).to_string();
    let mut slow = running.connect().await;
    slow.write("POST", "/tokenize", &[("content-length", "90000")], b"{").await;
    assert_eq!(running.post("/tokenize", json!({"content": "x"})).await.status, 200);
    let mut waits = running.connect().await;
    let answer = waits.post("/tokenize", large.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(slow.head().await.status, 408);
}

#[tokio::test]
async fn more_connections_than_allowed() {
    let mut config = config();
    config.connections.connections_max = 2;
    let running = start_with(Script::default(), config).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = running.connect().await;
        assert_eq!(client.send("GET", "/health", &[], b"").await.status, 200);
        held.push(client);
    }
    let mut client = running.connect().await;
    let refused = client.read().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "unavailable_error");
    drop(held);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let mut config = config();
    config.connections.write_stall_max = Duration::from_millis(10);
    let running = start_with(Script::default(), config).await;
    let mut client = running.connect().await;
    // Answers that nobody takes fill what sockets buffer, and then the server waits, and then no more.
    let body = json!({"tokens": vec![97; 200_000]}).to_string();
    let request = format!(
        "POST /detokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let cut = async { while client.raw(request.as_bytes()).await {} };
    soon("the cut", cut).await;
}

#[tokio::test]
async fn pages_of_other_origins() {
    let mut config = config();
    config.cors_origins = vec!["http://localhost:3000".into()];
    let running = start_with(Script::default(), config).await;
    let own = format!("http://{}", running.address);
    let mut client = running.connect().await;
    for (origin, site, status, allowed) in [
        ("http://localhost:3000", "cross-site", 200, Some("http://localhost:3000")),
        (&*own, "same-origin", 200, None),
        ("https://behind.proxy", "same-origin", 200, None),
        ("https://evil.example", "cross-site", 403, None),
        ("null", "cross-site", 403, None),
    ] {
        let headers = [("origin", origin), ("sec-fetch-site", site)];
        let response = client.send("POST", "/tokenize", &headers, b"{\"content\":\"a\"}").await;
        let found = (response.status, response.header("access-control-allow-origin"));
        assert_eq!(found, (status, allowed), "{origin}");
    }
    let preflight = [("origin", "http://localhost:3000"), ("access-control-request-method", "POST")];
    let response = client.send("OPTIONS", "/v1/chat/completions", &preflight, b"").await;
    assert_eq!((response.status, response.header("access-control-allow-methods")), (204, Some("GET, POST")));
    assert_eq!(
        response.header("access-control-allow-headers"),
        Some("authorization, content-type, x-requested-with")
    );
}

#[tokio::test]
async fn a_page_whose_name_leads_to_this_machine() {
    let mut config = config();
    config.hosts_allowed = vec!["box.lan".into()];
    let running = start_with(Script::default(), config).await;
    let mut client = running.connect().await;
    let own = running.address.to_string();
    for (host, status) in [
        (&*own, 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("box.lan:8080", 200),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
    ] {
        let origin = format!("http://{host}");
        let browser = [("host", host), ("origin", &*origin), ("sec-fetch-site", "same-origin")];
        for headers in [&browser[..], &browser[..1]] {
            let posted = client.send("POST", "/tokenize", headers, b"{\"content\":\"a\"}").await;
            let got = client.send("GET", "/v1/models", headers, b"").await;
            assert_eq!((posted.status, got.status), (status, status), "{host}");
        }
    }
    let refused = client.send("GET", "/", &[("host", "evil.example:8080")], b"").await.json();
    let message = "this server does not answer to the name 'evil.example'; start it with '--allowed-host evil.example' \
        if it should";
    assert_eq!(
        refused["error"],
        json!({"message": message, "type": "invalid_request_error", "param": null, "code": "host_not_allowed"})
    );
}

#[tokio::test]
async fn names_of_a_server_that_others_can_reach() {
    for (hosts_allowed, status) in [(&[][..], 200), (&["box.lan"], 403)] {
        let hosts_allowed = hosts_allowed.iter().map(|host| host.to_string()).collect();
        let everywhere = "0.0.0.0:0".parse().unwrap();
        let running =
            start_at(everywhere, Fake::new(Script::default()), Config { hosts_allowed, ..config() }).await;
        let response = running.connect().await.send("GET", "/metrics", &[("host", "some.name")], b"").await;
        assert_eq!(response.status, status);
    }
}
