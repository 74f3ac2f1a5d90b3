//! Guesses change how fast tokens come, and not which.

use engine::gguf::Gguf;
use engine::model::Outline;
use engine::{
    DraftError, Engine, EngineConfig, Model, OpenOptions, Pool, Request, Sampling, Speculation, TokenId,
    check_draft, check_draft_file,
};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::generation::{DEMO, Heard, generate, model, prompt, request, start, submit};
use crate::grown;
use crate::tiny::{LLAMA, QWEN3, Tiny};

fn open(gguf: Gguf) -> Arc<Model> {
    let model = Model::from_gguf(gguf, &OpenOptions::default(), &Pool::new(1), &mut |_| ());
    Arc::new(model.expect("a sound model"))
}

/// The first layer of the demo model, which sometimes says what all of it does.
pub(crate) fn one_layer() -> Arc<Model> {
    const KEY: &[u8] = b"llama.block_count";
    let mut bytes = fs::read(DEMO).expect("the demo model");
    let key = bytes.windows(KEY.len()).position(|window| window == KEY).expect("a number of layers");
    // After the key come the type of its value and the value.
    let value = key + KEY.len() + 4;
    bytes[value..value + 4].copy_from_slice(&1u32.to_le_bytes());
    open(Gguf::from_bytes(bytes).expect("a sound file"))
}

fn start_with_draft(config: EngineConfig) -> Engine {
    Engine::start_with_draft(model(), Some(one_layer()), Pool::new(2), config)
}

fn config(speculation: Speculation) -> EngineConfig {
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
    let (with, without) = (start(config(Speculation::Always)), start(config(Speculation::Off)));
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
    let (with, without) = (start(config(Speculation::Always)), start(config(Speculation::Off)));
    let requests = |i: usize| repeating(3 + i, Sampling::greedy());
    let want: Vec<Heard> = (0..5).map(|i| generate(&without, requests(i))).collect();
    let running: Vec<_> = (0..5).map(|i| submit(&with, requests(i))).collect();
    for (i, (running, want)) in running.into_iter().zip(want).enumerate() {
        assert_eq!(running.finish().bits(), want.bits(), "stream {i}");
    }
}

/// Models that keep states, too, which are taken back to before a guess that was wrong.
#[test]
fn guesses_change_nothing_in_any_family() {
    let speaker = Gguf::open(Path::new(DEMO)).expect("the demo model");
    let draft = open(grown::grow_speaking(grown::ALL[0], 4, &speaker));
    for &species in grown::ALL {
        let model = open(grown::grow_speaking(species, 3, &speaker));
        let start = |speculation, draft| {
            Engine::start_with_draft(model.clone(), draft, Pool::new(2), config(speculation))
        };
        let with = start(Speculation::Always, if species.ahead > 0 { None } else { Some(draft.clone()) });
        let without = start(Speculation::Off, None);
        let requests = |i: usize| {
            // Random models say what they said before if they are made to.
            let repeat_penalty = [1.0, 0.3, 0.6, 0.8][i % 4];
            let temperature = [0.0, 0.7, 1.5, 0.5][i % 4];
            let sampling = Sampling { temperature, repeat_penalty, seed: Some(7), ..Sampling::default() };
            Request { ignore_eos: true, max_tokens: Some(300), ..repeating(2 + i, sampling) }
        };
        let want: Vec<Heard> = (0..4).map(|i| generate(&without, requests(i))).collect();
        let running: Vec<_> = (0..4).map(|i| submit(&with, requests(i))).collect();
        let (mut guessed, mut came_true) = (0, 0);
        for (i, (running, want)) in running.into_iter().zip(want).enumerate() {
            let got = running.finish();
            assert!(got.bits() == want.bits(), "{}, stream {i}", species.family);
            guessed += got.finished.usage.guessed_tokens;
            came_true += got.finished.usage.true_guesses;
        }
        assert!(came_true > 0, "{}: {came_true} of {guessed}", species.family);
        assert!(came_true < guessed || !model.has_states(), "{}: all {guessed} came true", species.family);
        // What was left behind is as it should be.
        let again = Request { max_tokens: Some(20), ..requests(1) };
        assert!(
            generate(&with, again.clone()).bits() == generate(&without, again).bits(),
            "{}",
            species.family
        );
    }
}

#[test]
fn a_generation_with_guesses_is_not_longer_than_it_may_be() {
    let engine = start(config(Speculation::Always));
    for max_tokens in [1, 2, 3, 7] {
        let request = Request { max_tokens: Some(max_tokens), ..repeating(6, Sampling::greedy()) };
        assert_eq!(generate(&engine, request).tokens.len(), max_tokens);
    }
    let full = Request { max_tokens: None, ..repeating(10, Sampling::greedy()) };
    assert_eq!(generate(&engine, full).tokens.len(), 1024 - 400);
}

#[test]
fn a_draft_model_changes_nothing_of_what_is_said() {
    let (with, without) = (start_with_draft(config(Speculation::Always)), start(config(Speculation::Off)));
    let mut usage = (0, 0);
    for seed in 0..12 {
        let temperature = [0.0, 0.3, 0.8][seed % 3];
        let sampling = Sampling {
            temperature,
            seed: Some(seed as u64),
            repeat_penalty: if seed % 4 == 3 { 1.3 } else { 1.0 },
            ..Sampling::default()
        };
        let request = Request { sampling, ..request(20 + 37 * seed, 60) };
        let (got, want) = (generate(&with, request.clone()), generate(&without, request));
        assert_eq!(got.bits(), want.bits(), "seed {seed}");
        assert_eq!(got.finished.reason, want.finished.reason);
        let of_one = got.finished.usage;
        usage = (usage.0 + of_one.guessed_tokens, usage.1 + of_one.true_guesses);
    }
    assert!(usage.1 > 0 && usage.1 < usage.0, "some guesses came true and some did not: {usage:?}");
}

#[test]
fn a_draft_model_for_several_at_once_changes_nothing() {
    let (with, without) = (start_with_draft(config(Speculation::Always)), start(config(Speculation::Off)));
    // Prompts that are long beside the steps, and some that begin alike.
    let requests = |i: usize| Request { sampling: Sampling::greedy(), ..request(40 + 150 * (i % 4), 50) };
    for round in 0..2 {
        let want: Vec<Heard> = (0..7).map(|i| generate(&without, requests(i))).collect();
        let running: Vec<_> = (0..7).map(|i| submit(&with, requests(i))).collect();
        for (i, (running, want)) in running.into_iter().zip(want).enumerate() {
            assert_eq!(running.finish().bits(), want.bits(), "stream {i} of round {round}");
        }
    }
}

#[test]
fn what_is_sampled_with_guesses_is_distributed_as_without() {
    const RUNS: u64 = 1500;
    let (with, without) = (start_with_draft(config(Speculation::Always)), start(config(Speculation::Off)));
    let mut guessed = 0;
    let mut counts: HashMap<Vec<TokenId>, [f64; 2]> = HashMap::new();
    for seed in 0..RUNS {
        for (which, engine) in [&with, &without].into_iter().enumerate() {
            // Seeds of their own: the two samples are independent.
            let seed = Some(2 * seed + which as u64);
            let sampling =
                Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
            let heard = generate(engine, Request { max_tokens: Some(12), ..repeating(4, sampling) });
            guessed += heard.finished.usage.guessed_tokens;
            counts.entry(heard.ids()[6..9].to_vec()).or_default()[which] += 1.0;
        }
    }
    assert!(guessed > 200, "{guessed} guesses in {RUNS} runs");
    // Two-sample chi-square; what is rare goes together.
    let (rare, common): (Vec<_>, Vec<_>) = counts.into_values().partition(|[a, b]| a + b < 10.0);
    let rest = rare.iter().fold([0.0; 2], |sum, [a, b]| [sum[0] + a, sum[1] + b]);
    let classes: Vec<[f64; 2]> = common.into_iter().chain([rest]).filter(|[a, b]| a + b > 0.0).collect();
    let statistic: f64 = classes.iter().map(|[a, b]| (a - b).powi(2) / (a + b)).sum();
    let freedom = (classes.len() - 1) as f64;
    // Five standard deviations of its normal approximation.
    assert!(
        classes.len() > 5 && statistic < freedom + 5.0 * (2.0 * freedom).sqrt(),
        "{statistic} of {freedom}"
    );
}

#[test]
fn models_that_cannot_guess_are_refused_by_name() {
    let demo = model();
    assert_eq!(check_draft(&demo, &one_layer()), Ok(()));
    let tiny = open(Tiny::new(LLAMA).gguf());
    assert_eq!(check_draft(&tiny, &open(Tiny::new(QWEN3).gguf())), Ok(()));
    let check = |model: &Model, draft: &Model, expected: &str| {
        let error: DraftError = check_draft(model, draft).expect_err("refused");
        let outline = |model: &Model| Outline::read(model.gguf()).expect("a known model");
        let early = check_draft_file((model.gguf(), &outline(model)), (draft.gguf(), &outline(draft)));
        assert_eq!(early, Err(error.clone()), "seen before anything is loaded");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&demo, &tiny, "has 128 tokens and dunlin-demo has");
    let hybrid = grown::ALL.iter().find(|species| species.family == "lfm2").expect("a hybrid");
    let hybrid = open(grown::grow(*hybrid, 1));
    check(&tiny, &hybrid, "keeps states");
    assert_eq!(check_draft(&hybrid, &tiny), Ok(()));
    check(&tiny, &open(grown::grow(grown::ENCODERS[0], 1)), "makes embeddings; it must generate text");
}
