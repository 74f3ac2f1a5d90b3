//! SmolLM3: every fourth layer goes without positions (NoPE).

use super::Family;
use crate::model::config::Config;
use kernels::attention::Pairing;

const PERIOD: usize = 4;

pub(super) static FAMILY: Family = Family {
    name: "smollm3",
    models: "SmolLM3-3B",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Adjacent)?;
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        for (layer, attention) in config.attention_mut() {
            attention.rope = attention.rope.filter(|_| (layer + 1) % PERIOD != 0);
        }
        Ok(config)
    },
};
