//! How long a vocabulary takes to load and text to encode: `cargo bench -p engine --bench tokenizer -- MODEL TEXT`.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use engine::gguf::Gguf;
use engine::tokenizer::{EncodeOptions, Tokenizer};

const ROUNDS: usize = 15;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [model, text] = &arguments[..] else {
        println!("nothing measured: give a GGUF file and a text file");
        return;
    };
    let text = std::fs::read_to_string(text).expect("a text file");
    let open = measure(|| Gguf::open(Path::new(model)).expect("a GGUF file"));
    let gguf = Gguf::open(Path::new(model)).expect("a GGUF file");
    let load = measure(|| Tokenizer::from_gguf(&gguf).expect("a vocabulary"));
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a vocabulary");
    let encode = measure(|| tokenizer.encode(&text, EncodeOptions::default()));
    let ids = tokenizer.encode(&text, EncodeOptions::default());
    let decode = measure(|| tokenizer.decode(&ids, false));
    println!(
        "{model}: {} tokens; {} bytes are {} ids; n {ROUNDS}",
        tokenizer.vocabulary(),
        text.len(),
        ids.len()
    );
    let megabytes = text.len() as f64 / 1e6;
    for (what, seconds, megabytes) in [
        ("open", open, None),
        ("load", load, None),
        ("encode", encode, Some(megabytes)),
        ("decode", decode, Some(megabytes)),
    ] {
        let [least, median, most] = seconds.map(|s| s * 1e3);
        let rate = megabytes.map_or(String::new(), |mb| format!(", median {:.1} MB/s", mb / seconds[1]));
        println!("  {what}: {least:.2} / {median:.2} / {most:.2} ms (least, median, most){rate}");
    }
}

/// Seconds: least, median, most.
fn measure<T>(mut run: impl FnMut() -> T) -> [f64; 3] {
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let result = run();
            let seconds = start.elapsed().as_secs_f64();
            drop(std::hint::black_box(result));
            seconds
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    [seconds[0], seconds[ROUNDS / 2], seconds[ROUNDS - 1]]
}
