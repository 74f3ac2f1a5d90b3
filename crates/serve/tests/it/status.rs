//! Health, metrics, models, the page and the log.

use std::collections::HashMap;

use serde_json::json;

use crate::client::{config, start, start_without_model, until};
use crate::fake::{Fake, Script};

#[tokio::test]
async fn health_while_the_model_comes() {
    let running = start_without_model(Fake::new(Script::default()), config()).await;
    let loading = running.get("/health").await;
    assert_eq!((loading.status, loading.header("retry-after")), (503, Some("2")));
    let error = json!({"message": "the model is loading; try again soon", "type": "unavailable_error", "param": null, "code": "model_loading"});
    assert_eq!(loading.json(), json!({"status": "loading", "error": error}));
    for (path, body) in [("/v1/chat/completions", "{}"), ("/v1/completions", "{}"), ("/tokenize", "{}")] {
        let response = running.post(path, body).await;
        assert_eq!((response.status, response.json()), (503, json!({"error": error})));
    }
    assert_eq!(running.get("/v1/models").await.status, 503);
    // Three were refused what they asked for, and one the models; who asks for health is told it.
    let metrics = running.get("/metrics").await;
    let refusals = metrics.text().lines().filter(|line| line.starts_with("dunlin_refusals_total"));
    assert_eq!(refusals.collect::<Vec<_>>(), ["dunlin_refusals_total{code=\"model_loading\"} 4"]);

    running.server.loading(0.25);
    assert_eq!(running.get("/health").await.json()["progress"], 0.25);

    running.server.failed("not a GGUF file");
    let failed = running.get("/health").await;
    assert_eq!((failed.status, &failed.json()["status"]), (503, &json!("failed")));
    assert_eq!(failed.json()["error"]["message"], "the model could not be loaded: not a GGUF file");

    running.server.ready(running.fake.clone());
    let ready = running.get("/health").await;
    assert_eq!((ready.status, ready.text()), (200, "{\"status\":\"ok\"}"));
}

#[tokio::test]
async fn models() {
    let running = start(Script::default()).await;
    let model = json!({
        "id": "shore/dunlin-1b", "object": "model", "created": 1_700_000_000, "owned_by": "dunlin", "aliases": ["dunlin"],
        "meta": {
            "n_ctx": 512, "n_ctx_train": 4096, "n_vocab": 1000, "n_params": 1_000_000_000, "size": 800_000_000,
            "quantization": "Q4_0", "purpose": "generation",
        },
    });
    assert_eq!(running.get("/v1/models").await.json(), json!({"object": "list", "data": [model]}));
    for id in ["shore/dunlin-1b", "dunlin"] {
        assert_eq!(running.get(&format!("/v1/models/{id}")).await.json(), model);
    }
}

/// The samples of a metrics page, after checking its form: every family has HELP and TYPE once, before its samples,
/// and no name comes in two places.
fn samples(page: &str) -> HashMap<String, f64> {
    let mut samples = HashMap::new();
    let mut families: Vec<(&str, &str)> = Vec::new();
    let mut helped = "";
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').unwrap().0;
            assert!(families.iter().all(|(name, _)| *name != helped), "{helped} twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            families.push((name, kind));
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let (family, kind) = families.last().unwrap();
            match (name.strip_prefix(family), *kind) {
                (Some("_bucket" | "_sum" | "_count"), "histogram") | (Some(""), "counter" | "gauge") => {}
                _ => panic!("{name} in {family}, a {kind}"),
            }
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} twice");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let running = start(Script::default()).await;
    for body in [
        json!({"prompt": "x"}),
        json!({"prompt": "x", "max_tokens": 2}),
        json!({"prompt": "[fail]"}),
        json!({"prompt": "[vanish]"}),
    ] {
        running.post("/v1/completions", body).await;
    }
    running.post("/v1/completions", json!({})).await;
    // What the engine refuses is no generation that ended.
    running.post("/v1/completions", json!({"prompt": "x".repeat(600)})).await;
    let response = running.get("/metrics").await;
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(response.text());
    for (sample, value) in [
        ("dunlin_requests_total{finished_reason=\"stop\"}", 1.0),
        ("dunlin_requests_total{finished_reason=\"length\"}", 1.0),
        ("dunlin_requests_total{finished_reason=\"cancelled\"}", 0.0),
        ("dunlin_requests_total{finished_reason=\"error\"}", 2.0),
        ("dunlin_refusals_total{code=\"invalid_value\"}", 1.0),
        ("dunlin_refusals_total{code=\"context_length_exceeded\"}", 1.0),
        ("dunlin_refusals_total{code=\"generation_failed\"}", 2.0),
        ("dunlin_time_to_first_token_seconds_count", 4.0),
        ("dunlin_time_to_first_token_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("dunlin_time_to_first_token_seconds_bucket{le=\"160\"}", 4.0),
        // Four gaps in five tokens, one in two, one in the two before each failure.
        ("dunlin_inter_token_latency_seconds_count", 7.0),
        ("dunlin_time_per_output_token_seconds_count", 3.0),
        ("dunlin_request_duration_seconds_count", 3.0),
        ("dunlin_request_queue_seconds_count", 3.0),
        ("dunlin_request_prefill_seconds_count", 3.0),
        ("dunlin_request_decode_seconds_count", 3.0),
        ("dunlin_prompt_tokens_total", 20.0),
        ("dunlin_requests_running", 0.0),
        ("dunlin_requests_waiting", 0.0),
        ("dunlin_weights_packed_ratio", 0.75),
        ("dunlin_kv_cache_usage_ratio", 0.0),
        ("dunlin_kv_cache_capacity_tokens", 4096.0),
        ("dunlin_model_info{model=\"shore/dunlin-1b\",quant=\"Q4_0\",sha256=\"00ff\"}", 1.0),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample}");
    }
    for bound in ["0.01", "0.2", "0.22", "0.24", "0.26", "0.28", "0.3", "2.5"] {
        assert!(
            samples.contains_key(&format!("dunlin_inter_token_latency_seconds_bucket{{le=\"{bound}\"}}")),
            "{bound}"
        );
    }
}

#[tokio::test]
async fn the_page_and_its_files() {
    let running = start(Script::default()).await;
    let page = running.get("/").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    for asset in ui::CHAT {
        let mut client = running.connect().await;
        let first = client.send("GET", asset.path, &[], b"").await;
        assert_eq!((first.status, first.header("content-type")), (200, Some(asset.content_type)));
        assert_eq!(first.body, asset.bytes);
        let etag = first.header("etag").unwrap();
        let again = client.send("GET", asset.path, &[("if-none-match", etag)], b"").await;
        assert_eq!((again.status, again.body.len()), (304, 0));
        let other = client.send("GET", asset.path, &[("if-none-match", "\"other\"")], b"").await;
        assert_eq!(other.status, 200);
    }
}

#[tokio::test]
async fn a_server_without_the_page() {
    let mut config = config();
    config.chat_page = false;
    let running = crate::client::start_with(Script::default(), config).await;
    assert_eq!(running.get("/").await.status, 404);
}

#[tokio::test]
async fn the_log_of_health() {
    let running = start_without_model(Fake::new(Script::default()), config()).await;
    running.get("/health").await;
    until("a line", || running.accesses.lock().unwrap().len() == 1).await;
    let access = running.accesses.lock().unwrap()[0].clone();
    assert_eq!((access.status.as_u16(), access.code), (503, Some("model_loading")));
}

#[tokio::test]
async fn the_log() {
    let running = start(Script::default()).await;
    running.get("/health").await;
    running.post("/v1/completions", json!({"prompt": "x", "stream": true})).await;
    running.post("/v1/completions", json!({"prompt": 7})).await;
    until("three lines", || running.accesses.lock().unwrap().len() == 3).await;
    let accesses = running.accesses.lock().unwrap();
    let lines: Vec<_> = accesses
        .iter()
        .map(|access| {
            (access.method.as_str(), &*access.path, access.status.as_u16(), access.code, access.complete)
        })
        .collect();
    assert_eq!(
        lines,
        [
            ("GET", "/health", 200, None, true),
            ("POST", "/v1/completions", 200, None, true),
            ("POST", "/v1/completions", 400, Some("invalid_type"), true),
        ]
    );
    assert_eq!(accesses[0].body_bytes, 15);
}
