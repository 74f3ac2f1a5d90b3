//! Finds what can be checked in a folder: files are recognized by their endings and by what lies beside them, whatever
//! they and their folders are called.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Folders within folders are searched this deep.
const DEPTH_MAX: usize = 8;

/// One file to check, and what it is checked against.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Check {
    /// A model and its reference logits. `tokens` is the folder's prompt, if it has one.
    Logits { model: PathBuf, reference: PathBuf, tokens: Option<PathBuf> },
    /// A vocabulary, strings and their ids.
    Tokenizer { model: PathBuf, strings: PathBuf, ids: PathBuf },
    /// A chat template and its cases.
    Template { template: PathBuf, cases: PathBuf },
    /// Blocks and the numbers in them.
    Dequantize { blocks: PathBuf, reference: PathBuf },
    /// Rows of numbers and the blocks that they become; `importance` has one number a column.
    Quantize { rows: PathBuf, importance: Option<PathBuf>, blocks: PathBuf },
    /// A file that lacks what it would be checked with.
    Incomplete { file: PathBuf, missing: String },
}

impl Check {
    /// The file that names the check.
    pub(super) fn file(&self) -> &Path {
        match self {
            Check::Logits { model, .. } | Check::Tokenizer { model, .. } => model,
            Check::Template { template, .. } => template,
            Check::Dequantize { reference, .. } => reference,
            Check::Quantize { blocks, .. } => blocks,
            Check::Incomplete { file, .. } => file,
        }
    }

    pub(super) fn group(&self) -> &'static str {
        match self {
            Check::Logits { .. } => "logits",
            Check::Tokenizer { .. } => "tokenizer",
            Check::Template { .. } => "template",
            Check::Dequantize { .. } => "dequantize",
            Check::Quantize { .. } => "quantize",
            Check::Incomplete { .. } => "incomplete",
        }
    }
}

/// Every check under `dir`, those of a folder before those of its subfolders.
pub(super) fn discover(dir: &Path) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    search(dir, DEPTH_MAX, &mut checks)?;
    Ok(checks)
}

fn search(dir: &Path, depth: usize, checks: &mut Vec<Check>) -> anyhow::Result<()> {
    let mut files = BTreeSet::new();
    let mut dirs = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let to = if path.is_dir() { &mut dirs } else { &mut files };
        to.insert(name.to_owned());
    }
    let folder = Folder { dir, files: &files };
    checks.extend(files.iter().filter_map(|name| folder.check(name)));
    if depth > 0 {
        dirs.iter().try_for_each(|name| search(&dir.join(name), depth - 1, checks))?;
    }
    Ok(())
}

struct Folder<'a> {
    dir: &'a Path,
    files: &'a BTreeSet<String>,
}

impl Folder<'_> {
    /// The check that this file stands for; each check is named by one of its files.
    fn check(&self, name: &str) -> Option<Check> {
        let path = self.dir.join(name);
        let beside = |name: &str| self.files.contains(name).then(|| self.dir.join(name));
        let or_incomplete = |check: Option<Check>, missing: String| {
            Some(check.unwrap_or(Check::Incomplete { file: path.clone(), missing }))
        };

        if let Some(stem) = name.strip_suffix(".logits.f32") {
            let (model_name, tokens) = (format!("{stem}.gguf"), beside("tokens.txt"));
            let check =
                beside(&model_name).map(|model| Check::Logits { model, reference: path.clone(), tokens });
            return or_incomplete(check, model_name);
        }
        if let Some(stem) = name.strip_suffix(".out") {
            let (model_name, strings_name) = (format!("{stem}.gguf"), format!("{stem}.inp"));
            let found = beside(&model_name).zip(beside(&strings_name));
            let check = found.map(|(model, strings)| Check::Tokenizer { model, strings, ids: path.clone() });
            return or_incomplete(check, format!("{model_name} or {strings_name}"));
        }
        if let Some(stem) = name.strip_suffix(".jinja") {
            let cases_name = format!("{stem}.json");
            let check = beside(&cases_name).map(|cases| Check::Template { template: path.clone(), cases });
            return or_incomplete(check, cases_name);
        }
        if let Some(stem) = name.strip_suffix(".dequant.f32") {
            let blocks_name = format!("{stem}.bin");
            let check =
                beside(&blocks_name).map(|blocks| Check::Dequantize { blocks, reference: path.clone() });
            return or_incomplete(check, blocks_name);
        }
        if let Some(stem) = name.strip_suffix(".bin") {
            let importance = beside("imatrix.f32").filter(|_| stem.ends_with(".imatrix"));
            let lacks_importance = stem.ends_with(".imatrix") && importance.is_none();
            let rows = beside("rows.f32").filter(|_| !lacks_importance);
            let check = rows.map(|rows| Check::Quantize { rows, importance, blocks: path.clone() });
            return or_incomplete(check, "rows.f32 or imatrix.f32".into());
        }
        if let Some(stem) = name.strip_suffix(".gguf") {
            let checked =
                [".logits.f32", ".out"].iter().any(|end| self.files.contains(&format!("{stem}{end}")));
            return (!checked).then(|| Check::Incomplete {
                file: path,
                missing: format!("{stem}.logits.f32 or {stem}.out"),
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_endings() {
        let dir = Path::new("/d");
        let at = |name: &str| dir.join(name);
        let files = [
            "a.gguf",
            "a.logits.f32",
            "tokens.txt",
            "b.gguf",
            "b.inp",
            "b.out",
            "c.jinja",
            "c.json",
            "q4_0.bin",
            "q4_0.imatrix.bin",
            "q4_0.dequant.f32",
            "rows.f32",
            "imatrix.f32",
            "d.gguf",
            "e.logits.f32",
            "f.jinja",
            "README.md",
        ]
        .map(String::from)
        .into();
        let folder = Folder { dir, files: &files };
        let found: BTreeSet<Check> = files.iter().filter_map(|name| folder.check(name)).collect();
        let tokens = Some(at("tokens.txt"));
        let incomplete =
            |file: &str, missing: &str| Check::Incomplete { file: at(file), missing: missing.to_owned() };
        let quantize = |blocks: &str, importance| Check::Quantize {
            rows: at("rows.f32"),
            importance,
            blocks: at(blocks),
        };
        let expected = BTreeSet::from([
            Check::Logits { model: at("a.gguf"), reference: at("a.logits.f32"), tokens },
            Check::Tokenizer { model: at("b.gguf"), strings: at("b.inp"), ids: at("b.out") },
            Check::Template { template: at("c.jinja"), cases: at("c.json") },
            Check::Dequantize { blocks: at("q4_0.bin"), reference: at("q4_0.dequant.f32") },
            quantize("q4_0.bin", None),
            quantize("q4_0.imatrix.bin", Some(at("imatrix.f32"))),
            incomplete("d.gguf", "d.logits.f32 or d.out"),
            incomplete("e.logits.f32", "e.gguf"),
            incomplete("f.jinja", "f.json"),
        ]);
        assert_eq!(found, expected);
    }
}
