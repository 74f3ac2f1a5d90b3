//! Parts that keep a state of fixed size of each sequence: short convolutions, Mamba-2, and the gated delta rule.

use super::{Forward, Tokens};
use crate::model::config;
use crate::model::weights::{self, Linear, Weights};
use kernels::ops::{
    self, ActivationFunction, HeadPlaces, Norm, NormKind, Product, Rows, copy_heads, kinds_for,
};
use kernels::recurrent::{HeadColumns, Rule, Sharing, StateLayer, convolve, remember};

/// Above this, `ln(1 + e^x)` is `x`.
const SOFTPLUS_LINEAR: f32 = 20.0;

fn softplus(x: f32) -> f32 {
    if x > SOFTPLUS_LINEAR { x } else { x.exp().ln_1p() }
}

/// What is kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    input: Rows,
    convolved: Rows,
    gate: Rows,
    /// Of each token and head.
    decays: Rows,
    rates: Rows,
}

impl Forward<'_> {
    /// Multiplies the normed stream by several matrices.
    fn project_into(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        targets: &mut [(&Linear, &mut Rows)],
    ) {
        let (context, count) = (self.context(), self.stream.count());
        let kinds = kinds_for(targets.iter().map(|(linear, _)| weights.matrix(linear)));
        self.activate_stream(layer.mixer_norm.as_ref(), kinds);
        let product = |(linear, out): &mut (&Linear, &mut Rows)| {
            out.reset(count, weights.matrix(linear).rows());
        };
        targets.iter_mut().for_each(product);
        let mut products: Vec<_> =
            targets.iter_mut().map(|(linear, out)| Product::new(weights.affine(linear), out)).collect();
        ops::multiply(context, &self.activations, &mut products);
        for (linear, out) in targets {
            self.adapting.add(context, linear, out);
        }
    }

    pub(super) fn short_convolution(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        parts: &weights::ShortConvolution,
        tokens: &Tokens<'_>,
        state: &mut StateLayer,
    ) {
        let (context, width) = (self.context(), self.model.config.width);
        let mut buffers = std::mem::take(&mut self.recurrent);
        self.project_into(weights, layer, &mut [(&parts.input, &mut buffers.input)]);
        let Buffers { input, gate, .. } = &mut buffers;
        gate.reset(input.count(), width);
        copy_heads(context, input, HeadPlaces::one(2 * width, width), gate, HeadPlaces::one(0, width));
        ops::multiply_columns(context, gate, input, 0..width);
        convolve(context, &parts.convolution, gate, 0, state, &tokens.spans, &mut self.attended);
        ops::multiply_columns(context, &mut self.attended, input, width..2 * width);
        self.recurrent = buffers;
    }

    pub(super) fn mamba(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        (config, parts): (config::Mamba, &weights::Mamba),
        tokens: &Tokens<'_>,
        state: &mut StateLayer,
    ) {
        let (context, inner) = (self.context(), config.inner());
        let mut buffers = std::mem::take(&mut self.recurrent);
        self.project_into(weights, layer, &mut [(&parts.input, &mut buffers.input)]);
        let Buffers { input, convolved, gate, decays, rates } = &mut buffers;
        convolve(context, &parts.convolution, input, inner, state, &tokens.spans, convolved);
        ops::silu(context, convolved);
        let first_step = inner + config.channels();
        decays.reset(input.count(), config.heads);
        rates.reset(input.count(), config.heads);
        for t in 0..input.count() {
            for head in 0..config.heads {
                let step = softplus(input.row(t)[first_step + head] + parts.step_bias[head]);
                rates.row_mut(t)[head] = step;
                decays.row_mut(t)[head] = (step * parts.decay[head]).exp();
            }
        }
        let columns = HeadColumns {
            values: 0,
            keys: inner,
            queries: inner + config.groups * config.state_dim,
            key_heads: config.groups,
            sharing: Sharing::Neighbours,
        };
        let (spans, out) = (&tokens.spans, &mut self.attended);
        remember(context, Rule::Add, convolved, columns, decays, rates, state, spans, out);
        ops::add_scaled_heads(context, out, convolved, 0, &parts.skip);
        gate.reset(input.count(), inner);
        copy_heads(context, input, HeadPlaces::one(0, inner), gate, HeadPlaces::one(0, inner));
        ops::gate(context, ActivationFunction::Silu, gate, out);
        std::mem::swap(gate, out);
        let group = inner / config.groups;
        for (i, norm) in parts.norms.iter().enumerate() {
            ops::norm_columns(context, out, i * group..(i + 1) * group, norm.get());
        }
        self.recurrent = buffers;
    }

    pub(super) fn delta_net(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        (config, parts): (config::DeltaNet, &weights::DeltaNet),
        tokens: &Tokens<'_>,
        state: &mut StateLayer,
    ) {
        let context = self.context();
        let mut buffers = std::mem::take(&mut self.recurrent);
        let Buffers { input, convolved, gate, decays, rates } = &mut buffers;
        let mut targets = [
            (&parts.input, &mut *input),
            (&parts.gate, &mut *gate),
            (&parts.step, &mut *decays),
            (&parts.rate, &mut *rates),
        ];
        self.project_into(weights, layer, &mut targets);
        for t in 0..input.count() {
            let heads = decays.row_mut(t).iter_mut().zip(rates.row_mut(t));
            for (head, (decay, rate)) in heads.enumerate() {
                *decay = (softplus(*decay + parts.step_bias[head]) * parts.decay[head]).exp();
                *rate = 1.0 / (1.0 + (-*rate).exp());
            }
        }
        convolve(context, &parts.convolution, input, 0, state, &tokens.spans, convolved);
        ops::silu(context, convolved);
        let keys = config.key_heads * config.key_dim;
        self.unit_heads(convolved, 0..keys, config.key_dim, (config.key_dim as f32).sqrt().recip());
        self.unit_heads(convolved, keys..2 * keys, config.key_dim, 1.0);
        let columns = HeadColumns {
            queries: 0,
            keys,
            values: 2 * keys,
            key_heads: config.key_heads,
            sharing: Sharing::Apart,
        };
        let (spans, out) = (&tokens.spans, &mut self.attended);
        remember(context, Rule::Delta, convolved, columns, decays, rates, state, spans, out);
        let cols = 0..out.cols();
        ops::norm_columns(context, out, cols, parts.norm.get());
        ops::gate(context, ActivationFunction::Silu, gate, out);
        std::mem::swap(gate, out);
        self.recurrent = buffers;
    }

    /// Gives each head of `dim` among some columns the length `len`.
    fn unit_heads(&self, x: &mut Rows, cols: std::ops::Range<usize>, dim: usize, len: f32) {
        // A root mean square of `len / sqrt(dim)` is a length of `len`.
        let weight = vec![len / (dim as f32).sqrt(); dim];
        let epsilon = self.model.config.epsilon / dim as f32;
        let norm = Norm { kind: NormKind::RootMeanSquare, weight: &weight, bias: None, epsilon };
        ops::norm_columns(self.context(), x, cols, norm);
    }
}
