//! The one map from what is wrong to a status, for both audiences: a plain line or two for Nix, and
//! `application/problem+json` for programs.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::App;
use crate::access::CacheName;
use crate::api::{Problem, Refused};
use crate::nix::compression::ParseNarFileNameError;
use crate::service::{Conflict, Error, Rejection};

/// A refused request: status, stable slug, and what to tell.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    status: StatusCode,
    slug: &'static str,
    detail: String,
    retry_after_seconds: Option<u64>,
    allow: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, detail: detail.into(), retry_after_seconds: None, allow: None }
    }

    /// The method is not one of `allow`.
    pub fn method(allow: &'static str) -> Self {
        let detail = format!("this URL takes {allow} only");
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", detail);
        Self { allow: Some(allow), ..refusal }
    }

    /// A PUT came to the pull URL.
    pub fn push_url(app: &App, cache: &CacheName) -> Self {
        let detail = format!(
            "this is the pull URL of {cache}, for reading; push to {}push/{cache}",
            app.settings.public_url
        );
        Self { detail, ..Self::method("GET, HEAD") }
    }

    /// A NAR in a format that is not accepted.
    pub fn nar_name(error: ParseNarFileNameError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "rejected", error.to_string())
    }

    /// A NAR with a `Content-Encoding`: its hash would be of something else than what is stored.
    pub fn encoded_nar() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "rejected", "a NAR takes no Content-Encoding")
    }

    /// A `Content-Encoding` that is not known.
    pub fn content_encoding(accepted: &[&str]) -> Self {
        let detail = format!("Content-Encoding is not one of {}", accepted.join(", "));
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "rejected", detail)
    }

    /// A body that is not what its `Content-Encoding` says.
    pub fn damaged_encoding() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "rejected",
            "the body is not what its Content-Encoding says",
        )
    }

    /// The answer to Nix: plain text that it prints, short enough that it does.
    pub fn plain(self) -> Response {
        // Sealed is told to JSON callers as a passing state; Nix would only try again and again, and old
        // ones cannot send a body twice.
        let status =
            if [SEALED, STOPPED, READ_ONLY].contains(&self.slug) { StatusCode::LOCKED } else { self.status };
        let mut body = self.detail.clone();
        body.truncate(body.floor_char_boundary(PLAIN_BYTES_MAX));
        body.push('\n');
        let mut response = (status, body).into_response();
        self.add_headers(&mut response);
        response
    }

    /// The answer to a program.
    pub fn problem(self, request_id: &str) -> Response {
        let problem = Problem {
            kind: self.kind(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        self.add_headers(&mut response);
        let content_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }

    /// One refusal of many in an answer that is none.
    pub fn one_of_many(self) -> Refused {
        let (kind, status) = (self.kind(), self.status.as_u16());
        Refused { kind, status, detail: self.detail, retry_after_seconds: self.retry_after_seconds }
    }

    fn kind(&self) -> String {
        format!("urn:narvault:problem:{}", self.slug)
    }

    fn add_headers(&self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"narvault\", charset=\"UTF-8\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
    }

    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        use StatusCode as S;
        let detail = error.to_string();
        let new = |status, slug| Self::new(status, slug, detail);
        let refusal = match &error {
            Error::Unauthenticated(_) => new(S::UNAUTHORIZED, "unauthenticated"),
            Error::Forbidden => new(S::FORBIDDEN, "forbidden"),
            Error::NotFound(_) => new(S::NOT_FOUND, "not-found"),
            Error::Sealed => new(S::SERVICE_UNAVAILABLE, SEALED).retry_after(30),
            Error::RolledBack { .. } => new(S::SERVICE_UNAVAILABLE, READ_ONLY).retry_after(300),
            Error::Stopped(_) => new(S::SERVICE_UNAVAILABLE, STOPPED).retry_after(60),
            Error::Conflict(conflict) => new(S::CONFLICT, conflict_slug(conflict)),
            Error::Rejected(Rejection::Frames(_)) => new(S::BAD_REQUEST, "bad-frames"),
            Error::Rejected(Rejection::Value { .. }) => new(S::UNPROCESSABLE_ENTITY, "invalid-value"),
            Error::Rejected(_) => new(S::UNPROCESSABLE_ENTITY, "rejected"),
            Error::TooLarge { .. } => new(S::PAYLOAD_TOO_LARGE, "too-large"),
            Error::TooMany { retry_after_seconds } => {
                new(S::TOO_MANY_REQUESTS, "too-many-tries").retry_after(*retry_after_seconds)
            }
            Error::Aborted => new(S::BAD_REQUEST, "aborted"),
            Error::TooSlow { .. } => new(S::BAD_REQUEST, "too-slow"),
            Error::Busy => new(S::SERVICE_UNAVAILABLE, "busy").retry_after(10),
            // Nothing that a retry would mend, so not a 5xx, which Nix retries.
            Error::StorageFull(_) => new(S::PAYLOAD_TOO_LARGE, "storage-full"),
            Error::Storage(_) => new(S::SERVICE_UNAVAILABLE, "storage-unavailable").retry_after(10),
            Error::Database(_) => new(S::SERVICE_UNAVAILABLE, "database-unavailable").retry_after(5),
            Error::Kms(error) if error.is_away() => {
                new(S::SERVICE_UNAVAILABLE, "kms-unavailable").retry_after(30)
            }
            Error::Kms(_) => new(S::UNPROCESSABLE_ENTITY, "kms-refused"),
            Error::Vault(_) | Error::Internal(_) => new(S::INTERNAL_SERVER_ERROR, "internal"),
        };
        // Told once, here: the answer has the sentence, the log has the cause.
        if refusal.status.is_server_error() && ![SEALED, READ_ONLY].contains(&refusal.slug) {
            tracing::error!(error = &error as &dyn std::error::Error, slug = refusal.slug, "request failed");
        } else {
            tracing::debug!(error = &error as &dyn std::error::Error, slug = refusal.slug, "request refused");
        }
        refusal
    }
}

fn conflict_slug(conflict: &Conflict) -> &'static str {
    match conflict {
        Conflict::OtherContent { .. } | Conflict::OtherReferences { .. } => "conflicting-claim",
        Conflict::OtherRealisation => "conflicting-realisation",
        Conflict::NoSigningKey => "no-signing-key",
        Conflict::DeletedMeanwhile => "deleted-meanwhile",
        Conflict::NameTaken(_) => "name-taken",
        Conflict::PrefixOverlaps(_) => "prefix-overlaps",
        Conflict::CacheNotEmpty { .. } => "cache-not-empty",
        Conflict::SignedAlone { .. } => "signed-alone",
        Conflict::SlotsWithoutSecret { .. } => "slots-without-secret",
        Conflict::State(_) => "state",
    }
}

const SEALED: &str = "sealed";

const STOPPED: &str = "signing-stopped";

const READ_ONLY: &str = "read-only";

/// Nix drops a body of 1024 bytes and more.
const PLAIN_BYTES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_asks_for_the_wait_that_an_answer_of_its_own_would_have_asked_for() {
        let too_many = Error::TooMany { retry_after_seconds: 59 };
        for (error, expected) in [
            (Error::Busy, Some(10)),
            (Error::Sealed, Some(30)),
            (too_many, Some(59)),
            (Error::Forbidden, None),
        ] {
            let refusal = Refusal::from(error);
            let header = refusal.retry_after_seconds;

            let one = refusal.one_of_many();

            assert_eq!((one.retry_after_seconds, header), (expected, expected), "{one:?}");
        }
    }
}
