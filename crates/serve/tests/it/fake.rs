//! A scripted model: tokens are bytes, special names and the words of its replies; its pace is the test's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use engine::model::{Purpose, Text};
use engine::request::{
    Event, FinishReason, Finished, Refused, Request, Sink, Stats, Ticket, Timing, Token, TokenId,
    TokenLogprob, Usage,
};
use engine::{AdapterScale, Encoded, EncodedSink};
use serve::{Backend, Card, Chat, EncodeOptions, LoadedAdapter, TemplateError};

/// The special tokens, numbered from 256; the first begins every prompt.
const SPECIAL: [&str; 3] = ["<s>", "</s>", "<|turn|>"];
const FIRST_WORD: TokenId = 300;

/// Elements of a text's vector: its tokens, where its second text begins, its first token and its last.
const EMBEDDING_LEN: usize = 4;

/// Who makes the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The test, by [`Fake::step`].
    ByHand,
    /// A thread, with so much time between two.
    Every(Duration),
}

pub(crate) struct Script {
    pub(crate) pace: Pace,
    /// Time before the first token; with [`Pace::Every`] only.
    pub(crate) prefill: Duration,
    pub(crate) running_max: usize,
    pub(crate) waiting_max: usize,
    /// The reply is that of the first keyword found in the prompt; the last needs none.
    pub(crate) replies: &'static [(&'static str, &'static str)],
    pub(crate) purpose: Purpose,
    /// The names of adapters.
    pub(crate) adapters: &'static [&'static str],
}

impl Default for Script {
    fn default() -> Self {
        Self {
            pace: Pace::Every(Duration::ZERO),
            prefill: Duration::ZERO,
            running_max: 64,
            waiting_max: 64,
            replies: &[("", "The sea is calm tonight.")],
            purpose: Purpose::Generates,
            adapters: &[],
        }
    }
}

pub(crate) struct Fake {
    card: Card,
    script: Script,
    words: Vec<String>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    running: Vec<Active>,
    waiting: VecDeque<Active>,
    stats: Stats,
    /// Generations that ended because their tickets were dropped.
    cancelled: usize,
    stopped: bool,
    /// By adapter.
    scales: Vec<f32>,
}

struct Active {
    request: Request,
    sink: Sink,
    cancelled: Arc<AtomicBool>,
    reply: Vec<TokenId>,
    prompt: String,
    emitted: usize,
    held: String,
    submitted: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Fake {
    pub(crate) fn new(script: Script) -> Arc<Self> {
        let card = Card {
            id: "shore/dunlin-1b".into(),
            aliases: vec!["dunlin".into()],
            purpose: script.purpose,
            scores_are_probabilities: false,
            embedding_len: (script.purpose == Purpose::Embeds).then_some(EMBEDDING_LEN),
            created: 1_700_000_000,
            context_tokens: 512,
            context_tokens_trained: 4096,
            vocabulary: 1000,
            parameters: 1_000_000_000,
            file_bytes: 800_000_000,
            quantization: "Q4_0".into(),
            sha256: "00ff".into(),
        };
        let mut words: Vec<String> = Vec::new();
        for word in script.replies.iter().flat_map(|(_, reply)| split(reply)) {
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let scales = vec![1.0; script.adapters.len()];
        let (state, wake) = (Mutex::new(State { scales, ..State::default() }), Condvar::new());
        let fake = Arc::new(Self { card, script, words, state, wake });
        if let Pace::Every(pause) = fake.script.pace {
            let fake = Arc::clone(&fake);
            std::thread::spawn(move || fake.run(pause));
        }
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn run(&self, pause: Duration) {
        loop {
            let idle =
                |state: &mut State| state.running.is_empty() && state.waiting.is_empty() && !state.stopped;
            let state = self.wake.wait_while(self.state(), idle).unwrap();
            if state.stopped && state.running.is_empty() && state.waiting.is_empty() {
                return;
            }
            drop(state);
            self.step();
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }

    /// One step of the scheduler: a token for everyone, and the end for those who have left.
    pub(crate) fn step(&self) {
        let mut state = self.state();
        let state = &mut *state;
        while state.running.len() < self.script.running_max
            && let Some(mut active) = state.waiting.pop_front()
        {
            active.started = Some(Instant::now());
            state.running.push(active);
        }
        state.stats.steps_total += 1;
        let stopped = state.stopped;
        state.running.retain_mut(|active| match self.advance(active, stopped) {
            Step::Token => {
                state.stats.generation_tokens_total += 1;
                true
            }
            Step::Wait => true,
            Step::Cancelled => {
                state.cancelled += 1;
                false
            }
            Step::Ended => false,
        });
    }

    fn advance(&self, active: &mut Active, stopped: bool) -> Step {
        if stopped || active.cancelled.load(Ordering::Acquire) {
            active.finish(FinishReason::Cancelled);
            return Step::Cancelled;
        }
        if active.started.is_some_and(|started| started.elapsed() < self.script.prefill) {
            return Step::Wait;
        }
        if active.prompt.contains("[fail]") && active.emitted == 2 {
            active.finish(FinishReason::Failed("the weights were washed away".into()));
            return Step::Ended;
        }
        if active.prompt.contains("[vanish]") && active.emitted == 2 {
            return Step::Ended;
        }
        if active.emitted == active.reply.len() && !active.request.ignore_eos {
            active.finish(FinishReason::EndOfTurn);
            return Step::Ended;
        }
        active.emit(&self.words);
        let stop = active.request.stop.iter().find(|stop| active.held.contains(*stop)).cloned();
        if let Some(stop) = stop {
            let end = active.held.find(&stop).unwrap();
            active.held.truncate(end);
            active.finish(FinishReason::StopString(stop));
            return Step::Ended;
        }
        if active.request.max_tokens.is_some_and(|max| active.emitted >= max) {
            active.finish(FinishReason::Length);
            return Step::Ended;
        }
        Step::Token
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.state().cancelled
    }

    /// Generations whose tickets were dropped, whether or not a step has noticed.
    pub(crate) fn left(&self) -> usize {
        let state = self.state();
        let gone = |active: &&Active| active.cancelled.load(Ordering::Acquire);
        state.cancelled + state.running.iter().chain(&state.waiting).filter(gone).count()
    }

    /// The requests that run or wait.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let state = self.state();
        state.running.iter().chain(&state.waiting).map(|active| active.request.clone()).collect()
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.state().stopped
    }
}

enum Step {
    Token,
    Wait,
    Cancelled,
    Ended,
}

impl Active {
    fn emit(&mut self, words: &[String]) {
        let id = self.reply[self.emitted % self.reply.len()];
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.emitted += 1;
        let word = &words[(id - FIRST_WORD) as usize];
        // With stop strings, all text is in doubt until the end.
        let text = if self.request.stop.is_empty() { word.clone() } else { String::new() };
        if !self.request.stop.is_empty() {
            self.held.push_str(word);
        }
        let logprob = self.request.logprobs.map(|n| TokenLogprob {
            logprob: -0.5,
            top: (0..n as u32)
                .map(|i| (FIRST_WORD + i, if i < 2 { -0.5 - i as f32 } else { f32::NEG_INFINITY }))
                .collect(),
        });
        (self.sink)(Event::Token(Token { id, text, logprob, at: now }));
    }

    fn finish(&mut self, reason: FinishReason) {
        let started = self.started.unwrap_or(self.submitted);
        let first = self.first.unwrap_or(started);
        let finished = Finished {
            reason,
            text: std::mem::take(&mut self.held),
            usage: Usage {
                prompt_tokens: self.request.prompt.len(),
                completion_tokens: self.emitted,
                ..Usage::default()
            },
            timing: Timing {
                queue: started - self.submitted,
                prefill: first - started,
                decode: self.last.unwrap_or(first) - first,
            },
        };
        (self.sink)(Event::Finished(finished));
    }
}

/// The words of a text, each with the space before it.
fn split(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for character in text.chars() {
        match words.last_mut() {
            Some(word) if character != ' ' && character != '\n' && !word.ends_with('\n') => {
                word.push(character);
            }
            _ => words.push(character.to_string()),
        }
    }
    words
}

impl Backend for Fake {
    fn card(&self) -> &Card {
        &self.card
    }

    fn encode(&self, text: &str, options: EncodeOptions) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        if options.add_special {
            tokens.push(256);
        }
        let mut rest = text;
        while let Some(first) = rest.as_bytes().first() {
            let special = SPECIAL.iter().position(|name| options.parse_special && rest.starts_with(name));
            if let Some(special) = special {
                tokens.push(256 + special as TokenId);
                rest = &rest[SPECIAL[special].len()..];
                continue;
            }
            let length = rest.chars().next().map_or(1, char::len_utf8);
            tokens.push(TokenId::from(*first));
            tokens.extend(rest.as_bytes()[1..length].iter().map(|byte| TokenId::from(*byte)));
            rest = &rest[length..];
        }
        tokens
    }

    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        const BYTES: [u8; 256] = {
            let mut bytes = [0; 256];
            let mut byte = 0;
            while byte < 256 {
                bytes[byte] = byte as u8;
                byte += 1;
            }
            bytes
        };
        let token = token as usize;
        match token {
            0..256 => Some(&BYTES[token..=token]),
            256..300 => SPECIAL.get(token - 256).map(|name| name.as_bytes()),
            300..1000 => Some(self.words.get(token - 300).map_or(b"".as_slice(), |word| word.as_bytes())),
            _ => None,
        }
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| self.token_bytes(*token).unwrap_or_default().iter().copied())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn beginning_of_sequence(&self) -> Option<TokenId> {
        Some(256)
    }

    fn render(&self, chat: &Chat) -> Result<String, TemplateError> {
        let mut text = String::from("<s>");
        if let Some(tools) = &chat.tools {
            text.push_str(&format!("tools {tools}\n"));
        }
        for message in chat.messages.as_array().into_iter().flatten() {
            let role = message["role"].as_str().unwrap_or_default();
            if role == "function" {
                return Err(TemplateError { message: "conversation roles must alternate".into() });
            }
            let content = message["content"].as_str().unwrap_or_default();
            text.push_str(&format!("<|turn|>{role}\n{content}</s>"));
        }
        if chat.add_generation_prompt {
            text.push_str("<|turn|>assistant\n");
        }
        Ok(text)
    }

    fn pair(&self, query: &str, document: &str) -> Text {
        let mut tokens = self.encode(query, EncodeOptions { add_special: true, parse_special: false });
        let second = tokens.len();
        tokens.extend(self.encode(document, EncodeOptions { add_special: false, parse_special: false }));
        Text { tokens, second }
    }

    fn submit_texts(&self, texts: Vec<Text>, sink: EncodedSink) -> Result<Ticket, Refused> {
        let context_tokens = self.card.context_tokens;
        if let Some(long) = texts.iter().find(|text| text.tokens.len() > context_tokens) {
            return Err(Refused::PromptTooLong { prompt_tokens: long.tokens.len(), context_tokens });
        }
        let ends = |text: &Text| [text.tokens[0] as f32, text.tokens[text.tokens.len() - 1] as f32];
        let row = |text: &Text| match self.card.purpose {
            // A document's score is its first byte.
            Purpose::Scores => vec![text.tokens[text.second] as f32],
            _ => [text.tokens.len() as f32, text.second as f32].into_iter().chain(ends(text)).collect(),
        };
        let rows = texts.iter().map(row).collect();
        let tokens = texts.iter().map(|text| text.tokens.len()).sum();
        sink(Some(Encoded { rows, tokens, queue: Duration::ZERO, compute: Duration::ZERO }));
        Ok(Ticket::new().0)
    }

    fn adapters(&self) -> Vec<LoadedAdapter> {
        let loaded = |(name, scale): (&&str, &f32)| LoadedAdapter {
            name: (*name).to_owned(),
            path: format!("/adapters/{name}.gguf"),
            scale: *scale,
        };
        self.script.adapters.iter().zip(&self.state().scales).map(loaded).collect()
    }

    fn set_adapters(&self, wanted: &[AdapterScale]) -> Result<(), Refused> {
        let mut state = self.state();
        let adapters = state.scales.len();
        if let Some(&AdapterScale { id, .. }) = wanted.iter().find(|wanted| wanted.id >= adapters) {
            return Err(Refused::UnknownAdapter { id, adapters });
        }
        state.scales.fill(0.0);
        wanted.iter().for_each(|wanted| state.scales[wanted.id] = wanted.scale);
        Ok(())
    }

    fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Refused> {
        let mut state = self.state();
        if state.stopped {
            return Err(Refused::ShuttingDown);
        }
        if request.prompt.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        if request.prompt.len() >= self.card.context_tokens {
            let (prompt_tokens, context_tokens) = (request.prompt.len(), self.card.context_tokens);
            return Err(Refused::PromptTooLong { prompt_tokens, context_tokens });
        }
        if let Some(id) = request.prompt.iter().find(|id| self.token_bytes(**id).is_none()) {
            return Err(Refused::UnknownToken { id: *id, vocabulary: self.card.vocabulary });
        }
        if request.sampling.logit_bias.iter().any(|(id, _)| *id as usize >= self.card.vocabulary) {
            let reason = "names a token outside of the vocabulary".into();
            return Err(Refused::InvalidSampling { field: "logit_bias", reason });
        }
        let adapters = self.script.adapters.len();
        let unknown = |wanted: &&AdapterScale| wanted.id >= adapters;
        if let Some(&AdapterScale { id, .. }) = request.adapters.iter().flatten().find(unknown) {
            return Err(Refused::UnknownAdapter { id, adapters });
        }
        let busy = state.running.len() + state.waiting.len();
        if busy >= self.script.running_max + self.script.waiting_max {
            return Err(Refused::QueueFull { waiting: state.waiting.len() });
        }
        let (ticket, cancelled) = Ticket::new();
        let prompt = self.decode(&request.prompt);
        let reply = self.script.replies.iter().find(|(keyword, _)| prompt.contains(keyword)).unwrap().1;
        let id = |word: String| {
            FIRST_WORD + self.words.iter().position(|known| *known == word).unwrap() as TokenId
        };
        state.stats.prompt_tokens_total += request.prompt.len() as u64;
        state.waiting.push_back(Active {
            reply: split(reply).into_iter().map(id).collect(),
            request,
            sink,
            cancelled,
            prompt,
            emitted: 0,
            held: String::new(),
            submitted: Instant::now(),
            started: None,
            first: None,
            last: None,
        });
        self.wake.notify_all();
        Ok(ticket)
    }

    fn stats(&self) -> Stats {
        let state = self.state();
        let used = state.running.iter().map(|active| active.request.prompt.len() + active.emitted).sum();
        Stats {
            requests_running: state.running.len(),
            requests_waiting: state.waiting.len(),
            kv_tokens_used: used,
            kv_tokens_capacity: 4096,
            kv_bytes_capacity: 4096 * 100,
            weights_packed_bytes: 300,
            weights_bytes: 400,
            ..state.stats
        }
    }

    fn shut_down(&self) {
        self.state().stopped = true;
        self.wake.notify_all();
    }
}
