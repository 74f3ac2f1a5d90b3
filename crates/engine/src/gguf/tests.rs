use std::error::Error;
use std::fs;

use proptest::prelude::*;

use super::*;

/// A file that uses every value type and has two tensors.
fn full() -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.put("general.architecture", "llama");
    writer.put("u8", 200u8);
    writer.put("i8", -100i8);
    writer.put("u16", 60_000u16);
    writer.put("i16", -30_000i16);
    writer.put("u32", 4_000_000_000u32);
    writer.put("i32", -2i32);
    writer.put("u64", u64::MAX);
    writer.put("i64", i64::MIN);
    writer.put("f32", 0.5f32);
    writer.put("f64", 0.25f64);
    writer.put("bool", true);
    writer.put_array("strings", &(0..100).map(|i| format!("token {i}")).collect::<Vec<_>>());
    writer.put_array("bytes", &[b"\xff\xfe".as_slice(), b"", b"ok"]);
    writer.put_array("f32s", &[1.0f32, -2.0]);
    writer.put_array("i32s", &[1i32, -2]);
    writer.put_array("i8s", &[7i8, 8]);
    writer.put_array("bools", &[true, false]);
    writer.put_array("empty", &[] as &[u32]);
    writer.tensor("a.weight", &[64, 3], GgmlType::Q4_0).unwrap();
    writer.tensor("b.weight", &[5], GgmlType::F32).unwrap();
    writer
}

fn full_bytes() -> Vec<u8> {
    full().into_bytes(|i, len| vec![i as u8 + 1; len]).unwrap()
}

#[test]
fn reads_what_the_writer_wrote() {
    for version in [2, 3] {
        let bytes = full().version(version).into_bytes(|i, len| vec![i as u8 + 1; len]).unwrap();
        let len = bytes.len() as u64;
        let gguf = Gguf::from_bytes(bytes).unwrap();
        assert_eq!((gguf.version(), gguf.len_bytes(), gguf.parts(), gguf.path()), (version, len, 1, None));
        assert_eq!(gguf.metadata().count(), 19);
        assert_eq!(gguf.metadata().next(), Some(("general.architecture", Value::Str("llama"))));

        let tensor = gguf.tensor("a.weight").unwrap();
        assert_eq!((tensor.info.cols(), tensor.info.rows(), tensor.info.elements()), (64, 3, 192));
        assert_eq!((tensor.info.ty, tensor.info.len_bytes()), (GgmlType::Q4_0, 3 * 36));
        assert_eq!(tensor.data, vec![1; 3 * 36]);
        assert_eq!(gguf.tensor("b.weight").unwrap().data, vec![2; 20]);
        assert_eq!(gguf.tensors()[1].start_bytes() % 32, 0);
        assert!(gguf.tensor("c.weight").is_none());
    }
}

#[test]
fn getters_widen_refuse_and_miss() {
    let gguf = Gguf::from_bytes(full_bytes()).unwrap();
    let text = |result: Result<String, GgufError>| result.unwrap_or_else(|error| error.to_string());
    fn show<T: std::fmt::Debug>(result: Result<Option<T>, GgufError>) -> Result<String, GgufError> {
        result.map(|value| format!("{value:?}"))
    }
    let cases = [
        (show(gguf.u32("u8")), "Some(200)"),
        (show(gguf.u32("u16")), "Some(60000)"),
        (show(gguf.u64("u64")), "Some(18446744073709551615)"),
        (show(gguf.u32("absent")), "None"),
        (show(gguf.u32("i32")), "metadata key \"i32\" holds -2, which does not fit u32"),
        (show(gguf.i32("i8")), "Some(-100)"),
        (show(gguf.u32("f32")), "metadata key \"f32\" must be u32, it is f32"),
        (show(gguf.f32("f32")), "Some(0.5)"),
        (show(gguf.f32("f64")), "Some(0.25)"),
        (show(gguf.f32("u8")), "metadata key \"u8\" must be a float, it is u8"),
        (show(gguf.bool("bool")), "Some(true)"),
        (show(gguf.bool("u8")), "metadata key \"u8\" must be a bool, it is u8"),
        (show(gguf.str("general.architecture")), "Some(\"llama\")"),
        (show(gguf.str("f32s")), "metadata key \"f32s\" must be a string, it is an array of f32"),
        (show(gguf.f32s("f32s")), "Some([1.0, -2.0])"),
        (show(gguf.i32s("i32s")), "Some([1, -2])"),
        (show(gguf.i32s("i8s")), "Some([7, 8])"),
        (show(gguf.u32s("i32s")), "metadata key \"i32s\" holds -2, which does not fit u32"),
        (
            show(gguf.u32s("strings")),
            "metadata key \"strings\" must be an array of u32, it is an array of string",
        ),
        (show(gguf.u32s("u8")), "metadata key \"u8\" must be an array of u32, it is u8"),
        (show(gguf.u32s("empty")), "Some([])"),
        (show(gguf.bools("bools")), "Some([true, false])"),
        (
            show(gguf.strings("bools").map(|strings| strings.map(|s| s.len()))),
            "metadata key \"bools\" must be an array of strings, it is an array of bool",
        ),
    ];
    for (result, expected) in cases {
        assert_eq!(text(result), expected);
    }
}

#[test]
fn string_arrays_are_reached_by_index_and_in_order() {
    let gguf = Gguf::from_bytes(full_bytes()).unwrap();
    let strings = gguf.strings("strings").unwrap().unwrap();
    assert_eq!(strings.len(), 100);
    for i in 0..100 {
        assert_eq!(strings.get_str(i), Some(format!("token {i}").as_str()));
    }
    assert_eq!(strings.get(100), None);
    assert_eq!(strings.iter().len(), 100);
    assert_eq!(strings.strs().collect::<Result<Vec<_>, _>>().unwrap()[99], "token 99");

    let bytes = gguf.strings("bytes").unwrap().unwrap();
    assert_eq!(bytes.iter().collect::<Vec<_>>(), [b"\xff\xfe".as_slice(), b"", b"ok"]);
    assert_eq!((bytes.get_str(0), bytes.get_str(2)), (None, Some("ok")));
    assert!(bytes.strs().next().unwrap().is_err());
}

/// A file byte by byte, for what the writer will not write.
struct Raw(Vec<u8>);

impl Raw {
    fn head(tensors: u64, key_values: u64) -> Raw {
        Raw(b"GGUF\x03\0\0\0".to_vec()).u64(tensors).u64(key_values)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn string(self, string: &[u8]) -> Raw {
        self.u64(string.len() as u64).bytes(string)
    }

    fn tensor(self, name: &str, shape: &[u64], ty: u32, start: u64) -> Raw {
        let raw = self.string(name.as_bytes()).u32(shape.len() as u32);
        shape.iter().fold(raw, |raw, &n| raw.u64(n)).u32(ty).u64(start)
    }

    /// Data without an end to speak of.
    fn data(self) -> Raw {
        self.bytes(&[0; 4096])
    }
}

#[test]
fn hostile_claims_are_refused_by_name() {
    let one_kv = || Raw::head(0, 1).string(b"k");
    let one_tensor = |shape: &[u64], ty, start| Raw::head(1, 0).tensor("t", shape, ty, start).data();
    let aligned = |value| Raw::head(0, 1).string(b"general.alignment").u32(4).u32(value).data();
    let many = u64::MAX;
    let cases: Vec<(Raw, &str)> = vec![
        (Raw(vec![]), "not a GGUF file: it starts with []"),
        (Raw(b"GGML....".to_vec()), "not a GGUF file: it starts with [47, 47, 4d, 4c]"),
        (Raw(b"GGUF\x01\0\0\0".to_vec()), "GGUF version 1 is not supported"),
        (Raw(b"GGUF\x04\0\0\0".to_vec()), "GGUF version 4 is not supported, only 2 and 3"),
        (Raw(b"GGUF\0\0\0\0".to_vec()), "GGUF version 0 is not supported"),
        (Raw(b"GGUF\0\0\0\x03".to_vec()), "a big-endian GGUF file is not supported"),
        (Raw(b"GGUF\x03\0".to_vec()), "the file ends inside the version: offset 4 wants 4 bytes, 2 are left"),
        (Raw::head(many, 0), "18446744073709551615 tensors at offset 8 are more than the limit of 262144"),
        (Raw::head(0, many), "metadata entries at offset 16 are more than the limit"),
        (Raw::head(1000, 0), "the file ends inside tensors: offset 8 wants 25000 bytes, 8 are left"),
        (Raw::head(0, 1).u64(many).data(), "bytes of a string at offset 24 are more than the limit of 65535"),
        (
            Raw::head(0, 1).u64(60_000).data(),
            "the file ends inside metadata key: offset 32 wants 60000 bytes",
        ),
        (Raw::head(0, 1).string(b"").data(), "empty metadata key at offset 24"),
        (Raw::head(0, 1).string(b"\xff").data(), "metadata key at offset 24 is not valid UTF-8"),
        (one_kv().u32(13).data(), "metadata key \"k\" at offset 33 has the unknown value type 13"),
        (one_kv().u32(7).bytes(&[2]), "metadata key \"k\" holds a boolean of 2 at offset 37"),
        (
            one_kv().u32(10).u32(0),
            "the file ends inside a metadata value: offset 37 wants 8 bytes, 4 are left",
        ),
        (one_kv().u32(8).string(b"\xff"), "a metadata string at offset 37 is not valid UTF-8"),
        (one_kv().u32(9).u32(9).u64(1).data(), "metadata key \"k\" at offset 37 holds an array of arrays"),
        (
            one_kv().u32(9).u32(77).u64(1).data(),
            "metadata key \"k\" at offset 37 has the unknown value type 77",
        ),
        (one_kv().u32(9).u32(4).u64(many).data(), "array elements at offset 41 are more than the limit"),
        (one_kv().u32(9).u32(4).u64(5000).data(), "ends inside array elements: offset 41 wants 20000 bytes"),
        (
            one_kv().u32(9).u32(8).u64(2).string(b"a").u64(9),
            "ends inside a string of an array: offset 66 wants 9",
        ),
        (
            one_kv().u32(9).u32(7).u64(2).bytes(&[1, 3]),
            "metadata key \"k\" holds a boolean of 3 at offset 50",
        ),
        (
            Raw::head(0, 2).string(b"k").u32(0).bytes(&[1]).string(b"k").u32(0).bytes(&[1]),
            "metadata key \"k\" appears twice",
        ),
        (aligned(0), "general.alignment is 0; it must be a power of two from 8 to 65536"),
        (aligned(48), "general.alignment is 48"),
        (aligned(4), "general.alignment is 4"),
        (aligned(1 << 17), "general.alignment is 131072"),
        (
            Raw::head(0, 1).string(b"general.alignment").u32(10).u64(32),
            "metadata key \"general.alignment\" must be u32, it is u64",
        ),
        (
            one_tensor(&[1, 1, 1, 1, 1], 0, 0),
            "tensor \"t\" at offset 24 has 5 dimensions; at most 4 are allowed",
        ),
        (one_tensor(&[4, 0], 0, 0), "tensor \"t\" at offset 24 has an impossible shape [4, 0]"),
        (one_tensor(&[1 << 40, 1 << 40], 0, 0), "tensor \"t\" at offset 24 has an impossible shape"),
        (one_tensor(&[1 << 62], 0, 0), "tensor \"t\" at offset 24 has an impossible shape"),
        (one_tensor(&[4], 99, 0), "tensor \"t\" at offset 24 has the unknown type 99"),
        (one_tensor(&[4], 31, 0), "has the type Q4_0_4_4, withdrawn from GGUF"),
        (one_tensor(&[33], 2, 0), "rows of tensor \"t\" have 33 weights, no multiple of 32 as Q4_0 needs"),
        (one_tensor(&[4], 0, 8), "data of tensor \"t\" starts at 72, not a multiple of the alignment 32"),
        (
            one_tensor(&[4], 0, 1 << 20),
            "data of tensor \"t\" (16 bytes from offset 1048640) does not lie within",
        ),
        (one_tensor(&[4], 0, many - 31), "data of tensor \"t\""),
        (Raw::head(1, 0).tensor("", &[4], 0, 0).data(), "empty tensor name at offset 24"),
        (Raw::head(1, 0).tensor(&"x".repeat(257), &[4], 0, 0).data(), "are more than the limit of 256"),
        (
            Raw::head(2, 0).tensor("a", &[16], 0, 0).tensor("b", &[16], 0, 32).data(),
            "data of tensor \"b\" overlaps that of \"a\"",
        ),
        (
            Raw::head(2, 0).tensor("a", &[16], 0, 0).tensor("a", &[16], 0, 64).data(),
            "tensor \"a\" appears twice",
        ),
    ];
    for (raw, expected) in cases {
        let error = Gguf::from_bytes(raw.0).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = full_bytes();
    // The last tensor's padding may be missing.
    let end =
        Gguf::from_bytes(bytes.clone()).unwrap().tensors().iter().map(|t| t.start + t.len).max().unwrap();
    for len in 0..end {
        assert!(Gguf::from_bytes(bytes[..len].to_vec()).is_err(), "{len} of {end}");
    }
    assert!(Gguf::from_bytes(bytes[..end].to_vec()).is_ok());
}

/// Part `no` of a split model, each with one tensor.
fn split_part(no: u16, count: u16, tensors: i32) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    if no == 0 {
        writer.put("general.architecture", "llama");
    }
    writer.put("split.no", no);
    writer.put("split.count", count);
    writer.put("split.tensors.count", tensors);
    writer.tensor(&format!("t{no}"), &[8], GgmlType::F32).unwrap();
    writer.into_bytes(|_, len| vec![no as u8; len]).unwrap()
}

#[test]
fn split_models_open_from_any_part() {
    let dir = tempdir("split-any");
    for no in 0..3 {
        fs::write(dir.join(format!("m-{:05}-of-00003.gguf", no + 1)), split_part(no, 3, 3)).unwrap();
    }
    for no in 1..=3 {
        let gguf = Gguf::open(&dir.join(format!("m-{no:05}-of-00003.gguf"))).unwrap();
        assert_eq!(gguf.path().unwrap(), dir.join("m-00001-of-00003.gguf"));
        assert_eq!((gguf.parts(), gguf.tensors().len()), (3, 3));
        assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
        for part in 0..3u8 {
            assert_eq!(gguf.tensor(&format!("t{part}")).unwrap().data, vec![part; 32]);
        }
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn split_models_that_do_not_fit_are_refused() {
    let dir = tempdir("split-bad");
    let path = |no: u16| dir.join(format!("m-{no:05}-of-00002.gguf"));
    let check = |expected: &str| {
        let error = chain(&Gguf::open(&path(1)).expect_err(expected));
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    };
    fs::write(path(1), split_part(0, 2, 2)).unwrap();
    check("part 2 of 2: ");
    fs::write(path(2), split_part(0, 2, 2)).unwrap();
    check("split.no is 0 of 2 where 1 of 2 is expected");
    fs::write(path(2), split_part(1, 2, 2)).unwrap();
    fs::write(path(1), split_part(0, 2, 3)).unwrap();
    check("the parts hold 2 tensors, split.tensors.count says 3");
    fs::write(path(1), split_part(0, 3, 3)).unwrap();
    check("part 1 of 3 of a split model, and its name does not end in \"-00001-of-00003.gguf\"");
    fs::write(path(1), split_part(0, 60_000, 3)).unwrap();
    check("split.count is 60000, the limit is 1024");
    fs::remove_dir_all(&dir).unwrap();

    let error = Gguf::from_bytes(split_part(0, 2, 2)).unwrap_err().to_string();
    assert!(error.contains("split.no is 0 of 2 where 0 of 1 is expected"), "{error}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempdir("unreadable");
    for (name, content) in [("empty.gguf", ""), ("text.gguf", "hello, world")] {
        fs::write(dir.join(name), content).unwrap();
        let error = chain(&Gguf::open(&dir.join(name)).unwrap_err());
        assert!(error.contains(name) && error.contains("not a GGUF file"), "{error}");
    }
    assert!(chain(&Gguf::open(&dir).unwrap_err()).contains("not a regular file"));
    assert!(matches!(Gguf::open(&dir.join("absent")), Err(GgufError::Io { .. })));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn values_survive_copying_into_another_file() {
    let gguf = Gguf::from_bytes(full_bytes()).unwrap();
    let mut copy = GgufWriter::new();
    gguf.metadata().for_each(|(key, value)| copy.put_value(key, &value));
    let copy = Gguf::from_bytes(copy.into_bytes(|_, _| vec![]).unwrap()).unwrap();
    assert!(copy.metadata().eq(gguf.metadata()));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = GgufWriter::new();
    assert!(writer.tensor("", &[1], GgmlType::F32).is_err());
    assert!(writer.tensor("t", &[33], GgmlType::Q4_0).is_err());
    assert!(writer.tensor("t", &[1, 0], GgmlType::F32).is_err());
    writer.tensor("t", &[2], GgmlType::F32).unwrap();
    let mut begun = writer.begin(Vec::new()).unwrap();
    begun.write(&[0; 3]).unwrap();
    assert!(begun.write(&[0; 6]).is_err());
    assert!(begun.finish().is_err());
}

/// Everything that a caller may ask of an opened file.
fn read_all(gguf: &Gguf) -> usize {
    let of_arrays: usize = gguf
        .metadata()
        .filter_map(|(_, value)| value.as_array())
        .map(|array| {
            array.scalars().len() + array.strings().map_or(0, |strings| strings.iter().map(<[u8]>::len).sum())
        })
        .sum();
    of_arrays + gguf.tensors().iter().map(|info| gguf.data(info).len()).sum::<usize>()
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut with_head = b"GGUF\x03\0\0\0".to_vec();
        with_head.extend(&bytes);
        prop_assert!(Gguf::from_bytes(bytes).is_err());
        let _ = Gguf::from_bytes(with_head).map(|gguf| read_all(&gguf));
    }

    #[test]
    fn mutated_files_never_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = full_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Gguf::from_bytes(bytes).map(|gguf| read_all(&gguf));
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn tempdir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("dunlin-gguf-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}
