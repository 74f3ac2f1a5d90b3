//! gpt-oss: experts with biases and a clamped SwiGLU, attention sinks, and a sliding window in every other layer.

use super::Family;
use crate::model::config::{BeforeFeedForward, Config, Norms, Probabilities, windowed_layers};
use kernels::attention::Pairing;
use kernels::ops::ActivationFunction;

pub(super) static FAMILY: Family = Family {
    name: "gpt-oss",
    models: "gpt-oss-20b and 120b",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        config.set_norms(Norms {
            before_feed_forward: BeforeFeedForward::Norm("post_attention_norm"),
            ..Norms::BEFORE
        });
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        config.set_function(ActivationFunction::ClampedSwiglu);
        for experts in config.experts_mut() {
            experts.router.probabilities = Probabilities::SoftmaxOfChosen;
            experts.router.normalized = false;
        }
        config.attention_mut().for_each(|(_, attention)| attention.sinks = true);
        let window = keys.required("attention.sliding_window", usize::MAX)?;
        let windowed = windowed_layers(keys, config.layers.len(), 2)?;
        config.set_windows(window, &windowed, None);
        Ok(config)
    },
};
