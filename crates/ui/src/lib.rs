//! The web pages' files, embedded in the binary.
#![forbid(unsafe_code)]
