//! Taking signatures off what is published: those of a compromised key, after what the log accounts for was signed
//! again, and those of a retired key that clients no longer need.
//!
//! Never leaves a narinfo without a signature: what nothing else stands for is withdrawn, or keeps the one it has.

use std::collections::{HashMap, HashSet};

use super::accounted::is_accounted;
use super::resign::{Batch, NewSignatures, Workbench, count_signatures, parsed};
use super::worker::LEASE_MILLIS;
use crate::db::evidence::Source;
use crate::db::key_rotations::{self, Progress, RotationRow, RotationStep};
use crate::db::log::LeafRow;
use crate::db::paths::{self, PathRow, PathState, SignatureRow};
use crate::db::resigning::{self, RealisationRow, SignedClaim, UnloggedRow};
use crate::db::signing_keys::{KeyRow, KeyState};
use crate::db::{Gate, Tx, epoch, restarting};
use crate::nix::signature::{PublicKey, Signature};
use crate::service::leaves::LeafEvent;
use crate::service::release::Release;
use crate::service::{Call, Result, Service, takedown};
use crate::storage::CacheObject;

/// What a batch has gathered before the log is locked.
#[derive(Default)]
struct Gathered {
    new: NewSignatures,
    /// Leaves without a signature of their own.
    leaves: Vec<LeafRow>,
    objects: Vec<CacheObject>,
    unlogged: Vec<UnloggedRow>,
    /// How many realisations were signed.
    realisations: usize,
    refused: i64,
}

impl Service {
    /// The next batch after a compromise: what the old key signed is signed by the new one if the log accounts for
    /// it, and withdrawn if nothing else stands for it. The old signature goes in any case.
    pub(super) async fn purge_batch(&self, rotation: &RotationRow) -> Result<Batch> {
        match restarting(|| self.purge_paths(rotation)).await? {
            Batch::Ended => restarting(|| self.purge_realisations(rotation)).await,
            batch => Ok(batch),
        }
    }

    async fn purge_paths(&self, rotation: &RotationRow) -> Result<Batch> {
        let call = Call::host();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let Some(bench) = self.workbench(&mut tx, rotation).await? else { return Ok(Batch::Elsewhere) };
        let Some(signer) = bench.signer() else { return Ok(Batch::Elsewhere) };
        // Another one may have been compromised before, and its purge given up for this one.
        let (mut old_name, mut signed, limit) = ("", Vec::new(), self.batch_size());
        for old in compromised(&bench) {
            old_name = &old.key.label.name;
            signed = resigning::signed_by(&mut tx, bench.cache.id, old_name, limit).await?;
            if !signed.is_empty() {
                break;
            }
        }
        if signed.is_empty() {
            return Ok(Batch::Ended);
        }
        let proven = self.proven_keys(&bench.keys, true)?;
        let rows = served(&mut tx, &bench, &signed).await?;
        let signatures = paths::signatures_of(&mut tx, rows.iter().map(|row| &row.claim_id)).await?;
        let leaves = self.leaves_of(&mut tx, &proven, &signatures).await?;
        let replaces = resigning::last_signatures(&mut tx, rows.iter().map(|row| &row.id)).await?;
        let (mut gathered, mut withdrawn) = (Gathered::default(), Vec::new());
        let foreign = self.foreign_keys(&mut tx, &bench.cache).await?;
        for row in &rows {
            let standing = signatures.get(&row.claim_id).map(Vec::as_slice).unwrap_or_default();
            gathered.objects.push(CacheObject::Narinfo(row.claim.path.hash()));
            if is_accounted(row, standing, &proven, &leaves) {
                if !standing.iter().any(|one| one.signature.name == *signer.public_key.name()) {
                    let replaces = replaces.get(&row.id).copied();
                    let (signature, leaf) = self.sign_again(&bench, &call, signer, row, replaces)?;
                    gathered.new.add(&row.claim_id, signature, leaf);
                }
                continue;
            }
            let signatures = standing.iter().map(|one| &one.signature);
            gathered.unlogged.extend(self.unlogged_in_rows(&bench, row.claim.path.base_name(), signatures));
            // What somebody else vouches for is counted when everything is signed again, and left alone there.
            if !is_vouched_for(row, standing, &foreign) {
                gathered.refused += 1;
                self.withdraw_unaccounted(&mut tx, &bench, &call, row, &mut gathered).await?;
                withdrawn.push(row);
            }
        }
        takedown::hide(&mut tx, &bench.cache, &withdrawn, bench.now).await?;
        let claims = signed.iter().map(|one| one.claim_id.as_str());
        resigning::remove_signatures(&mut tx, old_name, claims).await?;
        let done = i64::try_from(signed.len()).unwrap_or(0) - gathered.refused;
        let progress = Progress {
            done: bench.rotation.progress.done + done,
            refused: bench.rotation.progress.refused + gathered.refused,
            ..bench.rotation.progress.clone()
        };
        self.end_batch(tx, &bench, progress, gathered).await?;
        Ok(Batch::Looked(signed.len()))
    }

    /// Withdraws a path that neither a leaf nor anybody else accounts for.
    async fn withdraw_unaccounted(
        &self,
        tx: &mut Tx,
        bench: &Workbench,
        call: &Call,
        row: &PathRow,
        gathered: &mut Gathered,
    ) -> Result<()> {
        tracing::warn!(cache = %bench.cache.name, path = %row.claim.path, "withdrawn: no leaf accounts for it");
        paths::change_state(tx, &row.id, PathState::Published, PathState::Withdrawn, bench.now).await?;
        gathered.leaves.push(self.leaf_row(bench.leaf(call, &row.id, LeafEvent::Withdraw(&row.claim)))?);
        Ok(())
    }

    async fn purge_realisations(&self, rotation: &RotationRow) -> Result<Batch> {
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let Some(bench) = self.workbench(&mut tx, rotation).await? else { return Ok(Batch::Elsewhere) };
        let Some(signer) = bench.signer() else { return Ok(Batch::Elsewhere) };
        let found = self.next_realisations(&mut tx, &bench).await?;
        if found.is_empty() {
            return Ok(Batch::Ended);
        }
        let olds: Vec<&KeyRow> = compromised(&bench).collect();
        let is_old = |one: &Signature| olds.iter().any(|old| one.name == *old.public_key.name());
        let proven = self.proven_keys(&bench.keys, true)?;
        let outputs = self.outputs(&mut tx, &bench, &found).await?;
        let mut gathered = Gathered::default();
        for row in &found {
            let Some(entry) = parsed(row) else {
                tracing::warn!(cache = %bench.cache.name, object = row.object, "removed: it is no realisation");
                gathered.refused += 1;
                gathered.objects.extend(row.object.parse().ok().map(CacheObject::Realisation));
                resigning::remove_realisation(&mut tx, &row.id).await?;
                continue;
            };
            if !entry.signatures.iter().any(is_old) {
                continue;
            }
            gathered.objects.push(CacheObject::Realisation(entry.key.clone()));
            let mut texts = without(&entry.signatures, is_old);
            let mut leaf = None;
            // One that is not served loses the signature and gets no other one, as a withdrawn path.
            if let Some(output) = outputs.served(row) {
                if !outputs.account_for(output, &entry, &proven) {
                    gathered.refused += 1;
                    gathered.unlogged.extend(self.unlogged_in_rows(&bench, &row.object, &entry.signatures));
                    texts.clear();
                } else if !entry.signatures.iter().any(|one| one.name == *signer.public_key.name()) {
                    let (text, made) = self.sign_realisation_again(&bench, signer, output, row, &entry)?;
                    texts.push(text);
                    leaf = Some(made);
                }
            }
            if texts.is_empty() {
                resigning::remove_realisation(&mut tx, &row.id).await?;
            } else if resigning::sign_realisation(&mut tx, row, &texts.join(" ")).await? {
                gathered.realisations += usize::from(leaf.is_some());
                gathered.leaves.extend(leaf);
            }
        }
        let progress = after_realisations(&bench, &found, gathered.refused);
        self.end_batch(tx, &bench, progress, gathered).await?;
        Ok(Batch::Looked(found.len()))
    }

    /// The next batch that takes a retired key's signatures off. One that stands alone stays, and ends the rotation.
    /// That cannot be unless a path was restored, or another key was compromised, meanwhile. Withdrawn paths keep
    /// theirs: with it they can be restored.
    pub(super) async fn drop_batch(&self, rotation: &RotationRow) -> Result<Batch> {
        let mut batch = restarting(|| self.drop_paths(rotation)).await?;
        if batch == Some(Batch::Ended) {
            batch = restarting(|| self.drop_from_realisations(rotation)).await?;
        }
        match batch {
            Some(batch) => Ok(batch),
            None => {
                self.go_on(rotation, RotationStep::Abandoned).await?;
                Ok(Batch::Elsewhere)
            }
        }
    }

    /// `None`: narinfos carry this signature alone.
    async fn drop_paths(&self, rotation: &RotationRow) -> Result<Option<Batch>> {
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let Some(bench) = self.workbench(&mut tx, rotation).await? else { return Ok(Some(Batch::Elsewhere)) };
        let Some(old) = bench.key(rotation.old_key.as_ref()) else { return Ok(Some(Batch::Elsewhere)) };
        let name = &old.key.label.name;
        let signed =
            resigning::signed_by_but_withdrawn(&mut tx, bench.cache.id, name, self.batch_size()).await?;
        if signed.is_empty() {
            return Ok(Some(Batch::Ended));
        }
        let served: Vec<&SignedClaim> = signed.iter().filter(|one| one.is_served).collect();
        let signatures = paths::signatures_of(&mut tx, served.iter().map(|one| &one.claim_id)).await?;
        let others = other_trusted(&bench, name);
        let stands = |one: &&SignedClaim| {
            let standing = signatures.get(&one.claim_id).map(Vec::as_slice).unwrap_or_default();
            standing.iter().any(|row| others.contains(row.signature.name.as_str()))
        };
        if !served.iter().all(stands) {
            tracing::error!(key = name, "narinfos carry this key's signature alone; they keep it");
            return Ok(None);
        }
        let objects = served.iter().map(|one| CacheObject::Narinfo(one.hash)).collect();
        let claims = signed.iter().map(|one| one.claim_id.as_str());
        resigning::remove_signatures(&mut tx, name, claims).await?;
        let progress = Progress {
            done: bench.rotation.progress.done + i64::try_from(signed.len()).unwrap_or(0),
            ..bench.rotation.progress.clone()
        };
        self.end_batch(tx, &bench, progress, Gathered { objects, ..Gathered::default() }).await?;
        Ok(Some(Batch::Looked(signed.len())))
    }

    /// `None`: realisations carry this signature alone.
    async fn drop_from_realisations(&self, rotation: &RotationRow) -> Result<Option<Batch>> {
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let Some(bench) = self.workbench(&mut tx, rotation).await? else { return Ok(Some(Batch::Elsewhere)) };
        let Some(old) = bench.key(rotation.old_key.as_ref()) else { return Ok(Some(Batch::Elsewhere)) };
        let found = self.next_realisations(&mut tx, &bench).await?;
        if found.is_empty() {
            return Ok(Some(Batch::Ended));
        }
        let name = &old.key.label.name;
        let is_old = |one: &Signature| one.name.as_str() == name;
        let others = other_trusted(&bench, name);
        let outputs = self.outputs(&mut tx, &bench, &found).await?;
        let mut gathered = Gathered::default();
        for row in &found {
            let entry = parsed(row).filter(|entry| entry.signatures.iter().any(is_old));
            let (Some(entry), Some(_)) = (entry, outputs.served(row)) else { continue };
            if !entry.signatures.iter().any(|one| others.contains(one.name.as_str())) {
                tracing::error!(key = name, "realisations carry this key's signature alone; they keep it");
                return Ok(None);
            }
            let texts = without(&entry.signatures, is_old);
            if resigning::sign_realisation(&mut tx, row, &texts.join(" ")).await? {
                gathered.objects.push(CacheObject::Realisation(entry.key));
            }
        }
        let progress = after_realisations(&bench, &found, 0);
        self.end_batch(tx, &bench, progress, gathered).await?;
        Ok(Some(Batch::Looked(found.len())))
    }

    /// The realisations of a batch, read behind the gate.
    async fn next_realisations(&self, tx: &mut Tx, bench: &Workbench) -> Result<Vec<RealisationRow>> {
        let after = &bench.rotation.progress.realisation_cursor;
        Ok(resigning::realisations(tx, bench.cache.id, after, self.batch_size()).await?)
    }

    /// Wishes, place, epoch, leaves, commit. From then on no replica remembers what was changed.
    async fn end_batch(
        &self,
        mut tx: Tx,
        bench: &Workbench,
        progress: Progress,
        gathered: Gathered,
    ) -> Result<()> {
        let Gathered { mut new, leaves, objects, unlogged, realisations, refused } = gathered;
        resigning::insert_unlogged(&mut tx, bench.cache.id, &unlogged).await?;
        Release::by_worker(&bench.cache, bench.now).wish(&mut tx, objects).await?;
        let until = bench.now.plus_millis(LEASE_MILLIS);
        key_rotations::note(&mut tx, &bench.rotation.id, &progress, until).await?;
        epoch::advance(&mut tx).await?;
        let made = new.len() + realisations;
        new.leaves.extend(leaves);
        new.append(&mut tx).await?;
        tx.commit().await?;
        count_signatures(made, refused);
        self.note_change().await;
        Ok(())
    }
}

/// The paths whose published claims are among these, locked.
async fn served(tx: &mut Tx, bench: &Workbench, signed: &[SignedClaim]) -> Result<Vec<PathRow>> {
    let served: HashMap<&str, &SignedClaim> =
        signed.iter().filter(|one| one.is_served).map(|one| (one.claim_id.as_str(), one)).collect();
    let hashes: Vec<_> = served.values().map(|one| one.hash).collect();
    let rows = paths::lock(tx, bench.cache.id, hashes).await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.claim_id.clone(), row)).collect();
    // In the order of the log.
    Ok(signed.iter().filter_map(|one| rows.remove(&one.claim_id)).collect())
}

/// Whether an upstream or a contributor whose key is known now signed the claim. The row's own word is not enough: who
/// writes into the database could put any signature there.
fn is_vouched_for(path: &PathRow, standing: &[SignatureRow], foreign: &[(PublicKey, Source)]) -> bool {
    let fingerprint = path.claim.fingerprint();
    let valid = |one: &SignatureRow| {
        foreign.iter().any(|(key, _)| key.verify(fingerprint.as_bytes(), &one.signature))
    };
    standing.iter().any(valid)
}

/// The keys of the cache that others may hold.
fn compromised(bench: &Workbench) -> impl Iterator<Item = &KeyRow> {
    bench.keys.iter().filter(|row| row.state == KeyState::Compromised)
}

/// The names of the cache's other keys that clients are to trust.
fn other_trusted<'a>(bench: &'a Workbench, name: &str) -> HashSet<&'a str> {
    let trusted = bench.keys.iter().filter(|row| row.state.is_trusted());
    trusted.map(|row| row.key.label.name.as_str()).filter(|other| *other != name).collect()
}

/// The printed signatures but for some.
fn without(signatures: &[Signature], but: impl Fn(&Signature) -> bool) -> Vec<String> {
    signatures.iter().filter(|one| !but(one)).map(Signature::to_string).collect()
}

fn after_realisations(bench: &Workbench, found: &[RealisationRow], refused: i64) -> Progress {
    let done = i64::try_from(found.len()).unwrap_or(0) - refused;
    Progress {
        realisation_cursor: found.last().map(|row| row.id.clone()).unwrap_or_default(),
        done: bench.rotation.progress.done + done,
        refused: bench.rotation.progress.refused + refused,
        ..bench.rotation.progress.clone()
    }
}
