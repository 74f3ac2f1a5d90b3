//! SentencePiece's normalizer: characters are replaced, spaces are merged and become `▁`.

use super::charsmap::Charsmap;
use super::trie::Trie;
use crate::tokenizer::WORD_START;
use crate::tokenizer::words::mark_spaces;

#[derive(Debug)]
pub(super) struct Normalizer {
    pub charsmap: Option<Charsmap>,
    /// What users defined stays as it is.
    pub kept: Trie,
    pub space_prefix: bool,
    pub merge_spaces: bool,
}

impl Normalizer {
    pub(super) fn normalize<'a>(&'a self, text: &'a str, prefix: bool) -> Normalized<'a> {
        let mut rest = text;
        while self.merge_spaces
            && let (" ", len) = self.first(rest)
        {
            rest = &rest[len..];
        }
        Normalized {
            normalizer: self,
            rest,
            prefix: prefix && self.space_prefix && !rest.is_empty(),
            after_space: self.merge_spaces,
        }
    }

    /// What the beginning of `text` becomes, and its length in bytes: of a rule's match or of a character.
    fn first<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        let kept = self.kept.longest(text);
        if kept > 0 {
            return (&text[..kept], kept);
        }
        if let Some((len, replacement)) = self.charsmap.as_ref().and_then(|charsmap| charsmap.longest(text)) {
            return (replacement, len);
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}

/// A text on its way.
#[derive(Debug)]
pub(super) struct Normalized<'a> {
    normalizer: &'a Normalizer,
    rest: &'a str,
    prefix: bool,
    after_space: bool,
}

impl Normalized<'_> {
    /// Appends normalized text until there are `len` bytes; `false` if there was nothing left.
    pub(super) fn fill(&mut self, normalized: &mut String, len: usize) -> bool {
        if self.rest.is_empty() {
            return false;
        }
        normalized.reserve((self.rest.len() + self.rest.len() / 4).min(len));
        if std::mem::take(&mut self.prefix) {
            normalized.push_str(WORD_START);
        }
        while !self.rest.is_empty() && normalized.len() < len {
            let (mut part, consumed) = self.normalizer.first(self.rest);
            self.rest = &self.rest[consumed..];
            if self.after_space {
                part = part.trim_start_matches(' ');
            }
            if !part.is_empty() {
                mark_spaces(part, normalized);
                self.after_space = self.normalizer.merge_spaces && part.ends_with(' ');
            }
        }
        if self.rest.is_empty() && self.normalizer.merge_spaces {
            normalized.truncate(normalized.trim_end_matches(WORD_START).len());
        }
        true
    }
}
