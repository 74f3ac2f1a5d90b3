//! Chat templates: from messages to the text a model was trained to read.
//!
//! Templates are Jinja2 written for Python; [`python`] makes values behave and print as they do there. A template comes
//! with a model and is not trusted: it gets neither files nor network, and ends when it has used up its fuel or written
//! more than [`OUTPUT_BYTES_MAX`].

use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};

use crate::gguf::{Gguf, GgufError};
use crate::tokenizer::Tokenizer;

mod json;
mod python;
mod source;
#[cfg(test)]
mod tests;
mod time;

pub use time::CivilTime;

/// Instructions of the template engine for one rendering: some seconds of work at most. A conversation of a thousand
/// messages takes fewer than a million.
pub const FUEL_MAX: u64 = 20_000_000;

/// A rendering may be no longer than this.
pub const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// A template longer than this is no chat template.
pub const SOURCE_BYTES_MAX: usize = 4 << 20;

const NAME: &str = "chat_template";

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

/// What a template is filled with.
#[derive(Clone, Debug, Default)]
pub struct ChatInput {
    /// An array of messages.
    pub messages: serde_json::Value,
    /// Descriptions of the tools that the model may call.
    pub tools: Option<serde_json::Value>,
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, by name (`chat_template_kwargs`). They go before those above.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// What `strftime_now` reads.
    pub now: CivilTime,
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template cannot be compiled.
    #[error("the chat template is broken at line {line}: {message}")]
    Syntax { line: usize, message: String },
    /// The template itself refuses the conversation, in its own words.
    #[error("the chat template refuses the conversation: {message}")]
    Refused { message: String },
    /// The template failed on the conversation.
    #[error("the chat template fails at line {line}: {message}")]
    Failed { line: usize, message: String },
    #[error("the chat template runs for too long")]
    OutOfFuel,
    #[error("the chat template writes more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the chat template is longer than {SOURCE_BYTES_MAX} bytes")]
    SourceTooLong,
    #[error("cannot read the chat template")]
    Gguf(#[from] GgufError),
}

impl TemplateError {
    /// The template's own message where it refused the conversation: whoever sent that should read it.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            TemplateError::Refused { message } => Some(message),
            _ => None,
        }
    }
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the spellings that it calls `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::SourceTooLong);
        }
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        let syntax = syntax.build().expect("the usual delimiters are sound");
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL_MAX));
        environment.set_debug(false);
        python::add_to(&mut environment);
        environment.add_template_owned(NAME, source::adapt(source)).map_err(|error| syntax_error(&error))?;
        Ok(Self { environment, source: source.into(), bos: bos.into(), eos: eos.into() })
    }

    /// The template that a model file carries, if it does.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, TemplateError> {
        let Some(source) = gguf.str("tokenizer.chat_template")? else { return Ok(None) };
        let spelling = |id: Option<_>| id.map_or("", |id| tokenizer.piece(id));
        Self::new(source, spelling(tokenizer.bos()), spelling(tokenizer.eos())).map(Some)
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text for a conversation.
    pub fn render(&self, input: &ChatInput) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| syntax_error(&error))?;
        let mut output = Bounded::default();
        let result = template.render_captured_to(self.context(input), &mut output);
        match result {
            Ok(_) => Ok(String::from_utf8_lossy(&output.bytes).into_owned()),
            Err(_) if output.full => Err(TemplateError::TooLong),
            Err(error) => Err(render_error(&error)),
        }
    }

    fn context(&self, input: &ChatInput) -> Value {
        let now = input.now;
        let own = [
            ("messages", python::from_json(&input.messages)),
            ("tools", input.tools.as_ref().map_or(Value::from(()), python::from_json)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            ("bos_token", Value::from(&self.bos)),
            ("eos_token", Value::from(&self.eos)),
            ("strftime_now", Value::from_function(move |format: &str| time::strftime(format, now))),
        ];
        let extra = input.extra.iter().map(|(name, value)| (name.as_str(), python::from_json(value)));
        Value::from_pairs(own.into_iter().chain(extra))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Keeps what is written until there is too much.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn syntax_error(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax { line: error.line().unwrap_or(0), message: message(error) }
}

fn render_error(error: &minijinja::Error) -> TemplateError {
    if let Some(refusal) = python::refusal(error) {
        return TemplateError::Refused { message: refusal.into() };
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::OutOfFuel,
        _ => TemplateError::Failed { line: error.line().unwrap_or(0), message: message(error) },
    }
}

/// What went wrong, without the place.
fn message(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
