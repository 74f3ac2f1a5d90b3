//! Guesses by a small model of the same vocabulary, or by a layer of the model's own that looks one token further.
//!
//! Who guesses chooses as the model will: by the request's sampling and with the same draws, so that where both agree on what
//! is likely they mostly choose the same token. It goes through prompts beside the model, and behind it where it fell back,
//! some tokens in each step, so that nobody waits for it.

use super::Trust;
use crate::cache::{KvCache, Sequence};
use crate::engine::EngineConfig;
use crate::gguf::Gguf;
use crate::model::{AdaptersKey, Forward, Model, Purpose, SequenceStep};
use crate::model::{Outline, name_of};
use crate::request::TokenId;
use crate::sampler::Sampler;
use kernels::{Pool, ops};
use std::time::Instant;

/// Tokens that the small model may be behind before it is taken along without being asked for a guess.
pub(crate) const BEHIND_MAX: usize = 32;

/// A guess that the small model itself holds for less likely ends the guesses before it.
const PROBABILITY_MIN: f32 = 0.3;

/// What one measurement weighs in the time of a guess.
const SECONDS_WEIGHT: f64 = 0.1;

/// How many tokens one vocabulary may have more than the other: models of one kind are filled up to different round numbers.
const VOCABULARY_DIFFERENCE_MAX: usize = 256;

/// Why a model cannot guess for another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    #[error("the draft model {draft} {purpose}; it must generate text")]
    Purpose { draft: String, purpose: Purpose },
    #[error("the draft model {draft} keeps states, which cannot be taken back to before a wrong guess")]
    States { draft: String },
    #[error("the draft model {draft} has {draft_tokens} tokens and {model} has {model_tokens}")]
    Size { draft: String, draft_tokens: usize, model: String, model_tokens: usize },
    #[error("token {id} is {of_draft:?} in the draft model {draft} and {of_model:?} in {model}")]
    Token { id: TokenId, draft: String, of_draft: String, model: String, of_model: String },
}

/// What a file's header says of a model that guesses or is guessed for.
struct Facts {
    name: String,
    purpose: Purpose,
    has_states: bool,
    vocabulary: usize,
}

impl Facts {
    fn of(model: &Model) -> Facts {
        let (purpose, has_states) = (model.purpose(), model.has_states());
        Facts { name: model.name(), purpose, has_states, vocabulary: model.vocabulary() }
    }

    fn read((gguf, outline): (&Gguf, &Outline)) -> Facts {
        let Outline { purpose, state_bytes, vocabulary, .. } = *outline;
        Facts { name: name_of(gguf), purpose, has_states: state_bytes > 0, vocabulary }
    }

    /// Whether `draft` may guess for this.
    fn check(self, draft: Facts) -> Result<(), DraftError> {
        let Facts { name: of_draft, purpose, has_states, vocabulary: draft_tokens } = draft;
        let (model, model_tokens) = (self.name, self.vocabulary);
        if purpose != Purpose::Generates {
            return Err(DraftError::Purpose { draft: of_draft, purpose });
        }
        if has_states {
            return Err(DraftError::States { draft: of_draft });
        }
        if model_tokens.abs_diff(draft_tokens) > VOCABULARY_DIFFERENCE_MAX {
            return Err(DraftError::Size { draft: of_draft, draft_tokens, model, model_tokens });
        }
        Ok(())
    }
}

/// What files tell of [`check_draft`] before they are loaded: all but what their tokens are.
///
/// # Errors
/// See [`DraftError`].
pub fn check_draft_file(model: (&Gguf, &Outline), draft: (&Gguf, &Outline)) -> Result<(), DraftError> {
    Facts::read(model).check(Facts::read(draft))
}

/// Whether `draft` can guess for `model`.
///
/// # Errors
/// See [`DraftError`].
pub fn check_draft(model: &Model, draft: &Model) -> Result<(), DraftError> {
    let (name, of_draft) = (model.name(), draft.name());
    Facts::of(model).check(Facts::of(draft))?;
    let (Some(tokenizer), Some(of_draft_tokenizer)) = (model.tokenizer(), draft.tokenizer()) else {
        return Ok(());
    };
    let piece = |id: TokenId| (tokenizer.piece(id), of_draft_tokenizer.piece(id));
    let mut both = 0..tokenizer.vocabulary().min(of_draft_tokenizer.vocabulary()) as TokenId;
    let different = both.find(|&id| piece(id).0 != piece(id).1);
    match different.map(|id| (id, piece(id))) {
        None => Ok(()),
        Some((id, (of_model, in_draft))) => Err(DraftError::Token {
            id,
            draft: of_draft,
            of_draft: in_draft.to_owned(),
            model: name,
            of_model: of_model.to_owned(),
        }),
    }
}

/// Who guesses, at work.
pub(crate) struct Drafter<'a> {
    source: Source<'a>,
    /// Tokens that it and the model know.
    vocabulary: usize,
    /// Time that a guess takes over that of a step of the model, before either is measured: by the bytes they read.
    cost_first: f64,
    /// 0 before it is measured.
    seconds: f64,
}

enum Source<'a> {
    Model(Box<Small<'a>>),
    /// The model's predictor, whose keys and values lie in the model's cache. At a token's position it has that token's hidden
    /// row and the token after it.
    Predictor,
}

/// A small model with a cache of its own.
struct Small<'a> {
    forward: Forward<'a>,
    cache: KvCache,
}

/// The model that is guessed for.
pub(crate) struct Main<'m, 'a> {
    pub(crate) forward: &'m mut Forward<'a>,
    pub(crate) cache: &'m mut KvCache,
}

/// What is known of one sequence by who guesses.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Of the small model.
    sequence: Option<Sequence>,
    /// Of the sequence's tokens, at how many positions keys and values are known.
    computed: usize,
    /// For a predictor: what the model made of the tokens from there on.
    hidden: Vec<f32>,
    pub(crate) trust: Trust,
}

/// A sequence that a draft follows.
pub(crate) struct Followed<'s> {
    pub(crate) draft: &'s mut Draft,
    pub(crate) tokens: &'s [TokenId],
    /// How many positions it may take along.
    pub(crate) until: usize,
    /// The model's own.
    pub(crate) sequence: &'s Sequence,
}

impl Draft {
    /// Takes what the model made of tokens from `position` on, as far as that is new.
    pub(crate) fn hear<'r>(&mut self, position: usize, rows: impl Iterator<Item = &'r [f32]>) {
        for (position, row) in (position..).zip(rows) {
            let next = self.computed + self.hidden.len() / row.len();
            debug_assert!(position <= next, "what is between is missing");
            if position == next {
                self.hidden.extend_from_slice(row);
            }
        }
    }

    /// Hears that so many of the sequence's tokens are gone before what is left at its end.
    pub(crate) fn move_back(&mut self, tokens: usize) {
        self.computed -= tokens;
    }

    /// Hears that only the first `tokens` of the sequence are as they were when it guessed.
    pub(crate) fn keep(&mut self, tokens: usize) {
        self.computed = self.computed.min(tokens);
    }

    /// Of a sequence's tokens, those that are new to it. A predictor takes each at the position before.
    fn new_of<'t>(&self, tokens: &'t [TokenId]) -> &'t [TokenId] {
        &tokens[self.computed + usize::from(self.sequence.is_none())..]
    }

    fn step<'b>(&'b self, tokens: &'b [TokenId], main: &'b Sequence, outputs: usize) -> SequenceStep<'b> {
        let sequence = self.sequence.as_ref().unwrap_or(main);
        SequenceStep { tokens, position: self.computed, sequence, adapters: &[], outputs }
    }

    /// Whether it can guess at once what follows so many tokens.
    pub(crate) fn is_near(&self, tokens: usize) -> bool {
        tokens - self.computed <= BEHIND_MAX
    }
}

/// A wish for up to `count` guesses of what follows `tokens`, and the guesses.
pub(crate) struct Wish<'s> {
    pub(crate) draft: &'s mut Draft,
    pub(crate) tokens: &'s [TokenId],
    /// The model's own.
    pub(crate) sequence: &'s Sequence,
    /// A copy of the one that will choose.
    pub(crate) sampler: Sampler,
    pub(crate) banned: &'s [TokenId],
    pub(crate) count: usize,
    pub(crate) guesses: Vec<TokenId>,
}

impl<'a> Drafter<'a> {
    /// A small model that guesses for `model`.
    pub(crate) fn new(draft: &'a Model, model: &Model, pool: &'a Pool, config: &EngineConfig) -> Self {
        let forward = Forward::new(draft, pool, config.context_tokens);
        let cache = KvCache::new(draft, config.kv_format, config.cache_tokens(), config.parallel);
        Self {
            source: Source::Model(Box::new(Small { forward, cache })),
            vocabulary: draft.vocabulary().min(model.vocabulary()),
            cost_first: draft.bytes_per_token() as f64 / model.bytes_per_token().max(1) as f64,
            seconds: 0.0,
        }
    }

    /// The model's own predictor, where it has one.
    pub(crate) fn of_model(model: &Model) -> Option<Self> {
        let bytes = model.bytes_per_guess()?;
        Some(Self {
            source: Source::Predictor,
            vocabulary: model.vocabulary(),
            cost_first: bytes as f64 / model.bytes_per_token().max(1) as f64,
            seconds: 0.0,
        })
    }

    /// Whether it is the model's predictor, which needs what the model makes of each token.
    pub(crate) fn is_predictor(&self) -> bool {
        matches!(self.source, Source::Predictor)
    }

    /// For a sequence that begins with `prompt`, of which the model knows `known` tokens, and may grow to `positions`; `None`
    /// where there is no room.
    pub(crate) fn open(&mut self, prompt: &[TokenId], known: usize, positions: usize) -> Option<Draft> {
        let (sequence, computed) = match &mut self.source {
            Source::Model(small) => {
                let sequence = small.cache.resume(prompt, AdaptersKey::default(), positions)?;
                let known = sequence.known();
                (Some(sequence), known)
            }
            // Who computed them has left what the predictor needs with them.
            Source::Predictor => (None, known),
        };
        Some(Draft { sequence, computed, hidden: Vec::new(), trust: Trust::default() })
    }

    /// Takes back what was opened for a sequence that became `tokens`.
    pub(crate) fn close(&mut self, draft: Draft, tokens: &[TokenId]) {
        if let (Source::Model(small), Some(sequence)) = (&mut self.source, draft.sequence) {
            small.cache.close(sequence, &tokens[..draft.computed]);
        }
    }

    /// Takes back what was opened for a sequence that is no longer what it was.
    pub(crate) fn forget(&mut self, draft: Draft) {
        if let (Source::Model(small), Some(sequence)) = (&mut self.source, draft.sequence) {
            small.cache.discard(sequence);
        }
    }

    /// The time of a guess over that of a step with one token, which takes `step` seconds where that is known.
    pub(crate) fn cost(&self, step: Option<f64>) -> f64 {
        match step {
            Some(step) if self.seconds > 0.0 => self.seconds / step,
            _ => self.cost_first,
        }
    }

    /// Takes sequences that it is more than `behind_max` tokens behind in along, up to `budget` tokens in all.
    pub(crate) fn follow<'s>(
        &mut self,
        main: Main<'_, 'a>,
        sequences: impl Iterator<Item = Followed<'s>>,
        behind_max: usize,
        budget: usize,
    ) {
        let width = main.forward.width();
        let mut left = budget;
        let mut behind = Vec::new();
        for followed in sequences {
            let Followed { draft, until, .. } = &followed;
            let missing = until.saturating_sub(draft.computed);
            let missing = match self.source {
                Source::Model(_) => missing,
                Source::Predictor => missing.min(draft.hidden.len() / width),
            };
            let share = if missing > behind_max { missing.min(left) } else { 0 };
            left -= share;
            if share > 0 {
                behind.push((followed, share));
            }
        }
        if behind.is_empty() {
            return;
        }
        let mut batch = Vec::with_capacity(behind.len());
        for (Followed { draft, tokens, sequence, .. }, share) in &behind {
            batch.push(draft.step(&draft.new_of(tokens)[..*share], sequence, 0));
        }
        match &mut self.source {
            Source::Model(small) => {
                small.forward.step(&batch, &mut small.cache);
            }
            Source::Predictor => {
                let hidden = behind.iter().map(|(f, share)| &f.draft.hidden[..share * width]);
                main.forward.predict(&batch, &hidden.collect::<Vec<_>>(), main.cache);
            }
        }
        for (Followed { draft, .. }, share) in behind {
            draft.computed += share;
            draft.hidden.drain(..(share * width).min(draft.hidden.len()));
        }
    }

    /// Fulfils wishes, all at once; `is_end` tells tokens after which nothing follows.
    pub(crate) fn guess(
        &mut self,
        main: Main<'_, 'a>,
        wishes: &mut [Wish<'_>],
        is_end: impl Fn(TokenId) -> bool,
    ) {
        let began = Instant::now();
        let context = main.forward.context();
        let mut rounds = 0;
        let mut going: Vec<usize> = (0..wishes.len()).collect();
        while !going.is_empty() {
            let step = |&i: &usize| {
                let Wish { draft, tokens, sequence, guesses, .. } = &wishes[i];
                // First what it is behind by, then guess by guess.
                let new = match guesses.len() {
                    0 => draft.new_of(tokens),
                    count => &guesses[count - 1..],
                };
                draft.step(new, sequence, 1)
            };
            let batch: Vec<_> = going.iter().map(step).collect();
            let fed: Vec<usize> = batch.iter().map(|step| step.tokens.len()).collect();
            let (logits, hidden) = match &mut self.source {
                Source::Model(small) => (small.forward.step(&batch, &mut small.cache), None),
                Source::Predictor => {
                    let hidden: Vec<&[f32]> = going.iter().map(|&i| &wishes[i].draft.hidden[..]).collect();
                    let (logits, hidden) = main.forward.predict(&batch, &hidden, main.cache);
                    (logits, Some(hidden))
                }
            };
            let mut row = 0..;
            going.retain(|&i| {
                let (wish, row) = (&mut wishes[i], row.next().expect("no end"));
                wish.draft.computed += fed[row];
                if let Some(hidden) = hidden {
                    wish.draft.hidden.clear();
                    wish.draft.hidden.extend_from_slice(hidden.row(row));
                }
                let logits = &logits.row(row)[..self.vocabulary];
                let guess = wish.sampler.choose(context, logits, wish.banned);
                let probability = (logits[guess as usize] - ops::log_sum_exp(context, logits)).exp();
                if probability < PROBABILITY_MIN {
                    return false;
                }
                wish.guesses.push(guess);
                wish.guesses.len() < wish.count && !is_end(guess)
            });
            rounds += 1;
        }
        if self.is_predictor() {
            // What it made itself only stood in for what the model will make.
            for wish in wishes {
                wish.draft.computed = wish.tokens.len() - 1;
                wish.draft.hidden.clear();
            }
        }
        let seconds = began.elapsed().as_secs_f64() / f64::from(rounds);
        self.seconds = if self.seconds == 0.0 {
            seconds
        } else {
            self.seconds + (seconds - self.seconds) * SECONDS_WEIGHT
        };
    }
}
