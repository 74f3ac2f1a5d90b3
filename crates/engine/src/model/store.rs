//! Where a model's weights are now, and the thread that packs and verifies them while others compute.
//!
//! Weights are packed in memory, packed in a mapped file, or *plain*: the rows of the model file as they lie, packed strip
//! by strip whenever they are multiplied. All three give the same bits, so weights may be exchanged between two steps.
//! A mapped file is verified while the first step computes; [`Store::confirm`] holds back what was computed until that is
//! through. Experts are verified when a token is first sent to them, before they are computed with ([`Store::sound`]). A damaged
//! file is never computed with again: the plain weights take its place, and it is made anew.
//!
//! What it refuses to do: say anything (a [`Listener`] may), or trust a file because of its name.

use super::packed::{self, Deferred, Fault, Made, PackedFile, Work, packed_bytes, segments, source};
use super::weights::{Entry, Linear, Parts, Plan, Weights};
use super::{OpenOptions, Packing, Progress};
use crate::cache::SavedError;
use crate::gguf::Gguf;
use crate::mmap::Map;
use kernels::matrix::AlignedBytes;
use kernels::{Isa, Matrix, Pool};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// Threads that verify a file: as many as it takes to read at the speed of memory.
const VERIFY_THREADS_MAX: usize = 4;

/// What the threads that pack in the background add to their nice value: beside generation they get about a tenth of a
/// core (`sched_prio_to_weight` in Linux: 110 against 1024), and all of it when it is idle. Fewer would do others a
/// disservice, since they compute several times faster once the weights are packed.
const NICENESS: i32 = 10;

/// Where the weights are.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// In memory, because the model is small or no cache folder was given.
    Memory,
    /// Mapped from a file that was there.
    Mapped { path: PathBuf },
    /// Mapped from a file that was just made.
    Created { path: PathBuf },
    /// In memory, because the file could not be made.
    MemoryInstead { path: PathBuf, error: Arc<io::Error> },
    /// In the model file, as they lie there, while the packed file is being made.
    Plain { path: PathBuf },
}

/// What happens to a model's weights, and to what is kept of conversations, as it happens.
#[derive(Debug)]
pub enum News<'a> {
    /// Packing has begun in the background.
    Started { path: &'a Path },
    /// What was packed in the background is in use now.
    Done { path: &'a Path },
    /// The packed file is damaged. It is not used, removed, and made anew.
    Damaged { path: &'a Path, fault: &'a Fault },
    /// The packed file cannot be made; the weights are packed into memory.
    InMemory { path: &'a Path, error: &'a io::Error },
    /// What earlier conversations left behind was read, so many tokens.
    CacheLoaded { path: &'a Path, tokens: usize },
    /// A saved cache is not used.
    CacheRefused { path: &'a Path, error: &'a SavedError },
    /// What conversations leave behind was saved, so many tokens.
    CacheSaved { path: &'a Path, tokens: usize },
    /// It could not be.
    CacheNotSaved { path: &'a Path, error: &'a io::Error },
}

type Hear = dyn Fn(News<'_>) + Send + Sync;

/// Who is told of [`News`], on whichever thread there is some.
#[derive(Clone, Default)]
pub struct Listener(Option<Arc<Hear>>);

impl Listener {
    pub fn new(hear: impl Fn(News<'_>) + Send + Sync + 'static) -> Listener {
        Listener(Some(Arc::new(hear)))
    }

    fn tell(&self, news: News<'_>) {
        if let Some(hear) = &self.0 {
            hear(news);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({})", if self.0.is_some() { "someone" } else { "nobody" })
    }
}

/// A model's weights. Dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    gguf: Arc<Gguf>,
    plan: Arc<Plan>,
    parts: Arc<Parts>,
    key: [u8; 32],
    isa: Isa,
    listener: Listener,
    state: Mutex<State>,
    changed: Condvar,
    packed_bytes: AtomicU64,
    stop_packing: AtomicBool,
    stop_verifying: AtomicBool,
}

#[derive(Debug)]
struct State {
    weights: Arc<Weights>,
    outcome: Outcome,
    verdict: Verdict,
    /// The store's thread has something to do.
    working: bool,
    /// An expert is damaged.
    lost: Option<Fault>,
}

/// What is known of the weights that the model was opened with.
#[derive(Debug)]
enum Verdict {
    Sound,
    /// They are mapped from a file of which what every token reads is being verified.
    Pending,
    /// They are these, and not in use any more.
    Damaged(Weak<Weights>),
}

/// What the store's thread begins with.
enum Task {
    Verify(PackedFile, Arc<Map>),
    Pack(PackedFile),
}

impl Store {
    /// Finds or packs the weights. `progress` hears of what is packed before this returns.
    pub(crate) fn open(
        gguf: &Arc<Gguf>,
        plan: Plan,
        parts: Parts,
        options: &OpenOptions,
        pool: &Pool,
        progress: &mut dyn FnMut(Progress),
    ) -> Store {
        let (plan, parts) = (Arc::new(plan), Arc::new(parts));
        let (matrices, outcome, task) = first_matrices(gguf, &plan, options, pool, progress);
        let deferred = match &task {
            Some(Task::Verify(file, map)) => Deferred::new(file.clone(), Arc::clone(map)).map(Arc::new),
            _ => None,
        };
        let weights = Arc::new(Weights::new(Arc::clone(&parts), &matrices, deferred));
        let is_plain = matches!(outcome, Outcome::Plain { .. });
        let verdict = if matches!(task, Some(Task::Verify(..))) { Verdict::Pending } else { Verdict::Sound };
        let shared = Arc::new(Shared {
            gguf: Arc::clone(gguf),
            parts,
            key: packed::key(gguf, &plan, options.isa),
            packed_bytes: AtomicU64::new(if is_plain { 0 } else { plan.packed_bytes() }),
            plan,
            isa: options.isa,
            listener: options.listener.clone(),
            state: Mutex::new(State { weights, outcome, verdict, working: task.is_some(), lost: None }),
            changed: Condvar::new(),
            stop_packing: AtomicBool::new(false),
            stop_verifying: AtomicBool::new(false),
        });
        let worker = task.map(|task| {
            let (shared, threads) = (Arc::clone(&shared), pool.threads());
            let name = "dunlin-packer".to_owned();
            let spawned = thread::Builder::new().name(name).spawn(move || shared.work(task, threads));
            spawned.expect("a thread can be started")
        });
        Store { shared, worker }
    }

    /// The weights to compute the next step with.
    pub(crate) fn weights(&self) -> Arc<Weights> {
        Arc::clone(&self.shared.lock().weights)
    }

    /// Whether what was computed with `used` may be shown; waits until that is known. Where it may not be, others have
    /// taken their place.
    pub(crate) fn confirm(&self, used: &Arc<Weights>) -> bool {
        let pending = |state: &mut State| matches!(state.verdict, Verdict::Pending);
        match &self.shared.wait_while(pending).verdict {
            Verdict::Damaged(weights) => weights.as_ptr() != Arc::as_ptr(used),
            Verdict::Sound => true,
            Verdict::Pending => unreachable!("this was waited for"),
        }
    }

    /// What to compute with in place of `used`, where some of its experts' matrices are damaged.
    pub(crate) fn sound<'l>(
        &self,
        used: &Weights,
        linears: impl Iterator<Item = &'l Linear>,
        pool: &Pool,
    ) -> Option<Arc<Weights>> {
        let fault = used.verify(linears, pool).err()?;
        Some(self.shared.lose(used, fault))
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.shared.lock().outcome.clone()
    }

    pub(crate) fn progress(&self) -> Progress {
        let total_bytes = self.shared.plan.packed_bytes();
        Progress { packed_bytes: self.shared.packed_bytes.load(Ordering::Relaxed), total_bytes }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    /// Over everything that the packed weights depend on.
    pub(crate) fn key(&self) -> [u8; 32] {
        self.shared.key
    }

    /// Tells whoever hears of the weights.
    pub(crate) fn tell(&self, news: News<'_>) {
        self.shared.listener.tell(news);
    }

    /// Waits until nothing is verified or packed any more.
    pub(crate) fn settle(&self) {
        drop(self.shared.wait_while(|state| state.working));
    }

    /// Ends packing in the background, now or later, and waits until what was begun is removed.
    pub(crate) fn stop_packing(&self) {
        self.shared.stop_packing.store(true, Ordering::Release);
        let packing = |state: &mut State| state.working && matches!(state.outcome, Outcome::Plain { .. });
        drop(self.shared.wait_while(packing));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.stop_packing.store(true, Ordering::Release);
        self.shared.stop_verifying.store(true, Ordering::Release);
        // Who waits for a fault hears of it.
        self.shared.change(|_| ());
        if let Some(worker) = self.worker.take() {
            // A panic was reported when it happened; there is nothing to add here.
            let _ = worker.join();
        }
    }
}

/// What a model is opened with, and what is left to do then.
fn first_matrices(
    gguf: &Arc<Gguf>,
    plan: &Arc<Plan>,
    options: &OpenOptions,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress),
) -> (Vec<Matrix>, Outcome, Option<Task>) {
    let (isa, listener) = (options.isa, &options.listener);
    let mut work = Work { progress, stop: &AtomicBool::new(false), gentle: false };
    let in_memory =
        |work: &mut Work<'_>| pack_in_memory(gguf, plan, isa, pool, work).expect("nobody stops this work");
    let large = plan.packed_bytes() > options.memory_packed_bytes_max;
    let Some(folder) = options.cache.as_deref().filter(|_| large) else {
        return (in_memory(&mut work), Outcome::Memory, None);
    };
    let file = PackedFile::of_plan(gguf, Arc::clone(plan), isa, folder);
    let path = file.path().to_owned();
    match file.open() {
        Ok(map) => {
            let map = Arc::new(map);
            return (file.matrices(&map), Outcome::Mapped { path }, Some(Task::Verify(file, map)));
        }
        Err(fault) if fault.is_damage() => {
            listener.tell(News::Damaged { path: &path, fault: &fault });
            file.remove(&fault);
        }
        Err(_) => {}
    }
    if options.packing == Packing::Background {
        return (plain(gguf, plan, isa), Outcome::Plain { path }, Some(Task::Pack(file)));
    }
    match file.create(gguf, pool, &mut work) {
        Ok(made) => {
            let (matrices, outcome) = of_file(&file, made);
            (matrices, outcome, None)
        }
        Err(error) => {
            listener.tell(News::InMemory { path: &path, error: &error });
            let error = Arc::new(error);
            (in_memory(&mut work), Outcome::MemoryInstead { path, error }, None)
        }
    }
}

fn of_file(file: &PackedFile, made: Made) -> (Vec<Matrix>, Outcome) {
    let path = file.path().to_owned();
    match made {
        Made::Here(map) => (file.matrices(&Arc::new(map)), Outcome::Created { path }),
        Made::Elsewhere(map) => (file.matrices(&Arc::new(map)), Outcome::Mapped { path }),
    }
}

/// The matrices as they lie in the model file.
fn plain(gguf: &Arc<Gguf>, plan: &Plan, isa: Isa) -> Vec<Matrix> {
    let matrix = |entry: &Entry| {
        let info = gguf.tensor(&entry.tensor).expect("checked when planned").info;
        let (file, range) = gguf.file_of(info);
        Matrix::plain(entry.shape, isa, Arc::new(file), range).expect("a tensor has the length of its shape")
    };
    plan.entries.iter().map(matrix).collect()
}

fn pack_in_memory(
    gguf: &Gguf,
    plan: &Plan,
    isa: Isa,
    pool: &Pool,
    work: &mut Work<'_>,
) -> io::Result<Vec<Matrix>> {
    let mut progress = Progress { packed_bytes: 0, total_bytes: plan.packed_bytes() };
    (work.progress)(progress);
    let mut matrices = Vec::with_capacity(plan.entries.len());
    for entry in &plan.entries {
        let len = packed_bytes(entry.shape);
        let mut storage = AlignedBytes::zeroed(len);
        for (strips, range) in segments(entry.shape) {
            work.go_on()?;
            progress.packed_bytes += range.len() as u64;
            let out = &mut storage.as_mut_slice()[range];
            entry.shape.pack_strips(isa, pool, source(gguf, entry), strips, out);
            (work.progress)(progress);
        }
        let matrix = Matrix::new(entry.shape, isa, Arc::new(storage), 0..len);
        matrices.push(matrix.expect("the storage has the packed length"));
    }
    Ok(matrices)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.lock(), condition).unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The store's thread.
    fn work(&self, task: Task, threads: usize) {
        match task {
            Task::Pack(file) => self.pack(&file, threads),
            Task::Verify(file, map) => {
                let pool = Pool::new(threads.min(VERIFY_THREADS_MAX));
                match file.verify_all_but_experts(&map, &pool, &self.stop_verifying) {
                    Ok(()) => {
                        drop((map, pool));
                        self.change(|state| (state.verdict, state.working) = (Verdict::Sound, false));
                        self.watch(&file, threads);
                    }
                    Err(Fault::Stopped) => {}
                    Err(fault) => {
                        drop((map, pool));
                        self.give_up(&file, &fault);
                        self.pack(&file, threads);
                    }
                }
            }
        }
        self.change(|state| state.working = false);
    }

    /// Waits until an expert turns out to be damaged, where there are some that are verified late, or the store is dropped.
    fn watch(&self, file: &PackedFile, threads: usize) {
        let quiet = |state: &mut State| {
            state.lost.is_none()
                && state.weights.has_deferred()
                && !self.stop_verifying.load(Ordering::Acquire)
        };
        let fault = self.wait_while(quiet).lost.take();
        if let Some(fault) = fault {
            self.listener.tell(News::Damaged { path: file.path(), fault: &fault });
            file.remove(&fault);
            self.pack(file, threads);
        }
    }

    /// Computes with the plain weights from now on, instead of `used`, an expert of which is damaged. What was computed with
    /// others of them was verified.
    fn lose(&self, used: &Weights, fault: Fault) -> Arc<Weights> {
        let weights = self.assemble(&plain(&self.gguf, &self.plan, self.isa));
        let pending = |state: &mut State| matches!(state.verdict, Verdict::Pending);
        let mut state = self.wait_while(pending);
        if state.weights.shares_deferred(used)
            && let Outcome::Mapped { path } = &state.outcome
        {
            let path = path.clone();
            self.packed_bytes.store(0, Ordering::Relaxed);
            (state.weights, state.outcome) = (weights, Outcome::Plain { path });
            (state.lost, state.working) = (Some(fault), true);
        }
        let weights = Arc::clone(&state.weights);
        drop(state);
        self.changed.notify_all();
        weights
    }

    /// Computes with the plain weights from now on, instead of a file that is damaged.
    fn give_up(&self, file: &PackedFile, fault: &Fault) {
        let path = file.path();
        self.packed_bytes.store(0, Ordering::Relaxed);
        let weights = self.assemble(&plain(&self.gguf, &self.plan, self.isa));
        self.change(|state| {
            let damaged = std::mem::replace(&mut state.weights, weights);
            state.verdict = Verdict::Damaged(Arc::downgrade(&damaged));
            state.outcome = Outcome::Plain { path: path.to_owned() };
        });
        self.listener.tell(News::Damaged { path, fault });
        file.remove(fault);
    }

    /// Makes the packed file, or packs into memory, while others compute with the plain weights.
    fn pack(&self, file: &PackedFile, threads: usize) {
        step_back();
        let pool = Pool::new(threads);
        let path = file.path();
        self.listener.tell(News::Started { path });
        let mut progress = |progress: Progress| {
            // What was packed last only counts once it is in use.
            let packed_bytes = progress.packed_bytes.min(progress.total_bytes - 1);
            self.packed_bytes.store(packed_bytes, Ordering::Relaxed);
        };
        let mut work = Work { progress: &mut progress, stop: &self.stop_packing, gentle: true };
        let packed = file.create(&self.gguf, &pool, &mut work).map(|made| of_file(file, made));
        let (matrices, outcome) = match packed {
            Ok(packed) => packed,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                self.listener.tell(News::InMemory { path, error: &error });
                let Ok(matrices) = pack_in_memory(&self.gguf, &self.plan, self.isa, &pool, &mut work) else {
                    return;
                };
                (matrices, Outcome::MemoryInstead { path: path.to_owned(), error: Arc::new(error) })
            }
        };
        let weights = self.assemble(&matrices);
        self.change(|state| (state.weights, state.outcome) = (weights, outcome));
        self.packed_bytes.store(self.plan.packed_bytes(), Ordering::Relaxed);
        self.listener.tell(News::Done { path });
    }

    fn assemble(&self, matrices: &[Matrix]) -> Arc<Weights> {
        Arc::new(Weights::new(Arc::clone(&self.parts), matrices, None))
    }
}

/// Makes this thread, and those that it starts, give way to others.
fn step_back() {
    // Linux takes "this process" for the calling thread. A thread that may not step back does its work all the same.
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_process(None, (nice + NICENESS).min(19));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicI32;

    #[test]
    fn who_packs_steps_back_with_all_its_threads_and_nobody_else() {
        let nice = || rustix::process::getpriority_process(None).expect("a nice value");
        let before = nice();
        let packer = thread::spawn(move || {
            step_back();
            let pool = Pool::new(3);
            let (least, most) = (AtomicI32::new(i32::MAX), AtomicI32::new(i32::MIN));
            pool.run(1000, &|_| {
                least.fetch_min(nice(), Ordering::Relaxed);
                most.fetch_max(nice(), Ordering::Relaxed);
            });
            (least.into_inner(), most.into_inner())
        });
        let wanted = (before + NICENESS).min(19);
        assert_eq!(packer.join().expect("no panic"), (wanted, wanted));
        assert_eq!(nice(), before);
    }
}
