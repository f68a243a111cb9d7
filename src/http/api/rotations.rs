//! What happens to signing keys after they were made: states, rotations, compromises, and the public halves for clients.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::keys::view as key_view;
use super::paging::Paging;
use super::refusals::{Conflicts, Sealed, ToSome, Unknown, WithBody, WithQuery};
use super::tokens::parse;
use crate::access::{Action, CacheName};
use crate::api::{
    KeyCompromise, KeyView, Page, PageQuery, PublicKeysFormat, PublicKeysQuery, PublicKeysView,
    RotationCreate, RotationEdit, RotationStepView, RotationView, UnloggedSignature,
};
use crate::http::{App, conditional};
use crate::nix::signature::{KeyName, PublicKey};
use crate::nix::trust::Trusted;
use crate::service::{PublicKeys, Rejection, Rotation, RotationRequest, UnloggedRow};
use crate::time::Timestamp;

/// Promote a key
///
/// A key that is `next` or `retiring` becomes `active`: it signs from the answer on. The next key of a rotation that
/// waits for clients begins to sign at once.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/{key}/promote", operation_id = "key_promote", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name")),
    responses((status = 200, description = "The key as it is now", body = KeyView),
        ToSome, Unknown, Conflicts, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn promote(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
) -> Result<Json<KeyView>> {
    Ok(Json(key_view(app.service.promote_key(&call, &cache, &key).await?)))
}

/// Retire a key
///
/// It signs no more, and is still to be trusted: what it signed keeps its signatures. Refused for the only key that
/// signs. The old key of a rotation that waits for clients retires at once.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/{key}/retire", operation_id = "key_retire", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name")),
    responses((status = 200, description = "The key as it is now", body = KeyView), ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn retire(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
) -> Result<Json<KeyView>> {
    Ok(Json(key_view(app.service.retire_key(&call, &cache, &key).await?)))
}

/// Say that a key is compromised
///
/// It signs nothing from the answer on, and another key signs in its place: one that does already, or the next one, or
/// a new one. What the log accounts for is signed again, the old signatures leave the narinfos, and what nothing
/// accounts for is withdrawn and listed. A rotation that is under way is given up for it. Works on a sealed server too.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/{key}/compromise", operation_id = "key_compromise", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name")),
    request_body = KeyCompromise,
    responses((status = 200, description = "What goes on from here", body = RotationView),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn compromise(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
    body: Unread,
) -> Result<Json<RotationView>> {
    app.service.require(&call, &Action::Administer, "key-compromise", key.as_str()).await?;
    let asked: KeyCompromise = body.json().await?;
    Ok(Json(view(app.service.compromise_key(&call, &cache, &key, &asked.reason).await?)))
}

/// Destroy a key
///
/// Overwrites the sealed secret of a retired or compromised key, for ever. Refused while a published path or a
/// realisation is signed by it alone.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/{key}/destroy", operation_id = "key_destroy", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name")),
    responses((status = 200, description = "What is left of it", body = KeyView), ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn destroy(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
) -> Result<Json<KeyView>> {
    Ok(Json(key_view(app.service.destroy_key(&call, &cache, &key).await?)))
}

/// Sign everything again with a key
///
/// Everything published gets the signature of this key, which signs already; in the background.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/{key}/resign", operation_id = "key_resign", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name")),
    responses((status = 200, description = "How it stands", body = RotationView), ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn resign(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
) -> Result<Json<RotationView>> {
    Ok(Json(view(app.service.resign_with(&call, &cache, &key).await?)))
}

/// Drop a retired key's signatures
///
/// From everything published; in the background. Refused while something is signed by it alone.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/keys/{key}/drop-signatures", operation_id = "key_drop_signatures",
    tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name")),
    responses((status = 200, description = "How it stands", body = RotationView), ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn drop_signatures(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
) -> Result<Json<RotationView>> {
    Ok(Json(view(app.service.drop_signatures(&call, &cache, &key).await?)))
}

/// List signatures that the log does not account for
///
/// Found while things were signed again, and after a compromise by looking through storage: under the key's name, and
/// in no leaf of the log. After a compromise somebody else made them.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/keys/{key}/unlogged", operation_id = "key_unlogged", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"),
        ("key" = String, Path, description = "The key's name"), PageQuery),
    responses((status = 200, description = "A page of signatures", body = Page<UnloggedSignature>),
        ToSome, Unknown, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn unlogged(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(key): Named<KeyName>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<UnloggedSignature>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.unlogged_signatures(&call, &cache, &key, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), unlogged_view)))
}

/// Begin a rotation
///
/// A new key is published now; after `publish_days` it signs beside the old one, everything published gets its
/// signature, and `wait_days` later the old key retires. The answer has the dates. The service goes on by itself.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/rotation", operation_id = "key_rotate", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = RotationCreate,
    responses((status = 201, description = "The rotation with its dates", body = RotationView),
        ToSome, Unknown, Conflicts, WithBody, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn rotate(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<(StatusCode, Json<RotationView>)> {
    app.service.require(&call, &Action::Administer, "key-rotate", cache.as_str()).await?;
    app.service.require_open()?;
    let asked = request(body.json().await?)?;
    let rotation = app.service.rotate_key(&call, &cache, &asked).await?;
    Ok((StatusCode::CREATED, Json(view(rotation))))
}

/// Show a rotation
///
/// The one that is under way, or else the last one: its steps with their dates, how far it is, and what it waits for.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/rotation", operation_id = "key_rotation", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    responses((status = 200, description = "How it stands", body = RotationView), ToSome, Unknown),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
) -> Result<Json<RotationView>> {
    Ok(Json(view(app.service.show_rotation(&call, &cache).await?)))
}

/// Pause or resume a rotation
///
/// Its dates stay as they are: what became due in the meantime is done at once when it goes on.
#[utoipa::path(
    patch, path = "/api/v1/caches/{cache}/rotation", operation_id = "key_rotation_edit", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body = RotationEdit,
    responses((status = 200, description = "How it stands", body = RotationView),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn edit(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<RotationView>> {
    app.service.require(&call, &Action::Administer, "key-rotation-pause", cache.as_str()).await?;
    let asked: RotationEdit = body.json().await?;
    Ok(Json(view(app.service.pause_rotation(&call, &cache, asked.paused).await?)))
}

/// Give a rotation up
///
/// Keys and signatures stay as they are now. What follows a compromise cannot be given up.
#[utoipa::path(
    delete, path = "/api/v1/caches/{cache}/rotation", operation_id = "key_rotation_abandon", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name")),
    responses((status = 204, description = "It is given up"), ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn abandon(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
) -> Result<StatusCode> {
    app.service.abandon_rotation(&call, &cache).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Fetch the public keys that clients are to trust
///
/// At an address that stays: as lines of nix.conf, a NixOS module, a flake's `nixConfig`, or JSON. With an `ETag`, so
/// that asking often costs little. A public cache's for anybody.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/public-keys", operation_id = "public_keys", tag = "keys",
    params(("cache" = String, Path, description = "The cache's name"), PublicKeysQuery),
    responses((status = 200, description = "The keys", body = PublicKeysView),
        (status = 304, description = "They are what `If-None-Match` names"), ToSome, Unknown, WithQuery),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn public_keys(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Query(asked): Query<PublicKeysQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let found = app.service.public_keys(&call, &cache).await?;
    let format = asked.format.unwrap_or(PublicKeysFormat::Json);
    let text = public_keys_text(&app, &found, format);
    let kind = match format {
        PublicKeysFormat::Json => "application/json",
        _ => "text/plain; charset=utf-8",
    };
    Ok(conditional::document(&headers, text, kind, found.cache.public))
}

fn public_keys_text(app: &App, found: &PublicKeys, format: PublicKeysFormat) -> String {
    let url = &app.settings.public_url;
    let pull_url = format!("{}/{}", url.as_str().trim_end_matches('/'), found.cache.name);
    let public_keys: Vec<String> = found.keys.iter().map(PublicKey::to_string).collect();
    let host = url.host_str().filter(|_| !found.cache.public);
    let netrc = host.map(|host| format!("machine {host} login narvault password nvt_..."));
    let trusted = Trusted { url: &pull_url, public_keys: &public_keys, netrc: netrc.as_deref() };
    match format {
        PublicKeysFormat::NixConf => trusted.nix_conf(),
        PublicKeysFormat::Nixos => trusted.nixos(),
        PublicKeysFormat::Flake => trusted.flake(),
        PublicKeysFormat::Json => {
            let cache = found.cache.name.to_string();
            let view = PublicKeysView { cache, pull_url, public_keys };
            serde_json::to_string(&view).expect("fields with text names and plain values: declared in `api`")
        }
    }
}

fn request(asked: RotationCreate) -> std::result::Result<RotationRequest, Rejection> {
    let RotationCreate { old, new, publish_days, wait_days } = asked;
    Ok(RotationRequest {
        old: old.map(|name| parse("old", &name)).transpose()?,
        new: new.map(|name| parse("new", &name)).transpose()?,
        publish_days,
        wait_days,
    })
}

fn view(rotation: Rotation) -> RotationView {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let step = |step: &crate::service::StepTime| RotationStepView {
        step: step.step.as_str().to_owned(),
        at: step.at.rfc3339(),
        has_begun: step.has_begun,
    };
    RotationView {
        kind: rotation.kind.as_str().to_owned(),
        step: rotation.step.as_str().to_owned(),
        old_key: rotation.old_key,
        new_key: rotation.new_key,
        paused: rotation.paused,
        total: count(rotation.progress.total),
        done: count(rotation.progress.done),
        refused: count(rotation.progress.refused),
        waiting_for: rotation.waiting_for,
        steps: rotation.steps.iter().map(step).collect(),
        started_at: rotation.started_at.rfc3339(),
        ended_at: rotation.ended_at.map(Timestamp::rfc3339),
        id: rotation.id,
    }
}

fn unlogged_view(row: UnloggedRow) -> UnloggedSignature {
    UnloggedSignature {
        place: row.place,
        subject: row.subject,
        signature: row.signature,
        found_at: Timestamp(row.found_at).rfc3339(),
    }
}
