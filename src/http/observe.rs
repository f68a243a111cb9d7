//! What is noted of each request: an id, a line in the log, a count and a duration.
//!
//! Never notes a header, a query or a body. Reads that succeed are logged at debug level: a build asks
//! thousands of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;

use super::App;
use super::request::RequestId;

/// Numbers the requests of this process.
#[derive(Clone)]
pub(super) struct Observed {
    /// Tells replicas and restarts apart.
    process: Arc<str>,
    count: Arc<AtomicU64>,
}

impl Observed {
    pub fn new(replica: &str) -> Self {
        Self { process: replica.chars().take(8).collect::<String>().into(), count: Arc::default() }
    }

    fn next_id(&self) -> String {
        format!("{}-{:x}", self.process, self.count.fetch_add(1, Ordering::Relaxed))
    }
}

/// Runs a request with its id, and notes how it went.
pub(super) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = app.observed.next_id();
    let method = request.method().clone();
    let is_read = method == Method::GET || method == Method::HEAD;
    let route = route_of(&request);
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response = if is_read {
        next.run(request).await
    } else {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let path = request.uri().path().to_owned();
        let span = tracing::info_span!("request", request.id = %id, %method, %path, peer = ?peer);
        next.run(request).instrument(span).await
    };

    let status = response.status();
    let elapsed = started.elapsed();
    let millis = elapsed.as_secs_f64() * 1000.0;
    match status.as_u16() {
        500.. => {
            tracing::warn!(request.id = %id, %method, route, status = status.as_u16(), millis, "answered")
        }
        _ if is_read => {
            tracing::debug!(request.id = %id, %method, route, status = status.as_u16(), millis, "answered");
        }
        _ => tracing::info!(request.id = %id, %method, route, status = status.as_u16(), millis, "answered"),
    }
    metrics::counter!(
        "narvault_http_requests_total",
        "route" => route,
        "method" => method_label(&method),
        "status" => status_label(status),
    )
    .increment(1);
    metrics::histogram!("narvault_http_request_duration_seconds", "route" => route).record(elapsed);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// A label with few values: no cache's or path's name becomes one.
fn route_of(request: &Request) -> &'static str {
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    match matched {
        Some("/{cache}/{*object}") => match request.uri().path().rsplit_once('.').map(|(_, end)| end) {
            Some("narinfo") => "pull-narinfo",
            _ if request.uri().path().contains("/nar/") => "pull-nar",
            _ => "pull-other",
        },
        Some("/push/{cache}/{*object}") => match request.uri().path().rsplit_once('.').map(|(_, end)| end) {
            Some("narinfo") => "push-narinfo",
            _ if request.uri().path().contains("/nar/") => "push-nar",
            _ => "push-other",
        },
        Some(path) if path.starts_with("/api/") => "api",
        Some(_) => "own",
        None => "none",
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// The statuses that occur, without an allocation for the frequent ones.
fn status_label(status: StatusCode) -> std::borrow::Cow<'static, str> {
    match status.as_u16() {
        200 => "200".into(),
        201 => "201".into(),
        304 => "304".into(),
        404 => "404".into(),
        other => other.to_string().into(),
    }
}
