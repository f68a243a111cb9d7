//! What handlers take from a request, in the order in which a request is refused: the credential, the right,
//! what the address names, and the body last.
//!
//! Never says in an error what the refused content was: it may hold a secret in the wrong place.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::access::{Action, CacheName, ContributorName, Denied, TokenId};
use crate::http::body::RequestBody;
use crate::http::error::Refusal;
use crate::http::{App, request};
use crate::nix::signature::KeyName;
use crate::nix::store_path::StorePathHash;
use crate::service::{Call, Error, Liveness, QuarantineId, Rejection, SlotId, WebhookId};

/// Largest JSON body, in bytes: the biggest request that people write is a cache with a few upstreams, below 4 KiB.
const BODY_SIZE_BYTES_MAX: u64 = 256 * 1024;

/// What a handler answers.
pub(super) type Result<T> = std::result::Result<T, Refused>;

/// A refusal on its way out: the layer around the router spells it, because it knows the request's id.
#[derive(Debug, Clone)]
pub(super) struct Refused(pub Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refusal::from(error).into()
    }
}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Error::from(rejection).into()
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Error::from(denied).into()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = Response::default();
        response.extensions_mut().insert(self);
        response
    }
}

/// Whoever asks, also nobody. A bad credential is refused.
pub(super) struct Anyone(pub Call);

/// The holder of a token.
pub(super) struct Holder(pub Call);

impl FromRequestParts<App> for Anyone {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        Ok(Self(request::call(app, parts, Liveness::Now).await?))
    }
}

impl FromRequestParts<App> for Holder {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let call = request::call(app, parts, Liveness::Now).await?;
        match call.caller.token() {
            Some(_) => Ok(Self(call)),
            None => Err(Denied::Unauthenticated.into()),
        }
    }
}

/// A parameter of the path. A text that nothing can be named gets the answer of a name that nothing has.
pub(super) struct Named<T>(pub T);

/// What a path parameter may name.
pub(super) trait PathName: FromStr + Send {
    /// The parameter's name in the route.
    const PARAMETER: &'static str;
    /// The thing, as [`Error::NotFound`] says it.
    const THING: &'static str;
}

impl PathName for CacheName {
    const PARAMETER: &'static str = "cache";
    const THING: &'static str = "cache";
}

impl PathName for ContributorName {
    const PARAMETER: &'static str = "name";
    const THING: &'static str = "contributor";
}

impl PathName for TokenId {
    const PARAMETER: &'static str = "id";
    const THING: &'static str = "token";
}

impl PathName for StorePathHash {
    const PARAMETER: &'static str = "hash";
    const THING: &'static str = "path";
}

impl PathName for KeyName {
    const PARAMETER: &'static str = "key";
    const THING: &'static str = "key";
}

impl PathName for SlotId {
    const PARAMETER: &'static str = "slot";
    const THING: &'static str = "slot";
}

impl PathName for WebhookId {
    const PARAMETER: &'static str = "id";
    const THING: &'static str = "webhook";
}

impl PathName for QuarantineId {
    const PARAMETER: &'static str = "quarantine";
    const THING: &'static str = "quarantine";
}

impl<T: PathName> FromRequestParts<App> for Named<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let parameters = RawPathParams::from_request_parts(parts, app).await;
        let text = parameters.as_ref().ok().and_then(|parameters| {
            let mut all = parameters.iter();
            all.find(|(name, _)| *name == T::PARAMETER).map(|(_, text)| text)
        });
        if let Some(name) = text.and_then(|text| text.parse().ok()) {
            return Ok(Self(name));
        }
        // As for an unknown one: 401 to a stranger, 403 to a token that sees only some, 404 to an admin.
        request::call(app, parts, Liveness::Now).await?.caller.require(&Action::Administer)?;
        Err(Error::NotFound(T::THING).into())
    }
}

/// A query string without unknown or repeated parameters.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        let query = parts.uri.query().unwrap_or_default();
        let deserializer = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(query.as_bytes()));
        match serde_path_to_error::deserialize(deserializer) {
            Ok(value) => Ok(Self(value)),
            Err(error) => {
                let sentence = sentence("query", &error.path().to_string(), &error.inner().to_string());
                Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-query", sentence).into())
            }
        }
    }
}

/// A request's body, which nobody has asked the client for yet.
pub(super) struct Unread {
    /// `Content-Type` without its parameters.
    media_type: String,
    pending: Pending,
}

/// Holds the body for whoever wants it. What nobody took is dropped politely in the end.
#[derive(Clone)]
pub(super) struct Pending(Arc<Mutex<Option<RequestBody>>>);

impl Pending {
    /// The body of a request with these headers.
    pub fn new(headers: &HeaderMap, body: Body) -> Self {
        Self(Arc::new(Mutex::new(Some(RequestBody::new(headers, body)))))
    }

    fn take(&self) -> Option<RequestBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets a refused client say the rest.
    pub fn finish(self) {
        if let Some(body) = self.take() {
            body.drop_politely();
        }
    }
}

impl FromRequestParts<App> for Unread {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        let none = || Pending::new(&HeaderMap::new(), Body::empty());
        let pending = parts.extensions.get::<Pending>().cloned().unwrap_or_else(none);
        Ok(Self { media_type: media_type(&parts.headers), pending })
    }
}

impl Unread {
    /// Reads JSON of at most 256 KiB, without unknown or repeated fields.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        self.json_within(BODY_SIZE_BYTES_MAX).await
    }

    /// Reads JSON of at most `size_bytes_max`, without unknown or repeated fields.
    pub async fn json_within<T: DeserializeOwned>(self, size_bytes_max: u64) -> Result<T> {
        if !self.media_type.eq_ignore_ascii_case(JSON) {
            let sentence = "the body has to be JSON, with the header `Content-Type: application/json`";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", sentence).into());
        }
        let Some(mut body) = self.pending.take() else { return Err(bad_json("the body was read before")) };
        match body.read(size_bytes_max, "the JSON body").await {
            Ok(text) => parse_json(&text).map_err(bad_json),
            Err(refusal) => {
                body.drop_politely();
                Err(refusal.into())
            }
        }
    }

    /// The body as it comes, which has to be declared as `media_type`, of a size between 0 and `size_bytes_max` if the
    /// client says so. `what` names it.
    pub fn stream(self, media_type: &str, size_bytes_max: u64, what: &'static str) -> Result<RequestBody> {
        let Some(body) = self.pending.take() else { return Err(bad_json("the body was read before")) };
        let refusal = if body.stated_size().is_some_and(|size| size > size_bytes_max) {
            Error::TooLarge { what, max: size_bytes_max }.into()
        } else if !self.media_type.eq_ignore_ascii_case(media_type) {
            let sentence = format!("the body has to come with the header `Content-Type: {media_type}`");
            Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", sentence)
        } else {
            return Ok(body);
        };
        body.drop_politely();
        Err(refusal.into())
    }
}

fn bad_json(sentence: impl Into<String>) -> Refused {
    Refusal::new(StatusCode::BAD_REQUEST, "bad-json", sentence).into()
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

const JSON: &str = "application/json";

/// Reads JSON, or says in a sentence why not. serde_json's own limit of 128 levels bounds its depth.
fn parse_json<T: DeserializeOwned>(text: &[u8]) -> std::result::Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => sentence("body", &path, &inner.to_string()),
            _ => not_json(&inner),
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> String {
    format!("the body is not one JSON value: look at line {}, column {}", error.line(), error.column())
}

/// One sentence that names the field and says its fault, without what the field held.
fn sentence(whole: &str, path: &str, fault: &str) -> String {
    // serde_json adds where it stopped reading, which the path says better.
    let fault = fault.split(" at line ").next().unwrap_or_default();
    let fault = match fault.strip_prefix("invalid type: ").or_else(|| fault.strip_prefix("invalid value: ")) {
        Some(rest) => {
            let found = rest.split([',', '"', '`']).next().unwrap_or_default().trim();
            let expected = rest.rsplit_once(", expected ").map_or("something else", |(_, expected)| expected);
            format!("found {found}, expected {expected}")
        }
        None => fault.to_owned(),
    };
    match path {
        "." | "" => format!("the {whole} is not as it should be: {fault}"),
        _ => format!("`{path}` of the {whole} is not as it should be: {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{CacheCreate, ClaimRequest, PathQuery, TokenCreate};

    fn fault<T: DeserializeOwned>(text: &str) -> String {
        parse_json::<T>(text.as_bytes()).err().expect("refused")
    }

    #[test]
    fn a_refused_body_is_told_which_field_and_why() {
        for (text, field, why) in [
            ("", "", "not one JSON value"),
            ("{", "", "not one JSON value"),
            ("{} {}", "", "missing field `name`"),
            (r#"{"name":"a","public":true} x"#, "", "not one JSON value"),
            (r#"{"name":"a"}"#, "", "missing field `public`"),
            (r#"{"name":7,"public":true}"#, "`name`", "found integer, expected a string"),
            (r#"{"name":"a","public":"yes"}"#, "`public`", "found string, expected a boolean"),
            (r#"{"name":"a","name":"b","public":true}"#, "", "duplicate field `name`"),
            (r#"{"name":"a","public":true,"sign":1}"#, "`sign`", "unknown field `sign`"),
            (r#"{"name":"a","public":true,"priority":-1}"#, "`priority`", "found integer, expected u32"),
            (
                r#"{"name":"a","public":true,"upstreams":[{"url":1}]}"#,
                "`upstreams[0].url`",
                "expected a string",
            ),
            (r#"[]"#, "", "not as it should be"),
        ] {
            let found = fault::<CacheCreate>(text);
            assert!(found.contains(field) && found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        for text in [
            r#""nvb_secret""#,
            r#"{"claim":["nvb_secret"]}"#,
            r#"["nvb_secret","x"]"#,
            r#"{"claim":{"nvb_secret":1}}"#,
        ] {
            assert!(!fault::<ClaimRequest>(text).contains("secret"), "{text}");
        }
        let found = fault::<TokenCreate>(r#"{"contributor":"a","scopes":"nvt_secret"}"#);
        assert!(!found.contains("secret"), "{found}");
    }

    #[test]
    fn deep_json_is_refused_and_not_followed() {
        let text = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));

        assert!(fault::<serde_json::Value>(&text).contains("not one JSON value"));
    }

    #[test]
    fn only_json_is_read_as_json() {
        let table = [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/problem+json", false),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ];
        for (value, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(media_type(&headers).eq_ignore_ascii_case(JSON), expected, "{value:?}");
        }
        assert_eq!(media_type(&HeaderMap::new()), "");
    }

    #[test]
    fn a_query_is_read_strictly() {
        let read = |text: &str| {
            let pairs = url::form_urlencoded::parse(text.as_bytes());
            serde_path_to_error::deserialize::<_, PathQuery>(serde_urlencoded::Deserializer::new(pairs))
        };

        for text in ["", "limit=5&order=desc", "contributor=a%40b.c&since=2026-11-22T13%3A10%3A00Z"] {
            assert!(read(text).is_ok(), "{text}");
        }
        for text in ["limt=5", "limit=five", "limit=5&limit=6", "order=up", "limit=-1", "limit=4294967296"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
