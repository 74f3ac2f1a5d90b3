//! Answers in events.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Events, config, start, start_with, text_of};
use crate::fake::{Pace, Script};

async fn stream(path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let running = start(Script { replies: &[("ask", "yes sir"), ("", "no")], ..Script::default() }).await;
    let mut events = Events::open(&running, path, body).await.rest().await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// What differs between the chunks of a stream.
fn essence(chunks: &[Value]) -> Vec<Value> {
    let head = |chunk: &Value| {
        ["id", "object", "created", "model", "system_fingerprint"].map(|key| chunk[key].clone())
    };
    assert!(chunks.iter().all(|chunk| head(chunk) == head(&chunks[0])), "one answer, one head");
    chunks.iter().map(|chunk| chunk["choices"].clone()).collect()
}

#[tokio::test]
async fn a_chat_in_chunks() {
    let ask = json!({"messages": [{"role": "user", "content": "ask"}]});
    let chunks = stream("/v1/chat/completions", ask).await;
    let delta = |delta: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]);
    assert_eq!(
        essence(&chunks),
        [
            delta(json!({"role": "assistant", "content": ""})),
            delta(json!({"content": "yes"})),
            delta(json!({"content": " sir"})),
            json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}]),
        ]
    );
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(chunks[3]["timings"]["predicted_n"], 2);
}

#[tokio::test]
async fn usage_comes_last_when_asked_for() {
    let usage = |prompt, completion| json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": 0}});
    for (path, mut body, expected) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "ask"}]}), usage(22, 2)),
        ("/v1/completions", json!({"prompt": ["ask", "b"], "n": 2}), usage(6, 6)),
    ] {
        body["stream_options"] = json!({"include_usage": true});
        let mut chunks = stream(path, body).await;
        let last = chunks.pop().unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &expected));
        assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "null before the end");
    }
}

#[tokio::test]
async fn a_text_in_chunks() {
    let chunks = stream("/v1/completions", json!({"prompt": "ask", "echo": true})).await;
    let choice = |text: &str, reason: Option<&str>| json!([{"text": text, "index": 0, "logprobs": null, "finish_reason": reason}]);
    let expected = [choice("ask", None), choice("yes", None), choice(" sir", None), choice("", Some("stop"))];
    assert_eq!(essence(&chunks), expected);
    let chunks = stream("/v1/completions", json!({"prompt": "ask", "logprobs": 1})).await;
    let offsets: Vec<_> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"][0].as_u64())
        .collect();
    assert_eq!(offsets, [0, 3]);
}

#[tokio::test]
async fn choices_are_interleaved() {
    let replies = &[("", "yes sir")];
    let running = start(Script { pace: Pace::ByHand, replies, ..Script::default() }).await;
    let body = json!({"messages": [{"role": "user", "content": "ask"}], "n": 2, "stream": true});
    let mut events = Events::open(&running, "/v1/chat/completions", body).await;
    // Two words, and the end.
    (0..3).for_each(|_| running.fake.step());
    let mut events = events.rest().await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let order: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 0, 1, 1, 0, 1, 0, 1], "role and word of each, word of each, end of each");
    for chunk in [0, 2] {
        assert_eq!(chunks[chunk]["choices"][0]["delta"]["role"], "assistant");
    }
    for chunk in [6, 7] {
        assert_eq!(chunks[chunk]["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn log_probabilities_in_chunks() {
    let body = json!({"messages": [{"role": "user", "content": "ask"}], "logprobs": true, "stop": "never"});
    let chunks = stream("/v1/chat/completions", body).await;
    let tokens: Vec<_> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"][0]["token"].as_str())
        .collect();
    assert_eq!(tokens, ["yes", " sir"], "tokens whose text is held back are told too");
    let events: Vec<_> = chunks.iter().map(Value::to_string).collect();
    assert_eq!(text_of(&events), "yes sir");
}

#[tokio::test]
async fn a_failure_within_a_stream() {
    let chunks = stream("/v1/completions", json!({"prompt": "[fail]ask", "ignore_eos": true})).await;
    let error = json!({"error": {
        "message": "the weights were washed away", "type": "server_error", "param": null, "code": "generation_failed",
    }});
    assert_eq!(chunks.last(), Some(&error));
}

#[tokio::test]
async fn a_refusal_is_no_stream() {
    let running = start(Script::default()).await;
    let response = running.post("/v1/completions", json!({"prompt": "", "stream": true, "n": 99})).await;
    assert_eq!((response.status, response.header("content-type")), (400, Some("application/json")));
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let mut config = config();
    config.keep_alive_interval = Duration::from_millis(1);
    let running = start_with(Script { pace: Pace::ByHand, ..Script::default() }, config).await;
    let mut events = Events::open(&running, "/v1/completions", json!({"prompt": "x", "stream": true})).await;
    events.comment().await;
    (0..6).for_each(|_| running.fake.step());
    let rest = events.rest().await;
    assert_eq!((rest.len(), rest.last().map(String::as_str)), (7, Some("[DONE]")));
}
