//! The routes over the real engine and the demo model.

use std::path::Path;
use std::sync::Arc;

use engine::{Engine, EngineConfig, Model, OpenOptions, Pool};
use serde_json::{Value, json};
use serve::{Card, EngineBackend};

use crate::client::{Events, Running, config, soon, start_without_model, text_of};
use crate::fake::{Fake, Script};

/// A control token of the demo model that does not end its answers.
const CONTROL: &str = "<|user|>";

const QUESTION: &str = "edge-cam-07 temp=91C fan=0rpm load=0.42 disk=63% mem=48% uptime=12d";

async fn start() -> Running {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/dunlin-demo.gguf");
    let pool = Pool::new(2);
    let model = Model::open(&path, &OpenOptions::default(), &pool, &mut |_| {}).unwrap();
    let parallel = EngineConfig { context_tokens: 1024, parallel: 2, ..EngineConfig::default() };
    let engine = Engine::start(Arc::new(model), pool, parallel);
    let card = Card { id: "demo".into(), ..Card::default() };
    let running = start_without_model(Fake::new(Script::default()), config()).await;
    running.server.ready(Arc::new(EngineBackend::new(engine, card, 0)));
    running
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_the_same_whole_in_pieces_and_among_others() {
    let running = start().await;
    let whole = running.post("/v1/chat/completions", chat(json!({}))).await.json();
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(content.contains("edge-cam-07") && content.contains("fan"), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);

    let body = chat(json!({"stream": true, "logprobs": true, "top_logprobs": 2}));
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(Events::open(&running, "/v1/chat/completions", body.clone()).await);
    }
    for mut stream in streams {
        let events = stream.rest().await;
        assert_eq!(text_of(&events), content);
    }
    let stats = running.get("/metrics").await;
    assert!(stats.text().contains("dunlin_requests_total{finished_reason=\"stop\"} 6\n"), "{}", stats.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_leave_make_room() {
    let running = start().await;
    let endless = chat(json!({"stream": true, "ignore_eos": true}));
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(Events::open(&running, "/v1/chat/completions", endless.clone()).await);
    }
    for stream in streams.iter_mut().take(2) {
        stream.next().await.unwrap();
    }
    drop(streams);
    let short = running.post("/v1/chat/completions", chat(json!({"max_tokens": 1}))).await.json();
    assert_eq!(short["usage"]["completion_tokens"], 1);
    let idle = || async { running.get("/metrics").await.text().contains("dunlin_requests_running 0\n") };
    let all_gone = async { while !idle().await {} };
    soon("the engine's rest", all_gone).await;
    let page = running.get("/metrics").await;
    assert!(
        page.text().contains("dunlin_requests_total{finished_reason=\"cancelled\"} 6\n"),
        "{}",
        page.text()
    );
    assert!(page.text().contains("dunlin_kv_cache_usage_ratio 0\n"), "{}", page.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_waits_for_the_last_answer() {
    let mut running = start().await;
    let long = chat(
        json!({"stream": true, "ignore_eos": true, "max_tokens": 500, "stream_options": {"include_usage": true}}),
    );
    let mut stream = Events::open(&running, "/v1/chat/completions", long).await;
    stream.next().await.unwrap();
    running.shut_down();
    let events = stream.rest().await;
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(500)));
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    running.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_tokens_are_spelled_out_in_lists_and_not_in_text() {
    let running = start().await;
    let asked = json!({"content": format!("a{CONTROL}"), "with_pieces": true});
    let pieces = running.post("/tokenize", asked).await.json()["tokens"].clone();
    let control = &pieces.as_array().unwrap().last().unwrap();
    assert_eq!(control["piece"], CONTROL, "{pieces}");

    // A bias that leaves the model no other choice.
    let forced = json!({"logprobs": true, "logit_bias": [[control["id"], 100]], "max_tokens": 1});
    let choice = running.post("/v1/chat/completions", chat(forced)).await.json()["choices"][0].clone();
    let listed = &choice["logprobs"]["content"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(""), &json!("length")));
    assert_eq!(
        (&listed["token"], &listed["bytes"]),
        (&json!(CONTROL), &json!(CONTROL.as_bytes())),
        "{choice}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_to_tokens_and_back() {
    let running = start().await;
    for text in [QUESTION, "Grüße 🐦", ""] {
        let tokens = running.post("/tokenize", json!({"content": text})).await.json();
        let back = running.post("/detokenize", &tokens).await.json();
        assert_eq!(back["content"], text, "{tokens}");
    }
    let model = &running.get("/v1/models").await.json()["data"][0];
    assert_eq!(
        (&model["id"], &model["meta"]["n_ctx"], &model["meta"]["quantization"]),
        (&json!("demo"), &json!(1024), &json!("Q8_0"))
    );
    let unlike = running.post("/v1/completions", json!({"prompt": [1, 999_999]})).await;
    assert_eq!((unlike.status, &unlike.json()["error"]["param"]), (400, &json!("prompt")));
}
