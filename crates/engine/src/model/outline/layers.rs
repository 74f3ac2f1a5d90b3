//! What each layer is made of, and the rotary embeddings that layers share, as plain values.

use super::KvHeads;
use crate::gguf::Gguf;
use crate::model::Purpose;
use crate::model::config::{self, Config};
use crate::model::rope;
use kernels::attention::Mask;
use kernels::ops::ActivationFunction;
use std::fmt;

pub use crate::model::config::{Groups, HeadNorms, Probabilities, Temperature};

/// One layer: a part that mixes positions, and one that works on each alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub mixer: Mixer,
    pub feed_forward: FeedForward,
    /// Keys and values that are kept of each token: none of a text that goes through whole, nor where another layer's are
    /// attended to.
    pub kept: Option<KvHeads>,
}

/// What lets a token see others.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    Attention(Attention),
    Latent(Latent),
    State(State),
}

/// Layers of one kind look at a sequence in the same way; what they are called in patterns is how they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    Attention {
        mask: Mask,
        /// Whether positions matter; without is what is called NoPE.
        positions: bool,
    },
    LatentAttention,
    State(StateKind),
}

/// Attention with keys and values of its own for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mask: Mask,
    /// Its place among [`super::Outline::ropes`]; `None`: nothing is turned.
    pub rope: Option<usize>,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    pub head_norms: HeadNorms,
    /// Values are what keys are before these are normed and turned.
    pub values_of_keys: bool,
    /// Each head's values are normed.
    pub value_norms: bool,
    /// The earlier layer whose keys and values it attends to, in place of its own.
    pub shares: Option<usize>,
    /// A score for each head that takes its share of the softmax.
    pub sinks: bool,
    pub temperature: Option<Temperature>,
    /// Each head's queries come with a gate for what it mixes.
    pub gated: bool,
    /// Scores fall with the distance (ALiBi).
    pub slopes: bool,
    /// Whether positions matter at all: by its own means, or because each has an embedding.
    pub positions: bool,
}

/// Attention whose keys and values are made of one short vector for all heads (MLA).
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    pub heads: usize,
    /// Elements of the vector that queries are made of; `None`: they are made of the residual stream.
    pub query_rank: Option<usize>,
    /// Elements of the vector that keys and values are made of.
    pub rank: usize,
    /// Elements of a head's key that are made of it.
    pub key_dim: usize,
    /// Elements of a key that are turned by its position, the same for all heads.
    pub turned_dim: usize,
    pub value_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    pub rope: usize,
    pub temperature: Option<Temperature>,
}

/// A state of fixed size in place of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub kind: StateKind,
    /// Tokens that its convolution sees, its own among them.
    pub taps: usize,
    /// Matrices of `key_dim` x `value_dim`; 0 where the convolution is all there is.
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Bytes of one conversation.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    ShortConvolution,
    Mamba2,
    GatedDeltaNet,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FeedForward {
    None,
    Dense {
        width: usize,
        /// As the field calls it, such as "SwiGLU".
        function: &'static str,
    },
    Experts(Experts),
}

/// Some of many feed-forward parts, chosen for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    pub count: usize,
    /// How many of them a token goes through.
    pub used: usize,
    /// Elements within each.
    pub width: usize,
    pub function: &'static str,
    /// What the router's scores become.
    pub probabilities: Probabilities,
    /// Weights of the chosen are divided by their sum.
    pub normalized: bool,
    /// Multiplies the weights.
    pub scale: f32,
    /// Groups of experts, of which the best are searched; `None`: all are.
    pub groups: Option<Groups>,
    /// Elements within the part that every token goes through, too.
    pub shared_width: Option<usize>,
    /// Whether that part is multiplied by a score of its own.
    pub shared_gated: bool,
}

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub base: f32,
    /// Elements of a head that are turned.
    pub dims: usize,
    pub scaling: RopeScaling,
    /// What is turned becomes longer by.
    pub magnitude: f32,
    /// Pairs that do not turn, because text does not have the position that turns them.
    pub still_pairs: usize,
}

/// How more positions fit into what the model was trained for first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions are divided.
    Linear {
        factor: f32,
    },
    Yarn {
        factor: f32,
        original_tokens: usize,
    },
    /// A factor for each frequency from the file, as in Llama 3.
    Factors,
    /// Two sets of factors from the file, the second for contexts of more than `original_tokens` ("longrope").
    ShortAndLong {
        original_tokens: usize,
    },
}

/// What attends in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a head's query and key.
    pub head_dim: usize,
    /// Of those, the ones that a rotary embedding is given.
    pub rotary_dim: usize,
}

impl Layer {
    pub(super) fn of(layer: &config::Layer, config: &Config) -> Layer {
        let generates = config.purpose() == Purpose::Generates;
        Layer {
            mixer: Mixer::of(&layer.mixer, config),
            feed_forward: FeedForward::of(&layer.feed_forward),
            kept: layer.mixer.kv_heads().filter(|_| generates),
        }
    }

    pub fn kind(&self) -> LayerKind {
        match &self.mixer {
            Mixer::Attention(attention) => {
                LayerKind::Attention { mask: attention.mask, positions: attention.positions }
            }
            Mixer::Latent(_) => LayerKind::LatentAttention,
            Mixer::State(state) => LayerKind::State(state.kind),
        }
    }

    /// The heads that attend.
    pub fn heads(&self) -> Option<Heads> {
        match &self.mixer {
            Mixer::Attention(Attention { heads, kv_heads, head_dim, .. }) => {
                Some(Heads { heads: *heads, kv_heads: *kv_heads, head_dim: *head_dim, rotary_dim: *head_dim })
            }
            Mixer::Latent(Latent { heads, key_dim, turned_dim, .. }) => Some(Heads {
                heads: *heads,
                kv_heads: 1,
                head_dim: key_dim + turned_dim,
                rotary_dim: *turned_dim,
            }),
            Mixer::State(_) => None,
        }
    }

    /// The earlier layer whose keys and values it attends to, in place of its own.
    pub fn shares(&self) -> Option<usize> {
        match &self.mixer {
            Mixer::Attention(attention) => attention.shares,
            Mixer::Latent(_) | Mixer::State(_) => None,
        }
    }

    /// Tokens in its sliding window; `None`: it has none.
    pub fn window(&self) -> Option<usize> {
        self.kind().window()
    }

    /// The rotary embedding that turns its heads.
    pub fn rope(&self) -> Option<usize> {
        match &self.mixer {
            Mixer::Attention(attention) => attention.rope,
            Mixer::Latent(latent) => Some(latent.rope),
            Mixer::State(_) => None,
        }
    }
}

impl Mixer {
    fn of(mixer: &config::Mixer, config: &Config) -> Mixer {
        let kind = match mixer {
            config::Mixer::Attention(attention) => return Mixer::Attention(Attention::of(attention, config)),
            config::Mixer::Latent(latent) => return Mixer::Latent(Latent::of(latent)),
            config::Mixer::ShortConvolution(_) => StateKind::ShortConvolution,
            config::Mixer::Mamba(_) => StateKind::Mamba2,
            config::Mixer::DeltaNet(_) => StateKind::GatedDeltaNet,
        };
        let state = mixer.state(config.width, 1).expect("what does not attend keeps a state");
        let memory = state.memory;
        Mixer::State(State {
            kind,
            taps: state.taps,
            heads: memory.heads,
            key_dim: memory.key_dim,
            value_dim: memory.value_dim,
            bytes: state.slot_bytes() as u64,
        })
    }
}

impl Attention {
    fn of(attention: &config::Attention, config: &Config) -> Attention {
        let config::Attention { heads, kv_heads, head_dim, mask, rope, scale, .. } = *attention;
        let config::Attention { soft_cap, head_norms, values, shares, sinks, temperature, gated, .. } =
            *attention;
        let slopes = attention.slopes.is_some();
        let positions = rope.is_some() || slopes || config.input.positions;
        Attention {
            heads,
            kv_heads,
            head_dim,
            mask,
            rope,
            scale,
            soft_cap,
            head_norms,
            values_of_keys: values.of_keys && shares.is_none(),
            value_norms: values.normed && shares.is_none(),
            shares,
            sinks,
            temperature,
            gated,
            slopes,
            positions,
        }
    }
}

impl Latent {
    fn of(latent: &config::Latent) -> Latent {
        let config::Latent { heads, query_rank, rank, key_dim, turned_dim, .. } = *latent;
        let config::Latent { value_dim, scale, rope, temperature, .. } = *latent;
        Latent { heads, query_rank, rank, key_dim, turned_dim, value_dim, scale, rope, temperature }
    }
}

impl FeedForward {
    fn of(feed_forward: &config::FeedForward) -> FeedForward {
        match feed_forward {
            config::FeedForward::None => FeedForward::None,
            config::FeedForward::Dense { width, function, gated } => {
                FeedForward::Dense { width: *width, function: name_of(*function, *gated) }
            }
            config::FeedForward::Experts(experts) => FeedForward::Experts(Experts::of(experts)),
            config::FeedForward::DenseAndExperts { width, experts } => {
                FeedForward::Experts(Experts { shared_width: Some(*width), ..Experts::of(experts) })
            }
        }
    }
}

impl Experts {
    fn of(experts: &config::Experts) -> Experts {
        Experts {
            count: experts.count,
            used: experts.used,
            width: experts.width,
            function: name_of(experts.function, true),
            probabilities: experts.router.probabilities,
            normalized: experts.router.normalized,
            scale: experts.router.scale,
            groups: experts.router.groups,
            shared_width: experts.shared.map(|shared| shared.width),
            shared_gated: experts.shared.is_some_and(|shared| shared.gated),
        }
    }
}

impl FeedForward {
    /// Elements within it, or within an expert.
    pub fn width(&self) -> usize {
        match self {
            FeedForward::None => 0,
            FeedForward::Dense { width, .. } => *width,
            FeedForward::Experts(experts) => experts.width,
        }
    }

    /// As the field calls it, such as "SwiGLU".
    pub fn function(&self) -> Option<&'static str> {
        match self {
            FeedForward::None => None,
            FeedForward::Dense { function, .. } | FeedForward::Experts(Experts { function, .. }) => {
                Some(function)
            }
        }
    }
}

fn name_of(function: ActivationFunction, gated: bool) -> &'static str {
    match (function, gated) {
        (ActivationFunction::Silu, true) => "SwiGLU",
        (ActivationFunction::Silu, false) => "SiLU",
        (ActivationFunction::Gelu | ActivationFunction::ExactGelu, true) => "GeGLU",
        (ActivationFunction::Gelu | ActivationFunction::ExactGelu, false) => "GELU",
        (ActivationFunction::ClampedSwiglu, _) => "clamped SwiGLU",
    }
}

/// The rotary embeddings of a model.
pub(super) fn ropes(config: &Config, gguf: &Gguf) -> Vec<Rope> {
    config.ropes.iter().map(|rope| Rope::of(rope, gguf)).collect()
}

impl Rope {
    fn of(rope: &rope::Rope, gguf: &Gguf) -> Rope {
        let has = |name: &str| gguf.tensor(name).is_some();
        // In the order in which a step looks for them; see `rope_table` in `weights`.
        let from_file = match rope.factors {
            rope::Factors::None => None,
            rope::Factors::Needed => Some(RopeScaling::Factors),
            rope::Factors::File { .. } if has("rope_freqs.weight") => Some(RopeScaling::Factors),
            rope::Factors::File { original_tokens } if has("rope_factors_long.weight") => {
                Some(RopeScaling::ShortAndLong { original_tokens })
            }
            rope::Factors::File { .. } => None,
        };
        let (scaling, magnitude) = match rope.scaling {
            rope::Scaling::Linear { divisor: 1.0, magnitude } => (RopeScaling::None, magnitude),
            rope::Scaling::Linear { divisor, magnitude } => {
                (RopeScaling::Linear { factor: divisor }, magnitude)
            }
            rope::Scaling::Yarn(rope::Yarn { divisor, original_tokens, magnitude, .. }) => {
                (RopeScaling::Yarn { factor: divisor, original_tokens }, magnitude)
            }
        };
        Rope {
            base: rope.base,
            dims: rope.dims,
            scaling: from_file.unwrap_or(scaling),
            magnitude,
            still_pairs: rope.still.len(),
        }
    }
}

impl StateKind {
    pub fn name(self) -> &'static str {
        match self {
            StateKind::ShortConvolution => "short convolution",
            StateKind::Mamba2 => "Mamba-2",
            StateKind::GatedDeltaNet => "gated delta net",
        }
    }
}

impl LayerKind {
    /// Tokens in its sliding window; `None`: it has none.
    pub fn window(self) -> Option<usize> {
        match self {
            LayerKind::Attention { mask: Mask::Window(tokens) | Mask::Around(tokens), .. } => Some(tokens),
            LayerKind::Attention { .. } | LayerKind::LatentAttention | LayerKind::State(_) => None,
        }
    }

    /// Whether it attends with positions.
    pub fn has_positions(self) -> bool {
        match self {
            LayerKind::Attention { positions, .. } => positions,
            LayerKind::LatentAttention => true,
            LayerKind::State(_) => false,
        }
    }

    /// What a layer of this kind does, in a few words.
    pub fn explanation(self) -> String {
        match self {
            LayerKind::Attention { mask, positions } => {
                let seen = match mask {
                    Mask::Causal => "attends to all tokens before".to_owned(),
                    Mask::Window(tokens) => format!("attends to a window of the last {tokens} tokens"),
                    Mask::Everything => "attends to all tokens, before and after".to_owned(),
                    Mask::Around(tokens) => format!("attends to a window of {tokens} tokens around"),
                };
                seen + if positions { "" } else { ", without positions (NoPE)" }
            }
            LayerKind::LatentAttention => {
                "attends to all tokens before, by a short vector for all heads (MLA)".to_owned()
            }
            LayerKind::State(StateKind::ShortConvolution) => "keeps the last few tokens".to_owned(),
            LayerKind::State(StateKind::Mamba2 | StateKind::GatedDeltaNet) => {
                "keeps a state of fixed size".to_owned()
            }
        }
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerKind::Attention { mask, positions } => {
                match mask {
                    Mask::Causal => f.write_str("all")?,
                    Mask::Window(tokens) => write!(f, "window {tokens}")?,
                    Mask::Everything => f.write_str("all, both ways")?,
                    Mask::Around(tokens) => write!(f, "window {tokens}, both ways")?,
                }
                f.write_str(if *positions { "" } else { " without positions" })
            }
            LayerKind::LatentAttention => f.write_str("latent"),
            LayerKind::State(kind) => f.write_str(kind.name()),
        }
    }
}

/// What it is called in patterns.
impl fmt::Display for FeedForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeedForward::None => f.write_str("none"),
            FeedForward::Dense { width, .. } => write!(f, "dense {width}"),
            FeedForward::Experts(experts) => write!(f, "experts {} of {}", experts.used, experts.count),
        }
    }
}
