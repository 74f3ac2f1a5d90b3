//! What adapters add to products: for each of them, the rows of the tokens that have it, in two small products.
//!
//! A token's row is gathered, multiplied and scaled by itself, so what it becomes does not depend on who else is in the batch;
//! the rows of tokens without adapters are not touched.

use super::SequenceStep;
use crate::model::adapters::{Adapter, Pair};
use crate::model::weights::Linear;
use kernels::ops::{self, Group, Norm, Product, Rows, activate_groups, kinds_for, multiply_groups};
use kernels::{Activations, Context};
use std::ops::Range;

/// The adapters of a step, and what is kept from step to step.
#[derive(Debug)]
pub(super) struct Adapting<'a> {
    adapters: &'a [Adapter],
    active: Vec<Active>,
    /// What the next matrices multiply, as floats; of no use where nothing is active.
    input: Rows,
    activations: Activations,
    /// Products with `A`.
    low: Rows,
    /// Products with `B`.
    delta: Rows,
}

/// An adapter that some tokens of the step have.
#[derive(Debug)]
struct Active {
    id: usize,
    /// How much of it, by token.
    scales: Vec<f32>,
}

/// The rows of a product that one matrix makes.
pub(super) type Part<'a> = (&'a Linear, Range<usize>);

impl<'a> Adapting<'a> {
    pub(super) fn new(adapters: &'a [Adapter]) -> Self {
        Self {
            adapters,
            active: Vec::new(),
            input: Rows::default(),
            activations: Activations::default(),
            low: Rows::default(),
            delta: Rows::default(),
        }
    }

    /// # Panics
    /// If there is no such adapter.
    pub(super) fn begin(&mut self, batch: &[SequenceStep<'_>]) {
        self.active.clear();
        let tokens: usize = batch.iter().map(|step| step.tokens.len()).sum();
        let mut row = 0;
        for step in batch {
            for wanted in step.adapters {
                assert!(wanted.id < self.adapters.len(), "adapter {} of {}", wanted.id, self.adapters.len());
                let i = self.active.partition_point(|active| active.id < wanted.id);
                if self.active.get(i).is_none_or(|active| active.id != wanted.id) {
                    self.active.insert(i, Active { id: wanted.id, scales: vec![0.0; tokens] });
                }
                self.active[i].scales[row..row + step.tokens.len()].fill(wanted.scale);
            }
            row += step.tokens.len();
        }
    }

    /// Drops all tokens but these.
    pub(super) fn keep(&mut self, rows: &[usize]) {
        for active in &mut self.active {
            active.scales = rows.iter().map(|&row| active.scales[row]).collect();
        }
    }

    /// Notes what the next matrices multiply.
    pub(super) fn note(&mut self, input: &Rows) {
        if !self.active.is_empty() {
            self.input.clone_from(input);
        }
    }

    /// The same after a norm.
    pub(super) fn note_norm(&mut self, context: Context<'_>, input: &Rows, norm: Norm<'_>) {
        if !self.active.is_empty() {
            ops::norm_rows(context, input, norm, &mut self.input);
        }
    }

    /// Whether something is added to products with one of these.
    pub(super) fn changes<'l>(&self, linears: impl IntoIterator<Item = &'l Linear>) -> bool {
        let changes =
            |linear| self.active.iter().any(|active| self.adapters[active.id].pair(linear).is_some());
        linears.into_iter().any(changes)
    }

    /// Adds to rows of the token embedding.
    pub(super) fn embed(&mut self, context: Context<'_>, batch: &[SequenceStep<'_>], out: &mut Rows) {
        for i in 0..self.active.len() {
            let Active { id, scales } = &self.active[i];
            let Some(pair) = self.adapters[*id].embedding() else { continue };
            let tokens = batch.iter().flat_map(|step| step.tokens).enumerate();
            let (rows, tokens): (Vec<usize>, Vec<u32>) =
                tokens.filter(|(row, _)| scales[*row] != 0.0).unzip();
            self.low.reset(rows.len(), pair.b.cols());
            for (low, (&row, token)) in rows.iter().zip(tokens).enumerate() {
                let low = self.low.row_mut(low);
                pair.write_row(token as usize, low);
                low.iter_mut().for_each(|x| *x *= pair.scale * scales[row]);
            }
            let groups = [Group { affine: (&pair.b).into(), tokens: 0..rows.len() }];
            self.raise(context, &groups, &rows, out);
        }
    }

    /// Adds to a product with one matrix, of what was noted.
    pub(super) fn add(&mut self, context: Context<'_>, linear: &Linear, out: &mut Rows) {
        let rows = 0..out.count();
        self.add_parts(context, &[(linear, rows)], |row| row, |row| row, out);
    }

    /// Adds to a product whose parts are of matrices of one shape. Row `i` of it is of row `source(i)` of what was noted, and
    /// of token `token(i)`.
    pub(super) fn add_parts(
        &mut self,
        context: Context<'_>,
        parts: &[Part<'_>],
        source: impl Fn(usize) -> usize,
        token: impl Fn(usize) -> usize,
        out: &mut Rows,
    ) {
        for i in 0..self.active.len() {
            let Active { id, scales } = &self.active[i];
            let (mut rows, mut factors): (Vec<usize>, Vec<f32>) = Default::default();
            let mut used: Vec<(&Pair, Range<usize>)> = Vec::new();
            for (linear, range) in parts {
                let Some(pair) = self.adapters[*id].pair(linear) else { continue };
                let first = rows.len();
                for row in range.clone().filter(|&row| scales[token(row)] != 0.0) {
                    rows.push(row);
                    factors.push(linear.scale * pair.scale * scales[token(row)]);
                }
                if rows.len() > first {
                    used.push((pair, first..rows.len()));
                }
            }
            let Some((first, _)) = used.first() else { continue };
            let lens: Vec<usize> = used.iter().map(|(_, range)| range.len()).collect();
            let sources: Vec<u32> = rows.iter().map(|&row| source(row) as u32).collect();
            let (kinds, rank) = (kinds_for([&first.a]), first.a.rows());
            activate_groups(context, &self.input, &sources, &lens, kinds, &mut self.activations);
            let group = |(pair, range): &(&'a Pair, Range<usize>)| Group {
                affine: (&pair.a).into(),
                tokens: range.clone(),
            };
            self.low.reset(rows.len(), rank);
            let groups: Vec<_> = used.iter().map(group).collect();
            multiply_groups(context, &self.activations, &groups, &mut self.low);
            for (low, factor) in factors.iter().enumerate() {
                self.low.row_mut(low).iter_mut().for_each(|x| *x *= factor);
            }
            let group = |(pair, range): &(&'a Pair, Range<usize>)| Group {
                affine: (&pair.b).into(),
                tokens: range.clone(),
            };
            let groups: Vec<_> = used.iter().map(group).collect();
            self.raise(context, &groups, &rows, out);
        }
    }

    /// Multiplies `low` by `B`, and adds row `i` of what comes out to row `rows[i]` of `out`.
    fn raise(&mut self, context: Context<'_>, groups: &[Group<'_>], rows: &[usize], out: &mut Rows) {
        if rows.is_empty() {
            return;
        }
        let lens: Vec<usize> = groups.iter().map(|group| group.tokens.len()).collect();
        let sources: Vec<u32> = (0..rows.len() as u32).collect();
        let kinds = kinds_for([groups[0].affine.matrix]);
        activate_groups(context, &self.low, &sources, &lens, kinds, &mut self.activations);
        if let ([group], true) = (groups, rows.len() == out.count()) {
            // The same sums, and nothing is written twice.
            return ops::multiply(
                context,
                &self.activations,
                &mut [Product { affine: group.affine, out, add: true }],
            );
        }
        self.delta.reset(rows.len(), out.cols());
        multiply_groups(context, &self.activations, groups, &mut self.delta);
        for (i, &row) in rows.iter().enumerate() {
            out.row_mut(row).iter_mut().zip(self.delta.row(i)).for_each(|(x, y)| *x += y);
        }
    }
}
