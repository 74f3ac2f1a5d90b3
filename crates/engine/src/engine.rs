//! A loaded model and the thread that generates with it.

use crate::cache::KvCache;
use crate::model::{AdapterScale, Model, News, Progress, Purpose};
use crate::request::{Refused, Request, Sink, Stats, Ticket};
use crate::sampler;
use crate::scheduler::{Pending, Scheduler};
use crate::speculation::draft::check_draft;
use crate::tokenizer::Tokenizer;
use kernels::Pool;
use kernels::attention::{KvFormat, PAGE};
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How an engine shares a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Tokens that one request may have, prompt and completion together.
    pub context_tokens: usize,
    /// Requests that compute at once.
    pub parallel: usize,
    /// Tokens that the cache has room for, at least one whole context; `None`: a whole context for each that computes.
    pub cache_tokens: Option<usize>,
    /// Whether tokens are guessed, from what stood before or by a draft model. What is said is the same.
    pub speculation: Speculation,
    /// What becomes of a generation that may have more tokens than its context has left; `None`: it ends when the context is
    /// full.
    pub context_shift: Option<ContextShift>,
    /// Where the cache is kept over a restart.
    pub saved_cache: Option<PathBuf>,
    /// The most that is written there.
    pub saved_bytes_max: u64,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// Requests that may wait for a slot.
    pub waiting_max: usize,
    /// Prompt tokens in a step while nobody is generating.
    pub prefill_tokens_max: usize,
    /// Prompt tokens in a step while someone is: what a newcomer may delay others by.
    pub prefill_tokens_beside_decode_max: usize,
}

/// A full context loses the older half of what is behind its beginning, and the generation goes on. Keys of what is left are
/// turned to their new positions; what was computed from the tokens that are gone stays as it was, so what is said may not be
/// what the model would say to the text that is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextShift {
    /// Tokens at the beginning that stay, rounded up to whole pages of the cache, one at least.
    pub keep_tokens: usize,
}

/// When tokens are guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// Where it saves time, which is measured all along.
    #[default]
    WherePays,
    /// Whenever there is something to guess, for tests.
    Always,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            context_tokens: 4096,
            parallel: 4,
            cache_tokens: None,
            speculation: Speculation::default(),
            context_shift: None,
            saved_cache: None,
            saved_bytes_max: 2 << 30,
            kv_format: KvFormat::default(),
            waiting_max: 256,
            prefill_tokens_max: 512,
            prefill_tokens_beside_decode_max: 96,
        }
    }
}

impl EngineConfig {
    /// Tokens that the cache has room for.
    pub fn cache_tokens(&self) -> usize {
        let context = self.context_tokens.next_multiple_of(PAGE);
        self.cache_tokens.map_or(context.saturating_mul(self.parallel), |tokens| tokens.max(context))
    }
}

/// A model at work. Dropping it cancels what is running and waits for the thread.
pub struct Engine {
    model: Arc<Model>,
    config: EngineConfig,
    inbox: Arc<Inbox>,
    /// `None` once it was waited for.
    thread: Mutex<Option<JoinHandle<()>>>,
    threads: usize,
    /// Of requests that name no adapters: how much of each there is.
    default_scales: Mutex<Vec<f32>>,
}

/// Requests on their way to the scheduler, and what it says of itself.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Pending>,
    stats: Stats,
    stopping: bool,
    seed: u64,
}

impl Engine {
    /// Starts generating with `model` on the threads of `pool`.
    ///
    /// # Panics
    /// If the model has no tokenizer, because its file holds weights only, or is not one that generates.
    pub fn start(model: Arc<Model>, pool: Pool, config: EngineConfig) -> Engine {
        Engine::start_with_draft(model, None, pool, config)
    }

    /// As [`Engine::start`], with a small model that guesses for `model`.
    ///
    /// # Panics
    /// As [`Engine::start`], and if the small model cannot guess for the other: see [`check_draft`].
    ///
    /// [`check_draft`]: crate::check_draft
    pub fn start_with_draft(
        model: Arc<Model>,
        draft: Option<Arc<Model>>,
        pool: Pool,
        config: EngineConfig,
    ) -> Engine {
        if let Some(draft) = &draft {
            debug_assert_eq!(check_draft(&model, draft), Ok(()), "a draft model that fits");
        }
        assert!(model.tokenizer().is_some(), "a model without a vocabulary cannot generate text");
        assert_eq!(model.purpose(), Purpose::Generates, "a model that generates text");
        let config = EngineConfig {
            context_tokens: config.context_tokens.max(1),
            parallel: config.parallel.max(1),
            prefill_tokens_max: config.prefill_tokens_max.max(1),
            prefill_tokens_beside_decode_max: config.prefill_tokens_beside_decode_max.max(1),
            ..config
        };
        let inbox = Arc::new(Inbox::default());
        inbox.lock().seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let threads = pool.threads();
        let thread = {
            let (model, config, inbox) = (Arc::clone(&model), config.clone(), Arc::clone(&inbox));
            let run = move || {
                pool.enter();
                let tokenizer = model.tokenizer().expect("checked by the caller");
                let mut scheduler =
                    Scheduler::new(&model, draft.as_deref(), tokenizer, &pool, &config, &inbox);
                if let Some(path) = &config.saved_cache {
                    scheduler.load(&model, path);
                }
                let cache = scheduler.run();
                if let Some(path) = &config.saved_cache {
                    save(&model, &cache, &config, path);
                }
            };
            thread::Builder::new()
                .name("dunlin-engine".to_owned())
                .spawn(run)
                .expect("a thread can be started")
        };
        let default_scales = Mutex::new(vec![1.0; model.adapters().len()]);
        Engine { model, config, inbox, thread: Mutex::new(Some(thread)), threads, default_scales }
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer().expect("checked when the engine was started")
    }

    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The adapters of requests that name none: all that are loaded, each whole unless that was changed.
    pub fn default_adapters(&self) -> Vec<AdapterScale> {
        let scales = self.default_scales.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        scales.iter().enumerate().map(|(id, &scale)| AdapterScale { id, scale }).collect()
    }

    /// Sets how much of each adapter requests get that name none, from the next one on; of those that are not listed, 0.
    ///
    /// # Errors
    /// As [`Model::choose_adapters`]. Nothing is changed then.
    pub fn set_default_adapters(&self, wanted: &[AdapterScale]) -> Result<(), Refused> {
        self.model.choose_adapters(wanted)?;
        let mut scales = self.default_scales.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        scales.fill(0.0);
        wanted.iter().for_each(|&AdapterScale { id, scale }| scales[id] = scale);
        Ok(())
    }

    /// Accepts a request; `sink` hears of it from the engine's thread until its [`Event::Finished`].
    ///
    /// [`Event::Finished`]: crate::Event::Finished
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Refused> {
        if request.prompt.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        let (prompt_tokens, context_tokens) = (request.prompt.len(), self.config.context_tokens);
        if prompt_tokens >= context_tokens {
            return Err(Refused::PromptTooLong { prompt_tokens, context_tokens });
        }
        let vocabulary = self.model.vocabulary();
        if let Some(id) = self.model.unknown_token(&request.prompt) {
            return Err(Refused::UnknownToken { id, vocabulary });
        }
        sampler::check(&request.sampling, vocabulary)?;
        let adapters = match &request.adapters {
            Some(wanted) => self.model.choose_adapters(wanted)?,
            None => self.model.choose_adapters(&self.default_adapters())?,
        };

        let mut state = self.inbox.lock();
        if state.stopping {
            return Err(Refused::ShuttingDown);
        }
        let waiting = state.waiting.len();
        if waiting
            >= self.config.waiting_max + self.config.parallel.saturating_sub(state.stats.requests_running)
        {
            return Err(Refused::QueueFull { waiting });
        }
        let (ticket, cancelled) = Ticket::new();
        state.seed = state.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let seed = state.seed;
        state.waiting.push_back(Pending {
            request,
            adapters,
            sink,
            cancelled,
            submitted: Instant::now(),
            seed,
        });
        drop(state);
        self.inbox.arrived.notify_one();
        Ok(ticket)
    }

    pub fn stats(&self) -> Stats {
        let Progress { packed_bytes, total_bytes } = self.model.packed();
        let state = self.inbox.lock();
        Stats {
            requests_waiting: state.waiting.len(),
            weights_packed_bytes: packed_bytes,
            weights_bytes: total_bytes,
            ..state.stats
        }
    }

    /// Accepts nothing more, cancels what is unfinished and ends the thread before its next step. Ends packing in the
    /// background and waits until what it had begun is removed.
    pub fn shut_down(&self) {
        self.inbox.lock().stopping = true;
        self.inbox.arrived.notify_one();
        self.model.stop_packing();
    }

    /// The same, and waits for the thread's end: what is to be kept of the cache has been written then.
    pub fn finish(&self) {
        self.shut_down();
        let mut thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(thread) = thread.take() {
            // A panic was reported when it happened; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

fn save(model: &Model, cache: &KvCache, config: &EngineConfig, path: &Path) {
    match cache.save(model, config.context_tokens, path, config.saved_bytes_max) {
        Ok(tokens) => model.tell(News::CacheSaved { path, tokens }),
        Err(error) => model.tell(News::CacheNotSaved { path, error: &error }),
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Up to `count` requests, and every one that was cancelled while it waited; sleeps until there is one where `wait`.
    /// `None` when the engine is to stop, after which nothing more is accepted.
    pub(crate) fn take(&self, count: usize, wait: bool) -> Option<Vec<Pending>> {
        let mut state = self.lock();
        while wait && state.waiting.is_empty() && !state.stopping {
            state = self.arrived.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if state.stopping {
            return None;
        }
        let mut taken = Vec::new();
        let mut live = 0;
        state.waiting = std::mem::take(&mut state.waiting)
            .into_iter()
            .filter_map(|pending| {
                let cancelled = pending.is_cancelled();
                if cancelled || live < count {
                    live += usize::from(!cancelled);
                    taken.push(pending);
                    return None;
                }
                Some(pending)
            })
            .collect();
        // Counted here and not after their first step, so that the queue's limit holds meanwhile.
        state.stats.requests_running += live;
        Some(taken)
    }

    /// Puts requests that were taken back where they were.
    pub(crate) fn put_back(&self, pending: Vec<Pending>) {
        if pending.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.stats.requests_running = state.stats.requests_running.saturating_sub(pending.len());
        pending.into_iter().rev().for_each(|pending| state.waiting.push_front(pending));
    }

    /// Those that were waiting when the engine stopped.
    pub(crate) fn take_all(&self) -> Vec<Pending> {
        self.lock().waiting.drain(..).collect()
    }

    pub(crate) fn update(&self, f: impl FnOnce(&mut Stats)) {
        f(&mut self.lock().stats);
    }
}
