//! Texts on their way through a model that makes vectors or scores, as one request asked for them.

use std::time::Instant;

use engine::Encoded;
use engine::model::Text;
use tokio::sync::oneshot;

use crate::backend::Backend;
use crate::error::ApiError;
use crate::server::Server;

/// What the model makes of `texts`, which came from the request's field `field`. Dropping the future, as happens when the client
/// leaves, cancels what is left.
pub(crate) async fn encode(
    server: &Server,
    backend: &dyn Backend,
    texts: Vec<Text>,
    field: &str,
    arrived: Instant,
) -> Result<Encoded, ApiError> {
    let (sender, receiver) = oneshot::channel();
    let sink = move |encoded| {
        // A reader that left has cancelled.
        let _ = sender.send(encoded);
    };
    let retry_after = server.config().retry_after;
    let submitted = backend.submit_texts(texts, Box::new(sink));
    let ticket = submitted.map_err(|refused| ApiError::refused(refused, field, retry_after))?;
    let encoded = tokio::select! {
        encoded = receiver => encoded.ok().flatten(),
        () = server.cut() => return Err(ApiError::draining()),
    };
    drop(ticket);
    match encoded {
        Some(encoded) => {
            server.metrics().encoded(arrived, &encoded);
            Ok(encoded)
        }
        None => {
            server.metrics().abandoned(1);
            Err(ApiError::failed("the engine stopped"))
        }
    }
}
