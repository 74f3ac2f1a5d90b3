//! Packed files: when they are made, mapped, made anew and removed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use engine::model::{Forward, Model, Outcome, Outline, Progress, SequenceStep};
use engine::{Isa, KvCache, KvFormat, OpenOptions, Pool};

use crate::Folder;
use crate::tiny::{LLAMA, Recipe, Tiny, WIDE};

/// A model file and a cache folder, which is made when it is needed.
pub(crate) struct Place {
    pub(crate) folder: Folder,
    pub(crate) model: PathBuf,
}

impl Place {
    pub(crate) fn new(name: &str) -> Place {
        let folder = Folder::new(&format!("packed-{name}"));
        let model = folder.path().join("model.gguf");
        let place = Place { folder, model };
        place.install(&Tiny::new(LLAMA));
        place
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache").join("packed")
    }

    /// Puts a model file in place of the one there, as models are installed: by renaming.
    pub(crate) fn install(&self, tiny: &Tiny) {
        let new = self.folder.path().join("new");
        fs::write(&new, tiny.bytes()).expect("written");
        fs::rename(new, &self.model).expect("renamed");
    }

    /// How models of any size are packed into files.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions { cache: Some(self.cache()), memory_packed_bytes_max: 0, ..OpenOptions::default() }
    }

    pub(crate) fn open(&self) -> Model {
        open(&self.model, &self.options())
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache()).expect("a cache folder");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    }
}

pub(crate) fn open(model: &Path, options: &OpenOptions) -> Model {
    Model::open(model, options, &Pool::new(1), &mut |_| ()).expect("a sound model")
}

#[track_caller]
pub(crate) fn created(model: &Model) -> PathBuf {
    match model.packing() {
        Outcome::Created { path } => path,
        other => panic!("created, not {other:?}"),
    }
}

#[track_caller]
pub(crate) fn mapped(model: &Model) -> PathBuf {
    match model.packing() {
        Outcome::Mapped { path } => path,
        other => panic!("mapped, not {other:?}"),
    }
}

pub(crate) fn logits(model: &Model) -> Vec<u32> {
    let pool = Pool::new(1);
    let mut cache = KvCache::new(model, KvFormat::F16, 8, 1);
    let mut sequence = cache.open();
    assert!(cache.reserve(&mut sequence, 8), "the cache has a page");
    let tokens = &[1, 5, 60, 2, 2, 33, 7, 8];
    let step = SequenceStep { tokens, position: 0, sequence: &sequence, adapters: &[], outputs: 8 };
    let mut forward = Forward::new(model, &pool, 4096);
    let rows = forward.step(&[step], &mut cache);
    (0..rows.count()).flat_map(|r| rows.row(r).iter().map(|l| l.to_bits())).collect()
}

#[test]
fn a_file_is_created_once_and_then_mapped() {
    let place = Place::new("once");
    let first = place.open();
    let path = created(&first);
    assert_eq!(place.files(), [path.as_path()], "nothing else stays behind");
    let (second, third) = (place.open(), place.open());
    assert_eq!((mapped(&second), mapped(&third)), (path.clone(), path), "both share the file");
}

#[test]
fn logits_are_the_same_wherever_the_weights_are() {
    let place = Place::new("logits");
    let formats = ["F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q2_K", "Q5_K"];
    for format in formats {
        let format = engine::gguf::GgmlType::from_name(format).expect("a type");
        place.install(&Tiny::new(Recipe { format, layers: 1, ..WIDE }));
        let in_memory = open(&place.model, &OpenOptions::default());
        assert!(matches!(in_memory.packing(), Outcome::Memory));
        let want = logits(&in_memory);
        let model = place.open();
        created(&model);
        assert!(logits(&model) == want, "{format} created");
        let model = place.open();
        mapped(&model);
        assert!(logits(&model) == want, "{format} mapped");
    }
}

#[test]
fn small_models_and_those_without_a_cache_are_packed_into_memory() {
    let place = Place::new("memory");
    let bytes = Outline::read(&Tiny::new(LLAMA).gguf()).expect("a sound model").packed_bytes;
    let memory = [
        OpenOptions { memory_packed_bytes_max: bytes, ..place.options() },
        OpenOptions { cache: Some(place.cache()), ..OpenOptions::default() },
        OpenOptions { cache: None, ..place.options() },
    ];
    for options in memory {
        assert!(matches!(open(&place.model, &options).packing(), Outcome::Memory), "{options:?}");
        assert!(!place.cache().exists());
    }
    created(&open(&place.model, &OpenOptions { memory_packed_bytes_max: bytes - 1, ..place.options() }));
}

#[test]
fn progress_goes_from_nothing_to_everything_and_a_map_has_none() {
    let place = Place::new("progress");
    let watch = || {
        let mut seen: Vec<Progress> = Vec::new();
        Model::open(&place.model, &place.options(), &Pool::new(1), &mut |p| seen.push(p)).expect("sound");
        seen
    };
    let seen = watch();
    assert_eq!(seen[0].packed_bytes, 0);
    assert!(seen.is_sorted_by_key(|p| p.packed_bytes));
    let last = seen.last().expect("some progress");
    assert_eq!(last.packed_bytes, last.total_bytes);
    assert_eq!(watch(), []);
}

/// What a crash, a full disk or a stranger may leave under a packed file's name.
#[test]
fn a_damaged_file_is_made_anew() {
    let place = Place::new("damaged");
    let model = place.open();
    let (path, want) = (created(&model), logits(&model));
    drop(model);
    let len = fs::metadata(&path).expect("a file").len();
    let file = || File::options().write(true).open(&path).expect("a file");
    let flip = |at: u64| file().write_all_at(&[0xa5], at).expect("written");
    let damages: [(&str, &dyn Fn()); 8] = [
        ("magic", &|| flip(0)),
        ("version", &|| flip(8)),
        ("key", &|| flip(47)),
        ("one byte short", &|| file().set_len(len - 1).expect("cut")),
        ("half", &|| file().set_len(len / 2).expect("cut")),
        ("empty", &|| file().set_len(0).expect("cut")),
        ("one byte long", &|| file().set_len(len + 1).expect("extended")),
        ("gone", &|| fs::remove_file(&path).expect("removed")),
    ];
    for (what, damage) in damages {
        damage();
        let model = place.open();
        assert!(matches!(model.packing(), Outcome::Created { .. }), "{what}: {:?}", model.packing());
        assert!(logits(&model) == want, "{what}");
        drop(model);
        mapped(&place.open());
    }
}

#[test]
fn a_changed_model_is_packed_anew_and_its_old_file_removed() {
    let place = Place::new("changed");
    let old = place.open();
    let old_path = created(&old);
    place.install(&Tiny::new(Recipe { seed: 2, ..LLAMA }));
    let new = place.open();
    let new_path = created(&new);
    assert_ne!(old_path, new_path);
    assert_eq!(place.files(), [new_path.as_path()]);
    assert_ne!(logits(&old), logits(&new), "the old one still computes from its map");
}

#[test]
fn another_models_file_stays() {
    let place = Place::new("others");
    let path = created(&place.open());
    let other = place.folder.path().join("other.gguf");
    fs::copy(&place.model, &other).expect("copied");
    let other_path = created(&open(&other, &place.options()));
    let mut both = [path, other_path];
    both.sort();
    assert_eq!(place.files(), both);
    mapped(&place.open());
}

#[test]
fn instruction_sets_do_not_remove_each_others_files() {
    let place = Place::new("sets");
    let all: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect();
    let Some(pair) = all.iter().find(|isa| isa.bytes() != all[0].bytes()).map(|isa| [all[0], *isa]) else {
        println!("skipped instruction_sets_do_not_remove_each_others_files: {all:?} share one kind of bytes");
        return;
    };
    let open = |isa| open(&place.model, &OpenOptions { isa, ..place.options() });
    let paths = pair.map(|isa| created(&open(isa)));
    assert_ne!(paths[0], paths[1]);
    assert_eq!(pair.map(|isa| mapped(&open(isa))), paths);
    place.install(&Tiny::new(Recipe { seed: 2, ..LLAMA }));
    for isa in pair {
        created(&open(isa));
    }
    assert_eq!(place.files().len(), 2, "each removes what is stale of its own");
}

#[test]
fn a_folder_that_cannot_be_made_means_memory_and_says_why() {
    let place = Place::new("unwritable");
    fs::write(place.folder.path().join("cache"), "a file where a folder should be").expect("written");
    let model = place.open();
    let Outcome::MemoryInstead { path, error } = model.packing() else {
        panic!("in memory instead, not {:?}", model.packing());
    };
    assert!(path.starts_with(place.cache()), "{}", path.display());
    assert_eq!(error.kind(), std::io::ErrorKind::NotADirectory, "{error}");
    assert!(logits(&model) == logits(&open(&place.model, &OpenOptions::default())));
}

#[test]
fn what_killed_processes_left_is_removed_and_what_others_write_is_not() {
    let place = Place::new("leftovers");
    let path = created(&place.open());
    fs::remove_file(&path).expect("removed");
    let model = path.to_str().and_then(|p| p.rsplit_once('-')).expect("a name with a key").0.to_owned();
    let left = [format!("{model}-00ff.77.tmp"), format!("{model}-11ee.{}.tmp", std::process::id())];
    let kept = [format!("{model}-22dd.78.tmp"), format!("{model}x-33cc.79.tmp")];
    left.iter().chain(&kept).for_each(|name| fs::write(name, "not whole").expect("written"));
    let writer = File::open(&kept[0]).expect("a file");
    writer.lock().expect("locked");

    assert_eq!(created(&place.open()), path);
    let mut want: Vec<_> = kept.iter().map(PathBuf::from).chain([path.clone()]).collect();
    want.sort();
    assert_eq!(place.files(), want);
}

/// Processes in containers of their own often have the same id.
#[test]
fn a_writer_with_the_same_process_id_is_left_alone() {
    let place = Place::new("same-id");
    let path = created(&place.open());
    fs::remove_file(&path).expect("removed");
    let temporary = path.with_extension(format!("{}.0.tmp", std::process::id()));
    let writer = File::create(&temporary).expect("created");
    writer.lock().expect("locked");
    assert_eq!(created(&place.open()), path);
    assert_eq!(place.files(), [temporary.as_path(), path.as_path()]);
    drop(writer);
    fs::remove_file(&path).expect("removed");
    assert_eq!(created(&place.open()), path);
    assert_eq!(place.files(), [path.as_path()]);
}
