//! What a model is and what it takes, known from its header: nothing is packed and no weight is read.

use super::config::Config;
use super::{ModelError, Purpose, weights};
use crate::gguf::Gguf;
use kernels::attention::{KvFormat, KvShape, PAGE};

/// The size of a model of a known family whose matrices are all there, in formats that are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    pub family: &'static str,
    pub purpose: Purpose,
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
}

/// The keys and values of one token in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHeads {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl KvHeads {
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
        let (plan, _) = weights::plan(gguf, &config)?;
        let most = |part: fn((usize, usize, usize)) -> usize| {
            config.layers.iter().filter_map(|layer| layer.mixer.heads()).map(part).max().unwrap_or(0)
        };
        let feed_forward = config.layers.iter().filter_map(|layer| layer.feed_forward.width());
        Ok(Outline {
            family: config.family.name,
            purpose: config.purpose(),
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
            kv_layers: config.kv_layers().collect(),
            state_bytes: config.state_bytes(),
        })
    }

    /// Bytes of cache for `tokens` tokens of one sequence: keys, values, and states.
    pub fn kv_bytes(&self, format: KvFormat, tokens: usize) -> u64 {
        kv_bytes(self.kv_layers.iter().copied(), format, tokens).saturating_add(self.state_bytes)
    }
}
