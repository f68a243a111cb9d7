//! After a compromise: what storage serves under the names of a cache's keys is held against rows and log.
//!
//! A narinfo or a realisation that says something else than the rows is listed, if no leaf accounts for its signature,
//! and written anew or deleted, as the rows say. Goes through the objects in the order of their names, whatever the order
//! in which storage lists them, and notes the last one: a replica that takes over goes on from there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::accounted::{Kind, tells_of};
use super::resign::Batch;
use super::worker::LEASE_MILLIS;
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, Progress, RotationRow};
use crate::db::paths::{self, PathState};
use crate::db::resigning::{self, UnloggedRow};
use crate::db::{Connection, DbError, Gate, outbox, signing_keys};
use crate::nix::narinfo::SignedClaim;
use crate::nix::realisation::{REALISATION_SIZE_BYTES_MAX, Realisation, RealisationKey};
use crate::nix::signature::{KeyName, Signature};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::service::release::Release;
use crate::service::{Result, Service, key_of, realisations};
use crate::storage::{CacheObject, Folder, ObjectKey, Prefix, StorageError};
use crate::time::Timestamp;

/// Most objects that are remembered of one listing; few in tests, so that some buckets need several.
const OBJECTS_MAX: usize = if cfg!(test) { 3 } else { 100_000 };

/// Objects that are held against the rows at once.
const BATCH: usize = if cfg!(test) { 2 } else { 200 };

/// What a cursor begins with here: the name of an object follows.
const OBJECT: &str = "object:";

/// After so long the lease is taken anew.
const HOLD_AGAIN: Duration = Duration::from_millis(LEASE_MILLIS.unsigned_abs() / 3);

/// Objects that are read at once.
const READ_AT_ONCE: usize = 16;

/// A realisation in storage may have as many signatures beside its body as a cache has keys.
const REALISATION_READ_BYTES_MAX: usize = REALISATION_SIZE_BYTES_MAX + 64 * 1024;

/// What storage says about a path.
struct ServedPath {
    hash: StorePathHash,
    /// `None`: nothing that can be read.
    narinfo: Option<SignedClaim>,
}

/// What storage says about an output of a derivation.
struct ServedRealisation {
    key: RealisationKey,
    body: Option<Bytes>,
}

impl ServedRealisation {
    /// `None`: nothing that can be read.
    fn entry(&self) -> Option<Realisation> {
        Realisation::parse(self.key.clone(), self.body.as_ref()?).ok()
    }
}

/// A signature that the rows do not have.
struct Suspect {
    /// The path, or the output of the realisation, and the id of its row.
    path_id: Option<String>,
    kind: Kind,
    subject: String,
    signature: Signature,
}

/// What a batch has found.
#[derive(Default)]
struct Found {
    /// What is to be written anew, or deleted.
    wrong: Vec<CacheObject>,
    suspects: Vec<Suspect>,
}

impl Service {
    /// Looks through the next of a cache's narinfos and realisations in storage: so many were held against the rows, or
    /// none were left, or another replica does it now.
    pub(super) async fn inspect(&self, rotation: &RotationRow) -> Result<Batch> {
        let (cache, names) = {
            let mut connection = self.inner.db.read().await?;
            let Some(cache) = caches::by_id(&mut connection, rotation.cache).await? else {
                return Ok(Batch::Ended);
            };
            let keys = signing_keys::of_cache(&mut connection, cache.id).await?;
            let names: HashSet<KeyName> = keys.iter().map(|row| row.public_key.name().clone()).collect();
            (cache, names)
        };
        let Some(objects) = self.next_objects(rotation, &cache).await? else { return Ok(Batch::Elsewhere) };
        let objects: Vec<(String, CacheObject)> = objects.into_iter().collect();
        let mut progress = rotation.progress.clone();
        for batch in objects.chunks(BATCH) {
            if !self.inspect_batch(rotation, &cache, &names, batch, &mut progress).await? {
                return Ok(Batch::Elsewhere);
            }
        }
        Ok(if objects.len() < OBJECTS_MAX { Batch::Ended } else { Batch::Looked(objects.len()) })
    }

    /// The first ones by name that come after the cursor. `None`: the lease is lost.
    async fn next_objects(
        &self,
        rotation: &RotationRow,
        cache: &CacheRow,
    ) -> Result<Option<BTreeMap<String, CacheObject>>> {
        let prefix: Prefix = cache.prefix.parse().map_err(|_| DbError::Corrupt {
            table: "caches",
            column: "prefix",
            row: cache.id.to_string(),
        })?;
        // A step before this one may have left a cursor of its own.
        let after = rotation.progress.realisation_cursor.strip_prefix(OBJECT).unwrap_or_default();
        let mut entries = self.inner.storage.list(&Folder::Cache(prefix.clone()));
        let (mut objects, mut held_at) = (BTreeMap::new(), Instant::now());
        while let Some(entry) = entries.try_next().await? {
            // Narinfos may lie far apart among other objects.
            if held_at.elapsed() > HOLD_AGAIN {
                if !self.lease_rotation(rotation).await? {
                    return Ok(None);
                }
                held_at = Instant::now();
            }
            let object = match entry.key() {
                Some(ObjectKey::Cache(found, object)) if found == prefix => object,
                _ => continue,
            };
            let name = match &object {
                CacheObject::Narinfo(_) | CacheObject::Realisation(_) => object.to_string(),
                _ => continue,
            };
            if name.as_str() > after {
                objects.insert(name, object);
                if objects.len() > OBJECTS_MAX {
                    objects.pop_last();
                }
            }
        }
        Ok(Some(objects))
    }

    /// False: the rotation is somebody else's now, or was paused.
    async fn inspect_batch(
        &self,
        rotation: &RotationRow,
        cache: &CacheRow,
        names: &HashSet<KeyName>,
        objects: &[(String, CacheObject)],
        progress: &mut Progress,
    ) -> Result<bool> {
        let bodies: Vec<Option<Bytes>> = stream::iter(objects.to_vec())
            .map(|(_, object)| self.served_body(cache, object))
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await?;
        let (mut narinfos, mut entries) = (Vec::new(), Vec::new());
        for ((_, object), body) in objects.iter().zip(bodies) {
            match object {
                CacheObject::Narinfo(hash) => {
                    let narinfo = body.and_then(|body| SignedClaim::parse(&body).ok());
                    narinfos.push(ServedPath { hash: *hash, narinfo });
                }
                CacheObject::Realisation(key) => entries.push(ServedRealisation { key: key.clone(), body }),
                _ => {}
            }
        }
        let now = self.inner.clock.now();
        let (wrong, unlogged) = {
            let mut connection = self.inner.db.read().await?;
            let mut found = Found::default();
            paths_against_rows(&mut connection, cache, names, narinfos, &mut found).await?;
            realisations_against_rows(&mut connection, cache, names, entries, &mut found).await?;
            let unlogged = self.unlogged(&mut connection, found.suspects, now).await?;
            // What waits for storage says the right thing soon.
            let name = |object: &CacheObject| Ok(key_of(cache, object.clone())?.to_string());
            let names: Vec<String> = found.wrong.iter().map(name).collect::<Result<_>>()?;
            let waiting = outbox::waiting_among(&mut connection, &names).await?;
            let wrong = found.wrong.into_iter().zip(names).filter(|(_, name)| !waiting.contains(name));
            (wrong.map(|(object, _)| object).collect::<Vec<_>>(), unlogged)
        };
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let Some(locked) = key_rotations::lock(&mut tx, &rotation.id).await? else { return Ok(false) };
        let own = locked.lease_owner.as_ref() == Some(&self.inner.lease_terms.owner);
        if !own || locked.step != rotation.step || locked.paused_at.is_some() {
            return Ok(false);
        }
        progress.done += i64::try_from(objects.len()).unwrap_or(0);
        progress.refused += i64::try_from(unlogged.len()).unwrap_or(0);
        if let Some((last, _)) = objects.last() {
            progress.realisation_cursor = format!("{OBJECT}{last}");
        }
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

    async fn served_body(&self, cache: &CacheRow, object: CacheObject) -> Result<Option<Bytes>> {
        let limit = match &object {
            CacheObject::Realisation(_) => REALISATION_READ_BYTES_MAX,
            _ => usize::try_from(self.inner.limits.narinfo_size_bytes_max).unwrap_or(usize::MAX),
        };
        match self.inner.storage.read(&key_of(cache, object)?, limit).await {
            // One of more bytes is none of ours.
            Err(StorageError::Damaged(_)) => Ok(None),
            read => Ok(read?),
        }
    }

    /// Those that no leaf accounts for. An old copy of what was signed here is wrong, but no secret.
    async fn unlogged(
        &self,
        connection: &mut Connection,
        suspects: Vec<Suspect>,
        now: Timestamp,
    ) -> Result<Vec<UnloggedRow>> {
        let ids: Vec<&String> = suspects.iter().filter_map(|suspect| suspect.path_id.as_ref()).collect();
        let of_paths = resigning::path_leaves(connection, &ids).await?;
        let of_realisations = resigning::realisation_leaves(connection, &ids).await?;
        let is_logged = |suspect: &Suspect| {
            let leaves = if suspect.kind == Kind::Path { &of_paths } else { &of_realisations };
            let mut own = leaves.iter().filter(|(id, _)| Some(id) == suspect.path_id.as_ref());
            own.any(|(_, leaf)| tells_of(leaf, &suspect.signature, suspect.kind))
        };
        let row = |suspect: Suspect| UnloggedRow {
            id: self.new_id(now),
            key_name: suspect.signature.name.to_string(),
            place: "storage".to_owned(),
            subject: suspect.subject,
            signature: suspect.signature.to_string(),
            found_at: now.0,
        };
        Ok(suspects.into_iter().filter(|suspect| !is_logged(suspect)).map(row).collect())
    }
}

/// The signatures by keys of the cache that the rows do not have.
fn strange<'a>(
    said: &'a [Signature],
    names: &HashSet<KeyName>,
    stands: impl Fn(&Signature) -> bool,
) -> Vec<&'a Signature> {
    said.iter().filter(|one| names.contains(&one.name) && !stands(one)).collect()
}

async fn paths_against_rows(
    connection: &mut Connection,
    cache: &CacheRow,
    names: &HashSet<KeyName>,
    served: Vec<ServedPath>,
    found: &mut Found,
) -> Result<()> {
    let rows = paths::find_all(connection, cache.id, served.iter().map(|one| one.hash)).await?;
    let signatures = paths::signatures_of(connection, rows.iter().map(|row| &row.claim_id)).await?;
    for ServedPath { hash, narinfo } in served {
        let row = rows.iter().find(|row| row.claim.path.hash() == hash);
        let published = row.filter(|row| row.state == PathState::Published);
        let standing = published.and_then(|row| signatures.get(&row.claim_id));
        let standing = standing.map(Vec::as_slice).unwrap_or_default();
        let said = narinfo.as_ref().map(|narinfo| narinfo.signatures.as_slice()).unwrap_or_default();
        let strange = strange(said, names, |one| standing.iter().any(|row| row.signature == *one));
        let same = published.is_some_and(|row| narinfo.as_ref().is_some_and(|said| said.claim == row.claim));
        let whole = standing.iter().all(|row| said.contains(&row.signature));
        if !same || !whole || !strange.is_empty() {
            found.wrong.push(CacheObject::Narinfo(hash));
        }
        let subject = narinfo.as_ref().map(|narinfo| narinfo.claim.path.base_name()).unwrap_or_default();
        found.suspects.extend(strange.into_iter().map(|signature| Suspect {
            path_id: row.map(|row| row.id.clone()),
            kind: Kind::Path,
            subject: subject.to_owned(),
            signature: signature.clone(),
        }));
    }
    Ok(())
}

async fn realisations_against_rows(
    connection: &mut Connection,
    cache: &CacheRow,
    names: &HashSet<KeyName>,
    served: Vec<ServedRealisation>,
    found: &mut Found,
) -> Result<()> {
    let objects: Vec<String> = served.iter().map(|one| one.key.to_string()).collect();
    let rows = resigning::served_realisations(connection, cache.id, &objects).await?;
    let rows: HashMap<&str, _> = rows.iter().map(|row| (row.object.as_str(), row)).collect();
    let entries: Vec<Option<Realisation>> = served.iter().map(ServedRealisation::entry).collect();
    let outputs: Vec<&StorePath> = entries.iter().flatten().map(|entry| &entry.out_path).collect();
    let outputs = paths::find_all(connection, cache.id, outputs.iter().map(|path| path.hash())).await?;
    for ((one, entry), object) in served.into_iter().zip(entries).zip(objects) {
        let row = rows.get(object.as_str()).map(|row| (row.body.clone(), row.signatures.clone()));
        let expected = row.as_ref().and_then(|row| realisations::render(&one.key, row).ok());
        if expected.is_none() || expected != one.body {
            found.wrong.push(CacheObject::Realisation(one.key));
        }
        let Some(entry) = entry else { continue };
        let standing = row.map(|(_, signatures)| signatures).unwrap_or_default();
        let stands = |signature: &Signature| standing.split(' ').any(|text| text == signature.to_string());
        let output = outputs.iter().find(|row| row.claim.path == entry.out_path);
        found.suspects.extend(strange(&entry.signatures, names, stands).into_iter().map(|signature| {
            Suspect {
                path_id: output.map(|row| row.id.clone()),
                kind: Kind::Realisation,
                subject: object.clone(),
                signature: signature.clone(),
            }
        }));
    }
    Ok(())
}
