use crate::{Random, for_each_isa};
use kernels::Context;
use kernels::ops::{HeadPlaces, Rows, copy_heads, merge_heads, split_heads};
use kernels::recurrent::{
    Convolution, HeadColumns, MemoryShape, Rule, Sharing, Span, StateLayer, StateShape, convolve, remember,
};

const TOKENS: usize = 23;

fn random_rows(count: usize, cols: usize, seed: u64) -> Rows {
    let mut random = Random(seed);
    let mut rows = Rows::new(count, cols);
    (0..count).for_each(|t| rows.row_mut(t).fill_with(|| random.signed()));
    rows
}

fn part(rows: &Rows, first: usize, count: usize) -> Rows {
    let mut part = Rows::new(count, rows.cols());
    (0..count).for_each(|t| part.row_mut(t).copy_from_slice(rows.row(first + t)));
    part
}

/// Takes two sequences of the same tokens through a layer, cut as `cuts` say, and returns what came out of the second after
/// each token. The first is in slot 2; the second goes from slot 0 to slot 1 and back, each time after others that are not
/// kept, as where a guess was wrong.
fn cut(
    layer: &mut StateLayer,
    cuts: &[usize],
    mut step: impl FnMut(&mut StateLayer, usize, usize, &[Span]) -> Rows,
) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    let (mut done, mut own) = (0, 0);
    for &tokens in cuts {
        let span = |row, slot, into| Span { row, tokens, is_start: done == 0, slot, into };
        if done > 0 {
            let wrong = Span { row: 0, tokens: 1, is_start: false, slot: own, into: 1 - own };
            step(layer, 0, 1, &[wrong]);
        }
        let into = if done > 0 { 1 - own } else { own };
        let rows = step(layer, done, tokens, &[span(0, 2, 2), span(tokens, own, into)]);
        own = into;
        for t in 0..tokens {
            assert_eq!(rows.row(t), rows.row(tokens + t), "two sequences of the same tokens");
            out.push(rows.row(tokens + t).to_vec());
        }
        done += tokens;
    }
    assert_eq!(done, TOKENS);
    out
}

/// The rows of a step, once for each of the two sequences.
fn twice(rows: &Rows, first: usize, count: usize) -> Rows {
    let mut both = Rows::new(2 * count, rows.cols());
    for t in 0..2 * count {
        both.row_mut(t).copy_from_slice(rows.row(first + t % count));
    }
    both
}

const CUTS: [&[usize]; 4] = [&[TOKENS], &[1; TOKENS], &[2, 1, 3, 17], &[20, 3]];

fn check_convolution(context: Context<'_>, taps: usize, bias: bool) {
    // More channels than one item takes, between other columns.
    let (channels, first) = (300, 5);
    let x = random_rows(TOKENS, channels + 9, 1);
    let weights = random_rows(taps + 1, channels, 2);
    let convolution = Convolution {
        taps: (0..taps).map(|i| weights.row(i).to_vec()).collect(),
        bias: bias.then(|| weights.row(taps).to_vec()),
    };
    let exact = |t: usize, c: usize| {
        let seen = (0..taps).filter(|&i| t + i + 1 >= taps);
        let term = |i: usize| f64::from(weights.row(i)[c]) * f64::from(x.row(t + i + 1 - taps)[first + c]);
        seen.map(term).sum::<f64>() + if bias { f64::from(weights.row(taps)[c]) } else { 0.0 }
    };
    let shape = StateShape { slots: 3, channels, taps, memory: MemoryShape::default() };
    let mut layer = StateLayer::new(shape);
    let mut first_run = None;
    for cuts in CUTS {
        // The layer is used again: a sequence's first token makes it forget the one before.
        let out = cut(&mut layer, cuts, |layer, done, tokens, spans| {
            let mut out = Rows::default();
            convolve(context, &convolution, &twice(&x, done, tokens), first, layer, spans, &mut out);
            out
        });
        for (t, row) in out.iter().enumerate() {
            for (c, &got) in row.iter().enumerate() {
                let want = exact(t, c);
                assert!((f64::from(got) - want).abs() < 1e-5, "token {t}, channel {c}: {got} {want}");
            }
        }
        assert!(*first_run.get_or_insert_with(|| out.clone()) == out, "{cuts:?}");
    }
}

#[test]
fn convolutions_match_double_precision_however_they_are_cut() {
    for_each_isa("convolutions_match_double_precision_however_they_are_cut", |context| {
        for (taps, bias) in [(1, true), (3, false), (4, true)] {
            check_convolution(context, taps, bias);
        }
    });
}

fn check_memory(context: Context<'_>, rule: Rule, sharing: Sharing, memory: MemoryShape, key_heads: usize) {
    let MemoryShape { heads, key_dim, value_dim } = memory;
    let keys = key_heads * key_dim;
    let columns = HeadColumns {
        values: 3,
        queries: 3 + heads * value_dim,
        keys: 3 + heads * value_dim + keys,
        key_heads,
        sharing,
    };
    let x = random_rows(TOKENS, 3 + heads * value_dim + 2 * keys, 3);
    let (mut decays, mut rates) = (random_rows(TOKENS, heads, 4), random_rows(TOKENS, heads, 5));
    for t in 0..TOKENS {
        decays.row_mut(t).iter_mut().for_each(|d| *d = 0.75 + *d / 4.0);
        rates.row_mut(t).iter_mut().for_each(|r| *r = 0.3 + *r / 4.0);
    }
    let mut exact = vec![vec![0.0; heads * value_dim]; TOKENS];
    for head in 0..heads {
        let key_head = match sharing {
            Sharing::Neighbours => head * key_heads / heads,
            Sharing::Apart => head % key_heads,
        };
        let mut state = vec![vec![0.0; value_dim]; key_dim];
        for (t, exact) in exact.iter_mut().enumerate() {
            let column = |c: usize| f64::from(x.row(t)[c]);
            let (decay, rate) = (f64::from(decays.row(t)[head]), f64::from(rates.row(t)[head]));
            state.iter_mut().flatten().for_each(|s| *s *= decay);
            for j in 0..value_dim {
                let key = |i: usize| column(columns.keys + key_head * key_dim + i);
                let mut written = column(columns.values + head * value_dim + j);
                if rule == Rule::Delta {
                    written -= (0..key_dim).map(|i| key(i) * state[i][j]).sum::<f64>();
                }
                (0..key_dim).for_each(|i| state[i][j] += key(i) * written * rate);
                let query = |i: usize| column(columns.queries + key_head * key_dim + i);
                exact[head * value_dim + j] = (0..key_dim).map(|i| query(i) * state[i][j]).sum();
            }
        }
    }
    let mut layer = StateLayer::new(StateShape { slots: 3, channels: 1, taps: 1, memory });
    let mut first_run = None;
    for cuts in CUTS {
        let out = cut(&mut layer, cuts, |layer, done, tokens, spans| {
            let [x, decays, rates] = [&x, &decays, &rates].map(|rows| twice(rows, done, tokens));
            let mut out = Rows::default();
            remember(context, rule, &x, columns, &decays, &rates, layer, spans, &mut out);
            out
        });
        for (t, (got, want)) in out.iter().zip(&exact).enumerate() {
            for (got, want) in got.iter().zip(want) {
                let error = (f64::from(*got) - want).abs();
                assert!(error < 1e-4 + want.abs() * 1e-4, "{rule:?}, token {t}: {got} {want}");
            }
        }
        assert!(*first_run.get_or_insert_with(|| out.clone()) == out, "{rule:?}, {cuts:?}");
    }
}

#[test]
fn memories_match_double_precision_however_they_are_cut() {
    for_each_isa("memories_match_double_precision_however_they_are_cut", |context| {
        let memory = |heads, key_dim, value_dim| MemoryShape { heads, key_dim, value_dim };
        check_memory(context, Rule::Add, Sharing::Neighbours, memory(4, 16, 64), 2);
        check_memory(context, Rule::Add, Sharing::Neighbours, memory(3, 5, 21), 1);
        check_memory(context, Rule::Delta, Sharing::Apart, memory(4, 16, 16), 2);
        check_memory(context, Rule::Delta, Sharing::Apart, memory(2, 7, 83), 2);
    });
}

#[test]
fn heads_are_moved_to_where_they_belong() {
    for_each_isa("heads_are_moved_to_where_they_belong", |context| {
        for tokens in [1, 3, 9] {
            let x = random_rows(tokens, 40, 7);
            let from = HeadPlaces { first: 2, stride: 12, len: 5, heads: 3 };
            let to = HeadPlaces { first: 1, stride: 6, len: 5, heads: 3 };
            let (mut copied, mut merged) = (random_rows(tokens, 20, 8), random_rows(tokens, 20, 8));
            copy_heads(context, &x, from, &mut copied, to);
            let mut split = Rows::default();
            split_heads(context, &x, from, &mut split);
            assert_eq!((split.count(), split.cols()), (3 * tokens, 5));
            merge_heads(context, &split, &mut merged, to);
            let untouched = random_rows(tokens, 20, 8);
            for t in 0..tokens {
                assert_eq!(copied.row(t), merged.row(t));
                for c in 0..20usize {
                    let (head, i) = (c.div_ceil(6), (c + 5) % 6);
                    let moved = c >= 1 && head <= 3 && i < 5;
                    let want = if moved { x.row(t)[2 + (head - 1) * 12 + i] } else { untouched.row(t)[c] };
                    assert_eq!(copied.row(t)[c], want, "token {t}, column {c}");
                }
            }
        }
    });
}

#[test]
#[should_panic(expected = "two spans share a slot")]
fn a_slot_is_in_one_span() {
    let pool = kernels::Pool::new(1);
    let context = Context { table: kernels::Isa::Scalar.table().expect("plain Rust"), pool: &pool };
    let memory = MemoryShape::default();
    let mut layer = StateLayer::new(StateShape { slots: 1, channels: 2, taps: 2, memory });
    let convolution = Convolution { taps: vec![vec![1.0; 2]; 2], bias: None };
    let span = |row| Span { row, tokens: 1, is_start: true, slot: 0, into: 0 };
    let x = part(&random_rows(2, 2, 1), 0, 2);
    convolve(context, &convolution, &x, 0, &mut layer, &[span(0), span(1)], &mut Rows::default());
}
