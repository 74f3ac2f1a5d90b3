//! Guesses by a small model of the same vocabulary.
//!
//! It chooses as the large one will: by the request's sampling and with the same draws, so that where both agree on what is
//! likely they mostly choose the same token. It goes through prompts beside the large model, and behind it where it fell
//! back, some tokens in each step, so that nobody waits for it.

use super::Trust;
use crate::cache::{KvCache, Sequence};
use crate::engine::EngineConfig;
use crate::model::{Forward, Model, Purpose, SequenceStep};
use crate::request::TokenId;
use crate::sampler::Sampler;
use kernels::{Pool, ops};
use std::time::Instant;

/// Tokens that the small model may be behind before it is taken along without being asked for a guess.
const BEHIND_MAX: usize = 32;

/// A guess that the small model itself holds for less likely ends the guesses before it.
const PROBABILITY_MIN: f32 = 0.3;

/// What one measurement weighs in the time of a guess.
const SECONDS_WEIGHT: f64 = 0.1;

/// How many tokens one vocabulary may have more than the other: models of one kind are filled up to different round numbers.
const VOCABULARY_DIFFERENCE_MAX: usize = 256;

/// Why a model cannot guess for another.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
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

/// Whether `draft` can guess for `model`.
///
/// # Errors
/// See [`DraftError`].
pub fn check_draft(model: &Model, draft: &Model) -> Result<(), DraftError> {
    let (name, of_draft) = (model.name(), draft.name());
    if draft.purpose() != Purpose::Generates {
        return Err(DraftError::Purpose { draft: of_draft, purpose: draft.purpose() });
    }
    if draft.has_states() {
        return Err(DraftError::States { draft: of_draft });
    }
    let (tokens, draft_tokens) = (model.vocabulary(), draft.vocabulary());
    if tokens.abs_diff(draft_tokens) > VOCABULARY_DIFFERENCE_MAX {
        return Err(DraftError::Size { draft: of_draft, draft_tokens, model: name, model_tokens: tokens });
    }
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

/// The small model at work.
pub(crate) struct Drafter<'a> {
    forward: Forward<'a>,
    cache: KvCache,
    /// Tokens that it and the large model know.
    vocabulary: usize,
    /// Time that a guess takes over that of a step of the large model, before either is measured: by the bytes they read.
    cost_first: f64,
    /// 0 before it is measured.
    seconds: f64,
}

/// What the small model knows of one sequence.
#[derive(Debug)]
pub(crate) struct Draft {
    sequence: Sequence,
    /// Of the sequence's tokens, how many are in the small model's cache.
    computed: usize,
    pub(crate) trust: Trust,
}

impl Draft {
    /// Hears that only the first `tokens` of the sequence are as they were when it guessed.
    pub(crate) fn keep(&mut self, tokens: usize) {
        self.computed = self.computed.min(tokens);
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
    /// A copy of the one that will choose.
    pub(crate) sampler: Sampler,
    pub(crate) banned: &'s [TokenId],
    pub(crate) count: usize,
    pub(crate) guesses: Vec<TokenId>,
}

impl<'a> Drafter<'a> {
    pub(crate) fn new(draft: &'a Model, model: &Model, pool: &'a Pool, config: &EngineConfig) -> Self {
        Self {
            forward: Forward::new(draft, pool, config.context_tokens),
            cache: KvCache::new(draft, config.kv_format, config.cache_tokens(), config.parallel),
            vocabulary: draft.vocabulary().min(model.vocabulary()),
            cost_first: draft.bytes_per_token() as f64 / model.bytes_per_token().max(1) as f64,
            seconds: 0.0,
        }
    }

    /// For a sequence that begins with `prompt` and may grow to `positions`; `None` where there is no room.
    pub(crate) fn open(&mut self, prompt: &[TokenId], positions: usize) -> Option<Draft> {
        let sequence = self.cache.resume(prompt, positions)?;
        Some(Draft { computed: sequence.known(), sequence, trust: Trust::default() })
    }

    /// Takes back what was opened for a sequence that became `tokens`.
    pub(crate) fn close(&mut self, draft: Draft, tokens: &[TokenId]) {
        self.cache.close(draft.sequence, &tokens[..draft.computed]);
    }

    /// Takes back what was opened for a sequence that is no longer what it was.
    pub(crate) fn forget(&mut self, draft: Draft) {
        self.cache.discard(draft.sequence);
    }

    /// The time of a guess over that of a step with one token, which takes `step` seconds where that is known.
    pub(crate) fn cost(&self, step: Option<f64>) -> f64 {
        match step {
            Some(step) if self.seconds > 0.0 => self.seconds / step,
            _ => self.cost_first,
        }
    }

    /// Takes sequences that it is behind in along, up to `budget` tokens in all. The last token of each is left: what follows
    /// it is asked for when a guess is wanted.
    pub(crate) fn follow<'s>(
        &mut self,
        sequences: impl Iterator<Item = (&'s mut Draft, &'s [TokenId])>,
        budget: usize,
    ) {
        let mut left = budget;
        let mut behind = Vec::new();
        for (draft, tokens) in sequences {
            let missing = (tokens.len() - 1).saturating_sub(draft.computed);
            let share = if missing > BEHIND_MAX { missing.min(left) } else { 0 };
            left -= share;
            if share > 0 {
                behind.push((draft, tokens, share));
            }
        }
        if behind.is_empty() {
            return;
        }
        let mut batch = Vec::with_capacity(behind.len());
        for (draft, tokens, share) in &behind {
            batch.push(SequenceStep {
                tokens: &tokens[draft.computed..][..*share],
                position: draft.computed,
                sequence: &draft.sequence,
                outputs: 0,
            });
        }
        self.forward.step(&batch, &mut self.cache);
        for (draft, _, share) in behind {
            draft.computed += share;
        }
    }

    /// Fulfils wishes, all at once; `is_end` tells tokens after which nothing follows.
    pub(crate) fn guess(&mut self, wishes: &mut [Wish<'_>], is_end: impl Fn(TokenId) -> bool) {
        let began = Instant::now();
        let mut rounds = 0;
        let mut going: Vec<usize> = (0..wishes.len()).collect();
        while !going.is_empty() {
            let step = |&i: &usize| {
                let Wish { draft, tokens, guesses, .. } = &wishes[i];
                SequenceStep {
                    // First what it is behind by, then guess by guess.
                    tokens: match guesses.last() {
                        None => &tokens[draft.computed..],
                        Some(_) => &guesses[guesses.len() - 1..],
                    },
                    position: draft.computed,
                    sequence: &draft.sequence,
                    outputs: 1,
                }
            };
            let batch: Vec<_> = going.iter().map(step).collect();
            let context = self.forward.context();
            let logits = self.forward.step(&batch, &mut self.cache);
            let mut row = 0..;
            going.retain(|&i| {
                let wish = &mut wishes[i];
                let fed = if wish.guesses.is_empty() { wish.tokens.len() - wish.draft.computed } else { 1 };
                wish.draft.computed += fed;
                let logits = &logits.row(row.next().expect("no end"))[..self.vocabulary];
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
        let seconds = began.elapsed().as_secs_f64() / f64::from(rounds);
        self.seconds = if self.seconds == 0.0 {
            seconds
        } else {
            self.seconds + (seconds - self.seconds) * SECONDS_WEIGHT
        };
    }
}
