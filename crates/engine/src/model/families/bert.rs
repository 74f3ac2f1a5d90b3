//! Encoders in the manner of BERT: layer norms of the residual stream after each part, and tokens that see the whole text.

use super::Family;
use crate::model::config::{Config, HeadNorms, Input, LAYER_NORM_EPSILON, Norms, Output, Pooling, slopes};
use crate::model::{ModelError, keys::Keys};
use kernels::attention::Pairing;
use kernels::ops::{ActivationFunction, NormKind};

/// Positions are learned, one by one. Those of RoBERTa and its kin begin after the padding's number; files have them from there.
pub(super) static FAMILY: Family = Family {
    name: "bert",
    models: "BERT and XLM-RoBERTa encoders: MiniLM, BGE, BGE-M3, E5, GTE, Arctic Embed",
    read: |keys, family| {
        let mut config = encoder(keys, family, Pairing::Halves)?;
        config.input.positions = true;
        without_rotation(&mut config);
        config.set_ungated();
        Ok(config)
    },
};

/// Rotary positions and SwiGLU.
pub(super) static NOMIC: Family = Family {
    name: "nomic-bert",
    models: "Nomic Embed 1 and 1.5",
    read: |keys, family| {
        let mut config = encoder(keys, family, Pairing::Halves)?;
        config.set_function(ActivationFunction::Silu);
        Ok(config)
    },
};

/// Scores fall with the distance, and gates where the file has some.
pub(super) static JINA_2: Family = Family {
    name: "jina-bert-v2",
    models: "Jina Embeddings 2 and 2 Code, Jina Reranker 1",
    read: |keys, family| {
        let mut config = encoder(keys, family, Pairing::Halves)?;
        without_rotation(&mut config);
        if keys.has_tensor("blk.0.attn_norm_2.weight") {
            config.set_norms(Norms { mixed_stream_again: Some("attn_norm_2"), ..Norms::OF_SUMS });
        }
        let normed = keys.has_tensor("blk.0.attn_q_norm.weight");
        for (_, attention) in config.attention_mut() {
            attention.slopes = Some(slopes(attention.heads));
            attention.head_norms = if normed { HeadNorms::Layer } else { HeadNorms::None };
        }
        if !has_gates(keys, &config) {
            config.set_ungated();
        }
        Ok(config)
    },
};

/// Rotary positions.
pub(super) static JINA_3: Family = Family {
    name: "jina-bert-v3",
    models: "Jina Embeddings 3",
    read: |keys, family| {
        let mut config = encoder(keys, family, Pairing::Halves)?;
        config.set_ungated();
        Ok(config)
    },
};

fn encoder(keys: &Keys<'_>, family: &'static Family, pairing: Pairing) -> Result<Config, ModelError> {
    let mut config = Config::transformer(keys, family, pairing)?;
    config.norm = NormKind::Layer;
    config.epsilon = keys.float(LAYER_NORM_EPSILON, 1e-12)?;
    config.input = Input { segments: true, norm: Some("token_embd_norm"), ..Input::default() };
    config.set_norms(Norms::OF_SUMS);
    config.set_function(ActivationFunction::ExactGelu);
    config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
    config.output_norm = None;
    config.output = Output::Embedding(Pooling::Mean);
    Ok(config)
}

fn without_rotation(config: &mut Config) {
    config.ropes.clear();
    config.attention_mut().for_each(|(_, attention)| attention.rope = None);
}

/// Whether gates are in a tensor of their own or in one with what they let through.
fn has_gates(keys: &Keys<'_>, config: &Config) -> bool {
    let up = keys.gguf.tensor("blk.0.ffn_up.weight").and_then(|up| up.info.shape.get(1).copied());
    let widest = config.layers.first().and_then(|layer| layer.feed_forward.width());
    keys.has_tensor("blk.0.ffn_gate.weight")
        || up.is_some_and(|rows| widest.is_some_and(|w| rows == 2 * w as u64))
}
