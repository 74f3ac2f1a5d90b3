//! Text to token ids and back, by the vocabulary that a model file carries.
//!
//! Knows SentencePiece's BPE (`llama`) and Unigram (`t5`), byte-level BPE (`gpt2`), BPE over plain UTF-8 (`gemma4`) and
//! WordPiece (`bert`), and gives exactly the ids the model was trained with. Refuses vocabularies and pre-tokenizers it does
//! not know: a guess would give valid ids and a model that talks nonsense.

use crate::TokenId;
use crate::gguf::{Gguf, GgufError};

mod bpe;
mod merge;
mod pieces;
mod pretokenizers;
mod special;
mod spellings;
mod split;
mod spm;
mod stream;
#[cfg(test)]
mod tests;
mod unigram;
mod vocabulary;
mod wordpiece;
mod words;

pub use stream::TextStream;
pub use unigram::CharsmapError;
pub use vocabulary::{Strings, Vocabulary};

use bpe::Bpe;
use pieces::Arena;
use special::SpecialTokens;
use spellings::Spellings;
use spm::Spm;
use unigram::Unigram;
use wordpiece::WordPiece;

/// U+2581, which stands for a space in SentencePiece's spellings.
const WORD_START: &str = "\u{2581}";

/// Longer texts are cut at a character before they are encoded, so that offsets within one fit 32 bits.
const STRETCH_BYTES_MAX: usize = 1 << 30;

/// The vocabulary of a model and the rules for cutting text into it.
#[derive(Debug)]
pub struct Tokenizer {
    spellings: Spellings,
    /// What each token adds to text, control tokens their own name.
    bytes: Arena,
    kinds: Vec<Kind>,
    model: Model,
    special: SpecialTokens,
    /// Tokens that take the white space before, or after, them along.
    strips_before: Vec<TokenId>,
    strips_after: Vec<TokenId>,
    /// The tokens that end a generation, in order.
    ends: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    /// What follows a text where special tokens are added: EOS, or BERT's separator.
    tail: Option<TokenId>,
    /// What stands between two texts besides.
    between: Option<TokenId>,
    add_bos: bool,
}

#[derive(Debug)]
enum Model {
    Spm(Spm),
    Unigram(Unigram),
    Bpe(Bpe),
    WordPiece(WordPiece),
}

/// What a token is, by the numbers of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Stands for what cannot be spelled; never shown.
    Unknown,
    /// Steers the model; never shown.
    Control,
    /// Found in text whatever its surroundings.
    UserDefined,
    /// Adds nothing to text.
    Unused,
    Byte,
}

/// How [`Tokenizer::encode`] treats what is not plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put BOS, EOS or separators around the text where the vocabulary asks for it.
    pub add_special: bool,
    /// Read the names of control tokens in the text as those tokens. For templates; never for what users wrote.
    pub parse_special: bool,
}

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read the vocabulary")]
    Gguf(#[from] GgufError),
    #[error("the file has no `{key}`")]
    Missing { key: &'static str },
    #[error("unknown vocabulary model `{model}`, known are: llama, t5, gpt2, gemma4, bert")]
    UnknownModel { model: String },
    #[error("unknown pre-tokenizer `{name}`, known are: {known}")]
    UnknownPreTokenizer { name: String, known: String },
    #[error("`{key}` has {found} entries for {tokens} tokens")]
    Length { key: &'static str, found: usize, tokens: usize },
    #[error("`{key}` is {id}, but there are {tokens} tokens")]
    IdOutOfRange { key: &'static str, id: u32, tokens: usize },
    #[error("merge {index} is not two spellings with a space between: `{merge}`")]
    Merge { index: usize, merge: String },
    #[error("the score of token {id} is {score}")]
    Score { id: TokenId, score: f32 },
    #[error("cannot use `tokenizer.ggml.precompiled_charsmap`")]
    Charsmap(#[from] CharsmapError),
    #[error("the tokens have {found} different beginnings; the most is {max}")]
    TooManyPrefixes { found: usize, max: usize },
    #[error("the vocabulary is empty")]
    Empty,
    #[error("the vocabulary takes 4 GiB or more")]
    TooLarge,
}

impl Tokenizer {
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        Self::new(&Vocabulary::from_gguf(gguf)?)
    }

    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
        vocabulary::build(vocabulary)
    }

    /// The ids of `text`.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special && self.add_bos {
            ids.extend(self.bos);
        }
        let mut at = 0;
        let mut after_special = None;
        for found in self.special.find(text, options.parse_special) {
            let mut between = &text[at..found.start];
            if self.strips_before.contains(&found.id) {
                between = between.trim_ascii_end();
            }
            self.encode_between(between, at == 0, after_special, &mut ids);
            ids.push(found.id);
            after_special = Some(found.id);
            at = found.end;
        }
        self.encode_between(&text[at..], at == 0, after_special, &mut ids);
        if options.add_special {
            ids.extend(self.tail);
        }
        ids
    }

    /// The ids of two texts that are looked at together, with the tokens around and between them that the vocabulary asks for,
    /// and where the second one begins for models that tell them apart: those with a WordPiece vocabulary.
    pub fn encode_pair(&self, first: &str, second: &str) -> (Vec<TokenId>, usize) {
        let mut ids = self.encode(first, EncodeOptions { add_special: true, parse_special: false });
        ids.extend(self.between);
        let start = ids.len();
        ids.extend(self.encode(second, EncodeOptions::default()));
        ids.extend(self.tail);
        let tells_apart = matches!(self.model, Model::WordPiece(_));
        let start = if tells_apart { start } else { ids.len() };
        (ids, start)
    }

    /// Encodes the text between two special tokens, or one of them and an end of the whole.
    fn encode_between(&self, text: &str, first: bool, after: Option<TokenId>, ids: &mut Vec<TokenId>) {
        let mut rest = match after {
            Some(id) if self.strips_after.contains(&id) => text.trim_ascii_start(),
            _ => text,
        };
        let mut prefix = first || after.is_some();
        while !rest.is_empty() {
            let (stretch, later) = rest.split_at(rest.floor_char_boundary(STRETCH_BYTES_MAX));
            match &self.model {
                Model::Spm(spm) => spm.encode(stretch, prefix, &self.spellings, ids),
                Model::Unigram(unigram) => unigram.encode(stretch, prefix, ids),
                Model::Bpe(bpe) if bpe.raw() => {
                    let mut marked = String::with_capacity(stretch.len() * 5 / 4);
                    words::mark_spaces(stretch, &mut marked);
                    bpe.encode(&marked, &self.spellings, ids);
                }
                Model::Bpe(bpe) => bpe.encode(stretch, &self.spellings, ids),
                Model::WordPiece(wordpiece) => {
                    wordpiece.encode(stretch, self.spellings.arena(), self.spellings.table(), ids);
                }
            }
            prefix = false;
            rest = later;
        }
    }

    /// The text of `ids`, with U+FFFD for what is not UTF-8. `special` spells control tokens out.
    pub fn decode(&self, ids: &[TokenId], special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.bytes_of(id, special));
        }
        if self.has_space_prefix() && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// What this token adds to text: nothing for control tokens, a space for SentencePiece's `▁`. It need not be valid
    /// UTF-8 by itself. Empty past the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.bytes_of(id, false)
    }

    /// What this token is shown as where tokens are listed: as [`Tokenizer::token_bytes`], but control tokens by name.
    pub fn shown_bytes(&self, id: TokenId) -> &[u8] {
        self.bytes_of(id, true)
    }

    fn bytes_of(&self, id: TokenId, special: bool) -> &[u8] {
        match self.kinds.get(id as usize) {
            None => &[],
            Some(Kind::Control | Kind::Unknown) if !special => &[],
            Some(_) => self.bytes.get(id).unwrap_or_default(),
        }
    }

    /// The vocabulary's own spelling. Empty past the vocabulary.
    pub fn piece(&self, id: TokenId) -> &str {
        self.spellings.get(id).unwrap_or_default()
    }

    /// The token with this spelling.
    pub fn id_of(&self, piece: &str) -> Option<TokenId> {
        self.spellings.token(piece.as_bytes())
    }

    pub fn is_control(&self, id: TokenId) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Control)
    }

    /// Whether a generation ends with this token.
    pub fn is_end(&self, id: TokenId) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// The number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.kinds.len()
    }

    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// Whether [`EncodeOptions::add_special`] puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Whether a text begins with a space that is not its own.
    fn has_space_prefix(&self) -> bool {
        match &self.model {
            Model::Spm(spm) => spm.space_prefix,
            Model::Unigram(unigram) => unigram.has_space_prefix(),
            Model::Bpe(_) => false,
            Model::WordPiece(_) => true,
        }
    }
}
