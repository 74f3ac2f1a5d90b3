//! Real files, as other tools write them.

use std::fs;
use std::path::{Path, PathBuf};

use engine::gguf::{Gguf, limits};

use crate::allocations::peak_bytes;

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let mut found: Vec<_> =
        files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
    dirs.iter().for_each(|dir| found.extend(files_under(dir)));
    found.sort();
    found
}

#[test]
fn reference_files_open_without_copying_their_vocabulary() {
    let Some(shared) = crate::shared("reference_files_open_without_copying_their_vocabulary") else { return };
    let files = files_under(&shared.join("conformance"));
    assert!(files.len() > 10, "found only {files:?}");
    for file in files {
        let (gguf, peak) = peak_bytes(|| Gguf::open(&file).unwrap());
        let strings: usize = gguf
            .metadata()
            .filter_map(|(_, value)| value.as_array().and_then(|array| array.strings()))
            .map(|strings| strings.len())
            .sum();
        // The index of a string array has 4 bytes for 16 strings.
        let most = limits::OPEN_ALLOC_BASE_BYTES + strings as u64 / 4 + 256 * gguf.tensors().len() as u64;
        assert!(peak <= most, "{}: {peak} bytes for {strings} strings, {most} expected", file.display());
        assert!(gguf.str("general.architecture").unwrap().is_some(), "{}", file.display());
        for info in gguf.tensors() {
            assert_eq!(gguf.tensor(&info.name).unwrap().data.len() as u64, info.len_bytes());
        }
    }
}
