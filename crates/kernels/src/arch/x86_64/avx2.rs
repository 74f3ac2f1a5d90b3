//! AVX2: two registers hold a cell of 16 rows x 4 columns, `vpmaddubsw` multiplies each by 4 activations that are
//! broadcast from memory.

mod float;
mod integer;
mod peak;
mod strip;

use crate::arch::per_width;
use crate::elementwise::{Lanes, elementwise};
use crate::isa::{CacheTiles, Isa, Table};
use float::{Bf16, F16, F32, I8};
use strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};

enum Fused {}

impl Lanes for Fused {
    const FUSED: bool = true;
}

elementwise!(Fused, target_feature(enable = "avx2,fma,f16c"));

pub(crate) static TABLE: Table = Table {
    isa: Isa::Avx2,
    f32: per_width!(float_tile, F32),
    f16: per_width!(float_tile, F16),
    bf16: per_width!(float_tile, Bf16),
    q8: per_width!(integer_tile, Q8),
    q4: per_width!(integer_tile, Q4),
    iq4_nl: per_width!(integer_tile, Iq4Nl),
    mxfp4: per_width!(integer_tile, Mxfp4),
    q4k: per_width!(integer_tile, Q4K),
    q5k: per_width!(integer_tile, Q5K),
    q3k: per_width!(integer_tile, Q3K),
    q6k: per_width!(integer_tile, Q6K),
    iq4_xs: per_width!(integer_tile, Iq4Xs),
    w8: per_width!(integer_tile, W8),
    w8_half: per_width!(integer_tile, W8Half),
    cache_f32: CacheTiles { score: per_width!(score, F32), mix: per_width!(mix, F32) },
    cache_f16: CacheTiles { score: per_width!(score, F16), mix: per_width!(mix, F16) },
    cache_bf16: CacheTiles { score: per_width!(score, Bf16), mix: per_width!(mix, Bf16) },
    mix_q8: per_width!(mix, I8),
    quantize_row,
    rms_norm,
    silu_mul,
    softmax_tile,
    max,
    exp_sum,
    dots,
};

use float::{float_tile, mix, score};
use integer::integer_tile;
use peak::dots;
