//! What a server may be told: limits, times, origins. Any combination of values is valid.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::edge::Access;

/// Hears of every response.
pub type OnAccess = Arc<dyn Fn(&Access) + Send + Sync>;

/// A server's configuration.
#[derive(Clone)]
pub struct Config {
    /// What one request may ask for.
    pub limits: Limits,
    /// What one peer may cost.
    pub connections: wire::connections::Limits,
    /// How long a request's body may take to arrive.
    pub body_time_max: Duration,
    /// Bodies longer than 64 KiB that are being read or parsed may take so much together; further ones wait.
    pub bodies_bytes_max: usize,
    /// Generations that may wait for the scheduler before more are refused with 429.
    pub waiting_max: usize,
    /// How long generations may go on after the server was asked to end.
    pub drain_time_max: Duration,
    /// How long clients may take for the last words of what was cut at that deadline.
    pub farewell_time_max: Duration,
    /// A stream in which nothing was said for so long carries a comment.
    pub keep_alive_interval: Duration,
    /// What `Retry-After` says when the queue is full or the model is loading.
    pub retry_after: Duration,
    /// Web origins, such as `http://localhost:3000`, whose pages may use the API; `*` means all. The server's own
    /// pages always may.
    pub cors_origins: Vec<String>,
    /// Names besides `localhost` that requests may reach the server by, without a port; `*` means all. A server that
    /// listens on an address of the loopback answers to no others; elsewhere an empty list means all.
    pub hosts_allowed: Vec<String>,
    /// Whether the chat page is served at `/`.
    pub chat_page: bool,
    /// Called when a response ended or its client left.
    pub on_access: Option<OnAccess>,
    pub environment: Environment,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connections: wire::connections::Limits::default(),
            body_time_max: Duration::from_secs(30),
            bodies_bytes_max: 64 << 20,
            waiting_max: 64,
            drain_time_max: Duration::from_secs(30),
            farewell_time_max: Duration::from_secs(2),
            keep_alive_interval: Duration::from_secs(10),
            retry_after: Duration::from_secs(2),
            cors_origins: Vec::new(),
            hosts_allowed: Vec::new(),
            chat_page: true,
            on_access: None,
            environment: Environment::default(),
        }
    }
}

/// What one request may ask for. What is beyond is refused with 400 or 413, never cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub body_bytes_max: usize,
    /// Choices per prompt (`n`).
    pub choices_max: usize,
    /// Prompts per completion request.
    pub prompts_max: usize,
    /// Texts per embedding request, and documents per rerank request.
    pub texts_max: usize,
    /// Prompts times choices. Where this is more than the engine can queue, some requests are refused for ever with a
    /// status that says to try again.
    pub generations_max: usize,
    /// Tokens given as numbers in one request; a model's context is checked besides.
    pub tokens_max: usize,
    pub stop_strings_max: usize,
    pub stop_string_bytes_max: usize,
    pub logit_bias_max: usize,
    /// Adapters that a request may name.
    pub adapters_max: usize,
    /// Values (objects, arrays, strings, numbers) in each of `messages`, `tools` and the like.
    pub json_values_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            choices_max: 16,
            prompts_max: 64,
            texts_max: 2048,
            generations_max: 64,
            tokens_max: 1 << 18,
            stop_strings_max: 16,
            stop_string_bytes_max: 1024,
            logit_bias_max: 4096,
            adapters_max: 64,
            json_values_max: 1 << 16,
        }
    }
}

/// What answers take from outside besides the model, so that tests can fix it.
#[derive(Clone)]
pub struct Environment {
    /// Seconds since 1970.
    pub unix_seconds: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The part of a response's id after its prefix; unique, but no secret.
    pub unique: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Default for Environment {
    fn default() -> Self {
        let next = AtomicU64::new(unix_time().as_nanos() as u64);
        Self {
            unix_seconds: Arc::new(|| unix_time().as_secs()),
            unique: Arc::new(move || {
                let number = next.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                format!("{:016x}{:08x}", mix(number), mix(!number) as u32)
            }),
        }
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads a counter's values.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
