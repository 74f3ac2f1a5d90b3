//! `POST /v1/rerank`: documents in the order of how well they answer a query, in the shapes of Jina and of Text Embeddings
//! Inference.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use engine::model::{Purpose, Text};
use serde::Serialize;
use serde_json::Value;

use crate::backend::Backend;
use crate::chat::server_has;
use crate::config::Limits;
use crate::embeddings::Usage;
use crate::encoding::encode;
use crate::error::{ApiError, json};
use crate::json::{Fields, Kind};
use crate::server::Server;

const FIELDS: &[&str] =
    &["query", "documents", "texts", "model", "top_n", "return_documents", "return_text", "raw_scores"];

#[derive(Clone, Debug, PartialEq)]
pub struct RerankRequest {
    pub query: String,
    pub documents: Vec<String>,
    pub model: String,
    pub top: Option<usize>,
    pub with_documents: bool,
    /// `texts` in place of `documents`: the answer is a plain list, and scores are probabilities unless asked for raw.
    pub is_tei: bool,
    pub raw_scores: bool,
}

impl RerankRequest {
    /// Reads and checks a body. What a model cannot be asked is refused here, before any model is.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields::read(body, &[FIELDS])?;
        let is_tei = fields.text("documents").is_none() && fields.text("texts").is_some();
        let (name, wanted) =
            if is_tei { ("texts", "return_text") } else { ("documents", "return_documents") };
        Ok(Self {
            query: fields.string("query")?.ok_or_else(|| ApiError::field("query", "is missing"))?,
            documents: documents(&fields, name, limits)?,
            model: fields.string("model")?.unwrap_or_default(),
            top: fields.integer("top_n", 1..=i64::MAX)?.map(|n| n as usize),
            with_documents: fields.boolean(wanted)?.unwrap_or(false),
            is_tei,
            raw_scores: fields.boolean("raw_scores")?.unwrap_or(false),
        })
    }

    fn field(&self) -> &'static str {
        if self.is_tei { "texts" } else { "documents" }
    }
}

/// Strings, or objects with one as `text`.
fn documents(fields: &Fields<'_>, name: &str, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let values = fields.value(name, &[Kind::Array], limits.json_values_max)?;
    let Some(Value::Array(values)) = values else {
        return Err(ApiError::field(name, "is missing"));
    };
    if values.is_empty() {
        return Err(ApiError::field(name, "must have at least one element"));
    }
    if values.len() > limits.texts_max {
        return Err(ApiError::field(name, format!("has more than {} elements", limits.texts_max)));
    }
    let text = |(i, value): (usize, Value)| {
        let text = match value {
            Value::String(text) => Some(text),
            Value::Object(mut object) => match object.remove("text") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        };
        text.ok_or_else(|| {
            ApiError::field(format!("{name}[{i}]"), "must be a string, or an object with one as 'text'")
        })
    };
    values.into_iter().enumerate().map(text).collect()
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    model: &'a str,
    results: Vec<Ranked<'a>>,
    usage: Usage,
}

#[derive(Serialize)]
struct Ranked<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Serialize)]
struct Document<'a> {
    text: &'a str,
}

#[derive(Serialize)]
struct TeiRanked<'a> {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

pub(crate) async fn create(
    State(server): State<Server>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = server.read_json(request).await?;
    let backend = server.backend_for(Purpose::Scores)?;
    let limits = server.config().limits.clone();
    let (request, texts, backend) = server
        .compute(body.len(), move || {
            let request = RerankRequest::read(&body, &limits)?;
            server_has(&*backend, &request.model)?;
            let texts = request.documents.iter().map(|document| backend.pair(&request.query, document));
            let texts: Vec<Text> = texts.collect();
            Ok((request, texts, backend))
        })
        .await?;
    let encoded = encode(&server, &*backend, texts, request.field(), arrived).await?;
    let scores: Vec<f32> = encoded.rows.iter().map(|row| row.first().copied().unwrap_or_default()).collect();
    Ok(answer(&*backend, &request, &scores, encoded.tokens))
}

fn answer(backend: &dyn Backend, request: &RerankRequest, scores: &[f32], tokens: usize) -> Response {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(request.top.unwrap_or(order.len()));
    let text = |i: usize| request.with_documents.then(|| &*request.documents[i]);
    if request.is_tei {
        let score = |i: usize| match request.raw_scores || backend.card().scores_are_probabilities {
            true => scores[i],
            false => 1.0 / (1.0 + (-scores[i]).exp()),
        };
        let ranked = |&i: &usize| TeiRanked { index: i, score: score(i), text: text(i) };
        return json(&order.iter().map(ranked).collect::<Vec<_>>()).into_response();
    }
    let ranked = |&i: &usize| Ranked {
        index: i,
        relevance_score: scores[i],
        document: text(i).map(|text| Document { text }),
    };
    json(&Answer {
        object: "list",
        model: &backend.card().id,
        results: order.iter().map(ranked).collect(),
        usage: Usage::of(tokens),
    })
    .into_response()
}
