//! Buffers of floats, a row for each token.

use crate::layout::STRIP;
use crate::shared::SharedMut;

/// A row-major buffer of floats whose rows have room for whole strips.
#[derive(Debug, Default)]
pub struct Rows {
    data: Vec<f32>,
    count: usize,
    cols: usize,
    stride: usize,
}

impl Clone for Rows {
    fn clone(&self) -> Self {
        let mut rows = Self::default();
        rows.clone_from(self);
        rows
    }

    /// Copies what counts, which may be little of what a buffer once held.
    fn clone_from(&mut self, other: &Self) {
        self.reset(other.count, other.cols);
        let len = other.count * other.stride;
        self.data[..len].copy_from_slice(&other.data[..len]);
    }
}

impl Rows {
    pub fn new(count: usize, cols: usize) -> Self {
        let mut rows = Self::default();
        rows.reset(count, cols);
        rows
    }

    /// Makes it `count` x `cols`; the contents are undefined.
    pub fn reset(&mut self, count: usize, cols: usize) {
        (self.count, self.cols, self.stride) = (count, cols, cols.next_multiple_of(STRIP));
        let len = count * self.stride;
        if self.data.len() < len {
            self.data.resize(len, 0.0);
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.count, "row {i} of {}", self.count);
        &self.data[i * self.stride..][..self.cols]
    }

    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.count, "row {i} of {}", self.count);
        &mut self.data[i * self.stride..][..self.cols]
    }

    /// Drops all rows but these.
    ///
    /// # Panics
    /// If they are not in ascending order, or there is no such row.
    pub fn keep(&mut self, rows: &[usize]) {
        assert!(rows.is_sorted_by(|a, b| a < b), "rows in ascending order");
        for (to, &from) in rows.iter().enumerate() {
            assert!(from < self.count, "row {from} of {}", self.count);
            self.data.copy_within(from * self.stride..(from + 1) * self.stride, to * self.stride);
        }
        self.count = rows.len();
    }

    pub(crate) fn shared(&mut self) -> SharedRows<'_> {
        let len = self.count * self.stride;
        SharedRows { data: SharedMut::new(&mut self.data[..len]), cols: self.cols, stride: self.stride }
    }
}

/// Rows that several threads write in different places.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows<'a> {
    data: SharedMut<'a, f32>,
    cols: usize,
    pub(crate) stride: usize,
}

impl<'a> SharedRows<'a> {
    /// # Safety
    /// No two parts that live at the same time overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract above is what a borrow would check")]
    pub(crate) unsafe fn part(&self, row: usize, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start + len <= self.stride, "{start}..+{len} of {}", self.stride);
        // SAFETY: the caller's contract.
        unsafe { self.data.slice(row * self.stride + start, len) }
    }

    /// # Safety
    /// No two rows that live at the same time overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract above is what a borrow would check")]
    pub(crate) unsafe fn row(&self, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { self.part(row, 0, self.cols) }
    }

    pub(super) fn pointer(&self, row: usize, start: usize) -> *mut f32 {
        self.data.pointer(row * self.stride + start)
    }
}
