use crate::{Random, for_each_isa};
use half::{bf16, f16};
use kernels::attention::{
    Chunk, HeadNorms, KvFormat, KvLayer, KvShape, Mask, PAGE, Pairing, Preparation, Rotary, Scoring, attend,
    rotate, rotate_and_store, turn_pages,
};
use kernels::ops::Rows;
use kernels::{Context, Pool};

#[derive(Clone, Copy)]
struct Case {
    format: KvFormat,
    heads: usize,
    group: usize,
    dim: usize,
    value_dim: usize,
    tokens: usize,
    mask: Mask,
    soft_cap: Option<f32>,
    sinks: bool,
    slopes: bool,
}

/// Causal, and with nothing special.
const PLAIN: Case = Case {
    format: KvFormat::F16,
    heads: 1,
    group: 1,
    dim: 16,
    value_dim: 16,
    tokens: 1,
    mask: Mask::Causal,
    soft_cap: None,
    sinks: false,
    slopes: false,
};

impl Case {
    fn shape(&self, pages: usize) -> KvShape {
        let &Case { format, heads, dim: key_dim, value_dim, .. } = self;
        KvShape { format, pages, heads, key_dim, value_dim }
    }

    fn all_sinks(&self) -> Option<Vec<f32>> {
        self.sinks.then(|| (0..self.heads * self.group).map(|h| h as f32 * 0.5 - 1.0).collect())
    }

    fn all_slopes(&self) -> Option<Vec<f32>> {
        self.slopes.then(|| (0..self.heads * self.group).map(|h| 0.5f32.powi(h as i32 + 1)).collect())
    }

    fn scale(&self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }
}

fn random_rows(count: usize, cols: usize, seed: u64) -> Rows {
    let mut random = Random(seed);
    let mut rows = Rows::new(count, cols);
    for t in 0..count {
        rows.row_mut(t).fill_with(|| random.signed() * 2.0);
    }
    rows
}

/// Queries, keys and values of all tokens.
fn random_input(case: &Case) -> [Rows; 3] {
    let (heads, tokens) = (case.heads, case.tokens);
    [
        random_rows(tokens, heads * case.group * case.dim, 1),
        random_rows(tokens, heads * case.dim, 2),
        random_rows(tokens, heads * case.value_dim, 3),
    ]
}

/// Runs a sequence through the cache in chunks of the given sizes and returns the attention output of all tokens.
fn run(context: Context<'_>, case: &Case, chunks: &[usize], pages: &[u32]) -> Vec<Vec<f32>> {
    let mut layer = KvLayer::new(case.shape(16));
    let [q, k, v] = random_input(case);
    let sinks = case.all_sinks();
    let slopes = case.all_slopes();
    let scoring = Scoring {
        scale: case.scale(),
        soft_cap: case.soft_cap,
        mask: case.mask,
        sinks: sinks.as_deref(),
        slopes: slopes.as_deref(),
    };
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
        rotate_and_store(context, &mut q, &mut k, &v, Preparation::default(), &mut layer, &chunk);
        let mut out = Rows::new(tokens, case.heads * case.group * case.value_dim);
        attend(context, &layer, &q, scoring, &chunk, &mut out);
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

/// What a token sees, counted out.
fn sees(mask: Mask, token: usize, other: usize) -> bool {
    match mask {
        Mask::Causal => other <= token,
        Mask::Window(window) => other <= token && other + window > token,
        Mask::Everything => true,
        Mask::Around(width) => token.abs_diff(other) <= width / 2,
    }
}

fn exact(case: &Case) -> Vec<Vec<f64>> {
    let [q, k, v] = random_input(case);
    let heads = |rows: &Rows, dim: usize, t: usize| -> Vec<Vec<f64>> {
        rows.row(t).chunks(dim).map(|head| stored(case.format, head)).collect()
    };
    let k: Vec<_> = (0..case.tokens).map(|t| heads(&k, case.dim, t)).collect();
    let v: Vec<_> = (0..case.tokens).map(|t| heads(&v, case.value_dim, t)).collect();
    let (sinks, slopes) = (case.all_sinks(), case.all_slopes());
    (0..case.tokens)
        .map(|t| {
            let mut out = Vec::new();
            let seen: Vec<usize> = (0..case.tokens).filter(|&other| sees(case.mask, t, other)).collect();
            for (h, q) in q.row(t).chunks(case.dim).enumerate() {
                let q: Vec<f32> = q.iter().map(|q| q * case.scale()).collect();
                let q = match case.format {
                    KvFormat::Q8_0 => quantized(&q, |amax| amax / 127.0),
                    _ => q.iter().map(|&q| f64::from(q)).collect(),
                };
                let kv_head = h / case.group;
                let score = |&p: &usize| {
                    let score = q.iter().zip(&k[p][kv_head]).map(|(q, k)| q * k).sum::<f64>();
                    let cap = case.soft_cap.map(f64::from);
                    let score = cap.map_or(score, |cap| cap * (score / cap).tanh());
                    let slope = slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[h]));
                    score - slope * p.abs_diff(t) as f64
                };
                let weights: Vec<f64> = seen.iter().map(|p| score(p).exp()).collect();
                let sink = sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[h]).exp());
                let sum = weights.iter().sum::<f64>() + sink;
                out.extend((0..case.value_dim).map(|c| {
                    let mix = |(w, &p): (&f64, &usize)| w * v[p][kv_head][c];
                    weights.iter().zip(&seen).map(mix).sum::<f64>() / sum
                }));
            }
            out
        })
        .collect()
}

#[test]
fn attention_matches_double_precision() {
    let cases = [
        Case { heads: 2, group: 4, dim: 64, value_dim: 64, tokens: 200, ..PLAIN },
        Case { group: 7, tokens: 30, ..PLAIN },
        Case { heads: 4, dim: 8, value_dim: 8, tokens: 140, ..PLAIN },
        Case { group: 16, dim: 80, value_dim: 80, tokens: 20, ..PLAIN },
        Case { heads: 2, dim: 96, value_dim: 96, tokens: 40, ..PLAIN },
        Case { group: 2, tokens: 700, ..PLAIN },
        Case { group: 3, dim: 48, value_dim: 32, tokens: 150, mask: Mask::Window(40), ..PLAIN },
        Case { heads: 2, tokens: 140, mask: Mask::Window(1), sinks: true, ..PLAIN },
        Case { group: 4, tokens: 90, soft_cap: Some(1.5), sinks: true, ..PLAIN },
        Case { group: 2, tokens: 150, mask: Mask::Everything, ..PLAIN },
        Case { heads: 2, group: 2, tokens: 170, mask: Mask::Everything, slopes: true, ..PLAIN },
        Case { group: 2, tokens: 150, slopes: true, sinks: true, ..PLAIN },
        Case { group: 2, tokens: 300, mask: Mask::Around(130), soft_cap: Some(2.0), ..PLAIN },
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
        for (format, mask) in [
            (KvFormat::F16, Mask::Causal),
            (KvFormat::Q8_0, Mask::Causal),
            (KvFormat::F16, Mask::Window(200)),
        ] {
            let wide = Case { format, mask, heads: 2, group: 3, dim: 32, value_dim: 32, ..PLAIN };
            let case = Case { tokens: 5 * PAGE + 3, soft_cap: Some(3.0), sinks: true, ..wide };
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
        for (format, mask) in [
            (KvFormat::F16, Mask::Causal),
            (KvFormat::Q8_0, Mask::Causal),
            (KvFormat::F16, Mask::Window(700)),
        ] {
            let case = Case { format, mask, group: 2, tokens: 9 * PAGE + 5, ..PLAIN };
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
                let mut layer = KvLayer::new(Case { dim, value_dim: dim, ..PLAIN }.shape(1));
                let rotary = Rotary::new(pairing, &frequencies, 1.0, positions.into_iter());
                let (mut q, mut k, v) =
                    (random_rows(2, dim, 5), random_rows(2, dim, 6), random_rows(2, dim, 7));
                let chunk = [Chunk { row: 0, tokens: 2, position: 0, pages: &[0] }];
                let preparation = Preparation { rotary: Some(&rotary), ..Preparation::default() };
                rotate_and_store(context, &mut q, &mut k, &v, preparation, &mut layer, &chunk);
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
fn queries_and_keys_are_normed_and_scaled() {
    for_each_isa("queries_and_keys_are_normed_and_scaled", |context| {
        let mean = |part: &[f32]| part.iter().map(|x| x * x).sum::<f32>() / part.len() as f32;
        let chunk = [Chunk { row: 0, tokens: 3, position: 0, pages: &[0] }];
        // Weights for one head, and for all at once.
        for (query_len, key_len) in [(16, 16), (64, 32)] {
            let mut layer = KvLayer::new(Case { heads: 2, ..PLAIN }.shape(1));
            let (mut q, mut k, v) = (random_rows(3, 64, 1), random_rows(3, 32, 2), random_rows(3, 32, 3));
            let (query, key) = (vec![1.0; query_len], vec![2.0; key_len]);
            let preparation = Preparation {
                norms: Some(HeadNorms { query: &query, key: &key, epsilon: 0.0 }),
                query_scales: Some(&[1.0, 3.0, 1.0]),
                ..Preparation::default()
            };
            let mut alone = q.clone();
            rotate(context, &mut alone, 16, preparation);
            rotate_and_store(context, &mut q, &mut k, &v, preparation, &mut layer, &chunk);
            assert!((0..3).all(|t| alone.row(t) == q.row(t)), "queries without keys");
            assert!(q.row(1).chunks(query_len).all(|part| (mean(part) - 9.0).abs() < 1e-4));
            assert!(k.row(2).chunks(key_len).all(|part| (mean(part) - 4.0).abs() < 1e-5));
        }
    });
}

#[test]
fn keys_turned_back_are_those_of_earlier_positions() {
    for_each_isa("keys_turned_back_are_those_of_earlier_positions", |context| {
        let (tokens, distance, dim) = (2 * PAGE, 3 * PAGE, 48);
        let frequencies: Vec<f32> = (0..18).map(|i| 10f32.powf(-(i as f32) / 6.0)).collect();
        let back: Vec<f32> = frequencies.iter().map(|frequency| -frequency).collect();
        for format in KvFormat::ALL {
            for pairing in [Pairing::Adjacent, Pairing::Halves] {
                let case = Case { format, heads: 2, group: 2, dim, value_dim: dim, tokens, ..PLAIN };
                let [q, k, v] = random_input(&case);
                // Attention of queries that are turned for the same positions in both.
                let attended = |first: usize, is_turned: bool| {
                    let mut layer = KvLayer::new(case.shape(3));
                    let turn = |first: usize| {
                        let positions = (0..tokens).map(|position| position + first);
                        Rotary::new(pairing, &frequencies, 1.0, positions)
                    };
                    let chunk = [Chunk { row: 0, tokens, position: 0, pages: &[2, 0] }];
                    let (mut keys, mut queries) = (k.clone(), q.clone());
                    let rotary = turn(first);
                    let preparation = Preparation { rotary: Some(&rotary), ..Preparation::default() };
                    rotate_and_store(context, &mut q.clone(), &mut keys, &v, preparation, &mut layer, &chunk);
                    if is_turned {
                        let rotary = Rotary::new(pairing, &back, 1.0, std::iter::once(distance));
                        turn_pages(context, &mut layer, &rotary, &[0, 2]);
                    }
                    let rotary = turn(0);
                    let preparation = Preparation { rotary: Some(&rotary), ..Preparation::default() };
                    rotate(context, &mut queries, dim, preparation);
                    let mut out = Rows::new(tokens, 4 * dim);
                    attend(context, &layer, &queries, Scoring::causal(case.scale()), &chunk, &mut out);
                    (0..tokens).flat_map(|t| out.row(t).to_vec()).collect::<Vec<f32>>()
                };
                let (got, want) = (attended(distance, true), attended(0, false));
                let error: f32 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f32 = want.iter().map(|x| x * x).sum();
                let allowed = match format {
                    KvFormat::F32 => 1e-9,
                    KvFormat::F16 => 1e-6,
                    KvFormat::BF16 | KvFormat::Q8_0 => 1e-4,
                };
                assert!(error < allowed * size, "{format} {pairing:?}: {error} of {size}");
            }
        }
    });
}
