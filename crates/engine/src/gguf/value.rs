//! Metadata values as views into the file's bytes: nothing is copied, arrays are validated once by the reader.

use std::fmt;

use super::GgufError;
use super::error::Found;

macro_rules! value_types {
    ($($variant:ident = $id:literal, $name:literal, $size:expr;)*) => {
        /// The type of a metadata value. The discriminant is the id in the file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum ValueType { $($variant = $id,)* }

        impl ValueType {
            pub(super) fn from_id(id: u32) -> Option<ValueType> {
                match id { $($id => Some(ValueType::$variant),)* _ => None }
            }

            pub fn id(self) -> u32 {
                self as u32
            }

            pub fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* }
            }

            /// Bytes of a value; `None` where they vary.
            pub(super) fn size(self) -> Option<usize> {
                match self { $(ValueType::$variant => $size,)* }
            }
        }
    };
}

value_types! {
    U8 = 0, "u8", Some(1);
    I8 = 1, "i8", Some(1);
    U16 = 2, "u16", Some(2);
    I16 = 3, "i16", Some(2);
    U32 = 4, "u32", Some(4);
    I32 = 5, "i32", Some(4);
    F32 = 6, "f32", Some(4);
    Bool = 7, "bool", Some(1);
    String = 8, "string", None;
    Array = 9, "array", None;
    U64 = 10, "u64", Some(8);
    I64 = 11, "i64", Some(8);
    F64 = 12, "f64", Some(8);
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// Any integer, widened.
    pub fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// Either float type, as the narrower: the engine computes in f32.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = *self { Some(v) } else { None }
    }

    pub fn as_str(&self) -> Option<&'a str> {
        if let Value::Str(v) = *self { Some(v) } else { None }
    }

    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Value::Array(v) = *self { Some(v) } else { None }
    }

    pub(super) fn found(&self) -> Found {
        match self {
            Value::Array(array) => Found::ArrayOf(array.ty()),
            other => Found::Scalar(other.ty()),
        }
    }

    pub fn ty(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// Reads a value of fixed size from the start of `bytes`; `None` for strings, arrays and too few bytes.
    pub(super) fn read_fixed(ty: ValueType, bytes: &[u8]) -> Option<Value<'static>> {
        Some(match ty {
            ValueType::U8 => Value::U8(*bytes.first()?),
            ValueType::I8 => Value::I8(*bytes.first()? as i8),
            ValueType::U16 => Value::U16(u16::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(*bytes.first_chunk()?)),
            ValueType::Bool => Value::Bool(*bytes.first()? != 0),
            ValueType::String | ValueType::Array => return None,
        })
    }
}

/// An array of metadata, still encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub(super) ty: ValueType,
    pub(super) len: usize,
    /// The elements as they lie in the file.
    pub(super) bytes: &'a [u8],
    /// For strings: where every [`INDEX_STRIDE`]th begins in `bytes`.
    pub(super) index: &'a [u32],
}

/// A string array's index has one entry for this many strings: finding one walks over at most 15 lengths, and the index
/// of 256 Ki strings takes 64 KiB.
pub(super) const INDEX_STRIDE: usize = 16;

impl<'a> Array<'a> {
    /// The type of the elements; never [`ValueType::Array`].
    pub fn ty(&self) -> ValueType {
        self.ty
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as the file holds them: little-endian numbers side by side, or strings each after its length as
    /// u64.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// As strings; `None` if the elements are of another type.
    pub fn strings(&self) -> Option<StringArray<'a>> {
        (self.ty == ValueType::String).then_some(StringArray(*self))
    }

    /// The numbers or booleans of the array in order; nothing if it holds strings.
    pub fn scalars(&self) -> impl ExactSizeIterator<Item = Value<'static>> + use<'a> {
        let ty = self.ty;
        let size = ty.size().unwrap_or(1);
        let bytes = if ty.size().is_some() { self.bytes } else { &[] };
        bytes
            .chunks_exact(size)
            .map(move |chunk| Value::read_fixed(ty, chunk).expect("a chunk has the size of its type"))
    }
}

/// An array of strings, as bytes: vocabularies hold tokens that are no valid UTF-8 by themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StringArray<'a>(Array<'a>);

impl<'a> StringArray<'a> {
    pub fn len(&self) -> usize {
        self.0.len
    }

    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The bytes of string `i`; `None` past the end.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        if i >= self.0.len {
            return None;
        }
        let start = *self.0.index.get(i / INDEX_STRIDE)? as usize;
        StringBytes { bytes: self.0.bytes.get(start..)?, left: self.0.len - i / INDEX_STRIDE * INDEX_STRIDE }
            .nth(i % INDEX_STRIDE)
    }

    /// String `i` as text; `None` past the end and where it is not valid UTF-8.
    pub fn get_str(&self, i: usize) -> Option<&'a str> {
        std::str::from_utf8(self.get(i)?).ok()
    }

    /// The bytes of every string in order.
    pub fn iter(&self) -> StringBytes<'a> {
        StringBytes { bytes: self.0.bytes, left: self.0.len }
    }

    /// Every string in order as text; an error where one is not valid UTF-8. Its offset counts from the array's start.
    pub fn strs(&self) -> impl Iterator<Item = Result<&'a str, GgufError>> + use<'a> {
        let mut next = 0;
        self.iter().map(move |bytes| {
            let offset = next;
            next += 8 + bytes.len() as u64;
            std::str::from_utf8(bytes)
                .map_err(|_| GgufError::NotUtf8 { offset, what: "a string of an array" })
        })
    }
}

impl<'a> IntoIterator for StringArray<'a> {
    type Item = &'a [u8];
    type IntoIter = StringBytes<'a>;

    fn into_iter(self) -> StringBytes<'a> {
        self.iter()
    }
}

/// Walks over strings that each follow their length.
#[derive(Clone, Debug)]
pub struct StringBytes<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for StringBytes<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (len, rest) = self.bytes.split_first_chunk()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let (string, rest) = rest.split_at_checked(len)?;
        self.bytes = rest;
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for StringBytes<'_> {}
