//! Which key of a cache comes after which, and the root keys whose word counts when one is stolen.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::extract::{Anyone, Holder, Named, Result, Unread};
use super::refusals::{Conflicts, Sealed, ToSome, Unknown, WithBody};
use super::tokens::parse;
use crate::access::{Action, CacheName};
use crate::api::{
    Draft, NoteSubmit, RootKeysView, RootSetDraft, RootSetView, SuccessionDraft, SuccessionStatementView,
    SuccessionView,
};
use crate::http::{App, conditional};
use crate::nix::signature::{ParsePublicKeyError, PublicKey};
use crate::service::{Rejection, RootSets, Roots, Signed, Statement, Succession, SuccessionRequest};
use crate::time::Timestamp;

/// Fetch the statements by which clients follow a cache's keys
///
/// Signed notes, from the first on: which key came after which, and which root keys there are. The same stands as one
/// document at the pull URL and in the bucket, `key-succession`. With an `ETag`. A public cache's for anybody.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/keys/succession", operation_id = "key_succession", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    responses((status = 200, description = "The statements", body = SuccessionView),
        (status = 304, description = "They are what `If-None-Match` names"), ToSome, Unknown),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    headers: HeaderMap,
) -> Result<Response> {
    let found = app.service.succession(&call, &cache).await?;
    let public = found.cache.public;
    let text = serde_json::to_string(&view(&found))
        .expect("fields with text names and plain values: declared in `api`");
    Ok(conditional::document(&headers, text, "application/json", public))
}

/// Draft the statement that root keys sign after a compromise
///
/// Nothing is written down. The draft goes from one holder of a root key to the next, and comes back signed.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/succession/draft", operation_id = "key_succession_draft", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = SuccessionDraft,
    responses((status = 200, description = "What is to be signed", body = Draft), ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn draft(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<Draft>> {
    app.service.require(&call, &Action::Administer, "key-succession-draft", cache.as_str()).await?;
    let asked: SuccessionDraft = body.json().await?;
    let retire_old = asked.retire_old.as_deref().map(Timestamp::parse_rfc3339).transpose();
    let asked = SuccessionRequest {
        old: asked.old.map(|name| parse("old", &name)).transpose()?,
        retire_old: retire_old.map_err(|error| Rejection::value("retire_old", error))?,
    };
    Ok(Json(Draft { draft: app.service.draft_succession(&call, &cache, &asked).await? }))
}

/// Hand in what root keys have signed after a compromise
///
/// Verified, signed by the new key too, and published.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/succession", operation_id = "key_succession_submit", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = NoteSubmit,
    responses((status = 200, description = "The statements as they are now", body = SuccessionView),
        ToSome, Unknown, Conflicts, WithBody, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn submit(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<SuccessionView>> {
    app.service.require(&call, &Action::Administer, "key-succession", cache.as_str()).await?;
    app.service.require_open()?;
    let asked: NoteSubmit = body.json().await?;
    Ok(Json(view(&app.service.submit_succession(&call, &cache, &asked.note).await?)))
}

/// Show the root keys that hold for a cache
///
/// Its own, or else the server's: every set that there was; the last one is in force. A public cache's for anybody.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/root-keys", operation_id = "root_keys", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    responses((status = 200, description = "The sets", body = RootKeysView), ToSome, Unknown),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn roots(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
) -> Result<Json<RootKeysView>> {
    Ok(Json(roots_view(&app.service.root_sets(&call, Some(&cache)).await?)))
}

/// Draft the next set of root keys of a cache
///
/// Nothing is written down. Enough holders of the keys in force and of the new ones sign the draft.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/root-keys/draft", operation_id = "root_keys_draft", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = RootSetDraft,
    responses((status = 200, description = "What is to be signed", body = Draft), ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn draft_roots(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<Draft>> {
    app.service.require(&call, &Action::Administer, "root-draft", cache.as_str()).await?;
    let asked = body.json().await?;
    draft_of(&app, &call, Some(&cache), asked).await
}

/// Hand in a signed set of root keys of a cache
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/root-keys", operation_id = "root_keys_submit", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = NoteSubmit,
    responses((status = 200, description = "The sets as they are now", body = RootKeysView),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn submit_roots(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<RootKeysView>> {
    app.service.require(&call, &Action::Administer, "root-set", cache.as_str()).await?;
    let asked: NoteSubmit = body.json().await?;
    Ok(Json(roots_view(&app.service.submit_roots(&call, Some(&cache), &asked.note).await?)))
}

/// Show the server's root keys
///
/// They hold for every cache that has none of its own.
#[utoipa::path(
    get, path = "/api/v1/root-keys", operation_id = "server_root_keys", tag = "keys",
    responses((status = 200, description = "The sets", body = RootKeysView), ToSome),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn server_roots(State(app): State<App>, Holder(call): Holder) -> Result<Json<RootKeysView>> {
    Ok(Json(roots_view(&app.service.root_sets(&call, None).await?)))
}

/// Draft the next set of the server's root keys
///
/// Nothing is written down. Enough holders of the keys in force and of the new ones sign the draft.
#[utoipa::path(
    post, path = "/api/v1/root-keys/draft", operation_id = "server_root_keys_draft", tag = "keys",
    request_body = RootSetDraft,
    responses((status = 200, description = "What is to be signed", body = Draft), ToSome, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn draft_server_roots(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<Draft>> {
    app.service.require(&call, &Action::Administer, "root-draft", "server").await?;
    let asked = body.json().await?;
    draft_of(&app, &call, None, asked).await
}

/// Hand in a signed set of the server's root keys
#[utoipa::path(
    post, path = "/api/v1/root-keys", operation_id = "server_root_keys_submit", tag = "keys",
    request_body = NoteSubmit,
    responses((status = 200, description = "The sets as they are now", body = RootKeysView),
        ToSome, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn submit_server_roots(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<RootKeysView>> {
    app.service.require(&call, &Action::Administer, "root-set", "server").await?;
    let asked: NoteSubmit = body.json().await?;
    Ok(Json(roots_view(&app.service.submit_roots(&call, None, &asked.note).await?)))
}

async fn draft_of(
    app: &App,
    call: &crate::service::Call,
    cache: Option<&CacheName>,
    asked: RootSetDraft,
) -> Result<Json<Draft>> {
    let parse = |key: &String| key.parse::<PublicKey>();
    let keys: std::result::Result<Vec<PublicKey>, ParsePublicKeyError> =
        asked.keys.iter().map(parse).collect();
    let keys = keys.map_err(|error| Rejection::value("keys", error))?;
    Ok(Json(Draft { draft: app.service.draft_roots(call, cache, asked.threshold, keys).await? }))
}

fn view(found: &Succession) -> SuccessionView {
    SuccessionView {
        cache: found.cache.name.to_string(),
        cache_id: found.cache.id.to_string(),
        root_sets: found.chain.roots.iter().map(set_view).collect(),
        statements: found.chain.statements.iter().map(statement_view).collect(),
    }
}

fn statement_view(signed: &Signed<Statement>) -> SuccessionStatementView {
    let statement = signed.content();
    SuccessionStatementView {
        seq: statement.seq,
        old: statement.old.to_string(),
        new: statement.new.to_string(),
        reason: statement.reason.as_str().to_owned(),
        not_before: statement.not_before.rfc3339(),
        retire_old: statement.retire_old.map(Timestamp::rfc3339),
        expires: statement.expires.rfc3339(),
        note: signed.note().encode(),
    }
}

fn roots_view(found: &RootSets) -> RootKeysView {
    RootKeysView { scope: found.scope.to_string(), sets: found.sets.iter().map(set_view).collect() }
}

fn set_view(signed: &Signed<Roots>) -> RootSetView {
    let roots = signed.content();
    RootSetView {
        version: roots.version,
        threshold: roots.threshold,
        keys: roots.keys.iter().map(PublicKey::to_string).collect(),
        note: signed.note().encode(),
    }
}
