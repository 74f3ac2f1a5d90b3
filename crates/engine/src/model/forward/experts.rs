//! Mixtures of experts: who is asked, and what they say.
//!
//! Tokens are sorted by the experts they were sent to, so that each expert's weights are read once for all its tokens: in a
//! prefill as panels of tokens, in a decode as one list of items over all experts that were chosen.

use super::Forward;
use super::adapt::Part;
use crate::model::config::{self, Groups, Probabilities, Router};
use crate::model::weights::{Dense, Experts, Shared, Weights};
use kernels::Activations;
use kernels::ops::{
    self, Gated, Group, Product, Rows, activate_groups, kinds_for, multiply_gated, multiply_groups,
};
use std::ops::Range;

/// The smallest sum that weights are divided by: the smallest normal half.
const WEIGHT_SUM_MIN: f32 = 6.103_515_6e-5;

/// What is kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    scores: Rows,
    /// The score of the shared expert.
    shares: Rows,
    /// Of the tokens, sorted by expert.
    activations: Activations,
    answers: Rows,
    chosen: Vec<Choice>,
    /// The token of each answer, sorted by expert.
    asked: Vec<u32>,
    /// Answers in their own order.
    in_order: Vec<u32>,
    /// By token and rank: the row of an answer and its weight.
    weighted: Vec<(u32, f32)>,
}

/// One expert for one token.
#[derive(Clone, Copy, Debug)]
struct Choice {
    expert: u32,
    weight: f32,
}

impl Forward<'_> {
    /// What the experts that were chosen make of the normed stream, into `added`. What is noted for adapters are its rows.
    pub(super) fn consult(&mut self, weights: &Weights, config: &config::Experts, experts: &Experts) {
        let context = self.context();
        let groups = self.sort(config);
        let asked = groups.iter().flat_map(|(expert, _)| {
            let Dense { gate, up, down } = &experts.experts[*expert];
            [gate, up, down]
        });
        // The same matrices from elsewhere, where some turn out to be damaged.
        let others = self.model.store.sound(weights, asked, context.pool);
        let weights = others.as_deref().unwrap_or(weights);

        // All experts of a tensor are alike.
        let first = &experts.experts[0];
        let inputs = kinds_for([&first.gate, &first.up].map(|linear| weights.matrix(linear)));
        let outputs = kinds_for([weights.matrix(&first.down)]);
        let lens: Vec<usize> = groups.iter().map(|(_, tokens)| tokens.len()).collect();
        let buffers = &mut self.experts;
        activate_groups(context, &self.normed, &buffers.asked, &lens, inputs, &mut buffers.activations);
        let answers = buffers.asked.len();
        self.gate.reset(answers, config.width);
        self.up.reset(answers, config.width);
        let asked = groups.iter().map(|(expert, tokens)| (&experts.experts[*expert], tokens.clone()));
        let (gate, up) = (&mut self.gate, &mut self.up);
        let activations = &buffers.activations;
        let token = |answer: usize| buffers.asked[answer] as usize;
        if self.adapting.changes(asked.clone().flat_map(|(dense, _)| [&dense.gate, &dense.up])) {
            // As for a dense part; see there.
            let gates: Vec<Part<'_>> = asked.clone().map(|(dense, tokens)| (&dense.gate, tokens)).collect();
            let ups: Vec<Part<'_>> = asked.clone().map(|(dense, tokens)| (&dense.up, tokens)).collect();
            for (parts, out) in [(gates, &mut *gate), (ups, &mut *up)] {
                multiply_groups(context, activations, &of_parts(weights, &parts), out);
                self.adapting.add_parts(context, &parts, token, token, out);
            }
            ops::gate(context, config.function, gate, up);
        } else {
            let gated = asked.clone().map(|(dense, tokens)| {
                let (gate, up) = (weights.affine(&dense.gate), weights.affine(&dense.up));
                Gated { gate, up, tokens }
            });
            let gated: Vec<_> = gated.collect();
            multiply_gated(context, activations, config.function, &gated, gate, up);
        }

        buffers.in_order.clear();
        buffers.in_order.extend(0..answers as u32);
        activate_groups(context, &self.gate, &buffers.in_order, &lens, outputs, &mut buffers.activations);
        let downs: Vec<Part<'_>> = asked.map(|(dense, tokens)| (&dense.down, tokens)).collect();
        buffers.answers.reset(answers, self.model.config.width);
        multiply_groups(context, &buffers.activations, &of_parts(weights, &downs), &mut buffers.answers);
        self.adapting.note(&self.gate);
        let token = |answer: usize| buffers.asked[answer] as usize;
        self.adapting.add_parts(context, &downs, |row| row, token, &mut buffers.answers);
        self.added.reset(self.normed.count(), self.model.config.width);
        ops::weighted_sums(context, &buffers.answers, &buffers.weighted, config.used, &mut self.added);
        self.ask_shared(weights, config, experts);
    }

    /// Chooses the experts of every token, by `scores` that the router gives the normed stream.
    pub(super) fn route(&mut self, weights: &Weights, config: &config::Experts, experts: &Experts) {
        let context = self.context();
        let router = weights.affine(&experts.router);
        let shared = experts.shared.iter().flat_map(|shared| {
            let Shared { expert, gate } = shared;
            [&expert.gate, &expert.up].into_iter().chain(gate)
        });
        let kinds = kinds_for(shared.map(|linear| weights.matrix(linear)).chain([router.matrix]));
        ops::activate(context, &self.normed, kinds, &mut self.activations);
        let Buffers { scores, shares, .. } = &mut self.experts;
        scores.reset(self.normed.count(), config.count);
        let mut products = vec![Product::new(router, scores)];
        if let Some(gate) = experts.shared.as_ref().and_then(|shared| shared.gate.as_ref()) {
            shares.reset(self.normed.count(), 1);
            products.push(Product::new(weights.affine(gate), shares));
        }
        ops::multiply(context, &self.activations, &mut products);
        self.adapting.note(&self.normed);
        self.adapting.add(context, &experts.router, &mut self.experts.scores);
        if let Some(gate) = experts.shared.as_ref().and_then(|shared| shared.gate.as_ref()) {
            self.adapting.add(context, gate, &mut self.experts.shares);
        }
        let buffers = &mut self.experts;
        buffers.chosen.clear();
        for t in 0..buffers.scores.count() {
            let scores = buffers.scores.row_mut(t);
            let bias = experts.selection_bias.as_deref();
            choose(&config.router, config.used, scores, bias, &mut buffers.chosen);
        }
    }

    /// Sorts tokens by the experts they were sent to, and returns each expert with its rows.
    fn sort(&mut self, config: &config::Experts) -> Vec<(usize, Range<usize>)> {
        let Buffers { chosen, asked, weighted, .. } = &mut self.experts;
        let mut ends = vec![0; config.count];
        for choice in chosen.iter() {
            ends[choice.expert as usize] += 1;
        }
        let mut groups = Vec::new();
        let mut next = 0;
        for (expert, end) in ends.iter_mut().enumerate() {
            let rows = next..next + *end;
            // From here on, where the expert's next token goes.
            *end = next;
            next = rows.end;
            if !rows.is_empty() {
                groups.push((expert, rows));
            }
        }
        asked.clear();
        asked.resize(chosen.len(), 0);
        weighted.clear();
        weighted.extend(chosen.iter().enumerate().map(|(i, choice)| {
            let row = &mut ends[choice.expert as usize];
            asked[*row] = (i / config.used) as u32;
            *row += 1;
            (*row as u32 - 1, choice.weight)
        }));
        groups
    }

    /// Adds what the shared expert makes of the activations to `added`.
    fn ask_shared(&mut self, weights: &Weights, config: &config::Experts, experts: &Experts) {
        let Some(shared) = &experts.shared else { return };
        let context = self.context();
        self.adapting.note(&self.normed);
        self.gate(weights, &shared.expert, config.function);
        let down = weights.affine(&shared.expert.down);
        let Buffers { answers, shares, .. } = &mut self.experts;
        answers.reset(self.normed.count(), self.model.config.width);
        ops::multiply(context, &self.activations, &mut [Product::new(down, answers)]);
        self.adapting.add(context, &shared.expert.down, answers);
        if shared.gate.is_some() {
            for t in 0..answers.count() {
                let share = 1.0 / (1.0 + (-shares.row(t)[0]).exp());
                answers.row_mut(t).iter_mut().for_each(|x| *x *= share);
            }
        }
        ops::add(context, &mut self.added, answers);
    }
}

/// The products of some rows with matrices of their own.
fn of_parts<'w>(weights: &'w Weights, parts: &[Part<'w>]) -> Vec<Group<'w>> {
    let group =
        |(linear, tokens): &Part<'w>| Group { affine: weights.affine(linear), tokens: tokens.clone() };
    parts.iter().map(group).collect()
}

/// The `used` experts with the highest scores, best first, of equal ones the first; `scores` become probabilities.
fn choose(router: &Router, used: usize, scores: &mut [f32], bias: Option<&[f32]>, chosen: &mut Vec<Choice>) {
    match router.probabilities {
        Probabilities::Softmax => softmax(scores),
        Probabilities::Sigmoid => scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + (-*s).exp())),
        Probabilities::SoftmaxOfChosen => {}
    }
    let mut ranks = scores.to_vec();
    if let Some(bias) = bias {
        ranks.iter_mut().zip(bias).for_each(|(rank, b)| *rank += b);
    }
    if let Some(groups) = router.groups {
        leave_out_groups(&mut ranks, groups);
    }
    let first = chosen.len();
    for _ in 0..used {
        let best = best(&ranks);
        chosen.push(Choice { expert: best as u32, weight: scores[best] });
        ranks[best] = f32::NAN;
    }
    let chosen = &mut chosen[first..];
    let mut weights: Vec<f32> = chosen.iter().map(|choice| choice.weight).collect();
    if router.probabilities == Probabilities::SoftmaxOfChosen {
        softmax(&mut weights);
    }
    if router.normalized {
        let sum = weights.iter().sum::<f32>().max(WEIGHT_SUM_MIN);
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    for (choice, weight) in chosen.iter_mut().zip(weights) {
        choice.weight = weight * router.scale;
    }
}

/// The place of the largest, of equal ones the first; NaNs come after everything else.
fn best(ranks: &[f32]) -> usize {
    let mut best = 0;
    for (i, &rank) in ranks.iter().enumerate() {
        if ranks[best].is_nan() && !rank.is_nan() || rank > ranks[best] {
            best = i;
        }
    }
    best
}

/// Leaves the experts of all but the best groups out; a group is as good as its best two experts together.
fn leave_out_groups(ranks: &mut [f32], groups: Groups) {
    let size = ranks.len() / groups.count;
    let score = |group: &[f32]| {
        let mut sorted = group.to_vec();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        sorted.iter().take(2).sum::<f32>()
    };
    let mut scores: Vec<f32> = ranks.chunks(size).map(score).collect();
    let mut searched = vec![false; groups.count];
    for _ in 0..groups.used {
        let best = best(&scores);
        searched[best] = true;
        scores[best] = f32::NAN;
    }
    for (group, searched) in ranks.chunks_mut(size).zip(searched) {
        if !searched {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}
