//! What the routes need from a loaded model, and nothing else of it.
//!
//! The engine is one implementation; the tests have a scripted one. The calls are synchronous: the routes know
//! which may take long and keep those off the threads that answer others.

use engine::model::{Purpose, Text};
use engine::request::{Refused, Request, Sink, Stats, Ticket, TokenId};
use engine::{AdapterScale, EncodedSink};
use serde_json::{Map, Value};

/// A loaded model.
pub trait Backend: Send + Sync + 'static {
    fn card(&self) -> &Card;

    /// The tokens of `text`.
    fn encode(&self, text: &str, options: EncodeOptions) -> Vec<TokenId>;

    /// The bytes that a token is shown as where tokens are listed, or `None` where the vocabulary has no such token:
    /// what it adds to text, and of a control token, which adds nothing, the name. Tokens may end within a character.
    fn token_bytes(&self, token: TokenId) -> Option<&[u8]>;

    /// The text of tokens, special ones included by name; what is not UTF-8 is replaced.
    fn decode(&self, tokens: &[TokenId]) -> String;

    /// The token that `encode` puts before a text when asked for special ones, where it does.
    fn beginning_of_sequence(&self) -> Option<TokenId>;

    /// The prompt that the model's template makes of a conversation.
    fn render(&self, chat: &Chat) -> Result<String, TemplateError>;

    /// The tokens of a query and a document as the model wants to see them together.
    fn pair(&self, query: &str, document: &str) -> Text;

    /// Hands texts to a model that makes vectors or scores of them. Never waits: what cannot be queued is refused.
    fn submit_texts(&self, texts: Vec<Text>, sink: EncodedSink) -> Result<Ticket, Refused>;

    /// Hands a generation to the scheduler. Never waits: what cannot be queued is refused.
    fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Refused>;

    /// The adapters that are loaded, by their ids.
    fn adapters(&self) -> Vec<LoadedAdapter>;

    /// Sets how much of each adapter requests get that name none; of those that are not listed, nothing.
    fn set_adapters(&self, wanted: &[AdapterScale]) -> Result<(), Refused>;

    fn stats(&self) -> Stats;

    /// Cancels what runs and ends the scheduler. Later submissions are refused.
    fn shut_down(&self);
}

/// An adapter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedAdapter {
    pub name: String,
    pub path: String,
    /// How much of it requests get that name none.
    pub scale: f32,
}

/// What is said about a model to its users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The name that answers carry and requests may ask for.
    pub id: String,
    /// Further names that requests may ask for.
    pub aliases: Vec<String>,
    /// What the model is for.
    pub purpose: Purpose,
    /// Elements of an embedding, where the model makes some.
    pub embedding_len: Option<usize>,
    /// Whether the scores it makes are probabilities.
    pub scores_are_probabilities: bool,
    /// Seconds since 1970.
    pub created: u64,
    /// Tokens that one generation may hold, prompt included.
    pub context_tokens: usize,
    /// The context the model was trained for.
    pub context_tokens_trained: usize,
    pub vocabulary: usize,
    pub parameters: u64,
    pub file_bytes: u64,
    /// The name of the quantization, such as `Q4_K_M`.
    pub quantization: String,
    /// The digest of the model file in hexadecimal; empty where it was not computed.
    pub sha256: String,
}

impl Card {
    /// A card with the first of `names` as its id and the others as aliases, each once.
    pub fn named(names: impl IntoIterator<Item = String>) -> Self {
        let mut each: Vec<String> = Vec::new();
        for name in names {
            if !name.is_empty() && !each.contains(&name) {
                each.push(name);
            }
        }
        let mut each = each.into_iter();
        Self { id: each.next().unwrap_or_default(), aliases: each.collect(), ..Self::default() }
    }

    /// Whether a request that asks for `name` means this model.
    pub fn answers_to(&self, name: &str) -> bool {
        name.is_empty() || name == self.id || self.aliases.iter().any(|alias| alias == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens around the text that the model expects there (beginning of sequence).
    pub add_special: bool,
    /// Read the names of special tokens within the text as these tokens.
    pub parse_special: bool,
}

/// A conversation for the model's template.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// An array of objects, each with a string `role`; `content` is a string or null.
    pub messages: Value,
    /// An array of tool descriptions.
    pub tools: Option<Value>,
    /// End the prompt with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Further variables of the template.
    pub extra: Map<String, Value>,
}

/// Why a template made no prompt, in the template's or its interpreter's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    pub message: String,
}

/// The tokens of what [`Backend::render`] wrote. Some templates write the beginning of sequence themselves: it must not
/// come twice.
pub fn encode_rendered(backend: &dyn Backend, text: &str) -> Vec<TokenId> {
    let mut tokens = backend.encode(text, EncodeOptions { add_special: true, parse_special: true });
    if let (Some(beginning), [first, second, ..]) = (backend.beginning_of_sequence(), tokens.as_slice())
        && *first == beginning
        && *second == beginning
    {
        tokens.remove(0);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_each_name_once() {
        for (names, id, aliases) in [
            (&["a"][..], "a", &[][..]),
            (&["a", "a"], "a", &[]),
            (&["a", "b", "a", "b", "c"], "a", &["b", "c"]),
            (&["", "a", ""], "a", &[]),
            (&[], "", &[]),
        ] {
            let card = Card::named(names.iter().map(|name| name.to_string()));
            assert_eq!(
                (&*card.id, card.aliases),
                (id, aliases.iter().map(|name| name.to_string()).collect())
            );
        }
    }
}
