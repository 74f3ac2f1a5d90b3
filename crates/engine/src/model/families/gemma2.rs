//! Gemma 2: norms before and after each part, GeGLU, soft caps, and a sliding window in every other layer.

use super::Family;
use crate::model::config::{Attention, Config, Norms, windowed_layers};
use crate::model::{ModelError, keys::Keys, rope::Rope};
use kernels::attention::Pairing;
use kernels::ops::ActivationFunction;

pub(super) static FAMILY: Family = Family {
    name: "gemma2",
    models: "Gemma 2, 2B to 27B",
    read: |keys, family| {
        let mut config = embedding_scaled(keys, family)?;
        let soft_cap = keys.positive("attn_logit_softcapping", 50.0)?;
        config.attention_mut().for_each(|(_, attention)| attention.soft_cap = Some(soft_cap));
        config.logit_soft_cap = Some(keys.positive("final_logit_softcapping", 30.0)?);
        let window = keys.or("attention.sliding_window", 4096, usize::MAX)?;
        let windowed = windowed_layers(keys, config.layers.len(), 2)?;
        let rope = config.ropes[0].clone();
        let base = keys.positive("rope.freq_base_swa", rope.base)?;
        config.set_windows(window, &windowed, Some(Rope { base, ..rope }));
        // Its largest model scales by the width of all heads together instead of each head's.
        scale_by_width(&mut config, 46);
        Ok(config)
    },
};

/// What all Gemmas have in common.
pub(super) fn embedding_scaled(keys: &Keys<'_>, family: &'static Family) -> Result<Config, ModelError> {
    let mut config = Config::transformer(keys, family, Pairing::Halves)?;
    config.embedding_scale = (config.width as f32).sqrt();
    config.set_norms(Norms::AROUND);
    config.set_function(ActivationFunction::Gelu);
    config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
    let scale = |attention: &Attention| (attention.head_dim as f32).sqrt().recip();
    config.attention_mut().for_each(|(_, attention)| attention.scale = scale(attention));
    Ok(config)
}

/// Scores of a model with `layers` layers are divided by the root of its width over its heads.
pub(super) fn scale_by_width(config: &mut Config, layers: usize) {
    if config.layers.len() == layers {
        let width = config.width;
        for (_, attention) in config.attention_mut() {
            attention.scale = ((width / attention.heads) as f32).sqrt().recip();
        }
    }
}
