//! The key-value cache: one pool of pages shared by all sequences, for every layer alike.

use crate::model::Model;
use kernels::attention::{KvFormat, KvLayer, PAGE};

/// Keys and values of all layers, and which pages are free. Pages that were never used cost no memory.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
    /// The page freed last is taken first, so that memory once touched is used again.
    free: Vec<u32>,
    pages: usize,
    page_bytes: u64,
}

impl KvCache {
    /// A cache for `tokens` positions, rounded up to whole pages.
    pub fn new(model: &Model, format: KvFormat, tokens: usize) -> Self {
        let pages = tokens.div_ceil(PAGE).max(1);
        let shape = model.kv_shape(format, pages);
        Self {
            layers: (0..model.layers()).map(|_| KvLayer::new(shape)).collect(),
            free: (0..pages as u32).rev().collect(),
            pages,
            page_bytes: shape.page_bytes() as u64 * model.layers() as u64,
        }
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [KvLayer] {
        &mut self.layers
    }

    /// Takes pages until `pages` hold `tokens` positions; `false`, taking none, where there are not enough.
    pub fn reserve(&mut self, pages: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = tokens.div_ceil(PAGE).saturating_sub(pages.len());
        if missing > self.free.len() {
            return false;
        }
        pages.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Gives pages back.
    pub fn release(&mut self, pages: &mut Vec<u32>) {
        self.free.extend(pages.drain(..).rev());
    }

    pub fn tokens_capacity(&self) -> usize {
        self.pages * PAGE
    }

    pub fn bytes_capacity(&self) -> u64 {
        self.pages as u64 * self.page_bytes
    }
}
