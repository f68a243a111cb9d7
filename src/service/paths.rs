//! Paths as people ask for them: lists, one with all its evidence, and its deletion.

use std::time::Duration;

use serde_json::json;

use super::leaves::{Leaf, LeafEvent};
use super::provenance::{self, PathAct};
use super::release::Release;
use super::{Call, Conflict, Error, Result, Service};
use crate::access::{Action, CacheName, ContributorName, TokenId};
use crate::db::audit::Outcome;
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches::CacheRow;
use crate::db::evidence::{self, ConflictRow, EvidenceRow};
use crate::db::paths::{self, PathFilter, PathRow, PathState, PathSummaryRow, SignatureRow};
use crate::db::withdrawals::{self, Fate};
use crate::db::{Gate, PageBounds, Tx, contributors, epoch, measured, realisations, restarting};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::storage::CacheObject;
use crate::time::Timestamp;

/// Everything that is known of a path.
#[derive(Debug)]
pub struct PathDetails {
    pub path: PathRow,
    pub signatures: Vec<SignatureRow>,
    pub evidence: Vec<EvidenceRow>,
    pub conflicts: Vec<ConflictRow>,
    /// Every leaf about it, oldest first.
    pub history: Vec<PathAct>,
}

/// Which paths are asked for; names are resolved here.
#[derive(Debug, Clone, Default)]
pub struct PathQuery {
    pub contributor: Option<ContributorName>,
    pub token: Option<TokenId>,
    /// Those whose state changed at or after this moment.
    pub since: Option<Timestamp>,
    pub state: Option<PathState>,
}

/// What a deletion came to.
#[derive(Debug)]
pub struct DeletedPath {
    pub path: StorePath,
    /// Whether storage has lost it already.
    pub gone: bool,
    /// Published or withdrawn paths with the same content, whose file stays for them.
    pub file_shared_with: Vec<String>,
    /// Published paths that refer to it.
    pub referrers: Vec<String>,
}

impl Service {
    /// A page of a cache's paths: all for an admin, their own for others.
    pub async fn list_paths(
        &self,
        call: &Call,
        cache: &CacheName,
        query: &PathQuery,
        page: &PageBounds,
    ) -> Result<Vec<PathSummaryRow>> {
        let mut connection = self.inner.db.read().await?;
        let asked = match &query.contributor {
            None => None,
            Some(name) => Some(contributors::by_name(&mut connection, name).await?.map(|row| row.id)),
        };
        let contributor = if call.caller.require(&Action::Administer).is_ok() {
            asked.map(|id| id.ok_or(Error::NotFound("contributor"))).transpose()?
        } else {
            let own = self.pusher(call, cache).await?.contributor;
            if asked.is_some_and(|asked| asked != Some(own)) {
                return Err(Error::Forbidden);
            }
            Some(own)
        };
        drop(connection);
        let cache = self.existing_cache(cache).await?;
        let PathQuery { token, since, state, .. } = *query;
        let filter = PathFilter { contributor, token, since, state };
        Ok(paths::list(&mut *self.inner.db.read().await?, cache.id, &filter, page).await?)
    }

    /// One path with its evidence: for an admin, and for contributors who supported it themselves.
    pub async fn show_path(
        &self,
        call: &Call,
        cache: &CacheName,
        hash: StorePathHash,
    ) -> Result<PathDetails> {
        let is_admin = call.caller.require(&Action::Administer).is_ok();
        let pusher = if is_admin { None } else { Some(self.pusher(call, cache).await?) };
        let cache = self.existing_cache(cache).await?;
        let mut connection = self.inner.db.read().await?;
        let path = paths::find(&mut connection, cache.id, hash).await?.ok_or(Error::NotFound("path"))?;
        let evidence = evidence::of_claim(&mut connection, &path.claim_id).await?;
        if let Some(pusher) = pusher {
            let own = pusher.contributor.to_string();
            if !evidence.iter().any(|row| row.source_id == own) {
                return Err(Error::NotFound("path"));
            }
        }
        let signatures = paths::signatures(&mut connection, &path.claim_id).await?;
        let conflicts = evidence::conflicts(&mut connection, &path.id).await?;
        let history = provenance::acts(&mut connection, &path.id, is_admin).await?;
        Ok(PathDetails { path, signatures, evidence, conflicts, history })
    }

    /// Deletes a published or withdrawn path: from the commit on no replica serves it, and its bytes, in
    /// whatever compression they were pushed, leave the storage, unless another path needs them.
    pub async fn delete_path(
        &self,
        call: &Call,
        cache: &CacheName,
        hash: StorePathHash,
        reason: &str,
    ) -> Result<DeletedPath> {
        let action = Action::Delete(cache.clone());
        self.require(call, &action, "path-delete", hash.as_str()).await?;
        let reason = super::tokens::checked_text("reason", reason)?;
        let cache = self.existing_cache(cache).await?;
        let (mut deleted, objects) = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &action, now).await?;
            let cache = self.recheck_cache(&mut tx, &cache).await?;
            let path = paths::find(&mut tx, cache.id, hash).await?;
            let path = path.ok_or(Error::NotFound("path"))?;
            if !matches!(path.state, PathState::Published | PathState::Withdrawn) {
                return Err(Conflict::State("the path is deleted already").into());
            }
            let referrers = paths::referrers(&mut tx, cache.id, hash, NAMED_MAX).await?;
            let mut release = Release::new(self, &cache, now);
            let leaf = self.delete_in_tx(&mut tx, call, &mut release, &path, reason, now).await?;
            let file_shared_with =
                paths::standing_with_nar(&mut tx, cache.id, &path.claim.nar_hash, NAMED_MAX).await?;
            let detail = json!({ "cache": cache.name.as_str(), "reason": reason });
            let subject = path.claim.path.base_name().to_owned();
            self.audit(&mut tx, call, "path-delete", Outcome::Done, &subject, detail, now).await?;
            epoch::advance(&mut tx).await?;
            super::log::append(&mut tx, &[leaf]).await?;
            let objects = release.objects;
            tx.commit().await?;
            let path = path.claim.path;
            Ok::<_, Error>((DeletedPath { path, gone: false, file_shared_with, referrers }, objects))
        })
        .await?;
        self.note_change().await;
        tracing::info!(cache = %cache.name, path = %deleted.path, "path deleted");
        deleted.gone = self.release_within(objects, DELETION_WAIT).await;
        Ok(deleted)
    }

    /// The rows' part of a deletion; the caller appends the leaf.
    pub(super) async fn delete_in_tx(
        &self,
        tx: &mut Tx,
        call: &Call,
        release: &mut Release<'_>,
        path: &PathRow,
        reason: &str,
        now: Timestamp,
    ) -> Result<crate::db::log::LeafRow> {
        let cache: &CacheRow = release.cache;
        let hash = path.claim.path.hash();
        if !paths::change_state(tx, &path.id, path.state, PathState::Deleted, now).await? {
            return Err(Conflict::State("the path has changed in the meantime").into());
        }
        withdrawals::end_of_paths(tx, [&path.id], Fate::Deleted, now).await?;
        auxiliary::drop_aside(tx, &path.id).await?;
        release.object(tx, CacheObject::Narinfo(hash)).await?;
        for name in auxiliary::remove(tx, cache.id, AuxiliaryKind::Listing, hash.as_str()).await? {
            release.auxiliary(tx, AuxiliaryKind::Listing, &name).await?;
        }
        for object in realisations::remove(tx, cache.id, hash.as_str()).await? {
            if let Ok(key) = object.parse() {
                release.object(tx, CacheObject::Realisation(key)).await?;
            }
        }
        for row in measured::of_nar(tx, cache.id, &path.claim.nar_hash).await? {
            if measured::is_claimed(tx, cache.id, &row.file).await? {
                continue;
            }
            measured::doom(tx, &row.id).await?;
            release.object(tx, CacheObject::Nar(row.file)).await?;
            let links =
                auxiliary::remove(tx, cache.id, AuxiliaryKind::DebugInfo, &row.file.to_string()).await?;
            for name in links {
                release.auxiliary(tx, AuxiliaryKind::DebugInfo, &name).await?;
            }
        }
        self.leaf_row(Leaf {
            call,
            by: call.caller.token(),
            cache: Some(cache),
            path_id: Some(&path.id),
            event: LeafEvent::Delete(&path.claim),
            detail: json!({ "reason": reason }),
            now,
        })
    }
}

/// How many other paths an answer names.
const NAMED_MAX: i64 = 100;

/// How long a deletion waits for storage before it answers that the rest goes on by itself.
const DELETION_WAIT: Duration = Duration::from_secs(20);
