//! Carrying quarantines and restorations through: batch by batch behind the gate, each batch whole or not at all.
//!
//! Whatever was committed stays and is not done again, so anybody may go on from there, also two at once.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::access::{CacheId, Caller, Scope, Scopes, TokenCaller, TokenId};
use crate::db::auxiliary::{self, AuxiliaryKind, Belongs};
use crate::db::caches::CacheRow;
use crate::db::evidence::{self, TakenRow};
use crate::db::log::LeafRow;
use crate::db::paths::{self, PathRow, PathState};
use crate::db::quarantines::{self, By, QuarantineRow, Subject};
use crate::db::withdrawals::{self, Cause, Fate, NewWithdrawal, PathPlace};
use crate::db::{Gate, Tx, caches, epoch, realisations, restarting};
use crate::nix::store_path::StorePathHash;
use crate::service::leaves::{Leaf, LeafEvent};
use crate::service::release::Release;
use crate::service::tokens::{Authority, Family, Root};
use crate::service::{Call, Error, Origin, Result, Service};
use crate::storage::CacheObject;
use crate::time::Timestamp;

/// What a batch came to.
pub(super) enum Step {
    /// There may be more; evidence of the contributor is left from this moment on only.
    More(Timestamp),
    Done,
}

/// One batch: its transaction's moment, and the leaves that wait for the log's lock.
struct Batch<'a> {
    row: &'a QuarantineRow,
    /// Who asked for it, in whichever direction it goes.
    asker: By,
    now: Timestamp,
    leaves: Vec<LeafRow>,
}

/// Where the paths of a batch go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Back,
    Out(Cause),
}

impl Service {
    /// Brings a quarantine, or its restoration, to its end. Answers with the tokens that died. `revoke`: also if the row
    /// says that they are dead, which somebody may have written who began before it was made wider.
    pub(super) async fn carry_through(&self, id: &str, revoke: bool) -> Result<Vec<TokenId>> {
        let row = quarantines::by_id(&mut *self.inner.db.read().await?, id).await?;
        let row = row.ok_or(Error::NotFound("quarantine"))?;
        let mut died = Vec::new();
        let revoke = revoke || row.tokens_dead_at.is_none();
        if revoke && row.restoring_at.is_none() && row.restored_at.is_none() {
            // Before anything else: what a token that lives pushes is not void.
            died = self.revoke_of(&row).await?;
        }
        let mut from = Timestamp(i64::MIN);
        while !self.inner.stop.is_cancelled() {
            let step = restarting(|| self.carry_on(id, from)).await?;
            match step {
                Step::More(next) => from = next,
                Step::Done => break,
            }
        }
        self.note_change().await;
        Ok(died)
    }

    /// Revokes what a quarantine kills, and writes down that this was done.
    pub(super) async fn revoke_of(&self, row: &QuarantineRow) -> Result<Vec<TokenId>> {
        let root = match row.subject {
            Subject::Contributor(id) => Some(Root::Contributor(id)),
            Subject::Token(id) => Some(Root::Token(id)),
            Subject::Path(_) => None,
        };
        let died = match root {
            None => Vec::new(),
            Some(root) => {
                let (keep_issued, reason) = (row.keep_issued, &row.reason);
                let family = Family { root, keep_issued, reason, authority: Authority::Quarantine };
                self.revoke_family(&call_by(row.by)?, &family).await?
            }
        };
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        quarantines::tokens_dead(&mut tx, &row.id, self.inner.clock.now()).await?;
        tx.commit().await?;
        Ok(died)
    }

    /// One batch, in whichever direction the row says by then.
    pub(super) async fn carry_on(&self, id: &str, from: Timestamp) -> Result<Step> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let row = quarantines::by_id(&mut tx, id).await?.ok_or(Error::NotFound("quarantine"))?;
        let restoring = row.restoring_at.is_some();
        if row.restored_at.is_some() || !restoring && row.done_at.is_some() {
            return Ok(Step::Done);
        }
        let asker = if restoring { row.restorer } else { row.by };
        let mut batch = Batch { row: &row, asker, now, leaves: Vec::new() };
        let step = if restoring {
            self.restore_batch(&mut tx, &mut batch).await?
        } else {
            self.withdraw_batch(&mut tx, &mut batch, from).await?
        };
        quarantines::touch(&mut tx, id, now).await?;
        if !batch.leaves.is_empty() {
            epoch::advance(&mut tx).await?;
            crate::service::log::append(&mut tx, &batch.leaves).await?;
        }
        tx.commit().await?;
        let paths = batch.leaves.len() as u64;
        if restoring {
            metrics::counter!("narvault_paths_restored_total").increment(paths);
        } else {
            metrics::counter!("narvault_paths_withdrawn_total").increment(paths);
        }
        Ok(step)
    }

    /// Evidence first, with the paths that lose their last; then build trace entries; then dependents.
    async fn withdraw_batch(&self, tx: &mut Tx, batch: &mut Batch<'_>, from: Timestamp) -> Result<Step> {
        let row = batch.row;
        let taken = live_evidence(tx, row, from).await?;
        if let Some(last) = taken.last() {
            let next = last.at;
            evidence::void(tx, &ids(&taken), &row.id).await?;
            let gone = withdrawals::withdraw_unsupported(tx, &claims(&taken), batch.now).await?;
            self.move_paths(tx, batch, &gone, Direction::Out(Cause::Evidence)).await?;
            return Ok(Step::More(Timestamp(next)));
        }
        let entries = realisations::void(tx, row, BATCH).await?;
        if !entries.is_empty() {
            release_entries(tx, entries, batch.now).await?;
            return Ok(Step::More(from));
        }
        if row.dependents {
            let dependents = withdrawals::dependents(tx, &row.id, BATCH).await?;
            if !dependents.is_empty() {
                self.move_paths(tx, batch, &dependents, Direction::Out(Cause::Dependent)).await?;
                return Ok(Step::More(from));
            }
        }
        quarantines::done(tx, &row.id, batch.now).await?;
        tracing::info!(quarantine = row.id, subject = row.name, "quarantine carried through");
        Ok(Step::Done)
    }

    /// The same the other way: evidence, with the paths that have some again; entries; whatever else it withdrew.
    async fn restore_batch(&self, tx: &mut Tx, batch: &mut Batch<'_>) -> Result<Step> {
        let row = batch.row;
        let more = Step::More(Timestamp(i64::MIN));
        let taken = evidence::voided_by(tx, &row.id, BATCH).await?;
        if !taken.is_empty() {
            let ids = ids(&taken);
            for other in quarantines::others_standing(tx, &row.id).await? {
                evidence::hand_over(tx, &ids, &row.id, &other).await?;
            }
            evidence::clear(tx, &ids, &row.id).await?;
            self.bring_back(tx, batch, &claims(&taken)).await?;
            return Ok(more);
        }
        let entries = realisations::clear(tx, &row.id, BATCH).await?;
        if !entries.is_empty() {
            release_entries(tx, entries, batch.now).await?;
            return Ok(more);
        }
        let standing = withdrawals::standing(tx, &row.id, BATCH).await?;
        if !standing.is_empty() {
            let claims: Vec<&str> = standing.iter().map(|one| one.claim_id.as_str()).collect();
            let back = self.bring_back(tx, batch, &claims).await?;
            for one in &standing {
                if !back.contains(&one.path_id) {
                    withdrawals::end(tx, &one.id, one.fate(), batch.now).await?;
                }
            }
            return Ok(more);
        }
        quarantines::restored(tx, &row.id, batch.now).await?;
        tracing::info!(quarantine = row.id, subject = row.name, "quarantine restored");
        Ok(Step::Done)
    }

    /// Publishes again what may be: the ids of those paths.
    async fn bring_back(&self, tx: &mut Tx, batch: &mut Batch<'_>, claims: &[&str]) -> Result<Vec<String>> {
        let back = withdrawals::publish_supported(tx, claims, &batch.row.id, batch.now).await?;
        self.move_paths(tx, batch, &back, Direction::Back).await
    }

    /// What follows where paths were withdrawn or published again: withdrawals, objects, leaves. Answers with the ids
    /// of the paths.
    async fn move_paths(
        &self,
        tx: &mut Tx,
        batch: &mut Batch<'_>,
        places: &[PathPlace],
        direction: Direction,
    ) -> Result<Vec<String>> {
        let mut places = places.to_vec();
        places.sort_by_key(|place| (place.cache, place.hash));
        let mut moved = Vec::new();
        for places in places.chunk_by(|one, other| one.cache == other.cache) {
            let Some(cache) = places.first().map(|place| place.cache) else { continue };
            let cache = caches::by_id_even_deleted(tx, cache).await?;
            let rows = paths::find_all(tx, cache.id, places.iter().map(|place| place.hash)).await?;
            match direction {
                Direction::Out(cause) => self.withdraw_paths(tx, batch, &cache, &rows, cause).await?,
                Direction::Back => self.publish_paths(tx, batch, &cache, &rows).await?,
            }
            moved.extend(rows.into_iter().map(|row| row.id));
        }
        Ok(moved)
    }

    async fn withdraw_paths(
        &self,
        tx: &mut Tx,
        batch: &mut Batch<'_>,
        cache: &CacheRow,
        rows: &[PathRow],
        cause: Cause,
    ) -> Result<()> {
        let now = batch.now;
        let new = rows.iter().map(|row| NewWithdrawal {
            id: self.new_id(now),
            path_id: &row.id,
            claim_id: &row.claim_id,
        });
        let new: Vec<_> = new.collect();
        withdrawals::insert(tx, &batch.row.id, cache.id, cause, &new, now).await?;
        let mut gone = Vec::with_capacity(rows.len());
        for row in rows {
            // Dependents are withdrawn here; one that was withdrawn before only gets a second reason to stay so.
            let is_new = match cause {
                Cause::Evidence => true,
                Cause::Dependent => {
                    paths::change_state(tx, &row.id, PathState::Published, PathState::Withdrawn, now).await?
                }
            };
            if is_new {
                gone.push(row);
            }
        }
        hide(tx, cache, &gone, now).await?;
        let detail =
            json!({ "quarantine": batch.row.id, "reason": batch.row.reason, "cause": cause.as_str() });
        for row in gone {
            let event = LeafEvent::Withdraw(&row.claim);
            let leaf = self.path_leaf(batch, cache, row, event, detail.clone())?;
            batch.leaves.push(leaf);
        }
        Ok(())
    }

    async fn publish_paths(
        &self,
        tx: &mut Tx,
        batch: &mut Batch<'_>,
        cache: &CacheRow,
        rows: &[PathRow],
    ) -> Result<()> {
        let now = batch.now;
        withdrawals::end_of_paths(tx, rows.iter().map(|row| &row.id), Fate::Restored, now).await?;
        let mut release = Release::by_worker(cache, now);
        release_paths(tx, &mut release, &rows.iter().collect::<Vec<_>>()).await?;
        let claims: Vec<&str> = rows.iter().map(|row| row.claim_id.as_str()).collect();
        for (kind, name) in auxiliary::put_back(tx, cache.id, &claims).await? {
            release.auxiliary(tx, kind, &name).await?;
        }
        let detail = json!({ "quarantine": batch.row.id, "reason": batch.row.restore_reason });
        for row in rows {
            let event = LeafEvent::Restore(&row.claim);
            let leaf = self.path_leaf(batch, cache, row, event, detail.clone())?;
            batch.leaves.push(leaf);
        }
        Ok(())
    }

    /// The server's own leaf, as a rotation's are: the token that asked for it may be dead by now, and may have died by
    /// this very quarantine. Who asked stands in `detail`.
    fn path_leaf(
        &self,
        batch: &Batch<'_>,
        cache: &CacheRow,
        row: &PathRow,
        event: LeafEvent<'_>,
        mut detail: Value,
    ) -> Result<LeafRow> {
        if let (Value::Object(members), Some((contributor, token))) = (&mut detail, batch.asker) {
            members.insert("asked_by".into(), json!(contributor.to_string()));
            members.insert("asked_with".into(), json!(token.to_string()));
        }
        self.leaf_row(Leaf {
            call: &Call::host(),
            by: None,
            cache: Some(cache),
            path_id: Some(&row.id),
            event,
            detail,
            now: batch.now,
        })
    }

    /// Goes on with what was broken off, by whichever replica, until `stop`.
    pub(in crate::service) async fn quarantine_worker(self, stop: CancellationToken) {
        // At the start everything: a replica that works on one of them right now is not disturbed by help.
        let mut idle_millis = 0;
        loop {
            if let Err(error) = self.resume_quarantines(idle_millis).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot go on with quarantines; it is tried again");
            }
            idle_millis = IDLE_MILLIS;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESUME_PAUSE) => {}
            }
        }
    }

    /// Carries through what nobody has been at for so long.
    pub(super) async fn resume_quarantines(&self, idle_millis: i64) -> Result<()> {
        let before = self.inner.clock.now().plus_millis(-idle_millis);
        let unfinished = quarantines::unfinished(&mut *self.inner.db.read().await?, before).await?;
        metrics::gauge!("narvault_quarantines_unfinished").set(unfinished.len() as f64);
        for id in unfinished {
            self.carry_through(&id, false).await?;
        }
        Ok(())
    }
}

/// The next evidence to void. Of a contributor it comes in the order of time, and none is left before `from`.
async fn live_evidence(tx: &mut Tx, row: &QuarantineRow, from: Timestamp) -> Result<Vec<TakenRow>> {
    let since = row.since;
    match &row.subject {
        Subject::Path(id) => Ok(evidence::live_of_path(tx, id, BATCH).await?),
        Subject::Token(_) => {
            let subject = row.subject.id();
            Ok(evidence::live_of_family(tx, &subject, row.keep_issued, since, BATCH).await?)
        }
        Subject::Contributor(id) => {
            let from = from.max(since);
            let mut found = evidence::live_of_contributor(tx, *id, "contributor", from, BATCH).await?;
            if found.is_empty() {
                found = evidence::live_of_contributor(tx, *id, "contributor-key", since, BATCH).await?;
                // Their times say nothing of the evidence above.
                found.iter_mut().for_each(|one| one.at = from.0);
            }
            if found.is_empty() && !row.keep_issued {
                let subject = row.subject.id();
                found = evidence::live_of_family(tx, &subject, false, since, BATCH).await?;
                found.iter_mut().for_each(|one| one.at = from.0);
            }
            Ok(found)
        }
    }
}

/// Takes paths that were just withdrawn out of storage, with what stands beside them, which is put aside.
pub(in crate::service) async fn hide(
    tx: &mut Tx,
    cache: &CacheRow,
    rows: &[&PathRow],
    now: Timestamp,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut release = Release::by_worker(cache, now);
    release_paths(tx, &mut release, rows).await?;
    let mut belongs = Vec::new();
    for row in rows {
        let claim_id = row.claim_id.clone();
        let (hash, file) = (row.claim.path.hash().to_string(), row.file.to_string());
        belongs.push(Belongs { kind: AuxiliaryKind::Listing, subject: hash, claim_id: claim_id.clone() });
        // A link to a NAR that another published path has as well goes on to lead somewhere.
        if !paths::is_published(tx, cache.id, &row.file).await? {
            belongs.push(Belongs { kind: AuxiliaryKind::DebugInfo, subject: file, claim_id });
        }
    }
    for (kind, name) in auxiliary::put_aside(tx, cache.id, &belongs).await? {
        release.auxiliary(tx, kind, &name).await?;
    }
    Ok(())
}

/// Has storage follow: narinfos, and the build trace entries whose outputs these are.
async fn release_paths(tx: &mut Tx, release: &mut Release<'_>, rows: &[&PathRow]) -> Result<()> {
    let hashes = || rows.iter().map(|row| row.claim.path.hash());
    release.wish(tx, hashes().map(CacheObject::Narinfo)).await?;
    let outputs = hashes().map(|hash: StorePathHash| hash.to_string());
    for object in realisations::of_outputs(tx, release.cache.id, outputs).await? {
        if let Ok(key) = object.parse() {
            release.object(tx, CacheObject::Realisation(key)).await?;
        }
    }
    Ok(())
}

/// Has storage follow where build trace entries were voided, or count again.
pub(in crate::service) async fn release_entries(
    tx: &mut Tx,
    mut entries: Vec<(CacheId, String)>,
    now: Timestamp,
) -> Result<()> {
    entries.sort();
    for entries in entries.chunk_by(|one, other| one.0 == other.0) {
        let Some((cache, _)) = entries.first() else { continue };
        let cache = caches::by_id_even_deleted(tx, *cache).await?;
        let mut release = Release::by_worker(&cache, now);
        for (_, object) in entries {
            if let Ok(key) = object.parse() {
                release.object(tx, CacheObject::Realisation(key)).await?;
            }
        }
    }
    Ok(())
}

/// The call that began it, as far as audit rows and the leaves of revoked tokens tell of it. Its right was asked for then;
/// this one would be refused wherever the token's row is looked at, for it ended long ago.
fn call_by(by: By) -> Result<Call> {
    let caller = match by {
        Some((contributor, token)) => {
            let scopes = Scopes::new([Scope::Admin]).map_err(|error| Error::Internal(error.into()))?;
            Caller::Token(TokenCaller { token, contributor, scopes, expires_at: Timestamp(0) })
        }
        None => Caller::Anonymous,
    };
    Ok(Call { caller, origin: Origin::default() })
}

fn ids(taken: &[TakenRow]) -> Vec<&str> {
    taken.iter().map(|one| one.id.as_str()).collect()
}

fn claims(taken: &[TakenRow]) -> Vec<&str> {
    let mut claims: Vec<&str> = taken.iter().map(|one| one.claim_id.as_str()).collect();
    claims.sort_unstable();
    claims.dedup();
    claims
}

/// At most so many rows under one exclusive gate; few in tests, so that some work has several batches.
const BATCH: i64 = if cfg!(test) { 3 } else { 200 };

/// Who works on a quarantine commits a batch more often than this.
const IDLE_MILLIS: i64 = 15_000;

const RESUME_PAUSE: Duration = Duration::from_secs(5);
