//! Attention: queries, keys and values, the cache, and what is mixed of it.

use super::{Forward, Outputs, Tokens};
use crate::model::config::{self, Temperature};
use crate::model::weights::{self, Weights};
use kernels::attention::{HeadNorms, KvLayer, Mask, Preparation, Scoring, attend, rotate, rotate_and_store};
use kernels::ops::{
    self, Group, HeadPlaces, Product, activate_groups, copy_heads, kinds_for, merge_heads, multiply_groups,
    split_heads,
};

impl Forward<'_> {
    pub(super) fn attention<'b>(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        (config, parts): (&config::Attention, &weights::Attention),
        tokens: &mut Tokens<'b>,
        kept: Option<&Outputs<'b>>,
        kv: &mut KvLayer,
    ) {
        let context = self.context();
        self.project(weights, layer, config, parts);
        if let Some(norm) = &parts.value_norm {
            for head in 0..config.kv_heads {
                let cols = head * config.head_dim..(head + 1) * config.head_dim;
                ops::norm_columns(context, &mut self.values, cols, norm.get());
            }
        }
        if let Some((query, key)) = &parts.layer_norms {
            for (norm, rows) in [(query, &mut self.queries), (key, &mut self.keys)] {
                let cols = 0..rows.cols();
                ops::norm_columns(context, rows, cols, norm.get());
            }
        }
        let norms = parts.head_norms.as_ref().map(|(query, key)| HeadNorms {
            query,
            key,
            epsilon: self.model.config.epsilon,
        });
        if parts.key.is_some() {
            self.store(tokens, config.rope, norms, config.temperature, kv);
        } else {
            let scales = query_scales(tokens, config.temperature);
            let preparation = preparation(tokens, config.rope, norms, scales.as_deref());
            rotate(context, &mut self.queries, config.head_dim, preparation);
        }
        self.keep_queries(tokens, kept);
        let scoring = Scoring {
            scale: config.scale,
            soft_cap: config.soft_cap,
            mask: config.mask,
            sinks: parts.sinks.as_deref(),
            slopes: config.slopes.as_deref(),
        };
        self.attended.reset(self.queries.count(), self.queries.cols());
        attend(context, kv, &self.queries, scoring, &tokens.chunks, &mut self.attended);
        if config.gated {
            if let Some(Outputs { rows, .. }) = kept {
                self.gate.keep(rows);
            }
            ops::sigmoid_mul(context, &mut self.attended, &self.gate);
        }
    }

    /// Queries, keys and values; where queries come with gates, these are left in `gate`.
    fn project(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        config: &config::Attention,
        parts: &weights::Attention,
    ) {
        let context = self.context();
        let linears = [Some(&parts.query), parts.key.as_ref(), parts.value.as_ref()];
        let kinds = kinds_for(linears.into_iter().flatten().map(|linear| weights.matrix(linear)));
        self.activate_stream(layer.mixer_norm.as_ref(), kinds);
        let count = self.stream.count();
        let queries = if config.gated { &mut self.up } else { &mut self.queries };
        let targets = linears.into_iter().zip([queries, &mut self.keys, &mut self.values]);
        let (linears, mut products): (Vec<_>, Vec<_>) = targets
            .filter_map(|(linear, rows)| {
                let affine = weights.affine(linear?);
                rows.reset(count, affine.matrix.rows());
                Some((linear?, Product::new(affine, rows)))
            })
            .unzip();
        ops::multiply(context, &self.activations, &mut products);
        for (linear, product) in linears.into_iter().zip(products) {
            self.adapting.add(context, linear, product.out);
        }
        if config.values.of_keys {
            self.values.clone_from(&self.keys);
        }
        if config.gated {
            let (heads, len) = (config.heads, config.head_dim);
            let part = |first| HeadPlaces { first, stride: 2 * len, len, heads };
            for (first, out) in [(0, &mut self.queries), (len, &mut self.gate)] {
                out.reset(count, heads * len);
                copy_heads(context, &self.up, part(first), out, HeadPlaces::dense(heads, len));
            }
        }
    }

    /// Prepares queries and keys, and writes keys and values to the cache.
    fn store(
        &mut self,
        tokens: &Tokens<'_>,
        rope: Option<usize>,
        norms: Option<HeadNorms<'_>>,
        temperature: Option<Temperature>,
        kv: &mut KvLayer,
    ) {
        let scales = query_scales(tokens, temperature);
        let preparation = preparation(tokens, rope, norms, scales.as_deref());
        let context = self.context();
        let (queries, keys) = (&mut self.queries, &mut self.keys);
        rotate_and_store(context, queries, keys, &self.values, preparation, kv, &tokens.chunks);
    }

    /// Attention over latent vectors. The matrices that would make keys and values of them are applied to queries and to what
    /// was mixed instead, so that all heads read the same vectors.
    pub(super) fn latent<'b>(
        &mut self,
        weights: &Weights,
        layer: &weights::Layer,
        (config, parts): (&config::Latent, &weights::Latent),
        tokens: &mut Tokens<'b>,
        kept: Option<&Outputs<'b>>,
        kv: &mut KvLayer,
    ) {
        let context = self.context();
        let &config::Latent { heads, rank, key_dim, turned_dim, value_dim, .. } = config;
        // Queries as the file has them in `up`, latent vectors in `gate`.
        self.project_latent(weights, layer, parts);
        let cols = 0..rank;
        ops::norm_columns(context, &mut self.gate, cols, parts.latent_norm.get());
        let count = self.stream.count();
        self.values.reset(count, rank);
        copy_heads(context, &self.gate, HeadPlaces::one(0, rank), &mut self.values, HeadPlaces::one(0, rank));
        // What is turned comes first in the cache.
        self.keys.reset(count, turned_dim + rank);
        let (turned, latent) = (HeadPlaces::one(0, turned_dim), HeadPlaces::one(turned_dim, rank));
        copy_heads(context, &self.gate, HeadPlaces::one(rank, turned_dim), &mut self.keys, turned);
        copy_heads(context, &self.gate, HeadPlaces::one(0, rank), &mut self.keys, latent);

        let place = |first, len, stride| HeadPlaces { first, stride, len, heads };
        let (file_stride, stride) = (key_dim + turned_dim, turned_dim + rank);
        self.queries.reset(count, heads * stride);
        let from = place(key_dim, turned_dim, file_stride);
        copy_heads(context, &self.up, from, &mut self.queries, place(0, turned_dim, stride));
        split_heads(context, &self.up, place(0, key_dim, file_stride), &mut self.gate);
        self.multiply_heads(weights, &parts.key);
        merge_heads(context, &self.added, &mut self.queries, place(turned_dim, rank, stride));

        self.store(tokens, Some(config.rope), None, config.temperature, kv);
        self.keep_queries(tokens, kept);
        let scoring = Scoring { mask: Mask::Causal, ..Scoring::causal(config.scale) };
        self.attended.reset(self.queries.count(), heads * rank);
        attend(context, kv, &self.queries, scoring, &tokens.chunks, &mut self.attended);
        split_heads(context, &self.attended, HeadPlaces::dense(heads, rank), &mut self.gate);
        self.multiply_heads(weights, &parts.value);
        self.attended.reset(self.queries.count(), heads * value_dim);
        merge_heads(context, &self.added, &mut self.attended, HeadPlaces::dense(heads, value_dim));
    }

    fn project_latent(&mut self, weights: &Weights, layer: &weights::Layer, parts: &weights::Latent) {
        let context = self.context();
        let count = self.stream.count();
        let first = match &parts.query {
            weights::LatentQuery::Direct(query) => query,
            weights::LatentQuery::Short { down, .. } => down,
        };
        let (latent, query) = (weights.affine(&parts.latent), weights.affine(first));
        self.activate_stream(layer.mixer_norm.as_ref(), kinds_for([latent.matrix, query.matrix]));
        self.gate.reset(count, latent.matrix.rows());
        self.up.reset(count, query.matrix.rows());
        let mut products = [Product::new(latent, &mut self.gate), Product::new(query, &mut self.up)];
        ops::multiply(context, &self.activations, &mut products);
        self.adapting.add(context, &parts.latent, &mut self.gate);
        self.adapting.add(context, first, &mut self.up);
        if let weights::LatentQuery::Short { norm, up: linear, .. } = &parts.query {
            let up = weights.affine(linear);
            self.adapting.note_norm(context, &self.up, norm.get());
            ops::norm(context, &self.up, norm.get(), kinds_for([up.matrix]), &mut self.activations);
            self.up.reset(count, up.matrix.rows());
            ops::multiply(context, &self.activations, &mut [Product::new(up, &mut self.up)]);
            self.adapting.add(context, linear, &mut self.up);
        }
    }

    /// Multiplies the rows of each head in `gate` by a matrix of its own, into `added`.
    fn multiply_heads(&mut self, weights: &Weights, of_heads: &[weights::Linear]) {
        let context = self.context();
        let tokens = self.gate.count() / of_heads.len();
        let sources: Vec<u32> = (0..self.gate.count() as u32).collect();
        let lens = vec![tokens; of_heads.len()];
        let first = weights.matrix(&of_heads[0]);
        activate_groups(context, &self.gate, &sources, &lens, kinds_for([first]), &mut self.activations);
        let group = |(head, linear)| Group {
            affine: weights.affine(linear),
            tokens: head * tokens..(head + 1) * tokens,
        };
        let groups: Vec<_> = of_heads.iter().enumerate().map(group).collect();
        self.added.reset(self.gate.count(), first.rows());
        multiply_groups(context, &self.activations, &groups, &mut self.added);
        self.adapting.note(&self.gate);
        let parts: Vec<_> =
            of_heads.iter().zip(groups).map(|(linear, group)| (linear, group.tokens)).collect();
        self.adapting.add_parts(context, &parts, |row| row, |row| row % tokens, &mut self.added);
    }
}

/// What each token's queries are multiplied by.
fn query_scales(tokens: &Tokens<'_>, temperature: Option<Temperature>) -> Option<Vec<f32>> {
    temperature.map(|temperature| tokens.positions.iter().map(|&p| temperature.at(p)).collect())
}

fn preparation<'t>(
    tokens: &'t Tokens<'_>,
    rope: Option<usize>,
    norms: Option<HeadNorms<'t>>,
    query_scales: Option<&'t [f32]>,
) -> Preparation<'t> {
    Preparation { norms, rotary: rope.map(|rope| &tokens.rotaries[rope]), query_scales }
}
