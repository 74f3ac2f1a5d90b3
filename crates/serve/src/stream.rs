//! A generation as a stream of server-sent events.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engine::request::{Event, Finished, Token};
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use wire::sse;

use crate::error::ApiError;
use crate::generation::Generation;

/// How events are put for the client. Implementations append whole events to `out`.
pub(crate) trait Framing: Send + Unpin + 'static {
    fn token(&mut self, choice: usize, token: &Token, out: &mut Vec<u8>);
    fn finished(&mut self, choice: usize, finished: &Finished, out: &mut Vec<u8>);
    /// All choices have finished.
    fn end(&mut self, out: &mut Vec<u8>);
}

/// Events that are ready together are sent together, up to about this size.
const FRAME_BYTES: usize = 16 * 1024;

/// A response that tells `generation` as it goes, in the words of `framing`.
pub(crate) fn response(generation: Generation, framing: impl Framing, keep_alive: Duration) -> Response {
    let timer = Box::pin(tokio::time::sleep(keep_alive));
    let body = Stream { generation: Some(generation), framing, keep_alive, timer };
    let headers = [
        (CONTENT_TYPE, sse::CONTENT_TYPE),
        (CACHE_CONTROL, "no-cache"),
        // Tells nginx not to collect events.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::new(body)).into_response()
}

struct Stream<F> {
    /// `None` once everything has been said.
    generation: Option<Generation>,
    framing: F,
    keep_alive: Duration,
    timer: Pin<Box<Sleep>>,
}

impl<F: Framing> Stream<F> {
    /// Appends what can be said now.
    fn collect(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) {
        while out.len() < FRAME_BYTES
            && let Some(generation) = &mut self.generation
            && let Poll::Ready(next) = generation.poll_next(cx)
        {
            match next {
                Some(Ok((choice, Event::Token(token)))) => self.framing.token(choice, &token, out),
                Some(Ok((choice, Event::Finished(finished)))) => {
                    self.framing.finished(choice, &finished, out);
                }
                Some(Err(error)) => self.fail(&error, out),
                None => {
                    self.framing.end(out);
                    self.end(out);
                }
            }
        }
    }

    /// The status has been sent long ago, so an error is an event.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        write(out, &error.body());
        self.end(out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        sse::write_done(out);
        self.generation = None;
    }
}

impl<F: Framing> HttpBody for Stream<F> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn is_end_stream(&self) -> bool {
        self.generation.is_none()
    }

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let mut out = Vec::new();
        this.collect(cx, &mut out);
        if out.is_empty() && this.generation.is_none() {
            return Poll::Ready(None);
        }
        if out.is_empty() && this.timer.as_mut().poll(cx).is_ready() {
            // Writing to memory cannot fail.
            let _ = sse::write_comment(&mut out, "still working");
        }
        if out.is_empty() {
            return Poll::Pending;
        }
        this.timer.as_mut().reset(Instant::now() + this.keep_alive);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }
}

/// Appends an event. Our events are structs with string keys, which always have a JSON form.
pub(crate) fn write(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    let _ = sse::write_json(out, value);
}
