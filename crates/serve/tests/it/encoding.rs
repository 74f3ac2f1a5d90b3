//! Embeddings and rerank: shapes, options, and what is refused.

use engine::model::Purpose;
use serde_json::{Value, json};

use crate::client::{Running, start};
use crate::fake::Script;

async fn serving(purpose: Purpose) -> Running {
    start(Script { purpose, ..Script::default() }).await
}

async fn post(running: &Running, path: &str, body: Value) -> Value {
    let response = running.post(path, body).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

fn close(found: &Value, expected: &[f64]) -> bool {
    let found: Vec<f64> = found.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[tokio::test]
async fn embeddings_have_length_one_and_come_in_order() {
    let running = serving(Purpose::Embeds).await;
    // Each text's tokens, where a second one would begin, first and last token; "ab" comes after a special token.
    let ab = unit(&[3.0, 3.0, 256.0, 98.0]);
    for (input, expected) in [
        (json!("ab"), vec![ab.clone()]),
        (json!(["ab", "x"]), vec![ab.clone(), unit(&[2.0, 2.0, 256.0, 120.0])]),
        (json!([7, 9]), vec![unit(&[2.0, 2.0, 7.0, 9.0])]),
        (json!([[7, 9], [8]]), vec![unit(&[2.0, 2.0, 7.0, 9.0]), unit(&[1.0, 1.0, 8.0, 8.0])]),
    ] {
        for path in ["/v1/embeddings", "/embeddings"] {
            let answer = post(&running, path, json!({"input": input, "model": "dunlin"})).await;
            assert_eq!(answer["object"], "list");
            assert_eq!(answer["model"], "shore/dunlin-1b");
            let data = answer["data"].as_array().unwrap();
            assert_eq!(data.len(), expected.len(), "{answer}");
            for (i, (item, expected)) in data.iter().zip(&expected).enumerate() {
                assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(i)));
                assert!(close(&item["embedding"], expected), "{item} {expected:?}");
            }
        }
    }
    let answer = post(&running, "/v1/embeddings", json!({"input": ["ab", "x"]})).await;
    assert_eq!(answer["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    let page = running.get("/metrics").await;
    assert!(page.text().contains("dunlin_requests_total{finished_reason=\"stop\"} 9\n"), "{}", page.text());
    let models = running.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["meta"]["purpose"], "embedding");
    assert_eq!(models["data"][0]["meta"]["n_embd"], 4);
}

#[tokio::test]
async fn embeddings_can_be_short_and_in_base64() {
    let running = serving(Purpose::Embeds).await;
    let body = json!({"input": "ab", "dimensions": 2});
    let answer = post(&running, "/v1/embeddings", body).await;
    assert!(close(&answer["data"][0]["embedding"], &unit(&[3.0, 3.0])), "{answer}");
    let body = json!({"input": "ab", "dimensions": 1, "encoding_format": "base64"});
    let answer = post(&running, "/v1/embeddings", body).await;
    // 1.0 as little-endian bytes: 00 00 80 3f.
    assert_eq!(answer["data"][0]["embedding"], "AACAPw==");
}

#[tokio::test]
async fn documents_are_ranked() {
    let running = serving(Purpose::Scores).await;
    let documents = json!(["b", {"text": "d"}, "a", "c"]);
    let body = json!({"query": "q", "documents": documents, "top_n": 3, "return_documents": true});
    for path in ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking"] {
        let answer = post(&running, path, body.clone()).await;
        let expected = json!([
            {"index": 1, "relevance_score": 100.0, "document": {"text": "d"}},
            {"index": 3, "relevance_score": 99.0, "document": {"text": "c"}},
            {"index": 0, "relevance_score": 98.0, "document": {"text": "b"}},
        ]);
        assert_eq!(answer["results"], expected, "{path}");
        assert_eq!(answer["usage"], json!({"prompt_tokens": 12, "total_tokens": 12}));
    }
    let plain = post(&running, "/rerank", json!({"query": "q", "documents": ["a", "b"]})).await;
    let expected = json!([{"index": 1, "relevance_score": 98.0}, {"index": 0, "relevance_score": 97.0}]);
    assert_eq!(plain["results"], expected);
    // Text Embeddings Inference's shape.
    let body = json!({"query": "q", "texts": ["a", "b"], "raw_scores": true, "return_text": true});
    let answer = post(&running, "/rerank", body).await;
    let expected =
        json!([{"index": 1, "score": 98.0, "text": "b"}, {"index": 0, "score": 97.0, "text": "a"}]);
    assert_eq!(answer, expected);
    let answer = post(&running, "/rerank", json!({"query": "q", "texts": ["a"]})).await;
    assert_eq!(answer, json!([{"index": 0, "score": 1.0}]));
}

#[tokio::test]
async fn what_cannot_be_encoded_is_refused_with_its_field() {
    let long = "x".repeat(600);
    let embeddings = serving(Purpose::Embeds).await;
    let scores = serving(Purpose::Scores).await;
    for (running, path, body, code, param) in [
        (&embeddings, "/v1/embeddings", json!({}), "invalid_value", "input"),
        (&embeddings, "/v1/embeddings", json!({"input": []}), "invalid_value", "input"),
        (&embeddings, "/v1/embeddings", json!({"input": [[], [1]]}), "invalid_value", "input[0]"),
        (&embeddings, "/v1/embeddings", json!({"input": 5}), "invalid_type", "input"),
        (&embeddings, "/v1/embeddings", json!({"input": vec!["a"; 2049]}), "invalid_value", "input"),
        (&embeddings, "/v1/embeddings", json!({"input": long}), "context_length_exceeded", "input"),
        (
            &embeddings,
            "/v1/embeddings",
            json!({"input": "a", "dimensions": 5}),
            "invalid_value",
            "dimensions",
        ),
        (
            &embeddings,
            "/v1/embeddings",
            json!({"input": "a", "dimensions": 0}),
            "invalid_value",
            "dimensions",
        ),
        (
            &embeddings,
            "/v1/embeddings",
            json!({"input": "a", "encoding_format": "int8"}),
            "invalid_value",
            "encoding_format",
        ),
        (&embeddings, "/v1/embeddings", json!({"input": "a", "model": "other"}), "model_not_found", "model"),
        (&scores, "/v1/rerank", json!({"documents": ["a"]}), "invalid_value", "query"),
        (&scores, "/v1/rerank", json!({"query": "a"}), "invalid_value", "documents"),
        (&scores, "/v1/rerank", json!({"query": "a", "documents": []}), "invalid_value", "documents"),
        (&scores, "/v1/rerank", json!({"query": "a", "documents": [1]}), "invalid_value", "documents[0]"),
        (
            &scores,
            "/v1/rerank",
            json!({"query": "a", "documents": [long]}),
            "context_length_exceeded",
            "documents",
        ),
    ] {
        let response = running.post(path, body).await;
        let error = response.json()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{error}");
        assert!([400, 404].contains(&response.status));
    }
}

#[tokio::test]
async fn a_model_for_something_else_says_where_to_ask() {
    let embeddings = serving(Purpose::Embeds).await;
    let generates = serving(Purpose::Generates).await;
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    for (running, path, body, route) in [
        (&embeddings, "/v1/chat/completions", chat, "/v1/embeddings"),
        (&embeddings, "/v1/completions", json!({"prompt": "a"}), "/v1/embeddings"),
        (&embeddings, "/v1/rerank", json!({"query": "a", "documents": ["b"]}), "/v1/embeddings"),
        (&generates, "/v1/embeddings", json!({"input": "a"}), "/v1/chat/completions"),
        (&generates, "/v1/rerank", json!({"query": "a", "documents": ["b"]}), "/v1/chat/completions"),
    ] {
        let response = running.post(path, body).await;
        let error = response.json()["error"].clone();
        assert_eq!((response.status, &error["code"]), (400, &json!("unsupported_by_model")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(route), "{error}");
    }
}
