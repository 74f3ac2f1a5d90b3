//! The generations that one request asked for, from submission to the last event.
//!
//! Dropping a [`Generation`] cancels what is left of it: so a client that leaves, whose response is dropped, frees
//! its slots within one step of the engine.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use engine::request::{Event, FinishReason, Finished, Request, Ticket, TokenId};
use tokio::sync::mpsc;

use crate::backend::Backend;
use crate::error::ApiError;
use crate::metrics::{Meter, Metrics};
use crate::options::Options;
use crate::server::Server;

/// What to generate: `options.choices` answers for every prompt.
pub(crate) struct Plan {
    pub(crate) options: Options,
    pub(crate) logprobs: Option<usize>,
    pub(crate) prompts: Vec<Vec<TokenId>>,
    /// The field that the prompts came from.
    pub(crate) prompt_field: &'static str,
}

impl Plan {
    fn choices(&self) -> usize {
        self.prompts.len() * self.options.choices
    }

    /// The engine's request for a choice. Choices of one prompt differ by their seeds.
    fn request(&self, choice: usize) -> Request {
        let options = &self.options;
        let mut sampling = options.sampling.clone();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add((choice % options.choices) as u64));
        Request {
            prompt: self.prompts[choice / options.choices].clone(),
            max_tokens: options.max_tokens,
            sampling,
            stop: options.stop.clone(),
            logprobs: self.logprobs,
            ignore_eos: options.ignore_eos,
            adapters: options.adapters.clone(),
        }
    }
}

pub(crate) struct Generation {
    /// Dropped with the generation, which cancels it.
    tickets: Vec<Ticket>,
    /// Holds at most the events of the choices' contexts: the engine does not wait for the reader.
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    unfinished: usize,
    metrics: Arc<Metrics>,
    /// Resolves when the server cuts what is left.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Generation {
    /// Submits all choices, or none: a refused one takes those before it along.
    pub(crate) fn start(
        server: &Server,
        backend: &dyn Backend,
        plan: &Plan,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let config = server.config();
        let waiting = backend.stats().requests_waiting;
        if waiting >= config.waiting_max {
            return Err(ApiError::queue_full(waiting, config.retry_after));
        }
        let (sender, events) = mpsc::unbounded_channel();
        let mut tickets = Vec::with_capacity(plan.choices());
        for choice in 0..plan.choices() {
            let sender = sender.clone();
            let mut meter = Meter::new(Arc::clone(server.metrics()), arrived);
            let sink = move |event: Event| {
                meter.observe(&event);
                // A reader that left has cancelled; nobody misses the event.
                let _ = sender.send((choice, event));
            };
            let ticket = backend.submit(plan.request(choice), Box::new(sink));
            tickets.push(
                ticket
                    .map_err(|refused| ApiError::refused(refused, plan.prompt_field, config.retry_after))?,
            );
        }
        let metrics = Arc::clone(server.metrics());
        Ok(Self { unfinished: tickets.len(), tickets, events, metrics, cut: Some(server.cut()) })
    }

    /// The next event of any choice; `None` when all have finished. A choice that failed is an error.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(usize, Event), ApiError>>> {
        if self.unfinished == 0 {
            return Poll::Ready(None);
        }
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(cx).is_ready()) {
            self.cut = None;
            self.tickets.iter().for_each(Ticket::cancel);
        }
        self.events.poll_recv(cx).map(|received| match received {
            // All sinks are gone without having said so.
            None => {
                self.metrics.abandoned(self.unfinished);
                Some(Err(ApiError::failed("the engine stopped")))
            }
            Some((_, Event::Finished(Finished { reason: FinishReason::Failed(message), .. }))) => {
                Some(Err(ApiError::failed(message)))
            }
            Some((choice, event)) => {
                self.unfinished -= usize::from(matches!(event, Event::Finished(_)));
                Some(Ok((choice, event)))
            }
        })
    }

    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// OpenAI's word for an ending. What the server cut short, at the end of its drain, is as incomplete as what
/// reached its limit, and clients know to handle that.
pub(crate) fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfTurn | FinishReason::StopString(_) => "stop",
        FinishReason::Length | FinishReason::Cancelled | FinishReason::Failed(_) => "length",
    }
}
