//! Packed files: matrices in the layout of the kernels, made once, kept in a cache folder and mapped ever after.
//!
//! A file is named and checked by a key over what it depends on: this format's version, how the instruction set wants
//! bytes stored, the name, shape, format and length of every matrix, the model file's size and modification time, and
//! samples of the matrices' data. A key that does not match means that the file is made anew. Each kind of bytes has a
//! file of its own, so instruction sets may take turns on one folder.
//!
//! Every byte of a file is under a checksum: its body, the matrices and the padding between them, in chunks of 256 KiB,
//! and its front, which holds the key and the chunks' checksums, by itself. Opening checks the front; what has not been
//! through [`PackedFile::verify`] may be computed with, but nothing that was computed may be shown. Chunks that hold nothing but
//! experts are left to [`Deferred`]: they are verified when a token is first sent to one of them, and never read before.
//!
//! A file is written under a temporary name, which its writer keeps locked, and renamed when whole. A temporary file that
//! nobody holds was left by a process that died, and the next one to pack the model removes it. What it refuses to do:
//! decide when to pack, or what to compute with meanwhile (that is `store`).

use super::config::Config;
use super::weights::{self, Entry, Plan};
use super::{ModelError, Progress};
use crate::gguf::Gguf;
use crate::mmap::{Map, NewFile};
use kernels::layout::Bytes;
use kernels::matrix::Shape;
use kernels::{Isa, Matrix, Pool};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;
use twox_hash::XxHash3_64;

/// Changes whenever this format or a packed layout does.
const VERSION: u32 = 5;

/// Packed weights up to this size go into memory by default: a file would save nothing.
pub const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// The body and each matrix start on page boundaries of the file.
const ALIGNMENT: usize = 4096;

const MAGIC: &[u8; 8] = b"dunlinpk";
/// The front is the magic, the version, 4 bytes of nothing, the key, 16 bytes of nothing, a checksum for each chunk of the
/// body, nothing up to a page boundary, and in its last 8 bytes a checksum of all that.
const TABLE_START: usize = 64;
const CHECKSUM_BYTES: usize = 8;

/// Bytes of the body under one checksum: small beside an expert's matrix, so that little of its neighbours is read with it, and
/// large enough that 8 bytes each are no size.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that are packed between two looks at whether to go on: a second of the slowest disks.
const SEGMENT_BYTES: usize = 16 << 20;

/// Names that a new file may find taken by processes with the same id, as those in containers of their own often have.
const TEMPORARIES_MAX: usize = 64;

/// Sampled places and bytes of a model's data that go into the key.
const SAMPLES: usize = 16;
const SAMPLE_BYTES: usize = 4096;

/// What is wrong with a packed file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("it cannot be opened: {0}")]
    Open(#[source] io::Error),
    #[error("it has {found} bytes and should have {wanted}")]
    Length { found: u64, wanted: u64 },
    #[error("its front (bytes 0 to {end}) is damaged or another model's")]
    Front { end: u64 },
    #[error("the {len} bytes from byte {start} on do not match their checksum")]
    Checksum { start: u64, len: u64 },
    #[error("the {len} bytes from byte {start} on cannot be read: {source}")]
    Unreadable { start: u64, len: u64, source: io::Error },
    #[error("its check was not finished")]
    Stopped,
}

impl Fault {
    /// Whether there just is no file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Fault::Open(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Whether there is a file, and it is not what it should be.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Fault::Open(_) | Fault::Stopped)
    }

    fn start(&self) -> u64 {
        match self {
            Fault::Checksum { start, .. } | Fault::Unreadable { start, .. } => *start,
            _ => 0,
        }
    }
}

/// How packing is watched and ended.
pub(crate) struct Work<'a> {
    pub(crate) progress: &'a mut dyn FnMut(Progress),
    /// Raised to end the work at its next segment, by an error of kind `Interrupted`.
    pub(crate) stop: &'a AtomicBool,
    /// Bring every segment to the disk before the next: little is left to wait for when the work is ended, and others
    /// keep their memory and their turn at the disk.
    pub(crate) gentle: bool,
}

impl Work<'_> {
    pub(crate) fn go_on(&self) -> io::Result<()> {
        match self.stop.load(Ordering::Acquire) {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "packing was stopped")),
            false => Ok(()),
        }
    }
}

/// The packed file of a model for one kind of bytes: where it is and what it must hold, whether or not it is there.
#[derive(Clone, Debug)]
pub struct PackedFile {
    path: PathBuf,
    key: [u8; 32],
    isa: Isa,
    plan: Arc<Plan>,
    places: Places,
}

/// Where everything lies in a file.
#[derive(Clone, Debug)]
struct Places {
    /// Length of the front, which is where the body starts.
    front: usize,
    matrices: Vec<Range<usize>>,
    chunks: usize,
    /// The file's length.
    len: usize,
}

impl PackedFile {
    /// The file of a model in the folder of packed files.
    ///
    /// # Errors
    /// If the model is of a kind that is not known, or not whole.
    pub fn new(gguf: &Gguf, isa: Isa, folder: &Path) -> Result<PackedFile, ModelError> {
        let (plan, _) = weights::plan(gguf, &Config::read(gguf)?)?;
        Ok(PackedFile::of_plan(gguf, Arc::new(plan), isa, folder))
    }

    pub(crate) fn of_plan(gguf: &Gguf, plan: Arc<Plan>, isa: Isa, folder: &Path) -> PackedFile {
        let key = key(gguf, &plan, isa);
        let path = folder.join(file_name(gguf, isa, &key));
        let places = Places::of(&plan);
        PackedFile { path, key, isa, plan, places }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file.
    pub fn len_bytes(&self) -> u64 {
        self.places.len as u64
    }

    /// Bytes of all packed matrices.
    pub fn packed_bytes(&self) -> u64 {
        self.plan.packed_bytes()
    }

    /// Reads the whole file on all threads of `pool` and says whether it is what it should be.
    ///
    /// # Errors
    /// What is wrong with it, of several damages the first; [`Fault::Stopped`] soon after `stop` was raised.
    pub fn check(&self, pool: &Pool, stop: &AtomicBool) -> Result<(), Fault> {
        self.verify(&self.open()?, pool, stop)
    }

    /// Makes the file. Where there is a sound one, made by another process meanwhile, that one is left in its place. The
    /// folder is made where it is missing; files of earlier states of the model are removed from it. `progress` hears
    /// of every segment.
    ///
    /// # Errors
    /// If the folder or the disk does not take it; of kind `Interrupted` soon after `stop` was raised. What was begun is
    /// removed.
    pub fn make(
        &self,
        gguf: &Gguf,
        pool: &Pool,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Progress),
    ) -> io::Result<()> {
        self.create(gguf, pool, &mut Work { progress, stop, gentle: false }).map(drop)
    }

    /// Maps the file and checks its length and its front.
    pub(crate) fn open(&self) -> Result<Map, Fault> {
        let map = Map::open(&self.path).map_err(Fault::Open)?;
        let Places { front, len, .. } = self.places;
        if map.bytes().len() != len {
            return Err(Fault::Length { found: map.bytes().len() as u64, wanted: len as u64 });
        }
        map.populate(0..front).map_err(|source| Fault::Unreadable { start: 0, len: front as u64, source })?;
        let (start, checksum) = map.bytes()[..front].split_at(front - CHECKSUM_BYTES);
        let sound = start[..TABLE_START] == self.header() && checksum == checksum_of(start);
        if sound { Ok(map) } else { Err(Fault::Front { end: front as u64 }) }
    }

    /// Reads the body of the mapped file and compares its checksums. This also brings it into memory.
    pub(crate) fn verify(&self, map: &Map, pool: &Pool, stop: &AtomicBool) -> Result<(), Fault> {
        let all: Vec<usize> = (0..self.places.chunks).collect();
        self.verify_chunks(&all, map, pool, stop)
    }

    /// The same for what every token reads.
    pub(crate) fn verify_all_but_experts(
        &self,
        map: &Map,
        pool: &Pool,
        stop: &AtomicBool,
    ) -> Result<(), Fault> {
        let of_experts = self.expert_chunks();
        let others: Vec<usize> = (0..of_experts.len()).filter(|&i| !of_experts[i]).collect();
        self.verify_chunks(&others, map, pool, stop)
    }

    /// By chunk: whether nothing is in it but experts.
    fn expert_chunks(&self) -> Vec<bool> {
        let mut experts = vec![false; self.places.chunks];
        let mut others = vec![false; self.places.chunks];
        for (entry, range) in self.plan.entries.iter().zip(&self.places.matrices) {
            let of = if entry.used < entry.parts { &mut experts } else { &mut others };
            of[self.places.chunks_of(range)].fill(true);
        }
        experts.into_iter().zip(others).map(|(expert, other)| expert && !other).collect()
    }

    /// Where rows of a matrix lie in the file.
    ///
    /// # Panics
    /// If the rows are not whole strips of the matrix.
    fn rows(&self, entry: usize, rows: &Range<usize>) -> Range<usize> {
        let (shape, start) = (self.plan.entries[entry].shape, self.places.matrices[entry].start);
        let at = |rows: usize| start + packed_bytes(Shape { rows, ..shape });
        at(rows.start)..at(rows.end)
    }

    fn verify_chunks(
        &self,
        chunks: &[usize],
        map: &Map,
        pool: &Pool,
        stop: &AtomicBool,
    ) -> Result<(), Fault> {
        let first: Mutex<Option<Fault>> = Mutex::new(None);
        pool.run(chunks.len(), &|i| {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(fault) = self.verify_chunk(map, chunks[i]) {
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|first| fault.start() < first.start()) {
                    *first = Some(fault);
                }
            }
        });
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) => Err(fault),
            None if stop.load(Ordering::Relaxed) => Err(Fault::Stopped),
            None => Ok(()),
        }
    }

    fn verify_chunk(&self, map: &Map, i: usize) -> Result<(), Fault> {
        let range = self.places.chunk(i);
        let (start, len) = (range.start as u64, range.len() as u64);
        map.populate(range.clone()).map_err(|source| Fault::Unreadable { start, len, source })?;
        let wanted = &map.bytes()[self.places.checksum(i)];
        if checksum_of(&map.bytes()[range]) == wanted { Ok(()) } else { Err(Fault::Checksum { start, len }) }
    }

    /// The matrices of the mapped file, in the plan's order.
    pub(crate) fn matrices(&self, map: &Arc<Map>) -> Vec<Matrix> {
        let matrix = |(entry, range): (&Entry, &Range<usize>)| {
            let storage: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::<Map>::clone(map);
            Matrix::new(entry.shape, self.isa, storage, range.clone()).expect("the length was checked")
        };
        self.plan.entries.iter().zip(&self.places.matrices).map(matrix).collect()
    }

    /// Makes the file and maps it. Where another process has made it meanwhile, that one is verified and mapped.
    pub(crate) fn create(&self, gguf: &Gguf, pool: &Pool, work: &mut Work<'_>) -> io::Result<Made> {
        let folder = self.path.parent().ok_or_else(|| io::Error::other("a cache file has a folder"))?;
        fs::create_dir_all(folder)?;
        remove_abandoned(folder, &self.path);
        let (temporary, file) = self.new_file()?;
        let made = self.write(file, gguf, pool, work).and_then(|written| match written {
            Written::Here(file) => Ok(Made::Here(file.install(&temporary, &self.path)?)),
            Written::Elsewhere(map) => Ok(Made::Elsewhere(map)),
        });
        match &made {
            Ok(Made::Here(_)) => remove_stale(folder, &self.path),
            _ => remove_unlocked(&temporary),
        }
        made
    }

    fn new_file(&self) -> io::Result<(PathBuf, NewFile)> {
        let mut number = 0;
        loop {
            let path = self.path.with_extension(format!("{}.{number}.tmp", std::process::id()));
            match NewFile::create(&path, self.places.len as u64) {
                Ok(file) => return Ok((path, file)),
                Err(error) => {
                    let taken = [io::ErrorKind::AlreadyExists, io::ErrorKind::WouldBlock];
                    if !taken.contains(&error.kind()) {
                        remove_unlocked(&path);
                        return Err(error);
                    }
                    number += 1;
                    if number == TEMPORARIES_MAX {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn write(&self, mut file: NewFile, gguf: &Gguf, pool: &Pool, work: &mut Work<'_>) -> io::Result<Written> {
        let mut progress = Progress { packed_bytes: 0, total_bytes: self.packed_bytes() };
        (work.progress)(progress);
        let mut checksums = Vec::with_capacity(self.places.chunks);
        for (entry, place) in self.plan.entries.iter().zip(&self.places.matrices) {
            let source = source(gguf, entry);
            for (strips, part) in segments(entry.shape) {
                work.go_on()?;
                if let Some(map) = self.made_elsewhere(pool, work.stop) {
                    return Ok(Written::Elsewhere(map));
                }
                let range = place.start + part.start..place.start + part.end;
                let out = &mut file.bytes_mut()[range.clone()];
                entry.shape.pack_strips(self.isa, pool, source, strips, out);
                self.add_checksums(&mut checksums, &file.bytes()[..range.end], pool);
                if work.gentle {
                    file.sync_range(range)?;
                }
                progress.packed_bytes += part.len() as u64;
                (work.progress)(progress);
            }
        }
        self.add_checksums(&mut checksums, file.bytes(), pool);
        let front = &mut file.bytes_mut()[..self.places.front];
        front[..TABLE_START].copy_from_slice(&self.header());
        for (i, checksum) in checksums.into_iter().enumerate() {
            front[self.places.checksum(i)].copy_from_slice(&checksum);
        }
        let (start, checksum) = front.split_at_mut(self.places.front - CHECKSUM_BYTES);
        checksum.copy_from_slice(&checksum_of(start));
        Ok(Written::Here(file))
    }

    /// A sound file that is there under the name; one that is not sound is removed.
    fn made_elsewhere(&self, pool: &Pool, stop: &AtomicBool) -> Option<Map> {
        let sound = self.open().and_then(|map| self.verify(&map, pool, stop).map(|()| map));
        sound.inspect_err(|fault| self.remove(fault)).ok()
    }

    /// Removes a file that is there and damaged; best effort.
    pub(crate) fn remove(&self, fault: &Fault) {
        if fault.is_damage() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Adds the checksums of the chunks that are whole in `written`, the file up to where it has been written.
    fn add_checksums(&self, checksums: &mut Vec<[u8; CHECKSUM_BYTES]>, written: &[u8], pool: &Pool) {
        let done = checksums.len();
        let whole = (done..self.places.chunks).take_while(|&i| self.places.chunk(i).end <= written.len());
        let new: Vec<AtomicU64> = whole.map(|_| AtomicU64::new(0)).collect();
        pool.run(new.len(), &|i| {
            let checksum = checksum_of(&written[self.places.chunk(done + i)]);
            new[i].store(u64::from_le_bytes(checksum), Ordering::Relaxed);
        });
        checksums.extend(new.into_iter().map(|checksum| checksum.into_inner().to_le_bytes()));
    }

    fn header(&self) -> [u8; TABLE_START] {
        let mut header = [0; TABLE_START];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..48].copy_from_slice(&self.key);
        header
    }
}

/// The chunks of a mapped file that are verified when they are first computed with: those of experts.
#[derive(Debug)]
pub(crate) struct Deferred {
    file: PackedFile,
    map: Arc<Map>,
    /// By chunk: whether it was verified, or is by others.
    sound: Vec<AtomicBool>,
}

impl Deferred {
    /// `None` where there is no such chunk.
    pub(crate) fn new(file: PackedFile, map: Arc<Map>) -> Option<Deferred> {
        let of_experts = file.expert_chunks();
        of_experts.contains(&true).then(|| Deferred {
            sound: of_experts.into_iter().map(|of_experts| AtomicBool::new(!of_experts)).collect(),
            file,
            map,
        })
    }

    /// Verifies what is still to be verified of rows of matrices, by their place in the plan.
    pub(crate) fn verify<'r>(
        &self,
        rows: impl Iterator<Item = &'r (usize, Range<usize>)>,
        pool: &Pool,
    ) -> Result<(), Fault> {
        let chunks = rows.flat_map(|(entry, rows)| {
            let range = self.file.rows(*entry, rows);
            self.file.places.chunks_of(&range)
        });
        let mut new: Vec<usize> = chunks.filter(|&i| !self.sound[i].load(Ordering::Relaxed)).collect();
        if new.is_empty() {
            return Ok(());
        }
        new.sort_unstable();
        new.dedup();
        self.file.verify_chunks(&new, &self.map, pool, &AtomicBool::new(false))?;
        new.into_iter().for_each(|i| self.sound[i].store(true, Ordering::Relaxed));
        Ok(())
    }
}

/// A packed file that was made, mapped. Its bytes are verified.
pub(crate) enum Made {
    Here(Map),
    Elsewhere(Map),
}

enum Written {
    Here(NewFile),
    Elsewhere(Map),
}

impl Places {
    fn of(plan: &Plan) -> Places {
        let mut end = 0;
        let mut matrices = Vec::with_capacity(plan.entries.len());
        for entry in &plan.entries {
            let start = usize::next_multiple_of(end, ALIGNMENT);
            end = start + packed_bytes(entry.shape);
            matrices.push(start..end);
        }
        let body = end.next_multiple_of(ALIGNMENT);
        let chunks = body.div_ceil(CHUNK_BYTES);
        let front = (TABLE_START + (chunks + 1) * CHECKSUM_BYTES).next_multiple_of(ALIGNMENT);
        let matrices = matrices.into_iter().map(|range| front + range.start..front + range.end).collect();
        Places { front, matrices, chunks, len: front + body }
    }

    /// The chunks that some of the file's bytes are in.
    fn chunks_of(&self, range: &Range<usize>) -> Range<usize> {
        (range.start - self.front) / CHUNK_BYTES..(range.end - self.front).div_ceil(CHUNK_BYTES)
    }

    /// Chunk `i` of the body.
    fn chunk(&self, i: usize) -> Range<usize> {
        let start = self.front + i * CHUNK_BYTES;
        start..self.len.min(start + CHUNK_BYTES)
    }

    /// Where its checksum is.
    fn checksum(&self, i: usize) -> Range<usize> {
        let start = TABLE_START + i * CHECKSUM_BYTES;
        start..start + CHECKSUM_BYTES
    }
}

fn checksum_of(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    XxHash3_64::oneshot(bytes).to_le_bytes()
}

pub(crate) fn packed_bytes(shape: Shape) -> usize {
    shape.packed_bytes().expect("checked when planned")
}

pub(crate) fn source<'a>(gguf: &'a Gguf, entry: &Entry) -> &'a [u8] {
    gguf.tensor(&entry.tensor).expect("checked when planned").data
}

/// The parts in which a matrix is packed: strips, and the bytes of the packed matrix that they are.
pub(crate) fn segments(shape: Shape) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let (all, bytes) = (shape.strips(), shape.strip_bytes());
    let step = (SEGMENT_BYTES / bytes.max(1)).max(1);
    (0..all).step_by(step).map(move |start| {
        let end = all.min(start + step);
        (start..end, start * bytes..end * bytes)
    })
}

/// Removes packed files of earlier states of the same model; best effort.
fn remove_stale(folder: &Path, path: &Path) {
    for other in files_beside(folder, path, ".packed") {
        let _ = fs::remove_file(other);
    }
}

/// Removes what processes that died left of packing the same model; best effort.
fn remove_abandoned(folder: &Path, path: &Path) {
    for other in files_beside(folder, path, ".tmp") {
        remove_unlocked(&other);
    }
}

/// Removes a temporary file unless its writer is at work. A lock ends with its process, however that ends.
pub(crate) fn remove_unlocked(path: &Path) {
    if let Ok(file) = fs::File::open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

/// The other files of the model and kind of bytes that `path` belongs to, with this ending.
fn files_beside(folder: &Path, path: &Path, ending: &str) -> Vec<PathBuf> {
    let name_of = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let model_of = |name: &str| name.rsplit_once('-').map(|(model, _)| model.to_owned());
    let name = name_of(path);
    let model = model_of(&name);
    let beside = |other: &PathBuf| {
        let other = name_of(other);
        other != name && other.ends_with(ending) && model_of(&other) == model
    };
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(beside).collect()
}

/// `<model path>-<s or u>-<key>.packed`, path and key hashed; s and u for signed and unsigned bytes.
fn file_name(gguf: &Gguf, isa: Isa, key: &[u8; 32]) -> String {
    let path = gguf.path().map(|p| fs::canonicalize(p).unwrap_or_else(|_| p.to_owned())).unwrap_or_default();
    let path = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let bytes = match isa.bytes() {
        Bytes::Signed => "s",
        Bytes::Unsigned => "u",
    };
    format!("{}-{bytes}-{}.packed", hex(&path[..8]), hex(&key[..12]))
}

/// A digest of everything that the packed bytes depend on.
pub(crate) fn key(gguf: &Gguf, plan: &Plan, isa: Isa) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(VERSION.to_le_bytes());
    hash.update([u8::from(isa.bytes() == Bytes::Unsigned)]);
    hash.update(gguf.len_bytes().to_le_bytes());
    let modified =
        gguf.path().and_then(|p| fs::metadata(p).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    hash.update(modified.map_or(0, |d| d.as_nanos()).to_le_bytes());
    for entry in &plan.entries {
        let len = source(gguf, entry).len();
        hash.update(format!("{} {:?} {len}\n", entry.tensor, entry.shape));
    }
    // Samples from all over the data tell apart files that were made in the same tick of the clock.
    for i in 0..SAMPLES {
        let data = source(gguf, &plan.entries[i * plan.entries.len() / SAMPLES]);
        let start = data.len() / 2;
        hash.update(&data[start..data.len().min(start + SAMPLE_BYTES)]);
    }
    hash.finalize().into()
}
