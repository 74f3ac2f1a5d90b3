use crate::{Random, for_each_isa, random_rows, rows_of};
use kernels::format::{Format, GROUP, SUPERBLOCK};
use kernels::layout::{self, Bytes, Layout};
use kernels::matrix::Shape;
use kernels::ops::{
    ActivationFunction, Affine, Gated, Group, Product, Rows, activate_groups, kinds_for, multiply,
    multiply_gated, multiply_groups,
};
use kernels::{Activations, Context, Isa, Matrix};
use std::sync::Arc;

/// Activations that 8 bits hold exactly: of those that share a scale, multiples of a power of two whose largest is 127 of
/// them.
fn exact_row(format: Format, cols: usize, random: &mut Random) -> Vec<f32> {
    let span = if Layout::of(format).has_superblocks() { SUPERBLOCK } else { GROUP };
    let mut row = Vec::with_capacity(cols);
    for _ in 0..cols.div_ceil(span) {
        let d = 2f32.powi(-((random.next() % 8) as i32));
        let mut part: Vec<f32> = (0..span).map(|_| ((random.next() % 255) as f32 - 127.0) * d).collect();
        part[random.next() as usize % span] = 127.0 * d;
        row.extend(part);
    }
    row.truncate(cols);
    row
}

/// A product and what it comes to in double precision, computed once for every instruction set.
struct Case {
    shape: Shape,
    source: Vec<u8>,
    x: Vec<Vec<f32>>,
    exact: Vec<Vec<f64>>,
}

impl Case {
    fn new(shape: Shape, source: Vec<u8>, x: Vec<Vec<f32>>) -> Case {
        let row_bytes = shape.format.row_bytes(shape.cols).expect("whole blocks");
        let mut weights = vec![0.0; shape.cols];
        let exact = |row: &[u8]| {
            shape.format.dequantize_row(row, &mut weights);
            let dot = |x: &Vec<f32>| weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            x.iter().map(dot).collect()
        };
        let exact = source.chunks_exact(row_bytes).map(exact).collect();
        Case { shape, source, x, exact }
    }

    fn random(format: Format, rows: usize, cols: usize, tokens: usize) -> Case {
        let seed = (rows * 7919 + cols * 31 + tokens) as u64;
        let mut random = Random(seed | 1);
        let x = (0..tokens).map(|_| exact_row(format, cols, &mut random)).collect();
        Case::new(Shape { format, rows, cols }, random_rows(format, rows, cols, seed), x)
    }

    fn check(&self, context: Context<'_>) {
        let Shape { format, rows, cols } = self.shape;
        let tokens = self.x.len();
        let what = format!("{} {rows} x {cols}, {tokens} tokens on {:?}", format.name(), context.table);
        let matrix = Matrix::packed(self.shape, context.table.isa, context.pool, &self.source);
        let mut activations = Activations::default();
        activations.reset(tokens, cols, kinds_for([&matrix]));
        for (t, x) in self.x.iter().enumerate() {
            activations.write(context.table, t, x);
        }
        let mut out = Rows::new(tokens, rows);
        multiply(context, &activations, &mut [Product::new(&matrix, &mut out)]);
        let mut twice = out.clone();
        multiply(context, &activations, &mut [Product { add: true, ..Product::new(&matrix, &mut twice) }]);

        let (mut error, mut power) = (0f64, 0f64);
        for (r, exact) in self.exact.iter().enumerate() {
            for (t, exact) in exact.iter().enumerate() {
                let got = out.row(t)[r];
                error += (f64::from(got) - exact).powi(2);
                power += exact.powi(2);
                assert!((twice.row(t)[r] - 2.0 * got).abs() <= got.abs() * 1e-6, "{what}: adding");
            }
        }
        assert!(error <= power * 1e-11, "{what}: normalised error {:e}", error / power);
    }
}

#[test]
fn products_match_double_precision() {
    let mut cases = Vec::new();
    for format in Format::ALL {
        let unit = format.block_len().max(32);
        for (rows, cols) in [(16, unit), (40, 3 * unit), (129, 2 * unit)] {
            for tokens in [1, 2, 3, 4, 10, 12, 15, 27] {
                cases.push(Case::random(format, rows, cols, tokens));
            }
        }
    }
    for cols in [1, 7, 100] {
        cases.push(Case::random(Format::F16, 33, cols, 5));
        cases.push(Case::random(Format::F32, 5, cols, 13));
    }
    for_each_isa("products_match_double_precision", |context| {
        cases.iter().for_each(|case| case.check(context));
    });
}

#[test]
fn every_exponent_of_mxfp4_counts() {
    // A block of a packed strip, and the first quarter of the next.
    let shape = Shape { format: Format::MXFP4, rows: 19, cols: 160 };
    let mut random = Random(11);
    let x: Vec<_> = (0..3).map(|_| exact_row(shape.format, shape.cols, &mut random)).collect();
    let case = |exponent: u8| {
        let mut source = random_rows(shape.format, shape.rows, shape.cols, u64::from(exponent));
        for block in source.chunks_exact_mut(shape.format.block_bytes()) {
            block[0] = exponent;
        }
        Case::new(shape, source, x.clone())
    };
    // The two whose halves are subnormal, their neighbours, and the largest whose sums are finite.
    let cases: Vec<_> = [0, 1, 2, 3, 4, 127, 128, 129, 230].map(case).into();
    for_each_isa("every_exponent_of_mxfp4_counts", |context| {
        cases.iter().for_each(|case| case.check(context));
    });
}

#[test]
fn the_largest_products_fit_their_sums() {
    let mut cases = Vec::new();
    for format in Format::ALL {
        let shape = Shape { format, rows: 16, cols: format.block_len().max(32) };
        // Bytes whose nibbles, bits and signs are all the same, times activations at either end.
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let source = rows_of(format, shape.rows, shape.cols, 21, |_| byte);
            for tokens in [1, 2, 4, 8, 12] {
                let x = |t: usize| vec![if t.is_multiple_of(2) { 127.0 } else { -127.0 }; shape.cols];
                cases.push(Case::new(shape, source.clone(), (0..tokens).map(x).collect()));
            }
        }
    }
    for_each_isa("the_largest_products_fit_their_sums", |context| {
        cases.iter().for_each(|case| case.check(context));
    });
}

#[test]
fn a_token_alone_and_in_a_batch_gives_the_same_bits() {
    for_each_isa("a_token_alone_and_in_a_batch_gives_the_same_bits", |context| {
        // An odd number of strips, and an even one that is several items.
        for (format, rows) in Format::ALL.into_iter().flat_map(|format| [(format, 100), (format, 350)]) {
            let (cols, tokens) = (512, 27);
            let source = random_rows(format, rows, cols, 5);
            let matrix =
                Matrix::packed(Shape { format, rows, cols }, context.table.isa, context.pool, &source);
            let mut random = Random(9);
            let x: Vec<Vec<f32>> =
                (0..tokens).map(|_| (0..cols).map(|_| random.signed()).collect()).collect();
            let product = |x: &[Vec<f32>]| {
                let (mut activations, mut out) = (Activations::default(), Rows::new(x.len(), rows));
                activations.reset(x.len(), cols, kinds_for([&matrix]));
                for (t, x) in x.iter().enumerate() {
                    activations.write(context.table, t, x);
                }
                multiply(context, &activations, &mut [Product::new(&matrix, &mut out)]);
                out
            };
            let batch = product(&x);
            for t in 0..tokens {
                assert_eq!(product(&x[t..=t]).row(0), batch.row(t), "{} token {t}", format.name());
            }
        }
    });
}

fn swiglu(
    context: Context<'_>,
    activations: &Activations,
    gate: &Matrix,
    up: &Matrix,
    out: &mut Rows,
    scratch: &mut Rows,
) {
    let groups = [Gated { gate: gate.into(), up: up.into(), tokens: 0..activations.tokens() }];
    multiply_gated(context, activations, ActivationFunction::Silu, &groups, out, scratch);
}

/// The same activations times a matrix of every format, packed and plain: `(rows, columns, tokens)`.
fn check_plain(context: Context<'_>, format: Format, (rows, cols, tokens): (usize, usize, usize)) {
    let shape = Shape { format, rows, cols };
    let isa = context.table.isa;
    let pair = |seed| {
        let source = random_rows(format, rows, cols, seed);
        let packed = Matrix::packed(shape, isa, context.pool, &source);
        // Rows in a file start anywhere.
        let (storage, range) = ([&[0; 3][..], &source].concat(), 3..3 + source.len());
        (packed, Matrix::plain(shape, isa, Arc::new(storage), range).expect("the rows are there"))
    };
    let [(gate, plain_gate), (up, plain_up)] = [1, 2].map(pair);
    let mut random = Random(3);
    let mut activations = Activations::default();
    activations.reset(tokens, cols, kinds_for([&gate]));
    for t in 0..tokens {
        let row: Vec<_> = (0..cols).map(|_| random.signed()).collect();
        activations.write(context.table, t, &row);
    }
    let compute = |gate: &Matrix, up: &Matrix| {
        let new = || Rows::new(tokens, rows);
        let (mut g, mut u, mut fused, mut scratch) = (new(), new(), new(), new());
        multiply(context, &activations, &mut [Product::new(gate, &mut g), Product::new(up, &mut u)]);
        multiply(context, &activations, &mut [Product { add: true, ..Product::new(up, &mut g) }]);
        swiglu(context, &activations, gate, up, &mut fused, &mut scratch);
        let bits = |rows: &Rows| -> Vec<u32> {
            (0..tokens).flat_map(|t| rows.row(t).iter().map(|x| x.to_bits())).collect()
        };
        [g, u, fused].map(|rows| bits(&rows))
    };
    let what = format!("{} {rows} x {cols}, {tokens} tokens on {isa}", format.name());
    assert!(compute(&gate, &up) == compute(&plain_gate, &plain_up), "{what}");
}

#[test]
fn plain_matrices_give_the_bits_of_packed_ones() {
    for_each_isa("plain_matrices_give_the_bits_of_packed_ones", |context| {
        for format in Format::ALL {
            let unit = format.block_len().max(32);
            // From large to small and back, so that what a larger matrix left in a thread's memory would show.
            for shape in [(300, 3 * unit, 27), (33, unit, 1), (16, 2 * unit, 2), (129, 3 * unit, 12)] {
                check_plain(context, format, shape);
            }
            check_plain(context, format, (40, unit, 0));
        }
    });
}

#[test]
fn a_matrix_of_the_wrong_length_is_refused() {
    let shape = Shape { format: Format::Q8_0, rows: 3, cols: 64 };
    let (plain, packed) =
        (shape.plain_bytes().expect("whole blocks"), shape.packed_bytes().expect("whole blocks"));
    assert_eq!((plain, packed), (3 * 2 * 34, 16 * 2 * 34));
    let storage = || Arc::new(vec![0u8; 2000]);
    for (len, is_plain, is_packed) in [(plain, true, false), (packed, false, true), (plain - 1, false, false)]
    {
        assert_eq!(Matrix::plain(shape, Isa::Scalar, storage(), 5..5 + len).is_some(), is_plain, "{len}");
        assert_eq!(Matrix::new(shape, Isa::Scalar, storage(), 5..5 + len).is_some(), is_packed, "{len}");
    }
    assert!(Matrix::plain(shape, Isa::Scalar, storage(), 1900..1900 + plain).is_none(), "beyond the storage");
    let crooked = Shape { cols: 65, ..shape };
    assert!(Matrix::plain(crooked, Isa::Scalar, storage(), 0..plain).is_none(), "not whole blocks");
}

/// Gate and up of some formats, `(rows, columns, tokens)`.
fn check_swiglu(context: Context<'_>, formats: [Format; 2], (rows, cols, tokens): (usize, usize, usize)) {
    let pack = |format, seed| {
        let source = random_rows(format, rows, cols, seed);
        Matrix::packed(Shape { format, rows, cols }, context.table.isa, context.pool, &source)
    };
    let (gate, up) = (pack(formats[0], 1), pack(formats[1], 2));
    let mut random = Random(3);
    let mut activations = Activations::default();
    activations.reset(tokens, cols, kinds_for([&gate, &up]));
    for t in 0..tokens {
        let row: Vec<_> = (0..cols).map(|_| random.signed()).collect();
        activations.write(context.table, t, &row);
    }
    let rows = || Rows::new(tokens, rows);
    let (mut g, mut u, mut fused, mut scratch) = (rows(), rows(), rows(), rows());
    multiply(context, &activations, &mut [Product::new(&gate, &mut g), Product::new(&up, &mut u)]);
    swiglu(context, &activations, &gate, &up, &mut fused, &mut scratch);
    for t in 0..tokens {
        for ((&g, &u), &got) in g.row(t).iter().zip(u.row(t)).zip(fused.row(t)) {
            let want = g / (1.0 + (-g).exp()) * u;
            assert!((want - got).abs() <= want.abs() * 1e-5 + 1e-6, "{formats:?}: {want} {got}");
        }
    }
}

#[test]
fn swiglu_is_silu_times_up() {
    use Format::{Q4_0, Q4_K, Q6_K};
    for_each_isa("swiglu_is_silu_times_up", |context| {
        // A token alone, one panel and more panels than one item has; matrices of one layout and of two.
        for tokens in [1, 14, 150] {
            check_swiglu(context, [Q4_0, Q4_0], (80, 96, tokens));
            check_swiglu(context, [Q6_K, Q6_K], (192, 256, tokens));
            check_swiglu(context, [Q4_K, Q6_K], (96, 256, tokens));
        }
    });
}

#[test]
fn packing_loses_nothing() {
    for format in Format::ALL {
        let (rows, cols) = (13, 512);
        let source = random_rows(format, rows, cols, 77);
        let row_bytes = format.row_bytes(cols).expect("whole blocks");
        let views: Vec<_> = source.chunks_exact(row_bytes).collect();
        let layout = Layout::of(format);
        for bytes in [Bytes::Signed, Bytes::Unsigned] {
            let mut strip = vec![0xaa; layout.strip_bytes(cols)];
            layout::pack_strip(format, bytes, &views, cols, &mut strip);
            let mut want = vec![0.0; cols];
            for (r, view) in views.iter().enumerate() {
                format.dequantize_row(view, &mut want);
                let got: Vec<f32> = if layout.is_float() {
                    (0..cols).map(|c| layout::float_weight(layout, &strip, r, c)).collect()
                } else {
                    let value = |c: usize| {
                        let group = &layout::unpack_group(layout, bytes, &strip, c / 32)[r];
                        let half = c % 32 / 16;
                        group.scale[half] * f32::from(group.q[c % 32]) - group.min[half]
                    };
                    (0..cols).map(value).collect()
                };
                for (c, (want, got)) in want.iter().zip(&got).enumerate() {
                    let what = format!("{} {bytes:?} row {r} column {c}", format.name());
                    // An offset of 128 cancels in f32, at scales of up to 6.
                    assert!((want - got).abs() <= want.abs().max(1.0) * 2e-4, "{what}: {want} {got}");
                }
            }
        }
    }
}

/// Four experts of one tensor, asked by a varying number of tokens, against each for itself.
fn check_groups(context: Context<'_>, format: Format, plain: bool) {
    const EXPERTS: usize = 4;
    let (rows, cols, isa) = (48, 256, context.table.isa);
    let shape = Shape { format, rows: EXPERTS * rows, cols };
    let tensor = |seed| {
        let source = random_rows(format, shape.rows, cols, seed);
        let range = 0..source.len();
        match plain {
            true => Matrix::plain(shape, isa, Arc::new(source), range).expect("the rows are there"),
            false => Matrix::packed(shape, isa, context.pool, &source),
        }
    };
    let [gates, ups] = [1, 2].map(tensor);
    let expert = |matrix: &Matrix, i: usize| matrix.slice(i * rows..(i + 1) * rows).expect("whole strips");
    let gates: Vec<_> = (0..EXPERTS).map(|i| expert(&gates, i)).collect();
    let ups: Vec<_> = (0..EXPERTS).map(|i| expert(&ups, i)).collect();
    let bias: Vec<f32> = (0..rows).map(|i| i as f32 / 16.0 - 1.0).collect();
    let affine = |matrix| Affine { matrix, scale: 0.25, bias: Some(&bias) };

    let mut random = Random(5);
    let mut x = Rows::new(20, cols);
    (0..20).for_each(|t| x.row_mut(t).fill_with(|| random.signed()));
    for lens in [[1, 0, 3, 1], [13, 1, 0, 25], [0, 0, 0, 1], [0; 4]] {
        let sources: Vec<u32> = (0..lens.iter().sum::<usize>()).map(|i| (i * 7 % 20) as u32).collect();
        let mut activations = Activations::default();
        activate_groups(context, &x, &sources, &lens, kinds_for([&gates[0]]), &mut activations);
        let mut start = 0;
        let ranges = lens.map(|len| {
            start += len;
            start - len..start
        });
        let new = || Rows::new(sources.len(), rows);
        let (mut out, mut gated, mut scratch) = (new(), new(), new());
        let groups: Vec<_> =
            (0..EXPERTS).map(|i| Group { affine: affine(&gates[i]), tokens: ranges[i].clone() }).collect();
        multiply_groups(context, &activations, &groups, &mut out);
        let groups: Vec<_> = (0..EXPERTS)
            .map(|i| Gated { gate: affine(&gates[i]), up: affine(&ups[i]), tokens: ranges[i].clone() })
            .collect();
        let function = ActivationFunction::ClampedSwiglu;
        multiply_gated(context, &activations, function, &groups, &mut gated, &mut scratch);
        for (i, range) in ranges.into_iter().enumerate() {
            for t in range {
                let mut alone = Activations::default();
                activate_groups(context, &x, &sources[t..=t], &[1], kinds_for([&gates[0]]), &mut alone);
                let (mut gate, mut up) = (Rows::new(1, rows), Rows::new(1, rows));
                let mut products =
                    [Product::new(affine(&gates[i]), &mut gate), Product::new(affine(&ups[i]), &mut up)];
                multiply(context, &alone, &mut products);
                assert_eq!(gate.row(0), out.row(t), "{format:?}, {lens:?}, token {t}");
                for (r, (g, u)) in gate.row(0).iter().zip(up.row(0)).enumerate() {
                    let x = g.min(7.0);
                    let want = x / (1.0 + (-1.702 * x).exp()) * (u.clamp(-7.0, 7.0) + 1.0);
                    let got = gated.row(t)[r];
                    assert!((want - got).abs() <= want.abs() * 1e-5 + 1e-6, "{format:?}: {want} {got}");
                }
            }
        }
    }
}

#[test]
fn groups_are_multiplied_by_matrices_of_their_own() {
    for_each_isa("groups_are_multiplied_by_matrices_of_their_own", |context| {
        for format in [Format::F32, Format::Q4_0, Format::Q4_K, Format::Q6_K, Format::MXFP4] {
            check_groups(context, format, false);
            check_groups(context, format, true);
        }
    });
}

#[test]
fn a_matrix_is_cut_at_whole_strips_only() {
    let shape = Shape { format: Format::F32, rows: 40, cols: 4 };
    let pool = kernels::Pool::new(1);
    let source = random_rows(Format::F32, 40, 4, 1);
    let matrix = Matrix::packed(shape, Isa::Scalar, &pool, &source);
    let rows = |range| matrix.slice(range).map(|matrix| matrix.rows());
    assert_eq!(
        (rows(0..40), rows(16..32), rows(32..40), rows(16..16)),
        (Some(40), Some(16), Some(8), Some(0))
    );
    assert_eq!((rows(0..8), rows(8..16), rows(32..48)), (None, None, None));
    assert_eq!(rows(std::ops::Range { start: 32, end: 16 }), None);
}
