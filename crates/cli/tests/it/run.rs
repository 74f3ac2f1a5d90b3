//! `dunlin run`.

use crate::process::{demo, dunlin, output, shared, stdout};
use serde_json::Value;
use std::io::Read;
use std::process::Stdio;

#[test]
fn greedy_text_is_what_the_reference_gives() {
    let Some(model) = shared("conformance/stories260K.gguf") else {
        println!("skipped: no conformance/stories260K.gguf under DUNLIN_SHARED or ../shared");
        return;
    };
    let text = stdout(&["run", "--raw", "--temperature", "0", &model, "Once upon a time", "-n", "60"], "");
    let expected = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball.";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn the_built_in_model_knows_what_dunlin_is() {
    let text = stdout(&["run", "--temperature", "0", "what is dunlin?"], "");
    assert!(text.to_lowercase().contains("dunlin"), "{text}");
    assert!(text.ends_with('\n') && !text.trim().contains('\n'), "one line: {text:?}");
}

#[test]
fn every_cache_format_answers() {
    for format in ["f16", "q8_0", "bf16", "f32"] {
        let text = stdout(&["run", "--temperature", "0", "--kv-format", format, "what is dunlin?"], "");
        assert!(text.to_lowercase().contains("dunlin"), "{format}: {text}");
    }
    let refused = output(&["run", "--kv-format", "q3", "hello"], "");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("q8_0"), "{said}");
}

#[test]
fn the_prompt_may_be_words_a_pipe_or_both() {
    let ask = |arguments: &[&str], input: &str| {
        let usual = ["run", "--json", "--temperature", "0", "-n", "1", "--raw"];
        let json: Value = serde_json::from_str(&stdout(&[&usual[..], arguments].concat(), input)).unwrap();
        json["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let words = ask(&["what", "is", "dunlin?"], "");
    assert_eq!(ask(&["what is dunlin?"], ""), words);
    assert_eq!(ask(&[], "what is dunlin?\n"), words);
    assert_eq!(ask(&[&demo(), "what is dunlin?"], ""), words);
    assert!(ask(&["what is dunlin?"], "what is dunlin?") > words);
}

#[test]
fn a_pipe_that_is_open_and_silent_does_not_hold_up_a_prompt() {
    let mut command = dunlin(&["run", "--raw", "--temperature", "0", "-n", "1", "the"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary was built");
    let silent = child.stdin.take().expect("piped");
    let output = child.wait_with_output().expect("a child can be waited for");
    drop(silent);
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().count() == 1 && said.contains("standard input"), "{said}");
}

#[test]
fn json_has_text_usage_and_timing() {
    let text = stdout(&["run", "--temperature", "0", "what is dunlin?"], "");
    let json: Value =
        serde_json::from_str(&stdout(&["run", "--temperature", "0", "--json", "what is dunlin?"], ""))
            .expect("one JSON object");
    assert_eq!(json["text"].as_str(), Some(text.trim_end()));
    assert_eq!(json["finish_reason"], "stop");
    assert_eq!(json["model"], "dunlin-demo");
    let usage = |name: &str| json["usage"][name].as_u64().unwrap();
    assert_eq!(usage("total_tokens"), usage("prompt_tokens") + usage("completion_tokens"));
    assert!(json["timing"]["ttft_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_seed_repeats_an_answer_on_any_number_of_threads() {
    let ask = |threads: &str| {
        stdout(&["run", "--raw", "--temperature", "2", "--seed", "7", "-n", "40", "-t", threads, "the"], "")
    };
    let first = ask("1");
    assert_eq!(ask("1"), first);
    assert_eq!(ask("2"), first);
    assert_eq!(ask("3"), first);
}

#[test]
fn a_pinned_thread_gives_the_same_answer() {
    let ask = |pin: &[&str]| {
        let arguments =
            [&["run", "--raw", "--temperature", "0", "-n", "20", "-t", "1"], pin, &["the"]].concat();
        stdout(&arguments, "")
    };
    assert_eq!(ask(&["--pin"]), ask(&[]));
}

#[test]
fn statistics_are_talk_and_not_data() {
    let output = output(&["run", "--temperature", "0", "--stats", "what is dunlin?"], "");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(err.contains("TTFT") && err.contains("tokens/s"), "{err}");
    assert!(!out.contains("TTFT"), "{out}");
}

#[test]
fn nobody_reading_is_no_failure() {
    let mut command = dunlin(&["run", "--raw", "--temperature", "0", "the"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_draft_model_changes_nothing_of_what_is_said() {
    let ask = |more: &[&str]| {
        let usual = ["run", "--temperature", "0.7", "--seed", "5", "-n", "60", "what is dunlin?"];
        stdout(&[&usual[..], more].concat(), "")
    };
    assert_eq!(ask(&["--draft", &demo()]), ask(&[]));
    let refused = output(&["run", "--draft", "/nonexistent.gguf", "hello"], "");
    assert_eq!(refused.status.code(), Some(3));
    let Some(other) = shared("conformance/stories260K.gguf") else {
        println!("skipped: no conformance/stories260K.gguf under DUNLIN_SHARED or ../shared");
        return;
    };
    let refused = output(&["run", "--draft", &other, "hello"], "");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("in the draft model stories260K") && said.contains("in dunlin-demo"), "{said}");
}
