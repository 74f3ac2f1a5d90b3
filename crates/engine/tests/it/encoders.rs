//! Models that make vectors or scores: the same however texts come together, and what others hear of them.

use engine::gguf::{Gguf, GgufWriter, Value};
use engine::model::{Forward, Model, Purpose, Text};
use engine::tokenizer::{EncodeOptions, Tokenizer};
use engine::{
    Encoded, Encoder, EncoderConfig, Isa, KvCache, KvFormat, OpenOptions, Pool, Refused, normalize,
};
use std::sync::{Arc, mpsc};
use stdx::random::Random;

use crate::grown::{self, Species, VOCABULARY};
use crate::tiny::{LLAMA, Tiny};

fn open(species: Species, seed: u64, isa: Isa) -> Model {
    let options = OpenOptions { isa, ..OpenOptions::default() };
    let gguf = grown::grow(species, seed);
    Model::from_gguf(gguf, &options, &Pool::new(1), &mut |_| ()).expect("a sound model")
}

fn texts(random: &mut Random, lens: &[usize]) -> Vec<Text> {
    let text = |&len: &usize| {
        let tokens = (0..len).map(|_| random.below(VOCABULARY as u64) as u32).collect();
        Text { second: len - len / 3, tokens }
    };
    lens.iter().map(text).collect()
}

fn encode(model: &Model, texts: &[&Text], threads: usize) -> Vec<Vec<f32>> {
    let pool = Pool::new(threads);
    let tokens: usize = texts.iter().map(|text| text.tokens.len().next_multiple_of(128)).sum();
    let mut cache = KvCache::passing(model, KvFormat::F32, tokens, texts.len());
    let mut forward = Forward::new(model, &pool, 4096);
    let rows = forward.encode(texts, &mut cache);
    let first: Vec<_> = (0..texts.len()).map(|i| rows.row(i).to_vec()).collect();
    // What an earlier call left changes nothing.
    let rows = forward.encode(texts, &mut cache);
    assert!((0..texts.len()).all(|i| rows.row(i) == first[i]));
    first
}

#[test]
fn vectors_do_not_depend_on_who_else_is_encoded() {
    for (seed, &species) in grown::ENCODERS.iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let texts = texts(&mut random, &[3, 70, 1, 150, 17, 300]);
        let texts: Vec<&Text> = texts.iter().collect();
        let mut by_scalar: Option<Vec<Vec<f32>>> = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let model = open(species, seed as u64, isa);
            let name = model.family();
            let alone: Vec<_> = texts.iter().flat_map(|&text| encode(&model, &[text], 1)).collect();
            assert_eq!(encode(&model, &texts, 3), alone, "{name} on {isa}");
            assert!(alone.iter().flatten().all(|x| x.is_finite()), "{name}");
            let len = match model.purpose() {
                Purpose::Scores => 1,
                Purpose::Embeds => model.embedding_len().expect("a length"),
                Purpose::Generates => panic!("{name} generates"),
            };
            assert!(alone.iter().all(|row| row.len() == len) && alone[0] != alone[1], "{name}");
            let reference = by_scalar.get_or_insert_with(|| alone.clone());
            for (row, reference) in alone.iter().zip(reference) {
                let error: f32 = row.iter().zip(reference.iter()).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f32 = reference.iter().map(|x| x * x).sum();
                assert!(error <= 1e-6 * size, "{name} on {isa}: {error} of {size}");
            }
        }
    }
}

#[test]
fn what_tells_two_texts_apart_counts() {
    let scorer = grown::ENCODERS[1];
    let model = open(scorer, 7, Isa::detect());
    assert_eq!(model.purpose(), Purpose::Scores);
    let tokens: Vec<u32> = (0..20).collect();
    let score = |second| encode(&model, &[&Text { tokens: tokens.clone(), second }], 1)[0][0];
    assert_ne!(score(20), score(10));
    assert_ne!(score(9), score(10));
}

#[test]
fn an_encoder_sees_what_comes_after_a_token() {
    // This one takes the first token's vector for the text's.
    let model = open(grown::ENCODERS[2], 3, Isa::detect());
    let vector = |last: u32| encode(&model, &[&Text::one(vec![5, 6, last])], 1);
    assert_ne!(vector(7), vector(8));
}

/// The weights of one file with the vocabulary of another.
fn joined(model: &Gguf, vocabulary: &Gguf) -> Gguf {
    let mut writer = GgufWriter::new();
    let tokenizer = vocabulary.metadata().filter(|(key, _)| key.starts_with("tokenizer."));
    model.metadata().chain(tokenizer).for_each(|(key, value)| writer.put_value(key, &value));
    for info in model.tensors() {
        writer.tensor(&info.name, &info.shape, info.ty).expect("a possible tensor");
    }
    let data = |i: usize, _| model.tensor(&model.tensors()[i].name).expect("a tensor").data.to_vec();
    Gguf::from_bytes(writer.into_bytes(data).expect("all data is there")).expect("a sound file")
}

#[test]
fn xlm_roberta_and_its_kin_read_texts() {
    let vocabulary = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/unigram/xlm-roberta.gguf");
    let vocabulary = Gguf::open(vocabulary.as_ref()).expect("a sound file");
    for (seed, species) in (20..).zip(grown::XLM_ROBERTA) {
        let gguf = joined(&grown::grow(species, seed), &vocabulary);
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a sound vocabulary");
        let options = OpenOptions::default();
        let model = Model::from_gguf(gguf, &options, &Pool::new(1), &mut |_| ()).expect("a sound model");
        let text = |text: &str| match model.purpose() {
            Purpose::Scores => {
                let (tokens, second) = tokenizer.encode_pair("A small pump", text);
                Text { tokens, second }
            }
            _ => Text::one(tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: false })),
        };
        let texts = ["", "A pump stopped.", "ＴＥＸＴ", "二階のポンプ"].map(text);
        assert!(texts.iter().all(|text| text.tokens.starts_with(&[0]) && text.tokens.ends_with(&[2])));
        let vectors = encode(&model, &texts.iter().collect::<Vec<_>>(), 2);
        assert!(vectors.iter().flatten().all(|x| x.is_finite()), "{}", model.family());
        assert!(vectors[0] != vectors[1] && vectors[1] != vectors[2], "{}", model.family());
    }
}

fn encoder(config: EncoderConfig) -> Encoder {
    Encoder::start(Arc::new(open(grown::ENCODERS[0], 5, Isa::detect())), Pool::new(2), config)
}

fn submit(encoder: &Encoder, texts: Vec<Text>) -> Result<mpsc::Receiver<Option<Encoded>>, Refused> {
    let (sender, receiver) = mpsc::channel();
    let ticket = encoder.submit(texts, Box::new(move |encoded| drop(sender.send(encoded))))?;
    // The requests of these tests are not cancelled by leaving.
    std::mem::forget(ticket);
    Ok(receiver)
}

#[test]
fn requests_of_many_texts_share_the_model_with_others() {
    let encoder = encoder(EncoderConfig { step_tokens_max: 100, ..EncoderConfig::default() });
    let mut random = Random::new(9);
    let all: Vec<Vec<Text>> = [40, 1, 7, 0, 13]
        .iter()
        .map(|&count| {
            let lens: Vec<usize> = (0..count).map(|_| 1 + random.below(60) as usize).collect();
            texts(&mut random, &lens)
        })
        .collect();
    let receivers: Vec<_> =
        all.iter().map(|texts| submit(&encoder, texts.clone()).expect("accepted")).collect();
    for (texts, receiver) in all.iter().zip(receivers) {
        let encoded = receiver.recv().expect("an answer").expect("not cancelled");
        assert_eq!(encoded.tokens, texts.iter().map(|text| text.tokens.len()).sum::<usize>());
        let expected: Vec<_> = texts.iter().flat_map(|text| encode(encoder.model(), &[text], 1)).collect();
        assert!(encoded.rows == expected, "{} texts", texts.len());
    }
    let stats = encoder.stats();
    assert_eq!((stats.requests_running, stats.requests_waiting), (0, 0));
    assert_eq!(stats.prompt_tokens_total, all.iter().flatten().map(|t| t.tokens.len() as u64).sum::<u64>());
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    let encoder =
        encoder(EncoderConfig { context_tokens: 50, waiting_tokens_max: 100, ..EncoderConfig::default() });
    let refused = |texts: Vec<Text>| submit(&encoder, texts).expect_err("refused");
    let long = Refused::PromptTooLong { prompt_tokens: 51, context_tokens: 50 };
    assert_eq!(refused(vec![Text::one(vec![1; 51])]), long);
    let unknown = Refused::UnknownToken { id: 96, vocabulary: 96 };
    assert_eq!(refused(vec![Text::one(vec![1]), Text::one(vec![96])]), unknown);
    // However much is asked for, who finds nobody waiting is accepted; who comes meanwhile is not.
    let first = submit(&encoder, vec![Text::one(vec![1; 50]); 400]).expect("accepted");
    let second = submit(&encoder, vec![Text::one(vec![1; 50]); 400]);
    assert!(matches!(second, Err(Refused::QueueFull { .. })), "{second:?}");
    encoder.shut_down();
    assert_eq!(submit(&encoder, vec![Text::one(vec![1])]).expect_err("refused"), Refused::ShuttingDown);
    assert_eq!(first.recv().expect("an answer"), None);
}

#[test]
fn who_leaves_is_not_computed_for() {
    let encoder = encoder(EncoderConfig { step_tokens_max: 1, ..EncoderConfig::default() });
    let (sender, receiver) = mpsc::channel();
    let sink = Box::new(move |encoded| drop(sender.send(encoded)));
    let ticket = encoder.submit(vec![Text::one(vec![1; 40]); 2000], sink).expect("accepted");
    drop(ticket);
    assert_eq!(receiver.recv().expect("an answer"), None);
    assert!(encoder.stats().prompt_tokens_total < 2000 * 40);
    let next = submit(&encoder, vec![Text::one(vec![1])]).expect("accepted");
    assert!(next.recv().expect("an answer").is_some());
}

#[test]
fn vectors_of_states_and_of_tokens_are_refused() {
    let hybrid = grown::header(grown::HYBRID_ENCODER);
    let error = Model::from_gguf(hybrid, &OpenOptions::default(), &Pool::new(1), &mut |_| ());
    let expected = "one vector of a text from layers that keep states is not supported yet";
    assert_eq!(error.expect_err("refused").to_string(), expected);
    let of_tokens = grown::header(grown::TOKEN_ENCODER);
    let error = Model::from_gguf(of_tokens, &OpenOptions::default(), &Pool::new(1), &mut |_| ());
    let expected = "a vector for each token instead of one for a text is not supported yet";
    assert_eq!(error.expect_err("refused").to_string(), expected);
    let mut tiny = Tiny::new(LLAMA);
    // Nothing is pooled, or nothing was said: what is made is text.
    for pooling in [0, u32::MAX] {
        tiny.set("llama.pooling_type", Value::U32(pooling));
        let model = Model::from_gguf(tiny.gguf(), &OpenOptions::default(), &Pool::new(1), &mut |_| ());
        assert_eq!(model.expect("a sound model").purpose(), Purpose::Generates);
    }
    for (pooling, expected) in [
        (4, "tensor \"cls.output.weight\" is missing"),
        (9, "metadata key \"llama.pooling_type\" is 9; it must be 1 (mean), 2 (first), 3 (last) or 4 (rank)"),
    ] {
        tiny.set("llama.pooling_type", Value::U32(pooling));
        let error = Model::from_gguf(tiny.gguf(), &OpenOptions::default(), &Pool::new(1), &mut |_| ());
        assert_eq!(error.expect_err("refused").to_string(), expected);
    }
}

#[test]
fn a_normalized_vector_has_length_one() {
    let mut vector = vec![3.0, -4.0];
    normalize(&mut vector);
    assert_eq!(vector, [0.6, -0.8]);
    let mut nothing = vec![0.0; 3];
    normalize(&mut nothing);
    assert_eq!(nothing, [0.0; 3]);
}
