//! `dunlin run`: an answer, a continuation or a conversation in the terminal.

mod interactive;
mod piped;
mod prompt;
mod report;
mod session;

use crate::defaults;
use crate::error::{CliError, Kind};
use crate::loading::LoadArgs;
use crate::source::Source;
use crate::talk;
use clap::Args;
use engine::EngineConfig;
use engine::request::Sampling;
use prompt::Words;
use session::{Conversation, Session};
use std::io::{self, IsTerminal};
use std::time::Instant;

/// Ask a model in the terminal: one answer, or a conversation where no prompt is given.
///
/// The answer is streamed to standard output. What is piped in is added to the prompt, or is the prompt; with a prompt,
/// a pipe that is silent for 2 seconds is left alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin run \"What is dunlin?\"                           one answer from the built-in model
  dunlin run model.gguf                                  a conversation; /help lists its commands
  dunlin run model.gguf \"Summarize:\" < report.txt        prompt and file together
  dunlin run model.gguf --raw \"Once upon a time\"         go on from a text, without a chat template
  dunlin run model.gguf \"hello\" --json --temperature 0   text, usage and timing as one JSON object")]
pub(crate) struct RunArgs {
    /// A GGUF file [default: the built-in model], then the prompt
    #[arg(value_name = "MODEL] [PROMPT")]
    words: Vec<String>,

    /// Instructions that come before the conversation
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,

    /// Go on from the prompt as it is, without the model's chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,

    /// Print one JSON object with text, usage and timing, at the end
    #[arg(long)]
    json: bool,

    /// Say how long it took, on standard error
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    load: LoadArgs,
}

/// How the next token is chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", allow_negative_numbers = true, default_value_t = Sampling::default().temperature)]
    temperature: f32,

    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "N", default_value_t = Sampling::default().top_k)]
    top_k: usize,

    /// Keep the likeliest tokens whose probabilities reach this sum; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p)]
    top_p: f32,

    /// Drop tokens less likely than this times the likeliest; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().min_p)]
    min_p: f32,

    /// End after this many tokens [default: when the model ends or the context is full]
    #[arg(long, short = 'n', value_name = "TOKENS")]
    max_tokens: Option<usize>,

    /// Same seed, same answer [default: a new one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            ..Sampling::default()
        }
    }
}

pub(crate) fn run(args: &RunArgs) -> Result<(), CliError> {
    let Words { model, prompt } = prompt::read_words(&args.words);
    let source = Source::or_demo(model.as_deref());
    let terminal = io::stdin().is_terminal();
    let piped = if terminal { String::new() } else { read_stdin(prompt.is_some())? };
    let prompt = prompt::join(prompt, &piped);
    let began = Instant::now();
    let plan = args.load.plan(source, EngineConfig { parallel: 1, ..EngineConfig::default() })?;
    if prompt.is_none() && !terminal {
        return Err(CliError::new(Kind::Usage, "the prompt is empty")
            .with_hint("say something: dunlin run \"hello\", or pipe a text in"));
    }
    let described = plan.describe();
    let mut session = Session::new(plan, args)?;
    let load = began.elapsed();
    let mut conversation = Conversation::new(args.system.as_deref());
    let Some(prompt) = prompt else {
        talk::say(described);
        return interactive::talk(&mut session, conversation, args.stats);
    };

    let tokens = session.tokens_after(&mut conversation, &prompt)?;
    let answer = session.generate(tokens, &mut |text| match args.json {
        true => Ok(()),
        false => talk::write(text.as_bytes()),
    })?;
    match args.json {
        true => talk::write_line(report::json(&session, &answer, load)?)?,
        false if !answer.text.ends_with('\n') => talk::write(b"\n")?,
        false => {}
    }
    if args.stats {
        talk::say(report::line(&answer, Some(load)));
    }
    answer.check()
}

/// What was piped in. It may only be silent for long where it must be the prompt.
fn read_stdin(has_prompt: bool) -> Result<String, CliError> {
    let silence_max = defaults::STDIN_SILENCE_MAX;
    let piped = piped::read(&mut io::stdin().lock(), has_prompt.then_some(silence_max))?;
    Ok(piped.unwrap_or_else(|| {
        talk::say(format_args!(
            "nothing came on standard input for {} s: going on without it; < /dev/null does not wait",
            silence_max.as_secs()
        ));
        String::new()
    }))
}
