//! A mutable slice that several threads of a pool write in different places.

use std::marker::PhantomData;

/// Pointer and length of a slice borrowed mutably for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose contract forbids overlap between threads.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// No two slices that live at the same time overlap.
    ///
    /// # Panics
    /// If the range is outside of the slice.
    #[allow(clippy::mut_from_ref, reason = "the contract above is what a borrow would check")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start}..+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion, unaliased by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// A pointer to element `at`; whoever follows it answers for overlap.
    pub(crate) fn pointer(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "{at} of {}", self.len);
        self.start.wrapping_add(at)
    }
}
