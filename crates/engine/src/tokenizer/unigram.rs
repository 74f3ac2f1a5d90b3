//! SentencePiece's Unigram model: of all ways to spell a text by pieces, the one whose scores have the highest sum.
//!
//! Ids are those of SentencePiece (0.2.3) to the last tie, which its sums in 32 bits decide: so they are made here as there.
//! It has no limit on a text's length; [`WINDOW_BYTES`] is ours.

mod charsmap;
mod normalizer;
#[cfg(test)]
mod tests;
mod trie;

pub use charsmap::CharsmapError;

use super::merge::NO_TOKEN;
use super::spellings::{Spellings, WordStarts, byte_token};
use super::{Kind, TokenId, TokenizerError};
use charsmap::Charsmap;
use normalizer::Normalizer;
use trie::Trie;

/// How much normalized text is spelled at once; a piece that would reach across is not found.
const WINDOW_BYTES: usize = 16 << 20;

/// What an unknown character costs beside the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Sums beyond this begin at zero again: they would have no digits left to tell pieces apart.
const SUM_MAX: f32 = 100_000.0;

#[derive(Debug)]
pub(super) struct Unigram {
    normalizer: Normalizer,
    pieces: Trie,
    /// What taking each token adds to the sum.
    gains: Vec<f32>,
    unknown_gain: f32,
    unknown: Option<TokenId>,
    /// The tokens that spell unknown characters, if there is one for each byte.
    byte_tokens: Option<Box<[TokenId]>>,
    word_starts: Option<WordStarts>,
}

/// What a file says beside spellings, kinds and scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub charsmap: &'a [u8],
    /// A text begins with a space, and so does what follows a special token.
    pub space_prefix: bool,
    /// Spaces around a text are dropped, and of those within it all but the first.
    pub merge_spaces: bool,
    pub unknown: Option<TokenId>,
}

impl Unigram {
    pub(super) fn new(
        scores: &[f32],
        kinds: &[Kind],
        rules: Rules<'_>,
        spellings: &Spellings,
    ) -> Result<Self, TokenizerError> {
        if let Some(id) = scores.iter().position(|score| !score.is_finite()) {
            return Err(TokenizerError::Score { id: id as TokenId, score: scores[id] });
        }
        let normal = scores.iter().zip(kinds).filter(|(_, kind)| **kind == Kind::Normal);
        let worst = normal.fold(f32::MAX, |worst, (score, _)| worst.min(*score));
        let spelling = |id: usize| spellings.get(id as TokenId).unwrap_or_default();
        let gain = |(id, kind): (usize, &Kind)| match kind {
            Kind::UserDefined => (0.1 * (spelling(id).len() as f64 - 1.0)) as f32,
            _ => scores[id],
        };
        let of_kinds = |wanted: &[Kind]| {
            let wanted = kinds.iter().enumerate().filter(|(_, kind)| wanted.contains(kind));
            Trie::new(wanted.map(|(id, _)| (spelling(id), id as TokenId)).collect())
        };
        let byte = |byte: u8| {
            let id = spellings.token(byte_token(byte).as_bytes())?;
            Some(id).filter(|id| kinds[*id as usize] == Kind::Byte)
        };
        Ok(Self {
            normalizer: Normalizer {
                charsmap: Charsmap::read(rules.charsmap)?,
                kept: of_kinds(&[Kind::UserDefined])?,
                space_prefix: rules.space_prefix,
                merge_spaces: rules.merge_spaces,
            },
            pieces: of_kinds(&[Kind::Normal, Kind::UserDefined])?,
            gains: kinds.iter().enumerate().map(gain).collect(),
            unknown_gain: worst - UNKNOWN_PENALTY,
            unknown: rules.unknown,
            byte_tokens: (0..=255).map(byte).collect(),
            word_starts: WordStarts::new(spellings),
        })
    }

    /// Whether a decoded text begins with a space that is not its own.
    pub(super) fn has_space_prefix(&self) -> bool {
        self.normalizer.space_prefix || self.normalizer.merge_spaces
    }

    pub(super) fn encode(&self, text: &str, prefix: bool, ids: &mut Vec<TokenId>) {
        let mut text = self.normalizer.normalize(text, prefix);
        let mut normalized = String::new();
        let mut path = Path::default();
        while text.fill(&mut normalized, WINDOW_BYTES) {
            match &self.word_starts {
                Some(word_starts) => {
                    word_starts.each_part(&normalized, |part| self.spell(&normalized[part], &mut path, ids));
                }
                None => self.spell(&normalized, &mut path, ids),
            }
            normalized.clear();
        }
    }

    /// Goes on from the best path so far through `text`, with which no piece begins before or ends after.
    fn spell(&self, text: &str, path: &mut Path, ids: &mut Vec<TokenId>) {
        path.ends.clear();
        path.ends.resize(text.len() + 1, End::default());
        path.ends[0].score = path.score;
        let mut reached = 0;
        for (start, first) in text.char_indices() {
            let mut score = path.ends[start].score;
            if score.abs() > SUM_MAX {
                path.ends[start..=reached].iter_mut().for_each(|end| end.score -= score);
                score = 0.0;
            }
            let mut first_is_known = false;
            let mut node = Trie::ROOT;
            let mut len = 0;
            for c in text[start..].chars() {
                let Some((next, piece)) = self.pieces.step(node, c) else { break };
                node = next;
                len += c.len_utf8();
                if let Some(id) = piece {
                    first_is_known |= len == first.len_utf8();
                    reached = reached.max(start + len);
                    path.ends[start + len].offer(score + self.gains[id as usize], len, id);
                }
            }
            if !first_is_known {
                let len = first.len_utf8();
                reached = reached.max(start + len);
                path.ends[start + len].offer(score + self.unknown_gain, len, NO_TOKEN);
            }
        }
        path.score = path.ends[text.len()].score;
        path.taken.clear();
        let mut at = text.len();
        while at > 0 {
            let End { len, id, .. } = path.ends[at];
            at -= len as usize;
            path.taken.push((at, id));
        }
        for &(start, id) in path.taken.iter().rev() {
            let follows_unknown = std::mem::replace(&mut path.unknown, id == NO_TOKEN);
            if id != NO_TOKEN {
                ids.push(id);
            } else if let Some(byte_tokens) = &self.byte_tokens {
                let end = text.ceil_char_boundary(start + 1);
                ids.extend(text.as_bytes()[start..end].iter().map(|byte| byte_tokens[usize::from(*byte)]));
            } else if !follows_unknown {
                ids.extend(self.unknown);
            }
        }
    }
}

/// The best way to spell what has been read, and space that is used again from part to part.
#[derive(Debug, Default)]
struct Path {
    score: f32,
    /// The last character is unknown.
    unknown: bool,
    ends: Vec<End>,
    taken: Vec<(usize, TokenId)>,
}

/// The best last token of what ends at a place.
#[derive(Clone, Copy, Debug)]
struct End {
    score: f32,
    /// Zero as long as nothing ends here.
    len: u32,
    /// [`NO_TOKEN`] for an unknown character.
    id: TokenId,
}

impl Default for End {
    fn default() -> Self {
        Self { score: 0.0, len: 0, id: NO_TOKEN }
    }
}

impl End {
    /// Takes a better score; of equal ones the first stays.
    #[inline]
    fn offer(&mut self, score: f32, len: usize, id: TokenId) {
        if self.len == 0 || score > self.score {
            *self = Self { score, len: len as u32, id };
        }
    }
}
