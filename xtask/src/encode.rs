//! `encode`: how fast an encoder makes vectors of texts, tokenizing included.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Context, ensure};
use engine::model::{Purpose, Text};
use engine::tokenizer::EncodeOptions;
use engine::{Encoder, EncoderConfig, Model, OpenOptions, Pool};

/// Measure how many texts a second an encoder makes vectors of
#[derive(clap::Args)]
pub(crate) struct Args {
    model: PathBuf,
    /// A text in each line
    texts: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.rounds > 0, "there must be something to do");
    let file =
        fs::read_to_string(&args.texts).with_context(|| format!("cannot read {}", args.texts.display()))?;
    let texts: Vec<&str> = file.lines().collect();
    ensure!(!texts.is_empty(), "there must be some texts");
    let pool = Pool::new(args.threads);
    let model = Model::open(&args.model, &OpenOptions::default(), &pool, &mut |_| ())
        .with_context(|| format!("cannot open {}", args.model.display()))?;
    ensure!(model.purpose() != Purpose::Generates, "{} generates text", args.model.display());
    ensure!(model.tokenizer().is_some(), "{} has no vocabulary", args.model.display());
    let encoder = Encoder::start(Arc::new(model), pool, EncoderConfig::default());
    for (name, batch) in [("all at once", texts.len()), ("32 at once", 32), ("one by one", 1)] {
        // The first round is not counted: it allocates.
        let tokens = encode(&encoder, &texts, batch)?;
        let mut rates = Vec::new();
        for _ in 0..args.rounds {
            let began = Instant::now();
            encode(&encoder, &texts, batch)?;
            rates.push(texts.len() as f64 / began.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        let (min, median, max) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
        let per_second = median * tokens as f64 / texts.len() as f64;
        println!("{name:12} {median:.0} texts/s ({min:.0}-{max:.0}), {per_second:.0} tokens/s");
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes vectors of all texts, so many at once, and returns how many tokens they have.
fn encode(encoder: &Encoder, texts: &[&str], batch: usize) -> anyhow::Result<usize> {
    let tokenizer = encoder.model().tokenizer().context("no vocabulary")?;
    let options = EncodeOptions { add_special: true, parse_special: false };
    let mut tokens = 0;
    for batch in texts.chunks(batch) {
        let texts = batch.iter().map(|text| Text::one(tokenizer.encode(text, options))).collect();
        let (sender, receiver) = channel();
        let _ticket = encoder.submit(texts, Box::new(move |encoded| drop(sender.send(encoded))))?;
        tokens += receiver.recv()?.context("the encoder stopped")?.tokens;
    }
    Ok(tokens)
}
