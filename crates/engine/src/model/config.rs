//! The parts that a model is made of and their sizes, read from its metadata and checked.
//!
//! A [`Config`] says everything that a forward pass needs to know but the weights. Families fill it in (see `families`);
//! what computes looks at parts and sizes only, never at a family's name.

use super::families::{self, Family};
use super::keys::Keys;
use super::outline::KvHeads;
use super::rope::Rope;
use super::{ModelError, Purpose};
use crate::gguf::Gguf;
use kernels::attention::{HEAD_DIM_MAX, Mask, Pairing};
use kernels::ops::{ActivationFunction, NormKind};
use kernels::recurrent::{MemoryShape, StateShape};

/// The most layers, heads, columns and experts a file may claim; a few times what any published model has.
pub(crate) const LAYERS_MAX: usize = 1024;
pub(crate) const HEADS_MAX: usize = 1024;
pub(crate) const WIDTH_MAX: usize = 1 << 20;
pub(crate) const EXPERTS_MAX: usize = 4096;

const RMS_EPSILON: &str = "attention.layer_norm_rms_epsilon";
pub(crate) const LAYER_NORM_EPSILON: &str = "attention.layer_norm_epsilon";

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

impl Probabilities {
    /// What the file says; `None` where it does not.
    pub(crate) fn read(keys: &Keys<'_>) -> Result<Option<Probabilities>, ModelError> {
        const KEY: &str = "expert_gating_func";
        match keys.count(KEY, usize::MAX)? {
            0 => Ok(None),
            1 => Ok(Some(Probabilities::Softmax)),
            2 => Ok(Some(Probabilities::Sigmoid)),
            3 => Ok(Some(Probabilities::SoftmaxOfChosen)),
            other => {
                Err(keys.bad(KEY, other, "1 (softmax), 2 (sigmoid) or 3 (softmax of the chosen)".to_owned()))
            }
        }
    }
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
    pub(crate) fn read(gguf: &Gguf) -> Result<Config, ModelError> {
        let name =
            gguf.str("general.architecture")?.ok_or(ModelError::MissingKey("general.architecture".into()))?;
        let family = families::find(name)
            .ok_or_else(|| ModelError::UnknownFamily { name: name.to_owned(), known: families::known() })?;
        let keys = Keys { gguf, architecture: family.name };
        let mut config = (family.read)(&keys, family)?;
        config.read_output(&keys)?;
        if config.epsilon <= 0.0 {
            let key = match config.norm {
                NormKind::RootMeanSquare => RMS_EPSILON,
                NormKind::Layer => LAYER_NORM_EPSILON,
            };
            return Err(keys.bad(key, config.epsilon, "above zero".to_owned()));
        }
        Ok(config)
    }

    /// What most families are, and all of them begin with: a norm before each part, attention over all positions with one
    /// rotary embedding, and feed-forward parts with SwiGLU, or experts where the file has some.
    pub(crate) fn transformer(
        keys: &Keys<'_>,
        family: &'static Family,
        pairing: Pairing,
    ) -> Result<Config, ModelError> {
        Config::hybrid(keys, family, pairing, |_, _| None)
    }

    /// The same with something else in place of attention where `other`, asked with a layer's number and its key-value heads,
    /// says so.
    pub(crate) fn hybrid(
        keys: &Keys<'_>,
        family: &'static Family,
        pairing: Pairing,
        other: impl Fn(usize, usize) -> Option<Mixer>,
    ) -> Result<Config, ModelError> {
        let layers = layers(keys)?;
        let width = keys.required("embedding_length", WIDTH_MAX)?;
        let heads = keys.per_layer("attention.head_count", layers, HEADS_MAX)?;
        let kv_heads =
            keys.per_layer("attention.head_count_kv", layers, HEADS_MAX)?.or_else(|| heads.clone());
        let kv_heads = kv_heads.unwrap_or_else(|| vec![0; layers]);
        let others: Vec<Option<Mixer>> = (0..layers).map(|layer| other(layer, kv_heads[layer])).collect();
        let attends = others.iter().any(Option::is_none);
        let heads = match heads {
            Some(heads) => heads,
            None if attends => return Err(keys.missing("attention.head_count")),
            None => vec![0; layers],
        };
        let of_all = heads.iter().copied().find(|&heads| heads > 0);
        let head_dim = match of_all {
            Some(heads) if attends => keys.or("attention.key_length", width / heads, HEAD_DIM_MAX)?,
            _ => 0,
        };
        if head_dim > 0 && keys.or("attention.value_length", head_dim, HEAD_DIM_MAX)? != head_dim {
            return Err(ModelError::Unsupported { what: "values of another length than keys".to_owned() });
        }
        let scale = keys.float("attention.scale", 0.0)?;
        let scale = if scale == 0.0 { (head_dim as f32).sqrt().recip() } else { scale };
        let mut parts = Vec::with_capacity(layers);
        for (layer, other) in others.into_iter().enumerate() {
            let mixer = match other {
                Some(mixer) => mixer,
                None => {
                    let (heads, kv_heads) = (heads[layer], kv_heads[layer]);
                    for (key, count) in
                        [("attention.head_count", heads), ("attention.head_count_kv", kv_heads)]
                    {
                        if count == 0 {
                            return Err(keys.bad(key, count, format!("from 1 to {HEADS_MAX}")));
                        }
                    }
                    if heads % kv_heads != 0 {
                        let wanted = format!("a divisor of {heads} heads");
                        return Err(keys.bad("attention.head_count_kv", kv_heads, wanted));
                    }
                    Mixer::Attention(Attention {
                        heads,
                        kv_heads,
                        head_dim,
                        scale,
                        soft_cap: None,
                        mask: Mask::Causal,
                        rope: Some(0),
                        head_norms: HeadNorms::None,
                        values: Values::default(),
                        shares: None,
                        sinks: false,
                        temperature: None,
                        gated: false,
                        slopes: None,
                    })
                }
            };
            let feed_forward = FeedForward::read(keys, layer, layers)?;
            parts.push(Layer { norms: Norms::BEFORE, mixer, feed_forward });
        }
        Ok(Config {
            family,
            width,
            context_tokens: keys.required("context_length", usize::MAX)?,
            vocabulary: vocabulary(keys)?,
            norm: NormKind::RootMeanSquare,
            epsilon: keys.float(RMS_EPSILON, 1e-5)?,
            input: Input::default(),
            per_layer: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            output_norm: Some("output_norm"),
            output: Output::Logits,
            logit_scale: 1.0,
            logit_soft_cap: None,
            ropes: if attends { vec![Rope::read(keys, pairing, head_dim)?] } else { Vec::new() },
            layers: parts,
            predictor: None,
            feed_forward_scales: false,
            layer_scales: false,
        })
    }

    /// What comes of a text: logits, unless the file or the family asks for one vector of the whole.
    fn read_output(&mut self, keys: &Keys<'_>) -> Result<(), ModelError> {
        const KEY: &str = "pooling_type";
        /// What llama.cpp writes where nothing was said: -1.
        const UNSPECIFIED: u64 = u32::MAX as u64;
        let causal = keys.flag("attention.causal", self.output == Output::Logits)?;
        let asked = keys.optional(KEY)?.filter(|&pooling| pooling != UNSPECIFIED);
        let pooling = match (asked, self.output) {
            // Most converters do not say that they have made a reranker.
            (None, output) if output != Output::Logits && is_reranker(keys) => {
                return self.read_classifier(keys);
            }
            (None | Some(0), Output::Logits) if causal => return Ok(()),
            (None, Output::Embedding(pooling) | Output::Score(pooling, _)) => pooling,
            (None, Output::Logits) => Pooling::Mean,
            (Some(1), _) => Pooling::Mean,
            (Some(2), _) => Pooling::First,
            (Some(3), _) => Pooling::Last,
            (Some(4), _) => return self.read_classifier(keys),
            (Some(0), _) => {
                let what = "a vector for each token instead of one for a text".to_owned();
                return Err(ModelError::Unsupported { what });
            }
            (Some(other), _) => {
                return Err(keys.bad(KEY, other, "1 (mean), 2 (first), 3 (last) or 4 (rank)".to_owned()));
            }
        };
        self.output = Output::Embedding(pooling);
        self.check_output(causal)
    }

    /// A score in place of a vector.
    fn read_classifier(&mut self, keys: &Keys<'_>) -> Result<(), ModelError> {
        const KEY: &str = "classifier.pooling_type";
        let causal = keys.flag("attention.causal", self.output == Output::Logits)?;
        let (usual, classifier) = match self.output {
            Output::Score(pooling, classifier) => (pooling, classifier),
            Output::Embedding(_) => {
                (Pooling::First, Classifier { function: ClassifierFunction::Tanh, softmax: false })
            }
            // Qwen's were made of models that say "yes" or "no".
            Output::Logits => {
                let softmax = self.family.name == "qwen3";
                (Pooling::Last, Classifier { function: ClassifierFunction::Tanh, softmax })
            }
        };
        let pooling = match keys.optional(KEY)? {
            None => usual,
            Some(1) => Pooling::Mean,
            Some(2) => Pooling::First,
            Some(3) => Pooling::Last,
            Some(other) => {
                return Err(keys.bad(KEY, other, "1 (mean), 2 (first) or 3 (last)".to_owned()));
            }
        };
        self.output = Output::Score(pooling, classifier);
        self.check_output(causal)
    }

    fn check_output(&mut self, causal: bool) -> Result<(), ModelError> {
        if self.state_bytes() > 0 {
            let what = "one vector of a text from layers that keep states".to_owned();
            return Err(ModelError::Unsupported { what });
        }
        if self.layers.iter().any(|layer| layer.mixer.shares().is_some()) {
            let what = "one vector of a text from layers that share keys and values".to_owned();
            return Err(ModelError::Unsupported { what });
        }
        if causal {
            return Ok(());
        }
        for layer in &mut self.layers {
            match &mut layer.mixer {
                Mixer::Attention(attention) => match attention.mask {
                    Mask::Causal => attention.mask = Mask::Everything,
                    // Half of the window on each side.
                    Mask::Window(width) => attention.mask = Mask::Around(width),
                    Mask::Everything | Mask::Around(_) => {}
                },
                _ => {
                    let what = "attention of this kind to what comes after a token".to_owned();
                    return Err(ModelError::Unsupported { what });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn purpose(&self) -> Purpose {
        match self.output {
            Output::Logits => Purpose::Generates,
            Output::Embedding(_) => Purpose::Embeds,
            Output::Score(..) => Purpose::Scores,
        }
    }

    /// Takes the layer along that looks one token further, where the file has one: it is built like the last that attends. Of
    /// several, the first is taken.
    pub(crate) fn read_predictor(&mut self, keys: &Keys<'_>) {
        if keys.has_tensor(&format!("blk.{}.nextn.eh_proj.weight", self.layers.len())) {
            self.predictor = self.layers.iter().rev().find(|layer| layer.mixer.heads().is_some()).cloned();
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

/// Which layers have a sliding window: those that the file lists, or all but each `period`-th.
pub(crate) fn windowed_layers(
    keys: &Keys<'_>,
    layers: usize,
    period: usize,
) -> Result<Vec<bool>, ModelError> {
    const KEY: &str = "attention.sliding_window_pattern";
    if let Some(flags) = keys.flags(KEY, layers)? {
        return Ok(flags);
    }
    let period = keys.or(KEY, period, LAYERS_MAX)?;
    Ok((0..layers).map(|layer| layer % period < period - 1).collect())
}

/// Whether an encoder's file has the matrix that leads to a score. Alone `cls.weight` may be what a model was trained with to guess words.
fn is_reranker(keys: &Keys<'_>) -> bool {
    let rows = |name: &str| keys.gguf.tensor(name).map(|t| t.info.shape.get(1).copied().unwrap_or(1));
    keys.has_tensor("cls.output.weight") || rows("cls.weight") == Some(1)
}

/// What scores lose for each position that a key is away, by query head (ALiBi, Press, Smith and Lewis, 2022): powers of
/// `2^(-8 / heads)`, and where heads are no power of two, of the root of that in between.
pub(crate) fn slopes(heads: usize) -> Vec<f32> {
    const LARGEST_EXPONENT: f32 = 8.0;
    let whole = 1 << heads.ilog2();
    let slope = |head: usize| {
        let halves = if head < whole { 2 * (head + 1) } else { 2 * (head - whole) + 1 };
        2f32.powf(-LARGEST_EXPONENT * halves as f32 / (2 * whole) as f32)
    };
    (0..heads).map(slope).collect()
}

/// Layers that lead to the next token: those at the end that predict further ones are not counted.
pub(crate) fn layers(keys: &Keys<'_>) -> Result<usize, ModelError> {
    let count = keys.required("block_count", LAYERS_MAX)?;
    let predictors = keys.count("nextn_predict_layers", LAYERS_MAX)?;
    if predictors >= count {
        return Err(keys.bad("nextn_predict_layers", predictors, format!("less than {count} layers")));
    }
    Ok(count - predictors)
}

fn vocabulary(keys: &Keys<'_>) -> Result<usize, ModelError> {
    let count = match keys.optional("vocab_size")? {
        Some(_) => keys.required("vocab_size", WIDTH_MAX * 16)?,
        None => keys.gguf.strings("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len()),
    };
    match count {
        0 => Err(ModelError::MissingKey("tokenizer.ggml.tokens".to_owned())),
        count => Ok(count),
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

    /// Experts from the first layer after the dense ones on, where the file has experts.
    fn read(keys: &Keys<'_>, layer: usize, layers: usize) -> Result<FeedForward, ModelError> {
        let experts = keys.count("expert_count", EXPERTS_MAX)?;
        let dense_layers = keys.count("leading_dense_block_count", LAYERS_MAX)?;
        let function = ActivationFunction::Silu;
        if experts == 0 || layer < dense_layers {
            let widths = keys.per_layer("feed_forward_length", layers, WIDTH_MAX)?;
            let width = widths.ok_or_else(|| keys.missing("feed_forward_length"))?[layer];
            if width == 0 {
                return Ok(FeedForward::None);
            }
            return Ok(FeedForward::Dense { width, function, gated: true });
        }
        let of_layer = |name: &str, max: usize| -> Result<usize, ModelError> {
            Ok(keys.per_layer(name, layers, max)?.map_or(0, |values| values[layer]))
        };
        let used = of_layer("expert_used_count", experts)?;
        if used == 0 {
            return Err(keys.bad("expert_used_count", used, format!("from 1 to {experts}")));
        }
        // Some files have the width of an expert where others have that of a dense layer.
        let width = match of_layer("expert_feed_forward_length", WIDTH_MAX)? {
            0 => of_layer("feed_forward_length", WIDTH_MAX)?,
            width => width,
        };
        if width == 0 {
            return Err(keys.bad("expert_feed_forward_length", width, format!("from 1 to {WIDTH_MAX}")));
        }
        let groups = match keys.count("expert_group_count", experts)? {
            0 | 1 => None,
            count if experts % count != 0 => {
                let wanted = format!("a divisor of {experts} experts");
                return Err(keys.bad("expert_group_count", count, wanted));
            }
            count => Some(Groups { count, used: keys.required("expert_group_used_count", count)? }),
        };
        if let Some(Groups { count, used: searched }) = groups
            && searched * (experts / count) < used
        {
            let wanted = format!("enough for {used} experts, {} in each", experts / count);
            return Err(keys.bad("expert_group_used_count", searched, wanted));
        }
        Ok(FeedForward::Experts(Experts {
            count: experts,
            used,
            width,
            function,
            router: Router {
                probabilities: Probabilities::Softmax,
                normalized: true,
                scale: keys.unless_zero("expert_weights_scale")?.unwrap_or(1.0),
                groups,
            },
            shared: None,
        }))
    }
}
