//! Gemma 3: as Gemma 2, with a norm on every head in place of soft caps, and five layers of six with a sliding window and a
//! rotary embedding of their own.

use super::Family;
use super::gemma2::{embedding_scaled, scale_by_width};
use crate::model::config::{HeadNorms, windowed_layers};
use crate::model::rope::{Rope, Scaling};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "gemma3",
    models: "Gemma 3, 270M to 27B",
    read: |keys, family| {
        let mut config = embedding_scaled(keys, family)?;
        config.attention_mut().for_each(|(_, attention)| attention.head_norms = HeadNorms::Each);
        config.logit_soft_cap = keys.unless_zero("final_logit_softcapping")?;
        let window = keys.count("attention.sliding_window", usize::MAX)?;
        if window > 0 {
            let windowed = windowed_layers(keys, config.layers.len(), 6)?;
            let rope = Rope {
                base: keys.positive("rope.freq_base_swa", 10_000.0)?,
                scaling: Scaling::Linear { divisor: 1.0, magnitude: 1.0 },
                pairing: Pairing::Halves,
                ..config.ropes[0].clone()
            };
            config.set_windows(window, &windowed, Some(rope));
        }
        scale_by_width(&mut config, 62);
        Ok(config)
    },
};
