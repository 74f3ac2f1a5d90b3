//! NEON with the dot product instructions of Armv8.2: one `sdot` multiplies 4 rows x 4 columns by 4 activations, which it
//! takes from any quarter of a register. Floats are as in plain NEON.

pub(super) mod integer;
mod peak;

use super::neon::Registers;
use super::neon::float::{Bf16, F16, F32, I8, float_tile, mix, score};
use super::neon::strip::{Iq4Nl, Iq4Xs, Mxfp4, Q3K, Q4, Q4K, Q5K, Q6K, Q8, W8, W8Half};
use crate::arch::table;
use crate::elementwise::elementwise;
use crate::isa::Table;

elementwise!(Registers, target_feature(enable = "neon,dotprod"));

pub(crate) static TABLE: Table = table!(NeonDotprod);

use integer::{integer_tile, integer_tile as superblock_tile};
use peak::dots;
