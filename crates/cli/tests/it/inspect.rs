//! `dunlin inspect`.

use crate::process::{demo, stdout};
use serde_json::Value;

fn json(arguments: &[&str]) -> Value {
    let text = stdout(&[&["inspect", "--json", &demo()][..], arguments].concat(), "");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn json_says_what_the_model_is_and_takes() {
    let facts = json(&["--ctx-size", "512"]);
    assert_eq!(facts["support"]["supported"], true);
    assert_eq!(facts["support"]["architecture"], "llama");
    let number = |pointer: &str| {
        let value = facts.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number at {pointer} in {facts}"))
    };
    assert_eq!(number("/memory/context_tokens"), 512.0);
    let parts = ["weight_bytes", "kv_bytes", "working_bytes"].map(|name| number(&format!("/memory/{name}")));
    assert_eq!(number("/memory/total_bytes"), parts.iter().sum::<f64>());
    let parameters: f64 =
        facts["formats"].as_array().unwrap().iter().map(|f| f["parameters"].as_f64().unwrap()).sum();
    assert_eq!(number("/parameters"), parameters);
    let bound = number("/speed/read_bytes_per_second_measured") / number("/speed/bytes_per_token");
    assert!((number("/speed/tokens_per_second_max") - bound).abs() < 0.1);
    assert!(facts.get("tensors").is_none());
}

#[test]
fn tensors_are_listed_where_asked_for() {
    let facts = json(&["--tensors", "--no-measure"]);
    let count: u64 =
        facts["formats"].as_array().unwrap().iter().map(|f| f["tensors"].as_u64().unwrap()).sum();
    assert_eq!(facts["tensors"].as_array().unwrap().len() as u64, count);
    assert_eq!(facts["speed"], Value::Null);
}

#[test]
fn text_is_for_people() {
    let text = stdout(&["inspect", &demo()], "");
    for expected in ["supported       yes", "measured now", "tokens/s", "Q8_0", "general.architecture"] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
}
