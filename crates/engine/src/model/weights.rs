//! Which tensors a model is made of, and the parts of a layer that they become.

use super::config::Config;
use super::{ModelError, format_of};
use crate::gguf::{Gguf, TensorInfo};
use kernels::format::Format;
use kernels::matrix::Shape;
use kernels::{Layout, Matrix};

/// The matrices of a model in the order in which they are packed and used.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) tensor: String,
    pub(crate) shape: Shape,
}

impl Plan {
    /// Bytes of all packed matrices.
    pub(crate) fn packed_bytes(&self) -> u64 {
        let bytes = |e: &Entry| e.shape.packed_bytes().expect("checked when planned") as u64;
        self.entries.iter().map(bytes).sum()
    }
}

/// A matrix with what may follow it: `y = scale * (matrix x) + bias`.
///
/// llama.cpp, whose files these are, scales the matrices of attention before it adds the bias and those of the
/// feed-forward part after; here the bias of the latter is scaled once, when it is read.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) scale: f32,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// Nothing follows the matrix.
    pub(crate) fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.bias.is_none()
    }
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) output: Linear,
    pub(crate) feed_forward_norm: Vec<f32>,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

#[derive(Debug)]
pub(crate) struct Weights {
    /// Where rows of the token embedding are read from, in the file's own format.
    pub(crate) embedding: (String, Format),
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    pub(crate) head: Linear,
    /// Per layer-independent pair of elements, how far a head turns per position.
    pub(crate) rope_frequencies: Vec<f32>,
}

/// The matrices of one layer: name, rows, columns.
fn layer_matrices(config: &Config) -> [(&'static str, usize, usize); 7] {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    [
        ("attn_q", queries, config.width),
        ("attn_k", keys, config.width),
        ("attn_v", keys, config.width),
        ("attn_output", config.width, queries),
        ("ffn_gate", config.feed_forward, config.width),
        ("ffn_up", config.feed_forward, config.width),
        ("ffn_down", config.width, config.feed_forward),
    ]
}

/// How many weights the matrices of all layers have.
pub(crate) fn layer_weights(config: &Config) -> u64 {
    let layer: usize = layer_matrices(config).iter().map(|&(_, rows, cols)| rows * cols).sum();
    layer as u64 * config.layers as u64
}

/// Finds and checks every matrix of the model.
pub(crate) fn plan(gguf: &Gguf, config: &Config) -> Result<Plan, ModelError> {
    let mut entries = Vec::new();
    for layer in 0..config.layers {
        for (name, rows, cols) in layer_matrices(config) {
            entries.push(entry(gguf, format!("blk.{layer}.{name}.weight"), rows, cols)?);
        }
    }
    // A model without an output matrix of its own ties it to the embedding.
    let head = if gguf.tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" };
    entry(gguf, "token_embd.weight".to_owned(), config.vocabulary, config.width)?;
    entries.push(entry(gguf, head.to_owned(), config.vocabulary, config.width)?);
    Ok(Plan { entries })
}

fn entry(gguf: &Gguf, tensor: String, rows: usize, cols: usize) -> Result<Entry, ModelError> {
    let info = find(gguf, &tensor, &[cols as u64, rows as u64])?;
    let unknown = || ModelError::UnknownFormat {
        name: tensor.clone(),
        format: info.ty.name(),
        known: Format::ALL.map(Format::name).join(", "),
    };
    let format = format_of(info.ty).ok_or_else(unknown)?;
    let shape = Shape { format, rows, cols };
    // The reader guarantees whole blocks; integer layouts also need whole groups, which blocks of 32 are.
    debug_assert!(Layout::of(format).is_float() || cols.is_multiple_of(32));
    if shape.packed_bytes().is_none() {
        return Err(ModelError::Unsupported { what: format!("a matrix of {rows} x {cols}") });
    }
    Ok(Entry { tensor, shape })
}

fn find<'a>(gguf: &'a Gguf, name: &str, wanted: &[u64]) -> Result<&'a TensorInfo, ModelError> {
    let tensor = gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
    let dims = tensor.info.shape.iter().rev().skip_while(|&&d| d == 1).count();
    if tensor.info.shape[..dims] != *trimmed(wanted) {
        let (found, wanted) = (tensor.info.shape.clone(), wanted.to_vec());
        return Err(ModelError::TensorShape { name: name.to_owned(), found, wanted });
    }
    Ok(tensor.info)
}

/// A shape without its trailing ones.
fn trimmed(shape: &[u64]) -> &[u64] {
    let dims = shape.iter().rev().skip_while(|&&d| d == 1).count();
    &shape[..dims]
}

/// Puts packed matrices (in the plan's order) and small tensors together.
pub(crate) fn assemble(
    gguf: &Gguf,
    config: &Config,
    plan: &Plan,
    matrices: Vec<Matrix>,
) -> Result<Weights, ModelError> {
    let mut matrices = plan.entries.iter().zip(matrices);
    let mut next = |gguf: &Gguf| {
        let (entry, matrix) = matrices.next().expect("a matrix for every entry");
        linear(gguf, config, entry, matrix)
    };
    let mut layers = Vec::with_capacity(config.layers);
    for i in 0..config.layers {
        let [query, key, value] = [next(gguf)?, next(gguf)?, next(gguf)?];
        let [output, gate, up, down] = [next(gguf)?, next(gguf)?, next(gguf)?, next(gguf)?];
        let head_norms = if config.family.head_norms {
            let norm = |name: &str| floats(gguf, &format!("blk.{i}.{name}.weight"), config.head_dim);
            Some((norm("attn_q_norm")?, norm("attn_k_norm")?))
        } else {
            None
        };
        let norm = |name: &str| floats(gguf, &format!("blk.{i}.{name}.weight"), config.width);
        let (attention_norm, feed_forward_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        layers.push(Layer {
            attention_norm,
            query,
            key,
            value,
            head_norms,
            output,
            feed_forward_norm,
            gate,
            up,
            down,
        });
    }
    let factors = match config.family.rope_factors {
        true => optional_floats(gguf, "rope_freqs.weight", config.rope_dims / 2)?,
        false => None,
    };
    let embedding = gguf.tensor("token_embd.weight").and_then(|t| format_of(t.info.ty));
    Ok(Weights {
        embedding: ("token_embd.weight".to_owned(), embedding.expect("checked when planned")),
        layers,
        output_norm: floats(gguf, "output_norm.weight", config.width)?,
        head: next(gguf)?,
        rope_frequencies: config.rope_frequencies(factors.as_deref()),
    })
}

fn linear(gguf: &Gguf, config: &Config, entry: &Entry, matrix: Matrix) -> Result<Linear, ModelError> {
    let base = entry.tensor.strip_suffix(".weight").unwrap_or(&entry.tensor);
    let feed_forward = base.contains(".ffn_");
    let scale = match feed_forward && !config.family.feed_forward_scales {
        true => 1.0,
        false => optional_floats(gguf, &format!("{base}.scale"), 1)?.map_or(1.0, |s| s[0]),
    };
    let mut bias = optional_floats(gguf, &format!("{base}.bias"), matrix.rows())?;
    if feed_forward {
        bias.iter_mut().flatten().for_each(|b| *b *= scale);
    }
    Ok(Linear { matrix, scale, bias })
}

fn optional_floats(gguf: &Gguf, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
    if gguf.tensor(name).is_none() { Ok(None) } else { floats(gguf, name, len).map(Some) }
}

/// A vector of any format that is decoded to floats.
fn floats(gguf: &Gguf, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
    let info = find(gguf, name, &[len as u64])?;
    let format = format_of(info.ty).ok_or_else(|| ModelError::UnknownFormat {
        name: name.to_owned(),
        format: info.ty.name(),
        known: Format::ALL.map(Format::name).join(", "),
    })?;
    let mut out = vec![0.0; len];
    format.dequantize_row(gguf.data(info), &mut out);
    Ok(out)
}
