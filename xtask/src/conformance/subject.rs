//! What is put to the test: the one place where conformance calls the engine.
//!
//! What is not joined yet answers [`Refusal::Unknown`].

use std::fmt;
use std::path::Path;

use engine::gguf::{GgmlType, Gguf};
use kernels::format::Format;
use serde_json::Value;

/// The tokens that templates may name.
#[expect(dead_code, reason = "no template is rendered yet")]
pub(super) const BOS: &str = "<s>";
#[expect(dead_code, reason = "no template is rendered yet")]
pub(super) const EOS: &str = "</s>";
/// What `strftime_now` takes for now, as seconds since 1970: 2026-01-02 03:04:05 UTC.
#[expect(dead_code, reason = "no template is rendered yet")]
pub(super) const NOW_SECONDS: u64 = 1_767_323_045;

/// Why there is no answer to compare.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal {
    /// Not built yet: counted apart.
    Unknown(Unknown),
    /// A failure, unless the reference fails too.
    Error(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unknown {
    /// A model family, such as `mamba2`.
    Family(String),
    /// A weight format, such as `IQ4_XS`.
    Type(String),
    /// A part of dunlin, such as the tokenizer.
    Part(&'static str),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::Family(name) => write!(f, "family {name}"),
            Unknown::Type(name) => write!(f, "type {name}"),
            Unknown::Part(name) => f.write_str(name),
        }
    }
}

/// The engine, or a stand-in in tests.
pub(super) trait Subject {
    /// The logits after each of `tokens`, `tokens.len()` rows as long as the vocabulary.
    fn logits(&self, model: &Path, tokens: &[u32]) -> Result<Vec<f32>, Refusal>;

    /// The ids of `text` without BOS and EOS.
    fn encode(&self, model: &Gguf, text: &str) -> Result<Vec<u32>, Refusal>;

    /// The text that `template` makes of `input` (`messages`, `tools`, `add_generation_prompt`), with [`BOS`], [`EOS`]
    /// and [`NOW_SECONDS`].
    fn render(&self, template: &str, input: &Value) -> Result<String, Refusal>;

    fn dequantize(&self, ty: GgmlType, blocks: &[u8]) -> Result<Vec<f32>, Refusal>;

    /// `rows` in blocks of `ty`, each row as long as `cols`; `importance` has a weight for each column.
    fn quantize(
        &self,
        ty: GgmlType,
        rows: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, Refusal>;
}

pub(super) struct Engine;

impl Subject for Engine {
    fn logits(&self, model: &Path, _tokens: &[u32]) -> Result<Vec<f32>, Refusal> {
        let gguf = Gguf::open(model).map_err(error)?;
        let family = gguf.str("general.architecture").map_err(error)?.unwrap_or("none");
        Err(Refusal::Unknown(Unknown::Family(family.to_owned())))
    }

    fn encode(&self, _model: &Gguf, _text: &str) -> Result<Vec<u32>, Refusal> {
        Err(Refusal::Unknown(Unknown::Part("tokenizer")))
    }

    fn render(&self, _template: &str, _input: &Value) -> Result<String, Refusal> {
        Err(Refusal::Unknown(Unknown::Part("chat templates")))
    }

    fn dequantize(&self, ty: GgmlType, blocks: &[u8]) -> Result<Vec<f32>, Refusal> {
        let format = Format::ALL.into_iter().find(|format| format.name() == ty.name());
        let format = format.ok_or_else(|| Refusal::Unknown(Unknown::Type(ty.name().to_owned())))?;
        if !blocks.len().is_multiple_of(format.block_bytes()) {
            return Err(Refusal::Error(format!("{} bytes are no whole number of {ty} blocks", blocks.len())));
        }
        let mut numbers = vec![0.0; blocks.len() / format.block_bytes() * format.block_len()];
        format.dequantize_row(blocks, &mut numbers);
        Ok(numbers)
    }

    fn quantize(
        &self,
        _ty: GgmlType,
        _rows: &[f32],
        _cols: usize,
        _importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::Unknown(Unknown::Part("quantizing")))
    }
}

fn error(error: impl Into<anyhow::Error>) -> Refusal {
    Refusal::Error(format!("{:#}", error.into()))
}
