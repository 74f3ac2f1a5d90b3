//! What happens between two synchronizations of a transformer's forward pass, one call each.

mod heads;
mod multiply;
mod norm;
mod pointwise;
mod rows;

pub use heads::{HeadPlaces, copy_heads, merge_heads, split_heads};
pub use multiply::{Affine, Gated, Group, Product, kinds_for, multiply, multiply_gated, multiply_groups};
pub use norm::{Norm, NormKind, norm, norm_columns, norm_rows};
pub use pointwise::{
    add, add_row, add_scaled, add_scaled_heads, apply, gate, log_sum_exp, max, multiply_columns, scale,
    sigmoid_mul, silu, soft_cap, weighted_sums,
};
pub use rows::Rows;
pub(crate) use rows::SharedRows;

use crate::Context;
use crate::format::SUPERBLOCK;
use crate::panel::{Activations, Kinds, PANEL_WIDTHS};
use std::ops::Range;

/// Operations on fewer tokens than this are not worth waking another thread for.
const TOKENS_INLINE_MAX: usize = 4;

/// No more panels than this are too few to give each to one thread.
const PANELS_SHARED_MAX: usize = 4;

/// What a feed-forward layer does between its matrices: to its gate before it multiplies, or to all where it has no gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationFunction {
    /// `x * sigmoid(x)`, as in SwiGLU (Shazeer, 2020).
    Silu,
    /// The tanh form of the Gaussian error linear unit (Hendrycks and Gimpel, 2016), as in GeGLU.
    Gelu,
    /// The Gaussian error linear unit as it is defined, as in BERT.
    ExactGelu,
    /// SwiGLU as gpt-oss computes it: `x * sigmoid(1.702 x) * (up + 1)`, with `x` at most 7 and `up` from -7 to 7.
    ClampedSwiglu,
}

/// Whether ranges of rows come one after the other, without any row twice, and end before `rows`.
pub(crate) fn are_disjoint(ranges: impl Iterator<Item = Range<usize>>, rows: usize) -> bool {
    let mut next = 0;
    ranges.filter(|range| !range.is_empty()).all(|range| {
        let follows = range.start >= next && range.end <= rows;
        next = range.end;
        follows
    })
}

/// Calls `f` for every token, on all threads if there are enough of them to pay.
pub(crate) fn for_each_token(context: Context<'_>, tokens: usize, f: &(dyn Fn(usize) + Sync)) {
    if tokens <= TOKENS_INLINE_MAX {
        return (0..tokens).for_each(f);
    }
    // Whole panels where there are enough: their tokens share cache lines.
    let wide = PANEL_WIDTHS[0];
    let per_item = if tokens > wide * context.pool.threads().max(PANELS_SHARED_MAX) { wide } else { 4 };
    context.pool.run(tokens.div_ceil(per_item), &|item| {
        (item * per_item..tokens.min((item + 1) * per_item)).for_each(f);
    });
}

/// Calls `f` for parts of the columns of every token, which together are all and begin where a scale does, on all threads if
/// there are enough to pay.
fn for_each_part(context: Context<'_>, tokens: usize, cols: usize, f: &(dyn Fn(usize, Range<usize>) + Sync)) {
    let threads = context.pool.threads();
    let width = cols.div_ceil(threads).next_multiple_of(SUPERBLOCK);
    // Few panels, whose tokens share cache lines: all of them go through the same columns together.
    let shared = TOKENS_INLINE_MAX + 1..=PANELS_SHARED_MAX * PANEL_WIDTHS[0];
    if shared.contains(&tokens) && cols.div_ceil(width) == threads {
        context.pool.run(threads, &|part| {
            (0..tokens).for_each(|token| f(token, part * width..cols.min((part + 1) * width)));
        });
    } else {
        for_each_token(context, tokens, &|token| f(token, 0..cols));
    }
}

/// Every row of `x` as activations.
pub fn activate(context: Context<'_>, x: &Rows, kinds: Kinds, out: &mut Activations) {
    out.reset(x.count(), x.cols(), kinds);
    let writer = out.writer();
    for_each_part(context, x.count(), x.cols(), &|t, cols| {
        // SAFETY: each element is written once.
        unsafe { writer.write(context.table, t, cols.start, &x.row(t)[cols]) }
    });
}

/// Row `sources[i]` of `x` as activation `i`, in groups of the given lengths that are multiplied by different matrices.
///
/// # Panics
/// If there is no such row, or the groups are not all of the sources.
pub fn activate_groups(
    context: Context<'_>,
    x: &Rows,
    sources: &[u32],
    groups: &[usize],
    kinds: Kinds,
    out: &mut Activations,
) {
    out.reset_groups(groups, x.cols(), kinds);
    assert_eq!(out.tokens(), sources.len(), "groups of all sources");
    let writer = out.writer();
    for_each_token(context, sources.len(), &|i| {
        // SAFETY: each element is written once.
        unsafe { writer.write(context.table, i, 0, x.row(sources[i] as usize)) }
    });
}
