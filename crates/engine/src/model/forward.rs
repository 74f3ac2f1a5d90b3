//! One step of a batch: tokens in, logits out.
//!
//! What a layer is made of is in its [`config::Layer`](super::config::Layer); nothing here knows a family.

mod adapt;
mod attention;
mod encode;
mod experts;
mod feed_forward;
mod mixers;
mod per_layer;
mod predictor;
mod recurrent;

pub use encode::Text;

use super::Model;
use super::adapters::AdapterScale;
use super::config::BeforeFeedForward;
use super::rope::Rope;
use super::weights::{Head, Linear, Norm, RopeTable, Weights};
use crate::cache::{KvCache, LayerCache, Sequence};
use crate::request::TokenId;
use adapt::Adapting;
use kernels::attention::{Chunk, Rotary, turn_pages};
use kernels::format::Format;
use kernels::ops::{self, Product, Rows, kinds_for};
use kernels::panel::Kinds;
use kernels::recurrent::Span;
use kernels::{Activations, Context, Pool};

/// Some consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct SequenceStep<'a> {
    pub tokens: &'a [TokenId],
    /// The position of the first of them.
    pub position: usize,
    /// The sequence's memory, with pages for all its positions.
    pub sequence: &'a Sequence,
    /// What its tokens are computed with; the same in all steps of a sequence.
    pub adapters: &'a [AdapterScale],
    /// Compute the logits that follow each of the last `outputs` tokens.
    pub outputs: usize,
}

/// What one step computes.
pub type Batch<'a> = [SequenceStep<'a>];

/// The buffers of a forward pass, kept from step to step.
#[derive(Debug)]
pub struct Forward<'a> {
    model: &'a Model,
    pool: &'a Pool,
    /// The longest that a sequence may become, which some rotary embeddings depend on.
    context_tokens: usize,
    /// What the next matrices multiply.
    activations: Activations,
    stream: Rows,
    /// What each layer has of each token by itself, one layer after the other.
    per_layer: Rows,
    /// The residual stream after a norm, where it is needed as floats.
    normed: Rows,
    queries: Rows,
    keys: Rows,
    values: Rows,
    attended: Rows,
    gate: Rows,
    up: Rows,
    /// On its way to the residual stream.
    added: Rows,
    experts: experts::Buffers,
    recurrent: recurrent::Buffers,
    logits: Rows,
    /// Whether `hidden` is wanted.
    keeps_hidden: bool,
    /// The residual stream of all tokens of a step, after the last norm.
    hidden: Rows,
    /// A row for each text, while one vector of it is made.
    pooled: Rows,
    adapting: Adapting<'a>,
}

/// What all layers of a step need to know of its tokens.
struct Tokens<'b> {
    chunks: Vec<Chunk<'b>>,
    /// The same for layers whose state has a fixed size.
    spans: Vec<Span>,
    /// Turns by each of the model's rotary embeddings.
    rotaries: Vec<Rotary>,
    positions: Vec<usize>,
}

impl<'b> Tokens<'b> {
    /// Drops all tokens but those whose logits are wanted.
    fn keep(&mut self, outputs: &Outputs<'b>) {
        self.chunks.clone_from(&outputs.chunks);
        self.rotaries.iter_mut().for_each(|rotary| rotary.keep(&outputs.rows));
        self.positions = outputs.rows.iter().map(|&row| self.positions[row]).collect();
    }
}

impl<'a> Forward<'a> {
    /// For sequences of up to `context_tokens`.
    pub fn new(model: &'a Model, pool: &'a Pool, context_tokens: usize) -> Self {
        Self {
            model,
            pool,
            context_tokens,
            activations: Activations::default(),
            stream: Rows::default(),
            per_layer: Rows::default(),
            normed: Rows::default(),
            queries: Rows::default(),
            keys: Rows::default(),
            values: Rows::default(),
            attended: Rows::default(),
            gate: Rows::default(),
            up: Rows::default(),
            added: Rows::default(),
            experts: experts::Buffers::default(),
            recurrent: recurrent::Buffers::default(),
            logits: Rows::default(),
            keeps_hidden: false,
            hidden: Rows::default(),
            pooled: Rows::default(),
            adapting: Adapting::new(model.adapters()),
        }
    }

    pub fn context(&self) -> Context<'a> {
        let table = self.model.isa.table().expect("checked when the model was opened");
        Context { table, pool: self.pool }
    }

    /// Elements of a row of the residual stream.
    pub(crate) fn width(&self) -> usize {
        self.model.config.width
    }

    /// Computes one step and returns the logits that were asked for, a row each, in the batch's order.
    ///
    /// The first step of a model whose weights were mapped from a packed file waits until that file is verified: at its end,
    /// or, where layers keep states, at its beginning. Where the file turns out to be damaged, the step is computed again
    /// from the weights in the model file.
    ///
    /// # Panics
    /// If a token is outside of the vocabulary, a sequence's pages do not hold its positions, there is no such adapter, or the
    /// model makes a vector of a text instead of logits.
    pub fn step(&mut self, batch: &Batch<'_>, cache: &mut KvCache) -> &Rows {
        let model = self.model;
        loop {
            let weights = model.store.weights();
            // A state that was moved on cannot be moved on again.
            if cache.has_states() && !model.store.confirm(&weights) {
                continue;
            }
            self.compute(&weights, batch, cache);
            // What was wrong is overwritten: a step reads no keys and values but its own and those of earlier steps.
            if model.store.confirm(&weights) {
                return &self.logits;
            }
        }
    }

    /// Makes the keys of whole pages count for positions that are `distance` less.
    ///
    /// # Panics
    /// If there is no such page, or a page comes twice.
    pub(crate) fn turn_back(&self, cache: &mut KvCache, pages: &[u32], distance: usize) {
        let weights = self.model.store.weights();
        let ropes = self.model.config.ropes.iter().zip(&weights.parts.ropes);
        let turn = |(rope, table): (&Rope, &RopeTable)| {
            let (frequencies, _) = table.for_context(self.context_tokens);
            let back: Vec<f32> = frequencies.iter().map(|frequency| -frequency).collect();
            // They are as long as they should be already.
            Rotary::new(rope.pairing, &back, 1.0, std::iter::once(distance))
        };
        let turns: Vec<Rotary> = ropes.map(turn).collect();
        for (i, layer) in self.model.config.with_predictor().enumerate() {
            // What layers share is turned once.
            if let (None, Some(rope), LayerCache::Kv(kv)) =
                (layer.mixer.shares(), layer.mixer.rope(), cache.layer_mut(i))
            {
                turn_pages(self.context(), kv, &turns[rope], pages);
            }
        }
    }

    fn compute(&mut self, weights: &Weights, batch: &Batch<'_>, cache: &mut KvCache) {
        self.embed(weights, batch);
        let mut tokens = self.describe(weights, batch);
        let last_to_keep = self.model.config.last_to_keep();
        for i in 0..weights.parts.layers.len() {
            let kept = (i == last_to_keep && !self.keeps_hidden).then(|| outputs(batch));
            self.layer(i, weights, cache, &mut tokens, kept.as_ref());
        }
        let norm = weights.parts.output_norm.as_ref();
        if self.keeps_hidden {
            self.norm_stream(norm);
            std::mem::swap(&mut self.normed, &mut self.hidden);
            let Outputs { rows, .. } = outputs(batch);
            self.keep_rows(&rows);
        }
        match &weights.parts.head {
            Head::Logits(output) => self.head(weights, norm, output),
            Head::Embedding { .. } | Head::Score { .. } => panic!("a model that makes one vector of a text"),
        }
    }

    fn describe<'b>(&self, weights: &Weights, batch: &Batch<'b>) -> Tokens<'b> {
        let positions: Vec<usize> =
            batch.iter().flat_map(|s| s.position..s.position + s.tokens.len()).collect();
        let ropes = self.model.config.ropes.iter().zip(&weights.parts.ropes);
        let rotaries = ropes.map(|(rope, table)| {
            let (frequencies, magnitude) = table.for_context(self.context_tokens);
            Rotary::new(rope.pairing, frequencies, magnitude, positions.iter().copied())
        });
        let chunks = chunks(batch, |s| s.tokens.len());
        let span = |(chunk, s): (&Chunk<'_>, &SequenceStep<'_>)| Span {
            row: chunk.row,
            tokens: chunk.tokens,
            is_start: chunk.position == 0,
            slot: s.sequence.slot(),
            into: s.sequence.next_slot(),
        };
        let spans = chunks.iter().zip(batch).map(span).collect();
        Tokens { chunks, spans, rotaries: rotaries.collect(), positions }
    }

    /// Rows of the token embedding, straight from the model file, and what else the residual stream begins with.
    fn embed(&mut self, weights: &Weights, batch: &Batch<'_>) {
        let input = &weights.parts.input;
        let config = &self.model.config;
        self.embed_tokens(&input.embedding, batch);
        self.adapting.begin(batch);
        self.adapting.embed(self.context(), batch, &mut self.stream);
        if config.embedding_scale != 1.0 {
            ops::scale(self.context(), &mut self.stream, config.embedding_scale);
        }
        if let Some(per_layer) = &input.per_layer {
            self.embed_per_layer(weights, per_layer, batch);
        }
        if let Some(table) = &input.positions {
            let positions = batch.iter().flat_map(|s| s.position..s.position + s.tokens.len());
            for (t, position) in positions.enumerate() {
                let row = &table[position * config.width..][..config.width];
                self.stream.row_mut(t).iter_mut().zip(row).for_each(|(x, y)| *x += y);
            }
        }
    }

    fn embed_tokens(&mut self, embedding: &(String, Format), batch: &Batch<'_>) {
        self.model.read_rows(embedding, batch, self.model.config.width, &mut self.stream);
    }

    /// Norms the residual stream itself, where there is such a norm.
    fn norm_of_stream(&mut self, norm: Option<&Norm>) {
        if let Some(norm) = norm {
            let cols = 0..self.stream.cols();
            ops::norm_columns(self.context(), &mut self.stream, cols, norm.get());
        }
    }

    /// One layer. After the last keys and values nothing more is wanted of the tokens that are not `kept`.
    fn layer<'b>(
        &mut self,
        i: usize,
        weights: &Weights,
        cache: &mut KvCache,
        tokens: &mut Tokens<'b>,
        kept: Option<&Outputs<'b>>,
    ) {
        let config = self.model.config.layer(i);
        let layer = weights.parts.layer(i);
        if layer.mixed_stream_norm_again.is_some() {
            self.normed.clone_from(&self.stream);
        }
        self.mix(i, weights, cache, tokens, kept);
        if config.norms.before_feed_forward == BeforeFeedForward::Parallel {
            // The feed-forward part sees the stream before anything is added to it.
            std::mem::swap(&mut self.added, &mut self.attended);
            self.feed_forward(weights, config, layer, layer.mixer_norm.as_ref());
            ops::add_scaled(
                self.context(),
                &mut self.stream,
                &self.attended,
                self.model.config.residual_scale,
            );
        } else {
            self.norm_of_stream(layer.mixed_stream_norm.as_ref());
            if layer.mixed_stream_norm_again.is_some() {
                if let Some(Outputs { rows, .. }) = kept {
                    self.normed.keep(rows);
                }
                ops::add(self.context(), &mut self.stream, &self.normed);
                self.norm_of_stream(layer.mixed_stream_norm_again.as_ref());
            }
            self.feed_forward(weights, config, layer, layer.feed_forward_norm.as_ref());
        }
        self.norm_of_stream(layer.fed_forward_stream_norm.as_ref());
        if let Some(input) = &layer.input {
            self.let_in(i, weights, input);
        }
        if let Some(scale) = layer.scale {
            ops::scale(self.context(), &mut self.stream, scale);
        }
    }

    /// Drops what there is of tokens whose logits are not wanted, but what a layer makes of them.
    fn keep_rows(&mut self, rows: &[usize]) {
        self.stream.keep(rows);
        self.adapting.keep(rows);
        if self.model.config.per_layer.is_some() {
            self.per_layer.keep(rows);
        }
    }

    /// The residual stream, after a norm where there is one, as activations.
    fn activate_stream(&mut self, norm: Option<&Norm>, kinds: Kinds) {
        let context = self.context();
        match norm {
            Some(norm) => {
                self.adapting.note_norm(context, &self.stream, norm.get());
                ops::norm(context, &self.stream, norm.get(), kinds, &mut self.activations);
            }
            None => {
                self.adapting.note(&self.stream);
                ops::activate(context, &self.stream, kinds, &mut self.activations);
            }
        }
    }

    /// The residual stream, after a norm where there is one, as floats.
    fn norm_stream(&mut self, norm: Option<&Norm>) {
        match norm {
            Some(norm) => ops::norm_rows(self.context(), &self.stream, norm.get(), &mut self.normed),
            None => self.normed.clone_from(&self.stream),
        }
    }

    /// Multiplies the activations and adds what comes out to the residual stream, after a norm where there is one.
    fn add_product(&mut self, weights: &Weights, linear: &Linear, norm: Option<&Norm>) {
        let context = self.context();
        let affine = weights.affine(linear);
        if affine.is_plain() && norm.is_none() && self.model.config.residual_scale == 1.0 {
            let product = Product { affine, out: &mut self.stream, add: true };
            ops::multiply(context, &self.activations, &mut [product]);
            return self.adapting.add(context, linear, &mut self.stream);
        }
        self.added.reset(self.activations.tokens(), affine.matrix.rows());
        ops::multiply(context, &self.activations, &mut [Product::new(affine, &mut self.added)]);
        self.adapting.add(context, linear, &mut self.added);
        self.add(norm);
    }

    /// Adds `added` to the residual stream, after a norm where there is one.
    fn add(&mut self, norm: Option<&Norm>) {
        let context = self.context();
        if let Some(norm) = norm {
            let cols = 0..self.added.cols();
            ops::norm_columns(context, &mut self.added, cols, norm.get());
        }
        ops::add_scaled(context, &mut self.stream, &self.added, self.model.config.residual_scale);
    }

    /// Norm and output matrix, for the tokens that are left.
    fn head(&mut self, weights: &Weights, norm: Option<&Norm>, output: &Linear) {
        let (context, config) = (self.context(), &self.model.config);
        let head = weights.affine(output);
        self.activate_stream(norm, kinds_for([head.matrix]));
        self.logits.reset(self.stream.count(), head.matrix.rows());
        ops::multiply(context, &self.activations, &mut [Product::new(head, &mut self.logits)]);
        self.adapting.add(context, output, &mut self.logits);
        if config.logit_scale != 1.0 {
            ops::scale(context, &mut self.logits, config.logit_scale);
        }
        if let Some(cap) = config.logit_soft_cap {
            ops::soft_cap(context, &mut self.logits, cap);
        }
    }
}

impl Model {
    /// The rows of a table in the file that a batch's tokens have.
    fn read_rows(&self, (name, format): &(String, Format), batch: &Batch<'_>, cols: usize, out: &mut Rows) {
        let table = self.gguf.tensor(name).expect("checked when the model was opened").data;
        let row_bytes = format.row_bytes(cols).expect("checked when the model was opened");
        out.reset(batch.iter().map(|s| s.tokens.len()).sum(), cols);
        for (t, &id) in batch.iter().flat_map(|s| s.tokens).enumerate() {
            format.dequantize_row(&table[id as usize * row_bytes..][..row_bytes], out.row_mut(t));
        }
    }
}

/// The tokens whose logits are wanted.
struct Outputs<'b> {
    /// Their rows among all tokens of the batch.
    rows: Vec<usize>,
    chunks: Vec<Chunk<'b>>,
}

fn outputs<'b>(batch: &Batch<'b>) -> Outputs<'b> {
    let mut end = 0;
    let last = |s: &SequenceStep<'_>| {
        end += s.tokens.len();
        end - s.outputs..end
    };
    Outputs { rows: batch.iter().flat_map(last).collect(), chunks: chunks(batch, |s| s.outputs) }
}

/// The last `tokens(s)` tokens of every sequence, one sequence after the other.
fn chunks<'b>(batch: &Batch<'b>, tokens: impl Fn(&SequenceStep<'b>) -> usize) -> Vec<Chunk<'b>> {
    let mut row = 0;
    let chunk = |s: &SequenceStep<'b>| {
        let tokens = tokens(s);
        let position = s.position + s.tokens.len() - tokens;
        row += tokens;
        Chunk { row: row - tokens, tokens, position, pages: s.sequence.pages() }
    };
    batch.iter().map(chunk).collect()
}
