//! Tokens to text as they come, never half a character.

use super::{TokenId, Tokenizer};

/// Turns tokens into text one by one. Bytes that do not make a whole character yet wait for the next token.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
    /// Nothing has been pushed and a leading space would be the tokenizer's own.
    at_start: bool,
    special: bool,
}

impl TextStream {
    /// For tokens that are a text of their own: the space that SPM vocabularies put before the first word is taken off.
    pub fn new() -> Self {
        Self { at_start: true, ..Self::default() }
    }

    /// For tokens that go on from a prompt, where a leading space belongs to the text.
    pub fn after_prompt() -> Self {
        Self::default()
    }

    /// The same, with control tokens spelled out.
    pub fn with_special(mut self) -> Self {
        self.special = true;
        self
    }

    /// The text that became certain with this token; often the token's own, empty while a character is incomplete.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> String {
        let mut bytes = tokenizer.bytes_of(id, self.special);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if tokenizer.has_space_prefix() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        let (text, left) = complete(&self.pending);
        self.pending.drain(..self.pending.len() - left);
        text
    }

    /// What is left, with U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// The text of all but an incomplete character at the end, whose length in bytes comes second.
fn complete(mut bytes: &[u8]) -> (String, usize) {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(rest) => {
                text.push_str(rest);
                return (text, 0);
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                let Some(invalid) = error.error_len() else { return (text, rest.len()) };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}
