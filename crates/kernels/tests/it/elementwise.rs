use crate::{Random, for_each_isa};
use kernels::matrix::Shape;
use kernels::ops::{self, ActivationFunction, Norm, NormKind, Rows};
use kernels::panel::Kinds;
use kernels::{Activations, Context, Format, Matrix};

#[test]
fn log_sum_exp_and_max_match_double_precision() {
    for_each_isa("log_sum_exp_and_max_match_double_precision", |context| {
        let mut random = Random(11);
        for len in [1, 5, 16, 17, 1000] {
            let x: Vec<f32> = (0..len).map(|_| random.signed() * 20.0).collect();
            let exact = x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((f64::from(ops::log_sum_exp(context, &x)) - exact).abs() < 1e-4);
            assert_eq!(ops::max(context, &x), x.iter().copied().fold(f32::MIN, f32::max));
        }
    });
}

fn rms(weight: &[f32]) -> Norm<'_> {
    Norm { kind: NormKind::RootMeanSquare, weight, bias: None, epsilon: 1e-6 }
}

/// Rows of one width, normed every way there is, against the formula in double precision.
#[test]
fn norms_match_double_precision() {
    for_each_isa("norms_match_double_precision", |context| {
        for kind in [NormKind::RootMeanSquare, NormKind::Layer] {
            let cols = 1500;
            let mut random = Random(21);
            let mut x = Rows::new(3, cols);
            (0..3).for_each(|t| x.row_mut(t).fill_with(|| random.signed() * 3.0 + 1.0));
            let weight: Vec<f32> = (0..cols).map(|_| random.signed()).collect();
            let bias: Vec<f32> = (0..cols).map(|_| random.signed()).collect();
            let norm = Norm { kind, weight: &weight, bias: Some(&bias), epsilon: 1e-5 };
            let mut rows = Rows::default();
            ops::norm_rows(context, &x, norm, &mut rows);
            let mut within = Rows::new(3, cols + 7);
            (0..3).for_each(|t| {
                within.row_mut(t).fill(9.0);
                within.row_mut(t)[5..5 + cols].copy_from_slice(x.row(t));
            });
            ops::norm_columns(context, &mut within, 5..5 + cols, norm);
            for t in 0..3 {
                let row: Vec<f64> = x.row(t).iter().map(|&x| f64::from(x)).collect();
                let mean = match kind {
                    NormKind::RootMeanSquare => 0.0,
                    NormKind::Layer => row.iter().sum::<f64>() / cols as f64,
                };
                let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
                for (c, x) in row.iter().enumerate() {
                    let want =
                        (x - mean) / (square + 1e-5).sqrt() * f64::from(weight[c]) + f64::from(bias[c]);
                    assert!((f64::from(rows.row(t)[c]) - want).abs() < 1e-5, "{kind:?} {want}");
                    assert_eq!(within.row(t)[5 + c], rows.row(t)[c]);
                }
                assert!(within.row(t)[..5].iter().chain(&within.row(t)[5 + cols..]).all(|&x| x == 9.0));
            }
        }
    });
}

#[test]
fn gates_caps_and_sums_match_double_precision() {
    for_each_isa("gates_caps_and_sums_match_double_precision", |context| {
        let cols = 37;
        let mut random = Random(22);
        let mut rows = |scale: f32| {
            let mut rows = Rows::new(9, cols);
            (0..9).for_each(|t| rows.row_mut(t).fill_with(|| random.signed() * scale));
            rows
        };
        let (x, y) = (rows(12.0), rows(12.0));
        let check = |what: &str, got: &Rows, want: &dyn Fn(f64, f64) -> f64| {
            for t in 0..9 {
                for c in 0..cols {
                    let want = want(f64::from(x.row(t)[c]), f64::from(y.row(t)[c]));
                    let got = f64::from(got.row(t)[c]);
                    assert!((got - want).abs() <= want.abs() * 2e-6 + 2e-6, "{what}: {got} {want}");
                }
            }
        };
        let gelu = |x: f64| {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        // The error function by Simpson's rule.
        let erf = |x: f64| {
            let (steps, end) = (400, x.abs().min(6.0));
            let width = end / f64::from(steps);
            let term = |i: i32| {
                let weight = if i == 0 || i == steps { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
                weight * (-(f64::from(i) * width).powi(2)).exp()
            };
            let sum: f64 = (0..=steps).map(term).sum();
            x.signum() * sum * width / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
        };
        let exact_gelu = |x: f64| x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2));
        let mut exact = x.clone();
        ops::apply(context, ActivationFunction::ExactGelu, &mut exact);
        check("GELU without a gate", &exact, &|x, _| exact_gelu(x));
        for (function, want) in [
            (
                ActivationFunction::Silu,
                &(|x: f64, y: f64| x / (1.0 + (-x).exp()) * y) as &dyn Fn(f64, f64) -> f64,
            ),
            (ActivationFunction::Gelu, &move |x, y| gelu(x) * y),
            (ActivationFunction::ExactGelu, &move |x, y| exact_gelu(x) * y),
            (ActivationFunction::ClampedSwiglu, &|x: f64, y: f64| {
                let x = x.min(7.0);
                x / (1.0 + (-1.702 * x).exp()) * (y.clamp(-7.0, 7.0) + 1.0)
            }),
        ] {
            let mut gate = x.clone();
            ops::gate(context, function, &mut gate, &y);
            check(&format!("{function:?}"), &gate, want);
        }
        let mut capped = x.clone();
        ops::soft_cap(context, &mut capped, 5.0);
        check("cap", &capped, &|x, _| 5.0 * (x / 5.0).tanh());
        let mut sum = x.clone();
        ops::add_scaled(context, &mut sum, &y, 0.5);
        check("sum", &sum, &|x, y| x + 0.5 * y);
        ops::scale(context, &mut sum, 2.0);
        check("scale", &sum, &|x, y| 2.0 * x + y);
        let mut moved = x.clone();
        ops::add_row(context, &mut moved, y.row(3));
        assert!((0..9).all(|t| (0..cols).all(|c| moved.row(t)[c] == x.row(t)[c] + y.row(3)[c])));
        let terms: Vec<(u32, f32)> = (0..9).flat_map(|t| [(t, 2.0), (8 - t, 0.25)]).collect();
        let mut mixed = Rows::new(9, cols);
        ops::weighted_sums(context, &x, &terms, 2, &mut mixed);
        for t in 0..9 {
            for c in 0..cols {
                let want = 2.0 * x.row(t)[c] + 0.25 * x.row(8 - t)[c];
                assert!((mixed.row(t)[c] - want).abs() < 1e-5);
            }
        }
    });
}

#[test]
fn norms_have_unit_mean_square() {
    for_each_isa("norms_have_unit_mean_square", |context| {
        let mut random = Random(12);
        let mut x = Rows::new(7, 96);
        for t in 0..7 {
            x.row_mut(t).fill_with(|| random.signed() * (t + 1) as f32);
        }
        let mut out = Activations::default();
        ops::norm(
            context,
            &x,
            rms(&[1.0; 96]),
            Kinds { integer: true, superblock: false, float: true, bf16: true },
            &mut out,
        );
        assert_eq!((out.tokens(), out.cols()), (7, 96));
        // The float panels hold what the norm computed; read them back through an identity matrix.
        let identity: Vec<u8> =
            (0..96 * 96).flat_map(|i| if i / 96 == i % 96 { 1f32 } else { 0.0 }.to_le_bytes()).collect();
        let shape = kernels::matrix::Shape { format: kernels::Format::F32, rows: 96, cols: 96 };
        let matrix = kernels::Matrix::packed(shape, context.table.isa, context.pool, &identity);
        let mut normed = Rows::new(7, 96);
        ops::multiply(context, &out, &mut [ops::Product::new(&matrix, &mut normed)]);
        for t in 0..7 {
            let mean = normed.row(t).iter().map(|x| x * x).sum::<f32>() / 96.0;
            assert!((mean - 1.0).abs() < 1e-4, "{mean}");
        }
    });
}

/// What a matrix of `format` makes of activations.
fn product(context: Context<'_>, format: Format, activations: &Activations) -> Vec<Vec<f32>> {
    let (rows, cols) = (32, activations.cols());
    let shape = Shape { format, rows, cols };
    let source = crate::random_rows(format, rows, cols, 8);
    let matrix = Matrix::packed(shape, context.table.isa, context.pool, &source);
    let mut out = Rows::new(activations.tokens(), rows);
    ops::multiply(context, activations, &mut [ops::Product::new(&matrix, &mut out)]);
    (0..activations.tokens()).map(|t| out.row(t).to_vec()).collect()
}

#[test]
fn activations_are_the_same_however_they_are_shared_out() {
    for_each_isa("activations_are_the_same_however_they_are_shared_out", |context| {
        let kinds = Kinds { integer: true, superblock: true, float: true, bf16: true };
        // A token alone, panels whose columns are shared out, and panels that are; columns of several parts.
        for (tokens, cols) in [(1, 1280), (7, 1280), (7, 512), (48, 2304), (60, 1280)] {
            let mut random = Random(13);
            let mut x = Rows::new(tokens, cols);
            (0..tokens).for_each(|t| x.row_mut(t).fill_with(|| random.signed()));
            let (mut written, mut shared, mut normed) =
                (Activations::default(), Activations::default(), Activations::default());
            written.reset(tokens, cols, kinds);
            (0..tokens).for_each(|t| written.write(context.table, t, x.row(t)));
            ops::activate(context, &x, kinds, &mut shared);
            // A norm of one token after the other.
            ops::norm(context, &x, rms(&vec![0.5; cols]), kinds, &mut normed);
            let alone: Vec<_> = (0..tokens)
                .map(|t| {
                    let mut one = Rows::new(1, cols);
                    one.row_mut(0).copy_from_slice(x.row(t));
                    let mut normed = Activations::default();
                    ops::norm(context, &one, rms(&vec![0.5; cols]), kinds, &mut normed);
                    normed
                })
                .collect();
            for format in [Format::Q8_0, Format::Q4_K, Format::F32, Format::BF16] {
                let of = |activations| product(context, format, activations);
                assert!(of(&written) == of(&shared), "{tokens} tokens of {cols} columns, {format:?}");
                let one_by_one: Vec<_> = alone.iter().flat_map(of).collect();
                assert!(of(&normed) == one_by_one, "norm of {tokens} tokens of {cols} columns, {format:?}");
            }
        }
    });
}
