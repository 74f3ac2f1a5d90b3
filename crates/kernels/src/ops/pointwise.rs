//! Element by element: sums, scales, gates, and sums over a row of logits.

use super::{ActivationFunction, Rows, for_each_token};
use crate::Context;
use std::ops::Range;

/// The largest value of `x`, negative infinity of nothing.
pub fn max(context: Context<'_>, x: &[f32]) -> f32 {
    // SAFETY: the table proves the instruction set.
    unsafe { (context.table.max)(x) }
}

/// The logarithm of the sum of `e^x`, the denominator of a log-softmax.
pub fn log_sum_exp(context: Context<'_>, x: &[f32]) -> f32 {
    let max = max(context, x);
    if !max.is_finite() {
        return max;
    }
    // SAFETY: the table proves the instruction set.
    max + unsafe { (context.table.exp_sum)(x, max) }.ln()
}

/// Multiplies every element.
pub fn scale(context: Context<'_>, x: &mut Rows, factor: f32) {
    let tokens = x.count();
    let x = x.shared();
    // SAFETY: each token's row is touched once.
    for_each_token(context, tokens, &|t| unsafe { x.row(t).iter_mut().for_each(|x| *x *= factor) });
}

/// `cap * tanh(x / cap)` of every element.
pub fn soft_cap(context: Context<'_>, x: &mut Rows, cap: f32) {
    let tokens = x.count();
    let x = x.shared();
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { (context.table.soft_cap)(x.row(t), cap) });
}

/// `x += y`.
///
/// # Panics
/// If the shapes differ.
pub fn add(context: Context<'_>, x: &mut Rows, y: &Rows) {
    add_scaled(context, x, y, 1.0);
}

/// `x += factor * y`.
///
/// # Panics
/// If the shapes differ.
pub fn add_scaled(context: Context<'_>, x: &mut Rows, y: &Rows, factor: f32) {
    assert_eq!((x.count(), x.cols()), (y.count(), y.cols()), "shapes of a sum");
    let tokens = x.count();
    let x = x.shared();
    for_each_token(context, tokens, &|t| {
        // SAFETY: each token's row is touched once; the table proves the instruction set.
        unsafe { (context.table.add_scaled)(x.row(t), y.row(t), factor) };
    });
}

/// `out[t]` is the sum of the next `terms_per_row` rows of `x`, each times its weight.
///
/// # Panics
/// If there are not as many terms as all rows have, or no such rows.
pub fn weighted_sums(
    context: Context<'_>,
    x: &Rows,
    terms: &[(u32, f32)],
    terms_per_row: usize,
    out: &mut Rows,
) {
    assert_eq!(terms.len(), out.count() * terms_per_row, "terms of all rows");
    assert_eq!(x.cols(), out.cols(), "columns of a sum");
    let tokens = out.count();
    let out = out.shared();
    for_each_token(context, tokens, &|t| {
        // SAFETY: each token's row is touched once; the table proves the instruction set.
        unsafe {
            let sum = out.row(t);
            sum.fill(0.0);
            for &(row, weight) in &terms[t * terms_per_row..][..terms_per_row] {
                (context.table.add_scaled)(sum, x.row(row as usize), weight);
            }
        }
    });
}

/// `gate = function(gate) * up`.
///
/// # Panics
/// If the shapes differ.
pub fn gate(context: Context<'_>, function: ActivationFunction, gate: &mut Rows, up: &Rows) {
    assert_eq!((gate.count(), gate.cols()), (up.count(), up.cols()), "shapes of gate and up");
    let tokens = gate.count();
    let gate = gate.shared();
    let mul = context.table.gate_mul(function);
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { mul(gate.row(t), up.row(t)) });
}

/// `function(x)` of every element, where there is no gate.
pub fn apply(context: Context<'_>, function: ActivationFunction, x: &mut Rows) {
    let (tokens, ones) = (x.count(), vec![1.0; x.cols()]);
    let x = x.shared();
    let mul = context.table.gate_mul(function);
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { mul(x.row(t), &ones) });
}

/// Adds one row to all.
///
/// # Panics
/// If the lengths differ.
pub fn add_row(context: Context<'_>, x: &mut Rows, y: &[f32]) {
    let tokens = x.count();
    let x = x.shared();
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { (context.table.add_scaled)(x.row(t), y, 1.0) });
}

/// `x * sigmoid(x)` of every element.
pub fn silu(context: Context<'_>, x: &mut Rows) {
    let tokens = x.count();
    let x = x.shared();
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { (context.table.silu)(x.row(t)) });
}

/// `x *= sigmoid(gate)`.
///
/// # Panics
/// If the shapes differ.
pub fn sigmoid_mul(context: Context<'_>, x: &mut Rows, gate: &Rows) {
    assert_eq!((x.count(), x.cols()), (gate.count(), gate.cols()), "shapes of a gate");
    let tokens = x.count();
    let x = x.shared();
    // SAFETY: each token's row is touched once; the table proves the instruction set.
    for_each_token(context, tokens, &|t| unsafe { (context.table.sigmoid_mul)(x.row(t), gate.row(t)) });
}

/// `x[t]` times some columns of `y[t]`, element by element.
///
/// # Panics
/// If there are not as many tokens or columns.
pub fn multiply_columns(context: Context<'_>, x: &mut Rows, y: &Rows, cols: Range<usize>) {
    assert_eq!((x.count(), x.cols()), (y.count(), cols.len()), "shapes of a product");
    let tokens = x.count();
    let x = x.shared();
    for_each_token(context, tokens, &|t| {
        // SAFETY: each token's row is touched once.
        let row = unsafe { x.row(t) };
        row.iter_mut().zip(&y.row(t)[cols.clone()]).for_each(|(x, y)| *x *= y);
    });
}

/// `x[t]` plus, for each head, its factor times its columns of `y[t]`, which begin at `first`.
///
/// # Panics
/// If there are no such columns.
pub fn add_scaled_heads(context: Context<'_>, x: &mut Rows, y: &Rows, first: usize, factors: &[f32]) {
    let dim = x.cols() / factors.len();
    assert!(x.cols().is_multiple_of(factors.len()) && first + x.cols() <= y.cols(), "columns of all heads");
    assert_eq!(x.count(), y.count(), "tokens of a sum");
    let tokens = x.count();
    let x = x.shared();
    for_each_token(context, tokens, &|t| {
        // SAFETY: each token's row is touched once; the table proves the instruction set.
        unsafe {
            let heads = x.row(t).chunks_exact_mut(dim).zip(y.row(t)[first..].chunks_exact(dim));
            for ((x, y), &factor) in heads.zip(factors) {
                (context.table.add_scaled)(x, y, factor);
            }
        }
    });
}
