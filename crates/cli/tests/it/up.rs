//! `dunlin up`.

use crate::process::Listening;
use std::process::{Command, Stdio};

#[test]
fn it_serves_a_model_and_a_page() {
    let server = Listening::ready(&["up"]);
    assert!(server.get("/").body.contains("<html"));
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "dunlin-demo");
}

#[test]
fn the_printed_curl_line_works_as_it_is() {
    let mut server = Listening::ready(&["up"]);
    let line = server.says("curl ");
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no curl on this machine");
        return;
    }
    let command = &line[line.find("curl ").expect("just found")..];
    let output = Command::new("sh").args(["-c", command]).output().expect("there is a shell");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the answer is JSON");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    assert!(text.to_lowercase().contains("dunlin"), "{answer}");
}

#[test]
fn sigint_ends_it() {
    let mut server = Listening::start(&["up"]);
    server.signal("INT");
    assert_eq!(server.wait(), Some(0));
}
