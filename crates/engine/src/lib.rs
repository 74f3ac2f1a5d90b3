//! Models on one machine: GGUF -> tokens -> logits -> text.
//!
//! Knows no network, no async, no environment variables and no printing: threads, channels, plain types.
#![deny(unsafe_code)]

pub mod gguf;
pub mod mmap;
pub mod request;
pub mod template;
pub mod tokenizer;

pub use request::*;
