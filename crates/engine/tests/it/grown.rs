//! Tiny models of every family, made by giving the engine one tensor after the other that it misses.
//!
//! A family's metadata is written down here; names and shapes of tensors are the engine's own. What is computed is compared
//! with reference data elsewhere (`cargo xtask conformance`); these models show that it does not depend on how.

use engine::gguf::{GgmlType, Gguf, GgufWriter, Value};
use engine::model::Model;
use engine::{ModelError, OpenOptions, Pool};
use stdx::random::Random;

pub(crate) const VOCABULARY: usize = 96;
const WIDTH: u32 = 64;

/// A family's metadata beside what all have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Species {
    pub(crate) family: &'static str,
    keys: &'static [(&'static str, Key)],
    /// Layers that look further than to the next token.
    pub(crate) ahead: u32,
    /// Tensors that the engine does without, by the end of their names.
    pub(crate) optional: &'static [(&'static str, &'static [u64])],
}

impl Species {
    /// With only the first of the tensors that the engine does without.
    pub(crate) fn with_less(self, tensors: usize) -> Species {
        Species { optional: &self.optional[..tensors], ..self }
    }
}

#[derive(Clone, Copy, Debug)]
enum Key {
    Number(u32),
    Float(f32),
    Flag(bool),
    Text(&'static str),
    /// Little-endian `u32`, a number for each layer.
    Layers(&'static [u32]),
}

const LAYERS: usize = 3;

use Key::{Flag, Float, Layers, Number, Text};

const EXPERTS: [(&str, Key); 3] = [
    ("expert_count", Number(6)),
    ("expert_used_count", Number(2)),
    ("expert_feed_forward_length", Number(32)),
];

const WINDOWS: [(&str, Key); 2] =
    [("attention.sliding_window", Number(40)), ("attention.sliding_window_pattern", Layers(&[1, 0, 1]))];

const fn species(family: &'static str, keys: &'static [(&'static str, Key)]) -> Species {
    Species { family, keys, ahead: 0, optional: &[] }
}

/// One or more of each family.
pub(crate) const ALL: &[Species] = &[
    species("llama", &[]),
    species("llama", &[EXPERTS[0], EXPERTS[1], ("feed_forward_length", Number(32))]),
    species("qwen2", &[]),
    species(
        "qwen2moe",
        &[EXPERTS[0], EXPERTS[1], EXPERTS[2], ("expert_shared_feed_forward_length", Number(48))],
    ),
    // As the first files were, which do not say how wide experts are.
    species("qwen2moe", &[EXPERTS[0], EXPERTS[1]]),
    species("qwen3", &[]),
    species("qwen3moe", &EXPERTS),
    species("gemma2", &WINDOWS),
    species("gemma3", &[WINDOWS[0], WINDOWS[1], ("rope.freq_base_swa", Float(1000.0))]),
    GEMMA4,
    GEMMA4_EXPERTS,
    Species {
        ahead: 0,
        family: "phi3",
        keys: &[
            ("rope.scaling.original_context_length", Number(64)),
            ("rope.scaling.type", Text("longrope")),
        ],
        optional: &[("rope_factors_long.weight", &[8]), ("rope_factors_short.weight", &[8])],
    },
    species("smollm3", &[]),
    species(
        "granite",
        &[
            ("embedding_scale", Float(3.0)),
            ("residual_scale", Float(0.3)),
            ("logit_scale", Float(4.0)),
            ("attention.scale", Float(0.1)),
        ],
    ),
    species(
        "granitemoe",
        &[EXPERTS[0], EXPERTS[1], EXPERTS[2], ("expert_shared_feed_forward_length", Number(48))],
    ),
    species(
        "mistral3",
        &[
            ("rope.scaling.type", Text("yarn")),
            ("rope.scaling.factor", Float(4.0)),
            ("rope.scaling.original_context_length", Number(64)),
            ("attention.temperature_scale", Float(0.5)),
        ],
    ),
    species("olmo2", &WINDOWS),
    species("exaone4", &[]),
    species("glm4", &[]),
    species("cohere2", &[WINDOWS[0], WINDOWS[1], ("logit_scale", Float(0.25))]),
    species("gpt-oss", &[EXPERTS[0], EXPERTS[1], EXPERTS[2], WINDOWS[0], WINDOWS[1]]),
    species("deepseek2", &DEEPSEEK),
    PREDICTING[0],
    PREDICTING[1],
    PREDICTING[2],
    species("lfm2", &[("attention.head_count_kv", Layers(&[0, 2, 0])), ("shortconv.l_cache", Number(3))]),
    species(
        "lfm2moe",
        &[
            EXPERTS[0],
            EXPERTS[1],
            EXPERTS[2],
            ("leading_dense_block_count", Number(1)),
            ("attention.head_count_kv", Layers(&[0, 2, 0])),
            ("shortconv.l_cache", Number(3)),
        ],
    ),
    species("qwen35", &QWEN35),
    species("qwen35moe", &QWEN35MOE),
    species(
        "granitehybrid",
        &[
            MAMBA[0],
            MAMBA[1],
            MAMBA[2],
            MAMBA[3],
            MAMBA[4],
            ("attention.head_count_kv", Layers(&[0, 2, 0])),
            ("rope.scaling.finetuned", Flag(false)),
        ],
    ),
    species("mamba2", &MAMBA),
];

/// One or more of each family that makes vectors or scores, and of what makes others do so.
pub(crate) const ENCODERS: &[Species] = &[
    Species { ahead: 0, family: "bert", keys: &[NO_GROUPS], optional: &[SEGMENTS] },
    Species {
        ahead: 0,
        family: "bert",
        keys: &[NO_GROUPS, ("classifier.pooling_type", Number(1))],
        optional: &[
            SEGMENTS,
            ("cls.weight", &[64, 64]),
            ("cls.bias", &[64]),
            ("cls.output.weight", &[64, 1]),
        ],
    },
    species("nomic-bert", &[NO_GROUPS, ("pooling_type", Number(2))]),
    Species {
        ahead: 0,
        family: "jina-bert-v2",
        keys: &[NO_GROUPS],
        optional: &[("blk.0.ffn_gate.weight", &[64, 96]), ("blk.0.attn_q_norm.weight", &[64])],
    },
    Species {
        ahead: 0,
        family: "jina-bert-v2",
        keys: &[NO_GROUPS],
        optional: &[("blk.0.attn_norm_2.weight", &[64])],
    },
    species("jina-bert-v2", &[("attention.head_count", Number(6)), ("attention.head_count_kv", Number(6))]),
    species("jina-bert-v3", &[NO_GROUPS]),
    species("modern-bert", &[NO_GROUPS, WINDOWS[0], WINDOWS[1]]),
    Species {
        ahead: 0,
        family: "modern-bert",
        keys: &[WINDOWS[0], ("pooling_type", Number(4)), ("hidden_activation", Text("silu"))],
        optional: &[
            ("blk.0.attn_norm.weight", &[64]),
            ("cls.weight", &[64, 64]),
            ("cls.norm.weight", &[64]),
            ("cls.output.weight", &[64, 1]),
        ],
    },
    Species {
        ahead: 0,
        family: "gemma-embedding",
        keys: &[WINDOWS[0], WINDOWS[1]],
        optional: &[("dense_2.weight", &[64, 160]), ("dense_3.weight", &[160, 64])],
    },
    species("qwen3", &[("pooling_type", Number(3))]),
    Species {
        ahead: 0,
        family: "qwen3",
        keys: &[("pooling_type", Number(4))],
        optional: &[("cls.output.weight", &[64, 2])],
    },
    species("llama", &[("attention.causal", Flag(false))]),
];

/// With embeddings for each layer, and keys and values that layers share.
pub(crate) const GEMMA4: Species = Species {
    ahead: 0,
    family: "gemma4",
    keys: &[
        ("block_count", Number(5)),
        ("attention.sliding_window", Number(40)),
        ("attention.sliding_window_pattern", Layers(&[1, 1, 0, 1, 0])),
        ("attention.key_length", Number(32)),
        ("attention.value_length", Number(32)),
        ("attention.key_length_swa", Number(16)),
        ("attention.shared_kv_layers", Number(2)),
        ("embedding_length_per_layer_input", Number(32)),
        ("feed_forward_length", Layers(&[96, 96, 96, 192, 192])),
        ("rope.freq_base_swa", Float(1000.0)),
        ("final_logit_softcapping", Float(30.0)),
    ],
    optional: &[
        ("blk.0.attn_v.weight", &[64, 32]),
        ("blk.1.attn_v.weight", &[64, 32]),
        ("blk.2.attn_v.weight", &[64, 64]),
        ("blk.1.layer_output_scale.weight", &[1]),
        ("blk.4.layer_output_scale.weight", &[1]),
    ],
};

/// With one layer that has keys and values, and another that shares them.
pub(crate) const SHARING: Species = Species {
    ahead: 0,
    family: "gemma4",
    keys: &[
        ("block_count", Number(2)),
        ("attention.sliding_window", Number(40)),
        ("attention.sliding_window_pattern", Layers(&[0, 0])),
        ("attention.key_length_swa", Number(16)),
        ("attention.shared_kv_layers", Number(1)),
    ],
    optional: &[("blk.0.attn_v.weight", &[64, 32])],
};

/// With experts beside dense parts, and values that are made of what keys are made of.
pub(crate) const GEMMA4_EXPERTS: Species = Species {
    ahead: 0,
    family: "gemma4",
    keys: &[
        EXPERTS[0],
        EXPERTS[1],
        EXPERTS[2],
        ("attention.sliding_window", Number(40)),
        ("attention.sliding_window_pattern", Layers(&[1, 0, 1])),
        ("attention.head_count_kv", Layers(&[2, 1, 2])),
        ("attention.key_length", Number(32)),
        ("attention.value_length", Number(32)),
        ("attention.key_length_swa", Number(16)),
    ],
    optional: &[
        ("blk.0.attn_v.weight", &[64, 32]),
        ("blk.2.attn_v.weight", &[64, 32]),
        ("blk.0.ffn_down_exps.scale", &[6]),
    ],
};

/// With experts of half a megabyte a matrix; in one other layers keep states.
pub(crate) const LARGE_EXPERTS: [Species; 2] = [
    species("qwen3moe", &[EXPERTS[0], EXPERTS[1], ("expert_feed_forward_length", Number(2048))]),
    species(
        "lfm2moe",
        &[
            EXPERTS[0],
            EXPERTS[1],
            ("expert_feed_forward_length", Number(2048)),
            ("attention.head_count_kv", Layers(&[0, 2, 0])),
            ("shortconv.l_cache", Number(3)),
        ],
    ),
];

/// With a layer that looks one token further.
pub(crate) const PREDICTING: [Species; 3] = [
    Species { ahead: 1, optional: &[JOIN], ..species("qwen35", &QWEN35) },
    Species {
        ahead: 1,
        optional: &[JOIN, ("blk.3.nextn.shared_head_norm.weight", &[64])],
        ..species("deepseek2", &DEEPSEEK)
    },
    // No more than one of several is taken.
    Species {
        ahead: 2,
        optional: &[
            JOIN,
            ("blk.3.nextn.embed_tokens.weight", &[64, VOCABULARY as u64]),
            ("blk.3.nextn.shared_head_head.weight", &[64, VOCABULARY as u64]),
        ],
        ..species("qwen35moe", &QWEN35MOE)
    },
];

const JOIN: (&str, &[u64]) = ("blk.3.nextn.eh_proj.weight", &[128, 64]);

/// XLM-RoBERTa's kin, as large as the vocabulary of `tests/unigram/xlm-roberta.gguf`: Jina's, a plain one and a reranker.
pub(crate) const XLM_ROBERTA: [Species; 3] = [
    species("jina-bert-v3", &[NO_GROUPS, XLM_ROBERTA_VOCABULARY, ("rope.freq_base", Float(20_000.0))]),
    Species {
        ahead: 0,
        family: "bert",
        keys: &[
            NO_GROUPS,
            XLM_ROBERTA_VOCABULARY,
            ("pooling_type", Number(2)),
            ("context_length", Number(62)),
        ],
        optional: &[ONE_SEGMENT],
    },
    Species {
        ahead: 0,
        family: "bert",
        keys: &[NO_GROUPS, XLM_ROBERTA_VOCABULARY, ("pooling_type", Number(4))],
        optional: &[
            ONE_SEGMENT,
            ("cls.weight", &[64, 64]),
            ("cls.bias", &[64]),
            ("cls.output.weight", &[64, 1]),
            ("cls.output.bias", &[1]),
        ],
    },
];

const XLM_ROBERTA_VOCABULARY: (&str, Key) = ("vocab_size", Number(132));

/// One that would have to make a vector of what it keeps no single tokens of.
pub(crate) const HYBRID_ENCODER: Species = species(
    "lfm2",
    &[
        ("attention.head_count_kv", Layers(&[0, 2, 0])),
        ("shortconv.l_cache", Number(3)),
        ("pooling_type", Number(1)),
    ],
);

/// One that makes a vector of each token.
pub(crate) const TOKEN_ENCODER: Species = species("bert", &[NO_GROUPS, ("pooling_type", Number(0))]);

/// Encoders share no keys between heads.
const NO_GROUPS: (&str, Key) = ("attention.head_count_kv", Number(4));

const ONE_SEGMENT: (&str, &[u64]) = ("token_types.weight", &[64, 1]);

const SEGMENTS: (&str, &[u64]) = ("token_types.weight", &[64, 2]);

const QWEN35: [(&str, Key); 6] = [
    ("ssm.inner_size", Number(64)),
    ("ssm.time_step_rank", Number(4)),
    ("ssm.group_count", Number(2)),
    ("ssm.state_size", Number(16)),
    ("ssm.conv_kernel", Number(4)),
    ("full_attention_interval", Number(2)),
];

const QWEN35MOE: [(&str, Key); 10] = [
    QWEN35[0],
    QWEN35[1],
    QWEN35[2],
    QWEN35[3],
    QWEN35[4],
    QWEN35[5],
    EXPERTS[0],
    EXPERTS[1],
    EXPERTS[2],
    ("expert_shared_feed_forward_length", Number(48)),
];

const DEEPSEEK: [(&str, Key); 14] = [
    EXPERTS[0],
    EXPERTS[1],
    EXPERTS[2],
    ("expert_group_count", Number(3)),
    ("expert_group_used_count", Number(2)),
    ("expert_shared_count", Number(1)),
    ("expert_gating_func", Number(2)),
    ("expert_weights_norm", Flag(true)),
    ("leading_dense_block_count", Number(1)),
    ("attention.q_lora_rank", Number(32)),
    ("attention.kv_lora_rank", Number(48)),
    ("attention.key_length_mla", Number(24)),
    ("attention.value_length_mla", Number(16)),
    ("rope.dimension_count", Number(8)),
];

const MAMBA: [(&str, Key); 5] = [
    ("ssm.inner_size", Number(128)),
    ("ssm.time_step_rank", Number(4)),
    ("ssm.group_count", Number(2)),
    ("ssm.state_size", Number(16)),
    ("ssm.conv_kernel", Number(4)),
];

struct Tensor {
    name: String,
    shape: Vec<u64>,
    data: Vec<u8>,
}

/// What a species says of itself, and no tensors.
pub(crate) fn header(species: Species) -> Gguf {
    Gguf::from_bytes(bytes(species, None, &[])).expect("a sound file")
}

/// A model of a species with random weights.
pub(crate) fn grow(species: Species, seed: u64) -> Gguf {
    grow_with(species, seed, None)
}

/// The same with the vocabulary of another model.
pub(crate) fn grow_speaking(species: Species, seed: u64, speaker: &Gguf) -> Gguf {
    grow_with(species, seed, Some(speaker))
}

/// The same as a file.
pub(crate) fn grow_bytes(species: Species, seed: u64) -> Vec<u8> {
    let gguf = grow(species, seed);
    let mut writer = GgufWriter::new();
    gguf.metadata().for_each(|(key, value)| writer.put_value(key, &value));
    for info in gguf.tensors() {
        writer.tensor(&info.name, &info.shape, info.ty).expect("a possible tensor");
    }
    writer.into_bytes(|i, _| gguf.data(&gguf.tensors()[i]).to_vec()).expect("all data is there")
}

fn grow_with(species: Species, seed: u64, speaker: Option<&Gguf>) -> Gguf {
    let mut random = Random::new(seed);
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut add = |tensors: &mut Vec<Tensor>, name: &str, shape: &[u64]| {
        tensors.retain(|tensor| tensor.name != name);
        let data = data(name, shape, &mut random);
        tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), data });
    };
    for (name, shape) in species.optional {
        add(&mut tensors, name, shape);
    }
    let pool = Pool::new(1);
    loop {
        let gguf = Gguf::from_bytes(bytes(species, speaker, &tensors)).expect("a sound file");
        let known = Gguf::from_bytes(bytes(species, speaker, &tensors)).expect("a sound file");
        match Model::from_gguf(gguf, &OpenOptions::default(), &pool, &mut |_| ()) {
            Ok(_) => return known,
            // Nothing has this shape.
            Err(ModelError::MissingTensor { name }) => add(&mut tensors, &name, &[1, 1, 1, 7]),
            Err(ModelError::TensorShape { name, wanted, .. }) => add(&mut tensors, &name, &wanted),
            Err(error) => panic!("{}: {error}", species.family),
        }
    }
}

fn bytes(species: Species, speaker: Option<&Gguf>, tensors: &[Tensor]) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    let of_speaker = speaker.iter().flat_map(|speaker| speaker.metadata());
    for (key, value) in of_speaker.filter(|(key, _)| key.starts_with("tokenizer.ggml")) {
        writer.put_value(key, &value);
    }
    let spoken = speaker.and_then(|s| s.strings("tokenizer.ggml.tokens").expect("strings"));
    let vocabulary = spoken.map_or(VOCABULARY, |tokens| tokens.len()) as u32;
    writer.put_value("general.architecture", &Value::Str(species.family));
    let of_all = [
        ("block_count", Number(LAYERS as u32 + species.ahead)),
        ("nextn_predict_layers", Number(species.ahead)),
        ("embedding_length", Number(WIDTH)),
        ("attention.head_count", Number(4)),
        ("attention.head_count_kv", Number(2)),
        ("attention.key_length", Number(16)),
        ("attention.value_length", Number(16)),
        ("attention.layer_norm_rms_epsilon", Float(1e-5)),
        ("attention.layer_norm_epsilon", Float(1e-5)),
        ("feed_forward_length", Number(96)),
        ("context_length", Number(4096)),
        ("vocab_size", Number(vocabulary)),
    ];
    let own = |(name, _): &&(&str, Key)| species.keys.iter().all(|(own, _)| own != name);
    for (name, key) in of_all.iter().filter(own).chain(species.keys) {
        let name = format!("{}.{name}", species.family);
        match key {
            Number(n) => writer.put_value(&name, &Value::U32(*n)),
            Float(x) => writer.put_value(&name, &Value::F32(*x)),
            Flag(flag) => writer.put_value(&name, &Value::Bool(*flag)),
            Text(text) => writer.put_value(&name, &Value::Str(text)),
            Layers(numbers) => writer.put_array(&name, numbers),
        };
    }
    for tensor in tensors {
        writer.tensor(&tensor.name, &tensor.shape, GgmlType::F32).expect("a possible tensor");
    }
    writer.into_bytes(|i, _| tensors[i].data.clone()).expect("all data is there")
}

fn data(name: &str, shape: &[u64], random: &mut Random) -> Vec<u8> {
    let (low, high) = if name.contains("norm") || name.contains("scale") {
        (0.5, 1.5)
    } else if name.contains("ssm_a") && !name.contains("alpha") {
        (-1.5, -0.2)
    } else if name.contains("rope_f") {
        (1.0, 4.0)
    } else if name.ends_with(".bias") || name.contains("conv") {
        (-0.5, 0.5)
    } else {
        let size = 1.7 / (shape[0] as f32).sqrt();
        (-size, size)
    };
    let elements: u64 = shape.iter().product();
    (0..elements).flat_map(|_| (low + random.f32() * (high - low)).to_le_bytes()).collect()
}
