//! NEON with the matrix instructions of Armv8.6: one `smmla` multiplies 2 rows x 8 columns by 2 tokens' 8 activations.
//! Up to 4 tokens are multiplied by `sdot`, and floats are as in plain NEON.

mod integer;
mod peak;

use super::neon::Registers;
use super::neon::float::{Bf16, F16, F32, I8, float_tile, mix, score};
use super::neon::strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};
use crate::arch::table;
use crate::elementwise::elementwise;
use crate::isa::Table;

elementwise!(Registers, target_feature(enable = "neon,dotprod,i8mm"));

pub(crate) static TABLE: Table = table!(NeonI8mm);

use integer::{integer_tile, integer_tile as superblock_tile};
use peak::dots;
