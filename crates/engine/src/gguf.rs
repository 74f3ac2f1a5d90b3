//! GGUF files, versions 2 and 3: what a model says about itself, and where its weights lie.
//!
//! Refuses, by name: version 1, big-endian files, nested arrays, and every claim beyond [`limits`] or beyond the end of
//! the file. A file is hostile until read: opening one never panics and never allocates more than a small multiple of
//! its size. Nothing is copied but tensor names; vocabularies and weights are views into the mapped file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::mmap::Map;

mod error;
pub mod limits;
mod reader;
mod split;
mod types;
mod value;
mod writer;

pub use error::{Found, GgufError};
pub use reader::TensorInfo;
pub use types::GgmlType;
pub use value::{Array, StringArray, StringBytes, Value, ValueType};
pub use writer::{Element, GgufWriter, TensorWriter};

use reader::Part;
use split::Split;

/// One model: its file, or its files if it is split. Owns the maps that values and tensors point into.
#[derive(Debug)]
pub struct Gguf {
    /// The files in order. Metadata is read from the first.
    files: Vec<Bytes>,
    path: Option<PathBuf>,
    first: Part,
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, by name.
    tensor_order: Vec<u32>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
    Static(&'static [u8]),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map.bytes(),
            Bytes::Owned(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// One of a model's files; keeps the model open.
pub(crate) struct FileBytes {
    gguf: Arc<Gguf>,
    part: usize,
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        self.gguf.files[self.part].as_slice()
    }
}

/// A tensor and its data.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub info: &'a TensorInfo,
    /// Exactly [`TensorInfo::len_bytes`] bytes. In a mapped file they start at a multiple of the file's alignment (at
    /// least 8 bytes); bytes from [`Gguf::from_bytes`] may start anywhere.
    pub data: &'a [u8],
}

impl Gguf {
    /// Maps and reads the model at `path`. Any part of a split model leads to all of them.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let (bytes, part) = open_part(path)?;
        let split = Split::of(&part, bytes.as_slice()).map_err(|source| in_file(path, source))?;
        let Some(split) = split else {
            return Gguf::join(vec![(bytes, part)], Some(path.to_owned()))
                .map_err(|source| in_file(path, source));
        };

        let paths = split.siblings(path).map_err(|source| in_file(path, source))?;
        let mut parts = Vec::with_capacity(paths.len());
        let mut opened = Some((bytes, part));
        for (no, sibling) in (0..).zip(&paths) {
            let (bytes, part) = match opened.take_if(|_| no == split.no) {
                Some(opened) => opened,
                None if !sibling.exists() => {
                    return Err(GgufError::SplitMissing {
                        part: no + 1,
                        count: split.count,
                        path: sibling.clone(),
                    });
                }
                None => open_part(sibling)?,
            };
            let expected = Split { no, ..split };
            expected.check(&part, bytes.as_slice()).map_err(|source| in_file(sibling, source))?;
            parts.push((bytes, part));
        }
        Gguf::join(parts, Some(paths[0].clone())).map_err(|source| in_file(path, source))
    }

    /// Reads a model of one file that is already in memory, for tests and fuzzing.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        Gguf::from_parts(vec![bytes])
    }

    /// Reads a model of one file that is part of the program.
    pub fn from_static(bytes: &'static [u8]) -> Result<Gguf, GgufError> {
        let part = Part::read(bytes)?;
        if Split::of(&part, bytes)?.is_some() {
            Split { no: 0, count: 1 }.check(&part, bytes)?;
        }
        Gguf::join(vec![(Bytes::Static(bytes), part)], None)
    }

    /// Reads a model whose files are already in memory, in order, for tests and fuzzing.
    pub fn from_parts(files: Vec<Vec<u8>>) -> Result<Gguf, GgufError> {
        let count = files.len() as u64;
        let mut parts = Vec::with_capacity(files.len());
        for (no, bytes) in (0..).zip(files) {
            let part = Part::read(&bytes)?;
            let expected = Split { no, count };
            if count > 1 || Split::of(&part, &bytes)?.is_some() {
                expected.check(&part, &bytes)?;
            }
            parts.push((Bytes::Owned(bytes), part));
        }
        Gguf::join(parts, None)
    }

    fn join(parts: Vec<(Bytes, Part)>, path: Option<PathBuf>) -> Result<Gguf, GgufError> {
        let mut files = Vec::with_capacity(parts.len());
        let tensor_count = parts.iter().map(|(_, part)| part.tensors.len()).sum();
        let mut tensors = Vec::with_capacity(tensor_count);
        let mut first = None;
        for (i, (bytes, mut part)) in parts.into_iter().enumerate() {
            part.tensors.iter_mut().for_each(|tensor| tensor.part = i);
            tensors.append(&mut part.tensors);
            part.tensors = Vec::new();
            files.push(bytes);
            first.get_or_insert(part);
        }
        let Some(first) = first else { return Err(GgufError::Magic { found: Vec::new() }) };
        if files.len() > 1 {
            split::check_tensor_count(&first, files[0].as_slice(), tensors.len())?;
        }
        let tensor_order = order_tensors(&tensors)?;
        Ok(Gguf { files, path, first, tensors, tensor_order })
    }

    /// Of the first file.
    pub fn version(&self) -> u32 {
        self.first.version
    }

    /// Where the model was opened from; the first file of a split model. `None` for bytes in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The size of all files together.
    pub fn len_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.as_slice().len() as u64).sum()
    }

    /// How many files the model is in.
    pub fn parts(&self) -> usize {
        self.files.len()
    }

    /// All metadata, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        let bytes = self.metadata_bytes();
        self.first.key_values.iter().map(move |kv| (kv.key(bytes), kv.value(bytes)))
    }

    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.first.get(self.metadata_bytes(), key)
    }

    fn metadata_bytes(&self) -> &[u8] {
        self.files[0].as_slice()
    }

    /// An integer of any type. Like all typed getters: `Ok(None)` if the key is absent, an error that names the key if
    /// the value is of another type or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, |value| int(key, value, "u32"))
    }

    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, |value| int(key, value, "u64"))
    }

    pub fn i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.typed(key, |value| int(key, value, "i32"))
    }

    /// Either float type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, |value| value.as_f32().ok_or_else(|| wrong_type(key, value, "a float")))
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, |value| value.as_bool().ok_or_else(|| wrong_type(key, value, "a bool")))
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, |value| value.as_str().ok_or_else(|| wrong_type(key, value, "a string")))
    }

    pub fn strings(&self, key: &str) -> Result<Option<StringArray<'_>>, GgufError> {
        self.typed(key, |value| {
            let strings = value.as_array().and_then(|array| array.strings());
            strings.ok_or_else(|| wrong_type(key, value, "an array of strings"))
        })
    }

    /// An array of integers of 8 bits, signed or not.
    pub fn bytes(&self, key: &str) -> Result<Option<&[u8]>, GgufError> {
        self.typed(key, |value| {
            let bytes = |array: &Array<'_>| matches!(array.ty(), ValueType::U8 | ValueType::I8);
            let array = value.as_array().filter(bytes);
            Ok(array.ok_or_else(|| wrong_type(key, value, "an array of bytes"))?.bytes())
        })
    }

    /// An array of either float type.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.numbers(key, "an array of floats", |value| Value::as_f32(value).map(Ok))
    }

    /// An array of integers of any type.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.numbers(key, "an array of i32", |value| value.as_int().map(|_| int(key, value, "i32")))
    }

    /// An array of integers of any type.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        self.numbers(key, "an array of u32", |value| value.as_int().map(|_| int(key, value, "u32")))
    }

    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        self.numbers(key, "an array of bools", |value| Value::as_bool(value).map(Ok))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&Value<'a>) -> Result<T, GgufError>,
    ) -> Result<Option<T>, GgufError> {
        self.get(key).map(|value| read(&value)).transpose()
    }

    fn numbers<T>(
        &self,
        key: &str,
        wanted: &'static str,
        read: impl Fn(&Value<'static>) -> Option<Result<T, GgufError>>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        self.typed(key, |value| {
            let wrong = || wrong_type(key, value, wanted);
            let array = value.as_array().filter(|array| array.ty() != ValueType::String).ok_or_else(wrong)?;
            array.scalars().map(|element| read(&element).unwrap_or_else(|| Err(wrong()))).collect()
        })
    }

    /// All tensors, in the files' order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let name_of = |i: u32| self.tensors[i as usize].name.as_str();
        let found = self.tensor_order.binary_search_by(|&i| name_of(i).cmp(name)).ok()?;
        let info = &self.tensors[self.tensor_order[found] as usize];
        Some(Tensor { info, data: self.data(info) })
    }

    /// The data of one of this model's tensors.
    ///
    /// # Panics
    /// If `info` is from another model that is larger.
    pub fn data(&self, info: &TensorInfo) -> &[u8] {
        &self.files[info.part].as_slice()[info.start..info.start + info.len]
    }

    /// The file that holds the data of one of this model's tensors, and where it lies there.
    pub(crate) fn file_of(self: &Arc<Self>, info: &TensorInfo) -> (FileBytes, Range<usize>) {
        let file = FileBytes { gguf: Arc::clone(self), part: info.part };
        (file, info.start..info.start + info.len)
    }
}

fn open_part(path: &Path) -> Result<(Bytes, Part), GgufError> {
    let map = Map::open(path).map_err(|source| GgufError::Io { path: path.to_owned(), source })?;
    let part = Part::read(map.bytes()).map_err(|source| in_file(path, source))?;
    Ok((Bytes::Mapped(map), part))
}

fn in_file(path: &Path, source: GgufError) -> GgufError {
    GgufError::InFile { path: path.to_owned(), source: Box::new(source) }
}

fn order_tensors(tensors: &[TensorInfo]) -> Result<Vec<u32>, GgufError> {
    let name = |i: u32| tensors[i as usize].name.as_str();
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| name(a).cmp(name(b)));
    match order.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(GgufError::DuplicateTensor { name: name(pair[0]).to_owned() }),
        None => Ok(order),
    }
}

fn wrong_type(key: &str, value: &Value<'_>, wanted: &'static str) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), wanted, found: value.found() }
}

fn int<T: TryFrom<i128>>(key: &str, value: &Value<'_>, wanted: &'static str) -> Result<T, GgufError> {
    let int = value.as_int().ok_or_else(|| wrong_type(key, value, wanted))?;
    T::try_from(int).map_err(|_| GgufError::OutOfRange { key: key.to_owned(), wanted, value: int })
}

#[cfg(test)]
mod tests;
