//! Small vocabularies made here, sound and broken. `tests/it` compares ids with SentencePiece's own.

use std::error::Error;

use proptest::prelude::*;

use super::charsmap::{Charsmap, CharsmapError};
use crate::tokenizer::{
    EncodeOptions, Kind, Model, Strings, TextStream, Tokenizer, TokenizerError, Vocabulary,
};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

type Token = (&'static str, f32, i32);

const T5: [Token; 3] = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)];
const ROBERTA: [Token; 4] = [("<s>", 0.0, 3), ("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)];
const PIECES: [Token; 8] = [
    ("▁", -3.0, 1),
    ("a", -4.0, 1),
    ("b", -5.0, 1),
    ("ab", -7.0, 1),
    ("▁ab", -7.5, 1),
    ("aba", -8.0, 1),
    ("<go>", 0.0, 4),
    ("b▁a", -9.0, 1),
];

fn build(tokens: &[Token], vocabulary: Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    let spellings: Vec<&str> = tokens.iter().map(|(spelling, ..)| *spelling).collect();
    Tokenizer::new(&Vocabulary {
        model: "t5",
        tokens: Strings::Slice(&spellings),
        scores: Some(tokens.iter().map(|(_, score, _)| *score).collect()),
        kinds: Some(tokens.iter().map(|(.., kind)| *kind).collect()),
        ..vocabulary
    })
}

fn unigram(first: &[Token], vocabulary: Vocabulary<'_>) -> Tokenizer {
    build(&[first, &PIECES].concat(), vocabulary).expect("a sound vocabulary")
}

/// No prefix, no space is lost, and every byte has a token.
fn lossless() -> Tokenizer {
    let bytes: Vec<Token> =
        (0..=255).map(|byte| (&*crate::tokenizer::spellings::byte_token(byte).leak(), 0.0, 6)).collect();
    let spaces = Vocabulary {
        add_space_prefix: Some(false),
        remove_extra_whitespaces: Some(false),
        ..Vocabulary::default()
    };
    unigram(&[&T5[..], &bytes].concat(), spaces)
}

#[track_caller]
fn check(tokenizer: &Tokenizer, text: &str, options: EncodeOptions, expected: &[&str]) {
    let ids = tokenizer.encode(text, options);
    let pieces: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
    assert_eq!(pieces, expected, "{text:?}");
}

#[test]
fn the_best_sum_wins() {
    let tokenizer = unigram(&T5, Vocabulary::default());
    check(&tokenizer, "ab", PLAIN, &["▁ab"]);
    check(&tokenizer, "aba", PLAIN, &["▁", "aba"]);
    check(&tokenizer, "  b  a ", PLAIN, &["▁", "b▁a"]);
    check(&tokenizer, "xéa<go>y", PLAIN, &["▁", "<unk>", "a", "<go>", "<unk>"]);
    check(&tokenizer, " \n", PLAIN, &["▁", "<unk>"]);
    check(&tokenizer, "  ", SPECIAL, &["</s>"]);
    check(&lossless(), "  é", PLAIN, &["▁", "▁", "<0xC3>", "<0xA9>"]);
    let mut stream = TextStream::new();
    let ids = tokenizer.encode("ab<go>b a", PLAIN);
    let texts: Vec<String> = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
    assert_eq!(texts, ["ab", "<go>", "b a"]);
}

#[test]
fn xlm_roberta_puts_special_tokens_around_and_between() {
    // As some converters write them, who do not know this vocabulary's prefix.
    let denied = Vocabulary {
        add_space_prefix: Some(false),
        remove_extra_whitespaces: Some(false),
        ..Vocabulary::default()
    };
    for vocabulary in [Vocabulary::default(), denied] {
        let tokenizer = unigram(&ROBERTA, vocabulary);
        check(&tokenizer, " ab  ab", SPECIAL, &["<s>", "▁ab", "▁ab", "</s>"]);
        check(&tokenizer, "ab</s>ab", SPECIAL, &["<s>", "▁ab", "</s>", "▁ab", "</s>"]);
        let (ids, second) = tokenizer.encode_pair("ab", "<s>");
        let pieces: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
        assert_eq!(pieces, ["<s>", "▁ab", "</s>", "</s>", "▁", "<unk>", "</s>"]);
        assert_eq!(second, ids.len());
    }
    let tokenizer = unigram(&T5, Vocabulary::default());
    let (ids, _) = tokenizer.encode_pair("ab", "ab");
    let pieces: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
    assert_eq!(pieces, ["▁ab", "</s>", "▁ab", "</s>"]);
}

/// A double array in which `A` becomes `a` and `ABC` nothing.
fn units() -> Vec<u32> {
    const ENDS_RULE: u32 = 1 << 8;
    let mut units = vec![0; 256];
    let mut node = |at: usize, label: u8, to: usize, more: u32| {
        units[at] = u32::from(label) | ((at ^ to) as u32) << 10 | more;
    };
    node(0, 0, 1, 0);
    node(1 ^ 0x41, b'A', 0x82, ENDS_RULE);
    node(0x82 ^ 0x42, b'B', 4, 0);
    node(4 ^ 0x43, b'C', 8, ENDS_RULE);
    units[0x82] = 1 << 31;
    units[8] = 1 << 31 | 1;
    units
}

fn charsmap(units: &[u32], replacements: &[u8]) -> Vec<u8> {
    let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend_from_slice(replacements);
    bytes
}

#[test]
fn the_longest_rule_wins() {
    let rules = charsmap(&units(), b"a\0\0");
    let tokenizer = unigram(&T5, Vocabulary { charsmap: &rules, ..Vocabulary::default() });
    check(&tokenizer, "ABAb", PLAIN, &["▁", "a", "<unk>", "ab"]);
    check(&tokenizer, "ABCAb", PLAIN, &["▁ab"]);
    check(&tokenizer, "ABC", PLAIN, &["▁"][..0]);
}

#[test]
fn broken_rules_are_refused_by_place() {
    let refused = |bytes: &[u8], expected: &str| {
        let error = Charsmap::read(bytes).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    };
    let with = |unit: usize, value: u32| {
        let mut units = units();
        units[unit] = value;
        charsmap(&units, b"a\0\0")
    };
    assert!(Charsmap::read(&[]).expect("no rules").is_none());
    refused(&[0; 3], "it has 3 bytes, which is not enough for a double array of 0 bytes");
    refused(
        &charsmap(&units(), b"")[..900],
        "it has 900 bytes, which is not enough for a double array of 1024 bytes",
    );
    refused(&[0; 9], "a double array of 0 bytes is not made of units of 4");
    refused(&[3, 0, 0, 0, 1, 2, 3, 0], "a double array of 3 bytes is not made of units of 4");
    refused(&charsmap(&units(), b"a\0\xFF\0"), "the replacements are not UTF-8 from byte 2 on");
    refused(&with(7, 1 << 18), "unit 7 of the double array leads outside of it");
    let outside = "the replacement at byte 99, of unit 64, does not begin at a character of the replacements";
    refused(&with(0x82, 1 << 31 | 99), outside);
    let no_value = "the replacement at byte 1, of unit 64, does not begin at a character of the replacements";
    refused(&with(0x82, 1), no_value);
    let within = charsmap(&units(), "é\0".as_bytes());
    refused(
        &within,
        "the replacement at byte 1, of unit 71, does not begin at a character of the replacements",
    );
    refused(&charsmap(&units(), b"ab"), "the replacement at byte 0 does not end within 256 bytes");
    refused(&charsmap(&units(), &[b'a'; 999]), "the replacement at byte 0 does not end within 256 bytes");
    let error = build(&PIECES, Vocabulary { charsmap: &[1], ..Vocabulary::default() }).expect_err("refused");
    assert_eq!(error.to_string(), "cannot use `tokenizer.ggml.precompiled_charsmap`");
    let source = error.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&CharsmapError::Length { len: 1, array: 0 }));
}

#[test]
fn broken_vocabularies_are_refused() {
    let refused = |tokens: &[Token]| build(tokens, Vocabulary::default()).expect_err("refused").to_string();
    assert_eq!(refused(&[]), "the vocabulary is empty");
    assert_eq!(refused(&[("a", 0.0, 1), ("b", f32::NAN, 1)]), "the score of token 1 is NaN");
    assert_eq!(refused(&[("a", f32::NEG_INFINITY, 3)]), "the score of token 0 is -inf");
    let long: &'static str = "a".repeat(1 << 24).leak();
    assert_eq!(
        refused(&[(long, 0.0, 1)]),
        "the tokens have 16777216 different beginnings; the most is 16777215"
    );
    let tokens = ["a"];
    let vocabulary = Vocabulary { model: "t5", tokens: Strings::Slice(&tokens), ..Vocabulary::default() };
    let error = Tokenizer::new(&vocabulary).expect_err("refused").to_string();
    assert_eq!(error, "the file has no `tokenizer.ggml.scores`");
}

/// No piece at all, none but users' own, equal and empty ones, scores at the end of their range.
#[test]
fn odd_vocabularies_have_defined_behaviour() {
    let odd: [&[Token]; 4] = [
        &[("", 0.0, 1)],
        &[("a", 0.0, 4), ("aa", 0.0, 4), (" ", 0.0, 4)],
        &[("a", f32::MAX, 1), ("a", f32::MIN, 1), ("b", f32::MIN, 1), ("", -0.0, 1)],
        &[("<unk>", 0.0, 1), ("▁", 0.0, 5), ("<0x41>", 0.0, 6)],
    ];
    for tokens in odd {
        let tokenizer = build(tokens, Vocabulary::default()).expect("taken");
        for text in ["", "a", "aaaaaaab b  ab", "▁ ▁", "<0x41>\0"] {
            let ids = tokenizer.encode(text, SPECIAL);
            assert!(ids.iter().all(|id| (*id as usize) < tokens.len()), "{tokens:?} {text:?}");
            tokenizer.decode(&ids, true);
        }
        assert_eq!(tokenizer.id_of("a").unwrap_or(0), 0, "the first of equal tokens");
    }
}

/// A million letters without a space: minutes for an algorithm that is quadratic, and more than a window of spaces.
#[test]
fn long_words_take_no_longer_than_many_short_ones() {
    let tokenizer = lossless();
    assert_eq!(tokenizer.encode(&"ab".repeat(500_000), PLAIN).len(), 500_000);
    let spaces = super::WINDOW_BYTES / 3 + 2;
    assert_eq!(tokenizer.encode(&" ".repeat(spaces), PLAIN).len(), spaces);
}

proptest! {
    #[test]
    fn text_survives(text in "[^▁]*|[ ab<go>é]*") {
        let tokenizer = lossless();
        let ids = tokenizer.encode(&text, PLAIN);
        prop_assert_eq!(&tokenizer.decode(&ids, false), &text);
        let mut stream = TextStream::new();
        let mut streamed: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, text);
    }

    /// Pieces that reach across words keep texts whole just there.
    #[test]
    fn spelling_word_by_word_changes_nothing(text in "[ abx]{0,60}") {
        let mut tokenizer = unigram(&T5, Vocabulary::default());
        let by_words = tokenizer.encode(&text, PLAIN);
        let Model::Unigram(model) = &mut tokenizer.model else { panic!("a Unigram vocabulary") };
        prop_assert!(model.word_starts.take().is_some());
        prop_assert_eq!(by_words, tokenizer.encode(&text, PLAIN));
    }

    /// No way through the pieces is better than the one taken.
    #[test]
    fn no_other_spelling_has_a_better_sum(text in "[ab]{1,9}") {
        let tokenizer = lossless();
        let Model::Unigram(model) = &tokenizer.model else { panic!("a Unigram vocabulary") };
        let sum = |ids: &[u32]| ids.iter().map(|id| model.gains[*id as usize]).sum::<f32>();
        let mut ways: Vec<(usize, Vec<u32>)> = vec![(0, Vec::new())];
        let mut best = f32::NEG_INFINITY;
        while let Some((at, ids)) = ways.pop() {
            if at == text.len() {
                best = best.max(sum(&ids));
            }
            for id in 0..tokenizer.vocabulary() as u32 {
                let piece = tokenizer.piece(id);
                if tokenizer.kinds[id as usize] == Kind::Normal && text[at..].starts_with(piece) {
                    ways.push((at + piece.len(), [&ids[..], &[id]].concat()));
                }
            }
        }
        prop_assert_eq!(sum(&tokenizer.encode(&text, PLAIN)), best);
    }

    /// Rules that were damaged are refused or give something, and what is given is text.
    #[test]
    fn damaged_rules_do_no_harm(
        damage in proptest::collection::vec((0..1100_usize, any::<u8>()), 0..6),
        cut in 0..1200_usize,
        text in "[ABC]{0,20}|\\PC*|.*",
    ) {
        let mut bytes = charsmap(&units(), "a\0\0é\0".as_bytes());
        for (at, byte) in damage {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        bytes.truncate(cut);
        if let Ok(tokenizer) = build(&PIECES, Vocabulary { charsmap: &bytes, ..Vocabulary::default() }) {
            let ids = tokenizer.encode(&text, PLAIN);
            prop_assert!(ids.iter().all(|id| (*id as usize) < PIECES.len()));
        }
    }

    /// Units of any kind, which `read` would refuse.
    #[test]
    fn no_walk_leaves_the_array(
        units in proptest::collection::vec(any::<u32>(), 1..300),
        text in "[ABC]{0,20}|.*",
    ) {
        let labels = text.bytes().cycle();
        let walkable = units.iter().zip(labels).map(|(unit, byte)| (unit & 0x3FD00) | u32::from(byte));
        for units in [units.clone(), walkable.collect()] {
            let charsmap = Charsmap::unchecked(units, "a\0é\0");
            if let Some((len, replacement)) = charsmap.longest(&text) {
                prop_assert!(text.is_char_boundary(len) && len > 0 && !replacement.contains('\0'));
            }
        }
    }
}
