//! Qwen 1.5 and 2 with experts: weights as they are chosen, and a shared expert behind a gate.

use super::Family;
use crate::model::config::{Config, WIDTH_MAX};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "qwen2moe",
    models: "Qwen1.5-MoE, Qwen2-57B-A14B",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        share(keys, &mut config)?;
        config.experts_mut().for_each(|experts| experts.router.normalized = false);
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        Ok(config)
    },
};

/// A shared expert behind a gate. The first files say neither its width, which is that of all experts that a token goes
/// through together, nor theirs.
pub(super) fn share(keys: &Keys<'_>, config: &mut Config) -> Result<(), ModelError> {
    let all = keys.count("feed_forward_length", WIDTH_MAX)?;
    let shared = keys.count("expert_shared_feed_forward_length", WIDTH_MAX)?;
    let shared = if shared == 0 { all } else { shared };
    let says_width = keys.count("expert_feed_forward_length", WIDTH_MAX)? > 0;
    for experts in config.experts_mut() {
        experts.share(shared, true);
        if !says_width {
            experts.width = all / experts.used;
        }
    }
    Ok(())
}
