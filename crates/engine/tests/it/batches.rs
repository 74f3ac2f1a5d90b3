//! Greedy generation is the same however the work is cut and whoever else is at work, over random models and schedules.

use engine::gguf::GgmlType;
use engine::model::{AdaptersKey, Forward, Model, SequenceStep};
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
    let mut sequence = cache.open();
    assert!(cache.reserve(&mut sequence, prompt.len() + GENERATED));
    let mut forward = Forward::new(model, &pool, 4096);
    let (mut tokens, mut done) = (prompt.to_vec(), 0);
    while tokens.len() < prompt.len() + GENERATED {
        let step = SequenceStep {
            tokens: &tokens[done..],
            position: done,
            sequence: &sequence,
            adapters: &[],
            outputs: 1,
        };
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
    let mut sequences: Vec<_> = prompts.iter().map(|_| cache.open()).collect();
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
            adapters: &[],
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
        assert!(
            grown::ALL.iter().chain(grown::ENCODERS).any(|species| species.family == *name),
            "no model of family {name}"
        );
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

/// Goes on from what is in the cache, in random pieces, and leaves behind what it computed. Returns the prompt and what was
/// generated, and how much of the prompt was known.
fn on_from_cache(
    forward: &mut Forward<'_>,
    cache: &mut KvCache,
    prompt: &[u32],
    random: &mut Random,
) -> (Vec<u32>, usize) {
    let length = prompt.len() + GENERATED;
    let mut sequence = cache.resume(prompt, AdaptersKey::default(), length).expect("room for one");
    let known = sequence.known();
    let (mut tokens, mut done) = (prompt.to_vec(), known);
    let keep_at = 1 + random.below(prompt.len() as u64) as usize;
    while tokens.len() < length {
        let mut end = done + 1 + random.below((tokens.len() - done) as u64) as usize;
        if done < keep_at && keep_at < end {
            end = keep_at;
        }
        let outputs = usize::from(end == tokens.len());
        let step = SequenceStep {
            tokens: &tokens[done..end],
            position: done,
            sequence: &sequence,
            adapters: &[],
            outputs,
        };
        let logits = forward.step(&[step], cache);
        done = end;
        if outputs > 0 {
            tokens.push(largest(logits.row(0)));
        }
        if done == keep_at {
            cache.keep_state(&mut sequence, done);
        }
    }
    cache.close(sequence, &tokens[..done]);
    (tokens, known)
}

/// Sequences that begin like earlier ones, in a cache too small for all of them, before and after it was saved.
#[test]
fn greedy_tokens_of_every_family_do_not_depend_on_what_was_in_the_cache() {
    let folder = crate::Folder::new("kept");
    for (i, &species) in grown::ALL.iter().enumerate() {
        let mut random = Random::new(i as u64 + 77);
        let format = [KvFormat::F16, KvFormat::Q8_0][i % 2];
        let pool = Pool::new(2);
        let model = Model::from_gguf(grown::grow(species, 5), &OpenOptions::default(), &pool, &mut |_| ());
        let model = model.expect("a sound model");
        let new_cache = || KvCache::new(&model, format, 8 * engine::PAGE, 1);
        let mut cache = new_cache();
        let mut forward = Forward::new(&model, &pool, 4096);
        let mut earlier: Vec<Vec<u32>> = Vec::new();
        let mut all_known = 0;
        for round in 0..8 {
            let mut prompt = Vec::new();
            if let Some(last) = earlier.last() {
                let other = &earlier[random.below(earlier.len() as u64) as usize];
                let begins_like = if round % 2 == 0 { last } else { other };
                prompt.extend(&begins_like[..1 + random.below(begins_like.len() as u64) as usize]);
            }
            prompt.truncate(600);
            prompt.extend((0..1 + random.below(200)).map(|_| random.below(grown::VOCABULARY as u64) as u32));
            let (tokens, known) = on_from_cache(&mut forward, &mut cache, &prompt, &mut random);
            let expected = plainly(&model, format, &prompt);
            assert_eq!(tokens[prompt.len()..], expected, "{}, round {round}, {known} known", species.family);
            all_known += known;
            earlier.push(tokens);
            if round == 4 {
                let path = folder.path().join(format!("{i}.kv"));
                let saved = cache.save(&model, 4096, &path, u64::MAX).expect("the folder can be written");
                cache = new_cache();
                assert_eq!(cache.load(&model, 4096, &path).expect("just saved"), saved);
                let last = earlier.last().expect("some rounds");
                let (_, known) = on_from_cache(&mut forward, &mut cache, last, &mut random);
                assert!(
                    known >= last.len() - GENERATED,
                    "{}: {known} of {} known",
                    species.family,
                    last.len()
                );
            }
        }
        let least = if model.has_states() { 1 } else { 100 };
        assert!(all_known >= least, "{}: {all_known} tokens were known", species.family);
    }
}

/// Steps with guesses behind the last token, of which some come true.
#[test]
fn greedy_tokens_do_not_depend_on_what_was_guessed() {
    for (i, &species) in grown::ALL.iter().enumerate() {
        let mut random = Random::new(i as u64 + 99);
        let pool = Pool::new(2);
        let model = Model::from_gguf(grown::grow(species, 6), &OpenOptions::default(), &pool, &mut |_| ());
        let model = model.expect("a sound model");
        if model.has_states() {
            continue;
        }
        let prompt: Vec<u32> = (0..150).map(|_| random.below(grown::VOCABULARY as u64) as u32).collect();
        let expected = plainly(&model, KvFormat::F16, &prompt);
        let mut cache = KvCache::new(&model, KvFormat::F16, prompt.len() + GENERATED + 8, 1);
        let mut sequence = cache.open();
        assert!(cache.reserve(&mut sequence, prompt.len() + GENERATED + 8));
        let mut forward = Forward::new(&model, &pool, 4096);
        let (mut tokens, mut done) = (prompt.clone(), 0);
        while tokens.len() < prompt.len() + GENERATED {
            let generated = tokens.len() - prompt.len();
            let mut guesses: Vec<u32> = expected[generated..].to_vec();
            guesses.truncate(random.below(5) as usize);
            if let Some(guess) = guesses.last_mut() {
                *guess = random.below(grown::VOCABULARY as u64) as u32;
            }
            let all = [&tokens[done..], &guesses].concat();
            let outputs = guesses.len() + 1;
            let step =
                SequenceStep { tokens: &all, position: done, sequence: &sequence, adapters: &[], outputs };
            let logits = forward.step(&[step], &mut cache);
            done = tokens.len();
            for row in 0..outputs {
                let next = largest(logits.row(row));
                tokens.push(next);
                if guesses.get(row) != Some(&next) {
                    break;
                }
                done += 1;
            }
        }
        tokens.truncate(prompt.len() + GENERATED);
        assert_eq!(tokens[prompt.len()..], expected, "{}", species.family);
    }
}

/// Random models of each kind.
const SEEDS: u64 = 6;
