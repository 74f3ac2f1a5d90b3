//! Finds the tokens that stand in text by their own name, such as `<|im_start|>`, before the rest is tokenized.

use super::TokenId;

/// A token found in text, with the bytes it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub start: usize,
    pub end: usize,
    pub id: TokenId,
}

/// The tokens to look for, in order of their spelling so that one walk finds all that start at a place.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    sorted: Vec<Special>,
    /// Which bytes a spelling starts with: all of them, and only those of tokens that are always looked for.
    starts: [bool; 256],
    starts_always: [bool; 256],
}

#[derive(Debug)]
pub(super) struct Special {
    pub spelling: Box<[u8]>,
    pub id: TokenId,
    /// Also where control tokens are not to be read from text: tokens that users defined.
    pub always: bool,
}

impl SpecialTokens {
    pub(super) fn new(mut tokens: Vec<Special>) -> Self {
        tokens.retain(|token| !token.spelling.is_empty());
        tokens.sort_by(|a, b| a.spelling.cmp(&b.spelling).then(a.id.cmp(&b.id)));
        tokens.dedup_by(|later, first| later.spelling == first.spelling);
        let mut starts = [false; 256];
        let mut starts_always = [false; 256];
        for token in &tokens {
            starts[token.spelling[0] as usize] = true;
            starts_always[token.spelling[0] as usize] |= token.always;
        }
        Self { sorted: tokens, starts, starts_always }
    }

    /// All tokens in `text`, from left to right, none overlapping. A longer token wins over a shorter one wherever
    /// they touch, even if the shorter one starts first: the order in which the reference cuts text up.
    pub(super) fn find(&self, text: &str, control: bool) -> Vec<Found> {
        let bytes = text.as_bytes();
        let starts = if control { &self.starts } else { &self.starts_always };
        let mut found = Vec::new();
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| starts[**byte as usize]) {
            self.walk(bytes, at, control, &mut found);
        }
        if found.is_sorted_by(|a, b| a.end <= b.start) {
            return found;
        }
        without_overlaps(found, bytes.len())
    }

    /// Appends every token that starts at `at`, by narrowing the sorted spellings byte by byte.
    fn walk(&self, bytes: &[u8], at: usize, control: bool, found: &mut Vec<Found>) {
        let mut candidates = &self.sorted[..];
        for (depth, &byte) in bytes[at..].iter().enumerate() {
            let below = candidates.partition_point(|s| s.spelling.get(depth).is_none_or(|b| *b < byte));
            candidates = &candidates[below..];
            let above = candidates.partition_point(|s| s.spelling.get(depth).is_some_and(|b| *b == byte));
            candidates = &candidates[..above];
            let Some(first) = candidates.first() else { return };
            if first.spelling.len() == depth + 1 && (control || first.always) {
                found.push(Found { start: at, end: at + depth + 1, id: first.id });
            }
        }
    }
}

fn without_overlaps(mut found: Vec<Found>, text_len: usize) -> Vec<Found> {
    found.sort_by_key(|f| (usize::MAX - (f.end - f.start), f.id, f.start));
    let mut taken = vec![false; text_len];
    // What was taken before is at least as long, so an overlap covers the first or the last byte.
    found.retain(|f| {
        let free = !taken[f.start] && !taken[f.end - 1];
        if free {
            taken[f.start..f.end].fill(true);
        }
        free
    });
    found.sort_by_key(|f| f.start);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[(&str, bool)], text: &str, control: bool, expected: &[&str]) {
        let specials = tokens.iter().enumerate().map(|(i, (spelling, always))| Special {
            spelling: spelling.as_bytes().into(),
            id: i as u32,
            always: *always,
        });
        let specials = SpecialTokens::new(specials.collect());
        let found = specials.find(text, control);
        let found: Vec<&str> = found.iter().map(|f| &text[f.start..f.end]).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn longer_tokens_win_wherever_they_overlap() {
        check(&[("<a", true), ("a>b", true), ("b", true)], "<a>b <ab", true, &["a>b", "<a", "b"]);
        check(&[("  ", true), ("    ", true)], "       ", true, &["    ", "  "]);
    }

    #[test]
    fn control_tokens_hide_where_they_are_not_wanted() {
        check(&[("<s>", false), ("<u>", true)], "<s><u>", false, &["<u>"]);
        check(&[("<s>", false), ("<u>", true)], "<s><u>", true, &["<s>", "<u>"]);
    }
}
