//! Who computes what in the next step: continuous batching with chunked prefill.
//!
//! A request waits, then holds a slot until it is done. Each step gives every generating slot its one token and shares
//! what is left of the step's budget among the prompts, oldest first; while anyone is generating, prompts get a smaller
//! budget, so that a long prompt costs the others a bounded delay. Pages for all that a request may ever need are
//! taken when it is admitted, so nothing that has started can run out of memory; where there are not enough, it waits, and
//! all who came later wait behind it. What earlier requests left in the cache is not computed again.

use crate::cache::{KvCache, Sequence};
use crate::engine::{EngineConfig, Inbox, Speculation};
use crate::model::{Adapters, Forward, Model, News, SequenceStep};
use crate::request::{Event, FinishReason, Finished, Request, Sink, Stats, Timing, Token, TokenId, Usage};
use crate::sampler::{Sampler, log_probabilities};
use crate::speculation::draft::{BEHIND_MAX, Draft, Drafter, Followed, Main, Wish};
use crate::speculation::{GUESSES_MAX, Guesser, Pace, Worth};
use crate::text::{Step, TextOut};
use crate::tokenizer::Tokenizer;
use kernels::attention::PAGE;
use kernels::{Context, Pool};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Tokens after which a state in the middle of a prompt is worth the step that ends there.
const KEEP_AFTER_MIN: usize = 2 * PAGE;

/// A request that was accepted.
pub(crate) struct Pending {
    pub(crate) request: Request,
    /// What it computes with.
    pub(crate) adapters: Adapters,
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
        let usage = Usage { prompt_tokens: self.request.prompt.len(), ..Usage::default() };
        let timing = Timing { queue: self.submitted.elapsed(), ..Timing::default() };
        (self.sink)(Event::Finished(Finished { reason, text: String::new(), usage, timing }));
    }
}

/// A request that is computing.
struct Slot {
    sink: Sink,
    cancelled: Arc<AtomicBool>,
    request: Request,
    adapters: Adapters,
    sampler: Sampler,
    text: TextOut,
    sequence: Sequence,
    /// Prompt, then what was generated, without what a full context has lost.
    tokens: Vec<TokenId>,
    generated: usize,
    /// How many tokens its context has lost.
    dropped: usize,
    /// How many of `tokens` are in the cache.
    computed: usize,
    /// Lengths at which the state is kept, the last first.
    keep_at: Vec<usize>,
    /// `None` where nothing is guessed.
    guesser: Option<Guesser>,
    /// What the draft model or the predictor knows of it, where there is one.
    draft: Option<Draft>,
    /// Whether the guesses of this step are theirs.
    is_drafted: bool,
    /// The tokens of this step: of a prompt the next ones, else the last and what is guessed to follow.
    step: Vec<TokenId>,
    guessed: Guessed,
    completion_max: usize,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Slot {
    /// Tokens that have to be computed before the next one can be chosen.
    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Of these, how many before the state is kept.
    fn left_to_next_keeping(&self) -> usize {
        self.keep_at.last().map_or(self.left(), |&at| at - self.computed)
    }

    fn is_prefilling(&self) -> bool {
        self.generated == 0
    }

    /// Reports the end.
    fn finish(&mut self, reason: FinishReason, text: String) {
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
        let usage = Usage {
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.sequence.known(),
            completion_tokens: self.generated,
            dropped_tokens: self.dropped,
            guessed_tokens: self.guessed.all,
            true_guesses: self.guessed.true_ones,
        };
        (self.sink)(Event::Finished(Finished { reason, text, usage, timing }));
    }
}

/// How many tokens were guessed, and how many of these came true.
#[derive(Clone, Copy, Debug, Default)]
struct Guessed {
    all: usize,
    true_ones: usize,
}

/// The engine's thread: takes requests from the inbox until it is told to stop.
pub(crate) struct Scheduler<'a> {
    tokenizer: &'a Tokenizer,
    config: &'a EngineConfig,
    inbox: &'a Inbox,
    forward: Forward<'a>,
    cache: KvCache,
    drafter: Option<Drafter<'a>>,
    slots: Vec<Slot>,
    /// The next in turn, where there was no room for it yet.
    delayed: Option<Pending>,
    pace: Pace,
    /// The tokens that end a turn.
    ends: Vec<TokenId>,
}

impl<'a> Scheduler<'a> {
    pub(crate) fn new(
        model: &'a Model,
        draft: Option<&'a Model>,
        tokenizer: &'a Tokenizer,
        pool: &'a Pool,
        config: &'a EngineConfig,
        inbox: &'a Inbox,
    ) -> Self {
        let cache = KvCache::new(model, config.kv_format, config.cache_tokens(), config.parallel);
        inbox.update(|stats| {
            stats.kv_tokens_capacity = cache.tokens_capacity();
            stats.kv_bytes_capacity = cache.bytes_capacity();
        });
        let ends = (0..tokenizer.vocabulary() as TokenId).filter(|&id| tokenizer.is_end(id)).collect();
        let mut forward = Forward::new(model, pool, config.context_tokens);
        let drafter = match (config.speculation, draft) {
            (Speculation::Off, _) => None,
            (_, Some(draft)) => Some(Drafter::new(draft, model, pool, config)),
            (_, None) => Drafter::of_model(model),
        };
        if drafter.as_ref().is_some_and(Drafter::is_predictor) {
            forward.keep_hidden();
        }
        Self {
            drafter,
            tokenizer,
            config,
            inbox,
            forward,
            cache,
            slots: Vec::new(),
            delayed: None,
            pace: Pace::new(config.speculation == Speculation::Always),
            ends,
        }
    }

    /// Takes what an earlier run saved.
    pub(crate) fn load(&mut self, model: &Model, path: &Path) {
        match self.cache.load(model, self.config.context_tokens, path) {
            Ok(tokens) => model.tell(News::CacheLoaded { path, tokens }),
            Err(error) if error.is_missing() => {}
            Err(error) => model.tell(News::CacheRefused { path, error: &error }),
        }
        self.report();
    }

    /// Runs until the engine is shut down; what is then unfinished is cancelled. Returns the cache.
    pub(crate) fn run(mut self) -> KvCache {
        loop {
            let nobody = self.slots.is_empty() && self.delayed.is_none();
            let free = if self.delayed.is_some() { 0 } else { self.config.parallel - self.slots.len() };
            let Some(admitted) = self.inbox.take(free, nobody) else { break };
            let mut behind = Vec::new();
            for pending in self.delayed.take().into_iter().chain(admitted) {
                if self.delayed.is_some() && !pending.is_cancelled() {
                    behind.push(pending);
                } else if let Some(pending) = self.admit(pending) {
                    self.delayed = Some(pending);
                }
            }
            self.inbox.put_back(behind);
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
            self.close(slot);
        }
        for pending in self.delayed.take().into_iter().chain(self.inbox.take_all()) {
            pending.finish(FinishReason::Cancelled);
        }
        self.cache
    }

    /// Gives a request a slot, or back where there is no room for it in the cache.
    fn admit(&mut self, pending: Pending) -> Option<Pending> {
        if pending.is_cancelled() {
            pending.finish(FinishReason::Cancelled);
            return None;
        }
        let prompt = pending.request.prompt.len();
        let room = self.config.context_tokens - prompt;
        let completion_max = match (pending.request.max_tokens, self.config.context_shift) {
            (Some(most), Some(_)) => most,
            (most, _) => most.unwrap_or(room).min(room),
        };
        if completion_max == 0 {
            pending.finish(FinishReason::Length);
            return None;
        }
        // The last token is never computed, only chosen.
        let positions = (prompt + completion_max - 1).min(self.config.context_tokens);
        let Some(sequence) = self.cache.resume(&pending.request.prompt, pending.adapters.key(), positions)
        else {
            assert!(!self.slots.is_empty(), "the cache has room for a whole context");
            return Some(pending);
        };
        let computed = sequence.known();
        self.inbox.update(|stats| stats.cached_tokens_total += computed as u64);
        let draft = self.drafter.as_mut().and_then(|d| d.open(&pending.request.prompt, computed, positions));
        let Pending { request, adapters, sink, cancelled, submitted, seed } = pending;
        self.slots.push(Slot {
            sink,
            cancelled,
            adapters,
            sampler: Sampler::new(request.sampling.clone(), seed, &request.prompt),
            text: TextOut::new(&request.stop),
            sequence,
            tokens: request.prompt.clone(),
            generated: 0,
            dropped: 0,
            computed,
            keep_at: self.keep_at(prompt, computed),
            guesser: (self.config.speculation != Speculation::Off).then(Guesser::new),
            draft,
            is_drafted: false,
            step: Vec::new(),
            guessed: Guessed::default(),
            completion_max,
            submitted,
            started: None,
            first_token: None,
            last_token: None,
            request,
        });
        None
    }

    /// Where the state of a prompt is kept: at its end, from which its answer goes on, and some tokens before, where a later
    /// prompt may part from it because templates write an answer's beginning in another way once it is past.
    fn keep_at(&self, prompt: usize, computed: usize) -> Vec<usize> {
        if !self.cache.has_states() {
            return Vec::new();
        }
        let before = (prompt - 1) / PAGE * PAGE;
        // Parting a short prompt in two would take longer than computing it again.
        let pays = before >= computed + KEEP_AFTER_MIN;
        [Some(prompt), pays.then_some(before)].into_iter().flatten().collect()
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
        let mut slot = self.slots.remove(i);
        self.report();
        slot.finish(reason, text);
        self.catch_up(&mut slot, 1);
        if let Some((drafter, draft)) = self.drafter.as_mut().zip(slot.draft.take()) {
            drafter.close(draft, &slot.tokens);
        }
        self.close(slot);
    }

    /// Lets the predictor see what a slot has computed, so that what it leaves in the cache is whole. `left` tokens at the end
    /// are left for later: one has no other after it yet, and what follows another is asked for when a guess is wanted.
    fn catch_up(&mut self, slot: &mut Slot, left: usize) {
        let Some(drafter) = self.drafter.as_mut().filter(|drafter| drafter.is_predictor()) else { return };
        let Some(draft) = &mut slot.draft else { return };
        let main = Main { forward: &mut self.forward, cache: &mut self.cache };
        let (tokens, sequence) = (&slot.tokens[..], &slot.sequence);
        let all = Followed { draft, tokens, until: tokens.len() - left, sequence };
        drafter.follow(main, std::iter::once(all), 0, usize::MAX);
    }

    /// Gives back what a slot has of the cache, for others that begin alike.
    fn close(&mut self, slot: Slot) {
        match slot.dropped {
            0 => self.cache.close(slot.sequence, &slot.tokens[..slot.computed]),
            // What it holds was not computed from these tokens alone.
            _ => self.cache.discard(slot.sequence),
        }
    }

    /// Makes room in contexts that are full, or ends generations where that cannot be.
    fn shift_full(&mut self) {
        for i in (0..self.slots.len()).rev() {
            if self.slots[i].tokens.len() <= self.config.context_tokens {
                continue;
            }
            let mut slot = self.slots.remove(i);
            self.catch_up(&mut slot, 2);
            let has_room = self.shift(&mut slot);
            self.slots.insert(i, slot);
            if !has_room {
                let text = self.slots[i].text.finish();
                self.retire(i, FinishReason::Length, text);
            }
        }
    }

    /// Takes the older half of what is behind the beginning of a slot's context away; `false` where that cannot be.
    fn shift(&mut self, slot: &mut Slot) -> bool {
        let full = self.config.context_tokens / PAGE;
        let keep_tokens = self.config.context_shift.map_or(0, |shift| shift.keep_tokens);
        let keep = keep_tokens.div_ceil(PAGE).clamp(1, full.saturating_sub(1).max(1));
        if keep >= full {
            return false;
        }
        let pages = keep..keep + ((full - keep) / 2).max(1);
        let lost = pages.len() * PAGE;
        slot.tokens.drain(pages.start * PAGE..pages.end * PAGE);
        slot.computed -= lost;
        slot.dropped += lost;
        // Where tokens stood before is no longer where they stand.
        slot.guesser = slot.guesser.as_ref().map(|_| Guesser::new());
        if let Some(drafter) = &mut self.drafter {
            if let Some(draft) = slot.draft.as_mut().filter(|_| drafter.is_predictor()) {
                draft.move_back(lost);
            } else if let Some(draft) = slot.draft.take() {
                drafter.forget(draft);
            }
        }
        if !self.cache.cut(&mut slot.sequence, pages) {
            return false;
        }
        self.forward.turn_back(&mut self.cache, &slot.sequence.pages()[keep..], lost);
        self.cache.reserve(&mut slot.sequence, self.config.context_tokens)
    }

    /// Decides what each slot computes in this step; what was left of the last is gone.
    fn share_out(&mut self) {
        let generating = self.slots.iter().filter(|s| !s.is_prefilling()).count();
        let budget = match generating {
            0 => self.config.prefill_tokens_max,
            _ => self.config.prefill_tokens_beside_decode_max,
        };
        let mut left = budget;
        // Beside a prompt, whose tokens take their time anyway, nothing is guessed.
        let only_generating = generating == self.slots.len();
        let mut tokens = self.slots.iter().filter(|s| !s.is_prefilling()).map(Slot::left).sum();
        let cost = self.drafter.as_ref().map(|drafter| drafter.cost(self.pace.of_one()));
        let mut wishes = Vec::new();
        for (i, slot) in self.slots.iter_mut().enumerate() {
            slot.step.clear();
            slot.is_drafted = false;
            if slot.is_prefilling() {
                let share = slot.left_to_next_keeping().min(left);
                left -= share;
                slot.step.extend(&slot.tokens[slot.computed..][..share]);
                continue;
            }
            // Besides the last token those from which a state was taken back.
            slot.step.extend(&slot.tokens[slot.computed..]);
            // The last token that may be generated is not computed.
            let most = (slot.completion_max - slot.generated - 1)
                .min(self.config.context_tokens - slot.tokens.len())
                .min(GUESSES_MAX);
            if !only_generating {
                continue;
            }
            let Some(guesser) = &mut slot.guesser else { continue };
            let found = guesser.guess(&slot.tokens, most);
            let of_found = guesser.trust.worth(found.len(), tokens, &self.pace, 0.0);
            let draft = slot.draft.as_mut().filter(|draft| draft.is_near(slot.tokens.len()));
            let of_draft = draft
                .as_ref()
                .zip(cost)
                .and_then(|(draft, cost)| draft.trust.worth(most, tokens, &self.pace, cost));
            let gain = |worth: Option<Worth>| worth.map_or(0.0, |worth| worth.gain);
            if gain(of_draft) > gain(of_found) {
                let count = of_draft.map_or(0, |worth| worth.guesses);
                slot.is_drafted = true;
                tokens += count;
                wishes.push((i, count));
                continue;
            }
            match of_found {
                Some(worth) => {
                    slot.step.extend(&found[..worth.guesses]);
                    tokens += worth.guesses;
                }
                None => {
                    if !found.is_empty() {
                        guesser.trust.come_back();
                    }
                    if let Some(draft) = draft {
                        draft.trust.come_back();
                    }
                }
            }
        }
        self.draft(&wishes);
    }

    /// Adds guesses of the draft model or the predictor to the steps of slots, for each at most as many as is said.
    fn draft(&mut self, wishes: &[(usize, usize)]) {
        let Some(drafter) = self.drafter.as_mut().filter(|_| !wishes.is_empty()) else { return };
        let mut wanted = wishes.iter().peekable();
        let mut asked = Vec::with_capacity(wishes.len());
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let Some(&&(_, count)) = wanted.peek().filter(|(place, _)| *place == i) else { continue };
            wanted.next();
            let Some(draft) = &mut slot.draft else { continue };
            let banned = if slot.request.ignore_eos { &self.ends[..] } else { &[] };
            let (tokens, sequence, sampler) = (&slot.tokens[..], &slot.sequence, slot.sampler.clone());
            let guesses = Vec::new();
            let wish = Wish { draft, tokens, sequence, sampler, banned, count, guesses };
            asked.push((&mut slot.step, wish));
        }
        let (steps, mut wishes): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let main = Main { forward: &mut self.forward, cache: &mut self.cache };
        drafter.guess(main, &mut wishes, |token| self.ends.contains(&token));
        for (step, wish) in steps.into_iter().zip(wishes) {
            step.extend(wish.guesses);
        }
    }

    /// Lets the predictor know what the model made of each slot's tokens, but of guesses that were wrong.
    fn tell_predictor(&mut self, places: Vec<(usize, Range<usize>, usize)>) {
        if !self.drafter.as_ref().is_some_and(Drafter::is_predictor) {
            return;
        }
        for (i, rows, position) in places {
            let slot = &mut self.slots[i];
            let known = rows.len().min(slot.tokens.len() - 1 - position);
            let rows = rows.take(known).map(|row| self.forward.hidden().row(row));
            if let Some(draft) = &mut slot.draft {
                draft.hear(position, rows);
            }
        }
    }

    /// Takes the draft model or the predictor along where it is behind.
    fn follow(&mut self) {
        let Some(drafter) = &mut self.drafter else { return };
        let nobody_generates = self.slots.iter().all(Slot::is_prefilling);
        let budget = match nobody_generates {
            true => self.config.prefill_tokens_max,
            false => self.config.prefill_tokens_beside_decode_max,
        };
        // What follows the last token is asked for when a guess is wanted.
        let last = if drafter.is_predictor() { 2 } else { 1 };
        let behind = self.slots.iter_mut().filter_map(|slot| {
            // No further than the model: what it has not begun may be cancelled.
            let begun = if slot.is_prefilling() { slot.computed } else { slot.tokens.len() };
            let until = begun.saturating_sub(last);
            Some(Followed {
                draft: slot.draft.as_mut()?,
                tokens: &slot.tokens,
                until,
                sequence: &slot.sequence,
            })
        });
        let main = Main { forward: &mut self.forward, cache: &mut self.cache };
        drafter.follow(main, behind, BEHIND_MAX, budget);
    }

    fn step(&mut self) {
        self.shift_full();
        if self.slots.is_empty() {
            return;
        }
        self.share_out();
        let now = Instant::now();
        let mut batch = Vec::with_capacity(self.slots.len());
        // Which slots have logits, and which of their rows come first.
        let mut who = Vec::with_capacity(self.slots.len());
        // The tokens of each slot: where they begin among all, and at which position of the sequence.
        let mut places = Vec::with_capacity(self.slots.len());
        let (mut tokens, mut prompt_tokens, mut outputs) = (0, 0, 0);
        for (i, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| !slot.step.is_empty()) {
            slot.started.get_or_insert(now);
            places.push((i, tokens..tokens + slot.step.len(), slot.computed));
            tokens += slot.step.len();
            if slot.is_prefilling() {
                prompt_tokens += slot.step.len();
            } else if slot.step.len() > slot.left() {
                self.cache.step_beside(&mut slot.sequence);
            }
            // After the last token that is known, and after each guess.
            let own = (slot.step.len() + 1).saturating_sub(slot.left());
            if own > 0 {
                who.push((i, outputs));
                outputs += own;
            }
            batch.push(SequenceStep {
                tokens: &slot.step,
                position: slot.computed,
                sequence: &slot.sequence,
                adapters: slot.adapters.scales(),
                outputs: own,
            });
        }
        let context = self.forward.context();
        let logits = self.forward.step(&batch, &mut self.cache);
        if prompt_tokens == 0 {
            self.pace.learn(tokens, now.elapsed());
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.is_prefilling()) {
            slot.computed += slot.step.len();
            if slot.keep_at.last() == Some(&slot.computed) {
                slot.keep_at.pop();
                self.cache.keep_state(&mut slot.sequence, slot.computed);
            }
        }
        let mut ended = Vec::new();
        let mut generated = 0;
        for &(i, row) in &who {
            let slot = &mut self.slots[i];
            let before = slot.generated;
            let rows = (row..).map(|row| logits.row(row));
            let end = generate(slot, &mut self.cache, self.tokenizer, &self.ends, context, rows);
            if let Some((reason, text)) = end {
                ended.push((i, reason, text));
            }
            generated += slot.generated - before;
        }
        self.tell_predictor(places);
        self.inbox.update(|stats| {
            stats.steps_total += 1;
            stats.prompt_tokens_total += prompt_tokens as u64;
            stats.generation_tokens_total += generated as u64;
        });
        for (i, reason, text) in ended.into_iter().rev() {
            self.retire(i, reason, text);
        }
        self.follow();
    }

    fn report(&self) {
        // Several may use the same pages.
        let used = self.slots.iter().map(|s| s.computed).sum::<usize>().min(self.cache.tokens_capacity());
        self.inbox.update(|stats: &mut Stats| {
            stats.requests_running = self.slots.len() + usize::from(self.delayed.is_some());
            stats.kv_tokens_used = used;
            stats.kv_tokens_held = self.cache.tokens_held();
        });
    }
}

/// Chooses a slot's next tokens, as long as they are what was guessed, and reports them; returns how the generation ended if
/// it did.
fn generate<'l>(
    slot: &mut Slot,
    cache: &mut KvCache,
    tokenizer: &Tokenizer,
    ends: &[TokenId],
    context: Context<'_>,
    rows: impl Iterator<Item = &'l [f32]>,
) -> Option<(FinishReason, String)> {
    let before = slot.tokens.len();
    // Of a prompt, all were counted as computed.
    let known = before - slot.computed;
    let guesses = if known > 0 { slot.step.split_off(known) } else { Vec::new() };
    let mut came_true = 0;
    let mut end = None;
    for logits in rows.take(guesses.len() + 1) {
        end = generate_one(slot, tokenizer, ends, context, logits);
        if end.is_some() || guesses.get(came_true) != slot.tokens.last() {
            break;
        }
        came_true += 1;
    }
    // Keys and values of wrong guesses are written over, but a state has them in it.
    let lasts = came_true == guesses.len() || !cache.has_states();
    cache.settle(&mut slot.sequence, lasts);
    if lasts {
        slot.computed = before + came_true;
    }
    if let Some(draft) = &mut slot.draft {
        draft.keep(before + came_true);
        if slot.is_drafted {
            // Not to be sure of anything took its time, too.
            draft.trust.learn(guesses.len().max(1), came_true);
        }
    }
    if let Some(guesser) = slot.guesser.as_mut().filter(|_| !slot.is_drafted) {
        guesser.trust.learn(guesses.len(), came_true);
    }
    slot.guessed.all += guesses.len();
    slot.guessed.true_ones += came_true;
    end
}

/// Chooses a slot's next token and reports it; returns how the generation ended if it did.
fn generate_one(
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
    slot.generated += 1;
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
    (slot.generated == slot.completion_max).then(|| (FinishReason::Length, slot.text.finish()))
}
