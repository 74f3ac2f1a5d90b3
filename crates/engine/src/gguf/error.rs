//! What can be wrong with a GGUF file. Names from the file are printed escaped: they may hold anything.

use std::io;
use std::path::PathBuf;

use super::value::ValueType;

#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not a usable GGUF file", path.display())]
    InFile { path: PathBuf, source: Box<GgufError> },

    #[error("not a GGUF file: it starts with {found:02x?} where \"GGUF\" is expected")]
    Magic { found: Vec<u8> },
    #[error(
        "GGUF version 1 is not supported: its lengths are 32-bit; convert the model again with a current tool"
    )]
    Version1,
    #[error("GGUF version {version} is not supported, only 2 and 3")]
    Version { version: u32 },
    #[error("a big-endian GGUF file is not supported; convert it to little-endian")]
    BigEndian,

    #[error("the file ends inside {what}: offset {offset} wants {wanted} bytes, {left} are left")]
    Truncated { offset: u64, what: &'static str, wanted: u64, left: u64 },
    #[error("{count} {what} at offset {offset} are more than the limit of {limit}")]
    TooMany { offset: u64, what: &'static str, count: u64, limit: u64 },
    #[error("{what} at offset {offset} is not valid UTF-8")]
    NotUtf8 { offset: u64, what: &'static str },
    #[error("empty {what} at offset {offset}")]
    EmptyName { offset: u64, what: &'static str },

    #[error("metadata key {key:?} appears twice")]
    DuplicateKey { key: String },
    #[error("metadata key {key:?} at offset {offset} has the unknown value type {id}")]
    UnknownValueType { offset: u64, key: String, id: u32 },
    #[error("metadata key {key:?} at offset {offset} holds an array of arrays, which is not supported")]
    NestedArray { offset: u64, key: String },
    #[error("metadata key {key:?} holds a boolean of {found} at offset {offset}; only 0 and 1 are allowed")]
    Bool { offset: u64, key: String, found: u8 },
    #[error("general.alignment is {found}; it must be a power of two from {min} to {max}")]
    Alignment { found: u64, min: u64, max: u64 },
    #[error("metadata key {key:?} must be {wanted}, it is {found}")]
    WrongType { key: String, wanted: &'static str, found: Found },
    #[error("metadata key {key:?} holds {value}, which does not fit {wanted}")]
    OutOfRange { key: String, wanted: &'static str, value: i128 },

    #[error("tensor {name:?} appears twice")]
    DuplicateTensor { name: String },
    #[error("tensor {name:?} at offset {offset} has {found} dimensions; at most {max} are allowed")]
    Dims { offset: u64, name: String, found: u32, max: u32 },
    #[error("tensor {name:?} at offset {offset} has an impossible shape {shape:?}")]
    Shape { offset: u64, name: String, shape: Vec<u64> },
    #[error("tensor {name:?} at offset {offset} has the unknown type {id}")]
    UnknownType { offset: u64, name: String, id: u32 },
    #[error(
        "tensor {name:?} at offset {offset} has the type {withdrawn}, withdrawn from GGUF; convert the model again"
    )]
    WithdrawnType { offset: u64, name: String, withdrawn: &'static str },
    #[error("rows of tensor {name:?} have {cols} weights, no multiple of {block_len} as {ty} needs")]
    RowLength { name: String, cols: u64, block_len: u64, ty: &'static str },
    #[error("data of tensor {name:?} starts at {start}, not a multiple of the alignment {alignment}")]
    Misaligned { name: String, start: u64, alignment: u64 },
    #[error(
        "data of tensor {name:?} ({len} bytes from offset {start}) does not lie within the file's {file_len} bytes"
    )]
    OutOfFile { name: String, start: u64, len: u64, file_len: u64 },
    #[error("data of tensor {name:?} overlaps that of {other:?}")]
    Overlap { name: String, other: String },

    #[error("split.count is {found}, the limit is {limit}")]
    SplitCount { found: u64, limit: u64 },
    #[error("part {part} of {count}: {} is missing", path.display())]
    SplitMissing { part: u64, count: u64, path: PathBuf },
    #[error("this is part {part} of {count} of a split model, and its name does not end in {expected:?}")]
    SplitName { part: u64, count: u64, expected: String },
    #[error("split.no is {found_no} of {found_count} where {part} of {count} is expected (counting from 0)")]
    SplitMismatch { part: u64, count: u64, found_no: u64, found_count: u64 },
    #[error("the parts hold {found} tensors, split.tensors.count says {expected}")]
    SplitTensors { found: u64, expected: u64 },
}

/// The type that was found where another was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Scalar(ValueType),
    ArrayOf(ValueType),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Scalar(ty) => write!(f, "{ty}"),
            Found::ArrayOf(ty) => write!(f, "an array of {ty}"),
        }
    }
}
