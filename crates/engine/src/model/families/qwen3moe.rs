//! Qwen 3 with experts.

use super::{Family, qwen3};

pub(super) static FAMILY: Family =
    Family { name: "qwen3moe", models: "Qwen3-30B-A3B, Qwen3-235B-A22B", read: qwen3::read };
