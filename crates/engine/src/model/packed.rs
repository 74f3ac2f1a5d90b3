//! Packed weights: made once, kept in a file beside others in a cache folder, mapped from there ever after.
//!
//! Packing rewrites every matrix into the layout of the instruction set's kernels. A small model is packed into memory
//! at every start. A large one is packed into a file, so that the next start is a map and not a conversion, several
//! processes share the memory, and none of it is private.
//!
//! A file is named and checked by a key over what it depends on: this format's version, how the instruction set wants
//! bytes stored, the name, shape, format and length of every matrix, the model file's size and modification time, and
//! samples of the matrices' data. A key that does not match means that the file is made anew. Each kind of bytes has a
//! file of its own, so instruction sets may take turns on one folder.
//!
//! A file is written under a temporary name, which its writer keeps locked, and renamed when whole. A temporary file that
//! nobody holds was left by a process that died, and the next one to pack the model removes it. Where the folder cannot
//! be written or the disk is full, the weights are packed into memory instead.

use super::weights::Plan;
use super::{OpenOptions, Progress};
use crate::gguf::Gguf;
use crate::mmap::{Map, NewFile};
use kernels::layout::Bytes;
use kernels::matrix::{AlignedBytes, Shape};
use kernels::{Isa, Matrix, Pool};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Changes whenever a packed layout does.
const VERSION: u32 = 3;

/// Packed weights up to this size go into memory by default: a file would save nothing.
pub const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// Matrices start on page boundaries of the file.
const ALIGNMENT: usize = 4096;

/// Bytes in front of the first matrix: magic, version, key.
const HEADER_BYTES: usize = ALIGNMENT;
const MAGIC: &[u8; 8] = b"dunlinpk";

/// Sampled places and bytes of a model's data that go into the key.
const SAMPLES: usize = 16;
const SAMPLE_BYTES: usize = 4096;

/// Where the packed weights are.
#[derive(Debug)]
pub enum Outcome {
    /// In memory, because the model is small or no cache folder was given.
    Memory,
    /// Mapped from a file that was there.
    Mapped { path: PathBuf },
    /// Mapped from a file that was just made.
    Created { path: PathBuf },
    /// In memory, because the file could not be made.
    MemoryInstead { path: PathBuf, error: io::Error },
}

/// Packs the plan's matrices, or maps what was packed before.
pub(crate) fn prepare(
    gguf: &Gguf,
    plan: &Plan,
    options: &OpenOptions,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress),
) -> (Vec<Matrix>, Outcome) {
    let Some(folder) =
        options.cache.as_deref().filter(|_| plan.packed_bytes() > options.memory_packed_bytes_max)
    else {
        return (pack_in_memory(gguf, plan, options.isa, pool, progress), Outcome::Memory);
    };
    let key = key(gguf, plan, options.isa);
    let path = folder.join(file_name(gguf, options.isa, &key));
    if let Some(matrices) = map(&path, &key, plan, options.isa) {
        return (matrices, Outcome::Mapped { path });
    }
    match create(gguf, plan, options.isa, pool, &path, &key, progress) {
        Ok(()) => match map(&path, &key, plan, options.isa) {
            Some(matrices) => (matrices, Outcome::Created { path }),
            None => {
                let error = io::Error::other("the file changed right after it was written");
                let matrices = pack_in_memory(gguf, plan, options.isa, pool, progress);
                (matrices, Outcome::MemoryInstead { path, error })
            }
        },
        Err(error) => {
            let matrices = pack_in_memory(gguf, plan, options.isa, pool, progress);
            (matrices, Outcome::MemoryInstead { path, error })
        }
    }
}

/// Where each matrix lies in the file, and the file's length.
fn places(plan: &Plan) -> (Vec<Range<usize>>, usize) {
    let mut end = HEADER_BYTES;
    let ranges = plan
        .entries
        .iter()
        .map(|entry| {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + packed_bytes(entry.shape);
            start..end
        })
        .collect();
    (ranges, end.next_multiple_of(ALIGNMENT))
}

fn packed_bytes(shape: Shape) -> usize {
    shape.packed_bytes().expect("checked when planned")
}

fn source<'a>(gguf: &'a Gguf, tensor: &str) -> &'a [u8] {
    gguf.tensor(tensor).expect("checked when planned").data
}

fn pack_in_memory(
    gguf: &Gguf,
    plan: &Plan,
    isa: Isa,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress),
) -> Vec<Matrix> {
    let mut report = Reporter::new(plan, progress);
    let pack = |entry: &super::weights::Entry| {
        let mut storage = AlignedBytes::zeroed(packed_bytes(entry.shape));
        entry.shape.pack(isa, pool, source(gguf, &entry.tensor), storage.as_mut_slice());
        report.add(entry.shape);
        let len = packed_bytes(entry.shape);
        Matrix::new(entry.shape, isa, Arc::new(storage), 0..len).expect("the storage has the packed length")
    };
    plan.entries.iter().map(pack).collect()
}

fn map(path: &Path, key: &[u8; 32], plan: &Plan, isa: Isa) -> Option<Vec<Matrix>> {
    let file = Map::open(path).ok()?;
    let (ranges, len) = places(plan);
    if file.bytes().len() != len || file.bytes()[..HEADER_BYTES] != header(key)[..] {
        return None;
    }
    let file: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(file);
    let matrix = |(entry, range): (&super::weights::Entry, Range<usize>)| {
        Matrix::new(entry.shape, isa, Arc::clone(&file), range)
    };
    plan.entries.iter().zip(ranges).map(matrix).collect()
}

fn create(
    gguf: &Gguf,
    plan: &Plan,
    isa: Isa,
    pool: &Pool,
    path: &Path,
    key: &[u8; 32],
    progress: &mut dyn FnMut(Progress),
) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a cache file has a folder"))?;
    fs::create_dir_all(folder)?;
    remove_abandoned(folder, path);
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write(gguf, plan, isa, pool, &temporary, key, progress).and_then(|file| {
        fs::rename(&temporary, path)?;
        // Until here the file was locked, so that nobody takes it for abandoned.
        drop(file);
        Ok(())
    });
    match written {
        Ok(()) => remove_stale(folder, path),
        Err(_) => remove_unlocked(&temporary),
    }
    written
}

fn write(
    gguf: &Gguf,
    plan: &Plan,
    isa: Isa,
    pool: &Pool,
    path: &Path,
    key: &[u8; 32],
    progress: &mut dyn FnMut(Progress),
) -> io::Result<NewFile> {
    let (ranges, len) = places(plan);
    let mut file = NewFile::create(path, len as u64)?;
    let bytes = file.bytes_mut();
    let mut report = Reporter::new(plan, progress);
    for (entry, range) in plan.entries.iter().zip(ranges) {
        entry.shape.pack(isa, pool, source(gguf, &entry.tensor), &mut bytes[range]);
        report.add(entry.shape);
    }
    bytes[..HEADER_BYTES].copy_from_slice(&header(key));
    // The rename must not reach the disk before the contents do.
    file.sync()?;
    Ok(file)
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
fn remove_unlocked(path: &Path) {
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

fn header(key: &[u8; 32]) -> Vec<u8> {
    let mut header = vec![0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..48].copy_from_slice(key);
    header
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
fn key(gguf: &Gguf, plan: &Plan, isa: Isa) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(VERSION.to_le_bytes());
    hash.update([u8::from(isa.bytes() == Bytes::Unsigned)]);
    hash.update(gguf.len_bytes().to_le_bytes());
    let modified =
        gguf.path().and_then(|p| fs::metadata(p).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    hash.update(modified.map_or(0, |d| d.as_nanos()).to_le_bytes());
    for entry in &plan.entries {
        let data = source(gguf, &entry.tensor);
        hash.update(format!("{} {:?} {}\n", entry.tensor, entry.shape, data.len()));
    }
    // Samples from all over the data tell apart files that were made in the same tick of the clock.
    for i in 0..SAMPLES {
        let entry = &plan.entries[i * plan.entries.len() / SAMPLES];
        let data = source(gguf, &entry.tensor);
        let start = data.len() / 2;
        hash.update(&data[start..data.len().min(start + SAMPLE_BYTES)]);
    }
    hash.finalize().into()
}

struct Reporter<'a> {
    progress: &'a mut dyn FnMut(Progress),
    state: Progress,
}

impl<'a> Reporter<'a> {
    fn new(plan: &Plan, progress: &'a mut dyn FnMut(Progress)) -> Self {
        let state = Progress { packed_bytes: 0, total_bytes: plan.packed_bytes() };
        progress(state);
        Self { progress, state }
    }

    fn add(&mut self, shape: Shape) {
        self.state.packed_bytes += packed_bytes(shape) as u64;
        (self.progress)(self.state);
    }
}
