//! LoRA adapters over the API: which a request names, which it gets otherwise, and which models there are with them.

use engine::AdapterScale;
use engine::model::Purpose;
use serde_json::{Value, json};

use crate::client::{Running, start, until};
use crate::fake::{Pace, Script};

async fn two() -> Running {
    start(Script { adapters: &["polite", "terse"], pace: Pace::ByHand, ..Script::default() }).await
}

/// What a request to a route asks the engine for, `None` being the default.
async fn asked(path: &str, extra: Value) -> Option<Vec<(usize, f32)>> {
    let running = two().await;
    let mut body = match path {
        "/v1/completions" => json!({"prompt": "x"}),
        _ => json!({"messages": [{"role": "user", "content": "x"}]}),
    };
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let mut client = running.connect().await;
    client.write("POST", path, &[], body.to_string().as_bytes()).await;
    until("a submission", || !running.fake.requests().is_empty()).await;
    let pair = |wanted: AdapterScale| (wanted.id, wanted.scale);
    let adapters = running.fake.requests().remove(0).adapters;
    adapters.map(|adapters| adapters.into_iter().map(pair).collect())
}

#[tokio::test]
async fn a_request_names_adapters_or_a_model_with_one() {
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for (extra, wanted) in [
            (json!({}), None),
            (json!({"lora": null}), None),
            (json!({"lora": []}), Some(vec![])),
            (json!({"lora": [{"id": 1, "scale": 0.5}]}), Some(vec![(1, 0.5)])),
            (
                json!({"lora": [{"id": 0.0, "scale": -1}, {"id": 1, "scale": 0}]}),
                Some(vec![(0, -1.0), (1, 0.0)]),
            ),
            (json!({"model": "dunlin"}), None),
            (json!({"model": "terse"}), Some(vec![(1, 1.0)])),
            (json!({"model": "shore/dunlin-1b:polite"}), Some(vec![(0, 1.0)])),
            (json!({"model": "dunlin:terse"}), Some(vec![(1, 1.0)])),
            (json!({"model": "terse", "lora": [{"id": 0, "scale": 2}]}), Some(vec![(0, 2.0)])),
        ] {
            assert_eq!(asked(path, extra.clone()).await, wanted, "{path} {extra}");
        }
    }
}

#[tokio::test]
async fn adapters_are_listed_and_their_scales_set() {
    let running = two().await;
    let listed = |polite: f32, terse: f32| {
        json!([
            {"id": 0, "name": "polite", "path": "/adapters/polite.gguf", "scale": polite},
            {"id": 1, "name": "terse", "path": "/adapters/terse.gguf", "scale": terse},
        ])
    };
    assert_eq!(running.get("/lora-adapters").await.json(), listed(1.0, 1.0));
    let set = running.post("/lora-adapters", json!([{"id": 1, "scale": 0.25}])).await;
    assert_eq!((set.status, set.json()), (200, json!({"success": true})));
    assert_eq!(running.get("/lora-adapters").await.json(), listed(0.0, 0.25));
    for (body, code, message) in [
        ("", json!(null), "the body is empty; send a JSON array"),
        ("{}", json!(null), "the body must be a JSON array, not an object"),
        (
            "[",
            json!("invalid_json"),
            "the body is not valid JSON: EOF while parsing a list at line 1 column 1",
        ),
        (
            "[] []",
            json!("invalid_json"),
            "the body is not valid JSON: trailing characters at line 1 column 4",
        ),
        ("[{\"id\":0}]", json!(null), "the body cannot be read: missing field `scale` at line 1 column 9"),
        (
            "[{\"id\":7,\"scale\":1}]",
            json!("invalid_value"),
            "'lora' names the adapter 7, and 2 are loaded, counted from 0",
        ),
    ] {
        let refused = running.post("/lora-adapters", body).await;
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["code"], &error["message"]),
            (400, &code, &json!(message)),
            "{body}"
        );
    }
    assert_eq!(
        running.get("/lora-adapters").await.json(),
        listed(0.0, 0.25),
        "what was refused changed nothing"
    );
}

#[tokio::test]
async fn models_with_adapters_are_models() {
    let running = two().await;
    let models = running.get("/v1/models").await.json();
    let ids: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|model| (&model["id"], &model["parent"])).collect();
    let (base, none) = (json!("shore/dunlin-1b"), json!(null));
    assert_eq!(ids, [(&base, &none), (&json!("polite"), &base), (&json!("terse"), &base)]);
    for id in ["terse", "dunlin:terse"] {
        assert_eq!(running.get(&format!("/v1/models/{id}")).await.json(), models["data"][2], "{id}");
    }
    for id in ["rude", "dunlin:rude", "other:terse", "terse:dunlin"] {
        assert_eq!(running.get(&format!("/v1/models/{id}")).await.status, 404, "{id}");
        let refused = running.post("/v1/completions", json!({"prompt": "x", "model": id})).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (404, &json!("model_not_found")),
            "{id}"
        );
    }
}

#[tokio::test]
async fn what_names_no_adapter_is_refused() {
    let running = two().await;
    let many = format!("[{}{{\"id\":0,\"scale\":1}}]", "{\"id\":0,\"scale\":1},".repeat(64));
    for (lora, code, message) in [
        ("7", "invalid_type", "'lora' must be an array, not a number"),
        (
            "[7]",
            "invalid_value",
            "'lora' cannot be read: invalid type: integer `7`, expected an object with 'id' and 'scale'",
        ),
        ("[{\"id\":0}]", "invalid_value", "'lora' cannot be read: missing field `scale`"),
        (
            "[{\"id\":0.5,\"scale\":1}]",
            "invalid_value",
            "'lora' has the id 0.5, which is not a number of an adapter",
        ),
        (
            "[{\"id\":-1,\"scale\":1}]",
            "invalid_value",
            "'lora' has the id -1, which is not a number of an adapter",
        ),
        (
            "[{\"id\":2,\"scale\":1}]",
            "invalid_value",
            "'lora' names the adapter 2, and 2 are loaded, counted from 0",
        ),
        (&many, "invalid_value", "'lora' has more than 64 elements"),
    ] {
        let refused = running.post("/v1/completions", format!("{{\"prompt\":\"x\",\"lora\":{lora}}}")).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (400, &json!("lora")), "{lora}");
        assert_eq!((&error["code"], &error["message"]), (&json!(code), &json!(message)), "{lora}");
    }
    let embedder = start(Script { purpose: Purpose::Embeds, ..Script::default() }).await;
    assert_eq!(embedder.get("/lora-adapters").await.json(), json!([]));
}
