//! One vector, or one score, of each of several texts.
//!
//! A text goes through whole: layers may see what comes after a token, and nothing of one layer is needed once the next has
//! begun. So one layer's keys and values are all the memory there is: see [`KvCache::passing`].

use super::{Forward, Outputs, SequenceStep, outputs};
use crate::cache::KvCache;
use crate::model::config::{ClassifierFunction, Output, Pooling};
use crate::model::weights::{Head, Linear, Weights};
use crate::request::TokenId;
use kernels::ops::{self, ActivationFunction, Product, Rows, kinds_for};

/// One text, or two that are looked at together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub tokens: Vec<TokenId>,
    /// Where the second one begins; the number of tokens where there is none.
    pub second: usize,
}

impl Text {
    /// # Panics
    /// If there are no tokens.
    pub fn one(tokens: Vec<TokenId>) -> Text {
        assert!(!tokens.is_empty(), "a text of no tokens");
        Text { second: tokens.len(), tokens }
    }
}

impl Forward<'_> {
    /// What the model makes of texts, a row each: a vector, or a score as a row of one.
    ///
    /// As with [`Forward::step`], the first call waits at its end until a packed file is verified.
    ///
    /// # Panics
    /// If a token is outside of the vocabulary, a text is longer than [`Model::context_tokens`] or than `cache` has room for
    /// beside the others, or the model makes logits.
    ///
    /// [`Model::context_tokens`]: crate::Model::context_tokens
    pub fn encode(&mut self, texts: &[&Text], cache: &mut KvCache) -> &Rows {
        let mut sequences: Vec<_> = texts.iter().map(|_| cache.open()).collect();
        for (sequence, text) in sequences.iter_mut().zip(texts) {
            assert!(cache.reserve(sequence, text.tokens.len()), "a cache with room for all texts");
        }
        let last_only = matches!(
            self.model.config.output,
            Output::Embedding(Pooling::Last) | Output::Score(Pooling::Last, _)
        );
        let step = |(text, sequence)| {
            let Text { tokens, .. }: &Text = text;
            let outputs = if last_only { 1 } else { tokens.len() };
            SequenceStep { tokens, position: 0, sequence, adapters: &[], outputs }
        };
        let batch: Vec<_> = texts.iter().copied().zip(&sequences).map(step).collect();
        loop {
            let weights = self.model.store.weights();
            self.compute_texts(&weights, texts, &batch, cache);
            if self.model.store.confirm(&weights) {
                break;
            }
        }
        drop(batch);
        sequences.into_iter().for_each(|sequence| cache.discard(sequence));
        &self.pooled
    }

    fn compute_texts(
        &mut self,
        weights: &Weights,
        texts: &[&Text],
        batch: &[SequenceStep<'_>],
        cache: &mut KvCache,
    ) {
        let context = self.context();
        self.embed(weights, batch);
        if let Some(table) = &weights.parts.input.segments {
            let width = self.model.config.width;
            let last = table.len() / width - 1;
            let segments = texts.iter().flat_map(|text| {
                (0..text.tokens.len()).map(|token| usize::from(token >= text.second).min(last))
            });
            for (t, segment) in segments.enumerate() {
                let row = &table[segment * width..][..width];
                self.stream.row_mut(t).iter_mut().zip(row).for_each(|(x, y)| *x += y);
            }
        }
        self.norm_of_stream(weights.parts.input.norm.as_ref());
        let mut tokens = self.describe(weights, batch);
        let layers = weights.parts.layers.len();
        let wanted: Outputs<'_> = outputs(batch);
        let all = wanted.rows.len() == self.stream.count();
        for i in 0..layers {
            let kept = (i + 1 == layers && !all).then_some(&wanted);
            self.layer(i, weights, cache, &mut tokens, kept);
        }
        self.norm_stream(weights.parts.output_norm.as_ref());
        let output = self.model.config.output;
        match output {
            Output::Logits => panic!("a model that makes logits"),
            Output::Embedding(pooling) | Output::Score(pooling, _) => {
                let lens = batch.iter().map(|step| step.outputs);
                pool(pooling, &self.normed, lens, &mut self.pooled);
            }
        }
        match &weights.parts.head {
            Head::Logits(_) => unreachable!("weights are read as the configuration says"),
            Head::Embedding { dense, .. } => {
                dense.iter().for_each(|matrix| self.multiply_pooled(weights, matrix));
            }
            Head::Score { hidden, norm, output: last } => {
                let Output::Score(_, classifier) = output else {
                    unreachable!("weights are read as the configuration says")
                };
                if let Some(hidden) = hidden {
                    self.multiply_pooled(weights, hidden);
                    match classifier.function {
                        ClassifierFunction::Gelu => {
                            ops::apply(context, ActivationFunction::ExactGelu, &mut self.pooled);
                        }
                        ClassifierFunction::Tanh => (0..self.pooled.count())
                            .for_each(|t| self.pooled.row_mut(t).iter_mut().for_each(|x| *x = x.tanh())),
                    }
                    if let Some(norm) = norm {
                        let cols = 0..self.pooled.cols();
                        ops::norm_columns(context, &mut self.pooled, cols, norm.get());
                    }
                }
                if let Some(last) = last {
                    self.multiply_pooled(weights, last);
                }
                self.keep_scores(classifier.softmax);
            }
        }
    }

    fn multiply_pooled(&mut self, weights: &Weights, linear: &Linear) {
        let context = self.context();
        let affine = weights.affine(linear);
        ops::activate(context, &self.pooled, kinds_for([affine.matrix]), &mut self.activations);
        self.pooled.reset(self.pooled.count(), affine.matrix.rows());
        ops::multiply(context, &self.activations, &mut [Product::new(affine, &mut self.pooled)]);
    }

    /// Of several labels' scores the first one, or its share of a softmax.
    fn keep_scores(&mut self, softmax: bool) {
        let context = self.context();
        let score = |row: &[f32]| {
            if softmax && row.len() > 1 { (row[0] - ops::log_sum_exp(context, row)).exp() } else { row[0] }
        };
        let scores: Vec<f32> = (0..self.pooled.count()).map(|t| score(self.pooled.row(t))).collect();
        self.pooled.reset(scores.len(), 1);
        for (t, score) in scores.into_iter().enumerate() {
            self.pooled.row_mut(t)[0] = score;
        }
    }
}

/// One row for as many rows as each of `lens` says.
fn pool(pooling: Pooling, rows: &Rows, lens: impl ExactSizeIterator<Item = usize>, out: &mut Rows) {
    out.reset(lens.len(), rows.cols());
    let mut start = 0;
    for (i, len) in lens.enumerate() {
        let all = start..start + len;
        start = all.end;
        let out = out.row_mut(i);
        match pooling {
            Pooling::First => out.copy_from_slice(rows.row(all.start)),
            Pooling::Last => out.copy_from_slice(rows.row(all.end - 1)),
            Pooling::Mean => {
                out.fill(0.0);
                for t in all {
                    out.iter_mut().zip(rows.row(t)).for_each(|(sum, x)| *sum += x);
                }
                let part = 1.0 / len as f32;
                out.iter_mut().for_each(|sum| *sum *= part);
            }
        }
    }
}
