//! A pool of threads for work that lasts microseconds: short spin, then sleep; items are claimed, never assigned.
//!
//! [`Pool::run`] calls a closure for items `0..n` and returns when all calls have. Each thread has a range of neighbouring
//! items and takes one after the other off its front, so that what neighbours read from memory stays one stream; who has
//! none left takes the back half of the longest range. A run waits for *items*, not for threads: a worker that the
//! operating system is not running holds up the item it has claimed and, unless it was stopped in the few instructions
//! that take a half and offer it again, nothing else, since others empty its range. An idle pool uses no processor time.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::{fmt, hint};

/// Rounds of `pause` before a waiting thread goes to sleep: some 20 us, several times the gap between two
/// operations of a decode step, and far below what a sleeping wake-up costs when work is steady.
const SPIN_ROUNDS: u32 = 600;

/// The most items one run can have.
pub const ITEMS_MAX: usize = u32::MAX as usize;

/// The most threads a pool can have.
const THREADS_MAX: usize = 4096;

/// Threads that share the work of [`Pool::run`] with the calling one.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One run at a time.
    running: Mutex<()>,
    start: Arc<Start>,
}

/// What a thread does before it computes.
type Start = dyn Fn(usize) + Send + Sync;

type Task = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Items of the current run that nobody has claimed, a range for each thread, the caller's first. All are empty between
    /// runs, so a claim always belongs to the run that is going on, however late its thread comes.
    unclaimed: Vec<Unclaimed>,
    /// The current run's closure and number of items. Written before any item can be claimed, read only by holders of a
    /// claim.
    task: UnsafeCell<(Task, usize)>,
    /// Every thread's range of the current run is set. Before that nobody may offer what was taken from one that is, for
    /// it would be written over.
    ranges_set: AtomicBool,
    /// Runs that have begun.
    runs: AtomicU64,
    done: AtomicUsize,
    panicked: AtomicBool,
    stopping: AtomicBool,
    sleepers: Vec<Sleeper>,
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
}

/// A range of items, its ends in one word so that both change together; on cache lines of its own, since its thread
/// claims from it all the time and others hardly ever.
#[derive(Default)]
#[repr(align(128))]
struct Unclaimed(AtomicU64);

#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

// SAFETY: `task` is only written while no item is unclaimed or under way and only read by holders of a claim (see `claim`);
// the closure is `Sync`. Everything else is atomic or locked.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

fn word(range: Range<u32>) -> u64 {
    u64::from(range.start) << 32 | u64::from(range.end)
}

fn range(word: u64) -> Range<u32> {
    (word >> 32) as u32..word as u32
}

impl Unclaimed {
    fn set(&self, range: Range<u32>) {
        self.0.store(word(range), Ordering::Release);
    }

    fn len(&self) -> usize {
        range(self.0.load(Ordering::Acquire)).len()
    }

    /// Takes the first item.
    fn take_first(&self) -> Option<u32> {
        let less = |old| {
            let range = range(old);
            (!range.is_empty()).then(|| word(range.start + 1..range.end))
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).ok().map(|old| range(old).start)
    }

    /// Takes the back half, the larger one.
    fn take_half(&self) -> Option<Range<u32>> {
        let middle = |range: &Range<u32>| range.start + (range.end - range.start) / 2;
        let less = |old| {
            let range = range(old);
            (!range.is_empty()).then(|| word(range.start..middle(&range)))
        };
        let old = range(self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).ok()?);
        Some(middle(&old)..old.end)
    }

    /// Offers `items` to all if nothing is on offer here.
    fn offer(&self, items: Range<u32>) -> bool {
        let old = self.0.load(Ordering::Acquire);
        range(old).is_empty()
            && self.0.compare_exchange(old, word(items), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] among them.
    pub fn new(threads: usize) -> Pool {
        Pool::with_start(threads, |_| ())
    }

    /// As [`Pool::new`]. Each thread calls `start` with its number before it computes: the pool's own are 1 and up, the
    /// caller of [`Pool::run`] is 0 and says when by [`Pool::enter`]. `start` may not panic.
    pub fn with_start(threads: usize, start: impl Fn(usize) + Send + Sync + 'static) -> Pool {
        let start: Arc<Start> = Arc::new(start);
        let workers = threads.clamp(1, THREADS_MAX) - 1;
        fn nothing(_: usize) {}
        let shared = Arc::new(Shared {
            unclaimed: (0..=workers).map(|_| Unclaimed::default()).collect(),
            task: UnsafeCell::new((&nothing as &(dyn Fn(usize) + Sync) as Task, 0)),
            ranges_set: AtomicBool::new(false),
            runs: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            sleepers: (0..workers).map(|_| Sleeper::default()).collect(),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
        });
        let workers = (0..workers)
            .map(|i| {
                let (shared, start) = (Arc::clone(&shared), Arc::clone(&start));
                let name = format!("dunlin-{}", i + 1);
                let run = move || {
                    start(i + 1);
                    shared.work(i);
                };
                thread::Builder::new().name(name).spawn(run).expect("a thread can be started")
            })
            .collect();
        Pool { shared, workers, running: Mutex::new(()), start }
    }

    /// Makes the calling thread the one that computes beside the pool's own.
    pub fn enter(&self) {
        (self.start)(0);
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` for each of `0..items`, in any order, on all threads, and returns when all calls have returned.
    ///
    /// # Panics
    /// If a call panics, or with more than [`ITEMS_MAX`] items.
    pub fn run(&self, items: usize, f: &(dyn Fn(usize) + Sync)) {
        assert!(items <= ITEMS_MAX, "{items} items");
        if items <= 1 || self.workers.is_empty() {
            (0..items).for_each(f);
            return;
        }
        let _one_at_a_time = self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The closure is called by holders of a claim only, and this function does
        // not return before every claim of this run has been counted in `done`.
        let task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
        // SAFETY: all items of the last run are done, so nobody holds a claim and reads the cell.
        unsafe { *shared.task.get() = (task, items) };
        shared.done.store(0, Ordering::Relaxed);
        let threads = self.threads();
        let first = |thread: usize| (thread as u64 * items as u64).div_ceil(threads as u64) as u32;
        shared.ranges_set.store(false, Ordering::Relaxed);
        for (thread, unclaimed) in shared.unclaimed.iter().enumerate() {
            unclaimed.set(first(thread)..first(thread + 1));
        }
        shared.ranges_set.store(true, Ordering::Release);
        shared.runs.fetch_add(1, Ordering::SeqCst);
        for sleeper in &shared.sleepers {
            if sleeper.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = sleeper.thread.get()
            {
                thread.unpark();
            }
        }
        while shared.claim(0) {}
        shared.wait_until_done(items);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task of the thread pool panicked"));
        }
    }
}

impl Shared {
    /// Runs an item if there is one left, of the thread's own first; rarely more than one.
    fn claim(&self, thread: usize) -> bool {
        let own = &self.unclaimed[thread];
        let claimed = match own.take_first() {
            Some(item) => item..item + 1,
            None => {
                let longest = self.unclaimed.iter().max_by_key(|unclaimed| unclaimed.len());
                let Some(half) = longest.and_then(Unclaimed::take_half) else {
                    // Where another thread was faster, there may be more elsewhere.
                    return self.unclaimed.iter().any(|unclaimed| unclaimed.len() > 0);
                };
                // Where a run has only just begun, this thread's range may be about to be set, or set again; then nobody
                // else can help with what is claimed here.
                let offered = self.ranges_set.load(Ordering::Acquire) && own.offer(half.start + 1..half.end);
                if offered { half.start..half.start + 1 } else { half }
            }
        };
        claimed.for_each(|item| self.call(item as usize));
        true
    }

    /// Runs an item that the calling thread has claimed.
    fn call(&self, item: usize) {
        // SAFETY: the claim is valid, so its run is waiting for this item and its closure is alive; the cell was written
        // before the range that the claim acquired.
        let (task, items) = unsafe { *self.task.get() };
        // SAFETY: as above.
        let task = unsafe { &*task };
        if catch_unwind(AssertUnwindSafe(|| task(item))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == items
            && self.caller_sleeps.swap(false, Ordering::SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        {
            caller.unpark();
        }
    }

    fn wait_until_done(&self, items: usize) {
        let finished = || self.done.load(Ordering::SeqCst) == items;
        for _ in 0..SPIN_ROUNDS {
            if finished() {
                return;
            }
            hint::spin_loop();
        }
        *self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(thread::current());
        while !finished() {
            self.caller_sleeps.store(true, Ordering::SeqCst);
            if finished() {
                break;
            }
            thread::park();
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// What worker `index` does all its life.
    fn work(&self, index: usize) {
        let sleeper = &self.sleepers[index];
        sleeper.thread.get_or_init(thread::current);
        while !self.stopping.load(Ordering::Acquire) {
            let runs = self.runs.load(Ordering::SeqCst);
            while self.claim(index + 1) {}
            let has_news =
                || self.runs.load(Ordering::SeqCst) != runs || self.stopping.load(Ordering::SeqCst);
            if (0..SPIN_ROUNDS).any(|_| {
                hint::spin_loop();
                has_news()
            }) {
                continue;
            }
            sleeper.asleep.store(true, Ordering::SeqCst);
            if !has_news() {
                thread::park();
            }
            sleeper.asleep.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker cannot panic: tasks are caught.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn every_item_runs_exactly_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for items in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(items, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {items} items"
                );
            }
        }
    }

    #[test]
    fn many_short_runs_and_sleeps_between() {
        // More threads than this machine has, so that some come late, when the next run has begun.
        let pool = Pool::new(7);
        let mut expected = 0;
        let total = AtomicUsize::new(0);
        for round in 0..20_000 {
            let items = round % 23;
            expected += (0..items).sum::<usize>();
            pool.run(items, &|i| {
                total.fetch_add(i, Ordering::Relaxed);
            });
            if round % 5000 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(total.into_inner(), expected);
    }

    #[test]
    fn ranges_are_taken_from_the_front_and_by_halves_from_the_back() {
        let unclaimed = Unclaimed::default();
        assert_eq!((unclaimed.take_first(), unclaimed.take_half()), (None, None));
        assert!(unclaimed.offer(3..10));
        assert!(!unclaimed.offer(20..30), "what is on offer stays");
        assert_eq!(unclaimed.take_first(), Some(3));
        assert_eq!(unclaimed.take_half(), Some(7..10));
        assert_eq!(unclaimed.take_half(), Some(5..7));
        assert_eq!((unclaimed.len(), unclaimed.take_half()), (1, Some(4..5)));
        assert_eq!((unclaimed.len(), unclaimed.take_half()), (0, None));
        unclaimed.set(u32::MAX - 1..u32::MAX);
        assert_eq!((unclaimed.take_first(), unclaimed.take_first()), (Some(u32::MAX - 1), None));
    }

    #[test]
    fn what_a_stopped_thread_does_not_get_to_is_done_by_others() {
        let pool = Pool::new(4);
        let stopped = thread::current().id();
        for _ in 0..20 {
            let calls: Vec<AtomicUsize> = (0..256).map(|_| AtomicUsize::new(0)).collect();
            let done = AtomicUsize::new(0);
            let begun = Instant::now();
            pool.run(calls.len(), &|i| {
                // A quarter of the items is in the caller's range, and it goes no further than its first.
                while thread::current().id() == stopped && done.load(Ordering::Relaxed) < calls.len() - 1 {
                    assert!(begun.elapsed() < Duration::from_secs(60), "others leave its items alone");
                    thread::yield_now();
                }
                calls[i].fetch_add(1, Ordering::Relaxed);
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn every_thread_starts_once() {
        let (sender, started) = std::sync::mpsc::channel();
        let pool = Pool::with_start(3, move |number| sender.send(number).expect("the test listens"));
        pool.enter();
        drop(pool);
        let mut numbers: Vec<usize> = started.iter().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let run = || pool.run(10, &|i| assert!(i != 7, "seven"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
