//! Contributors: who pushes, their public keys, and the end of all their tokens.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::paging::Paging;
use super::refusals::{Conflicts, ToSome, Unknown, WithBody, WithQuery};
use super::tokens::{parse, revoked_view};
use crate::access::{Action, ContributorName};
use crate::api::{
    self, ContributorCreate, ContributorEdit, ContributorErased, ContributorKeyAdd, ContributorView, Page,
    PageQuery, RevokeRequest, Revoked,
};
use crate::http::App;
use crate::nix::signature::{KeyName, PublicKey};
use crate::service::{ContributorChange, ContributorDetails, ContributorKind};

/// Add a contributor
///
/// A person, a CI job or a builder. Those who fall together, such as two machines of one team, belong to one
/// group.
#[utoipa::path(
    post, path = "/api/v1/contributors", operation_id = "contributor_create", tag = "contributors",
    request_body = ContributorCreate,
    responses((status = 201, description = "The contributor", body = ContributorView),
        ToSome, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn create(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<(StatusCode, Json<ContributorView>)> {
    app.service.require(&call, &Action::Administer, "contributor-create", "").await?;
    let asked: ContributorCreate = body.json().await?;
    let name = parse("name", &asked.name)?;
    let group = asked.group.map(|group| parse("group", &group)).transpose()?;
    let made = app.service.create_contributor(&call, &name, kind(asked.kind), group).await?;
    Ok((StatusCode::CREATED, Json(view(made))))
}

/// List contributors
#[utoipa::path(
    get, path = "/api/v1/contributors", operation_id = "contributors", tag = "contributors",
    params(PageQuery),
    responses((status = 200, description = "A page of contributors", body = Page<ContributorView>),
        ToSome, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<ContributorView>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.list_contributors(&call, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |contributor| contributor.row.id.to_string(), view)))
}

/// Show a contributor
///
/// With the paths and bytes that they pushed.
#[utoipa::path(
    get, path = "/api/v1/contributors/{name}", operation_id = "contributor", tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name")),
    responses((status = 200, description = "The contributor", body = ContributorView), ToSome, Unknown),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Holder(call): Holder,
    Named(name): Named<ContributorName>,
) -> Result<Json<ContributorView>> {
    Ok(Json(view(app.service.show_contributor(&call, &name).await?)))
}

/// Suspend a contributor, or edit one
///
/// Once a suspension has answered, none of their tokens works anywhere. Lifting it revives those that were not
/// revoked. Fields that are absent stay as they are. Works while the vault is sealed.
#[utoipa::path(
    patch, path = "/api/v1/contributors/{name}", operation_id = "contributor_edit", tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name")),
    request_body = ContributorEdit,
    responses((status = 200, description = "The contributor as it is now", body = ContributorView),
        ToSome, Unknown, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn edit(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(name): Named<ContributorName>,
    body: Unread,
) -> Result<Json<ContributorView>> {
    app.service.require(&call, &Action::Administer, "contributor-edit", name.as_str()).await?;
    let asked: ContributorEdit = body.json().await?;
    let group = asked.group.map(|group| parse("group", &group)).transpose()?;
    let change = ContributorChange { suspended: asked.suspended, group };
    Ok(Json(view(app.service.edit_contributor(&call, &name, &change).await?)))
}

/// Erase a contributor
///
/// For good: where their calls came from, notes and reasons, and their name, in whose place a pseudonym stands. They
/// must be suspended. What they pushed stays; signatures, log and commitments to the audit rows still verify.
#[utoipa::path(
    post, path = "/api/v1/contributors/{name}/erase", operation_id = "contributor_erase", tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name")),
    responses((status = 200, description = "What was erased", body = ContributorErased),
        ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn erase(
    State(app): State<App>,
    Holder(call): Holder,
    Named(name): Named<ContributorName>,
) -> Result<Json<ContributorErased>> {
    let erased = app.service.erase_contributor(&call, &name).await?;
    Ok(Json(ContributorErased {
        name: erased.name.to_string(),
        audit_rows: erased.audit_rows,
        log_details: erased.log_details,
    }))
}

/// Register a contributor's public key
///
/// `Sig:` lines that verify under it are kept, served, and count as the contributor's evidence.
#[utoipa::path(
    post, path = "/api/v1/contributors/{name}/keys", operation_id = "contributor_key_add", tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name")),
    request_body = ContributorKeyAdd,
    responses((status = 201, description = "The contributor, with the key", body = ContributorView),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn add_key(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(name): Named<ContributorName>,
    body: Unread,
) -> Result<(StatusCode, Json<ContributorView>)> {
    app.service.require(&call, &Action::Administer, "contributor-key-add", name.as_str()).await?;
    let asked: ContributorKeyAdd = body.json().await?;
    let key: PublicKey = parse("public_key", &asked.public_key)?;
    app.service.add_contributor_key(&call, &name, &key).await?;
    let contributor = app.service.show_contributor(&call, &name).await?;
    Ok((StatusCode::CREATED, Json(view(contributor))))
}

/// Take a contributor's public key back
///
/// Signatures by it count no longer from now on. Its name is never given again.
#[utoipa::path(
    delete, path = "/api/v1/contributors/{name}/keys/{key}", operation_id = "contributor_key_remove",
    tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name"),
        ("key" = String, Path, description = "The key's name: what stands before the colon")),
    responses((status = 204, description = "It counts no longer"), ToSome, Unknown),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn remove_key(
    State(app): State<App>,
    Holder(call): Holder,
    Named(name): Named<ContributorName>,
    Named(key): Named<KeyName>,
) -> Result<StatusCode> {
    app.service.remove_contributor_key(&call, &name, &key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Revoke all tokens of a contributor
///
/// Once this has answered, no request that begins later succeeds with any of them. What they issued to others
/// dies too unless `keep_issued`. Works while the vault is sealed.
#[utoipa::path(
    post, path = "/api/v1/contributors/{name}/revoke-tokens", operation_id = "contributor_revoke_tokens",
    tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name")),
    request_body = RevokeRequest,
    responses((status = 200, description = "What died by this call", body = Revoked), ToSome, Unknown, WithBody),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn revoke_tokens(
    State(app): State<App>,
    Holder(call): Holder,
    Named(name): Named<ContributorName>,
    body: Unread,
) -> Result<Json<Revoked>> {
    let asked: RevokeRequest = body.json().await?;
    let service = &app.service;
    let revoked = service.revoke_contributor_tokens(&call, &name, &asked.reason, asked.keep_issued).await?;
    Ok(Json(revoked_view(&revoked)))
}

fn kind(asked: api::ContributorKind) -> ContributorKind {
    match asked {
        api::ContributorKind::Person => ContributorKind::Person,
        api::ContributorKind::Ci => ContributorKind::Ci,
        api::ContributorKind::Builder => ContributorKind::Builder,
    }
}

fn view(contributor: ContributorDetails) -> ContributorView {
    let ContributorDetails { row, public_keys, paths, bytes } = contributor;
    ContributorView {
        id: row.id.to_string(),
        name: row.name.to_string(),
        kind: match row.kind {
            ContributorKind::Person => api::ContributorKind::Person,
            ContributorKind::Ci => api::ContributorKind::Ci,
            ContributorKind::Builder => api::ContributorKind::Builder,
        },
        group: row.group.map(|group| group.to_string()),
        suspended: row.suspended_at.is_some(),
        public_keys: public_keys.iter().map(PublicKey::to_string).collect(),
        paths,
        bytes,
        created_at: row.created_at.rfc3339(),
    }
}
