//! Columns of heads, moved from one buffer to another.

use super::{Rows, for_each_token};
use crate::Context;

/// Where the heads of a row lie: `len` columns each, from `first` on, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPlaces {
    pub first: usize,
    pub stride: usize,
    pub len: usize,
    pub heads: usize,
}

impl HeadPlaces {
    /// One part of each row.
    pub fn one(first: usize, len: usize) -> Self {
        HeadPlaces { first, stride: len, len, heads: 1 }
    }

    /// Heads that follow each other from the first column on.
    pub fn dense(heads: usize, len: usize) -> Self {
        HeadPlaces { first: 0, stride: len, len, heads }
    }

    fn start(self, head: usize) -> usize {
        self.first + head * self.stride
    }

    fn check(self, x: &Rows) {
        let end = self.heads.checked_sub(1).map_or(0, |last| self.start(last) + self.len);
        assert!(end <= x.cols() && self.len <= self.stride, "{self:?} in rows of {}", x.cols());
    }
}

/// Copies the heads of every row of `x` to where `out` has them.
///
/// # Panics
/// If there are no such columns, or heads or rows are not as many or as long.
pub fn copy_heads(context: Context<'_>, x: &Rows, from: HeadPlaces, out: &mut Rows, to: HeadPlaces) {
    from.check(x);
    to.check(out);
    assert_eq!((from.heads, from.len, x.count()), (to.heads, to.len, out.count()), "heads to copy");
    let out = out.shared();
    for_each_token(context, x.count(), &|t| {
        for head in 0..from.heads {
            // SAFETY: each token's row is touched once.
            let to = unsafe { out.part(t, to.start(head), to.len) };
            to.copy_from_slice(&x.row(t)[from.start(head)..][..from.len]);
        }
    });
}

/// Makes a row of each head of each row: first those of the first head.
///
/// # Panics
/// If there are no such columns.
pub fn split_heads(context: Context<'_>, x: &Rows, from: HeadPlaces, out: &mut Rows) {
    from.check(x);
    let tokens = x.count();
    out.reset(from.heads * tokens, from.len);
    let out = out.shared();
    for_each_token(context, tokens, &|t| {
        for head in 0..from.heads {
            // SAFETY: each head of each token has a row of its own.
            let row = unsafe { out.row(head * tokens + t) };
            row.copy_from_slice(&x.row(t)[from.start(head)..][..from.len]);
        }
    });
}

/// The reverse of [`split_heads`].
///
/// # Panics
/// If there are no such columns, or heads or rows are not as many or as long.
pub fn merge_heads(context: Context<'_>, x: &Rows, out: &mut Rows, to: HeadPlaces) {
    to.check(out);
    let tokens = out.count();
    assert_eq!((x.count(), x.cols()), (to.heads * tokens, to.len), "heads to merge");
    let out = out.shared();
    for_each_token(context, tokens, &|t| {
        for head in 0..to.heads {
            // SAFETY: each token's row is touched once.
            let part = unsafe { out.part(t, to.start(head), to.len) };
            part.copy_from_slice(x.row(head * tokens + t));
        }
    });
}
