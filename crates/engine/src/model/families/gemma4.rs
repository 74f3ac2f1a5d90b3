//! Gemma 4: as Gemma 3, with longer heads in layers that see everything, layers at the end that attend to what earlier ones
//! keep, an embedding of each token for each layer, and experts beside a dense part.

use super::Family;
use super::gemma2::embedding_scaled;
use crate::model::ModelError;
use crate::model::config::{Attention, Config, FeedForward, HeadNorms, LAYERS_MAX, Values, WIDTH_MAX};
use crate::model::keys::Keys;
use crate::model::rope::{Factors, Rope, Scaling};
use kernels::attention::{HEAD_DIM_MAX, Mask};

pub(super) static FAMILY: Family = Family {
    name: "gemma4",
    models: "Gemma 4, E2B to 31B",
    read: |keys, family| {
        let mut config = embedding_scaled(keys, family)?;
        config.ropes.iter_mut().for_each(|rope| rope.factors = Factors::Needed);
        config.feed_forward_scales = true;
        config.layer_scales = true;
        config.logit_soft_cap = keys.unless_zero("final_logit_softcapping")?;
        let per_layer = keys.count("embedding_length_per_layer_input", WIDTH_MAX)?;
        config.per_layer = (per_layer > 0).then_some(per_layer);
        for (layer, attention) in config.attention_mut() {
            attention.scale = 1.0;
            attention.head_norms = HeadNorms::Each;
            let has = |name: &str| keys.has_tensor(&format!("blk.{layer}.{name}.weight"));
            let of_keys = !has("attn_v") && !has("attn_qkv");
            attention.values = Values { of_keys, normed: true };
        }
        set_windows(&mut config, keys)?;
        share(&mut config, keys)?;
        set_beside(&mut config, keys)?;
        Ok(config)
    },
};

/// Layers with a sliding window have heads and a rotary embedding of their own.
fn set_windows(config: &mut Config, keys: &Keys<'_>) -> Result<(), ModelError> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    const TURNED: &str = "rope.dimension_count_swa";
    let windowed = keys.flags(PATTERN, config.layers.len())?.ok_or_else(|| keys.missing(PATTERN))?;
    let head_dim = keys.required("attention.key_length_swa", HEAD_DIM_MAX)?;
    if keys.or("attention.value_length_swa", head_dim, HEAD_DIM_MAX)? != head_dim {
        return Err(ModelError::Unsupported { what: "values of another length than keys".to_owned() });
    }
    let dims = keys.or(TURNED, head_dim, HEAD_DIM_MAX)?;
    if dims > head_dim || dims % 2 != 0 {
        return Err(keys.bad(TURNED, dims, format!("even and at most {head_dim}")));
    }
    let rope = Rope {
        dims,
        base: keys.positive("rope.freq_base_swa", 10_000.0)?,
        scaling: Scaling::Linear { divisor: 1.0, magnitude: 1.0 },
        ..config.ropes[0].clone().without_factors()
    };
    config.set_windows(keys.required("attention.sliding_window", usize::MAX)?, &windowed, Some(rope));
    for (_, attention) in config.attention_mut().filter(|(layer, _)| windowed[*layer]) {
        attention.head_dim = head_dim;
    }
    Ok(())
}

/// The last layers attend to what the last of their kind before them keeps.
fn share(config: &mut Config, keys: &Keys<'_>) -> Result<(), ModelError> {
    const KEY: &str = "attention.shared_kv_layers";
    let (layers, sharing) = (config.layers.len(), keys.count(KEY, LAYERS_MAX)?);
    let bad = || keys.bad(KEY, sharing, format!("so few of {layers} that one of each kind has its own"));
    let own = layers.checked_sub(sharing).filter(|&own| own > 0).ok_or_else(bad)?;
    let all: Vec<Attention> = config.attention_mut().map(|(_, attention)| attention.clone()).collect();
    let is_windowed = |attention: &Attention| attention.mask != Mask::Causal;
    for (_, attention) in config.attention_mut().skip(own) {
        let alike = |other: &Attention| is_windowed(other) == is_windowed(attention);
        let earlier = all[..own].iter().rposition(alike).ok_or_else(bad)?;
        if all[earlier].kv_heads != attention.kv_heads {
            let what = "layers that share keys and values of another number of heads".to_owned();
            return Err(ModelError::Unsupported { what });
        }
        attention.shares = Some(earlier);
    }
    Ok(())
}

/// Where there are experts, each layer has a dense part beside them.
fn set_beside(config: &mut Config, keys: &Keys<'_>) -> Result<(), ModelError> {
    const KEY: &str = "feed_forward_length";
    let widths = keys.per_layer(KEY, config.layers.len(), WIDTH_MAX)?.ok_or_else(|| keys.missing(KEY))?;
    for (layer, width) in config.layers.iter_mut().zip(widths) {
        if let FeedForward::Experts(experts) = &layer.feed_forward {
            layer.feed_forward = FeedForward::DenseAndExperts { width, experts: experts.clone() };
        }
    }
    Ok(())
}
