//! Memory maps of whole files, the one unsafe corner of this crate.
//!
//! A [`Map`] is read-only and refuses anything but a regular file. It is shared with the page cache: if another process
//! truncates the file while it is mapped, touching the lost pages kills this process with SIGBUS. Model files are
//! replaced by renaming a new file over the old one, never edited in place. [`Map::populate`] asks for pages without that
//! risk.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapMut};
use rustix::io::Errno;

/// A whole file, mapped read-only. Starts on a page boundary.
#[derive(Debug)]
pub struct Map(Mmap);

impl Map {
    /// Maps the whole of `path`. Fails on what is not a regular file and on what the kernel cannot map.
    pub fn open(path: &Path) -> io::Result<Map> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is private to this struct and only ever read through `&[u8]`. That nobody writes to or
        // truncates the file meanwhile is the contract of the module doc, upheld by whoever installs model files; every
        // reader of these bytes checks what it reads and trusts no value to stay the same after a check.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Map(map))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a range into memory and maps it, which touching it would do page by page. Does nothing where the kernel
    /// cannot (Linux before 5.14).
    ///
    /// # Errors
    /// Where the file has no such bytes any more or the disk cannot give them: touching them would be a SIGBUS.
    ///
    /// # Panics
    /// If the range is outside of the map.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.0.len(), "{range:?} of {}", self.0.len());
        let populated = self.0.advise_range(Advice::PopulateRead, range.start, range.len());
        populated.or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::FAULT | Errno::HWPOISON | Errno::IO) => Err(error),
            _ => Ok(()),
        })
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// A new file of a fixed size, mapped for writing.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    map: MmapMut,
}

impl NewFile {
    /// Creates `path` with `len` bytes that are really there: a full disk is an error now and not a SIGBUS later. The
    /// file stays locked until it is installed or dropped, which tells it from one whose writer died.
    ///
    /// # Errors
    /// Of kind `AlreadyExists` where there is such a file, and `WouldBlock` where another process had it between its
    /// making and its locking.
    pub fn create(path: &Path, len: u64) -> io::Result<NewFile> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.try_lock()?;
        let (ours, there) = (file.metadata()?, std::fs::metadata(path));
        if !there.is_ok_and(|there| (ours.dev(), ours.ino()) == (there.dev(), there.ino())) {
            let message = "the new file was removed before it was locked";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        // SAFETY: the file was just created under a name of this process's own, so nobody else maps or truncates it.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(NewFile { file, map })
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Writes a range to the disk.
    pub fn sync_range(&self, range: Range<usize>) -> io::Result<()> {
        self.map.flush_range(range.start, range.len())
    }

    /// Writes everything to the disk, renames the file from `path` to `name` and gives its bytes as they were written.
    pub fn install(self, path: &Path, name: &Path) -> io::Result<Map> {
        // The rename must not reach the disk before the contents do.
        self.map.flush()?;
        self.file.sync_all()?;
        let map = self.map.make_read_only()?;
        // Until it has its name it is locked, so that nobody takes it for abandoned. The map would hold the lock.
        std::fs::rename(path, name)?;
        self.file.unlock()?;
        Ok(Map(map))
    }
}
