//! LFM2: most layers are short convolutions between two gates, some attend; dense or with experts.

use super::Family;
use crate::model::config::{
    Config, FeedForward, HeadNorms, LAYERS_MAX, Mixer, Probabilities, ShortConvolution,
};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::{Mask, Pairing};

/// The most tokens that a convolution may claim to see.
const TAPS_MAX: usize = 64;

pub(super) static FAMILY: Family = Family {
    name: "lfm2",
    models: "LFM2 and 2.5, 230M to 2.6B",
    read: |keys, family| {
        let mut config = convolutions(keys, family)?;
        let window = keys.count("attention.sliding_window", usize::MAX)?;
        if window > 0 {
            config.attention_mut().for_each(|(_, attention)| attention.mask = Mask::Window(window));
        }
        Ok(config)
    },
};

pub(super) static EXPERTS: Family = Family {
    name: "lfm2moe",
    models: "LFM2-8B-A1B, LFM2-24B-A2B",
    read: |keys, family| {
        let mut config = convolutions(keys, family)?;
        let probabilities = Probabilities::read(keys)?.unwrap_or(Probabilities::Sigmoid);
        config.experts_mut().for_each(|experts| experts.router.probabilities = probabilities);
        let dense = keys.count("leading_dense_block_count", LAYERS_MAX)?;
        let mut layers = config.layers.iter().skip(dense);
        if layers.any(|layer| !matches!(layer.feed_forward, FeedForward::Experts(_))) {
            return Err(keys.missing("expert_count"));
        }
        Ok(config)
    },
};

/// A layer without key-value heads is a convolution.
fn convolutions(keys: &Keys<'_>, family: &'static Family) -> Result<Config, ModelError> {
    let taps = keys.required("shortconv.l_cache", TAPS_MAX)?;
    if taps < 2 {
        return Err(keys.bad("shortconv.l_cache", taps, format!("from 2 to {TAPS_MAX}")));
    }
    let convolution =
        |_, kv_heads| (kv_heads == 0).then_some(Mixer::ShortConvolution(ShortConvolution { taps }));
    let mut config = Config::hybrid(keys, family, Pairing::Halves, convolution)?;
    config.output_norm = Some("token_embd_norm");
    config.attention_mut().for_each(|(_, attention)| attention.head_norms = HeadNorms::Each);
    config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
    Ok(config)
}
