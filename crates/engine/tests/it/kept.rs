//! What is kept of requests: who begins with the same tokens, a cache that is too small for all, and one that is saved.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use engine::model::{Listener, Model, News};
use engine::{Engine, EngineConfig, OpenOptions, PAGE, Pool, Request};
use twox_hash::XxHash3_64;

use crate::Folder;
use crate::generation::{Heard, generate, prompt, request, start, submit};

fn config() -> EngineConfig {
    EngineConfig { parallel: 2, context_tokens: 1024, ..EngineConfig::default() }
}

fn alone(request: Request) -> Heard {
    generate(&start(config()), request)
}

#[test]
fn what_requests_begin_with_is_computed_once() {
    let engine = start(config());
    let first = generate(&engine, request(300, 20));
    assert_eq!(first.finished.usage.cached_tokens, 0);
    // The same again: all but the last token are known.
    let again = generate(&engine, request(300, 20));
    assert_eq!((again.finished.usage.cached_tokens, again.bits()), (299, first.bits()));
    assert_eq!(engine.stats().cached_tokens_total, 299);
    // The next turn of a conversation.
    let mut turn = request(300, 20);
    turn.prompt.extend(first.ids());
    turn.prompt.extend(prompt(50));
    let next = generate(&engine, turn.clone());
    // The last token of an answer is chosen and not computed.
    assert_eq!(next.finished.usage.cached_tokens, 319);
    assert_eq!(next.bits(), alone(turn).bits());
    // One that parts from it in the middle of a page.
    let mut other = request(300, 20);
    other.prompt[200] ^= 1;
    let parted = generate(&engine, other.clone());
    assert_eq!(parted.finished.usage.cached_tokens, 200);
    assert_eq!(parted.bits(), alone(other).bits());
}

#[test]
fn a_cache_of_half_the_size_is_never_exceeded_and_all_finish() {
    let (streams, context_tokens) = (16, 2 * PAGE);
    let of_all = EngineConfig { parallel: streams, context_tokens, ..EngineConfig::default() };
    let half = EngineConfig { cache_tokens: Some(streams / 2 * context_tokens), ..of_all.clone() };
    // Each may fill its context, so half of them fit at once.
    let request = |n: usize| Request { max_tokens: None, ..request(20 + 7 * n, 0) };
    let want: Vec<Heard> = {
        let engine = start(of_all);
        (0..streams).map(|n| generate(&engine, request(n))).collect()
    };
    let engine = start(half);
    let running: Vec<_> = (0..streams).map(|n| submit(&engine, request(n))).collect();
    let mut most = 0;
    for (n, running) in running.into_iter().enumerate() {
        let heard = running.finish();
        assert_eq!(heard.bits(), want[n].bits(), "stream {n}");
        let stats = engine.stats();
        most = most.max(stats.kv_tokens_held);
        assert!(stats.kv_tokens_held <= stats.kv_tokens_capacity, "{stats:?}");
    }
    let capacity = engine.stats().kv_tokens_capacity;
    assert_eq!((capacity, most), (streams / 2 * context_tokens, capacity), "all of it was used");
}

/// An engine that keeps its cache at `path`, and what is said of that.
fn keeping(path: &Path) -> (Engine, Receiver<String>) {
    let (sender, said) = channel();
    let listener = Listener::new(move |news| {
        let said = match news {
            News::CacheLoaded { tokens, .. } => format!("loaded {tokens}"),
            News::CacheRefused { error, .. } => format!("refused: {error}"),
            News::CacheSaved { tokens, .. } => format!("saved {tokens}"),
            News::CacheNotSaved { error, .. } => format!("not saved: {error}"),
            _ => return,
        };
        let _ = sender.send(said);
    });
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/dunlin-demo.gguf");
    let options = OpenOptions { listener, ..OpenOptions::default() };
    let model = Model::open(&file, &options, &Pool::new(1), &mut |_| ()).expect("the demo model is sound");
    let config = EngineConfig { saved_cache: Some(path.to_owned()), ..config() };
    (Engine::start(model.into(), Pool::new(2), config), said)
}

#[test]
fn a_conversation_goes_on_after_a_restart() {
    let folder = Folder::new("saved");
    let path = folder.path().join("kv/demo.kv");
    let (engine, said) = keeping(&path);
    let first = generate(&engine, request(300, 20));
    drop(engine);
    assert_eq!(said.iter().collect::<Vec<_>>(), ["saved 319"]);

    let (engine, said) = keeping(&path);
    let mut turn = request(300, 20);
    turn.prompt.extend(first.ids());
    turn.prompt.extend(prompt(9));
    let next = generate(&engine, turn.clone());
    assert_eq!((next.finished.usage.cached_tokens, next.bits()), (319, alone(turn).bits()));
    // A process that was killed while it saved has left this, and one that is at work holds the other.
    let [left, held] = ["demo.77.tmp", "demo.78.tmp"].map(|name| path.with_file_name(name));
    fs::write(&left, "half").expect("written");
    let holder = fs::File::create(&held).expect("made");
    holder.lock().expect("locked");
    drop(engine);
    assert!(!left.exists() && held.exists());
    fs::remove_file(held).expect("removed");
    // A new end took the place of the old page's.
    assert_eq!(said.iter().collect::<Vec<_>>(), ["loaded 319", "saved 348"]);
    assert_eq!(fs::read_dir(folder.path().join("kv")).expect("a folder").count(), 1, "nothing else is left");
}

#[test]
fn a_saved_cache_is_used_only_if_it_is_sound_and_this_models() {
    let folder = Folder::new("spoiled");
    let path = folder.path().join("demo.kv");
    drop(generate(&keeping(&path).0, request(300, 20)));
    let sound = fs::read(&path).expect("just saved");
    let want = alone(request(300, 20));
    let check = |bytes: &[u8], expected: &str, cached: usize| {
        fs::write(&path, bytes).expect("the folder can be written");
        let (engine, said) = keeping(&path);
        let heard = generate(&engine, request(300, 20));
        let said = said.recv().expect("something is said");
        assert!(said.starts_with(expected), "{said} does not say {expected}");
        assert_eq!((heard.finished.usage.cached_tokens, heard.bits()), (cached, want.bits()), "{expected}");
    };
    let spoiled = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    check(&sound, "loaded 319", 299);
    check(&spoiled(0), "refused: it is not a saved cache", 0);
    check(&spoiled(8), "refused: it has version", 0);
    // Identity, then the table.
    check(&spoiled(30), "refused: it is damaged", 0);
    check(&spoiled(200), "refused: it is damaged", 0);
    check(&sound[..20], "refused: it is not a saved cache", 0);
    check(&sound[..100], "refused: it is damaged", 0);
    check(b"", "refused: it is not a saved cache", 0);
    // In the first page, in the last, and cut off in between: what comes before is used.
    check(&spoiled(sound.len() / 6), "loaded 0", 0);
    check(&spoiled(sound.len() - 100), "loaded 256", 256);
    check(&sound[..sound.len() / 2], "loaded 128", 128);

    // Another model's, and all else as it was.
    let mut foreign = sound.clone();
    foreign[28] ^= 1;
    let head_len = u64::from_le_bytes(foreign[12..20].try_into().expect("8 bytes")) as usize;
    let checksum = XxHash3_64::oneshot(&foreign[28..28 + head_len]);
    foreign[20..28].copy_from_slice(&checksum.to_le_bytes());
    check(&foreign, "refused: it belongs to another state of", 0);
}

#[test]
fn a_cache_that_cannot_be_saved_is_said_to_be() {
    let folder = Folder::new("unwritable");
    let path = folder.path().join("file/demo.kv");
    fs::write(folder.path().join("file"), "in the way").expect("the folder can be written");
    let (engine, said) = keeping(&path);
    generate(&engine, request(30, 5));
    drop(engine);
    let said: Vec<_> = said.iter().collect();
    assert!(said.last().is_some_and(|said| said.starts_with("not saved: ")), "{said:?}");
}
