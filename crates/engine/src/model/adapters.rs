//! LoRA adapters: pairs of small matrices that change what a model's matrices do, chosen anew by each request.
//!
//! Where an adapter has a pair for a matrix `W` of `rows` x `cols`, a product becomes
//! `W x + scale * alpha / rank * B (A x)` with `A` of `rank` x `cols` and `B` of `rows` x `rank` (Hu et al., 2021). Files are
//! what llama.cpp's `convert_lora_to_gguf.py` writes. What it refuses to do: merge a pair into the weights, which are packed
//! and shared by all requests, and change anything but matrices and the token embedding.

use super::weights::Linear;
use super::{Model, format_of, name_of};
use crate::gguf::{Gguf, GgufError, TensorInfo};
use crate::request::Refused;
use kernels::matrix::Shape;
use kernels::{Format, Matrix, Pool};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "token_embd.weight";

/// Why a file is not an adapter of a model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("metadata key {key:?} is {found:?}; of an adapter it is {wanted:?}")]
    NoAdapter { key: &'static str, found: String, wanted: &'static str },
    #[error(
        "the adapter is activated by certain tokens (aLoRA, adapter.alora.invocation_tokens), which is not supported"
    )]
    Activated,
    #[error("the adapter is for the architecture {found:?} and the model {model:?} is of {own:?}")]
    OtherFamily { found: String, model: String, own: String },
    #[error("adapter.lora.alpha is {found}; it must be a finite number")]
    Alpha { found: f32 },
    #[error("the adapter has no tensors")]
    Empty,
    #[error("the adapter has {found:?} and no {missing:?}")]
    Half { found: String, missing: String },
    #[error("tensor {name:?} of the adapter is neither lora_a nor lora_b of a matrix")]
    Unknown { name: String },
    #[error("the adapter changes {name:?}, which the model {model:?} does not have")]
    Missing { name: String, model: String },
    #[error("the adapter changes {name:?}, which the model {model:?} does not multiply by")]
    NoMatrix { name: String, model: String },
    #[error(
        "lora_a of {name:?} has the shape {a:?} and lora_b {b:?}, which do not fit {own:?} of the model {model:?}"
    )]
    Shape { name: String, a: Vec<u64>, b: Vec<u64>, model: String, own: Vec<u64> },
    #[error("tensor {name:?} has the weight format {format}, which is not known; known are {known}")]
    UnknownFormat { name: String, format: &'static str, known: String },
}

/// How much of an adapter: `scale` times what it was trained to change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterScale {
    /// Its place among [`Model::adapters`].
    pub id: usize,
    pub scale: f32,
}

/// What keys, values and states depend on beside their tokens: which adapters, and how much of each. Of none it is the
/// default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AdaptersKey(pub(crate) [u8; 32]);

/// The adapters of a request: those of a scale other than 0, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters {
    pub(crate) scales: Vec<AdapterScale>,
    pub(crate) key: AdaptersKey,
}

impl Adapters {
    pub fn scales(&self) -> &[AdapterScale] {
        &self.scales
    }

    pub fn key(&self) -> AdaptersKey {
        self.key
    }
}

/// An adapter of a model.
#[derive(Debug)]
pub struct Adapter {
    path: Option<PathBuf>,
    /// By the places of the matrices that they change.
    pairs: Vec<Option<Pair>>,
    embedding: Option<EmbeddingPair>,
    norms_left_out: usize,
    /// Of all that it computes with.
    digest: [u8; 32],
}

/// What changes one matrix.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    /// `alpha / rank`
    pub(crate) scale: f32,
}

/// What changes the token embedding. Its `A` has a row for each token, which takes the place of a product.
#[derive(Debug)]
pub(crate) struct EmbeddingPair {
    a: Vec<u8>,
    format: Format,
    pub(crate) b: Matrix,
    pub(crate) scale: f32,
}

impl EmbeddingPair {
    /// Writes a token's row of `A`.
    pub(crate) fn write_row(&self, token: usize, out: &mut [f32]) {
        let row_bytes = self.format.row_bytes(out.len()).expect("checked when the adapter was read");
        self.format.dequantize_row(&self.a[token * row_bytes..][..row_bytes], out);
    }
}

impl Adapter {
    /// Where it was read from; `None` where it came from memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The file's name without its ending.
    pub fn name(&self) -> String {
        let stem = self.path.as_ref().and_then(|path| path.file_stem());
        stem.map_or_else(|| "adapter".to_owned(), |stem| stem.to_string_lossy().into_owned())
    }

    /// Norms that the file has and that are not applied, as llama.cpp does not.
    pub fn norms_left_out(&self) -> usize {
        self.norms_left_out
    }

    pub(crate) fn pair(&self, linear: &Linear) -> Option<&Pair> {
        self.pairs[linear.matrix.index()].as_ref()
    }

    pub(crate) fn embedding(&self) -> Option<&EmbeddingPair> {
        self.embedding.as_ref()
    }
}

impl Model {
    /// Adds an adapter behind those that are there. Its matrices are packed into memory.
    ///
    /// # Errors
    /// If the file is no adapter, one of another model, or of a kind that is not known. The model stays as it was.
    pub fn add_adapter(&mut self, gguf: &Gguf, pool: &Pool) -> Result<&Adapter, AdapterError> {
        let adapter = read(gguf, self, pool)?;
        self.adapters.push(adapter);
        Ok(self.adapters.last().expect("just added"))
    }

    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// The adapters of a request, each of which may be named once.
    ///
    /// # Errors
    /// If there is no such adapter, one comes twice, or a scale is not finite.
    pub fn choose_adapters(&self, wanted: &[AdapterScale]) -> Result<Adapters, Refused> {
        let mut scales = wanted.to_vec();
        scales.sort_by_key(|wanted| wanted.id);
        let adapters = self.adapters.len();
        if let Some(&AdapterScale { id, .. }) = scales.iter().find(|wanted| wanted.id >= adapters) {
            return Err(Refused::UnknownAdapter { id, adapters });
        }
        if let Some(twice) = scales.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(Refused::InvalidAdapter { id: twice[0].id, reason: "is named twice" });
        }
        if let Some(&AdapterScale { id, .. }) = scales.iter().find(|wanted| !wanted.scale.is_finite()) {
            return Err(Refused::InvalidAdapter { id, reason: "has a scale that is not a finite number" });
        }
        scales.retain(|wanted| wanted.scale != 0.0);
        if scales.is_empty() {
            return Ok(Adapters::default());
        }
        let mut hash = Sha256::new();
        for &AdapterScale { id, scale } in &scales {
            hash.update(self.adapters[id].digest);
            hash.update(scale.to_le_bytes());
        }
        Ok(Adapters { scales, key: AdaptersKey(hash.finalize().into()) })
    }
}

/// The two tensors for one of the model's.
#[derive(Clone, Copy)]
struct Tensors<'a> {
    a: &'a TensorInfo,
    b: &'a TensorInfo,
}

/// Whether the file of an adapter fits that of a model, before either is loaded: all that [`Model::add_adapter`] checks but
/// whether the model multiplies by what is changed.
///
/// # Errors
/// As there.
pub fn check_adapter(gguf: &Gguf, base: &Gguf) -> Result<(), AdapterError> {
    check_kind(gguf, base)?;
    let alpha = alpha(gguf)?;
    for (name, tensors) in pair_up(gguf)?.0 {
        let reader = Reader { gguf, base, name, tensors, alpha };
        let Tensors { a, b } = tensors;
        if name == EMBEDDING { reader.embedding_dims().map(drop) } else { reader.dims().map(drop) }?;
        format(a).and(format(b))?;
    }
    Ok(())
}

/// As llama.cpp has it: where there is no alpha, or it is 0, what B and A make is not scaled.
fn alpha(gguf: &Gguf) -> Result<f32, AdapterError> {
    let alpha = gguf.f32("adapter.lora.alpha")?.unwrap_or(0.0);
    if alpha.is_finite() { Ok(alpha) } else { Err(AdapterError::Alpha { found: alpha }) }
}

fn read(gguf: &Gguf, model: &Model, pool: &Pool) -> Result<Adapter, AdapterError> {
    check_kind(gguf, model.gguf())?;
    let alpha = alpha(gguf)?;
    let (by_name, norms_left_out) = pair_up(gguf)?;
    let mut hash = Sha256::new();
    hash.update(alpha.to_le_bytes());
    let mut pairs = vec![None; model.store.weights().parts.slices().len()];
    let mut embedding = None;
    for (name, tensors) in by_name {
        for info in [tensors.a, tensors.b] {
            hash.update(format!("{} {:?} {}\n", info.name, info.shape, info.ty.name()));
            hash.update(gguf.data(info));
        }
        let reader = Reader { gguf, base: model.gguf(), name, tensors, alpha };
        if name == EMBEDDING {
            embedding = Some(reader.embedding(model, pool)?);
        } else {
            reader.pairs(model, pool, &mut pairs)?;
        }
    }
    let path = gguf.path().map(Path::to_owned);
    Ok(Adapter { path, pairs, embedding, norms_left_out, digest: hash.finalize().into() })
}

fn check_kind(gguf: &Gguf, base: &Gguf) -> Result<(), AdapterError> {
    for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = gguf.str(key)?.unwrap_or_default();
        if found != wanted {
            return Err(AdapterError::NoAdapter { key, found: found.to_owned(), wanted });
        }
    }
    if gguf.get("adapter.alora.invocation_tokens").is_some() {
        return Err(AdapterError::Activated);
    }
    const FAMILY: &str = "general.architecture";
    let (found, own) = (gguf.str(FAMILY)?.unwrap_or_default(), base.str(FAMILY)?.unwrap_or_default());
    if found != own {
        let (found, own) = (found.to_owned(), own.to_owned());
        return Err(AdapterError::OtherFamily { found, model: name_of(base), own });
    }
    Ok(())
}

/// The two halves of each pair by the tensor that they change, and how many norms there are beside them.
fn pair_up(gguf: &Gguf) -> Result<(BTreeMap<&str, Tensors<'_>>, usize), AdapterError> {
    let (mut pairs, mut norms) = (BTreeMap::new(), 0);
    for info in gguf.tensors() {
        let (name, half) = info.name.rsplit_once('.').unwrap_or_default();
        let other = match half {
            "lora_a" => "lora_b",
            "lora_b" => "lora_a",
            _ if info.name.ends_with("_norm.weight") => {
                norms += 1;
                continue;
            }
            _ => return Err(AdapterError::Unknown { name: info.name.clone() }),
        };
        let missing = format!("{name}.{other}");
        let Some(other) = gguf.tensor(&missing) else {
            return Err(AdapterError::Half { found: info.name.clone(), missing });
        };
        if half == "lora_a" {
            pairs.insert(name, Tensors { a: info, b: other.info });
        }
    }
    if pairs.is_empty() { Err(AdapterError::Empty) } else { Ok((pairs, norms)) }
}

/// Reads what changes one tensor.
struct Reader<'a> {
    gguf: &'a Gguf,
    /// The model's file.
    base: &'a Gguf,
    /// The model's tensor.
    name: &'a str,
    tensors: Tensors<'a>,
    alpha: f32,
}

impl Reader<'_> {
    /// Columns, rows and the number of matrices of the model's tensor.
    fn base_dims(&self) -> Result<[usize; 3], AdapterError> {
        let tensor = self.base.tensor(self.name);
        let missing = || AdapterError::Missing { name: self.name.to_owned(), model: name_of(self.base) };
        Ok(dims(tensor.ok_or_else(missing)?.info))
    }

    fn check(&self, fits: bool) -> Result<(), AdapterError> {
        if fits {
            return Ok(());
        }
        let Tensors { a, b } = self.tensors;
        Err(AdapterError::Shape {
            name: self.name.to_owned(),
            a: a.shape.clone(),
            b: b.shape.clone(),
            model: name_of(self.base),
            own: self.base_dims()?.map(|dim| dim as u64).to_vec(),
        })
    }

    /// `alpha / rank`
    fn scale(&self) -> f32 {
        if self.alpha == 0.0 { 1.0 } else { self.alpha / dims(self.tensors.b)[0] as f32 }
    }

    /// Checks what changes the token embedding.
    fn embedding_dims(&self) -> Result<(), AdapterError> {
        let [width, vocabulary, _] = self.base_dims()?;
        let Tensors { a, b } = self.tensors;
        let ([rank, a_rows, a_count], [b_cols, b_rows, b_count]) = (dims(a), dims(b));
        self.check((rank, a_rows, b_rows, a_count, b_count) == (b_cols, vocabulary, width, 1, 1))
    }

    /// Checks what changes a matrix: its rows, how many of them the tensor has, and of how many of these there is an `A`, which
    /// experts may share.
    fn dims(&self) -> Result<[usize; 3], AdapterError> {
        let [cols, rows, count] = self.base_dims()?;
        let Tensors { a, b } = self.tensors;
        let ([a_cols, a_rows, a_count], [rank, b_rows, b_count]) = (dims(a), dims(b));
        let fits = (a_cols, a_rows, b_rows, b_count) == (cols, rank, rows, count);
        self.check(fits && [1, count].contains(&a_count))?;
        Ok([rows, count, a_count])
    }

    fn embedding(&self, model: &Model, pool: &Pool) -> Result<EmbeddingPair, AdapterError> {
        self.embedding_dims()?;
        let Tensors { a, b } = self.tensors;
        Ok(EmbeddingPair {
            a: self.gguf.data(a).to_vec(),
            format: format(a)?,
            b: self.matrix(b, 0, model, pool)?,
            scale: self.scale(),
        })
    }

    /// Puts what changes the parts of the model's tensor in their places.
    fn pairs(&self, model: &Model, pool: &Pool, pairs: &mut [Option<Pair>]) -> Result<(), AdapterError> {
        let [rows, count, a_count] = self.dims()?;
        let Tensors { a, b } = self.tensors;
        let weights = model.store.weights();
        let plan = model.store.plan();
        let of_tensor = |entry: usize| plan.entries[entry].tensor == self.name;
        let slices = weights.parts.slices().iter().enumerate();
        let slices: Vec<_> = slices.filter(|(_, (entry, _))| of_tensor(*entry)).collect();
        if slices.is_empty() {
            return Err(AdapterError::NoMatrix { name: self.name.to_owned(), model: model.name() });
        }
        for i in 0..count {
            let (a, b) = (self.matrix(a, i.min(a_count - 1), model, pool)?, self.matrix(b, i, model, pool)?);
            for (id, (_, range)) in &slices {
                if range.start / rows == i {
                    let range = range.start - i * rows..range.end - i * rows;
                    let b = b.slice(range).expect("rows that the model's matrix is cut at, too");
                    pairs[*id] = Some(Pair { a: a.clone(), b, scale: self.scale() });
                }
            }
        }
        Ok(())
    }

    /// One of the matrices of a tensor.
    fn matrix(
        &self,
        info: &TensorInfo,
        i: usize,
        model: &Model,
        pool: &Pool,
    ) -> Result<Matrix, AdapterError> {
        let [cols, rows, count] = dims(info);
        let data = self.gguf.data(info);
        let data = &data[i * (data.len() / count)..][..data.len() / count];
        Ok(Matrix::packed(Shape { format: format(info)?, rows, cols }, model.isa(), pool, data))
    }
}

/// Columns, rows and number of the matrices of a tensor.
fn dims(info: &TensorInfo) -> [usize; 3] {
    let dim = |i: usize| info.shape.get(i).map_or(1, |&dim| dim as usize);
    [dim(0), dim(1), info.shape.iter().skip(2).map(|&dim| dim as usize).product()]
}

fn format(info: &TensorInfo) -> Result<Format, AdapterError> {
    format_of(info.ty).ok_or_else(|| AdapterError::UnknownFormat {
        name: info.name.clone(),
        format: info.ty.name(),
        known: Format::ALL.map(Format::name).join(", "),
    })
}
