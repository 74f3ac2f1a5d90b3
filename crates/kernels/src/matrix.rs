//! A weight matrix, packed or as it lies in a model file, and how it is packed.

use crate::format::Format;
use crate::isa::Isa;
use crate::layout::{self, Bytes, Layout, STRIP};
use crate::pool::Pool;
use crate::shared::SharedMut;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// `rows` x `cols` weights. The bytes belong to whoever made it: memory of its own or a mapped file. They are in a packed
/// layout or *plain*: GGUF rows, which are packed strip by strip whenever they are multiplied. Both give the same bits.
#[derive(Clone)]
pub struct Matrix {
    shape: Shape,
    bytes: Bytes,
    storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    plain: bool,
}

/// The shape of a matrix to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
}

impl Shape {
    /// Bytes of the packed matrix; `None` where a row is not a whole number of blocks or the size overflows.
    pub fn packed_bytes(self) -> Option<usize> {
        self.format.row_bytes(self.cols)?;
        self.rows.div_ceil(STRIP).checked_mul(Layout::of(self.format).strip_bytes(self.cols))
    }

    /// Bytes of the GGUF rows; `None` where a row is not a whole number of blocks or the size overflows.
    pub fn plain_bytes(self) -> Option<usize> {
        self.rows.checked_mul(self.format.row_bytes(self.cols)?)
    }

    /// Strips of the packed matrix.
    pub fn strips(self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// Bytes of each of them.
    pub fn strip_bytes(self) -> usize {
        Layout::of(self.format).strip_bytes(self.cols)
    }

    /// Whether [`Matrix::slice`] can make a matrix of these rows.
    pub fn can_be_cut(self, rows: &Range<usize>) -> bool {
        let is_whole = |row: usize| row.is_multiple_of(STRIP) || row == self.rows;
        rows.start <= rows.end && rows.end <= self.rows && is_whole(rows.start) && is_whole(rows.end)
    }

    /// Packs the GGUF rows in `source` into `out`, in parallel.
    ///
    /// # Panics
    /// If `source` or `out` has the wrong length.
    pub fn pack(self, isa: Isa, pool: &Pool, source: &[u8], out: &mut [u8]) {
        self.pack_strips(isa, pool, source, 0..self.strips(), out);
    }

    /// Packs some of the strips of the matrix whose GGUF rows are `source` into `out`, in parallel.
    ///
    /// # Panics
    /// If there are no such strips, or `source` or `out` has the wrong length.
    pub fn pack_strips(self, isa: Isa, pool: &Pool, source: &[u8], strips: Range<usize>, out: &mut [u8]) {
        let strip_bytes = self.strip_bytes();
        assert!(strips.end <= self.strips(), "strips {strips:?} of {self:?}");
        assert_eq!(Some(source.len()), self.plain_bytes(), "source length of {self:?}");
        assert_eq!(out.len(), strips.len() * strip_bytes, "packed length of {strips:?} of {self:?}");
        let out = SharedMut::new(out);
        pool.run(strips.len(), &|i| {
            // SAFETY: each item writes its own strip.
            let out = unsafe { out.slice(i * strip_bytes, strip_bytes) };
            self.pack_strip(isa.bytes(), source, strips.start + i, out);
        });
    }

    fn pack_strip(self, bytes: Bytes, source: &[u8], strip: usize, out: &mut [u8]) {
        let row_bytes = self.format.row_bytes(self.cols).expect("a row is a whole number of blocks");
        let rows = strip * STRIP..self.rows.min((strip + 1) * STRIP);
        let mut views: [&[u8]; STRIP] = [&[]; STRIP];
        for (view, row) in views.iter_mut().zip(rows.clone()) {
            *view = &source[row * row_bytes..][..row_bytes];
        }
        layout::pack_strip(self.format, bytes, &views[..rows.len()], self.cols, out);
    }
}

thread_local! {
    /// Where a thread packs strips of plain matrices, kept from one multiplication to the next. As many as a
    /// multiplication uses at once, each as large as the largest item was (see `ops::strips_per_item`).
    static SCRATCH: RefCell<Vec<AlignedBytes>> = const { RefCell::new(Vec::new()) };
}

impl Matrix {
    /// The packed matrix that [`Shape::pack`] wrote into `storage[range]` for `isa`; `None` where the range is outside
    /// of the storage or has the wrong length.
    pub fn new(
        shape: Shape,
        isa: Isa,
        storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Option<Matrix> {
        let len = (*storage).as_ref().get(range.clone())?.len();
        let fits = Some(len) == shape.packed_bytes();
        fits.then(|| Matrix { shape, bytes: isa.bytes(), storage, range, plain: false })
    }

    /// The matrix whose GGUF rows are `storage[range]`, to be multiplied by `isa` without packing all of it; `None` where
    /// the range is outside of the storage or has the wrong length.
    pub fn plain(
        shape: Shape,
        isa: Isa,
        storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Option<Matrix> {
        let len = (*storage).as_ref().get(range.clone())?.len();
        let fits = shape.packed_bytes().is_some() && Some(len) == shape.plain_bytes();
        fits.then(|| Matrix { shape, bytes: isa.bytes(), storage, range, plain: true })
    }

    /// Packs GGUF rows into memory of the matrix's own.
    ///
    /// # Panics
    /// If `source` has the wrong length or a row is not a whole number of blocks.
    pub fn packed(shape: Shape, isa: Isa, pool: &Pool, source: &[u8]) -> Matrix {
        let len = shape.packed_bytes().expect("a row is a whole number of blocks");
        let mut storage = AlignedBytes::zeroed(len);
        shape.pack(isa, pool, source, storage.as_mut_slice());
        Matrix::new(shape, isa, Arc::new(storage), 0..len).expect("the storage has the packed length")
    }

    /// Some of the rows, as a matrix over the same bytes; `None` where there are no such rows, or a strip is shared with
    /// others.
    pub fn slice(&self, rows: Range<usize>) -> Option<Matrix> {
        if !self.shape.can_be_cut(&rows) {
            return None;
        }
        let shape = Shape { rows: rows.len(), ..self.shape };
        let (before, len) = match self.plain {
            true => (Shape { rows: rows.start, ..shape }.plain_bytes()?, shape.plain_bytes()?),
            false => (Shape { rows: rows.start, ..shape }.packed_bytes()?, shape.packed_bytes()?),
        };
        let start = self.range.start + before;
        Some(Matrix { shape, range: start..start + len, ..self.clone() })
    }

    pub fn layout(&self) -> Layout {
        Layout::of(self.shape.format)
    }

    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    pub(crate) fn bytes_kind(&self) -> Bytes {
        self.bytes
    }

    pub(crate) fn strips(&self) -> usize {
        self.shape.strips()
    }

    pub(crate) fn strip_bytes(&self) -> usize {
        self.shape.strip_bytes()
    }

    /// Whether strips are packed each time they are used.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Calls `f` with the packed strips from `start` on: as they lie, or packed just now into memory of the thread's.
    pub(crate) fn with_strips(&self, start: usize, count: usize, f: impl FnOnce(&[u8])) {
        let strip_bytes = self.strip_bytes();
        let stored = &(*self.storage).as_ref()[self.range.clone()];
        if !self.plain {
            return f(&stored[start * strip_bytes..][..count * strip_bytes]);
        }
        let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_else(|| AlignedBytes::zeroed(0));
        if scratch.len < count * strip_bytes {
            scratch = AlignedBytes::zeroed(count * strip_bytes);
        }
        let packed = &mut scratch.as_mut_slice()[..count * strip_bytes];
        for i in 0..count {
            self.shape.pack_strip(
                self.bytes,
                stored,
                start + i,
                &mut packed[i * strip_bytes..][..strip_bytes],
            );
        }
        f(packed);
        SCRATCH.with_borrow_mut(|all| all.push(scratch));
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = if self.plain { ", plain" } else { "" };
        write!(f, "Matrix({:?}, {} x {}{plain})", self.layout(), self.rows(), self.cols())
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed bytes that start on a cache line, as the packed layouts like them.
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBytes {
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); len.div_ceil(64)], len }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the lines are plain bytes without padding, and hold at least `len` of them.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as in `as_mut_slice`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}
