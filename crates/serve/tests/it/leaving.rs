//! Clients that leave, and many at once.

use serde_json::json;

use crate::client::{Events, config, start, start_with, text_of, until};
use crate::fake::{Pace, Script};

const PROMPT: &str = "{\"prompt\":\"x\"}";

fn by_hand() -> Script {
    Script { pace: Pace::ByHand, ..Script::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_a_stream_frees_its_slot_within_one_step() {
    let running = start(by_hand()).await;
    let body = json!({"prompt": "x", "stream": true, "n": 3});
    let mut events = Events::open(&running, "/v1/completions", body).await;
    running.fake.step();
    assert!(events.next().await.is_some());
    assert_eq!(running.fake.left(), 0);
    drop(events);
    until("the server to notice", || running.fake.left() == 3).await;
    assert_eq!((running.fake.cancelled(), running.fake.requests().len()), (0, 3));
    running.fake.step();
    assert_eq!((running.fake.cancelled(), running.fake.requests().len()), (3, 0));
    until("the access log", || !running.accesses.lock().unwrap().is_empty()).await;
    assert!(!running.accesses.lock().unwrap()[0].complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_before_a_whole_answer_frees_its_slot_within_one_step() {
    let running = start(by_hand()).await;
    let mut client = running.connect().await;
    client.write("POST", "/v1/completions", &[], PROMPT.as_bytes()).await;
    until("a submission", || !running.fake.requests().is_empty()).await;
    running.fake.step();
    drop(client);
    until("the server to notice", || running.fake.left() == 1).await;
    running.fake.step();
    assert_eq!((running.fake.cancelled(), running.fake.requests().len()), (1, 0));
    assert!(
        running
            .get("/metrics")
            .await
            .text()
            .contains("dunlin_requests_total{finished_reason=\"cancelled\"} 1\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_streams_half_leave_and_half_finish() {
    let running = start(by_hand()).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(Events::open(&running, "/v1/completions", json!({"prompt": "x", "stream": true})).await);
    }
    running.fake.step();
    for stream in &mut streams {
        assert!(stream.next().await.is_some());
    }
    let mut index = 0;
    streams.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    until("the server to notice", || running.fake.left() == 32).await;
    running.fake.step();
    assert_eq!((running.fake.cancelled(), running.fake.requests().len()), (32, 32));
    (0..5).for_each(|_| running.fake.step());
    for mut stream in streams {
        let rest = stream.rest().await;
        assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
        assert_eq!(rest.len(), 6, "four more words, the end, and the mark of it: {rest:?}");
    }
    assert_eq!(running.fake.left(), 32);
}

#[tokio::test]
async fn a_full_queue_is_429() {
    for (waiting_max_of_server, waiting_max_of_engine) in [(2, 64), (64, 2)] {
        let mut config = config();
        config.waiting_max = waiting_max_of_server;
        let script = Script { running_max: 1, waiting_max: waiting_max_of_engine, ..by_hand() };
        let running = start_with(script, config).await;
        let mut waiting = Vec::new();
        for count in 1..=3 {
            waiting.push(
                Events::open(&running, "/v1/completions", json!({"prompt": "x", "stream": true})).await,
            );
            // The first takes the slot, the others wait.
            if count == 1 {
                running.fake.step();
            }
        }
        let response = running.post("/v1/completions", PROMPT).await;
        let expected = json!({"error": {
            "message": "2 requests are waiting already; try again later",
            "type": "rate_limit_error", "param": null, "code": "queue_full",
        }});
        assert_eq!((response.status, response.json()), (429, expected));
        assert_eq!(response.header("retry-after"), Some("2"));
        (0..20).for_each(|_| running.fake.step());
        for mut stream in waiting {
            assert_eq!(stream.rest().await.last().map(String::as_str), Some("[DONE]"));
        }
    }
}

#[tokio::test]
async fn a_request_that_fits_in_part_takes_nothing() {
    let running = start(Script { running_max: 2, waiting_max: 0, ..by_hand() }).await;
    let response = running.post("/v1/completions", json!({"prompt": "x", "n": 3})).await;
    assert_eq!(response.status, 429);
    assert_eq!(running.fake.left(), 2, "the two that were submitted are cancelled");
    running.fake.step();
    assert_eq!(running.fake.requests().len(), 0);
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let running = start(Script::default()).await;
    let mut client = running.connect().await;
    for _ in 0..3 {
        let response = client
            .post(
                "/v1/chat/completions",
                b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true}",
            )
            .await;
        let text = response.text().lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
        assert_eq!(text_of(&text.collect::<Vec<_>>()), "The sea is calm tonight.");
    }
}
