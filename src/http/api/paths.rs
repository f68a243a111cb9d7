//! Paths: what is missing, what is there, by whom, and how it goes away.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::paging::Paging;
use super::refusals::{Conflicts, ToSome, Unknown, WithBody, WithLargeBody, WithQuery};
use super::tokens::parse;
use crate::access::{Action, CacheName};
use crate::api::{
    ConflictView, EvidenceView, MissingAnswer, MissingRequest, Page, PageQuery, PathActView, PathDelete,
    PathDeleted, PathProofQuery, PathQuery, PathSummary, PathView, SignatureView,
};
use crate::http::App;
use crate::nix::store_path::{STORE_DIR, StorePathHash};
use crate::service::{
    self, ConflictRow, DeletedPath, EvidenceRow, Missing, PathAct, PathDetails, PathState, PathSummaryRow,
    Rejection, SignatureRow,
};
use crate::time::Timestamp;

/// Most hashes of one question: 10 000, as a closure of a large system has.
const HASHES_COUNT_MAX: usize = 10_000;

/// Largest question, in bytes: 10 000 hashes take 350 KB.
const MISSING_SIZE_BYTES_MAX: u64 = 1024 * 1024;

/// Ask what is missing
///
/// Of up to 10 000 hashes, those that are not published here: what is left to push.
#[utoipa::path(
    post, path = "/api/v1/caches/{cache}/missing", operation_id = "missing", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name")),
    request_body(content = MissingRequest, description = "At most 1 MiB"),
    responses((status = 200, description = "Those that are not published", body = MissingAnswer),
        ToSome, Unknown, WithBody, WithLargeBody),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn missing(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    body: Unread,
) -> Result<Json<MissingAnswer>> {
    app.service.cache_to_push(&call, &cache).await?;
    let asked: MissingRequest = body.json_within(MISSING_SIZE_BYTES_MAX).await?;
    if asked.hashes.len() > HASHES_COUNT_MAX {
        let why = format!("{} of them, at most {HASHES_COUNT_MAX} are answered at once", asked.hashes.len());
        return Err(Rejection::value("hashes", why).into());
    }
    let hashes = asked.hashes.iter().map(|text| parse("hashes", text));
    let hashes = hashes.collect::<std::result::Result<Vec<StorePathHash>, _>>()?;
    let Missing { to_push, upstream } = app.service.missing(&call, &cache, &hashes).await?;
    let texts = |hashes: Vec<StorePathHash>| hashes.iter().map(ToString::to_string).collect();
    Ok(Json(MissingAnswer { missing: texts(to_push), upstream: texts(upstream) }))
}

/// List paths
///
/// With who pushed each first, when, and under which keys it is signed. An admin sees all, others what they
/// pushed themselves.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/paths", operation_id = "paths", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"), PathQuery),
    responses((status = 200, description = "A page of paths", body = Page<PathSummary>),
        ToSome, Unknown, WithQuery),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Query(asked): Query<PathQuery>,
) -> Result<Json<Page<PathSummary>>> {
    let PathQuery { contributor, token, since, state, cursor, limit, order } = asked;
    let paging = Paging::new(PageQuery { cursor, limit, order })?;
    let query = service::PathQuery {
        contributor: contributor.map(|name| parse("contributor", &name)).transpose()?,
        token: token.map(|id| parse("token", &id)).transpose()?,
        since: since.map(|time| parse_time("since", &time)).transpose()?,
        state: state.map(|state| parse_state(&state)).transpose()?,
    };
    let rows = app.service.list_paths(&call, &cache, &query, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), summary)))
}

/// Show a path
///
/// The claim that stands, its signatures, every piece of evidence with its contributor and token, and the
/// claims that were refused. For an admin, and for contributors who supported it.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/paths/{hash}", operation_id = "path", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"),
        ("hash" = String, Path, description = "The 32 characters after `/nix/store/`")),
    responses((status = 200, description = "The path", body = PathView), ToSome, Unknown),
    security(("bearer" = ["push:{cache}"]), ("basic" = ["push:{cache}"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Holder(call): Holder,
    Named(cache): Named<CacheName>,
    Named(hash): Named<StorePathHash>,
) -> Result<Json<PathView>> {
    Ok(Json(view(app.service.show_path(&call, &cache, hash).await?)))
}

/// Prove a path's signature
///
/// That the signature is in the signature log, as a file of c2sp.org/tlog-proof: checkpoint, inclusion, and as
/// extra data the leaf with what it leaves out. `narvault verify` checks it without a server. For who may pull
/// from the cache. A signature is in the published log after a second or two; until then this is a 409.
#[utoipa::path(
    get, path = "/api/v1/caches/{cache}/paths/{hash}/proof", operation_id = "path_proof", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"),
        ("hash" = String, Path, description = "The 32 characters after `/nix/store/`"), PathProofQuery),
    responses((status = 200, description = "The proof file", body = String, content_type = "text/plain"),
        ToSome, Unknown, Conflicts, WithQuery),
    security((), ("bearer" = ["pull:{cache}"]), ("basic" = ["pull:{cache}"])),
)]
pub(super) async fn proof(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(hash): Named<StorePathHash>,
    Query(asked): Query<PathProofQuery>,
) -> Result<Response> {
    let key = asked.key.map(|key| parse("key", &key)).transpose()?;
    let proof = app.service.path_proof(&call, &cache, hash, key.as_ref()).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], proof).into_response())
}

/// Delete a path
///
/// For a leaked secret: from the answer on no replica serves it, and its bytes leave the storage, unless
/// another published path has the same file, which is then named. Works while the vault is sealed.
#[utoipa::path(
    delete, path = "/api/v1/caches/{cache}/paths/{hash}", operation_id = "path_delete", tag = "paths",
    params(("cache" = String, Path, description = "The cache's name"),
        ("hash" = String, Path, description = "The 32 characters after `/nix/store/`")),
    request_body = PathDelete,
    responses((status = 200, description = "It is not served any more", body = PathDeleted),
        ToSome, Unknown, Conflicts, WithBody),
    security(("bearer" = ["delete:{cache}"]), ("basic" = ["delete:{cache}"])),
)]
pub(super) async fn delete(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(cache): Named<CacheName>,
    Named(hash): Named<StorePathHash>,
    body: Unread,
) -> Result<Json<PathDeleted>> {
    app.service.require(&call, &Action::Delete(cache.clone()), "path-delete", hash.as_str()).await?;
    let asked: PathDelete = body.json().await?;
    let deleted = app.service.delete_path(&call, &cache, hash, &asked.reason).await?;
    Ok(Json(deleted_view(deleted)))
}

pub(super) fn parse_time(field: &'static str, text: &str) -> std::result::Result<Timestamp, Rejection> {
    Timestamp::parse_rfc3339(text).map_err(|error| Rejection::value(field, error))
}

fn parse_state(text: &str) -> std::result::Result<PathState, Rejection> {
    let words = PathState::ALL.map(PathState::as_str).join(", ");
    PathState::parse(text).ok_or_else(|| Rejection::value("state", format!("is not one of {words}")))
}

/// Store paths are kept by base name, and shown whole.
pub(super) fn whole(base_name: &str) -> String {
    format!("{STORE_DIR}/{base_name}")
}

fn summary(row: PathSummaryRow) -> PathSummary {
    PathSummary {
        store_path: whole(&row.store_path),
        state: row.state,
        nar_size: size(row.nar_size),
        file_size: size(row.file_size),
        contributor: row.contributor.unwrap_or_default(),
        contributor_id: row.contributor_id.unwrap_or_default(),
        token_id: row.token_id.unwrap_or_default(),
        keys: row.keys.split_whitespace().map(str::to_owned).collect(),
        published_at: Timestamp(row.published_at).rfc3339(),
        changed_at: Timestamp(row.changed_at).rfc3339(),
    }
}

/// Sizes are not negative in any row that this server wrote.
fn size(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

fn view(details: PathDetails) -> PathView {
    let PathDetails { path, signatures, evidence, conflicts, history } = details;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    PathView {
        store_path: path.claim.path.to_string(),
        state: path.state.as_str().to_owned(),
        nar_hash: path.claim.nar_hash.to_string(),
        nar_size: path.claim.nar_size,
        references: path.claim.references.iter().map(ToString::to_string).collect(),
        deriver: path.deriver.as_ref().map(ToString::to_string),
        ca: path.ca,
        url: format!("nar/{}", path.file),
        file_size: path.file_size,
        signatures: signatures.into_iter().map(signature_view).collect(),
        evidence: evidence.into_iter().map(evidence_view).collect(),
        conflicts: conflicts.into_iter().map(conflict_view).collect(),
        history: history.into_iter().map(act_view).collect(),
        undeclared_references: words(&path.undeclared_refs),
        unfound_references: words(&path.unfound_refs),
        published_at: path.published_at.rfc3339(),
        changed_at: path.changed_at.rfc3339(),
    }
}

fn signature_view(row: SignatureRow) -> SignatureView {
    SignatureView {
        key: row.signature.name.as_str().to_owned(),
        signature: row.signature.to_string(),
        log_index: row.leaf.and_then(|index| u64::try_from(index).ok()),
    }
}

fn evidence_view(row: EvidenceRow) -> EvidenceView {
    let is_contributor = row.contributor.is_some();
    EvidenceView {
        kind: row.kind,
        source: row.contributor.unwrap_or_else(|| row.source_id.clone()),
        contributor_id: is_contributor.then_some(row.source_id),
        token_id: row.token_id,
        at: row.at.rfc3339(),
        void: row.void,
    }
}

fn conflict_view(row: ConflictRow) -> ConflictView {
    ConflictView {
        contributor: row.contributor,
        token_id: row.token_id,
        nar_hash: format!("sha256:{}", row.nar_hash),
        at: row.at.rfc3339(),
    }
}

fn act_view(act: PathAct) -> PathActView {
    PathActView {
        log_index: act.index,
        event: act.event,
        at: act.at,
        key: act.key,
        contributor: act.contributor.map(|name| name.to_string()),
        contributor_id: act.contributor_id,
        token_id: act.token_id,
        address: act.address,
        client: act.client,
        reason: act.reason,
    }
}

fn deleted_view(deleted: DeletedPath) -> PathDeleted {
    let whole = |names: Vec<String>| names.iter().map(|name| whole(name)).collect();
    PathDeleted {
        store_path: deleted.path.to_string(),
        gone: deleted.gone,
        file_shared_with: whole(deleted.file_shared_with),
        referrers: whole(deleted.referrers),
    }
}
