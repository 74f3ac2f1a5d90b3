//! A line on standard error for every answer.

use crate::talk;
use clap::ValueEnum;
use engine::template::CivilTime;
use serde::Serialize;
use serve::Access;
use serve::config::OnAccess;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// No lines
    Off,
    /// For people
    Text,
    /// One JSON object a line, for programs
    Json,
}

/// Asked every few seconds by those who watch; only failures are worth a line.
const PROBES: [&str; 3] = ["/health", "/v1/health", "/metrics"];

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    method: &'a str,
    path: &'a str,
    status: u16,
    code: Option<&'static str>,
    body_bytes: u64,
    duration_ms: f64,
    complete: bool,
}

/// What hears of every answer; `None` where nothing is to be logged.
pub(super) fn writer(format: LogFormat) -> Option<OnAccess> {
    let line_of: fn(&Line<'_>) -> String = match format {
        LogFormat::Off => return None,
        LogFormat::Text => text,
        LogFormat::Json => |line| serde_json::to_string(line).unwrap_or_default(),
    };
    Some(Arc::new(move |access: &Access| {
        if access.status.is_success() && PROBES.contains(&access.path.as_str()) {
            return;
        }
        let line = Line {
            time: &now(),
            method: access.method.as_str(),
            path: &access.path,
            status: access.status.as_u16(),
            code: access.code,
            body_bytes: access.body_bytes,
            duration_ms: (access.duration.as_secs_f64() * 1e5).round() / 100.0,
            complete: access.complete,
        };
        talk::say(line_of(&line));
    }))
}

fn text(line: &Line<'_>) -> String {
    let Line { time, method, path, status, body_bytes, duration_ms, .. } = line;
    let code = line.code.map(|code| format!(" {code}")).unwrap_or_default();
    let left = if line.complete { "" } else { " (the client left)" };
    format!("{time} {status}{code} {method} {path} {body_bytes} bytes in {duration_ms} ms{left}")
}

/// UTC, as RFC 3339 has it.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let CivilTime { year, month, day, hour, minute, second } = CivilTime::from_unix(seconds as i64);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
