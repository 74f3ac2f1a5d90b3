//! Dimensions of well-known models, and the metadata that states them.

use std::fmt;

use clap::ValueEnum;
use engine::gguf::GgufWriter;

use super::preset::Preset;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShapeName {
    #[value(name = "0.1b")]
    B0_1,
    #[value(name = "1b")]
    B1,
    #[value(name = "7b")]
    B7,
    #[value(name = "5b-a1b")]
    B5A1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    /// Needs a shape with experts, and they need it
    Qwen3moe,
    /// Five layers of six with a sliding window of 512 tokens
    Gemma3,
    /// Two layers of three are short convolutions
    Lfm2,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) embedding: u64,
    pub(super) layers: u64,
    /// Of each expert, where there are some.
    pub(super) feed_forward: u64,
    /// How many, and how many of them a token goes through; 0 and 0 without experts.
    pub(super) experts: (u64, u64),
    pub(super) heads: u64,
    pub(super) heads_kv: u64,
    pub(super) head_dim: u64,
    pub(super) vocabulary: u64,
    /// The output matrix is the token embedding.
    pub(super) tied: bool,
    pub(super) rope_base: f32,
    pub(super) context: u32,
}

impl fmt::Display for ShapeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ShapeName::B0_1 => "0.1b",
            ShapeName::B1 => "1b",
            ShapeName::B7 => "7b",
            ShapeName::B5A1 => "5b-a1b",
        })
    }
}

impl ShapeName {
    pub(super) fn shape(self) -> Shape {
        match self {
            ShapeName::B0_1 => Shape {
                embedding: 768,
                layers: 12,
                feed_forward: 2048,
                experts: (0, 0),
                heads: 12,
                heads_kv: 4,
                head_dim: 64,
                vocabulary: 32_000,
                tied: true,
                rope_base: 10_000.0,
                context: 32_768,
            },
            // Llama-3.2-1B.
            ShapeName::B1 => Shape {
                embedding: 2048,
                layers: 16,
                feed_forward: 8192,
                experts: (0, 0),
                heads: 32,
                heads_kv: 8,
                head_dim: 64,
                vocabulary: 128_256,
                tied: true,
                rope_base: 500_000.0,
                context: 131_072,
            },
            // Llama-2-7B.
            ShapeName::B7 => Shape {
                embedding: 4096,
                layers: 32,
                feed_forward: 11_008,
                experts: (0, 0),
                heads: 32,
                heads_kv: 32,
                head_dim: 128,
                vocabulary: 32_000,
                tied: false,
                rope_base: 10_000.0,
                context: 32_768,
            },
            // A third of Qwen3-30B-A3B's layers and half of its experts: 5 billion weights, a token goes through one.
            ShapeName::B5A1 => Shape {
                embedding: 2048,
                layers: 16,
                feed_forward: 768,
                experts: (64, 8),
                heads: 32,
                heads_kv: 4,
                head_dim: 128,
                vocabulary: 32_000,
                tied: true,
                rope_base: 1_000_000.0,
                context: 32_768,
            },
        }
    }
}

/// Whether a layer has attention.
pub(super) fn attends(arch: Arch, layer: u64) -> bool {
    arch != Arch::Lfm2 || layer % 3 == 2
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Qwen3moe => "qwen3moe",
            Arch::Gemma3 => "gemma3",
            Arch::Lfm2 => "lfm2",
        }
    }
}

impl Shape {
    pub(super) fn put_metadata(&self, head: &mut GgufWriter, family: Arch, name: ShapeName, preset: Preset) {
        let arch = family.name();
        head.put("general.architecture", arch);
        head.put("general.name", format!("synthetic {arch} {name} {preset}"));
        head.put("general.quantization_version", 2u32);
        head.put("general.file_type", preset.file_type());
        let mut number = |key: &str, value: u64| head.put(&format!("{arch}.{key}"), value as u32);
        number("block_count", self.layers);
        number("context_length", u64::from(self.context));
        number("embedding_length", self.embedding);
        number("feed_forward_length", self.feed_forward);
        number("attention.head_count", self.heads);
        number("attention.key_length", self.head_dim);
        number("attention.value_length", self.head_dim);
        number("rope.dimension_count", self.head_dim);
        number("vocab_size", self.vocabulary);
        if self.experts.0 > 0 {
            number("expert_feed_forward_length", self.feed_forward);
            number("expert_count", self.experts.0);
            number("expert_used_count", self.experts.1);
        }
        let mut other = |key: &str, value: u32| head.put(&format!("{arch}.{key}"), value);
        match family {
            Arch::Lfm2 => {
                other("shortconv.l_cache", 3);
                let heads = |layer| if attends(family, layer) { self.heads_kv as u32 } else { 0 };
                let heads: Vec<u32> = (0..self.layers).map(heads).collect();
                head.put_array(&format!("{arch}.attention.head_count_kv"), &heads);
            }
            _ => other("attention.head_count_kv", self.heads_kv as u32),
        }
        if family == Arch::Gemma3 {
            head.put(&format!("{arch}.attention.sliding_window"), 512u32);
        }
        head.put(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32);
        head.put(&format!("{arch}.rope.freq_base"), self.rope_base);
    }
}
