//! What happens to every request and response, whatever the route: hosts, origins, the end of connections, the log.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use wire::Stage;

use crate::config::OnAccess;
use crate::error::{ApiError, Refusal};
use crate::hosts;
use crate::server::Server;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Access {
    pub method: Method,
    pub path: String,
    pub status: StatusCode,
    /// The word of an error.
    pub code: Option<&'static str>,
    pub body_bytes: u64,
    /// From the request's head to the last byte handed to the connection.
    pub duration: Duration,
    /// Whether the whole response was taken; if not, the client left before.
    pub complete: bool,
}

/// Wraps all routes.
pub(crate) async fn surround(State(server): State<Server>, request: Request<Body>, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = origin(request.headers(), &server.config().cors_origins);
    let stranger =
        server.checks_hosts().then(|| hosts::foreign(request.headers(), &server.config().hosts_allowed));
    let mut response = match (stranger.flatten(), &origin, &method) {
        (Some(host), _, _) => ApiError::host_not_allowed(&host).into_response(),
        (None, Origin::Foreign(origin), _) => ApiError::origin_not_allowed(origin).into_response(),
        (None, Origin::Allowed(_), &Method::OPTIONS) => preflight(),
        _ => next.run(request).await,
    };
    if let Origin::Allowed(origin) = origin {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().append(VARY, HeaderValue::from_static("origin"));
    }
    if server.stage() != Stage::Open {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let refusal = response.extensions().get::<Refusal>().copied();
    if let Some(Refusal { code, counts: true }) = refusal {
        server.metrics().refused(code);
    }
    let Some(on_access) = server.config().on_access.clone() else { return response };
    let access = Access {
        method,
        path,
        status: response.status(),
        code: refusal.map(|refusal| refusal.code),
        body_bytes: 0,
        duration: Duration::ZERO,
        complete: false,
    };
    response.map(|body| Body::new(Watched { body, access, began, on_access }))
}

enum Origin {
    /// No browser's page asked, or one of ours did.
    Own,
    Allowed(HeaderValue),
    /// A page that may not use the API. It could not read the answer, but the work would be done all the same.
    Foreign(String),
}

fn origin(headers: &HeaderMap, allowed: &[String]) -> Origin {
    let Some(origin) = headers.get(ORIGIN) else { return Origin::Own };
    let text = String::from_utf8_lossy(origin.as_bytes());
    if allowed.iter().any(|allowed| allowed == "*" || *allowed == text) {
        return Origin::Allowed(origin.clone());
    }
    // Behind a proxy the host may have been rewritten; browsers then still say that it is the same site.
    let same_host = text.split_once("://").is_some_and(|(_, authority)| {
        headers.get(HOST).is_some_and(|host| host.as_bytes() == authority.as_bytes())
    });
    let says_same = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    if same_host || says_same { Origin::Own } else { Origin::Foreign(text.into_owned()) }
}

fn preflight() -> Response {
    let headers: [(HeaderName, &str); 3] = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-requested-with"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// A body that tells the log when it ends.
struct Watched {
    body: Body,
    access: Access,
    began: Instant,
    on_access: OnAccess,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.access.body_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.access.duration = self.began.elapsed();
        self.access.complete = self.body.is_end_stream();
        (self.on_access)(&self.access);
    }
}
