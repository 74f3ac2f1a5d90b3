//! LoRA adapters from the command line to the answer.

use crate::process::{Listening, TemporaryFile, demo, output, stdout};
use engine::gguf::{GgmlType, Gguf, GgufWriter, Value};
use serde_json::json;
use std::path::Path;

const ASK: [&str; 6] = ["run", "--temperature", "0", "-n", "30", "what is dunlin?"];

/// An adapter that makes the demo model say something else, with some of its metadata changed.
fn adapter(changed: &[(&str, Value<'_>)]) -> TemporaryFile {
    let base = Gguf::open(Path::new(&demo())).expect("the demo model is sound");
    let mut writer = GgufWriter::new();
    let family = base.get("general.architecture").expect("a family");
    let usual = [
        ("general.type", Value::Str("adapter")),
        ("general.architecture", family),
        ("adapter.type", Value::Str("lora")),
    ];
    for (key, value) in
        usual.iter().filter(|(key, _)| changed.iter().all(|(other, _)| key != other)).chain(changed)
    {
        writer.put_value(key, value);
    }
    let info = base.tensor("blk.0.ffn_down.weight").expect("a matrix").info;
    let shapes = [("lora_a", [info.shape[0], 1]), ("lora_b", [1, info.shape[1]])];
    for (half, shape) in &shapes {
        writer.tensor(&format!("{}.{half}", info.name), shape, GgmlType::F32).expect("a possible tensor");
    }
    let data = |i: usize| {
        let elements: u64 = shapes[i].1.iter().product();
        (0..elements).flat_map(|n| ((n as f32 * 1.7).sin() * 0.5).to_le_bytes()).collect()
    };
    TemporaryFile::new("gguf", &writer.into_bytes(|i, _| data(i)).expect("all data is there"))
}

#[test]
fn an_adapter_changes_what_is_said_by_its_scale() {
    let file = adapter(&[]);
    let ask = |more: &[&str]| stdout(&[&ASK[..], more].concat(), "");
    let plain = ask(&[]);
    let scaled = |scale: &str| ask(&["--lora-scaled", &format!("{}:{scale}", file.path())]);
    let whole = ask(&["--lora", file.path()]);
    assert_ne!(whole, plain);
    assert_eq!((scaled("1"), scaled("0")), (whole, plain.clone()));
    // The same once more adds nothing.
    assert_eq!(ask(&["--lora", file.path(), "--lora-scaled", &format!("{}:0", file.path())]), scaled("1.0"));
    for wrong in ["no-scale", ":1", "a.gguf:x", "a.gguf:inf", "a.gguf:NaN"] {
        let refused = output(&[&ASK[..], &["--lora-scaled", wrong]].concat(), "");
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn a_server_has_adapters_by_request_and_by_default() {
    let file = adapter(&[]);
    let server =
        Listening::ready(&["serve", &demo(), "--log", "off", "--lora-scaled", &format!("{}:0", file.path())]);
    let ask = |extra: serde_json::Value| {
        let mut body = json!({"prompt": "what is dunlin?", "max_tokens": 30, "temperature": 0});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        server.post("/v1/completions", &body).completion()
    };
    let name = Path::new(file.path()).file_stem().expect("a name").to_string_lossy().into_owned();
    let listed = |scale: f32| json!([{"id": 0, "name": name, "path": file.path(), "scale": scale}]);
    assert_eq!(server.get("/lora-adapters").json(), listed(0.0));
    let plain = ask(json!({}));
    let whole = ask(json!({"lora": [{"id": 0, "scale": 1}]}));
    assert_ne!(whole, plain);
    assert_eq!(ask(json!({"model": name})), whole);
    assert_eq!(ask(json!({"lora": []})), plain);
    server.post("/lora-adapters", &json!([{"id": 0, "scale": 1}]));
    assert_eq!(server.get("/lora-adapters").json(), listed(1.0));
    assert_eq!((ask(json!({})), ask(json!({"lora": []}))), (whole, plain));
}

#[test]
fn what_is_no_adapter_is_named() {
    let check = |file: &str, code: i32, said: &[&str]| {
        let refused = output(&[&ASK[..], &["--lora", file]].concat(), "");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{stderr}");
        assert!(said.iter().all(|said| stderr.contains(said)), "{stderr}");
    };
    check("/nonexistent.gguf", 3, &["cannot read /nonexistent.gguf"]);
    check(
        &demo(),
        4,
        &["the adapter ", "dunlin-demo.gguf cannot be used", "general.type", "hint: adapters are made by"],
    );
    let other = adapter(&[("general.architecture", Value::Str("bert"))]);
    check(
        other.path(),
        4,
        &[other.path(), "\"bert\"", "dunlin-demo", "hint: an adapter works with the model"],
    );
    let alpha = adapter(&[("adapter.lora.alpha", Value::F32(f32::NAN))]);
    check(alpha.path(), 4, &["adapter.lora.alpha is NaN"]);
}
