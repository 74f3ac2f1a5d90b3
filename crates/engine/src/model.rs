//! A model on this machine: its configuration, its weights, and the way from tokens to logits.
//!
//! [`Model::open`] reads a GGUF file, checks that it is a whole model of a known family, and maps or packs its weights for
//! the instruction set in use (see [`packed`]). [`Forward::step`] computes one step of a batch. What it refuses to do:
//! choose tokens (that is `sampler`), decide who runs (`scheduler`), read the environment or print.

mod adapters;
mod config;
pub mod families;
mod forward;
mod keys;
pub mod outline;
pub mod packed;
mod rope;
mod store;
mod tensors;
mod weights;

pub use adapters::{Adapter, AdapterError, AdapterScale, Adapters, AdaptersKey, check_adapter};
pub use forward::{Batch, Forward, SequenceStep, Text};
pub use outline::{KvHeads, Outline};
pub use store::{Listener, News, Outcome};

use crate::cache::Identity;
use crate::gguf::{Gguf, GgufError};
use crate::request::TokenId;
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use config::{Classifier, Config, Output};
use kernels::attention::{KvFormat, KvShape};
use kernels::recurrent::StateShape;
use kernels::{Format, Isa, Pool};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::Store;
use weights::{Head, Plan};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("metadata key {0:?} is missing")]
    MissingKey(String),
    #[error("metadata key {key:?} is {value}; it must be {wanted}")]
    BadValue { key: String, value: String, wanted: String },
    #[error("the architecture {name:?} is not known; known are {known}")]
    UnknownFamily { name: String, known: String },
    #[error("{what} is not supported yet")]
    Unsupported { what: String },
    #[error("tensor {name:?} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name:?} has shape {found:?}; {wanted:?} is needed")]
    TensorShape { name: String, found: Vec<u64>, wanted: Vec<u64> },
    #[error("tensor {name:?} has the weight format {format}, which is not known; known are {known}")]
    UnknownFormat { name: String, format: &'static str, known: String },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("this processor has no {0}")]
    IsaMissing(Isa),
    #[error("the model needs {needed_bytes} bytes of memory and {available_bytes} are available")]
    OutOfMemory { needed_bytes: u64, available_bytes: u64 },
}

impl ModelError {
    /// Whether the file may be fine and only this program does not know its kind yet.
    pub fn is_unknown_kind(&self) -> bool {
        matches!(
            self,
            ModelError::UnknownFamily { .. }
                | ModelError::Unsupported { .. }
                | ModelError::UnknownFormat { .. }
        )
    }
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// It continues a text, token by token.
    #[default]
    Generates,
    /// It makes one vector of a text.
    Embeds,
    /// It says how well one text answers another.
    Scores,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Generates => "generates text",
            Purpose::Embeds => "makes embeddings",
            Purpose::Scores => "scores documents against a query",
        })
    }
}

/// How to open a model.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub isa: Isa,
    /// Where packed weights are kept between runs; `None`: in memory only.
    pub cache: Option<PathBuf>,
    /// Packed weights up to this size are kept in memory although there is a cache.
    pub memory_packed_bytes_max: u64,
    /// Refuse a model whose weights take more than this.
    pub memory_bytes_max: Option<u64>,
    /// When to make a packed file that is wanted and not there.
    pub packing: Packing,
    /// Who is told what happens to the weights.
    pub listener: Listener,
}

/// When a packed file is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Before the model is open.
    #[default]
    First,
    /// While the model computes, several times slower meanwhile, with the weights as they lie in its file.
    Background,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            isa: Isa::detect(),
            cache: None,
            memory_packed_bytes_max: packed::MEMORY_BYTES_MAX,
            memory_bytes_max: None,
            packing: Packing::default(),
            listener: Listener::default(),
        }
    }
}

/// How much of the weights is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub packed_bytes: u64,
    pub total_bytes: u64,
}

/// A model that is ready to compute.
#[derive(Debug)]
pub struct Model {
    gguf: Arc<Gguf>,
    config: Config,
    size: Size,
    store: Store,
    isa: Isa,
    tokenizer: Option<Tokenizer>,
    template: Option<Result<ChatTemplate, TemplateError>>,
    adapters: Vec<Adapter>,
}

impl Model {
    /// Opens the model at `path` (any part of a split one). `progress` hears of what is packed before this returns.
    ///
    /// A packed file that is there is verified while the first step computes; see [`Forward::step`].
    ///
    /// # Errors
    /// If the file is damaged, not a model, or of a kind that is not known; see [`ModelError`].
    pub fn open(
        path: &Path,
        options: &OpenOptions,
        pool: &Pool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Model, ModelError> {
        Model::from_gguf(Gguf::open(path)?, options, pool, progress)
    }

    /// As [`Model::open`], from a file that is open or in memory already.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_gguf(
        gguf: Gguf,
        options: &OpenOptions,
        pool: &Pool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Model, ModelError> {
        if !options.isa.is_supported() {
            return Err(ModelError::IsaMissing(options.isa));
        }
        let config = Config::read(&gguf)?;
        let tokenizer = read_tokenizer(&gguf)?;
        let template = tokenizer.as_ref().and_then(|t| ChatTemplate::from_gguf(&gguf, t).transpose());
        let (plan, parts) = weights::plan(&gguf, &config)?;
        let size = Size::of(&plan);
        let needed_bytes = plan.packed_bytes();
        if let Some(available_bytes) = options.memory_bytes_max
            && needed_bytes > available_bytes
        {
            return Err(ModelError::OutOfMemory { needed_bytes, available_bytes });
        }
        let gguf = Arc::new(gguf);
        let store = Store::open(&gguf, plan, parts, options, pool, progress);
        Ok(Model { gguf, config, size, store, isa: options.isa, tokenizer, template, adapters: Vec::new() })
    }

    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `None` where the file has no vocabulary of a real model.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// How the model wants conversations written, or why its way cannot be followed; `None` where the file does not say.
    pub fn template(&self) -> Option<Result<&ChatTemplate, &TemplateError>> {
        self.template.as_ref().map(Result::as_ref)
    }

    /// How a reranker wants a query and a document written, with `{query}` and `{document}` in their places.
    pub fn pair_template(&self) -> Option<&str> {
        self.gguf.str("tokenizer.chat_template.rerank").ok().flatten()
    }

    /// `general.name`, or the file's name.
    pub fn name(&self) -> String {
        name_of(&self.gguf)
    }

    pub fn family(&self) -> &'static str {
        self.config.family.name
    }

    /// Tokens the model was trained to attend to.
    pub fn context_tokens(&self) -> usize {
        self.config.context_tokens
    }

    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    pub fn purpose(&self) -> Purpose {
        self.config.purpose()
    }

    /// Whether scores are probabilities already, and not any numbers.
    pub fn scores_are_probabilities(&self) -> bool {
        matches!(self.config.output, Output::Score(_, Classifier { softmax: true, .. }))
    }

    /// Elements of the vector that a text becomes; `None` for models that make something else.
    pub fn embedding_len(&self) -> Option<usize> {
        match self.store.weights().parts.head {
            Head::Embedding { len, .. } => Some(len),
            Head::Logits(_) | Head::Score { .. } => None,
        }
    }

    /// The weight format that holds most of the parameters.
    pub fn main_format(&self) -> &'static str {
        let mut elements: Vec<(&str, u64)> = Vec::new();
        for tensor in self.gguf.tensors() {
            match elements.iter_mut().find(|e| e.0 == tensor.ty.name()) {
                Some(entry) => entry.1 += tensor.elements(),
                None => elements.push((tensor.ty.name(), tensor.elements())),
            }
        }
        elements.into_iter().max_by_key(|e| e.1).map_or("", |e| e.0)
    }

    pub fn parameters(&self) -> u64 {
        self.gguf.tensors().iter().map(|t| t.elements()).sum()
    }

    /// Where the weights are now.
    pub fn packing(&self) -> Outcome {
        self.store.outcome()
    }

    /// How much of the weights is packed: all of it, but where a packed file is being made in the background.
    pub fn packed(&self) -> Progress {
        self.store.progress()
    }

    /// Waits until nothing is verified or packed in the background any more.
    pub fn settle(&self) {
        self.store.settle();
    }

    /// Ends packing in the background for good. What was begun is removed; the model computes on as it did.
    pub fn stop_packing(&self) {
        self.store.stop_packing();
    }

    /// Bytes of weights that one generated token reads, once they are packed.
    pub fn bytes_per_token(&self) -> u64 {
        self.size.bytes_per_token
    }

    /// Bytes of weights that a guess of the model's own predictor reads; `None` where it has none.
    pub(crate) fn bytes_per_guess(&self) -> Option<u64> {
        self.config.predictor.as_ref().map(|_| self.size.bytes_per_guess)
    }

    /// Multiply-adds with weights that one token of a prompt takes: those of layers. What only the last token needs, the output
    /// matrix and layers after the last that keeps something of tokens, and attention are not counted.
    pub fn prompt_macs_per_token(&self) -> u64 {
        self.size.prompt_macs_per_token
    }

    /// The shape of what each layer that keeps something keeps: keys and values in `pages` pages, or states of `sequences`
    /// sequences.
    pub(crate) fn cache_shapes(
        &self,
        format: KvFormat,
        pages: usize,
        sequences: usize,
    ) -> impl Iterator<Item = (Option<KvShape>, Option<StateShape>)> {
        let keeps = |layer: &&config::Layer| layer.mixer.shares().is_none();
        self.config.with_predictor().filter(keeps).map(move |layer| {
            let kv = layer.mixer.kv_heads().map(|heads| heads.shape(format, pages));
            (kv, layer.mixer.state(self.config.width, sequences))
        })
    }

    /// By layer, the place of what it looks at among these.
    pub(crate) fn cache_places(&self) -> Vec<usize> {
        self.config.cache_places()
    }

    /// Bytes of cache for `tokens` tokens of one sequence: keys, values, and states.
    pub fn kv_bytes(&self, format: KvFormat, tokens: usize) -> u64 {
        let states = self.config.state_bytes();
        outline::kv_bytes(self.config.kv_layers(), format, tokens).saturating_add(states)
    }

    /// Whether some layers keep a state of fixed size, which cannot be taken back to an earlier token.
    pub fn has_states(&self) -> bool {
        self.config.state_bytes() > 0
    }

    /// What a cache of this model belongs to, where a context has so many tokens.
    pub(crate) fn cache_identity(&self, format: KvFormat, context_tokens: usize) -> Identity {
        let mut hash = Sha256::new();
        hash.update(self.store.key());
        hash.update(format!("{format} {}", self.isa));
        hash.update([u8::from(self.config.predictor.is_some())]);
        // Some rotary embeddings turn otherwise in long contexts.
        for rope in &self.store.weights().parts.ropes {
            hash.update([u8::from(rope.is_long(context_tokens))]);
        }
        let name = format!("{} with a cache of {format} on {}", self.name(), self.isa);
        Identity { key: hash.finalize().into(), name }
    }

    pub(crate) fn tell(&self, news: News<'_>) {
        self.store.tell(news);
    }

    /// The first of `ids` that is outside of the vocabulary.
    pub fn unknown_token(&self, ids: &[TokenId]) -> Option<TokenId> {
        ids.iter().copied().find(|&id| id as usize >= self.config.vocabulary)
    }
}

/// What a model's matrices take, of memory and of each token.
#[derive(Clone, Copy, Debug)]
struct Size {
    bytes_per_token: u64,
    bytes_per_guess: u64,
    prompt_macs_per_token: u64,
}

impl Size {
    fn of(plan: &Plan) -> Size {
        Size {
            bytes_per_token: plan.bytes_per_token(),
            bytes_per_guess: plan.bytes_per_guess(),
            prompt_macs_per_token: plan.prompt_macs_per_token(),
        }
    }
}

/// As [`Model::name`], of a file.
pub(crate) fn name_of(gguf: &Gguf) -> String {
    let stem = || Some(gguf.path()?.file_stem()?.to_string_lossy().into_owned());
    let named = gguf.str("general.name").ok().flatten().filter(|n| !n.trim().is_empty());
    named.map(str::to_owned).or_else(stem).unwrap_or_else(|| "model".to_owned())
}

/// Where the file has a vocabulary that text can be made of. "no_vocab" and "test" are what ggml's tools write for files
/// that only have weights.
fn read_tokenizer(gguf: &Gguf) -> Result<Option<Tokenizer>, ModelError> {
    if matches!(gguf.str("tokenizer.ggml.model")?, None | Some("no_vocab" | "none" | "test")) {
        return Ok(None);
    }
    Ok(Some(Tokenizer::from_gguf(gguf)?))
}

/// The kernels' name for a tensor type of a file.
pub fn format_of(ty: crate::gguf::GgmlType) -> Option<Format> {
    Format::ALL.into_iter().find(|format| format.name() == ty.name())
}
