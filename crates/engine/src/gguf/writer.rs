//! Writes GGUF files: metadata and the tensor table first, then the tensors' data as a stream, padded.
//!
//! Refuses what the reader would: what it writes, [`Gguf`](super::Gguf) opens.

use std::io::{self, Write};

use super::limits::{ALIGNMENT_DEFAULT, DIMS_MAX, TENSOR_NAME_BYTES_MAX};
use super::value::{Value, ValueType};
use super::{Array, GgmlType};

/// The head of a file: collect metadata and tensors, then [`GgufWriter::begin`].
#[derive(Clone, Debug)]
pub struct GgufWriter {
    version: u32,
    alignment: u64,
    key_value_count: u64,
    /// Encoded.
    key_values: Vec<u8>,
    tensors: Vec<Entry>,
    /// Where the next tensor's data starts, from the start of the data section.
    next_start: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    shape: Vec<u64>,
    ty: GgmlType,
    start: u64,
    len: u64,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter {
            version: 3,
            alignment: ALIGNMENT_DEFAULT,
            key_value_count: 0,
            key_values: Vec::new(),
            tensors: Vec::new(),
            next_start: 0,
        }
    }
}

impl GgufWriter {
    /// Version 3, alignment 32.
    pub fn new() -> Self {
        Self::default()
    }

    /// 2 or 3; their layouts are the same.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets the alignment and writes `general.alignment`. Before the first tensor.
    pub fn alignment(mut self, alignment: u32) -> Self {
        assert!(self.tensors.is_empty(), "the alignment is set before the first tensor is placed");
        self.alignment = u64::from(alignment);
        self.put("general.alignment", alignment);
        self
    }

    pub fn put<E: Element>(&mut self, key: &str, value: E) {
        self.key(key, E::TYPE);
        value.encode(&mut self.key_values);
    }

    pub fn put_array<E: Element>(&mut self, key: &str, values: &[E]) {
        self.key(key, ValueType::Array);
        self.key_values.extend(E::TYPE.id().to_le_bytes());
        self.key_values.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| value.encode(&mut self.key_values));
    }

    /// A value as another file holds it.
    pub fn put_value(&mut self, key: &str, value: &Value<'_>) {
        match *value {
            Value::U8(v) => self.put(key, v),
            Value::I8(v) => self.put(key, v),
            Value::U16(v) => self.put(key, v),
            Value::I16(v) => self.put(key, v),
            Value::U32(v) => self.put(key, v),
            Value::I32(v) => self.put(key, v),
            Value::U64(v) => self.put(key, v),
            Value::I64(v) => self.put(key, v),
            Value::F32(v) => self.put(key, v),
            Value::F64(v) => self.put(key, v),
            Value::Bool(v) => self.put(key, v),
            Value::Str(v) => self.put(key, v),
            Value::Array(Array { ty, len, bytes, .. }) => {
                self.key(key, ValueType::Array);
                self.key_values.extend(ty.id().to_le_bytes());
                self.key_values.extend((len as u64).to_le_bytes());
                self.key_values.extend(bytes);
            }
        }
    }

    fn key(&mut self, key: &str, ty: ValueType) {
        self.key_value_count += 1;
        key.encode(&mut self.key_values);
        self.key_values.extend(ty.id().to_le_bytes());
    }

    /// Announces a tensor; data follows in the order of announcement. `shape` starts with the row length.
    pub fn tensor(&mut self, name: &str, shape: &[u64], ty: GgmlType) -> io::Result<()> {
        let refuse =
            |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("tensor {name:?}: {why}")));
        if name.is_empty() || name.len() as u64 > TENSOR_NAME_BYTES_MAX {
            return refuse(format!("a name has 1 to {TENSOR_NAME_BYTES_MAX} bytes"));
        }
        if shape.is_empty() || shape.len() > DIMS_MAX as usize || shape.contains(&0) {
            return refuse(format!("impossible shape {shape:?}"));
        }
        let rows = shape[1..].iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let len = ty.row_bytes(shape[0]).zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        let Some(len) = len else { return refuse(format!("shape {shape:?} does not fit {ty}")) };
        let start = self.next_start;
        self.next_start = (start + len).next_multiple_of(self.alignment);
        self.tensors.push(Entry { name: name.to_owned(), shape: shape.to_vec(), ty, start, len });
        Ok(())
    }

    /// Bytes of all tensors' data with padding.
    pub fn data_bytes(&self) -> u64 {
        self.next_start
    }

    /// Writes the head; the tensors' data goes through the writer it returns. `out` should be buffered.
    pub fn begin<W: Write>(self, mut out: W) -> io::Result<TensorWriter<W>> {
        let mut head = b"GGUF".to_vec();
        head.extend(self.version.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend(self.key_value_count.to_le_bytes());
        head.extend(&self.key_values);
        for tensor in &self.tensors {
            tensor.name.as_str().encode(&mut head);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|n| head.extend(n.to_le_bytes()));
            head.extend(tensor.ty.id().to_le_bytes());
            head.extend(tensor.start.to_le_bytes());
        }
        if !self.tensors.is_empty() {
            head.resize(head.len().next_multiple_of(self.alignment as usize), 0);
        }
        out.write_all(&head)?;
        let lens = self.tensors.iter().map(|tensor| tensor.len).collect();
        Ok(TensorWriter { out, alignment: self.alignment, lens, at: 0, written: 0 })
    }

    /// The whole file in memory, with the data of every tensor made by `data`, for tests.
    pub fn into_bytes(self, mut data: impl FnMut(usize, usize) -> Vec<u8>) -> io::Result<Vec<u8>> {
        let mut writer = self.begin(Vec::new())?;
        for (i, len) in writer.lens.clone().into_iter().enumerate() {
            writer.write(&data(i, len as usize))?;
        }
        writer.finish()
    }
}

/// Takes the tensors' data in the announced order, in pieces of any size.
#[derive(Debug)]
pub struct TensorWriter<W> {
    out: W,
    alignment: u64,
    lens: Vec<u64>,
    /// The tensor being written.
    at: usize,
    /// Bytes of it so far.
    written: u64,
}

impl<W: Write> TensorWriter<W> {
    /// Appends to the current tensor; the next write after its last byte starts the next one. A piece that crosses
    /// from one tensor into the next is an error.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let Some(&len) = self.lens.get(self.at) else {
            return refuse(format!("all {} tensors are written", self.lens.len()));
        };
        let written = self.written + data.len() as u64;
        if written > len {
            return refuse(format!("tensor {} has {len} bytes, {written} are written", self.at));
        }
        self.out.write_all(data)?;
        self.written = written;
        if written == len {
            let padding = len.next_multiple_of(self.alignment) - len;
            io::copy(&mut io::Read::take(io::repeat(0), padding), &mut self.out)?;
            (self.at, self.written) = (self.at + 1, 0);
        }
        Ok(())
    }

    /// Flushes, and fails if data is missing.
    pub fn finish(mut self) -> io::Result<W> {
        if self.at < self.lens.len() {
            let why = format!("{} of {} tensors are written", self.at, self.lens.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// What can be a metadata value by itself and an element of an array.
pub trait Element {
    const TYPE: ValueType;
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! number_elements {
    ($($number:ty => $ty:ident),*) => {$(
        impl Element for $number {
            const TYPE: ValueType = ValueType::$ty;

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}

number_elements!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64);
number_elements!(f32 => F32, f64 => F64);

impl Element for bool {
    const TYPE: ValueType = ValueType::Bool;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Element for &[u8] {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.len() as u64).to_le_bytes());
        out.extend(*self);
    }
}

impl Element for &str {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_bytes().encode(out);
    }
}

impl Element for String {
    const TYPE: ValueType = ValueType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}
