//! Llama 2 and 3, Mistral 7B, TinyLlama, SmolLM2, Mixtral and their many descendants.

use super::Family;
use crate::model::config::Config;
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "llama",
    models: "Llama 2 and 3, Mistral, Mixtral, TinyLlama, SmolLM2",
    read: |keys, family| {
        Ok(Config { feed_forward_scales: true, ..Config::transformer(keys, family, Pairing::Adjacent)? })
    },
};
