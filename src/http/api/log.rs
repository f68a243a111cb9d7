//! The published signature log for witnesses, mirrors and verifiers: the files of c2sp.org/tlog-tiles below
//! `/api/v1/log`. Anybody may read it; what is private stands in it only as commitments.
//!
//! Never makes anything of it: checkpoints come from the row, tiles as they were published.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::extract::{Holder, Query, Result};
use super::refusals::{ToHolders, WithQuery};
use crate::api::{LogOpeningView, LogOpenings, LogOpeningsQuery};
use crate::http::App;
use crate::service::{Error, LogOpening, LogTile, OPENINGS_COUNT_MAX, Rejection};

/// A checkpoint is replaced each second, and a mirror shall see it soon.
const BRIEF: &str = "public, max-age=1";

/// A tile stays as it is for ever.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The files. Their paths and bodies are the format's, not ours, so they are no operations of the document.
pub(super) fn files() -> Router<App> {
    Router::new()
        .route("/api/v1/log/checkpoint", get(checkpoint))
        .route("/api/v1/log/key", get(key))
        .route("/api/v1/log/tile/{*path}", get(tile))
        .route("/api/v1/log/references/{digest}", get(references))
}

/// Open private leaves
///
/// Leaves of the signature log that are about a private cache show a commitment only. Of the `limit` leaves from
/// `first` on, what stands behind those whose cache the token may pull from: SHA-256 over salt and lines is what the
/// leaf has. `narvault log audit` checks their signatures with it.
#[utoipa::path(
    get, path = "/api/v1/log/openings", operation_id = "log_openings", tag = "log",
    params(LogOpeningsQuery),
    responses((status = 200, description = "The openings", body = LogOpenings), ToHolders, WithQuery),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn openings(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<LogOpeningsQuery>,
) -> Result<Json<LogOpenings>> {
    let limit = asked.limit.unwrap_or(OPENINGS_COUNT_MAX);
    if !(1..=OPENINGS_COUNT_MAX).contains(&limit) {
        return Err(Rejection::value("limit", format!("is not 1 to {OPENINGS_COUNT_MAX}")).into());
    }
    let openings = app.service.log_openings(&call, asked.first, limit).await?;
    Ok(Json(LogOpenings { items: openings.into_iter().map(opening).collect() }))
}

fn opening(opening: LogOpening) -> LogOpeningView {
    LogOpeningView {
        index: opening.index,
        salt: data_encoding::BASE64.encode(&opening.salt),
        lines: opening.lines,
        references: opening.references,
    }
}

/// The newest signed checkpoint.
async fn checkpoint(State(app): State<App>) -> Result<Response> {
    let row = app.service.log_checkpoint().await?;
    Ok(text(row.ok_or(Error::NotFound("checkpoint yet; ask again in a few seconds"))?.note, BRIEF))
}

/// The public key that verifies checkpoints, as `name+hash+base64`.
async fn key(State(app): State<App>) -> Result<Response> {
    Ok(text(format!("{}\n", app.service.log_verifier_key().await?), "public, max-age=60"))
}

/// A tile of hashes, or with `entries/` the leaves themselves.
async fn tile(State(app): State<App>, Path(path): Path<String>) -> Result<Response> {
    let unknown = Error::NotFound("tile");
    let Ok(tile) = format!("tile/{path}").parse::<LogTile>() else { return Err(unknown.into()) };
    let bytes = app.service.log_tile(tile).await?.ok_or(unknown)?;
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([kind, (header::CACHE_CONTROL, IMMUTABLE)], bytes).into_response())
}

/// A list of references that did not fit into its leaf.
async fn references(State(app): State<App>, Path(digest): Path<String>) -> Result<Response> {
    let list = app.service.log_references(&digest).await?.ok_or(Error::NotFound("list of references"))?;
    let kind = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    Ok(([kind, (header::CACHE_CONTROL, IMMUTABLE)], list).into_response())
}

fn text(text: String, caching: &'static str) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    ([kind, (header::CACHE_CONTROL, caching)], text).into_response()
}
