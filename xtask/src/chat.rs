//! `chat`: what an engine saves by what it keeps of conversations and guesses of their next tokens.
//!
//! Requests go through the whole engine, as a server's do. Prompts are random tokens of the model's vocabulary.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use engine::{
    Engine, EngineConfig, Event, FinishReason, Model, OpenOptions, Pool, Request, Sampling, Speculation,
    TokenId, Usage, check_draft,
};
use stdx::random::Random;

use crate::synth::{CIRCLE_TOKENS, counted_on};

/// Tokens of a user's turn, and of an answer.
const TURN_TOKENS: usize = 60;
const ANSWER_TOKENS: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Time to the first token in each turn of a conversation
    Turns,
    /// A conversation, the end of the engine, and its next turn in a new one
    Restart,
    /// Generation with guesses and without, by a model that counts (`synth --counting`)
    Guesses,
}

/// Measure what keeping conversations and guessing tokens saves
#[derive(clap::Args)]
pub(crate) struct Args {
    model: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "turns,restart,guesses")]
    measure: Vec<Measure>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// For `turns`: turns of the conversation
    #[arg(long, default_value_t = 30)]
    turns: usize,
    /// For `restart`: tokens of the conversation
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// For `guesses`: a small model that guesses, too, and counts as well
    #[arg(long, value_name = "GGUF")]
    draft: Option<PathBuf>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where packed weights and saved caches are kept
    #[arg(long)]
    cache_dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.turns > 1 && args.rounds > 0, "there must be something to do");
    for measure in &args.measure {
        match measure {
            Measure::Turns => turns(args)?,
            Measure::Restart => restart(args)?,
            Measure::Guesses => guesses(args)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &Args) -> anyhow::Result<Arc<Model>> {
    open_path(args, &args.model)
}

fn open_path(args: &Args, path: &Path) -> anyhow::Result<Arc<Model>> {
    let options = OpenOptions { cache: Some(args.cache_dir.join("packed")), ..OpenOptions::default() };
    let model = Model::open(path, &options, &Pool::new(args.threads), &mut |_| ())
        .with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Arc::new(model))
}

fn start(args: &Args, model: &Arc<Model>, config: EngineConfig) -> Engine {
    Engine::start(Arc::clone(model), Pool::new(args.threads), config)
}

fn config(context_tokens: usize) -> EngineConfig {
    EngineConfig { parallel: 1, context_tokens, ..EngineConfig::default() }
}

/// One answer.
struct Heard {
    tokens: Vec<TokenId>,
    first: Duration,
    decode: Duration,
    usage: Usage,
}

impl Heard {
    fn tokens_per_s(&self) -> f64 {
        (self.tokens.len() - 1) as f64 / self.decode.as_secs_f64()
    }
}

fn ask(engine: &Engine, prompt: &[TokenId], max_tokens: usize, sampling: Sampling) -> anyhow::Result<Heard> {
    let (sender, events) = channel();
    let request = Request {
        prompt: prompt.to_vec(),
        max_tokens: Some(max_tokens),
        sampling,
        stop: Vec::new(),
        logprobs: None,
        ignore_eos: true,
        adapters: None,
    };
    let asked = Instant::now();
    let _ticket = engine.submit(request, Box::new(move |event| drop(sender.send(event))))?;
    let mut tokens = Vec::new();
    let mut first = None;
    for event in events {
        match event {
            Event::Token(token) => {
                first.get_or_insert(token.at - asked);
                tokens.push(token.id);
            }
            Event::Finished(finished) if finished.reason == FinishReason::Length => {
                let first = first.context("no token came")?;
                return Ok(Heard { tokens, first, decode: finished.timing.decode, usage: finished.usage });
            }
            Event::Finished(finished) => bail!("it ended early: {:?}", finished.reason),
        }
    }
    bail!("the engine is gone")
}

fn random_tokens(model: &Model, count: usize, random: &mut Random) -> Vec<TokenId> {
    (0..count).map(|_| random.below(model.vocabulary() as u64) as TokenId).collect()
}

fn turns(args: &Args) -> anyhow::Result<()> {
    let model = open(args)?;
    let mut first_to_last = Vec::new();
    for round in 0..args.rounds {
        let context = (args.turns * (TURN_TOKENS + ANSWER_TOKENS)).next_multiple_of(engine::PAGE);
        let engine = start(args, &model, config(context));
        let mut random = Random::new(round as u64);
        let mut conversation = Vec::new();
        let mut times = Vec::new();
        for _ in 0..args.turns {
            conversation.extend(random_tokens(&model, TURN_TOKENS, &mut random));
            let heard = ask(&engine, &conversation, ANSWER_TOKENS, Sampling::greedy())?;
            conversation.extend(heard.tokens);
            times.push(heard.first.as_secs_f64() * 1e3);
        }
        let last = times[times.len() - 1];
        println!(
            "{}, round {}: first token after {:.1} ms in turn 1, {:.1} ms in turn 2, {last:.1} ms in turn {}: {:.2} times turn 2",
            model.family(),
            round + 1,
            times[0],
            times[1],
            args.turns,
            last / times[1]
        );
        first_to_last.push(last / times[1]);
    }
    println!("{}: median {:.2}", model.family(), median(first_to_last));
    Ok(())
}

fn restart(args: &Args) -> anyhow::Result<()> {
    let path = args.cache_dir.join("kv/chat.kv");
    let mut first = Vec::new();
    for round in 0..args.rounds {
        let _ = std::fs::remove_file(&path);
        let config =
            || EngineConfig { saved_cache: Some(path.clone()), ..config(args.tokens + 2 * engine::PAGE) };
        let model = open(args)?;
        let engine = start(args, &model, config());
        let mut random = Random::new(round as u64);
        let mut conversation = random_tokens(&model, args.tokens - ANSWER_TOKENS, &mut random);
        let without = ask(&engine, &conversation, ANSWER_TOKENS, Sampling::greedy())?;
        conversation.extend(&without.tokens);
        let ending = Instant::now();
        drop((engine, model));
        let saved_s = ending.elapsed().as_secs_f64();
        let bytes = size(&path)?;

        let starting = Instant::now();
        let model = open(args)?;
        let engine = start(args, &model, config());
        conversation.extend(random_tokens(&model, 10, &mut random));
        let opened = starting.elapsed();
        let heard = ask(&engine, &conversation, 2, Sampling::greedy())?;
        println!(
            "round {}: {} tokens, {} of them known; first token {:.0} ms after the request, which came {:.0} ms after the start; \
             {:.2} s before it was known; {:.0} MB saved in {saved_s:.2} s",
            round + 1,
            conversation.len(),
            heard.usage.cached_tokens,
            heard.first.as_secs_f64() * 1e3,
            opened.as_secs_f64() * 1e3,
            without.first.as_secs_f64(),
            bytes as f64 / 1e6
        );
        first.push((opened + heard.first).as_secs_f64() * 1e3);
    }
    println!("from start to first token: median {:.0} ms", median(first));
    Ok(())
}

fn size(path: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("nothing was saved at {}", path.display()))?.len())
}

/// A model that counts (`cargo xtask synth --counting`) is asked to say a text again of which every tenth token is another in
/// the prompt, and one at a high temperature says what nobody can guess.
fn guesses(args: &Args) -> anyhow::Result<()> {
    let model = open(args)?;
    let draft = args.draft.as_deref().map(|path| open_path(args, path)).transpose()?;
    if let Some(draft) = &draft {
        check_draft(&model, draft)?;
    }
    let engines = [Speculation::Off, Speculation::WherePays].map(|speculation| {
        let config = EngineConfig { speculation, ..config(2048) };
        Engine::start_with_draft(Arc::clone(&model), draft.clone(), Pool::new(args.threads), config)
    });
    let mut kinds = vec![("a text again, with edits", 0.0, edited_text as fn(&Model, u64) -> Vec<TokenId>)];
    if draft.is_some() {
        kinds.push(("what only the draft model can guess", 0.0, random_text));
    }
    kinds.push(("what nobody can guess", 1e6, edited_text));
    for (what, temperature, text) in kinds {
        let mut ratios = Vec::new();
        for round in 0..args.rounds {
            let prompt = text(&model, round as u64);
            let seed = Some(round as u64);
            let all = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
            let sampling = Sampling { temperature, seed, ..all };
            // Each goes first in every other round.
            let mut heard = [None, None];
            for i in [round % 2, 1 - round % 2] {
                heard[i] = Some(ask(&engines[i], &prompt, GUESSED_TOKENS, sampling.clone())?);
            }
            let [Some(without), Some(with)] = heard else { bail!("both were asked") };
            ensure!(without.tokens == with.tokens, "guesses changed what was said");
            println!(
                "{what}, round {}: {:.1} tokens/s without guesses, {:.1} with; {} of {} came true",
                round + 1,
                without.tokens_per_s(),
                with.tokens_per_s(),
                with.usage.true_guesses,
                with.usage.guessed_tokens
            );
            ratios.push(with.tokens_per_s() / without.tokens_per_s());
        }
        println!("{what}: median {:.2} times", median(ratios));
    }
    Ok(())
}

/// For `guesses`: tokens of the text, and of an answer; every so many tokens one is another.
const TEXT_TOKENS: usize = 400;
const GUESSED_TOKENS: usize = 256;
const EDIT_PERIOD: u64 = 10;

/// A text as a counting model would say it, with edits, and its first tokens without.
fn edited_text(model: &Model, seed: u64) -> Vec<TokenId> {
    let mut random = Random::new(seed);
    let circles = model.vocabulary() / CIRCLE_TOKENS;
    let start = random.below(circles.max(1) as u64) as usize * CIRCLE_TOKENS;
    let text = std::iter::successors(Some(start), |&token| Some(counted_on(token)));
    let text: Vec<TokenId> = text.take(TEXT_TOKENS).map(|token| token as TokenId).collect();
    let edited = text.iter().map(|&token| match random.below(EDIT_PERIOD) {
        0 => random.below(model.vocabulary() as u64) as TokenId,
        _ => token,
    });
    edited.chain(text.iter().take(4).copied()).collect()
}

/// A text in which nothing stands twice.
fn random_text(model: &Model, seed: u64) -> Vec<TokenId> {
    let mut random = Random::new(seed);
    (0..TEXT_TOKENS).map(|_| random.below(model.vocabulary() as u64) as TokenId).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
