//! AVX2: two registers hold a cell of 16 rows x 4 columns, `vpmaddubsw` multiplies each by 4 activations that are
//! broadcast from memory.

mod float;
mod integer;
mod peak;
mod strip;
mod superblock;

use crate::arch::table;
use crate::elementwise::{Lanes, elementwise};
use crate::isa::Table;
use float::{Bf16, F16, F32, I8};
use strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};

enum Fused {}

impl Lanes for Fused {
    const FUSED: bool = true;
}

elementwise!(Fused, target_feature(enable = "avx2,fma,f16c"));

pub(crate) static TABLE: Table = table!(Avx2);

use float::{float_tile, mix, score};
use integer::integer_tile;
use peak::dots;
use superblock::superblock_tile;
