//! Models on one machine: GGUF -> tokens -> logits -> text.
//!
//! Knows no network, no async, no environment variables and no printing: threads, channels, plain types.
#![deny(unsafe_code)]

mod cache;
mod encoder;
mod engine;
pub mod gguf;
pub mod mmap;
pub mod model;
pub mod request;
mod sampler;
mod scheduler;
mod speculation;
pub mod template;
mod text;
pub mod tokenizer;

pub use cache::{KvCache, SavedError, Sequence, state_slots};
pub use encoder::{Encoded, EncodedSink, Encoder, EncoderConfig, normalize};
pub use engine::{ContextShift, Engine, EngineConfig, Speculation};
pub use kernels::attention::{KvFormat, PAGE};
pub use kernels::{Isa, Pool};
pub use model::{Adapter, AdapterError, AdapterScale, Model, ModelError, OpenOptions, check_adapter};
pub use request::*;
pub use speculation::draft::{DraftError, check_draft, check_draft_file};
