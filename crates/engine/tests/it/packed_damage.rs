//! Damaged packed files: found before anything is shown, computed around, and made anew.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use engine::gguf::{GgmlType, Gguf};
use engine::model::packed::{Fault, PackedFile};
use engine::model::{Forward, Listener, Model, News, Outcome, SequenceStep};
use engine::{Engine, EngineConfig, Isa, KvCache, KvFormat, OpenOptions, Pool};
use stdx::random::Random;

use crate::generation::{generate, request};
use crate::grown;
use crate::packed_files::{Place, created, logits, open};
use crate::tiny::{LLAMA, Recipe, Tiny, WIDE};

/// The packed file of what lies in a place now.
fn packed_file(place: &Place) -> PackedFile {
    let gguf = Gguf::open(&place.model).expect("a sound model");
    PackedFile::new(&gguf, Isa::detect(), &place.cache()).expect("a known model")
}

fn flip(path: &Path, at: u64, bits: u8) {
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ bits], at).expect("written");
}

/// A listener that passes on what is said of damages.
fn damages() -> (Listener, Receiver<String>) {
    let (sender, heard) = channel();
    let sender = Mutex::new(sender);
    let listener = Listener::new(move |news| {
        if let News::Damaged { path, fault } = news {
            let said = format!("{}: {fault}", path.display());
            let _ = sender.lock().expect("no panic").send(said);
        }
    });
    (listener, heard)
}

/// Flips bits of one byte, opens the model, and expects what an undamaged one gives and a sound file afterwards.
fn check_flip(place: &Place, file: &PackedFile, at: u64, bits: u8, want: &[u32]) {
    let what = format!("byte {at} of {}, bits {bits:#04x}", file.len_bytes());
    flip(file.path(), at, bits);
    let (listener, heard) = damages();
    let model = open(&place.model, &OpenOptions { listener, ..place.options() });
    assert!(logits(&model) == want, "{what}: at once");
    model.settle();
    assert!(matches!(model.packing(), Outcome::Created { .. }), "{what}: {:?}", model.packing());
    assert!(logits(&model) == want, "{what}: from the new file");
    let said = heard.try_recv().unwrap_or_else(|_| panic!("{what}: nothing was said"));
    assert!(said.contains(&file.path().display().to_string()) && said.contains("byte"), "{what}: {said}");
    drop(model);
    file.check(&Pool::new(1), &AtomicBool::new(false))
        .unwrap_or_else(|fault| panic!("{what}: afterwards {fault}"));
}

#[test]
fn a_flipped_byte_anywhere_is_found_and_the_file_made_anew() {
    let place = Place::new("flips");
    // A matrix of these is not a whole number of pages, so that there is padding between them.
    place.install(&Tiny::new(Recipe { format: GgmlType::Q8_0, ..LLAMA }));
    let want = logits(&place.open());
    let file = packed_file(&place);
    let len = file.len_bytes();
    let seed = 11;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    // Magic, version, what is nothing, key, checksums of chunks, the front's own; ends of all pages, where matrices begin
    // and padding ends; and anywhere.
    let front = [0, 7, 8, 11, 12, 15, 16, 47, 48, 63, 64, 71, 72, 80, 4087, 4088, 4095];
    let pages = (0..len / 4096).flat_map(|page| [page * 4096, page * 4096 + 4095]);
    let anywhere: Vec<u64> = (0..200).map(|_| random.below(len)).collect();
    for at in front.into_iter().chain(pages).chain(anywhere) {
        check_flip(&place, &file, at, 1 << random.below(8), &want);
    }
}

#[test]
fn a_flipped_byte_in_any_chunk_is_found() {
    let place = Place::new("chunks");
    place.install(&Tiny::new(Recipe { format: GgmlType::F32, ..WIDE }));
    let want = logits(&place.open());
    let file = packed_file(&place);
    let chunk = 256 << 10;
    assert!(file.len_bytes() > 4 * chunk, "several chunks");
    for start in (4096..file.len_bytes()).step_by(chunk as usize) {
        let end = file.len_bytes().min(start + chunk);
        for at in [start, start + (end - start) / 2, end - 1] {
            check_flip(&place, &file, at, 0x80, &want);
        }
    }
}

/// One token's.
fn logits_of_one(model: &Model) -> Vec<u32> {
    let pool = Pool::new(2);
    let mut cache = KvCache::new(model, KvFormat::F16, 1, 1);
    let mut sequence = cache.open();
    assert!(cache.reserve(&mut sequence, 1), "the cache has a page");
    let step = SequenceStep { tokens: &[7], position: 0, sequence: &sequence, adapters: &[], outputs: 1 };
    let mut forward = Forward::new(model, &pool, 4096);
    forward.step(&[step], &mut cache).row(0).iter().map(|l| l.to_bits()).collect()
}

/// Experts are verified when a token is sent to them: a damage elsewhere is not even read.
#[test]
fn damaged_experts_are_found_before_they_are_asked() {
    for species in grown::LARGE_EXPERTS {
        let place = Place::new(&format!("experts-{}", species.family));
        fs::write(&place.model, grown::grow_bytes(species, 4)).expect("written");
        let want = logits_of_one(&place.open());
        let file = packed_file(&place);
        let (mut found, mut not_read) = (0, 0);
        let mut random = Random::new(3);
        for at in (4096..file.len_bytes()).step_by(1_200_000) {
            let bits = 1 << random.below(8);
            flip(file.path(), at, bits);
            let (listener, heard) = damages();
            let model = open(&place.model, &OpenOptions { listener, ..place.options() });
            assert!(logits_of_one(&model) == want, "{}, byte {at}", species.family);
            model.settle();
            if heard.try_recv().is_ok() {
                found += 1;
                assert!(matches!(model.packing(), Outcome::Created { .. }), "{:?}", model.packing());
                assert!(logits_of_one(&model) == want, "{}, byte {at}: from the new file", species.family);
            } else {
                not_read += 1;
                assert!(matches!(model.packing(), Outcome::Mapped { .. }), "{:?}", model.packing());
                flip(file.path(), at, bits);
            }
            drop(model);
            file.check(&Pool::new(2), &AtomicBool::new(false)).expect("a sound file");
        }
        assert!(found > 2 && not_read > 2, "{}: {found} found, {not_read} not read", species.family);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let place = Place::new("faults");
    let file = packed_file(&place);
    let pool = Pool::new(2);
    let check = || file.check(&pool, &AtomicBool::new(false));
    assert!(check().is_err_and(|fault| fault.is_missing()));
    drop(place.open());
    check().expect("a sound file");
    assert!(matches!(file.check(&pool, &AtomicBool::new(true)), Err(Fault::Stopped)));
    let len = file.len_bytes();
    let set_len =
        |len| File::options().write(true).open(file.path()).expect("a file").set_len(len).expect("set");
    let said = || check().expect_err("damaged").to_string();
    flip(file.path(), 17, 1);
    assert_eq!(said(), "its front (bytes 0 to 4096) is damaged or another model's");
    flip(file.path(), 17, 1);
    flip(file.path(), 4096 + 10, 1);
    flip(file.path(), len - 1, 1);
    assert!((256 << 10..512 << 10).contains(&(len - 4096)), "two chunks: {len} bytes");
    assert_eq!(said(), "the 262144 bytes from byte 4096 on do not match their checksum", "the first of two");
    flip(file.path(), len - 1, 1);
    flip(file.path(), 4096 + 10, 1);
    check().expect("as it was");
    for other in [0, 1, len - 1, len + 1] {
        set_len(other);
        assert!(matches!(check(), Err(Fault::Length { found, wanted }) if (found, wanted) == (other, len)));
    }
    fs::remove_file(file.path()).expect("removed");
    fs::create_dir(file.path()).expect("made");
    assert!(matches!(check(), Err(fault @ Fault::Open(_)) if !fault.is_missing()));
}

/// The demo model, which can speak, copied to a place of its own and packed into a file.
pub(crate) fn demo(name: &str) -> Place {
    let place = Place::new(name);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/dunlin-demo.gguf");
    fs::copy(path, &place.model).expect("copied");
    place
}

pub(crate) fn start(model: Model) -> Engine {
    let config = EngineConfig { parallel: 1, context_tokens: 512, ..EngineConfig::default() };
    Engine::start(Arc::new(model), Pool::new(2), config)
}

#[test]
fn no_token_comes_from_a_damaged_file() {
    let place = demo("tokens");
    let ask = |model| generate(&start(model), request(300, 8)).bits();
    let model = place.open();
    let path = created(&model);
    let want = ask(model);
    assert_eq!(ask(open(&place.model, &OpenOptions::default())), want);
    assert_eq!(ask(place.open()), want);
    let len = fs::metadata(&path).expect("a file").len();
    let mut random = Random::new(5);
    for _ in 0..12 {
        let at = 8192 + random.below(len - 8192);
        flip(&path, at, 0x40);
        assert_eq!(ask(place.open()), want, "byte {at}");
        drop(place.open());
    }
}
