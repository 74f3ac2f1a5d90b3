//! LoRA adapters: `GET` and `POST /lora-adapters`, the field `lora`, and models that are one with an adapter.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use engine::AdapterScale;
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, LoadedAdapter};
use crate::config::Limits;
use crate::error::{ApiError, json};
use crate::json::{Fields, read_list};
use crate::options::Options;
use crate::server::Server;

/// An adapter as llama-server names it.
#[derive(Deserialize)]
#[serde(expecting = "an object with 'id' and 'scale'")]
pub(crate) struct Wanted {
    /// A whole number.
    id: f64,
    scale: f32,
}

#[derive(Serialize)]
struct Listed<'a> {
    id: usize,
    name: &'a str,
    path: &'a str,
    scale: f32,
}

#[derive(Serialize)]
struct Success {
    success: bool,
}

pub(crate) async fn list(State(server): State<Server>) -> Result<Response, ApiError> {
    let adapters = server.backend()?.adapters();
    let listed = |(id, adapter)| {
        let LoadedAdapter { name, path, scale }: &LoadedAdapter = adapter;
        Listed { id, name, path, scale: *scale }
    };
    Ok(json(&adapters.iter().enumerate().map(listed).collect::<Vec<_>>()).into_response())
}

/// Sets what requests get that name no adapters. Those that are not listed are out of use.
pub(crate) async fn set(State(server): State<Server>, request: Request<Body>) -> Result<Response, ApiError> {
    let body = server.read_json(request).await?;
    let wanted = scales(read_list(&body, server.config().limits.adapters_max)?)?;
    let refused = |refused| ApiError::refused(refused, "prompt", server.config().retry_after);
    server.backend()?.set_adapters(&wanted).map_err(refused)?;
    Ok(json(&Success { success: true }).into_response())
}

/// The field `lora`.
pub(crate) fn read(fields: &Fields<'_>, limits: &Limits) -> Result<Option<Vec<AdapterScale>>, ApiError> {
    fields.list("lora", limits.adapters_max)?.map(scales).transpose()
}

fn scales(wanted: Vec<Wanted>) -> Result<Vec<AdapterScale>, ApiError> {
    let scale = |Wanted { id, scale }| match id as usize {
        whole if whole as f64 == id => Ok(AdapterScale { id: whole, scale }),
        _ => Err(ApiError::field("lora", format!("has the id {id}, which is not a number of an adapter"))),
    };
    wanted.into_iter().map(scale).collect()
}

/// Checks that the model asked for is served. Where it is one with an adapter, the request gets that one whole, unless it
/// says itself what it wants.
pub(crate) fn choose(backend: &dyn Backend, options: &mut Options) -> Result<(), ApiError> {
    let card = backend.card();
    if card.answers_to(&options.model) {
        return Ok(());
    }
    let adapters = backend.adapters();
    let id = place(backend, &adapters, &options.model)
        .ok_or_else(|| ApiError::model_not_found(&options.model, &card.id))?;
    options.adapters.get_or_insert_with(|| vec![AdapterScale { id, scale: 1.0 }]);
    Ok(())
}

/// The adapter that a model's name is of: its own, or the model's and its own with a colon between.
pub(crate) fn place(backend: &dyn Backend, adapters: &[LoadedAdapter], model: &str) -> Option<usize> {
    let named = |name: &str| adapters.iter().position(|adapter| adapter.name == name);
    named(model).or_else(|| {
        let (base, name) = model.rsplit_once(':')?;
        named(name).filter(|_| backend.card().answers_to(base))
    })
}
