//! What the standard library lacks: units, atomic file writes, a seeded generator. No domain nouns.
#![forbid(unsafe_code)]

pub mod random;
pub mod units;
