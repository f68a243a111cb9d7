//! The published signature log for witnesses, mirrors and verifiers: the files of c2sp.org/tlog-tiles below
//! `/api/v1/log`. Anybody may read it; what is private stands in it only as commitments.
//!
//! Never makes anything of it: checkpoints come from the row, tiles as they were published.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::extract::Result;
use crate::http::App;
use crate::service::{Error, LogTile};

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

fn text(text: String, caching: &'static str) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    ([kind, (header::CACHE_CONTROL, caching)], text).into_response()
}
