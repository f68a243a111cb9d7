//! The OpenAPI document: what the operations say of themselves, and what surrounds them.
//!
//! The binary cache's addresses stand here by hand: their form is Nix's, not ours.

use serde_json::json;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ContactBuilder, Content, ContentBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi, RefOr,
    Required, ResponseBuilder, Type,
};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::examples;
use crate::api::{Jwk, JwkSet, Order, Problem, PublicKeysFormat};

const INTRODUCTION: &str = "\
narvault holds the signing keys of Nix binary caches. People and CI push with their own tokens; narvault measures \
what it gets, signs it, and records who caused each signature.

**Tokens.** Send the token as `Authorization: Bearer nvt_…`, or as the password of Basic authentication with any \
user name, which is what Nix does from a netrc file. A bad token is refused everywhere, also where none is needed.

**Errors.** Every refusal below `/api` is `application/problem+json` (RFC 9457). `type` is \
`urn:narvault:problem:<slug>` and does not change; `detail` is a sentence for people; `request_id` finds the \
request in the server's log and in the audit rows. The order is fixed: credential, right, existence, sealed vault, \
size, form, content.

**Lists** come in pages of `limit` items (1 to 200, 100 unless told), oldest first unless `order=desc`. `next` of a \
page is the `cursor` of the following one; the last page has none.

**Form.** Times are RFC 3339 in UTC, sizes are bytes, hashes are spelled as Nix spells them. Unknown fields and \
parameters are refused. A body is at most 256 KiB of JSON. Answers may get new fields.";

/// Adds to the operations what surrounds them.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    document.info = InfoBuilder::new()
        .title("narvault")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(INTRODUCTION))
        .contact(Some(
            ContactBuilder::new().name(Some("narvault")).url(Some(env!("CARGO_PKG_REPOSITORY"))).build(),
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    document.tags = Some(
        TAGS.iter()
            .map(|(name, what)| TagBuilder::new().name(*name).description(Some(*what)).build())
            .collect(),
    );
    let components = document.components.get_or_insert_default();
    for (name, schema) in [
        (Problem::name(), Problem::schema()),
        (JwkSet::name(), JwkSet::schema()),
        (Jwk::name(), Jwk::schema()),
        (Order::name(), Order::schema()),
        (PublicKeysFormat::name(), PublicKeysFormat::schema()),
    ] {
        components.schemas.insert(name.into_owned(), schema);
    }
    components.add_security_scheme("bearer", scheme(HttpAuthScheme::Bearer, "`Authorization: Bearer nvt_…`"));
    components.add_security_scheme(
        "basic",
        scheme(HttpAuthScheme::Basic, "The token is the password; any user name"),
    );
    for own in OWN {
        document.paths.add_path_operation(own.path, vec![HttpMethod::Get], own.operation());
    }
    for object in OBJECTS {
        for (method, operation) in object.operations() {
            document.paths.add_path_operation(object.path(&method), vec![method], operation);
        }
    }
    examples::add(&mut document);
    document
}

const TAGS: &[(&str, &str)] = &[
    ("auth", "The first admin, and what a token's holder may ask about it."),
    ("caches", "A cache has a pull URL for nix.conf and a push URL for `nix copy --to`."),
    ("keys", "Signing keys of a cache. Secrets go in and never come out."),
    ("paths", "What is published, on whose word, and how it goes away."),
    (
        "push",
        "For clients of narvault's own: many at once, and large files in parts. Stock Nix needs none of it.",
    ),
    ("contributors", "People, CI jobs and builders."),
    ("tokens", "Personal, scoped, expiring, revocable."),
    (
        "log",
        "The signature log: who caused each signature. Its public files are those of c2sp.org/tlog-tiles.",
    ),
    ("audit", "Who did what, and who tried."),
    ("vault", "The door before the private keys."),
    ("webhooks", "Other servers are told what happens, by signed messages that come until they are taken."),
    ("server", "The server itself."),
    ("binary cache", "For Nix. Errors here are one or two lines of plain text, because Nix prints them."),
];

fn scheme(kind: HttpAuthScheme, what: &str) -> SecurityScheme {
    SecurityScheme::Http(HttpBuilder::new().scheme(kind).description(Some(what)).build())
}

/// An address for operators and their machines.
struct Own {
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    content_type: &'static str,
    answers: &'static [(&'static str, &'static str)],
    example: &'static str,
}

const OWN: &[Own] = &[
    Own {
        path: "/livez",
        id: "livez",
        summary: "Ask whether the process answers",
        description: "For supervisors that restart what hangs.",
        content_type: "text/plain",
        answers: &[("200", "It does")],
        example: "alive",
    },
    Own {
        path: "/readyz",
        id: "readyz",
        summary: "Ask whether it takes requests",
        description: "For balancers. A sealed server is ready: it serves reads, revokes tokens and can be unsealed.",
        content_type: "text/plain",
        answers: &[("200", "`ready`, or `ready, sealed`"), ("503", "The database does not answer")],
        example: "ready",
    },
    Own {
        path: "/metrics",
        id: "metrics",
        summary: "Fetch metrics",
        description: "In the text format of Prometheus. No label holds the name of a cache, a path or a person.",
        content_type: "text/plain",
        answers: &[("200", "The metrics")],
        example: "narvault_vault_open 1",
    },
    Own {
        path: "/.well-known/jwks.json",
        id: "jwks",
        summary: "Fetch the public keys that verify tokens",
        description: "RFC 7517 with the keys of RFC 8037. A token is valid only while its row is live as well, so \
                      these keys alone tell who made a token, not whether it still works.",
        content_type: "application/json",
        answers: &[("200", "The keys"), ("503", "The database does not answer")],
        example: "",
    },
];

impl Own {
    fn operation(&self) -> utoipa::openapi::path::Operation {
        let mut operation = OperationBuilder::new()
            .operation_id(Some(self.id))
            .tag("server")
            .summary(Some(self.summary))
            .description(Some(self.description));
        for (status, what) in self.answers {
            let content = match (*status, self.content_type) {
                ("200", "application/json") => ContentBuilder::new()
                    .schema(Some(utoipa::openapi::Ref::from_schema_name("JwkSet")))
                    .build(),
                ("200", _) => text_content(self.example),
                _ => text_content(""),
            };
            let kind = if *status == "200" { self.content_type } else { "text/plain" };
            operation =
                operation.response(*status, ResponseBuilder::new().description(*what).content(kind, content));
        }
        operation.build()
    }
}

fn text_content(example: &str) -> Content {
    let content = ContentBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String).build()));
    let example = if example.is_empty() { None } else { Some(json!(example)) };
    content.example(example).build()
}

/// An object of a binary cache.
struct CacheObjectPath {
    /// Below the cache.
    path: &'static str,
    id: &'static str,
    name: &'static str,
    content_type: &'static str,
    description: &'static str,
    parameter: Option<(&'static str, &'static str)>,
}

const OBJECTS: &[CacheObjectPath] = &[
    CacheObjectPath {
        path: "nix-cache-info",
        id: "cache_info",
        name: "nix-cache-info",
        content_type: "text/x-nix-cache-info",
        description: "Store directory and priority. A PUT is accepted and discarded.",
        parameter: None,
    },
    CacheObjectPath {
        path: "{hash}.narinfo",
        id: "narinfo",
        name: "a narinfo",
        content_type: "text/x-nix-narinfo",
        description: "What Nix reads of a path, with this server's signatures. A PUT publishes: it is accepted once \
                      the NAR was uploaded and measured and every reference is published here, and signed then.",
        parameter: Some(("hash", "The 32 characters after `/nix/store/`")),
    },
    CacheObjectPath {
        path: "nar/{file}",
        id: "nar",
        name: "a NAR",
        content_type: "application/x-nix-nar",
        description: "`<file hash>.nar`, with `.xz`, `.zst`, `.bz2`, `.gz` or `.br` if it is compressed. GET takes a \
                      `Range`, and may be answered by a redirect to the bucket where the server is set so.",
        parameter: Some(("file", "`<SHA-256 of the file, Nix base-32>.nar[.<extension>]`")),
    },
    CacheObjectPath {
        path: "{hash}.ls",
        id: "listing",
        name: "a listing",
        content_type: "application/json",
        description: "The files of a NAR. Visible once the path is published.",
        parameter: Some(("hash", "The 32 characters after `/nix/store/`")),
    },
    CacheObjectPath {
        path: "log/{derivation}",
        id: "build_log",
        name: "a build log",
        content_type: "text/plain",
        description: "UTF-8 text. The first one stays; only the same contributor replaces it.",
        parameter: Some(("derivation", "Base name of the derivation")),
    },
    CacheObjectPath {
        path: "realisations/{id}.doi",
        id: "realisation",
        name: "a realisation",
        content_type: "application/json",
        description: "Of a content-addressed derivation's output. Signed if the output path is published; the first \
                      one stays.",
        parameter: Some(("id", "`sha256:<derivation hash>!<output>`")),
    },
    CacheObjectPath {
        path: "debuginfo/{build_id}",
        id: "debuginfo",
        name: "debug information",
        content_type: "application/json",
        description: "Which NAR of this cache has the debug symbols of a build id.",
        parameter: Some(("build_id", "ELF build id in hexadecimal")),
    },
];

impl CacheObjectPath {
    fn path(&self, method: &HttpMethod) -> String {
        let side = if *method == HttpMethod::Put { "/push/{cache}" } else { "/{cache}" };
        format!("{side}/{}", self.path)
    }

    /// GET at the pull URL, PUT at the push URL (which answers GET and HEAD as well).
    fn operations(&self) -> [(HttpMethod, utoipa::openapi::path::Operation); 2] {
        let get = self
            .operation("pull", &format!("Pull {}", self.name))
            .response(
                "200",
                ResponseBuilder::new().description("The object").content(self.content_type, text_content("")),
            )
            .response("304", ResponseBuilder::new().description("It is what `If-None-Match` names"))
            .response("401", plain("A private cache, or none: there is no token, or a bad one"))
            .response("403", plain("The token does not allow to pull from this cache"))
            .response("404", plain("There is no such object"))
            .response("503", plain("The database or the storage does not answer"))
            .securities(Some([
                SecurityRequirement::default(),
                requirement("basic", "pull:{cache}"),
                requirement("bearer", "pull:{cache}"),
            ]));
        let put = self
            .operation("push", &format!("Push {}", self.name))
            .request_body(Some(
                utoipa::openapi::request_body::RequestBodyBuilder::new()
                    .required(Some(Required::True))
                    .content(self.content_type, text_content(""))
                    .build(),
            ))
            .response("200", ResponseBuilder::new().description("It was here already"))
            .response("201", ResponseBuilder::new().description("It is stored; a narinfo is published"))
            .response("400", plain("The upload broke off, or came in too slowly"))
            .response("401", plain("There is no token, or a bad one"))
            .response("403", plain("The token does not allow to push to this cache"))
            .response("404", plain("There is no such cache"))
            .response(
                "409",
                plain("Another content stands at this path, or the cache has no signing key yet"),
            )
            .response("413", plain("It is larger than this server takes"))
            .response("422", plain("What was sent is not what it says it is, or refers to what is not here"))
            .response("423", plain("The vault is sealed: uploads wait for an operator"))
            .response("503", plain("The storage or the database does not answer, after the retries inside"))
            .securities(Some([requirement("basic", "push:{cache}"), requirement("bearer", "push:{cache}")]));
        [(HttpMethod::Get, get.build()), (HttpMethod::Put, put.build())]
    }

    fn operation(&self, verb: &str, summary: &str) -> OperationBuilder {
        let mut operation = OperationBuilder::new()
            .operation_id(Some(format!("{verb}_{}", self.id)))
            .tag("binary cache")
            .summary(Some(summary))
            .description(Some(self.description))
            .parameter(path_parameter("cache", "The cache's name"));
        if let Some((name, what)) = self.parameter {
            operation = operation.parameter(path_parameter(name, what));
        }
        operation
    }
}

fn path_parameter(name: &str, what: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(what))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
}

fn plain(what: &str) -> RefOr<utoipa::openapi::Response> {
    ResponseBuilder::new().description(what).content("text/plain", text_content("")).build().into()
}

/// A token with a scope, by one of the ways to send it.
fn requirement(way: &str, scope: &str) -> SecurityRequirement {
    SecurityRequirement::new(way, [scope])
}
