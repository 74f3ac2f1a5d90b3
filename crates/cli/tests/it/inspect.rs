//! `dunlin inspect`.

use crate::process::{demo, shared, stdout};
use serde_json::Value;
use std::fs;
use std::path::Path;

fn json(arguments: &[&str]) -> Value {
    json_of(&demo(), arguments)
}

fn json_of(model: &str, arguments: &[&str]) -> Value {
    let text = stdout(&[&["inspect", "--json", model][..], arguments].concat(), "");
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
    let full = "/speed/tokens_per_second_max_at_full_context";
    assert!(number(full) < number("/speed/tokens_per_second_max"));
    let read = number("/speed/kv_bytes_read_at_full_context");
    assert_eq!(read, 512.0 * number("/memory/kv_bytes_per_token_f16"));
    assert!(number("/memory/kv_bytes_per_token_q8_0") < number("/memory/kv_bytes_per_token_f16"));
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
    for expected in [
        "supported       yes",
        "each attends to all tokens before",
        "rotary, base ",
        "SwiGLU of width ",
        "embedding ",
        "with --kv-format q8_0",
        "measured now",
        "tokens/s",
        "Q8_0",
        "general.architecture",
    ] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    assert!(!text.lines().any(|line| line.ends_with(' ')), "{text}");
}

#[test]
fn a_context_beyond_the_trained_one_is_told() {
    let facts = json(&["--no-measure"]);
    let trained = &facts["model"]["positions"]["trained_context_tokens"];
    assert_eq!(facts["memory"]["context_beyond_trained"], false);
    let asked = (trained.as_u64().unwrap() + 1).to_string();
    let facts = json(&["--no-measure", "--ctx-size", &asked]);
    assert_eq!(facts["memory"]["context_beyond_trained"], true);
    let text = stdout(&["inspect", &demo(), "--no-measure", "--ctx-size", &asked], "");
    let expected = format!("trained for {trained} tokens; {asked} are more, which `run` and `serve` refuse");
    assert!(text.contains(&expected), "no {expected:?} in {text}");
}

/// The kinds of layers that a pattern says, one after the other.
fn expand(groups: &Value) -> Vec<&str> {
    let mut kinds = Vec::new();
    for group in groups.as_array().unwrap() {
        for _ in 0..group["times"].as_u64().unwrap() {
            for run in group["runs"].as_array().unwrap() {
                let count = run["layers"].as_u64().unwrap() as usize;
                kinds.extend(std::iter::repeat_n(run["kind"].as_str().unwrap(), count));
            }
        }
    }
    kinds
}

#[test]
#[allow(clippy::print_stdout)] // it says what it skips
fn every_family_is_explained() {
    let Some(tokens) = shared("conformance/archs/tokens.txt") else {
        println!("skipped every_family_is_explained: no reference models (set DUNLIN_SHARED)");
        return;
    };
    let folder = Path::new(&tokens).parent().unwrap();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        let name = path.to_str().unwrap();
        let facts = json_of(name, &["--no-measure"]);
        let model = &facts["model"];
        let sum = |name: &str| {
            let parts = model["parameters_by_part"].as_array().unwrap();
            parts.iter().map(|part| part[name].as_f64().unwrap()).sum::<f64>()
        };
        assert_eq!(sum("parameters"), facts["parameters"].as_f64().unwrap(), "{name}");
        assert_eq!(sum("active_parameters"), model["active_parameters"].as_f64().unwrap(), "{name}");
        assert!((sum("share") - 1.0).abs() < 1e-9, "{name}");
        let layers = facts["shape"]["layers"].as_u64().unwrap() as usize;
        let kinds = expand(&model["layers"]["pattern_groups"]);
        assert_eq!(kinds.len(), layers, "{name}");
        for kind in model["layers"]["kinds"].as_array().unwrap() {
            let count = kinds.iter().filter(|name| kind["name"] == **name).count();
            assert_eq!(kind["layers"], count, "{name}: {kind}");
        }
        assert_eq!(expand(&model["feed_forward"]["pattern_groups"]).len(), layers, "{name}");
        let attends = !model["attention"].is_null();
        assert_eq!(facts["memory"]["kv_bytes_per_token_f16"].as_u64() > Some(0), attends, "{name}");
        let states = model["states"].as_array().unwrap().iter();
        let bytes: u64 = states.map(|state| state["bytes_per_conversation"].as_u64().unwrap()).sum();
        assert_eq!(facts["memory"]["state_bytes"], bytes, "{name}");

        let text = stdout(&["inspect", name, "--no-measure"], "");
        for remark in model["unusual"].as_array().unwrap() {
            assert!(text.contains(remark.as_str().unwrap()), "no {remark} in {text}");
        }
        let page = text.split("\nFormats\n").next().unwrap();
        assert!(page.lines().count() <= 60, "{page}");
    }
}
