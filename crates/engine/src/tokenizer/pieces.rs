//! All spellings of a vocabulary in one piece of memory, and the table that finds a spelling's id.

/// Strings one after the other: no allocation per string.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    /// Where each string ends; the one before it ends where it starts.
    ends: Vec<u32>,
}

impl Arena {
    pub(super) fn with_capacity(strings: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(strings) }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// Adds a string; `None` once the whole would pass 4 GiB.
    pub(super) fn push(&mut self, string: &[u8]) -> Option<u32> {
        self.push_with(|bytes| bytes.extend_from_slice(string))
    }

    /// Adds the string that `write` appends.
    pub(super) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Option<u32> {
        write(&mut self.bytes);
        let end = u32::try_from(self.bytes.len()).ok()?;
        let id = u32::try_from(self.ends.len()).ok()?;
        self.ends.push(end);
        Some(id)
    }
}

/// An open-addressed table from spelling to id. The arena owns the spellings.
#[derive(Debug)]
pub(super) struct PieceTable {
    slots: Vec<Slot>,
    used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    id: u32,
}

const FREE: u32 = u32::MAX;

impl PieceTable {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { slots: vec![Slot { hash: 0, id: FREE }; entries * 3 / 2 + 8], used: 0 }
    }

    #[inline]
    pub(super) fn find(&self, arena: &Arena, spelling: &[u8]) -> Option<u32> {
        let hash = hash(spelling);
        let mut at = bucket(hash, self.slots.len());
        loop {
            let slot = self.slots[at];
            if slot.id == FREE {
                return None;
            }
            if slot.hash == hash && arena.get(slot.id) == Some(spelling) {
                return Some(slot.id);
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    /// The id of the spelling with this hash, without a look at the spelling: half the time of [`PieceTable::find`]. Two
    /// spellings that meet by chance are one in 2^31 vocabularies; who makes them meet spoils only the own vocabulary.
    #[inline]
    pub(super) fn find_hash(&self, hash: u64) -> Option<u32> {
        let mut at = bucket(hash, self.slots.len());
        loop {
            let slot = self.slots[at];
            if slot.id == FREE {
                return None;
            }
            if slot.hash == hash {
                return Some(slot.id);
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    /// Adds a spelling; where it is known already, the first id stays and the answer is no.
    pub(super) fn insert(&mut self, arena: &Arena, spelling: &[u8], id: u32) -> bool {
        if (self.used + 1) * 5 > self.slots.len() * 4 {
            self.grow(arena);
        }
        let hash = hash(spelling);
        let mut at = bucket(hash, self.slots.len());
        while self.slots[at].id != FREE {
            if self.slots[at].hash == hash && arena.get(self.slots[at].id) == Some(spelling) {
                return false;
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        self.slots[at] = Slot { hash, id };
        self.used += 1;
        true
    }

    fn grow(&mut self, arena: &Arena) {
        let mut larger = Self::with_capacity(self.slots.len() * 2);
        for slot in self.slots.iter().filter(|slot| slot.id != FREE) {
            larger.insert(arena, arena.get(slot.id).unwrap_or_default(), slot.id);
        }
        *self = larger;
    }
}

/// What two neighbours become, and how early.
#[derive(Clone, Copy, Debug)]
struct PairSlot {
    left: u32,
    right: u32,
    rank: u32,
    merged: u32,
}

/// An open-addressed table from a pair of ids to its merge.
#[derive(Debug)]
pub(super) struct PairTable {
    slots: Vec<PairSlot>,
}

impl PairTable {
    /// A table for at most `entries` pairs.
    pub(super) fn with_capacity(entries: usize) -> Self {
        let free = PairSlot { left: FREE, right: 0, rank: 0, merged: 0 };
        Self { slots: vec![free; entries * 4 / 3 + 8] }
    }

    /// The rank and the id of what the pair becomes.
    #[inline]
    pub(super) fn find(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let mut at = bucket(pair_hash(left, right), self.slots.len());
        loop {
            let slot = self.slots[at];
            if slot.left == left && slot.right == right {
                return Some((slot.rank, slot.merged));
            }
            if slot.left == FREE {
                return None;
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    /// Adds a pair; where it is known already, the first rank stays. Never call it for more than the capacity.
    pub(super) fn insert(&mut self, left: u32, right: u32, rank: u32, merged: u32) {
        let mut at = bucket(pair_hash(left, right), self.slots.len());
        while self.slots[at].left != FREE {
            if self.slots[at].left == left && self.slots[at].right == right {
                return;
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        self.slots[at] = PairSlot { left, right, rank, merged };
    }
}

/// Spreads the upper half of a hash over `len` buckets (Lemire, "A fast alternative to the modulo reduction").
#[inline]
fn bucket(hash: u64, len: usize) -> usize {
    (((hash >> 32) * len as u64) >> 32) as usize
}

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

#[inline]
fn pair_hash(left: u32, right: u32) -> u64 {
    fold((u64::from(left) << 32 | u64::from(right)) ^ 0xD6E8_FEB8_6659_FD93)
}

/// Not against attackers: a hostile vocabulary can only slow its own loading down.
#[inline]
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    fold(state ^ u64::from_le_bytes(last))
}

#[inline]
fn fold(value: u64) -> u64 {
    let product = u128::from(value ^ ODD) * u128::from(0xE703_7ED1_A0B4_28DB_u64);
    (product as u64) ^ (product >> 64) as u64
}
