//! A pool of threads for work that lasts microseconds: short spin, then sleep; chunks are claimed, never assigned.
//!
//! [`Pool::run`] hands out items `0..n` to whoever asks next and returns when all are done. It waits for *items*, not for
//! threads: a worker that the operating system is not running holds up nothing but the item it has claimed. An idle
//! pool uses no processor time.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::{fmt, hint};

/// Rounds of `pause` before a waiting thread goes to sleep: some 20 us, several times the gap between two
/// operations of a decode step, and far below what a sleeping wake-up costs when work is steady.
const SPIN_ROUNDS: u32 = 600;

/// The most items one run can have.
pub const ITEMS_MAX: usize = (1 << 24) - 1 - THREADS_MAX;

/// The most threads a pool can have: each may overshoot the last item by one.
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
    /// `items << 24 | next`: both change together, so a claim always belongs to the run it sees.
    ticket: AtomicU64,
    /// The current run's closure. Written before the ticket opens, read only by the holder of a claim.
    task: UnsafeCell<Task>,
    done: AtomicUsize,
    panicked: AtomicBool,
    stopping: AtomicBool,
    sleepers: Vec<Sleeper>,
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
}

#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

// SAFETY: `task` is only written while no claim is held and only read by holders of one (see `claim`); the closure is
// `Sync`. Everything else is atomic or locked.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const NEXT_BITS: u32 = 24;
const NEXT_MASK: u64 = (1 << NEXT_BITS) - 1;

fn open(ticket: u64) -> bool {
    ticket & NEXT_MASK < ticket >> NEXT_BITS
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
            ticket: AtomicU64::new(0),
            task: UnsafeCell::new(&nothing as &(dyn Fn(usize) + Sync) as Task),
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
        // SAFETY: the ticket of the last run is exhausted and its claims done, so nobody reads the cell.
        unsafe { *shared.task.get() = task };
        shared.done.store(0, Ordering::Relaxed);
        shared.ticket.store((items as u64) << NEXT_BITS, Ordering::SeqCst);
        for sleeper in &shared.sleepers {
            if sleeper.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = sleeper.thread.get()
            {
                thread.unpark();
            }
        }
        while shared.claim() {}
        shared.wait_until_done(items);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task of the thread pool panicked"));
        }
    }
}

impl Shared {
    /// Runs one item if there is one left.
    fn claim(&self) -> bool {
        if !open(self.ticket.load(Ordering::Acquire)) {
            return false;
        }
        let ticket = self.ticket.fetch_add(1, Ordering::AcqRel);
        if !open(ticket) {
            return false;
        }
        let (item, items) = ((ticket & NEXT_MASK) as usize, (ticket >> NEXT_BITS) as usize);
        // SAFETY: the claim is valid, so its run is waiting for this item and its closure is alive; the cell was
        // written before the ticket that the claim acquired.
        let task = unsafe { &**self.task.get() };
        if catch_unwind(AssertUnwindSafe(|| task(item))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == items
            && self.caller_sleeps.swap(false, Ordering::SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        {
            caller.unpark();
        }
        true
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

    fn work(&self, index: usize) {
        let sleeper = &self.sleepers[index];
        sleeper.thread.get_or_init(thread::current);
        let has_news = || open(self.ticket.load(Ordering::SeqCst)) || self.stopping.load(Ordering::SeqCst);
        while !self.stopping.load(Ordering::Acquire) {
            if self.claim() {
                continue;
            }
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
    use std::time::Duration;

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
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(4, &|i| {
                total.fetch_add(i, Ordering::Relaxed);
            });
            if round % 5000 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(total.into_inner(), 20_000 * 6);
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
