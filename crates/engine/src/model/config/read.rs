//! Configurations from a file's metadata: what most families share, which each then changes.

use super::{
    Attention, Classifier, ClassifierFunction, Config, Experts, FeedForward, Groups, HeadNorms, Input, Layer,
    Mixer, Norms, Output, Pooling, Probabilities, Router, Values,
};
use crate::gguf::Gguf;
use crate::model::ModelError;
use crate::model::families::{self, Family};
use crate::model::keys::Keys;
use crate::model::rope::Rope;
use kernels::attention::{HEAD_DIM_MAX, Mask, Pairing};
use kernels::ops::{ActivationFunction, NormKind};

/// The most layers, heads, columns and experts a file may claim; a few times what any published model has.
pub(crate) const LAYERS_MAX: usize = 1024;
pub(crate) const HEADS_MAX: usize = 1024;
pub(crate) const WIDTH_MAX: usize = 1 << 20;
pub(crate) const EXPERTS_MAX: usize = 4096;

const RMS_EPSILON: &str = "attention.layer_norm_rms_epsilon";
pub(crate) const LAYER_NORM_EPSILON: &str = "attention.layer_norm_epsilon";

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

    /// Takes the layer along that looks one token further, where the file has one: it is built like the last that attends. Of
    /// several, the first is taken.
    pub(crate) fn read_predictor(&mut self, keys: &Keys<'_>) {
        if keys.has_tensor(&format!("blk.{}.nextn.eh_proj.weight", self.layers.len())) {
            self.predictor = self.layers.iter().rev().find(|layer| layer.mixer.heads().is_some()).cloned();
        }
    }
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

impl FeedForward {
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
