//! Throughput of the tiles beside what the machine can do: `cargo bench -p kernels --bench tiles [-- ISA]`.
//!
//! Prefill: one thread, 96 tokens, a matrix that stays in the caches, in GMAC/s,
//! beside the peak of the set's dot products. Decode: one token and a matrix far
//! larger than the caches, in GB/s of packed weights, beside the read bandwidth measured in the same run.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use kernels::format::Format;
use kernels::matrix::Shape;
use kernels::ops::{Product, Rows, kinds_for, multiply};
use kernels::{Activations, Context, Isa, Matrix, Pool, bandwidth, peak};
use std::hint::black_box;
use std::time::{Duration, Instant};

const FORMATS: [Format; 9] = [
    Format::Q4_0,
    Format::Q8_0,
    Format::Q4_K,
    Format::Q6_K,
    Format::Q5_K,
    Format::Q3_K,
    Format::F16,
    Format::BF16,
    Format::F32,
];

fn main() {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let isa = wanted.map_or_else(Isa::detect, |name| name.parse().expect("an instruction set"));
    let table = isa.table().expect("a supported instruction set");
    println!("instruction set {isa}; medians of 7");
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        let context = Context { table, pool: &pool };
        println!(
            "{threads} thread(s), read bandwidth {:.1} GB/s, peak {:.1} GMAC/s",
            bandwidth::read(&pool, 512 << 20, Duration::from_millis(300)) / 1e9,
            peak::macs_per_s(context, Duration::from_millis(300)) / 1e9
        );
        for format in FORMATS {
            let prefill = seconds_of(context, format, 2048, 2048, 96);
            let decode = seconds_of(context, format, 32768, 2048, 1);
            let batch = seconds_of(context, format, 32768, 2048, 8);
            let bytes = Shape { format, rows: 32768, cols: 2048 }.packed_bytes().expect("whole blocks");
            println!(
                "  {:5} prefill {:6.1} GMAC/s   decode {:5.1} GB/s   8 tokens {:5.2} x one",
                format.name(),
                2048.0 * 2048.0 * 96.0 / prefill / 1e9,
                bytes as f64 / decode / 1e9,
                batch / decode,
            );
        }
    }
}

/// The median time of a multiplication.
fn seconds_of(context: Context<'_>, format: Format, rows: usize, cols: usize, tokens: usize) -> f64 {
    let source = vec![0x11; rows * format.row_bytes(cols).expect("whole blocks")];
    let matrix = Matrix::packed(Shape { format, rows, cols }, context.table.isa, context.pool, &source);
    let mut activations = Activations::default();
    activations.reset(tokens, cols, kinds_for([&matrix]));
    for t in 0..tokens {
        activations.write(context.table, t, &vec![0.5; cols]);
    }
    let mut out = Rows::new(tokens, rows);
    median((0..7).map(|_| {
        let start = Instant::now();
        multiply(context, &activations, &mut [Product::new(black_box(&matrix), &mut out)]);
        start.elapsed().as_secs_f64()
    }))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
