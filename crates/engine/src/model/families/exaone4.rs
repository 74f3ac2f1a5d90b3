//! EXAONE 4: norms after each part and on every head; in the large model three layers of four have a sliding window, and the
//! others go without positions.

use super::Family;
use crate::model::config::{Config, HeadNorms, Norms, windowed_layers};
use kernels::attention::Pairing;

/// Layers of the model with sliding windows.
const LAYERS_LARGE: usize = 64;

pub(super) static FAMILY: Family = Family {
    name: "exaone4",
    models: "EXAONE 4, 1.2B and 32B",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        config.set_norms(Norms::AFTER);
        config.attention_mut().for_each(|(_, attention)| attention.head_norms = HeadNorms::Each);
        if config.layers.len() == LAYERS_LARGE {
            let window = keys.or("attention.sliding_window", 4096, usize::MAX)?;
            let windowed = windowed_layers(keys, LAYERS_LARGE, 4)?;
            config.set_windows(window, &windowed, None);
            for (layer, attention) in config.attention_mut() {
                attention.rope = attention.rope.filter(|_| windowed[layer]);
            }
        }
        Ok(config)
    },
};
