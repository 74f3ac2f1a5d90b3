//! EmbeddingGemma: Gemma 3 whose tokens see the whole text, or in five layers of six what is near.

use super::Family;
use super::gemma2::embedding_scaled;
use crate::model::config::{HeadNorms, Output, Pooling, windowed_layers};
use crate::model::rope::{Rope, Scaling};

pub(super) static FAMILY: Family = Family {
    name: "gemma-embedding",
    models: "EmbeddingGemma 300M",
    read: |keys, family| {
        let mut config = embedding_scaled(keys, family)?;
        config.attention_mut().for_each(|(_, attention)| attention.head_norms = HeadNorms::Each);
        let window = keys.required("attention.sliding_window", usize::MAX)?;
        let windowed = windowed_layers(keys, config.layers.len(), 6)?;
        let rope = Rope {
            base: keys.positive("rope.freq_base_swa", 10_000.0)?,
            scaling: Scaling::Linear { divisor: 1.0, magnitude: 1.0 },
            ..config.ropes[0].clone()
        };
        config.set_windows(window, &windowed, Some(rope));
        config.output = Output::Embedding(Pooling::Mean);
        Ok(config)
    },
};
