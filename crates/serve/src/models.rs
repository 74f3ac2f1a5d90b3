//! `GET /v1/models` and `/v1/models/{id}`.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use engine::model::Purpose;
use serde::Serialize;

use crate::backend::Card;
use crate::error::{ApiError, json};
use crate::server::Server;

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    aliases: &'a [String],
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
}

pub(crate) async fn list(State(server): State<Server>) -> Result<Response, ApiError> {
    let backend = server.backend()?;
    Ok(json(&List { object: "list", data: [Model::new(backend.card())] }).into_response())
}

/// Ids may contain slashes, so the route takes the rest of the path.
pub(crate) async fn get(State(server): State<Server>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let backend = server.backend()?;
    let card = backend.card();
    if !card.answers_to(&id) || id.is_empty() {
        return Err(ApiError::model_not_found(&id, &card.id));
    }
    Ok(json(&Model::new(card)).into_response())
}
