//! Qwen 3 (dense): a norm on every head of queries and keys, and heads whose size is not `width / heads`.

use super::Family;
use crate::model::config::{Config, HeadNorms};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family { name: "qwen3", models: "Qwen 3, 0.6B to 32B", read };

pub(super) fn read(keys: &Keys<'_>, family: &'static Family) -> Result<Config, ModelError> {
    let mut config = Config::transformer(keys, family, Pairing::Halves)?;
    for (_, attention) in config.attention_mut() {
        attention.head_norms = HeadNorms::Each;
    }
    config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
    config.feed_forward_scales = true;
    Ok(config)
}
