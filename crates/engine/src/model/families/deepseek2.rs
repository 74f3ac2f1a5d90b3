//! DeepSeek V2 and V3 and what is built like them: latent attention, experts with a shared one after some dense layers.

use super::Family;
use crate::model::config::{Config, HEADS_MAX, Latent, Mixer, Probabilities, Temperature, WIDTH_MAX};
use crate::model::rope::{Rope, Scaling, yarn_magnitude};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::{HEAD_DIM_MAX, Pairing};

pub(super) static FAMILY: Family = Family {
    name: "deepseek2",
    models: "DeepSeek V2 and V3, GLM-4.7-Flash (files with attn_k_b, as they are made since 2025)",
    read: |keys, family| {
        if keys.has_tensor("blk.0.attn_kv_b.weight") {
            let what = "deepseek2 with attn_kv_b in one, as its files were before 2025,".to_owned();
            return Err(ModelError::Unsupported { what });
        }
        let latent = latent(keys)?;
        let mut config =
            Config::hybrid(keys, family, Pairing::Adjacent, |_, _| Some(Mixer::Latent(latent.clone())))?;
        config.ropes = vec![rope(keys, latent.turned_dim)?];
        let otherwise = match is_early_glm(&config) {
            true => Probabilities::Sigmoid,
            false => Probabilities::Softmax,
        };
        let probabilities = Probabilities::read(keys)?.unwrap_or(otherwise);
        let normalized = keys.flag("expert_weights_norm", false)?;
        let shared = keys.count("expert_shared_count", HEADS_MAX)?;
        for experts in config.experts_mut() {
            experts.router.probabilities = probabilities;
            experts.router.normalized = normalized;
            experts.share(shared * experts.width, false);
        }
        config.read_predictor(keys);
        Ok(config)
    },
};

/// The first files of GLM-4.7-Flash do not say how their experts are chosen.
fn is_early_glm(config: &Config) -> bool {
    matches!(config.layers.len(), 47 | 48) && config.vocabulary == 154_880
}

fn latent(keys: &Keys<'_>) -> Result<Latent, ModelError> {
    let turned_dim = keys.required("rope.dimension_count", HEAD_DIM_MAX)?;
    let all = keys.required("attention.key_length_mla", HEAD_DIM_MAX)?;
    if all <= turned_dim {
        let wanted = format!("more than the {turned_dim} that are turned");
        return Err(keys.bad("attention.key_length_mla", all, wanted));
    }
    let query_rank = match keys.has_tensor("blk.0.attn_q.weight") {
        true => None,
        false => Some(keys.required("attention.q_lora_rank", WIDTH_MAX)?),
    };
    // YaRN makes the turned part of keys and queries longer; here, all scores are made larger instead.
    let magnitude = match rope(keys, turned_dim)?.scaling {
        Scaling::Linear { .. } => 1.0,
        Scaling::Yarn(yarn) => {
            // Files have a tenth of the weight.
            let weight = keys.float(LOG_MULTIPLIER, 0.0)? / 0.1;
            yarn_magnitude(yarn.divisor, weight)
        }
    };
    let temperature = match keys.unless_zero("attention.temperature_scale")? {
        Some(scale) => {
            let tokens = keys.required("attention.temperature_length", usize::MAX)? as f32;
            Some(Temperature { scale, tokens })
        }
        None => None,
    };
    let rank = keys.required("attention.kv_lora_rank", HEAD_DIM_MAX - turned_dim.min(HEAD_DIM_MAX - 1))?;
    Ok(Latent {
        heads: keys.required("attention.head_count", HEADS_MAX)?,
        query_rank,
        rank,
        key_dim: all - turned_dim,
        turned_dim,
        value_dim: keys.required("attention.value_length_mla", HEAD_DIM_MAX)?,
        scale: magnitude * magnitude / (all as f32).sqrt(),
        rope: 0,
        temperature,
    })
}

const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";

/// The rotary embedding, without making what it turns longer where scores are made larger instead.
fn rope(keys: &Keys<'_>, dims: usize) -> Result<Rope, ModelError> {
    let mut rope = Rope::read(keys, Pairing::Adjacent, dims)?.without_factors();
    if let Scaling::Yarn(yarn) = &mut rope.scaling
        && keys.float(LOG_MULTIPLIER, 0.0)? != 0.0
    {
        yarn.magnitude = 1.0;
    }
    Ok(rope)
}
