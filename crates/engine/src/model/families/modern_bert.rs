//! ModernBERT: norms before each part but the first, GeGLU, rotary positions, and two layers of three that see only what is near.

use super::Family;
use crate::model::config::{
    Classifier, ClassifierFunction, Config, Input, LAYER_NORM_EPSILON, LAYERS_MAX, Output, Pooling,
};
use crate::model::rope::Rope;
use kernels::attention::Pairing;
use kernels::ops::{ActivationFunction, NormKind};

pub(super) static FAMILY: Family = Family {
    name: "modern-bert",
    models: "ModernBERT encoders: GTE, Granite Embedding R2",
    read: |keys, family| {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let mut config = Config::transformer(keys, family, Pairing::Halves)?;
        config.norm = NormKind::Layer;
        config.epsilon = keys.float(LAYER_NORM_EPSILON, 1e-5)?;
        config.input = Input { norm: Some("token_embd_norm"), ..Input::default() };
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        config.set_function(match keys.str("hidden_activation")? {
            None | Some("gelu" | "geglu") => ActivationFunction::ExactGelu,
            Some("silu" | "swish" | "swiglu") => ActivationFunction::Silu,
            Some(other) => {
                return Err(keys.bad("hidden_activation", other, "gelu or silu".to_owned()));
            }
        });
        if !keys.has_tensor("blk.0.attn_norm.weight")
            && let Some(first) = config.layers.first_mut()
        {
            first.norms.mixer = None;
        }
        let window = keys.count("attention.sliding_window", usize::MAX)?;
        if window > 0 {
            let layers = config.layers.len();
            let windowed = match keys.flags(PATTERN, layers)? {
                Some(windowed) => windowed,
                None => {
                    let period = keys.or(PATTERN, 3, LAYERS_MAX)?;
                    (0..layers).map(|layer| layer % period != 0).collect()
                }
            };
            let base = keys.positive("rope.freq_base_swa", 10_000.0)?;
            let rope = Rope { base, ..config.ropes[0].clone() };
            config.set_windows(window, &windowed, Some(rope));
        }
        config.output = Output::Embedding(Pooling::Mean);
        // Only rerankers are asked for a score.
        if keys.optional("pooling_type")? == Some(4) || keys.has_tensor("cls.output.weight") {
            let classifier = Classifier { function: ClassifierFunction::Gelu, softmax: false };
            config.output = Output::Score(Pooling::Mean, classifier);
        }
        Ok(config)
    },
};
