//! Unigram vocabularies against the ids that SentencePiece gives: `tests/unigram/reference.py` writes both.

use std::fs;
use std::path::{Path, PathBuf};

use engine::TokenId;
use engine::gguf::Gguf;
use engine::tokenizer::{EncodeOptions, TextStream, Tokenizer};
use stdx::random::Random;

/// A text, its ids, and what they are decoded to where all are known.
type Record = (String, Vec<TokenId>, Option<String>);

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/unigram");

#[test]
fn ids_are_sentencepieces() {
    check(Path::new(SMALL));
}

#[test]
fn ids_are_sentencepieces_for_larger_vocabularies() {
    match std::env::var_os("DUNLIN_UNIGRAM") {
        Some(folder) => check(&PathBuf::from(folder)),
        None => println!("skipped: DUNLIN_UNIGRAM does not name a folder of tests/unigram/reference.py"),
    }
}

/// Bytes of sound files are changed at random: what still opens still encodes.
#[test]
fn damaged_vocabularies_never_panic() {
    let texts = fs::read(Path::new(SMALL).join("rules.json")).expect("texts");
    let texts: Vec<Record> = serde_json::from_slice(&texts).expect("texts, ids and decoded texts");
    let read = |name| fs::read(Path::new(SMALL).join(name)).expect("a vocabulary");
    let files = ["rules.gguf", "bytes.gguf", "xlm-roberta.gguf"].map(read);
    let mut built = 0;
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let mut file = files[random.below(3) as usize].clone();
        for _ in 0..=random.below(8) {
            let at = random.below(file.len() as u64) as usize;
            file[at] = random.below(256) as u8;
        }
        let Ok(gguf) = Gguf::from_bytes(file) else { continue };
        let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else { continue };
        built += 1;
        for (text, ..) in &texts[..120] {
            let ids = tokenizer.encode(text, EncodeOptions::default());
            let known = |id: &TokenId| (*id as usize) < tokenizer.vocabulary();
            assert!(ids.iter().all(known), "seed {seed}: {text:?} became {ids:?}");
            tokenizer.decode(&ids, true);
        }
    }
    println!("3000 damaged vocabularies: {built} could be used");
    assert!((300..3000).contains(&built), "damage of {built} of 3000 went unnoticed");
}

fn check(folder: &Path) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    assert!(!paths.is_empty(), "no vocabularies in {}", folder.display());
    let mut wrong = 0;
    for path in &paths {
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(path).expect("a sound file")).expect("sound");
        let records = fs::read(path.with_extension("json")).expect("SentencePiece's ids");
        let records: Vec<Record> = serde_json::from_slice(&records).expect("texts, ids and decoded texts");
        let before = wrong;
        for (text, expected, decoded) in &records {
            let ids = tokenizer.encode(text, EncodeOptions::default());
            let mut stream = TextStream::new();
            let mut streamed: String = expected.iter().map(|id| stream.push(&tokenizer, *id)).collect();
            streamed += &stream.finish();
            let found = tokenizer.decode(expected, false);
            let is_decoded = decoded.as_ref().is_none_or(|decoded| *decoded == found && *decoded == streamed);
            if ids != *expected || !is_decoded {
                wrong += 1;
                if wrong <= 20 {
                    println!("{text:?}\n  {ids:?}\n  {expected:?}\n  {found:?} {streamed:?} {decoded:?}");
                }
            }
        }
        let right = records.len() - (wrong - before);
        println!("{}: {right} of {}", path.file_name().unwrap_or_default().display(), records.len());
    }
    assert_eq!(wrong, 0, "texts whose ids or decoded text are not SentencePiece's");
}
