//! What becomes of each path of a group: looked at behind the gate, before anything is written.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Candidate, Verified};
use crate::db::Tx;
use crate::db::caches::{CacheRow, UndeclaredReferences};
use crate::db::measured::{self, FileState};
use crate::db::paths::{self, PathRow, PathState};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::service::upstreams;
use crate::service::{Error, Rejection, Result};

/// A candidate that is not refused.
pub(super) struct Accepted<'a> {
    /// Whose path it is: a place among the jobs.
    pub job: usize,
    pub candidate: &'a Candidate,
    /// Mentioned by the NAR, published here, and not claimed.
    pub undeclared_refs: String,
    pub meets: Meets,
}

/// What stands at a path already.
pub(super) enum Meets {
    Nothing,
    /// A path that was deleted or withdrawn.
    Unpublished(Box<PathRow>),
    SameClaim(Box<PathRow>),
    OtherClaim(Box<PathRow>),
}

/// Locks the rows that stand, and says of each candidate what it meets, or why it is refused. Writes nothing.
pub(super) async fn decide<'a>(
    tx: &mut Tx,
    cache: &CacheRow,
    candidates: &[(usize, &'a Candidate)],
) -> Result<Vec<Result<Accepted<'a>>>> {
    let files = candidates.iter().map(|(_, candidate)| candidate.verified.measured().file);
    let states = measured::states(tx, cache.id, files).await?;
    let asked: HashSet<String> =
        candidates.iter().flat_map(|(_, candidate)| asked(&candidate.verified)).collect();
    let mut published: HashMap<StorePathHash, StorePath> = HashMap::new();
    if !asked.is_empty() {
        let found = paths::published_among(tx, cache.id, asked).await?;
        published.extend(found.into_iter().map(|path| (path.hash(), path)));
    }
    let elsewhere = candidates.iter().flat_map(|(_, candidate)| &candidate.verified.claim().references);
    let elsewhere = elsewhere.map(StorePath::hash).filter(|hash| !published.contains_key(hash)).collect();
    let held = upstreams::known(tx, cache, &elsewhere).await?;
    let hashes = candidates.iter().map(|(_, candidate)| candidate.verified.claim().path.hash());
    let standing = paths::lock(tx, cache.id, hashes).await?;
    let mut standing: HashMap<_, _> = standing.into_iter().map(|row| (row.claim.path.hash(), row)).collect();
    let mut decided = Vec::with_capacity(candidates.len());
    for &(job, candidate) in candidates {
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
            Accepted { job, candidate, undeclared_refs, meets }
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
