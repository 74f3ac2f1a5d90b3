//! Byte pair encoding: over bytes in the GPT-2 alphabet, or over plain UTF-8 as Gemma 4 does it.

use super::merge::{Merge, NO_TOKEN, Symbol, merge};
use super::pieces::PairTable;
use super::pretokenizers::PreTokenizer;
use super::spellings::{ALPHABET, Spellings, WordStarts, byte_token};
use super::split::split;
use super::words::Scratch;
use super::{TokenId, TokenizerError};

#[derive(Debug)]
pub(super) struct Bpe {
    pre: PreTokenizer,
    merges: PairTable,
    /// The symbol each byte starts as, or what stands for a byte that no token spells.
    byte_symbols: Box<[u32]>,
    /// Raw vocabularies only: the others' words are cut by the pre-tokenizer alone.
    word_starts: Option<WordStarts>,
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
        let merges: Vec<&[u8]> = merges.collect();
        let known = look_up(&merges, spellings)?;
        for (rank, (merge, ids)) in merges.iter().zip(known).enumerate() {
            let [left, right, joined] = if ids.contains(&NO_TOKEN) {
                let (left, right) = cut(rank, merge)?;
                [
                    spellings.intern(left)?,
                    spellings.intern(right)?,
                    spellings.intern(&[left, right].concat())?,
                ]
            } else {
                ids
            };
            table.insert(left, right, rank as u32, joined);
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
        let word_starts = if pre.raw { WordStarts::new(spellings) } else { None };
        Ok(Self { pre, merges: table, byte_symbols, word_starts })
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
            let Some(word_starts) = &self.word_starts else {
                scratch.word(start..at, ids, |scratch, ids| self.encode_word(word, spellings, scratch, ids));
                return;
            };
            word_starts.each_part(word, |range| {
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

/// Fewer merges than this are looked up before other threads have started.
const MERGES_PER_THREAD_MIN: usize = 20_000;
const THREADS_MAX: usize = 4;

/// The ids of left, right and both joined for each merge, [`NO_TOKEN`] for strings that are no tokens. Most of the time
/// that a vocabulary takes to load is here, waiting for memory; so it is shared out.
fn look_up(merges: &[&[u8]], spellings: &Spellings) -> Result<Vec<[u32; 3]>, TokenizerError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
    let share = merges.len().div_ceil(threads).max(MERGES_PER_THREAD_MIN);
    let mut known = vec![[NO_TOKEN; 3]; merges.len()];
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let shares = merges.chunks(share).zip(known.chunks_mut(share)).enumerate();
        let run = |(i, (merges, known))| look_up_share(i * share, merges, known, spellings);
        let mut shares = shares.collect::<Vec<_>>().into_iter();
        let first = shares.next();
        let others: Vec<_> = shares.map(|share| scope.spawn(move || run(share))).collect();
        results.extend(first.map(run));
        results
            .extend(others.into_iter().map(|thread| thread.join().expect("looking merges up cannot panic")));
    });
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(known)
}

fn look_up_share(
    first_rank: usize,
    merges: &[&[u8]],
    known: &mut [[u32; 3]],
    spellings: &Spellings,
) -> Result<(), TokenizerError> {
    let mut joined = Vec::new();
    let mut last = NO_TOKEN;
    for (i, (merge, known)) in merges.iter().zip(known).enumerate() {
        let (left, right) = cut(first_rank + i, merge)?;
        joined.clear();
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        // Merges mostly come in the order of the tokens they make, some of them several to a token.
        let guess = [last, last.wrapping_add(1)].into_iter().find(|id| spellings.is(*id, &joined));
        last = guess.or_else(|| spellings.own(&joined)).unwrap_or(NO_TOKEN);
        *known = [spellings.own(left).unwrap_or(NO_TOKEN), spellings.own(right).unwrap_or(NO_TOKEN), last];
    }
    Ok(())
}

/// The two sides of a merge. A space that comes first belongs to the left one.
fn cut(rank: usize, merge: &[u8]) -> Result<(&[u8], &[u8]), TokenizerError> {
    let gap = merge.get(1..).and_then(|rest| rest.iter().position(|b| *b == b' ')).map(|gap| gap + 1);
    match gap {
        Some(gap) if gap + 1 < merge.len() => Ok((&merge[..gap], &merge[gap + 1..])),
        _ => Err(TokenizerError::Merge { index: rank, merge: String::from_utf8_lossy(merge).into() }),
    }
}
