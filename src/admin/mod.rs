//! The admin address: metrics, health, the status page and invalidation over HTTP.
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /` | the status page |
//! | `GET /metrics` | Prometheus text format |
//! | `GET /healthz` | 200 `ok` as long as the process lives |
//! | `GET /readyz` | 200, or 503 with the reasons, one per line |
//! | `GET /api/status` | [`Status`] as JSON, with readiness and the latest invalidations |
//! | `GET /api/log?n=20` | the latest invalidations as a JSON array |
//! | `POST /api/invalidate` | `{"tags": ["post:42"]}` → `{"keys": 3}` |
//!
//! The proxy is behind the [`Control`] trait: this module knows HTTP and nothing of Redis, rules or metrics.
//!
//! - `status`: what the proxy tells about itself
//! - `guard`: who may read and who may invalidate
//! - `api`: the handlers
//! - `page`: the status page and its content security policy
//! - `listener`: bounds on connections

mod api;
mod guard;
mod listener;
mod page;
mod status;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::Listener;

use guard::Guard;
use listener::{Bounded, Peer};
pub use status::{
    Connections, Family, Feed, FeedNode, Index, Journal, LogEntry, Node, Status, Upstream, hit_ratio,
};

/// Bytes of a request body; a list of some ten thousand tags.
const MAX_BODY: usize = 1 << 20;

/// How long [`serve`] waits for requests under way once it is told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// The future of an invalidation: keys deleted, or why it failed.
pub type Invalidation = Pin<Box<dyn Future<Output = Result<u64, String>> + Send>>;

/// What the admin address asks of the proxy. The calls that return at once must not wait for I/O.
pub trait Control: Send + Sync + 'static {
    /// The state now.
    fn status(&self) -> Status;

    /// Whether traffic should be sent here, and what is slower than it could be; if not, why: one sentence each.
    fn readiness(&self) -> Result<Vec<String>, Vec<String>>;

    /// Invalidates the tags for `client` (as the log shall name it). Resolves when all keys are deleted. Is driven
    /// to its end even if the HTTP client goes away.
    fn invalidate(&self, tags: Vec<Vec<u8>>, client: String) -> Invalidation;

    /// At most the latest `n` invalidations, newest first.
    fn log(&self, n: usize) -> Vec<LogEntry>;

    /// All metrics in the Prometheus text format.
    fn metrics(&self) -> String;
}

/// What `[admin]` configures, except for the socket itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address as configured, `host:port`. Browsers may use its host besides IP addresses and `localhost`.
    pub address: String,
    /// Required of a POST when present; without it a listener that is not on loopback takes no POST at all.
    pub token: Option<String>,
    /// Most connections at a time; for one more the one that is silent for longest makes room.
    pub connections: usize,
}

/// What every handler sees.
#[derive(Clone)]
struct Admin {
    control: Arc<dyn Control>,
    guard: Arc<Guard>,
}

/// Serves the admin address until `shutdown` resolves, then finishes what is under way, for 3 s at most.
/// Needs a tokio runtime with I/O and time, of either flavour.
pub async fn serve(
    listener: tokio::net::TcpListener,
    control: Arc<dyn Control>,
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let bounded = Bounded::new(listener, config.connections);
    let guard = Guard::new(bounded.local_addr()?, config);
    let service = router(Admin { control, guard: Arc::new(guard) });
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = axum::serve(bounded, service.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move {
            shutdown.await;
            // The receiver is gone only if nobody waits for the server any more.
            let _ = stop.send(());
        });
    let grace = async {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result,
        () = grace => Ok(()),
    }
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(page::show))
        .route("/metrics", get(api::metrics))
        .route("/healthz", get(api::health))
        .route("/readyz", get(api::ready))
        .route("/api/status", get(api::status))
        .route("/api/log", get(api::log))
        .route("/api/invalidate", post(api::invalidate))
        .fallback(api::unknown)
        .method_not_allowed_fallback(api::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(secure))
        .layer(from_fn(attended))
        .with_state(admin)
}

/// The connection knows how far its request is.
async fn attended(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    peer.seat.requested();
    let response = next.run(request).await;
    peer.seat.responded();
    response
}

/// Headers for every response: nothing is cached, framed, sniffed, or readable by other sites.
async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}
