//! What each layer has of each token by itself ("per-layer embeddings", Gemma 3n, 2025): looked up and projected once a step,
//! and let in at the end of each layer.

use super::{Batch, Forward};
use crate::model::weights::{LayerInput, PerLayer, Weights};
use kernels::ops::{self, ActivationFunction, Product, kinds_for};
use std::f32::consts::FRAC_1_SQRT_2;
use std::ops::Range;

impl Forward<'_> {
    /// For all layers at once, of the tokens and of the residual stream as it begins.
    pub(super) fn embed_per_layer(&mut self, weights: &Weights, parts: &PerLayer, batch: &Batch<'_>) {
        let (context, projection) = (self.context(), weights.affine(&parts.projection));
        let (all, len) = (projection.matrix.rows(), self.per_layer_cols(0).len());
        self.activate_stream(None, kinds_for([projection.matrix]));
        self.per_layer.reset(self.stream.count(), all);
        ops::multiply(context, &self.activations, &mut [Product::new(projection, &mut self.per_layer)]);
        self.adapting.add(context, &parts.projection, &mut self.per_layer);
        for layer in 0..all / len {
            let cols = self.per_layer_cols(layer);
            ops::norm_columns(context, &mut self.per_layer, cols, parts.norm.get());
        }
        self.model.read_rows(&parts.embedding, batch, all, &mut self.added);
        ops::add_scaled(context, &mut self.per_layer, &self.added, (len as f32).sqrt());
        ops::scale(context, &mut self.per_layer, FRAC_1_SQRT_2);
    }

    /// Adds what the residual stream lets in of what layer `i` has.
    pub(super) fn let_in(&mut self, i: usize, weights: &Weights, input: &LayerInput) {
        let (context, gate) = (self.context(), weights.affine(&input.gate));
        self.activate_stream(None, kinds_for([gate.matrix]));
        self.gate.reset(self.activations.tokens(), gate.matrix.rows());
        ops::multiply(context, &self.activations, &mut [Product::new(gate, &mut self.gate)]);
        self.adapting.add(context, &input.gate, &mut self.gate);
        ops::apply(context, ActivationFunction::Gelu, &mut self.gate);
        let cols = self.per_layer_cols(i);
        ops::multiply_columns(context, &mut self.gate, &self.per_layer, cols);
        let kinds = kinds_for([weights.matrix(&input.output)]);
        ops::activate(context, &self.gate, kinds, &mut self.activations);
        self.adapting.note(&self.gate);
        self.add_product(weights, &input.output, Some(&input.norm));
    }

    /// Where what layer `i` has is.
    fn per_layer_cols(&self, i: usize) -> Range<usize> {
        let len = self.model.config.per_layer.expect("layers have something of each token");
        i * len..(i + 1) * len
    }
}
