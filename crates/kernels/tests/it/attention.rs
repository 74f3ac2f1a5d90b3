use crate::{Random, for_each_isa};
use half::{bf16, f16};
use kernels::Context;
use kernels::attention::{
    Chunk, HeadNorms, KvFormat, KvLayer, KvShape, PAGE, Pairing, Rotary, attend, rotate_and_store,
};
use kernels::ops::Rows;

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

fn exact(case: &Case) -> Vec<Vec<f64>> {
    let (kv, all) = (case.heads * case.dim, case.heads * case.group * case.dim);
    let half = |x: f32| match case.format {
        KvFormat::F32 => f64::from(x),
        KvFormat::F16 => f16::from_f32(x).to_f64(),
        KvFormat::BF16 => bf16::from_f32(x).to_f64(),
    };
    let (q, k, v) =
        (random_rows(case.tokens, all, 1), random_rows(case.tokens, kv, 2), random_rows(case.tokens, kv, 3));
    (0..case.tokens)
        .map(|t| {
            let mut out = Vec::new();
            for h in 0..case.heads * case.group {
                let kv_head = h / case.group * case.dim;
                let score = |p: usize| {
                    let pairs = q.row(t)[h * case.dim..][..case.dim].iter().zip(&k.row(p)[kv_head..]);
                    pairs.map(|(&q, &k)| f64::from(q) * half(k)).sum::<f64>() / (case.dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=t).map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..case.dim {
                    let mix = |(p, w): (usize, &f64)| w * half(v.row(p)[kv_head + c]);
                    out.push(weights.iter().enumerate().map(mix).sum::<f64>() / sum);
                }
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
        Case { format: KvFormat::F16, heads: 1, group: 2, dim: 16, tokens: 700 },
    ];
    let formats = [KvFormat::F16, KvFormat::F32, KvFormat::BF16];
    // The longest in halves only: an emulator takes its time.
    let cases = cases.iter().enumerate().flat_map(|(i, &case)| {
        formats[..if i == 4 { 1 } else { 3 }].iter().map(move |&format| Case { format, ..case })
    });
    let cases: Vec<_> = cases.map(|case| (exact(&case), case)).collect();
    for_each_isa("attention_matches_double_precision", |context| {
        for (exact, case) in &cases {
            let got = run(context, case, &[case.tokens], &[3, 1, 4, 0, 5, 9, 2]);
            for (t, (got, want)) in got.iter().zip(exact).enumerate() {
                for (got, want) in got.iter().zip(want) {
                    assert!((f64::from(*got) - want).abs() < 2e-5, "token {t}: {got} {want}");
                }
            }
        }
    });
}

#[test]
fn attention_does_not_depend_on_how_a_sequence_is_cut_or_where_it_lies() {
    for_each_isa("attention_does_not_depend_on_how_a_sequence_is_cut_or_where_it_lies", |context| {
        let case = Case { format: KvFormat::F16, heads: 2, group: 3, dim: 32, tokens: 5 * PAGE + 3 };
        let whole = run(context, &case, &[case.tokens], &[0, 1, 2, 3, 4, 5]);
        let mut ones = vec![100; 6];
        ones.extend([1; 43]);
        assert_eq!(run(context, &case, &ones, &[15, 3, 7, 0, 11, 2]), whole);
        assert_eq!(run(context, &case, &[7, 300, 1, 2, 333], &[5, 4, 3, 2, 1, 0]), whole);
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
