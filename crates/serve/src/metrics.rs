//! What the server counts, and the page that shows it.
//!
//! Times are taken where they happen: on the engine's thread, as it reports, not when a client has read.

mod exposition;
mod histogram;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use engine::Encoded;
use engine::request::{Event, FinishReason, Finished, Stats};

use crate::backend::Card;
pub(crate) use exposition::CONTENT_TYPE;
use exposition::Exposition;
use histogram::Histogram;

/// OpenTelemetry's for `gen_ai.server.time_to_first_token`, and vLLM's beyond: prefill on a CPU takes its time.
const FIRST_TOKEN_BOUNDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0,
];

/// OpenTelemetry's for `gen_ai.server.time_per_output_token`, with finer ones where small boards lie.
const TOKEN_BOUNDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.22, 0.24, 0.26, 0.28, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// OpenTelemetry's for `gen_ai.client.operation.duration`.
const REQUEST_BOUNDS: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// How a generation can end, as the label `finished_reason` has it.
const ENDINGS: [&str; 4] = ["stop", "length", "cancelled", "error"];

#[derive(Debug)]
pub(crate) struct Metrics {
    first_token: Histogram,
    between_tokens: Histogram,
    per_output_token: Histogram,
    request: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    endings: [AtomicU64; ENDINGS.len()],
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            first_token: Histogram::new(FIRST_TOKEN_BOUNDS),
            between_tokens: Histogram::new(TOKEN_BOUNDS),
            per_output_token: Histogram::new(TOKEN_BOUNDS),
            request: Histogram::new(REQUEST_BOUNDS),
            queue: Histogram::new(REQUEST_BOUNDS),
            prefill: Histogram::new(REQUEST_BOUNDS),
            decode: Histogram::new(REQUEST_BOUNDS),
            endings: [const { AtomicU64::new(0) }; ENDINGS.len()],
            refusals: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Counts a response that was an error. Codes are a small fixed set, so the map stays small.
    pub(crate) fn refused(&self, code: &'static str) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    fn ended(&self, ending: usize) {
        self.endings[ending].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request whose texts became vectors or scores.
    pub(crate) fn encoded(&self, arrived: Instant, encoded: &Encoded) {
        self.ended(0);
        self.request.observe(arrived.elapsed());
        self.queue.observe(encoded.queue);
        self.prefill.observe(encoded.compute);
    }

    /// Counts generations of which the engine said no more.
    pub(crate) fn abandoned(&self, generations: usize) {
        self.endings[3].fetch_add(generations as u64, Ordering::Relaxed);
    }

    /// The page of all metrics. Without a model its part is zero or left out.
    pub(crate) fn page(&self, model: Option<(&Card, Stats)>) -> String {
        let mut page = Exposition::default();
        page.info("dunlin_build_info", "The program.", &[("version", env!("CARGO_PKG_VERSION"))]);
        if let Some((card, _)) = model {
            let labels = [("model", &*card.id), ("quant", &card.quantization), ("sha256", &card.sha256)];
            page.info("dunlin_model_info", "The model.", &labels);
        }
        self.add_requests(&mut page);
        add_engine(&mut page, model.map(|(_, stats)| stats).unwrap_or_default());
        page.finish()
    }

    fn add_requests(&self, page: &mut Exposition) {
        let endings = ENDINGS.iter().zip(&self.endings);
        page.counters(
            "dunlin_requests_total",
            "Generations and encodings that ended, by how.",
            "finished_reason",
            endings.map(|(name, count)| (*name, count.load(Ordering::Relaxed))),
        );
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        page.counters("dunlin_refusals_total", "Responses that were errors, by code.", "code", refusals);
        for (name, help, histogram) in [
            (
                "dunlin_time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                &self.first_token,
            ),
            ("dunlin_inter_token_latency_seconds", "From one token to the next.", &self.between_tokens),
            (
                "dunlin_time_per_output_token_seconds",
                "Mean time from token to token of a request.",
                &self.per_output_token,
            ),
            ("dunlin_request_duration_seconds", "From a request's arrival to its end.", &self.request),
            (
                "dunlin_request_queue_seconds",
                "From submission to the first computed prompt token.",
                &self.queue,
            ),
            (
                "dunlin_request_prefill_seconds",
                "From there to the first generated token, or the end of an encoding.",
                &self.prefill,
            ),
            ("dunlin_request_decode_seconds", "From the first generated token to the last.", &self.decode),
        ] {
            page.histogram(name, help, histogram);
        }
    }
}

fn add_engine(page: &mut Exposition, stats: Stats) {
    let capacity = stats.kv_tokens_capacity;
    let ratio = if capacity == 0 { 0.0 } else { stats.kv_tokens_used as f64 / capacity as f64 };
    let bytes_used = (ratio * stats.kv_bytes_capacity as f64) as u64;
    let packed = match stats.weights_bytes {
        0 => 0.0,
        bytes => stats.weights_packed_bytes as f64 / bytes as f64,
    };
    page.counter("dunlin_prompt_tokens_total", "Prompt tokens computed.", stats.prompt_tokens_total);
    page.counter(
        "dunlin_cached_tokens_total",
        "Prompt tokens that were in the cache.",
        stats.cached_tokens_total,
    );
    page.counter("dunlin_generation_tokens_total", "Tokens generated.", stats.generation_tokens_total);
    page.counter("dunlin_forward_passes_total", "Forward passes of the model.", stats.steps_total);
    page.gauge("dunlin_requests_running", "Generations being computed.", stats.requests_running);
    page.gauge("dunlin_requests_waiting", "Generations waiting for a slot.", stats.requests_waiting);
    page.gauge("dunlin_weights_packed_ratio", "Part of the weights that is packed, 0 to 1.", packed);
    page.gauge("dunlin_kv_cache_usage_ratio", "Part of the KV cache in use, 0 to 1.", ratio);
    page.gauge("dunlin_kv_cache_tokens", "Tokens in the KV cache.", stats.kv_tokens_used);
    page.gauge("dunlin_kv_cache_held_tokens", "Room of its pages in use or kept.", stats.kv_tokens_held);
    page.gauge("dunlin_kv_cache_capacity_tokens", "Tokens that the KV cache can hold.", capacity);
    page.gauge("dunlin_kv_cache_bytes", "Bytes of the KV cache in use.", bytes_used);
    page.gauge("dunlin_kv_cache_capacity_bytes", "Bytes of the KV cache.", stats.kv_bytes_capacity);
}

/// Measures one generation by its events.
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    arrived: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: u32,
}

impl Meter {
    /// For a generation whose request arrived at `arrived`.
    pub(crate) fn new(metrics: Arc<Metrics>, arrived: Instant) -> Self {
        Self { metrics, arrived, first: None, last: arrived, tokens: 0 }
    }

    pub(crate) fn observe(&mut self, event: &Event) {
        match event {
            Event::Token(token) => self.token(token.at),
            Event::Finished(finished) => self.finish(finished),
        }
    }

    fn token(&mut self, at: Instant) {
        let since = at.saturating_duration_since(self.last);
        let histogram =
            if self.first.is_none() { &self.metrics.first_token } else { &self.metrics.between_tokens };
        histogram.observe(since);
        self.first.get_or_insert(at);
        self.last = at;
        self.tokens += 1;
    }

    fn finish(&mut self, finished: &Finished) {
        self.metrics.ended(ending(&finished.reason));
        self.metrics.request.observe(self.arrived.elapsed());
        self.metrics.queue.observe(finished.timing.queue);
        self.metrics.prefill.observe(finished.timing.prefill);
        self.metrics.decode.observe(finished.timing.decode);
        if let Some(first) = self.first
            && self.tokens > 1
        {
            let mean = self.last.saturating_duration_since(first) / (self.tokens - 1);
            self.metrics.per_output_token.observe(mean);
        }
    }
}

/// The place of an ending in [`ENDINGS`].
fn ending(reason: &FinishReason) -> usize {
    match reason {
        FinishReason::EndOfTurn | FinishReason::StopString(_) => 0,
        FinishReason::Length => 1,
        FinishReason::Cancelled => 2,
        FinishReason::Failed(_) => 3,
    }
}
