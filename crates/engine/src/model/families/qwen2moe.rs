//! Qwen 1.5 and 2 with experts: weights as they are chosen, and a shared expert behind a gate.

use super::Family;
use crate::model::config::{Config, WIDTH_MAX};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "qwen2moe",
    models: "Qwen1.5-MoE, Qwen2-57B-A14B",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        let width = keys.required("expert_shared_feed_forward_length", WIDTH_MAX)?;
        for experts in config.experts_mut() {
            experts.router.normalized = false;
            experts.share(width, true);
        }
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        Ok(config)
    },
};
