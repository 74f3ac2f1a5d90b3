//! A chat completion's answer, whole and in chunks.

use std::sync::Arc;

use engine::request::{Finished, Token, TokenId, TokenLogprob};
use serde::Serialize;

use crate::answer::{Choice, Head, Timings, UsageObject, finite, token_text, usage_of};
use crate::backend::Backend;
use crate::generation::{Plan, finish_reason};
use crate::server::Server;
use crate::stream::{Framing, write};

pub(super) fn head(server: &Server, backend: &dyn Backend, stream: bool) -> Head {
    let object = if stream { "chat.completion.chunk" } else { "chat.completion" };
    Head::new(server, backend, "chatcmpl", object)
}

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    #[serde(flatten)]
    head: Head,
    choices: Vec<CompletionChoice<'a>>,
    usage: UsageObject,
    /// Of the first choice.
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'static str>,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<ContentLogprob>,
    refusal: Option<&'static str>,
}

#[derive(Serialize)]
struct ContentLogprob {
    #[serde(flatten)]
    chosen: Candidate,
    top_logprobs: Vec<Candidate>,
}

#[derive(Serialize)]
struct Candidate {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The whole answer.
pub(super) fn completion<'a>(
    head: Head,
    choices: &'a [Choice],
    logprobs: bool,
    backend: &dyn Backend,
) -> Completion<'a> {
    let of = |(index, choice): (usize, &'a Choice)| CompletionChoice {
        index,
        message: Message { role: "assistant", content: &choice.text, refusal: None },
        logprobs: logprobs.then(|| logprobs_of(&choice.logprobs, backend)),
        finish_reason: choice.finish_reason,
    };
    Completion {
        head,
        choices: choices.iter().enumerate().map(of).collect(),
        usage: usage_of(choices, choices.len()),
        timings: choices.first().map(|choice| Timings::new(choice.usage, choice.timing)),
    }
}

fn logprobs_of(tokens: &[(TokenId, TokenLogprob)], backend: &dyn Backend) -> Logprobs {
    let content = tokens.iter().map(|(id, logprob)| ContentLogprob {
        chosen: candidate(*id, logprob.logprob, backend),
        top_logprobs: logprob.top.iter().map(|(id, logprob)| candidate(*id, *logprob, backend)).collect(),
    });
    Logprobs { content: content.collect(), refusal: None }
}

fn candidate(id: TokenId, logprob: f32, backend: &dyn Backend) -> Candidate {
    Candidate {
        token: token_text(backend, id),
        logprob: finite(logprob),
        bytes: backend.token_bytes(id).unwrap_or_default().to_vec(),
    }
}

/// The answer in chunks: the first of each choice says the role, the last why it ended.
pub(super) struct Chunks {
    head: Head,
    backend: Arc<dyn Backend>,
    logprobs: bool,
    include_usage: bool,
    usage: UsageObject,
    /// Which choices have said their role.
    begun: Vec<bool>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: &'a [ChunkChoice<'a>],
    /// Present, though null, in every chunk of a stream that ends with the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageObject>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Chunks {
    pub(super) fn new(head: Head, plan: &Plan, backend: Arc<dyn Backend>) -> Self {
        Self {
            head,
            backend,
            logprobs: plan.logprobs.is_some(),
            include_usage: plan.options.include_usage,
            usage: UsageObject::default(),
            begun: vec![false; plan.options.choices],
        }
    }

    /// The role goes out with the first event and not before, so that the first byte a client sees is the first token.
    fn begin(&mut self, index: usize, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun[index], true) {
            self.delta(index, Delta { role: Some("assistant"), content: Some("") }, None, out);
        }
    }

    fn delta(&self, index: usize, delta: Delta<'_>, logprobs: Option<Logprobs>, out: &mut Vec<u8>) {
        self.chunk(&[ChunkChoice { index, delta, logprobs, finish_reason: None }], None, out);
    }

    fn chunk(&self, choices: &[ChunkChoice<'_>], timings: Option<Timings>, out: &mut Vec<u8>) {
        let usage = self.include_usage.then_some(None);
        write(out, &Chunk { head: &self.head, choices, usage, timings });
    }
}

impl Framing for Chunks {
    fn token(&mut self, index: usize, token: &Token, out: &mut Vec<u8>) {
        self.begin(index, out);
        let logprob = token.logprob.clone().filter(|_| self.logprobs);
        let logprobs = logprob.map(|logprob| logprobs_of(&[(token.id, logprob)], &*self.backend));
        if !token.text.is_empty() || logprobs.is_some() {
            self.delta(index, Delta { role: None, content: Some(&token.text) }, logprobs, out);
        }
    }

    fn finished(&mut self, index: usize, finished: &Finished, out: &mut Vec<u8>) {
        self.begin(index, out);
        if !finished.text.is_empty() {
            self.delta(index, Delta { role: None, content: Some(&finished.text) }, None, out);
        }
        self.usage.add(finished.usage, index == 0);
        let finish_reason = Some(finish_reason(&finished.reason));
        let last = ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason };
        self.chunk(&[last], Some(Timings::new(finished.usage, finished.timing)), out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            let usage = Some(Some(self.usage));
            write(out, &Chunk { head: &self.head, choices: &[], usage, timings: None });
        }
    }
}
