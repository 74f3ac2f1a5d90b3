//! Byte pair encoding: over bytes in the GPT-2 alphabet, or over plain UTF-8 as Gemma 4 does it.

use super::merge::{Merge, NO_TOKEN, Symbol, merge};
use super::pieces::PairTable;
use super::pretokenizers::PreTokenizer;
use super::spellings::{ALPHABET, Spellings, byte_token, starts_words_only};
use super::split::split;
use super::words::{Scratch, each_marked_word};
use super::{TokenId, TokenizerError};

#[derive(Debug)]
pub(super) struct Bpe {
    pre: PreTokenizer,
    merges: PairTable,
    /// The symbol each byte starts as, or what stands for a byte that no token spells.
    byte_symbols: Box<[u32]>,
    /// Raw vocabularies: no token holds `▁` after another character, so words can be merged one by one.
    words_apart: bool,
}

impl Bpe {
    /// Reads the merges, each two spellings with a space between, best first. Spellings that are no tokens take part in
    /// merging under numbers past the vocabulary.
    pub(super) fn new<'a>(
        pre: PreTokenizer,
        merges: impl ExactSizeIterator<Item = &'a [u8]>,
        spellings: &mut Spellings,
    ) -> Result<Self, TokenizerError> {
        let mut table = PairTable::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, both) in merges.enumerate() {
            // The first byte may be a space itself.
            let Some(gap) = both.iter().skip(1).position(|b| *b == b' ').map(|i| i + 1) else {
                return Err(TokenizerError::Merge {
                    index: rank,
                    merge: String::from_utf8_lossy(both).into(),
                });
            };
            let (left, right) = (&both[..gap], &both[gap + 1..]);
            if right.is_empty() {
                return Err(TokenizerError::Merge {
                    index: rank,
                    merge: String::from_utf8_lossy(both).into(),
                });
            }
            joined.clear();
            joined.extend_from_slice(left);
            joined.extend_from_slice(right);
            let (left, right) = (spellings.intern(left)?, spellings.intern(right)?);
            table.insert(left, right, rank as u32, spellings.intern(&joined)?);
        }
        let byte_symbols = (0..=255).map(|byte: u8| {
            let symbol = if pre.raw {
                spellings.token(byte_token(byte).as_bytes())
            } else {
                spellings.symbol(ALPHABET[byte as usize].as_bytes())
            };
            symbol.unwrap_or(NO_TOKEN)
        });
        let byte_symbols = byte_symbols.collect();
        let words_apart = pre.raw && starts_words_only(spellings);
        Ok(Self { pre, merges: table, byte_symbols, words_apart })
    }

    pub(super) fn raw(&self) -> bool {
        self.pre.raw
    }

    pub(super) fn encode(&self, text: &str, spellings: &Spellings, ids: &mut Vec<TokenId>) {
        let mut scratch = Scratch::new(text);
        let mut at = 0;
        split(text, self.pre.passes, &mut |word| {
            let start = at;
            at += word.len();
            if !self.words_apart {
                scratch.word(start..at, ids, |scratch, ids| self.encode_word(word, spellings, scratch, ids));
                return;
            }
            each_marked_word(word, |range| {
                let part = &word[range.clone()];
                let range = start + range.start..start + range.end;
                scratch.word(range, ids, |scratch, ids| self.encode_word(part, spellings, scratch, ids));
            });
        });
    }

    fn encode_word(
        &self,
        word: &str,
        spellings: &Spellings,
        scratch: &mut Scratch<'_>,
        ids: &mut Vec<TokenId>,
    ) {
        let whole =
            (self.pre.whole_words && !self.pre.raw) || (self.pre.raw && word.bytes().all(|b| b == b'\n'));
        if whole && let Some(id) = self.whole_word(word, spellings, &mut scratch.spelled) {
            ids.push(id);
            return;
        }
        scratch.symbols.clear();
        if self.pre.raw {
            scratch.symbols.extend(word.char_indices().map(|(start, c)| Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                id: spellings.symbol(&word.as_bytes()[start..start + c.len_utf8()]).unwrap_or(NO_TOKEN),
            }));
        } else {
            scratch.symbols.extend(word.bytes().enumerate().map(|(start, byte)| Symbol {
                start: start as u32,
                len: 1,
                id: self.byte_symbols[byte as usize],
            }));
        }
        merge(&mut scratch.symbols, &mut scratch.merging, &mut |left: Symbol, right: Symbol| {
            if left.id == NO_TOKEN {
                return None;
            }
            self.merges.find(left.id, right.id).map(|(cost, id)| Merge { cost, id })
        });
        for symbol in &scratch.symbols {
            if symbol.id < spellings.tokens() {
                ids.push(symbol.id);
                continue;
            }
            let bytes = &word.as_bytes()[symbol.start as usize..][..symbol.len as usize];
            let fallback = bytes.iter().map(|byte| self.byte_symbols[*byte as usize]);
            ids.extend(fallback.filter(|id| *id < spellings.tokens()));
        }
    }

    fn whole_word(&self, word: &str, spellings: &Spellings, spelled: &mut Vec<u8>) -> Option<TokenId> {
        if self.pre.raw {
            return spellings.token(word.as_bytes());
        }
        if word.len() > spellings.spelling_bytes_max() {
            return None;
        }
        spelled.clear();
        for byte in word.bytes() {
            spelled.extend_from_slice(ALPHABET[byte as usize].as_bytes());
        }
        spellings.token(spelled)
    }
}
