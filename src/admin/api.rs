//! The handlers of everything but the status page.

use axum::Json;
use axum::body::{Bytes, HttpBody};
use axum::extract::{ConnectInfo, FromRequest, Request, State};
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::guard::Refusal;
use super::listener::Peer;
use super::{Admin, LogEntry, MAX_BODY, Status};

/// The media type of the Prometheus text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Invalidations on the status page, and of `/api/log` unless it says `n`.
const LOG_DEFAULT: usize = 20;

/// The most that `/api/log` returns.
const LOG_MAX: usize = 1000;

/// A failure that is answered as `{"error": …}`.
pub(super) struct Error(StatusCode, String);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response();
        if self.0 == StatusCode::UNAUTHORIZED {
            let scheme = axum::http::HeaderValue::from_static("Bearer realm=\"rescind\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error(refusal.status, refusal.reason.to_owned())
    }
}

fn bad_request(reason: impl Into<String>) -> Error {
    Error(StatusCode::BAD_REQUEST, reason.into())
}

pub(super) async fn metrics(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, PROMETHEUS)], admin.control.metrics()).into_response()
}

pub(super) async fn health() -> &'static str {
    "ok"
}

pub(super) async fn ready(State(admin): State<Admin>) -> Response {
    match admin.control.readiness() {
        Ok(notes) if notes.is_empty() => "ready".into_response(),
        Ok(notes) => format!("ready\n{}", lines(&notes)).into_response(),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, lines(&reasons)).into_response(),
    }
}

fn lines(sentences: &[String]) -> String {
    sentences.iter().map(|sentence| sentence.replace('\n', " ") + "\n").collect()
}

/// `/api/status`: all that the page shows, from one moment.
#[derive(Serialize)]
struct StatusReply {
    ready: bool,
    not_ready: Vec<String>,
    #[serde(flatten)]
    status: Status,
    invalidations: Vec<LogEntry>,
}

pub(super) async fn status(State(admin): State<Admin>, headers: HeaderMap) -> Result<Response, Error> {
    admin.guard.read(&headers)?;
    let readiness = admin.control.readiness();
    let reply = StatusReply {
        ready: readiness.is_ok(),
        not_ready: readiness.err().unwrap_or_default(),
        status: admin.control.status(),
        invalidations: admin.control.log(LOG_DEFAULT),
    };
    Ok(Json(reply).into_response())
}

pub(super) async fn log(
    State(admin): State<Admin>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<Vec<LogEntry>>, Error> {
    admin.guard.read(&headers)?;
    let n = log_length(uri.query()).ok_or_else(|| bad_request("n must be a number"))?;
    Ok(Json(admin.control.log(n)))
}

/// `n` of a query; nothing if it is not a number.
fn log_length(query: Option<&str>) -> Option<usize> {
    let given = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("n="));
    match given {
        None => Some(LOG_DEFAULT),
        Some(n) => n.parse().ok().map(|n: usize| n.min(LOG_MAX)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invalidate {
    tags: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Invalidated {
    keys: u64,
}

pub(super) async fn invalidate(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Result<Json<Invalidated>, Error> {
    // Before the body is read: who is refused costs no memory.
    admin.guard.write(request.headers())?;
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(Error(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is longer than {MAX_BODY} bytes"),
        ));
    }
    let body = Bytes::from_request(request, &()).await;
    let body = body.map_err(|rejection| Error(rejection.status(), rejection.body_text()))?;
    let tags = tags(&body)?;
    peer.seat.works();
    // In a task of its own, because this handler is dropped when its client hangs up.
    let fanout = tokio::spawn(admin.control.invalidate(tags, format!("http {}", peer.address)));
    match fanout.await {
        Ok(Ok(keys)) => Ok(Json(Invalidated { keys })),
        Ok(Err(reason)) => Err(Error(StatusCode::SERVICE_UNAVAILABLE, reason)),
        Err(_) => Err(Error(StatusCode::SERVICE_UNAVAILABLE, "the proxy is stopping".to_owned())),
    }
}

/// The tags that a body names.
fn tags(body: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let must_be = |error: &dyn std::fmt::Display| {
        bad_request(format!("the body must be {{\"tags\": [\"…\"]}}: {error}"))
    };
    // The fields of a structure may also be read from a list.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(must_be(&"it is no object"));
    }
    let Invalidate { tags } = serde_json::from_slice(body).map_err(|error| must_be(&error))?;
    if tags.is_empty() {
        return Err(bad_request("tags is empty: name at least one"));
    }
    if tags.iter().any(String::is_empty) {
        return Err(bad_request("a tag is empty"));
    }
    Ok(tags.into_iter().map(String::into_bytes).collect())
}

pub(super) async fn unknown(uri: Uri) -> Response {
    if uri.path().starts_with("/api/") {
        return Error(StatusCode::NOT_FOUND, "no such route".to_owned()).into_response();
    }
    (StatusCode::NOT_FOUND, "not found: the status page is at /\n").into_response()
}

pub(super) async fn wrong_method() -> Error {
    Error(StatusCode::METHOD_NOT_ALLOWED, "this route does not take this method".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_the_log() {
        assert_eq!(log_length(None), Some(LOG_DEFAULT));
        assert_eq!(log_length(Some("")), Some(LOG_DEFAULT));
        assert_eq!(log_length(Some("x=1&n=5")), Some(5));
        assert_eq!(log_length(Some("n=99999999")), Some(LOG_MAX));
        assert_eq!(log_length(Some("n=0")), Some(0));
        for bad in ["n=", "n=-1", "n=x", "n=99999999999999999999999"] {
            assert_eq!(log_length(Some(bad)), None, "{bad}");
        }
    }
}
