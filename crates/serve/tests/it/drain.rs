//! Going down: in order, and then at the deadline.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Events, config, start, start_with, until};
use crate::fake::{Pace, Script};

fn by_hand() -> Script {
    Script { pace: Pace::ByHand, ..Script::default() }
}

#[tokio::test]
async fn what_runs_is_finished_first() {
    let mut running = start(by_hand()).await;
    let mut idle = running.connect().await;
    assert_eq!(idle.send("GET", "/health", &[], b"").await.status, 200);
    let mut events = Events::open(&running, "/v1/completions", json!({"prompt": "x", "stream": true})).await;
    running.fake.step();
    events.next().await.unwrap();
    running.shut_down();
    assert!(idle.closed().await, "an idle connection ends at once");

    let health = running.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("draining")));
    assert_eq!(health.header("connection"), Some("close"));
    let refused = running.post("/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("draining")));

    (0..5).for_each(|_| running.fake.step());
    let rest = events.rest().await;
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    assert_eq!(rest.len(), 6, "all that was to come came");
    running.ended().await;
    assert!(running.fake.is_shut_down());
    assert!(tokio::net::TcpStream::connect(running.address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_and_told() {
    let mut config = config();
    config.drain_time_max = Duration::from_millis(1);
    let mut running = start_with(by_hand(), config).await;
    let mut events = Events::open(&running, "/v1/completions", json!({"prompt": "x", "stream": true})).await;
    let mut whole = running.connect().await;
    whole.write("POST", "/v1/completions", &[], b"{\"prompt\":\"x\"}").await;
    until("two submissions", || running.fake.requests().len() == 2).await;
    running.fake.step();
    running.shut_down();
    until("the deadline", || running.fake.left() == 2).await;
    running.fake.step();
    let rest = events.rest().await;
    let last: Value = serde_json::from_str(&rest[rest.len() - 2]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    let answer = whole.head().await;
    assert_eq!(answer.status, 200);
    running.ended().await;
}

#[tokio::test]
async fn a_stuck_engine_does_not_keep_the_server() {
    let mut config = config();
    config.drain_time_max = Duration::from_millis(1);
    config.farewell_time_max = Duration::from_millis(1);
    let mut running = start_with(by_hand(), config).await;
    let mut events = Events::open(&running, "/v1/completions", json!({"prompt": "x", "stream": true})).await;
    running.shut_down();
    running.ended().await;
    assert_eq!(events.rest().await, [] as [&str; 0], "the connection is cut");
}
