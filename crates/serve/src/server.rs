//! The server: which model it has, how far it is on its way in or out, and its routes.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use bytes::Bytes;
use engine::model::Purpose;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use wire::Stage;

use crate::backend::Backend;
use crate::config::Config;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::{adapters, chat, completions, edge, embeddings, models, page, rerank, status, tokens};

/// Bodies longer than this are parsed and tokenized on a thread of their own, not between other clients' tokens.
const COMPUTE_INLINE_BYTES_MAX: usize = 16 * 1024;

/// Bodies no longer than this are read without waiting for others: all connections together cannot take much by them.
const SMALL_BODY_BYTES: usize = 64 * 1024;

/// A request's body, and its part of what all bodies may take.
pub(crate) struct JsonBody {
    bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for JsonBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A server that may not have its model yet. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    metrics: Arc<Metrics>,
    model: RwLock<Model>,
    stage: watch::Sender<Stage>,
    /// Becomes true when what still runs is to be cut.
    cut: watch::Sender<bool>,
    /// Whether only this machine can connect.
    on_loopback: AtomicBool,
    /// A permit for every byte of large bodies.
    bodies: Arc<Semaphore>,
}

enum Model {
    /// With the part that is done, 0 to 1, where it is known.
    Loading(Option<f64>),
    Ready(Arc<dyn Backend>),
    Failed(String),
}

/// Whether the server would answer, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    Loading,
    Draining,
    Failed,
}

impl Server {
    /// A server whose model is loading.
    pub fn new(config: Config) -> Self {
        let shared = Shared {
            bodies: Arc::new(Semaphore::new(config.bodies_bytes_max.min(Semaphore::MAX_PERMITS))),
            config,
            metrics: Arc::default(),
            model: RwLock::new(Model::Loading(None)),
            stage: watch::Sender::new(Stage::Open),
            cut: watch::Sender::new(false),
            on_loopback: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The model is still loading; `part` of the work, 0 to 1, is done. `/health` tells.
    pub fn loading(&self, part: f64) {
        self.set(Model::Loading(Some(part.clamp(0.0, 1.0))));
    }

    /// The model is there.
    pub fn ready(&self, backend: Arc<dyn Backend>) {
        self.set(Model::Ready(backend));
    }

    /// The model could not be loaded. Requests hear why.
    pub fn failed(&self, message: impl Into<String>) {
        self.set(Model::Failed(message.into()));
    }

    fn set(&self, model: Model) {
        *self.shared.model.write().unwrap_or_else(PoisonError::into_inner) = model;
    }

    /// Serves until `shutdown` resolves and the drain that follows is over:
    /// 1. new generations are refused with 503 and `/health` says `draining`, running ones go on;
    /// 2. when the last has ended, or after `drain_time_max`, no connection is taken any more;
    /// 3. what still runs is cut: its answer ends with `finish_reason` "length"; clients have `farewell_time_max` to
    ///    take it;
    /// 4. the model is shut down.
    pub async fn run(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let config = &self.shared.config;
        let on_loopback =
            listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        self.shared.on_loopback.store(on_loopback, Ordering::Release);
        let stage = self.shared.stage.subscribe();
        let serving = wire::connections::serve(listener, self.router(), config.connections.clone(), stage);
        let ending = async {
            shutdown.await;
            self.shared.stage.send_replace(Stage::Draining);
            tokio::time::sleep(config.drain_time_max).await;
            self.shared.cut.send_replace(true);
            tokio::time::sleep(config.farewell_time_max).await;
            self.shared.stage.send_replace(Stage::Closed);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = serving => {}
            () = ending => {}
        }
        if let Some(backend) = self.loaded() {
            backend.shut_down();
        }
    }

    /// The routes, for serving them otherwise than by [`Server::run`].
    pub fn router(&self) -> Router {
        let mut router = Router::new()
            .route("/v1/models", get(models::list))
            .route("/models", get(models::list))
            .route("/v1/models/{*id}", get(models::get))
            .route("/v1/chat/completions", post(chat::create))
            .route("/chat/completions", post(chat::create))
            .route("/v1/completions", post(completions::create))
            .route("/v1/embeddings", post(embeddings::create))
            .route("/embeddings", post(embeddings::create))
            .route("/v1/rerank", post(rerank::create))
            .route("/v1/reranking", post(rerank::create))
            .route("/rerank", post(rerank::create))
            .route("/reranking", post(rerank::create))
            .route("/lora-adapters", get(adapters::list).post(adapters::set))
            .route("/tokenize", post(tokens::tokenize))
            .route("/detokenize", post(tokens::detokenize))
            .route("/apply-template", post(tokens::apply_template))
            .route("/health", get(status::health))
            .route("/v1/health", get(status::health))
            .route("/metrics", get(status::metrics));
        if self.shared.config.chat_page {
            router = page::add(router);
        }
        router
            .fallback(|request: Request<Body>| async move {
                ApiError::no_such_route(request.method().as_str(), request.uri().path())
            })
            .method_not_allowed_fallback(|request: Request<Body>| async move {
                ApiError::wrong_method(request.method().as_str(), request.uri().path())
            })
            .layer(from_fn_with_state(self.clone(), edge::surround))
            .with_state(self.clone())
    }

    pub fn health(&self) -> Health {
        if self.stage() != Stage::Open {
            return Health::Draining;
        }
        match &*self.shared.model.read().unwrap_or_else(PoisonError::into_inner) {
            Model::Loading(_) => Health::Loading,
            Model::Ready(_) => Health::Ready,
            Model::Failed(_) => Health::Failed,
        }
    }

    /// What requests hear when [`Server::health`] is not [`Health::Ready`].
    pub(crate) fn unavailable(&self) -> Option<ApiError> {
        match self.health() {
            Health::Ready => None,
            Health::Draining => Some(ApiError::draining()),
            _ => self.backend().err(),
        }
    }

    /// How much of the loading is done, where that is known.
    pub(crate) fn progress(&self) -> Option<f64> {
        match &*self.shared.model.read().unwrap_or_else(PoisonError::into_inner) {
            Model::Loading(part) => *part,
            _ => None,
        }
    }

    /// Whether requests must name a host that is known.
    pub(crate) fn checks_hosts(&self) -> bool {
        self.shared.on_loopback.load(Ordering::Acquire) || !self.shared.config.hosts_allowed.is_empty()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.shared.stage.borrow()
    }

    /// Resolves when what still runs is to be cut.
    pub(crate) fn cut(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut cut = self.shared.cut.subscribe();
        Box::pin(async move { drop(cut.wait_for(|cut| *cut).await) })
    }

    pub(crate) fn loaded(&self) -> Option<Arc<dyn Backend>> {
        self.backend().ok()
    }

    /// The model, or what to say while there is none.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>, ApiError> {
        match &*self.shared.model.read().unwrap_or_else(PoisonError::into_inner) {
            Model::Ready(backend) => Ok(Arc::clone(backend)),
            Model::Loading(_) => {
                let retry_after = Some(self.shared.config.retry_after);
                Err(ApiError::unavailable(
                    "model_loading",
                    "the model is loading; try again soon",
                    retry_after,
                ))
            }
            Model::Failed(message) => Err(ApiError::unavailable(
                "model_failed",
                format!("the model could not be loaded: {message}"),
                None,
            )),
        }
    }

    /// The model, unless it is for something else or the server is on its way out.
    pub(crate) fn backend_for(&self, purpose: Purpose) -> Result<Arc<dyn Backend>, ApiError> {
        if self.stage() != Stage::Open {
            return Err(ApiError::draining());
        }
        let backend = self.backend()?;
        match backend.card().purpose {
            found if found == purpose => Ok(backend),
            other => Err(ApiError::other_purpose(other)),
        }
    }

    /// A request's body, which must not say that it is something other than JSON.
    pub(crate) async fn read_json(&self, request: Request<Body>) -> Result<JsonBody, ApiError> {
        let (head, body) = request.into_parts();
        if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
            let content_type = String::from_utf8_lossy(content_type.as_bytes());
            let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            if essence != "application/json"
                && !(essence.starts_with("application/") && essence.ends_with("+json"))
            {
                return Err(ApiError::wrong_content_type(&content_type));
            }
        }
        let config = &self.shared.config;
        let (bytes_max, time_max) = (config.limits.body_bytes_max, config.body_time_max);
        let announced = wire::body::announced_bytes(&head.headers).unwrap_or(bytes_max).min(bytes_max);
        let share = self.share_for(announced).await?;
        let bytes = wire::body::read(&head.headers, body, bytes_max, time_max).await?;
        Ok(JsonBody { bytes, _share: share })
    }

    /// Waits until a body of `bytes` may be read, for as long as bodies may take.
    async fn share_for(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(None);
        }
        let config = &self.shared.config;
        // A body beyond all of it takes all of it.
        let permits = bytes.min(config.bodies_bytes_max).try_into().unwrap_or(u32::MAX);
        let share = Arc::clone(&self.shared.bodies).acquire_many_owned(permits);
        match tokio::time::timeout(config.body_time_max, share).await {
            // The semaphore is never closed.
            Ok(share) => Ok(share.ok()),
            Err(_) => {
                let message = "too many large requests are being read; try again later";
                Err(ApiError::unavailable("bodies_too_large", message, Some(config.retry_after)))
            }
        }
    }

    /// Runs `work` on a body of `body_bytes`: here, or aside where it may take long.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        body_bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if body_bytes <= COMPUTE_INLINE_BYTES_MAX {
            return work();
        }
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(ApiError::failed("the request could not be processed")))
    }
}
