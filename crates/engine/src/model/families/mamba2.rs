//! Mamba-2: no attention and no feed-forward parts, a state of fixed size in every layer.

use super::Family;
use crate::model::config::{
    BeforeFeedForward, Config, FeedForward, HEADS_MAX, Mamba, Mixer, Norms, WIDTH_MAX,
};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "mamba2",
    models: "Mamba-2, Codestral Mamba",
    read: |keys, family| {
        let mamba = read(keys)?;
        let mut config = Config::hybrid(keys, family, Pairing::Adjacent, |_, _| Some(Mixer::Mamba(mamba)))?;
        config.set_norms(Norms { before_feed_forward: BeforeFeedForward::Nothing, ..Norms::BEFORE });
        config.layers.iter_mut().for_each(|layer| layer.feed_forward = FeedForward::None);
        Ok(config)
    },
};

/// The sizes of all layers.
pub(super) fn read(keys: &Keys<'_>) -> Result<Mamba, ModelError> {
    let inner = keys.required("ssm.inner_size", WIDTH_MAX)?;
    let heads = keys.required("ssm.time_step_rank", HEADS_MAX)?;
    let groups = keys.required("ssm.group_count", HEADS_MAX)?;
    if inner % heads != 0 {
        return Err(keys.bad("ssm.time_step_rank", heads, format!("a divisor of {inner} inner elements")));
    }
    if heads % groups != 0 {
        return Err(keys.bad("ssm.group_count", groups, format!("a divisor of {heads} heads")));
    }
    Ok(Mamba {
        taps: keys.required("ssm.conv_kernel", 64)?,
        heads,
        head_dim: inner / heads,
        state_dim: keys.required("ssm.state_size", 4096)?,
        groups,
    })
}
