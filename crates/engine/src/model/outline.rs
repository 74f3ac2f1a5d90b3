//! What a model is and what it takes, known from its header: nothing is packed and no weight is read.

use super::config::Config;
use super::{ModelError, kv_bytes, weights};
use crate::gguf::Gguf;
use kernels::attention::{KvFormat, KvShape};

/// The size of a model of a known family whose matrices are all there, in formats that are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    pub family: &'static str,
    pub layers: usize,
    /// Elements of the residual stream.
    pub width: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Tokens the model was trained to attend to.
    pub context_tokens: usize,
    pub vocabulary: usize,
    /// Bytes of all packed matrices.
    pub packed_bytes: u64,
}

impl Outline {
    /// # Errors
    /// If the model is of a kind that is not known, or not whole.
    pub fn read(gguf: &Gguf) -> Result<Outline, ModelError> {
        let config = Config::read(gguf)?;
        let plan = weights::plan(gguf, &config)?;
        Ok(Outline {
            family: config.family.name,
            layers: config.layers,
            width: config.width,
            feed_forward: config.feed_forward,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            context_tokens: config.context_tokens,
            vocabulary: config.vocabulary,
            packed_bytes: plan.packed_bytes(),
        })
    }

    /// Bytes of weights that one generated token reads: each packed matrix once.
    pub fn bytes_per_token(&self) -> u64 {
        self.packed_bytes
    }

    /// Bytes of key-value cache for `tokens` tokens of one sequence.
    pub fn kv_bytes(&self, format: KvFormat, tokens: usize) -> u64 {
        let shape = KvShape { format, pages: 1, heads: self.kv_heads, head_dim: self.head_dim };
        kv_bytes(self.layers, shape, tokens)
    }
}
