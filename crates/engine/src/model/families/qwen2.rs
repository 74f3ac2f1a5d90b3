//! Qwen 2 and 2.5 and what was distilled into them: biases on queries, keys and values.

use super::Family;
use crate::model::config::Config;
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "qwen2",
    models: "Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        Ok(config)
    },
};
