//! What is kept of sequences: one pool of pages of keys and values, shared by all, for every layer alike, and slots in the
//! layers whose state has a fixed size.
//!
//! What a sequence leaves behind stays as long as nobody needs the room: another that begins with the same tokens takes the
//! pages as they are, copies the one in whose middle it leaves, and computes only the rest. States can be continued only from
//! where one was kept, so some are: see [`KvCache::keep_state`].

mod prefixes;
mod saved;

pub(crate) use saved::Identity;
pub use saved::SavedError;

use crate::model::{AdaptersKey, Model};
use crate::request::TokenId;
use kernels::attention::{KvFormat, KvLayer, KvShape, PAGE};
use kernels::recurrent::{StateLayer, StateShape};
use prefixes::{Prefixes, Unused};
use std::ops::Range;

/// States that a cache for so many sequences has room for: of each its own and one beside it while a step guesses, and those
/// that are kept.
pub fn state_slots(sequences: usize) -> usize {
    2 * sequences + states_kept(sequences)
}

fn states_kept(sequences: usize) -> usize {
    2 * sequences + 2
}

/// The memory of all layers, and which of it is free. Pages that were never used cost nothing.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// Each layer's place among them: some attend to what another keeps, and layers that are never needed at once may have the
    /// same.
    places: Vec<usize>,
    /// The page freed last is taken first, so that memory once touched is used again.
    free: Vec<u32>,
    /// By page: how many sequences use it, and the tree of prefixes.
    uses: Vec<u32>,
    prefixes: Prefixes,
    free_slots: Vec<u32>,
    /// Slots of states that are kept, of `states_kept` that may be.
    kept: usize,
    kept_max: usize,
    has_states: bool,
    format: KvFormat,
    page_bytes: u64,
    slots: usize,
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
    /// Where the next step puts the state, if not in its place.
    beside: Option<u32>,
    /// Tokens at its beginning that need not be computed.
    known: usize,
    /// Slots of states after so many tokens.
    states: Vec<(usize, u32)>,
    /// What it is computed with.
    adapters: AdaptersKey,
}

impl Sequence {
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Where its state is.
    pub(crate) fn slot(&self) -> usize {
        self.slot as usize
    }

    /// Where its state will be after the next step.
    pub(crate) fn next_slot(&self) -> usize {
        self.beside.unwrap_or(self.slot) as usize
    }

    /// Tokens at its beginning that were known when it was opened.
    pub fn known(&self) -> usize {
        self.known
    }
}

impl KvCache {
    /// A cache for `tokens` positions, rounded up to whole pages, of up to `sequences` sequences.
    pub fn new(model: &Model, format: KvFormat, tokens: usize, sequences: usize) -> Self {
        // One more than may be in use, for when a page is copied and all others are.
        let pages = tokens.div_ceil(PAGE).max(1) + 1;
        let kept_max = states_kept(sequences);
        let slots = state_slots(sequences);
        let layer = |(kv, state): (Option<KvShape>, Option<StateShape>)| match (kv, state) {
            (Some(shape), _) => LayerCache::Kv(KvLayer::new(shape)),
            (None, Some(shape)) => LayerCache::State(StateLayer::new(shape)),
            (None, None) => unreachable!("a layer that mixes positions keeps something of them"),
        };
        let shapes: Vec<_> = model.cache_shapes(format, pages, slots).collect();
        let page_bytes = shapes.iter().filter_map(|(kv, _)| kv.map(|kv| kv.page_bytes() as u64)).sum();
        let slot_bytes = shapes.iter().filter_map(|(_, s)| s.map(|s| s.slot_bytes() as u64)).sum();
        let layers: Vec<_> = shapes.into_iter().map(layer).collect();
        Self {
            has_states: layers.iter().any(|layer| matches!(layer, LayerCache::State(_))),
            places: model.cache_places(),
            layers,
            free: (0..pages as u32).rev().collect(),
            uses: vec![0; pages],
            prefixes: Prefixes::default(),
            free_slots: (0..slots as u32).rev().collect(),
            kept: 0,
            kept_max,
            format,
            page_bytes,
            slots,
            slot_bytes,
        }
    }

    /// A cache in which nothing stays when the next layer begins, for texts that go through a model whole: room for `tokens`
    /// positions of up to `sequences` of them at once, which all layers of one shape use in turn.
    ///
    /// # Panics
    /// If the model has layers that keep states, or that share keys and values.
    pub fn passing(model: &Model, format: KvFormat, tokens: usize, sequences: usize) -> Self {
        let mut cache = Self::new(model, format, tokens, sequences);
        assert!(!cache.has_states, "states do not pass");
        assert!(cache.places.len() == cache.layers.len(), "what is shared does not pass");
        let shapes: Vec<_> = model.cache_shapes(format, cache.uses.len(), 1).collect();
        let first = |shape| shapes.iter().position(|other| *other == shape).expect("a shape of its own");
        let firsts: Vec<usize> = shapes.iter().map(|&shape| first(shape)).collect();
        let mut kept: Vec<usize> = firsts.clone();
        kept.sort_unstable();
        kept.dedup();
        let mut layer = 0..;
        cache.layers.retain(|_| kept.contains(&layer.next().expect("no end")));
        cache.places = firsts.iter().map(|first| kept.binary_search(first).expect("kept")).collect();
        cache.page_bytes =
            kept.iter().filter_map(|&layer| shapes[layer].0.map(|kv| kv.page_bytes() as u64)).sum();
        cache
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[self.places[layer]]
    }

    /// Room for a sequence that knows nothing and has no pages yet.
    ///
    /// # Panics
    /// If there are more sequences than the cache is for.
    pub fn open(&mut self) -> Sequence {
        let slot = self.free_slots.pop().expect("no more sequences than the cache is for");
        let adapters = AdaptersKey::default();
        Sequence { pages: Vec::new(), slot, beside: None, known: 0, states: Vec::new(), adapters }
    }

    /// Room for a sequence that begins with `tokens`, is computed with `adapters`, and may grow to `positions`. What is known
    /// of all of its tokens but the last, which has to be computed for what follows it, is there already. `None` where too
    /// many pages are in use.
    ///
    /// # Panics
    /// As [`KvCache::open`].
    pub fn resume(
        &mut self,
        tokens: &[TokenId],
        adapters: AdaptersKey,
        positions: usize,
    ) -> Option<Sequence> {
        let computed_anyway = tokens.len().saturating_sub(1);
        let found = self.prefixes.find(adapters, &tokens[..computed_anyway], self.has_states);
        let mut sequence = Sequence { adapters, ..self.open() };
        // What was found may not be forgotten to make room.
        let donor = found.partial.map(|(page, _)| page);
        found.pages.iter().chain(&donor).for_each(|&page| self.uses[page as usize] += 1);
        sequence.pages.clone_from(&found.pages);
        let spare = usize::from(donor.is_none());
        let has_room = self.reserve_but(&mut sequence, positions, spare);
        if has_room {
            if let Some(donor) = donor {
                let own = sequence.pages[found.pages.len()] as usize;
                self.copy_page(donor as usize, own);
            }
            if let Some(state) = found.state {
                let own = sequence.slot();
                self.copy_state(state as usize, own);
            }
            sequence.known = found.tokens();
        }
        donor.into_iter().for_each(|page| self.release(page));
        if !has_room {
            self.discard(sequence);
            return None;
        }
        if self.free.is_empty() {
            self.forget();
        }
        Some(sequence)
    }

    /// Takes pages until those of `sequence` hold `positions`; `false`, taking none, where there are not enough.
    pub fn reserve(&mut self, sequence: &mut Sequence, positions: usize) -> bool {
        self.reserve_but(sequence, positions, 1)
    }

    /// As [`KvCache::reserve`], leaving `spare` pages free.
    fn reserve_but(&mut self, sequence: &mut Sequence, positions: usize, spare: usize) -> bool {
        let missing = positions.div_ceil(PAGE).saturating_sub(sequence.pages.len());
        if missing == 0 {
            return true;
        }
        let wanted = missing + spare;
        if wanted > self.free.len() {
            // A page that a sequence uses is used with all before it, so those of the tree alone can all be forgotten.
            let uses = &self.uses;
            let of_tree_alone = self.prefixes.count(|page| uses[page as usize] == 1);
            if wanted > self.free.len() + of_tree_alone {
                return false;
            }
        }
        while wanted > self.free.len() && self.forget() {}
        assert!(wanted <= self.free.len(), "as many pages were counted");
        let taken = self.free.drain(self.free.len() - missing..).rev();
        for page in taken {
            self.uses[page as usize] = 1;
            sequence.pages.push(page);
        }
        true
    }

    /// Forgets the page that was not used for longest, if there is one that nobody uses.
    fn forget(&mut self) -> bool {
        let uses = &self.uses;
        match self.prefixes.forget(|page| uses[page as usize] == 1) {
            Some(unused) => {
                self.take_back(unused);
                true
            }
            None => false,
        }
    }

    /// Lets the next step put a sequence's state beside the one that is there, which stays until [`KvCache::settle`]. Does
    /// nothing for models without such states.
    pub(crate) fn step_beside(&mut self, sequence: &mut Sequence) {
        if self.has_states && sequence.beside.is_none() {
            sequence.beside = Some(self.free_slots.pop().expect("each sequence may have two"));
        }
    }

    /// Of two states of a sequence, keeps the one after the last step, or the one before it.
    pub(crate) fn settle(&mut self, sequence: &mut Sequence, after: bool) {
        if let Some(beside) = sequence.beside.take() {
            let other = if after { std::mem::replace(&mut sequence.slot, beside) } else { beside };
            self.free_slots.push(other);
        }
    }

    /// Keeps the states of a sequence as they are after `computed` tokens, so that others can go on from there. Does nothing
    /// for models without such states, nor where all that may be kept is wanted by running sequences.
    pub fn keep_state(&mut self, sequence: &mut Sequence, computed: usize) {
        if !self.has_states || computed == 0 || sequence.states.iter().any(|&(after, _)| after == computed) {
            return;
        }
        if let Some(slot) = self.slot_to_keep() {
            self.copy_state(sequence.slot(), slot as usize);
            sequence.states.push((computed, slot));
        }
    }

    fn slot_to_keep(&mut self) -> Option<u32> {
        if self.kept == self.kept_max {
            // Nothing is taken that somebody else has.
            return self.prefixes.forget_state();
        }
        self.kept += 1;
        Some(self.free_slots.pop().expect("there are slots for all that is kept"))
    }

    /// Takes a sequence's memory back and keeps what is in it, as far as it was computed: `tokens`.
    pub fn close(&mut self, mut sequence: Sequence, tokens: &[TokenId]) {
        if tokens.is_empty() {
            return self.discard(sequence);
        }
        self.settle(&mut sequence, false);
        self.keep_state(&mut sequence, tokens.len());
        let beyond = sequence.pages.split_off(tokens.len().div_ceil(PAGE));
        beyond.into_iter().for_each(|page| self.release(page));
        let unused = self.prefixes.insert(sequence.adapters, tokens, &sequence.pages, &sequence.states);
        self.take_back(unused);
        self.free_slots.push(sequence.slot);
    }

    /// Takes some of a sequence's pages out of its middle; those after them become its own, so that what they hold may be
    /// changed. `false` where there is no room for that: the sequence can only be discarded then.
    pub(crate) fn cut(&mut self, sequence: &mut Sequence, pages: Range<usize>) -> bool {
        let start = pages.start;
        let states = std::mem::take(&mut sequence.states).into_iter().map(|(_, slot)| slot).collect();
        let cut = sequence.pages.drain(pages).collect();
        self.take_back(Unused { pages: cut, slots: states });
        for page in &mut sequence.pages[start..] {
            if self.uses[*page as usize] == 1 {
                continue;
            }
            while self.free.is_empty() && self.forget() {}
            let Some(own) = self.free.pop() else { return false };
            self.uses[own as usize] = 1;
            self.copy_page(*page as usize, own as usize);
            let shared = std::mem::replace(page, own);
            self.release(shared);
        }
        true
    }

    /// Takes a sequence's memory back and forgets what is in it.
    pub fn discard(&mut self, mut sequence: Sequence) {
        self.settle(&mut sequence, false);
        let Sequence { pages, slot, states, .. } = sequence;
        self.take_back(Unused { pages, slots: states.into_iter().map(|(_, slot)| slot).collect() });
        self.free_slots.push(slot);
    }

    /// Gives up pages' uses and slots of kept states.
    fn take_back(&mut self, unused: Unused) {
        self.kept -= unused.slots.len();
        self.free_slots.extend(unused.slots);
        unused.pages.into_iter().rev().for_each(|page| self.release(page));
    }

    fn release(&mut self, page: u32) {
        let uses = &mut self.uses[page as usize];
        *uses -= 1;
        if *uses == 0 {
            self.free.push(page);
        }
    }

    fn copy_page(&mut self, from: usize, to: usize) {
        for layer in &mut self.layers {
            if let LayerCache::Kv(kv) = layer {
                kv.copy_page(from, to);
            }
        }
    }

    fn copy_state(&mut self, from: usize, to: usize) {
        for layer in &mut self.layers {
            if let LayerCache::State(state) = layer {
                state.copy_slot(from, to);
            }
        }
    }

    /// Whether some layers keep states of fixed size.
    pub(crate) fn has_states(&self) -> bool {
        self.has_states
    }

    pub fn tokens_capacity(&self) -> usize {
        (self.uses.len() - 1) * PAGE
    }

    /// Tokens that pages in use have room for, those that are only kept among them.
    pub fn tokens_held(&self) -> usize {
        (self.uses.len() - self.free.len()) * PAGE
    }

    pub fn bytes_capacity(&self) -> u64 {
        (self.uses.len() as u64 - 1) * self.page_bytes + self.slots as u64 * self.slot_bytes
    }
}
