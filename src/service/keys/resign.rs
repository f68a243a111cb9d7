//! Signing again what is published: a batch a transaction, in the order of the log, resumed where the last one ended.
//!
//! Signs only what the log accounts for. A batch locks the rotation's row, so two replicas never do the same one, and
//! commits signatures, leaves, wishes for storage and its own place together.

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::accounted::{Kind, Proven, is_accounted, tells_of};
use super::worker::LEASE_MILLIS;
use crate::access::CacheId;
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, Progress, RotationRow};
use crate::db::log::LeafRow;
use crate::db::paths::{self, MadeSignature, PathRow, PathState};
use crate::db::resigning::{self, RealisationRow, RealisationsBy, UnloggedRow};
use crate::db::signing_keys::{self, KeyRow};
use crate::db::{Connection, Gate, Tx, log, restarting};
use crate::nix::realisation::{Realisation, RealisationKey};
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePathHash;
use crate::service::leaves::{Leaf, LeafEvent};
use crate::service::release::Release;
use crate::service::{Call, Result, Service};
use crate::storage::CacheObject;
use crate::time::Timestamp;

/// What a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batch {
    /// So many paths or realisations were looked at; there may be more.
    Looked(usize),
    /// Nothing is left.
    Ended,
    /// The rotation has changed meanwhile: somebody else did it, or it was paused or given up.
    Elsewhere,
}

/// Where a batch of paths ends.
struct Place {
    log_cursor: i64,
    realisation_cursor: String,
    /// Whether these paths do not come again.
    is_last: bool,
}

impl Place {
    fn of(progress: &Progress) -> Self {
        let Progress { log_cursor, realisation_cursor, .. } = progress;
        Self { log_cursor: *log_cursor, realisation_cursor: realisation_cursor.clone(), is_last: false }
    }
}

/// What a cursor of realisations begins with once these are done: the id of a path follows. Ids are hexadecimal, so no
/// realisation comes after it.
const STRAYS: &str = "path:";

/// What a transaction of a batch knows.
pub(super) struct Workbench {
    pub rotation: RotationRow,
    pub cache: CacheRow,
    /// Every key of the cache.
    pub keys: Vec<KeyRow>,
    pub now: Timestamp,
}

impl Workbench {
    /// A key of the cache by its id.
    pub fn key(&self, id: Option<&String>) -> Option<&KeyRow> {
        self.keys.iter().find(|row| Some(&row.key.label.id) == id)
    }

    /// The key that signs again.
    pub fn signer(&self) -> Option<&KeyRow> {
        self.key(self.rotation.new_key.as_ref()).filter(|row| row.state.signs())
    }

    /// For the erasable part of leaves: why this is signed, and who asked for it. The leaf itself names no token: one
    /// that is revoked while a rotation goes on has done nothing by it.
    pub fn detail(&self) -> Value {
        let asked_by = self.rotation.asked_by.as_ref();
        json!({
            "rotation": self.rotation.id,
            "kind": self.rotation.kind.as_str(),
            "contributor": asked_by.map(|(contributor, _)| contributor),
            "token": asked_by.map(|(_, token)| token),
        })
    }

    /// A leaf of the service's own.
    pub fn leaf<'a>(&'a self, call: &'a Call, path_id: &'a str, event: LeafEvent<'a>) -> Leaf<'a> {
        Leaf {
            call,
            by: None,
            cache: Some(&self.cache),
            path_id: Some(path_id),
            event,
            detail: self.detail(),
            now: self.now,
        }
    }

    /// A signature that no leaf accounts for, as it is written down.
    pub fn unlogged(&self, id: String, place: &str, subject: &str, signature: &Signature) -> UnloggedRow {
        UnloggedRow {
            id,
            key_name: signature.name.to_string(),
            place: place.to_owned(),
            subject: subject.to_owned(),
            signature: signature.to_string(),
            found_at: self.now.0,
        }
    }
}

/// New signatures and their leaves, before the log is locked.
#[derive(Default)]
pub(super) struct NewSignatures {
    pub leaves: Vec<LeafRow>,
    /// Of each: its claim, itself, and its leaf's place among the leaves.
    made: Vec<(String, Signature, usize)>,
}

impl NewSignatures {
    pub fn add(&mut self, claim_id: &str, signature: Signature, leaf: LeafRow) {
        self.made.push((claim_id.to_owned(), signature, self.leaves.len()));
        self.leaves.push(leaf);
    }

    pub fn len(&self) -> usize {
        self.made.len()
    }

    /// Appends the leaves, which is the last lock, and writes the signatures with their indices.
    pub async fn append(self, tx: &mut Tx) -> Result<()> {
        let Self { leaves, made } = self;
        let made = |first: i64| {
            let made = made.into_iter().map(|(claim_id, signature, at)| MadeSignature {
                claim_id,
                signature,
                leaf: first + i64::try_from(at).unwrap_or(i64::MAX),
            });
            made.collect()
        };
        crate::service::log::append_signed(tx, &leaves, made).await.map(drop)
    }
}

impl Service {
    /// The next batch of a rotation that signs again: paths in the order of the log, then realisations, then whatever
    /// path still lacks the signature, each once. The last ones are those that the log has no leaf of, or that came back
    /// meanwhile.
    pub(super) async fn resign_batch(&self, rotation: &RotationRow) -> Result<Batch> {
        let limit = self.batch_size();
        let (size, found) = {
            let mut connection = self.inner.db.read().await?;
            let Some(key) = self.new_key_name(&mut connection, rotation).await? else {
                return Ok(Batch::Elsewhere);
            };
            // Before the list: what is published since has the new key's signature already.
            let size = log::read(&mut connection).await?.size;
            let after = rotation.progress.log_cursor;
            (size, resigning::unsigned(&mut connection, rotation.cache, &key, after, limit).await?)
        };
        if found.is_empty() {
            return match rotation.progress.realisation_cursor.strip_prefix(STRAYS) {
                Some(after) => self.resign_strays(rotation, after, limit).await,
                None => self.resign_realisations(rotation, limit).await,
            };
        }
        let is_full = i64::try_from(found.len()).unwrap_or(i64::MAX) >= limit;
        let last = found.last().map_or(size, |row| row.index);
        let cursor = if is_full { last } else { last.max(size - 1) };
        let found: Vec<_> = found.into_iter().map(|row| (row.path_id, row.hash)).collect();
        let place = Place { log_cursor: cursor, ..Place::of(&rotation.progress) };
        restarting(|| self.resign_paths(rotation, &found, &place)).await
    }

    async fn resign_strays(&self, rotation: &RotationRow, after: &str, limit: i64) -> Result<Batch> {
        let found = {
            let mut connection = self.inner.db.read().await?;
            let Some(key) = self.new_key_name(&mut connection, rotation).await? else {
                return Ok(Batch::Elsewhere);
            };
            resigning::lacking(&mut connection, rotation.cache, &key, after, limit).await?
        };
        let Some((last, _)) = found.last() else { return Ok(Batch::Ended) };
        let cursor = format!("{STRAYS}{last}");
        let place = Place { realisation_cursor: cursor, is_last: true, ..Place::of(&rotation.progress) };
        restarting(|| self.resign_paths(rotation, &found, &place)).await
    }

    /// Whether something served lacks the new key's signature though the log accounts for another one, and how many paths
    /// and realisations lack it in all.
    pub(super) async fn owed(&self, rotation: &RotationRow) -> Result<(bool, i64)> {
        let mut connection = self.inner.db.read().await?;
        let keys = signing_keys::of_cache(&mut connection, rotation.cache).await?;
        let new = keys.iter().find(|row| Some(&row.key.label.id) == rotation.new_key.as_ref());
        let Some(new) = new.map(|row| &row.key.label.name) else { return Ok((false, 0)) };
        let asked = Owed { cache: rotation.cache, keys: &keys, new, proven: OnceCell::new() };
        let (owed, paths) = self.paths_owed(&mut connection, &asked).await?;
        if owed {
            return Ok((true, paths));
        }
        let (owed, entries) = self.realisations_owed(&mut connection, &asked).await?;
        Ok((owed, paths + entries))
    }

    /// What accounts for signatures. Asked for late: it needs the vault, which a rotation that owes nothing does without.
    async fn proven_for<'a>(&self, owed: &'a Owed<'_>) -> Result<&'a Proven> {
        let prove = async || {
            self.catch_up_keks().await?;
            self.proven_keys(owed.keys, false)
        };
        owed.proven.get_or_try_init(prove).await
    }

    async fn paths_owed(&self, connection: &mut Connection, owed: &Owed<'_>) -> Result<(bool, i64)> {
        let Owed { cache, new, .. } = *owed;
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let found = resigning::lacking(connection, cache, new, &after, self.batch_size()).await?;
            let Some((last, _)) = found.last() else { return Ok((false, count)) };
            after.clone_from(last);
            count += i64::try_from(found.len()).unwrap_or(0);
            let proven = self.proven_for(owed).await?;
            let hashes = found.iter().map(|(_, hash)| *hash);
            let rows = paths::find_all(connection, cache, hashes).await?;
            let claims = rows.iter().map(|row| &row.claim_id);
            let signatures = paths::signatures_of(connection, claims).await?;
            let leaves = self.leaves_of(connection, proven, &signatures).await?;
            let standing =
                |row: &PathRow| signatures.get(&row.claim_id).map(Vec::as_slice).unwrap_or_default();
            if rows.iter().any(|row| is_accounted(row, standing(row), proven, &leaves)) {
                return Ok((true, count));
            }
        }
    }

    async fn realisations_owed(&self, connection: &mut Connection, owed: &Owed<'_>) -> Result<(bool, i64)> {
        let Owed { cache, new, .. } = *owed;
        let asked = RealisationsBy { key_name: new, signed: false, served: true };
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let found =
                resigning::realisations_by(connection, cache, asked, &after, self.batch_size()).await?;
            let Some(last) = found.last() else { return Ok((false, count)) };
            after.clone_from(&last.id);
            count += i64::try_from(found.len()).unwrap_or(0);
            let proven = self.proven_for(owed).await?;
            let rows = paths::find_all(connection, cache, output_hashes(&found)).await?;
            let outputs = Outputs::of_paths(connection, rows).await?;
            let is_accounted = |row: &RealisationRow| {
                let (output, entry) = (outputs.served(row)?, parsed(row)?);
                outputs.account_for(output, &entry, proven).then_some(())
            };
            if found.iter().any(|row| is_accounted(row).is_some()) {
                return Ok((true, count));
            }
        }
    }

    async fn new_key_name(
        &self,
        connection: &mut Connection,
        rotation: &RotationRow,
    ) -> Result<Option<String>> {
        let keys = signing_keys::of_cache(connection, rotation.cache).await?;
        let new = keys.iter().find(|row| Some(&row.key.label.id) == rotation.new_key.as_ref());
        Ok(new.map(|row| row.key.label.name.clone()))
    }

    async fn resign_paths(
        &self,
        rotation: &RotationRow,
        found: &[(String, StorePathHash)],
        place: &Place,
    ) -> Result<Batch> {
        let call = Call::host();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let Some(bench) = self.workbench(&mut tx, rotation).await? else { return Ok(Batch::Elsewhere) };
        let Some(signer) = bench.signer() else { return Ok(Batch::Elsewhere) };
        let proven = self.proven_keys(&bench.keys, false)?;
        let rows = paths::lock(&mut tx, bench.cache.id, found.iter().map(|(_, hash)| *hash)).await?;
        let signatures = paths::signatures_of(&mut tx, rows.iter().map(|row| &row.claim_id)).await?;
        let leaves = self.leaves_of(&mut tx, &proven, &signatures).await?;
        let replaces = resigning::last_signatures(&mut tx, rows.iter().map(|row| &row.id)).await?;

        let (mut new, mut objects, mut unlogged) = (NewSignatures::default(), Vec::new(), Vec::new());
        let mut refused = 0;
        for row in in_order(found, rows) {
            let standing = signatures.get(&row.claim_id).map(Vec::as_slice).unwrap_or_default();
            if standing.iter().any(|one| one.signature.name == *signer.public_key.name()) {
                continue;
            }
            if !is_accounted(&row, standing, &proven, &leaves) {
                // Once, though it may have several leaves.
                if !place.is_last {
                    continue;
                }
                refused += 1;
                let signatures = standing.iter().map(|one| &one.signature);
                unlogged.extend(self.unlogged_in_rows(&bench, row.claim.path.base_name(), signatures));
                continue;
            }
            let replaces = replaces.get(&row.id).copied();
            let (signature, leaf) = self.sign_again(&bench, &call, signer, &row, replaces)?;
            new.add(&row.claim_id, signature, leaf);
            objects.push(CacheObject::Narinfo(row.claim.path.hash()));
        }
        Release::by_worker(&bench.cache, bench.now).wish(&mut tx, objects).await?;
        resigning::insert_unlogged(&mut tx, bench.cache.id, &unlogged).await?;
        let count = new.len();
        let progress = Progress {
            log_cursor: place.log_cursor,
            realisation_cursor: place.realisation_cursor.clone(),
            done: bench.rotation.progress.done + i64::try_from(count).unwrap_or(0),
            refused: bench.rotation.progress.refused + refused,
            ..bench.rotation.progress.clone()
        };
        key_rotations::note(&mut tx, &rotation.id, &progress, bench.now.plus_millis(LEASE_MILLIS)).await?;
        new.append(&mut tx).await?;
        tx.commit().await?;
        count_signatures(count, refused);
        Ok(Batch::Looked(found.len()))
    }

    /// Those of `signatures` that bear the name of a key of this cache, as signatures that no leaf accounts for are
    /// written down.
    pub(super) fn unlogged_in_rows<'a>(
        &self,
        bench: &Workbench,
        subject: &str,
        signatures: impl IntoIterator<Item = &'a Signature>,
    ) -> Vec<UnloggedRow> {
        let own = signatures.into_iter().filter(|one| is_own(bench, one));
        own.map(|one| bench.unlogged(self.new_id(bench.now), "rows", subject, one)).collect()
    }

    /// The signature of `signer` on a path that stands, and its leaf.
    pub(super) fn sign_again(
        &self,
        bench: &Workbench,
        call: &Call,
        signer: &KeyRow,
        row: &PathRow,
        replaces: Option<i64>,
    ) -> Result<(Signature, LeafRow)> {
        let signature = self.sign_fingerprint(signer, row.claim.fingerprint().as_bytes())?;
        let event = LeafEvent::Resign { claim: &row.claim, signature: &signature, replaces };
        let leaf = self.leaf_row(bench.leaf(call, &row.id, event))?;
        Ok((signature, leaf))
    }

    /// Locks the rotation, and reads what a batch needs behind the gate. `None`: it is no longer as it was when the
    /// batch was chosen.
    pub(super) async fn workbench(&self, tx: &mut Tx, rotation: &RotationRow) -> Result<Option<Workbench>> {
        self.recheck_open(tx).await?;
        let now = self.inner.clock.now();
        let Some(locked) = key_rotations::lock(tx, &rotation.id).await? else { return Ok(None) };
        let same = locked.step == rotation.step
            && locked.progress == rotation.progress
            && locked.new_key == rotation.new_key
            && locked.paused_at.is_none()
            && locked.lease_owner.as_ref() == Some(&self.inner.lease_terms.owner);
        let Some(cache) = caches::by_id(tx, rotation.cache).await?.filter(|_| same) else {
            return Ok(None);
        };
        let keys = signing_keys::of_cache(tx, cache.id).await?;
        Ok(Some(Workbench { rotation: locked, cache, keys, now }))
    }

    async fn resign_realisations(&self, rotation: &RotationRow, limit: i64) -> Result<Batch> {
        match restarting(|| self.resign_realisation_batch(rotation, limit)).await? {
            Batch::Ended => self.resign_strays(rotation, "", limit).await,
            batch => Ok(batch),
        }
    }

    async fn resign_realisation_batch(&self, rotation: &RotationRow, limit: i64) -> Result<Batch> {
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let Some(bench) = self.workbench(&mut tx, rotation).await? else { return Ok(Batch::Elsewhere) };
        let Some(signer) = bench.signer() else { return Ok(Batch::Elsewhere) };
        let after = &bench.rotation.progress.realisation_cursor;
        // Behind the gate: none of them is voided, and no output withdrawn, before the commit.
        let found = resigning::realisations(&mut tx, bench.cache.id, after, limit).await?;
        let Some(last) = found.last() else { return Ok(Batch::Ended) };
        let proven = self.proven_keys(&bench.keys, false)?;
        let outputs = self.outputs(&mut tx, &bench, &found).await?;
        let (mut leaves, mut objects, mut unlogged) = (Vec::new(), Vec::new(), Vec::new());
        let mut refused = 0;
        for row in &found {
            // One that is not served gets nothing: if it comes back, the end of the rotation waits for it.
            let Some(output) = outputs.served(row) else { continue };
            let entry = parsed(row);
            let signatures = entry.as_ref().map(|entry| entry.signatures.as_slice()).unwrap_or_default();
            if signatures.iter().any(|one| one.name == *signer.public_key.name()) {
                continue;
            }
            let accounted = entry.as_ref().filter(|entry| outputs.account_for(output, entry, &proven));
            let Some(entry) = accounted else {
                refused += 1;
                unlogged.extend(self.unlogged_in_rows(&bench, &row.object, signatures));
                continue;
            };
            let (text, leaf) = self.sign_realisation_again(&bench, signer, output, row, entry)?;
            // It may have been pushed anew since it was listed, and has the new signature then.
            if resigning::sign_realisation(&mut tx, row, &format!("{} {text}", row.signatures)).await? {
                leaves.push(leaf);
                objects.push(CacheObject::Realisation(entry.key.clone()));
            }
        }
        Release::by_worker(&bench.cache, bench.now).wish(&mut tx, objects).await?;
        resigning::insert_unlogged(&mut tx, bench.cache.id, &unlogged).await?;
        let done = i64::try_from(found.len()).unwrap_or(0) - refused;
        let progress = Progress {
            realisation_cursor: last.id.clone(),
            done: bench.rotation.progress.done + done,
            refused: bench.rotation.progress.refused + refused,
            ..bench.rotation.progress.clone()
        };
        key_rotations::note(&mut tx, &rotation.id, &progress, bench.now.plus_millis(LEASE_MILLIS)).await?;
        crate::service::log::append(&mut tx, &leaves).await?;
        tx.commit().await?;
        count_signatures(leaves.len(), refused);
        Ok(Batch::Looked(found.len()))
    }

    /// Another signature on a realisation, as text, and its leaf.
    pub(super) fn sign_realisation_again(
        &self,
        bench: &Workbench,
        signer: &KeyRow,
        output: &PathRow,
        row: &RealisationRow,
        entry: &Realisation,
    ) -> Result<(String, LeafRow)> {
        let call = Call::host();
        let signature = self.sign_fingerprint(signer, entry.fingerprint().as_bytes())?;
        let event = LeafEvent::Realisation { output: &output.claim, signature: &signature };
        let mut leaf = bench.leaf(&call, &output.id, event);
        if let Value::Object(members) = &mut leaf.detail {
            members.insert("object".into(), json!(row.object));
        }
        Ok((signature.to_string(), self.leaf_row(leaf)?))
    }

    /// The output paths of realisations, locked, and the leaves of what was signed for them.
    pub(super) async fn outputs(
        &self,
        tx: &mut Tx,
        bench: &Workbench,
        found: &[RealisationRow],
    ) -> Result<Outputs> {
        let rows = paths::lock(tx, bench.cache.id, output_hashes(found)).await?;
        Outputs::of_paths(tx, rows).await
    }
}

/// What a rotation may owe.
struct Owed<'a> {
    cache: CacheId,
    keys: &'a [KeyRow],
    /// The name of the new key.
    new: &'a str,
    proven: OnceCell<Proven>,
}

/// The output paths of some realisations.
pub(super) struct Outputs {
    rows: Vec<PathRow>,
    /// Path and leaf.
    leaves: Vec<(String, String)>,
}

impl Outputs {
    /// These paths, with the leaves of what was signed for them.
    pub async fn of_paths(connection: &mut Connection, rows: Vec<PathRow>) -> Result<Self> {
        let leaves = resigning::realisation_leaves(connection, rows.iter().map(|row| &row.id)).await?;
        Ok(Self { rows, leaves })
    }

    /// The output of this one, if it is served: nothing voids it, and the output is published.
    pub fn served(&self, row: &RealisationRow) -> Option<&PathRow> {
        let mut outputs = self.rows.iter().filter(|path| path.claim.path.hash().as_str() == row.output_hash);
        outputs.find(|path| path.state == PathState::Published && row.void_by.is_none())
    }

    /// Whether one of the signatures on `entry` was made by a proven key, and has its leaf.
    pub fn account_for(&self, output: &PathRow, entry: &Realisation, proven: &Proven) -> bool {
        let fingerprint = entry.fingerprint();
        let mut signatures = entry.signatures.iter();
        signatures.any(|one| self.has_leaf(output, one) && proven.verifies(one, fingerprint.as_bytes()))
    }

    /// Whether a leaf of this output tells of the signature.
    pub fn has_leaf(&self, output: &PathRow, signature: &Signature) -> bool {
        let mut own = self.leaves.iter().filter(|(path_id, _)| *path_id == output.id);
        own.any(|(_, leaf)| tells_of(leaf, signature, Kind::Realisation))
    }
}

fn output_hashes(found: &[RealisationRow]) -> Vec<StorePathHash> {
    found.iter().filter_map(|row| row.output_hash.parse().ok()).collect()
}

/// A realisation with its signatures. `None`: it is none, which only somebody with the database in hand can have
/// written; nothing accounts for it.
pub(super) fn parsed(row: &RealisationRow) -> Option<Realisation> {
    let key: RealisationKey = row.object.parse().ok()?;
    let mut entry = Realisation::parse(key, row.body.as_bytes()).ok()?;
    let signatures = row.signatures.split(' ').filter(|text| !text.is_empty()).map(str::parse);
    entry.signatures = signatures.collect::<std::result::Result<_, _>>().ok()?;
    Some(entry)
}

/// Whether a signature bears the name of a key of this cache.
fn is_own(bench: &Workbench, signature: &Signature) -> bool {
    bench.keys.iter().any(|row| *row.public_key.name() == signature.name)
}

/// The published ones of `rows` in the order in which they were found, each once.
fn in_order(found: &[(String, StorePathHash)], rows: Vec<PathRow>) -> Vec<PathRow> {
    let published = rows.into_iter().filter(|row| row.state == PathState::Published);
    let mut published: std::collections::HashMap<_, _> = published.map(|row| (row.id.clone(), row)).collect();
    found.iter().filter_map(|(id, _)| published.remove(id)).collect()
}

pub(super) fn count_signatures(made: usize, refused: i64) {
    metrics::counter!("narvault_signatures_total").increment(made as u64);
    metrics::counter!("narvault_resigned_total").increment(made as u64);
    metrics::counter!("narvault_unlogged_signatures_total").increment(u64::try_from(refused).unwrap_or(0));
}
