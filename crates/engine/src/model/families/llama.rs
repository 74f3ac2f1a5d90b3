//! Llama 2 and 3, Mistral 7B, TinyLlama, SmolLM2 and their many descendants.

use super::Family;
use kernels::attention::Pairing;

pub(super) const FAMILY: Family = Family {
    name: "llama",
    pairing: Pairing::Adjacent,
    head_norms: false,
    rope_factors: true,
    feed_forward_scales: true,
};
