//! What operators and their machines ask: is it alive, is it ready, what does it count, which keys verify tokens.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::Refusal;
use super::{App, metrics};
use crate::api::{Jwk, JwkSet};
use crate::service::Error;

const NO_STORE: (header::HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

/// `GET /livez`: this process answers.
pub(super) async fn livez() -> Response {
    ([NO_STORE], "alive\n").into_response()
}

/// `GET /readyz`: 200 while the database answers. A sealed server is ready: balancers that dropped it would drop
/// the reads and the unsealing too.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let (status, text) = match (app.service.is_ready().await, app.service.is_open()) {
        (true, _) if app.service.rollback().is_some() => (StatusCode::OK, "ready, read-only\n"),
        (true, true) => (StatusCode::OK, "ready\n"),
        (true, false) => (StatusCode::OK, "ready, sealed\n"),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready: the database does not answer\n"),
    };
    (status, [NO_STORE], text).into_response()
}

/// `GET /metrics`: for Prometheus. What is a state and not an event is looked up now.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ::metrics::gauge!("narvault_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    ::metrics::gauge!("narvault_vault_open").set(if app.service.is_open() { 1.0 } else { 0.0 });
    ::metrics::gauge!("narvault_log_forked").set(if app.service.is_log_forked() { 1.0 } else { 0.0 });
    let waits_for_kms = app.service.kms_wait().is_some();
    ::metrics::gauge!("narvault_vault_waiting_for_kms").set(if waits_for_kms { 1.0 } else { 0.0 });
    match app.service.outbox_backlog().await {
        Ok(backlog) => {
            ::metrics::gauge!("narvault_database_up").set(1.0);
            ::metrics::gauge!("narvault_outbox_objects").set(backlog.count as f64);
            ::metrics::gauge!("narvault_outbox_oldest_seconds").set(backlog.oldest_seconds as f64);
        }
        Err(_) => ::metrics::gauge!("narvault_database_up").set(0.0),
    }
    if let Ok(backlog) = app.service.webhook_backlog().await {
        ::metrics::gauge!("narvault_webhook_waiting").set(backlog.count as f64);
        ::metrics::gauge!("narvault_webhook_oldest_seconds").set(backlog.oldest_seconds as f64);
    }
    if let Ok(left) = app.service.rotations_left().await {
        ::metrics::gauge!("narvault_rotation_left").set(left as f64);
    }
    if let Ok((behind, damaged)) = app.service.kek_rows_behind().await {
        ::metrics::gauge!("narvault_kek_rows_behind").set(behind as f64);
        ::metrics::gauge!("narvault_kek_rows_damaged").set(damaged as f64);
    }
    if let Ok(Some(made_at)) = app.service.newest_backup().await {
        ::metrics::gauge!("narvault_backup_newest_timestamp_seconds").set(made_at.unix_seconds() as f64);
    }
    let content_type = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([content_type, NO_STORE], metrics::render()).into_response()
}

/// `GET /.well-known/jwks.json`: the public keys that verify tokens (RFC 7517, RFC 8037).
pub(super) async fn jwks(State(app): State<App>) -> Response {
    match app.service.token_keys().await {
        Ok(keys) => {
            let keys = keys.into_iter().map(|key| Jwk {
                kty: key.kty.to_owned(),
                crv: key.crv.to_owned(),
                x: key.x,
                kid: key.kid,
                usage: key.usage.to_owned(),
                alg: key.alg.to_owned(),
            });
            let short = (header::CACHE_CONTROL, "public, max-age=60");
            ([short], Json(JwkSet { keys: keys.collect() })).into_response()
        }
        Err(error) => Refusal::from(error).plain(),
    }
}

/// Whatever is at no address.
pub(super) async fn not_found(_: Request) -> Response {
    Refusal::from(Error::NotFound("page; caches are at /<cache>/, the API is described at /docs")).plain()
}
