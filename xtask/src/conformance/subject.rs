//! What is put to the test: the one place where conformance calls the engine.
//!
//! What is not joined yet answers [`Refusal::Unknown`].

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use engine::gguf::{GgmlType, Gguf};
use engine::model::{Forward, SequenceStep};
use engine::template::{ChatInput, ChatTemplate, CivilTime};
use engine::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};
use engine::{Isa, KvCache, KvFormat, Model, ModelError, OpenOptions, Pool};
use kernels::format::Format;
use serde_json::Value;

/// The tokens that templates may name.
const BOS: &str = "<s>";
const EOS: &str = "</s>";
/// What `strftime_now` takes for now.
const NOW: CivilTime = CivilTime { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5 };
/// More than one, so that what threads do to each other is tested as well.
const THREADS: usize = 2;

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
    /// A part of dunlin, such as quantizing, or what it cannot do.
    Part(Cow<'static, str>),
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

    /// The ids of each text, without BOS and EOS.
    fn encode(&self, model: &Gguf, texts: &[&str]) -> Result<Vec<Vec<u32>>, Refusal>;

    /// The text that `template` makes of `input` (`messages`, `tools`, `add_generation_prompt`), with [`BOS`], [`EOS`]
    /// and [`NOW`].
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

pub(super) struct Engine {
    /// The instruction set that logits are computed on.
    pub(super) isa: Isa,
}

impl Subject for Engine {
    fn logits(&self, model: &Path, tokens: &[u32]) -> Result<Vec<f32>, Refusal> {
        let pool = Pool::new(THREADS);
        let options = OpenOptions { isa: self.isa, ..OpenOptions::default() };
        let model = Model::open(model, &options, &pool, &mut |_| ()).map_err(model_refusal)?;
        if let Some(token) = model.unknown_token(tokens) {
            return Err(Refusal::Error(format!("the prompt's token {token} is not in the vocabulary")));
        }
        // The reference's cache holds floats. With halves, BF16 models, whose activations are rounded coarsely, would
        // differ by nearly what is allowed: a small difference decides how many of them are rounded.
        let mut cache = KvCache::new(&model, KvFormat::F32, tokens.len(), 1);
        let mut sequence = cache.open();
        assert!(cache.reserve(&mut sequence, tokens.len()), "the cache was made for all tokens");
        let step =
            SequenceStep { tokens, position: 0, sequence: &sequence, adapters: &[], outputs: tokens.len() };
        let mut forward = Forward::new(&model, &pool, model.context_tokens());
        let logits = forward.step(&[step], &mut cache);
        Ok((0..logits.count()).flat_map(|row| logits.row(row)).copied().collect())
    }

    fn encode(&self, model: &Gguf, texts: &[&str]) -> Result<Vec<Vec<u32>>, Refusal> {
        let tokenizer = Tokenizer::from_gguf(model).map_err(tokenizer_refusal)?;
        Ok(texts.iter().map(|text| tokenizer.encode(text, EncodeOptions::default())).collect())
    }

    fn render(&self, template: &str, input: &Value) -> Result<String, Refusal> {
        let template = ChatTemplate::new(template, BOS, EOS).map_err(error_refusal)?;
        let input = ChatInput {
            messages: input["messages"].clone(),
            tools: input.get("tools").filter(|tools| !tools.is_null()).cloned(),
            add_generation_prompt: input["add_generation_prompt"].as_bool().unwrap_or(false),
            now: NOW,
            ..ChatInput::default()
        };
        template.render(&input).map_err(error_refusal)
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
        Err(Refusal::Unknown(Unknown::Part("quantizing".into())))
    }
}

fn model_refusal(error: ModelError) -> Refusal {
    match error {
        ModelError::UnknownFamily { name, .. } => Refusal::Unknown(Unknown::Family(name)),
        ModelError::UnknownFormat { format, .. } => Refusal::Unknown(Unknown::Type(format.to_owned())),
        ModelError::Unsupported { what } => Refusal::Unknown(Unknown::Part(what.into())),
        ModelError::Tokenizer(inner) => tokenizer_refusal(inner),
        other => error_refusal(other),
    }
}

fn tokenizer_refusal(error: TokenizerError) -> Refusal {
    match error {
        TokenizerError::UnknownModel { model } => {
            Refusal::Unknown(Unknown::Part(format!("vocabulary model {model}").into()))
        }
        TokenizerError::UnknownPreTokenizer { name, .. } => {
            Refusal::Unknown(Unknown::Part(format!("pre-tokenizer {name}").into()))
        }
        other => error_refusal(other),
    }
}

fn error_refusal(error: impl Into<anyhow::Error>) -> Refusal {
    Refusal::Error(format!("{:#}", error.into()))
}
