//! Models that cannot be used, and what is said of them.

use engine::gguf::{GgmlType, Value};
use engine::model::{Model, Outline};
use engine::{ModelError, OpenOptions, Pool};

use crate::tiny::{LLAMA, QWEN3, Recipe, Tiny, WIDE};

fn open(tiny: &Tiny, options: &OpenOptions) -> Result<Model, ModelError> {
    Model::from_gguf(tiny.gguf(), options, &Pool::new(1), &mut |_| ())
}

/// Spoils a model and compares what is said of it.
#[track_caller]
fn check(recipe: Recipe, spoil: impl FnOnce(&mut Tiny), expected: &str) {
    let mut tiny = Tiny::new(recipe);
    open(&tiny, &OpenOptions::default()).expect("sound before it is spoiled");
    spoil(&mut tiny);
    let error = open(&tiny, &OpenOptions::default()).expect_err("spoiled");
    assert_eq!(error.to_string(), expected);
}

fn remove(name: &str) -> impl FnOnce(&mut Tiny) {
    move |tiny| {
        tiny.tensor_mut(name);
        tiny.tensors.retain(|t| t.name != name);
    }
}

fn put(key: &str, value: Value<'static>) -> impl FnOnce(&mut Tiny) {
    move |tiny| tiny.set(key, value)
}

#[test]
fn missing_parts_are_named() {
    for name in ["token_embd.weight", "blk.1.attn_k.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
        check(LLAMA, remove(name), &format!("tensor {name:?} is missing"));
    }
    check(QWEN3, remove("blk.1.attn_q_norm.weight"), r#"tensor "blk.1.attn_q_norm.weight" is missing"#);
    for key in ["general.architecture", "llama.block_count", "llama.embedding_length", "llama.context_length"]
    {
        check(LLAMA, |t| t.unset(key), &format!("metadata key {key:?} is missing"));
    }
    let tokens = r#"metadata key "tokenizer.ggml.tokens" is missing"#;
    check(LLAMA, |t| t.unset("llama.vocab_size"), tokens);
}

#[test]
fn wrong_shapes_are_named_with_both_shapes() {
    let turned = |name: &'static str| move |tiny: &mut Tiny| tiny.tensor_mut(name).shape.reverse();
    check(
        LLAMA,
        turned("blk.0.ffn_up.weight"),
        r#"tensor "blk.0.ffn_up.weight" has shape [96, 64]; [64, 96] is needed"#,
    );
    check(
        LLAMA,
        turned("token_embd.weight"),
        r#"tensor "token_embd.weight" has shape [128, 64]; [64, 128] is needed"#,
    );
    check(
        LLAMA,
        put("llama.attention.head_count_kv", Value::U32(1)),
        r#"tensor "blk.0.attn_k.weight" has shape [64, 32]; [64, 16] is needed"#,
    );
    let short = |tiny: &mut Tiny| {
        let norm = tiny.tensor_mut("output_norm.weight");
        norm.shape = vec![32];
        norm.bytes.truncate(128);
    };
    check(LLAMA, short, r#"tensor "output_norm.weight" has shape [32]; [64] is needed"#);
}

#[test]
fn unknown_kinds_are_named_beside_the_known_ones() {
    let known = engine::model::families::known();
    assert!(known.starts_with("llama, qwen2, qwen2moe, qwen3"), "{known}");
    let gpt2 = format!("the architecture \"gpt2\" is not known; known are {known}");
    check(LLAMA, put("general.architecture", Value::Str("gpt2")), &gpt2);
    let values = "values of another length than keys is not supported yet";
    check(LLAMA, put("llama.attention.value_length", Value::U32(8)), values);
    let ntk = r#"rotary scaling of type "ntk" is not supported yet"#;
    check(LLAMA, put("llama.rope.scaling.type", Value::Str("ntk")), ntk);

    let mut tiny = Tiny::new(WIDE);
    let up = tiny.tensor_mut("blk.0.ffn_up.weight");
    up.ty = GgmlType::TQ2_0;
    up.bytes.truncate(512 * 66);
    let error = open(&tiny, &OpenOptions::default()).expect_err("an unknown format");
    assert!(error.is_unknown_kind());
    let said = error.to_string();
    let start = r#"tensor "blk.0.ffn_up.weight" has the weight format TQ2_0, which is not known; known are F32, F16, BF16"#;
    assert!(said.starts_with(start) && said.contains("Q4_K"), "{said}");
}

#[test]
fn impossible_numbers_are_named_with_what_they_must_be() {
    let cases = [
        ("attention.head_count_kv", Value::U32(3), "3; it must be a divisor of 4 heads"),
        ("attention.head_count_kv", Value::U32(0), "0; it must be from 1 to 1024"),
        ("attention.head_count", Value::U32(0), "0; it must be from 1 to 1024"),
        ("attention.key_length", Value::U32(577), "577; it must be from 1 to 576"),
        ("block_count", Value::U32(0), "0; it must be from 1 to 1024"),
        ("block_count", Value::U32(u32::MAX), "4294967295; it must be from 1 to 1024"),
        ("embedding_length", Value::U32(0), "0; it must be from 1 to 1048576"),
        ("context_length", Value::U32(0), "0; it must be from 1 to 18446744073709551615"),
        ("vocab_size", Value::U32(0), "0; it must be from 1 to 16777216"),
        ("attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "NaN; it must be a finite number"),
        ("attention.layer_norm_rms_epsilon", Value::F32(0.0), "0; it must be above zero"),
        ("rope.freq_base", Value::F32(-1.0), "-1; it must be above zero"),
        ("rope.freq_base", Value::F32(f32::INFINITY), "inf; it must be a finite number"),
        ("rope.dimension_count", Value::U32(7), "7; it must be even and at most 16"),
        ("rope.dimension_count", Value::U32(18), "18; it must be even and at most 16"),
    ];
    for (name, value, said) in cases {
        let key = format!("llama.{name}");
        check(LLAMA, put(&key, value), &format!("metadata key {key:?} is {said}"));
    }
    let heads = |tiny: &mut Tiny| {
        tiny.unset("llama.attention.key_length");
        tiny.set("llama.attention.head_count", Value::U32(128));
    };
    check(LLAMA, heads, r#"metadata key "llama.attention.key_length" is 0; it must be from 1 to 576"#);
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_both_numbers() {
    let tiny = Tiny::new(LLAMA);
    let needed = Outline::read(&tiny.gguf()).expect("a sound model").packed_bytes;
    let options = |bytes| OpenOptions { memory_bytes_max: Some(bytes), ..OpenOptions::default() };
    open(&tiny, &options(needed)).expect("just enough");
    let error = open(&tiny, &options(needed - 1)).expect_err("one byte short");
    assert_eq!(
        error.to_string(),
        format!("the model needs {needed} bytes of memory and {} are available", needed - 1)
    );
}
