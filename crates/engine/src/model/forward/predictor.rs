//! The layer that looks one token further: multi-token prediction (DeepSeek-V3, 2024).
//!
//! What the model made of a token and the token that follows it are normed, joined and taken through one more layer with keys
//! and values of its own, of which the model's output matrix makes logits of the token after. What it makes itself stands in
//! for what the model would have made, so that it can guess on.

use super::{Batch, Forward, Head, outputs};
use crate::cache::KvCache;
use kernels::ops::{self, Product, Rows, kinds_for};

impl Forward<'_> {
    /// From now on, steps keep what was made of each token for [`Forward::predict`].
    pub fn keep_hidden(&mut self) {
        self.keeps_hidden = true;
    }

    /// What the last step made of each of its tokens, in the batch's order.
    pub fn hidden(&self) -> &Rows {
        &self.hidden
    }

    /// Takes tokens through the predictor, each with what was made of the one before it: `hidden` has the rows of each
    /// sequence, and positions are of the tokens that these were made of. Returns the logits that were asked for and what was
    /// made on the way to each. Adapters change nothing here.
    ///
    /// # Panics
    /// As [`Forward::step`], if the model has no predictor, or if there is not a hidden row for each token.
    pub fn predict(&mut self, batch: &Batch<'_>, hidden: &[&[f32]], cache: &mut KvCache) -> (&Rows, &Rows) {
        let weights = self.model.store.weights();
        let predictor = weights.parts.predictor.as_ref().expect("a model with a predictor");
        let Head::Logits(output) = &weights.parts.head else { panic!("a model that makes no tokens") };
        let (context, width) = (self.context(), self.model.config.width);
        self.adapting.begin(&[]);
        self.embed_tokens(predictor.embedding.as_ref().unwrap_or(&weights.parts.input.embedding), batch);
        self.normed.reset(self.stream.count(), 2 * width);
        assert!(
            hidden.iter().zip(batch).all(|(rows, s)| rows.len() == s.tokens.len() * width),
            "hidden rows"
        );
        for (t, hidden) in hidden.iter().flat_map(|rows| rows.chunks(width)).enumerate() {
            let (token, before) = self.normed.row_mut(t).split_at_mut(width);
            token.copy_from_slice(self.stream.row(t));
            before.copy_from_slice(hidden);
        }
        ops::norm_columns(context, &mut self.normed, 0..width, predictor.token_norm.get());
        ops::norm_columns(context, &mut self.normed, width..2 * width, predictor.hidden_norm.get());
        let join = weights.affine(&predictor.join);
        ops::activate(context, &self.normed, kinds_for([join.matrix]), &mut self.activations);
        ops::multiply(context, &self.activations, &mut [Product::new(join, &mut self.stream)]);
        let mut tokens = self.describe(&weights, batch);
        let layer = self.model.config.layers.len();
        self.layer(layer, &weights, cache, &mut tokens, Some(&outputs(batch)));
        let norm = predictor.output_norm.as_ref().or(weights.parts.output_norm.as_ref());
        self.norm_stream(norm);
        std::mem::swap(&mut self.normed, &mut self.hidden);
        self.head(&weights, norm, predictor.head.as_ref().unwrap_or(output));
        (&self.logits, &self.hidden)
    }
}
