//! The engine at work on the demo model. What the model says does not matter here: the engine is compared with itself.
//!
//! Where a test needs the engine to be in a certain state, it holds the engine's thread in a sink; nothing waits for the
//! clock but the deadline after which a test fails.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::model::Model;
use engine::tokenizer::EncodeOptions;
use engine::{
    Engine, EngineConfig, Event, FinishReason, Finished, OpenOptions, Pool, Refused, Request, Sampling,
    Speculation, Ticket, Token, TokenId,
};

/// How long an event may take before a test gives up on it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

const TEXT: &str = "The pump in hall 3 ran at 41 degrees until noon. Then the pressure fell, and somebody closed the \
    second valve. Who was it, and what did the log say about the night before? List every sensor that was offline. ";

pub(crate) const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/dunlin-demo.gguf");

pub(crate) fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let open = || {
        let model = Model::open(Path::new(DEMO), &OpenOptions::default(), &Pool::new(1), &mut |_| ());
        Arc::new(model.expect("the demo model is sound"))
    };
    Arc::clone(MODEL.get_or_init(open))
}

pub(crate) fn start(config: EngineConfig) -> Engine {
    Engine::start(model(), Pool::new(2), config)
}

fn one_at_a_time() -> Engine {
    start(EngineConfig { parallel: 1, context_tokens: 512, ..EngineConfig::default() })
}

/// A prompt of `count` tokens that starts somewhere else for every `count`.
pub(crate) fn prompt(count: usize) -> Vec<TokenId> {
    let tokenizer = model();
    let tokenizer = tokenizer.tokenizer().expect("the demo model has a vocabulary");
    let ids = tokenizer.encode(TEXT, EncodeOptions::default());
    ids.iter().copied().cycle().skip(count % ids.len()).take(count).collect()
}

/// Greedy, to the end of `max_tokens`.
pub(crate) fn request(prompt_tokens: usize, max_tokens: usize) -> Request {
    Request {
        prompt: prompt(prompt_tokens),
        max_tokens: Some(max_tokens),
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        logprobs: Some(3),
        ignore_eos: true,
        adapters: None,
    }
}

/// All that is heard of one generation.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) tokens: Vec<Token>,
    pub(crate) finished: Finished,
}

impl Heard {
    pub(crate) fn ids(&self) -> Vec<TokenId> {
        self.tokens.iter().map(|t| t.id).collect()
    }

    fn text(&self) -> String {
        self.tokens.iter().map(|t| t.text.as_str()).chain([self.finished.text.as_str()]).collect()
    }

    /// Identifiers and the bits of all log-probabilities.
    pub(crate) fn bits(&self) -> Vec<(TokenId, u32)> {
        let logprobs = self.tokens.iter().filter_map(|t| Some((t.id, t.logprob.as_ref()?)));
        logprobs
            .flat_map(|(id, l)| [(id, l.logprob)].into_iter().chain(l.top.clone()))
            .map(|(id, logprob)| (id, logprob.to_bits()))
            .collect()
    }
}

/// A generation under way.
pub(crate) struct Running {
    ticket: Ticket,
    events: Receiver<Event>,
}

impl Running {
    fn next(&self) -> Event {
        self.events.recv_timeout(DEADLINE).expect("an event before the deadline")
    }

    /// Hears the rest, and that nothing comes after the end.
    pub(crate) fn finish(self) -> Heard {
        let mut tokens = Vec::new();
        loop {
            match self.next() {
                Event::Token(token) => tokens.push(token),
                Event::Finished(finished) => {
                    assert!(self.events.recv_timeout(DEADLINE).is_err(), "an event after the end");
                    return Heard { tokens, finished };
                }
            }
        }
    }
}

pub(crate) fn submit(engine: &Engine, request: Request) -> Running {
    let (sender, events) = channel();
    let sink = Box::new(move |event| drop(sender.send(event)));
    Running { ticket: engine.submit(request, sink).expect("accepted"), events }
}

pub(crate) fn generate(engine: &Engine, request: Request) -> Heard {
    submit(engine, request).finish()
}

/// Holds the engine's thread from a generation's first token until it is dropped.
pub(crate) struct Gate(#[expect(dead_code, reason = "dropping it is what opens the gate")] Sender<()>);

/// Submits a request and returns when the engine's thread is held at its first token.
pub(crate) fn submit_gated(engine: &Engine, request: Request) -> (Running, Gate) {
    let (sender, events) = channel();
    let (gate, opened) = channel::<()>();
    let (arrived, arrival) = channel();
    let sink = Box::new(move |event| {
        let _ = sender.send(event);
        let _ = arrived.send(());
        // Returns at once after the gate was dropped.
        let _ = opened.recv();
    });
    let running = Running { ticket: engine.submit(request, sink).expect("accepted"), events };
    arrival.recv_timeout(DEADLINE).expect("a first token before the deadline");
    (running, Gate(gate))
}

/// The tokens that end a turn.
fn ends(engine: &Engine) -> Vec<TokenId> {
    let tokenizer = engine.tokenizer();
    (0..tokenizer.vocabulary() as TokenId).filter(|&id| tokenizer.is_end(id)).collect()
}

#[track_caller]
fn assert_idle(engine: &Engine) {
    let stats = engine.stats();
    assert_eq!(
        (stats.requests_running, stats.requests_waiting, stats.kv_tokens_used),
        (0, 0, 0),
        "{stats:?}"
    );
}

#[test]
fn a_request_gets_the_same_text_alone_and_among_sixteen() {
    let lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 127, 128, 129, 200, 256, 300];
    let request = |n: usize| request(lengths[n], 12 + n);
    let alone = one_at_a_time();
    let want: Vec<Heard> = (0..16).map(|n| generate(&alone, request(n))).collect();
    assert!(
        want.iter().any(|w| w.ids() != want[0].ids()[..w.ids().len().min(12)]),
        "prompts make a difference"
    );

    let few = EngineConfig {
        parallel: 6,
        context_tokens: 512,
        prefill_tokens_max: 100,
        prefill_tokens_beside_decode_max: 17,
        ..EngineConfig::default()
    };
    for config in [EngineConfig { parallel: 17, ..few.clone() }, few] {
        let engine = start(config);
        let (first, gate) = submit_gated(&engine, self::request(10, 5));
        let running: Vec<Running> = (0..16).map(|n| submit(&engine, request(n))).collect();
        drop(gate);
        first.finish();
        for (n, running) in running.into_iter().enumerate() {
            let got = running.finish();
            assert_eq!((got.ids(), got.text()), (want[n].ids(), want[n].text()), "{} tokens", lengths[n]);
            assert_eq!(got.bits(), want[n].bits(), "{} tokens", lengths[n]);
            let counts =
                |heard: &Heard| (heard.finished.usage.prompt_tokens, heard.finished.usage.completion_tokens);
            assert_eq!(counts(&got), counts(&want[n]));
        }
        assert_idle(&engine);
    }
}

#[test]
fn usage_and_totals_count_what_was_computed() {
    let one = EngineConfig {
        parallel: 1,
        context_tokens: 512,
        speculation: Speculation::Off,
        ..EngineConfig::default()
    };
    let engine = start(one);
    let heard = generate(&engine, request(40, 7));
    assert_eq!(heard.tokens.len(), 7);
    assert_eq!(heard.finished.reason, FinishReason::Length);
    assert_eq!((heard.finished.usage.prompt_tokens, heard.finished.usage.completion_tokens), (40, 7));
    let stats = engine.stats();
    // The prompt's step gives the first token.
    assert_eq!((stats.prompt_tokens_total, stats.generation_tokens_total, stats.steps_total), (40, 7, 7));
}

#[test]
fn max_tokens_ends_a_generation_and_so_does_a_full_context() {
    let engine = start(EngineConfig { context_tokens: 64, ..EngineConfig::default() });
    let long = generate(&engine, Request { max_tokens: None, ..request(20, 0) });
    assert_eq!((long.finished.reason.clone(), long.tokens.len()), (FinishReason::Length, 44));
    for max_tokens in [0, 1, 2, 43, 44, 45, usize::MAX] {
        let heard = generate(&engine, request(20, max_tokens));
        assert_eq!(heard.finished.reason, FinishReason::Length);
        assert_eq!(heard.ids(), long.ids()[..max_tokens.min(44)]);
    }
    assert_eq!(generate(&engine, Request { max_tokens: None, ..request(63, 0) }).tokens.len(), 1);
}

/// Every token is as likely as any other.
fn dice(seed: Option<u64>) -> Request {
    let sampling =
        Sampling { temperature: 1e6, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
    Request { sampling, ..request(12, 24) }
}

#[test]
fn seeds_repeat_what_they_gave_whatever_else_is_running() {
    let engine = start(EngineConfig { context_tokens: 512, parallel: 4, ..EngineConfig::default() });
    let want = generate(&engine, dice(Some(3))).ids();
    let others: Vec<Running> = (0..6).map(|seed| submit(&engine, dice(Some(seed)))).collect();
    let ids: Vec<_> = others.into_iter().map(|running| running.finish().ids()).collect();
    assert_eq!(ids[3], want);
    assert!((0..6).all(|i| i == 3 || ids[i] != want), "other seeds give other tokens");
    assert_ne!(generate(&engine, dice(None)).ids(), generate(&engine, dice(None)).ids(), "seeds are drawn");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let engine = one_at_a_time();
    let whole = generate(&engine, dice(Some(1)));
    let text = whole.text();
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    assert!(chars.len() > 12, "{text:?} is long enough to be stopped");
    // Every stop string of 1 to 4 characters around the middle; they begin and end within tokens and between them.
    for length in 1..=4 {
        for start in chars.len() / 2 - 3..chars.len() / 2 + 3 {
            let stop: String = chars[start..start + length].iter().map(|c| c.1).collect();
            let stops = vec!["never said".to_owned(), stop.clone()];
            let heard = generate(&engine, Request { stop: stops, ..dice(Some(1)) });
            assert_eq!(heard.finished.reason, FinishReason::StopString(stop.clone()));
            assert_eq!(heard.text(), text[..text.find(&stop).expect("it was said")], "stopped by {stop:?}");
            assert!(heard.tokens.len() <= whole.tokens.len());
        }
    }
    let unstopped = Request { stop: vec![String::new(), "never said".to_owned()], ..dice(Some(1)) };
    assert_eq!(generate(&engine, unstopped).text(), text);
}

#[test]
fn log_probabilities_are_probabilities_and_the_likeliest_is_chosen() {
    let engine = one_at_a_time();
    let ends = ends(&engine);
    let with = |logprobs| generate(&engine, Request { logprobs, ..request(30, 8) }).tokens;
    for token in with(Some(20)) {
        let reported = token.logprob.expect("asked for");
        assert_eq!(reported.top.len(), 20);
        // The model's own probabilities are reported, so an end that is ignored is among them.
        let likeliest = reported.top.iter().find(|t| !ends.contains(&t.0));
        assert_eq!(likeliest, Some(&(token.id, reported.logprob)), "greedy takes the likeliest");
        assert!(reported.top.is_sorted_by(|a, b| a.1 >= b.1), "{:?}", reported.top);
        let sum: f64 = reported.top.iter().map(|t| f64::from(t.1).exp()).sum();
        assert!(sum > 0.0 && sum < 1.0 + 1e-5, "probabilities add up to {sum}");
    }
    assert!(with(Some(0)).iter().all(|t| t.logprob.as_ref().is_some_and(|l| l.top.is_empty())));
    assert!(with(Some(1000)).iter().all(|t| t.logprob.as_ref().is_some_and(|l| l.top.len() == 20)));
    assert!(with(None).iter().all(|t| t.logprob.is_none()));
}

#[test]
fn a_bias_bans_tokens_and_forces_them() {
    let engine = one_at_a_time();
    let biased = |bias: Vec<(TokenId, f32)>, logprobs| {
        let sampling = Sampling { logit_bias: bias, ..Sampling::greedy() };
        generate(&engine, Request { sampling, logprobs, ..request(25, 10) })
    };
    let free = biased(Vec::new(), Some(2));
    let banned = biased(free.ids().iter().map(|&id| (id, f32::NEG_INFINITY)).collect(), Some(2));
    assert!(banned.ids().iter().all(|id| !free.ids().contains(id)), "{:?} {:?}", free.ids(), banned.ids());
    let logprobs = |heard: &Heard| heard.tokens[0].logprob.clone().expect("asked for").top;
    assert_eq!(logprobs(&free), logprobs(&banned), "what is reported is the model's own");
    let forced = biased(vec![(7, 1e6)], None);
    assert_eq!(forced.ids(), [7; 10]);
}

#[test]
fn the_end_of_a_turn_ends_a_generation_unless_it_is_ignored() {
    let engine = one_at_a_time();
    let ends = ends(&engine);
    assert!(!ends.is_empty(), "the demo model can end its turn");
    let sampling = Sampling { logit_bias: ends.iter().map(|&id| (id, 1e6)).collect(), ..Sampling::greedy() };
    let ended =
        generate(&engine, Request { sampling: sampling.clone(), ignore_eos: false, ..request(9, 10) });
    assert_eq!((ended.finished.reason.clone(), ended.text().as_str()), (FinishReason::EndOfTurn, ""));
    assert_eq!((ended.tokens.len(), ended.finished.usage.completion_tokens), (0, 1));
    let ignored = generate(&engine, Request { sampling, ..request(9, 10) });
    assert_eq!((ignored.finished.reason.clone(), ignored.tokens.len()), (FinishReason::Length, 10));
    assert!(ignored.ids().iter().all(|id| !ends.contains(id)));
}

#[test]
fn dropping_a_ticket_frees_the_slot_and_its_pages() {
    // One page: a second request can only run if the first one gave it back.
    let engine = start(EngineConfig { context_tokens: 128, parallel: 1, ..EngineConfig::default() });
    for _ in 0..3 {
        let (Running { ticket, events }, gate) = submit_gated(&engine, request(100, 28));
        assert_eq!((engine.stats().requests_running, engine.stats().requests_waiting), (1, 0));
        drop(ticket);
        drop(gate);
        assert!(matches!(events.recv_timeout(DEADLINE), Ok(Event::Token(_))));
        match events.recv_timeout(DEADLINE) {
            Ok(Event::Finished(Finished { reason: FinishReason::Cancelled, usage, .. })) => {
                assert_eq!((usage.prompt_tokens, usage.completion_tokens), (100, 1));
            }
            other => panic!("cancelled before its next token, not {other:?}"),
        }
        assert_idle(&engine);
    }
    assert_eq!(generate(&engine, request(100, 28)).tokens.len(), 28);
}

#[test]
fn a_request_that_is_cancelled_while_it_waits_leaves_the_queue() {
    let engine = one_at_a_time();
    let (first, gate) = submit_gated(&engine, request(5, 3));
    let Running { ticket, events } = submit(&engine, request(6, 3));
    let last = submit(&engine, request(7, 3));
    assert_eq!((engine.stats().requests_running, engine.stats().requests_waiting), (1, 2));
    drop(ticket);
    drop(gate);
    match events.recv_timeout(DEADLINE) {
        Ok(Event::Finished(Finished { reason: FinishReason::Cancelled, usage, .. })) => {
            assert_eq!((usage.prompt_tokens, usage.completion_tokens), (6, 0));
        }
        other => panic!("cancelled, not {other:?}"),
    }
    assert_eq!((first.finish().tokens.len(), last.finish().tokens.len()), (3, 3));
    assert_idle(&engine);
}

#[test]
fn a_full_queue_refuses_and_says_how_many_wait() {
    let engine =
        start(EngineConfig { parallel: 1, waiting_max: 2, context_tokens: 64, ..EngineConfig::default() });
    let (first, gate) = submit_gated(&engine, request(5, 3));
    let waiting = [submit(&engine, request(5, 3)), submit(&engine, request(5, 3))];
    let refused = engine.submit(request(5, 3), Box::new(|_| panic!("a refused request is not heard of")));
    assert_eq!(refused.err(), Some(Refused::QueueFull { waiting: 2 }));
    drop(gate);
    assert_eq!(first.finish().tokens.len(), 3);
    for running in waiting {
        assert_eq!(running.finish().tokens.len(), 3);
    }
    assert_eq!(generate(&engine, request(5, 3)).tokens.len(), 3, "there is room again");
}

#[test]
fn what_cannot_run_is_refused() {
    let engine = start(EngineConfig { context_tokens: 64, ..EngineConfig::default() });
    let vocabulary = engine.model().vocabulary();
    let bad = |sampling| Request { sampling, ..request(5, 3) };
    let cases = [
        (Request { prompt: Vec::new(), ..request(5, 3) }, "the prompt is empty".to_owned()),
        (request(64, 3), "the prompt has 64 tokens and the context holds 64".to_owned()),
        (request(300, 3), "the prompt has 300 tokens and the context holds 64".to_owned()),
        (
            Request { prompt: vec![1, vocabulary as TokenId], ..request(5, 3) },
            format!("token id {vocabulary} is outside of the vocabulary of {vocabulary}"),
        ),
        (
            bad(Sampling { temperature: -1.0, ..Sampling::greedy() }),
            "temperature: -1 is out of range".to_owned(),
        ),
        (bad(Sampling { top_p: f32::NAN, ..Sampling::greedy() }), "top_p: NaN is out of range".to_owned()),
    ];
    for (request, said) in cases {
        let refused = engine.submit(request, Box::new(|_| panic!("a refused request is not heard of")));
        assert_eq!(refused.expect_err("refused").to_string(), said);
    }
    assert_eq!(generate(&engine, request(63, 3)).tokens.len(), 1, "the longest prompt that fits");
}

#[test]
fn shutting_down_cancels_who_runs_and_who_waits() {
    let engine = one_at_a_time();
    let (first, gate) = submit_gated(&engine, request(5, 100));
    let waiting = [submit(&engine, request(6, 3)), submit(&engine, request(7, 3))];
    engine.shut_down();
    let late = engine.submit(request(5, 3), Box::new(|_| panic!("a refused request is not heard of")));
    assert_eq!(late.err(), Some(Refused::ShuttingDown));
    drop(gate);
    let first = first.finish();
    assert_eq!((first.finished.reason, first.tokens.len()), (FinishReason::Cancelled, 1));
    for running in waiting {
        let heard = running.finish();
        assert_eq!((heard.finished.reason, heard.tokens.len()), (FinishReason::Cancelled, 0));
    }
    assert_idle(&engine);
}

#[test]
fn dropping_an_engine_ends_what_it_was_asked() {
    let engine = one_at_a_time();
    let running: Vec<_> = (0..5).map(|n| submit(&engine, request(n + 1, 400))).collect();
    drop(engine);
    for running in running {
        assert_eq!(running.finish().finished.reason, FinishReason::Cancelled);
    }
}

#[test]
fn one_slot_serves_requests_in_the_order_in_which_they_came() {
    let engine = one_at_a_time();
    let (sender, ends) = channel();
    let (first, gate) = submit_gated(&engine, request(5, 2));
    let tickets: Vec<Ticket> = (0..40)
        .map(|n| {
            let sender = sender.clone();
            let sink = Box::new(move |event| {
                if let Event::Finished(finished) = event {
                    let _ = sender.send((n, finished.reason));
                }
            });
            // The later ones are shorter and would be done first, could they pass.
            engine.submit(request(60 - n, 1 + n % 3), sink).expect("accepted")
        })
        .collect();
    drop(gate);
    first.finish();
    for n in 0..40 {
        assert_eq!(ends.recv_timeout(DEADLINE), Ok((n, FinishReason::Length)));
    }
    drop(tickets);
    assert_idle(&engine);
}
