//! Qwen 3 (dense): a norm on every head of queries and keys, and heads whose size is not `width / heads`.

use super::Family;
use kernels::attention::Pairing;

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    pairing: Pairing::Halves,
    head_norms: true,
    rope_factors: false,
    feed_forward_scales: true,
};
