//! What the model is made of. The fields and their names are JSON.

use engine::model::outline::layers::{
    self, FeedForward, Groups, HeadNorms, Layer, LayerKind, Mixer, Probabilities, Rope, RopeScaling,
    Temperature,
};
use engine::model::outline::{Pattern, Unread};
use engine::model::{Outline, Purpose};
use serde::Serialize;
use std::fmt::Display;

#[derive(Serialize)]
pub(in super::super) struct Model {
    pub(in super::super) family: &'static str,
    /// The models that people know the family by.
    pub(in super::super) known_models: &'static str,
    /// "text", "embeddings" or "scores".
    pub(in super::super) makes: &'static str,
    /// How one vector is made of a text; null where none is.
    pub(in super::super) pooling: Option<&'static str>,
    /// Of the file's parameters, those that a token goes through.
    pub(in super::super) active_parameters: u64,
    pub(in super::super) output_is_tied: bool,
    pub(in super::super) layers: Layers,
    /// Null where no layer attends.
    pub(in super::super) attention: Option<AttentionLayers>,
    pub(in super::super) states: Vec<States>,
    pub(in super::super) positions: Positions,
    pub(in super::super) feed_forward: FeedForwards,
    pub(in super::super) parameters_by_part: Vec<Part>,
    pub(in super::super) unusual: Vec<String>,
    /// Tensors in the file that are not read, but for those of a multi-token-prediction head.
    pub(in super::super) unread_tensors: Vec<String>,
    pub(in super::super) has_unused_prediction_head: bool,
}

/// How layers let tokens see each other.
#[derive(Serialize)]
pub(in super::super) struct Layers {
    pub(in super::super) count: usize,
    pub(in super::super) pattern: String,
    /// The pattern for programs: written out, it gives the kind of each layer.
    pub(in super::super) pattern_groups: Vec<Group>,
    pub(in super::super) kinds: Vec<Kind>,
}

/// Runs of layers that come `times` times, one after the other.
#[derive(Serialize)]
pub(in super::super) struct Group {
    times: usize,
    runs: Vec<Run>,
}

#[derive(Serialize)]
pub(in super::super) struct Run {
    layers: usize,
    kind: String,
}

#[derive(Serialize)]
pub(in super::super) struct Kind {
    pub(in super::super) name: String,
    pub(in super::super) layers: usize,
    pub(in super::super) explanation: String,
    pub(in super::super) mixer: &'static str,
    /// Null where the layer has no sliding window.
    pub(in super::super) window_tokens: Option<usize>,
    pub(in super::super) has_rotary_positions: bool,
}

/// From the layer with the least to the one with the most.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub(in super::super) struct Range {
    pub(in super::super) min: usize,
    pub(in super::super) max: usize,
}

#[derive(Serialize)]
pub(in super::super) struct AttentionLayers {
    pub(in super::super) layers: usize,
    pub(in super::super) heads: Range,
    pub(in super::super) kv_heads: Range,
    /// Of keys, with what is turned by positions.
    pub(in super::super) head_dim: Range,
    pub(in super::super) query_key_norms: &'static str,
    pub(in super::super) score_scale: f32,
    pub(in super::super) score_soft_cap: Option<f32>,
    pub(in super::super) layers_with_sinks: usize,
    pub(in super::super) layers_with_gates: usize,
    pub(in super::super) temperature: Option<Growth>,
    /// Null where keys and values are kept as they are.
    pub(in super::super) latent: Option<LatentVectors>,
}

/// Queries are multiplied by `1 + scale * ln(1 + floor(position / tokens))`.
#[derive(Serialize)]
pub(in super::super) struct Growth {
    scale: f32,
    tokens: f32,
}

#[derive(Serialize)]
pub(in super::super) struct LatentVectors {
    /// Elements of the vector that keys and values are made of.
    pub(in super::super) rank: usize,
    /// Null where queries are made of the residual stream.
    pub(in super::super) query_rank: Option<usize>,
    pub(in super::super) rotary_dim: usize,
    pub(in super::super) value_dim: usize,
}

#[derive(Serialize)]
pub(in super::super) struct States {
    pub(in super::super) kind: &'static str,
    pub(in super::super) layers: usize,
    /// Tokens that the convolution sees.
    pub(in super::super) convolution_tokens: usize,
    /// Matrices in the state of a layer; 0 where the convolution is all there is.
    pub(in super::super) heads: usize,
    pub(in super::super) key_dim: usize,
    pub(in super::super) value_dim: usize,
    /// Of all these layers.
    pub(in super::super) bytes_per_conversation: u64,
}

#[derive(Serialize)]
pub(in super::super) struct Positions {
    pub(in super::super) trained_context_tokens: usize,
    pub(in super::super) rotary: Vec<Rotary>,
    /// An embedding for each.
    pub(in super::super) learned: bool,
    /// Scores fall with the distance (ALiBi).
    pub(in super::super) by_distance: bool,
    /// Layers that attend without positions.
    pub(in super::super) layers_without: usize,
}

#[derive(Serialize)]
pub(in super::super) struct Rotary {
    pub(in super::super) base: f32,
    /// Elements of a head that are turned.
    pub(in super::super) dims: usize,
    pub(in super::super) head_dim: usize,
    pub(in super::super) layers: usize,
    pub(in super::super) layer_kinds: Vec<String>,
    pub(in super::super) scaling: &'static str,
    pub(in super::super) scaling_factor: Option<f32>,
    /// Tokens of context before scaling.
    pub(in super::super) original_context_tokens: Option<usize>,
    /// What is turned is multiplied by.
    pub(in super::super) magnitude: f32,
    /// Pairs that do not turn, because they are for positions that text does not have.
    pub(in super::super) still_pairs: usize,
}

#[derive(Serialize)]
pub(in super::super) struct FeedForwards {
    pub(in super::super) pattern: String,
    pub(in super::super) pattern_groups: Vec<Group>,
    pub(in super::super) kinds: Vec<FeedForwardKind>,
}

#[derive(Serialize)]
pub(in super::super) struct FeedForwardKind {
    pub(in super::super) name: String,
    pub(in super::super) layers: usize,
    /// Within the part, or within each expert.
    pub(in super::super) width: usize,
    /// Null where there is no such part.
    pub(in super::super) function: Option<&'static str>,
    pub(in super::super) experts: Option<Experts>,
}

#[derive(Serialize)]
pub(in super::super) struct Experts {
    pub(in super::super) count: usize,
    pub(in super::super) used: usize,
    /// Within the part that every token goes through, too; null where there is none.
    pub(in super::super) shared_width: Option<usize>,
    pub(in super::super) shared_is_gated: bool,
    pub(in super::super) router: &'static str,
    pub(in super::super) weights_are_normalized: bool,
    pub(in super::super) weights_scale: f32,
    /// Groups of experts, of which the best are searched; null where all are.
    pub(in super::super) groups: Option<usize>,
    pub(in super::super) groups_used: Option<usize>,
}

#[derive(Serialize)]
pub(in super::super) struct Part {
    pub(in super::super) part: &'static str,
    pub(in super::super) tensors: usize,
    pub(in super::super) parameters: u64,
    /// Of the file's parameters, from 0 to 1.
    pub(in super::super) share: f64,
    /// What a token goes through.
    pub(in super::super) active_parameters: u64,
    pub(in super::super) bytes: u64,
}

impl Model {
    pub(super) fn of(outline: &Outline) -> Model {
        let Unread { predicts_further, others } = outline.unread.clone();
        Model {
            family: outline.family,
            known_models: outline.models,
            makes: match outline.purpose {
                Purpose::Generates => "text",
                Purpose::Embeds => "embeddings",
                Purpose::Scores => "scores",
            },
            pooling: outline.pooling,
            active_parameters: outline.active_parameters(),
            output_is_tied: outline.output_is_tied,
            layers: Layers::of(&outline.each_layer),
            attention: AttentionLayers::of(&outline.each_layer),
            states: states(&outline.each_layer),
            positions: Positions::of(outline),
            feed_forward: FeedForwards::of(&outline.each_layer),
            parameters_by_part: parts(outline),
            unusual: outline.remarks.clone(),
            unread_tensors: others,
            has_unused_prediction_head: predicts_further,
        }
    }
}

/// Each different value once, with how often it comes, in the order in which they first come.
fn counted<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<(T, usize)> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counted.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counted.push((value, 1)),
        }
    }
    counted
}

fn groups<T: Display>(pattern: &Pattern<T>) -> Vec<Group> {
    let group = |group: &engine::model::outline::Group<T>| Group {
        times: group.times,
        runs: group.runs.iter().map(|run| Run { layers: run.count, kind: run.item.to_string() }).collect(),
    };
    pattern.0.iter().map(group).collect()
}

impl Layers {
    fn of(layers: &[Layer]) -> Layers {
        let kinds: Vec<LayerKind> = layers.iter().map(Layer::kind).collect();
        let pattern = Pattern::of(&kinds);
        let kind = |(kind, layers): (LayerKind, usize)| Kind {
            name: kind.to_string(),
            layers,
            explanation: kind.explanation(),
            mixer: match kind {
                LayerKind::Attention { .. } => "attention",
                LayerKind::LatentAttention => "latent attention",
                LayerKind::State(state) => state.name(),
            },
            window_tokens: kind.window(),
            has_rotary_positions: kind.has_positions(),
        };
        Layers {
            count: layers.len(),
            pattern: pattern.to_string(),
            pattern_groups: groups(&pattern),
            kinds: counted(kinds.into_iter()).into_iter().map(kind).collect(),
        }
    }
}

impl Range {
    fn of(values: impl Iterator<Item = usize>) -> Option<Range> {
        values
            .map(|value| Range { min: value, max: value })
            .reduce(|a, b| Range { min: a.min.min(b.min), max: a.max.max(b.max) })
    }
}

impl AttentionLayers {
    fn of(layers: &[Layer]) -> Option<AttentionLayers> {
        let plain = || {
            layers.iter().filter_map(|layer| match &layer.mixer {
                Mixer::Attention(attention) => Some(attention),
                Mixer::Latent(_) | Mixer::State(_) => None,
            })
        };
        let latent = layers.iter().find_map(|layer| match &layer.mixer {
            Mixer::Latent(latent) => Some(latent),
            Mixer::Attention(_) | Mixer::State(_) => None,
        });
        let growth = |Temperature { scale, tokens }| Growth { scale, tokens };
        let first = plain().next();
        Some(AttentionLayers {
            layers: layers.iter().filter(|layer| layer.heads().is_some()).count(),
            heads: Range::of(layers.iter().filter_map(|layer| Some(layer.heads()?.heads)))?,
            kv_heads: Range::of(layers.iter().filter_map(|layer| Some(layer.heads()?.kv_heads)))?,
            head_dim: Range::of(layers.iter().filter_map(|layer| Some(layer.heads()?.head_dim)))?,
            query_key_norms: match first.map(|attention| attention.head_norms) {
                None | Some(HeadNorms::None) => "none",
                Some(HeadNorms::Each) => "each head",
                Some(HeadNorms::All | HeadNorms::Layer) => "all heads at once",
            },
            score_scale: first.map(|a| a.scale).or(latent.map(|l| l.scale))?,
            score_soft_cap: first.and_then(|attention| attention.soft_cap),
            layers_with_sinks: plain().filter(|attention| attention.sinks).count(),
            layers_with_gates: plain().filter(|attention| attention.gated).count(),
            temperature: first.and_then(|a| a.temperature).or(latent.and_then(|l| l.temperature)).map(growth),
            latent: latent.map(|latent| LatentVectors {
                rank: latent.rank,
                query_rank: latent.query_rank,
                rotary_dim: latent.turned_dim,
                value_dim: latent.value_dim,
            }),
        })
    }
}

fn states(layers: &[Layer]) -> Vec<States> {
    let states = layers.iter().filter_map(|layer| match layer.mixer {
        Mixer::State(state) => Some(state),
        Mixer::Attention(_) | Mixer::Latent(_) => None,
    });
    let states = counted(states).into_iter().map(|(state, layers)| States {
        kind: state.kind.name(),
        layers,
        convolution_tokens: state.taps,
        heads: state.heads,
        key_dim: state.key_dim,
        value_dim: state.value_dim,
        bytes_per_conversation: state.bytes.saturating_mul(layers as u64),
    });
    states.collect()
}

impl Positions {
    fn of(outline: &Outline) -> Positions {
        let layers = &outline.each_layer;
        let rope = |layer: &Layer| Some((outline.ropes.get(layer.rope()?)?, layer.heads()?.rotary_dim));
        let ropes = counted(layers.iter().filter_map(rope));
        let rotary = ropes.into_iter().map(|(of, count)| {
            let turned = layers.iter().filter(|layer| rope(layer) == Some(of));
            let kinds = counted(turned.map(Layer::kind)).into_iter().map(|(kind, _)| kind.to_string());
            rotary(of.0, count, of.1, kinds.collect())
        });
        let without = layers.iter().filter(|layer| layer.heads().is_some() && !layer.kind().has_positions());
        let attention = layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Latent(_) | Mixer::State(_) => None,
        });
        Positions {
            trained_context_tokens: outline.context_tokens,
            rotary: rotary.collect(),
            learned: outline.learned_positions,
            by_distance: attention.filter(|attention| attention.slopes).count() > 0,
            layers_without: without.count(),
        }
    }
}

fn rotary(rope: &Rope, layers: usize, head_dim: usize, layer_kinds: Vec<String>) -> Rotary {
    let (scaling, scaling_factor, original_context_tokens) = match rope.scaling {
        RopeScaling::None => ("none", None, None),
        RopeScaling::Linear { factor } => ("linear", Some(factor), None),
        RopeScaling::Yarn { factor, original_tokens } => ("yarn", Some(factor), Some(original_tokens)),
        RopeScaling::Factors => ("llama3", None, None),
        RopeScaling::ShortAndLong { original_tokens } => ("longrope", None, Some(original_tokens)),
    };
    Rotary {
        base: rope.base,
        dims: rope.dims,
        head_dim,
        layers,
        layer_kinds,
        scaling,
        scaling_factor,
        original_context_tokens,
        magnitude: rope.magnitude,
        still_pairs: rope.still_pairs,
    }
}

impl FeedForwards {
    fn of(layers: &[Layer]) -> FeedForwards {
        let parts: Vec<FeedForward> = layers.iter().map(|layer| layer.feed_forward.clone()).collect();
        let pattern = Pattern::of(&parts);
        let kind = |(part, layers): (FeedForward, usize)| FeedForwardKind {
            name: part.to_string(),
            layers,
            width: part.width(),
            function: part.function(),
            experts: match &part {
                FeedForward::Experts(experts) => Some(Experts::of(experts)),
                FeedForward::None | FeedForward::Dense { .. } => None,
            },
        };
        FeedForwards {
            pattern: pattern.to_string(),
            pattern_groups: groups(&pattern),
            kinds: counted(parts.into_iter()).into_iter().map(kind).collect(),
        }
    }
}

impl Experts {
    fn of(experts: &layers::Experts) -> Experts {
        Experts {
            count: experts.count,
            used: experts.used,
            shared_width: experts.shared_width,
            shared_is_gated: experts.shared_gated,
            router: match experts.probabilities {
                Probabilities::Softmax => "softmax",
                Probabilities::Sigmoid => "sigmoid",
                Probabilities::SoftmaxOfChosen => "softmax of the chosen",
            },
            weights_are_normalized: experts.normalized,
            weights_scale: experts.scale,
            groups: experts.groups.map(|Groups { count, .. }| count),
            groups_used: experts.groups.map(|Groups { used, .. }| used),
        }
    }
}

fn parts(outline: &Outline) -> Vec<Part> {
    let all = outline.parameters();
    let part = |size: &engine::model::outline::PartSize| Part {
        part: size.part.name(),
        tensors: size.tensors,
        parameters: size.parameters,
        share: size.parameters as f64 / all as f64,
        active_parameters: size.active_parameters,
        bytes: size.bytes,
    };
    outline.parts.iter().map(part).collect()
}
