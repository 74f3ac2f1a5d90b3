//! How a vocabulary spells its tokens, and what bytes the spellings stand for.

use std::ops::Range;

use super::pieces::{Arena, PieceTable, hash};
use super::{TokenId, TokenizerError, WORD_START};

/// Every spelling by id. Ids past the vocabulary are strings that only merges name.
#[derive(Debug)]
pub(super) struct Spellings {
    arena: Arena,
    table: PieceTable,
    tokens: u32,
    spelling_bytes_max: usize,
    /// Some spelling has more than one id.
    ambiguous: bool,
}

impl Spellings {
    pub(super) fn new<'a>(tokens: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<Self, TokenizerError> {
        let count = tokens.len();
        if count as u64 >= u64::from(u32::MAX) {
            return Err(TokenizerError::TooLarge);
        }
        let mut spellings = Self {
            arena: Arena::with_capacity(count, count * 8),
            table: PieceTable::with_capacity(count),
            tokens: 0,
            spelling_bytes_max: 0,
            ambiguous: false,
        };
        for token in tokens {
            spellings.push(String::from_utf8_lossy(token).as_bytes())?;
        }
        spellings.tokens = spellings.arena.len() as u32;
        Ok(spellings)
    }

    /// An empty token has an id but is never found; of equal ones the first is.
    fn push(&mut self, spelling: &[u8]) -> Result<u32, TokenizerError> {
        let id = self.arena.push(spelling).ok_or(TokenizerError::TooLarge)?;
        if !spelling.is_empty() {
            self.ambiguous |= !self.table.insert(&self.arena, spelling, id);
        }
        self.spelling_bytes_max = self.spelling_bytes_max.max(spelling.len());
        Ok(id)
    }

    /// The id of a spelling, a new one past the vocabulary if it is no token. For the vocabulary's own strings.
    pub(super) fn intern(&mut self, spelling: &[u8]) -> Result<u32, TokenizerError> {
        match self.symbol(spelling) {
            Some(id) => Ok(id),
            None => self.push(spelling),
        }
    }

    /// The id of one of the vocabulary's own strings: of two that share a 64-bit hash it takes the one for the other.
    #[inline]
    pub(super) fn own(&self, spelling: &[u8]) -> Option<u32> {
        self.table.find_hash(hash(spelling))
    }

    /// Whether this id, and no other, is spelled so.
    #[inline]
    pub(super) fn is(&self, id: u32, spelling: &[u8]) -> bool {
        !self.ambiguous && self.arena.get(id) == Some(spelling)
    }

    pub(super) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// In bytes of the spelling, which are never fewer than those it stands for.
    pub(super) fn spelling_bytes_max(&self) -> usize {
        self.spelling_bytes_max
    }

    #[inline]
    pub(super) fn token(&self, spelling: &[u8]) -> Option<TokenId> {
        self.symbol(spelling).filter(|id| *id < self.tokens)
    }

    #[inline]
    pub(super) fn symbol(&self, spelling: &[u8]) -> Option<u32> {
        if spelling.len() > self.spelling_bytes_max {
            return None;
        }
        self.table.find(&self.arena, spelling)
    }

    pub(super) fn get(&self, id: TokenId) -> Option<&str> {
        let spelling = self.arena.get(id).filter(|_| id < self.tokens)?;
        // Spellings are valid UTF-8 since `new`.
        std::str::from_utf8(spelling).ok()
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn table(&self) -> &PieceTable {
        &self.table
    }
}

/// Where a text may be cut so that its parts can be merged one by one: before each `▁` that does not follow another,
/// but for the few places where a token could reach across.
#[derive(Debug)]
pub(super) struct WordStarts {
    bridges: Vec<Bridge>,
}

/// A token with `▁` within: what of it stands before and after the cut.
#[derive(Debug)]
struct Bridge {
    before: Box<[u8]>,
    after: Box<[u8]>,
}

/// Vocabularies with more tokens across words than this merge whole texts.
const BRIDGES_MAX: usize = 64;

impl WordStarts {
    /// `None` if there are too many tokens across words.
    pub(super) fn new(spellings: &Spellings) -> Option<Self> {
        let mark = WORD_START.as_bytes();
        let mut bridges = Vec::new();
        for id in 0..spellings.arena.len() as u32 {
            let spelling = spellings.arena.get(id).unwrap_or_default();
            let mut after_mark = true;
            let mut at = 0;
            while let Some(rest) = spelling.get(at..).filter(|rest| !rest.is_empty()) {
                let marked = rest.starts_with(mark);
                if marked && !after_mark {
                    bridges.push(Bridge { before: spelling[..at].into(), after: rest.into() });
                }
                after_mark = marked;
                at += if marked { mark.len() } else { 1 };
            }
            if bridges.len() > BRIDGES_MAX {
                return None;
            }
        }
        Some(Self { bridges })
    }

    /// Hands out the parts of a text in order.
    pub(super) fn each_part(&self, text: &str, mut part: impl FnMut(Range<usize>)) {
        let bytes = text.as_bytes();
        let mut start = 0;
        let mut from = 0;
        while let Some(found) = text[from..].find(WORD_START) {
            let cut = from + found;
            from = cut + WORD_START.len();
            let bridged = |bridge: &Bridge| {
                bytes[..cut].ends_with(&bridge.before) && bytes[cut..].starts_with(&bridge.after)
            };
            if cut > start
                && !bytes[..cut].ends_with(WORD_START.as_bytes())
                && !self.bridges.iter().any(bridged)
            {
                part(start..cut);
                start = cut;
            }
        }
        if start < bytes.len() {
            part(start..bytes.len());
        }
    }
}

/// The name of the token that stands for one byte.
pub(super) fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The byte that `<0xXX>` stands for.
pub(super) fn byte_of_token(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| hex)
}

/// GPT-2's alphabet: a printable character for each byte, its own where it has one, in one or two bytes of UTF-8.
pub(super) const ALPHABET: [Letter; 256] = alphabet();

#[derive(Clone, Copy, Debug)]
pub(super) struct Letter {
    utf8: [u8; 2],
    len: u8,
}

impl Letter {
    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.utf8[..self.len as usize]
    }
}

const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

const fn alphabet() -> [Letter; 256] {
    let mut letters = [Letter { utf8: [0; 2], len: 0 }; 256];
    let mut next = 256;
    let mut byte = 0;
    while byte < 256 {
        let c = if is_printable(byte as u8) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        letters[byte] = if c < 128 {
            Letter { utf8: [c as u8, 0], len: 1 }
        } else {
            Letter { utf8: [0xC0 | (c >> 6) as u8, 0x80 | (c & 0x3F) as u8], len: 2 }
        };
        byte += 1;
    }
    letters
}

/// What each of the alphabet's characters stands for; -1 where it has none. The last character is U+0143.
const BYTES: [i16; 0x144] = {
    let mut bytes = [-1; 0x144];
    let mut next = 256;
    let mut byte = 0;
    while byte < 256 {
        if is_printable(byte as u8) {
            bytes[byte] = byte as i16;
        } else {
            bytes[next] = byte as i16;
            next += 1;
        }
        byte += 1;
    }
    bytes
};

/// Appends the bytes that a spelling in GPT-2's alphabet stands for; foreign characters stand for themselves.
pub(super) fn push_alphabet_bytes(spelling: &str, bytes: &mut Vec<u8>) {
    for c in spelling.chars() {
        match BYTES.get(c as usize) {
            Some(byte @ 0..) => bytes.push(*byte as u8),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Appends a spelling with `▁` as space.
pub(super) fn push_unmarked_bytes(spelling: &str, bytes: &mut Vec<u8>) {
    for (i, part) in spelling.split(WORD_START).enumerate() {
        if i > 0 {
            bytes.push(b' ');
        }
        bytes.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_names_every_byte_once() {
        let spelled: Vec<u8> = (0..=255).flat_map(|b: u8| ALPHABET[b as usize].as_bytes().to_vec()).collect();
        let spelled = String::from_utf8(spelled).unwrap();
        let mut bytes = Vec::new();
        push_alphabet_bytes(&spelled, &mut bytes);
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(ALPHABET[b' ' as usize].as_bytes(), "Ġ".as_bytes());
        assert_eq!(ALPHABET[b'\n' as usize].as_bytes(), "Ċ".as_bytes());
    }

    #[test]
    fn byte_tokens_read_back() {
        assert_eq!(byte_of_token(&byte_token(0xAF)), Some(0xAF));
        for wrong in ["<0x1>", "<0xGG>", "0x12", "<0x+1>", "<0x123>"] {
            assert_eq!(byte_of_token(wrong), None, "{wrong}");
        }
    }
}
