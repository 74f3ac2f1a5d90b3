//! Weights that are packed while the model computes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use engine::gguf::{GgmlType, Gguf, Value};
use engine::model::{Listener, Model, News, Outcome, Packing, format_of};
use engine::{OpenOptions, Pool};

use crate::generation::{DEADLINE, generate, request, submit_gated};
use crate::packed_damage::{demo, start};
use crate::packed_files::{Place, created, logits, mapped, open};
use crate::tiny::{LLAMA, Recipe, Tiny, WIDE};

/// How a model is opened whose packing begins when the test says so.
struct Held {
    options: OpenOptions,
    /// Dropping it lets the packing go on.
    gate: Sender<()>,
    /// What was heard of the packing, a word each.
    heard: Receiver<&'static str>,
}

impl Held {
    fn new(place: &Place) -> Held {
        let (gate, opened) = channel::<()>();
        let (sender, heard) = channel();
        let shared = Mutex::new((opened, sender));
        let listener = Listener::new(move |news| {
            let (opened, sender) = &*shared.lock().expect("no panic");
            let word = match news {
                News::Started { .. } => "started",
                News::Done { .. } => "done",
                News::Damaged { .. } => "damaged",
                News::InMemory { .. } => "in memory",
                _ => return,
            };
            let _ = sender.send(word);
            if word == "started" {
                // Returns when the gate is dropped.
                let _ = opened.recv_timeout(DEADLINE);
            }
        });
        let options = OpenOptions { packing: Packing::Background, listener, ..place.options() };
        Held { options, gate, heard }
    }
}

#[track_caller]
fn assert_plain(model: &Model) {
    assert!(matches!(model.packing(), Outcome::Plain { .. }), "{:?}", model.packing());
    assert_eq!(model.packed().packed_bytes, 0);
}

#[track_caller]
fn assert_all_packed(model: &Model) {
    let packed = model.packed();
    assert_eq!(packed.packed_bytes, packed.total_bytes);
}

#[test]
fn logits_are_the_same_before_and_after_the_weights_are_packed() {
    let place = Place::new("meanwhile");
    for format in GgmlType::ALL.iter().copied().filter(|ty| format_of(*ty).is_some()) {
        place.install(&Tiny::new(Recipe { format, layers: 1, ..WIDE }));
        let want = logits(&open(&place.model, &OpenOptions::default()));
        let Held { options, gate, heard } = Held::new(&place);
        let model = open(&place.model, &options);
        assert_plain(&model);
        assert!(logits(&model) == want, "{} plain", format.name());
        drop(gate);
        model.settle();
        created(&model);
        assert_all_packed(&model);
        assert!(logits(&model) == want, "{} packed", format.name());
        drop((model, options));
        assert_eq!(heard.iter().collect::<Vec<_>>(), ["started", "done"]);
        mapped(&open(&place.model, &place.options()));
    }
}

#[test]
fn tokens_are_the_same_across_the_swap() {
    let place = demo("swap");
    let want = generate(&start(open(&place.model, &OpenOptions::default())), request(40, 30)).bits();
    let Held { options, gate, heard } = Held::new(&place);
    let engine = start(open(&place.model, &options));
    let stats = engine.stats();
    assert_eq!(stats.weights_packed_bytes, 0);
    // The first token comes from the plain weights; then the engine is held until the others are in their place.
    let (running, held) = submit_gated(&engine, request(40, 30));
    assert_plain(engine.model());
    drop(gate);
    engine.model().settle();
    created(engine.model());
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["started", "done"]);
    drop(held);
    assert_eq!(running.finish().bits(), want);
    let stats = engine.stats();
    assert_eq!(stats.weights_packed_bytes, stats.weights_bytes);
    assert_eq!(stats.weights_bytes, engine.model().bytes_per_token());
    assert_eq!(generate(&engine, request(40, 30)).bits(), want);
}

#[test]
fn a_file_that_another_made_meanwhile_is_used_if_it_is_sound() {
    let place = Place::new("elsewhere");
    let want = logits(&open(&place.model, &OpenOptions::default()));
    let Held { options, gate, .. } = Held::new(&place);
    let slow = open(&place.model, &options);
    let path = created(&place.open());
    drop(gate);
    slow.settle();
    assert_eq!(mapped(&slow), path);
    assert!(logits(&slow) == want);

    fs::remove_file(&path).expect("removed");
    let Held { options, gate, .. } = Held::new(&place);
    let slow = open(&place.model, &options);
    created(&place.open());
    let mut bytes = fs::read(&path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&path, bytes).expect("written");
    drop(gate);
    slow.settle();
    assert_eq!(created(&slow), path);
    assert!(logits(&slow) == want);
    assert_eq!(place.files(), [path.as_path()]);
}

#[test]
fn many_that_pack_at_once_do_not_disturb_each_other() {
    let place = Place::new("at-once");
    place.install(&Tiny::new(Recipe { format: GgmlType::F32, ..WIDE }));
    let want = logits(&open(&place.model, &OpenOptions::default()));
    for round in 0..5 {
        let options = |i: usize| {
            let packing = [Packing::First, Packing::Background][i % 2];
            OpenOptions { packing, ..place.options() }
        };
        let models: Vec<Model> = thread::scope(|scope| {
            let (place, options) = (&place, &options);
            let open = |i| scope.spawn(move || open(&place.model, &options(i)));
            let opening: Vec<_> = (0..6).map(open).collect();
            opening.into_iter().map(|thread| thread.join().expect("opened")).collect()
        });
        for model in &models {
            assert!(logits(model) == want, "round {round}");
            model.settle();
            let outcome = model.packing();
            assert!(matches!(outcome, Outcome::Created { .. } | Outcome::Mapped { .. }), "{outcome:?}");
            assert!(logits(model) == want, "round {round}, settled");
        }
        let files = place.files();
        assert!(files.len() == 1 && files[0].extension().is_some_and(|e| e == "packed"), "{files:?}");
        fs::remove_file(&files[0]).expect("removed");
    }
}

#[test]
fn stopping_leaves_a_whole_file_or_none() {
    let place = Place::new("stopped");
    place.install(&Tiny::new(Recipe { format: GgmlType::F32, ..WIDE }));
    let want = logits(&open(&place.model, &OpenOptions::default()));
    let options = OpenOptions { packing: Packing::Background, ..place.options() };
    let mut stopped = 0;
    for steps in 0..12 {
        let model = open(&place.model, &options);
        for _ in 0..steps % 4 {
            assert!(logits(&model) == want);
        }
        if steps < 6 {
            model.stop_packing();
            assert!(logits(&model) == want, "it computes on");
            stopped += usize::from(matches!(model.packing(), Outcome::Plain { .. }));
        }
        drop(model);
        let left = if place.cache().exists() { place.files() } else { Vec::new() };
        assert!(left.iter().all(|path| path.extension().is_some_and(|e| e == "packed")), "{left:?}");
        left.iter().for_each(|path| fs::remove_file(path).expect("removed"));
    }
    println!("{stopped} of 6 were stopped in time");
}

#[test]
fn where_no_file_can_be_made_the_weights_go_into_memory() {
    let place = Place::new("no-file");
    let want = logits(&open(&place.model, &OpenOptions::default()));
    fs::write(place.folder.path().join("cache"), "a file where a folder should be").expect("written");
    let Held { options, gate, heard } = Held::new(&place);
    let model = open(&place.model, &options);
    assert!(logits(&model) == want);
    drop(gate);
    model.settle();
    assert!(matches!(model.packing(), Outcome::MemoryInstead { .. }), "{:?}", model.packing());
    assert_all_packed(&model);
    assert!(logits(&model) == want);
    drop((model, options));
    assert_eq!(heard.iter().collect::<Vec<_>>(), ["started", "in memory", "done"]);
}

#[test]
fn a_read_only_folder_is_read_and_not_trusted() {
    let place = Place::new("read-only");
    let want = logits(&place.open());
    let path = place.files().remove(0);
    let set_mode = |mode| fs::set_permissions(place.cache(), Permissions::from_mode(mode)).expect("set");
    set_mode(0o555);
    if fs::write(place.cache().join("probe"), "").is_ok() {
        println!("skipped a_read_only_folder_is_read_and_not_trusted: this user may write everywhere");
        set_mode(0o755);
        return;
    }
    mapped(&place.open());
    let mut bytes = fs::read(&path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&path, bytes).expect("the file itself can be written");
    for _ in 0..2 {
        let model = place.open();
        assert!(logits(&model) == want);
        model.settle();
        assert!(matches!(model.packing(), Outcome::MemoryInstead { .. }), "{:?}", model.packing());
    }
    set_mode(0o755);
}

#[test]
fn the_rows_of_a_model_in_several_files_are_found() {
    let place = Place::new("parts");
    let whole = Tiny::new(LLAMA);
    let want = logits(&open(&place.model, &OpenOptions::default()));
    let tensors = whole.tensors.len();
    let part = |no: u16, range: std::ops::Range<usize>| {
        let mut part = Tiny { tensors: whole.tensors[range].to_vec(), ..whole.clone() };
        part.set("split.no", Value::U16(no));
        part.set("split.count", Value::U16(2));
        part.set("split.tensors.count", Value::I32(tensors as i32));
        part.bytes()
    };
    let gguf = || Gguf::from_parts(vec![part(0, 0..5), part(1, 5..tensors)]).expect("sound parts");
    let Held { options, gate, .. } = Held::new(&place);
    let model = Model::from_gguf(gguf(), &options, &Pool::new(1), &mut |_| ()).expect("a sound model");
    assert_plain(&model);
    assert!(logits(&model) == want);
    drop(gate);
    model.settle();
    created(&model);
    assert!(logits(&model) == want);
}
