//! A text completion's request.

use engine::request::TokenId;

use crate::config::Limits;
use crate::error::ApiError;
use crate::json::{Fields, Kind, kind_of, wrong_kind};
use crate::options::{self, Options};

const FIELDS: &[&str] = &["prompt", "suffix", "echo", "logprobs"];

#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub options: Options,
    /// `Some(n)`: log-probabilities of the chosen tokens and of `n` alternatives.
    pub logprobs: Option<usize>,
    /// Answers begin with the prompt.
    pub echo: bool,
    /// At least one.
    pub prompts: Vec<Prompt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

impl CompletionRequest {
    /// Reads and checks a body. What a model cannot be asked is refused here, before any model is.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields::read(body, &[options::FIELDS, FIELDS])?;
        let request = Self {
            options: Options::read(&fields, limits)?,
            logprobs: options::alternatives(&fields, "logprobs")?,
            echo: fields.boolean("echo")?.unwrap_or(false),
            prompts: prompts(&fields, "prompt", limits.prompts_max, limits)?,
        };
        request.options.check_generations(request.prompts.len(), limits)?;
        if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported(
                "suffix",
                "is not supported: text is continued, not filled in",
            ));
        }
        if request.echo && request.logprobs.is_some() {
            let problem = "is not supported together with 'echo': prompts have no log-probabilities yet";
            return Err(ApiError::unsupported("logprobs", problem));
        }
        Ok(request)
    }
}

/// The field `name`: a text, texts, tokens, or lists of tokens, at most `max` of them.
pub(crate) fn prompts(
    fields: &Fields<'_>,
    name: &str,
    max: usize,
    limits: &Limits,
) -> Result<Vec<Prompt>, ApiError> {
    match fields.text(name).map(kind_of) {
        None => Err(ApiError::field(name, "is missing")),
        Some(Kind::String) => Ok(fields.string(name)?.into_iter().map(Prompt::Text).collect()),
        Some(Kind::Array) => from_array(fields, name, max, limits),
        Some(found) => Err(wrong_kind(name, &[Kind::String, Kind::Array], found)),
    }
}

/// Texts, tokens, or lists of tokens, told apart by the first element.
fn from_array(fields: &Fields<'_>, name: &str, max: usize, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    let first = fields.text(name).map_or("", |text| text[1..].trim_ascii_start());
    let prompts = match kind_of(first) {
        Kind::String => {
            let texts = fields.list(name, max)?.unwrap_or_default();
            texts.into_iter().map(Prompt::Text).collect()
        }
        Kind::Array => {
            let lists: Vec<Vec<TokenId>> = fields.list(name, max)?.unwrap_or_default();
            lists.into_iter().map(Prompt::Tokens).collect()
        }
        _ if first.starts_with(']') => Vec::new(),
        _ => vec![Prompt::Tokens(fields.list(name, limits.tokens_max)?.unwrap_or_default())],
    };
    let tokens: usize = prompts.iter().map(Prompt::given_tokens).sum();
    if prompts.is_empty() {
        return Err(ApiError::field(name, "must have at least one element"));
    }
    if tokens > limits.tokens_max {
        return Err(ApiError::field(name, format!("has more than {} tokens", limits.tokens_max)));
    }
    Ok(prompts)
}

impl Prompt {
    fn given_tokens(&self) -> usize {
        match self {
            Self::Text(_) => 0,
            Self::Tokens(tokens) => tokens.len(),
        }
    }
}
