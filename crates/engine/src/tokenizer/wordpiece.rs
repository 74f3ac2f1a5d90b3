//! BERT's WordPiece: normalize, split into words, then take the longest token again and again.
//!
//! A GGUF spells the start of a word with `▁` and the rest of it plainly, where BERT's own files spell the start
//! plainly and the rest with `##`.

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization;

use super::pieces::{Arena, PieceTable};
use super::split::{ASCII, CONTROL, MARK, PUNCTUATION, SPACE, SYMBOL, class_of};
use super::{TokenId, WORD_START};

/// Longer words are unknown: so the models' data was made.
const WORD_CHARS_MAX: usize = 100;

#[derive(Debug)]
pub(super) struct WordPiece {
    pub lowercase: bool,
    pub strip_accents: bool,
    pub unknown: Option<TokenId>,
    /// Length of the longest spelling, in bytes.
    pub spelling_bytes_max: usize,
}

impl WordPiece {
    pub(super) fn encode(&self, text: &str, arena: &Arena, table: &PieceTable, ids: &mut Vec<TokenId>) {
        let mut word = String::new();
        let mut end_word = |word: &mut String| {
            if word.len() > WORD_START.len() {
                self.encode_word(word, arena, table, ids);
            }
            word.clear();
            word.push_str(WORD_START);
        };
        end_word(&mut word);
        let mut each = |c: char| {
            let class = class_of(c);
            if class & SPACE != 0 {
                end_word(&mut word);
                return;
            }
            let dropped = c == '\0' || c == char::REPLACEMENT_CHARACTER || class & CONTROL != 0;
            if dropped || (self.strip_accents && class & MARK != 0 && is_accent(c)) {
                return;
            }
            let alone =
                class & PUNCTUATION != 0 || (class & ASCII != 0 && class & SYMBOL != 0) || is_ideograph(c);
            if alone {
                end_word(&mut word);
            }
            if self.lowercase {
                word.extend(c.to_lowercase());
            } else {
                word.push(c);
            }
            if alone {
                end_word(&mut word);
            }
        };
        if self.strip_accents {
            text.nfd().for_each(&mut each);
        } else {
            text.chars().for_each(&mut each);
        }
        end_word(&mut word);
    }

    /// The longest tokens that spell the word; the unknown token if there is a place that none covers.
    fn encode_word(&self, word: &str, arena: &Arena, table: &PieceTable, ids: &mut Vec<TokenId>) {
        let before = ids.len();
        if word.chars().count() > WORD_CHARS_MAX + WORD_START.chars().count() {
            ids.extend(self.unknown);
            return;
        }
        let mut at = 0;
        while at < word.len() {
            let mut end = word.floor_char_boundary((at + self.spelling_bytes_max).min(word.len()));
            let id = loop {
                if end <= at {
                    break None;
                }
                match table.find(arena, &word.as_bytes()[at..end]) {
                    Some(id) => break Some(id),
                    None => end = word.floor_char_boundary(end - 1),
                }
            };
            let Some(id) = id else {
                ids.truncate(before);
                ids.extend(self.unknown);
                return;
            };
            ids.push(id);
            at = end;
        }
    }
}

/// Marks that take no space of their own; vowel signs that do are letters to BERT.
fn is_accent(c: char) -> bool {
    get_general_category(c) == GeneralCategory::NonspacingMark
}

/// The blocks BERT's normalizer puts spaces around. U+2B920 is where the Rust implementation that made the models' data
/// begins Extension E; the block begins at U+2B820.
fn is_ideograph(c: char) -> bool {
    matches!(
        c,
        '\u{4E00}'..='\u{9FFF}'
            | '\u{3400}'..='\u{4DBF}'
            | '\u{20000}'..='\u{2A6DF}'
            | '\u{2A700}'..='\u{2B73F}'
            | '\u{2B740}'..='\u{2B81F}'
            | '\u{2B920}'..='\u{2CEAF}'
            | '\u{F900}'..='\u{FAFF}'
            | '\u{2F800}'..='\u{2FA1F}'
    )
}
