//! Real chat templates against the text that Jinja2 gives.

use std::fs;

use engine::template::{ChatInput, ChatTemplate, CivilTime};
use serde_json::Value;

#[test]
fn texts_are_jinjas() {
    let Some(shared) = crate::shared("texts_are_jinjas") else { return };
    let folder = shared.join("conformance/templates");
    let mut failures = String::new();
    let mut templates = 0;
    for entry in fs::read_dir(&folder).expect("the folder of templates") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        templates += 1;
        let name = path.file_stem().unwrap_or_default().display().to_string();
        let source = fs::read_to_string(&path).expect("a template");
        let cases = fs::read_to_string(path.with_extension("json")).expect("its cases");
        let cases: serde_json::Map<String, Value> = serde_json::from_str(&cases).expect("cases in JSON");
        let mut right = 0;
        for (case, expected) in &cases {
            match check(&source, expected) {
                Ok(()) => right += 1,
                Err(difference) => failures += &format!("{name} {case}: {difference}\n"),
            }
        }
        println!("{name}: {right} of {}", cases.len());
    }
    assert!(templates > 0, "no templates in {}", folder.display());
    assert!(failures.is_empty(), "{failures}");
}

fn check(source: &str, case: &Value) -> Result<(), String> {
    let template = ChatTemplate::new(source, "<s>", "</s>").map_err(|error| error.to_string())?;
    let mut extra = case["input"].as_object().cloned().unwrap_or_default();
    let input = ChatInput {
        messages: extra.remove("messages").unwrap_or_default(),
        tools: extra.remove("tools"),
        add_generation_prompt: extra.remove("add_generation_prompt").is_some_and(|add| add == true),
        extra,
        now: CivilTime { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5 },
    };
    let rendered = template.render(&input);
    match (rendered, case["output"].as_str(), case["error"].as_str()) {
        (Ok(text), Some(expected), _) if text == expected => Ok(()),
        (Ok(text), Some(expected), _) => Err(format!("\n  {text:?}\n  {expected:?}")),
        (Err(error), _, Some(expected)) => {
            let message = expected.split_once(": ").map_or(expected, |(_, message)| message);
            if error.refusal() == Some(message) { Ok(()) } else { Err(format!("{error:?}\n  {expected:?}")) }
        }
        (Ok(text), ..) => Err(format!("text where an error is expected: {text:?}")),
        (Err(error), ..) => Err(format!("{error:?}")),
    }
}
