//! Models split over several files, `NAME-00001-of-00003.gguf` and its siblings.

use std::path::{Path, PathBuf};

use super::GgufError;
use super::limits::SPLIT_PARTS_MAX;
use super::reader::Part;

/// What a file says about the split it belongs to. `no` counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) no: u64,
    pub(super) count: u64,
}

impl Split {
    /// `None` for a model in one file.
    pub(super) fn of(part: &Part, bytes: &[u8]) -> Result<Option<Split>, GgufError> {
        let Some(count) = count_at(part, bytes, "split.count")?.filter(|&count| count > 1) else {
            return Ok(None);
        };
        if count > SPLIT_PARTS_MAX {
            return Err(GgufError::SplitCount { found: count, limit: SPLIT_PARTS_MAX });
        }
        let no = count_at(part, bytes, "split.no")?.unwrap_or(0);
        if no >= count {
            return Err(GgufError::SplitMismatch { part: 0, count, found_no: no, found_count: count });
        }
        Ok(Some(Split { no, count }))
    }

    /// The file names of all parts, from the name of this one.
    pub(super) fn siblings(self, path: &Path) -> Result<Vec<PathBuf>, GgufError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let suffix = self.suffix(self.no);
        let Some(stem) = name.strip_suffix(&suffix) else {
            return Err(GgufError::SplitName { part: self.no + 1, count: self.count, expected: suffix });
        };
        Ok((0..self.count).map(|no| path.with_file_name(format!("{stem}{}", self.suffix(no)))).collect())
    }

    /// Files are numbered from 1, `split.no` from 0.
    fn suffix(self, no: u64) -> String {
        format!("-{:05}-of-{:05}.gguf", no + 1, self.count)
    }

    /// That `part` is number `self.no` of `self.count`.
    pub(super) fn check(self, part: &Part, bytes: &[u8]) -> Result<(), GgufError> {
        let found_no = count_at(part, bytes, "split.no")?.unwrap_or(0);
        let found_count = count_at(part, bytes, "split.count")?.unwrap_or(1);
        if (found_no, found_count) == (self.no, self.count) {
            return Ok(());
        }
        Err(GgufError::SplitMismatch { part: self.no, count: self.count, found_no, found_count })
    }
}

/// `split.tensors.count`, which counts over all parts.
pub(super) fn check_tensor_count(first: &Part, bytes: &[u8], found: usize) -> Result<(), GgufError> {
    match count_at(first, bytes, "split.tensors.count")? {
        Some(expected) if expected != found as u64 => {
            Err(GgufError::SplitTensors { found: found as u64, expected })
        }
        _ => Ok(()),
    }
}

fn count_at(part: &Part, bytes: &[u8], key: &str) -> Result<Option<u64>, GgufError> {
    let Some(value) = part.get(bytes, key) else { return Ok(None) };
    super::int(key, &value, "u64").map(Some)
}
