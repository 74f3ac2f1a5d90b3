//! Throughput of attention beside what the machine can do: `cargo bench -p kernels --bench attention [-- ISA]`.
//!
//! Prefill: 96 tokens of 32 heads in groups of 4 after 4096 others, in G multiply-adds/s. Decode: one token at the same
//! depth, in GB/s of keys and values read, beside the read bandwidth measured in the same run.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use kernels::attention::{
    Chunk, KvFormat, KvLayer, KvShape, PAGE, Preparation, Scoring, attend, rotate_and_store,
};
use kernels::ops::Rows;
use kernels::{Context, Isa, Pool, bandwidth};
use std::time::{Duration, Instant};

const DEPTH: usize = 4096;
const HEADS: usize = 8;
const GROUP: usize = 4;
const DIM: usize = 64;
/// Layers with caches of their own, so that a decode reads them from memory.
const LAYERS: usize = 12;

fn main() {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let isa = wanted.map_or_else(Isa::detect, |name| name.parse().expect("an instruction set"));
    let table = isa.table().expect("a supported instruction set");
    println!("instruction set {isa}; best of many");
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        let context = Context { table, pool: &pool };
        let bandwidth = bandwidth::read(&pool, 512 << 20, Duration::from_millis(300)) / 1e9;
        println!("{threads} thread(s), read bandwidth {bandwidth:.1} GB/s");
        for format in KvFormat::ALL {
            let mut layers = filled(context, format);
            let prefill = seconds_of(context, &mut layers[..1], 96);
            let decode = seconds_of(context, &mut layers, 1);
            let multiply_adds = (DEPTH + 48) * 96 * HEADS * GROUP * DIM * 2;
            let bytes = LAYERS * DEPTH / PAGE
                * KvShape { format, pages: 1, heads: HEADS, key_dim: DIM, value_dim: DIM }.page_bytes();
            println!(
                "  {:5} prefill {:6.1} GFMA/s   decode {:5.1} GB/s",
                format.name(),
                multiply_adds as f64 / prefill / 1e9,
                bytes as f64 / decode / 1e9,
            );
        }
    }
}

fn pages() -> Vec<u32> {
    (0..(DEPTH / PAGE + 1) as u32).collect()
}

fn rows(count: usize, cols: usize) -> Rows {
    let mut rows = Rows::new(count, cols);
    for t in 0..count {
        for (c, x) in rows.row_mut(t).iter_mut().enumerate() {
            *x = ((t * 7919 + c * 104_729) % 1009) as f32 / 504.5 - 1.0;
        }
    }
    rows
}

fn filled(context: Context<'_>, format: KvFormat) -> Vec<KvLayer> {
    let pages = pages();
    let shape = KvShape { format, pages: pages.len(), heads: HEADS, key_dim: DIM, value_dim: DIM };
    let (k, v, q) = (rows(DEPTH, HEADS * DIM), rows(DEPTH, HEADS * DIM), rows(DEPTH, HEADS * DIM));
    let fill = |_| {
        let mut layer = KvLayer::new(shape);
        let (mut q, mut k) = (q.clone(), k.clone());
        let chunk = [Chunk { row: 0, tokens: DEPTH, position: 0, pages: &pages }];
        rotate_and_store(context, &mut q, &mut k, &v, Preparation::default(), &mut layer, &chunk);
        layer
    };
    (0..LAYERS).map(fill).collect()
}

/// The shortest time of attention of `tokens` tokens through all layers, of what fits into half a second.
fn seconds_of(context: Context<'_>, layers: &mut [KvLayer], tokens: usize) -> f64 {
    let pages = pages();
    let q = rows(tokens, HEADS * GROUP * DIM);
    let mut out = Rows::new(tokens, q.cols());
    let chunk = [Chunk { row: 0, tokens, position: DEPTH, pages: &pages }];
    let began = Instant::now();
    let mut best = f64::INFINITY;
    while began.elapsed() < Duration::from_millis(500) {
        let start = Instant::now();
        for layer in layers.iter() {
            attend(context, layer, &q, Scoring::causal(0.125), &chunk, &mut out);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}
