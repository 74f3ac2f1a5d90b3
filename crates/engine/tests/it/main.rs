//! The engine at its public boundary.
#![allow(clippy::print_stdout)] // tests say what they skip and what they counted

use std::path::PathBuf;

mod allocations;
mod gguf_files;
mod gguf_mutations;
mod logits;
mod model_errors;
mod template_conformance;
mod tiny;
mod tokenizer_conformance;

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
