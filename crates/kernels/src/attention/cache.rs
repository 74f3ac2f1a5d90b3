//! Where keys and values are: formats, shapes, and the memory of one layer.

use super::{HEAD_DIM_MAX, PAGE};
use crate::format::GROUP;
use crate::layout::{Layout, STRIP};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// How the elements of a cache are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// As computed; for comparing engines.
    F32,
    #[default]
    F16,
    BF16,
    /// 8 bits with an f16 scale for each 32 dimensions of a key or value: half the memory of `F16`.
    Q8_0,
}

impl KvFormat {
    pub const ALL: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::BF16, KvFormat::Q8_0];

    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::BF16 => "bf16",
            KvFormat::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one element without its scale.
    pub(super) const fn element_bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::F16 | KvFormat::BF16 => 2,
            KvFormat::Q8_0 => 1,
        }
    }

    /// Heads are filled up to a multiple of this many dimensions.
    const fn dim_multiple(self) -> usize {
        match self {
            KvFormat::Q8_0 => GROUP,
            _ => STRIP,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        KvFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known: Vec<_> = KvFormat::ALL.iter().map(|format| format.name()).collect();
            format!("no cache format is called '{name}'; known are {}", known.join(", "))
        })
    }
}

/// The shape of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub format: KvFormat,
    pub pages: usize,
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl KvShape {
    /// Dimensions of a stored key of a quantized cache, the ones that fill it up included.
    pub(super) fn key_dims(self) -> usize {
        self.key_dim.next_multiple_of(self.format.dim_multiple())
    }

    /// Dimensions of a stored value, the ones that fill it up included.
    pub(super) fn value_dims(self) -> usize {
        self.value_dim.next_multiple_of(self.format.dim_multiple())
    }

    /// Bytes of the keys of 16 positions of one head.
    pub(super) fn key_block_bytes(self) -> usize {
        match self.format {
            KvFormat::Q8_0 => Layout::Q8.strip_bytes(self.key_dims()),
            format => STRIP * self.key_dim * format.element_bytes(),
        }
    }

    /// Bytes of the keys of one page of one head.
    pub(super) fn key_bytes(self) -> usize {
        PAGE / STRIP * self.key_block_bytes()
    }

    /// Bytes of the values of one page of one head: rows of elements, then, where there are scales, `PAGE` halves for
    /// each group of dimensions.
    pub(super) fn value_bytes(self) -> usize {
        let scales = match self.format {
            KvFormat::Q8_0 => self.value_dims() / GROUP * PAGE * 2,
            _ => 0,
        };
        self.value_scales() + scales
    }

    /// Where the scales of a page's values start.
    pub(super) fn value_scales(self) -> usize {
        PAGE * self.value_dims() * self.format.element_bytes()
    }

    /// Bytes of one page of one layer, keys and values.
    pub fn page_bytes(self) -> usize {
        self.heads * (self.key_bytes() + self.value_bytes())
    }
}

/// Keys and values of one layer. Memory that no token has touched costs nothing: it is mapped when first written.
#[derive(Debug)]
pub struct KvLayer {
    pub(super) shape: KvShape,
    pub(super) keys: LazyBytes,
    pub(super) values: LazyBytes,
}

/// Zeroes that start on a cache line and are not there before they are touched.
#[derive(Debug)]
pub(super) struct LazyBytes {
    data: Vec<u8>,
    start: usize,
    len: usize,
}

impl LazyBytes {
    fn new(len: usize) -> Self {
        const LINE: usize = 64;
        let data = vec![0; len + LINE];
        let start = data.as_ptr().align_offset(LINE).min(LINE);
        Self { data, start, len }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.data[self.start..][..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.data[self.start..][..self.len]
    }
}

impl KvLayer {
    /// # Panics
    /// If heads are longer than [`HEAD_DIM_MAX`].
    pub fn new(shape: KvShape) -> Self {
        let longest = shape.key_dim.max(shape.value_dim);
        assert!(longest <= HEAD_DIM_MAX, "heads of {longest} are longer than {HEAD_DIM_MAX}");
        let heads = shape.pages * shape.heads;
        let (keys, values) =
            (LazyBytes::new(heads * shape.key_bytes()), LazyBytes::new(heads * shape.value_bytes()));
        Self { shape, keys, values }
    }

    /// Bytes of the keys of one page, and of its values.
    fn page_lens(&self) -> [usize; 2] {
        [self.shape.heads * self.shape.key_bytes(), self.shape.heads * self.shape.value_bytes()]
    }

    /// The bytes of a page: keys, then values. They mean something to this shape and instruction set only.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page(&self, page: usize) -> [&[u8]; 2] {
        let [keys, values] = self.page_lens();
        [&self.keys.as_slice()[page * keys..][..keys], &self.values.as_slice()[page * values..][..values]]
    }

    /// As [`KvLayer::page`], to be written.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page_mut(&mut self, page: usize) -> [&mut [u8]; 2] {
        let [keys, values] = self.page_lens();
        [
            &mut self.keys.as_mut_slice()[page * keys..][..keys],
            &mut self.values.as_mut_slice()[page * values..][..values],
        ]
    }

    /// Makes page `to` the same as page `from`.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn copy_page(&mut self, from: usize, to: usize) {
        let [keys, values] = self.page_lens();
        for (bytes, len) in [(self.keys.as_mut_slice(), keys), (self.values.as_mut_slice(), values)] {
            bytes.copy_within(from * len..(from + 1) * len, to * len);
        }
    }

    /// Where a head's keys lie.
    pub(super) fn keys_of(&self, page: usize, head: usize) -> Range<usize> {
        let start = (page * self.shape.heads + head) * self.shape.key_bytes();
        start..start + self.shape.key_bytes()
    }

    /// Where a head's values lie.
    pub(super) fn values_of(&self, page: usize, head: usize) -> Range<usize> {
        let start = (page * self.shape.heads + head) * self.shape.value_bytes();
        start..start + self.shape.value_bytes()
    }
}
