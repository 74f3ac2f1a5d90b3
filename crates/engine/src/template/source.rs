//! Rewrites what the template engine cannot read into what it can, without moving a line.
//!
//! `{% generation %}` marks what a model learns from; here it is a scope and nothing else. `'%s' % x` becomes a filter,
//! for text on the left of `%` only where it is written out.

/// The filter that [`adapt`] puts in the place of `%`.
pub(super) const PERCENT: &str = "__percent";

pub(super) fn adapt(source: &str) -> String {
    let mut output = String::with_capacity(source.len() + 16);
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        output.push_str(&rest[..start]);
        rest = &rest[start..];
        let taken = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{' | b'%') => tag_len(rest),
            _ => 1,
        };
        let (tag, after) = rest.split_at(taken);
        rest = after;
        match tag_name(tag) {
            "generation" => output.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => output.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "raw" => {
                let (raw, after) = rest.split_at(rest.find("endraw").unwrap_or(rest.len()));
                output.push_str(tag);
                output.push_str(raw);
                rest = after;
            }
            _ if tag.starts_with("{{") || tag.starts_with("{%") => push_expression(tag, &mut output),
            _ => output.push_str(tag),
        }
    }
    output.push_str(rest);
    output
}

/// The name of a tag that is nothing but a name.
fn tag_name(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
    inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim()
}

/// The length of the tag that `text` starts with; an open one reaches to the end.
fn tag_len(text: &str) -> usize {
    let close = if text.starts_with("{{") { "}}" } else { "%}" };
    let mut at = 2;
    let mut depth = 0_usize;
    while at < text.len() {
        let byte = text.as_bytes()[at];
        // The braces of a map end before those of the tag do.
        if depth == 0 && text.as_bytes()[at..].starts_with(close.as_bytes()) {
            return at + 2;
        }
        match byte {
            b'\'' | b'"' => at += string_len(&text.as_bytes()[at..]),
            b'{' => (at, depth) = (at + 1, depth + 1),
            b'}' => (at, depth) = (at + 1, depth.saturating_sub(1)),
            _ => at += 1,
        }
    }
    text.len()
}

/// The length of the literal that `bytes` starts with, quotes included.
fn string_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != bytes[0] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Appends a tag with every `'...' % operand` as a filter.
fn push_expression(tag: &str, output: &mut String) {
    let bytes = tag.as_bytes();
    let mut copied = 0;
    let mut at = 2;
    while at < bytes.len() {
        if !matches!(bytes[at], b'\'' | b'"') {
            at += 1;
            continue;
        }
        at += string_len(&bytes[at..]);
        let percent = at + space_len(&bytes[at..]);
        if bytes.get(percent) != Some(&b'%') || matches!(bytes.get(percent + 1), Some(b'}') | None) {
            continue;
        }
        let start = percent + 1 + space_len(&bytes[percent + 1..]);
        let end = start + operand_len(&bytes[start..]);
        if end == start {
            continue;
        }
        output.push_str(&tag[copied..at]);
        output.push_str(&format!("|{PERCENT}("));
        output.push_str(&tag[percent + 1..end]);
        output.push(')');
        copied = end;
        at = end;
    }
    output.push_str(&tag[copied..]);
}

fn space_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// A name, number, literal or group, with the attributes, indices, calls and filters that follow it.
fn operand_len(bytes: &[u8]) -> usize {
    let mut at = match bytes.first() {
        Some(b'\'' | b'"') => string_len(bytes),
        Some(b'(' | b'[' | b'{') => group_len(bytes),
        _ => name_len(bytes),
    };
    if at == 0 {
        return 0;
    }
    loop {
        let next = at + space_len(&bytes[at..]);
        at = match bytes.get(next) {
            Some(b'(' | b'[') => next + group_len(&bytes[next..]),
            Some(b'.' | b'|') => {
                let name = next + 1 + space_len(&bytes[next + 1..]);
                match name_len(&bytes[name..]) {
                    0 => return at,
                    len => name + len,
                }
            }
            _ => return at,
        };
    }
}

fn name_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | 0x80..)).count()
}

/// The length of a group in brackets; an open one reaches to the end.
fn group_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    let mut depth = 0_usize;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => {
                at += string_len(&bytes[at..]);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    at
}
