//! What goes wrong, what is said, and the exit code.

use crate::process::{TemporaryFile, demo, output};
use std::fs;
use std::net::TcpListener;

/// Runs dunlin; it must fail with `code` and say all of `said`.
fn check(arguments: &[&str], code: i32, said: &[&str]) {
    let output = output(arguments, "");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    for text in said {
        assert!(stderr.contains(text), "{arguments:?} does not say {text:?}: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?} printed {:?}", String::from_utf8_lossy(&output.stdout));
}

/// The demo model with some bytes replaced, found by the bytes before them.
fn damaged(after: &[u8], skip: usize, bytes: &[u8]) -> TemporaryFile {
    let mut model = fs::read(demo()).expect("the demo model is in the checkout");
    let at = model.windows(after.len()).position(|window| window == after).expect("part of the header");
    let start = at + after.len() + skip;
    model[start..][..bytes.len()].copy_from_slice(bytes);
    TemporaryFile::new("gguf", &model)
}

#[test]
fn what_is_no_file() {
    for command in ["serve", "run", "inspect"] {
        check(
            &[command, "/nonexistent/model.gguf"],
            3,
            &["cannot read /nonexistent/model.gguf", "hint: check the path"],
        );
        check(&[command, "/"], 3, &["cannot read /", "hint: name a file within the folder"]);
    }
    check(&["up", "--model", "/nonexistent"], 3, &["cannot read /nonexistent"]);
}

#[test]
fn what_is_no_model() {
    let text = TemporaryFile::new("gguf", b"hello, I am no model");
    let empty = TemporaryFile::new("gguf", b"");
    let demo = fs::read(demo()).expect("the demo model is in the checkout");
    let cut = TemporaryFile::new("gguf", &demo[..demo.len() / 2]);
    let cut_in_header = TemporaryFile::new("gguf", &demo[..1000]);
    for command in ["serve", "run", "inspect"] {
        check(
            &[command, text.path(), "hi"][..if command == "run" { 3 } else { 2 }],
            4,
            &["not a GGUF file", "hint: models are files in GGUF"],
        );
        check(&[command, empty.path()], 4, &["not a GGUF file"]);
        check(
            &[command, cut.path()],
            4,
            &["does not lie within the file", "hint: the file seems to be cut off"],
        );
        check(&[command, cut_in_header.path()], 4, &["the file ends inside", "cut off"]);
    }
}

#[test]
fn what_is_a_model_of_another_kind() {
    let family = damaged(b"general.architecture", 12, b"gizmo");
    let format = damaged(b"blk.0.attn_q.weight", 4 + 16, &34u32.to_le_bytes());
    let said = [
        "the architecture \"gizmo\" is not known",
        "known are llama, qwen2, qwen2moe, qwen3",
        "hint: `dunlin inspect",
    ];
    check(&["serve", family.path()], 4, &said);
    check(&["run", family.path(), "hi"], 4, &said);
    check(&["serve", format.path()], 4, &["blk.0.attn_q.weight", "TQ1_0", "known are", "Q4_K"]);
    for (model, problem) in [(&family, "gizmo"), (&format, "TQ1_0")] {
        let shown = output(&["inspect", model.path(), "--no-measure"], "");
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.status.success() && text.contains("supported       no"), "{text}");
        assert!(text.contains("because") && text.contains(problem), "{text}");
    }
}

#[test]
fn what_cannot_be_asked_for() {
    let demo = demo();
    let long = "the ".repeat(2000);
    for (arguments, said) in [
        (
            &["serve", &demo, "--ctx-size", "9999"][..],
            &["9999", "trained for 1024", "hint: choose --ctx-size"][..],
        ),
        (&["serve", &demo, "--ctx-size", "0"], &["a context of 0 tokens"]),
        (&["serve", &demo, "--host", "example.org"], &["an IP address is needed"]),
        (&["serve", &demo, "--threads", "0"], &["--threads"]),
        (
            &["run", "--pin", "--threads", "1024", "hi"],
            &["1024 threads cannot have a processor each", "hint: choose --threads from 1 to"],
        ),
        (&["serve", &demo, "--parallel", "0"], &["--parallel"]),
        (&["serve", &demo, "--isa", "mmx"], &["possible values: scalar, avx2"]),
        (&["serve", &demo, "--cache-dir", "a", "--no-cache"], &["cannot be used with"]),
        (&["serve"], &["<MODEL>", "Usage:"]),
        (&["run", &demo, &long], &["tokens and the context holds 1024", "hint: shorten the prompt"]),
        (&["run", "--ctx-size", "8", "a longer prompt than eight tokens can hold"], &["the context holds 8"]),
        (&["run", "--temperature", "-1", "hi"], &["temperature"]),
        (&["run", "--top-p", "7", "hi"], &["top_p"]),
        (&["run"], &["the prompt is empty", "hint: say something"]),
        (&["fly"], &["unrecognized subcommand 'fly'"]),
    ] {
        check(arguments, 2, said);
    }
}

#[test]
fn instruction_sets_of_other_processors_are_named() {
    let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    let said = format!("this processor has no {foreign}");
    check(&["run", "--isa", foreign, "hi"], 2, &[&said, "hint: it has scalar"]);
}

#[test]
fn a_port_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = other.local_addr().expect("an open socket has an address").port().to_string();
    let said = format!("port {port} of 127.0.0.1 is in use");
    check(
        &["serve", &demo(), "--port", &port],
        6,
        &[&said, "hint: end the other program, or choose another port"],
    );
    check(&["up", "--port", &port], 6, &[&said]);
}
