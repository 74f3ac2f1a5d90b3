//! Ministral 3: a llama with YaRN whose queries grow with their position.

use super::Family;
use crate::model::config::{Config, Temperature};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "mistral3",
    models: "Ministral 3, 3B to 14B",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Adjacent)?;
        config.feed_forward_scales = true;
        if let Some(scale) = keys.unless_zero("attention.temperature_scale")? {
            let tokens =
                keys.or("rope.scaling.original_context_length", config.context_tokens, usize::MAX)? as f32;
            let temperature = Some(Temperature { scale, tokens });
            config.attention_mut().for_each(|(_, attention)| attention.temperature = temperature);
        }
        Ok(config)
    },
};
