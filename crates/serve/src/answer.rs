//! What the answers of chat and text completions share.

use std::time::Duration;

use engine::request::{Event, Finished, Timing, Token, TokenId, TokenLogprob, Usage};
use serde::Serialize;

use crate::backend::Backend;
use crate::error::ApiError;
use crate::generation::{Generation, finish_reason};
use crate::server::Server;

pub(crate) const FINGERPRINT: &str = concat!("dunlin-", env!("CARGO_PKG_VERSION"));

/// What every part of an answer begins with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: &'static str,
}

impl Head {
    pub(crate) fn new(server: &Server, backend: &dyn Backend, prefix: &str, object: &'static str) -> Self {
        let environment = &server.config().environment;
        Self {
            id: format!("{prefix}-{}", (environment.unique)()),
            object,
            created: (environment.unix_seconds)(),
            model: backend.card().id.clone(),
            system_fingerprint: FINGERPRINT,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct UsageObject {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PromptTokensDetails {
    /// What did not have to be computed, because an earlier request began with the same tokens.
    pub(crate) cached_tokens: usize,
}

impl UsageObject {
    /// Adds one choice. The prompt of several choices counts once, as OpenAI counts it.
    pub(crate) fn add(&mut self, usage: Usage, first_of_prompt: bool) {
        if first_of_prompt {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// llama-server's `timings`, with the time spent waiting besides. Rates are 0 where there was nothing to measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Timings {
    queue_ms: f64,
    /// Prompt tokens that were in the cache already.
    cache_n: usize,
    /// The others.
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
    /// Tokens that were guessed, and how many of these came true.
    draft_n: usize,
    draft_n_accepted: usize,
    /// Tokens that a full context lost so that the answer could go on.
    #[serde(skip_serializing_if = "is_zero")]
    shifted_n: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Timings {
    pub(crate) fn new(usage: Usage, timing: Timing) -> Self {
        // The first token belongs to the prefill: decode is measured from it to the last.
        let decoded = usage.completion_tokens.saturating_sub(1);
        let computed = usage.prompt_tokens - usage.cached_tokens;
        Self {
            queue_ms: milliseconds(timing.queue),
            cache_n: usage.cached_tokens,
            prompt_n: computed,
            prompt_ms: milliseconds(timing.prefill),
            prompt_per_token_ms: ratio(milliseconds(timing.prefill), computed as f64),
            prompt_per_second: ratio(computed as f64, timing.prefill.as_secs_f64()),
            predicted_n: usage.completion_tokens,
            predicted_ms: milliseconds(timing.decode),
            predicted_per_token_ms: ratio(milliseconds(timing.decode), decoded as f64),
            predicted_per_second: ratio(decoded as f64, timing.decode.as_secs_f64()),
            draft_n: usage.guessed_tokens,
            draft_n_accepted: usage.true_guesses,
            shifted_n: usage.dropped_tokens,
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

/// One choice of an answer given at once.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<(TokenId, TokenLogprob)>,
    /// Where in `text` the text of each token with a log-probability begins, in characters.
    pub(crate) offsets: Vec<usize>,
    pub(crate) finish_reason: &'static str,
    pub(crate) usage: Usage,
    pub(crate) timing: Timing,
}

impl Choice {
    fn token(&mut self, token: Token) {
        if let Some(logprob) = token.logprob {
            self.logprobs.push((token.id, logprob));
            self.offsets.push(self.text.chars().count());
        }
        self.text.push_str(&token.text);
    }

    fn finish(&mut self, finished: &Finished) {
        self.text.push_str(&finished.text);
        self.finish_reason = finish_reason(&finished.reason);
        self.usage = finished.usage;
        self.timing = finished.timing;
    }
}

/// All choices of a generation, when the last has ended.
pub(crate) async fn collect(mut generation: Generation, choices: usize) -> Result<Vec<Choice>, ApiError> {
    let mut collected: Vec<_> = (0..choices).map(|_| Choice::default()).collect();
    while let Some(next) = generation.next().await {
        match next? {
            (choice, Event::Token(token)) => collected[choice].token(token),
            (choice, Event::Finished(finished)) => collected[choice].finish(&finished),
        }
    }
    Ok(collected)
}

/// The usage of several choices, of which `per_prompt` share a prompt.
pub(crate) fn usage_of(choices: &[Choice], per_prompt: usize) -> UsageObject {
    let mut usage = UsageObject::default();
    for (index, choice) in choices.iter().enumerate() {
        usage.add(choice.usage, index.is_multiple_of(per_prompt));
    }
    usage
}

/// The text of a token for people; its bytes say what it really is.
pub(crate) fn token_text(backend: &dyn Backend, token: TokenId) -> String {
    String::from_utf8_lossy(backend.token_bytes(token).unwrap_or_default()).into_owned()
}

/// JSON has no infinity; OpenAI says -9999 for what cannot happen.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
