//! A narinfo on its way in: every claim is compared with what was measured, then signed and logged in one
//! transaction, then released.
//!
//! Nothing reaches the key but a [`Verified`] claim, and nothing else in the service calls the key.

use std::collections::BTreeSet;

use serde_json::Value;

use super::leaves::{Leaf, LeafEvent};
use super::release::{Release, Wanted};
use super::upstreams::{self, REFERENCES_PATIENCE};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheName, TokenCaller};
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches::{CacheRow, UndeclaredReferences, UpstreamPaths};
use crate::db::evidence::{self, Source};
use crate::db::measured::{self, FileState, Measured};
use crate::db::paths::{self, NewClaim, PathRow, PathState};
use crate::db::signing_keys::KeyRow;
use crate::db::{Gate, Tx, contributors, epoch, log, restarting, signing_keys};
use crate::nix::claim::Claim;
use crate::nix::content_address::ContentAddress;
use crate::nix::narinfo::NarInfo;
use crate::nix::signature::{PublicKey, Signature};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::storage::CacheObject;
use crate::time::Timestamp;

/// A narinfo whose every claim was compared with what this server measured. Only [`Verified::check`]
/// makes one, and only a `Verified` can be signed.
pub(super) struct Verified {
    narinfo: NarInfo,
    measured: Measured,
    ca: Option<ContentAddress>,
    ca_dropped: Option<String>,
    /// Claimed references whose hash does not occur in the NAR.
    unfound_refs: String,
}

/// A `Sig:` line that somebody else's key made, and whose it is.
struct ForeignSignature {
    signature: Signature,
    source: Source,
    key: PublicKey,
}

/// What a push came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Signed and logged by this call.
    New,
    /// It stood already with the same claim; this call is further evidence.
    Again,
}

enum Outcome {
    Published(Published, Vec<Wanted>),
    Conflict(Conflict),
}

impl Service {
    /// Publishes the narinfo `body` (decoded from its `Content-Encoding`), put under `hash` in `cache`.
    ///
    /// Answers once the signature and its leaf are committed: from then on every replica serves the path.
    /// Storage gets it within seconds; a push waits for that a little, so that a bucket read right
    /// afterwards has it.
    pub async fn put_narinfo(
        &self,
        call: &Call,
        cache: &CacheName,
        hash: StorePathHash,
        body: &[u8],
    ) -> Result<Published> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        if body.len() as u64 > self.inner.limits.narinfo_size_bytes_max {
            let max = self.inner.limits.narinfo_size_bytes_max;
            return Err(Error::TooLarge { what: "the narinfo", max });
        }
        let narinfo = NarInfo::parse(body).map_err(Rejection::from)?;
        if narinfo.claim.path.hash() != hash {
            return Err(Rejection::OtherHash { asked: hash, stated: narinfo.claim.path }.into());
        }
        let measured = self.measured_and_present(&cache, &narinfo).await?;
        let verified = Verified::check(narinfo, measured)?;
        let foreign = self.verified_foreign_signatures(&cache, &verified).await?;
        let silent = self.ask_for_references(&cache, &verified).await?;

        let outcome = restarting(|| self.publish_once(call, &cache, &pusher, &verified, &foreign)).await;
        let outcome = outcome.map_err(|error| error.of_silent_upstream(silent))?;
        match outcome {
            Outcome::Published(published, objects) => {
                tracing::info!(
                    cache = %cache.name,
                    path = %verified.narinfo.claim.path,
                    token.id = %pusher.token,
                    again = published == Published::Again,
                    "path published"
                );
                metrics::counter!("narvault_paths_published_total").increment(1);
                self.release_soon(objects).await;
                Ok(published)
            }
            Outcome::Conflict(conflict) => {
                metrics::counter!("narvault_conflicts_total").increment(1);
                Err(conflict.into())
            }
        }
    }

    /// The measured NAR that the narinfo names, provided that its object is still there.
    async fn measured_and_present(&self, cache: &CacheRow, narinfo: &NarInfo) -> Result<Measured> {
        let file = narinfo.file;
        let row = measured::find(&mut *self.inner.db.read().await?, cache.id, &file).await?;
        let row = row.ok_or(Rejection::UnknownNar(file))?;
        match row.state {
            FileState::Stored => {}
            FileState::Lost => return Err(Rejection::LostNar(file).into()),
            FileState::Arriving | FileState::Doomed | FileState::Deleted => {
                return Err(Rejection::UnknownNar(file).into());
            }
        }
        let key = super::key_of(cache, CacheObject::Nar(file))?;
        if self.inner.storage.size(&key).await? == Some(row.file_size) {
            return Ok(row);
        }
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        measured::lose(&mut tx, &row.id, row.generation).await?;
        tx.commit().await?;
        tracing::error!(cache = %cache.name, %file, "a NAR is missing from storage, or of another size");
        Err(Rejection::LostNar(file).into())
    }

    /// Finds out whether upstreams hold those references that are not published here, where that is enough for
    /// this cache. Answers with an upstream that was silent.
    async fn ask_for_references(&self, cache: &CacheRow, verified: &Verified) -> Result<Option<String>> {
        let claim = &verified.narinfo.claim;
        let others = claim.references.iter().filter(|path| **path != claim.path);
        let mut asked: BTreeSet<_> = others.map(StorePath::hash).collect();
        if cache.upstream_paths == UpstreamPaths::Store || asked.is_empty() {
            return Ok(None);
        }
        let mut connection = self.inner.db.read().await?;
        let hashes = asked.iter().map(StorePathHash::as_str);
        for path in paths::published_among(&mut connection, cache.id, hashes).await? {
            asked.remove(&path.hash());
        }
        drop(connection);
        Ok(self.held_upstream(cache, asked, REFERENCES_PATIENCE).await?.silent)
    }

    /// Those `Sig:` lines that a known key of somebody else made. Lines under our own names, under unknown
    /// names, or that do not verify are dropped.
    async fn verified_foreign_signatures(
        &self,
        cache: &CacheRow,
        verified: &Verified,
    ) -> Result<Vec<ForeignSignature>> {
        if verified.narinfo.signatures.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.foreign_keys(&mut *self.inner.db.read().await?, cache).await?;
        let fingerprint = verified.narinfo.claim.fingerprint();
        let mut foreign: Vec<ForeignSignature> = Vec::new();
        for signature in &verified.narinfo.signatures {
            let valid = known.iter().find(|(key, _)| {
                *key.name() == signature.name && key.verify(fingerprint.as_bytes(), signature)
            });
            let repeated = foreign.iter().any(|other| other.signature.name == signature.name);
            if let (Some((key, source)), false) = (valid, repeated) {
                foreign.push(ForeignSignature {
                    signature: signature.clone(),
                    source: source.clone(),
                    key: key.clone(),
                });
            }
        }
        Ok(foreign)
    }

    /// The keys whose signatures count in this cache: its upstreams' and the contributors'.
    async fn foreign_keys(
        &self,
        connection: &mut crate::db::Connection,
        cache: &CacheRow,
    ) -> Result<Vec<(PublicKey, Source)>> {
        let upstream = cache.upstreams.iter().flat_map(|upstream| &upstream.public_keys);
        let mut keys: Vec<_> =
            upstream.map(|key| (key.clone(), Source::Upstream(key.name().to_string()))).collect();
        for row in contributors::live_keys(connection).await? {
            keys.push((row.public_key, Source::ContributorKey(row.contributor)));
        }
        Ok(keys)
    }

    /// The transaction: gate, rights, references, path, signatures, evidence, leaves, outbox.
    async fn publish_once(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        verified: &Verified,
        foreign: &[ForeignSignature],
    ) -> Result<Outcome> {
        let now = self.inner.clock.now();
        let claim = &verified.narinfo.claim;
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
        self.recheck_open(&mut tx).await?;
        let cache = &self.recheck_cache(&mut tx, cache).await?;
        let signing = signing_keys::active_of_cache(&mut tx, cache.id).await?;
        if signing.is_empty() {
            return Err(Conflict::NoSigningKey.into());
        }
        let still = measured::find(&mut tx, cache.id, &verified.measured.file).await?;
        if !still.is_some_and(|row| {
            row.state == FileState::Stored && row.generation == verified.measured.generation
        }) {
            return Err(Rejection::UnknownNar(verified.measured.file).into());
        }
        let undeclared_refs = check_references(&mut tx, cache, verified).await?;
        // A key removed since the signatures were verified counts no longer.
        let counting =
            if foreign.is_empty() { Vec::new() } else { self.foreign_keys(&mut tx, cache).await? };
        let foreign: Vec<_> = foreign
            .iter()
            .filter(|one| counting.iter().any(|(key, source)| *key == one.key && *source == one.source))
            .collect();

        let new_claim = |path_id: &str| NewClaim {
            id: self.new_id(now),
            path_id: path_id.to_owned(),
            claim,
            claim_sha256: claim.sha256(),
            file: verified.measured.file,
            compression: verified.measured.compression,
            file_size: verified.measured.file_size,
            deriver: verified.narinfo.deriver.as_ref(),
            ca: verified.ca.as_ref().map(ToString::to_string),
            ca_dropped: verified.ca_dropped.clone(),
            undeclared_refs: &undeclared_refs,
            unfound_refs: &verified.unfound_refs,
            now,
        };
        let mut refiled = false;
        let (path_id, claim_id, published) = match self.take_path(&mut tx, cache, claim, now).await? {
            Taken::Made { path_id, claim_id } => {
                paths::insert_claim(&mut tx, &NewClaim { id: claim_id.clone(), ..new_claim(&path_id) })
                    .await?;
                (path_id, claim_id, Published::New)
            }
            Taken::Standing(row) if row.state != PathState::Published => {
                let claim_id = paths::insert_claim(&mut tx, &new_claim(&row.id)).await?;
                paths::republish(&mut tx, &row.id, &claim_id, now).await?;
                (row.id, claim_id, Published::New)
            }
            Taken::Standing(row) if row.claim == *claim => {
                // The first file stays in the narinfo, unless it is not there any more.
                let standing = measured::find(&mut tx, cache.id, &row.file).await?;
                if !standing.is_some_and(|standing| standing.state == FileState::Stored) {
                    paths::insert_claim(&mut tx, &new_claim(&row.id)).await?;
                    refiled = true;
                }
                (row.id, row.claim_id, Published::Again)
            }
            Taken::Standing(row) => {
                let conflict = self.record_conflict(tx, call, cache, pusher, &row, claim, now).await?;
                return Ok(Outcome::Conflict(conflict));
            }
        };

        let mut changed = published == Published::New || refiled;
        for one in &foreign {
            changed |= paths::insert_signature(&mut tx, &claim_id, &one.signature, None).await?;
            if !evidence::exists(&mut tx, &claim_id, &one.source, pusher.token).await? {
                let id = self.new_id(now);
                evidence::insert(&mut tx, &id, &claim_id, &one.source, pusher.token, now).await?;
            }
        }
        let source = Source::Contributor(pusher.contributor);
        evidence::insert(&mut tx, &self.new_id(now), &claim_id, &source, pusher.token, now).await?;

        let mut release = Release::new(self, cache, now);
        self.reveal_auxiliary(&mut tx, &mut release, pusher, verified, now).await?;
        let signed = match published {
            Published::New => Vec::new(),
            Published::Again => paths::signatures(&mut tx, &claim_id).await?,
        };
        let unsigned: Vec<_> = signing
            .iter()
            .filter(|key| !signed.iter().any(|row| row.signature.name == *key.public_key.name()))
            .collect();
        changed |= !unsigned.is_empty();
        if changed {
            release.object(&mut tx, CacheObject::Narinfo(claim.path.hash())).await?;
        }
        if changed && published == Published::Again {
            epoch::advance(&mut tx).await?;
        }
        self.sign(&mut tx, call, cache, pusher, verified, (&path_id, &claim_id), &unsigned, now).await?;
        tx.commit().await?;
        if changed && published == Published::Again {
            self.note_change().await;
        }
        Ok(Outcome::Published(published, release.objects))
    }

    /// Locks the path's row, or makes it.
    async fn take_path(&self, tx: &mut Tx, cache: &CacheRow, claim: &Claim, now: Timestamp) -> Result<Taken> {
        let hash = claim.path.hash();
        if !paths::lock(tx, cache.id, hash).await? {
            let (path_id, claim_id) = (self.new_id(now), self.new_id(now));
            if paths::insert(tx, &path_id, cache.id, hash, &claim_id, now).await? {
                return Ok(Taken::Made { path_id, claim_id });
            }
            // Another push made it while this one waited for its row.
            paths::lock(tx, cache.id, hash).await?;
        }
        let row = paths::find(tx, cache.id, hash).await?;
        row.map(|row| Taken::Standing(Box::new(row))).ok_or(Error::NotFound("path"))
    }

    /// Signs with each of `keys`, the one place where the key of a cache is used on a path, and appends
    /// one leaf for each signature.
    #[expect(clippy::too_many_arguments, reason = "the parts of one leaf")]
    async fn sign(
        &self,
        tx: &mut Tx,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        verified: &Verified,
        (path_id, claim_id): (&str, &str),
        keys: &[&KeyRow],
        now: Timestamp,
    ) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let claim = &verified.narinfo.claim;
        let replaces = log::last_signature(tx, path_id).await?;
        let fingerprint = claim.fingerprint();
        let mut leaves = Vec::with_capacity(keys.len());
        for key in keys {
            let signature = self.sign_fingerprint(key, fingerprint.as_bytes())?;
            let leaf = self.leaf_row(Leaf {
                call,
                by: Some(pusher),
                cache: Some(cache),
                path_id: Some(path_id),
                event: LeafEvent::Sign { claim, signature: &signature, replaces },
                detail: Value::Null,
                now,
            })?;
            leaves.push((signature, leaf));
        }
        let mut index = log::lock(tx).await?;
        for (signature, leaf) in &leaves {
            paths::replace_signature(tx, claim_id, signature, index).await?;
            index = log::append(tx, index, leaf).await?;
        }
        metrics::counter!("narvault_signatures_total").increment(leaves.len() as u64);
        Ok(())
    }

    /// Makes visible what this contributor sent beside the path.
    async fn reveal_auxiliary(
        &self,
        tx: &mut Tx,
        release: &mut Release<'_>,
        pusher: &TokenCaller,
        verified: &Verified,
        now: Timestamp,
    ) -> Result<()> {
        let hash = verified.narinfo.claim.path.hash().to_string();
        let file = verified.measured.file.to_string();
        let subjects = [(AuxiliaryKind::Listing, hash.as_str()), (AuxiliaryKind::DebugInfo, file.as_str())];
        let revealed = auxiliary::reveal(tx, release.cache.id, subjects, pusher.contributor, now).await?;
        for (kind, name) in revealed {
            release.auxiliary(tx, kind, &name).await?;
        }
        Ok(())
    }

    /// Writes down that another claim was made for a published path, with both contributors, and commits.
    #[expect(clippy::too_many_arguments, reason = "the parts of one record")]
    async fn record_conflict(
        &self,
        mut tx: Tx,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        standing: &PathRow,
        claim: &Claim,
        now: Timestamp,
    ) -> Result<Conflict> {
        let new = evidence::insert_conflict(
            &mut tx,
            &self.new_id(now),
            (&standing.id, &standing.claim_id),
            claim,
            (pusher.contributor, pusher.token),
            now,
        )
        .await?;
        if new {
            let leaf = self.leaf_row(Leaf {
                call,
                by: Some(pusher),
                cache: Some(cache),
                path_id: Some(&standing.id),
                event: LeafEvent::Conflict(claim),
                detail: Value::Null,
                now,
            })?;
            let index = log::lock(&mut tx).await?;
            log::append(&mut tx, index, &leaf).await?;
        }
        tx.commit().await?;
        tracing::warn!(
            cache = %cache.name,
            path = %claim.path,
            contributor.id = %pusher.contributor,
            token.id = %pusher.token,
            standing = %standing.claim.nar_hash,
            claimed = %claim.nar_hash,
            "conflicting claim refused"
        );
        Ok(Conflict::between(&standing.claim, claim))
    }
}

enum Taken {
    Made { path_id: String, claim_id: String },
    Standing(Box<PathRow>),
}

impl Verified {
    /// Compares every claim of the narinfo with what was measured.
    fn check(narinfo: NarInfo, measured: Measured) -> std::result::Result<Self, Rejection> {
        let claim = &narinfo.claim;
        let mismatch = |field, claimed: String, measured: String| {
            if claimed == measured { Ok(()) } else { Err(Rejection::Mismatch { field, claimed, measured }) }
        };
        mismatch("NarHash", claim.nar_hash.to_string(), measured.nar_hash.to_string())?;
        mismatch("NarSize", claim.nar_size.to_string(), measured.nar_size.to_string())?;
        mismatch("Compression", narinfo.compression.to_string(), measured.compression.to_string())?;
        if let Some(file_size) = narinfo.file_size {
            mismatch("FileSize", file_size.to_string(), measured.file_size.to_string())?;
        }
        let (ca, ca_dropped) = check_content_address(&narinfo, &measured)?;
        let found: BTreeSet<&str> = measured.found_refs.split(' ').collect();
        let unfound = claim.references.iter().map(StorePath::hash).map(|hash| hash.to_string());
        let unfound: Vec<_> = if measured.found_refs_truncated {
            Vec::new()
        } else {
            unfound.filter(|hash| !found.contains(hash.as_str())).collect()
        };
        let unfound_refs = unfound.join(" ");
        Ok(Self { measured, ca, ca_dropped, unfound_refs, narinfo })
    }
}

/// Recomputes the content address where its method allows; any other loses its line.
fn check_content_address(
    narinfo: &NarInfo,
    measured: &Measured,
) -> std::result::Result<(Option<ContentAddress>, Option<String>), Rejection> {
    let Some(ca) = &narinfo.ca else { return Ok((None, None)) };
    let claim = &narinfo.claim;
    if !ca.is_recomputed(&claim.path, &claim.references) {
        return Ok((None, Some(ca.to_string())));
    }
    let of_other_kind = |why| Rejection::ContentAddressKind { path: claim.path.clone(), why };
    let measured_digest = match ca {
        ContentAddress::Recursive(_) => measured.nar_hash.0,
        _ => match measured.single_file {
            Some((digest, false)) => digest,
            Some((_, true)) => return Err(of_other_kind("it is an executable file")),
            None => return Err(of_other_kind("it is not one regular file")),
        },
    };
    let actual = match ca {
        ContentAddress::Text(_) => ContentAddress::Text(measured_digest),
        ContentAddress::Flat(_) => ContentAddress::Flat(measured_digest),
        _ => ContentAddress::Recursive(measured_digest),
    };
    if actual != *ca {
        return Err(of_other_kind("its hash is another one"));
    }
    let computed = actual
        .store_path(claim.path.name(), &claim.references)
        .map_err(|_| of_other_kind("a flat file has no references"))?;
    if computed != claim.path {
        return Err(Rejection::ContentAddress { path: claim.path.clone(), computed });
    }
    Ok((Some(actual), None))
}

/// Every reference must be published here, or be held by an upstream where the cache says that this is enough, or
/// be the path itself. Answers with the hashes that the NAR
/// mentions, that are published here, and that are not claimed.
async fn check_references(tx: &mut Tx, cache: &CacheRow, verified: &Verified) -> Result<String> {
    let claim = &verified.narinfo.claim;
    let claimed: BTreeSet<StorePathHash> = claim.references.iter().map(StorePath::hash).collect();
    let mut asked: BTreeSet<String> =
        verified.measured.found_refs.split(' ').filter(|hash| !hash.is_empty()).map(str::to_owned).collect();
    asked.extend(claimed.iter().map(ToString::to_string));
    asked.remove(claim.path.hash().as_str());
    if asked.is_empty() {
        return Ok(String::new());
    }
    let published: BTreeSet<StorePath> =
        paths::published_among(tx, cache.id, asked).await?.into_iter().collect();
    let elsewhere = claim.references.iter().filter(|path| **path != claim.path && !published.contains(*path));
    let elsewhere: Vec<_> = elsewhere.collect();
    let held = upstreams::known(tx, cache, &elsewhere.iter().map(|path| path.hash()).collect()).await?;
    if let Some(missing) = elsewhere.into_iter().find(|path| !held.contains(*path)) {
        let (path, missing) = (claim.path.clone(), missing.clone());
        return Err(Rejection::MissingReference { path, missing }.into());
    }
    let undeclared: Vec<_> = published.iter().filter(|path| !claimed.contains(&path.hash())).collect();
    if let (UndeclaredReferences::Refuse, Some(found)) = (cache.undeclared_references, undeclared.first()) {
        let (path, found) = (claim.path.clone(), (*found).clone());
        return Err(Rejection::UndeclaredReference { path, found }.into());
    }
    Ok(undeclared.iter().map(|path| path.hash().to_string()).collect::<Vec<_>>().join(" "))
}
