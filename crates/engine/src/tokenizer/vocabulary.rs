//! What a file says about its vocabulary, and the making of a [`Tokenizer`] from it.

use std::sync::LazyLock;

use super::bpe::Bpe;
use super::pieces::Arena;
use super::special::{Special, SpecialTokens};
use super::spellings::{Spellings, byte_of_token, push_alphabet_bytes, push_unmarked_bytes};
use super::spm::Spm;
use super::unigram::{Rules, Unigram};
use super::wordpiece::WordPiece;
use super::{Kind, Model, TokenId, Tokenizer, TokenizerError, pretokenizers};
use crate::gguf::{Gguf, StringArray};

/// The plain facts that make a tokenizer; [`Default`] has none of them.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary<'a> {
    /// `llama`, `t5`, `gpt2`, `gemma4` or `bert`.
    pub model: &'a str,
    /// The pre-tokenizer's name, for BPE.
    pub pre: Option<&'a str>,
    pub tokens: Strings<'a>,
    /// One per token, for SentencePiece; higher merges first.
    pub scores: Option<Vec<f32>>,
    /// One per token, as in GGUF: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub kinds: Option<Vec<i32>>,
    /// Pairs of spellings with a space between, best first.
    pub merges: Strings<'a>,
    pub bos: Option<TokenId>,
    pub eos: Option<TokenId>,
    pub eot: Option<TokenId>,
    pub eom: Option<TokenId>,
    pub unknown: Option<TokenId>,
    pub separator: Option<TokenId>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    /// Between two texts.
    pub add_separator: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub remove_extra_whitespaces: Option<bool>,
    /// SentencePiece's rules of what becomes what, as it compiled them; empty for none.
    pub charsmap: &'a [u8],
    pub lowercase: Option<bool>,
    pub strip_accents: Option<bool>,
    /// The model's name; some families strip the white space after special tokens, and no other key says so.
    pub name: &'a str,
}

/// Strings from a file or from a slice.
#[derive(Clone, Copy, Debug)]
pub enum Strings<'a> {
    Gguf(StringArray<'a>),
    Slice(&'a [&'a str]),
}

impl Default for Strings<'_> {
    fn default() -> Self {
        Strings::Slice(&[])
    }
}

impl<'a> Strings<'a> {
    pub fn len(&self) -> usize {
        match self {
            Strings::Gguf(array) => array.len(),
            Strings::Slice(slice) => slice.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn iter(&self) -> Box<dyn ExactSizeIterator<Item = &'a [u8]> + 'a> {
        match *self {
            Strings::Gguf(array) => Box::new(array.iter()),
            Strings::Slice(slice) => Box::new(slice.iter().map(|s| s.as_bytes())),
        }
    }
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const KINDS: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// What the vocabularies of XLM-RoBERTa and its kin begin with.
const XLM_ROBERTA: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];

impl<'a> Vocabulary<'a> {
    /// The facts under `tokenizer.ggml.*`.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Self, TokenizerError> {
        let required = |key: &'static str| TokenizerError::Missing { key };
        let model = gguf.str("tokenizer.ggml.model")?.ok_or(required("tokenizer.ggml.model"))?;
        let tokens = gguf.strings(TOKENS)?.ok_or(required(TOKENS))?;
        Ok(Self {
            model,
            pre: gguf.str("tokenizer.ggml.pre")?,
            tokens: Strings::Gguf(tokens),
            scores: gguf.f32s(SCORES)?,
            kinds: gguf.i32s(KINDS)?,
            merges: gguf.strings(MERGES)?.map_or_else(Strings::default, Strings::Gguf),
            bos: gguf.u32("tokenizer.ggml.bos_token_id")?.or(gguf.u32("tokenizer.ggml.cls_token_id")?),
            eos: gguf.u32("tokenizer.ggml.eos_token_id")?,
            eot: gguf.u32("tokenizer.ggml.eot_token_id")?,
            eom: gguf.u32("tokenizer.ggml.eom_token_id")?,
            unknown: gguf.u32("tokenizer.ggml.unknown_token_id")?,
            // The format's own key is misspelled; both spellings are found in files.
            separator: gguf
                .u32("tokenizer.ggml.seperator_token_id")?
                .or(gguf.u32("tokenizer.ggml.separator_token_id")?),
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?,
            add_separator: gguf.bool("tokenizer.ggml.add_sep_token")?,
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?,
            remove_extra_whitespaces: gguf.bool("tokenizer.ggml.remove_extra_whitespaces")?,
            charsmap: gguf.bytes("tokenizer.ggml.precompiled_charsmap")?.unwrap_or_default(),
            lowercase: gguf.bool("tokenizer.ggml.normalizer.lowercase")?,
            strip_accents: gguf.bool("tokenizer.ggml.normalizer.strip_accents")?,
            name: gguf.str("general.name")?.unwrap_or_default(),
        })
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let tokens = self.tokens.len();
        if tokens == 0 {
            return Err(TokenizerError::Empty);
        }
        let lengths =
            [(SCORES, self.scores.as_ref().map(Vec::len)), (KINDS, self.kinds.as_ref().map(Vec::len))];
        for (key, found) in lengths {
            if let Some(found) = found.filter(|found| *found != tokens) {
                return Err(TokenizerError::Length { key, found, tokens });
            }
        }
        let ids = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
            ("tokenizer.ggml.seperator_token_id", self.separator),
        ];
        for (key, id) in ids {
            if let Some(id) = id.filter(|id| *id as usize >= tokens) {
                return Err(TokenizerError::IdOutOfRange { key, id, tokens });
            }
        }
        Ok(())
    }
}

pub(super) fn build(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    vocabulary.check()?;
    let mut spellings = Spellings::new(vocabulary.tokens.iter())?;
    let tokens = spellings.tokens();
    // The ids that vocabularies of a kind have where the file says nothing.
    let usual = |given: Option<TokenId>, id: TokenId| given.or(Some(id).filter(|id| *id < tokens));
    let mut bos = vocabulary.bos;
    let mut eos = vocabulary.eos;
    let mut tail = eos.filter(|_| vocabulary.add_eos == Some(true));
    let mut add_bos = vocabulary.add_bos.unwrap_or(true);
    // Older files of RoBERTa's vocabularies do not say what their models were trained with.
    let roberta = matches!(vocabulary.pre, Some("jina-v1-en" | "jina-v2-code" | "roberta-bpe"));
    let mut between = vocabulary.separator.filter(|_| vocabulary.add_separator.unwrap_or(roberta));
    let mut kinds = kinds(vocabulary);
    let model = match vocabulary.model {
        "llama" => {
            bos = usual(bos, 1);
            eos = usual(eos, 2);
            tail = eos.filter(|_| vocabulary.add_eos == Some(true));
            let scores = vocabulary.scores.clone().unwrap_or_else(|| vec![0.0; tokens as usize]);
            let space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
            Model::Spm(Spm::new(&scores, usual(vocabulary.unknown, 0), space_prefix, &spellings))
        }
        "t5" => {
            let scores = vocabulary.scores.as_ref().ok_or(TokenizerError::Missing { key: SCORES })?;
            // Converters that read the vocabulary of an XLM-RoBERTa from `tokenizer.json` write what its class does by
            // default with spaces, and not what this vocabulary does.
            let roberta = (0..).zip(XLM_ROBERTA).all(|(id, name)| spellings.get(id) == Some(name));
            let first_unknown = kinds.iter().position(|kind| *kind == Kind::Unknown);
            let rules = Rules {
                charsmap: vocabulary.charsmap,
                space_prefix: roberta || vocabulary.add_space_prefix.unwrap_or(true),
                merge_spaces: roberta || vocabulary.remove_extra_whitespaces.unwrap_or(true),
                unknown: vocabulary.unknown.or(first_unknown.map(|id| id as TokenId)),
            };
            bos = bos.or(Some(0).filter(|_| roberta));
            eos = usual(eos, if roberta { 2 } else { 1 });
            tail = eos.filter(|_| vocabulary.add_eos.unwrap_or(true));
            add_bos = vocabulary.add_bos.unwrap_or(roberta);
            between = vocabulary.separator.or(eos).filter(|_| vocabulary.add_separator.unwrap_or(add_bos));
            Model::Unigram(Unigram::new(scores, &kinds, rules, &spellings)?)
        }
        "gpt2" | "gemma4" => {
            let name =
                if vocabulary.model == "gemma4" { "gemma4" } else { vocabulary.pre.unwrap_or("default") };
            let pre = pretokenizers::find(name).ok_or_else(|| unknown_pre_tokenizer(name))?;
            if vocabulary.merges.is_empty() {
                return Err(TokenizerError::Missing { key: MERGES });
            }
            // Gemma 4 needs BOS; files that deny it were made by a faulty converter.
            add_bos = vocabulary.add_bos.unwrap_or(pre.add_bos) || name == "gemma4";
            Model::Bpe(Bpe::new(pre, vocabulary.merges.iter(), &mut spellings)?)
        }
        "bert" => {
            bos = usual(bos, 101);
            tail = usual(vocabulary.separator, 102);
            // Each text ends with it already.
            between = None;
            add_bos = true;
            let lowercase = vocabulary.lowercase.unwrap_or(true);
            Model::WordPiece(WordPiece {
                lowercase,
                strip_accents: vocabulary.strip_accents.unwrap_or(lowercase),
                unknown: usual(vocabulary.unknown, 100),
                spelling_bytes_max: spellings.spelling_bytes_max(),
            })
        }
        model => return Err(TokenizerError::UnknownModel { model: model.into() }),
    };
    let ends = ends(vocabulary, eos, &spellings, &mut kinds);
    let special = special_tokens(&model, &spellings, &kinds);
    let (strips_before, strips_after) = strips(vocabulary, &spellings, &kinds);
    let bytes = bytes(&model, &spellings, &kinds)?;
    Ok(Tokenizer {
        spellings,
        bytes,
        kinds,
        model,
        special,
        strips_before,
        strips_after,
        ends,
        bos,
        eos,
        tail,
        between,
        add_bos,
    })
}

fn unknown_pre_tokenizer(name: &str) -> TokenizerError {
    static KNOWN: LazyLock<String> = LazyLock::new(|| {
        let mut names: Vec<&str> = pretokenizers::names().collect();
        names.sort_unstable();
        names.join(", ")
    });
    TokenizerError::UnknownPreTokenizer { name: name.into(), known: KNOWN.clone() }
}

fn kinds(vocabulary: &Vocabulary<'_>) -> Vec<Kind> {
    let Some(kinds) = &vocabulary.kinds else { return vec![Kind::Normal; vocabulary.tokens.len()] };
    let kind = |number: &i32| match number {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        6 => Kind::Byte,
        _ => Kind::Unused,
    };
    kinds.iter().map(kind).collect()
}

/// Spellings that end a turn or a text in one family or another.
const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// The tokens that end a generation. Those known by name become control tokens, whatever the file calls them.
fn ends(
    vocabulary: &Vocabulary<'_>,
    eos: Option<TokenId>,
    spellings: &Spellings,
    kinds: &mut [Kind],
) -> Vec<TokenId> {
    let find = |name: &str| spellings.token(name.as_bytes());
    let mut ends: Vec<TokenId> = END_NAMES.iter().filter_map(|name| find(name)).collect();
    // `</s>` is an HTML tag in some vocabularies.
    ends.extend(
        find("</s>").filter(|id| kinds[*id as usize] == Kind::Control && find("<|tool_response>").is_none()),
    );
    for &id in &ends {
        kinds[id as usize] = Kind::Control;
    }
    ends.extend([eos, vocabulary.eot, vocabulary.eom].into_iter().flatten());
    // Where calls and the last answer end by names of their own, `<|end|>` ends but one message of several.
    let has = |name: &str| find(name).is_some();
    let messages =
        (has("<|return|>") && has("<|call|>")) || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")));
    if messages {
        let message_end = find("<|end|>");
        ends.retain(|id| Some(*id) != message_end);
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// The tokens that are cut out of a text. Unigram knows by itself those that users defined.
fn special_tokens(model: &Model, spellings: &Spellings, kinds: &[Kind]) -> SpecialTokens {
    let special = |(id, kind): (usize, &Kind)| {
        let always = match kind {
            Kind::UserDefined if matches!(model, Model::Unigram(_)) => return None,
            Kind::UserDefined => true,
            Kind::Control | Kind::Unknown => false,
            _ => return None,
        };
        let id = id as TokenId;
        Some(Special { spelling: spellings.get(id)?.as_bytes().into(), id, always })
    };
    SpecialTokens::new(kinds.iter().enumerate().filter_map(special).collect())
}

/// Which tokens take the white space before and after them along. Files do not say; their families are known by name.
fn strips(
    vocabulary: &Vocabulary<'_>,
    spellings: &Spellings,
    kinds: &[Kind],
) -> (Vec<TokenId>, Vec<TokenId>) {
    let find = |name: &str| spellings.token(name.as_bytes());
    let name = vocabulary.name.to_lowercase();
    if matches!(vocabulary.pre, Some("jina-v2-de" | "jina-v2-es" | "jina-v2-code")) {
        return (find("<mask>").into_iter().collect(), Vec::new());
    }
    if name.contains("modern-bert") {
        return (find("[MASK]").into_iter().collect(), Vec::new());
    }
    if name.contains("phi-3") || name.contains("phi3") {
        let kept = ["<unk>", "<s>", "<|endoftext|>"].map(find);
        let special =
            |id: &TokenId| matches!(kinds[*id as usize], Kind::Control | Kind::UserDefined | Kind::Unknown);
        let strips = |id: &TokenId| special(id) && !kept.contains(&Some(*id));
        return (Vec::new(), (0..kinds.len() as TokenId).filter(strips).collect());
    }
    (Vec::new(), Vec::new())
}

fn bytes(model: &Model, spellings: &Spellings, kinds: &[Kind]) -> Result<Arena, TokenizerError> {
    let mut bytes = Arena::with_capacity(kinds.len(), kinds.len() * 8);
    for (id, kind) in kinds.iter().enumerate() {
        let spelling = spellings.get(id as TokenId).unwrap_or_default();
        let write = |bytes: &mut Vec<u8>| match (kind, byte_of_token(spelling)) {
            (Kind::Unused, _) => {}
            (Kind::Byte, Some(byte)) => bytes.push(byte),
            (Kind::UserDefined, _) if matches!(model, Model::Unigram(_)) => {
                push_unmarked_bytes(spelling, bytes);
            }
            (Kind::Normal, _) => match model {
                Model::Bpe(bpe) if !bpe.raw() => push_alphabet_bytes(spelling, bytes),
                _ => push_unmarked_bytes(spelling, bytes),
            },
            _ => bytes.extend_from_slice(spelling.as_bytes()),
        };
        bytes.push_with(write).ok_or(TokenizerError::TooLarge)?;
    }
    Ok(bytes)
}
