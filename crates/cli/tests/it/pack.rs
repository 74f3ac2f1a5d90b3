//! `dunlin pack`, and packed files as `run` and `serve` use them.

use crate::process::{Listening, PATIENCE, dunlin, output, stdout, until};
use engine::gguf::{Gguf, GgufWriter, Value};
use serde_json::{Value as Json, json};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Instant;
use stdx::random::Random;

/// Bytes of matrices from which on packed weights are kept in a file, and some.
const LARGE_BYTES: u64 = 66 << 20;

/// A model that is large enough for a packed file, removed with its last user.
struct Large(PathBuf);

impl Large {
    fn get() -> Arc<Large> {
        static LAST: Mutex<Weak<Large>> = Mutex::new(Weak::new());
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        last.upgrade().unwrap_or_else(|| {
            let path = std::env::temp_dir().join(format!("dunlin-it-large-{}.gguf", std::process::id()));
            fs::write(&path, large_model()).expect("the folder for temporary files can be written");
            let large = Arc::new(Large(path));
            *last = Arc::downgrade(&large);
            large
        })
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("the folder for temporary files has a plain name")
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The demo model with its layers over and over. What it says makes no sense, but it says it.
fn large_model() -> Vec<u8> {
    let demo = Gguf::open(Path::new(&crate::process::demo())).expect("the demo model is in the checkout");
    let family = demo.str("general.architecture").expect("a string").expect("a family").to_owned();
    let count_key = format!("{family}.block_count");
    let layers = demo.u32(&count_key).expect("a number").expect("a number of layers") as usize;
    let of_layer = |i: usize| {
        let prefix = format!("blk.{i}.");
        demo.tensors().iter().filter(move |tensor| tensor.name.starts_with(&prefix))
    };
    let bytes_once: u64 = (0..layers).flat_map(of_layer).map(|tensor| tensor.len_bytes()).sum();
    let layers_wanted = layers * LARGE_BYTES.div_ceil(bytes_once) as usize;

    let mut writer = GgufWriter::new();
    for (key, value) in demo.metadata() {
        let value = if key == count_key { Value::U32(layers_wanted as u32) } else { value };
        writer.put_value(key, &value);
    }
    let mut tensors = Vec::new();
    for tensor in demo.tensors().iter().filter(|tensor| !tensor.name.starts_with("blk.")) {
        tensors.push((tensor.name.clone(), tensor));
    }
    for layer in 0..layers_wanted {
        for tensor in of_layer(layer % layers) {
            let part = tensor.name.splitn(3, '.').nth(2).expect("blk.N.NAME");
            tensors.push((format!("blk.{layer}.{part}"), tensor));
        }
    }
    for (name, tensor) in &tensors {
        writer.tensor(name, &tensor.shape, tensor.ty).expect("a possible tensor");
    }
    writer.into_bytes(|i, _| demo.data(tensors[i].1).to_vec()).expect("all data is there")
}

/// A model and a cache folder of a test's own.
struct Place {
    model: Arc<Large>,
    folder: PathBuf,
}

impl Place {
    fn new(name: &str) -> Place {
        let folder = std::env::temp_dir().join(format!("dunlin-it-pack-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Place { model: Large::get(), folder }
    }

    /// A command line with the model and the cache folder.
    fn arguments<'a>(&'a self, command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let folder = self.folder.to_str().expect("a plain name");
        [&[command, self.model.path(), "--cache-dir", folder], more].concat()
    }

    fn pack(&self, more: &[&str]) -> Output {
        output(&self.arguments("pack", more), "")
    }

    /// Packs with success; the path that is printed.
    fn packed(&self, more: &[&str]) -> PathBuf {
        PathBuf::from(stdout(&self.arguments("pack", more), "").trim_end())
    }

    /// A short answer, from the weights in the cache folder.
    fn answer(&self) -> (String, String) {
        let output = output(&self.arguments("run", &ASK), "");
        assert!(output.status.success(), "{output:?}");
        (text(&output.stdout), text(&output.stderr))
    }

    /// The same answer, from weights that are packed into memory.
    fn answer_from_memory(&self) -> String {
        let answer = stdout(&[&["run", self.model.path(), "--no-cache"], &ASK[..]].concat(), "");
        assert!(answer.chars().filter(|c| c.is_alphanumeric()).count() > 8, "it says something: {answer:?}");
        answer
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.join("packed")).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

const ASK: [&str; 6] = ["--raw", "--temperature", "0", "-n", "12", "the pump in hall 3"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
}

#[test]
fn a_file_is_made_kept_checked_and_mended() {
    let place = Place::new("mended");
    let missing = place.pack(&["--verify"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("there is no packed file"), "{missing:?}");

    let path = place.packed(&[]);
    let modified = || fs::metadata(&path).and_then(|file| file.modified()).expect("a file");
    let len = fs::metadata(&path).expect("a file").len();
    assert!(len > 64 << 20);
    let first = modified();
    let again = place.pack(&[]);
    assert!(text(&again.stderr).contains("there and sound"), "{again:?}");
    assert_eq!((place.packed(&[]), modified()), (path.clone(), first), "it is kept");
    assert!(place.pack(&["--verify"]).status.success());
    assert_eq!(place.packed(&["--force"]), path);
    assert_ne!(modified(), first, "it is made anew");

    flip(&path, len / 2);
    let damaged = place.pack(&["--verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    let said = text(&damaged.stderr);
    assert!(said.contains("is damaged") && said.contains("do not match their checksum"), "{said}");
    let mended = place.pack(&[]);
    assert!(text(&mended.stderr).contains("made anew"), "{mended:?}");
    assert!(place.pack(&["--verify"]).status.success());
    assert_eq!(place.files(), [path]);
}

#[test]
fn json_says_where_how_large_and_how_fast() {
    let place = Place::new("json");
    let json = |more: &[&str]| -> Json {
        serde_json::from_slice(&place.pack(&[&["--json"], more].concat()).stdout).expect("one JSON object")
    };
    assert_eq!(json(&["--verify"])["state"], "missing");
    let created = json(&[]);
    assert_eq!(created["state"], "created");
    let path = Path::new(created["path"].as_str().expect("a path"));
    let bytes = fs::metadata(path).expect("a file").len();
    assert_eq!(created["bytes"], bytes);
    let speed = bytes as f64 / created["seconds"].as_f64().expect("seconds");
    assert!((created["bytes_per_second"].as_f64().expect("a speed") - speed).abs() <= 1.0);
    assert_eq!((&json(&[])["state"], &json(&["--verify"])["state"]), (&json!("sound"), &json!("sound")));
    flip(path, bytes - 1);
    let damaged = json(&["--verify"]);
    assert_eq!((&damaged["state"], &damaged["bytes_per_second"]), (&json!("damaged"), &Json::Null));
    assert!(damaged["fault"].as_str().is_some_and(|fault| fault.contains("checksum")), "{damaged}");
}

#[test]
fn there_is_a_file_for_each_kind_of_bytes() {
    let place = Place::new("kinds");
    let [scalar, neon, vnni] = ["scalar", "neon", "avx512-vnni"].map(|isa| place.packed(&["--isa", isa]));
    assert_eq!(scalar, neon, "both want signed bytes");
    assert_ne!(scalar, vnni);
    assert!(place.pack(&["--verify", "--isa", "neon-dotprod"]).status.success());
    assert_eq!(place.files().len(), 2);
}

#[test]
fn a_small_model_needs_no_file() {
    let demo = crate::process::demo();
    let output = output(&["pack", &demo, "--json"], "");
    assert!(output.status.success() && text(&output.stderr).contains("nothing to do"), "{output:?}");
    let json: Json = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&json["path"], &json["state"]), (&Json::Null, &json!("in_memory")));
}

#[test]
fn without_any_folder_one_is_asked_for() {
    let mut command = dunlin(&["pack", &crate::process::demo()]);
    for name in ["DUNLIN_CACHE_DIR", "XDG_CACHE_HOME", "HOME"] {
        command.env_remove(name);
    }
    let output = command.output().expect("the binary was built");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--cache-dir FOLDER"), "{output:?}");
}

#[test]
fn what_was_packed_ahead_is_what_run_uses() {
    let place = Place::new("ahead");
    let path = place.packed(&[]);
    let inode = fs::metadata(&path).expect("a file").ino();
    assert_eq!(place.answer(), (place.answer_from_memory(), String::new()));
    assert_eq!(place.files(), [path.as_path()]);
    assert_eq!(fs::metadata(&path).expect("a file").ino(), inode);
}

#[test]
fn run_answers_right_from_a_damaged_file_and_says_so() {
    let place = Place::new("damaged");
    let want = place.answer_from_memory();
    let path = place.packed(&[]);
    let len = fs::metadata(&path).expect("a file").len();
    for at in [100, len / 3, len - 1] {
        flip(&path, at);
        let (answer, said) = place.answer();
        assert_eq!(answer, want, "byte {at}");
        assert!(said.contains("damaged") && said.contains(&path.display().to_string()), "byte {at}: {said}");
        assert_eq!(place.packed(&[]), path);
    }
    assert_eq!(place.answer(), (want, String::new()));
}

#[test]
fn serve_answers_while_it_packs_and_the_same_afterwards() {
    let place = Place::new("serve");
    let want = place.answer_from_memory();
    let mut server = Listening::ready(&place.arguments("serve", &[]));
    let ask = || {
        let body = json!({"prompt": "the pump in hall 3", "temperature": 0, "max_tokens": 12});
        let json = server.post("/v1/completions", &body).json();
        json["choices"][0]["text"].as_str().expect("a text").to_owned()
    };
    let ratio = || server.metric("dunlin_weights_packed_ratio");
    assert_eq!(ask().trim_end(), want.trim_end());
    until("the weights are packed", || ratio() == 1.0);
    assert_eq!(ask().trim_end(), want.trim_end());
    assert!(place.pack(&["--verify"]).status.success());
    server.says("packing weights into");
    server.says("the weights are packed");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_server_that_ends_while_it_packs_leaves_nothing_behind() {
    let place = Place::new("ending");
    let mut server = Listening::ready(&place.arguments("serve", &["--threads", "1"]));
    until("packing has begun", || !place.files().is_empty());
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    // It may have been done before the signal came.
    let left = place.files();
    assert!(left.iter().all(|path| path.extension().is_some_and(|e| e == "packed")), "{left:?}");
}

fn start(arguments: &[&str]) -> Child {
    let mut command = dunlin(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary was built")
}

#[test]
fn a_killed_packing_leaves_nothing_that_is_trusted() {
    let place = Place::new("killed");
    let began = Instant::now();
    let path = place.packed(&[]);
    let whole = began.elapsed();
    let seed = 7;
    println!("seed {seed}, {whole:?} to pack");
    let mut random = Random::new(seed);
    let mut kept = 0;
    for round in 0..20 {
        fs::remove_file(&path).unwrap_or_default();
        let mut child = start(&place.arguments("pack", &[]));
        // The moment is what is random here; whatever it meets must be right.
        thread::sleep(whole.min(PATIENCE / 60).mul_f64(f64::from(random.f32()) * 1.1));
        child.kill().expect("killed");
        child.wait().expect("ended");
        let verified = place.pack(&["--verify"]);
        let said = text(&verified.stderr);
        match verified.status.code() {
            Some(0) => kept += 1,
            code => {
                assert!(code == Some(1) && said.contains("there is no packed file"), "round {round}: {said}");
            }
        }
    }
    println!("{kept} of 20 were done before they were killed");
    assert_eq!(place.answer().0, place.answer_from_memory());
    place.packed(&["--force"]);
    assert_eq!(place.files(), [path], "what the killed ones left is removed");
}

#[test]
fn processes_that_pack_at_once_all_answer_right() {
    let place = Place::new("together");
    let want = place.answer_from_memory();
    for _ in 0..2 {
        let children: Vec<Child> = (0..3).map(|_| start(&place.arguments("run", &ASK))).collect();
        for child in children {
            let output = child.wait_with_output().expect("ended");
            assert!(output.status.success(), "{output:?}");
            assert_eq!(text(&output.stdout), want);
            assert!(!text(&output.stderr).contains("warning"), "{output:?}");
        }
        let files = place.files();
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(place.pack(&["--verify"]).status.success());
        fs::remove_file(&files[0]).expect("removed");
    }
}

/// Runs dunlin where no file may grow beyond 1 MiB, which is what a full disk looks like to it.
fn on_a_full_disk(arguments: &[&str]) -> Output {
    let limited = "trap '' XFSZ; ulimit -f 2048 && exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_dunlin")]).args(arguments);
    command.stdin(Stdio::null()).output().expect("sh can be run")
}

#[test]
fn a_full_disk_is_an_error_of_pack_and_a_warning_of_run() {
    let place = Place::new("full");
    let packed = on_a_full_disk(&place.arguments("pack", &[]));
    let said = text(&packed.stderr);
    assert_eq!(packed.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write") && said.contains("hint: it takes"), "{said}");
    assert_eq!(place.files(), [] as [PathBuf; 0]);
    let ran = on_a_full_disk(&place.arguments("run", &ASK));
    assert_eq!(text(&ran.stdout), place.answer_from_memory(), "{ran:?}");
    assert!(text(&ran.stderr).contains("kept in memory only"), "{ran:?}");
    assert_eq!(place.files(), [] as [PathBuf; 0]);
}

#[test]
fn an_interrupted_packing_removes_what_it_began() {
    let place = Place::new("interrupted");
    let mut child = start(&place.arguments("pack", &["--threads", "1"]));
    until("packing has begun", || !place.files().is_empty());
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.expect("kill can be run").success());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    let code = child.wait().expect("ended").code();
    match code {
        // It was done before the signal came.
        Some(0) => assert!(place.pack(&["--verify"]).status.success()),
        _ => {
            assert!(code == Some(1) && said.contains("packing was stopped"), "{code:?}: {said}");
            assert_eq!(place.files(), [] as [PathBuf; 0]);
        }
    }
}
