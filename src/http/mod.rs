//! HTTP: the only code that knows axum and status codes. The router is on this screen.
//!
//! Never decides who may do what: it reads a credential, asks the service, and spells the answer.

mod api;
mod binary_cache;
mod body;
mod conditional;
mod encoding;
mod error;
mod metrics;
mod observe;
mod own;
mod request;
mod server;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use ipnet::IpNet;
use url::Url;

pub use api::openapi;
pub use metrics::{METRICS, Metric, MetricKind};
pub use server::{RunningServer, ServeError, listen, serve};

use crate::service::Service;

/// What the router is built from.
#[derive(Clone)]
pub struct App {
    service: Service,
    settings: Arc<HttpSettings>,
    observed: observe::Observed,
    pages: Router,
}

/// The HTTP section of the configuration.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where clients reach this server: pull and push URLs begin with it.
    pub public_url: Url,
    /// Who may say for whom they ask (`X-Forwarded-For`).
    pub trusted_proxies: Vec<IpNet>,
    pub deliver: Deliver,
    /// Whether NARs of private caches may be delivered by redirect.
    pub redirect_private: bool,
    /// How long uploads may go on after the signal to stop.
    pub shutdown_wait: Duration,
}

/// How NARs reach those who pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deliver {
    /// Through this server.
    Proxy,
    /// By a redirect to a presigned URL of the bucket.
    Redirect,
}

impl App {
    /// An application over `service`.
    pub fn new(service: Service, settings: HttpSettings) -> Self {
        metrics::install();
        let pages = Router::new();
        let observed = observe::Observed::new(service.replica());
        Self { service, settings: Arc::new(settings), observed, pages }
    }

    /// With pages for people, which are made elsewhere.
    pub fn with_pages(self, pages: Router) -> Self {
        Self { pages, ..self }
    }
}

/// Every route, by who calls it.
pub fn router(app: App) -> Router {
    let people_and_programs = api::router();
    let operators = Router::new()
        .route("/livez", get(own::livez))
        .route("/readyz", get(own::readyz))
        .route("/metrics", get(own::metrics))
        .route("/.well-known/jwks.json", get(own::jwks));
    let nix = Router::new()
        .route("/push/{cache}/{*object}", any(binary_cache::push))
        .route("/{cache}/{*object}", any(binary_cache::pull));
    Router::new()
        .merge(people_and_programs)
        .merge(operators)
        .merge(nix)
        .fallback(own::not_found)
        .with_state(app.clone())
        .merge(app.pages.clone())
        .layer(axum::middleware::from_fn_with_state(app, observe::observe))
}
