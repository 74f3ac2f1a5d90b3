//! Reading a request's body under a size and a time limit.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body is longer than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body did not arrive within {} seconds", limit.as_secs_f32())]
    TooSlow { limit: Duration },
    #[error("the body could not be read")]
    Broken(#[source] axum::Error),
}

/// Reads a whole body of at most `bytes_max`, which may take at most `time_max`.
/// A body that announces itself as too long is refused unread.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    time_max: Duration,
) -> Result<Bytes, BodyError> {
    if announced_bytes(headers).is_some_and(|length| length > bytes_max) {
        return Err(BodyError::TooLarge { limit: bytes_max });
    }
    match tokio::time::timeout(time_max, collect(body, bytes_max)).await {
        Ok(result) => result,
        Err(_) => Err(BodyError::TooSlow { limit: time_max }),
    }
}

/// How long a body says it is.
pub fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn collect(mut body: Body, bytes_max: usize) -> Result<Bytes, BodyError> {
    let mut first: Option<Bytes> = None;
    let mut whole: Vec<u8> = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        let data = match frame {
            None => break,
            Some(Err(error)) => return Err(BodyError::Broken(error)),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        let so_far = first.as_ref().map_or(whole.len(), Bytes::len);
        if so_far + data.len() > bytes_max {
            return Err(BodyError::TooLarge { limit: bytes_max });
        }
        // Most bodies come in one piece, which needs no copy.
        if so_far == 0 {
            first = Some(data);
            continue;
        }
        if let Some(piece) = first.take() {
            whole.extend_from_slice(&piece);
        }
        whole.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| whole.into()))
}
