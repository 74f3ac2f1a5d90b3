//! One suite over every instruction set that this machine (or an emulator) has; each test prints which ones ran.

mod attention;
mod elementwise;
mod matrix;
mod peak;
mod recurrent;

use kernels::format::Format;
use kernels::{Context, Isa, Pool};

/// Runs a test once per supported instruction set and thread count, and says so.
#[allow(clippy::print_stdout, reason = "a test says what it ran on")]
fn for_each_isa(test: &str, f: impl Fn(Context<'_>)) {
    let mut ran = Vec::new();
    for isa in Isa::ALL {
        let Some(table) = isa.table() else { continue };
        for threads in [1, 3] {
            f(Context { table, pool: &Pool::new(threads) });
        }
        ran.push(isa.name());
    }
    println!("{test} ran on: {}", ran.join(", "));
}

/// xorshift64*, seeded per test case so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1..1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Rows of random blocks whose scales are sane.
fn random_rows(format: Format, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    rows_of(format, rows, cols, seed, |random| (random.next() >> 32) as u8)
}

/// Rows of blocks whose scales are random and sane and whose other bytes come from `byte`.
fn rows_of(format: Format, rows: usize, cols: usize, seed: u64, byte: impl Fn(&mut Random) -> u8) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut bytes = vec![0; rows * format.row_bytes(cols).expect("whole blocks")];
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        block.fill_with(|| byte(&mut random));
        let half = |random: &mut Random| half::f16::from_f32(random.signed() * 0.1).to_le_bytes();
        let halves: &[usize] = match format {
            Format::F32 => {
                block.copy_from_slice(&random.signed().to_le_bytes());
                continue;
            }
            Format::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(random.signed()).to_le_bytes());
                continue;
            }
            Format::MXFP4 => {
                block[0] = 120 + block[0] % 8;
                continue;
            }
            Format::F16 | Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL | Format::IQ4_XS => {
                &[0]
            }
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
            Format::Q2_K => &[80, 82],
            Format::Q3_K => &[108],
            Format::Q6_K => &[208],
        };
        for &at in halves {
            block[at..at + 2].copy_from_slice(&half(&mut random));
        }
    }
    bytes
}
