//! Which of the words on the command line is the model, and what the prompt is.

use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// `None`: the built-in model.
    pub(super) model: Option<PathBuf>,
    pub(super) prompt: Option<String>,
}

/// The first word is a model if it looks like one; the others are the prompt.
pub(super) fn read_words(words: &[String]) -> Words {
    let (model, rest) = match words {
        [first, rest @ ..] if names_model(Path::new(first)) => (Some(PathBuf::from(first)), rest),
        words => (None, words),
    };
    let prompt = rest.join(" ");
    Words { model, prompt: (!prompt.is_empty()).then_some(prompt) }
}

/// A file that is there, or a name that can only be meant as one. A folder counts if it is written as a path, so that
/// the error names it.
fn names_model(path: &Path) -> bool {
    let written_as_path = path.as_os_str().as_encoded_bytes().contains(&b'/');
    let gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    gguf || (path.exists() && (!path.is_dir() || written_as_path))
}

/// The prompt of the command line and what was piped in, which loses the line end that `echo` puts there.
pub(super) fn join(prompt: Option<String>, piped: &str) -> Option<String> {
    let piped = piped.strip_suffix('\n').unwrap_or(piped);
    match (prompt, piped) {
        (prompt, "") => prompt,
        (None, piped) => Some(piped.to_owned()),
        (Some(prompt), piped) => Some(format!("{prompt}\n\n{piped}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_model_and_a_prompt() {
        let here = file!();
        let this = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(!Path::new(here).is_dir());
        for (words, model, prompt) in [
            (&[][..], None, None),
            (&["hello"], None, Some("hello")),
            (&["what", "is", "this"], None, Some("what is this")),
            (&["missing.gguf"], Some("missing.gguf"), None),
            (&["missing.GGUF", "hi"], Some("missing.GGUF"), Some("hi")),
            (&[this, "hi"], Some(this), Some("hi")),
            (&["/", "hi"], Some("/"), Some("hi")),
            (&["src"], None, Some("src")),
        ] {
            let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
            let expected = Words { model: model.map(PathBuf::from), prompt: prompt.map(str::to_owned) };
            assert_eq!(read_words(&words), expected, "{words:?}");
        }
    }

    #[test]
    fn prompt_and_pipe_are_joined() {
        for (prompt, piped, expected) in [
            (None, "", None),
            (None, "\n", None),
            (Some("a"), "", Some("a")),
            (None, "b\n", Some("b")),
            (Some("a"), "b\nc\n\n", Some("a\n\nb\nc\n")),
        ] {
            assert_eq!(join(prompt.map(str::to_owned), piped).as_deref(), expected, "{prompt:?} {piped:?}");
        }
    }
}
