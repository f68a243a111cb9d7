//! Quarantines and restorations, and what consumers may ask of them.

use axum::Json;
use axum::extract::State;

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::paging::Paging;
use super::paths::{parse_time, whole};
use super::refusals::{Conflicts, ToSome, Unknown, WithBody, WithQuery};
use crate::access::{CacheName, ContributorName, TokenId};
use crate::api::{
    CachePath, LeftPath, Page, PageQuery, QuarantineCreate, QuarantineOutcome, QuarantineQuery,
    QuarantineView, RestoreCreate, RestoreOutcome, WithdrawalView, WithdrawnPath, WithdrawnQuery,
};
use crate::http::App;
use crate::nix::store_path::StorePathHash;
use crate::service::{
    AffectedRow, Call, QuarantineId, QuarantineRequest, QuarantineRow, Quarantined, Rejection, Restored,
    TakedownTarget, WhatIf, WithdrawalRow,
};
use crate::time::Timestamp;

/// Quarantine a contributor
///
/// Their tokens die, and those that these issued; evidence by them since then counts no longer; paths that rest on
/// it alone are withdrawn: 404, and their narinfos leave the storage. Paths with other evidence, or a valid signature
/// of an upstream, stay. Answers when the narinfos are gone, or after `limits.takedown_answer_seconds` (60); the server
/// goes on with the rest. Doing it again changes nothing. Works while the vault is sealed.
#[utoipa::path(
    post, path = "/api/v1/contributors/{name}/quarantine", operation_id = "contributor_quarantine",
    tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name"), QuarantineQuery),
    request_body = QuarantineCreate,
    responses((status = 200, description = "What happened, or would", body = QuarantineOutcome),
        ToSome, Unknown, WithQuery, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn quarantine_contributor(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(name): Named<ContributorName>,
    Query(query): Query<QuarantineQuery>,
    body: Unread,
) -> Result<Json<QuarantineOutcome>> {
    quarantine(&app, &call, TakedownTarget::Contributor(name), query, body).await
}

/// End a contributor's quarantine
///
/// The evidence counts again, and what was withdrawn for want of it is back as it was, byte for byte. A path where
/// another claim stands meanwhile is left, and named. Tokens stay dead.
#[utoipa::path(
    post, path = "/api/v1/contributors/{name}/restore", operation_id = "contributor_restore",
    tag = "contributors",
    params(("name" = String, Path, description = "The contributor's name")),
    request_body = RestoreCreate,
    responses((status = 200, description = "What happened", body = RestoreOutcome),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn restore_contributor(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(name): Named<ContributorName>,
    body: Unread,
) -> Result<Json<RestoreOutcome>> {
    restore(&app, &call, TakedownTarget::Contributor(name), body).await
}

/// Quarantine a token
///
/// As for a contributor, with what was pushed by this token and by those that it issued.
#[utoipa::path(
    post, path = "/api/v1/tokens/{id}/quarantine", operation_id = "token_quarantine", tag = "tokens",
    params(("id" = String, Path, description = "The token's `jti`"), QuarantineQuery),
    request_body = QuarantineCreate,
    responses((status = 200, description = "What happened, or would", body = QuarantineOutcome),
        ToSome, Unknown, WithQuery, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn quarantine_token(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(id): Named<TokenId>,
    Query(query): Query<QuarantineQuery>,
    body: Unread,
) -> Result<Json<QuarantineOutcome>> {
    quarantine(&app, &call, TakedownTarget::Token(id), query, body).await
}

/// End a token's quarantine
///
/// The token stays dead.
#[utoipa::path(
    post, path = "/api/v1/tokens/{id}/restore", operation_id = "token_restore", tag = "tokens",
    params(("id" = String, Path, description = "The token's `jti`")),
    request_body = RestoreCreate,
    responses((status = 200, description = "What happened", body = RestoreOutcome),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn restore_token(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(id): Named<TokenId>,
    body: Unread,
) -> Result<Json<RestoreOutcome>> {
    restore(&app, &call, TakedownTarget::Token(id), body).await
}

/// Quarantine a path
///
/// Whoever vouches for it: all evidence for what stands there is void, and it is withdrawn. Its bytes stay, unserved,
/// until it is restored or deleted. It may be pushed anew.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/paths/{hash}/quarantine", operation_id = "path_quarantine",
    tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"),
        ("hash" = String, Path, description = "The 32 characters after `/nix/store/`"), QuarantineQuery),
    request_body = QuarantineCreate,
    responses((status = 200, description = "What happened, or would", body = QuarantineOutcome),
        ToSome, Unknown, Conflicts, WithQuery, WithBody),
    security(("bearer" = ["delete:{cache}"]), ("basic" = ["delete:{cache}"])),
)]
pub(super) async fn quarantine_path(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(hash): Named<StorePathHash>,
    Query(query): Query<QuarantineQuery>,
    body: Unread,
) -> Result<Json<QuarantineOutcome>> {
    quarantine(&app, &call, TakedownTarget::Path(cache, hash), query, body).await
}

/// End a path's quarantine
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/paths/{hash}/restore", operation_id = "path_restore", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"),
        ("hash" = String, Path, description = "The 32 characters after `/nix/store/`")),
    request_body = RestoreCreate,
    responses((status = 200, description = "What happened", body = RestoreOutcome),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["delete:{cache}"]), ("basic" = ["delete:{cache}"])),
)]
pub(super) async fn restore_path(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(hash): Named<StorePathHash>,
    body: Unread,
) -> Result<Json<RestoreOutcome>> {
    restore(&app, &call, TakedownTarget::Path(cache, hash), body).await
}

/// List quarantines
///
/// Restored ones too.
#[utoipa::path(
    get, path = "/api/v1/quarantines", operation_id = "quarantines", tag = "contributors",
    params(PageQuery),
    responses((status = 200, description = "A page of quarantines", body = Page<QuarantineView>),
        ToSome, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn quarantines(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<QuarantineView>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.list_quarantines(&call, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), quarantine_view)))
}

/// List what a quarantine withdrew
///
/// Each time that a path was withdrawn, and how that ended.
#[utoipa::path(
    get, path = "/api/v1/quarantines/{quarantine}/paths", operation_id = "quarantine_paths",
    tag = "contributors",
    params(("quarantine" = String, Path, description = "The quarantine's id"), PageQuery),
    responses((status = 200, description = "A page of withdrawals", body = Page<WithdrawalView>),
        ToSome, Unknown, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn withdrawals(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<QuarantineId>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<WithdrawalView>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.list_withdrawals(&call, &id, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), withdrawal_view)))
}

/// List what was withdrawn from a cache
///
/// For whoever pulled from it and wants to know whether that still stands: paths that were withdrawn and are not back
/// with that content. For a public cache anybody may ask.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/withdrawn", operation_id = "withdrawn", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"), WithdrawnQuery),
    responses((status = 200, description = "A page of withdrawn paths", body = Page<WithdrawnPath>),
        ToSome, Unknown, WithQuery),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn withdrawn(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Query(asked): Query<WithdrawnQuery>,
) -> Result<Json<Page<WithdrawnPath>>> {
    // The right first, as everywhere; then what is asked.
    app.service.cache_to_pull(&call, &cache).await?;
    let WithdrawnQuery { since, cursor, limit, order } = asked;
    let paging = Paging::new(PageQuery { cursor, limit, order })?;
    let since = since.map(|time| parse_time("since", &time)).transpose()?.unwrap_or(Timestamp(0));
    let rows = app.service.withdrawn_since(&call, &cache, since, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), affected_view)))
}

async fn quarantine(
    app: &App,
    call: &Call,
    target: TakedownTarget,
    query: QuarantineQuery,
    body: Unread,
) -> Result<Json<QuarantineOutcome>> {
    app.service.require_takedown(call, &target, false).await?;
    let asked = request(&target, body.json().await?)?;
    let outcome = if query.dry_run {
        dry_view(app.service.quarantine_impact(call, &target, &asked).await?)
    } else {
        outcome_view(app.service.quarantine(call, &target, &asked).await?)
    };
    Ok(Json(outcome))
}

async fn restore(
    app: &App,
    call: &Call,
    target: TakedownTarget,
    body: Unread,
) -> Result<Json<RestoreOutcome>> {
    app.service.require_takedown(call, &target, true).await?;
    let asked: RestoreCreate = body.json().await?;
    Ok(Json(restored_view(app.service.restore(call, &target, &asked.reason).await?)))
}

/// Refuses what makes no sense for this kind of subject.
fn request(
    target: &TakedownTarget,
    asked: QuarantineCreate,
) -> std::result::Result<QuarantineRequest, Rejection> {
    let QuarantineCreate { reason, since, dependents, keep_issued } = asked;
    match target {
        TakedownTarget::Contributor(_) if since.is_none() => {
            return Err(Rejection::value("since", "is needed: from when on is their evidence void?"));
        }
        TakedownTarget::Path(..) if since.is_some() => {
            return Err(Rejection::value("since", "is not for a path, of which all evidence is void"));
        }
        TakedownTarget::Path(..) if keep_issued => {
            return Err(Rejection::value("keep_issued", "is not for a path, which issues no tokens"));
        }
        _ => {}
    }
    let since = since.map(|time| parse_time("since", &time)).transpose()?;
    Ok(QuarantineRequest { since, reason, dependents, keep_issued })
}

fn dry_view(found: WhatIf) -> QuarantineOutcome {
    let WhatIf { name, kind, tokens, impact } = found;
    QuarantineOutcome {
        id: None,
        kind: kind.to_owned(),
        subject: name,
        changed: false,
        finished: false,
        paths_left: 0,
        narinfos_left: 0,
        tokens: tokens.iter().map(ToString::to_string).collect(),
        evidence: impact.evidence,
        paths: impact.doomed.0,
        withdrawn: cache_paths(impact.doomed.1),
        kept: Some(impact.kept),
        dependents: impact.dependents.0,
        dependent_paths: cache_paths(impact.dependents.1),
    }
}

fn outcome_view(done: Quarantined) -> QuarantineOutcome {
    let Quarantined { row, changed, tokens, evidence, counts, withdrawn, dependents, .. } = done;
    let standing = withdrawn.into_iter().filter(|one| one.ended_how.is_none());
    QuarantineOutcome {
        kind: row.subject.kind().to_owned(),
        subject: row.name,
        changed,
        finished: row.done_at.is_some(),
        paths_left: done.paths_left,
        narinfos_left: done.narinfos_left,
        tokens: tokens.iter().map(ToString::to_string).collect(),
        evidence,
        paths: counts.evidence + counts.dependents,
        withdrawn: cache_paths(standing.map(|one| (one.cache, one.store_path)).collect()),
        kept: None,
        dependents: dependents.0,
        dependent_paths: cache_paths(dependents.1),
        id: Some(row.id),
    }
}

fn restored_view(done: Restored) -> RestoreOutcome {
    let Restored { row, changed, counts, left, paths_left, narinfos_left } = done;
    let left_path = |one: WithdrawalRow| LeftPath {
        why: one.fate().as_str().to_owned(),
        cache: one.cache,
        store_path: whole(&one.store_path),
    };
    RestoreOutcome {
        kind: row.subject.kind().to_owned(),
        subject: row.name,
        changed,
        finished: row.restored_at.is_some(),
        paths_left,
        narinfos_left,
        restored: counts.restored,
        left: counts.left,
        left_paths: left.into_iter().map(left_path).collect(),
        id: row.id,
    }
}

fn quarantine_view(row: QuarantineRow) -> QuarantineView {
    let state = match (row.restored_at, row.restoring_at, row.done_at) {
        (Some(_), ..) => "restored",
        (None, Some(_), _) => "restoring",
        (None, None, Some(_)) => "standing",
        (None, None, None) => "running",
    };
    QuarantineView {
        kind: row.subject.kind().to_owned(),
        state: state.to_owned(),
        since: (row.since.0 > 0).then(|| row.since.rfc3339()),
        id: row.id,
        subject: row.name,
        reason: row.reason,
        dependents: row.dependents,
        keep_issued: row.keep_issued,
        begun_at: row.begun_at.rfc3339(),
        restore_reason: row.restore_reason,
        restored_at: row.restored_at.map(Timestamp::rfc3339),
    }
}

fn withdrawal_view(row: WithdrawalRow) -> WithdrawalView {
    WithdrawalView {
        ended: row.ended_how.is_some().then(|| row.fate().as_str().to_owned()),
        cache: row.cache,
        store_path: whole(&row.store_path),
        cause: row.cause,
        withdrawn_at: Timestamp(row.at).rfc3339(),
    }
}

fn affected_view(row: AffectedRow) -> WithdrawnPath {
    WithdrawnPath {
        store_path: whole(&row.store_path),
        nar_hash: format!("sha256:{}", row.nar_hash),
        withdrawn_at: Timestamp(row.at).rfc3339(),
    }
}

fn cache_paths(named: Vec<(String, String)>) -> Vec<CachePath> {
    named.into_iter().map(|(cache, path)| CachePath { cache, store_path: whole(&path) }).collect()
}
