//! The inference API: OpenAI-compatible routes over an engine.
#![forbid(unsafe_code)]
