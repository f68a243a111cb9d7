//! Pages for people. Everything they need comes from here: no script at all, nothing from elsewhere.
//!
//! Never knows what the service does: what is shown is handed in as a value.

mod api_page;
mod json;
mod schema;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The style of every page, inside the page: it works from a file too.
const STYLE: &str = include_str!("style.css");

/// `/docs`: the API of `document`, an OpenAPI 3.1 document, for reading.
pub fn router<S: Clone + Send + Sync + 'static>(document: &Value) -> Router<S> {
    let page = Bytes::from(api_page::render(document));
    let policy = content_security_policy();
    Router::new().route("/docs", get(async move || answer(page.clone(), policy.clone())))
}

fn answer(page: Bytes, policy: String) -> Response {
    const REFERRER_POLICY: HeaderName = header::REFERRER_POLICY;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "public, max-age=300".to_owned()),
    ];
    (headers, page).into_response()
}

/// Our one style sheet and nothing else: no script, no frame, no form, no picture.
fn content_security_policy() -> String {
    let hash = BASE64.encode(&Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
