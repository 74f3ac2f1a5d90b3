//! NEON of Armv8.0: four registers hold a cell of 16 rows x 4 columns, `smlal` multiplies each by 4 activations that are
//! broadcast from memory into 16-bit sums.

pub(super) mod float;
pub(super) mod integer;
mod peak;
pub(super) mod strip;

use crate::arch::table;
use crate::elementwise::{Lanes, elementwise};
use crate::isa::Table;
use float::{Bf16, F16, F32, I8};
use strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};

pub(super) enum Fused {}

impl Lanes for Fused {
    const FUSED: bool = true;
}

elementwise!(Fused, target_feature(enable = "neon"));

pub(crate) static TABLE: Table = table!(Neon);

use float::{float_tile, mix, score};
use integer::{integer_tile, integer_tile as superblock_tile};
use peak::dots;
