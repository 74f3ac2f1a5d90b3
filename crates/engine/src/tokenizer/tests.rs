//! Small vocabularies made here, sound and broken.

use proptest::prelude::*;

use super::spellings::ALPHABET;
use super::*;

/// A byte-level vocabulary: the 256 bytes, then `more`.
fn bytes_and(more: &[&str]) -> Vec<String> {
    let bytes = ALPHABET.iter().map(|letter| String::from_utf8_lossy(letter.as_bytes()).into_owned());
    bytes.chain(more.iter().map(|s| (*s).to_owned())).collect()
}

fn bpe(pre: &str, more: &[&str], merges: &[&str], kinds: &[(usize, i32)]) -> Tokenizer {
    let tokens = bytes_and(more);
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut all = vec![1; tokens.len()];
    for (i, kind) in kinds {
        all[256 + i] = *kind;
    }
    let vocabulary = Vocabulary {
        model: "gpt2",
        pre: Some(pre),
        tokens: Strings::Slice(&tokens),
        merges: Strings::Slice(merges),
        kinds: Some(all),
        ..Vocabulary::default()
    };
    Tokenizer::new(&vocabulary).expect("a sound vocabulary")
}

fn letters(pre: &str) -> Tokenizer {
    bpe(
        pre,
        &["he", "ll", "hell", "Ġhe", "aa", "aaaa", "<|im_end|>", "<user>"],
        &["h e", "l l", "he ll", "Ġ he", "a a", "aa aa"],
        &[(6, 3), (7, 4)],
    )
}

/// A SentencePiece vocabulary with every byte token.
fn spm(tokens: &[(&str, f32, i32)], space_prefix: bool) -> Tokenizer {
    let bytes: Vec<String> = (0..=255).map(spellings::byte_token).collect();
    let mut all = vec![("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)];
    all.extend(bytes.iter().map(|byte| (byte.as_str(), 0.0, 6)));
    all.extend_from_slice(tokens);
    let spellings: Vec<&str> = all.iter().map(|(spelling, ..)| *spelling).collect();
    let vocabulary = Vocabulary {
        model: "llama",
        tokens: Strings::Slice(&spellings),
        scores: Some(all.iter().map(|(_, score, _)| *score).collect()),
        kinds: Some(all.iter().map(|(.., kind)| *kind).collect()),
        add_space_prefix: Some(space_prefix),
        ..Vocabulary::default()
    };
    Tokenizer::new(&vocabulary).expect("a sound vocabulary")
}

fn tiny_spm(space_prefix: bool) -> Tokenizer {
    let tokens = [
        ("▁", -9.0, 1),
        ("a", -8.0, 1),
        ("b", -8.5, 1),
        ("ab", -2.0, 1),
        ("▁ab", -3.0, 1),
        ("ba", -1.0, 1),
        ("<go>", 0.0, 4),
    ];
    spm(&tokens, space_prefix)
}

fn wordpiece() -> Tokenizer {
    let tokens = ["[UNK]", "[CLS]", "[SEP]", "▁hello", "▁wor", "ld", "▁!", "▁é", "▁e", "▁你", "▁$"];
    let vocabulary = Vocabulary {
        model: "bert",
        tokens: Strings::Slice(&tokens),
        kinds: Some(vec![3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        bos: Some(1),
        unknown: Some(0),
        separator: Some(2),
        ..Vocabulary::default()
    };
    Tokenizer::new(&vocabulary).expect("a sound vocabulary")
}

#[test]
fn bert_does_not_know_long_words_and_keeps_vowel_signs() {
    let tokens = ["[UNK]", "[CLS]", "[SEP]", "▁a", "a", "▁\u{92c}", "\u{93f}", "b"];
    let vocabulary = Vocabulary {
        model: "bert",
        tokens: Strings::Slice(&tokens),
        kinds: Some(vec![3, 3, 3, 1, 1, 1, 1, 1]),
        bos: Some(1),
        unknown: Some(0),
        separator: Some(2),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::new(&vocabulary).expect("a sound vocabulary");
    let count = |letters: usize| tokenizer.encode(&"a".repeat(letters), PLAIN).len();
    assert_eq!((count(100), count(101)), (100, 1));
    check(&tokenizer, &"a".repeat(101), PLAIN, &["[UNK]"]);
    // U+093F takes a place of its own in a line; U+0300 does not.
    check(&tokenizer, "\u{92c}\u{93f} a\u{300}", PLAIN, &["▁\u{92c}", "\u{93f}", "▁a"]);
}

#[test]
fn pairs_have_what_their_vocabulary_puts_between() {
    let check = |tokenizer: &Tokenizer, expected: &[&str], second: usize| {
        let (ids, start) = tokenizer.encode_pair("a", "b");
        let pieces: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
        assert_eq!((&*pieces, start), (expected, second));
    };
    let tokens = ["[UNK]", "[CLS]", "[SEP]", "▁a", "▁b"];
    let bert = Vocabulary {
        model: "bert",
        tokens: Strings::Slice(&tokens),
        kinds: Some(vec![3, 3, 3, 1, 1]),
        bos: Some(1),
        unknown: Some(0),
        separator: Some(2),
        add_separator: Some(true),
        ..Vocabulary::default()
    };
    check(&Tokenizer::new(&bert).expect("sound"), &["[CLS]", "▁a", "[SEP]", "▁b", "[SEP]"], 3);
    let scores = vec![0.0; 5];
    let roberta = Vocabulary {
        model: "llama",
        scores: Some(scores),
        eos: Some(2),
        add_eos: Some(true),
        ..bert.clone()
    };
    let expected = ["[CLS]", "▁a", "[SEP]", "[SEP]", "▁b", "[SEP]"];
    check(&Tokenizer::new(&roberta).expect("sound"), &expected, 6);
    let plain = Vocabulary { add_separator: None, add_eos: None, ..roberta };
    check(&Tokenizer::new(&plain).expect("sound"), &["[CLS]", "▁a", "▁b"], 3);
}

fn check(tokenizer: &Tokenizer, text: &str, options: EncodeOptions, expected: &[&str]) {
    let ids = tokenizer.encode(text, options);
    let pieces: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
    assert_eq!(pieces, expected, "{text:?}");
}

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

#[test]
fn merges_apply_in_order_of_rank() {
    let tokenizer = letters("gpt-2");
    check(&tokenizer, "hello he", PLAIN, &["hell", "o", "Ġhe"]);
    check(&tokenizer, "aaaaaaa", PLAIN, &["aaaa", "aa", "a"]);
    check(&tokenizer, "\u{e9}", PLAIN, &["Ã", "©"]);
    check(&tokenizer, "", SPECIAL, &[]);
}

#[test]
fn whole_words_skip_the_merges_where_the_family_says_so() {
    let more = ["cat"];
    check(&bpe("gpt-2", &more, &["x y"], &[]), "cat", PLAIN, &["c", "a", "t"]);
    check(&bpe("llama-bpe", &more, &["x y"], &[]), "cat", PLAIN, &["cat"]);
}

#[test]
fn merges_through_strings_that_are_no_tokens() {
    let tokenizer = bpe("gpt-2", &["abc"], &["a b", "ab c"], &[]);
    check(&tokenizer, "abc", PLAIN, &["abc"]);
    check(&tokenizer, "abd", PLAIN, &["a", "b", "d"]);
}

#[test]
fn special_tokens_are_found_when_asked_and_user_tokens_always() {
    let tokenizer = letters("gpt-2");
    check(&tokenizer, "he<user>", PLAIN, &["he", "<user>"]);
    let plain = tokenizer.encode("<|im_end|>", PLAIN);
    assert!(plain.len() > 1 && plain.iter().all(|id| !tokenizer.is_control(*id)));
    check(&tokenizer, "he<|im_end|>", SPECIAL, &["he", "<|im_end|>"]);
    let end = tokenizer.id_of("<|im_end|>").expect("a token");
    assert!(tokenizer.is_end(end) && tokenizer.is_control(end));
    assert_eq!(
        (tokenizer.token_bytes(end), tokenizer.decode(&[end], true).as_str()),
        (&b""[..], "<|im_end|>")
    );
    assert_eq!(tokenizer.shown_bytes(end), b"<|im_end|>");
}

#[test]
fn spm_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = tiny_spm(true);
    check(&tokenizer, "ab", PLAIN, &["▁ab"]);
    check(&tokenizer, "bab", PLAIN, &["▁", "ba", "b"]);
    check(&tokenizer, "aé", PLAIN, &["▁", "a", "<0xC3>", "<0xA9>"]);
    check(&tokenizer, "<go>ab", SPECIAL, &["<s>", "<go>", "▁ab"]);
    check(&tokenizer, "ab<go>ab ab", PLAIN, &["▁ab", "<go>", "▁ab", "▁ab"]);
    check(&tiny_spm(false), "ab ab", PLAIN, &["ab", "▁ab"]);
    let ids = tokenizer.encode("  ab é", SPECIAL);
    assert_eq!(tokenizer.decode(&ids, false), "  ab é");
}

#[test]
fn streams_hold_back_half_characters_and_the_first_space() {
    let tokenizer = tiny_spm(true);
    let ids = tokenizer.encode("ab é ab", PLAIN);
    let push = |mut stream: TextStream| -> Vec<String> {
        let mut texts: Vec<String> = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
        texts.push(stream.finish());
        texts
    };
    assert_eq!(push(TextStream::new()), ["ab", " ", "", "é", " ab", ""]);
    assert_eq!(push(TextStream::after_prompt()), [" ab", " ", "", "é", " ab", ""]);
    let mut stream = TextStream::new();
    let half = tokenizer.id_of("<0xC3>").expect("a byte");
    assert_eq!((stream.push(&tokenizer, half), stream.finish()), (String::new(), "\u{FFFD}".into()));
}

#[test]
fn wordpiece_normalizes_and_takes_the_longest() {
    let tokenizer = wordpiece();
    check(&tokenizer, "Hello  WORLD!", PLAIN, &["▁hello", "▁wor", "ld", "▁!"]);
    check(&tokenizer, "é你xyz$", PLAIN, &["▁e", "▁你", "[UNK]", "▁$"]);
    check(&tokenizer, "hello", SPECIAL, &["[CLS]", "▁hello", "[SEP]"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("hello world", SPECIAL), false), "hello world");
}

#[test]
fn harmony_messages_end_but_generations_go_on() {
    let control: Vec<(usize, i32)> = (0..3).map(|i| (i, 3)).collect();
    let tokenizer = bpe("gpt-4o", &["<|end|>", "<|return|>", "<|call|>"], &["x y"], &control);
    let ends: Vec<bool> = (256..259).map(|id| tokenizer.is_end(id)).collect();
    assert_eq!(ends, [false, true, true]);
    assert!(bpe("gpt-4o", &["<|end|>"], &["x y"], &[(0, 3)]).is_end(256));
}

#[test]
fn phi_3_strips_after_its_special_tokens() {
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<|end|>"];
    let vocabulary = Vocabulary {
        model: "llama",
        tokens: Strings::Slice(&tokens),
        scores: Some(vec![0.0; 7]),
        kinds: Some(vec![2, 3, 3, 1, 1, 1, 3]),
        name: "Phi-3 mini",
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::new(&vocabulary).expect("a sound vocabulary");
    check(&tokenizer, "a<|end|>\n a", SPECIAL, &["<s>", "▁a", "<|end|>", "▁a"]);
    check(&tokenizer, "<s> a", SPECIAL, &["<s>", "<s>", "▁", "▁a"]);
}

#[test]
fn broken_vocabularies_are_refused_by_name() {
    let tokens = ["a", "b"];
    let sound = Vocabulary {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: Strings::Slice(&tokens),
        merges: Strings::Slice(&["a b"]),
        ..Vocabulary::default()
    };
    let refused = |vocabulary: Vocabulary<'_>| match Tokenizer::new(&vocabulary) {
        Ok(_) => panic!("taken: {vocabulary:?}"),
        Err(error) => error.to_string(),
    };
    assert!(Tokenizer::new(&sound).is_ok());
    assert_eq!(
        refused(Vocabulary { tokens: Strings::default(), ..sound.clone() }),
        "the vocabulary is empty"
    );
    assert_eq!(
        refused(Vocabulary { kinds: Some(vec![1]), ..sound.clone() }),
        "`tokenizer.ggml.token_type` has 1 entries for 2 tokens"
    );
    assert_eq!(
        refused(Vocabulary { scores: Some(vec![0.0; 3]), ..sound.clone() }),
        "`tokenizer.ggml.scores` has 3 entries for 2 tokens"
    );
    assert_eq!(
        refused(Vocabulary { eos: Some(2), ..sound.clone() }),
        "`tokenizer.ggml.eos_token_id` is 2, but there are 2 tokens"
    );
    assert_eq!(
        refused(Vocabulary { merges: Strings::Slice(&["a b", "ab"]), ..sound.clone() }),
        "merge 1 is not two spellings with a space between: `ab`"
    );
    assert_eq!(
        refused(Vocabulary { merges: Strings::default(), ..sound.clone() }),
        "the file has no `tokenizer.ggml.merges`"
    );
    let unknown = refused(Vocabulary { pre: Some("gpt-7"), ..sound.clone() });
    assert!(unknown.starts_with("unknown pre-tokenizer `gpt-7`, known are: a.x-4.0, "), "{unknown}");
    assert!(unknown.contains("qwen35"), "{unknown}");
    let unknown = refused(Vocabulary { model: "rwkv", ..sound });
    assert_eq!(unknown, "unknown vocabulary model `rwkv`, known are: llama, t5, gpt2, gemma4, bert");
}

/// Empty and equal tokens, missing bytes, merges of unknown strings, kinds from nowhere.
#[test]
fn odd_vocabularies_have_defined_behaviour() {
    let tokens = ["", "a", "a", "", "▁", "<0xZZ>", "é"];
    for (model, pre) in [("gpt2", "gpt-2"), ("gemma4", ""), ("llama", ""), ("bert", "")] {
        let vocabulary = Vocabulary {
            model,
            pre: Some(pre),
            tokens: Strings::Slice(&tokens),
            kinds: Some(vec![1, 1, 1, 4, 3, 6, -7]),
            scores: Some(vec![f32::NAN, f32::INFINITY, 0.0, -0.0, f32::NEG_INFINITY, 1.0, 2.0]),
            merges: Strings::Slice(&["x y", "a a", "  z", "é é"]),
            ..Vocabulary::default()
        };
        let tokenizer = Tokenizer::new(&vocabulary).unwrap_or_else(|error| panic!("{model}: {error}"));
        for text in ["", "a", "aaa xyz éé\n\0", "▁ ▁", "<0xZZ>"] {
            let ids = tokenizer.encode(text, SPECIAL);
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()), "{model} {text:?}");
            tokenizer.decode(&ids, true);
        }
        assert_eq!(tokenizer.id_of("a"), Some(1), "the first of equal tokens");
        assert_eq!(
            (tokenizer.id_of(""), tokenizer.piece(99), tokenizer.token_bytes(99)),
            (None, "", &b""[..])
        );
        assert!(!tokenizer.is_end(99) && !tokenizer.is_control(99));
    }
}

/// A million equal letters in one word: minutes for an algorithm that is quadratic.
#[test]
fn long_words_take_no_longer_than_many_short_ones() {
    let text = "a".repeat(1_000_000);
    assert_eq!(letters("gpt-2").encode(&text, PLAIN).len(), 250_000);
    assert_eq!(tiny_spm(true).encode(&text, PLAIN).len(), 1_000_001);
    for space in [" ", "\n", "\u{3000}"] {
        let text = format!("a{}b", space.repeat(1_000_000));
        for name in ["llama-bpe", "deepseek-llm", "deepseek-v3", "gpt-4o", "falcon", "bloom"] {
            assert!(!letters(name).encode(&text, PLAIN).is_empty(), "{name}");
        }
    }
}

fn check_split(pre: &str, text: &str, expected: &[&str]) {
    let passes = pretokenizers::find(pre).expect("a known name").passes;
    let mut words = Vec::new();
    split::split(text, passes, &mut |word| words.push(word.to_owned()));
    assert_eq!(words, expected, "{pre} {text:?}");
}

#[test]
fn families_split_each_in_their_way() {
    let text = "I'LL it's 1234  x\n\n y_";
    check_split("gpt-2", text, &["I", "'", "LL", " it", "'s", " 1234", " ", " x", "\n\n", " y", "_"]);
    let llama = ["I", "'LL", " it", "'s", " ", "123", "4", " ", " x", "\n\n", " y", "_"];
    check_split("llama-bpe", text, &llama);
    let qwen = ["I", "'LL", " it", "'s", " ", "1", "2", "3", "4", " ", " x", "\n\n", " y", "_"];
    check_split("qwen2", text, &qwen);
    check_split("qwen35", text, &qwen);
    check_split("starcoder", "ab 12 c", &["ab", " ", "1", "2", " c"]);
    check_split("falcon", "a+b 12345$ `", &["a", "+", "b", " ", "123", "45", "$", " ", "`"]);
    check_split("default", "a+b 12345$ `", &["a", "+", "b", " ", "123", "45", "$", " `"]);
    check_split("deepseek-v3", "foo_bar 12345你好a", &["foo", "_bar", " ", "123", "45", "你好", "a"]);
    check_split("deepseek-llm", "a\n\nb  你好ñ!  ", &["a", "\n", "\n", "b", "  ", "你好", "ñ", "!", "  "]);
    check_split("deepseek-coder", "x = 12;", &["x", " = ", "1", "2", ";"]);
    check_split("tekken", "HelloWorld 'ABc", &["Hello", "World", " '", "ABc"]);
    check_split("gpt-4o", "HelloWorld's//\n", &["Hello", "World's", "//\n"]);
    check_split("bloom", "Hi, you. (x)", &["Hi", ",", " you", ". (", "x", ")"]);
    check_split("seed-coder", "a!\n\n", &["a", "!", "\n\n"]);
    check_split("bailingmoe", "a\n\nb", &["a", "\n\n", "b"]);
}

/// Marks stay with their letters in Qwen 3.5 and part from them in Qwen 2.
#[test]
fn marks_tell_the_qwen_families_apart() {
    check_split("qwen2", "कि", &["क", "\u{93f}"]);
    check_split("qwen35", "कि", &["कि"]);
}

proptest! {
    #[test]
    fn byte_level_text_survives(text in "\\PC*|.*|[ a-e\\n'0-9]*|(he|ll| |<user>|aa)*") {
        for name in pretokenizers::names().filter(|name| !pretokenizers::find(name).is_some_and(|pre| pre.raw)) {
            let tokenizer = letters(name);
            let ids = tokenizer.encode(&text, PLAIN);
            prop_assert_eq!(&tokenizer.decode(&ids, false), &text, "{}", name);
            let mut stream = TextStream::new();
            let mut streamed: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
            streamed += &stream.finish();
            prop_assert_eq!(&streamed, &text);
        }
    }

    #[test]
    fn splits_lose_nothing(text in "\\PC*|.*|[ a-eA-C\\n\\r\\t'0-9一가́/$।]*") {
        for name in pretokenizers::names() {
            let mut joined = String::new();
            let passes = pretokenizers::find(name).expect("a known name").passes;
            split::split(&text, passes, &mut |word| {
                assert!(!word.is_empty());
                joined.push_str(word);
            });
            prop_assert_eq!(&joined, &text, "{}", name);
        }
    }

    #[test]
    fn sentencepiece_text_survives(text in "[^▁]*|[ ab<go>é]*") {
        for space_prefix in [false, true] {
            let tokenizer = tiny_spm(space_prefix);
            let ids = tokenizer.encode(&text, PLAIN);
            // After a user's token comes a space that decoding cannot tell from the text's own.
            if !text.contains("<go>") {
                prop_assert_eq!(tokenizer.decode(&ids, false), text.clone());
            }
        }
    }

    /// Tokens that reach across words keep texts whole just there.
    #[test]
    fn merging_word_by_word_changes_nothing(text in "[ ab]{0,60}") {
        let mut tokens = vec![("▁", -9.0, 1), ("a", -8.0, 1), ("b", -8.5, 1), ("ab", -2.0, 1), ("▁a", -3.0, 1)];
        tokens.extend([("a▁", -1.0, 1), ("a▁b", -0.5, 1), ("▁▁", -2.5, 1), ("b▁▁a", -0.1, 1), ("▁▁a", -1.5, 1)]);
        let mut tokenizer = spm(&tokens, true);
        let by_words = tokenizer.encode(&text, PLAIN);
        let Model::Spm(model) = &mut tokenizer.model else { panic!("an SPM vocabulary") };
        prop_assert!(model.word_starts.take().is_some());
        prop_assert_eq!(by_words, tokenizer.encode(&text, PLAIN));
    }

    #[test]
    fn nothing_panics(text in ".*", ids in proptest::collection::vec(any::<u32>(), 0..40)) {
        for tokenizer in [letters("llama-bpe"), tiny_spm(true), wordpiece()] {
            tokenizer.encode(&text, SPECIAL);
            let small: Vec<u32> = ids.iter().map(|id| id % 300).collect();
            tokenizer.decode(&ids, true);
            tokenizer.decode(&small, false);
            let mut stream = TextStream::new();
            for id in small {
                stream.push(&tokenizer, id);
            }
            stream.finish();
        }
    }

    /// Both ways of merging, on words around the length where one takes over.
    #[test]
    fn scanning_and_queueing_merge_alike(text in "[ahel]{30,90}") {
        let tokenizer = letters("gpt-2");
        let ids = tokenizer.encode(&text, PLAIN);
        prop_assert_eq!(&tokenizer.decode(&ids, false), &text);
        let mut pieces: Vec<String> = text.chars().map(String::from).collect();
        for (left, right) in [("h", "e"), ("l", "l"), ("he", "ll"), ("a", "a"), ("aa", "aa")] {
            let mut i = 0;
            while i + 1 < pieces.len() {
                if pieces[i] == left && pieces[i + 1] == right {
                    let right = pieces.remove(i + 1);
                    pieces[i] += &right;
                }
                i += 1;
            }
        }
        let found: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
        prop_assert_eq!(found, pieces);
    }
}
