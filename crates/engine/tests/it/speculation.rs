//! Guesses change how fast tokens come, and not which.

use engine::{EngineConfig, Request, Sampling};

use crate::generation::{Heard, generate, prompt, request, start, submit};

fn config(speculation: bool) -> EngineConfig {
    EngineConfig { parallel: 3, context_tokens: 1024, speculation, ..EngineConfig::default() }
}

/// A prompt that says the same things several times, so that something can be guessed.
fn repeating(times: usize, sampling: Sampling) -> Request {
    let once = prompt(40);
    let prompt = once.iter().copied().cycle().take(once.len() * times).collect();
    Request { prompt, sampling, ..request(1, 120) }
}

#[test]
fn guesses_change_nothing_of_what_is_said() {
    let (with, without) = (start(config(true)), start(config(false)));
    let mut guessed = 0;
    for seed in 0..6 {
        // A low temperature comes back to what was said, a high one does not.
        let temperature = [0.0, 0.3, 1.5][seed % 3];
        let sampling = Sampling { temperature, seed: Some(seed as u64), ..Sampling::default() };
        let request = repeating(2 + seed, sampling);
        let (got, want) = (generate(&with, request.clone()), generate(&without, request));
        assert_eq!(got.bits(), want.bits(), "seed {seed}");
        assert_eq!(got.finished.reason, want.finished.reason);
        assert_eq!(want.finished.usage.guessed_tokens, 0);
        guessed += got.finished.usage.guessed_tokens;
        assert!(got.finished.usage.true_guesses <= got.finished.usage.guessed_tokens);
    }
    assert!(guessed > 0, "something was guessed");
}

#[test]
fn guesses_of_several_at_once_change_nothing() {
    let (with, without) = (start(config(true)), start(config(false)));
    let requests = |i: usize| repeating(3 + i, Sampling::greedy());
    let want: Vec<Heard> = (0..5).map(|i| generate(&without, requests(i))).collect();
    let running: Vec<_> = (0..5).map(|i| submit(&with, requests(i))).collect();
    for (i, (running, want)) in running.into_iter().zip(want).enumerate() {
        assert_eq!(running.finish().bits(), want.bits(), "stream {i}");
    }
}

#[test]
fn a_generation_with_guesses_is_not_longer_than_it_may_be() {
    let engine = start(config(true));
    for max_tokens in [1, 2, 3, 7] {
        let request = Request { max_tokens: Some(max_tokens), ..repeating(6, Sampling::greedy()) };
        assert_eq!(generate(&engine, request).tokens.len(), max_tokens);
    }
    let full = Request { max_tokens: None, ..repeating(10, Sampling::greedy()) };
    assert_eq!(generate(&engine, full).tokens.len(), 1024 - 400);
}
