//! Qwen 3.5: three layers of four are gated delta nets, the fourth attends with a gate on what it mixes; dense or with experts.

use super::{Family, qwen2moe};
use crate::model::config::{
    self, BeforeFeedForward, Config, DeltaNet, HEADS_MAX, HeadNorms, LAYERS_MAX, Mixer, Norms, WIDTH_MAX,
};
use crate::model::rope::Sections;
use crate::model::{ModelError, keys::Keys};
use kernels::attention::Pairing;

/// Every so many layers one attends, where the file does not say which.
const PERIOD: usize = 4;

pub(super) static FAMILY: Family = Family { name: "qwen35", models: "Qwen 3.5 and 3.6, 0.8B to 27B", read };

pub(super) static EXPERTS: Family = Family {
    name: "qwen35moe",
    models: "Qwen3.5-35B-A3B and larger",
    read: |keys, family| {
        let mut config = read(keys, family)?;
        qwen2moe::share(keys, &mut config)?;
        config.read_predictor(keys);
        Ok(config)
    },
};

fn read(keys: &Keys<'_>, family: &'static Family) -> Result<Config, ModelError> {
    let net = delta_net(keys)?;
    let layers = config::layers(keys)?;
    let recurrent = match keys.flags("attention.recurrent_layers", layers)? {
        Some(flags) => flags,
        None => {
            let period = keys.or("full_attention_interval", PERIOD, LAYERS_MAX)?;
            (0..layers).map(|layer| (layer + 1) % period != 0).collect()
        }
    };
    let other = |layer: usize, _| recurrent[layer].then_some(Mixer::DeltaNet(net));
    let mut config = Config::hybrid(keys, family, Pairing::Halves, other)?;
    config.set_norms(Norms {
        before_feed_forward: BeforeFeedForward::Norm("post_attention_norm"),
        ..Norms::BEFORE
    });
    config.feed_forward_scales = true;
    for (_, attention) in config.attention_mut() {
        attention.head_norms = HeadNorms::Each;
        attention.gated = true;
    }
    config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
    for rope in &mut config.ropes {
        rope.read_sections(keys, Sections::Interleaved)?;
    }
    config.read_predictor(keys);
    Ok(config)
}

fn delta_net(keys: &Keys<'_>) -> Result<DeltaNet, ModelError> {
    let inner = keys.required("ssm.inner_size", WIDTH_MAX)?;
    let value_heads = keys.required("ssm.time_step_rank", HEADS_MAX)?;
    let key_heads = keys.required("ssm.group_count", HEADS_MAX)?;
    let key_dim = keys.required("ssm.state_size", 4096)?;
    if inner % value_heads != 0 {
        let wanted = format!("a divisor of {inner} inner elements");
        return Err(keys.bad("ssm.time_step_rank", value_heads, wanted));
    }
    if value_heads % key_heads != 0 {
        let wanted = format!("a divisor of {value_heads} value heads");
        return Err(keys.bad("ssm.group_count", key_heads, wanted));
    }
    let taps = keys.required("ssm.conv_kernel", 64)?;
    Ok(DeltaNet { taps, key_heads, value_heads, key_dim, value_dim: inner / value_heads })
}
