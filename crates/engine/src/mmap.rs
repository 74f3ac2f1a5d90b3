//! Memory maps of whole files, the one unsafe corner of this crate.
//!
//! A [`Map`] is read-only and refuses anything but a regular file. It is shared with the page cache: if another process truncates the file
//! while it is mapped, touching the lost pages kills this process with SIGBUS. Model files are replaced by renaming a
//! new file over the old one, never edited in place.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

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
    /// Creates `path`, which must not exist, with `len` bytes that are really there: a full disk is an error now and
    /// not a SIGBUS later. The file stays locked until this is dropped, which tells it from one whose writer died.
    pub fn create(path: &Path, len: u64) -> io::Result<NewFile> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.try_lock()?;
        let (ours, there) = (file.metadata()?, std::fs::metadata(path)?);
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(io::Error::other("the new file was removed before it was locked"));
        }
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        // SAFETY: the file was just created under a name of this process's own, so nobody else maps or truncates it.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(NewFile { file, map })
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Writes everything to the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.map.flush()?;
        self.file.sync_all()
    }
}
