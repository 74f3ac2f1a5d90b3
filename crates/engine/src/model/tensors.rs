//! The tensors of a file, with a note of what each was read for.

use super::config::{FeedForward, Mixer};
use crate::gguf::Gguf;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Embedding,
    /// What each layer has of each token by itself.
    PerLayer,
    /// The matrix of logits, where it is not the embedding's.
    Output,
    /// With the norms of queries and keys.
    Attention,
    /// Layers that keep a state of fixed size, with the norms in them.
    States,
    FeedForward,
    /// With the router and what all tokens go through.
    Experts,
    /// Norms of the residual stream.
    Norms,
    /// Factors of rotary embeddings.
    Positions,
    /// The layer that looks one token further.
    Predictor,
    /// Nothing: the engine does not read it.
    Unread,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Embedding => "embedding",
            Part::PerLayer => "per layer",
            Part::Output => "output",
            Part::Attention => "attention",
            Part::States => "states",
            Part::FeedForward => "feed-forward",
            Part::Experts => "experts",
            Part::Norms => "norms",
            Part::Positions => "positions",
            Part::Predictor => "predictor",
            Part::Unread => "not used",
        }
    }

    pub(crate) fn of_mixer(mixer: &Mixer) -> Part {
        match mixer {
            Mixer::Attention(_) | Mixer::Latent(_) => Part::Attention,
            Mixer::ShortConvolution(_) | Mixer::Mamba(_) | Mixer::DeltaNet(_) => Part::States,
        }
    }

    pub(crate) fn of_feed_forward(feed_forward: &FeedForward) -> Part {
        match feed_forward {
            FeedForward::Experts(_) | FeedForward::DenseAndExperts { .. } => Part::Experts,
            FeedForward::None | FeedForward::Dense { .. } => Part::FeedForward,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A file that knows which of its tensors were read.
pub(crate) struct Tensors<'a> {
    gguf: &'a Gguf,
    part: Cell<Part>,
    read: RefCell<HashMap<String, Part>>,
}

impl Tensors<'_> {
    pub(crate) fn of(gguf: &Gguf) -> Tensors<'_> {
        Tensors { gguf, part: Cell::new(Part::Unread), read: RefCell::default() }
    }

    /// What is read from here on is for `part`.
    pub(crate) fn reads_for(&self, part: Part) {
        self.part.set(part);
    }

    /// Notes that a tensor is read. What is read twice is for what it was read for first.
    pub(crate) fn note(&self, name: &str) {
        self.read.borrow_mut().entry(name.to_owned()).or_insert(self.part.get());
    }

    /// All that was read under a prefix is for `part`, whatever it was read for.
    pub(crate) fn were_for(&self, prefix: &str, part: Part) {
        let mut read = self.read.borrow_mut();
        read.iter_mut().filter(|(name, _)| name.starts_with(prefix)).for_each(|(_, of)| *of = part);
    }

    pub(crate) fn part_of(&self, name: &str) -> Part {
        self.read.borrow().get(name).copied().unwrap_or(Part::Unread)
    }
}

impl Deref for Tensors<'_> {
    type Target = Gguf;

    fn deref(&self) -> &Gguf {
        self.gguf
    }
}
