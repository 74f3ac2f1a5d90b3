//! Server-sent events, written and parsed (HTML Living Standard, section 9.2).
//!
//! The parser keeps no more than the limit it is given, and knows nothing of what the data means.

use std::io::{self, Write};

use serde::Serialize;

/// The content type of an event stream.
pub const CONTENT_TYPE: &str = "text/event-stream";

/// The data by which OpenAI-compatible streams end.
pub const DONE: &str = "[DONE]";

/// Appends an event whose data is `value` as JSON on one line.
pub fn write_json(out: &mut Vec<u8>, value: &impl Serialize) -> Result<(), serde_json::Error> {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        out.truncate(start);
        return Err(error);
    }
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// Appends the event that ends an OpenAI-compatible stream.
pub fn write_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Appends a comment, which keeps proxies and clients from giving up while nothing is said.
/// Line breaks in `text` become spaces: they would end the comment.
pub fn write_comment(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    write!(out, ": {}\n\n", text.replace(['\r', '\n'], " "))
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The event's type; `None` where the stream named none ("message").
    pub name: Option<String>,
    pub data: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("an event is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("an event is not valid UTF-8")]
    NotUtf8,
}

/// Turns a stream of bytes, cut anywhere, into events.
#[derive(Debug)]
pub struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    after_carriage_return: bool,
    event_bytes_max: usize,
}

impl Parser {
    /// A parser that refuses events longer than `event_bytes_max`.
    pub fn new(event_bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            event: Event::default(),
            has_data: false,
            after_carriage_return: false,
            event_bytes_max,
        }
    }

    /// Takes more bytes and appends the events that they complete.
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), ParseError> {
        for &byte in bytes {
            let second_of_pair = byte == b'\n' && self.after_carriage_return;
            self.after_carriage_return = byte == b'\r';
            match byte {
                _ if second_of_pair => {}
                b'\r' | b'\n' => self.end_line(events)?,
                _ if self.line.len() + self.event.data.len() >= self.event_bytes_max => {
                    return Err(ParseError::TooLong { limit: self.event_bytes_max });
                }
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), ParseError> {
        let line = std::mem::take(&mut self.line);
        let line = str::from_utf8(&line).map_err(|_| ParseError::NotUtf8)?;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "event" => self.event.name = Some(value.to_owned()),
            // `id` and `retry` are for reconnecting, which a generation cannot; an empty field is a comment.
            _ => {}
        }
        Ok(())
    }
}
