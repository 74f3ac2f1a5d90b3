//! Feed-forward parts: each token by itself.

use super::Forward;
use crate::model::config;
use crate::model::weights::{self, Dense, DenseAndExperts, Norm, Weights};
use kernels::ops::{self, ActivationFunction, Gated, Product, kinds_for, multiply_gated};

impl Forward<'_> {
    /// The feed-forward part of a layer, added to the residual stream; `norm` is of what it works on.
    pub(super) fn feed_forward(
        &mut self,
        weights: &Weights,
        config: &config::Layer,
        layer: &weights::Layer,
        norm: Option<&Norm>,
    ) {
        match (&config.feed_forward, &layer.feed_forward) {
            (config::FeedForward::None, _) => {}
            (&config::FeedForward::Dense { function, .. }, weights::FeedForward::Dense(dense)) => {
                let kinds = kinds_for([&dense.gate, &dense.up].map(|linear| weights.matrix(linear)));
                self.activate_stream(norm, kinds);
                self.gate(weights, dense, function);
                self.add_product(weights, &dense.down, layer.fed_forward_norm.as_ref());
            }
            (&config::FeedForward::Dense { function, .. }, weights::FeedForward::Ungated(ungated)) => {
                let (up, down) = (weights.affine(&ungated.up), weights.matrix(&ungated.down));
                self.activate_stream(norm, kinds_for([up.matrix]));
                let context = self.context();
                self.up.reset(self.activations.tokens(), up.matrix.rows());
                ops::multiply(context, &self.activations, &mut [Product::new(up, &mut self.up)]);
                self.adapting.add(context, &ungated.up, &mut self.up);
                ops::apply(context, function, &mut self.up);
                ops::activate(context, &self.up, kinds_for([down]), &mut self.activations);
                self.adapting.note(&self.up);
                self.add_product(weights, &ungated.down, layer.fed_forward_norm.as_ref());
            }
            (config::FeedForward::Experts(config), weights::FeedForward::Experts(experts)) => {
                self.norm_stream(norm);
                self.route(weights, config, experts);
                self.consult(weights, config, experts);
                self.add(layer.fed_forward_norm.as_ref());
            }
            (
                config::FeedForward::DenseAndExperts { experts: config, .. },
                weights::FeedForward::DenseAndExperts(parts),
            ) => {
                self.feed_beside(weights, config, parts, norm);
                self.add(layer.fed_forward_norm.as_ref());
            }
            _ => unreachable!("weights are read as the configuration says"),
        }
    }

    /// What a dense part and experts make of the residual stream beside each other, into `added`; `norm` is of what the former
    /// works on.
    fn feed_beside(
        &mut self,
        weights: &Weights,
        config: &config::Experts,
        parts: &DenseAndExperts,
        norm: Option<&Norm>,
    ) {
        let (context, DenseAndExperts { dense, experts, .. }) = (self.context(), parts);
        let kinds = kinds_for([&dense.gate, &dense.up].map(|linear| weights.matrix(linear)));
        self.activate_stream(norm, kinds);
        self.gate(weights, dense, config.function);
        let down = weights.affine(&dense.down);
        self.attended.reset(self.activations.tokens(), down.matrix.rows());
        ops::multiply(context, &self.activations, &mut [Product::new(down, &mut self.attended)]);
        self.adapting.add(context, &dense.down, &mut self.attended);
        self.norm_stream(Some(&parts.router_norm));
        self.route(weights, config, experts);
        self.norm_stream(Some(&parts.before_experts));
        self.adapting.note(&self.normed);
        self.consult(weights, config, experts);
        for (rows, norm) in [(&mut self.attended, &parts.dense_norm), (&mut self.added, &parts.experts_norm)]
        {
            let cols = 0..rows.cols();
            ops::norm_columns(context, rows, cols, norm.get());
        }
        ops::add(context, &mut self.added, &self.attended);
    }

    /// The gated half of a feed-forward part, on the activations and back into them.
    pub(super) fn gate(&mut self, weights: &Weights, dense: &Dense, function: ActivationFunction) {
        let context = self.context();
        let tokens = self.activations.tokens();
        let (gate, up) = (weights.affine(&dense.gate), weights.affine(&dense.up));
        self.gate.reset(tokens, gate.matrix.rows());
        self.up.reset(tokens, gate.matrix.rows());
        if self.adapting.changes([&dense.gate, &dense.up]) {
            // Something is added before the function, so what is one call otherwise comes apart; the sums are the same.
            let (gate, up) = (Product::new(gate, &mut self.gate), Product::new(up, &mut self.up));
            ops::multiply(context, &self.activations, &mut [gate, up]);
            self.adapting.add(context, &dense.gate, &mut self.gate);
            self.adapting.add(context, &dense.up, &mut self.up);
            ops::gate(context, function, &mut self.gate, &self.up);
        } else {
            let groups = [Gated { gate, up, tokens: 0..tokens }];
            multiply_gated(context, &self.activations, function, &groups, &mut self.gate, &mut self.up);
        }
        let kinds = kinds_for([weights.matrix(&dense.down)]);
        ops::activate(context, &self.gate, kinds, &mut self.activations);
        self.adapting.note(&self.gate);
    }
}
