//! The same facts, for people.

mod model;

use super::facts::model::Model;
use super::facts::{Facts, Memory, Speed, Support};
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
    add_support(&mut page, &facts.support, facts.model.as_ref());
    match &facts.model {
        Some(model) => page.line("parameters", model::parameters(facts.parameters, model)),
        None => page.line("parameters", Count(facts.parameters)),
    }
    if let Some(shape) = &facts.shape {
        page.line("vocabulary", format!("{} tokens", shape.vocabulary));
        let asked = facts.memory.as_ref().filter(|memory| memory.context_beyond_trained);
        let beyond = asked.map_or(String::new(), |memory| {
            let asked = memory.context_tokens;
            format!("; {asked} are more, which `run` and `serve` refuse")
        });
        page.line("context", format!("trained for {} tokens{beyond}", shape.context_tokens));
    }
    if let (Some(shape), Some(model)) = (&facts.shape, &facts.model) {
        model::add(&mut page, model, shape.width);
    }
    if let Some(memory) = &facts.memory {
        add_memory(&mut page, memory);
    }
    if let Some(speed) = &facts.speed {
        add_speed(&mut page, speed, facts.model.as_ref());
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

fn add_support(page: &mut Page, support: &Support, model: Option<&Model>) {
    let known = model.map_or(String::new(), |model| format!(": {}", model.known_models));
    let architecture = escaped(support.architecture.as_deref().unwrap_or("not said"));
    page.line("architecture", architecture + &known);
    page.line("supported", if support.supported { "yes" } else { "no" });
    for problem in &support.problems {
        page.line("", format!("because {}", escaped(problem)));
    }
    if let Some((model, pooling)) = model.and_then(|model| Some((model, model.pooling?))) {
        return page.line("makes", format!("{} by the {pooling}", model.makes));
    }
    page.line(
        "chat",
        if support.chat_template { "has a template" } else { "no template: continues plain text only" },
    );
}

fn add_memory(page: &mut Page, memory: &Memory) {
    page.heading("Memory");
    page.line("weights", format!("{} packed", Bytes(memory.weight_bytes)));
    let tokens = memory.context_tokens;
    if memory.kv_bytes_per_token_f16 == 0 {
        page.line("KV cache", "none");
    } else {
        let [f16, q8_0] = [memory.kv_bytes_per_token_f16, memory.kv_bytes_per_token_q8_0].map(Bytes);
        page.line("KV cache", format!("{f16} per token, {q8_0} with --kv-format q8_0"));
        let [kv_bytes, trained] = [memory.kv_bytes, memory.kv_bytes_of_trained_context]
            .map(|bytes| Bytes(bytes.saturating_sub(memory.state_bytes)));
        let trained = match kv_bytes.0 < trained.0 {
            true => format!("; {trained} for all it was trained for"),
            false => String::new(),
        };
        page.line("", format!("{kv_bytes} for a conversation of {tokens} tokens{trained}"));
    }
    if memory.window_kv_bytes > 0 {
        let bytes = Bytes(memory.window_kv_bytes);
        page.line("", format!("{bytes} of that in layers with a window, which keep all tokens, too"));
    }
    if memory.state_bytes > 0 {
        page.line("states", format!("{} for each conversation, long or short", Bytes(memory.state_bytes)));
    }
    page.line("to work with", Bytes(memory.working_bytes));
    let fits = match (memory.available_bytes, memory.fits) {
        (Some(available), Some(true)) => format!("; fits: {} are available", Bytes(available)),
        (Some(available), Some(false)) => format!("; does not fit: {} are available", Bytes(available)),
        _ => String::new(),
    };
    page.line("total", format!("{}{fits}", Bytes(memory.total_bytes)));
}

fn add_speed(page: &mut Page, speed: &Speed, model: Option<&Model>) {
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
    let experts =
        model.and_then(|model| model.feed_forward.kinds.iter().find_map(|kind| kind.experts.as_ref()));
    let of_experts = experts.map_or(String::new(), |experts| {
        format!(": of {} experts the {} that it is sent to", experts.count, experts.used)
    });
    page.line("a token reads", format!("{}{of_experts}", Bytes(speed.bytes_per_token)));
    let (full, kv_bytes) = (speed.full_context_tokens, speed.kv_bytes_read_at_full_context);
    if kv_bytes > 0 {
        page.line("", format!("and {} of keys and values after {full} tokens", Bytes(kv_bytes)));
    }
    let (one, caches) = if speed.may_stay_in_caches {
        ("", "; more where the weights stay in caches")
    } else {
        (" for one conversation", "")
    };
    let later = match kv_bytes {
        0 => String::new(),
        _ => format!(" at its start, {:.1} after {full} tokens", speed.tokens_per_second_max_at_full_context),
    };
    page.line("so at most", format!("{:.1} tokens/s{one}{later}{caches}", speed.tokens_per_second_max));
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

    /// A line that is not in columns.
    fn sentence(&mut self, sentence: &str) {
        let _ = writeln!(self.0, "{sentence}");
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name:NAME_WIDTH$} {value}");
    }
}
