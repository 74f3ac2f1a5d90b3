//! Damages GGUF files at random and opens them: none may panic, and none may make the reader allocate more than
//! [`limits::OPEN_ALLOC_FACTOR`] allows.
//!
//! `DUNLIN_MUTATIONS` sets how many files, `DUNLIN_SEED` the first seed; a failure prints the seed of its file.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use engine::gguf::{GgmlType, Gguf, GgufError, GgufWriter, Value, limits};
use stdx::random::Random;

use crate::allocations::peak_bytes;

const MUTATIONS_DEFAULT: u64 = 500_000;
/// One file in this many goes through the disk and a memory map.
const ON_DISK_EVERY: u64 = 500;

/// One model: its files.
type Model = Vec<Vec<u8>>;

#[test]
fn damaged_files_never_panic_and_never_take_more_memory_than_allowed() {
    let mutations = env_number("DUNLIN_MUTATIONS", MUTATIONS_DEFAULT);
    let first_seed = env_number("DUNLIN_SEED", 1);
    let sound = sound_models();
    for (i, model) in sound.iter().enumerate() {
        let gguf =
            Gguf::from_parts(model.clone()).unwrap_or_else(|error| panic!("model {i} is not sound: {error}"));
        read_all(&gguf);
    }

    let mut opened = 0;
    for seed in first_seed..first_seed + mutations {
        let on_disk = seed.is_multiple_of(ON_DISK_EVERY);
        opened += u64::from(with_seed_on_failure(seed, || {
            let model = damaged(&sound, &mut Random::new(seed));
            if on_disk { open_on_disk(&model) } else { open(model) }
        }));
    }
    println!("{mutations} damaged files: {opened} opened all the same, {} refused", mutations - opened);
    if mutations >= 1000 {
        assert!(
            (mutations / 50..mutations).contains(&opened),
            "damage of {opened} of {mutations} went unnoticed"
        );
    }
}

/// Damages the tables of real files, which are larger and use what other writers use.
#[test]
fn damaged_reference_files_never_panic() {
    let Some(shared) = crate::shared("damaged_reference_files_never_panic") else { return };
    let read = |path: &str| fs::read(shared.join("conformance").join(path)).unwrap();
    let sound = ["stories260K-Q4_0.gguf", "quants/tiny-Q2_K.gguf", "tokenizers/llama-spm.gguf"]
        .map(|path| vec![read(path)]);
    let mutations = env_number("DUNLIN_MUTATIONS", MUTATIONS_DEFAULT) / 100;
    for seed in 0..mutations {
        with_seed_on_failure(seed, || open(damaged(&sound, &mut Random::new(seed))));
    }
}

fn env_number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

fn with_seed_on_failure<T>(seed: u64, f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        println!("failed at seed {seed}: DUNLIN_SEED={seed} DUNLIN_MUTATIONS=1 repeats it");
        resume_unwind(panic)
    })
}

/// Opens and reads everything, within the memory allowed. Whether it opened.
fn open(model: Model) -> bool {
    let len: usize = model.iter().map(Vec::len).sum();
    let (result, peak) = peak_bytes(|| Gguf::from_parts(model));
    let allowed = limits::OPEN_ALLOC_FACTOR * len as u64 + limits::OPEN_ALLOC_BASE_BYTES;
    assert!(peak <= allowed, "opening {len} bytes took {peak}, {allowed} are allowed");
    read_within(result, len, allowed)
}

fn open_on_disk(model: &Model) -> bool {
    let dir = std::env::temp_dir().join(format!("dunlin-mutations-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = |no: usize| dir.join(format!("m-{:05}-of-{:05}.gguf", no + 1, model.len()));
    for (no, bytes) in model.iter().enumerate() {
        fs::write(path(no), bytes).unwrap();
    }
    let opened = read_within(Gguf::open(&path(0)), 0, u64::MAX);
    fs::remove_dir_all(&dir).unwrap();
    opened
}

fn read_within(result: Result<Gguf, GgufError>, len: usize, allowed: u64) -> bool {
    match result {
        Ok(gguf) => {
            let ((), peak) = peak_bytes(|| read_all(&gguf));
            assert!(peak <= allowed, "reading {len} bytes took {peak}, {allowed} are allowed");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Everything that an engine may ask of an opened file.
fn read_all(gguf: &Gguf) {
    let keys: Vec<&str> = gguf.metadata().map(|(key, _)| key).collect();
    for key in keys {
        let value = gguf.get(key).expect("a listed key is found");
        let _ = (gguf.u32(key), gguf.u64(key), gguf.i32(key), gguf.f32(key), gguf.bool(key), gguf.str(key));
        let _ = (gguf.f32s(key), gguf.bools(key));
        let _ = (gguf.i32s(key), gguf.u32s(key));
        if let Ok(Some(strings)) = gguf.strings(key) {
            let in_order = strings.iter().count();
            assert_eq!(in_order, strings.len());
            assert!((0..strings.len()).step_by(7).all(|i| strings.get(i).is_some()));
            assert!(strings.get(strings.len()).is_none());
        }
        if let Value::Array(array) = value {
            assert!(array.strings().is_some() || array.scalars().len() == array.len());
        }
    }
    for info in gguf.tensors() {
        let tensor = gguf.tensor(&info.name).expect("a listed tensor is found");
        assert_eq!(tensor.data.len() as u64, info.len_bytes());
        assert_eq!(info.ty.row_bytes(info.cols()).unwrap() * info.rows(), info.len_bytes());
    }
}

/// Small files that together use all there is: both versions, alignments, every value and tensor type, splits.
fn sound_models() -> Vec<Model> {
    let small = |version| {
        let mut writer = model_head("llama", 4).version(version);
        writer.tensor("token_embd.weight", &[32, 4], GgmlType::F32).unwrap();
        writer.into_bytes(data).unwrap()
    };
    vec![
        vec![small(2)],
        vec![small(3)],
        vec![every_value_type()],
        vec![every_tensor_type()],
        vec![vocabulary(300)],
        vec![GgufWriter::new().into_bytes(data).unwrap()],
        (0..3).map(|no| split_part(no, 3)).collect(),
    ]
}

fn data(i: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(i as u64).fill(&mut bytes);
    bytes
}

fn model_head(arch: &str, blocks: u32) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.put("general.architecture", arch);
    writer.put(&format!("{arch}.block_count"), blocks);
    writer.put(&format!("{arch}.embedding_length"), 32u32);
    writer.put(&format!("{arch}.rope.freq_base"), 10_000f32);
    writer
}

fn every_value_type() -> Vec<u8> {
    let mut writer = GgufWriter::new().alignment(64);
    writer.put("u8", 1u8);
    writer.put("i8", -1i8);
    writer.put("u16", 2u16);
    writer.put("i16", -2i16);
    writer.put("u32", 3u32);
    writer.put("i32", -3i32);
    writer.put("f32", 0.5f32);
    writer.put("bool", true);
    writer.put("string", "text");
    writer.put("u64", 4u64);
    writer.put("i64", -4i64);
    writer.put("f64", 0.25f64);
    writer.put_array("u8s", &[1u8; 40]);
    writer.put_array("i8s", &[-1i8; 3]);
    writer.put_array("u16s", &[1u16; 3]);
    writer.put_array("i16s", &[1i16; 3]);
    writer.put_array("u32s", &[1u32; 3]);
    writer.put_array("i32s", &[1i32; 3]);
    writer.put_array("f32s", &[1f32; 3]);
    writer.put_array("bools", &[true, false]);
    writer.put_array("strings", &["a", "", "c"]);
    writer.put_array("u64s", &[1u64; 3]);
    writer.put_array("i64s", &[1i64; 3]);
    writer.put_array("f64s", &[1f64; 3]);
    writer.into_bytes(data).unwrap()
}

fn every_tensor_type() -> Vec<u8> {
    let mut writer = model_head("qwen3", 1);
    for (i, &ty) in GgmlType::ALL.iter().enumerate() {
        let shape = [ty.block_len(), 2, 1, 1];
        writer.tensor(&format!("blk.{i}.weight"), &shape[..1 + i % 4], ty).unwrap();
    }
    writer.into_bytes(data).unwrap()
}

fn vocabulary(len: u32) -> Vec<u8> {
    let mut writer = model_head("gemma3", 2);
    writer.put("tokenizer.ggml.model", "llama");
    writer.put_array("tokenizer.ggml.tokens", &(0..len).map(|i| format!("t{i}")).collect::<Vec<_>>());
    writer.put_array("tokenizer.ggml.scores", &vec![-1f32; len as usize]);
    writer.put_array("tokenizer.ggml.token_type", &vec![1i32; len as usize]);
    writer.into_bytes(data).unwrap()
}

fn split_part(no: u16, count: u16) -> Vec<u8> {
    let mut writer = if no == 0 { model_head("llama", 1) } else { GgufWriter::new() };
    writer.put("split.no", no);
    writer.put("split.count", count);
    writer.put("split.tensors.count", i32::from(count) * 2);
    for i in 0..2 {
        writer.tensor(&format!("blk.{no}.{i}"), &[32, 2], GgmlType::Q8_0).unwrap();
    }
    writer.into_bytes(data).unwrap()
}

/// One of the models with one to six injuries to one of its files.
fn damaged(sound: &[Model], random: &mut Random) -> Model {
    let mut model = pick(sound, random).clone();
    let file = random.below(model.len() as u64) as usize;
    for _ in 0..=random.below(6) {
        let donor: &Model = pick(sound, random);
        let donor: &Vec<u8> = pick(donor, random);
        injure(&mut model[file], donor, random);
    }
    model
}

fn pick<'a, T>(of: &'a [T], random: &mut Random) -> &'a T {
    &of[random.below(of.len() as u64) as usize]
}

fn injure(bytes: &mut Vec<u8>, donor: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let at = place(bytes, random);
    match random.below(10) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.u64() as u8,
        2 => bytes.truncate(at),
        3 => overwrite(bytes, at, &hostile_count(random).to_le_bytes()),
        4 => overwrite(bytes, at, &(hostile_count(random) as u32).to_le_bytes()),
        5 => overwrite(bytes, *pick(&[4, 8, 16, 24], random), &hostile_count(random).to_le_bytes()),
        // A small step in a length, an offset or a type keeps most of the file plausible.
        6 => bytes[at] = bytes[at].wrapping_add(*pick(&[1, 2, 31, 32, 255, 254], random)),
        7 => splice(bytes, at, donor, random),
        8 => {
            let end = (at + random.below(64) as usize).min(bytes.len());
            bytes.drain(at..end);
        }
        _ => {
            let inserted = data(random.below(1 << 32) as usize, random.below(64) as usize);
            bytes.splice(at..at, inserted);
        }
    }
}

/// Mostly within the tables at the start of the file, where the structure is.
fn place(bytes: &[u8], random: &mut Random) -> usize {
    let within = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(1024) };
    random.below(within as u64) as usize
}

fn hostile_count(random: &mut Random) -> u64 {
    let edges = [
        0,
        1,
        u64::from(u32::MAX),
        1 << 31,
        1 << 32,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
        u64::MAX - 31,
        limits::KEY_VALUES_MAX,
        limits::TENSORS_MAX,
        limits::STRING_BYTES_MAX,
        limits::ARRAY_LEN_MAX,
        limits::ARRAY_LEN_MAX + 1,
        limits::KEY_BYTES_MAX,
    ];
    let around = [0, 0, 1, u64::MAX];
    match random.below(4) {
        0 => random.u64() >> random.below(64),
        1 => random.below(64),
        _ => pick(&edges, random).wrapping_add(*pick(&around, random)),
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(with) {
        *to = *from;
    }
}

fn splice(bytes: &mut Vec<u8>, at: usize, donor: &[u8], random: &mut Random) {
    let from = random.below(donor.len() as u64) as usize;
    let piece = &donor[from..(from + random.below(256) as usize).min(donor.len())];
    let end = if random.below(2) == 0 { at } else { (at + piece.len()).min(bytes.len()) };
    bytes.splice(at..end, piece.iter().copied());
}
