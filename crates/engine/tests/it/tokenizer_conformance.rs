//! Real vocabularies against the ids that the reference gives.

use std::fs;
use std::path::Path;

use engine::TokenId;
use engine::gguf::Gguf;
use engine::tokenizer::{EncodeOptions, TextStream, Tokenizer};

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

#[test]
fn ids_are_the_references() {
    let Some(shared) = crate::shared("ids_are_the_references") else { return };
    let mut failures = String::new();
    for path in vocabularies(&shared) {
        let tokenizer = load(&path);
        let texts = fs::read_to_string(path.with_extension("inp")).expect("the strings");
        let expected = fs::read_to_string(path.with_extension("out")).expect("the expected ids");
        let expected: Vec<Vec<TokenId>> = expected
            .lines()
            .map(|line| line.split_whitespace().map(|id| id.parse().expect("an id")).collect())
            .collect();
        let texts: Vec<&str> = texts.strip_suffix(SEPARATOR).unwrap_or(&texts).split(SEPARATOR).collect();
        assert_eq!(texts.len(), expected.len(), "{}", path.display());
        let mut right = 0;
        for (text, expected) in texts.iter().zip(&expected) {
            let ids = tokenizer.encode(text, EncodeOptions::default());
            if ids == *expected {
                right += 1;
            } else {
                failures += &format!("{}: {text:?}\n  {ids:?}\n  {expected:?}\n", path.display());
            }
        }
        println!("{}: {right} of {}", path.file_name().unwrap_or_default().display(), texts.len());
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn text_comes_back_from_ids() {
    let Some(shared) = crate::shared("text_comes_back_from_ids") else { return };
    for path in vocabularies(&shared) {
        let tokenizer = load(&path);
        let texts = fs::read_to_string(path.with_extension("inp")).expect("the strings");
        let lossy = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("bert"));
        for text in texts.split(SEPARATOR).filter(|_| !lossy) {
            let ids = tokenizer.encode(text, EncodeOptions::default());
            assert_eq!(tokenizer.decode(&ids, false), text, "{}", path.display());
            let mut stream = TextStream::new();
            let mut streamed: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
            streamed += &stream.finish();
            assert_eq!(streamed, text, "{}", path.display());
        }
    }
}

fn vocabularies(shared: &Path) -> Vec<std::path::PathBuf> {
    let folder = shared.join("conformance/tokenizers");
    let entries = fs::read_dir(&folder).expect("the folder of vocabularies");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    assert!(!paths.is_empty(), "no vocabularies in {}", folder.display());
    paths
}

fn load(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Tokenizer::from_gguf(&gguf).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
