//! Read-only memory maps of whole files, the one unsafe corner of this crate.
//!
//! Refuses anything but a regular file. A map is shared with the page cache: if another process truncates the file
//! while it is mapped, touching the lost pages kills this process with SIGBUS. Model files are replaced by renaming a
//! new file over the old one, never edited in place.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

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
