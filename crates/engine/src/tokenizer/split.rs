//! Cuts text into the words a byte-level BPE merges within, by rules that read like the published regular expressions.
//!
//! A pre-tokenizer is a list of passes. Each pass cuts every piece the pass before it left; within a pass the rules are
//! tried in order at each position, the first that matches makes a piece, and what no rule matches is a piece
//! of its own up to the next match. Knows no regular expressions: a rule is a short list of steps, matched greedily
//! with backtracking, which is enough for every published pre-tokenizer worth having and takes linear time.

use unicode_general_category::{GeneralCategory, get_general_category};

/// What a character is: a set of the bits below.
pub(super) type Class = u32;

/// Lu and Lt.
pub(super) const UPPER: Class = 1;
/// Ll.
pub(super) const LOWER: Class = 1 << 1;
/// Lm and Lo: letters without case.
pub(super) const CASELESS: Class = 1 << 2;
pub(super) const LETTER: Class = UPPER | LOWER | CASELESS;
pub(super) const MARK: Class = 1 << 3;
pub(super) const NUMBER: Class = 1 << 4;
pub(super) const PUNCTUATION: Class = 1 << 5;
pub(super) const SYMBOL: Class = 1 << 6;
/// The Unicode property White_Space.
pub(super) const SPACE: Class = 1 << 7;
/// Carriage return and line feed.
pub(super) const BREAK: Class = 1 << 8;
/// Cc, Cf, Co: what BERT's normalizer drops.
pub(super) const CONTROL: Class = 1 << 9;
pub(super) const ASCII: Class = 1 << 10;
pub(super) const SLASH: Class = 1 << 11;
/// U+0020 itself.
pub(super) const BLANK: Class = 1 << 12;
/// `$+<=>^~|`, the symbols Falcon's rule counts as punctuation, and the grave accent apart.
pub(super) const OPERATOR: Class = 1 << 13;
pub(super) const GRAVE: Class = 1 << 14;
pub(super) const LINE_FEED: Class = 1 << 15;

const ASCII_CLASSES: [Class; 128] = ascii_classes();

/// The class of the character that starts at byte `at` of `text`, and its length in bytes.
#[inline]
pub(super) fn class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let byte = *text.as_bytes().get(at)?;
    if byte < 128 {
        return Some((ASCII_CLASSES[byte as usize], 1));
    }
    let c = char_at(text, at)?;
    Some((class_of(c), c.len_utf8()))
}

pub(super) fn char_at(text: &str, at: usize) -> Option<char> {
    text.get(at..)?.chars().next()
}

pub(super) fn class_of(c: char) -> Class {
    use GeneralCategory as G;
    if c.is_ascii() {
        return ASCII_CLASSES[c as usize];
    }
    let space = if c.is_whitespace() { SPACE } else { 0 };
    space
        | match get_general_category(c) {
            G::UppercaseLetter | G::TitlecaseLetter => UPPER,
            G::LowercaseLetter => LOWER,
            G::ModifierLetter | G::OtherLetter => CASELESS,
            G::NonspacingMark | G::SpacingMark | G::EnclosingMark => MARK,
            G::DecimalNumber | G::LetterNumber | G::OtherNumber => NUMBER,
            G::ConnectorPunctuation
            | G::DashPunctuation
            | G::OpenPunctuation
            | G::ClosePunctuation
            | G::InitialPunctuation
            | G::FinalPunctuation
            | G::OtherPunctuation => PUNCTUATION,
            G::MathSymbol | G::CurrencySymbol | G::ModifierSymbol | G::OtherSymbol => SYMBOL,
            G::Control | G::Format | G::PrivateUse | G::Surrogate => CONTROL,
            _ => 0,
        }
}

const fn ascii_classes() -> [Class; 128] {
    let mut classes = [0; 128];
    let mut i = 0;
    while i < 128 {
        let byte = i as u8;
        let kind = match byte {
            b'\n' => SPACE | BREAK | CONTROL | LINE_FEED,
            b'\r' => SPACE | BREAK | CONTROL,
            b'\t' | 0x0B | 0x0C => SPACE | CONTROL,
            b' ' => SPACE | BLANK,
            b'A'..=b'Z' => UPPER,
            b'a'..=b'z' => LOWER,
            b'0'..=b'9' => NUMBER,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'~' | b'|' => SYMBOL | OPERATOR,
            b'`' => SYMBOL | GRAVE,
            b'/' => PUNCTUATION | SLASH,
            b'!'..=b'~' => PUNCTUATION,
            _ => CONTROL,
        };
        classes[i] = kind | ASCII;
        i += 1;
    }
    classes
}

/// Which characters a step takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Set {
    /// Any of these classes: `[...]`.
    Any(Class),
    /// None of these classes: `[^...]`.
    Not(Class),
    /// All of these classes at once: `\p{L}` that is ASCII, say.
    All(Class, Class),
    /// Whatever the function says; for ranges that are no class.
    Where(fn(char) -> bool),
}

impl Set {
    /// The length in bytes of the character at `at`, if it belongs.
    #[inline]
    fn take(self, text: &str, at: usize) -> Option<usize> {
        if let Set::Where(test) = self {
            let c = char_at(text, at)?;
            return test(c).then(|| c.len_utf8());
        }
        let (class, len) = class_at(text, at)?;
        let belongs = match self {
            Set::Any(any) => class & any != 0,
            Set::Not(none) => class & none == 0,
            Set::All(a, b) => class & a != 0 && class & b != 0,
            Set::Where(_) => false,
        };
        belongs.then_some(len)
    }
}

/// One step of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Between `min` and `max` characters of a set, as many as possible.
    Take(Set, u32, u32),
    /// `'s 't 're 've 'm 'll 'd`, in lower case only.
    Contraction,
    /// The same in any case.
    ContractionAnyCase,
    /// The same in any case, or nothing.
    MaybeContraction,
    /// `(?!\S)`: white space or the end follows.
    BeforeSpace,
}

/// Steps that match one after the other.
pub(super) type Rule = &'static [Step];

/// One cut over the text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pass {
    Rules(&'static [Rule]),
    /// `\s+$`: the white space at the end of a piece becomes a piece.
    TrailingSpace,
}

pub(super) const MANY: u32 = u32::MAX;

/// Hands every piece of `text` to `word`, in order; together they are the text.
pub(super) fn split(text: &str, passes: &[Pass], word: &mut dyn FnMut(&str)) {
    let Some((pass, rest)) = passes.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    match pass {
        Pass::Rules(rules) => split_by_rules(text, rules, rest, word),
        Pass::TrailingSpace => {
            let (body, space) = text.split_at(text.trim_end().len());
            split(body, rest, word);
            split(space, rest, word);
        }
    }
}

fn split_by_rules(text: &str, rules: &[Rule], rest: &[Pass], word: &mut dyn FnMut(&str)) {
    let mut unmatched = 0;
    let mut at = 0;
    while at < text.len() {
        let end = rules.iter().find_map(|rule| match_steps(rule, text, at)).filter(|&end| end > at);
        let Some(end) = end else {
            at += class_at(text, at).map_or(1, |(_, len)| len);
            continue;
        };
        if unmatched < at {
            split(&text[unmatched..at], rest, word);
        }
        split(&text[at..end], rest, word);
        at = end;
        unmatched = end;
    }
    if unmatched < text.len() {
        split(&text[unmatched..], rest, word);
    }
}

/// Where the steps end if they match at `at`.
fn match_steps(steps: &[Step], text: &str, at: usize) -> Option<usize> {
    let Some((&step, rest)) = steps.split_first() else { return Some(at) };
    match step {
        Step::Take(set, min, max) => take(set, min, max, rest, text, at),
        Step::Contraction => match_steps(rest, text, contraction(text, at, false)?),
        Step::ContractionAnyCase => match_steps(rest, text, contraction(text, at, true)?),
        Step::MaybeContraction => match_steps(rest, text, contraction(text, at, true).unwrap_or(at)),
        Step::BeforeSpace => match class_at(text, at) {
            Some((class, _)) if class & SPACE == 0 => None,
            _ => match_steps(rest, text, at),
        },
    }
}

#[inline]
fn take(set: Set, min: u32, max: u32, rest: &[Step], text: &str, at: usize) -> Option<usize> {
    let mut end = at;
    let mut taken = 0;
    while taken < max {
        let Some(len) = set.take(text, end) else { break };
        end += len;
        taken += 1;
    }
    if taken < min {
        return None;
    }
    if rest.is_empty() {
        return Some(end);
    }
    loop {
        if let Some(matched) = match_steps(rest, text, end) {
            return Some(matched);
        }
        if taken == min {
            return None;
        }
        taken -= 1;
        end = text.floor_char_boundary(end - 1);
    }
}

fn contraction(text: &str, at: usize, any_case: bool) -> Option<usize> {
    let bytes = &text.as_bytes()[at..];
    if *bytes.first()? != b'\'' {
        return None;
    }
    let letter = |i: usize| bytes.get(i).map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        _ => None,
    }
}
