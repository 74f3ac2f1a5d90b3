//! The parts that a model is made of and their sizes, as they are [`read`] from its metadata.
//!
//! A [`Config`] says everything that a forward pass needs to know but the weights. Families fill it in (see `families`);
//! what computes looks at parts and sizes only, never at a family's name.

mod read;

pub(crate) use read::{
    HEADS_MAX, LAYER_NORM_EPSILON, LAYERS_MAX, WIDTH_MAX, layers, slopes, windowed_layers,
};

use super::Purpose;
use super::families::Family;
use super::outline::KvHeads;
use super::rope::Rope;
use kernels::attention::Mask;
use kernels::ops::{ActivationFunction, NormKind};
use kernels::recurrent::{MemoryShape, StateShape};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: &'static Family,
    /// Elements of the residual stream.
    pub(crate) width: usize,
    /// Tokens the model was trained to attend to.
    pub(crate) context_tokens: usize,
    pub(crate) vocabulary: usize,
    pub(crate) norm: NormKind,
    pub(crate) epsilon: f32,
    pub(crate) input: Input,
    /// Elements of the embedding that each layer has of each token by itself, beside the residual stream.
    pub(crate) per_layer: Option<usize>,
    /// Multiplies token embeddings.
    pub(crate) embedding_scale: f32,
    /// Multiplies what a layer's parts add to the residual stream.
    pub(crate) residual_scale: f32,
    /// The norm of the residual stream after all layers.
    pub(crate) output_norm: Option<&'static str>,
    pub(crate) output: Output,
    /// Multiplies logits.
    pub(crate) logit_scale: f32,
    /// Logits become `cap * tanh(logit / cap)`.
    pub(crate) logit_soft_cap: Option<f32>,
    /// Rotary embeddings, which layers name by their place here.
    pub(crate) ropes: Vec<Rope>,
    pub(crate) layers: Vec<Layer>,
    /// A layer after them that looks one token further (multi-token prediction, DeepSeek-V3, 2024).
    pub(crate) predictor: Option<Layer>,
    /// Whether the matrices of the feed-forward parts may have a scale each (`ffn_up.scale` and so on).
    pub(crate) feed_forward_scales: bool,
    /// Whether a layer may multiply the residual stream at its end (`layer_output_scale`).
    pub(crate) layer_scales: bool,
}

/// What the residual stream begins with besides the embeddings of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Input {
    /// An embedding of each position is added.
    pub(crate) positions: bool,
    /// An embedding of which of two texts a token is of is added.
    pub(crate) segments: bool,
    /// A norm of all that.
    pub(crate) norm: Option<&'static str>,
}

/// What comes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Logits of the token that follows.
    Logits,
    /// A vector of the whole.
    Embedding(Pooling),
    /// How well the second of two texts answers the first.
    Score(Pooling, Classifier),
}

impl Output {
    pub(crate) fn pooling(self) -> Option<Pooling> {
        match self {
            Output::Logits => None,
            Output::Embedding(pooling) | Output::Score(pooling, _) => Some(pooling),
        }
    }
}

impl Pooling {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean of all tokens",
            Pooling::First => "first token",
            Pooling::Last => "last token",
        }
    }
}

/// How the vectors of all tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    First,
    Last,
}

/// What a pooled vector goes through on its way to a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Classifier {
    /// Between its two matrices.
    pub(crate) function: ClassifierFunction,
    /// Scores are probabilities of several labels, of which the first counts.
    pub(crate) softmax: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClassifierFunction {
    Tanh,
    Gelu,
}

/// One layer: a part that mixes positions, and one that works on each alone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layer {
    pub(crate) norms: Norms,
    pub(crate) mixer: Mixer,
    pub(crate) feed_forward: FeedForward,
}

/// Where a layer's norms are, by the names of their tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Norms {
    /// Before the mixer.
    pub(crate) mixer: Option<&'static str>,
    /// Of what the mixer adds to the residual stream.
    pub(crate) mixed: Option<&'static str>,
    /// Of the residual stream, once the mixer has added to it.
    pub(crate) mixed_stream: Option<&'static str>,
    /// Of that, once what the mixer worked on was added to it again.
    pub(crate) mixed_stream_again: Option<&'static str>,
    pub(crate) before_feed_forward: BeforeFeedForward,
    /// Of what the feed-forward part adds to the residual stream.
    pub(crate) fed_forward: Option<&'static str>,
    /// Of the residual stream, once the feed-forward part has added to it.
    pub(crate) fed_forward_stream: Option<&'static str>,
}

/// What a feed-forward part works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeforeFeedForward {
    /// The norm of the residual stream.
    Norm(&'static str),
    /// The residual stream as it is.
    Nothing,
    /// What the mixer works on, too: both parts stand beside each other.
    Parallel,
}

impl Norms {
    /// A norm before each part.
    pub(crate) const BEFORE: Norms = Norms {
        mixer: Some("attn_norm"),
        mixed: None,
        mixed_stream: None,
        mixed_stream_again: None,
        before_feed_forward: BeforeFeedForward::Norm("ffn_norm"),
        fed_forward: None,
        fed_forward_stream: None,
    };

    /// A norm of what each part adds.
    pub(crate) const AFTER: Norms = Norms {
        mixer: None,
        mixed: Some("post_attention_norm"),
        before_feed_forward: BeforeFeedForward::Nothing,
        fed_forward: Some("post_ffw_norm"),
        ..Norms::BEFORE
    };

    /// Both.
    pub(crate) const AROUND: Norms =
        Norms { mixed: Norms::AFTER.mixed, fed_forward: Norms::AFTER.fed_forward, ..Norms::BEFORE };

    /// A norm of the residual stream after each part has added to it.
    pub(crate) const OF_SUMS: Norms = Norms {
        mixer: None,
        mixed_stream: Some("attn_output_norm"),
        before_feed_forward: BeforeFeedForward::Nothing,
        fed_forward_stream: Some("layer_output_norm"),
        ..Norms::BEFORE
    };
}

/// What lets a token see the ones before it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mixer {
    Attention(Attention),
    Latent(Latent),
    ShortConvolution(ShortConvolution),
    Mamba(Mamba),
    DeltaNet(DeltaNet),
}

/// Attention whose keys and values are made of one short vector for all heads, which is all that is kept of a token (MLA,
/// DeepSeek-V2, 2024).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Latent {
    pub(crate) heads: usize,
    /// Elements of the vector that queries are made of; `None`: they are made of the residual stream.
    pub(crate) query_rank: Option<usize>,
    /// Elements of the vector that keys and values are made of.
    pub(crate) rank: usize,
    /// Elements of a head's key that are made of it.
    pub(crate) key_dim: usize,
    /// Elements of a key that are turned by its position, the same for all heads.
    pub(crate) turned_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) scale: f32,
    pub(crate) rope: usize,
    pub(crate) temperature: Option<Temperature>,
}

/// A convolution over a few tokens between two gates (LFM2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortConvolution {
    pub(crate) taps: usize,
}

/// Mamba-2 (Dao and Gu, 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mamba {
    pub(crate) taps: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) state_dim: usize,
    /// Heads are in as many groups, which share what writes and reads their states.
    pub(crate) groups: usize,
}

impl Mamba {
    pub(crate) fn inner(self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of the convolution.
    pub(crate) fn channels(self) -> usize {
        self.inner() + 2 * self.groups * self.state_dim
    }
}

/// The gated delta rule (Yang, Kautz and Hatamizadeh, 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeltaNet {
    pub(crate) taps: usize,
    pub(crate) key_heads: usize,
    pub(crate) value_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
}

impl DeltaNet {
    /// Channels of the convolution.
    pub(crate) fn channels(self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) mask: Mask,
    /// Its place among [`Config::ropes`]; `None`: positions do not matter.
    pub(crate) rope: Option<usize>,
    pub(crate) head_norms: HeadNorms,
    pub(crate) values: Values,
    /// The earlier layer whose keys and values it attends to; `None`: it has its own.
    pub(crate) shares: Option<usize>,
    /// A score for each head that takes its share of the softmax (`attn_sinks`).
    pub(crate) sinks: bool,
    /// Queries grow with their position.
    pub(crate) temperature: Option<Temperature>,
    /// Each head's queries come with a gate for what it mixes.
    pub(crate) gated: bool,
    /// What scores of each head lose for each position that a key is away.
    pub(crate) slopes: Option<Vec<f32>>,
}

/// What is mixed of each token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Values {
    /// They are what keys are before these are normed and turned, without a matrix of their own.
    pub(crate) of_keys: bool,
    /// Those of each head are normed, without weights.
    pub(crate) normed: bool,
}

/// Queries are multiplied by `1 + scale * ln(1 + floor(position / tokens))`, as in Llama 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    pub scale: f32,
    pub tokens: f32,
}

impl Temperature {
    pub(crate) fn at(self, position: usize) -> f32 {
        1.0 + self.scale * ((position as f32 / self.tokens).floor() + 1.0).ln()
    }
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNorms {
    None,
    /// Of each head.
    Each,
    /// Of all heads at once.
    All,
    /// Layer norms of all heads at once.
    Layer,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FeedForward {
    None,
    /// `down(function(gate x) * (up x))`, `width` elements in between, or `down(function(up x))` without a gate.
    Dense {
        width: usize,
        function: ActivationFunction,
        gated: bool,
    },
    Experts(Experts),
    /// A gated dense part, `width` elements in between, and experts beside it, with norms of their own before and after each;
    /// what both make is added up.
    DenseAndExperts {
        width: usize,
        experts: Experts,
    },
}

/// Some of many feed-forward parts, chosen for each token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Experts {
    pub(crate) count: usize,
    /// How many of them a token goes through.
    pub(crate) used: usize,
    /// Elements in between, of each.
    pub(crate) width: usize,
    pub(crate) function: ActivationFunction,
    pub(crate) router: Router,
    /// One more that every token goes through.
    pub(crate) shared: Option<SharedExpert>,
}

impl Experts {
    /// Adds an expert that every token goes through, where the file has one.
    pub(crate) fn share(&mut self, width: usize, gated: bool) {
        self.shared = (width > 0).then_some(SharedExpert { width, gated });
    }
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Router {
    pub(crate) probabilities: Probabilities,
    /// Weights of the chosen are divided by their sum.
    pub(crate) normalized: bool,
    /// Multiplies the weights.
    pub(crate) scale: f32,
    /// Groups of experts, of which the best are searched; `None`: all are.
    pub(crate) groups: Option<Groups>,
}

/// What the router's scores become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probabilities {
    Softmax,
    Sigmoid,
    /// A softmax over those that were chosen by their scores.
    SoftmaxOfChosen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub used: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedExpert {
    pub(crate) width: usize,
    /// What it adds is multiplied by the sigmoid of a score of its own.
    pub(crate) gated: bool,
}

impl Config {
    pub(crate) fn purpose(&self) -> Purpose {
        match self.output {
            Output::Logits => Purpose::Generates,
            Output::Embedding(_) => Purpose::Embeds,
            Output::Score(..) => Purpose::Scores,
        }
    }

    /// All layers, the predictor as the last.
    pub(crate) fn with_predictor(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain(&self.predictor)
    }

    /// One of all layers.
    ///
    /// # Panics
    /// If there is no such layer.
    pub(crate) fn layer(&self, i: usize) -> &Layer {
        self.layers.get(i).or(self.predictor.as_ref()).expect("a layer of the model")
    }

    /// The last layer that keeps something of tokens: those after it need only tokens whose logits are wanted.
    pub(crate) fn last_to_keep(&self) -> usize {
        let keeps = |layer: &Layer| layer.mixer.shares().is_none();
        self.layers.iter().rposition(keeps).expect("layers share what an earlier one keeps")
    }

    /// By layer, the place of what it looks at among all that layers keep, the predictor's as the last.
    pub(crate) fn cache_places(&self) -> Vec<usize> {
        let mut kept = 0;
        let mut places = Vec::new();
        for layer in self.with_predictor() {
            places.push(layer.mixer.shares().map_or(kept, |earlier| places[earlier]));
            kept += usize::from(layer.mixer.shares().is_none());
        }
        places
    }

    /// What each layer that attends to earlier tokens keeps of them.
    pub(crate) fn kv_layers(&self) -> impl Iterator<Item = KvHeads> {
        self.with_predictor().filter_map(|layer| layer.mixer.kv_heads())
    }

    /// Bytes of state of one sequence, however long it is.
    pub(crate) fn state_bytes(&self) -> u64 {
        let states = self.layers.iter().filter_map(|layer| layer.mixer.state(self.width, 1));
        states.map(|state| state.slot_bytes() as u64).sum()
    }

    /// The attention of every layer that has some, with the layer's number.
    pub(crate) fn attention_mut(&mut self) -> impl Iterator<Item = (usize, &mut Attention)> {
        self.layers.iter_mut().enumerate().filter_map(|(i, layer)| match &mut layer.mixer {
            Mixer::Attention(attention) => Some((i, attention)),
            _ => None,
        })
    }

    /// The experts of every layer that has some.
    pub(crate) fn experts_mut(&mut self) -> impl Iterator<Item = &mut Experts> {
        self.layers.iter_mut().filter_map(|layer| match &mut layer.feed_forward {
            FeedForward::Experts(experts) | FeedForward::DenseAndExperts { experts, .. } => Some(experts),
            FeedForward::None | FeedForward::Dense { .. } => None,
        })
    }

    pub(crate) fn set_norms(&mut self, norms: Norms) {
        self.layers.iter_mut().for_each(|layer| layer.norms = norms);
    }

    pub(crate) fn set_function(&mut self, wanted: ActivationFunction) {
        for layer in &mut self.layers {
            match &mut layer.feed_forward {
                FeedForward::None => {}
                FeedForward::Dense { function, .. }
                | FeedForward::Experts(Experts { function, .. })
                | FeedForward::DenseAndExperts { experts: Experts { function, .. }, .. } => {
                    *function = wanted;
                }
            }
        }
    }

    /// Feed-forward parts have no gate.
    pub(crate) fn set_ungated(&mut self) {
        for layer in &mut self.layers {
            if let FeedForward::Dense { gated, .. } = &mut layer.feed_forward {
                *gated = false;
            }
        }
    }

    /// Gives the layers of `windowed` a sliding window, and `rope` in place of the rotary embedding of all.
    pub(crate) fn set_windows(&mut self, window: usize, windowed: &[bool], rope: Option<Rope>) {
        let place = rope.map(|rope| {
            self.ropes.push(rope);
            self.ropes.len() - 1
        });
        for (i, attention) in self.attention_mut().filter(|(i, _)| windowed[*i]) {
            debug_assert!(windowed[i]);
            attention.mask = Mask::Window(window);
            if place.is_some() {
                attention.rope = place;
            }
        }
    }
}

impl Mixer {
    /// Heads of queries, heads of keys, and dimensions of a head; `None` where nothing is attended to.
    pub(crate) fn heads(&self) -> Option<(usize, usize, usize)> {
        match self {
            Mixer::Attention(attention) => Some((attention.heads, attention.kv_heads, attention.head_dim)),
            Mixer::Latent(latent) => Some((latent.heads, 1, latent.key_dim + latent.turned_dim)),
            _ => None,
        }
    }

    /// The place of its rotary embedding, where it has one.
    pub(crate) fn rope(&self) -> Option<usize> {
        match self {
            Mixer::Attention(attention) => attention.rope,
            Mixer::Latent(latent) => Some(latent.rope),
            Mixer::ShortConvolution(_) | Mixer::Mamba(_) | Mixer::DeltaNet(_) => None,
        }
    }

    /// The earlier layer whose keys and values it attends to.
    pub(crate) fn shares(&self) -> Option<usize> {
        match self {
            Mixer::Attention(attention) => attention.shares,
            _ => None,
        }
    }

    /// What is kept of a token, where it is kept by itself and not by another layer.
    pub(crate) fn kv_heads(&self) -> Option<KvHeads> {
        match self {
            Mixer::Attention(Attention { shares: Some(_), .. }) => None,
            Mixer::Attention(attention) => Some(KvHeads {
                heads: attention.kv_heads,
                key_dim: attention.head_dim,
                value_dim: attention.head_dim,
            }),
            Mixer::Latent(latent) => {
                Some(KvHeads { heads: 1, key_dim: latent.turned_dim + latent.rank, value_dim: latent.rank })
            }
            _ => None,
        }
    }

    /// What is kept of a sequence, however long it is; `width` is that of the residual stream.
    pub(crate) fn state(&self, width: usize, slots: usize) -> Option<StateShape> {
        let (channels, taps, memory) = match *self {
            Mixer::Attention(_) | Mixer::Latent(_) => return None,
            Mixer::ShortConvolution(ShortConvolution { taps }) => (width, taps, MemoryShape::default()),
            Mixer::Mamba(mamba) => {
                let Mamba { heads, state_dim, head_dim, .. } = mamba;
                (mamba.channels(), mamba.taps, MemoryShape { heads, key_dim: state_dim, value_dim: head_dim })
            }
            Mixer::DeltaNet(net) => {
                let DeltaNet { value_heads: heads, key_dim, value_dim, .. } = net;
                (net.channels(), net.taps, MemoryShape { heads, key_dim, value_dim })
            }
        };
        Some(StateShape { slots, channels, taps, memory })
    }
}

impl FeedForward {
    /// Elements in between, of one expert where there are some.
    pub(crate) fn width(&self) -> Option<usize> {
        match self {
            FeedForward::None => None,
            FeedForward::Dense { width, .. } => Some(*width),
            FeedForward::Experts(experts) | FeedForward::DenseAndExperts { experts, .. } => {
                Some(experts.width)
            }
        }
    }
}
