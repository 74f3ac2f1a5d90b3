//! The inference API: OpenAI-compatible routes over a model. It loads no model, prints nothing and reads no file.
#![forbid(unsafe_code)]

mod adapters;
mod answer;
pub mod backend;
pub mod chat;
pub mod completions;
pub mod config;
mod edge;
pub mod embeddings;
mod encoding;
mod engine_backend;
pub mod error;
mod generation;
mod hosts;
mod json;
mod metrics;
mod models;
mod options;
mod page;
pub mod rerank;
mod server;
mod status;
mod stream;
mod tokens;

pub use backend::{Backend, Card, Chat, EncodeOptions, LoadedAdapter, TemplateError};
pub use config::{Config, Environment, Limits};
pub use edge::Access;
pub use engine_backend::{EngineBackend, Worker};
pub use error::ApiError;
pub use json::parse_bytes_max;
pub use options::Options;
pub use server::{Health, Server};
