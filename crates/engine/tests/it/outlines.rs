//! What [`Outline`] says of a model.

use crate::shared;
use crate::tiny::{LLAMA, QWEN2, QWEN3, Recipe, Tensor, Tiny};
use engine::gguf::{GgmlType, Gguf, Value};
use engine::model::Outline;
use engine::model::outline::layers::{FeedForward, Layer, LayerKind, Mixer, RopeScaling};
use engine::model::outline::{Part, Pattern};
use engine::{KvFormat, PAGE};
use kernels::attention::Mask;
use std::fs;

fn outline(tiny: &Tiny) -> Outline {
    Outline::read(&tiny.gguf()).expect("a sound model")
}

/// What holds for a model of any family.
fn check_sums(name: &str, gguf: &Gguf, outline: &Outline) {
    let tensors = gguf.tensors();
    let of_parts =
        |part: fn(&engine::model::outline::PartSize) -> u64| outline.parts.iter().map(part).sum::<u64>();
    assert_eq!(outline.parameters(), tensors.iter().map(|t| t.elements()).sum::<u64>(), "{name}");
    assert_eq!(of_parts(|part| part.bytes), tensors.iter().map(|t| t.len_bytes()).sum::<u64>(), "{name}");
    assert_eq!(of_parts(|part| part.tensors as u64), tensors.len() as u64, "{name}");
    let unread = outline.parts.iter().find(|part| part.part == Part::Unread);
    assert!(outline.active_parameters() <= outline.parameters(), "{name}");
    assert_eq!(unread.is_some(), outline.unread != Default::default(), "{name}");

    assert_eq!(outline.each_layer.len(), outline.layers, "{name}");
    let kinds: Vec<LayerKind> = outline.each_layer.iter().map(Layer::kind).collect();
    assert_eq!(Pattern::of(&kinds).expand(), kinds, "{name}");
    let feed_forward: Vec<FeedForward> = outline.each_layer.iter().map(|l| l.feed_forward.clone()).collect();
    assert_eq!(Pattern::of(&feed_forward).expand(), feed_forward, "{name}");

    let attends = outline.each_layer.iter().any(|layer| layer.heads().is_some());
    let is_state = |layer: &&Layer| matches!(layer.mixer, Mixer::State(_));
    assert_eq!(outline.each_layer.iter().filter(is_state).count() > 0, outline.state_bytes > 0, "{name}");
    for format in KvFormat::ALL {
        let per_token = outline.kv_bytes_per_token(format);
        assert_eq!(per_token > 0, attends, "{name}");
        let page = per_token * PAGE as u64 + outline.state_bytes;
        assert_eq!(outline.kv_bytes(format, PAGE), page, "{name} {format}");
        assert_eq!(outline.kv_bytes_read(format, 1), per_token, "{name} {format}");
        assert!(outline.kv_bytes_read(format, 10_000) <= per_token * 10_000, "{name} {format}");
    }
    let ropes = outline.each_layer.iter().filter_map(Layer::rope);
    assert!(ropes.into_iter().all(|rope| rope < outline.ropes.len()), "{name}");
}

/// One file of each family, and a remark that some of them must get.
#[test]
fn parts_and_patterns_add_up_in_every_family() {
    let remarks = [
        ("cohere2", "attention and feed-forward part work side by side, after one norm"),
        ("gemma2", "logits are capped at 30"),
        ("gemma2", "all attention layers with scores capped at 50"),
        ("gemma3", "input embeddings are multiplied by 16"),
        ("glm4", "norms before and after each part"),
        ("gpt-oss", "all attention layers with sinks, scores that take their share of the softmax"),
        ("mamba2", "all layers without a feed-forward part"),
        ("olmo2", "norms after each part instead of before"),
        ("qwen35", "all attention layers with gates on what heads mix"),
    ];
    let Some(dir) = shared("parts_and_patterns_add_up_in_every_family") else { return };
    let mut families = Vec::new();
    for entry in fs::read_dir(dir.join("conformance/archs")).expect("a folder of reference models") {
        let path = entry.expect("a file of the folder").path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let gguf = Gguf::open(&path).expect("a sound file");
        let outline = Outline::read(&gguf).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_sums(&name, &gguf, &outline);
        for (_, remark) in remarks.iter().filter(|(family, _)| *family == name) {
            assert!(outline.remarks.iter().any(|said| said == remark), "{name}: {:?}", outline.remarks);
        }
        families.push(name);
    }
    println!("outlined: {}", families.join(", "));
    assert!(families.len() >= 20, "{families:?}");
}

#[test]
fn tiny_models_are_described_as_they_were_made() {
    let extras = Recipe { extras: true, ..LLAMA };
    for (recipe, remarks) in [
        (LLAMA, &["tied output matrix: it is the embedding's"][..]),
        (QWEN2, &["biases on queries, keys and values"]),
        (QWEN3, &["heads together are 128 wide, the model 64", "tied output matrix: it is the embedding's"]),
        (
            extras,
            &[
                "biases on queries, keys and values",
                "matrices with a scale each",
                "tied output matrix: it is the embedding's",
            ],
        ),
    ] {
        let tiny = Tiny::new(recipe);
        let outline = outline(&tiny);
        check_sums(recipe.family, &tiny.gguf(), &outline);
        assert_eq!(outline.remarks, remarks, "{}", recipe.family);
        assert_eq!(outline.output_is_tied, recipe.tied);
        let [layer, _] = &outline.each_layer[..] else { panic!("two layers") };
        assert_eq!(layer.kind(), LayerKind::Attention { mask: Mask::Causal, positions: true });
        let heads = layer.heads().expect("it attends");
        assert_eq!(
            (heads.heads, heads.kv_heads, heads.head_dim),
            (recipe.heads, recipe.kv_heads, recipe.head_dim)
        );
        assert_eq!(layer.feed_forward, FeedForward::Dense { width: recipe.feed_forward, function: "SwiGLU" });
        let scaling = if recipe.extras { RopeScaling::Factors } else { RopeScaling::None };
        assert_eq!(outline.ropes[0].scaling, scaling);
        // Queries, keys, values and outputs of two layers.
        let dims = recipe.head_dim * (2 * recipe.heads + 2 * recipe.kv_heads);
        let attention = outline.parts.iter().find(|part| part.part == Part::Attention);
        assert!(attention.is_some_and(|part| part.parameters >= (2 * dims * recipe.width) as u64));
    }
}

#[test]
fn yarn_and_stretched_positions_are_told() {
    let mut tiny = Tiny::new(LLAMA);
    tiny.set("llama.rope.scaling.factor", Value::F32(4.0));
    assert_eq!(outline(&tiny).ropes[0].scaling, RopeScaling::Linear { factor: 4.0 });
    tiny.set("llama.rope.scaling.type", Value::Str("yarn"));
    tiny.set("llama.rope.scaling.original_context_length", Value::U32(32));
    let yarn = RopeScaling::Yarn { factor: 4.0, original_tokens: 32 };
    assert_eq!(outline(&tiny).ropes[0].scaling, yarn);
}

#[test]
fn tensors_that_are_not_read_are_told() {
    let mut tiny = Tiny::new(LLAMA);
    let whole = outline(&tiny);
    let vector = |name: &str| Tensor {
        name: name.to_owned(),
        shape: vec![64],
        ty: GgmlType::F32,
        bytes: vec![0; 256],
    };
    tiny.tensors.push(vector("blk.0.attn_norm.extra"));
    tiny.tensors.push(vector("blk.2.nextn.enorm.weight"));
    tiny.tensors.push(vector("blk.2.attn_norm.weight"));
    tiny.set("llama.block_count", Value::U32(3));
    tiny.set("llama.nextn_predict_layers", Value::U32(1));
    let outline = outline(&tiny);
    assert!(outline.unread.predicts_further);
    assert_eq!(outline.unread.others, ["blk.0.attn_norm.extra"]);
    assert_eq!(outline.active_parameters(), whole.active_parameters());
    assert_eq!(outline.parameters(), whole.parameters() + 3 * 64);
    let remarks = &outline.remarks[whole.remarks.len()..];
    let said = [
        "layers for multi-token prediction (nextn) are in the file and are not used",
        "1 tensor in the file is not used: blk.0.attn_norm.extra",
    ];
    assert_eq!(remarks, said);
}
