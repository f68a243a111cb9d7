//! The JSON API: one file per resource, one handler per operation, and the document made from the same list.
//!
//! Never decides who may do what: it reads, asks the service, and shows what it answered.

mod audit;
mod auth;
mod caches;
mod contributors;
mod document;
mod examples;
mod extract;
mod keys;
mod log;
mod paging;
mod paths;
mod push;
mod refusals;
mod rotations;
mod server;
mod successions;
mod takedown;
mod tokens;
mod uploads;
mod vault;
mod webhooks;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::error::Refusal;
use super::request;
use crate::service::Error;
use extract::{Anyone, Pending, Refused, Result};

/// The routes of the API.
pub(super) fn router() -> Router<App> {
    operations()
        .split_for_parts()
        .0
        .merge(log::files())
        .route("/api/{*rest}", any(no_such_operation))
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(finish))
}

/// The OpenAPI document of everything that this server answers.
pub fn openapi() -> utoipa::openapi::OpenApi {
    document::complete(operations().into_openapi())
}

/// Every operation, once: what is routed is documented, and what is documented is routed.
fn operations() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(auth::claim))
        .routes(routes!(auth::whoami))
        .routes(routes!(auth::renew))
        .routes(routes!(caches::create, caches::list))
        .routes(routes!(caches::show, caches::edit, caches::delete))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(rotations::promote))
        .routes(routes!(rotations::retire))
        .routes(routes!(rotations::compromise))
        .routes(routes!(rotations::destroy))
        .routes(routes!(rotations::resign))
        .routes(routes!(rotations::drop_signatures))
        .routes(routes!(rotations::unlogged))
        .routes(routes!(rotations::rotate, rotations::show, rotations::edit, rotations::abandon))
        .routes(routes!(rotations::public_keys))
        .routes(routes!(successions::show, successions::submit))
        .routes(routes!(successions::draft))
        .routes(routes!(successions::roots, successions::submit_roots))
        .routes(routes!(successions::draft_roots))
        .routes(routes!(successions::server_roots, successions::submit_server_roots))
        .routes(routes!(successions::draft_server_roots))
        .routes(routes!(paths::missing))
        .routes(routes!(push::nars))
        .routes(routes!(push::stored))
        .routes(routes!(push::publish))
        .routes(routes!(uploads::open))
        .routes(routes!(uploads::show, uploads::abort))
        .routes(routes!(uploads::put_part))
        .routes(routes!(uploads::part_url))
        .routes(routes!(uploads::complete))
        .routes(routes!(paths::list))
        .routes(routes!(paths::show, paths::delete))
        .routes(routes!(paths::proof))
        .routes(routes!(contributors::create, contributors::list))
        .routes(routes!(contributors::show, contributors::edit))
        .routes(routes!(contributors::erase))
        .routes(routes!(contributors::add_key))
        .routes(routes!(contributors::remove_key))
        .routes(routes!(contributors::revoke_tokens))
        .routes(routes!(takedown::quarantine_contributor))
        .routes(routes!(takedown::restore_contributor))
        .routes(routes!(takedown::quarantine_token))
        .routes(routes!(takedown::restore_token))
        .routes(routes!(takedown::quarantine_path))
        .routes(routes!(takedown::restore_path))
        .routes(routes!(takedown::quarantines))
        .routes(routes!(takedown::withdrawals))
        .routes(routes!(takedown::withdrawn))
        .routes(routes!(tokens::issue, tokens::list))
        .routes(routes!(tokens::show))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tokens::report))
        .routes(routes!(log::openings))
        .routes(routes!(audit::list))
        .routes(routes!(vault::show))
        .routes(routes!(vault::unseal, vault::cancel_shares))
        .routes(routes!(vault::seal))
        .routes(routes!(vault::rotate_kek))
        .routes(routes!(vault::rotate_root))
        .routes(routes!(vault::add_slot))
        .routes(routes!(vault::change_passphrase))
        .routes(routes!(vault::remove_slot))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::show, webhooks::edit, webhooks::remove))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::deliveries))
        .routes(routes!(server::version))
        .routes(routes!(server::openapi_json))
}

async fn no_such_operation(_: Anyone) -> Result<()> {
    Err(Error::NotFound("operation; /docs lists them all").into())
}

async fn no_such_method(_: Anyone) -> Result<()> {
    let sentence = "this address does not take that method; the header `Allow` says which ones it takes";
    Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", sentence).into())
}

/// Holds the body back until a handler asks for it, spells refusals with the request's id, and keeps answers
/// out of caches.
async fn finish(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let request_id = request::request_id(&parts);
    let pending = Pending::new(&parts.headers, body);
    parts.extensions.insert(pending.clone());
    let mut response = next.run(Request::from_parts(parts, Body::empty())).await;
    pending.finish();
    if let Some(Refused(refusal)) = response.extensions_mut().remove() {
        response = refusal.problem(&request_id);
    }
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
