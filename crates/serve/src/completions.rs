//! `POST /v1/completions`.

mod answer;
mod request;

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use engine::model::Purpose;

use crate::adapters;
use crate::answer::collect;
use crate::backend::{Backend, EncodeOptions};
use crate::error::{ApiError, json};
use crate::generation::{Generation, Plan};
use crate::server::Server;
use crate::stream;
pub(crate) use request::prompts;
pub use request::{CompletionRequest, Prompt};

pub(crate) async fn create(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = server.read_json(request).await?;
    let backend = server.backend_for(Purpose::Generates)?;
    let limits = server.config().limits.clone();
    let (plan, echoes, backend) = server
        .compute(body.len(), move || {
            let (plan, echoes) = plan(&*backend, CompletionRequest::read(&body, &limits)?)?;
            Ok((plan, echoes, backend))
        })
        .await?;
    let generation = Generation::start(&server, &*backend, &plan, arrived)?;
    let head = answer::head(&server, &*backend);
    if plan.options.stream {
        let framing = answer::Chunks::new(head, &plan, echoes, backend);
        return Ok(stream::response(generation, framing, server.config().keep_alive_interval));
    }
    let choices = collect(generation, plan.prompts.len() * plan.options.choices).await?;
    Ok(json(&answer::completion(head, &plan, &echoes, &choices, &*backend)).into_response())
}

/// What to generate, and for each choice the text that its answer begins with.
fn plan(backend: &dyn Backend, request: CompletionRequest) -> Result<(Plan, Vec<String>), ApiError> {
    let mut options = request.options;
    adapters::choose(backend, &mut options)?;
    let (mut prompts, mut echoes) = (Vec::new(), Vec::new());
    for prompt in request.prompts {
        let echo = if request.echo { text_of(backend, &prompt)? } else { String::new() };
        echoes.extend(std::iter::repeat_n(echo, options.choices));
        prompts.push(match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => {
                backend.encode(&text, EncodeOptions { add_special: true, parse_special: true })
            }
        });
    }
    Ok((Plan { options, logprobs: request.logprobs, prompts, prompt_field: "prompt" }, echoes))
}

fn text_of(backend: &dyn Backend, prompt: &Prompt) -> Result<String, ApiError> {
    match prompt {
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(tokens) => {
            crate::tokens::check(backend, "prompt", tokens)?;
            Ok(backend.decode(tokens))
        }
    }
}
