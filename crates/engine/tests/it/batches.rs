//! Greedy generation is the same however the work is cut and whoever else is at work, over random models and schedules.

use engine::gguf::GgmlType;
use engine::model::{Forward, Model, SequenceStep};
use engine::{Isa, KvCache, KvFormat, OpenOptions, Pool};
use proptest::prelude::*;
use stdx::random::Random;

use crate::grown;
use crate::tiny::{LLAMA, QWEN2, QWEN3, Recipe, Tiny, WIDE};

/// Tokens that each sequence generates.
const GENERATED: usize = 5;

fn recipes() -> impl Strategy<Value = Recipe> {
    let floats = prop::sample::select(vec![LLAMA, QWEN2, QWEN3, Recipe { kv_heads: 1, ..LLAMA }]);
    let formats =
        [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K, GgmlType::Q3K];
    let quantized = prop::sample::select(formats.to_vec()).prop_map(|format| Recipe {
        format,
        layers: 1,
        feed_forward: 256,
        ..WIDE
    });
    (prop_oneof![floats, quantized], any::<u64>()).prop_map(|(recipe, seed)| Recipe { seed, ..recipe })
}

/// One after the other, a prompt at once, on one thread.
fn plainly(model: &Model, format: KvFormat, prompt: &[u32]) -> Vec<u32> {
    let pool = Pool::new(1);
    let mut cache = KvCache::new(model, format, prompt.len() + GENERATED, 1);
    let mut sequence = cache.open().expect("room for one");
    assert!(cache.reserve(&mut sequence, prompt.len() + GENERATED));
    let mut forward = Forward::new(model, &pool, 4096);
    let (mut tokens, mut done) = (prompt.to_vec(), 0);
    while tokens.len() < prompt.len() + GENERATED {
        let step = SequenceStep { tokens: &tokens[done..], position: done, sequence: &sequence, outputs: 1 };
        let next = largest(forward.step(&[step], &mut cache).row(0));
        done = tokens.len();
        tokens.push(next);
    }
    tokens.split_off(prompt.len())
}

fn largest(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.expect("a vocabulary") as u32
}

/// All at once, in random pieces, some of them waiting in some steps.
fn in_random_batches(
    model: &Model,
    format: KvFormat,
    prompts: &[Vec<u32>],
    threads: usize,
    random: &mut Random,
) -> Vec<Vec<u32>> {
    let pool = Pool::new(threads);
    let room: usize = prompts.iter().map(|p| p.len() + GENERATED + 128).sum();
    let mut cache = KvCache::new(model, format, room, prompts.len());
    let mut sequences: Vec<_> = prompts.iter().map(|_| cache.open().expect("room for all")).collect();
    let mut tokens = prompts.to_vec();
    let mut done = vec![0; prompts.len()];
    let mut forward = Forward::new(model, &pool, 4096);
    let length = |i: usize| prompts[i].len() + GENERATED;
    while (0..prompts.len()).any(|i| tokens[i].len() < length(i)) {
        let mut counts = vec![0; prompts.len()];
        for i in 0..prompts.len() {
            if tokens[i].len() < length(i) && random.below(4) > 0 {
                counts[i] = 1 + random.below((tokens[i].len() - done[i]) as u64) as usize;
            }
            assert!(cache.reserve(&mut sequences[i], done[i] + counts[i]));
        }
        let busy: Vec<usize> = (0..prompts.len()).filter(|&i| counts[i] > 0).collect();
        let step = |&i: &usize| SequenceStep {
            tokens: &tokens[i][done[i]..][..counts[i]],
            position: done[i],
            sequence: &sequences[i],
            outputs: usize::from(done[i] + counts[i] == tokens[i].len()),
        };
        let batch: Vec<_> = busy.iter().map(step).collect();
        let logits = forward.step(&batch, &mut cache);
        let chosen: Vec<u32> = (0..logits.count()).map(|r| largest(logits.row(r))).collect();
        let mut chosen = chosen.into_iter();
        for i in busy {
            done[i] += counts[i];
            if done[i] == tokens[i].len() {
                tokens[i].push(chosen.next().expect("a row for each output"));
            }
        }
    }
    prompts.iter().zip(tokens).map(|(prompt, mut tokens)| tokens.split_off(prompt.len())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn greedy_tokens_do_not_depend_on_the_schedule(
        recipe in recipes(),
        format in prop::sample::select(KvFormat::ALL.to_vec()),
        lengths in prop::collection::vec(1usize..200, 1..5),
        threads in 1usize..5,
        seed in any::<u64>(),
    ) {
        let tiny = Tiny::new(recipe);
        let mut random = Random::new(seed);
        let prompts: Vec<Vec<u32>> = lengths
            .iter()
            .map(|&n| (0..n).map(|_| random.below(recipe.vocabulary as u64) as u32).collect())
            .collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let options = OpenOptions { isa, ..OpenOptions::default() };
            let model = Model::from_gguf(tiny.gguf(), &options, &Pool::new(2), &mut |_| ()).expect("a sound model");
            let plain: Vec<_> = prompts.iter().map(|prompt| plainly(&model, format, prompt)).collect();
            let batched = in_random_batches(&model, format, &prompts, threads, &mut random);
            prop_assert_eq!(batched, plain, "{}", isa);
        }
    }
}

/// Every family, and all of them.
#[test]
fn greedy_tokens_of_every_family_do_not_depend_on_the_schedule() {
    let names: Vec<_> = engine::model::families::all().map(|(name, _)| name).collect();
    for name in &names {
        assert!(grown::ALL.iter().any(|species| species.family == *name), "no model of family {name}");
    }
    for (i, &species) in grown::ALL.iter().enumerate() {
        for seed in 0..SEEDS {
            let gguf = grown::grow(species, seed * 100 + i as u64);
            let mut random = Random::new(seed ^ 0xdead);
            let prompts: Vec<Vec<u32>> = (0..3)
                .map(|_| {
                    let len = 1 + random.below(120) as usize;
                    (0..len).map(|_| random.below(grown::VOCABULARY as u64) as u32).collect()
                })
                .collect();
            let format = KvFormat::ALL[random.below(KvFormat::ALL.len() as u64) as usize];
            let model = Model::from_gguf(gguf, &OpenOptions::default(), &Pool::new(2), &mut |_| ());
            let model = model.expect("a sound model");
            let plain: Vec<_> = prompts.iter().map(|prompt| plainly(&model, format, prompt)).collect();
            for threads in [1, 3] {
                let batched = in_random_batches(&model, format, &prompts, threads, &mut random);
                assert_eq!(batched, plain, "{}, seed {seed}, {format}", species.family);
            }
            let varied: std::collections::HashSet<_> = plain.iter().flatten().collect();
            assert!(varied.len() > 2, "{} says hardly anything: {plain:?}", species.family);
        }
    }
}

/// Random models of each kind.
const SEEDS: u64 = 6;
