//! The server itself: its version, and the document of its API.

use std::sync::LazyLock;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::openapi;
use crate::api::VersionView;
use crate::http::App;

/// The document as it is served: made once.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let text = serde_json::to_vec(&openapi()).expect("maps with text keys and plain values: made by us");
    text.into()
});

/// Show the version
#[utoipa::path(
    get, path = "/api/v1/version", operation_id = "version", tag = "server",
    responses((status = 200, description = "Version and cluster", body = VersionView)),
)]
pub(super) async fn version(State(app): State<App>) -> Json<VersionView> {
    Json(VersionView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_id: app.service.cluster_id().to_owned(),
    })
}

/// Fetch this document
///
/// OpenAPI 3.1, for generators of clients. `/docs` shows it to people.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", operation_id = "openapi", tag = "server",
    responses((status = 200, description = "The document", body = serde_json::Value)),
)]
pub(super) async fn openapi_json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}
