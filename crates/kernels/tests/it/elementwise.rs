use crate::{Random, for_each_isa};
use kernels::matrix::Shape;
use kernels::ops::{self, Rows};
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

#[test]
fn norms_have_unit_mean_square() {
    for_each_isa("norms_have_unit_mean_square", |context| {
        let mut random = Random(12);
        let mut x = Rows::new(7, 96);
        for t in 0..7 {
            x.row_mut(t).fill_with(|| random.signed() * (t + 1) as f32);
        }
        let mut out = Activations::default();
        ops::rms_norm(
            context,
            &x,
            &[1.0; 96],
            1e-6,
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
            ops::rms_norm(context, &x, &vec![0.5; cols], 1e-6, kinds, &mut normed);
            let alone: Vec<_> = (0..tokens)
                .map(|t| {
                    let mut one = Rows::new(1, cols);
                    one.row_mut(0).copy_from_slice(x.row(t));
                    let mut normed = Activations::default();
                    ops::rms_norm(context, &one, &vec![0.5; cols], 1e-6, kinds, &mut normed);
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
