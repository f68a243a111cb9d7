//! After a compromise: what storage serves under the names of a cache's keys is held against rows and log.
//!
//! A narinfo that says something else than the rows is listed, if no leaf accounts for its signature, and written
//! anew or deleted, as the rows say.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::accounted::{Kind, tells_of};
use super::worker::LEASE_MILLIS;
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, Progress, RotationRow};
use crate::db::paths::{self, PathRow, PathState};
use crate::db::resigning::{self, UnloggedRow};
use crate::db::{DbError, Gate, outbox, signing_keys};
use crate::nix::narinfo::SignedClaim;
use crate::nix::signature::{KeyName, Signature};
use crate::nix::store_path::StorePathHash;
use crate::service::release::Release;
use crate::service::{Result, Service};
use crate::storage::{CacheObject, Folder, ObjectKey, Prefix, StorageError};
use crate::time::Timestamp;

/// Narinfos that are held against the rows at once.
const BATCH: usize = 200;

/// After so long the lease is taken anew.
const HOLD_AGAIN: Duration = Duration::from_millis(LEASE_MILLIS.unsigned_abs() / 3);

/// Narinfos that are read at once.
const READ_AT_ONCE: usize = 16;

/// What a narinfo in storage says.
struct Served {
    hash: StorePathHash,
    /// `None`: nothing that can be read.
    narinfo: Option<SignedClaim>,
}

impl Service {
    /// Looks through a cache's narinfos in storage. True: to the end; false: another replica does it now.
    pub(super) async fn inspect(&self, rotation: &RotationRow) -> Result<bool> {
        let (cache, names) = {
            let mut connection = self.inner.db.read().await?;
            let Some(cache) = caches::by_id(&mut connection, rotation.cache).await? else { return Ok(true) };
            let keys = signing_keys::of_cache(&mut connection, cache.id).await?;
            let names: HashSet<KeyName> = keys.iter().map(|row| row.public_key.name().clone()).collect();
            (cache, names)
        };
        let prefix: Prefix = cache.prefix.parse().map_err(|_| DbError::Corrupt {
            table: "caches",
            column: "prefix",
            row: cache.id.to_string(),
        })?;
        let mut progress = Progress { done: 0, refused: 0, ..rotation.progress.clone() };
        let mut entries = self.inner.storage.list(&Folder::Cache(prefix.clone()));
        let (mut hashes, mut held_at) = (Vec::new(), Instant::now());
        loop {
            let entry = entries.try_next().await?;
            // Narinfos may lie far apart among other objects, and each batch of them holds the lease by itself.
            if held_at.elapsed() > HOLD_AGAIN {
                if !self.lease_rotation(rotation).await? {
                    return Ok(false);
                }
                held_at = Instant::now();
            }
            let is_last = entry.is_none();
            match entry.and_then(|entry| entry.key()) {
                Some(ObjectKey::Cache(found, CacheObject::Narinfo(hash))) if found == prefix => {
                    hashes.push(hash);
                }
                _ => {}
            }
            if hashes.len() >= BATCH || is_last {
                let batch = std::mem::take(&mut hashes);
                if !self.inspect_batch(rotation, &cache, &names, batch, &mut progress).await? {
                    return Ok(false);
                }
            }
            if is_last {
                return Ok(true);
            }
        }
    }

    /// False: the rotation is somebody else's now, or was paused.
    async fn inspect_batch(
        &self,
        rotation: &RotationRow,
        cache: &CacheRow,
        names: &HashSet<KeyName>,
        hashes: Vec<StorePathHash>,
        progress: &mut Progress,
    ) -> Result<bool> {
        let served: Vec<Served> = stream::iter(hashes.clone())
            .map(|hash| self.served(cache, hash))
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await?;
        let now = self.inner.clock.now();
        let (wrong, unlogged) = self.held_against_rows(cache, names, served, now).await?;
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let Some(locked) = key_rotations::lock(&mut tx, &rotation.id).await? else { return Ok(false) };
        let own = locked.lease_owner.as_ref() == Some(&self.inner.lease_terms.owner);
        if !own || locked.step != rotation.step || locked.paused_at.is_some() {
            return Ok(false);
        }
        progress.done += i64::try_from(hashes.len()).unwrap_or(0);
        progress.refused += i64::try_from(unlogged.len()).unwrap_or(0);
        Release::by_worker(cache, now).wish(&mut tx, wrong).await?;
        resigning::insert_unlogged(&mut tx, cache.id, &unlogged).await?;
        key_rotations::note(&mut tx, &rotation.id, progress, now.plus_millis(LEASE_MILLIS)).await?;
        tx.commit().await?;
        metrics::counter!("narvault_unlogged_signatures_total").increment(unlogged.len() as u64);
        for one in &unlogged {
            tracing::error!(cache = %cache.name, path = one.subject, key = one.key_name, "served and not logged");
        }
        Ok(true)
    }

    async fn served(&self, cache: &CacheRow, hash: StorePathHash) -> Result<Served> {
        let key = crate::service::key_of(cache, CacheObject::Narinfo(hash))?;
        let limit = usize::try_from(self.inner.limits.narinfo_size_bytes_max).unwrap_or(usize::MAX);
        let body = match self.inner.storage.read(&key, limit).await {
            // One of more bytes is none of ours.
            Err(StorageError::Damaged(_)) => None,
            read => read?,
        };
        Ok(Served { hash, narinfo: body.and_then(|body| SignedClaim::parse(&body).ok()) })
    }

    /// The narinfos that are to be written anew, and the signatures that no leaf accounts for.
    async fn held_against_rows(
        &self,
        cache: &CacheRow,
        names: &HashSet<KeyName>,
        served: Vec<Served>,
        now: Timestamp,
    ) -> Result<(Vec<CacheObject>, Vec<UnloggedRow>)> {
        let mut connection = self.inner.db.read().await?;
        let rows = paths::find_all(&mut connection, cache.id, served.iter().map(|one| one.hash)).await?;
        let rows: HashMap<StorePathHash, PathRow> =
            rows.into_iter().map(|row| (row.claim.path.hash(), row)).collect();
        let signatures =
            paths::signatures_of(&mut connection, rows.values().map(|row| &row.claim_id)).await?;
        let cache_id = cache.id.to_string();
        let waiting =
            outbox::waiting_narinfos(&mut connection, &cache_id, served.iter().map(|one| one.hash)).await?;
        let (mut wrong, mut suspects) = (Vec::new(), Vec::new());
        for one in served {
            // What waits for storage says the right thing soon.
            if waiting.contains_key(&one.hash) {
                continue;
            }
            let row = rows.get(&one.hash).filter(|row| row.state == PathState::Published);
            let standing = row.and_then(|row| signatures.get(&row.claim_id));
            let stands = |found: &Signature| {
                standing.is_some_and(|standing| standing.iter().any(|row| row.signature == *found))
            };
            let narinfo = one.narinfo.as_ref();
            let own = narinfo.into_iter().flat_map(|narinfo| &narinfo.signatures);
            let strange: Vec<Signature> =
                own.filter(|found| names.contains(&found.name) && !stands(found)).cloned().collect();
            let same = row.is_some_and(|row| narinfo.is_some_and(|narinfo| narinfo.claim == row.claim));
            if !same || !strange.is_empty() {
                wrong.push(CacheObject::Narinfo(one.hash));
            }
            let path_id = rows.get(&one.hash).map(|row| row.id.clone());
            let subject = narinfo.map(|narinfo| narinfo.claim.path.base_name().to_owned());
            suspects.extend(strange.into_iter().map(|found| (path_id.clone(), subject.clone(), found)));
        }
        let ids: Vec<&String> = suspects.iter().filter_map(|(path_id, ..)| path_id.as_ref()).collect();
        let leaves = resigning::path_leaves(&mut connection, ids).await?;
        let logged = |path_id: &Option<String>, found: &Signature| {
            leaves.iter().any(|(id, leaf)| Some(id) == path_id.as_ref() && tells_of(leaf, found, Kind::Path))
        };
        // An old copy of what was signed here is wrong, but no secret.
        let unlogged = suspects.into_iter().filter(|(path_id, _, found)| !logged(path_id, found));
        let row = |(_, subject, found): (Option<String>, Option<String>, Signature)| UnloggedRow {
            id: self.new_id(now),
            key_name: found.name.to_string(),
            place: "storage".to_owned(),
            subject: subject.unwrap_or_default(),
            signature: found.to_string(),
            found_at: now.0,
        };
        Ok((wrong, unlogged.map(row).collect()))
    }
}
