//! Refusals, as the document shows them. Which problems there are is decided in `http/error.rs`.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema as _};

use crate::api::Problem;

type Responses = BTreeMap<String, RefOr<Response>>;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident { $($status:literal $slug:literal $what:literal)+ })+) => {
        $(
            $(#[$doc])*
            pub(super) struct $name;

            impl IntoResponses for $name {
                fn responses() -> Responses {
                    BTreeMap::from([$(($status.to_owned(), problem($status, $slug, $what))),+])
                }
            }
        )+
    };
}

refusals! {
    /// Anybody may ask; what can fail is on the server's side. A bad credential is refused even here.
    ToAnyone {
        "401" "unauthenticated" "The credential is bad: unreadable, expired, or revoked."
        "503" "database-unavailable" "The database does not answer."
    }
    /// A token is needed, and whichever it is will do.
    ToHolders {
        "401" "unauthenticated" "There is no token, or it is unreadable, expired, or revoked."
        "503" "database-unavailable" "The database does not answer."
    }
    /// A token with a right is needed.
    ToSome {
        "401" "unauthenticated" "There is no token, or it is unreadable, expired, or revoked."
        "403" "forbidden" "The token does not allow that. The same is said where the thing does not exist."
        "503" "database-unavailable" "The database does not answer."
    }
    /// Needs the vault.
    Sealed {
        "503" "sealed" "The vault is sealed, or the database or KMS does not answer."
    }
    /// Asks a key management service.
    KmsAway {
        "503" "kms-unavailable" "The key management service or the database does not answer."
    }
    Unknown {
        "404" "not-found" "There is no such thing."
    }
    Conflicts {
        "409" "conflict" "Something stands in the way; the sentence says what."
    }
    /// A JSON body can be wrong in these ways.
    WithBody {
        "400" "bad-json" "The body is not JSON, or has a field that is unknown, repeated, missing or of another type."
        "413" "too-large" "The body is larger than 256 KiB."
        "415" "not-json" "The body is not declared as `application/json`."
        "422" "invalid-value" "A value is refused; the sentence names the field."
    }
    /// A body that may be larger than others.
    WithLargeBody {
        "413" "too-large" "The body is larger than 1 MiB."
    }
    /// A body that many narinfos fit into.
    WithNarinfos {
        "413" "too-large" "The body is larger than 8 MiB."
    }
    /// A batch can be wrong in these ways.
    WithBatch {
        "400" "bad-frames" "The body is no batch, or broke off. Nothing of it is kept."
        "413" "too-large" "The batch is larger than 16 MiB."
        "415" "media-type" "The body is not declared as a batch."
        "422" "invalid-value" "The batch holds more than 1 000 files. What is wrong with one file stands in the answer."
    }
    /// A part can be wrong in these ways.
    WithPart {
        "400" "aborted" "The body broke off, or came in too slowly."
        "413" "too-large" "The part is larger than the upload's parts are."
        "415" "media-type" "The body is not declared as `application/octet-stream`."
        "422" "rejected" "There is no `Content-Digest`, or the part's hash is another one."
    }
    /// A query can be wrong in these ways.
    WithQuery {
        "400" "bad-query" "A parameter is unknown, repeated or of another type."
        "422" "invalid-value" "A value is refused; the sentence names the parameter."
    }
    /// Guarded against guessing.
    Limited {
        "429" "too-many-tries" "Too many tries from this address; `Retry-After` says how long to wait."
    }
}

fn problem(status: &str, slug: &str, what: &str) -> RefOr<Response> {
    let status = status.parse().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let example = Problem {
        kind: format!("urn:narvault:problem:{slug}"),
        title: status.canonical_reason().unwrap_or_default().to_owned(),
        status: status.as_u16(),
        detail: what.to_owned(),
        request_id: "0195f2a1-5c1e-7d43-8a51-2f0c5f6f0b7e".to_owned(),
    };
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(Problem::name())))
        .example(serde_json::to_value(example).ok())
        .build();
    ResponseBuilder::new().description(what).content("application/problem+json", content).build().into()
}
