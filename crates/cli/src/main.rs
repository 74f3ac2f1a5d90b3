//! dunlin: one binary that serves quantized models.
#![forbid(unsafe_code)]

fn main() {}
