//! How long an answer took, for people and for programs.

use super::session::{Answer, Session};
use crate::error::CliError;
use engine::request::FinishReason;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    text: &'a str,
    finish_reason: &'static str,
    usage: Usage,
    timing: Timing,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

/// Rates are null where nothing was measured.
#[derive(Serialize)]
struct Timing {
    load_ms: f64,
    ttft_ms: f64,
    decode_ms: f64,
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
}

/// One JSON object, in one line.
pub(super) fn json(session: &Session, answer: &Answer, load: Duration) -> Result<String, CliError> {
    let Answer { text, reason, usage, timing } = answer;
    let report = Report {
        model: session.model(),
        text,
        finish_reason: finish_reason(reason),
        usage: Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        },
        timing: Timing {
            load_ms: milliseconds(load),
            ttft_ms: milliseconds(timing.queue + timing.prefill),
            decode_ms: milliseconds(timing.decode),
            prefill_tokens_per_second: rate(usage.prompt_tokens, timing.prefill),
            decode_tokens_per_second: decode_rate(answer),
        },
    };
    Ok(serde_json::to_string(&report)?)
}

/// One line on standard error.
pub(super) fn line(answer: &Answer, load: Option<Duration>) -> String {
    let Answer { usage, timing, .. } = answer;
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let load = load.map(|load| format!("load {:.0} ms, ", milliseconds(load))).unwrap_or_default();
    format!(
        "{load}TTFT {:.1} ms, prefill {} tokens at {} tokens/s, decode {} tokens at {} tokens/s",
        milliseconds(timing.queue + timing.prefill),
        usage.prompt_tokens,
        rate(self::rate(usage.prompt_tokens, timing.prefill)),
        usage.completion_tokens,
        rate(decode_rate(answer)),
    )
}

/// OpenAI's words, and one for what the user ended.
fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfTurn | FinishReason::StopString(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Failed(_) => "error",
    }
}

/// The first token belongs to prefill.
fn decode_rate(answer: &Answer) -> Option<f64> {
    rate(answer.usage.completion_tokens.saturating_sub(1), answer.timing.decode)
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    let rate = tokens as f64 / time.as_secs_f64();
    (tokens > 0 && rate.is_finite()).then(|| (rate * 10.0).round() / 10.0)
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
