//! Norms of every row, written as activations or as rows.

use super::{Rows, for_each_part, for_each_token};
use crate::Context;
use crate::panel::{Activations, Kinds};
use std::ops::Range;

/// Columns that are normed at once, a multiple of those that share a scale: they stay in the first-level cache.
const NORM_COLS: usize = 1024;

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Its root mean square (Zhang and Sennrich, 2019).
    RootMeanSquare,
    /// Its standard deviation, after its mean is taken away (Ba, Kiros and Hinton, 2016).
    Layer,
}

/// A norm with its weights.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub kind: NormKind,
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub epsilon: f32,
}

/// A row's mean, or 0 where it stays, and what the row is multiplied by.
#[derive(Clone, Copy)]
struct Measure {
    mean: f32,
    scale: f32,
}

impl Norm<'_> {
    fn check(&self, cols: usize) {
        assert_eq!(self.weight.len(), cols, "weights of a norm");
        assert!(self.bias.is_none_or(|bias| bias.len() == cols), "biases of a norm");
    }

    fn measure(&self, context: Context<'_>, row: &[f32]) -> Measure {
        // SAFETY: the table proves the instruction set.
        unsafe {
            match self.kind {
                NormKind::RootMeanSquare => {
                    Measure { mean: 0.0, scale: (context.table.rms_scale)(row, self.epsilon) }
                }
                NormKind::Layer => {
                    let (mean, scale) = (context.table.mean_scale)(row, self.epsilon);
                    Measure { mean, scale }
                }
            }
        }
    }

    /// Norms `part`, which are the columns from `first` on.
    fn write(&self, context: Context<'_>, measure: Measure, first: usize, part: &[f32], out: &mut [f32]) {
        let cols = first..first + part.len();
        let weight = &self.weight[cols.clone()];
        // SAFETY: the table proves the instruction set.
        unsafe {
            match self.kind {
                NormKind::RootMeanSquare => (context.table.scale)(part, measure.scale, weight, out),
                NormKind::Layer => {
                    (context.table.center_scale)(part, measure.mean, measure.scale, weight, out);
                }
            }
        }
        if let Some(bias) = self.bias {
            out.iter_mut().zip(&bias[cols]).for_each(|(x, b)| *x += b);
        }
    }
}

/// The norm of every row of `x`, as activations.
///
/// # Panics
/// If the norm has not the rows' length.
pub fn norm(context: Context<'_>, x: &Rows, norm: Norm<'_>, kinds: Kinds, out: &mut Activations) {
    norm.check(x.cols());
    out.reset(x.count(), x.cols(), kinds);
    let writer = out.writer();
    for_each_part(context, x.count(), x.cols(), &|t, cols| {
        let mut normed = [0.0; NORM_COLS];
        let measure = norm.measure(context, x.row(t));
        for (i, part) in x.row(t)[cols.clone()].chunks(NORM_COLS).enumerate() {
            let first = cols.start + i * NORM_COLS;
            let normed = &mut normed[..part.len()];
            norm.write(context, measure, first, part, normed);
            // SAFETY: each element is written once.
            unsafe { writer.write(context.table, t, first, normed) };
        }
    });
}

/// The norm of every row of `x`, as rows.
///
/// # Panics
/// If the norm has not the rows' length.
pub fn norm_rows(context: Context<'_>, x: &Rows, norm: Norm<'_>, out: &mut Rows) {
    norm.check(x.cols());
    out.reset(x.count(), x.cols());
    let out = out.shared();
    for_each_token(context, x.count(), &|t| {
        // SAFETY: each token's row is touched once.
        let out = unsafe { out.row(t) };
        norm.write(context, norm.measure(context, x.row(t)), 0, x.row(t), out);
    });
}

/// Norms some columns of every row of `x` in place: each part of them that is as long as the norm by itself.
///
/// # Panics
/// If they are not a whole number of parts, or there are no such columns.
pub fn norm_columns(context: Context<'_>, x: &mut Rows, cols: Range<usize>, norm: Norm<'_>) {
    let len = norm.weight.len();
    norm.check(len);
    assert!(cols.len().is_multiple_of(len), "whole norms");
    let tokens = x.count();
    let x = x.shared();
    for_each_token(context, tokens, &|t| {
        // SAFETY: each token's row is touched once.
        let row = &mut unsafe { x.row(t) }[cols.clone()];
        row.chunks_exact_mut(len).for_each(|part| norm_in_place(context, part, norm));
    });
}

fn norm_in_place(context: Context<'_>, row: &mut [f32], norm: Norm<'_>) {
    let measure = norm.measure(context, row);
    let mut before = [0.0; NORM_COLS];
    for (i, part) in row.chunks_mut(NORM_COLS).enumerate() {
        let before = &mut before[..part.len()];
        before.copy_from_slice(part);
        norm.write(context, measure, i * NORM_COLS, before, part);
    }
}
