//! A packed weight matrix and how it is packed.

use crate::format::Format;
use crate::isa::Isa;
use crate::layout::{self, Bytes, Layout, STRIP};
use crate::pool::Pool;
use crate::shared::SharedMut;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// `rows` x `cols` weights in a packed layout. The bytes belong to whoever made it: memory of its own or a mapped file.
#[derive(Clone)]
pub struct Matrix {
    layout: Layout,
    bytes: Bytes,
    rows: usize,
    cols: usize,
    storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
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

    /// Packs the GGUF rows in `source` into `out`, in parallel.
    ///
    /// # Panics
    /// If `source` or `out` has the wrong length.
    pub fn pack(self, isa: Isa, pool: &Pool, source: &[u8], out: &mut [u8]) {
        let row_bytes = self.format.row_bytes(self.cols).expect("a row is a whole number of blocks");
        assert_eq!(source.len(), self.rows * row_bytes, "source length of {self:?}");
        assert_eq!(Some(out.len()), self.packed_bytes(), "packed length of {self:?}");
        let strip_bytes = Layout::of(self.format).strip_bytes(self.cols);
        let out = SharedMut::new(out);
        pool.run(self.rows.div_ceil(STRIP), &|s| {
            let rows = s * STRIP..self.rows.min((s + 1) * STRIP);
            let mut strip: [&[u8]; STRIP] = [&[]; STRIP];
            for (slot, row) in strip.iter_mut().zip(rows.clone()) {
                *slot = &source[row * row_bytes..][..row_bytes];
            }
            // SAFETY: each item writes its own strip.
            let out = unsafe { out.slice(s * strip_bytes, strip_bytes) };
            layout::pack_strip(self.format, isa.bytes(), &strip[..rows.len()], self.cols, out);
        });
    }
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
        let bytes = (*storage).as_ref().get(range.clone())?;
        if Some(bytes.len()) != shape.packed_bytes() {
            return None;
        }
        let Shape { format, rows, cols } = shape;
        Some(Matrix { layout: Layout::of(format), bytes: isa.bytes(), rows, cols, storage, range })
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

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn len_bytes(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn bytes_kind(&self) -> Bytes {
        self.bytes
    }

    pub(crate) fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    pub(crate) fn strip_bytes(&self) -> usize {
        self.layout.strip_bytes(self.cols)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &(*self.storage).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({:?}, {} x {})", self.layout, self.rows, self.cols)
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
