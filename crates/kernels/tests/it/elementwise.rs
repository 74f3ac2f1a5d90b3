use crate::{Random, for_each_isa};
use kernels::Activations;
use kernels::ops::{self, Rows};
use kernels::panel::Kinds;

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
