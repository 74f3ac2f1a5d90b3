//! The chat page and its files.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, IF_NONE_MATCH,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ui::Asset;

/// The page runs its own files only and talks to its own server only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Adds the page's routes.
pub(crate) fn add<S: Clone + Send + Sync + 'static>(mut router: Router<S>) -> Router<S> {
    for asset in ui::CHAT {
        let etag = etag(asset);
        router = router
            .route(asset.path, get(move |headers: HeaderMap| async move { answer(asset, &etag, &headers) }));
    }
    router
}

/// A file, or 304 where the browser has it already: it asks each time, so that an update is seen at once.
fn answer(asset: &Asset, etag: &str, headers: &HeaderMap) -> Response {
    let common: [(HeaderName, &str); 5] = [
        (ETAG, etag),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    let known = headers.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(CONTENT_TYPE, asset.content_type)], asset.bytes).into_response()
}

fn etag(asset: &Asset) -> String {
    let mut hasher = DefaultHasher::new();
    asset.bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}
