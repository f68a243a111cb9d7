//! The transaction of a group of paths: gate, rights, references, rows, evidence, signatures, leaves, outbox.
//!
//! What is refused is refused before anything of that path is written; the log is locked last, once for all.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::{Candidate, ForeignSignature, Published, Standing, Verified};
use crate::access::{Action, TokenCaller};
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches::{CacheRow, UndeclaredReferences};
use crate::db::evidence::{self, Source};
use crate::db::log::LeafRow;
use crate::db::measured::{self, FileState};
use crate::db::paths::{self, MadeSignature, NewClaim, NewPath, PathRow, PathState};
use crate::db::signing_keys::KeyRow;
use crate::db::{Gate, Tx, epoch, log, restarting, signing_keys};
use crate::nix::claim::Claim;
use crate::nix::signature::Signature;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::service::leaves::{Leaf, LeafEvent};
use crate::service::release::{Release, Wanted};
use crate::service::upstreams;
use crate::service::{Call, Conflict, Error, Rejection, Result, Service};
use crate::storage::CacheObject;
use crate::time::Timestamp;

/// A group that was committed.
pub(super) struct Group {
    /// What became of each candidate, in their order.
    pub results: Vec<Result<Standing>>,
    /// What is to be released, in this order; what stands together does not wait for one another.
    pub released: Vec<Vec<Wanted>>,
}

/// On whose word, where and when.
#[derive(Clone, Copy)]
struct Act<'a> {
    call: &'a Call,
    cache: &'a CacheRow,
    pusher: &'a TokenCaller,
    now: Timestamp,
}

/// A candidate that is not refused.
struct Accepted<'a> {
    candidate: &'a Candidate,
    /// Mentioned by the NAR, published here, and not claimed.
    undeclared_refs: String,
    meets: Meets,
}

/// What stands at a path already.
enum Meets {
    Nothing,
    /// A path that was deleted or withdrawn.
    Unpublished(Box<PathRow>),
    SameClaim(Box<PathRow>),
    OtherClaim(Box<PathRow>),
}

/// A path whose rows are written, but for its signatures and leaves.
struct Written<'a> {
    candidate: &'a Candidate,
    path_id: String,
    claim_id: String,
    published: Published,
    /// Whether the path's row is new: then nothing that is known of it is older.
    fresh: bool,
    /// Whether its narinfo is another one now.
    changed: bool,
    /// Names of keys that had signed it here before.
    signed: Vec<String>,
}

/// Leaves that wait for the log's lock, and the signatures that they account for.
#[derive(Default)]
struct Leaves {
    rows: Vec<LeafRow>,
    /// Of each signature: its claim, itself, and its leaf's place among the rows.
    signatures: Vec<(String, Signature, usize)>,
}

impl Service {
    /// Publishes candidates, no path twice among them.
    pub(super) async fn publish_group(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        candidates: &[Candidate],
    ) -> Result<Group> {
        loop {
            // Given up where another push made one of the paths meanwhile: the next try meets its row.
            if let Some(group) = restarting(|| self.publish_once(call, cache, pusher, candidates)).await? {
                return Ok(group);
            }
        }
    }

    async fn publish_once(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        candidates: &[Candidate],
    ) -> Result<Option<Group>> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
        self.recheck_open(&mut tx).await?;
        let cache = &self.recheck_cache(&mut tx, cache).await?;
        let act = Act { call, cache, pusher, now };
        let keys = signing_keys::active_of_cache(&mut tx, cache.id).await?;
        if keys.is_empty() {
            return Err(Conflict::NoSigningKey.into());
        }
        let decided = decide(&mut tx, cache, candidates).await?;

        let (mut accepted, mut results) = (Vec::new(), Vec::new());
        let mut leaves = Leaves::default();
        for one in decided {
            results.push(match one {
                Ok(Accepted { candidate, meets: Meets::OtherClaim(row), .. }) => {
                    let claim = candidate.verified.claim();
                    leaves.rows.extend(self.record_conflict(&mut tx, act, &row, claim).await?);
                    Some(Err(Conflict::between(&row.claim, claim).into()))
                }
                Ok(one) => {
                    accepted.push(one);
                    None
                }
                Err(error) => Some(Err(error)),
            });
        }
        let Some(mut written) = self.write_claims(&mut tx, act, accepted).await? else { return Ok(None) };
        self.add_evidence(&mut tx, act, &mut written).await?;
        let mut standing = Vec::with_capacity(written.len());
        for one in &mut written {
            let unsigned =
                |key: &&KeyRow| !one.signed.iter().any(|name| name == key.public_key.name().as_str());
            let unsigned: Vec<&KeyRow> = keys.iter().filter(unsigned).collect();
            one.changed |= !unsigned.is_empty();
            self.sign(&mut tx, act, one, &unsigned, &mut leaves).await?;
            let made = unsigned.iter().map(|key| key.public_key.name().to_string());
            let keys = one.signed.iter().cloned().chain(made).collect();
            standing.push(Standing { published: one.published, keys });
        }
        let released = self.wish_release(&mut tx, act, &written).await?;
        let remembered = written.iter().any(|one| one.changed && one.published == Published::Again);
        if remembered {
            epoch::advance(&mut tx).await?;
        }
        append(&mut tx, &leaves).await?;
        tx.commit().await?;
        if remembered {
            self.note_change().await;
        }
        metrics::counter!("narvault_signatures_total").increment(leaves.signatures.len() as u64);
        tell(act, &written, results.iter().flatten().filter_map(|result| result.as_ref().err()));
        let mut standing = standing.into_iter().map(Ok);
        let result = |result: Option<Result<Standing>>| {
            result.unwrap_or_else(|| standing.next().unwrap_or_else(|| Err(Error::NotFound("path"))))
        };
        Ok(Some(Group { results: results.into_iter().map(result).collect(), released }))
    }

    /// Makes or takes the rows of the paths, and writes their claims. `None`: another push just made one of them.
    async fn write_claims<'a>(
        &self,
        tx: &mut Tx,
        act: Act<'_>,
        accepted: Vec<Accepted<'a>>,
    ) -> Result<Option<Vec<Written<'a>>>> {
        let Act { cache, now, .. } = act;
        let same = accepted.iter().filter_map(|one| match &one.meets {
            Meets::SameClaim(row) => Some(row.file),
            _ => None,
        });
        let standing_files: Vec<_> = same.collect();
        let states = if standing_files.is_empty() {
            HashMap::new()
        } else {
            measured::states(tx, cache.id, standing_files).await?
        };
        let (mut made, mut claims, mut written) = (Vec::new(), Vec::new(), Vec::new());
        let mut republished = Vec::new();
        for one in &accepted {
            let Accepted { candidate, undeclared_refs, meets } = one;
            let verified = &candidate.verified;
            let mut one = Written {
                candidate,
                path_id: String::new(),
                claim_id: self.new_id(now),
                published: Published::New,
                fresh: false,
                changed: true,
                signed: Vec::new(),
            };
            let mut insert = true;
            match meets {
                Meets::Nothing => {
                    one.path_id = self.new_id(now);
                    one.fresh = true;
                    let (id, claim_id) = (one.path_id.clone(), one.claim_id.clone());
                    made.push(NewPath { id, hash: verified.claim().path.hash(), claim_id });
                }
                Meets::Unpublished(row) => {
                    one.path_id = row.id.clone();
                    republished.push(written.len());
                }
                Meets::SameClaim(row) | Meets::OtherClaim(row) => {
                    one.path_id = row.id.clone();
                    one.published = Published::Again;
                    // The first file stays in the narinfo, unless it is not there any more.
                    let stored = states.get(&row.file).is_some_and(|(state, _)| *state == FileState::Stored);
                    insert = !stored;
                    one.changed = insert;
                    if !insert {
                        one.claim_id = row.claim_id.clone();
                    }
                }
            }
            if insert {
                let claim = new_claim(&one, verified, undeclared_refs, now);
                claims.push((written.len(), claim));
            }
            written.push(one);
        }
        if !made.is_empty() && !paths::insert(tx, cache.id, &made, now).await? {
            return Ok(None);
        }
        if !claims.is_empty() {
            let (places, claims): (Vec<_>, Vec<_>) = claims.into_iter().unzip();
            for (at, id) in places.into_iter().zip(paths::insert_claims(tx, &claims).await?) {
                written[at].claim_id = id;
            }
        }
        for at in republished {
            paths::republish(tx, &written[at].path_id, &written[at].claim_id, now).await?;
        }
        let again = written.iter().filter(|one| one.published == Published::Again);
        let again: Vec<_> = again.map(|one| one.claim_id.clone()).collect();
        if !again.is_empty() {
            let mut signatures = paths::signatures_of(tx, again).await?;
            for one in written.iter_mut().filter(|one| one.published == Published::Again) {
                let rows = signatures.remove(&one.claim_id).unwrap_or_default();
                let ours = rows.into_iter().filter(|row| row.leaf.is_some());
                one.signed = ours.map(|row| row.signature.name.to_string()).collect();
            }
        }
        Ok(Some(written))
    }

    /// Writes down who supports the claims: the pusher, and whoever else signed them.
    async fn add_evidence(&self, tx: &mut Tx, act: Act<'_>, written: &mut [Written<'_>]) -> Result<()> {
        let Act { cache, pusher, now, .. } = act;
        if written.is_empty() {
            return Ok(());
        }
        // A key removed since the signatures were verified counts no longer.
        let signed = written.iter().any(|one| !one.candidate.foreign.is_empty());
        let counting = if signed { self.foreign_keys(tx, cache).await? } else { Vec::new() };
        let counts = |one: &&ForeignSignature| {
            counting.iter().any(|(key, source)| *key == one.key && *source == one.source)
        };
        for one in written.iter_mut() {
            for foreign in one.candidate.foreign.iter().filter(counts) {
                let ForeignSignature { signature, source, .. } = foreign;
                one.changed |= paths::insert_signature(tx, &one.claim_id, signature, None).await?;
                if one.fresh || !evidence::exists(tx, &one.claim_id, source, pusher.token).await? {
                    evidence::insert(tx, &self.new_id(now), &one.claim_id, source, pusher.token, now).await?;
                }
            }
        }
        let claims: Vec<_> = written.iter().map(|one| (self.new_id(now), one.claim_id.as_str())).collect();
        let source = Source::Contributor(pusher.contributor);
        Ok(evidence::insert_all(tx, &claims, &source, pusher.token, now).await?)
    }

    /// Signs with each of `keys`, the one place where the key of a cache is used on a path: one leaf for each
    /// signature.
    async fn sign(
        &self,
        tx: &mut Tx,
        act: Act<'_>,
        one: &Written<'_>,
        keys: &[&KeyRow],
        leaves: &mut Leaves,
    ) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let claim = one.candidate.verified.claim();
        let replaces = if one.fresh { None } else { log::last_signature(tx, &one.path_id).await? };
        let fingerprint = claim.fingerprint();
        for key in keys {
            let signature = self.sign_fingerprint(key, fingerprint.as_bytes())?;
            let event = LeafEvent::Sign { claim, signature: &signature, replaces };
            let leaf = self.leaf_row(act.leaf(&one.path_id, event))?;
            leaves.signatures.push((one.claim_id.clone(), signature, leaves.rows.len()));
            leaves.rows.push(leaf);
        }
        Ok(())
    }

    /// Asks for the narinfos that are others now, and for what the contributor sent beside the paths.
    async fn wish_release(
        &self,
        tx: &mut Tx,
        act: Act<'_>,
        written: &[Written<'_>],
    ) -> Result<Vec<Vec<Wanted>>> {
        let Act { cache, pusher, now, .. } = act;
        let subjects = written.iter().flat_map(|one| {
            let verified = &one.candidate.verified;
            let hash = verified.claim().path.hash().to_string();
            [(AuxiliaryKind::Listing, hash), (AuxiliaryKind::DebugInfo, verified.measured().file.to_string())]
        });
        let subjects: Vec<_> = subjects.collect();
        let mut release = Release::new(self, cache, now);
        if !subjects.is_empty() {
            let revealed = auxiliary::reveal(tx, cache.id, &subjects, pusher.contributor, now).await?;
            for (kind, name) in revealed {
                release.auxiliary(tx, kind, &name).await?;
            }
        }
        let changed = written.iter().filter(|one| one.changed);
        let claims: Vec<&Claim> = changed.map(|one| one.candidate.verified.claim()).collect();
        let narinfos = claims.iter().map(|claim| CacheObject::Narinfo(claim.path.hash()));
        let wanted = release.wish(tx, narinfos).await?;
        let mut released = vec![std::mem::take(&mut release.objects)];
        for (level, wanted) in levels(&claims).into_iter().zip(wanted) {
            released.resize_with(released.len().max(level + 2), Vec::new);
            released[level + 1].push(wanted);
        }
        released.retain(|objects| !objects.is_empty());
        Ok(released)
    }

    /// Writes down that another claim was made for a published path, with both contributors. Answers with the leaf,
    /// unless that was known.
    async fn record_conflict(
        &self,
        tx: &mut Tx,
        act: Act<'_>,
        standing: &PathRow,
        claim: &Claim,
    ) -> Result<Option<LeafRow>> {
        let Act { cache, pusher, now, .. } = act;
        tracing::warn!(
            cache = %cache.name,
            path = %claim.path,
            contributor.id = %pusher.contributor,
            token.id = %pusher.token,
            standing = %standing.claim.nar_hash,
            claimed = %claim.nar_hash,
            "conflicting claim refused"
        );
        let new = evidence::insert_conflict(
            tx,
            &self.new_id(now),
            (&standing.id, &standing.claim_id),
            claim,
            (pusher.contributor, pusher.token),
            now,
        )
        .await?;
        if !new {
            return Ok(None);
        }
        self.leaf_row(act.leaf(&standing.id, LeafEvent::Conflict(claim))).map(Some)
    }
}

impl<'a> Act<'a> {
    fn leaf(self, path_id: &'a str, event: LeafEvent<'a>) -> Leaf<'a> {
        Leaf {
            call: self.call,
            by: Some(self.pusher),
            cache: Some(self.cache),
            path_id: Some(path_id),
            event,
            detail: Value::Null,
            now: self.now,
        }
    }
}

fn new_claim<'a>(
    written: &Written<'_>,
    verified: &'a Verified,
    undeclared_refs: &'a str,
    now: Timestamp,
) -> NewClaim<'a> {
    NewClaim {
        id: written.claim_id.clone(),
        path_id: written.path_id.clone(),
        claim: verified.claim(),
        claim_sha256: verified.claim().sha256(),
        file: verified.measured().file,
        compression: verified.measured().compression,
        file_size: verified.measured().file_size,
        deriver: verified.narinfo().deriver.as_ref(),
        ca: verified.ca().map(ToString::to_string),
        ca_dropped: verified.ca_dropped().map(str::to_owned),
        undeclared_refs,
        unfound_refs: verified.unfound_refs(),
        now,
    }
}

/// Locks the rows that stand, and says of each candidate what it meets, or why it is refused. Writes nothing.
async fn decide<'a>(
    tx: &mut Tx,
    cache: &CacheRow,
    candidates: &'a [Candidate],
) -> Result<Vec<Result<Accepted<'a>>>> {
    let files = candidates.iter().map(|candidate| candidate.verified.measured().file);
    let states = measured::states(tx, cache.id, files).await?;
    let asked: HashSet<String> = candidates.iter().flat_map(|candidate| asked(&candidate.verified)).collect();
    let mut published: HashMap<StorePathHash, StorePath> = HashMap::new();
    if !asked.is_empty() {
        let found = paths::published_among(tx, cache.id, asked).await?;
        published.extend(found.into_iter().map(|path| (path.hash(), path)));
    }
    let elsewhere = candidates.iter().flat_map(|candidate| &candidate.verified.claim().references);
    let elsewhere = elsewhere.map(StorePath::hash).filter(|hash| !published.contains_key(hash)).collect();
    let held = upstreams::known(tx, cache, &elsewhere).await?;
    let hashes = candidates.iter().map(|candidate| candidate.verified.claim().path.hash());
    let standing = paths::lock(tx, cache.id, hashes).await?;
    let mut standing: HashMap<_, _> = standing.into_iter().map(|row| (row.claim.path.hash(), row)).collect();
    let mut decided = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let verified = &candidate.verified;
        let (claim, measured) = (verified.claim(), verified.measured());
        if states.get(&measured.file) != Some(&(FileState::Stored, measured.generation)) {
            decided.push(Err(Rejection::UnknownNar(measured.file).into()));
            continue;
        }
        let accepted = check_references(cache, verified, &published, &held).map(|undeclared_refs| {
            let meets = match standing.remove(&claim.path.hash()).map(Box::new) {
                None => Meets::Nothing,
                Some(row) if row.state != PathState::Published => Meets::Unpublished(row),
                Some(row) if row.claim == *claim => Meets::SameClaim(row),
                Some(row) => Meets::OtherClaim(row),
            };
            Accepted { candidate, undeclared_refs, meets }
        });
        if let Ok(Accepted { meets: Meets::Nothing | Meets::Unpublished(_), .. }) = accepted {
            published.insert(claim.path.hash(), claim.path.clone());
        }
        decided.push(accepted.map_err(Error::from));
    }
    Ok(decided)
}

/// The hashes of other paths that matter to this one: claimed, or found in its NAR.
fn asked(verified: &Verified) -> impl Iterator<Item = String> {
    let claim = verified.claim();
    let own = claim.path.hash().to_string();
    let found = verified.measured().found_refs.split(' ').filter(|hash| !hash.is_empty()).map(str::to_owned);
    let claimed = claim.references.iter().map(|path| path.hash().to_string());
    found.chain(claimed).filter(move |hash| *hash != own)
}

/// Every reference must be published here, or be held by an upstream where the cache says that this is enough, or
/// be the path itself. Answers with the hashes that the NAR mentions, that are published here, and that are not
/// claimed.
fn check_references(
    cache: &CacheRow,
    verified: &Verified,
    published: &HashMap<StorePathHash, StorePath>,
    held: &BTreeSet<StorePath>,
) -> std::result::Result<String, Rejection> {
    let claim = verified.claim();
    let is_here = |path: &&StorePath| published.get(&path.hash()) == Some(*path) || held.contains(*path);
    let others = || claim.references.iter().filter(|path| **path != claim.path);
    if let Some(missing) = others().find(|path| !is_here(path)) {
        let (path, missing) = (claim.path.clone(), missing.clone());
        return Err(Rejection::MissingReference { path, missing });
    }
    let claimed: HashSet<StorePathHash> = claim.references.iter().map(StorePath::hash).collect();
    let own = claim.path.hash();
    let found = verified.measured().found_refs.split(' ').filter_map(|hash| hash.parse().ok());
    let undeclared = found.filter(|hash| *hash != own && !claimed.contains(hash));
    let undeclared: BTreeSet<&StorePath> = undeclared.filter_map(|hash| published.get(&hash)).collect();
    if let (UndeclaredReferences::Refuse, Some(found)) = (cache.undeclared_references, undeclared.first()) {
        let (path, found) = (claim.path.clone(), (*found).clone());
        return Err(Rejection::UndeclaredReference { path, found });
    }
    Ok(undeclared.iter().map(|path| path.hash().to_string()).collect::<Vec<_>>().join(" "))
}

/// How many of the others each path has to wait for, one after the other: those of one number do not refer to one
/// another.
fn levels(claims: &[&Claim]) -> Vec<usize> {
    let mut known: HashMap<StorePathHash, usize> = HashMap::new();
    let mut levels = Vec::with_capacity(claims.len());
    for claim in claims {
        // They come in the order of their references; one that does not waits for the worker.
        let below = claim.references.iter().filter_map(|path| known.get(&path.hash()));
        let level = below.max().map_or(0, |level| level + 1);
        known.insert(claim.path.hash(), level);
        levels.push(level);
    }
    levels
}

/// Writes leaves and signatures: the last lock.
async fn append(tx: &mut Tx, leaves: &Leaves) -> Result<()> {
    if leaves.rows.is_empty() {
        return Ok(());
    }
    let indices = crate::service::log::append(tx, &leaves.rows).await?;
    if !leaves.signatures.is_empty() {
        let made = leaves.signatures.iter().map(|(claim_id, signature, at)| MadeSignature {
            claim_id: claim_id.clone(),
            signature: signature.clone(),
            leaf: indices.start + i64::try_from(*at).unwrap_or(i64::MAX),
        });
        paths::put_signatures(tx, &made.collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// Tells the log and the counters what was committed.
fn tell<'a>(act: Act<'_>, written: &[Written<'_>], refused: impl Iterator<Item = &'a Error>) {
    for one in written {
        tracing::info!(
            cache = %act.cache.name,
            path = %one.candidate.verified.claim().path,
            token.id = %act.pusher.token,
            again = one.published == Published::Again,
            "path published"
        );
    }
    metrics::counter!("narvault_paths_published_total").increment(written.len() as u64);
    let conflicts = refused.filter(|error| matches!(error, Error::Conflict(_))).count();
    metrics::counter!("narvault_conflicts_total").increment(conflicts as u64);
}
