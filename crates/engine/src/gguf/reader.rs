//! Reads one file: header, metadata and tensor table, every claim checked against the limits and against the bytes that
//! are there. Trusts nothing, allocates nothing for a claim before the bytes behind it are seen.

use super::GgufError;
use super::limits::*;
use super::types::{GgmlType, withdrawn_name};
use super::value::{Array, INDEX_STRIDE, Value, ValueType};

/// The smallest metadata entry: key length, one letter, value type, one byte.
const KEY_VALUE_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
/// The smallest tensor entry: name length, one letter, dimension count, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 1 + 4 + 4 + 8;

/// The tables of one file, as ranges into its bytes.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) version: u32,
    /// In the file's order.
    pub(super) key_values: Vec<KeyValue>,
    /// Indices into `key_values`, by key.
    key_order: Vec<u32>,
    /// In the file's order.
    pub(super) tensors: Vec<TensorInfo>,
}

/// Part of the file's bytes.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    len: usize,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }

    fn str_of(self, bytes: &[u8]) -> &str {
        // Checked when it was read; empty if the file was changed under the map since.
        std::str::from_utf8(self.of(bytes)).unwrap_or_default()
    }
}

#[derive(Debug)]
pub(super) struct KeyValue {
    key: Span,
    value: Stored,
}

#[derive(Debug)]
enum Stored {
    Scalar(Value<'static>),
    Str(Span),
    Array { ty: ValueType, len: usize, span: Span, index: Box<[u32]> },
}

impl KeyValue {
    pub(super) fn key<'a>(&self, bytes: &'a [u8]) -> &'a str {
        self.key.str_of(bytes)
    }

    pub(super) fn value<'a>(&'a self, bytes: &'a [u8]) -> Value<'a> {
        match &self.value {
            Stored::Scalar(value) => *value,
            Stored::Str(span) => Value::Str(span.str_of(bytes)),
            Stored::Array { ty, len, span, index } => {
                Value::Array(Array { ty: *ty, len: *len, bytes: span.of(bytes), index })
            }
        }
    }
}

/// Name, shape, type and place of one tensor. Its data is checked to lie within its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Numbers per dimension; the first is the row length, whose weights lie side by side. At most 4, none of them 0.
    pub shape: Vec<u64>,
    pub ty: GgmlType,
    /// Which file of a split model holds the data.
    pub(super) part: usize,
    /// Where the data starts in that file.
    pub(super) start: usize,
    pub(super) len: usize,
}

impl TensorInfo {
    /// The length of a row.
    pub fn cols(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Rows over all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    pub fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    /// Which file of a split model holds the data, counting from 0.
    pub fn part(&self) -> usize {
        self.part
    }

    /// Where the data starts in its file.
    pub fn start_bytes(&self) -> u64 {
        self.start as u64
    }
}

impl Part {
    pub(super) fn read(bytes: &[u8]) -> Result<Part, GgufError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.count("tensors", TENSORS_MAX, TENSOR_BYTES_MIN)?;
        let kv_count = cursor.count("metadata entries", KEY_VALUES_MAX, KEY_VALUE_BYTES_MIN)?;

        let mut key_values = Vec::with_capacity(kv_count);
        for _ in 0..kv_count {
            key_values.push(read_key_value(&mut cursor)?);
        }
        let key_order = order_keys(bytes, &key_values)?;
        let mut part = Part { version, key_values, key_order, tensors: Vec::new() };
        let alignment = part.alignment(bytes)?;

        part.tensors.reserve_exact(tensor_count);
        for _ in 0..tensor_count {
            part.tensors.push(read_tensor(&mut cursor)?);
        }
        place_tensors(&mut part.tensors, cursor.at, bytes.len(), alignment)?;
        Ok(part)
    }

    pub(super) fn get<'a>(&'a self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let found =
            self.key_order.binary_search_by(|&i| self.key_values[i as usize].key(bytes).cmp(key)).ok()?;
        Some(self.key_values[self.key_order[found] as usize].value(bytes))
    }

    fn alignment(&self, bytes: &[u8]) -> Result<u64, GgufError> {
        let key = "general.alignment";
        let Some(value) = self.get(bytes, key) else { return Ok(ALIGNMENT_DEFAULT) };
        let Value::U32(found) = value else {
            return Err(GgufError::WrongType { key: key.into(), wanted: "u32", found: value.found() });
        };
        let found = u64::from(found);
        if !found.is_power_of_two() || !(ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(&found) {
            return Err(GgufError::Alignment { found, min: ALIGNMENT_MIN, max: ALIGNMENT_MAX });
        }
        Ok(found)
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let found = &cursor.bytes[..cursor.bytes.len().min(4)];
    if found != b"GGUF" {
        return Err(GgufError::Magic { found: found.to_vec() });
    }
    cursor.at = 4;
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(GgufError::Version1),
        // A small number read in the other byte order has its low half empty.
        version if version != 0 && version & 0xffff == 0 => Err(GgufError::BigEndian),
        version => Err(GgufError::Version { version }),
    }
}

fn read_key_value(cursor: &mut Cursor<'_>) -> Result<KeyValue, GgufError> {
    let key = cursor.name("metadata key", KEY_BYTES_MAX)?;
    let key_text = || key.str_of(cursor.bytes).to_owned();
    let offset = cursor.at as u64;
    let id = cursor.u32("a value type")?;
    let Some(ty) = ValueType::from_id(id) else {
        return Err(GgufError::UnknownValueType { offset, key: key_text(), id });
    };
    let value = match ty {
        ValueType::String => Stored::Str(cursor.text("a metadata string", STRING_BYTES_MAX)?),
        ValueType::Array => read_array(cursor, &key_text)?,
        _ => {
            let offset = cursor.at as u64;
            let size = ty.size().expect("only strings and arrays vary in size");
            let bytes = cursor.take(size as u64, "a metadata value")?;
            check_bools(ty, bytes, offset, &key_text)?;
            Stored::Scalar(Value::read_fixed(ty, bytes).expect("the bytes of a fixed type were taken"))
        }
    };
    Ok(KeyValue { key, value })
}

fn read_array(cursor: &mut Cursor<'_>, key_text: &dyn Fn() -> String) -> Result<Stored, GgufError> {
    let offset = cursor.at as u64;
    let id = cursor.u32("an element type")?;
    let ty = match ValueType::from_id(id) {
        Some(ValueType::Array) => return Err(GgufError::NestedArray { offset, key: key_text() }),
        Some(ty) => ty,
        None => return Err(GgufError::UnknownValueType { offset, key: key_text(), id }),
    };
    let element_bytes_min = ty.size().unwrap_or(8) as u64;
    let len = cursor.count("array elements", ARRAY_LEN_MAX, element_bytes_min)?;
    let start = cursor.at;
    let index = match ty.size() {
        Some(size) => {
            let bytes = cursor.take((len * size) as u64, "an array")?;
            check_bools(ty, bytes, start as u64, key_text)?;
            Box::default()
        }
        None => index_strings(cursor, len)?,
    };
    Ok(Stored::Array { ty, len, span: Span { start, len: cursor.at - start }, index })
}

/// Walks over `len` strings and notes where every [`INDEX_STRIDE`]th begins.
fn index_strings(cursor: &mut Cursor<'_>, len: usize) -> Result<Box<[u32]>, GgufError> {
    let start = cursor.at;
    let mut index = Vec::with_capacity(len.div_ceil(INDEX_STRIDE));
    for i in 0..len {
        let so_far = (cursor.at - start) as u64;
        let Ok(begins) = u32::try_from(so_far) else {
            let (offset, what, limit) = (start as u64, "bytes of an array", ARRAY_BYTES_MAX);
            return Err(GgufError::TooMany { offset, what, count: so_far, limit });
        };
        if i % INDEX_STRIDE == 0 {
            index.push(begins);
        }
        cursor.string("a string of an array", STRING_BYTES_MAX)?;
    }
    Ok(index.into_boxed_slice())
}

fn check_bools(
    ty: ValueType,
    bytes: &[u8],
    offset: u64,
    key_text: &dyn Fn() -> String,
) -> Result<(), GgufError> {
    if ty != ValueType::Bool {
        return Ok(());
    }
    match bytes.iter().position(|&byte| byte > 1) {
        None => Ok(()),
        Some(at) => Err(GgufError::Bool { offset: offset + at as u64, key: key_text(), found: bytes[at] }),
    }
}

fn order_keys(bytes: &[u8], key_values: &[KeyValue]) -> Result<Vec<u32>, GgufError> {
    let key = |i: u32| key_values[i as usize].key(bytes);
    let mut order: Vec<u32> = (0..key_values.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| key(a).cmp(key(b)));
    match order.windows(2).find(|pair| key(pair[0]) == key(pair[1])) {
        Some(pair) => Err(GgufError::DuplicateKey { key: key(pair[0]).to_owned() }),
        None => Ok(order),
    }
}

/// Reads one entry of the tensor table. `start` is still relative to the data section.
fn read_tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo, GgufError> {
    let offset = cursor.at as u64;
    let name = cursor.name("tensor name", TENSOR_NAME_BYTES_MAX)?;
    let name = name.str_of(cursor.bytes).to_owned();

    let dims = cursor.u32("a dimension count")?;
    if dims > DIMS_MAX {
        return Err(GgufError::Dims { offset, name, found: dims, max: DIMS_MAX });
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        shape.push(cursor.u64("a tensor's shape")?);
    }
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let Some(1..=ELEMENTS_MAX) = elements else {
        return Err(GgufError::Shape { offset, name, shape });
    };

    let id = cursor.u32("a tensor type")?;
    let ty = match (GgmlType::from_id(id), withdrawn_name(id)) {
        (Some(ty), _) => ty,
        (None, Some(withdrawn)) => return Err(GgufError::WithdrawnType { offset, name, withdrawn }),
        (None, None) => return Err(GgufError::UnknownType { offset, name, id }),
    };
    let cols = shape.first().copied().unwrap_or(1);
    if !cols.is_multiple_of(ty.block_len()) {
        return Err(GgufError::RowLength { name, cols, block_len: ty.block_len(), ty: ty.name() });
    }
    let rows: u64 = shape.iter().skip(1).product();
    let len = ty.row_bytes(cols).and_then(|row_bytes| row_bytes.checked_mul(rows));
    let len = len.and_then(|len| usize::try_from(len).ok());
    let start = usize::try_from(cursor.u64("a tensor's offset")?).ok();
    match (len, start) {
        (Some(len), Some(start)) => Ok(TensorInfo { name, shape, ty, part: 0, start, len }),
        _ => Err(GgufError::Shape { offset, name, shape }),
    }
}

/// Makes the tensors' offsets absolute and checks that each lies aligned within the file and that no two overlap.
fn place_tensors(
    tensors: &mut [TensorInfo],
    tables_end: usize,
    file_len: usize,
    alignment: u64,
) -> Result<(), GgufError> {
    let alignment_usize = alignment as usize;
    let data_start = tables_end.div_ceil(alignment_usize).saturating_mul(alignment_usize);
    for tensor in tensors.iter_mut() {
        let relative = tensor.start;
        tensor.start = data_start.saturating_add(relative);
        let (start, len) = (tensor.start as u64, tensor.len as u64);
        if !relative.is_multiple_of(alignment_usize) {
            return Err(GgufError::Misaligned { name: tensor.name.clone(), start, alignment });
        }
        if tensor.start.checked_add(tensor.len).is_none_or(|end| end > file_len) {
            return Err(GgufError::OutOfFile {
                name: tensor.name.clone(),
                start,
                len,
                file_len: file_len as u64,
            });
        }
    }

    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|&i| tensors[i as usize].start);
    for pair in order.windows(2) {
        let (before, after) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
        if before.start + before.len > after.start {
            return Err(GgufError::Overlap { name: after.name.clone(), other: before.name.clone() });
        }
    }
    Ok(())
}

/// A place in the bytes of a file. Every step forward is checked.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, wanted: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let left = self.left();
        if wanted > left {
            return Err(GgufError::Truncated { offset: self.at as u64, what, wanted, left });
        }
        let taken = &self.bytes[self.at..self.at + wanted as usize];
        self.at += wanted as usize;
        Ok(taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(*bytes.first_chunk().expect("4 bytes were taken")))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(*bytes.first_chunk().expect("8 bytes were taken")))
    }

    /// A count of things of at least `bytes_each`: within its limit, and the rest of the file has room for them.
    fn count(&mut self, what: &'static str, limit: u64, bytes_each: u64) -> Result<usize, GgufError> {
        let offset = self.at as u64;
        let count = self.u64(what)?;
        if count > limit {
            return Err(GgufError::TooMany { offset, what, count, limit });
        }
        let (wanted, left) = (count * bytes_each, self.left());
        if wanted > left {
            return Err(GgufError::Truncated { offset, what, wanted, left });
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: &'static str, limit: u64) -> Result<Span, GgufError> {
        let offset = self.at as u64;
        let len = self.u64(what)?;
        if len > limit {
            return Err(GgufError::TooMany { offset, what: "bytes of a string", count: len, limit });
        }
        let start = self.at;
        self.take(len, what)?;
        Ok(Span { start, len: len as usize })
    }

    fn text(&mut self, what: &'static str, limit: u64) -> Result<Span, GgufError> {
        let offset = self.at as u64;
        let span = self.string(what, limit)?;
        match std::str::from_utf8(span.of(self.bytes)) {
            Ok(_) => Ok(span),
            Err(_) => Err(GgufError::NotUtf8 { offset, what }),
        }
    }

    fn name(&mut self, what: &'static str, limit: u64) -> Result<Span, GgufError> {
        let offset = self.at as u64;
        let span = self.text(what, limit)?;
        if span.len == 0 {
            return Err(GgufError::EmptyName { offset, what });
        }
        Ok(span)
    }
}
