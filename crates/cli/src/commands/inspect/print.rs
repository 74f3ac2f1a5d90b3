//! The same facts, for people.

use super::facts::{Facts, Memory, Shape, Speed, Support};
use std::fmt::Write;
use stdx::units::{Bytes, Count};

pub(super) fn text(facts: &Facts) -> String {
    let mut page = Page::default();
    let file = &facts.file;
    let parts = if file.parts > 1 { format!(", {} files", file.parts) } else { String::new() };
    page.line(
        "file",
        format!("{} ({}{parts}, GGUF version {})", file.name, Bytes(file.bytes), file.gguf_version),
    );
    add_support(&mut page, &facts.support);
    page.line("parameters", Count(facts.parameters));
    if let Some(shape) = &facts.shape {
        add_shape(&mut page, shape);
    }
    if let Some(memory) = &facts.memory {
        add_memory(&mut page, memory);
    }
    if let Some(speed) = &facts.speed {
        add_speed(&mut page, speed);
    }
    page.heading("Formats");
    for format in &facts.formats {
        let tensors = format!("{} tensor{}", format.tensors, if format.tensors == 1 { "" } else { "s" });
        page.line(
            format.format,
            format!(
                "{tensors:14} {:>9} {:>11}",
                Count(format.parameters).to_string(),
                Bytes(format.bytes).to_string()
            ),
        );
    }
    page.heading("Metadata");
    for (key, value) in &facts.metadata {
        page.line(&escaped(key), escaped(&metadata(value)));
    }
    if let Some(tensors) = &facts.tensors {
        page.heading("Tensors");
        for tensor in tensors {
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            page.line(
                &escaped(&tensor.name),
                format!(
                    "{:8} {:>20} {:>11}",
                    tensor.format,
                    shape.join(" x "),
                    Bytes(tensor.bytes).to_string()
                ),
            );
        }
    }
    page.0
}

fn add_support(page: &mut Page, support: &Support) {
    page.line("architecture", escaped(support.architecture.as_deref().unwrap_or("not said")));
    page.line("supported", if support.supported { "yes" } else { "no" });
    for problem in &support.problems {
        page.line("", format!("because {}", escaped(problem)));
    }
    page.line(
        "chat",
        if support.chat_template { "has a template" } else { "no template: continues plain text only" },
    );
}

fn add_shape(page: &mut Page, shape: &Shape) {
    page.line(
        "layers",
        format!("{} of width {}, feed-forward {}", shape.layers, shape.width, shape.feed_forward),
    );
    page.line(
        "attention",
        format!("{} heads of {}, {} for keys and values", shape.heads, shape.head_dim, shape.kv_heads),
    );
    page.line("vocabulary", format!("{} tokens", shape.vocabulary));
    page.line("context", format!("{} tokens", shape.context_tokens));
}

fn add_memory(page: &mut Page, memory: &Memory) {
    page.heading("Memory");
    page.line("weights", format!("{} packed", Bytes(memory.weight_bytes)));
    page.line("KV cache", format!("{} per 1000 tokens", Bytes(memory.kv_bytes_per_1000_tokens)));
    page.line(
        "",
        format!("{} for a conversation of {} tokens", Bytes(memory.kv_bytes), memory.context_tokens),
    );
    page.line("to work with", Bytes(memory.working_bytes));
    let fits = match (memory.available_bytes, memory.fits) {
        (Some(available), Some(true)) => format!("; fits: {} are available", Bytes(available)),
        (Some(available), Some(false)) => format!("; does not fit: {} are available", Bytes(available)),
        _ => String::new(),
    };
    page.line("total", format!("{}{fits}", Bytes(memory.total_bytes)));
}

fn add_speed(page: &mut Page, speed: &Speed) {
    page.heading("Speed");
    let threads = if speed.threads == 1 { "thread" } else { "threads" };
    page.line(
        "reading memory",
        format!(
            "{:.1} GB/s, measured now on {} {threads}",
            speed.read_bytes_per_second_measured / 1e9,
            speed.threads
        ),
    );
    page.line("a token reads", Bytes(speed.bytes_per_token));
    let caches = if speed.may_stay_in_caches {
        "; more where the weights stay in caches"
    } else {
        " for one conversation"
    };
    page.line("so at most", format!("{:.1} tokens/s{caches}", speed.tokens_per_second_max));
}

/// A value of the metadata in one line.
fn metadata(value: &serde_json::Value) -> String {
    let list = |values: &serde_json::Value| {
        let values = values.as_array().map_or(&[][..], Vec::as_slice);
        values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(_) => format!("[{}]", list(value)),
        serde_json::Value::Object(array) => {
            let kind = array["type"].as_str().unwrap_or_default();
            format!("[{}, ...] ({} x {kind})", list(&array["first"]), array["length"])
        }
        value => value.to_string(),
    }
}

/// Without what would steer a terminal: the text comes from a file that anybody may have written.
fn escaped(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Lines of names and values in two columns.
#[derive(Default)]
struct Page(String);

/// The width of a name; longer ones push their value to the right.
const NAME_WIDTH: usize = 15;

impl Page {
    fn heading(&mut self, heading: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "\n{heading}");
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name:NAME_WIDTH$} {value}");
    }
}
