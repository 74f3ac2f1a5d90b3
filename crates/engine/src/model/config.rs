//! The numbers that shape a model, read from its metadata and checked.

use super::ModelError;
use super::families::{self, Family};
use crate::gguf::Gguf;
use kernels::attention::HEAD_DIM_MAX;

/// The most layers, heads and columns a file may claim; a few times what any published model has.
const LAYERS_MAX: usize = 1024;
const HEADS_MAX: usize = 1024;
const WIDTH_MAX: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: &'static Family,
    pub(crate) layers: usize,
    /// Elements of the residual stream.
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tokens the model was trained to attend to.
    pub(crate) context_tokens: usize,
    pub(crate) vocabulary: usize,
    pub(crate) epsilon: f32,
    /// What scores are multiplied by.
    pub(crate) attention_scale: f32,
    pub(crate) rope_dims: usize,
    pub(crate) rope_base: f32,
    /// Positions are divided by this (linear scaling).
    pub(crate) rope_divisor: f32,
}

impl Config {
    pub(crate) fn read(gguf: &Gguf) -> Result<Config, ModelError> {
        let name =
            gguf.str("general.architecture")?.ok_or(ModelError::MissingKey("general.architecture".into()))?;
        let family = families::find(name)
            .ok_or_else(|| ModelError::UnknownFamily { name: name.to_owned(), known: families::known() })?;
        let keys = Keys { gguf, family: family.name };

        if keys.optional("expert_count")?.unwrap_or(0) > 0 {
            return Err(ModelError::Unsupported { what: format!("{name} with a mixture of experts") });
        }
        let layers = keys.required("block_count", LAYERS_MAX)?;
        let width = keys.required("embedding_length", WIDTH_MAX)?;
        let heads = keys.required("attention.head_count", HEADS_MAX)?;
        let kv_heads = keys.or("attention.head_count_kv", heads, HEADS_MAX)?;
        let head_dim = keys.or("attention.key_length", width / heads, HEAD_DIM_MAX)?;
        if heads % kv_heads != 0 {
            return Err(keys.bad("attention.head_count_kv", kv_heads, format!("a divisor of {heads} heads")));
        }
        let value_dim = keys.or("attention.value_length", head_dim, HEAD_DIM_MAX)?;
        if value_dim != head_dim {
            return Err(ModelError::Unsupported { what: "values of another length than keys".to_owned() });
        }
        let rope_dims = keys.or("rope.dimension_count", head_dim, HEAD_DIM_MAX)?;
        if rope_dims > head_dim || rope_dims % 2 != 0 {
            return Err(keys.bad("rope.dimension_count", rope_dims, format!("even and at most {head_dim}")));
        }
        let vocabulary = match keys.optional("vocab_size")? {
            Some(_) => keys.required("vocab_size", WIDTH_MAX * 16)?,
            None => gguf.strings("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len()),
        };
        let scale = keys.float("attention.scale", 0.0)?;
        let config = Config {
            family,
            layers,
            width,
            feed_forward: keys.required("feed_forward_length", WIDTH_MAX)?,
            heads,
            kv_heads,
            head_dim,
            context_tokens: keys.required("context_length", usize::MAX)?,
            vocabulary,
            epsilon: keys.positive("attention.layer_norm_rms_epsilon", 1e-5)?,
            attention_scale: if scale == 0.0 { (head_dim as f32).sqrt().recip() } else { scale },
            rope_dims,
            rope_base: keys.positive("rope.freq_base", 10_000.0)?,
            rope_divisor: keys.rope_divisor()?,
        };
        if config.vocabulary == 0 {
            return Err(ModelError::MissingKey("tokenizer.ggml.tokens".to_owned()));
        }
        Ok(config)
    }

    /// How far pair `i` of a head turns per position, in radians.
    pub(crate) fn rope_frequencies(&self, factors: Option<&[f32]>) -> Vec<f32> {
        (0..self.rope_dims / 2)
            .map(|i| {
                let exponent = -2.0 * i as f64 / self.rope_dims as f64;
                let factor = f64::from(factors.map_or(1.0, |f| f[i]) * self.rope_divisor);
                (f64::from(self.rope_base).powf(exponent) / factor) as f32
            })
            .collect()
    }
}

/// Metadata under the family's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    family: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family)
    }

    fn optional(&self, name: &str) -> Result<Option<u64>, ModelError> {
        Ok(self.gguf.u64(&self.key(name))?)
    }

    fn required(&self, name: &str, max: usize) -> Result<usize, ModelError> {
        let value = self.optional(name)?.ok_or_else(|| ModelError::MissingKey(self.key(name)))?;
        self.in_range(name, value, max)
    }

    fn or(&self, name: &str, default: usize, max: usize) -> Result<usize, ModelError> {
        let value = self.optional(name)?.unwrap_or(default as u64);
        self.in_range(name, value, max)
    }

    fn in_range(&self, name: &str, value: u64, max: usize) -> Result<usize, ModelError> {
        match usize::try_from(value) {
            Ok(value) if (1..=max).contains(&value) => Ok(value),
            _ => Err(self.bad(name, value, format!("from 1 to {max}"))),
        }
    }

    fn float(&self, name: &str, default: f32) -> Result<f32, ModelError> {
        let value = self.gguf.f32(&self.key(name))?.unwrap_or(default);
        if value.is_finite() { Ok(value) } else { Err(self.bad(name, value, "a finite number".to_owned())) }
    }

    fn positive(&self, name: &str, default: f32) -> Result<f32, ModelError> {
        let value = self.float(name, default)?;
        if value > 0.0 { Ok(value) } else { Err(self.bad(name, value, "above zero".to_owned())) }
    }

    fn rope_divisor(&self) -> Result<f32, ModelError> {
        let scaling = self.gguf.str(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        let factor = self.float("rope.scaling.factor", self.float("rope.scale_linear", 0.0)?)?;
        match scaling {
            "none" => Ok(1.0),
            // Writers put 0 where there is no scaling.
            "linear" => Ok(if factor > 0.0 { factor } else { 1.0 }),
            other => Err(ModelError::Unsupported { what: format!("rotary scaling of type {other:?}") }),
        }
    }

    fn bad(&self, name: &str, value: impl ToString, wanted: String) -> ModelError {
        ModelError::BadValue { key: self.key(name), value: value.to_string(), wanted }
    }
}
