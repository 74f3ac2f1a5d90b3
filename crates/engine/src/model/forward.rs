//! One step of a batch: tokens in, logits out.

use super::Model;
use super::weights::{Layer, Linear, Weights};
use crate::cache::KvCache;
use crate::request::TokenId;
use kernels::attention::{Chunk, HeadNorms, KvLayer, Rotary, attend, rotate_and_store};
use kernels::ops::{self, Product, Rows, kinds_for};
use kernels::{Activations, Context, Matrix, Pool};

/// Some consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct SequenceStep<'a> {
    pub tokens: &'a [TokenId],
    /// The position of the first of them.
    pub position: usize,
    /// The sequence's pages, enough for all its positions.
    pub pages: &'a [u32],
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
    activations: Activations,
    stream: Rows,
    queries: Rows,
    keys: Rows,
    values: Rows,
    attended: Rows,
    gate: Rows,
    up: Rows,
    logits: Rows,
}

impl<'a> Forward<'a> {
    pub fn new(model: &'a Model, pool: &'a Pool) -> Self {
        let rows = Rows::default;
        Self {
            model,
            pool,
            activations: Activations::default(),
            stream: rows(),
            queries: rows(),
            keys: rows(),
            values: rows(),
            attended: rows(),
            gate: rows(),
            up: rows(),
            logits: rows(),
        }
    }

    pub fn context(&self) -> Context<'a> {
        let table = self.model.isa.table().expect("checked when the model was opened");
        Context { table, pool: self.pool }
    }

    /// Computes one step and returns the logits that were asked for, a row each, in the batch's order.
    ///
    /// The first step of a model whose weights were mapped from a packed file waits until that file is verified. Where
    /// it turns out to be damaged, the step is computed again from the weights in the model file.
    ///
    /// # Panics
    /// If a token is outside of the vocabulary or a sequence's pages do not hold its positions.
    pub fn step(&mut self, batch: &Batch<'_>, cache: &mut KvCache) -> &Rows {
        let model = self.model;
        loop {
            let weights = model.store.weights();
            self.compute(&weights, batch, cache);
            // What was wrong is overwritten: a step reads no keys and values but its own and those of earlier steps.
            if model.store.confirm(&weights) {
                return &self.logits;
            }
        }
    }

    fn compute(&mut self, weights: &Weights, batch: &Batch<'_>, cache: &mut KvCache) {
        let model = self.model;
        let tokens: usize = batch.iter().map(|s| s.tokens.len()).sum();
        self.embed(weights, batch, tokens);
        let positions = batch.iter().flat_map(|s| s.position..s.position + s.tokens.len());
        let rotary = Rotary::new(model.config.family.pairing, &weights.rope_frequencies, positions);
        let mut chunks = chunks(batch, |s| s.tokens.len());
        for (i, (layer, kv)) in weights.layers.iter().zip(cache.layers_mut()).enumerate() {
            self.project(layer, kv, &rotary, &chunks);
            if i + 1 == weights.layers.len() {
                chunks = self.keep_outputs(batch, &chunks);
            }
            self.attend(layer, kv, &chunks);
            self.feed_forward(layer);
        }
        self.head(weights);
    }

    /// After the last layer's keys and values nothing more is wanted of the tokens without outputs.
    fn keep_outputs<'b>(&mut self, batch: &Batch<'b>, all: &[Chunk<'b>]) -> Vec<Chunk<'b>> {
        let last = |(chunk, s): (&Chunk<'_>, &SequenceStep<'_>)| {
            chunk.row + chunk.tokens - s.outputs..chunk.row + chunk.tokens
        };
        let kept: Vec<usize> = all.iter().zip(batch).flat_map(last).collect();
        self.stream.keep(&kept);
        self.queries.keep(&kept);
        chunks(batch, |s| s.outputs)
    }

    /// Rows of the token embedding, straight from the model file.
    fn embed(&mut self, weights: &Weights, batch: &Batch<'_>, tokens: usize) {
        let (name, format) = &weights.embedding;
        let width = self.model.config.width;
        let table = self.model.gguf.tensor(name).expect("checked when the model was opened").data;
        let row_bytes = format.row_bytes(width).expect("checked when the model was opened");
        self.stream.reset(tokens, width);
        for (t, &id) in batch.iter().flat_map(|s| s.tokens).enumerate() {
            format.dequantize_row(&table[id as usize * row_bytes..][..row_bytes], self.stream.row_mut(t));
        }
    }

    /// Queries, and keys and values into the cache.
    fn project(&mut self, layer: &Layer, kv: &mut KvLayer, rotary: &Rotary, chunks: &[Chunk<'_>]) {
        let (context, config) = (self.context(), &self.model.config);
        let tokens = self.stream.count();
        let kinds = kinds_for([&layer.query, &layer.key, &layer.value].map(|l| &l.matrix));
        ops::rms_norm(
            context,
            &self.stream,
            &layer.attention_norm,
            config.epsilon,
            kinds,
            &mut self.activations,
        );
        let targets = [
            (&layer.query, &mut self.queries),
            (&layer.key, &mut self.keys),
            (&layer.value, &mut self.values),
        ];
        for (linear, rows) in targets {
            rows.reset(tokens, linear.matrix.rows());
        }
        let mut products = [
            Product::new(&layer.query.matrix, &mut self.queries),
            Product::new(&layer.key.matrix, &mut self.keys),
            Product::new(&layer.value.matrix, &mut self.values),
        ];
        ops::multiply(context, &self.activations, &mut products);
        finish(&layer.query, &mut self.queries);
        finish(&layer.key, &mut self.keys);
        finish(&layer.value, &mut self.values);

        let norms = layer.head_norms.as_ref();
        let norms = norms.map(|(query, key)| HeadNorms { query, key, epsilon: config.epsilon });
        let (queries, keys) = (&mut self.queries, &mut self.keys);
        rotate_and_store(context, queries, keys, &self.values, norms, Some(rotary), kv, chunks);
    }

    fn attend(&mut self, layer: &Layer, kv: &KvLayer, chunks: &[Chunk<'_>]) {
        let (context, config) = (self.context(), &self.model.config);
        self.attended.reset(self.queries.count(), self.queries.cols());
        attend(context, kv, &self.queries, config.attention_scale, chunks, &mut self.attended);
        ops::activate(context, &self.attended, kinds_for([&layer.output.matrix]), &mut self.activations);
        add_to_stream(context, &layer.output, &self.activations, &mut self.stream, &mut self.queries);
    }

    fn feed_forward(&mut self, layer: &Layer) {
        let (context, config) = (self.context(), &self.model.config);
        let tokens = self.stream.count();
        let kinds = kinds_for([&layer.gate.matrix, &layer.up.matrix]);
        ops::rms_norm(
            context,
            &self.stream,
            &layer.feed_forward_norm,
            config.epsilon,
            kinds,
            &mut self.activations,
        );
        self.gate.reset(tokens, config.feed_forward);
        self.up.reset(tokens, config.feed_forward);
        let (gate, up) = (&mut self.gate, &mut self.up);
        if layer.gate.is_plain() && layer.up.is_plain() {
            ops::multiply_swiglu(context, &self.activations, &layer.gate.matrix, &layer.up.matrix, gate, up);
        } else {
            let mut products = [Product::new(&layer.gate.matrix, gate), Product::new(&layer.up.matrix, up)];
            ops::multiply(context, &self.activations, &mut products);
            finish(&layer.gate, &mut self.gate);
            finish(&layer.up, &mut self.up);
            ops::silu_mul(context, &mut self.gate, &self.up);
        }
        ops::activate(context, &self.gate, kinds_for([&layer.down.matrix]), &mut self.activations);
        add_to_stream(context, &layer.down, &self.activations, &mut self.stream, &mut self.queries);
    }

    /// Norm and output matrix, for the tokens that are left.
    fn head(&mut self, weights: &Weights) {
        let (context, model) = (self.context(), self.model);
        let (head, norm) = (&weights.head, &weights.output_norm);
        let kinds = kinds_for([&head.matrix]);
        ops::rms_norm(context, &self.stream, norm, model.config.epsilon, kinds, &mut self.activations);
        self.logits.reset(self.stream.count(), head.matrix.rows());
        ops::multiply(context, &self.activations, &mut [Product::new(&head.matrix, &mut self.logits)]);
        finish(head, &mut self.logits);
    }
}

/// The last `tokens(s)` tokens of every sequence, one sequence after the other.
fn chunks<'b>(batch: &Batch<'b>, tokens: impl Fn(&SequenceStep<'b>) -> usize) -> Vec<Chunk<'b>> {
    let mut row = 0;
    let chunk = |s: &SequenceStep<'b>| {
        let tokens = tokens(s);
        let position = s.position + s.tokens.len() - tokens;
        row += tokens;
        Chunk { row: row - tokens, tokens, position, pages: s.pages }
    };
    batch.iter().map(chunk).collect()
}

/// What follows the matrix of a linear part.
fn finish(linear: &Linear, rows: &mut Rows) {
    if linear.scale != 1.0 {
        ops::scale(rows, linear.scale);
    }
    if let Some(bias) = &linear.bias {
        ops::add_bias(rows, bias);
    }
}

/// `stream += linear(activations)`; `scratch` is only used where something follows the matrix.
fn add_to_stream(
    context: Context<'_>,
    linear: &Linear,
    activations: &Activations,
    stream: &mut Rows,
    scratch: &mut Rows,
) {
    let matrix: &Matrix = &linear.matrix;
    if linear.is_plain() {
        return ops::multiply(context, activations, &mut [Product { matrix, out: stream, add: true }]);
    }
    scratch.reset(stream.count(), stream.cols());
    ops::multiply(context, activations, &mut [Product::new(matrix, scratch)]);
    finish(linear, scratch);
    ops::add(stream, scratch);
}
