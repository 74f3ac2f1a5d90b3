//! Qwen 2 and 2.5 and what was distilled into them: biases on queries, keys and values.

use super::Family;
use kernels::attention::Pairing;

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    pairing: Pairing::Halves,
    head_norms: false,
    rope_factors: false,
    feed_forward_scales: false,
};
