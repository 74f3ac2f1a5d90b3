//! A model to talk to: a conversation becomes tokens, tokens become an answer, and an interrupt ends it.

use super::RunArgs;
use crate::error::{CliError, Kind};
use crate::loading::Plan;
use crate::talk;
use engine::model::Packing;
use engine::request::{Event, FinishReason, Finished, Request, Sampling, Timing, TokenId, Usage};
use serde_json::{Value, json};
use serve::backend::encode_rendered;
use serve::{Backend, Card, Chat, EncodeOptions, EngineBackend};
use std::sync::mpsc::{self, Receiver, Sender};

pub(super) struct Session {
    backend: EngineBackend,
    raw: bool,
    max_tokens: Option<usize>,
    sampling: Sampling,
    news: Receiver<News>,
    sender: Sender<News>,
    /// The number of the generation that is running, to tell its events from those of one that was interrupted.
    generation: u64,
}

/// What a session waits for.
enum News {
    Event { generation: u64, event: Event },
    Interrupt,
}

/// A conversation so far.
#[derive(Clone, Default)]
pub(super) struct Conversation {
    messages: Vec<Value>,
}

pub(super) struct Answer {
    pub(super) text: String,
    pub(super) reason: FinishReason,
    pub(super) usage: Usage,
    pub(super) timing: Timing,
}

impl Conversation {
    pub(super) fn new(system: Option<&str>) -> Self {
        Self { messages: system.map(|text| json!({"role": "system", "content": text})).into_iter().collect() }
    }

    fn add(&mut self, role: &str, text: &str) {
        self.messages.push(json!({"role": role, "content": text}));
    }

    pub(super) fn answered(&mut self, answer: &Answer) {
        self.add("assistant", &answer.text);
    }
}

impl Answer {
    /// An error where the engine could not go on.
    pub(super) fn check(self) -> Result<(), CliError> {
        match self.reason {
            FinishReason::Failed(message) => Err(CliError::new(Kind::Failed, message)),
            _ => Ok(()),
        }
    }
}

impl Session {
    pub(super) fn new(plan: Plan, args: &RunArgs) -> Result<Self, CliError> {
        let card = Card { id: plan.source.id(), ..Card::default() };
        // An answer from weights that are not packed takes longer than packing them: every token would pack them all.
        plan.check_generates()?;
        let engine = plan.load(Packing::First, &mut |_| {})?;
        let template = engine.model().template();
        if let (Some(Err(broken)), false) = (&template, args.raw) {
            return Err(CliError::new(Kind::Model, broken.to_string())
                .with_hint("--raw goes on from the prompt without the template"));
        }
        let raw = args.raw || template.is_none();
        if raw && !args.raw {
            talk::say("this model has no chat template: it goes on from the prompt as it is, as with --raw");
        }
        let backend = EngineBackend::new(engine, card, 0);
        let (sender, news) = mpsc::channel();
        let (max_tokens, sampling) = (args.sampling.max_tokens, args.sampling.sampling());
        Ok(Self { backend, raw, max_tokens, sampling, news, sender, generation: 0 })
    }

    pub(super) fn model(&self) -> &str {
        &self.backend.card().id
    }

    /// A function that interrupts the running generation, from any thread.
    pub(super) fn interrupter(&self) -> impl FnMut() + Send + 'static {
        let sender = self.sender.clone();
        // The session is gone only when the program ends.
        move || drop(sender.send(News::Interrupt))
    }

    /// Adds what the user said; the tokens of the conversation up to where the answer begins.
    pub(super) fn tokens_after(&self, to: &mut Conversation, said: &str) -> Result<Vec<TokenId>, CliError> {
        if self.raw {
            let options = EncodeOptions { add_special: true, parse_special: false };
            return Ok(self.backend.encode(said, options));
        }
        to.add("user", said);
        let messages = Value::Array(to.messages.clone());
        let chat = Chat { messages, tools: None, add_generation_prompt: true, extra: Default::default() };
        let text = self.backend.render(&chat)?;
        Ok(encode_rendered(&self.backend, &text))
    }

    /// Generates an answer; `show` hears of its text as it comes. An error of `show` cancels the rest.
    pub(super) fn generate(
        &mut self,
        prompt: Vec<TokenId>,
        show: &mut dyn FnMut(&str) -> Result<(), CliError>,
    ) -> Result<Answer, CliError> {
        // Interrupts that came while nothing ran are over.
        while self.news.try_recv().is_ok() {}
        self.generation += 1;
        let generation = self.generation;
        let request = Request {
            prompt,
            max_tokens: self.max_tokens,
            sampling: self.sampling.clone(),
            stop: Vec::new(),
            logprobs: None,
            ignore_eos: false,
            adapters: None,
        };
        let sender = self.sender.clone();
        // Nobody listens any more when the program is ending.
        let sink = move |event| drop(sender.send(News::Event { generation, event }));
        let ticket = self.backend.submit(request, Box::new(sink))?;
        let mut answer = String::new();
        let mut add = |text: &str| {
            answer.push_str(text);
            if text.is_empty() { Ok(()) } else { show(text) }
        };
        loop {
            match self.news.recv().expect("the session itself holds a sender") {
                News::Interrupt => ticket.cancel(),
                News::Event { generation, .. } if generation != self.generation => {}
                News::Event { event: Event::Token(token), .. } => add(&token.text)?,
                News::Event { event: Event::Finished(finished), .. } => {
                    let Finished { reason, text, usage, timing } = finished;
                    add(&text)?;
                    return Ok(Answer { text: answer, reason, usage, timing });
                }
            }
        }
    }
}
