//! `POST /tokenize`, `/detokenize` and `/apply-template`, in llama-server's shapes.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use engine::request::TokenId;
use serde::Serialize;

use crate::backend::{Backend, EncodeOptions};
use crate::chat;
use crate::error::{ApiError, json};
use crate::json::Fields;
use crate::server::Server;

#[derive(Serialize)]
struct Tokens<T> {
    tokens: Vec<T>,
}

#[derive(Serialize)]
struct TokenPiece {
    id: TokenId,
    piece: Piece,
}

/// A token's text, or its bytes where they are no text by themselves.
#[derive(Serialize)]
#[serde(untagged)]
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

#[derive(Serialize)]
struct Content {
    content: String,
}

#[derive(Serialize)]
struct Prompt {
    prompt: String,
}

/// `{content, add_special = false, parse_special = true, with_pieces = false}` to `{tokens}`.
pub(crate) async fn tokenize(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = server.read_json(request).await?;
    let backend = server.backend()?;
    server
        .compute(body.len(), move || {
            let fields = Fields::read(&body, &[&["content", "add_special", "parse_special", "with_pieces"]])?;
            let content =
                fields.string("content")?.ok_or_else(|| ApiError::field("content", "is missing"))?;
            let options = EncodeOptions {
                add_special: fields.boolean("add_special")?.unwrap_or(false),
                parse_special: fields.boolean("parse_special")?.unwrap_or(true),
            };
            let tokens = backend.encode(&content, options);
            Ok(match fields.boolean("with_pieces")?.unwrap_or(false) {
                true => {
                    let pieces = tokens.iter().map(|id| TokenPiece { id: *id, piece: piece(&*backend, *id) });
                    json(&Tokens { tokens: pieces.collect() }).into_response()
                }
                false => json(&Tokens { tokens }).into_response(),
            })
        })
        .await
}

fn piece(backend: &dyn Backend, token: TokenId) -> Piece {
    let bytes = backend.token_bytes(token).unwrap_or_default().to_vec();
    match String::from_utf8(bytes) {
        Ok(text) => Piece::Text(text),
        Err(error) => Piece::Bytes(error.into_bytes()),
    }
}

/// `{tokens}` to `{content}`.
pub(crate) async fn detokenize(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = server.read_json(request).await?;
    let backend = server.backend()?;
    let tokens_max = server.config().limits.tokens_max;
    server
        .compute(body.len(), move || {
            let fields = Fields::read(&body, &[&["tokens"]])?;
            let tokens: Option<Vec<TokenId>> = fields.list("tokens", tokens_max)?;
            let tokens = tokens.ok_or_else(|| ApiError::field("tokens", "is missing"))?;
            check(&*backend, "tokens", &tokens)?;
            Ok(json(&Content { content: backend.decode(&tokens) }).into_response())
        })
        .await
}

/// A chat request's body to `{prompt}`: what the model would be given.
pub(crate) async fn apply_template(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = server.read_json(request).await?;
    let backend = server.backend()?;
    let limits = server.config().limits.clone();
    server
        .compute(body.len(), move || {
            let request = chat::ChatRequest::read(&body, &limits)?;
            Ok(json(&Prompt { prompt: chat::render(&*backend, &request.chat)? }).into_response())
        })
        .await
}

/// Refuses tokens that the vocabulary does not have.
pub(crate) fn check(backend: &dyn Backend, param: &str, tokens: &[TokenId]) -> Result<(), ApiError> {
    match tokens.iter().find(|token| backend.token_bytes(**token).is_none()) {
        None => Ok(()),
        Some(token) => Err(ApiError::field(param, format!("has {token}, which is no token of the model"))),
    }
}
