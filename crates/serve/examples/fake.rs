//! The server over a scripted model, for looking at the chat page and for trying clients.
//!
//! `cargo run -p serve --example fake -- [PORT] [MILLISECONDS PER TOKEN] [MILLISECONDS OF PREFILL] [loading|full]`

#![allow(clippy::print_stdout, dead_code)]

#[path = "../tests/it/fake.rs"]
mod fake;

use std::time::Duration;

use fake::{Fake, Pace, Script};
use serve::{Config, Server};

const MARKDOWN: &str = "Here is how a **dunlin** flock keeps its shape, in *three* rules:\n\n1. Stay close to your neighbours.\n2. Fly the way they fly.\n3. Never touch.\n\n### In code\n\n```rust\nfn heading(flock: &[Bird]) -> f32 {\n    flock.iter().map(|bird| bird.heading).sum::<f32>() / flock.len() as f32\n}\n```\n\nA few things to watch:\n\n- `len()` must not be zero\n- angles wrap at 360 degrees, so a plain mean of headings near north is *wrong*\n- <b>this is not bold</b>, it is text\n\n> Small rules, large shapes.\n\nRead more at https://example.org/flocks if you like.";

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| {
        arguments.get(index).map_or(default, |argument| argument.parse().expect("a number"))
    };
    let mode = arguments.get(3).map(String::as_str);
    let fake = Fake::new(Script {
        pace: Pace::Every(Duration::from_millis(number(1, 25))),
        prefill: Duration::from_millis(number(2, 300)),
        running_max: if mode == Some("full") { 0 } else { 4 },
        waiting_max: if mode == Some("full") { 0 } else { 16 },
        replies: &[
            ("flock", MARKDOWN),
            (
                "",
                "The tide is out and the flats are shining. A dunlin runs, stops, probes the mud and runs again; behind it a hundred others do the same, and when one lifts they all do.",
            ),
        ],
        ..Script::default()
    });
    let server = Server::new(Config::default());
    if mode != Some("loading") {
        server.ready(fake);
    }
    let address = ([127, 0, 0, 1], number(0, 8080) as u16).into();
    let listener = wire::listen::bind(address).await.expect("the port is free");
    println!("http://{}/", listener.local_addr().expect("an open socket has an address"));
    server.run(listener, async { drop(tokio::signal::ctrl_c().await) }).await;
}
