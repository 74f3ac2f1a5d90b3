use crate::{Random, for_each_isa};
use half::{bf16, f16};
use kernels::attention::{
    Chunk, HeadNorms, KvFormat, KvLayer, KvShape, PAGE, Pairing, Rotary, attend, rotate_and_store,
};
use kernels::ops::Rows;
use kernels::{Context, Pool};

#[derive(Clone, Copy)]
struct Case {
    format: KvFormat,
    heads: usize,
    group: usize,
    dim: usize,
    tokens: usize,
}

fn random_rows(count: usize, cols: usize, seed: u64) -> Rows {
    let mut random = Random(seed);
    let mut rows = Rows::new(count, cols);
    for t in 0..count {
        rows.row_mut(t).fill_with(|| random.signed() * 2.0);
    }
    rows
}

/// Runs a sequence through the cache in chunks of the given sizes and returns the attention output of all tokens.
fn run(context: Context<'_>, case: &Case, chunks: &[usize], pages: &[u32]) -> Vec<Vec<f32>> {
    let (kv, all) = (case.heads * case.dim, case.heads * case.group * case.dim);
    let mut layer =
        KvLayer::new(KvShape { format: case.format, pages: 16, heads: case.heads, head_dim: case.dim });
    let (q, k, v) =
        (random_rows(case.tokens, all, 1), random_rows(case.tokens, kv, 2), random_rows(case.tokens, kv, 3));
    let mut result = Vec::new();
    let mut position = 0;
    for &tokens in chunks {
        let part = |rows: &Rows| {
            let mut part = Rows::new(tokens, rows.cols());
            for t in 0..tokens {
                part.row_mut(t).copy_from_slice(rows.row(position + t));
            }
            part
        };
        let (mut q, mut k, v) = (part(&q), part(&k), part(&v));
        let chunk = [Chunk { row: 0, tokens, position, pages }];
        rotate_and_store(context, &mut q, &mut k, &v, None, None, &mut layer, &chunk);
        let mut out = Rows::new(tokens, all);
        attend(context, &layer, &q, (case.dim as f32).sqrt().recip(), &chunk, &mut out);
        result.extend((0..tokens).map(|t| out.row(t).to_vec()));
        position += tokens;
    }
    result
}

/// What is stored for a key or value.
fn stored(format: KvFormat, head: &[f32]) -> Vec<f64> {
    match format {
        KvFormat::F32 => head.iter().map(|&x| f64::from(x)).collect(),
        KvFormat::F16 => head.iter().map(|&x| f16::from_f32(x).to_f64()).collect(),
        KvFormat::BF16 => head.iter().map(|&x| bf16::from_f32(x).to_f64()).collect(),
        KvFormat::Q8_0 => quantized(head, |amax| f16::from_f32(amax / 127.0).to_f32()),
    }
}

/// Groups of 32 as 8-bit multiples of a scale, which `scale` makes of the largest magnitude.
fn quantized(x: &[f32], scale: impl Fn(f32) -> f32) -> Vec<f64> {
    let group = |x: &[f32]| -> Vec<f64> {
        let d = scale(x.iter().fold(0.0, |a, x| x.abs().max(a)));
        x.iter().map(|x| f64::from((x / d).round_ties_even()) * f64::from(d)).collect()
    };
    x.chunks(32).flat_map(group).collect()
}

fn exact(case: &Case) -> Vec<Vec<f64>> {
    let (dim, scale) = (case.dim, (case.dim as f32).sqrt().recip());
    let (kv, all) = (case.heads * dim, case.heads * case.group * dim);
    let (q, k, v) =
        (random_rows(case.tokens, all, 1), random_rows(case.tokens, kv, 2), random_rows(case.tokens, kv, 3));
    let heads = |rows: &Rows, t: usize| -> Vec<Vec<f64>> {
        rows.row(t).chunks(dim).map(|head| stored(case.format, head)).collect()
    };
    let k: Vec<_> = (0..case.tokens).map(|t| heads(&k, t)).collect();
    let v: Vec<_> = (0..case.tokens).map(|t| heads(&v, t)).collect();
    (0..case.tokens)
        .map(|t| {
            let mut out = Vec::new();
            for (h, q) in q.row(t).chunks(dim).enumerate() {
                let q: Vec<f32> = q.iter().map(|q| q * scale).collect();
                let q = match case.format {
                    KvFormat::Q8_0 => quantized(&q, |amax| amax / 127.0),
                    _ => q.iter().map(|&q| f64::from(q)).collect(),
                };
                let kv_head = h / case.group;
                let score = |p: usize| q.iter().zip(&k[p][kv_head]).map(|(q, k)| q * k).sum::<f64>();
                let scores: Vec<f64> = (0..=t).map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..dim).map(|c| {
                    let mix = |(w, v): (&f64, &Vec<Vec<f64>>)| w * v[kv_head][c];
                    weights.iter().zip(&v).map(mix).sum::<f64>() / sum
                }));
            }
            out
        })
        .collect()
}

#[test]
fn attention_matches_double_precision() {
    let cases = [
        Case { format: KvFormat::F16, heads: 2, group: 4, dim: 64, tokens: 200 },
        Case { format: KvFormat::F16, heads: 1, group: 7, dim: 16, tokens: 30 },
        Case { format: KvFormat::F16, heads: 4, group: 1, dim: 8, tokens: 140 },
        Case { format: KvFormat::F16, heads: 1, group: 16, dim: 80, tokens: 20 },
        Case { format: KvFormat::F16, heads: 2, group: 1, dim: 96, tokens: 40 },
        Case { format: KvFormat::F16, heads: 1, group: 2, dim: 16, tokens: 700 },
    ];
    // The longest in halves only: an emulator takes its time.
    let cases = cases.iter().enumerate().flat_map(|(i, &case)| {
        let formats = if i == 5 { &[KvFormat::F16][..] } else { &KvFormat::ALL };
        formats.iter().map(move |&format| Case { format, ..case })
    });
    let cases: Vec<_> = cases.map(|case| (exact(&case), case)).collect();
    for_each_isa("attention_matches_double_precision", |context| {
        for (exact, case) in &cases {
            // An element between two 8-bit values may be rounded to either, which moves a score by up to its scale.
            let tolerance = if case.format == KvFormat::Q8_0 { 4e-3 } else { 2e-5 };
            let got = run(context, case, &[case.tokens], &[3, 1, 4, 0, 5, 9, 2]);
            let (mut error, mut size) = (0.0, 0.0);
            for (t, (got, want)) in got.iter().zip(exact).enumerate() {
                for (got, want) in got.iter().zip(want) {
                    let difference = (f64::from(*got) - want).abs();
                    assert!(difference < tolerance, "{} token {t}: {got} {want}", case.format);
                    (error, size) = (error + difference * difference, size + want * want);
                }
            }
            assert!(error / size < 1e-8, "{}: normalised error {}", case.format, error / size);
        }
    });
}

#[test]
fn attention_does_not_depend_on_how_a_sequence_is_cut_or_where_it_lies() {
    for_each_isa("attention_does_not_depend_on_how_a_sequence_is_cut_or_where_it_lies", |context| {
        for format in [KvFormat::F16, KvFormat::Q8_0] {
            let case = Case { format, heads: 2, group: 3, dim: 32, tokens: 5 * PAGE + 3 };
            let whole = run(context, &case, &[case.tokens], &[0, 1, 2, 3, 4, 5]);
            let mut ones = vec![100; 6];
            ones.extend([1; 43]);
            assert_eq!(run(context, &case, &ones, &[15, 3, 7, 0, 11, 2]), whole);
            assert_eq!(run(context, &case, &[7, 300, 1, 2, 333], &[5, 4, 3, 2, 1, 0]), whole);
        }
    });
}

#[test]
fn attention_does_not_depend_on_the_number_of_threads() {
    // One head and few rows at the end: with many threads, spans are shared out.
    for_each_isa("attention_does_not_depend_on_the_number_of_threads", |context| {
        for format in [KvFormat::F16, KvFormat::Q8_0] {
            let case = Case { format, heads: 1, group: 2, dim: 16, tokens: 9 * PAGE + 5 };
            let pages: Vec<u32> = (0..10).rev().collect();
            let chunks = [9 * PAGE, 3, 1, 1];
            let alone = Pool::new(1);
            let one = run(Context { pool: &alone, ..context }, &case, &chunks, &pages);
            for threads in [2, 5] {
                let pool = Pool::new(threads);
                assert_eq!(run(Context { pool: &pool, ..context }, &case, &chunks, &pages), one, "{threads}");
            }
        }
    });
}

#[test]
fn rotating_keeps_lengths_and_depends_on_the_distance_only() {
    for_each_isa("rotating_keeps_lengths_and_depends_on_the_distance_only", |context| {
        for pairing in [Pairing::Adjacent, Pairing::Halves] {
            let dim = 16;
            let frequencies: Vec<f32> = (0..6).map(|i| 10f32.powf(-(i as f32) / 3.0)).collect();
            let turned = |positions: [usize; 2]| {
                let mut layer =
                    KvLayer::new(KvShape { format: KvFormat::F16, pages: 1, heads: 1, head_dim: dim });
                let rotary = Rotary::new(pairing, &frequencies, positions.into_iter());
                let (mut q, mut k, v) =
                    (random_rows(2, dim, 5), random_rows(2, dim, 6), random_rows(2, dim, 7));
                let chunk = [Chunk { row: 0, tokens: 2, position: 0, pages: &[0] }];
                rotate_and_store(context, &mut q, &mut k, &v, None, Some(&rotary), &mut layer, &chunk);
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                (dot(q.row(1), k.row(0)), dot(q.row(0), q.row(0)), q.row(0)[12..].to_vec())
            };
            let (near, far) = (turned([3, 8]), turned([103, 108]));
            assert!((near.0 - far.0).abs() < 1e-4, "{pairing:?}: {} {}", near.0, far.0);
            assert!((near.1 - turned([0, 0]).1).abs() < 1e-4);
            assert_eq!(near.2, random_rows(2, dim, 5).row(0)[12..], "elements past the turned ones stay");
        }
    });
}

#[test]
fn head_norms_come_before_the_cache() {
    for_each_isa("head_norms_come_before_the_cache", |context| {
        let mut layer = KvLayer::new(KvShape { format: KvFormat::F16, pages: 1, heads: 2, head_dim: 16 });
        let (mut q, mut k, v) = (random_rows(3, 64, 1), random_rows(3, 32, 2), random_rows(3, 32, 3));
        let norms = HeadNorms { query: &[1.0; 16], key: &[2.0; 16], epsilon: 0.0 };
        let chunk = [Chunk { row: 0, tokens: 3, position: 0, pages: &[0] }];
        rotate_and_store(context, &mut q, &mut k, &v, Some(norms), None, &mut layer, &chunk);
        let mean = |head: &[f32]| head.iter().map(|x| x * x).sum::<f32>() / 16.0;
        assert!(q.row(1).chunks(16).all(|h| (mean(h) - 1.0).abs() < 1e-5));
        assert!(k.row(2).chunks(16).all(|h| (mean(h) - 4.0).abs() < 1e-5));
    });
}
