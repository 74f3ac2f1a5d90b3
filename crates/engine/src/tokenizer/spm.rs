//! SentencePiece's BPE: of all neighbours that together spell a token, the one with the highest score merges first.

use super::merge::{Merge, NO_TOKEN, Symbol, merge};
use super::spellings::{Spellings, WordStarts, byte_token};
use super::words::Scratch;
use super::{TokenId, WORD_START};

#[derive(Debug)]
pub(super) struct Spm {
    /// What merging into each token costs: its score, turned so that the best is the lowest.
    costs: Vec<u32>,
    byte_tokens: Box<[Option<TokenId>]>,
    unknown: Option<TokenId>,
    /// A text begins with a space, and so does what follows a special token.
    pub space_prefix: bool,
    /// Where texts may be cut before merging; without, they are merged whole.
    pub word_starts: Option<WordStarts>,
}

impl Spm {
    pub(super) fn new(
        scores: &[f32],
        unknown: Option<TokenId>,
        space_prefix: bool,
        spellings: &Spellings,
    ) -> Self {
        let byte = |b: u8| spellings.token(byte_token(b).as_bytes()).or_else(|| spellings.token(&[b]));
        Self {
            costs: scores.iter().map(|score| cost(*score)).collect(),
            byte_tokens: (0..=255).map(byte).collect(),
            unknown,
            space_prefix,
            word_starts: WordStarts::new(spellings),
        }
    }

    pub(super) fn encode(&self, text: &str, prefix: bool, spellings: &Spellings, ids: &mut Vec<TokenId>) {
        let mut marked = String::with_capacity(text.len() * 5 / 4 + WORD_START.len());
        if prefix && self.space_prefix {
            marked.push_str(WORD_START);
        }
        super::words::mark_spaces(text, &mut marked);
        let mut scratch = Scratch::new(&marked);
        let Some(word_starts) = &self.word_starts else {
            self.encode_word(&marked, spellings, &mut scratch, ids);
            return;
        };
        word_starts.each_part(&marked, |range| {
            let word = &marked[range.clone()];
            scratch.word(range, ids, |scratch, ids| self.encode_word(word, spellings, scratch, ids));
        });
    }

    fn encode_word(
        &self,
        word: &str,
        spellings: &Spellings,
        scratch: &mut Scratch<'_>,
        ids: &mut Vec<TokenId>,
    ) {
        scratch.symbols.clear();
        scratch.symbols.extend(word.char_indices().map(|(start, c)| Symbol {
            start: start as u32,
            len: c.len_utf8() as u32,
            id: NO_TOKEN,
        }));
        let spelling = |start: u32, len: u32| &word.as_bytes()[start as usize..][..len as usize];
        merge(&mut scratch.symbols, &mut scratch.merging, &mut |left: Symbol, right: Symbol| {
            let id = spellings.token(spelling(left.start, left.len + right.len))?;
            Some(Merge { cost: *self.costs.get(id as usize)?, id })
        });
        for symbol in &scratch.symbols {
            let bytes = spelling(symbol.start, symbol.len);
            let known = Some(symbol.id).filter(|id| *id != NO_TOKEN).or_else(|| spellings.token(bytes));
            match known {
                Some(id) => ids.push(id),
                None => {
                    ids.extend(bytes.iter().filter_map(|b| self.byte_tokens[*b as usize].or(self.unknown)));
                }
            }
        }
    }
}

/// Orders floats from highest to lowest; what is not a number is the worst.
fn cost(score: f32) -> u32 {
    let score = if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
    let bits = score.to_bits();
    let ascending = if score.is_sign_negative() { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::cost;

    #[test]
    fn costs_fall_as_scores_rise() {
        let scores = [f32::NEG_INFINITY, -1e9, -2.0, -0.5, 0.0, 0.5, 7.0, f32::INFINITY];
        assert!(scores.windows(2).all(|two| cost(two[0]) > cost(two[1])));
        assert_eq!(cost(-0.0), cost(0.0));
        assert_eq!(cost(f32::NAN), cost(f32::NEG_INFINITY));
    }
}
