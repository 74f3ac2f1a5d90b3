//! Throughput of the tiles beside what the machine can do: `cargo bench -p kernels --bench tiles [-- ISA] [FORMAT...]`.
//!
//! Prefill: one thread, 96 tokens, a matrix that stays in the caches, in GMAC/s, beside the peak of the set's dot products.
//! Decode: one token and a matrix far larger than the caches, in GB/s of packed weights, beside the read bandwidth measured
//! in the same run. 8 tokens: the same matrix, also in GMAC/s. Plain: how many times longer prefill and decode take where
//! the matrix is not packed. Packing: the large matrix, in GB/s of what is read and written.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use kernels::format::Format;
use kernels::layout::STRIP;
use kernels::matrix::Shape;
use kernels::ops::{Product, Rows, kinds_for, multiply};
use kernels::{Activations, Context, Isa, Matrix, Pool, bandwidth, peak};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FORMATS: [Format; 12] = [
    Format::Q4_0,
    Format::Q8_0,
    Format::Q4_K,
    Format::Q6_K,
    Format::Q5_K,
    Format::Q3_K,
    Format::IQ4_NL,
    Format::IQ4_XS,
    Format::MXFP4,
    Format::F16,
    Format::BF16,
    Format::F32,
];

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (sets, names): (Vec<_>, Vec<_>) = wanted.iter().partition(|name| name.parse::<Isa>().is_ok());
    let isa = sets.first().map_or_else(Isa::detect, |name| name.parse().expect("an instruction set"));
    let named = |name: &&String| FORMATS.into_iter().find(|format| format.name() == **name);
    let mut formats: Vec<_> =
        names.iter().map(|name| named(name).expect("an instruction set or a format of the list")).collect();
    if formats.is_empty() {
        formats.extend(FORMATS);
    }
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
        for &format in &formats {
            let small = Shape { format, rows: 2048, cols: 2048 };
            let large = Shape { format, rows: beyond_caches(format), cols: 2048 };
            let seconds = |shape, tokens, plain| seconds_of(context, shape, tokens, plain);
            let (prefill, prefill_plain) = (seconds(small, 96, false), seconds(small, 96, true));
            let (decode, decode_plain) = (seconds(large, 1, false), seconds(large, 1, true));
            let batch = seconds(large, 8, false);
            let packing = seconds_of_packing(context, large);
            let packed = large.packed_bytes().expect("whole blocks");
            println!(
                "  {:6} prefill {:6.1} GMAC/s   decode {:5.1} GB/s   8 tokens {:5.1} GB/s, {:5.1} GMAC/s   \
                 plain {:4.1} and {:5.1} x   packing {:5.1} GB/s",
                format.name(),
                2048.0 * 2048.0 * 96.0 / prefill / 1e9,
                packed as f64 / decode / 1e9,
                packed as f64 / batch / 1e9,
                (large.rows * 2048 * 8) as f64 / batch / 1e9,
                prefill_plain / prefill,
                decode_plain / decode,
                (large.plain_bytes().expect("whole blocks") + packed) as f64 / packing / 1e9,
            );
        }
    }
}

/// Rows of 2048 columns that take 256 MiB, more than the caches of a processor hold.
fn beyond_caches(format: Format) -> usize {
    let strip = Shape { format, rows: STRIP, cols: 2048 }.packed_bytes().expect("whole blocks");
    (256usize << 20).div_ceil(strip) * STRIP
}

/// The median time of a multiplication.
fn seconds_of(context: Context<'_>, shape: Shape, tokens: usize, plain: bool) -> f64 {
    let isa = context.table.isa;
    let source = vec![0x11; shape.plain_bytes().expect("whole blocks")];
    let len = source.len();
    let matrix = match plain {
        true => Matrix::plain(shape, isa, Arc::new(source), 0..len).expect("the rows are there"),
        false => Matrix::packed(shape, isa, context.pool, &source),
    };
    let mut activations = Activations::default();
    activations.reset(tokens, shape.cols, kinds_for([&matrix]));
    for t in 0..tokens {
        activations.write(context.table, t, &vec![0.5; shape.cols]);
    }
    let mut out = Rows::new(tokens, shape.rows);
    median_of_7(|| multiply(context, &activations, &mut [Product::new(black_box(&matrix), &mut out)]))
}

/// The median time of packing into memory that has been written before.
fn seconds_of_packing(context: Context<'_>, shape: Shape) -> f64 {
    let source = vec![0x11; shape.plain_bytes().expect("whole blocks")];
    let mut out = vec![1; shape.packed_bytes().expect("whole blocks")];
    median_of_7(|| shape.pack(context.table.isa, context.pool, black_box(&source), &mut out))
}

fn median_of_7(mut run: impl FnMut()) -> f64 {
    let mut seconds: Vec<_> = (0..7)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
