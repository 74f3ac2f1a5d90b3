//! Spellings by their characters: all that begin at a place are found in one walk.

use crate::tokenizer::merge::NO_TOKEN;
use crate::tokenizer::pieces::PairTable;
use crate::tokenizer::{TokenId, TokenizerError};

/// More would take over 350 MB. XLM-RoBERTa's quarter of a million pieces have under a million.
const NODES_MAX: usize = 1 << 24;

/// From a node and a character to the next node and the token that ends there.
#[derive(Debug)]
pub(super) struct Trie {
    edges: PairTable,
}

impl Trie {
    pub(super) const ROOT: u32 = 0;

    /// Of equal spellings the first is found, empty ones are not.
    pub(super) fn new(mut spellings: Vec<(&str, TokenId)>) -> Result<Self, TokenizerError> {
        // A spelling comes before those it begins.
        spellings.sort_unstable();
        let mut before = "";
        let mut edges = 0;
        for (spelling, _) in &spellings {
            let shared = spelling.chars().zip(before.chars()).take_while(|(a, b)| a == b).count();
            edges += spelling.chars().count() - shared;
            before = spelling;
        }
        if edges >= NODES_MAX {
            return Err(TokenizerError::TooManyPrefixes { found: edges, max: NODES_MAX - 1 });
        }
        let mut trie = Self { edges: PairTable::with_capacity(edges) };
        let mut nodes = 1;
        for (spelling, id) in spellings {
            let mut node = Self::ROOT;
            let mut chars = spelling.chars().peekable();
            while let Some(c) = chars.next() {
                if let Some((next, _)) = trie.step(node, c) {
                    node = next;
                    continue;
                }
                let id = if chars.peek().is_none() { id } else { NO_TOKEN };
                trie.edges.insert(node, u32::from(c), id, nodes);
                node = nodes;
                nodes += 1;
            }
        }
        Ok(trie)
    }

    #[inline]
    pub(super) fn step(&self, node: u32, c: char) -> Option<(u32, Option<TokenId>)> {
        let (id, next) = self.edges.find(node, u32::from(c))?;
        Some((next, Some(id).filter(|id| *id != NO_TOKEN)))
    }

    /// The longest spelling that `text` begins with, in bytes; zero if there is none.
    pub(super) fn longest(&self, text: &str) -> usize {
        let mut node = Self::ROOT;
        let mut longest = 0;
        for (at, c) in text.char_indices() {
            let Some((next, id)) = self.step(node, c) else { break };
            node = next;
            if id.is_some() {
                longest = at + c.len_utf8();
            }
        }
        longest
    }
}
