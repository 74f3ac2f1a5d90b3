//! Arithmetic on quantized blocks, one implementation per instruction set, chosen at run time.
//!
//! Weights are packed once into strips of 16 interleaved rows ([`layout`]), activations into panels of up to 12 tokens
//! ([`panel`]); a *tile* multiplies the two, and everything a transformer does between two synchronizations is one call
//! here ([`ops`], [`attention`]), shared out in small chunks over a [`Pool`]. Knows nothing of models, files or text.
//! The only hot unsafe code of the project; what it exports is safe.
//!
//! Results do not depend on the number of threads, nor on what else is in the batch: every output is summed in one
//! fixed order. They do depend on the instruction set, in the last bits.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod arch;
#[allow(unsafe_code)]
pub mod attention;
pub mod bandwidth;
#[allow(unsafe_code)]
mod elementwise;
pub mod format;
#[allow(unsafe_code)]
pub mod isa;
pub mod layout;
#[allow(unsafe_code)]
pub mod matrix;
#[allow(unsafe_code)]
pub mod ops;
#[allow(unsafe_code)]
pub mod panel;
#[allow(unsafe_code)]
pub mod peak;
#[allow(unsafe_code)]
pub mod pool;
#[allow(unsafe_code)]
pub mod recurrent;
#[allow(unsafe_code)]
mod shared;

pub use format::Format;
pub use isa::{Isa, Table};
pub use layout::Layout;
pub use matrix::Matrix;
pub use panel::Activations;
pub use pool::Pool;

/// What every operation needs: the instruction set's functions and the threads to share the work.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub table: &'static Table,
    pub pool: &'a Pool,
}
