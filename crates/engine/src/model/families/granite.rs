//! Granite 3 and 4: a llama whose embeddings, residuals, scores and logits are scaled, dense or with experts.

use super::Family;
use crate::model::config::{Config, WIDTH_MAX};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family { name: "granite", models: "Granite 3 and 4 (dense)", read };

pub(super) static EXPERTS: Family =
    Family { name: "granitemoe", models: "Granite 3 and 4 with experts", read };

fn read(keys: &Keys<'_>, family: &'static Family) -> Result<Config, ModelError> {
    let mut config = Config::transformer(keys, family, Pairing::Adjacent)?;
    scale(keys, &mut config)?;
    Ok(config)
}

/// What all Granites have in common.
pub(super) fn scale(keys: &Keys<'_>, config: &mut Config) -> Result<(), ModelError> {
    config.embedding_scale = keys.unless_zero("embedding_scale")?.unwrap_or(1.0);
    config.residual_scale = keys.unless_zero("residual_scale")?.unwrap_or(1.0);
    config.logit_scale = keys.unless_zero("logit_scale")?.unwrap_or(1.0).recip();
    // Files of models that go without positions say so under this name.
    if !keys.flag("rope.scaling.finetuned", true)? {
        config.attention_mut().for_each(|(_, attention)| attention.rope = None);
    }
    let shared = keys.count("expert_shared_feed_forward_length", WIDTH_MAX)?;
    config.experts_mut().for_each(|experts| experts.share(shared, false));
    Ok(())
}
