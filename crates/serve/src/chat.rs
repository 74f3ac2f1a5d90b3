//! `POST /v1/chat/completions`.

mod answer;
mod messages;
mod request;

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use engine::model::Purpose;
use engine::request::TokenId;

use crate::adapters;
use crate::answer::collect;
use crate::backend::{Backend, Chat, encode_rendered};
use crate::error::{ApiError, json};
use crate::generation::{Generation, Plan};
use crate::server::Server;
use crate::stream;
pub use request::ChatRequest;

pub(crate) async fn create(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = server.read_json(request).await?;
    let backend = server.backend_for(Purpose::Generates)?;
    let limits = server.config().limits.clone();
    let (plan, backend) = server
        .compute(body.len(), move || Ok((plan(&*backend, ChatRequest::read(&body, &limits)?)?, backend)))
        .await?;
    let generation = Generation::start(&server, &*backend, &plan, arrived)?;
    let head = answer::head(&server, &*backend, plan.options.stream);
    if plan.options.stream {
        let framing = answer::Chunks::new(head, &plan, backend);
        return Ok(stream::response(generation, framing, server.config().keep_alive_interval));
    }
    let choices = collect(generation, plan.options.choices).await?;
    Ok(json(&answer::completion(head, &choices, plan.logprobs.is_some(), &*backend)).into_response())
}

fn plan(backend: &dyn Backend, request: ChatRequest) -> Result<Plan, ApiError> {
    let mut options = request.options;
    adapters::choose(backend, &mut options)?;
    let prompts = vec![prompt(backend, &request.chat)?];
    Ok(Plan { options, logprobs: request.logprobs, prompts, prompt_field: "messages" })
}

pub(crate) fn server_has(backend: &dyn Backend, model: &str) -> Result<(), ApiError> {
    let card = backend.card();
    if card.answers_to(model) { Ok(()) } else { Err(ApiError::model_not_found(model, &card.id)) }
}

/// A conversation's text by the model's template.
pub(crate) fn render(backend: &dyn Backend, chat: &Chat) -> Result<String, ApiError> {
    backend.render(chat).map_err(|error| ApiError {
        code: Some("template_error"),
        ..ApiError::field("messages", format!("cannot be put into the model's template: {error}"))
    })
}

/// The tokens of a conversation.
fn prompt(backend: &dyn Backend, chat: &Chat) -> Result<Vec<TokenId>, ApiError> {
    Ok(encode_rendered(backend, &render(backend, chat)?))
}
