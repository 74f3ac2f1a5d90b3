//! A cache on disk, so that a conversation goes on after a restart where it was.
//!
//! A file is the identity of what it belongs to (model, formats, version), a table of pages with their adapters and tokens,
//! and the bytes of each page and state under a checksum. It is written under a temporary name and renamed when whole, and
//! read only if its identity is this cache's. Where a page's bytes are damaged, what was read before it is kept and no more
//! is read.

use super::prefixes::{Entry, NodeId, Unused};
use super::{KvCache, LayerCache};
use crate::model::packed::remove_unlocked;
use crate::model::{AdaptersKey, Model};
use crate::request::TokenId;
use kernels::attention::PAGE;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"dunlinkv";

/// Changes whenever this format does, or the layout of pages.
const VERSION: u32 = 2;

/// The most pages of a file; more than any memory holds.
const PAGES_MAX: usize = 1 << 24;

/// The most bytes of a table.
const HEAD_BYTES_MAX: u64 = 1 << 30;

/// The longest name of a model, and how much of one is kept.
const NAME_BYTES_MAX: usize = 256;

/// Why a saved cache is not used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a saved cache")]
    NotOne,
    #[error("it has version {found} and this program reads version {VERSION}")]
    Version { found: u32 },
    #[error("it belongs to {found} and this is {own}")]
    Foreign { found: String, own: String },
    #[error("it is damaged")]
    Damaged,
}

impl SavedError {
    /// Whether there just is no file.
    pub fn is_missing(&self) -> bool {
        matches!(self, SavedError::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// What a saved cache belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Over everything that pages depend on.
    pub(crate) key: [u8; 32],
    /// For people.
    pub(crate) name: String,
}

/// Removes temporary files of `path` whose writers are gone; best effort.
fn remove_abandoned(folder: &Path, path: &Path) {
    let of_path = |other: &PathBuf| {
        other.file_stem().is_some_and(|stem| Path::new(stem).file_stem() == path.file_stem())
    };
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let temporary = files.filter(|other| other.extension().is_some_and(|end| end == "tmp") && of_path(other));
    temporary.for_each(|other| remove_unlocked(&other));
}

impl KvCache {
    /// Writes what is kept of sequences of `model` in a context of so many tokens to `path`, up to `bytes_max` of it, the most
    /// recently used first. Returns how many tokens that are. What processes left that died while they wrote it is removed.
    ///
    /// # Errors
    /// If the folder or the disk does not take it. What was begun is removed, and what was there before stays.
    pub fn save(
        &self,
        model: &Model,
        context_tokens: usize,
        path: &Path,
        bytes_max: u64,
    ) -> io::Result<usize> {
        let identity = &model.cache_identity(self.format, context_tokens);
        let mut entries = self.prefixes.entries();
        let mut bytes = 0;
        let of_entry = |entry: &Entry<'_>| self.page_bytes + entry.states.len() as u64 * self.slot_bytes;
        let fits = entries.iter().take_while(|entry| {
            bytes += of_entry(entry);
            bytes <= bytes_max
        });
        let fits = fits.count();
        entries.truncate(fits);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
            remove_abandoned(folder, path);
        }
        let partial = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = self.write(&partial, identity, &entries).and_then(|()| fs::rename(&partial, path));
        written.inspect_err(|_| {
            // What was begun is no use; if this fails too, nothing more can be done.
            let _ = fs::remove_file(&partial);
        })?;
        Ok(entries.iter().map(|entry| entry.tokens.len()).sum())
    }

    fn write(&self, path: &Path, identity: &Identity, entries: &[Entry<'_>]) -> io::Result<()> {
        let file = File::create(path)?;
        // Where files cannot be locked, those that were left behind stay.
        let _ = file.try_lock();
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        let mut head = Vec::new();
        put_identity(&mut head, identity);
        put_u32(&mut head, entries.len());
        for entry in entries {
            put_u32(&mut head, entry.parent.map_or(0, |parent| parent + 1));
            if entry.parent.is_none() {
                head.extend(entry.adapters.0);
            }
            put_u32(&mut head, entry.tokens.len());
            entry.tokens.iter().for_each(|&token| head.extend(token.to_le_bytes()));
            put_u32(&mut head, entry.states.len());
            entry.states.iter().for_each(|&(after, _)| put_u32(&mut head, after));
        }
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(&XxHash3_64::oneshot(&head).to_le_bytes())?;
        out.write_all(&head)?;
        for entry in entries {
            let mut hash = XxHash3_64::new();
            let mut put = |bytes: &[u8]| {
                std::hash::Hasher::write(&mut hash, bytes);
                out.write_all(bytes)
            };
            self.for_each_part(entry.page, entry.states, &mut put)?;
            let hash = std::hash::Hasher::finish(&hash);
            out.write_all(&hash.to_le_bytes())?;
        }
        out.flush()?;
        drop(out);
        // The rename must not reach the disk before the contents do.
        file.sync_all()
    }

    /// The bytes of a page and of states, layer by layer.
    fn for_each_part(
        &self,
        page: u32,
        states: &[(usize, u32)],
        put: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut floats = Vec::new();
        for layer in &self.layers {
            match layer {
                LayerCache::Kv(kv) => kv.page(page as usize).into_iter().try_for_each(&mut *put)?,
                LayerCache::State(layer) => {
                    for part in states.iter().flat_map(|&(_, slot)| layer.slot(slot as usize)) {
                        floats.clear();
                        floats.extend(part.iter().flat_map(|x| x.to_le_bytes()));
                        put(&floats)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes what was saved of sequences of `model` at `path`, as much as there is room for. Returns how many tokens that are.
    ///
    /// # Errors
    /// If it is of another model, format or version, or cannot be read at all. Nothing of it is taken then.
    pub fn load(&mut self, model: &Model, context_tokens: usize, path: &Path) -> Result<usize, SavedError> {
        let identity = &model.cache_identity(self.format, context_tokens);
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut input = BufReader::with_capacity(1 << 20, file);
        let mut front = [0; 28];
        input.read_exact(&mut front).map_err(|_| SavedError::NotOne)?;
        if &front[..8] != MAGIC {
            return Err(SavedError::NotOne);
        }
        let version = u32::from_le_bytes(front[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(SavedError::Version { found: version });
        }
        let number = |at: usize| u64::from_le_bytes(front[at..at + 8].try_into().expect("8 bytes"));
        let (head_len, checksum) = (number(12), number(20));
        if head_len > len.min(HEAD_BYTES_MAX) {
            return Err(SavedError::Damaged);
        }
        let mut head = vec![0; head_len as usize];
        input.read_exact(&mut head).map_err(|_| SavedError::Damaged)?;
        if XxHash3_64::oneshot(&head) != checksum {
            return Err(SavedError::Damaged);
        }
        let mut reader = Head(&head);
        let found = reader.identity().ok_or(SavedError::Damaged)?;
        if found.key != identity.key {
            let other = if found.name == identity.name { "another state of " } else { "" };
            return Err(SavedError::Foreign {
                found: format!("{other}{}", found.name),
                own: identity.name.clone(),
            });
        }
        let records = reader.records().ok_or(SavedError::Damaged)?;
        Ok(self.read_pages(&records, &mut input))
    }

    /// Reads pages until the room or the file ends, or one is damaged, and returns the tokens of those that were read.
    fn read_pages(&mut self, records: &[Record], input: &mut impl Read) -> usize {
        let mut nodes: Vec<NodeId> = Vec::new();
        let mut tokens = 0;
        for record in records {
            let mut sequence = self.open();
            if self.free.len() < 2 || !self.reserve(&mut sequence, 1) {
                self.discard(sequence);
                break;
            }
            for &after in &record.states {
                sequence.states.extend(self.slot_to_keep_of_free().map(|slot| (after, slot)));
            }
            let (page, states) = (sequence.pages[0], sequence.states.clone());
            if !self.read_page(page, &states, record.states.len(), input).unwrap_or(false) {
                self.discard(sequence);
                break;
            }
            let mut unused = Unused::default();
            let parent = record.parent.map(|parent| nodes[parent]);
            nodes.push(self.prefixes.insert_page(
                (record.adapters, parent),
                &record.tokens,
                page,
                &states,
                &mut unused,
            ));
            self.take_back(unused);
            self.free_slots.push(sequence.slot);
            tokens += record.tokens.len();
        }
        // The first of them is the most recently used.
        nodes.into_iter().rev().for_each(|node| self.prefixes.touch(node));
        tokens
    }

    /// A slot for a state that is kept, where none has to be forgotten for it.
    fn slot_to_keep_of_free(&mut self) -> Option<u32> {
        if self.kept == self.kept_max { None } else { self.slot_to_keep() }
    }

    /// Reads a page and the first of its states; the others are passed over. Says whether its bytes are what was written.
    fn read_page(
        &mut self,
        page: u32,
        states: &[(usize, u32)],
        saved_states: usize,
        input: &mut impl Read,
    ) -> io::Result<bool> {
        let mut hash = XxHash3_64::new();
        let mut bytes = Vec::new();
        for layer in &mut self.layers {
            match layer {
                LayerCache::Kv(kv) => {
                    for part in kv.page_mut(page as usize) {
                        input.read_exact(part)?;
                        std::hash::Hasher::write(&mut hash, part);
                    }
                }
                LayerCache::State(layer) => {
                    let lens = layer.slot(0).map(<[f32]>::len);
                    for i in 0..saved_states {
                        for (part, len) in lens.into_iter().enumerate() {
                            bytes.resize(len * 4, 0);
                            input.read_exact(&mut bytes)?;
                            std::hash::Hasher::write(&mut hash, &bytes);
                            let Some(&(_, slot)) = states.get(i) else { continue };
                            let floats =
                                bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four));
                            let out = &mut *layer.slot_mut(slot as usize)[part];
                            out.iter_mut().zip(floats).for_each(|(out, x)| *out = x);
                        }
                    }
                }
            }
        }
        let mut checksum = [0; 8];
        input.read_exact(&mut checksum)?;
        Ok(std::hash::Hasher::finish(&hash) == u64::from_le_bytes(checksum))
    }
}

fn put_u32(out: &mut Vec<u8>, value: usize) {
    out.extend(u32::try_from(value).expect("counts are small").to_le_bytes());
}

fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    out.extend(identity.key);
    let end =
        (0..=identity.name.len().min(NAME_BYTES_MAX)).rev().find(|&end| identity.name.is_char_boundary(end));
    let name = &identity.name[..end.unwrap_or(0)];
    put_u32(out, name.len());
    out.extend(name.as_bytes());
}

/// A page as the table has it.
struct Record {
    adapters: AdaptersKey,
    parent: Option<usize>,
    tokens: Vec<TokenId>,
    /// After how many of its tokens there are states.
    states: Vec<usize>,
}

/// What is left of the table.
struct Head<'a>(&'a [u8]);

impl Head<'_> {
    fn bytes(&mut self, len: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn count(&mut self, max: usize) -> Option<usize> {
        usize::try_from(self.u32()?).ok().filter(|&count| count <= max)
    }

    fn identity(&mut self) -> Option<Identity> {
        let key = self.bytes(32)?.try_into().ok()?;
        let len = self.count(NAME_BYTES_MAX)?;
        let name = str::from_utf8(self.bytes(len)?).ok()?.to_owned();
        Some(Identity { key, name })
    }

    /// Every page: one with a page before it comes after it, and only a full one has others after it.
    fn records(&mut self) -> Option<Vec<Record>> {
        let count = self.count(PAGES_MAX)?;
        let mut records: Vec<Record> = Vec::new();
        for i in 0..count {
            let parent = self.count(i)?.checked_sub(1);
            if parent.is_some_and(|parent| records[parent].tokens.len() < PAGE) {
                return None;
            }
            let adapters = match parent {
                Some(parent) => records[parent].adapters,
                None => AdaptersKey(self.bytes(32)?.try_into().ok()?),
            };
            let len = self.count(PAGE)?;
            let tokens: Option<Vec<TokenId>> = (0..len).map(|_| self.u32()).collect();
            let states = self.count(PAGE)?;
            let states: Option<Vec<usize>> = (0..states).map(|_| self.count(len)).collect();
            let record = Record { adapters, parent, tokens: tokens?, states: states? };
            if record.tokens.is_empty() || record.states.contains(&0) {
                return None;
            }
            records.push(record);
        }
        Some(records)
    }
}
