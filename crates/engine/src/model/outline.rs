//! What a model is and what it takes, known from its header: nothing is packed and no matrix is read.

pub mod layers;
mod pattern;
mod remarks;

use super::config::{Config, Pooling};
use super::tensors::Tensors;
use super::weights::{self, Plan};
use super::{ModelError, Purpose};
use crate::gguf::Gguf;
use kernels::attention::{KvFormat, KvShape, PAGE};
use layers::{Layer, Rope};
use std::collections::{BTreeMap, HashMap};

pub use super::tensors::Part;
pub use pattern::{Group, Pattern, Run};

/// What is to say of a model of a known family whose matrices are all there, in formats that are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outline {
    pub family: &'static str,
    /// The models that people know the family by.
    pub models: &'static str,
    pub purpose: Purpose,
    /// How the vectors of all tokens become one, where they do.
    pub pooling: Option<&'static str>,
    /// Whether each position has an embedding of its own.
    pub learned_positions: bool,
    pub layers: usize,
    /// Elements of the residual stream.
    pub width: usize,
    /// Elements within the widest feed-forward part, or within an expert.
    pub feed_forward: usize,
    /// Of the layer with the most.
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Tokens the model was trained to attend to.
    pub context_tokens: usize,
    pub vocabulary: usize,
    /// Bytes of all packed matrices.
    pub packed_bytes: u64,
    /// Bytes of packed matrices that one generated token reads: of experts, those that it is sent to.
    pub bytes_per_token: u64,
    /// What each layer that attends to earlier tokens keeps of them.
    pub kv_layers: Vec<KvHeads>,
    /// Bytes that all other layers keep of a sequence, however long it is.
    pub state_bytes: u64,
    /// What each layer is made of.
    pub each_layer: Vec<Layer>,
    /// Rotary embeddings, which layers name by their place here.
    pub ropes: Vec<Rope>,
    /// Whether the embedding is the output matrix, too.
    pub output_is_tied: bool,
    /// What the file's tensors are for.
    pub parts: Vec<PartSize>,
    pub unread: Unread,
    /// What sets the model apart from others, in short sentences.
    pub remarks: Vec<String>,
}

/// All tensors of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSize {
    pub part: Part,
    pub tensors: usize,
    pub parameters: u64,
    /// Of those, how many a token goes through: of experts, those that it is sent to; of per-layer embeddings, its row.
    pub active_parameters: u64,
    /// In the file.
    pub bytes: u64,
}

/// Tensors in the file that the engine does not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Whether some of them predict tokens further than the engine does.
    pub predicts_further: bool,
    /// The names of all others.
    pub others: Vec<String>,
}

/// The keys and values of one token in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHeads {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl KvHeads {
    /// Bytes of one token.
    pub fn bytes_per_token(self, format: KvFormat) -> u64 {
        self.shape(format, 1).page_bytes() as u64 / PAGE as u64
    }

    /// A cache of `pages` pages.
    pub(crate) fn shape(self, format: KvFormat, pages: usize) -> KvShape {
        let KvHeads { heads, key_dim, value_dim } = self;
        KvShape { format, pages, heads, key_dim, value_dim }
    }
}

/// Bytes of keys and values of `tokens` tokens of one sequence.
pub(crate) fn kv_bytes(layers: impl Iterator<Item = KvHeads>, format: KvFormat, tokens: usize) -> u64 {
    let page_bytes: u64 = layers.map(|layer| layer.shape(format, 1).page_bytes() as u64).sum();
    (tokens.div_ceil(PAGE) as u64).saturating_mul(page_bytes)
}

impl Outline {
    /// # Errors
    /// If the model is of a kind that is not known, or not whole.
    pub fn read(gguf: &Gguf) -> Result<Outline, ModelError> {
        let config = Config::read(gguf)?;
        let tensors = Tensors::of(gguf);
        let (plan, _) = weights::plan_from(&tensors, &config)?;
        let each_layer: Vec<Layer> = config.layers.iter().map(|layer| Layer::of(layer, &config)).collect();
        let predictor = config.predictor.as_ref().map(|layer| Layer::of(layer, &config));
        let most = |part: fn((usize, usize, usize)) -> usize| {
            config.layers.iter().filter_map(|layer| layer.mixer.heads()).map(part).max().unwrap_or(0)
        };
        let feed_forward = each_layer.iter().map(|layer| layer.feed_forward.width());
        let unread = unread(&tensors, config.layers.len());
        // Rows of the embedding are read from the file; it is planned as a matrix where it makes logits, too.
        let output_is_tied = plan.entries.iter().any(|entry| entry.tensor == "token_embd.weight");
        let mut remarks = remarks::remarks(&config, &each_layer, &tensors);
        if output_is_tied {
            remarks.push("tied output matrix: it is the embedding's".to_owned());
        }
        if config.predictor.is_some() {
            remarks.push(
                "a multi-token-prediction head (nextn): it guesses the tokens after the next".to_owned(),
            );
        }
        remarks.extend(remarks::of_unread(&unread));
        Ok(Outline {
            family: config.family.name,
            models: config.family.models,
            purpose: config.purpose(),
            pooling: config.output.pooling().map(Pooling::name),
            learned_positions: config.input.positions,
            layers: config.layers.len(),
            width: config.width,
            feed_forward: feed_forward.max().unwrap_or(0),
            heads: most(|(heads, ..)| heads),
            kv_heads: most(|(_, kv_heads, _)| kv_heads),
            head_dim: most(|(.., head_dim)| head_dim),
            context_tokens: config.context_tokens,
            vocabulary: config.vocabulary,
            packed_bytes: plan.packed_bytes(),
            bytes_per_token: plan.bytes_per_token(),
            kv_layers: each_layer.iter().chain(&predictor).filter_map(|layer| layer.kept).collect(),
            state_bytes: config.state_bytes(),
            ropes: layers::ropes(&config, gguf),
            output_is_tied,
            parts: parts(&tensors, &plan, config.vocabulary),
            remarks,
            unread,
            each_layer,
        })
    }

    /// Bytes of cache for `tokens` tokens of one sequence: keys, values, and states.
    pub fn kv_bytes(&self, format: KvFormat, tokens: usize) -> u64 {
        kv_bytes(self.kv_layers.iter().copied(), format, tokens).saturating_add(self.state_bytes)
    }

    /// Bytes of keys and values of one token.
    pub fn kv_bytes_per_token(&self, format: KvFormat) -> u64 {
        self.kv_layers.iter().map(|layer| layer.bytes_per_token(format)).sum()
    }

    /// Bytes of keys and values that the last of `tokens` tokens reads: of layers with a window, those in it.
    pub fn kv_bytes_read(&self, format: KvFormat, tokens: usize) -> u64 {
        let of_layer = |layer: &Layer| {
            let shared = || self.each_layer[layer.shares()?].kept;
            let bytes = layer.kept.or_else(shared).map_or(0, |kept| kept.bytes_per_token(format));
            bytes.saturating_mul(layer.window().map_or(tokens, |window| tokens.min(window)) as u64)
        };
        self.each_layer.iter().map(of_layer).fold(0, u64::saturating_add)
    }

    /// Parameters of all tensors.
    pub fn parameters(&self) -> u64 {
        self.parts.iter().map(|part| part.parameters).fold(0, u64::saturating_add)
    }

    /// Parameters that a token goes through: all that are used but those of experts that it is not sent to and per-layer
    /// embeddings of other tokens.
    pub fn active_parameters(&self) -> u64 {
        self.parts.iter().map(|part| part.active_parameters).fold(0, u64::saturating_add)
    }
}

/// The sizes of all parts that there are.
fn parts(tensors: &Tensors<'_>, plan: &Plan, vocabulary: usize) -> Vec<PartSize> {
    // By the name without its ending, so that it holds for biases, too.
    let mut used: HashMap<&str, (usize, usize)> =
        plan.entries.iter().map(|entry| (stem(&entry.tensor), (entry.used, entry.parts))).collect();
    // A token has one of its rows.
    used.insert("per_layer_token_embd", (1, vocabulary));
    let mut parts = BTreeMap::new();
    for info in tensors.tensors() {
        let part = tensors.part_of(&info.name);
        let size = parts.entry(part).or_insert(PartSize {
            part,
            tensors: 0,
            parameters: 0,
            active_parameters: 0,
            bytes: 0,
        });
        let parameters = info.elements();
        let active = match used.get(stem(&info.name)) {
            // What is guessed is gone through again.
            _ if matches!(part, Part::Unread | Part::Predictor) => 0,
            Some(&(used, parts)) => parameters / parts as u64 * used as u64,
            None => parameters,
        };
        size.tensors += 1;
        size.parameters = size.parameters.saturating_add(parameters);
        size.active_parameters = size.active_parameters.saturating_add(active);
        size.bytes = size.bytes.saturating_add(info.len_bytes());
    }
    parts.into_values().collect()
}

fn stem(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(stem, _)| stem)
}

/// Which tensors the engine does not read. Layers after the last that is computed predict further tokens.
fn unread(tensors: &Tensors<'_>, layers: usize) -> Unread {
    let mut unread = Unread::default();
    for info in tensors.tensors().iter().filter(|info| tensors.part_of(&info.name) == Part::Unread) {
        let layer = info.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if info.name.contains(".nextn.") || layer.is_some_and(|layer: usize| layer >= layers) {
            unread.predicts_further = true;
        } else {
            unread.others.push(info.name.clone());
        }
    }
    unread
}
