//! What sets a model apart from the common one, in short sentences made from its configuration.
//!
//! The common one has a norm before each part, attention over all that came before with one rotary embedding, SwiGLU, and
//! an output matrix of its own.

use super::layers::{Attention, FeedForward, Layer, Mixer, State, StateKind, Temperature};
use super::{Part, Unread};
use crate::model::config::{BeforeFeedForward, Config, Norms};
use crate::model::tensors::Tensors;
use kernels::ops::NormKind;

/// Names of tensors that are shown where some are not read.
const NAMES_SHOWN: usize = 3;

pub(super) fn remarks(config: &Config, layers: &[Layer], tensors: &Tensors<'_>) -> Vec<String> {
    let mut remarks = Vec::new();
    add_streams(&mut remarks, config, tensors);
    add_attention(&mut remarks, config, layers);
    add_biases(&mut remarks, tensors);
    let experts = layers.iter().find_map(|layer| match &layer.feed_forward {
        FeedForward::Experts(experts) => Some(experts),
        FeedForward::None | FeedForward::Dense { .. } => None,
    });
    if let Some(experts) = experts.filter(|experts| experts.scale != 1.0) {
        remarks.push(format!("what experts add is multiplied by {}", short(experts.scale)));
    }
    let without = layers.iter().filter(|layer| layer.feed_forward == FeedForward::None).count();
    if without > 0 {
        remarks.push(format!("{} without a feed-forward part", of_layers(without, layers.len(), "layer")));
    }
    remarks
}

/// Scales of the residual stream and its norms.
fn add_streams(remarks: &mut Vec<String>, config: &Config, tensors: &Tensors<'_>) {
    if config.input.positions {
        remarks.push("an embedding for each position".to_owned());
    }
    if config.input.segments && tensors.part_of("token_types.weight") != Part::Unread {
        remarks.push("embeddings of the first and the second of two texts".to_owned());
    }
    if let Some(len) = config.per_layer {
        remarks.push(format!(
            "per-layer embeddings, {len} elements of each token for each layer, read from the file as they are needed"
        ));
    }
    let mut scaled = |what: &str, by: f32| {
        if by != 1.0 {
            remarks.push(format!("{what} multiplied by {}", short(by)));
        }
    };
    scaled("input embeddings are", config.embedding_scale);
    scaled("what layers add is", config.residual_scale);
    scaled("logits are", config.logit_scale);
    if let Some(cap) = config.logit_soft_cap {
        remarks.push(format!("logits are capped at {}", short(cap)));
    }
    let norms = config.layers.first().map(|layer| layer.norms);
    remarks.extend(norms.and_then(placed).map(str::to_owned));
    if config.norm == NormKind::Layer {
        remarks.push("layer norms in place of RMS norms".to_owned());
    }
}

/// Where norms are, if not before each part.
fn placed(norms: Norms) -> Option<&'static str> {
    let Norms { mixer, mixed, mixed_stream, before_feed_forward, .. } = norms;
    if mixed_stream.is_some() {
        return Some("norms of the residual stream after each part");
    }
    match (mixer, mixed, before_feed_forward) {
        (_, _, BeforeFeedForward::Parallel) => {
            Some("attention and feed-forward part work side by side, after one norm")
        }
        (Some(_), Some(_), _) => Some("norms before and after each part"),
        (None, Some(_), _) => Some("norms after each part instead of before"),
        _ => None,
    }
}

fn add_attention(remarks: &mut Vec<String>, config: &Config, layers: &[Layer]) {
    let attention = || {
        layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Latent(_) | Mixer::State(_) => None,
        })
    };
    let all = attention().count();
    let mut add = |count: usize, what: &str| {
        if count > 0 {
            remarks.push(format!("{} {what}", of_layers(count, all, "attention layer")));
        }
    };
    let count = |is: fn(&Attention) -> bool| attention().filter(|attention| is(attention)).count();
    add(count(|a| a.shares.is_some()), "attend to keys and values of earlier layers and keep none");
    add(count(|a| a.values_of_keys), "with values made of what keys are made of");
    add(count(|a| a.value_norms), "with norms of values");
    add(count(|a| a.sinks), "with sinks, scores that take their share of the softmax");
    add(count(|a| a.slopes), "with scores that fall with the distance (ALiBi)");
    add(count(|a| a.gated), "with gates on what heads mix");
    if let Some(cap) = attention().find_map(|attention| attention.soft_cap) {
        add(count(|a| a.soft_cap.is_some()), &format!("with scores capped at {}", short(cap)));
    }
    let is_scaled =
        |attention: &Attention| (attention.scale * (attention.head_dim as f32).sqrt() - 1.0).abs() > 1e-3;
    if let Some(Attention { scale, head_dim, .. }) = attention().find(|attention| is_scaled(attention)) {
        let usual = (*head_dim as f32).sqrt().recip();
        remarks.push(format!(
            "attention scores are multiplied by {} instead of {}, one over the root of a head's size",
            short(*scale),
            short(usual)
        ));
    }
    if let Some(Attention { heads, head_dim, .. }) =
        attention().find(|attention| attention.heads * attention.head_dim != config.width)
    {
        let all = heads * head_dim;
        remarks.push(format!("heads together are {all} wide, the model {}", config.width));
    }
    let temperature = layers.iter().find_map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => attention.temperature,
        Mixer::Latent(latent) => latent.temperature,
        Mixer::State(_) => None,
    });
    if let Some(Temperature { scale, tokens }) = temperature {
        remarks.push(format!(
            "queries grow with their position, by {} times the logarithm of each {tokens} tokens",
            short(scale)
        ));
    }
    let is_memory = |layer: &Layer| {
        matches!(layer.mixer, Mixer::State(State { kind: StateKind::Mamba2 | StateKind::GatedDeltaNet, .. }))
    };
    if all == 0 && layers.iter().all(is_memory) {
        remarks
            .push("no attention: memory and speed do not depend on the length of a conversation".to_owned());
    }
    let still = config.ropes.iter().map(|rope| rope.still.len()).max().unwrap_or(0);
    if still > 0 {
        remarks.push(format!("{still} pairs of a head do not turn: they are for positions of pictures"));
    }
}

/// Biases and scales, which are seen in the file only.
fn add_biases(remarks: &mut Vec<String>, tensors: &Tensors<'_>) {
    let mut add = |ends: &[&str], what: &str| {
        let is_read = |name: &str| tensors.part_of(name) != Part::Unread;
        let mut names = tensors.tensors().iter().map(|info| info.name.as_str());
        if names.any(|name| ends.iter().any(|end| name.ends_with(end)) && is_read(name)) {
            remarks.push(what.to_owned());
        }
    };
    add(&[".attn_q.bias", ".attn_qkv.bias"], "biases on queries, keys and values");
    add(&["_exps.bias"], "biases on experts");
    add(&[".exp_probs_b.bias"], "experts are chosen with a bias that does not count when they are weighed");
    add(&[".scale"], "matrices with a scale each");
}

/// What is in the file for nothing.
pub(super) fn of_unread(unread: &Unread) -> Vec<String> {
    let mut remarks = Vec::new();
    if unread.predicts_further {
        remarks.push("layers for multi-token prediction (nextn) are in the file and are not used".to_owned());
    }
    let count = unread.others.len();
    if count > 0 {
        let shown = unread.others[..count.min(NAMES_SHOWN)].join(", ");
        let more = if count > NAMES_SHOWN { ", ..." } else { "" };
        let (tensors, are) = if count == 1 { ("tensor", "is") } else { ("tensors", "are") };
        remarks.push(format!("{count} {tensors} in the file {are} not used: {shown}{more}"));
    }
    remarks
}

/// `attention layers`, or `6 of 18 attention layers`.
fn of_layers(count: usize, all: usize, what: &str) -> String {
    if count == all { format!("all {what}s") } else { format!("{count} of {all} {what}s") }
}

/// With three digits that count.
pub(super) fn short(value: f32) -> String {
    let magnitude = value.abs().max(f32::MIN_POSITIVE).log10().floor() as i32;
    let decimals = usize::try_from(2 - magnitude).unwrap_or(0).min(9);
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (45.254_833, "45.3"),
            (0.22, "0.22"),
            (30.0, "30"),
            (1.0 / 3.0, "0.333"),
            (0.0, "0"),
            (12_000.0, "12000"),
        ] {
            assert_eq!(short(value), expected);
        }
    }
}
