//! What a caller asks of the engine and what it hears back, as plain types.
//!
//! A request is a list of token ids and the rules for choosing the next ones. The engine answers through a
//! sink, a closure it calls from its own thread: so a blocking caller can use a channel and an async one its
//! runtime's channel, and the engine knows neither.

use crate::model::{AdapterScale, Purpose};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An index into the model's vocabulary.
pub type TokenId = u32;

/// The largest number of alternatives that can be reported per token (OpenAI's limit for `top_logprobs`).
pub const TOP_LOGPROBS_MAX: usize = 20;

/// One generation: a prompt, how far to go, and how to choose.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub prompt: Vec<TokenId>,
    /// Stop after this many tokens; `None`: when the context is full.
    pub max_tokens: Option<usize>,
    pub sampling: Sampling,
    /// Generation ends before the first of these would appear in the text. Empty strings are ignored.
    pub stop: Vec<String>,
    /// `Some(n)`: report the log-probability of each chosen token and of the `n` likeliest alternatives.
    pub logprobs: Option<usize>,
    /// Go on past the model's end-of-generation tokens (for benchmarks).
    pub ignore_eos: bool,
    /// The adapters to compute with, and no others; `None`: as the engine's default has it.
    pub adapters: Option<Vec<AdapterScale>>,
}

/// How the next token is chosen from the logits. [`Sampling::default`] is llama.cpp's default chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 means greedy: the likeliest token, whatever the other fields say but penalties and bias.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides (multiplies, where negative) the logits of tokens seen in the last `repeat_last_n`; 1 is off.
    pub repeat_penalty: f32,
    pub repeat_last_n: usize,
    /// Subtracted once from the logit of every token seen among the last `repeat_last_n`.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen among the last `repeat_last_n`.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; negative infinity bans one.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same tokens; `None`: a seed is drawn from the clock.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// Receives a generation's events, in order, on the engine's thread; it must not block.
pub type Sink = Box<dyn FnMut(Event) + Send>;

/// What a generation reports: any number of [`Event::Token`], then one [`Event::Finished`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Token(Token),
    Finished(Finished),
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: TokenId,
    /// Text that became certain with this token: empty while a UTF-8 sequence is incomplete or a stop string may be
    /// forming, longer than one token's when such a doubt resolves.
    pub text: String,
    pub logprob: Option<TokenLogprob>,
    /// When the engine had it.
    pub at: Instant,
}

/// Natural logarithms of probabilities under the unmodified model (temperature 1, no penalties).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// The end of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub reason: FinishReason,
    /// Text held back for a possible stop string that did not come.
    pub text: String,
    pub usage: Usage,
    pub timing: Timing,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop string appeared; it is not part of the text.
    StopString(String),
    /// `max_tokens` reached or the context full.
    Length,
    /// The caller left.
    Cancelled,
    /// The engine could not go on; the message says why.
    Failed(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Of these, how many were in the cache already.
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    /// Tokens that a full context lost so that the generation could go on.
    pub dropped_tokens: usize,
    /// Tokens that were guessed and computed on trial, and how many of these came true.
    pub guessed_tokens: usize,
    pub true_guesses: usize,
}

/// Where the time of a generation went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to the first prompt token computed.
    pub queue: Duration,
    /// From there to the first generated token.
    pub prefill: Duration,
    /// From the first generated token to the last.
    pub decode: Duration,
}

/// A handle on a submitted generation. Dropping it cancels the generation.
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
}

impl Ticket {
    /// A ticket and the flag that its [`Ticket::cancel`] raises.
    pub fn new() -> (Self, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        (Self { cancelled: Arc::clone(&cancelled) }, cancelled)
    }

    /// Asks the engine to stop; it frees the slot before its next step and reports [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the prompt has {prompt_tokens} tokens and the context holds {context_tokens}")]
    PromptTooLong { prompt_tokens: usize, context_tokens: usize },
    #[error("token id {id} is outside of the vocabulary of {vocabulary}")]
    UnknownToken { id: TokenId, vocabulary: usize },
    #[error("{field}: {reason}")]
    InvalidSampling { field: &'static str, reason: String },
    #[error("there is no adapter {id}: {adapters} are loaded, counted from 0")]
    UnknownAdapter { id: usize, adapters: usize },
    #[error("adapter {id} {reason}")]
    InvalidAdapter { id: usize, reason: &'static str },
    #[error("{waiting} requests are waiting already")]
    QueueFull { waiting: usize },
    #[error("the model is not one for this: it {0}")]
    OtherPurpose(Purpose),
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// What the engine is doing now and has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub requests_running: usize,
    pub requests_waiting: usize,
    pub kv_tokens_used: usize,
    /// Room of pages that are in use or kept for who may begin with the same tokens.
    pub kv_tokens_held: usize,
    pub kv_tokens_capacity: usize,
    pub kv_bytes_capacity: u64,
    /// How much of the weights is in the layout of the kernels; less than all while they are packed in the background.
    pub weights_packed_bytes: u64,
    pub weights_bytes: u64,
    /// Computed, not those that were in the cache.
    pub prompt_tokens_total: u64,
    pub cached_tokens_total: u64,
    pub generation_tokens_total: u64,
    /// Forward passes so far.
    pub steps_total: u64,
}
