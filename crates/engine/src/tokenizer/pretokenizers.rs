//! The pre-tokenizers by the name a GGUF gives them (`tokenizer.ggml.pre`), as tables of rules.
//!
//! Each table is the rule a model family was trained with. A name that is not here is an error, never a guess: a
//! wrong split gives valid ids that the model has never seen together.

use super::split::{
    ASCII, BLANK, BREAK, CASELESS, GRAVE, LETTER, LINE_FEED, LOWER, MANY, MARK, NUMBER, OPERATOR,
    PUNCTUATION, Pass, Rule, SLASH, SPACE, SYMBOL, Set, Step, UPPER,
};
use Set::{All, Any, Not, Where};
use Step::{BeforeSpace, Contraction, ContractionAnyCase, MaybeContraction, Take};

/// How text becomes words for one family of byte-level BPE vocabularies.
#[derive(Clone, Copy, Debug)]
pub(super) struct PreTokenizer {
    pub passes: &'static [Pass],
    /// A word that is in the vocabulary is that token, whatever the merges would make of it.
    pub whole_words: bool,
    /// BOS is added where the file does not say.
    pub add_bos: bool,
    /// Tokens are spelled in UTF-8 with `▁` for space, and bytes as `<0xXX>`, not in the GPT-2 byte alphabet.
    pub raw: bool,
}

/// The pre-tokenizer of that name.
pub(super) fn find(name: &str) -> Option<PreTokenizer> {
    let (_, passes) = TABLES.iter().find(|(names, _)| names.contains(&name))?;
    Some(PreTokenizer {
        passes,
        whole_words: WHOLE_WORDS.contains(&name),
        add_bos: ADD_BOS.contains(&name),
        raw: RAW.contains(&name),
    })
}

/// Every known name, for the error that lists them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLES.iter().flat_map(|(names, _)| names.iter().copied())
}

const ADD_BOS: &[&str] = &[
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "gemma4",
    "granite-embed-multi-311m",
];
const WHOLE_WORDS: &[&str] = &[
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "minicpm5",
    "youtu",
    "granite-embed-multi-97m",
];
const RAW: &[&str] = &["gemma4", "granite-embed-multi-311m", "sarvam-moe"];

const TABLES: &[(&[&str], &[Pass])] = &[
    (
        &["default"],
        &[Pass::Rules(OPERATORS), Pass::Rules(GPT2), Pass::Rules(NUMBERS), Pass::Rules(ASCII_DIGITS_3)],
    ),
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[Pass::Rules(GPT2)],
    ),
    (
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[Pass::Rules(NUMBER_1), Pass::Rules(GPT2)],
    ),
    (&["falcon"], &[Pass::Rules(FALCON_OPERATORS), Pass::Rules(GPT2), Pass::Rules(ASCII_DIGITS_3)]),
    (
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
            "dbrx",
            "smaug-bpe",
            "glm4",
            "chatglm-bpe",
        ],
        &[Pass::Rules(LLAMA3)],
    ),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[Pass::Rules(QWEN2)],
    ),
    (&["qwen35"], &[Pass::Rules(QWEN35)]),
    (&["minicpm5"], &[Pass::Rules(NUMBERS_3), Pass::Rules(MINICPM5)]),
    (&["laguna"], &[Pass::Rules(LINES), Pass::Rules(QWEN2)]),
    (&["ufakzeka"], &[Pass::Rules(UFAKZEKA)]),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], &[Pass::Rules(BAILING)]),
    (&["seed-coder"], &[Pass::Rules(SEED_CODER)]),
    (
        &["deepseek-llm"],
        &[
            Pass::Rules(BREAK_1),
            Pass::Rules(DEEPSEEK_LETTERS),
            Pass::Rules(DEEPSEEK_PUNCTUATION),
            Pass::TrailingSpace,
            Pass::Rules(DEEPSEEK_EAST_ASIAN),
            Pass::Rules(NUMBERS),
        ],
    ),
    (
        &["deepseek-coder"],
        &[
            Pass::Rules(BREAK_1),
            Pass::Rules(SPACED_LETTERS),
            Pass::Rules(SPACED_PUNCTUATION),
            Pass::Rules(DEEPSEEK_EAST_ASIAN),
            Pass::Rules(NUMBER_1),
        ],
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Pass::Rules(NUMBERS_3), Pass::Rules(HAN_AND_KANA), Pass::Rules(DEEPSEEK3)],
    ),
    (&["tekken"], &[Pass::Rules(TEKKEN)]),
    (
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m"],
        &[Pass::Rules(GPT4O)],
    ),
    (&["youtu"], &[Pass::Rules(YOUTU_SCRIPTS), Pass::Rules(YOUTU)]),
    (&["poro-chat", "bloom", "gpt3-finnish"], &[Pass::Rules(BLOOM)]),
    (&["viking"], &[Pass::Rules(BLOOM), Pass::Rules(NUMBER_1)]),
    (&["gemma4", "granite-embed-multi-311m", "sarvam-moe"], &[Pass::Rules(LINES)]),
];

const CASED: u32 = UPPER | CASELESS | MARK;
const UNCASED: u32 = LOWER | CASELESS | MARK;
/// `[^\r\n\p{L}\p{N}]?`, the one character a word may carry in front.
const LEAD: Step = Take(Not(BREAK | LETTER | NUMBER), 0, 1);
const BLANK_MAYBE: Step = Take(Any(BLANK), 0, 1);
const SPACE_MAYBE: Step = Take(Any(SPACE), 0, 1);
const LETTERS: Step = Take(Any(LETTER), 1, MANY);
const SPACES: Rule = &[Take(Any(SPACE), 1, MANY)];
/// `\s+(?!\S)`: all the white space but the one before a word.
const SPACES_BUT_LAST: Rule = &[Take(Any(SPACE), 1, MANY), BeforeSpace];
const LINE_ENDS: Rule = &[Take(Any(SPACE), 0, MANY), Take(Any(BREAK), 1, MANY)];
/// ` ?[^\s\p{L}\p{N}]+[\r\n]*`
const OTHERS: Rule = &[BLANK_MAYBE, Take(Not(SPACE | LETTER | NUMBER), 1, MANY), Take(Any(BREAK), 0, MANY)];
/// ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
const OTHERS_SLASH: Rule =
    &[BLANK_MAYBE, Take(Not(SPACE | LETTER | NUMBER), 1, MANY), Take(Any(BREAK | SLASH), 0, MANY)];
const ONE_NUMBER: Rule = &[Take(Any(NUMBER), 1, 1)];
const THREE_NUMBERS: Rule = &[Take(Any(NUMBER), 1, 3)];

const GPT2: &[Rule] = &[
    &[Contraction],
    &[BLANK_MAYBE, LETTERS],
    &[BLANK_MAYBE, Take(Any(NUMBER), 1, MANY)],
    &[BLANK_MAYBE, Take(Not(SPACE | LETTER | NUMBER), 1, MANY)],
    SPACES_BUT_LAST,
];
const LLAMA3: &[Rule] =
    &[&[ContractionAnyCase], &[LEAD, LETTERS], THREE_NUMBERS, OTHERS, LINE_ENDS, SPACES_BUT_LAST, SPACES];
const QWEN2: &[Rule] =
    &[&[ContractionAnyCase], &[LEAD, LETTERS], ONE_NUMBER, OTHERS, LINE_ENDS, SPACES_BUT_LAST, SPACES];
const UFAKZEKA: &[Rule] = &[&[LEAD, LETTERS], ONE_NUMBER, OTHERS, LINE_ENDS, SPACES_BUT_LAST, SPACES];
const MINICPM5: &[Rule] = &[
    &[ContractionAnyCase],
    &[LEAD, LETTERS],
    &[Take(Any(NUMBER), 1, MANY)],
    OTHERS,
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
/// Qwen2's, with marks kept beside their letters.
const QWEN35: &[Rule] = &[
    &[ContractionAnyCase],
    &[LEAD, Take(Any(LETTER | MARK), 1, MANY)],
    ONE_NUMBER,
    &[BLANK_MAYBE, Take(Not(SPACE | LETTER | MARK | NUMBER), 1, MANY), Take(Any(BREAK), 0, MANY)],
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
/// Qwen2's, but one line break ends a piece.
const BAILING: &[Rule] = &[
    &[ContractionAnyCase],
    &[LEAD, LETTERS],
    ONE_NUMBER,
    OTHERS,
    &[Take(Any(SPACE), 0, MANY), Take(Any(BREAK), 1, 1)],
    SPACES_BUT_LAST,
    SPACES,
];
const SEED_CODER: &[Rule] = &[
    &[ContractionAnyCase],
    &[LEAD, LETTERS],
    ONE_NUMBER,
    &[BLANK_MAYBE, Take(Not(SPACE | LETTER | NUMBER), 1, MANY)],
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
/// Mistral's Tekken: words break where capitals begin, no contractions.
const TEKKEN: &[Rule] = &[
    &[LEAD, Take(Any(CASED), 0, MANY), Take(Any(UNCASED), 1, MANY)],
    &[LEAD, Take(Any(CASED), 1, MANY), Take(Any(UNCASED), 0, MANY)],
    ONE_NUMBER,
    OTHERS_SLASH,
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
/// OpenAI's o200k.
const GPT4O: &[Rule] = &[
    &[LEAD, Take(Any(CASED), 0, MANY), Take(Any(UNCASED), 1, MANY), MaybeContraction],
    &[LEAD, Take(Any(CASED), 1, MANY), Take(Any(UNCASED), 0, MANY), MaybeContraction],
    THREE_NUMBERS,
    OTHERS_SLASH,
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
const YOUTU: &[Rule] = &[
    &[LEAD, Take(Any(CASED), 0, MANY), Take(Any(UNCASED), 1, MANY), MaybeContraction],
    &[LEAD, Take(Any(CASED), 1, MANY), Take(Any(UNCASED), 0, MANY), MaybeContraction],
    ONE_NUMBER,
    OTHERS_SLASH,
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
const YOUTU_SCRIPTS: &[Rule] = &[
    &[Take(Where(|c| matches!(c, '가'..='힣' | 'ㄱ'..='ㆎ')), 1, MANY)],
    &[Take(Where(is_east_asian_punctuation), 1, MANY)],
    &[Take(Where(|c| matches!(c, 'ㄅ'..='ㄯ')), 1, MANY)],
    &[Take(Where(is_han_or_kana), 1, MANY)],
];
const DEEPSEEK3: &[Rule] = &[
    &[Take(All(ASCII, PUNCTUATION | SYMBOL), 1, 1), Take(All(ASCII, LETTER), 1, MANY)],
    &[Take(Not(BREAK | LETTER | PUNCTUATION | SYMBOL), 0, 1), Take(Any(LETTER | MARK), 1, MANY)],
    &[BLANK_MAYBE, Take(Any(PUNCTUATION | SYMBOL), 1, MANY), Take(Any(BREAK), 0, MANY)],
    LINE_ENDS,
    SPACES_BUT_LAST,
    SPACES,
];
const BLOOM: &[Rule] = &[&[BLANK_MAYBE, Take(Where(|c| !is_bloom_stop(c)), 1, MANY)]];
const LINES: &[Rule] = &[&[Take(Not(LINE_FEED), 1, MANY)], &[Take(Any(LINE_FEED), 1, MANY)]];

const BREAK_1: &[Rule] = &[&[Take(Any(BREAK), 1, 1)]];
const NUMBER_1: &[Rule] = &[ONE_NUMBER];
const NUMBERS_3: &[Rule] = &[THREE_NUMBERS];
const NUMBERS: &[Rule] = &[&[Take(Any(NUMBER), 1, MANY)]];
const ASCII_DIGITS_3: &[Rule] = &[&[Take(All(ASCII, NUMBER), 3, 3)]];
const OPERATORS: &[Rule] = &[&[Take(Any(PUNCTUATION | OPERATOR), 1, MANY)]];
const FALCON_OPERATORS: &[Rule] = &[&[Take(Any(PUNCTUATION | OPERATOR | GRAVE), 1, MANY)]];
const SPACED_LETTERS: &[Rule] = &[&[SPACE_MAYBE, LETTERS]];
const SPACED_PUNCTUATION: &[Rule] = &[&[SPACE_MAYBE, Take(Any(PUNCTUATION), 1, MANY)]];
const HAN_AND_KANA: &[Rule] = &[&[Take(Where(is_han_or_kana), 1, MANY)]];
const DEEPSEEK_LETTERS: &[Rule] = &[&[SPACE_MAYBE, Take(Where(is_deepseek_letter), 1, MANY)]];
const DEEPSEEK_PUNCTUATION: &[Rule] = &[&[SPACE_MAYBE, Take(Where(is_deepseek_punctuation), 1, MANY)]];
const DEEPSEEK_EAST_ASIAN: &[Rule] = &[&[Take(Where(is_deepseek_east_asian), 1, MANY)]];

fn is_han_or_kana(c: char) -> bool {
    matches!(c, '\u{4E00}'..='\u{9FA5}' | '\u{3040}'..='\u{30FF}')
}

fn is_east_asian_punctuation(c: char) -> bool {
    let listed = matches!(c, '！' | '…' | '“' | '”' | '‘' | '’' | '—' | '：' | '；' | '，');
    listed || (matches!(c, '\u{3001}'..='\u{303F}' | '\u{FE30}'..='\u{FE4F}') && !c.is_whitespace())
}

fn is_bloom_stop(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '(' | '|' | '.' | ',' | '!' | '?' | '…' | '。' | '，' | '、' | '।' | '۔' | '،' | ')')
}

/// White space is not punctuation here although U+3000 lies in a listed range: it belongs to `\s` first.
fn is_deepseek_punctuation(c: char) -> bool {
    matches!(
        c,
        '!'..='/' | ':'..='~' | '\u{FF01}'..='\u{FF0F}' | '\u{FF1A}'..='\u{FF5E}' | '\u{2018}'..='\u{201F}' | '\u{3001}'..='\u{3002}'
    )
}

fn is_deepseek_east_asian(c: char) -> bool {
    matches!(c, '\u{0800}'..='\u{9FA5}' | '\u{AC00}'..='\u{D7FF}') && !c.is_whitespace()
}

fn is_deepseek_letter(c: char) -> bool {
    let c = u32::from(c);
    let after = DEEPSEEK_LETTER_RANGES.partition_point(|&(first, _)| first <= c);
    after > 0 && c <= DEEPSEEK_LETTER_RANGES[after - 1].1
}

/// The letters DeepSeek LLM's pre-tokenizer lists: cased letters, less some that its authors left out.
#[rustfmt::skip]
const DEEPSEEK_LETTER_RANGES: &[(u32, u32)] = &[
    (0x0041, 0x005A), (0x0061, 0x007A), (0x00B5, 0x00B5), (0x00C0, 0x00D6), (0x00D8, 0x00F6), (0x00F8, 0x01BA),
    (0x01BC, 0x01BF), (0x01C4, 0x0293), (0x0295, 0x02AF), (0x0370, 0x0373), (0x0376, 0x0377), (0x037B, 0x037D),
    (0x037F, 0x037F), (0x0386, 0x0386), (0x0388, 0x038A), (0x038C, 0x038C), (0x038E, 0x03A1), (0x03A3, 0x03F5),
    (0x03F7, 0x0481), (0x048A, 0x052F), (0x0531, 0x0556), (0x10A0, 0x10C5), (0x13A0, 0x13F5), (0x13F8, 0x13FD),
    (0x1C90, 0x1CBA), (0x1CBD, 0x1CBF), (0x1D00, 0x1D2B), (0x1D6B, 0x1D77), (0x1D79, 0x1D9A), (0x1E00, 0x1F15),
    (0x1F18, 0x1F1D), (0x1F20, 0x1F45), (0x1F48, 0x1F4D), (0x1F50, 0x1F57), (0x1F59, 0x1F59), (0x1F5B, 0x1F5B),
    (0x1F5D, 0x1F5D), (0x1F5F, 0x1F7D), (0x1F80, 0x1FB4), (0x1FB6, 0x1FBC), (0x1FBE, 0x1FBE), (0x1FC2, 0x1FC4),
    (0x1FC6, 0x1FCC), (0x1FD0, 0x1FD3), (0x1FD6, 0x1FDB), (0x1FE0, 0x1FEC), (0x1FF2, 0x1FF4), (0x1FF6, 0x1FFC),
    (0x2102, 0x2102), (0x2107, 0x2107), (0x210A, 0x2113), (0x2115, 0x2115), (0x2119, 0x211D), (0x2124, 0x2124),
    (0x2126, 0x2126), (0x2128, 0x2128), (0x212A, 0x212D), (0x212F, 0x2134), (0x2139, 0x2139), (0x213C, 0x213F),
    (0x2145, 0x2149), (0x214E, 0x214E), (0x2183, 0x2184), (0x2C00, 0x2C7B), (0x2C7E, 0x2CE4), (0x2CEB, 0x2CEE),
    (0x2CF2, 0x2CF3), (0xA640, 0xA66D), (0xA680, 0xA69B), (0xA722, 0xA76F), (0xA771, 0xA787), (0xA78B, 0xA78E),
    (0xAB70, 0xABBF), (0xFB00, 0xFB06), (0xFB13, 0xFB17), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A), (0x10400, 0x1044F),
    (0x104B0, 0x104D3), (0x104D8, 0x104FB), (0x10C80, 0x10CB2), (0x10CC0, 0x10CF2), (0x118A0, 0x118DF),
    (0x1E900, 0x1E943),
];
