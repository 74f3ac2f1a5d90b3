//! `GET /health` and `/metrics`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::{ErrorBody, Refusal, json};
use crate::metrics;
use crate::server::{Health, Server};

#[derive(Serialize)]
struct Status<'a> {
    status: &'static str,
    /// How much of the loading is done, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f64>,
    /// For clients that look for llama-server's error while the model is loading.
    #[serde(flatten)]
    error: Option<ErrorBody<'a>>,
}

/// 200 when requests would be answered; 503 with the reason otherwise.
pub(crate) async fn health(State(server): State<Server>) -> Response {
    let (status, name) = match server.health() {
        Health::Ready => (StatusCode::OK, "ok"),
        Health::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Health::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Health::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
    };
    let error = server.unavailable();
    let mut response = error.clone().map_or_else(|| status.into_response(), IntoResponse::into_response);
    let (headers, body) = json(&Status {
        status: name,
        progress: server.progress(),
        error: error.as_ref().map(|error| error.body()),
    });
    *response.body_mut() = body.into();
    if let Some(refusal) = response.extensions_mut().get_mut::<Refusal>() {
        refusal.counts = false;
    }
    response.headers_mut().extend(headers.map(|(name, value)| (Some(name), value)));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Prometheus' page.
pub(crate) async fn metrics(State(server): State<Server>) -> Response {
    let backend = server.loaded();
    let page = server.metrics().page(backend.as_ref().map(|backend| (backend.card(), backend.stats())));
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response()
}
