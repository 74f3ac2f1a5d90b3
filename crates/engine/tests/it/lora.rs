//! Adapters: compared with models into whose weights they were merged, with themselves in other company, and refused where
//! they are not what they should be.

use engine::gguf::{GgmlType, Gguf, GgufWriter, Value};
use engine::model::{AdaptersKey, Forward, Model, SequenceStep, format_of};
use engine::{
    AdapterError, AdapterScale, Engine, EngineConfig, KvCache, KvFormat, OpenOptions, PAGE, Pool, Refused,
    Request, Speculation, check_adapter,
};
use half::{bf16, f16};
use std::path::Path;
use std::sync::Arc;
use stdx::random::Random;

use crate::Folder;
use crate::generation::{DEMO, Heard, generate, request, submit};
use crate::grown::{self, Species};
use crate::tiny::{LLAMA, QWEN2, Recipe, Tiny};

/// Only the order of sums differs.
const NMSE_MAX: f64 = 1e-10;

/// What a test writes into an adapter.
#[derive(Clone, Debug)]
struct Draft {
    keys: Vec<(&'static str, Value<'static>)>,
    tensors: Vec<(String, Vec<u64>, GgmlType, Vec<f32>)>,
}

impl Draft {
    /// For each of the tensors of `base` that `chosen` names, a pair of `rank`.
    fn new(base: &Gguf, rank: u64, ty: GgmlType, seed: u64, chosen: impl Fn(&str) -> bool) -> Draft {
        let family = base.str("general.architecture").expect("a string").expect("a family");
        let keys = vec![
            ("general.type", Value::Str("adapter")),
            ("general.architecture", Value::Str(String::leak(family.to_owned()))),
            ("adapter.type", Value::Str("lora")),
            ("adapter.lora.alpha", Value::F32(1.5 * rank as f32)),
        ];
        let mut random = Random::new(seed);
        let mut tensors = Vec::new();
        for info in base.tensors().iter().filter(|info| chosen(&info.name)) {
            let dim = |i: usize| info.shape.get(i).copied().unwrap_or(1);
            let (mut a, mut b) = (vec![dim(0), rank], vec![rank, dim(1)]);
            if info.name == "token_embd.weight" {
                (a, b) = (vec![rank, dim(1)], vec![rank, dim(0)]);
            } else if dim(2) > 1 {
                a.push(dim(2));
                b.push(dim(2));
            }
            for (half, shape) in [("lora_a", a), ("lora_b", b)] {
                let size = 0.6 / (shape[0] as f32).sqrt();
                let elements = shape.iter().product::<u64>();
                let values = (0..elements).map(|_| (random.f32() - 0.5) * 2.0 * size).collect();
                tensors.push((format!("{}.{half}", info.name), shape, ty, values));
            }
        }
        Draft { keys, tensors }
    }

    fn set(mut self, key: &'static str, value: Option<Value<'static>>) -> Draft {
        self.keys.retain(|(known, _)| *known != key);
        self.keys.extend(value.map(|value| (key, value)));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        self.keys.iter().for_each(|(key, value)| writer.put_value(key, value));
        for (name, shape, ty, _) in &self.tensors {
            writer.tensor(name, shape, *ty).expect("a possible tensor");
        }
        let data = |i: usize| {
            let (_, _, ty, values) = &self.tensors[i];
            match *ty {
                GgmlType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                GgmlType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                GgmlType::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                GgmlType::Q8_0 => values.as_chunks::<32>().0.iter().flat_map(q8_0).collect(),
                other => panic!("no adapter of {other}"),
            }
        };
        writer.into_bytes(|i, _| data(i)).expect("all data is there")
    }

    fn gguf(&self) -> Gguf {
        Gguf::from_bytes(self.bytes()).expect("a sound file")
    }
}

fn q8_0(values: &[f32; 32]) -> Vec<u8> {
    let scale = f16::from_f32(values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0);
    let quantized = values.iter().map(|x| (x / scale.to_f32()).round() as i8 as u8);
    scale.to_le_bytes().into_iter().chain(quantized).collect()
}

fn floats(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).expect("a tensor of the file");
    let mut out = vec![0.0; tensor.info.elements() as usize];
    format_of(tensor.info.ty).expect("a known format").dequantize_row(tensor.data, &mut out);
    out
}

/// The model with the adapters in its weights: `W + scale * alpha / rank * B A`, in double precision.
fn merged(base: &Gguf, adapters: &[(&Gguf, f32)]) -> Gguf {
    let mut writer = GgufWriter::new();
    base.metadata().for_each(|(key, value)| writer.put_value(key, &value));
    let mut all = Vec::new();
    for info in base.tensors() {
        writer.tensor(&info.name, &info.shape, GgmlType::F32).expect("a possible tensor");
        let mut values = floats(base, &info.name);
        for (adapter, scale) in adapters {
            let half = |half: &str| format!("{}.{half}", info.name);
            let Some(rank) = adapter.tensor(&half("lora_b")).map(|b| b.info.shape[0] as usize) else {
                continue;
            };
            let alpha = adapter.f32("adapter.lora.alpha").expect("a float").unwrap_or(0.0);
            let factor = f64::from(*scale) * if alpha == 0.0 { 1.0 } else { f64::from(alpha) / rank as f64 };
            let (mut a, mut b) = (floats(adapter, &half("lora_a")), floats(adapter, &half("lora_b")));
            let cols = info.shape[0] as usize;
            let rows = info.shape.get(1).map_or(1, |&rows| rows as usize);
            if info.name == "token_embd.weight" {
                // Tokens have rows of A there, and elements rows of B.
                let tokens = std::mem::replace(
                    &mut a,
                    (0..rank * cols).map(|i| b[i % cols * rank + i / cols]).collect(),
                );
                b = tokens;
            }
            for (i, value) in values.iter_mut().enumerate() {
                let (matrix, row, col) = (i / (cols * rows), i / cols % rows, i % cols);
                // Of one A for all matrices, the first.
                let a = if a.len() == rank * cols { &a[..] } else { &a[matrix * rank * cols..] };
                let b = &b[(matrix * rows + row) * rank..];
                let change: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * cols + col])).sum();
                *value = (f64::from(*value) + factor * change) as f32;
            }
        }
        all.push(values);
    }
    let data = |i: usize| all[i].iter().flat_map(|x| x.to_le_bytes()).collect();
    Gguf::from_bytes(writer.into_bytes(|i, _| data(i)).expect("all data is there")).expect("a sound file")
}

fn open(gguf: Gguf, adapters: &[&Gguf]) -> Model {
    let pool = Pool::new(2);
    let mut model =
        Model::from_gguf(gguf, &OpenOptions::default(), &pool, &mut |_| ()).expect("a sound model");
    for adapter in adapters {
        model.add_adapter(adapter, &pool).expect("an adapter of the model");
    }
    model
}

fn of(id: usize, scale: f32) -> AdapterScale {
    AdapterScale { id, scale }
}

/// The logits after every token of sequences that compute at once, each in pieces of another length.
fn logits(model: &Model, sequences: &[(&[u32], &[AdapterScale])]) -> Vec<Vec<Vec<f32>>> {
    let pool = Pool::new(2);
    let room = sequences.iter().map(|(tokens, _)| tokens.len() + PAGE).sum();
    let mut cache = KvCache::new(model, KvFormat::F32, room, sequences.len());
    let mut forward = Forward::new(model, &pool, 4096);
    let mut memory: Vec<_> = sequences.iter().map(|_| cache.open()).collect();
    let mut out = vec![Vec::new(); sequences.len()];
    loop {
        let done: Vec<usize> = out.iter().map(Vec::len).collect();
        let piece = |i: usize| (sequences[i].0.len() - done[i]).min(9 + 4 * i);
        let busy: Vec<usize> = (0..sequences.len()).filter(|&i| piece(i) > 0).collect();
        if busy.is_empty() {
            return out;
        }
        for &i in &busy {
            assert!(cache.reserve(&mut memory[i], done[i] + piece(i)), "the cache is large enough");
        }
        let step = |&i: &usize| SequenceStep {
            tokens: &sequences[i].0[done[i]..][..piece(i)],
            position: done[i],
            sequence: &memory[i],
            adapters: sequences[i].1,
            outputs: piece(i),
        };
        let batch: Vec<_> = busy.iter().map(step).collect();
        let rows = forward.step(&batch, &mut cache);
        let mut row = 0..rows.count();
        for &i in &busy {
            out[i].extend(row.by_ref().take(piece(i)).map(|row| rows.row(row).to_vec()));
        }
    }
}

fn nmse(got: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let both =
        || got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    both().map(|(got, want)| (got - want).powi(2)).sum::<f64>()
        / both().map(|(_, want)| want * want).sum::<f64>()
}

fn tokens(count: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(vocabulary as u64) as u32).collect()
}

/// A model computes with adapters what it computes with them in its weights, and that is something else.
fn check(base: impl Fn() -> Gguf, what: &str, adapters: &[(&Draft, f32)], nmse_max: f64) {
    let files: Vec<Gguf> = adapters.iter().map(|(draft, _)| draft.gguf()).collect();
    let scaled: Vec<_> = files.iter().zip(adapters).map(|(file, (_, scale))| (file, *scale)).collect();
    let scales: Vec<_> = adapters.iter().enumerate().map(|(id, (_, scale))| of(id, *scale)).collect();
    let model = open(base(), &files.iter().collect::<Vec<_>>());
    let tokens = tokens(40, model.vocabulary(), 3);
    let got = logits(&model, &[(&tokens, &scales)]).remove(0);
    let want = logits(&open(merged(&base(), &scaled), &[]), &[(&tokens, &[])]).remove(0);
    let plain = logits(&model, &[(&tokens, &[])]).remove(0);
    let (error, change) = (nmse(&got, &want), nmse(&plain, &want));
    println!("{what}: {error:.1e} of {change:.1e}");
    assert!(error <= nmse_max, "{what}: {error:.2e} is more than {nmse_max:.0e}");
    assert!(change > 1e-4, "{what}: an adapter that changes hardly anything: {change:.2e}");
}

/// Tensors that are multiplied by.
fn is_matrix(base: &Gguf, name: &str) -> bool {
    let no_matrix = ["norm", "conv", "token_embd", "embed_tokens", "rope_", "position", "attn_sinks"];
    let dims = base.tensor(name).map_or(0, |tensor| tensor.info.shape.len());
    name.ends_with(".weight") && dims > 1 && !no_matrix.iter().any(|part| name.contains(part))
}

fn of_species(species: Species, seed: u64, rank: u64) -> (impl Fn() -> Gguf, Draft) {
    let base = move || grown::grow(species, 40 + seed);
    let grown = base();
    let draft = Draft::new(&grown, rank, GgmlType::F32, seed, |name| is_matrix(&grown, name));
    (base, draft)
}

fn experts() -> Species {
    *grown::ALL.iter().find(|species| species.family == "qwen3moe").expect("one with experts")
}

#[test]
fn every_family_computes_what_it_would_with_merged_weights() {
    for (i, &species) in grown::ALL.iter().enumerate() {
        let (base, draft) = of_species(species, i as u64, 3 + i as u64 % 5);
        assert!(draft.tensors.len() >= 12, "{}: only {} tensors", species.family, draft.tensors.len());
        check(base, species.family, &[(&draft, 0.8)], NMSE_MAX);
    }
}

#[test]
fn biases_scales_fused_matrices_and_the_output_are_changed_like_the_rest() {
    let recipes = [
        QWEN2,
        Recipe { extras: true, tied: false, ..LLAMA },
        // Nothing is a multiple of a strip or a register.
        Recipe {
            width: 40,
            head_dim: 10,
            rope_dims: 10,
            feed_forward: 52,
            vocabulary: 101,
            tied: false,
            ..LLAMA
        },
    ];
    for recipe in recipes {
        let base = || Tiny::new(recipe).gguf();
        let known = base();
        let draft = Draft::new(&known, 5, GgmlType::F32, 2, |name| is_matrix(&known, name));
        check(base, &format!("{recipe:?}"), &[(&draft, -0.7)], NMSE_MAX);
    }
}

#[test]
fn an_embedding_is_changed_where_tokens_are_read() {
    let base = || Tiny::new(Recipe { tied: false, ..LLAMA }).gguf();
    let draft =
        |ty| Draft::new(&base(), 32, ty, 2, |name| name == "token_embd.weight" || name.contains("ffn_up"));
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0] {
        let nmse_max = if ty == GgmlType::Q8_0 { 1e-3 } else { NMSE_MAX };
        check(base, &format!("embedding of {ty}"), &[(&draft(ty), 0.8)], nmse_max);
    }
}

#[test]
fn adapters_of_any_format_and_rank_add_up() {
    let base = || Tiny::new(QWEN2).gguf();
    let draft = |rank, ty, seed| {
        let known = base();
        Draft::new(&known, rank, ty, seed, |name| is_matrix(&known, name))
    };
    for (rank, ty, nmse_max) in [
        (1, GgmlType::F16, NMSE_MAX),
        (16, GgmlType::F16, NMSE_MAX),
        (17, GgmlType::BF16, 1e-4),
        (32, GgmlType::Q8_0, 1e-3),
    ] {
        check(base, &format!("rank {rank} of {ty}"), &[(&draft(rank, ty, 4), 1.0)], nmse_max);
    }
    let (one, two) = (draft(4, GgmlType::F32, 7), draft(9, GgmlType::F16, 8));
    check(base, "two", &[(&one, 0.6), (&two, -0.4)], NMSE_MAX);
    // Without an alpha, what B and A make is added as it is.
    for alpha in [None, Some(Value::F32(0.0))] {
        check(base, "no alpha", &[(&one.clone().set("adapter.lora.alpha", alpha), 0.9)], NMSE_MAX);
    }
}

#[test]
fn gates_and_ups_of_experts_may_be_one_tensor() {
    let fused: &[(&str, &[u64])] = &[
        ("blk.0.ffn_gate_up_exps.weight", &[64, 64, 6]),
        ("blk.1.ffn_gate_up_exps.weight", &[64, 64, 6]),
        ("blk.2.ffn_gate_up_exps.weight", &[64, 64, 6]),
    ];
    let mut species = experts();
    species.optional = fused;
    let (base, draft) = of_species(species, 5, 4);
    assert!(draft.tensors.iter().any(|(name, ..)| name.contains("ffn_gate_up_exps")));
    check(base, "fused experts", &[(&draft, 1.0)], NMSE_MAX);
}

#[test]
fn experts_may_share_what_their_inputs_become() {
    let (base, mut draft) = of_species(experts(), 3, 4);
    for (name, shape, _, values) in &mut draft.tensors {
        if name.ends_with("exps.weight.lora_a") {
            shape.pop();
            values.truncate(shape.iter().product::<u64>() as usize);
        }
    }
    check(base, "a shared A", &[(&draft, 1.0)], NMSE_MAX);
}

/// Each sequence has the bits that it has alone, whatever the others have.
#[test]
fn sequences_with_different_adapters_compute_together_what_each_computes_alone() {
    for (i, &species) in grown::ALL.iter().enumerate() {
        let (base, one) = of_species(species, i as u64, 4);
        let (_, two) = of_species(species, 1000 + i as u64, 2);
        let (one, two) = (one.gguf(), Draft { tensors: two.tensors[..6].to_vec(), ..two }.gguf());
        let model = open(base(), &[&one, &two]);
        let texts: Vec<_> = (0..5).map(|i| tokens(30 + 3 * i, grown::VOCABULARY, i as u64)).collect();
        let sets: [&[AdapterScale]; 5] =
            [&[of(0, 1.0)], &[], &[of(1, 0.5)], &[of(0, -0.3), of(1, 1.0)], &[of(0, 0.2)]];
        let sequences: Vec<_> = texts.iter().map(Vec::as_slice).zip(sets).collect();
        let together = logits(&model, &sequences);
        for (n, sequence) in sequences.iter().enumerate() {
            let alone = logits(&model, &[*sequence]).remove(0);
            assert!(alone == together[n], "{}, sequence {n}", species.family);
        }
    }
}

/// What a predictor needs is kept beside, and what it guesses itself has no adapters, whatever the step before had.
#[test]
fn what_is_kept_for_a_predictor_changes_nothing() {
    let predicts = |gguf: &Gguf| gguf.tensors().iter().any(|info| info.name.contains("nextn"));
    let found = grown::ALL.iter().enumerate().find(|(_, species)| predicts(&grown::grow(**species, 1)));
    let (base, draft) = of_species(*found.expect("one with a predictor").1, 9, 4);
    let model = open(base(), &[&draft.gguf()]);
    let texts: Vec<_> = (0..3).map(|i| tokens(30 + i, grown::VOCABULARY, i as u64)).collect();
    let sets: [&[AdapterScale]; 3] = [&[], &[of(0, 1.0)], &[of(0, -0.5)]];
    let mut cache = KvCache::new(&model, KvFormat::F32, 8 * PAGE, 6);
    let mut run = |keeps: bool| {
        let mut sequences: Vec<_> = (0..3).map(|_| cache.open()).collect();
        sequences.iter_mut().for_each(|sequence| assert!(cache.reserve(sequence, PAGE)));
        let step = |i: usize| SequenceStep {
            tokens: &texts[i],
            position: 0,
            sequence: &sequences[i],
            adapters: sets[i],
            outputs: 1,
        };
        let mut forward = Forward::new(&model, &POOL, 4096);
        if keeps {
            forward.keep_hidden();
        }
        let rows = forward.step(&[step(0), step(1), step(2)], &mut cache);
        let said: Vec<Vec<f32>> = (0..3).map(|row| rows.row(row).to_vec()).collect();
        if keeps {
            let hidden = forward.hidden().row(0).to_vec();
            let step = SequenceStep { tokens: &texts[0][1..2], adapters: &[], ..step(0) };
            let after = forward.predict(&[step], &[&hidden], &mut cache).0.row(0).to_vec();
            let mut fresh = Forward::new(&model, &POOL, 4096);
            assert!(fresh.predict(&[step], &[&hidden], &mut cache).0.row(0) == after);
        }
        said
    };
    assert!(run(false) == run(true));
}

/// The demo model with two adapters.
fn demo(names: [&str; 2], folder: &Folder) -> Model {
    let base = Gguf::open(Path::new(DEMO)).expect("the demo model is sound");
    let pool = Pool::new(2);
    let mut model = Model::open(Path::new(DEMO), &OpenOptions::default(), &pool, &mut |_| ()).expect("sound");
    for name in names {
        let seed = name.bytes().map(u64::from).sum();
        let draft = Draft::new(&base, 8, GgmlType::F16, seed, |name| is_matrix(&base, name));
        let path = folder.path().join(format!("{name}.gguf"));
        std::fs::write(&path, draft.bytes()).expect("the folder can be written");
        model.add_adapter(&Gguf::open(&path).expect("just written"), &pool).expect("an adapter of the model");
    }
    model
}

fn config() -> EngineConfig {
    EngineConfig { parallel: 3, context_tokens: 1024, ..EngineConfig::default() }
}

fn with(adapters: &[AdapterScale], request: Request) -> Request {
    Request { adapters: Some(adapters.to_vec()), ..request }
}

#[test]
fn requests_name_their_adapters_or_get_the_default() {
    let folder = Folder::new("lora-requests");
    let model = Arc::new(demo(["left", "right"], &folder));
    let names: Vec<_> = model.adapters().iter().map(engine::Adapter::name).collect();
    assert_eq!(names, ["left", "right"]);
    let start = || Engine::start(Arc::clone(&model), Pool::new(2), config());
    let sets: [&[AdapterScale]; 3] = [&[of(0, 1.0)], &[], &[of(1, 0.7), of(0, 0.2)]];
    let alone: Vec<Heard> = sets.iter().map(|set| generate(&start(), with(set, request(60, 24)))).collect();
    assert!(
        alone[0].ids() != alone[1].ids() && alone[1].ids() != alone[2].ids(),
        "adapters change what is said"
    );
    let plain = generate(&Engine::start(crate::generation::model(), Pool::new(2), config()), request(60, 24));
    assert_eq!(alone[1].bits(), plain.bits(), "without adapters the model is as it was");

    let engine = start();
    let running: Vec<_> = sets.iter().map(|set| submit(&engine, with(set, request(60, 24)))).collect();
    for (running, alone) in running.into_iter().zip(&alone) {
        assert_eq!(running.finish().bits(), alone.bits());
    }
    let key = |set: &[AdapterScale]| model.choose_adapters(set).expect("they are loaded").key();
    assert_eq!(key(sets[2]), key(&[of(0, 0.2), of(1, 0.7)]), "the order is of no matter");
    let zero = generate(&start(), with(&[of(0, 0.0), of(1, -0.0)], request(60, 24)));
    assert_eq!(zero.bits(), plain.bits());

    let engine = start();
    assert_eq!(engine.default_adapters(), [of(0, 1.0), of(1, 1.0)]);
    engine.set_default_adapters(&[of(0, 1.0)]).expect("there is one");
    assert_eq!(generate(&engine, request(60, 24)).bits(), alone[0].bits());
    engine.set_default_adapters(&[]).expect("none is needed");
    assert_eq!(generate(&engine, request(60, 24)).bits(), plain.bits());
    for (wanted, said) in [
        (vec![of(2, 1.0)], "there is no adapter 2: 2 are loaded, counted from 0"),
        (vec![of(1, 1.0), of(1, 0.5)], "adapter 1 is named twice"),
        (vec![of(0, f32::NAN)], "adapter 0 has a scale that is not a finite number"),
    ] {
        let refused = engine.submit(with(&wanted, request(5, 3)), Box::new(|_| ())).expect_err("refused");
        assert_eq!(refused.to_string(), said);
        assert_eq!(
            engine.set_default_adapters(&wanted).map_err(|refused| refused.to_string()),
            Err(said.to_owned())
        );
    }
    assert_eq!(engine.default_adapters(), [of(0, 0.0), of(1, 0.0)], "what was refused changed nothing");
    let refused = start().submit(with(&[of(0, f32::INFINITY)], request(5, 3)), Box::new(|_| ()));
    assert!(matches!(refused, Err(Refused::InvalidAdapter { id: 0, .. })));
}

/// What was computed with other adapters is not gone on from, in memory and over a restart.
#[test]
fn the_cache_keeps_what_was_computed_with_different_adapters_apart() {
    let folder = Folder::new("lora-kept");
    let path = folder.path().join("kept.kv");
    let engine = |names: [&str; 2]| {
        let model = Arc::new(demo(names, &folder));
        Engine::start(model, Pool::new(2), EngineConfig { saved_cache: Some(path.clone()), ..config() })
    };
    let ask = |engine: &Engine, adapters: &[AdapterScale]| {
        let heard = generate(engine, with(adapters, request(300, 8)));
        (heard.finished.usage.cached_tokens, heard.bits())
    };
    let first = engine(["left", "right"]);
    let (one, less, none): (&[AdapterScale], &[AdapterScale], &[AdapterScale]) =
        (&[of(0, 1.0)], &[of(0, 0.5)], &[]);
    let mut said = Vec::new();
    for set in [one, less, none] {
        let (cached, bits) = ask(&first, set);
        assert_eq!(cached, 0, "{set:?}");
        assert_eq!(ask(&first, set), (299, bits.clone()), "{set:?}");
        said.push(bits);
    }
    assert!(said[0] != said[1] && said[1] != said[2] && said[0] != said[2]);
    drop(first);

    let again = engine(["left", "right"]);
    for (set, said) in [one, less, none].into_iter().zip(&said) {
        assert_eq!(ask(&again, set), (299, said.clone()), "{set:?}");
    }
    assert_eq!(ask(&again, &[of(1, 1.0)]).0, 0);
    drop(again);

    // The same adapters in other places are known, others in their places are not.
    let swapped = engine(["right", "left"]);
    assert_eq!(ask(&swapped, &[of(1, 1.0)]), (299, said[0].clone()));
    assert_eq!(ask(&swapped, &[of(1, 0.25)]).0, 0);
    drop(swapped);
    let other = engine(["other", "right"]);
    assert_eq!(ask(&other, one).0, 0);
    assert_eq!(ask(&other, none), (299, said[2].clone()));
}

#[test]
fn states_are_kept_apart_too() {
    let species =
        grown::ALL.iter().copied().find(|species| species.family == "mamba2").expect("one with states");
    let (base, draft) = of_species(species, 1, 4);
    let model = open(base(), &[&draft.gguf()]);
    let key = |scale| model.choose_adapters(&[of(0, scale)]).expect("it is loaded").key();
    assert_eq!(key(0.0), AdaptersKey::default(), "nothing of an adapter is no adapter");
    let mut cache = KvCache::new(&model, KvFormat::F16, 4 * PAGE, 2);
    let text = tokens(PAGE, grown::VOCABULARY, 1);
    let mut forward = Forward::new(&model, &POOL, 4096);
    let sequence = cache.resume(&text, key(1.0), PAGE).expect("room");
    let adapters = &[of(0, 1.0)];
    let step = SequenceStep { tokens: &text[..100], position: 0, sequence: &sequence, adapters, outputs: 0 };
    forward.step(&[step], &mut cache);
    cache.close(sequence, &text[..100]);
    for (key, known) in [(key(1.0), 100), (key(0.5), 0), (key(0.0), 0)] {
        let sequence = cache.resume(&text, key, PAGE).expect("room");
        assert_eq!(sequence.known(), known);
        cache.discard(sequence);
    }
}

static POOL: std::sync::LazyLock<Pool> = std::sync::LazyLock::new(|| Pool::new(1));

#[test]
fn what_is_no_adapter_of_the_model_is_refused_and_leaves_it_as_it_was() {
    let tiny = || Tiny::new(Recipe { tied: false, ..LLAMA }).gguf();
    let base = tiny();
    let sound = Draft::new(&base, 4, GgmlType::F32, 1, |name| is_matrix(&base, name));
    let mut model = open(tiny(), &[]);
    let mut check = |draft: &Draft, said: &[&str]| {
        let error = model.add_adapter(&draft.gguf(), &Pool::new(1)).expect_err("refused");
        let message = error.to_string();
        assert!(said.iter().all(|said| message.contains(said)), "{message} does not say {said:?}");
        assert_eq!(model.adapters().len(), 0);
        // All but what the model multiplies by is seen before the model is loaded.
        let early = check_adapter(&draft.gguf(), &base).map_err(|error| error.to_string());
        let is_late = matches!(error, AdapterError::NoMatrix { .. });
        assert_eq!(early, if is_late { Ok(()) } else { Err(message) });
    };
    let text = |text| Some(Value::Str(text));
    check(&sound.clone().set("general.type", None), &["general.type", "adapter"]);
    check(&sound.clone().set("general.type", text("model")), &["\"model\"", "\"adapter\""]);
    check(&sound.clone().set("adapter.type", text("control_vector")), &["control_vector", "\"lora\""]);
    check(&sound.clone().set("general.architecture", text("qwen2")), &["\"qwen2\"", "\"llama\""]);
    check(
        &sound.clone().set("adapter.alora.invocation_tokens", Some(Value::U32(1))),
        &["aLoRA", "not supported"],
    );
    for alpha in [f32::NAN, f32::INFINITY] {
        check(
            &sound.clone().set("adapter.lora.alpha", Some(Value::F32(alpha))),
            &["alpha", &alpha.to_string()],
        );
    }
    check(&sound.clone().set("adapter.lora.alpha", text("16")), &["adapter.lora.alpha"]);
    check(&Draft { tensors: Vec::new(), ..sound.clone() }, &["no tensors"]);

    let with = |change: &dyn Fn(&mut Draft)| {
        let mut draft = sound.clone();
        change(&mut draft);
        draft
    };
    check(&with(&|draft| drop(draft.tensors.remove(1))), &["lora_a", "lora_b"]);
    check(&with(&|draft| drop(draft.tensors.remove(0))), &["lora_b", "lora_a"]);
    let renamed = |name: &'static str| {
        with(&|draft| {
            for (tensor, half) in draft.tensors.iter_mut().zip(["lora_a", "lora_b"]) {
                tensor.0 = format!("{name}.{half}");
            }
        })
    };
    check(&renamed("blk.9.attn_q.weight"), &["blk.9.attn_q.weight", "does not have"]);
    check(&renamed("output_norm.weight"), &["output_norm.weight", "do not fit"]);
    check(
        &with(&|draft| draft.tensors[0].0 = "blk.0.attn_q.weight".to_owned()),
        &["neither lora_a nor lora_b"],
    );
    // Of another width, transposed, and of unequal ranks.
    let reshaped = |i: usize, shape: [u64; 2]| {
        with(&|draft| {
            let (_, old, _, values) = &mut draft.tensors[i];
            (*old, *values) = (shape.to_vec(), vec![0.0; (shape[0] * shape[1]) as usize]);
        })
    };
    check(&reshaped(0, [32, 4]), &["[32, 4]", "[64, 64, 1]"]);
    check(&reshaped(0, [4, 64]), &["[4, 64]", "[64, 64, 1]"]);
    check(&reshaped(1, [5, 64]), &["[5, 64]", "do not fit"]);
    check(&reshaped(1, [4, 48]), &["[4, 48]", "do not fit"]);
    // A vector that is added, not multiplied by.
    let vector = with(&|draft| {
        draft.tensors[0] =
            ("output_norm.weight.lora_a".to_owned(), vec![64, 1], GgmlType::F32, vec![0.0; 64]);
        draft.tensors[1] = ("output_norm.weight.lora_b".to_owned(), vec![1, 1], GgmlType::F32, vec![0.0]);
    });
    check(&vector, &["output_norm.weight", "does not multiply by"]);
    let mut rank_zero = sound.bytes();
    let name = b"blk.0.attn_q.weight.lora_b";
    let shape = rank_zero.windows(name.len()).position(|window| window == name).expect("it is there")
        + name.len()
        + 4;
    rank_zero[shape..shape + 8].fill(0);
    let error = Gguf::from_bytes(rank_zero).expect_err("there are no tensors without elements").to_string();
    assert!(error.contains("blk.0.attn_q.weight.lora_b") && error.contains("[0, 64]"), "{error}");

    // A norm is left out, as llama.cpp leaves it out.
    let norm = with(&|draft| {
        draft.tensors.push(("blk.0.attn_norm.weight".to_owned(), vec![64], GgmlType::F32, vec![1.0; 64]));
    });
    let adapter = model.add_adapter(&norm.gguf(), &Pool::new(1)).expect("an adapter");
    assert_eq!(adapter.norms_left_out(), 1);
    let damaged = Gguf::from_bytes(sound.bytes()[..200].to_vec()).map_err(AdapterError::from);
    assert!(matches!(damaged, Err(AdapterError::Gguf(_))));
}

#[test]
fn damaged_adapters_are_refused_or_read_and_nothing_panics() {
    let base = Tiny::new(Recipe { layers: 1, tied: false, ..LLAMA }).gguf();
    let chosen =
        |name: &str| name.contains("attn_q") || name.contains("ffn_down") || name == "token_embd.weight";
    let sound = Draft::new(&base, 2, GgmlType::F16, 1, chosen).bytes();
    let head = sound.len() - 2 * 2 * (64 + 64 + 96 + 64 + 128 + 64);
    let (mut random, pool) = (Random::new(11), Pool::new(1));
    let (mut read, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut bytes = sound.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(head as u64) as usize;
            bytes[at] = match random.below(3) {
                0 => random.below(256) as u8,
                1 => bytes[at] ^ 1 << random.below(8),
                _ => bytes[random.below(head as u64) as usize],
            };
        }
        let Ok(gguf) = Gguf::from_bytes(bytes) else { continue };
        let mut model = open(Tiny::new(Recipe { layers: 1, tied: false, ..LLAMA }).gguf(), &[]);
        match model.add_adapter(&gguf, &pool) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    println!("{read} were read, {refused} refused");
    assert!(read > 100 && refused > 100, "{read} were read, {refused} refused");
}

#[test]
fn guesses_change_nothing_of_what_is_said_with_adapters() {
    let folder = Folder::new("lora-guesses");
    let model = Arc::new(demo(["left", "right"], &folder));
    let always = EngineConfig { speculation: Speculation::Always, ..config() };
    let start = |draft| Engine::start_with_draft(Arc::clone(&model), draft, Pool::new(2), always.clone());
    let off = EngineConfig { speculation: Speculation::Off, ..config() };
    let asked = with(&[of(0, 0.4)], request(120, 60));
    let plain = generate(&Engine::start(Arc::clone(&model), Pool::new(2), off), asked.clone());
    for draft in [None, Some(crate::generation::model())] {
        let heard = generate(&start(draft.clone()), asked.clone());
        assert_eq!(heard.bits(), plain.bits());
        assert!(draft.is_none() || heard.finished.usage.guessed_tokens > 0, "something is guessed");
    }
}
