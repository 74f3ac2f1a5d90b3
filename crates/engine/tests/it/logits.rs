//! What a model computes: compared with the naive reference, and with itself however the work is cut.

use engine::gguf::GgmlType;
use engine::model::{Forward, Model, SequenceStep};
use engine::{Isa, KvCache, KvFormat, OpenOptions, Pool};
use kernels::Format;
use stdx::random::Random;

use crate::tiny::{LLAMA, QWEN2, QWEN3, Recipe, Tiny, WIDE};

/// Only the cache rounds (to F16).
const NMSE_MAX_FLOAT: f64 = 1e-5;
/// Activations are rounded to the 8 significant bits of bfloat16 as well.
const NMSE_MAX_BF16: f64 = 1e-4;
/// Activations are rounded to 8-bit integers as well.
const NMSE_MAX_QUANTIZED: f64 = 2e-3;

fn open(tiny: &Tiny, isa: Isa, pool: &Pool) -> Model {
    let options = OpenOptions { isa, ..OpenOptions::default() };
    Model::from_gguf(tiny.gguf(), &options, pool, &mut |_| ()).expect("a sound model")
}

fn tokens(count: usize, seed: u64, recipe: &Recipe) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(recipe.vocabulary as u64) as u32).collect()
}

/// The logits after every token, computed in pieces of the lengths of `cut`, the last of which repeats.
fn logits(model: &Model, pool: &Pool, tokens: &[u32], cut: &[usize]) -> Vec<Vec<f32>> {
    among_others(model, pool, KvFormat::F16, &[tokens], &[cut]).remove(0)
}

/// The logits of several sequences that compute at once, each cut in its own way.
fn among_others(
    model: &Model,
    pool: &Pool,
    format: KvFormat,
    sequences: &[&[u32]],
    cuts: &[&[usize]],
) -> Vec<Vec<Vec<f32>>> {
    let room = sequences.iter().map(|s| s.len() + 128).sum();
    let mut cache = KvCache::new(model, format, room, sequences.len());
    let mut forward = Forward::new(model, pool, 4096);
    let mut memory: Vec<_> = sequences.iter().map(|_| cache.open()).collect();
    let mut done = vec![0; sequences.len()];
    let mut out = vec![Vec::new(); sequences.len()];
    for step in 0.. {
        let piece = |i: usize| *cuts[i].get(step).or(cuts[i].last()).expect("a cut has a piece");
        let left = |i: usize| sequences[i].len() - done[i];
        let counts: Vec<usize> = (0..sequences.len()).map(|i| piece(i).min(left(i))).collect();
        for (i, count) in counts.iter().enumerate() {
            assert!(cache.reserve(&mut memory[i], done[i] + count), "the cache is large enough");
        }
        let busy = (0..sequences.len()).filter(|&i| counts[i] > 0);
        let batch: Vec<_> = busy
            .map(|i| SequenceStep {
                tokens: &sequences[i][done[i]..][..counts[i]],
                position: done[i],
                sequence: &memory[i],
                adapters: &[],
                outputs: counts[i],
            })
            .collect();
        if batch.is_empty() {
            break;
        }
        let rows = forward.step(&batch, &mut cache);
        let mut row = 0;
        for (i, count) in counts.iter().enumerate() {
            out[i].extend((row..row + count).map(|r| rows.row(r).to_vec()));
            row += count;
            done[i] += count;
        }
        assert_eq!(row, rows.count());
    }
    out
}

/// The squared error over the squared values.
fn nmse(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut error, mut power) = (0.0, 0.0);
    for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
        error += (f64::from(*got) - want).powi(2);
        power += want * want;
    }
    error / power
}

fn check_against_reference(recipe: Recipe, nmse_max: f64) {
    let tiny = Tiny::new(recipe);
    let tokens = tokens(24, 5, &recipe);
    let want = tiny.reference(&tokens);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let pool = Pool::new(2);
        let got = logits(&open(&tiny, isa, &pool), &pool, &tokens, &[24]);
        let nmse = nmse(&got, &want);
        println!("{} {} {isa}: {nmse:.1e}", recipe.family, recipe.format);
        assert!(nmse <= nmse_max, "{nmse:.2e} is more than {nmse_max:.0e} on {isa} for {recipe:?}");
    }
}

#[test]
fn every_family_computes_what_its_definition_says() {
    let recipes = [
        LLAMA,
        Recipe { tied: false, ..LLAMA },
        Recipe { extras: true, ..LLAMA },
        Recipe { rope_dims: 8, ..LLAMA },
        Recipe { kv_heads: 4, ..LLAMA },
        Recipe { kv_heads: 1, layers: 1, ..LLAMA },
        // Nothing is a multiple of a strip or a register.
        Recipe { width: 40, head_dim: 10, rope_dims: 10, feed_forward: 52, vocabulary: 101, ..LLAMA },
        QWEN2,
        Recipe { tied: true, ..QWEN2 },
        QWEN3,
        Recipe { tied: false, biases: true, ..QWEN3 },
    ];
    for recipe in recipes {
        check_against_reference(recipe, NMSE_MAX_FLOAT);
    }
}

#[test]
fn every_format_computes_what_its_weights_say() {
    for format in Format::ALL {
        let ty = GgmlType::from_name(format.name()).expect("formats have the names of types");
        let nmse_max = match format {
            Format::F32 | Format::F16 => NMSE_MAX_FLOAT,
            Format::BF16 => NMSE_MAX_BF16,
            _ => NMSE_MAX_QUANTIZED,
        };
        check_against_reference(Recipe { format: ty, layers: 1, ..WIDE }, nmse_max);
    }
}

/// Fails unless every bit is the same.
fn assert_same(got: &[Vec<f32>], want: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (position, (got, want)) in got.iter().zip(want).enumerate() {
        let differs = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits());
        assert_eq!(differs, None, "the first logit that differs at position {position}: {what}");
    }
}

fn check_same_however_cut(recipe: Recipe, format: KvFormat, count: usize) {
    let tiny = Tiny::new(recipe);
    let (own, other, third) =
        (tokens(count, 1, &recipe), tokens(count / 3, 2, &recipe), tokens(count / 2, 3, &recipe));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let pool = Pool::new(1);
        let model = open(&tiny, isa, &pool);
        let logits =
            |pool: &Pool, cut: &[usize]| among_others(&model, pool, format, &[&own], &[cut]).remove(0);
        let whole = logits(&pool, &[count]);
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            let what =
                |how: &str| format!("{how}, {threads} threads, {isa}, {}, cache {format}", recipe.format);
            assert_same(&logits(&pool, &[count]), &whole, &what("whole"));
            assert_same(&logits(&pool, &[1, 7, 130, 64]), &whole, &what("in chunks"));
            assert_same(&logits(&pool, &[1]), &whole, &what("token by token"));
            let batch = among_others(
                &model,
                &pool,
                format,
                &[&other, &own, &third],
                &[&[5, 1], &[3, 50, 13], &[count]],
            );
            assert_same(&batch[1], &whole, &what("among others"));
        }
    }
}

#[test]
fn logits_do_not_depend_on_chunks_batches_or_threads() {
    // Longer than a page of the cache and than what is summed with one maximum (512 positions).
    check_same_however_cut(LLAMA, KvFormat::F16, 530);
    check_same_however_cut(QWEN3, KvFormat::F16, 150);
    check_same_however_cut(QWEN3, KvFormat::Q8_0, 530);
    for format in [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4K, GgmlType::Q6K, GgmlType::Q3K] {
        let recipe = Recipe { format, layers: 1, feed_forward: 256, ..WIDE };
        check_same_however_cut(recipe, KvFormat::F16, 140);
    }
}

#[test]
fn logits_do_not_depend_on_how_many_are_wanted() {
    let tiny = Tiny::new(LLAMA);
    let (long, short) = (tokens(150, 1, &LLAMA), tokens(7, 2, &LLAMA));
    let pool = Pool::new(2);
    let model = open(&tiny, Isa::detect(), &pool);
    let all = [logits(&model, &pool, &long, &[150]), logits(&model, &pool, &short, &[7])];
    let mut cache = KvCache::new(&model, KvFormat::F16, 400, 2);
    let mut memory = [(); 2].map(|()| cache.open());
    for wanted in [[1, 1], [0, 1], [3, 0], [150, 2], [0, 0]] {
        let batch: Vec<_> = [&long, &short]
            .into_iter()
            .zip(&mut memory)
            .zip(wanted)
            .map(|((tokens, sequence), outputs)| {
                assert!(cache.reserve(sequence, tokens.len()));
                SequenceStep { tokens, position: 0, sequence, adapters: &[], outputs }
            })
            .collect();
        let mut forward = Forward::new(&model, &pool, 4096);
        let rows = forward.step(&batch, &mut cache);
        let got: Vec<_> = (0..rows.count()).map(|r| rows.row(r).to_vec()).collect();
        let tail = |i: usize| all[i][all[i].len() - wanted[i]..].to_vec();
        assert_same(&got, &[tail(0), tail(1)].concat(), &format!("{wanted:?} wanted"));
    }
}

#[test]
fn a_cache_of_8_bits_changes_logits_by_little() {
    let tiny = Tiny::new(LLAMA);
    let tokens = tokens(200, 9, &LLAMA);
    let pool = Pool::new(2);
    let model = open(&tiny, Isa::detect(), &pool);
    let with = |format| among_others(&model, &pool, format, &[&tokens], &[&[200]]).remove(0);
    let exact: Vec<Vec<f64>> =
        with(KvFormat::F32).iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
    let error = nmse(&with(KvFormat::Q8_0), &exact);
    println!("{error:.1e}");
    assert!(error > 0.0 && error < 1e-4, "{error:.1e}");
}
