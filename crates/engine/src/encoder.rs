//! A loaded model that makes vectors or scores of texts, and the thread that computes them.
//!
//! Texts of all who asked go through the model together, as many as a step has room for, without padding: those who asked
//! take turns, a text each, so that a thousand texts of one do not delay another's single one by more than a step.

use crate::cache::KvCache;
use crate::model::{Forward, Model, Progress, Purpose, Text};
use crate::request::{Refused, Stats, Ticket};
use kernels::Pool;
use kernels::attention::{KvFormat, PAGE};
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Texts of one step: more would make one step of many short ones long.
const STEP_TEXTS_MAX: usize = 64;

/// How an encoder shares a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderConfig {
    /// Tokens that one text may have.
    pub context_tokens: usize,
    /// Tokens of a step, unless a single text has more.
    pub step_tokens_max: usize,
    /// Tokens that may wait for their step; a request that finds nobody waiting may have more.
    pub waiting_tokens_max: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self { context_tokens: 4096, step_tokens_max: 512, waiting_tokens_max: 1 << 20 }
    }
}

/// What became of a request's texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// A vector for each text, in order, as the model made it: of any length. Of models that score, one number each.
    pub rows: Vec<Vec<f32>>,
    pub tokens: usize,
    /// From the request's submission to its first text's step.
    pub queue: Duration,
    /// From there to the end of its last text's step.
    pub compute: Duration,
}

/// Hears what became of a request, on the encoder's thread; it must not block. `None`: it was cancelled.
pub type EncodedSink = Box<dyn FnOnce(Option<Encoded>) + Send>;

/// A model at work. Dropping it cancels what is running and waits for the thread.
pub struct Encoder {
    model: Arc<Model>,
    config: EncoderConfig,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
    threads: usize,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    arrived: VecDeque<Job>,
    waiting_tokens: usize,
    stats: Stats,
    stopping: bool,
}

/// A request's texts on their way.
struct Job {
    texts: Vec<Text>,
    /// How many of them are in steps or through them.
    begun: usize,
    rows: Vec<Vec<f32>>,
    tokens: usize,
    sink: EncodedSink,
    cancelled: Arc<AtomicBool>,
    submitted: Instant,
    started: Option<Instant>,
}

impl Job {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn waiting_tokens(&self) -> usize {
        self.texts[self.begun..].iter().map(|text| text.tokens.len()).sum()
    }

    fn finish(self) {
        let started = self.started.unwrap_or(self.submitted);
        let (queue, compute) = (started - self.submitted, started.elapsed());
        (self.sink)(Some(Encoded { rows: self.rows, tokens: self.tokens, queue, compute }));
    }
}

impl Encoder {
    /// Starts encoding with `model` on the threads of `pool`.
    ///
    /// # Panics
    /// If the model is one that generates.
    pub fn start(model: Arc<Model>, pool: Pool, config: EncoderConfig) -> Encoder {
        assert_ne!(model.purpose(), Purpose::Generates, "a model that makes vectors or scores");
        let config = EncoderConfig {
            context_tokens: config.context_tokens.clamp(1, model.context_tokens()),
            step_tokens_max: config.step_tokens_max.max(1),
            ..config
        };
        let inbox = Arc::new(Inbox::default());
        let threads = pool.threads();
        let thread = {
            let (model, config, inbox) = (Arc::clone(&model), config.clone(), Arc::clone(&inbox));
            let run = move || {
                pool.enter();
                Worker::new(&model, &pool, &config, &inbox).run();
            };
            thread::Builder::new()
                .name("dunlin-encoder".to_owned())
                .spawn(run)
                .expect("a thread can be started")
        };
        Encoder { model, config, inbox, thread: Some(thread), threads }
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Accepts texts, of which `sink` hears once all are through.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn submit(&self, texts: Vec<Text>, sink: EncodedSink) -> Result<Ticket, Refused> {
        let (context_tokens, vocabulary) = (self.config.context_tokens, self.model.vocabulary());
        for Text { tokens, .. } in &texts {
            if tokens.is_empty() {
                return Err(Refused::EmptyPrompt);
            }
            if tokens.len() > context_tokens {
                return Err(Refused::PromptTooLong { prompt_tokens: tokens.len(), context_tokens });
            }
            if let Some(id) = self.model.unknown_token(tokens) {
                return Err(Refused::UnknownToken { id, vocabulary });
            }
        }
        let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let mut state = self.inbox.lock();
        if state.stopping {
            return Err(Refused::ShuttingDown);
        }
        if state.waiting_tokens > 0 && state.waiting_tokens + tokens > self.config.waiting_tokens_max {
            return Err(Refused::QueueFull { waiting: state.stats.requests_waiting.max(1) });
        }
        state.waiting_tokens += tokens;
        state.stats.requests_waiting += 1;
        let (ticket, cancelled) = Ticket::new();
        let rows = texts.iter().map(|_| Vec::new()).collect();
        let submitted = Instant::now();
        state.arrived.push_back(Job {
            texts,
            begun: 0,
            rows,
            tokens,
            sink,
            cancelled,
            submitted,
            started: None,
        });
        drop(state);
        self.inbox.arrived.notify_one();
        Ok(ticket)
    }

    pub fn stats(&self) -> Stats {
        let Progress { packed_bytes, total_bytes } = self.model.packed();
        Stats { weights_packed_bytes: packed_bytes, weights_bytes: total_bytes, ..self.inbox.lock().stats }
    }

    /// Accepts nothing more, cancels what is unfinished and ends the thread before its next step. Ends packing in the
    /// background and waits until what it had begun is removed.
    pub fn shut_down(&self) {
        self.inbox.lock().stopping = true;
        self.inbox.arrived.notify_one();
        self.model.stop_packing();
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.shut_down();
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

struct Worker<'a> {
    config: &'a EncoderConfig,
    inbox: &'a Inbox,
    forward: Forward<'a>,
    cache: KvCache,
    /// In the order of their turns.
    jobs: VecDeque<Job>,
}

impl<'a> Worker<'a> {
    fn new(model: &'a Model, pool: &'a Pool, config: &'a EncoderConfig, inbox: &'a Inbox) -> Self {
        let tokens = config.step_tokens_max.max(config.context_tokens) + STEP_TEXTS_MAX * PAGE;
        let cache = KvCache::passing(model, KvFormat::F32, tokens, STEP_TEXTS_MAX);
        inbox.lock().stats.kv_bytes_capacity = cache.bytes_capacity();
        let forward = Forward::new(model, pool, config.context_tokens);
        Self { config, inbox, forward, cache, jobs: VecDeque::new() }
    }

    fn run(mut self) {
        while self.take() {
            let batch = self.choose();
            if !batch.is_empty() {
                self.step(&batch);
            }
            self.retire();
        }
        for job in std::mem::take(&mut self.jobs).into_iter().chain(self.inbox.lock().arrived.drain(..)) {
            (job.sink)(None);
        }
    }

    /// Takes who has arrived, sleeping while there is nobody; `false` when the encoder is to stop.
    fn take(&mut self) -> bool {
        let mut state = self.inbox.lock();
        while self.jobs.is_empty() && state.arrived.is_empty() && !state.stopping {
            state = self.inbox.arrived.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.jobs.extend(state.arrived.drain(..));
        !state.stopping
    }

    /// The texts of the next step, as jobs' places and their texts'. Jobs take turns, and who could not have one this time comes
    /// first the next.
    fn choose(&mut self) -> Vec<(usize, usize)> {
        let mut batch = Vec::new();
        let mut left = self.config.step_tokens_max;
        let mut fits = |tokens: usize, batch: &[(usize, usize)]| {
            let fits = batch.is_empty() || (tokens <= left && batch.len() < STEP_TEXTS_MAX);
            left = if fits { left.saturating_sub(tokens) } else { left };
            fits
        };
        let mut in_turn = true;
        while in_turn {
            in_turn = false;
            for place in 0..self.jobs.len() {
                let job = &mut self.jobs[place];
                if job.begun == job.texts.len() || job.is_cancelled() {
                    continue;
                }
                if !fits(job.texts[job.begun].tokens.len(), &batch) {
                    // The next step begins with this one.
                    self.jobs.rotate_left(place);
                    let jobs = self.jobs.len();
                    batch.iter_mut().for_each(|(other, _)| *other = (*other + jobs - place) % jobs);
                    return batch;
                }
                job.started.get_or_insert_with(Instant::now);
                batch.push((place, job.begun));
                job.begun += 1;
                in_turn = true;
            }
        }
        batch
    }

    fn step(&mut self, batch: &[(usize, usize)]) {
        let texts: Vec<&Text> = batch.iter().map(|&(job, text)| &self.jobs[job].texts[text]).collect();
        let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let rows = self.forward.encode(&texts, &mut self.cache);
        for (i, &(job, text)) in batch.iter().enumerate() {
            self.jobs[job].rows[text] = rows.row(i).to_vec();
        }
        let mut state = self.inbox.lock();
        state.waiting_tokens -= tokens;
        state.stats.steps_total += 1;
        state.stats.prompt_tokens_total += tokens as u64;
    }

    /// Ends the jobs that are through or cancelled.
    fn retire(&mut self) {
        let mut ended = Vec::new();
        for place in (0..self.jobs.len()).rev() {
            let job = &self.jobs[place];
            if job.begun == job.texts.len() || job.is_cancelled() {
                ended.extend(self.jobs.remove(place));
            }
        }
        let mut state = self.inbox.lock();
        for job in &ended {
            state.waiting_tokens -= job.waiting_tokens();
        }
        let running = self.jobs.iter().filter(|job| job.begun > 0).count();
        state.stats.requests_running = running;
        state.stats.requests_waiting = self.jobs.len() - running + state.arrived.len();
        drop(state);
        for job in ended {
            if job.begun == job.texts.len() { job.finish() } else { (job.sink)(None) }
        }
    }
}

/// Makes a vector's length one, unless it is all zeros.
pub fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if square > 0.0 {
        let factor = square.sqrt().recip() as f32;
        vector.iter_mut().for_each(|x| *x *= factor);
    }
}
