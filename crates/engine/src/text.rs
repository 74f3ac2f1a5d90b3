//! From tokens to text that may be shown: whole characters, nothing of a stop string.

use crate::request::TokenId;
use crate::tokenizer::{TextStream, Tokenizer};

/// Text as it becomes certain. Holds back the end of what it has while it may be the start of a stop string.
#[derive(Debug)]
pub(crate) struct TextOut {
    stream: TextStream,
    stops: Vec<String>,
    held: String,
}

/// What a token did to the text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This much more is certain.
    Text(String),
    /// A stop string appeared; this much came before it.
    Stop { text: String, stop: String },
}

impl TextOut {
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { stream: TextStream::after_prompt(), stops, held: String::new() }
    }

    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> Step {
        let text = self.stream.push(tokenizer, id);
        self.take(&text)
    }

    fn take(&mut self, text: &str) -> Step {
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)))
            .min_by_key(|f| f.0);
        if let Some((at, stop)) = first {
            let stop = stop.clone();
            self.held.truncate(at);
            return Step::Stop { text: std::mem::take(&mut self.held), stop };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Step::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The end of the text, where no stop string came.
    pub(crate) fn finish(&mut self) -> String {
        let last = self.stream.finish();
        match self.take(&last) {
            Step::Text(text) => text + &std::mem::take(&mut self.held),
            Step::Stop { text, .. } => text,
        }
    }
}

/// The length of the longest end of `text` that is a start of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    let fits = |&n: &usize| {
        text.is_char_boundary(text.len() - n)
            && stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..])
    };
    (1..=most).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], parts: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut out = TextOut::new(&stops);
        let mut shown = Vec::new();
        for part in parts {
            match out.take(part) {
                Step::Text(text) => shown.push(text),
                Step::Stop { text, stop } => {
                    shown.push(text);
                    return (shown, Some(stop));
                }
            }
        }
        shown.push(out.finish());
        (shown, None)
    }

    #[test]
    fn text_passes_through_where_nothing_can_stop_it() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), String::new()], None));
        assert_eq!(run(&[""], &["a"]), (vec!["a".into(), String::new()], None));
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_never_shown() {
        let (shown, stop) = run(&["\nUser:"], &["hi", "\nUs", "er", ": more"]);
        assert_eq!((shown.concat().as_str(), stop.as_deref()), ("hi", Some("\nUser:")));
        let (shown, stop) = run(&["\nUser:"], &["hi", "\nUs", "age"]);
        assert_eq!((shown.concat().as_str(), stop), ("hi\nUsage", None));
        assert_eq!(shown[1], "", "a possible start is held back");
    }

    #[test]
    fn the_earliest_of_several_wins() {
        let (shown, stop) = run(&["cd", "b"], &["abcd"]);
        assert_eq!((shown.concat().as_str(), stop.as_deref()), ("a", Some("b")));
        let (shown, stop) = run(&["aab"], &["aa", "ab"]);
        assert_eq!((shown.concat().as_str(), stop.as_deref()), ("a", Some("aab")));
    }

    #[test]
    fn what_was_held_back_comes_at_the_end() {
        assert_eq!(run(&["é!"], &["caf", "é"]).0.concat(), "café");
    }
}
