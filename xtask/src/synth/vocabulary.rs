//! A byte-level BPE vocabulary of any size: every byte, a few real merges, made-up words, and the control tokens of a
//! chat. Any text can be encoded and any token decoded.

use engine::gguf::GgufWriter;

/// Joined in this order; what they make are tokens too.
const MERGES: [(&str, &str); 8] =
    [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("e", "r"), ("a", "n"), ("Ġ", "a"), ("Ġ", "s")];

/// At the end of the vocabulary. The first begins every text, the last ends a turn and the text.
const CONTROL: [&str; 5] =
    ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}\
    {% endfor %}{% if add_generation_prompt %}\
    {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL_TYPE: i32 = 3;

pub(super) fn put(head: &mut GgufWriter, len: u64) {
    let tokens = tokens(len as usize);
    let first_control = tokens.len() - CONTROL.len();
    let types: Vec<i32> =
        (0..tokens.len()).map(|i| if i < first_control { NORMAL } else { CONTROL_TYPE }).collect();
    let merges: Vec<String> = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let id = |control: &str| (first_control + CONTROL.iter().position(|&c| c == control).unwrap_or(0)) as u32;

    head.put("tokenizer.ggml.model", "gpt2");
    head.put("tokenizer.ggml.pre", "llama-bpe");
    head.put_array("tokenizer.ggml.tokens", &tokens);
    head.put_array("tokenizer.ggml.token_type", &types);
    head.put_array("tokenizer.ggml.merges", &merges);
    head.put("tokenizer.ggml.bos_token_id", id("<|begin_of_text|>"));
    head.put("tokenizer.ggml.eos_token_id", id("<|eot_id|>"));
    head.put("tokenizer.ggml.add_bos_token", true);
    head.put("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// `len` different tokens.
fn tokens(len: usize) -> Vec<String> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_letter(byte).to_string()).collect();
    tokens.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    let words = len.checked_sub(tokens.len() + CONTROL.len()).expect("a vocabulary has more than the bytes");
    tokens.extend((0..words).map(|i| format!("Ġ{}", word(i))));
    tokens.extend(CONTROL.map(str::to_owned));
    tokens
}

/// How GPT-2 writes a byte in its vocabulary: printable Latin-1 as itself, the other bytes in their order from U+0100.
fn byte_letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + before).expect("U+0100 to U+0143 are letters")
}

/// Three syllables, a different word for each number below a million.
fn word(mut i: usize) -> String {
    const CONSONANTS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";
    const VOWELS: &[u8; 5] = b"aeiou";
    let mut word = String::with_capacity(6);
    for _ in 0..3 {
        word.push(char::from(CONSONANTS[i % 20]));
        word.push(char::from(VOWELS[i / 20 % 5]));
        i /= 100;
    }
    word
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_differ() {
        for len in [300, 128_256] {
            let tokens = tokens(len);
            assert_eq!(tokens.len(), len);
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), len);
        }
    }

    #[test]
    fn bytes_are_written_as_gpt2_does() {
        let cases = [(b' ', 'Ġ'), (b'\n', 'Ċ'), (b'a', 'a'), (0, 'Ā'), (0xad, 'Ń'), (0xff, 'ÿ')];
        for (byte, expected) in cases {
            assert_eq!(byte_letter(byte), expected);
        }
    }
}
