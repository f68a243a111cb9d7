//! The transaction of a group of paths: gate, rights, references, rows, evidence, signatures, leaves, outbox.
//!
//! What is refused is refused before anything of that path is written; the log is locked last, once for all.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use serde_json::Value;

use super::commit::Job;
use super::decide::{Accepted, Meets, decide};
use super::signing::{Leaves, append};
use super::{Candidate, ForeignSignature, Published, Standing};
use crate::access::{Action, ContributorId, TokenCaller};
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches::CacheRow;
use crate::db::evidence::{self, NewEvidence, Source};
use crate::db::log::LeafRow;
use crate::db::measured::{self, FileState};
use crate::db::paths::{self, NewPath, PathRow};
use crate::db::signing_keys::KeyRow;
use crate::db::withdrawals::{self, Fate};
use crate::db::{Gate, Tx, epoch, standing};
use crate::nix::claim::Claim;
use crate::nix::signature::Signature;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::service::leaves::{Leaf, LeafEvent};
use crate::service::release::{FreshNarInfo, Release, Wanted};
use crate::service::webhooks::Event;
use crate::service::{Call, Conflict, Error, Result, Service};
use crate::storage::CacheObject;
use crate::time::Timestamp;

/// On whose word, where and when.
#[derive(Clone, Copy)]
pub(super) struct Act<'a> {
    call: &'a Call,
    cache: &'a CacheRow,
    pusher: &'a TokenCaller,
    now: Timestamp,
}

/// What is to be released of one job, in this order; what stands together does not wait for one another.
type Levels = Vec<Vec<Wanted>>;

/// A path whose rows are written, but for its signatures and leaves.
pub(super) struct Written<'a> {
    pub act: Act<'a>,
    /// Whose path it is: a place among the jobs.
    job: usize,
    pub candidate: &'a Candidate,
    pub path_id: String,
    pub claim_id: String,
    published: Published,
    /// Whether the path's row is new: then nothing that is known of it is older.
    pub fresh: bool,
    /// Whether its narinfo is another one now.
    changed: bool,
    /// Names of keys that had signed it here before.
    signed: Vec<String>,
    /// Signatures of this transaction.
    made: Vec<Signature>,
}

impl Written<'_> {
    /// The narinfo, where nothing but this transaction has a part in it.
    fn fresh_narinfo(&self) -> Option<FreshNarInfo> {
        if !self.fresh || !self.candidate.foreign.is_empty() {
            return None;
        }
        let claim = self.candidate.verified.claim();
        let others = claim.references.iter().map(StorePath::hash).filter(|hash| *hash != claim.path.hash());
        let text = self.candidate.verified.text(&self.made).into();
        Some(FreshNarInfo { references: others.collect(), text, begun: None })
    }
}

impl Service {
    /// One try to publish the candidates of jobs, all of one cache and no path twice among them: what became of each, or
    /// why a whole job was refused. `None`: another push just made one of the paths.
    pub(super) async fn publish_once(
        &self,
        jobs: &[Job],
    ) -> Result<Option<Vec<Result<Vec<Result<Standing>>>>>> {
        let Some(first) = jobs.first() else { return Ok(Some(Vec::new())) };
        let (now, begun) = (self.inner.clock.now(), Instant::now());
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let tokens = jobs.iter().map(|job| job.pusher.token);
        let standing = standing::read(&mut tx, tokens, now).await?;
        let push = Action::Push(first.cache.name.clone());
        let refused: Vec<Option<Error>> =
            jobs.iter().map(|job| self.recheck_in(&standing, &job.call, &push, now).err()).collect();
        if refused.iter().all(Option::is_some) {
            return Ok(Some(refused.into_iter().flatten().map(Err).collect()));
        }
        self.recheck_open_in(&mut tx, &standing).await?;
        let signers = self.signers(&mut tx, &first.cache, &standing).await?;
        let (cache, keys) = (&signers.cache, &signers.keys);
        if keys.is_empty() {
            return Err(Conflict::NoSigningKey.into());
        }
        let acts = jobs.iter().map(|job| Act { call: &job.call, cache, pusher: &job.pusher, now });
        let acts: Vec<Act<'_>> = acts.collect();
        let allowed = jobs.iter().enumerate().filter(|(at, _)| refused[*at].is_none());
        let candidates = allowed.flat_map(|(at, job)| job.candidates.iter().map(move |one| (at, one)));
        let candidates: Vec<(usize, &Candidate)> = candidates.collect();
        let decided = decide(&mut tx, cache, &candidates).await?;

        let (mut accepted, mut results) = (Vec::new(), Vec::new());
        let mut leaves = Leaves::default();
        let mut conflicts = Vec::new();
        for ((job, _), one) in candidates.iter().zip(decided) {
            let result = match one {
                Ok(Accepted { candidate, meets: Meets::OtherClaim(row), .. }) => {
                    let claim = candidate.verified.claim();
                    let refused = Conflict::between(&row.claim, claim);
                    if let Some(leaf) = self.record_conflict(&mut tx, acts[*job], &row, claim).await? {
                        leaves.rows.push(leaf);
                        conflicts.push((*job, row, claim));
                    }
                    Some(Err(refused.into()))
                }
                Ok(one) => {
                    accepted.push(one);
                    None
                }
                Err(error) => Some(Err(error)),
            };
            results.push((*job, result));
        }
        let signing = self.sign_aside(&signers, &accepted);
        let Some(mut written) = self.write_claims(&mut tx, &acts, accepted).await? else { return Ok(None) };
        self.add_evidence(&mut tx, cache, &mut written).await?;
        let mut stand = Vec::with_capacity(written.len());
        for (one, begun) in written.iter_mut().zip(signing.end().await?) {
            let unsigned =
                |key: &&KeyRow| !one.signed.iter().any(|name| name == key.public_key.name().as_str());
            let unsigned: Vec<&KeyRow> = keys.iter().filter(unsigned).collect();
            one.changed |= !unsigned.is_empty();
            one.made = self.sign(&mut tx, one, &unsigned, begun, &mut leaves).await?;
            let made = unsigned.iter().map(|key| key.public_key.name().to_string());
            let keys = one.signed.iter().cloned().chain(made).collect();
            stand.push(Standing { published: one.published, keys });
        }
        let mut released = self.wish_release(&mut tx, cache, now, jobs.len(), &written).await?;
        // Those that stand together are rendered and written together, later.
        let alone = released.iter_mut().flatten().filter(|objects| objects.len() == 1).flatten();
        alone.take(self.inner.storage.puts_at_once()).for_each(|wanted| wanted.begin(&self.inner.storage));
        let remembered = written.iter().any(|one| one.changed && one.published == Published::Again);
        if remembered {
            epoch::advance(&mut tx).await?;
        }
        if signers.has_webhooks {
            self.tell_webhooks(&mut tx, cache, jobs, &conflicts, &written).await?;
        }
        let appending = Instant::now();
        append(&mut tx, &leaves).await?;
        let appended = leaves.took + appending.elapsed();
        tx.commit().await?;
        metrics::histogram!("narvault_log_append_seconds").record(appended);
        metrics::histogram!("narvault_publish_transaction_seconds").record(begun.elapsed());
        if remembered {
            self.note_change().await;
        }
        // From here on, before anybody is told: a client that goes away must not leave a lease behind.
        for (job, levels) in jobs.iter().zip(released) {
            levels.into_iter().for_each(|objects| job.releases.add(objects));
        }
        metrics::counter!("narvault_signatures_total").increment(leaves.signatures.len() as u64);
        tell(jobs, &written, results.iter().filter_map(|(_, result)| result.as_ref()?.as_ref().err()));
        let mut stand = stand.into_iter().map(Ok);
        let mut of_jobs: Vec<Result<Vec<Result<Standing>>>> =
            refused.into_iter().map(|refused| refused.map_or(Ok(Vec::new()), Err)).collect();
        for (job, result) in results {
            let result = result.or_else(|| stand.next()).unwrap_or(Err(Error::NotFound("path")));
            if let Ok(results) = &mut of_jobs[job] {
                results.push(result);
            }
        }
        Ok(Some(of_jobs))
    }

    /// Makes or takes the rows of the paths, and writes their claims. `None`: another push just made one of them.
    async fn write_claims<'a>(
        &self,
        tx: &mut Tx,
        acts: &[Act<'a>],
        accepted: Vec<Accepted<'a>>,
    ) -> Result<Option<Vec<Written<'a>>>> {
        let Some(Act { cache, now, .. }) = acts.first().copied() else { return Ok(Some(Vec::new())) };
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
            let Accepted { job, candidate, undeclared_refs, meets } = one;
            let verified = &candidate.verified;
            let mut one = Written {
                act: acts[*job],
                job: *job,
                candidate,
                path_id: String::new(),
                claim_id: self.new_id(now),
                published: Published::New,
                fresh: false,
                changed: true,
                signed: Vec::new(),
                made: Vec::new(),
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
                let (claim_id, path_id) = (one.claim_id.clone(), one.path_id.clone());
                let claim = verified.new_claim(claim_id, path_id, undeclared_refs, now);
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
        if !republished.is_empty() {
            let ids = republished.iter().map(|at: &usize| &written[*at].path_id);
            withdrawals::end_of_paths(tx, ids, Fate::Republished, now).await?;
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
    async fn add_evidence(&self, tx: &mut Tx, cache: &CacheRow, written: &mut [Written<'_>]) -> Result<()> {
        // A key removed since the signatures were verified counts no longer.
        let signed = written.iter().any(|one| !one.candidate.foreign.is_empty());
        let counting = if signed { self.foreign_keys(tx, cache).await? } else { Vec::new() };
        let counts = |one: &&ForeignSignature| {
            counting.iter().any(|(key, source)| *key == one.key && *source == one.source)
        };
        let mut new = Vec::with_capacity(written.len());
        for one in written.iter_mut() {
            let pusher = one.act.pusher;
            for foreign in one.candidate.foreign.iter().filter(counts) {
                let ForeignSignature { signature, source, .. } = foreign;
                one.changed |= paths::insert_signature(tx, &one.claim_id, signature, None).await?;
                if one.fresh || !evidence::exists(tx, &one.claim_id, source, pusher.token).await? {
                    new.push(self.evidence(one, source.clone()));
                }
            }
        }
        let pushed =
            written.iter().map(|one| self.evidence(one, Source::Contributor(one.act.pusher.contributor)));
        new.extend(pushed);
        match written.first() {
            Some(first) => Ok(evidence::insert_all(tx, &new, first.act.now).await?),
            None => Ok(()),
        }
    }

    fn evidence(&self, one: &Written<'_>, source: Source) -> NewEvidence {
        let Act { pusher, now, .. } = one.act;
        NewEvidence { id: self.new_id(now), claim_id: one.claim_id.clone(), source, token: pusher.token }
    }

    /// Asks for the narinfos that are others now, and for what the contributors sent beside the paths. Answers for each
    /// of `jobs` jobs.
    async fn wish_release(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
        now: Timestamp,
        jobs: usize,
        written: &[Written<'_>],
    ) -> Result<Vec<Levels>> {
        let mut levels: Vec<Levels> = (0..jobs).map(|_| vec![Vec::new()]).collect();
        let mut first_jobs: BTreeMap<ContributorId, usize> = BTreeMap::new();
        let mut subjects = Vec::with_capacity(2 * written.len());
        for one in written {
            let (verified, contributor) = (&one.candidate.verified, one.act.pusher.contributor);
            let hash = verified.claim().path.hash().to_string();
            first_jobs.entry(contributor).or_insert(one.job);
            subjects.push((contributor, AuxiliaryKind::Listing, hash));
            subjects.push((contributor, AuxiliaryKind::DebugInfo, verified.measured().file.to_string()));
        }
        if !subjects.is_empty() {
            for (contributor, kind, name) in auxiliary::reveal(tx, cache.id, &subjects, now).await? {
                let mut release = Release::new(self, cache, now);
                release.auxiliary(tx, kind, &name).await?;
                levels[first_jobs[&contributor]][0].append(&mut release.objects);
            }
        }
        let changed: Vec<&Written<'_>> = written.iter().filter(|one| one.changed).collect();
        let claims: Vec<&Claim> = changed.iter().map(|one| one.candidate.verified.claim()).collect();
        let narinfos = claims.iter().map(|claim| CacheObject::Narinfo(claim.path.hash()));
        let wanted = Release::new(self, cache, now).wish(tx, narinfos).await?;
        for ((one, level), wanted) in changed.iter().zip(levels_of(&claims)).zip(wanted) {
            let levels = &mut levels[one.job];
            levels.resize_with(levels.len().max(level + 2), Vec::new);
            levels[level + 1].push(wanted.with(one.fresh_narinfo()));
        }
        levels.iter_mut().for_each(|levels| levels.retain(|objects| !objects.is_empty()));
        Ok(levels)
    }

    /// Queues what webhooks are told, for each job by itself: each was somebody's act.
    async fn tell_webhooks(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
        jobs: &[Job],
        conflicts: &[(usize, Box<PathRow>, &Claim)],
        written: &[Written<'_>],
    ) -> Result<()> {
        let now = self.inner.clock.now();
        for (at, job) in jobs.iter().enumerate() {
            let of_job = conflicts.iter().filter(|(job, ..)| *job == at);
            let claims = of_job.map(|(_, row, claim)| (&row.claim, *claim)).collect();
            self.emit(tx, &job.call, Event::PathConflict { cache, claims }, now).await?;
            let new = written.iter().filter(|one| one.job == at && one.published == Published::New);
            let claims = new.map(|one| one.candidate.verified.claim()).collect();
            self.emit(tx, &job.call, Event::PathPublished { cache, claims }, now).await?;
        }
        Ok(())
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
    pub fn leaf(self, path_id: &'a str, event: LeafEvent<'a>) -> Leaf<'a> {
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

/// How many of the others each path has to wait for, one after the other: those of one number do not refer to one
/// another.
fn levels_of(claims: &[&Claim]) -> Vec<usize> {
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

/// Tells the log and the counters what was committed.
fn tell<'a>(jobs: &[Job], written: &[Written<'_>], refused: impl Iterator<Item = &'a Error>) {
    for one in written {
        jobs[one.job].span.in_scope(|| {
            tracing::info!(
                cache = %one.act.cache.name,
                path = %one.candidate.verified.claim().path,
                token.id = %one.act.pusher.token,
                again = one.published == Published::Again,
                "path published"
            );
        });
    }
    metrics::counter!("narvault_paths_published_total").increment(written.len() as u64);
    let conflicts = refused.filter(|error| matches!(error, Error::Conflict(_))).count();
    metrics::counter!("narvault_conflicts_total").increment(conflicts as u64);
}
