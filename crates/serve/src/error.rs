//! Everything a client can hear instead of an answer, in OpenAI's shape.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use engine::model::Purpose;
use engine::request::Refused;
use serde::Serialize;
use wire::body::BodyError;

/// An error as the client sees it: `{"error":{"message","type","param","code"}}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    /// What went wrong and, where something can be done, what to do.
    pub message: String,
    pub kind: &'static str,
    /// The field at fault, such as `messages[0].content`.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    pub retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None, retry_after: None }
    }

    /// 400: the request cannot be understood or honoured.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400 because of one field, which the message names too.
    pub fn field(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let param = param.into();
        Self { code: Some("invalid_value"), ..Self::invalid(format!("'{param}' {problem}")) }.at(param)
    }

    /// 400 because a field asks for what this server does not do; better than an answer that ignores it.
    pub fn unsupported(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, problem) }
    }

    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("the model '{asked}' is not served here; '{served}' is");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { code: Some("model_not_found"), ..error }.at("model")
    }

    pub fn no_such_route(method: &str, path: &str) -> Self {
        let message = format!("there is nothing at {method} {path}");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { code: Some("unknown_url"), ..error }
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer to {method}");
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message);
        Self { code: Some("method_not_allowed"), ..error }
    }

    pub fn wrong_content_type(found: &str) -> Self {
        let message =
            format!("the content type '{found}' is not understood; send 'Content-Type: application/json'");
        let error = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message);
        Self { code: Some("unsupported_media_type"), ..error }
    }

    pub fn origin_not_allowed(origin: &str) -> Self {
        let message =
            format!("pages from '{origin}' may not use this server; its configuration can allow them");
        let error = Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message);
        Self { code: Some("origin_not_allowed"), ..error }
    }

    /// 403 because of the name that the request reached the server by.
    pub fn host_not_allowed(host: &str) -> Self {
        let message = format!(
            "this server does not answer to the name '{host}'; start it with '--allowed-host {host}' if it should"
        );
        let error = Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message);
        Self { code: Some("host_not_allowed"), ..error }
    }

    pub fn context_exceeded(prompt_tokens: usize, context_tokens: usize, param: &str) -> Self {
        let message = format!(
            "the prompt has {prompt_tokens} tokens and the context holds {context_tokens}; shorten it"
        );
        Self { code: Some("context_length_exceeded"), ..Self::invalid(message) }.at(param)
    }

    /// 503: not now, but soon or elsewhere.
    pub fn unavailable(
        code: &'static str,
        message: impl Into<String>,
        retry_after: Option<Duration>,
    ) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message);
        Self { code: Some(code), retry_after, ..error }
    }

    pub fn queue_full(waiting: usize, retry_after: Duration) -> Self {
        let message = format!("{waiting} requests are waiting already; try again later");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some("queue_full"), retry_after: Some(retry_after), ..error }
    }

    /// 500: the engine could not go on.
    pub fn failed(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message);
        Self { code: Some("generation_failed"), ..error }
    }

    /// The engine's refusal; `prompt` names the field that the prompt came from.
    pub fn refused(refused: Refused, prompt: &str, retry_after: Duration) -> Self {
        match refused {
            Refused::EmptyPrompt => Self::field(prompt, "has no tokens"),
            Refused::PromptTooLong { prompt_tokens, context_tokens } => {
                Self::context_exceeded(prompt_tokens, context_tokens, prompt)
            }
            Refused::UnknownToken { id, vocabulary } => {
                Self::field(prompt, format!("has the token {id}, but the vocabulary ends at {vocabulary}"))
            }
            Refused::InvalidSampling { field, reason } => Self::field(field, reason),
            Refused::UnknownAdapter { id, adapters } => {
                let problem = format!("names the adapter {id}, and {adapters} are loaded, counted from 0");
                Self::field("lora", problem)
            }
            Refused::InvalidAdapter { id, reason } => {
                Self::field("lora", format!("names the adapter {id}, which {reason}"))
            }
            Refused::OtherPurpose(purpose) => Self::other_purpose(purpose),
            Refused::QueueFull { waiting } => Self::queue_full(waiting, retry_after),
            Refused::ShuttingDown => Self::draining(),
        }
    }

    /// 400: the model is one for other requests, which the message names.
    pub fn other_purpose(purpose: Purpose) -> Self {
        let route = match purpose {
            Purpose::Generates => "/v1/chat/completions or /v1/completions",
            Purpose::Embeds => "/v1/embeddings",
            Purpose::Scores => "/v1/rerank",
        };
        let message = format!("the model that is served here {purpose}; ask at {route}");
        Self { code: Some("unsupported_by_model"), ..Self::invalid(message) }
    }

    pub fn draining() -> Self {
        Self::unavailable("draining", "the server is shutting down", None)
    }

    fn at(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The error as an object for the body of a response or an event of a stream.
    pub fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorObject {
                message: &self.message,
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let (status, code) = match &error {
            BodyError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            BodyError::TooSlow { .. } => (StatusCode::REQUEST_TIMEOUT, "body_too_slow"),
            BodyError::Broken(_) => (StatusCode::BAD_REQUEST, "body_broken"),
        };
        Self { code: Some(code), ..Self::new(status, "invalid_request_error", error.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&self.body())).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The access log and the metrics name refusals by their code.
        let code = self.code.unwrap_or("invalid_request");
        response.extensions_mut().insert(Refusal { code, counts: true });
        response
    }
}

/// Left in a response that is an error, for who logs and counts them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    /// Whether a client was refused something. An answer about health refuses nothing.
    pub(crate) counts: bool,
}

/// A JSON body with its content type.
pub(crate) fn json(value: &impl Serialize) -> ([(HeaderName, HeaderValue); 1], Vec<u8>) {
    // Our answers are structs and maps with string keys, which always have a JSON form.
    let body = serde_json::to_vec(value).unwrap_or_default();
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body)
}
