//! Models whose last layers attend to the keys and values of earlier ones, and have embeddings for each layer.

use std::path::Path;
use std::sync::Arc;

use engine::gguf::{Gguf, GgufWriter, Value};
use engine::model::outline::Part;
use engine::model::{Model, Outline};
use engine::{
    ContextShift, Engine, EngineConfig, KvCache, KvFormat, ModelError, OpenOptions, PAGE, Pool, Request,
    Speculation, Token,
};

use crate::generation::{DEMO, generate, request};
use crate::grown::{self, GEMMA4, GEMMA4_EXPERTS, SHARING, Species};

fn open(gguf: Gguf) -> Result<Model, ModelError> {
    Model::from_gguf(gguf, &OpenOptions::default(), &Pool::new(1), &mut |_| ())
}

/// A model with another value for a key, or without a tensor.
fn spoil(species: Species, key: Option<(&str, Value<'_>)>, without: &str) -> Gguf {
    let gguf = grown::grow(species, 3);
    let mut writer = GgufWriter::new();
    let key = key.map(|(name, value)| (format!("gemma4.{name}"), value));
    let others = gguf.metadata().filter(|(name, _)| key.as_ref().is_none_or(|(key, _)| key != name));
    others.for_each(|(name, value)| writer.put_value(name, &value));
    if let Some((name, value)) = &key {
        writer.put_value(name, value);
    }
    let kept: Vec<_> = gguf.tensors().iter().filter(|info| info.name != without).collect();
    for info in &kept {
        writer.tensor(&info.name, &info.shape, info.ty).expect("a possible tensor");
    }
    let bytes = writer.into_bytes(|i, _| gguf.data(kept[i]).to_vec()).expect("all data is there");
    Gguf::from_bytes(bytes).expect("a sound file")
}

fn said(gguf: Gguf) -> String {
    open(gguf).expect_err("spoiled").to_string()
}

#[test]
fn what_is_missing_is_named() {
    let dense = [
        "per_layer_token_embd.weight",
        "per_layer_model_proj.weight",
        "per_layer_proj_norm.weight",
        "rope_freqs.weight",
        "blk.1.attn_k.weight",
        "blk.3.attn_q_norm.weight",
        "blk.4.inp_gate.weight",
        "blk.0.proj.weight",
        "blk.2.post_norm.weight",
    ];
    let experts = [
        "blk.0.ffn_gate_inp.scale",
        "blk.1.pre_ffw_norm_2.weight",
        "blk.1.post_ffw_norm_1.weight",
        "blk.2.post_ffw_norm_2.weight",
        "blk.2.ffn_gate.weight",
        "blk.0.ffn_down_exps.weight",
    ];
    let dense = dense.map(|name| (GEMMA4, name));
    for (species, name) in dense.into_iter().chain(experts.map(|name| (GEMMA4_EXPERTS, name))) {
        assert_eq!(said(spoil(species, None, name)), format!("tensor {name:?} is missing"));
    }
}

#[test]
fn numbers_that_lie_are_named() {
    let shared = "so few of 5 that one of each kind has its own";
    let rope = "rope.dimension_count_swa";
    let cases = [
        ("attention.shared_kv_layers", Value::U32(5), format!("5; it must be {shared}")),
        ("attention.shared_kv_layers", Value::U32(4), format!("4; it must be {shared}")),
        ("attention.shared_kv_layers", Value::U32(1025), "1025; it must be from 0 to 1024".to_owned()),
        ("attention.key_length_swa", Value::U32(577), "577; it must be from 1 to 576".to_owned()),
        (
            "attention.sliding_window",
            Value::U32(0),
            "0; it must be from 1 to 18446744073709551615".to_owned(),
        ),
        (rope, Value::U32(18), "18; it must be even and at most 16".to_owned()),
    ];
    for (key, value, wanted) in cases {
        let said = said(spoil(GEMMA4, Some((key, value)), ""));
        assert_eq!(said, format!("metadata key \"gemma4.{key}\" is {wanted}"));
    }
    for (key, expected) in [
        ("attention.key_length_swa", "has shape [64, 64]; [64, 32] is needed"),
        ("embedding_length_per_layer_input", "has shape [64, 160]; [64, 80] is needed"),
    ] {
        let said =
            said(spoil(GEMMA4, Some((key, Value::U32(if key.ends_with("swa") { 8 } else { 16 }))), ""));
        assert!(said.ends_with(expected), "{key}: {said}");
    }
    let values = spoil(GEMMA4, Some(("attention.value_length", Value::U32(16))), "");
    assert!(open(values).expect_err("other values").is_unknown_kind());
}

#[test]
fn what_layers_share_is_counted_once() {
    let gguf = grown::grow(GEMMA4, 3);
    let outline = Outline::read(&gguf).expect("a sound model");
    let model = open(gguf).expect("a sound model");
    // Two layers with two heads of 16, and one with two heads of 32.
    let bytes = 4 * (2 * 2 * 2 * 16 + 2 * 2 * 32);
    assert_eq!(outline.kv_bytes_per_token(KvFormat::F32), bytes);
    assert_eq!(model.kv_bytes(KvFormat::F32, 128), 128 * bytes);
    assert_eq!(KvCache::new(&model, KvFormat::F32, 128, 1).bytes_capacity(), 128 * bytes);
    // The last token reads for each layer: three windows of 40 tokens, and two layers that see all.
    let read = 4 * (3 * 40 * 2 * 2 * 16 + 2 * 100 * 2 * 2 * 32);
    assert_eq!(outline.kv_bytes_read(KvFormat::F32, 100), read);
    let shares: Vec<_> = outline.each_layer.iter().map(|layer| layer.shares()).collect();
    assert_eq!(shares, [None, None, None, Some(1), Some(2)]);
    let part = outline.parts.iter().find(|part| part.part == Part::PerLayer).expect("its own part");
    assert_eq!(part.active_parameters + (grown::VOCABULARY as u64 - 1) * 5 * 32, part.parameters);
    for remark in [
        "per-layer embeddings, 32 elements of each token for each layer, read from the file as they are needed",
        "2 of 5 attention layers attend to keys and values of earlier layers and keep none",
        "3 of 5 attention layers with norms of values",
    ] {
        assert!(outline.remarks.iter().any(|said| said == remark), "{:?}", outline.remarks);
    }
}

/// A prompt takes no more than the layers that keep something of it.
#[test]
fn layers_that_keep_nothing_of_a_prompt_are_left_out_of_it() {
    let model = open(grown::grow(GEMMA4, 3)).expect("a sound model");
    let attention = |dim: u64, own: bool| 64 * dim * (2 * 4 + if own { 2 * 2 } else { 0 });
    let others = |between: u64| 64 * (3 * between + 2 * 32);
    let of_prompt = 2 * attention(16, true) + attention(32, true) + 3 * others(96);
    assert_eq!(model.prompt_macs_per_token(), of_prompt + 64 * 5 * 32);
}

/// Where one layer's keys and values depend on nothing but their own tokens and the other layer shares them, what is left of a
/// context that was shifted is as if it had always stood there.
#[test]
fn what_layers_share_is_turned_once() {
    let speaker = Gguf::open(Path::new(DEMO)).expect("the demo model");
    let model = Arc::new(open(grown::grow_speaking(SHARING, 4, &speaker)).expect("a sound model"));
    let start = |shift: bool| {
        let config = EngineConfig {
            context_tokens: 3 * PAGE,
            parallel: 1,
            context_shift: shift.then_some(ContextShift::default()),
            speculation: Speculation::Off,
            kv_format: KvFormat::F32,
            ..EngineConfig::default()
        };
        Engine::start(model.clone(), Pool::new(1), config)
    };
    let asked = request(100, 500);
    let shifted = generate(&start(true), asked.clone());
    let all = [asked.prompt.clone(), shifted.ids()].concat();
    // Of three full pages the second is dropped and the third turned, and one token was not computed yet.
    let context = [&all[..PAGE], &all[2 * PAGE..3 * PAGE + 1]].concat();
    let plain = generate(&start(false), Request { prompt: context, max_tokens: Some(100), ..asked });
    let after = 3 * PAGE + 1 - 100;
    let logprob = |token: &Token| token.logprob.as_ref().expect("asked for").logprob;
    for (plain, shifted) in plain.tokens.iter().zip(&shifted.tokens[after..]) {
        let difference = (logprob(plain) - logprob(shifted)).abs();
        assert!(plain.id == shifted.id && difference < 1e-3, "{plain:?} {shifted:?}");
    }
    assert_eq!(plain.tokens.len(), 100);
}
