//! Which tensors a model is made of, and the parts of a layer that they become.
//!
//! One walk over a [`Config`](super::config::Config) finds and checks every tensor (see [`find`]). What is small (norms, biases) is read at once; matrices are
//! noted in a [`Plan`], in the order in which they are packed and used, and take their place in [`Weights`] when they
//! have been packed or mapped. Weights can therefore be exchanged by exchanging matrices, which cannot fail.

mod find;
mod floats;

pub(crate) use find::{plan, plan_from};

use super::packed::{Deferred, Fault};
use kernels::format::Format;
use kernels::matrix::Shape;
use kernels::ops::{self, Affine, NormKind};
use kernels::recurrent::Convolution;
use kernels::{Matrix, Pool};
use std::ops::Range;
use std::sync::Arc;

/// The matrices of a model in the order in which they are packed and used.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) entries: Vec<Entry>,
    /// How many of them every token of a prompt goes through, and not only those whose logits are wanted.
    prompt_entries: usize,
    /// How many of them are the layers': those after them are for what comes of a text.
    layer_entries: usize,
    /// With those: what is left is the predictor's.
    step_entries: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) tensor: String,
    pub(crate) shape: Shape,
    /// One token reads `used` of `parts` equal parts: all of one, or some of many experts.
    pub(crate) used: usize,
    pub(crate) parts: usize,
}

impl Plan {
    /// Bytes of all packed matrices.
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.entries.iter().map(Entry::packed_bytes).sum()
    }

    /// Bytes of packed matrices that one token reads.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        self.entries[..self.step_entries].iter().map(|entry| entry.of_token(entry.packed_bytes())).sum()
    }

    /// Bytes of packed matrices that a guess of the predictor reads: 0 where there is none.
    pub(crate) fn bytes_per_guess(&self) -> u64 {
        let own = &self.entries[self.step_entries..];
        let has_own_head = own.iter().any(|entry| entry.tensor.ends_with(PREDICTOR_HEAD));
        let shared = match own {
            [] => &[],
            _ if has_own_head => &[],
            _ => &self.entries[self.layer_entries..self.step_entries],
        };
        own.iter().chain(shared).map(|entry| entry.of_token(entry.packed_bytes())).sum()
    }

    /// Multiply-adds of one token of a prompt with the matrices of layers.
    pub(crate) fn prompt_macs_per_token(&self) -> u64 {
        let layers = &self.entries[..self.prompt_entries];
        layers.iter().map(|entry| entry.of_token((entry.shape.rows * entry.shape.cols) as u64)).sum()
    }
}

impl Entry {
    fn packed_bytes(&self) -> u64 {
        self.shape.packed_bytes().expect("checked when planned") as u64
    }

    fn of_token(&self, whole: u64) -> u64 {
        whole / self.parts as u64 * self.used as u64
    }
}

/// The predictor's own output matrix, where it has one.
const PREDICTOR_HEAD: &str = "nextn.shared_head_head.weight";

/// The place of a matrix among [`Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixId(usize);

impl MatrixId {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// A matrix with what may follow it: `y = scale * (matrix x) + bias`.
///
/// llama.cpp, whose files these are, scales the matrices of attention before it adds the bias and those of the
/// feed-forward part after; here the bias of the latter is scaled once, when it is read.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: MatrixId,
    pub(crate) scale: f32,
    pub(crate) bias: Option<Vec<f32>>,
}

/// A norm's weights.
#[derive(Debug)]
pub(crate) struct Norm {
    kind: NormKind,
    epsilon: f32,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Norm {
    pub(crate) fn get(&self) -> ops::Norm<'_> {
        ops::Norm { kind: self.kind, weight: &self.weight, bias: self.bias.as_deref(), epsilon: self.epsilon }
    }
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) mixer_norm: Option<Norm>,
    pub(crate) mixer: Mixer,
    pub(crate) mixed_norm: Option<Norm>,
    pub(crate) mixed_stream_norm: Option<Norm>,
    pub(crate) mixed_stream_norm_again: Option<Norm>,
    pub(crate) feed_forward_norm: Option<Norm>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) fed_forward_norm: Option<Norm>,
    pub(crate) fed_forward_stream_norm: Option<Norm>,
    pub(crate) input: Option<LayerInput>,
    /// Multiplies the residual stream at the end.
    pub(crate) scale: Option<f32>,
}

/// What lets in what a layer knows of a token by itself: the residual stream gates it, and the norm of what comes out is added.
#[derive(Debug)]
pub(crate) struct LayerInput {
    pub(crate) gate: Linear,
    pub(crate) output: Linear,
    pub(crate) norm: Norm,
}

/// What looks one token further: a token and what the model made of the one before it, joined, go through one more layer.
#[derive(Debug)]
pub(crate) struct Predictor {
    /// Where rows of its own token embedding are read from, where it has one.
    pub(crate) embedding: Option<(String, Format)>,
    pub(crate) token_norm: Norm,
    pub(crate) hidden_norm: Norm,
    /// From both, one after the other, to the residual stream.
    pub(crate) join: Linear,
    pub(crate) layer: Layer,
    /// In place of the model's own, where it has them.
    pub(crate) output_norm: Option<Norm>,
    pub(crate) head: Option<Linear>,
}

#[derive(Debug)]
pub(crate) enum Mixer {
    Attention(Attention),
    Latent(Latent),
    ShortConvolution(ShortConvolution),
    Mamba(Mamba),
    DeltaNet(DeltaNet),
}

#[derive(Debug)]
pub(crate) struct Latent {
    pub(crate) query: LatentQuery,
    /// To the latent vector and the part of a key that is turned.
    pub(crate) latent: Linear,
    pub(crate) latent_norm: Norm,
    /// For each head, from the part of a query that is not turned to one that meets latent vectors.
    pub(crate) key: Vec<Linear>,
    /// For each head, from a mixture of latent vectors to one of values.
    pub(crate) value: Vec<Linear>,
    pub(crate) output: Linear,
}

#[derive(Debug)]
pub(crate) enum LatentQuery {
    Direct(Linear),
    /// By way of a short vector, which is normed.
    Short {
        down: Linear,
        norm: Norm,
        up: Linear,
    },
}

#[derive(Debug)]
pub(crate) struct ShortConvolution {
    /// To a gate before the convolution, one after it, and what goes through both.
    pub(crate) input: Linear,
    pub(crate) convolution: Convolution,
    pub(crate) output: Linear,
}

#[derive(Debug)]
pub(crate) struct Mamba {
    /// To a gate, the convolution's channels, and a step for each head.
    pub(crate) input: Linear,
    pub(crate) convolution: Convolution,
    pub(crate) step_bias: Vec<f32>,
    /// The logarithm of what is left of a head's state after a step of 1.
    pub(crate) decay: Vec<f32>,
    /// How much of a head's input goes past its state.
    pub(crate) skip: Vec<f32>,
    /// For each group.
    pub(crate) norms: Vec<Norm>,
    pub(crate) output: Linear,
}

#[derive(Debug)]
pub(crate) struct DeltaNet {
    /// To queries, keys and values, before the convolution.
    pub(crate) input: Linear,
    pub(crate) gate: Linear,
    /// To a step and a rate for each head.
    pub(crate) step: Linear,
    pub(crate) rate: Linear,
    pub(crate) convolution: Convolution,
    pub(crate) step_bias: Vec<f32>,
    /// The logarithm of what is left of a head's state after a step of 1.
    pub(crate) decay: Vec<f32>,
    pub(crate) norm: Norm,
    pub(crate) output: Linear,
}

#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) query: Linear,
    /// `None`: it attends to another layer's keys and values.
    pub(crate) key: Option<Linear>,
    /// `None`: as for keys, or they are what keys are before these are normed.
    pub(crate) value: Option<Linear>,
    pub(crate) output: Linear,
    /// Of queries and of keys; of no weights where these are another layer's.
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    /// Of each head's values.
    pub(crate) value_norm: Option<Norm>,
    /// Of all queries and of all keys of a token.
    pub(crate) layer_norms: Option<(Norm, Norm)>,
    pub(crate) sinks: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(crate) enum FeedForward {
    None,
    Dense(Dense),
    Ungated(Ungated),
    Experts(Experts),
    DenseAndExperts(Box<DenseAndExperts>),
}

#[derive(Debug)]
pub(crate) struct Dense {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// A feed-forward part without a gate.
#[derive(Debug)]
pub(crate) struct Ungated {
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// Norms before and after each of two parts beside each other; the one before the dense part is the layer's.
#[derive(Debug)]
pub(crate) struct DenseAndExperts {
    pub(crate) dense: Dense,
    pub(crate) dense_norm: Norm,
    /// Before the router, where experts have another.
    pub(crate) router_norm: Norm,
    pub(crate) before_experts: Norm,
    pub(crate) experts: Experts,
    pub(crate) experts_norm: Norm,
}

#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) router: Linear,
    /// Added to an expert's probability when experts are chosen, not when they are weighed.
    pub(crate) selection_bias: Option<Vec<f32>>,
    pub(crate) experts: Vec<Dense>,
    pub(crate) shared: Option<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) expert: Dense,
    /// One row, for a token's score.
    pub(crate) gate: Option<Linear>,
}

/// Frequencies and the magnitude of a rotary embedding.
#[derive(Debug)]
pub(crate) struct RopeTable {
    short: (Vec<f32>, f32),
    /// For contexts of more than so many tokens.
    long: Option<(usize, (Vec<f32>, f32))>,
}

impl RopeTable {
    /// Whether a context of so many tokens has factors of its own.
    pub(crate) fn is_long(&self, tokens: usize) -> bool {
        self.long.as_ref().is_some_and(|(original_tokens, _)| tokens > *original_tokens)
    }

    /// What turns heads in a context of so many tokens.
    pub(crate) fn for_context(&self, tokens: usize) -> (&[f32], f32) {
        let (frequencies, magnitude) = match &self.long {
            Some((_, long)) if self.is_long(tokens) => long,
            _ => &self.short,
        };
        (frequencies, *magnitude)
    }
}

/// A model's tensors: small ones as floats, matrices by their place.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) input: Input,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Option<Norm>,
    pub(crate) head: Head,
    pub(crate) predictor: Option<Predictor>,
    pub(crate) ropes: Vec<RopeTable>,
    /// By [`MatrixId`]: rows of which planned matrix.
    slices: Vec<(usize, Range<usize>)>,
}

impl Parts {
    /// By [`MatrixId`]: rows of which planned matrix.
    pub(crate) fn slices(&self) -> &[(usize, Range<usize>)] {
        &self.slices
    }

    /// One of all layers, the predictor's as the last.
    ///
    /// # Panics
    /// If there is no such layer.
    pub(crate) fn layer(&self, i: usize) -> &Layer {
        let predictor = || self.predictor.as_ref().map(|predictor| &predictor.layer);
        self.layers.get(i).or_else(predictor).expect("a layer of the model")
    }
}

/// What the residual stream begins with.
#[derive(Debug)]
pub(crate) struct Input {
    /// Where rows of the token embedding are read from, in the file's own format.
    pub(crate) embedding: (String, Format),
    /// A row for each position, one after the other.
    pub(crate) positions: Option<Vec<f32>>,
    /// A row for each of the texts that tokens may be of.
    pub(crate) segments: Option<Vec<f32>>,
    pub(crate) norm: Option<Norm>,
    pub(crate) per_layer: Option<PerLayer>,
}

/// What layers know of each token by itself: a row of the file with the elements of all layers, and as many that are made of
/// the token's embedding and normed, layer by layer.
#[derive(Debug)]
pub(crate) struct PerLayer {
    pub(crate) embedding: (String, Format),
    pub(crate) projection: Linear,
    pub(crate) norm: Norm,
}

/// What the residual stream becomes in the end.
#[derive(Debug)]
pub(crate) enum Head {
    Logits(Linear),
    Embedding {
        /// Matrices that a pooled vector goes through.
        dense: Vec<Linear>,
        /// Elements of what comes out.
        len: usize,
    },
    Score {
        hidden: Option<Linear>,
        norm: Option<Norm>,
        /// Its first row is the score; without, the first element of what comes before.
        output: Option<Linear>,
    },
}

/// The weights that a step computes with.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) parts: Arc<Parts>,
    matrices: Vec<Matrix>,
    /// What of them is verified when it is first computed with.
    deferred: Option<Arc<Deferred>>,
}

impl Weights {
    /// Puts the planned matrices, in the plan's order, in their places.
    pub(crate) fn new(parts: Arc<Parts>, planned: &[Matrix], deferred: Option<Arc<Deferred>>) -> Weights {
        let slice = |(entry, rows): &(usize, Range<usize>)| {
            planned[*entry].slice(rows.clone()).expect("checked when planned")
        };
        let matrices = parts.slices.iter().map(slice).collect();
        Weights { parts, matrices, deferred }
    }

    /// Whether what is verified late is the same as that of `other`; `false` where nothing is.
    pub(crate) fn shares_deferred(&self, other: &Weights) -> bool {
        self.deferred
            .as_ref()
            .zip(other.deferred.as_ref())
            .is_some_and(|(own, other)| Arc::ptr_eq(own, other))
    }

    /// Whether something of them is verified late.
    pub(crate) fn has_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// Verifies matrices of experts, where that is left to who first computes with them.
    pub(crate) fn verify<'l>(
        &self,
        linears: impl Iterator<Item = &'l Linear>,
        pool: &Pool,
    ) -> Result<(), Fault> {
        match &self.deferred {
            Some(deferred) => deferred.verify(linears.map(|l| &self.parts.slices[l.matrix.0]), pool),
            None => Ok(()),
        }
    }

    pub(crate) fn matrix(&self, linear: &Linear) -> &Matrix {
        &self.matrices[linear.matrix.0]
    }

    pub(crate) fn affine<'a>(&'a self, linear: &'a Linear) -> Affine<'a> {
        Affine { matrix: self.matrix(linear), scale: linear.scale, bias: linear.bias.as_deref() }
    }
}
