//! The engine at its public boundary.
#![allow(clippy::print_stdout)] // tests say what they skip and what they counted

use std::fs;
use std::path::{Path, PathBuf};

mod allocations;
mod batches;
mod context_shift;
mod encoders;
mod families_page;
mod generation;
mod gguf_files;
mod gguf_mutations;
mod grown;
mod kept;
mod logits;
mod lora;
mod model_errors;
mod outlines;
mod packed_damage;
mod packed_files;
mod packed_meanwhile;
mod predictor;
mod shared_keys;
mod speculation;
mod template_conformance;
mod tiny;
mod tokenizer_conformance;
mod unigram;

/// A folder of a test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("dunlin-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the folder for temporary files can be written");
        Folder(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The folder of shared reference data, or a printed line saying that `test` is skipped without it.
fn shared(test: &str) -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let dir = std::env::var_os("DUNLIN_SHARED").map_or(beside, PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped {test}: no reference data at {} (set DUNLIN_SHARED)", dir.display());
    None
}
