//! What `inspect` finds out. The fields and their names are its JSON.

pub(super) mod model;

use crate::defaults;
use crate::error::CliError;
use crate::machine;
use crate::source::Source;
use engine::KvFormat;
use engine::gguf::{Array, Gguf, TensorInfo, Value};
use engine::model::{Outline, Purpose};
use engine::template::ChatTemplate;
use engine::tokenizer::Tokenizer;
use model::Model;
use serde::Serialize;
use serde_json::{Map, json};
use std::collections::BTreeMap;

/// Of a longer array the first elements are shown, of a longer text the beginning.
const ELEMENTS_SHOWN: usize = 4;
const CHARS_SHOWN: usize = 160;

#[derive(Serialize)]
pub(super) struct Facts {
    pub(super) file: File,
    pub(super) support: Support,
    pub(super) parameters: u64,
    /// Null where the architecture is not known or the model is not whole.
    pub(super) shape: Option<Shape>,
    pub(super) model: Option<Model>,
    pub(super) memory: Option<Memory>,
    pub(super) speed: Option<Speed>,
    pub(super) formats: Vec<Format>,
    pub(super) metadata: Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tensors: Option<Vec<Tensor>>,
}

#[derive(Serialize)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) parts: usize,
    pub(super) gguf_version: u32,
}

#[derive(Serialize)]
pub(super) struct Support {
    pub(super) architecture: Option<String>,
    pub(super) supported: bool,
    /// What is in the way of generating text.
    pub(super) problems: Vec<String>,
    pub(super) chat_template: bool,
}

#[derive(Serialize)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) feed_forward: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocabulary: usize,
    pub(super) context_tokens: usize,
}

#[derive(Serialize)]
pub(super) struct Memory {
    pub(super) weight_bytes: u64,
    pub(super) kv_bytes_per_1000_tokens: u64,
    pub(super) kv_bytes_per_token_f16: u64,
    pub(super) kv_bytes_per_token_q8_0: u64,
    pub(super) context_tokens: usize,
    /// Whether `run` and `serve` refuse that context.
    pub(super) context_beyond_trained: bool,
    /// Of a conversation: keys, values, and states.
    pub(super) kv_bytes: u64,
    /// The same for as many tokens as the model was trained for.
    pub(super) kv_bytes_of_trained_context: u64,
    /// Of those, what states take however long the conversation is.
    pub(super) state_bytes: u64,
    /// Of those, what layers with a sliding window take: they keep keys and values of the whole context, too.
    pub(super) window_kv_bytes: u64,
    pub(super) working_bytes: u64,
    pub(super) total_bytes: u64,
    /// Null where the system does not say.
    pub(super) available_bytes: Option<u64>,
    pub(super) fits: Option<bool>,
}

#[derive(Serialize)]
pub(super) struct Speed {
    pub(super) read_bytes_per_second_measured: f64,
    pub(super) threads: usize,
    /// Weights and states that a token reads, of experts those that it is sent to.
    pub(super) bytes_per_token: u64,
    pub(super) state_bytes_per_token: u64,
    /// The bound that reading those sets, where a conversation begins.
    pub(super) tokens_per_second_max: f64,
    pub(super) full_context_tokens: usize,
    /// Keys and values that a token reads on top, at the end of a full context.
    pub(super) kv_bytes_read_at_full_context: u64,
    pub(super) tokens_per_second_max_at_full_context: f64,
    /// Whether the weights are so small that caches hold much of them, so that the bound does not hold.
    pub(super) may_stay_in_caches: bool,
}

#[derive(Serialize)]
pub(super) struct Format {
    pub(super) format: &'static str,
    pub(super) tensors: usize,
    pub(super) parameters: u64,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) format: &'static str,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: u64,
}

impl Facts {
    pub(super) fn gather(
        gguf: &Gguf,
        source: &Source,
        context_tokens: Option<usize>,
        bandwidth: Option<f64>,
        tensors: bool,
    ) -> Facts {
        let outline = Outline::read(gguf);
        let support = support(gguf, outline.as_ref().err().map(ToString::to_string));
        let outline = outline.ok();
        let memory = outline.as_ref().map(|outline| memory(outline, context_tokens));
        // A text that goes through whole is bound by computing and not by reading.
        let generates = outline.as_ref().filter(|outline| outline.purpose == Purpose::Generates);
        let speed = generates.zip(memory.as_ref()).zip(bandwidth);
        Facts {
            file: File {
                name: source.name(),
                bytes: gguf.len_bytes(),
                parts: gguf.parts(),
                gguf_version: gguf.version(),
            },
            support,
            parameters: gguf.tensors().iter().map(TensorInfo::elements).sum(),
            shape: outline.as_ref().map(shape),
            model: outline.as_ref().map(Model::of),
            speed: speed.map(|((outline, memory), bandwidth)| self::speed(outline, memory, bandwidth)),
            memory,
            formats: formats(gguf),
            metadata: gguf.metadata().map(|(key, value)| (key.to_owned(), abbreviate(&value))).collect(),
            tensors: tensors.then(|| gguf.tensors().iter().map(tensor).collect()),
        }
    }
}

fn support(gguf: &Gguf, model_problem: Option<String>) -> Support {
    let architecture = gguf.str("general.architecture").ok().flatten().map(str::to_owned);
    let message = |error: anyhow::Error| CliError::from(error).message();
    let tokenizer = Tokenizer::from_gguf(gguf);
    let template = tokenizer.as_ref().ok().map(|tokenizer| ChatTemplate::from_gguf(gguf, tokenizer));
    let chat_template = matches!(template, Some(Ok(Some(_))));
    let mut problems: Vec<String> = model_problem.into_iter().collect();
    problems.extend(tokenizer.err().map(|error| format!("vocabulary: {}", message(error.into()))));
    problems.extend(template.and_then(Result::err).map(|error| message(error.into())));
    Support { architecture, supported: problems.is_empty(), problems, chat_template }
}

fn shape(outline: &Outline) -> Shape {
    Shape {
        layers: outline.layers,
        width: outline.width,
        feed_forward: outline.feed_forward,
        heads: outline.heads,
        kv_heads: outline.kv_heads,
        head_dim: outline.head_dim,
        vocabulary: outline.vocabulary,
        context_tokens: outline.context_tokens,
    }
}

fn memory(outline: &Outline, context_tokens: Option<usize>) -> Memory {
    let context_tokens =
        context_tokens.unwrap_or_else(|| outline.context_tokens.min(defaults::CONTEXT_TOKENS_MAX));
    let kv_bytes = outline.kv_bytes(KvFormat::F16, context_tokens);
    let total_bytes = outline.packed_bytes.saturating_add(kv_bytes).saturating_add(defaults::WORKING_BYTES);
    let available_bytes = machine::memory().map(|memory| memory.available_bytes);
    let windows = outline.each_layer.iter().filter(|layer| layer.window().is_some());
    let windows = windows.filter_map(|layer| layer.kept);
    let window_kv_bytes_per_token: u64 = windows.map(|kept| kept.bytes_per_token(KvFormat::F16)).sum();
    Memory {
        weight_bytes: outline.packed_bytes,
        // Of a long context: the cache is made of pages, and a short one is mostly rounding.
        kv_bytes_per_1000_tokens: (outline.kv_bytes(KvFormat::F16, 128_000) - outline.state_bytes) / 128,
        kv_bytes_per_token_f16: outline.kv_bytes_per_token(KvFormat::F16),
        kv_bytes_per_token_q8_0: outline.kv_bytes_per_token(KvFormat::Q8_0),
        context_tokens,
        context_beyond_trained: context_tokens > outline.context_tokens,
        kv_bytes,
        kv_bytes_of_trained_context: outline.kv_bytes(KvFormat::F16, outline.context_tokens),
        state_bytes: outline.state_bytes,
        window_kv_bytes: window_kv_bytes_per_token.saturating_mul(context_tokens as u64),
        working_bytes: defaults::WORKING_BYTES,
        total_bytes,
        available_bytes,
        fits: available_bytes.map(|available| total_bytes <= available),
    }
}

fn speed(outline: &Outline, memory: &Memory, bandwidth: f64) -> Speed {
    let state_bytes_per_token = outline.state_bytes;
    let bytes_per_token = outline.bytes_per_token.saturating_add(state_bytes_per_token);
    let full_context_tokens = memory.context_tokens;
    let kv_bytes_read_at_full_context = outline.kv_bytes_read(KvFormat::F16, full_context_tokens);
    let bound = |bytes: u64| (bandwidth / bytes as f64 * 10.0).round() / 10.0;
    Speed {
        read_bytes_per_second_measured: bandwidth.round(),
        threads: machine::threads(),
        bytes_per_token,
        state_bytes_per_token,
        tokens_per_second_max: bound(bytes_per_token),
        full_context_tokens,
        kv_bytes_read_at_full_context,
        tokens_per_second_max_at_full_context: bound(
            bytes_per_token.saturating_add(kv_bytes_read_at_full_context),
        ),
        may_stay_in_caches: bytes_per_token < defaults::CACHES_BYTES,
    }
}

/// Formats by the parameters they hold, most first.
fn formats(gguf: &Gguf) -> Vec<Format> {
    let mut formats = BTreeMap::new();
    for tensor in gguf.tensors() {
        let name = tensor.ty.name();
        let of =
            formats.entry(tensor.ty).or_insert(Format { format: name, tensors: 0, parameters: 0, bytes: 0 });
        of.tensors += 1;
        of.parameters = of.parameters.saturating_add(tensor.elements());
        of.bytes = of.bytes.saturating_add(tensor.len_bytes());
    }
    let mut formats: Vec<_> = formats.into_values().collect();
    formats.sort_by_key(|format| std::cmp::Reverse(format.parameters));
    formats
}

fn tensor(info: &TensorInfo) -> Tensor {
    Tensor {
        name: info.name.clone(),
        format: info.ty.name(),
        shape: info.shape.clone(),
        bytes: info.len_bytes(),
    }
}

fn abbreviate(value: &Value<'_>) -> serde_json::Value {
    match value {
        Value::Array(array) if array.len() <= ELEMENTS_SHOWN => first(array).into(),
        Value::Array(array) => {
            json!({"type": array.ty().name(), "length": array.len(), "first": first(array)})
        }
        value => scalar(value),
    }
}

fn first(array: &Array<'_>) -> Vec<serde_json::Value> {
    match array.strings() {
        Some(strings) => strings
            .iter()
            .take(ELEMENTS_SHOWN)
            .map(|bytes| shortened(&String::from_utf8_lossy(bytes)).into())
            .collect(),
        None => array.scalars().take(ELEMENTS_SHOWN).map(|value| scalar(&value)).collect(),
    }
}

fn scalar(value: &Value<'_>) -> serde_json::Value {
    if let Some(text) = value.as_str() {
        return shortened(text).into();
    }
    if let Some(flag) = value.as_bool() {
        return flag.into();
    }
    match value.as_int() {
        Some(int) => i64::try_from(int).map_or_else(|_| json!(int as u64), |int| json!(int)),
        // By its shortest decimal form: 1e-5 and not 9.999999747378752e-6.
        None => json!(value.as_f32().and_then(|float| float.to_string().parse::<f64>().ok())),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(CHARS_SHOWN) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
