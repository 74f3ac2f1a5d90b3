//! One product of a strip of weights again and again, for counting instructions under an emulator: `product ISA FORMAT
//! TOKENS REPEATS`. What two runs with different `REPEATS` differ in is the product's own (docs/design/0001). Measures
//! nothing itself, so without arguments, as `cargo bench` runs it, it only says how it is used.
#![allow(clippy::print_stdout, reason = "a program without arguments says how it is used")]

use kernels::format::Format;
use kernels::matrix::Shape;
use kernels::ops::{Product, Rows, kinds_for, multiply};
use kernels::{Activations, Context, Isa, Matrix, Pool};
use std::hint::black_box;

/// 16 x 2048 weights: one strip.
const ROWS: usize = 16;
const COLS: usize = 2048;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [isa, format, tokens, repeats] = &args[..] else {
        panic!("usage: product ISA FORMAT TOKENS REPEATS")
    };
    let isa: Isa = isa.parse().expect("an instruction set");
    let format = Format::ALL.into_iter().find(|f| f.name() == format).expect("a format of GGUF");
    let (tokens, repeats): (usize, usize) =
        (tokens.parse().expect("a number"), repeats.parse().expect("a number"));

    let pool = Pool::new(1);
    let context = Context { table: isa.table().expect("a supported instruction set"), pool: &pool };
    let shape = Shape { format, rows: ROWS, cols: COLS };
    let source = vec![0x11; ROWS * format.row_bytes(COLS).expect("whole blocks")];
    let matrix = Matrix::packed(shape, isa, &pool, &source);
    let mut activations = Activations::default();
    activations.reset(tokens, COLS, kinds_for([&matrix]));
    for t in 0..tokens {
        activations.write(context.table, t, &[0.5; COLS]);
    }
    let mut out = Rows::new(tokens, ROWS);
    for _ in 0..repeats {
        multiply(context, &activations, &mut [Product::new(black_box(&matrix), &mut out)]);
    }
}
