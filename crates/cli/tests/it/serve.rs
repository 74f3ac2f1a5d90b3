//! `dunlin serve` over real sockets.

use crate::http::Exchange;
use crate::process::{Listening, demo, until};
use serde_json::{Value, json};

fn server(options: &[&str]) -> Listening {
    Listening::ready(&[&["serve", &demo(), "--log", "off"][..], options].concat())
}

fn completion(prompt: &str, max_tokens: usize, stream: bool) -> Value {
    let mut body = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true});
    if stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

const PROMPTS: [&str; 4] =
    ["what is dunlin?", "edge-cam-07 temp=91C fan=0rpm load=0.42", "the", "how do I start it"];

/// The tokens of a long answer, and how many of them keep the server busy for as long as a test needs.
const LONG: usize = 900;
const BUSY: usize = 40;

/// Streams of long answers that were all accepted and will take a while.
fn busy(server: &Listening) -> Vec<Exchange> {
    let begin = |_| server.begin("/v1/completions", &completion("the", LONG, true));
    let mut exchanges: Vec<Exchange> = (0..BUSY).map(begin).collect();
    exchanges.iter_mut().for_each(Exchange::began);
    exchanges
}

#[test]
fn an_answer_is_the_same_alone_streamed_and_among_others() {
    let server = server(&[]);
    let ask = |prompt: &str, stream| server.post("/v1/completions", &completion(prompt, 48, stream));
    let alone: Vec<_> = PROMPTS.iter().map(|prompt| ask(prompt, false).completion()).collect();
    for (prompt, expected) in PROMPTS.iter().zip(&alone) {
        assert!(!expected.0.is_empty());
        assert_eq!(&ask(prompt, true).streamed_completion(), expected, "{prompt}");
    }
    let begin =
        |i: usize| server.begin("/v1/completions", &completion(PROMPTS[i % 4], 48, i.is_multiple_of(2)));
    let exchanges: Vec<Exchange> = (0..16).map(begin).collect();
    for (i, exchange) in exchanges.into_iter().enumerate() {
        let response = exchange.finish();
        let found = if i % 2 == 0 { response.streamed_completion() } else { response.completion() };
        assert_eq!(found, alone[i % 4], "request {i}");
    }
}

#[test]
fn many_streams_of_mixed_length_all_finish() {
    let server = server(&[]);
    let lengths: Vec<usize> = (0..64).map(|i| 1 + i * 37 % 150).collect();
    let begin = |&length: &usize| server.begin("/v1/completions", &completion("the", length, true));
    let exchanges: Vec<Exchange> = lengths.iter().map(begin).collect();
    for (exchange, length) in exchanges.into_iter().zip(lengths) {
        let response = exchange.finish();
        assert_eq!(response.streamed_completion().1, "length", "{length} tokens");
        assert!(
            response.body.contains(&format!("\"completion_tokens\":{length}")),
            "{length}: {}",
            response.body
        );
    }
    assert_eq!(server.metric("dunlin_requests_running"), 0.0);
    assert_eq!(server.metric("dunlin_requests_waiting"), 0.0);
}

#[test]
fn clients_that_leave_free_their_slots() {
    let server = server(&[]);
    let mut index = 0..;
    let (leaving, staying): (Vec<_>, Vec<_>) =
        busy(&server).into_iter().partition(|_| index.next().is_some_and(|i: usize| i.is_multiple_of(2)));
    drop(leaving);
    for exchange in staying {
        assert_eq!(exchange.finish().streamed_completion().1, "length");
    }
    until("all slots are free", || {
        server.metric("dunlin_requests_running") == 0.0 && server.metric("dunlin_requests_waiting") == 0.0
    });
    let ended = |how: &str| server.metric(&format!("dunlin_requests_total{{finished_reason=\"{how}\"}}"));
    assert_eq!(ended("length") + ended("cancelled"), BUSY as f64);
    assert!(ended("cancelled") > 0.0, "nobody was cancelled");
}

#[test]
fn sigterm_lets_what_runs_finish() {
    let mut server = server(&["--drain-timeout", "600"]);
    let exchanges = busy(&server);
    server.signal("TERM");
    for exchange in exchanges {
        let response = exchange.finish();
        assert_eq!(response.streamed_completion().1, "length");
        assert!(response.body.contains(&format!("\"completion_tokens\":{LONG}")), "cut: {}", response.body);
    }
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn the_drain_has_a_deadline() {
    let mut server = server(&["--drain-timeout", "0"]);
    let exchanges = busy(&server);
    server.signal("INT");
    // What was cut ends in order, as if it had reached its limit.
    let answers: Vec<_> =
        exchanges.into_iter().map(|exchange| exchange.finish().streamed_completion()).collect();
    assert!(answers.iter().all(|(_, reason)| reason == "length"), "{answers:?}");
    assert!(answers.iter().any(|(text, _)| text.is_empty()), "the last had no time to begin");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut server = server(&["--drain-timeout", "600"]);
    let exchanges = busy(&server);
    server.signal("TERM");
    server.says("stopping");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(130));
    drop(exchanges);
}

#[test]
fn names_that_lead_here_are_answered_to_only_if_they_may() {
    let server = server(&["--allowed-host", "box.lan"]);
    for (host, status) in [("localhost:80", 200), ("box.lan:80", 200), ("evil.example:80", 403)] {
        let response = Exchange::start_as(host, server.address, "GET", "/v1/models", "").finish();
        assert_eq!(response.status, status, "{host}: {}", response.body);
    }
}

#[test]
fn the_model_has_the_names_it_was_given() {
    let plain = server(&[]).get("/v1/models").json();
    assert_eq!(plain["data"][0]["id"], "dunlin-demo");
    assert!(!plain["data"][0]["aliases"].to_string().contains("\"dunlin-demo\""), "{plain}");
    let server = server(&["--alias", "first", "--alias", "second"]);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "first");
    for name in ["first", "second", "dunlin-demo"] {
        let mut body = completion("the", 1, false);
        body["model"] = name.into();
        assert_eq!(server.post("/v1/completions", &body).status, 200, "{name}");
    }
}

#[test]
fn a_prompt_that_is_too_long_is_refused_with_both_numbers() {
    let server = server(&["--ctx-size", "64"]);
    let response = server.post("/v1/completions", &completion(&"the ".repeat(500), 1, false));
    assert_eq!(response.status, 400, "{}", response.body);
    assert!(response.body.contains("64") && response.body.contains("tokens"), "{}", response.body);
}

#[test]
fn answers_are_logged_for_people_and_for_programs() {
    for (format, check) in [("text", " 200 POST /v1/completions "), ("json", "\"path\":\"/v1/completions\"")]
    {
        let mut server = Listening::ready(&["serve", &demo(), "--log", format]);
        server.post("/v1/completions", &completion("the", 1, false));
        server.says(check);
        server.signal("TERM");
        assert_eq!(server.wait(), Some(0));
        assert!(!server.rest().contains("/health"), "successful probes are not worth a line");
    }
}

#[test]
fn a_queue_that_is_full_refuses() {
    let server = server(&["--parallel", "1", "--queue", "1"]);
    let begin = |_| server.begin("/v1/completions", &completion("the", LONG, true));
    let exchanges: Vec<Exchange> = (0..16).map(begin).collect();
    let statuses: Vec<u16> = exchanges.into_iter().map(|exchange| exchange.finish().status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
}

#[test]
fn what_was_computed_is_kept_over_a_restart() {
    let folder = std::env::temp_dir().join(format!("dunlin-it-kept-{}", std::process::id()));
    let options = ["--keep-kv", "--cache-dir", folder.to_str().expect("a plain name")];
    let mut body = completion("edge-cam-07 temp=91C fan=0rpm load=0.42 ", 8, false);
    body["prompt"] = body["prompt"].as_str().expect("text").repeat(4).into();
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();

    let mut first = server(&options);
    let before = first.post("/v1/completions", &body).json();
    assert_eq!(cached(&before), Some(0), "{before}");
    first.signal("TERM");
    assert_eq!(first.wait(), Some(0));
    let after = server(&options).post("/v1/completions", &body).json();
    let _ = std::fs::remove_dir_all(&folder);
    assert_eq!(before["choices"], after["choices"]);
    assert!(cached(&after) > Some(0), "{after}");
}
