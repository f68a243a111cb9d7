//! Orphans: objects in storage that no row accounts for, found by listing.
//!
//! Rows come before their objects, so what is listed first and asked for in the rows afterwards is no upload under
//! way. Deletes nothing by itself: that is asked for, and then the outbox's work as any other deletion.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;
use serde_json::json;

use super::release::Release;
use super::{Call, Result, Service};
use crate::access::{Action, CacheId};
use crate::db::audit::Outcome;
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::measured::{self, FileState, Standing};
use crate::db::{Connection, Gate, caches, outbox, paths, realisations};
use crate::storage::{CacheObject, Folder, ObjectKey, Prefix};
use crate::time::Timestamp;

/// An object that no row accounts for.
#[derive(Debug, Clone)]
pub struct Orphan {
    pub size_bytes: u64,
    pub modified: Timestamp,
    pub kind: OrphanKind,
    cache: CacheId,
    prefix: Prefix,
    object: CacheObject,
}

/// Why nothing accounts for an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrphanKind {
    /// A NAR that no row names, as after the database was restored from an older backup.
    Unmeasured,
    /// A NAR whose row says that it is gone: its deletion and another write crossed.
    Deleted,
    /// A NAR whose upload ended midway; nobody acknowledged it, and the sweeper deletes it.
    Unfinished,
    /// Anything else: a narinfo of a path that is not published, a listing that is not to be seen.
    Unpublished,
}

impl OrphanKind {
    /// The word in tables and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unmeasured => "unmeasured",
            Self::Deleted => "deleted",
            Self::Unfinished => "unfinished",
            Self::Unpublished => "unpublished",
        }
    }
}

impl Orphan {
    /// Whether it says that a path is there.
    pub(super) fn is_narinfo(&self) -> bool {
        matches!(self.object, CacheObject::Narinfo(_))
    }

    /// The object's name below the storage's own prefix.
    pub fn name(&self) -> String {
        ObjectKey::Cache(self.prefix.clone(), self.object.clone()).to_string()
    }
}

/// What a look through storage found.
#[derive(Debug, Default)]
pub struct Orphans {
    /// At most [`ORPHANS_NAMED_MAX`] of them.
    pub objects: Vec<Orphan>,
    pub count: u64,
    pub size_bytes: u64,
}

impl Service {
    /// Looks through all of storage for objects that no row accounts for, and that are older than `age`.
    pub async fn orphans(&self, call: &Call, age: Duration) -> Result<Orphans> {
        self.require(call, &Action::Administer, "storage-orphans", "").await?;
        self.look_for_orphans(age).await
    }

    pub(super) async fn look_for_orphans(&self, age: Duration) -> Result<Orphans> {
        let owners = caches::owners(&mut *self.inner.db.read().await?).await?;
        let age_millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let before = self.inner.clock.now().plus_millis(-age_millis);
        let mut found = Orphans::default();
        let mut batch = Vec::new();
        let mut entries = self.inner.storage.list(&Folder::Cache(Prefix::empty()));
        while let Some(entry) = entries.try_next().await? {
            // What is spelled otherwise, or lies where no cache ever did, is somebody else's.
            let Some(ObjectKey::Cache(prefix, object)) = entry.key() else { continue };
            let Some(&cache) = owners.get(prefix.as_str()) else { continue };
            let modified = timestamp(entry.modified);
            if modified >= before {
                continue;
            }
            let kind = OrphanKind::Unpublished;
            batch.push(Orphan { size_bytes: entry.size_bytes, modified, kind, cache, prefix, object });
            if batch.len() >= LISTED_BATCH {
                self.sift(&mut batch, before, &mut found).await?;
            }
        }
        self.sift(&mut batch, before, &mut found).await?;
        Ok(found)
    }

    /// Moves those that no row accounts for from `batch`, which ends empty.
    async fn sift(&self, batch: &mut Vec<Orphan>, before: Timestamp, found: &mut Orphans) -> Result<()> {
        let mut connection = self.inner.db.read().await?;
        let waiting = outbox::waiting_among(&mut connection, batch.iter().map(Orphan::name)).await?;
        let waiting: HashSet<String> = waiting.into_iter().collect();
        batch.retain(|orphan| !waiting.contains(&orphan.name()));
        batch.sort_by_key(|orphan| orphan.cache);
        for of_cache in batch.chunk_by_mut(|one, other| one.cache == other.cache) {
            let known = Known::of(&mut connection, of_cache).await?;
            for orphan in of_cache {
                let Some(kind) = known.judge(&orphan.object, before) else { continue };
                found.count += 1;
                found.size_bytes += orphan.size_bytes;
                if found.objects.len() < ORPHANS_NAMED_MAX {
                    found.objects.push(Orphan { kind, ..orphan.clone() });
                }
            }
        }
        batch.clear();
        Ok(())
    }

    /// Has orphans deleted, each unless a row accounts for it by now: how many. The outbox does it, so a NAR that
    /// arrives anew meanwhile is safe. One that never had a row stays: there is nothing that its upload would wait for.
    pub async fn delete_orphans(&self, call: &Call, orphans: &[Orphan], age: Duration) -> Result<u64> {
        self.require(call, &Action::Administer, "storage-orphans-delete", "").await?;
        let age_millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let mut count = 0;
        for batch in orphans.chunks(CONDEMNED_BATCH) {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let mut condemned = Vec::new();
            for orphan in batch {
                if let CacheObject::Nar(file) = orphan.object {
                    let standing = measured::standings(&mut tx, orphan.cache, [file]).await?;
                    let standing = standing.into_iter().find(|standing| standing.file == file);
                    let kind = nar_kind(standing.as_ref(), now.plus_millis(-age_millis));
                    match (standing, kind) {
                        (Some(Standing { id, .. }), Some(_)) => measured::doom(&mut tx, &id).await?,
                        _ => continue,
                    };
                }
                let cache = caches::by_id_even_deleted(&mut tx, orphan.cache).await?;
                Release::by_worker(&cache, now).object(&mut tx, orphan.object.clone()).await?;
                condemned.push(orphan.name());
            }
            count += condemned.len() as u64;
            let subject = format!("{} objects", condemned.len());
            let detail = json!({ "objects": condemned });
            self.audit(&mut tx, call, "storage-orphans-delete", Outcome::Done, &subject, detail, now).await?;
            tx.commit().await?;
        }
        Ok(count)
    }
}

/// What rows say of some objects of one cache.
struct Known {
    nars: Vec<Standing>,
    objects: HashSet<CacheObject>,
}

impl Known {
    async fn of(connection: &mut Connection, orphans: &[Orphan]) -> Result<Self> {
        let mut known = Self { nars: Vec::new(), objects: HashSet::new() };
        let Some(cache) = orphans.first().map(|orphan| orphan.cache) else { return Ok(known) };
        let (mut nars, mut narinfos, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        let (mut listings, mut logs, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for orphan in orphans {
            match &orphan.object {
                CacheObject::Info => {
                    if caches::by_id(connection, cache).await?.is_some() {
                        known.objects.insert(CacheObject::Info);
                    }
                }
                CacheObject::KeySuccession => {
                    if let Some(cache) = caches::by_id(connection, cache).await?
                        && !super::keys::chain_of(connection, &cache).await?.is_empty()
                    {
                        known.objects.insert(CacheObject::KeySuccession);
                    }
                }
                CacheObject::Narinfo(hash) => narinfos.push(hash.to_string()),
                CacheObject::Nar(file) => nars.push(*file),
                CacheObject::Listing(hash) => listings.push(hash.to_string()),
                CacheObject::BuildLog(derivation) => logs.push(derivation.base_name().to_owned()),
                CacheObject::DebugInfo(key) => links.push(key.to_string()),
                CacheObject::Realisation(key) => entries.push(key.to_string()),
            }
        }
        known.nars = measured::standings(connection, cache, nars).await?;
        let published = paths::published_among(connection, cache, narinfos).await?;
        known.objects.extend(published.iter().map(|path| CacheObject::Narinfo(path.hash())));
        for (kind, names) in [
            (AuxiliaryKind::Listing, listings),
            (AuxiliaryKind::Log, logs),
            (AuxiliaryKind::DebugInfo, links),
        ] {
            let visible = auxiliary::visible_among(connection, cache, kind, names).await?;
            known
                .objects
                .extend(visible.iter().filter_map(|name| super::auxiliary::object_named(kind, name)));
        }
        let entries = realisations::published_among(connection, cache, entries).await?;
        let entries = entries.iter().filter_map(|object| object.parse().ok());
        known.objects.extend(entries.map(CacheObject::Realisation));
        Ok(known)
    }

    /// `None`: a row accounts for the object.
    fn judge(&self, object: &CacheObject, before: Timestamp) -> Option<OrphanKind> {
        match object {
            CacheObject::Nar(file) => {
                nar_kind(self.nars.iter().find(|standing| standing.file == *file), before)
            }
            object => (!self.objects.contains(object)).then_some(OrphanKind::Unpublished),
        }
    }
}

/// What a NAR in storage is by its row; `None`: the row accounts for it.
fn nar_kind(standing: Option<&Standing>, before: Timestamp) -> Option<OrphanKind> {
    match standing.map(|standing| (standing.state, standing.stored_at)) {
        None => Some(OrphanKind::Unmeasured),
        Some((FileState::Deleted, _)) => Some(OrphanKind::Deleted),
        Some((FileState::Arriving, since)) if since < before => Some(OrphanKind::Unfinished),
        Some((FileState::Arriving | FileState::Stored | FileState::Lost | FileState::Doomed, _)) => None,
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Orphans named by one look; more are counted.
pub const ORPHANS_NAMED_MAX: usize = 10_000;

/// Listed objects that the rows are asked for at once: half a page of S3's.
const LISTED_BATCH: usize = 500;

/// At most so many rows under one exclusive gate.
const CONDEMNED_BATCH: usize = 200;
