//! Generations that go on when their context is full.

use engine::{
    ContextShift, Engine, EngineConfig, FinishReason, KvFormat, PAGE, Pool, Request, Speculation, Token,
};

use crate::generation::{generate, model, request, submit};
use crate::speculation::one_layer;

const CONTEXT: usize = 256;

fn config(shift: bool) -> EngineConfig {
    EngineConfig {
        context_tokens: CONTEXT,
        parallel: 3,
        context_shift: shift.then_some(ContextShift::default()),
        speculation: Speculation::Always,
        ..EngineConfig::default()
    }
}

#[test]
fn a_full_context_ends_a_generation_or_loses_its_older_half() {
    let (ending, shifting) = (
        Engine::start(model(), Pool::new(2), config(false)),
        Engine::start(model(), Pool::new(2), config(true)),
    );
    let asked = request(60, 700);
    let (ended, shifted) = (generate(&ending, asked.clone()), generate(&shifting, asked.clone()));
    assert_eq!((ended.ids().len(), ended.finished.usage.dropped_tokens), (CONTEXT - 60, 0));
    assert_eq!(shifted.ids().len(), 700);
    assert_eq!(shifted.finished.reason, FinishReason::Length);
    // Up to there nothing is different.
    assert!(shifted.bits().starts_with(&ended.bits()));
    // Whole pages, as many as it takes for what was generated.
    let dropped = shifted.finished.usage.dropped_tokens;
    assert_eq!(dropped % 128, 0);
    assert!((60 + 700 - CONTEXT..60 + 700).contains(&dropped), "{dropped}");
    // Who does not say how much to generate gets what there is room for.
    let unlimited = Request { max_tokens: None, ..asked.clone() };
    assert_eq!(generate(&shifting, unlimited).bits(), ended.bits());
    // What others begin with was not changed.
    let short = Request { max_tokens: Some(40), ..asked };
    assert!(ended.bits().starts_with(&generate(&shifting, short).bits()));
}

#[test]
fn what_is_left_counts_for_its_new_positions() {
    // In a single layer keys and values depend on nothing but their own tokens: what is left is as if it had stood there.
    // Keys are rounded twice where they are turned.
    for (kv_format, rounding) in [(KvFormat::F32, 1e-4), (KvFormat::F16, 2e-2)] {
        let start = |shift| {
            let config = EngineConfig { kv_format, context_tokens: 3 * PAGE, ..config(shift) };
            Engine::start(one_layer(), Pool::new(1), config)
        };
        let (plain, shifting) = (start(false), start(true));
        let asked = request(100, 500);
        let shifted = generate(&shifting, asked.clone());
        let all = [asked.prompt.clone(), shifted.ids()].concat();
        // Of three full pages the second is dropped and the third turned; one token more is there and not computed yet.
        let context = [&all[..PAGE], &all[2 * PAGE..3 * PAGE + 1]].concat();
        let plain = generate(&plain, Request { prompt: context, max_tokens: Some(100), ..asked });
        let logprob = |token: &Token| token.logprob.as_ref().expect("asked for").logprob;
        let after = 3 * PAGE + 1 - 100;
        for (plain, shifted) in plain.tokens.iter().zip(&shifted.tokens[after..]) {
            let difference = (logprob(plain) - logprob(shifted)).abs();
            assert!(plain.id == shifted.id && difference < rounding, "{kv_format}: {plain:?} {shifted:?}");
        }
        assert_eq!(plain.tokens.len(), 100);
    }
}

#[test]
fn several_shift_beside_each_other() {
    let shifting = Engine::start(model(), Pool::new(2), config(true));
    // Two begin alike, so that pages that one must change are the other's, too.
    let asked = [request(150, 400), request(150, 400), request(130, 300), request(30, 20)];
    let alone: Vec<_> = asked.iter().map(|request| generate(&shifting, request.clone()).bits()).collect();
    let running: Vec<_> = asked.iter().map(|request| submit(&shifting, request.clone())).collect();
    for (running, alone) in running.into_iter().zip(alone) {
        assert_eq!(running.finish().bits(), alone);
    }
}
