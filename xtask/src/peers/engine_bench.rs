//! `engine-bench`: the engine's speed in a process of its own, in the terms of `llama-bench`.
//!
//! As there: random tokens, one run of each kind to warm up, then a prefill from an empty context, then decoding from an
//! empty context, one token a step. Tokens are drawn at random and not taken from the logits, so nothing is sampled.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use engine::model::{Forward, SequenceStep};
use engine::{Isa, KvCache, KvFormat, Model, OpenOptions, Pool};
use serde_json::json;
use stdx::random::Random;

/// Measure the engine alone, for `peers`
#[derive(clap::Args)]
pub(crate) struct Args {
    model: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of the prefill
    #[arg(long, default_value_t = 512)]
    prefill: usize,
    /// Tokens to decode
    #[arg(long, default_value_t = 64)]
    decode: usize,
    #[arg(long)]
    isa: Option<Isa>,
    /// Where packed weights are kept
    #[arg(long)]
    cache_dir: Option<PathBuf>,
}

/// Prints one JSON object.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.prefill > 0 && args.decode > 0, "there must be something to do");
    let pool = Pool::new(args.threads);
    let isa = args.isa.unwrap_or_else(Isa::detect);
    // The folder that `dunlin serve` packs into, so that a model is packed once for both.
    let cache = args.cache_dir.as_ref().map(|folder| folder.join("packed"));
    let options = OpenOptions { isa, cache, ..OpenOptions::default() };
    let started = Instant::now();
    let model = Model::open(&args.model, &options, &pool, &mut |_| ())
        .with_context(|| format!("cannot open {}", args.model.display()))?;
    let open_s = started.elapsed().as_secs_f64();

    let mut random = Random::new(1);
    let tokens: Vec<u32> =
        (0..args.prefill.max(args.decode)).map(|_| random.below(model.vocabulary() as u64) as u32).collect();
    let (prompt, decoded) = (&tokens[..args.prefill], &tokens[..args.decode]);
    let mut cache = KvCache::new(&model, KvFormat::F16, tokens.len());
    let mut pages = Vec::new();
    ensure!(cache.reserve(&mut pages, tokens.len()), "the cache is too small");
    let mut forward = Forward::new(&model, &pool);
    // Returns seconds. Steps begin at position 0, so what an earlier run left in the cache is written over.
    let mut time = |steps: &mut dyn Iterator<Item = &[u32]>| {
        let started = Instant::now();
        let mut position = 0;
        for tokens in steps {
            forward.step(&[SequenceStep { tokens, position, pages: &pages, outputs: 1 }], &mut cache);
            position += tokens.len();
        }
        started.elapsed().as_secs_f64()
    };

    time(&mut std::iter::once(prompt));
    // Where the packed file was damaged, it is being made anew.
    model.settle();
    let prefill_s = time(&mut std::iter::once(prompt));
    time(&mut decoded[..1].chunks(1));
    let decode_s = time(&mut decoded.chunks(1));
    let figures = json!({
        "isa": isa.name(),
        "threads": pool.threads(),
        "packing": format!("{:?}", model.packing()),
        "bytes_per_token": model.bytes_per_token(),
        "open_s": open_s,
        "prefill_tokens_per_s": args.prefill as f64 / prefill_s,
        "decode_tokens_per_s": args.decode as f64 / decode_s,
    });
    println!("{figures}");
    Ok(ExitCode::SUCCESS)
}
