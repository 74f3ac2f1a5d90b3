//! Who computes what in the next step: continuous batching with chunked prefill.
//!
//! A request waits, then holds a slot until it is done. Each step gives every generating slot its one token and shares
//! what is left of the step's budget among the prompts, oldest first; while anyone is generating, prompts get a smaller
//! budget, so that a long prompt costs the others a bounded delay. Pages for all that a request may ever need are
//! taken when it is admitted, so nothing that has started can run out of memory.

use crate::cache::{KvCache, Sequence};
use crate::engine::{EngineConfig, Inbox};
use crate::model::{Forward, Model, SequenceStep};
use crate::request::{Event, FinishReason, Finished, Request, Sink, Stats, Timing, Token, TokenId, Usage};
use crate::sampler::{Sampler, log_probabilities};
use crate::text::{Step, TextOut};
use crate::tokenizer::Tokenizer;
use kernels::{Context, Pool};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A request that was accepted.
pub(crate) struct Pending {
    pub(crate) request: Request,
    pub(crate) sink: Sink,
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) submitted: Instant,
    /// Used where the request has no seed.
    pub(crate) seed: u64,
}

impl Pending {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn finish(mut self, reason: FinishReason) {
        let usage = Usage { prompt_tokens: self.request.prompt.len(), completion_tokens: 0 };
        let timing = Timing { queue: self.submitted.elapsed(), ..Timing::default() };
        (self.sink)(Event::Finished(Finished { reason, text: String::new(), usage, timing }));
    }
}

/// A request that is computing.
struct Slot {
    sink: Sink,
    cancelled: Arc<AtomicBool>,
    request: Request,
    sampler: Sampler,
    text: TextOut,
    sequence: Sequence,
    /// Prompt, then what was generated.
    tokens: Vec<TokenId>,
    /// How many of `tokens` are in the cache.
    computed: usize,
    completion_max: usize,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Slot {
    fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Tokens that have to be computed before the next one can be chosen.
    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    fn is_prefilling(&self) -> bool {
        self.generated() == 0
    }

    /// Reports the end and gives the memory back.
    fn finish(mut self, reason: FinishReason, text: String) -> Sequence {
        let or_now = |at: Option<Instant>| at.unwrap_or_else(Instant::now);
        let started = or_now(self.started);
        let timing = Timing {
            queue: started - self.submitted,
            prefill: or_now(self.first_token) - started,
            decode: match (self.first_token, self.last_token) {
                (Some(first), Some(last)) => last - first,
                _ => Default::default(),
            },
        };
        let usage = Usage { prompt_tokens: self.request.prompt.len(), completion_tokens: self.generated() };
        (self.sink)(Event::Finished(Finished { reason, text, usage, timing }));
        self.sequence
    }
}

/// The engine's thread: takes requests from the inbox until it is told to stop.
pub(crate) struct Scheduler<'a> {
    tokenizer: &'a Tokenizer,
    config: &'a EngineConfig,
    inbox: &'a Inbox,
    forward: Forward<'a>,
    cache: KvCache,
    slots: Vec<Slot>,
    /// The tokens that end a turn.
    ends: Vec<TokenId>,
}

impl<'a> Scheduler<'a> {
    pub(crate) fn new(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        pool: &'a Pool,
        config: &'a EngineConfig,
        inbox: &'a Inbox,
    ) -> Self {
        let page = kernels::attention::PAGE;
        let tokens = config.context_tokens.next_multiple_of(page) * config.parallel;
        let cache = KvCache::new(model, config.kv_format, tokens, config.parallel);
        inbox.update(|stats| {
            stats.kv_tokens_capacity = cache.tokens_capacity();
            stats.kv_bytes_capacity = cache.bytes_capacity();
        });
        let ends = (0..tokenizer.vocabulary() as TokenId).filter(|&id| tokenizer.is_end(id)).collect();
        let forward = Forward::new(model, pool, config.context_tokens);
        Self { tokenizer, config, inbox, forward, cache, slots: Vec::new(), ends }
    }

    /// Runs until the engine is shut down; what is then unfinished is cancelled.
    pub(crate) fn run(mut self) {
        loop {
            let free = self.config.parallel - self.slots.len();
            let Some(admitted) = self.inbox.take(free, self.slots.is_empty()) else { break };
            for pending in admitted {
                self.admit(pending);
            }
            self.drop_cancelled();
            if !self.slots.is_empty() {
                self.step();
            }
            self.report();
        }
        let slots = std::mem::take(&mut self.slots);
        self.report();
        for mut slot in slots {
            let text = slot.text.finish();
            slot.finish(FinishReason::Cancelled, text);
        }
        for pending in self.inbox.take_all() {
            pending.finish(FinishReason::Cancelled);
        }
    }

    fn admit(&mut self, pending: Pending) {
        if pending.is_cancelled() {
            return pending.finish(FinishReason::Cancelled);
        }
        let prompt = pending.request.prompt.len();
        let room = self.config.context_tokens - prompt;
        let completion_max = pending.request.max_tokens.unwrap_or(room).min(room);
        if completion_max == 0 {
            return pending.finish(FinishReason::Length);
        }
        let mut sequence = self.cache.open().expect("the cache is for as many sequences as there are slots");
        // The last token is never computed, only chosen.
        let reserved = self.cache.reserve(&mut sequence, prompt + completion_max - 1);
        assert!(reserved, "the cache holds a whole context for each slot");
        let Pending { request, sink, cancelled, submitted, seed } = pending;
        self.slots.push(Slot {
            sink,
            cancelled,
            sampler: Sampler::new(request.sampling.clone(), seed, &request.prompt),
            text: TextOut::new(&request.stop),
            sequence,
            tokens: request.prompt.clone(),
            computed: 0,
            completion_max,
            submitted,
            started: None,
            first_token: None,
            last_token: None,
            request,
        });
    }

    fn drop_cancelled(&mut self) {
        for i in (0..self.slots.len()).rev() {
            if self.slots[i].cancelled.load(Ordering::Acquire) {
                let text = self.slots[i].text.finish();
                self.retire(i, FinishReason::Cancelled, text);
            }
        }
    }

    /// Ends slot `i` and frees its pages; whoever hears of it finds it gone from the statistics.
    fn retire(&mut self, i: usize, reason: FinishReason, text: String) {
        let slot = self.slots.remove(i);
        self.report();
        self.cache.close(slot.finish(reason, text));
    }

    /// How many tokens each slot computes in this step.
    fn share_out(&self) -> Vec<usize> {
        let generating = self.slots.iter().filter(|s| !s.is_prefilling()).count();
        let budget = match generating {
            0 => self.config.prefill_tokens_max,
            _ => self.config.prefill_tokens_beside_decode_max,
        };
        let mut left = budget;
        let share = |slot: &Slot| {
            if !slot.is_prefilling() {
                return 1;
            }
            let share = slot.left().min(left);
            left -= share;
            share
        };
        self.slots.iter().map(share).collect()
    }

    fn step(&mut self) {
        let shares = self.share_out();
        let now = Instant::now();
        let mut batch = Vec::with_capacity(self.slots.len());
        let mut who = Vec::with_capacity(self.slots.len());
        let (mut prompt_tokens, mut outputs) = (0, 0);
        for (i, (slot, &share)) in self.slots.iter_mut().zip(&shares).enumerate() {
            if share == 0 {
                continue;
            }
            slot.started.get_or_insert(now);
            if slot.is_prefilling() {
                prompt_tokens += share;
            }
            let wants_logits = share == slot.left();
            if wants_logits {
                who.push((i, outputs));
                outputs += 1;
            }
            batch.push(SequenceStep {
                tokens: &slot.tokens[slot.computed..][..share],
                position: slot.computed,
                sequence: &slot.sequence,
                outputs: usize::from(wants_logits),
            });
        }
        let context = self.forward.context();
        let logits = self.forward.step(&batch, &mut self.cache);
        for (slot, share) in self.slots.iter_mut().zip(&shares) {
            slot.computed += share;
        }
        let mut ended = Vec::new();
        for &(i, row) in &who {
            let slot = &mut self.slots[i];
            if let Some((reason, text)) = generate(slot, self.tokenizer, &self.ends, context, logits.row(row))
            {
                ended.push((i, reason, text));
            }
        }
        self.inbox.update(|stats| {
            stats.steps_total += 1;
            stats.prompt_tokens_total += prompt_tokens as u64;
            stats.generation_tokens_total += who.len() as u64;
        });
        for (i, reason, text) in ended.into_iter().rev() {
            self.retire(i, reason, text);
        }
    }

    fn report(&self) {
        let used = self.slots.iter().map(|s| s.computed).sum();
        self.inbox.update(|stats: &mut Stats| {
            stats.requests_running = self.slots.len();
            stats.kv_tokens_used = used;
        });
    }
}

/// Chooses a slot's next token and reports it; returns how the generation ended if it did.
fn generate(
    slot: &mut Slot,
    tokenizer: &Tokenizer,
    ends: &[TokenId],
    context: Context<'_>,
    logits: &[f32],
) -> Option<(FinishReason, String)> {
    let banned = if slot.request.ignore_eos { ends } else { &[] };
    let id = slot.sampler.choose(context, logits, banned);
    let logprob = slot.request.logprobs.map(|count| log_probabilities(context, logits, id, count));
    let at = Instant::now();
    slot.first_token.get_or_insert(at);
    slot.last_token = Some(at);
    slot.tokens.push(id);
    if tokenizer.is_end(id) {
        // The end is counted, like every token that was computed, but it has no text.
        let text = slot.text.finish();
        return Some((FinishReason::EndOfTurn, text));
    }
    let (text, stop) = match slot.text.push(tokenizer, id) {
        Step::Text(text) => (text, None),
        Step::Stop { text, stop } => (text, Some(stop)),
    };
    (slot.sink)(Event::Token(Token { id, text, logprob, at }));
    if let Some(stop) = stop {
        return Some((FinishReason::StopString(stop), String::new()));
    }
    (slot.generated() == slot.completion_max).then(|| (FinishReason::Length, slot.text.finish()))
}
