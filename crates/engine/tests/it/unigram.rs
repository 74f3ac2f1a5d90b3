//! Unigram vocabularies against the ids that SentencePiece gives: `tests/unigram/reference.py` writes both.

use std::fs;
use std::path::{Path, PathBuf};

use engine::TokenId;
use engine::gguf::Gguf;
use engine::tokenizer::{EncodeOptions, TextStream, Tokenizer};

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
