//! `POST /v1/embeddings`.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::model::{Purpose, Text};
use engine::normalize;
use serde::{Serialize, Serializer};

use crate::backend::{Backend, EncodeOptions};
use crate::chat::server_has;
use crate::completions::{Prompt, prompts};
use crate::config::Limits;
use crate::encoding::encode;
use crate::error::{ApiError, json};
use crate::json::Fields;
use crate::server::Server;

const FIELDS: &[&str] = &["input", "model", "encoding_format", "dimensions"];

#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingRequest {
    pub input: Vec<Prompt>,
    pub model: String,
    as_base64: bool,
    /// Elements that are kept of each vector.
    pub dimensions: Option<usize>,
}

impl EmbeddingRequest {
    /// Reads and checks a body. What a model cannot be asked is refused here, before any model is.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields::read(body, &[FIELDS])?;
        Ok(Self {
            input: prompts(&fields, "input", limits.texts_max, limits)?,
            model: fields.string("model")?.unwrap_or_default(),
            as_base64: match fields.string("encoding_format")?.as_deref() {
                None | Some("float") => false,
                Some("base64") => true,
                Some(_) => return Err(ApiError::field("encoding_format", "must be 'float' or 'base64'")),
            },
            dimensions: fields.integer("dimensions", 1..=i64::MAX)?.map(|n| n as usize),
        })
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Embedding,
}

enum Embedding {
    Floats(Vec<f32>),
    /// As little-endian 32-bit floats.
    Base64(Vec<f32>),
}

impl Serialize for Embedding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Floats(vector) => vector.serialize(serializer),
            Self::Base64(vector) => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                serializer.serialize_str(&STANDARD.encode(bytes))
            }
        }
    }
}

/// Of what was asked; nothing is generated.
#[derive(Serialize)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    pub(crate) fn of(tokens: usize) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

pub(crate) async fn create(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = server.read_json(request).await?;
    let backend = server.backend_for(Purpose::Embeds)?;
    let limits = server.config().limits.clone();
    let (request, texts, backend) = server
        .compute(body.len(), move || {
            let request = EmbeddingRequest::read(&body, &limits)?;
            let texts = texts(&*backend, &request)?;
            Ok((request, texts, backend))
        })
        .await?;
    let encoded = encode(&server, &*backend, texts, "input", arrived).await?;
    let (tokens, values) = (encoded.tokens, encoded.rows.iter().map(Vec::len).sum::<usize>());
    // Numbers take their time to write.
    server
        .compute(values * size_of::<f32>(), move || {
            let item = |(index, mut vector): (usize, Vec<f32>)| {
                vector.truncate(request.dimensions.unwrap_or(vector.len()));
                normalize(&mut vector);
                let embedding = match request.as_base64 {
                    true => Embedding::Base64(vector),
                    false => Embedding::Floats(vector),
                };
                Item { object: "embedding", index, embedding }
            };
            let data = encoded.rows.into_iter().enumerate().map(item).collect();
            let (model, usage) = (&*backend.card().id, Usage::of(tokens));
            Ok(json(&Answer { object: "list", data, model, usage }).into_response())
        })
        .await
}

fn texts(backend: &dyn Backend, request: &EmbeddingRequest) -> Result<Vec<Text>, ApiError> {
    server_has(backend, &request.model)?;
    if let Some((dimensions, len)) = request.dimensions.zip(backend.card().embedding_len)
        && dimensions > len
    {
        let problem = format!("is {dimensions}, but the model's embeddings have {len}");
        return Err(ApiError::field("dimensions", problem));
    }
    let text = |(i, prompt): (usize, &Prompt)| {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => {
                backend.encode(text, EncodeOptions { add_special: true, parse_special: false })
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::field(format!("input[{i}]"), "has no tokens"));
        }
        Ok(Text::one(tokens))
    };
    request.input.iter().enumerate().map(text).collect()
}
