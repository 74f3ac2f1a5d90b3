//! Phi 3, 3.5 and 4: fused matrices, part of each head turned, and factors of the frequencies for short and long contexts.

use super::Family;
use crate::model::config::Config;
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "phi3",
    models: "Phi 3, 3.5 and 4",
    // Its files claim sliding windows that the models were not trained with.
    read: |keys, family| Config::transformer(keys, family, Pairing::Halves),
};
