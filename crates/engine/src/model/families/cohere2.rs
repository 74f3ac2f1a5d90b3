//! Command R7B: attention and feed-forward part beside each other after one layer norm; three layers of four have a sliding
//! window, and the others go without positions.

use super::Family;
use crate::model::config::{BeforeFeedForward, Config, LAYER_NORM_EPSILON, Norms, windowed_layers};
use kernels::attention::Pairing;
use kernels::ops::NormKind;

pub(super) static FAMILY: Family = Family {
    name: "cohere2",
    models: "Command R7B, Command A",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Adjacent)?;
        config.norm = NormKind::Layer;
        config.epsilon = keys.float(LAYER_NORM_EPSILON, 1e-5)?;
        config.set_norms(Norms { before_feed_forward: BeforeFeedForward::Parallel, ..Norms::BEFORE });
        config.logit_scale = keys.unless_zero("logit_scale")?.unwrap_or(1.0);
        config.feed_forward_scales = true;
        let window = keys.required("attention.sliding_window", usize::MAX)?;
        let windowed = windowed_layers(keys, config.layers.len(), 4)?;
        config.set_windows(window, &windowed, None);
        for (layer, attention) in config.attention_mut() {
            attention.rope = attention.rope.filter(|_| windowed[layer]);
        }
        Ok(config)
    },
};
