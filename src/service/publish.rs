//! Narinfos on their way in, one or many: every claim is compared with what was measured, then signed and logged in
//! one transaction for a group of them, then released.
//!
//! Nothing reaches the key but a [`Verified`] claim, and nothing else in the service calls the key for a path.

mod commit;
mod decide;
mod group;
mod signing;
mod verified;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

use super::release::RELEASE_WAIT;
use super::upstreams::REFERENCES_PATIENCE;
use super::{Call, Error, Rejection, Result, Service};
use crate::access::{CacheName, TokenCaller};
use crate::db::caches::{CacheRow, UpstreamPaths};
use crate::db::evidence::Source;
use crate::db::measured::{self, FileState, Measured};
use crate::db::{Connection, Gate, contributors, paths};
use crate::nix::compression::NarFileName;
use crate::nix::narinfo::NarInfo;
use crate::nix::signature::{PublicKey, Signature};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::storage::CacheObject;
pub(super) use commit::Committing;
use commit::Job;
pub(super) use verified::Verified;

/// A `Sig:` line that somebody else's key made, and whose it is.
struct ForeignSignature {
    signature: Signature,
    source: Source,
    key: PublicKey,
}

/// A path that may be published, as far as it can be told outside of a transaction.
struct Candidate {
    verified: Verified,
    foreign: Vec<ForeignSignature>,
}

impl Candidate {
    /// What the store paths that its NAR mentions take.
    fn found_refs_bytes(&self) -> u64 {
        self.verified.measured().found_refs.len() as u64
    }
}

/// What a push came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Signed and logged by this call.
    New,
    /// It stood already with the same claim; this call is further evidence.
    Again,
}

/// A path that stands published after a push.
#[derive(Debug, Clone)]
pub struct Standing {
    pub published: Published,
    /// Names of the keys that it is signed with here.
    pub keys: Vec<String>,
}

/// What became of one narinfo of many.
#[derive(Debug)]
pub struct PathOutcome {
    /// Unless the narinfo could not be read.
    pub path: Option<StorePath>,
    pub result: Result<Standing>,
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
        let narinfo = self.parse_narinfo(body)?;
        if narinfo.claim.path.hash() != hash {
            return Err(Rejection::OtherHash { asked: hash, stated: narinfo.claim.path }.into());
        }
        let results = self.publish_all(call, &cache, &pusher, vec![Ok(narinfo)]).await?;
        let standing = results.into_iter().next().unwrap_or_else(|| Err(Error::NotFound("path")))?;
        Ok(standing.published)
    }

    /// Publishes narinfos in the order of their references, each as one that is put alone: a refused one does not
    /// sink the others, and one that comes earlier counts as published for those after it.
    ///
    /// An error means that the call was ended by a revocation, or by a fault: those before it may be published.
    pub async fn publish(
        &self,
        call: &Call,
        cache: &CacheName,
        narinfos: &[String],
    ) -> Result<Vec<PathOutcome>> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let parsed: Vec<_> = narinfos.iter().map(|text| self.parse_narinfo(text.as_bytes())).collect();
        let path =
            |narinfo: &Result<NarInfo>| narinfo.as_ref().ok().map(|narinfo| narinfo.claim.path.clone());
        let paths: Vec<_> = parsed.iter().map(path).collect();
        let results = self.publish_all(call, &cache, &pusher, parsed).await?;
        Ok(paths.into_iter().zip(results).map(|(path, result)| PathOutcome { path, result }).collect())
    }

    fn parse_narinfo(&self, body: &[u8]) -> Result<NarInfo> {
        let max = self.inner.limits.narinfo_size_bytes_max;
        if body.len() as u64 > max {
            return Err(Error::TooLarge { what: "the narinfo", max });
        }
        Ok(NarInfo::parse(body).map_err(Rejection::from)?)
    }

    /// Publishes group by group, while the groups before are being released.
    async fn publish_all(
        &self,
        call: &Call,
        cache: &Arc<CacheRow>,
        pusher: &TokenCaller,
        narinfos: Vec<Result<NarInfo>>,
    ) -> Result<Vec<Result<Standing>>> {
        let groups = self.groups(cache, narinfos).await?;
        let releasing = self.begin_releasing(RELEASE_WAIT);
        let mut results = Vec::new();
        for group in groups {
            let checked = self.check(cache, group).await?;
            let mut candidates = Vec::with_capacity(checked.len());
            let refused: Vec<_> = checked
                .into_iter()
                .map(|one| one.map(|candidate| candidates.push(candidate)).err())
                .collect();
            let mut published = Vec::new();
            if !candidates.is_empty() {
                let silent = self.ask_for_references(cache, &candidates).await?;
                let job = |answer| Job {
                    call: call.clone(),
                    cache: Arc::clone(cache),
                    pusher: pusher.clone(),
                    candidates,
                    releases: releasing.releases(),
                    span: tracing::Span::current(),
                    answer,
                };
                let results = self.publish_job(job).await?;
                let told =
                    |result: Result<_>| result.map_err(|error| error.of_silent_upstream(silent.clone()));
                published = results.into_iter().map(told).collect();
            }
            let mut published = published.into_iter();
            let result = |refused: Option<Error>| match refused {
                Some(error) => Err(error),
                None => published.next().unwrap_or_else(|| Err(Error::NotFound("path"))),
            };
            results.extend(refused.into_iter().map(result));
        }
        releasing.end().await;
        Ok(results)
    }

    /// Cuts narinfos into groups for a transaction each: no path twice in one, and no more than memory allows.
    async fn groups(
        &self,
        cache: &CacheRow,
        narinfos: Vec<Result<NarInfo>>,
    ) -> Result<Vec<Vec<Result<NarInfo>>>> {
        let files = narinfos.iter().filter_map(|narinfo| Some(narinfo.as_ref().ok()?.file));
        let sizes = if narinfos.len() > 1 {
            measured::found_refs_sizes(&mut *self.inner.db.read().await?, cache.id, files).await?
        } else {
            HashMap::new()
        };
        let mut groups: Vec<Vec<_>> = Vec::new();
        let (mut paths, mut size_bytes) = (HashSet::new(), 0);
        for narinfo in narinfos {
            if let Ok(narinfo) = &narinfo {
                let more = sizes.get(&narinfo.file).copied().unwrap_or(0);
                let hash = narinfo.claim.path.hash();
                let full = paths.len() == GROUP_PATHS_MAX || size_bytes + more > GROUP_FOUND_REFS_BYTES_MAX;
                if full && !paths.is_empty() || paths.contains(&hash) {
                    groups.push(Vec::new());
                    paths.clear();
                    size_bytes = 0;
                }
                paths.insert(hash);
                size_bytes += more;
            }
            match groups.last_mut() {
                Some(group) => group.push(narinfo),
                None => groups.push(vec![narinfo]),
            }
        }
        Ok(groups)
    }

    /// Everything that is checked before the transaction.
    async fn check(
        &self,
        cache: &CacheRow,
        narinfos: Vec<Result<NarInfo>>,
    ) -> Result<Vec<Result<Candidate>>> {
        let readable = || narinfos.iter().filter_map(|narinfo| narinfo.as_ref().ok());
        let (measured, known) = {
            let mut connection = self.inner.db.read().await?;
            let files = readable().map(|narinfo| narinfo.file);
            let measured = measured::find_all(&mut connection, cache.id, files).await?;
            let signed = readable().any(|narinfo| !narinfo.signatures.is_empty());
            let known = if signed { self.foreign_keys(&mut connection, cache).await? } else { Vec::new() };
            (measured, known)
        };
        let (measured, known) = (&measured, &known);
        let check = |narinfo: Result<NarInfo>| async move {
            let narinfo = narinfo?;
            let row = self.present(cache, narinfo.file, measured.get(&narinfo.file)).await?;
            let verified = Verified::check(narinfo, row)?;
            let foreign = verified_foreign_signatures(&verified, known);
            Ok(Candidate { verified, foreign })
        };
        Ok(stream::iter(narinfos).map(check).buffered(LOOKED_FOR_AT_ONCE).collect().await)
    }

    /// The measured NAR, provided that its object is still there.
    async fn present(&self, cache: &CacheRow, file: NarFileName, row: Option<&Measured>) -> Result<Measured> {
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
            return Ok(row.clone());
        }
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        measured::lose(&mut tx, &row.id, row.generation).await?;
        tx.commit().await?;
        tracing::error!(cache = %cache.name, %file, "a NAR is missing from storage, or of another size");
        Err(Rejection::LostNar(file).into())
    }

    /// Finds out whether upstreams hold those references that are neither published here nor about to be, where
    /// that is enough for this cache. Answers with an upstream that was silent.
    async fn ask_for_references(&self, cache: &CacheRow, candidates: &[Candidate]) -> Result<Option<String>> {
        if cache.upstream_paths == UpstreamPaths::Store {
            return Ok(None);
        }
        let (mut asked, mut earlier) = (BTreeSet::new(), HashSet::new());
        for candidate in candidates {
            let claim = candidate.verified.claim();
            earlier.insert(claim.path.hash());
            let references = claim.references.iter().map(StorePath::hash);
            asked.extend(references.filter(|hash| !earlier.contains(hash)));
        }
        if asked.is_empty() {
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

    /// The keys whose signatures count in this cache: its upstreams' and the contributors'.
    pub(super) async fn foreign_keys(
        &self,
        connection: &mut Connection,
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
}

/// Those `Sig:` lines that a known key of somebody else made. Lines under our own names, under unknown
/// names, or that do not verify are dropped.
fn verified_foreign_signatures(verified: &Verified, known: &[(PublicKey, Source)]) -> Vec<ForeignSignature> {
    if verified.narinfo().signatures.is_empty() {
        return Vec::new();
    }
    let fingerprint = verified.claim().fingerprint();
    let mut foreign: Vec<ForeignSignature> = Vec::new();
    for signature in &verified.narinfo().signatures {
        let valid = known
            .iter()
            .find(|(key, _)| *key.name() == signature.name && key.verify(fingerprint.as_bytes(), signature));
        let repeated = foreign.iter().any(|other| other.signature.name == signature.name);
        if let (Some((key, source)), false) = (valid, repeated) {
            foreign.push(ForeignSignature {
                signature: signature.clone(),
                source: source.clone(),
                key: key.clone(),
            });
        }
    }
    foreign
}

/// Paths of one transaction. It holds the gate shared, and at its end the log: a revocation waits for it, and so
/// does every other push.
const GROUP_PATHS_MAX: usize = 64;

/// What the NARs of one group may mention together, in bytes of their rows; a NAR has at most 2 MiB, and goes alone
/// if it has to.
const GROUP_FOUND_REFS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Objects whose presence in storage is asked for at once.
const LOOKED_FOR_AT_ONCE: usize = 16;

#[cfg(test)]
mod tests;
