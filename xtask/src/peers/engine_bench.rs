//! `engine-bench`: the engine's speed in a process of its own, in the terms of `llama-bench` and `llama-batched-bench`.
//!
//! As there: random tokens, then a prefill, and decoding, one token a step for each stream, from a context of a given
//! depth. Tokens are drawn at random and not taken from the logits, so nothing is sampled.
//!
//! What a shared machine can do changes by the second. So what bounds a figure is probed in turns with it: dot products
//! before and after a prefill, plain reads of memory between every few tokens of a decode.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use engine::model::{Forward, Outcome, SequenceStep};
use engine::{Isa, KvCache, KvFormat, Model, OpenOptions, Pool, Sequence};
use kernels::bandwidth::Buffer;
use kernels::peak;
use serde_json::{Value, json};
use stdx::random::Random;

use super::machine::{MACS_TIME, READ_BYTES};

/// Tokens of a prompt that go through in one step; `llama-bench` has the same (`--ubatch-size`).
const CHUNK_TOKENS: usize = 512;

/// Steps of a decode between two reads of memory.
const STEPS_PER_READ: usize = 8;

/// Measure the engine alone, for `peers`
#[derive(clap::Args)]
pub(crate) struct Args {
    model: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of the prefill; with --streams, tokens that each stream has before it decodes
    #[arg(long, default_value_t = 512)]
    prefill: usize,
    /// Tokens to decode
    #[arg(long, default_value_t = 64)]
    decode: usize,
    /// Tokens of context before the first
    #[arg(long, default_value_t = 0, conflicts_with = "streams")]
    depth: usize,
    /// Format of the key-value cache
    #[arg(long, default_value = KvFormat::F16.name())]
    kv: KvFormat,
    /// Decode so many sequences at once
    #[arg(long, value_delimiter = ',')]
    streams: Vec<usize>,
    #[arg(long)]
    isa: Option<Isa>,
    /// Where packed weights are kept
    #[arg(long)]
    cache_dir: Option<PathBuf>,
}

/// Prints one JSON object.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let pool = Pool::new(args.threads);
    let isa = args.isa.unwrap_or_else(Isa::detect);
    // The folder that `dunlin serve` packs into, so that a model is packed once for both.
    let cache = args.cache_dir.as_ref().map(|folder| folder.join("packed"));
    let options = OpenOptions { isa, cache, ..OpenOptions::default() };
    let started = Instant::now();
    let model = Model::open(&args.model, &options, &pool, &mut |_| ())
        .with_context(|| format!("cannot open {}", args.model.display()))?;
    let open_s = started.elapsed().as_secs_f64();
    if let Outcome::MemoryInstead { path, error } = model.packing() {
        anyhow::bail!("cannot keep packed weights in {}: {error}", path.display());
    }

    let mut figures = json!({
        "isa": isa.name(),
        "threads": pool.threads(),
        "packing": format!("{:?}", model.packing()),
        "open_s": open_s,
    });
    if args.streams.is_empty() {
        let mut bench = Bench::new(&model, &pool, args.kv, 1, args.depth + args.prefill.max(args.decode))?;
        bench.prompt(0, 0, args.depth);
        figures["prefill"] = bench.prefill(args.depth, args.prefill);
        figures["decode"] = bench.decode(1, args.depth, args.decode);
    } else {
        let streams_max = args.streams.iter().copied().max().unwrap_or(1);
        let mut bench = Bench::new(&model, &pool, args.kv, streams_max, args.prefill + args.decode)?;
        let batch = |&streams: &usize| {
            (0..streams).for_each(|stream| bench.prompt(stream, 0, args.prefill));
            let mut figures = bench.decode(streams, args.prefill, args.decode);
            figures["streams"] = json!(streams);
            figures
        };
        figures["batch"] = args.streams.iter().map(batch).collect();
    }
    println!("{figures}");
    Ok(ExitCode::SUCCESS)
}

/// A model at work for some sequences of random tokens.
struct Bench<'a> {
    model: &'a Model,
    pool: &'a Pool,
    memory: Buffer,
    forward: Forward<'a>,
    cache: KvCache,
    sequences: Vec<Sequence>,
    tokens: Vec<u32>,
}

impl<'a> Bench<'a> {
    /// For `streams` sequences of at most `positions` tokens.
    fn new(
        model: &'a Model,
        pool: &'a Pool,
        kv: KvFormat,
        streams: usize,
        positions: usize,
    ) -> anyhow::Result<Bench<'a>> {
        ensure!(positions > 0 && streams > 0, "there must be something to do");
        let mut random = Random::new(1);
        let mut random_token = || random.below(model.vocabulary() as u64) as u32;
        let tokens = (0..positions).map(|_| random_token()).collect();
        // A sequence has whole pages.
        let page_tokens = KvCache::new(model, kv, 1, 1).tokens_capacity();
        let capacity = streams * positions.next_multiple_of(page_tokens);
        let mut cache = KvCache::new(model, kv, capacity, streams);
        let mut sequences: Vec<_> = (0..streams).map(|_| cache.open()).collect();
        for sequence in &mut sequences {
            ensure!(cache.reserve(sequence, positions), "the cache is too small");
        }
        let memory = Buffer::new(READ_BYTES);
        let forward = Forward::new(model, pool, positions);
        let mut bench = Bench { model, pool, memory, forward, cache, sequences, tokens };
        bench.prompt(0, 0, 1);
        // Where the packed file turned out to be damaged, it is being made anew.
        model.settle();
        Ok(bench)
    }

    /// Computes `tokens` tokens of a sequence from `position`, in chunks. What an earlier run left in the cache is written over.
    fn prompt(&mut self, stream: usize, position: usize, tokens: usize) {
        let mut position = position;
        for chunk in self.tokens[..tokens].chunks(CHUNK_TOKENS) {
            let sequence = &self.sequences[stream];
            let step = SequenceStep { tokens: chunk, position, sequence, adapters: &[], outputs: 1 };
            self.forward.step(&[step], &mut self.cache);
            position += chunk.len();
        }
    }

    /// One token for each of `streams` sequences that have `position` tokens.
    fn step(&mut self, streams: usize, position: usize) {
        let tokens = &self.tokens[position..=position];
        let steps: Vec<_> = self.sequences[..streams]
            .iter()
            .map(|sequence| SequenceStep { tokens, position, sequence, adapters: &[], outputs: 1 })
            .collect();
        self.forward.step(&steps, &mut self.cache);
    }

    /// Null of no tokens. What came before, or a first run, has warmed up.
    fn prefill(&mut self, depth: usize, tokens: usize) -> Value {
        if tokens == 0 {
            return Value::Null;
        }
        if depth == 0 {
            self.prompt(0, 0, tokens);
        }
        let table = self.model.isa().table().expect("the set of an open model");
        let context = kernels::Context { table, pool: self.pool };
        let macs_before = peak::macs_per_s(context, MACS_TIME);
        let started = Instant::now();
        self.prompt(0, depth, tokens);
        let seconds = started.elapsed().as_secs_f64();
        json!({
            "tokens_per_s": tokens as f64 / seconds,
            "macs_per_token": self.model.prompt_macs_per_token(),
            "macs_per_s": f64::midpoint(macs_before, peak::macs_per_s(context, MACS_TIME)),
        })
    }

    /// Null of no tokens. One step that is not counted warms up.
    fn decode(&mut self, streams: usize, depth: usize, tokens: usize) -> Value {
        if tokens == 0 {
            return Value::Null;
        }
        self.step(streams, depth);
        let mut seconds = 0.0;
        let mut reads = vec![self.memory.read(self.pool)];
        for first in (0..tokens).step_by(STEPS_PER_READ) {
            let started = Instant::now();
            for token in first..tokens.min(first + STEPS_PER_READ) {
                self.step(streams, depth + token);
            }
            seconds += started.elapsed().as_secs_f64();
            reads.push(self.memory.read(self.pool));
        }
        json!({
            "tokens_per_s": (streams * tokens) as f64 / seconds,
            "read_bytes_per_token": self.read_bytes_per_token(streams, depth, tokens),
            // As many bytes each time, so in all: bytes by seconds.
            "read_bytes_per_s": reads.len() as f64 / reads.iter().map(|read| 1.0 / read).sum::<f64>(),
        })
    }

    /// Weights, which all streams share, and the keys and values of the positions that a token attends to, in the mean of
    /// `tokens` tokens after `depth`.
    fn read_bytes_per_token(&self, streams: usize, depth: usize, tokens: usize) -> f64 {
        let kv_bytes_per_position = self.cache.bytes_capacity() as f64 / self.cache.tokens_capacity() as f64;
        let positions = depth as f64 + (tokens + 1) as f64 / 2.0;
        self.model.bytes_per_token() as f64 / streams as f64 + kv_bytes_per_position * positions
    }
}
