//! What is kept of sequences: one pool of pages of keys and values, shared by all, for every layer alike, and for each
//! sequence a slot in the layers whose state has a fixed size.

use crate::model::Model;
use kernels::attention::{KvFormat, KvLayer, KvShape, PAGE};
use kernels::recurrent::{StateLayer, StateShape};

/// The memory of all layers, and which of it is free. Pages that were never used cost nothing.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// The page freed last is taken first, so that memory once touched is used again.
    free: Vec<u32>,
    free_slots: Vec<u32>,
    pages: usize,
    page_bytes: u64,
    sequences: usize,
    slot_bytes: u64,
}

/// The memory of one layer.
#[derive(Debug)]
pub(crate) enum LayerCache {
    Kv(KvLayer),
    State(StateLayer),
}

/// The memory of one sequence in a [`KvCache`], which gave it and takes it back.
#[derive(Debug)]
pub struct Sequence {
    pages: Vec<u32>,
    slot: u32,
}

impl Sequence {
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot as usize
    }
}

impl KvCache {
    /// A cache for `tokens` positions, rounded up to whole pages, of up to `sequences` sequences.
    pub fn new(model: &Model, format: KvFormat, tokens: usize, sequences: usize) -> Self {
        let pages = tokens.div_ceil(PAGE).max(1);
        let layer = |(kv, state): (Option<KvShape>, Option<StateShape>)| match (kv, state) {
            (Some(shape), _) => LayerCache::Kv(KvLayer::new(shape)),
            (None, Some(shape)) => LayerCache::State(StateLayer::new(shape)),
            (None, None) => unreachable!("a layer that mixes positions keeps something of them"),
        };
        let shapes: Vec<_> = model.cache_shapes(format, pages, sequences).collect();
        let page_bytes = shapes.iter().filter_map(|(kv, _)| kv.map(|kv| kv.page_bytes() as u64)).sum();
        let slot_bytes = shapes.iter().filter_map(|(_, s)| s.map(|s| s.slot_bytes() as u64)).sum();
        Self {
            layers: shapes.into_iter().map(layer).collect(),
            free: (0..pages as u32).rev().collect(),
            free_slots: (0..sequences as u32).rev().collect(),
            pages,
            page_bytes,
            sequences,
            slot_bytes,
        }
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Room for a sequence without any pages; `None` where there are as many sequences as the cache is for.
    pub fn open(&mut self) -> Option<Sequence> {
        Some(Sequence { pages: Vec::new(), slot: self.free_slots.pop()? })
    }

    /// Takes pages until those of `sequence` hold `tokens` positions; `false`, taking none, where there are not enough.
    pub fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> bool {
        let missing = tokens.div_ceil(PAGE).saturating_sub(sequence.pages.len());
        if missing > self.free.len() {
            return false;
        }
        sequence.pages.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes a sequence's memory back.
    pub fn close(&mut self, sequence: Sequence) {
        self.free.extend(sequence.pages.into_iter().rev());
        self.free_slots.push(sequence.slot);
    }

    pub fn tokens_capacity(&self) -> usize {
        self.pages * PAGE
    }

    pub fn bytes_capacity(&self) -> u64 {
        self.pages as u64 * self.page_bytes + self.sequences as u64 * self.slot_bytes
    }
}
