//! OLMo 2 and 3: norms after each part, a norm over all heads of queries and of keys, and in OLMo 3 three layers of four with
//! a sliding window and a rotary embedding that is not stretched.

use super::Family;
use crate::model::config::{Config, HeadNorms, Norms, windowed_layers};
use crate::model::rope::{Rope, Scaling};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "olmo2",
    models: "OLMo 2 and 3",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        config.set_norms(Norms::AFTER);
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        config.attention_mut().for_each(|(_, attention)| attention.head_norms = HeadNorms::All);
        let window = keys.count("attention.sliding_window", usize::MAX)?;
        if window > 0 {
            let windowed = windowed_layers(keys, config.layers.len(), 4)?;
            let scaling = Scaling::Linear { divisor: 1.0, magnitude: 1.0 };
            let rope = Rope { scaling, ..config.ropes[0].clone() };
            config.set_windows(window, &windowed, Some(rope));
        }
        Ok(config)
    },
};
