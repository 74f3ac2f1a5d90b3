//! `GET /v1/models` and `/v1/models/{id}`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use engine::model::Purpose;
use serde::Serialize;

use crate::adapters;
use crate::backend::Card;
use crate::error::{ApiError, json};
use crate::server::Server;

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    aliases: &'a [String],
    /// The model without the adapter, of one with an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    meta: Meta<'a>,
}

/// llama-server's names, and what else is worth knowing.
#[derive(Serialize)]
struct Meta<'a> {
    n_ctx: usize,
    n_ctx_train: usize,
    n_vocab: usize,
    n_params: u64,
    size: u64,
    quantization: &'a str,
    /// Whether it generates text, embeds it or scores it.
    purpose: &'static str,
    /// Elements of an embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    n_embd: Option<usize>,
}

impl<'a> Model<'a> {
    fn new(card: &'a Card) -> Self {
        Self {
            id: &card.id,
            object: "model",
            created: card.created,
            owned_by: "dunlin",
            aliases: &card.aliases,
            parent: None,
            meta: Meta {
                n_ctx: card.context_tokens,
                n_ctx_train: card.context_tokens_trained,
                n_vocab: card.vocabulary,
                n_params: card.parameters,
                size: card.file_bytes,
                quantization: &card.quantization,
                purpose: match card.purpose {
                    Purpose::Generates => "generation",
                    Purpose::Embeds => "embedding",
                    Purpose::Scores => "rerank",
                },
                n_embd: card.embedding_len,
            },
        }
    }

    /// The model with an adapter of that name.
    fn adapted(card: &'a Card, name: &'a str) -> Self {
        Self { id: name, aliases: &[], parent: Some(&card.id), ..Self::new(card) }
    }
}

pub(crate) async fn list(State(server): State<Server>) -> Result<Response, ApiError> {
    let backend = server.backend()?;
    let (card, adapters) = (backend.card(), backend.adapters());
    let adapted = adapters.iter().map(|adapter| Model::adapted(card, &adapter.name));
    let data = std::iter::once(Model::new(card)).chain(adapted).collect();
    Ok(json(&List { object: "list", data }).into_response())
}

/// Ids may contain slashes, so the route takes the rest of the path.
pub(crate) async fn get(State(server): State<Server>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let backend = server.backend()?;
    let card = backend.card();
    if card.answers_to(&id) && !id.is_empty() {
        return Ok(json(&Model::new(card)).into_response());
    }
    let adapters = backend.adapters();
    match adapters::place(&*backend, &adapters, &id) {
        Some(place) => Ok(json(&Model::adapted(card, &adapters[place].name)).into_response()),
        None => Err(ApiError::model_not_found(&id, &card.id)),
    }
}
