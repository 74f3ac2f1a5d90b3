//! A text completion's answer, whole and in chunks.

use std::sync::Arc;

use engine::request::{Finished, Token, TokenId, TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::answer::{Choice, Head, Timings, UsageObject, finite, token_text, usage_of};
use crate::backend::Backend;
use crate::generation::{Plan, finish_reason};
use crate::server::Server;
use crate::stream::{Framing, write};

pub(super) fn head(server: &Server, backend: &dyn Backend) -> Head {
    // OpenAI says the same for a whole answer and for a chunk.
    Head::new(server, backend, "cmpl", "text_completion")
}

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<CompletionChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageObject>>,
    /// Of the first choice, or of the one that the chunk ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    text: std::borrow::Cow<'a, str>,
    index: usize,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn push(&mut self, id: TokenId, logprob: &TokenLogprob, offset: usize, backend: &dyn Backend) {
        let named = |(id, logprob): &(TokenId, f32)| (token_text(backend, *id), finite(*logprob).into());
        self.tokens.push(token_text(backend, id));
        self.token_logprobs.push(finite(logprob.logprob));
        self.top_logprobs.push(logprob.top.iter().map(named).collect());
        self.text_offset.push(offset);
    }
}

/// The whole answer, as JSON.
pub(super) fn completion(
    head: Head,
    plan: &Plan,
    echoes: &[String],
    choices: &[Choice],
    backend: &dyn Backend,
) -> Value {
    let of = |(index, (choice, echo)): (usize, (&Choice, &String))| CompletionChoice {
        text: format!("{echo}{}", choice.text).into(),
        index,
        logprobs: plan.logprobs.map(|_| logprobs_of(choice, backend)),
        finish_reason: Some(choice.finish_reason),
    };
    let completion = Completion {
        head: &head,
        choices: choices.iter().zip(echoes).enumerate().map(of).collect(),
        usage: Some(Some(usage_of(choices, plan.options.choices))),
        timings: choices.first().map(|choice| Timings::new(choice.usage, choice.timing)),
    };
    serde_json::to_value(completion).unwrap_or_default()
}

fn logprobs_of(choice: &Choice, backend: &dyn Backend) -> Logprobs {
    let mut logprobs = Logprobs::default();
    for ((id, logprob), offset) in choice.logprobs.iter().zip(&choice.offsets) {
        logprobs.push(*id, logprob, *offset, backend);
    }
    logprobs
}

/// The answer in chunks; the last of each choice says why it ended.
pub(super) struct Chunks {
    head: Head,
    backend: Arc<dyn Backend>,
    logprobs: bool,
    include_usage: bool,
    per_prompt: usize,
    usage: UsageObject,
    /// What each choice's text begins with, until it has been said.
    echoes: Vec<String>,
    /// Characters said so far by each choice.
    said: Vec<usize>,
}

impl Chunks {
    pub(super) fn new(head: Head, plan: &Plan, echoes: Vec<String>, backend: Arc<dyn Backend>) -> Self {
        Self {
            head,
            backend,
            logprobs: plan.logprobs.is_some(),
            include_usage: plan.options.include_usage,
            per_prompt: plan.options.choices,
            usage: UsageObject::default(),
            said: vec![0; echoes.len()],
            echoes,
        }
    }

    fn begin(&mut self, index: usize, out: &mut Vec<u8>) {
        let echo = std::mem::take(&mut self.echoes[index]);
        if !echo.is_empty() {
            self.text(index, &echo, None, out);
        }
    }

    fn text(&mut self, index: usize, text: &str, logprobs: Option<Logprobs>, out: &mut Vec<u8>) {
        self.said[index] += text.chars().count();
        self.choice(CompletionChoice { text: text.into(), index, logprobs, finish_reason: None }, None, out);
    }

    fn choice(&self, choice: CompletionChoice<'_>, timings: Option<Timings>, out: &mut Vec<u8>) {
        let usage = self.include_usage.then_some(None);
        write(out, &Completion { head: &self.head, choices: vec![choice], usage, timings });
    }
}

impl Framing for Chunks {
    fn token(&mut self, index: usize, token: &Token, out: &mut Vec<u8>) {
        self.begin(index, out);
        let logprobs = token.logprob.as_ref().filter(|_| self.logprobs).map(|logprob| {
            let mut logprobs = Logprobs::default();
            logprobs.push(token.id, logprob, self.said[index], &*self.backend);
            logprobs
        });
        if !token.text.is_empty() || logprobs.is_some() {
            self.text(index, &token.text, logprobs, out);
        }
    }

    fn finished(&mut self, index: usize, finished: &Finished, out: &mut Vec<u8>) {
        self.begin(index, out);
        if !finished.text.is_empty() {
            self.text(index, &finished.text, None, out);
        }
        self.usage.add(finished.usage, index.is_multiple_of(self.per_prompt));
        let finish_reason = Some(finish_reason(&finished.reason));
        let last = CompletionChoice { text: "".into(), index, logprobs: None, finish_reason };
        self.choice(last, Some(Timings::new(finished.usage, finished.timing)), out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            let usage = Some(Some(self.usage));
            write(out, &Completion { head: &self.head, choices: Vec::new(), usage, timings: None });
        }
    }
}
