//! What encoding a stretch of text shares between its words: scratch space, and the words seen a moment ago.

use std::ops::Range;

use super::merge::{Symbol, Workspace};
use super::pieces::hash;
use super::{TokenId, WORD_START};

/// Text shorter than this has too few repeated words for remembering to pay.
const REMEMBER_TEXT_BYTES_MIN: usize = 2048;
const REMEMBERED_WORDS: usize = 2048;
const REMEMBERED_WORD_BYTES_MAX: usize = 32;

pub(super) struct Scratch<'t> {
    pub symbols: Vec<Symbol>,
    pub merging: Workspace,
    pub spelled: Vec<u8>,
    text: &'t str,
    /// Where in the text a word stood and where in the ids its tokens are; by hash, the latest stays.
    remembered: Vec<Remembered>,
}

#[derive(Clone, Copy, Default)]
struct Remembered {
    start: usize,
    len: usize,
    ids_start: usize,
    ids_len: usize,
}

impl<'t> Scratch<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let words = if text.len() < REMEMBER_TEXT_BYTES_MIN { 0 } else { REMEMBERED_WORDS };
        Self {
            symbols: Vec::new(),
            merging: Workspace::default(),
            spelled: Vec::new(),
            text,
            remembered: vec![Remembered::default(); words],
        }
    }

    /// Appends the ids of one word of the text: those it had last time, or what `encode` appends.
    pub(super) fn word(
        &mut self,
        range: Range<usize>,
        ids: &mut Vec<TokenId>,
        encode: impl FnOnce(&mut Self, &mut Vec<TokenId>),
    ) {
        let word = &self.text.as_bytes()[range.clone()];
        if self.remembered.is_empty() || word.len() > REMEMBERED_WORD_BYTES_MAX {
            return encode(self, ids);
        }
        let slot = hash(word) as usize % REMEMBERED_WORDS;
        let before = self.remembered[slot];
        if before.len == word.len() && &self.text.as_bytes()[before.start..before.start + before.len] == word
        {
            ids.extend_from_within(before.ids_start..before.ids_start + before.ids_len);
            return;
        }
        let ids_start = ids.len();
        encode(self, ids);
        let ids_len = ids.len() - ids_start;
        self.remembered[slot] = Remembered { start: range.start, len: range.len(), ids_start, ids_len };
    }
}

/// Appends `text` with every space as `▁`.
pub(super) fn mark_spaces(text: &str, marked: &mut String) {
    for (i, part) in text.split(' ').enumerate() {
        if i > 0 {
            marked.push_str(WORD_START);
        }
        marked.push_str(part);
    }
}
