//! Whole answers.

use serde_json::{Value, json};

use crate::client::{Running, start};
use crate::fake::{Fake, Pace, Script};

/// Posts and returns the answer without what depends on the clock, after checking that it is there.
async fn answer(running: &Running, path: &str, body: Value) -> Value {
    let response = running.post(path, body).await;
    let mut json = response.json();
    assert_eq!(response.status, 200, "{json}");
    let timings = json.as_object_mut().unwrap().remove("timings").expect("timings");
    for name in
        ["prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second"]
    {
        assert!(timings[name].is_number(), "{name}: {timings}");
    }
    json
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_chat_completion() {
    let running = start(Script::default()).await;
    let found = answer(&running, "/v1/chat/completions", chat(json!({"model": "dunlin"}))).await;
    let fingerprint = format!("dunlin-{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        found,
        json!({
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_234_567_890,
            "model": "shore/dunlin-1b",
            "system_fingerprint": fingerprint,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "The sea is calm tonight.", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26, "prompt_tokens_details": {"cached_tokens": 0}},
        })
    );
}

#[tokio::test]
async fn what_ends_an_answer() {
    let running = start(Script::default()).await;
    for (extra, content, reason) in [
        (json!({}), "The sea is calm tonight.", "stop"),
        (json!({"max_tokens": 2}), "The sea", "length"),
        (json!({"max_completion_tokens": 1, "max_tokens": 2}), "The", "length"),
        (json!({"n_predict": 2.0}), "The sea", "length"),
        (json!({"max_tokens": -1}), "The sea is calm tonight.", "stop"),
        (json!({"max_tokens": 6, "ignore_eos": true}), "The sea is calm tonight.The", "length"),
        (json!({"stop": " calm"}), "The sea is", "stop"),
        (json!({"stop": ["never", "is", ""]}), "The sea ", "stop"),
        (json!({"stop": "never"}), "The sea is calm tonight.", "stop"),
        (
            json!({"stop": null, "max_tokens": null, "unknown": {"a": [1]}, "user": "u", "store": true}),
            "The sea is calm tonight.",
            "stop",
        ),
    ] {
        let found = answer(&running, "/v1/chat/completions", chat(extra.clone())).await;
        let choice = &found["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(content), &json!(reason)),
            "{extra}"
        );
    }
}

#[tokio::test]
async fn log_probabilities_of_a_chat() {
    let running = start(Script::default()).await;
    let extra = json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 1});
    let found = answer(&running, "/v1/chat/completions", chat(extra)).await;
    assert_eq!(
        found["choices"][0]["logprobs"],
        json!({"content": [{
            "token": "The",
            "logprob": -0.5,
            "bytes": [84, 104, 101],
            "top_logprobs": [
                {"token": "The", "logprob": -0.5, "bytes": [84, 104, 101]},
                {"token": " sea", "logprob": -1.5, "bytes": [32, 115, 101, 97]},
                {"token": " is", "logprob": -9999.0, "bytes": [32, 105, 115]},
            ],
        }], "refusal": null})
    );
    let found = answer(&running, "/v1/chat/completions", chat(json!({"logprobs": true}))).await;
    assert_eq!(found["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 5);
    assert_eq!(found["choices"][0]["logprobs"]["content"][4]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn log_probabilities_of_a_text() {
    let running = start(Script::default()).await;
    let body = json!({"prompt": "x", "logprobs": 2, "max_tokens": 2});
    let found = answer(&running, "/v1/completions", body).await;
    assert_eq!(
        found["choices"][0]["logprobs"],
        json!({
            "tokens": ["The", " sea"],
            "token_logprobs": [-0.5, -0.5],
            "top_logprobs": [{"The": -0.5, " sea": -1.5}, {"The": -0.5, " sea": -1.5}],
            "text_offset": [0, 3],
        })
    );
}

#[tokio::test]
async fn several_choices_and_prompts() {
    let running = start(Script { replies: &[("ask", "yes"), ("", "no")], ..Script::default() }).await;
    let found = answer(&running, "/v1/chat/completions", chat(json!({"n": 3}))).await;
    let contents: Vec<_> = found["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (&c["index"], &c["message"]["content"]))
        .collect();
    assert_eq!(contents, [(&json!(0), &json!("no")), (&json!(1), &json!("no")), (&json!(2), &json!("no"))]);
    assert_eq!(
        found["usage"],
        json!({"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24, "prompt_tokens_details": {"cached_tokens": 0}})
    );

    for (prompt, echo, texts, prompt_tokens) in [
        (json!("ask"), false, vec!["yes"], 4),
        (json!(["ask", "b"]), false, vec!["yes", "no"], 6),
        (json!(["ask", "b"]), true, vec!["askyes", "bno"], 6),
        (json!([97, 115, 107]), false, vec!["yes"], 3),
        (json!([[97, 115, 107], [98]]), true, vec!["askyes", "bno"], 4),
    ] {
        let body = json!({"prompt": prompt, "echo": echo});
        let found = answer(&running, "/v1/completions", body.clone()).await;
        let choices = found["choices"].as_array().unwrap();
        assert_eq!(choices.iter().map(|choice| &choice["text"]).collect::<Vec<_>>(), texts, "{body}");
        assert_eq!(found["usage"]["prompt_tokens"], prompt_tokens, "{body}");
        assert_eq!(
            (&found["object"], &found["id"].as_str().unwrap()[..5]),
            (&json!("text_completion"), "cmpl-")
        );
    }
    let found = answer(&running, "/v1/completions", json!({"prompt": ["ask", "b"], "n": 2})).await;
    let choices = found["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| &choice["text"]).collect::<Vec<_>>(), ["yes", "yes", "no", "no"]);
    assert_eq!(
        found["usage"],
        json!({"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

/// What the engine is asked, while the request waits for its first step.
async fn asked(body: Value) -> Vec<engine::request::Request> {
    let running = start(Script { pace: Pace::ByHand, ..Script::default() }).await;
    let path = if body.get("messages").is_some() { "/v1/chat/completions" } else { "/v1/completions" };
    let mut client = running.connect().await;
    client.write("POST", path, &[], body.to_string().as_bytes()).await;
    crate::client::until("a submission", || !running.fake.requests().is_empty()).await;
    running.fake.requests()
}

#[tokio::test]
async fn sampling_reaches_the_engine() {
    let default = engine::request::Sampling::default();
    let requests = asked(json!({"prompt": "x"})).await;
    assert_eq!((requests[0].sampling.clone(), requests[0].max_tokens), (default, None));
    let body = json!({
        "prompt": "x", "temperature": 0, "top_k": -1, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1,
        "repeat_last_n": 7, "presence_penalty": -1, "frequency_penalty": 2, "seed": 18446744073709551615_u64,
        "logit_bias": {"5": -100, "6": 0.5}, "n": 2, "stop": ["a", "b"], "logprobs": 4, "ignore_eos": true,
    });
    let requests = asked(body).await;
    let sampling = &requests[0].sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p), (0.0, 0, 0.5, 0.1));
    assert_eq!((sampling.repeat_penalty, sampling.repeat_last_n), (1.1, 7));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-1.0, 2.0));
    assert_eq!(sampling.logit_bias, [(5, -100.0), (6, 0.5)]);
    let seeds: Vec<_> = requests.iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [Some(u64::MAX), Some(0)], "choices differ by their seeds");
    let first = &requests[0];
    assert_eq!(
        (&first.stop, first.logprobs, first.ignore_eos),
        (&vec!["a".to_owned(), "b".to_owned()], Some(4), true)
    );
    let requests = asked(json!({"prompt": "x", "seed": -1, "logit_bias": [[5, false], [6, 1]]})).await;
    assert_eq!(requests[0].sampling.seed, None);
    assert_eq!(requests[0].sampling.logit_bias, [(5, f32::NEG_INFINITY), (6, 1.0)]);
}

#[tokio::test]
async fn conversations_become_prompts() {
    let running = start(Script::default()).await;
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (body, prompt) in [
        (
            json!({"messages": [{"role": "user", "content": "hi"}]}),
            "<s><|turn|>user\nhi</s><|turn|>assistant\n",
        ),
        (
            json!({"messages": [{"role": "developer", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}),
            "<s><|turn|>system\nbe</s><|turn|>user\na\nb</s><|turn|>assistant\n",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": []}], "add_generation_prompt": false}),
            "<s><|turn|>assistant\n</s>",
        ),
        (
            json!({"messages": [{"role": "user", "content": ""}], "tools": tool}),
            "<s>tools [{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]\n<|turn|>user\n</s><|turn|>assistant\n",
        ),
        (
            json!({"messages": [{"role": "user", "content": ""}], "tools": tool, "tool_choice": "none"}),
            "<s><|turn|>user\n</s><|turn|>assistant\n",
        ),
    ] {
        let response = running.post("/apply-template", &body).await;
        assert_eq!(response.json(), json!({"prompt": prompt}), "{body}");
    }
    // The template writes the beginning of sequence, and so would the tokenizer: it comes once.
    let requests = asked(json!({"messages": [{"role": "user", "content": "hi"}]})).await;
    assert_eq!(requests[0].prompt[..3], [256, 258, 117]);
}

#[tokio::test]
async fn text_to_tokens_and_back() {
    let running = start(Script::default()).await;
    for (path, body, expected) in [
        ("/tokenize", json!({"content": "a</s>"}), json!({"tokens": [97, 257]})),
        (
            "/tokenize",
            json!({"content": "</s>", "parse_special": false}),
            json!({"tokens": [60, 47, 115, 62]}),
        ),
        ("/tokenize", json!({"content": "a", "add_special": true}), json!({"tokens": [256, 97]})),
        (
            "/tokenize",
            json!({"content": "aé", "with_pieces": true}),
            json!({"tokens": [{"id": 97, "piece": "a"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]}),
        ),
        ("/detokenize", json!({"tokens": [97, 195, 169, 257]}), json!({"content": "aé</s>"})),
        ("/detokenize", json!({"tokens": []}), json!({"content": ""})),
    ] {
        assert_eq!(running.post(path, &body).await.json(), expected, "{path} {body}");
    }
}

#[tokio::test]
async fn a_long_body_is_answered_like_a_short_one() {
    let running = start(Script::default()).await;
    let content = "a".repeat(100_000);
    let found = running.post("/tokenize", json!({"content": content})).await.json();
    assert_eq!(found["tokens"].as_array().unwrap().len(), 100_000);
}

#[tokio::test]
async fn failures_of_the_engine() {
    let running = start(Script::default()).await;
    for (prompt, message) in [("[fail]", "the weights were washed away"), ("[vanish]", "the engine stopped")]
    {
        let response = running.post("/v1/completions", json!({"prompt": prompt})).await;
        let expected = json!({"error": {
            "message": message, "type": "server_error", "param": null, "code": "generation_failed",
        }});
        assert_eq!((response.status, response.json()), (500, expected));
    }
}

#[test]
fn ids_differ() {
    let environment = serve::Environment::default();
    let ids: std::collections::HashSet<_> = (0..1000).map(|_| (environment.unique)()).collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().all(|id| id.len() == 24));
}

/// The script is shared with an example, which uses what no test does.
#[test]
fn the_script_ends_when_it_is_shut_down() {
    let fake = Fake::new(Script::default());
    serve::Backend::shut_down(&*fake);
    assert!(fake.is_shut_down());
}
