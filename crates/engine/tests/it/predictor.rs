//! A layer that looks one token further.

use engine::gguf::{GgmlType, Gguf, GgufWriter, Value};
use engine::model::{Forward, Model, SequenceStep};
use engine::{
    ContextShift, Engine, EngineConfig, KvCache, KvFormat, OpenOptions, Pool, Request, Sampling, Speculation,
};
use std::path::Path;
use std::sync::Arc;
use stdx::random::Random;

use crate::generation::{DEMO, Heard, generate, prompt, request, submit};
use crate::grown::{self, Species};

fn open(gguf: Gguf) -> Arc<Model> {
    let model = Model::from_gguf(gguf, &OpenOptions::default(), &Pool::new(1), &mut |_| ());
    Arc::new(model.expect("a sound model"))
}

/// A tensor of floats.
fn floats(gguf: &Gguf, name: &str) -> Option<Vec<f32>> {
    let bytes = gguf.tensor(name)?.data;
    Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect())
}

/// A model of a single layer, which has the predictor's weights and of token `i` the vector `embedding(i)`.
fn alone(gguf: &Gguf, embeddings: &[Vec<f32>]) -> Gguf {
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        let short = key.split_once('.').map_or(key, |(_, short)| short);
        match short {
            "nextn_predict_layers" | "leading_dense_block_count" => {}
            "block_count" | "full_attention_interval" => writer.put_value(key, &Value::U32(1)),
            "vocab_size" => writer.put_value(key, &Value::U32(embeddings.len() as u32)),
            _ => writer.put_value(key, &value),
        }
    }
    let width = embeddings[0].len();
    let mut tensors: Vec<(String, Vec<u64>, Vec<f32>)> = Vec::new();
    tensors.push((
        "token_embd.weight".to_owned(),
        vec![width as u64, embeddings.len() as u64],
        embeddings.concat(),
    ));
    for info in gguf.tensors() {
        let Some(name) = info.name.strip_prefix("blk.3.").filter(|name| !name.starts_with("nextn")) else {
            continue;
        };
        let data = floats(gguf, &info.name).expect("it is there");
        tensors.push((format!("blk.0.{name}"), info.shape.clone(), data));
    }
    let first_of =
        |names: [&str; 2]| names.into_iter().find_map(|name| floats(gguf, name)).expect("one of both");
    let norm = first_of(["blk.3.nextn.shared_head_norm.weight", "output_norm.weight"]);
    tensors.push(("output_norm.weight".to_owned(), vec![width as u64], norm));
    let head = first_of(["blk.3.nextn.shared_head_head.weight", "token_embd.weight"]);
    tensors.push(("output.weight".to_owned(), vec![width as u64, grown::VOCABULARY as u64], head));
    for (name, shape, _) in &tensors {
        writer.tensor(name, shape, GgmlType::F32).expect("a possible tensor");
    }
    let bytes = |i: usize| tensors[i].2.iter().flat_map(|x| x.to_le_bytes()).collect();
    Gguf::from_bytes(writer.into_bytes(|i, _| bytes(i)).expect("all data is there")).expect("a sound file")
}

fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let scale = (squares / x.len() as f64 + 1e-5).sqrt().recip();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

/// What goes into the predictor's layer for a token and what was made of the one before it.
fn joined(gguf: &Gguf, token: u32, hidden: &[f32]) -> Vec<f32> {
    let width = hidden.len();
    let weights = |name: &str| floats(gguf, name).expect("it is there");
    let table =
        floats(gguf, "blk.3.nextn.embed_tokens.weight").unwrap_or_else(|| weights("token_embd.weight"));
    let token = normed(&table[token as usize * width..][..width], &weights("blk.3.nextn.enorm.weight"));
    let hidden = normed(hidden, &weights("blk.3.nextn.hnorm.weight"));
    let both: Vec<f64> = token.into_iter().chain(hidden).collect();
    let rows = weights("blk.3.nextn.eh_proj.weight");
    let dot = |row: &[f32]| row.iter().zip(&both).map(|(&w, x)| f64::from(w) * x).sum::<f64>() as f32;
    rows.chunks(2 * width).map(dot).collect()
}

/// The predictor is one layer over joined vectors: as a model of its own it says the same.
#[test]
fn a_predictor_is_a_layer_over_what_is_joined() {
    const TOKENS: usize = 40;
    for species in grown::PREDICTING {
        let gguf = grown::grow(species, 11);
        let model = open(grown::grow(species, 11));
        let pool = Pool::new(2);
        let mut random = Random::new(5);
        let tokens: Vec<u32> = (0..TOKENS).map(|_| random.below(grown::VOCABULARY as u64) as u32).collect();
        let mut cache = KvCache::new(&model, KvFormat::F32, TOKENS, 1);
        let mut sequence = cache.open();
        assert!(cache.reserve(&mut sequence, TOKENS));
        let mut forward = Forward::new(&model, &pool, 4096);
        forward.keep_hidden();
        let step =
            SequenceStep { tokens: &tokens, position: 0, sequence: &sequence, adapters: &[], outputs: 1 };
        forward.step(&[step], &mut cache);
        let hidden: Vec<Vec<f32>> = (0..TOKENS).map(|t| forward.hidden().row(t).to_vec()).collect();
        let (mut logits, mut made) = (Vec::new(), Vec::new());
        // Some at once, then one after the other.
        for range in [0..17, 17..18, 18..TOKENS - 1] {
            let outputs = range.len();
            let step = SequenceStep {
                tokens: &tokens[range.start + 1..][..outputs],
                position: range.start,
                sequence: &sequence,
                adapters: &[],
                outputs,
            };
            let (rows, hidden) = forward.predict(&[step], &[&hidden[range].concat()], &mut cache);
            (0..outputs).for_each(|t| logits.push(rows.row(t).to_vec()));
            (0..outputs).for_each(|t| made.push(hidden.row(t).to_vec()));
        }

        let embeddings: Vec<Vec<f32>> =
            (0..TOKENS - 1).map(|t| joined(&gguf, tokens[t + 1], &hidden[t])).collect();
        let others = vec![vec![0.0; hidden[0].len()]; grown::VOCABULARY - embeddings.len()];
        let alone = open(alone(&gguf, &[embeddings, others].concat()));
        let mut cache = KvCache::new(&alone, KvFormat::F32, TOKENS, 1);
        let mut sequence = cache.open();
        assert!(cache.reserve(&mut sequence, TOKENS));
        let mut forward = Forward::new(&alone, &pool, 4096);
        forward.keep_hidden();
        let ids: Vec<u32> = (0..TOKENS as u32 - 1).collect();
        let step = SequenceStep {
            tokens: &ids,
            position: 0,
            sequence: &sequence,
            adapters: &[],
            outputs: TOKENS - 1,
        };
        let wanted = forward.step(&[step], &mut cache);
        let close = |got: &[f32], want: &[f32], what: &str| {
            let error = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            let size = want.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            assert!(error < 1e-4 * size, "{} {what}: {error} of {size}", species.family);
        };
        (0..TOKENS - 1).for_each(|t| close(&logits[t], wanted.row(t), "logits"));
        (0..TOKENS - 1).for_each(|t| close(&made[t], forward.hidden().row(t), "hidden"));
    }
}

/// What a predictor goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Token,
    Hidden,
}

/// A model that counts: its layers add nothing, and the output matrix leads from each token to the one after it in the
/// vocabulary. The predictor does the same with the token that it is given, or counts two on from the one before.
fn counting(species: Species, by: By) -> Arc<Model> {
    let speaker = Gguf::open(Path::new(DEMO)).expect("the demo model");
    let gguf = grown::grow_speaking(species.with_less(1), 3, &speaker);
    let table = gguf.tensor("token_embd.weight").expect("a table of embeddings");
    let (row_bytes, shape) = (4 * table.info.shape[0] as usize, &table.info.shape);
    let counted_on = |by: usize| {
        let (rows, last) = table.data.split_at(table.data.len() - by * row_bytes);
        [last, rows].concat()
    };
    let mut heads = vec![("output.weight", counted_on(1))];
    if by == By::Hidden {
        heads.push(("blk.3.nextn.shared_head_head.weight", counted_on(2)));
    }
    let mut writer = GgufWriter::new();
    gguf.metadata().for_each(|(key, value)| writer.put_value(key, &value));
    let own = gguf.tensors().iter().map(|info| (info.name.as_str(), &info.shape));
    for (name, shape) in own.chain(heads.iter().map(|(name, _)| (*name, shape))) {
        writer.tensor(name, shape, GgmlType::F32).expect("a possible tensor");
    }
    let adds = [
        "attn_output.weight",
        "ssm_out.weight",
        "ffn_down.weight",
        "ffn_down_exps.weight",
        "ffn_down_shexp.weight",
    ];
    let bytes = |i: usize| {
        let Some(info) = gguf.tensors().get(i) else { return heads[i - gguf.tensors().len()].1.clone() };
        let mut data = floats(&gguf, &info.name).expect("it is there");
        if adds.iter().any(|end| info.name.ends_with(end)) {
            data.fill(0.0);
        }
        if info.name.ends_with("enorm.weight") || info.name.ends_with("hnorm.weight") {
            data.fill(1.0);
        }
        if info.name.ends_with("eh_proj.weight") {
            // Each row takes its element of one half.
            let width = info.shape[1] as usize;
            let half = if by == By::Token { 0 } else { width };
            data.fill(0.0);
            (0..width).for_each(|i| data[i * 2 * width + half + i] = 1.0);
        }
        data.iter().flat_map(|x| x.to_le_bytes()).collect()
    };
    let bytes = writer.into_bytes(|i, _| bytes(i)).expect("all data is there");
    open(Gguf::from_bytes(bytes).expect("a sound file"))
}

#[test]
fn a_predictor_that_knows_guesses_right_whatever_is_kept_or_lost() {
    for (species, by) in grown::PREDICTING.into_iter().flat_map(|s| [(s, By::Token), (s, By::Hidden)]) {
        let config = |speculation| EngineConfig {
            parallel: 3,
            context_tokens: 512,
            context_shift: Some(ContextShift::default()),
            speculation,
            ..EngineConfig::default()
        };
        let model = counting(species, by);
        let start = |speculation| Engine::start(model.clone(), Pool::new(2), config(speculation));
        let (with, without) = (start(Speculation::Always), start(Speculation::Off));
        // A second turn of a conversation goes on from what the first left; the last outgrows its context.
        let first = generate(&without, request(150, 20)).ids();
        let second = [prompt(150), first, prompt(30)].concat();
        let sampling = Sampling { temperature: 0.8, seed: Some(4), ..Sampling::default() };
        let requests = [
            request(150, 40),
            Request { prompt: second, ..request(1, 60) },
            Request { sampling, ..request(300, 50) },
            request(400, 600),
        ];
        let check = |got: &Heard, want: &Heard, among: usize, what: &str| {
            assert!(got.bits() == want.bits(), "{} by {by:?}, {what}", species.family);
            let usage = got.finished.usage;
            // All guesses are right that go by the token; the first is that goes by what was made of the one before. Beside
            // others' prompts nothing is guessed.
            let least = match by {
                By::Token => usage.guessed_tokens.max(usage.completion_tokens / 2 / among) * 9 / 10,
                By::Hidden => usage.completion_tokens * 4 / 10 / among,
            };
            assert!(usage.true_guesses >= least, "{} by {by:?}, {what}: {usage:?}", species.family);
        };
        let wanted: Vec<Heard> = requests.iter().map(|request| generate(&without, request.clone())).collect();
        for (i, (request, want)) in requests.iter().zip(&wanted).enumerate() {
            check(&generate(&with, request.clone()), want, 1, &format!("request {i}"));
        }
        let running: Vec<_> = requests.iter().map(|request| submit(&with, request.clone())).collect();
        for (i, (running, want)) in running.into_iter().zip(&wanted).enumerate() {
            check(&running.finish(), want, 3, &format!("request {i} among others"));
        }
    }
}

#[test]
fn a_predictor_that_is_not_whole_is_refused() {
    let species = grown::PREDICTING[0];
    let gguf = grown::grow(species, 1);
    let without = |left_out: &str| {
        let mut writer = GgufWriter::new();
        gguf.metadata().for_each(|(key, value)| writer.put_value(key, &value));
        let kept: Vec<_> = gguf.tensors().iter().filter(|info| info.name != left_out).collect();
        kept.iter()
            .for_each(|info| writer.tensor(&info.name, &info.shape, info.ty).expect("a possible tensor"));
        let bytes = writer.into_bytes(|i, _| gguf.data(kept[i]).to_vec()).expect("all data is there");
        let gguf = Gguf::from_bytes(bytes).expect("a sound file");
        Model::from_gguf(gguf, &OpenOptions::default(), &Pool::new(1), &mut |_| ())
    };
    for name in ["blk.3.nextn.enorm.weight", "blk.3.attn_k.weight"] {
        let error = without(name).expect_err("refused").to_string();
        assert!(error.contains(name), "{error}");
    }
    // Converters that leave the head out leave out all of it.
    assert!(without("blk.3.nextn.eh_proj.weight").is_ok());
}
