//! What a GGUF file may claim. A larger claim is an error, whatever the size of the file.

/// Metadata entries. Large real files have about 60.
pub const KEY_VALUES_MAX: u64 = 65_536;
/// Tensors in one file. The largest public models have a few thousand.
pub const TENSORS_MAX: u64 = 262_144;
/// Bytes of a metadata key (GGUF specification: 2^16 - 1).
pub const KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of a tensor name. The specification says 64; forks of ggml raise it.
pub const TENSOR_NAME_BYTES_MAX: u64 = 256;
/// Bytes of one string, alone or in an array. Chat templates are the largest seen, about 100 KB.
pub const STRING_BYTES_MAX: u64 = 16 << 20;
/// Elements of one array. Vocabularies and merge lists are the largest seen, about half a million.
pub const ARRAY_LEN_MAX: u64 = 1 << 24;
/// Bytes of one array, so that an offset into it fits 32 bits.
pub const ARRAY_BYTES_MAX: u64 = u32::MAX as u64;
/// Dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
pub const DIMS_MAX: u32 = 4;
/// Elements of a tensor: ggml counts them in an `int64_t`.
pub const ELEMENTS_MAX: u64 = i64::MAX as u64;
/// `general.alignment`: a power of two of at least 8 (specification: a multiple of 8).
pub const ALIGNMENT_MIN: u64 = 8;
pub const ALIGNMENT_MAX: u64 = 65_536;
/// What `general.alignment` means when it is absent (specification).
pub const ALIGNMENT_DEFAULT: u64 = 32;
/// Files of one split model.
pub const SPLIT_PARTS_MAX: u64 = 1024;

/// Opening a file keeps at most this many bytes of heap alive for each byte of the file, plus
/// [`OPEN_ALLOC_BASE_BYTES`]: nothing is reserved for a count before the file is seen to be long enough for it.
pub const OPEN_ALLOC_FACTOR: u64 = 8;
pub const OPEN_ALLOC_BASE_BYTES: u64 = 16 << 10;
