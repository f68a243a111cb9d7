//! Release: storage is brought in line with the rows, by whichever replica comes first.
//!
//! An object is rendered from the rows at the moment of writing, under a lease. A narinfo waits for those
//! of its references that still wait. Nothing here decides what is true: the rows did.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Error, Result, Service};
use crate::access::CacheId;
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches::{self, CacheRow};
use crate::db::measured::{self, FileState};
use crate::db::outbox::{self, LeaseTerms, Leased, OutboxKind};
use crate::db::paths::{self, PathState};
use crate::db::{DbError, Gate, Tx, realisations};
use crate::nix::cache_info::CacheInfo;
use crate::storage::{CacheObject, ObjectKey};
use crate::time::Timestamp;

/// Objects that a transaction asks to be released, and their names for afterwards.
pub(super) struct Release<'a> {
    pub cache: &'a CacheRow,
    now: Timestamp,
    /// `None`: the worker releases them, nobody waits.
    terms: Option<&'a LeaseTerms>,
    /// What to release once the transaction is committed.
    pub objects: Vec<Wanted>,
}

/// An object to release once the transaction that asked for it is committed.
#[derive(Debug)]
pub(super) struct Wanted {
    object: String,
    /// The lease that was taken with the wish, unless somebody else has it.
    leased: Option<Leased>,
}

impl<'a> Release<'a> {
    pub fn new(service: &'a Service, cache: &'a CacheRow, now: Timestamp) -> Self {
        Self { cache, now, terms: Some(&service.inner.lease_terms), objects: Vec::new() }
    }

    /// For many objects, which the worker releases by and by.
    pub fn by_worker(cache: &'a CacheRow, now: Timestamp) -> Self {
        Self { cache, now, terms: None, objects: Vec::new() }
    }

    /// Asks for an object of the cache to be written or deleted, as the rows will say.
    pub async fn object(&mut self, tx: &mut Tx, object: CacheObject) -> Result<()> {
        let (kind, subject) = match &object {
            CacheObject::Info => (OutboxKind::CacheInfo, String::new()),
            CacheObject::Narinfo(hash) => (OutboxKind::NarInfo, hash.to_string()),
            CacheObject::Nar(_) => (OutboxKind::Nar, String::new()),
            CacheObject::Listing(_) | CacheObject::BuildLog(_) | CacheObject::DebugInfo(_) => {
                (OutboxKind::Auxiliary, String::new())
            }
            CacheObject::Realisation(_) => (OutboxKind::Realisation, String::new()),
        };
        let key = super::key_of(self.cache, object)?.to_string();
        let leased = outbox::enqueue(tx, &key, kind, self.cache.id, &subject, self.terms, self.now).await?;
        if self.terms.is_some() {
            self.objects.push(Wanted { object: key, leased });
        }
        Ok(())
    }

    /// The same for an auxiliary object, by its row's name.
    pub async fn auxiliary(&mut self, tx: &mut Tx, kind: AuxiliaryKind, name: &str) -> Result<()> {
        match super::auxiliary::object_named(kind, name) {
            Some(object) => self.object(tx, object).await,
            None => Err(DbError::Corrupt { table: "auxiliary", column: "name", row: name.to_owned() }.into()),
        }
    }
}

/// How a piece of work under a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Storage holds what the rows say.
    Yes,
    /// Not yet: a reference still waits, or somebody else has the lease, or storage failed.
    Later,
}

/// Objects that were written, and whose outbox rows are about to be cleared in one batch with others.
#[derive(Default)]
pub(super) struct Finishing {
    leased: Mutex<HashMap<String, Leased>>,
    wake: Notify,
}

impl Finishing {
    fn add(&self, leased: Leased) {
        let mut all = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(leased.object.clone(), leased);
        self.wake.notify_one();
    }

    fn holds(&self, object: &str) -> bool {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).contains_key(object)
    }

    fn all(&self) -> Vec<Leased> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn remove(&self, done: &[Leased]) {
        let mut all = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        for leased in done {
            if all.get(&leased.object).is_some_and(|held| held == leased) {
                all.remove(&leased.object);
            }
        }
    }
}

impl Service {
    /// Releases `objects` now, for at most `wait`; what is left then is the worker's. True: nothing is left.
    ///
    /// Runs in a task of its own: a client that goes away must not leave a lease behind.
    pub(super) async fn release_within(&self, objects: Vec<Wanted>, wait: Duration) -> bool {
        if objects.is_empty() {
            return true;
        }
        let service = self.clone();
        let deadline = Instant::now() + wait;
        let task = self.inner.tasks.spawn(async move {
            let mut all_done = true;
            for Wanted { object, mut leased } in objects {
                let mut pause = WAITING;
                // At least once, also past the deadline: a lease that was taken is used or given back.
                let done = loop {
                    if service.release_one(&object, leased.take()).await == Done::Yes {
                        break true;
                    }
                    if Instant::now() + pause > deadline {
                        break false;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(WAITING_MAX);
                };
                all_done &= done;
            }
            all_done
        });
        matches!(tokio::time::timeout(wait, task).await, Ok(Ok(true)))
    }

    /// The same for the time that a push may wait.
    pub(super) async fn release_soon(&self, objects: Vec<Wanted>) {
        self.release_within(objects, RELEASE_WAIT).await;
    }

    /// Tries one object, under the lease that was taken for it already, if one was.
    async fn release_one(&self, object: &str, leased: Option<Leased>) -> Done {
        let leased = match leased {
            Some(leased) => leased,
            None => match self.lease(object).await {
                Ok(Ok(leased)) => leased,
                Ok(Err(done)) => return done,
                Err(error) => {
                    tracing::warn!(
                        object,
                        error = &error as &dyn std::error::Error,
                        "cannot lease an object"
                    );
                    return Done::Later;
                }
            },
        };
        let mut may_land = false;
        let pause = match self.carry_out(&leased).await {
            Ok(Done::Yes) => {
                self.inner.finishing.add(leased);
                return Done::Yes;
            }
            Ok(Done::Later) => waiting_pause_millis(leased.attempts),
            Err(error) => {
                tracing::warn!(
                    object,
                    attempts = leased.attempts,
                    error = &error as &dyn std::error::Error,
                    "cannot release an object; it is tried again"
                );
                metrics::counter!("narvault_release_failures_total").increment(1);
                // A write that got no answer may still land.
                may_land = matches!(error, Error::Storage(_));
                retry_pause_millis(leased.attempts)
            }
        };
        let given_back = async {
            let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
            let now = self.inner.clock.now();
            let terms = &self.inner.lease_terms;
            let landing_until = may_land.then(|| now.plus_millis(terms.attempt_millis_max));
            outbox::give_back(&mut tx, &leased, terms, now.plus_millis(pause), landing_until).await?;
            tx.commit().await
        };
        if let Err(error) = given_back.await {
            // The lease runs out by itself, and the object is done once more.
            tracing::warn!(object, error = &error as &dyn std::error::Error, "cannot give a lease back");
        }
        Done::Later
    }

    /// Leases an object. Inner error: nothing to lease, and whether that means that nothing is left to do.
    async fn lease(&self, object: &str) -> Result<std::result::Result<Leased, Done>> {
        if self.inner.finishing.holds(object) {
            // Written a moment ago; if it was wanted again since, its row says so once it is cleared.
            self.finish().await?;
        }
        let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
        let now = self.inner.clock.now();
        let leased = outbox::lease_one(&mut tx, object, &self.inner.lease_terms, now).await?;
        let waits = leased.is_some() || outbox::waits(&mut tx, object).await?;
        tx.commit().await?;
        Ok(leased.ok_or(if waits { Done::Later } else { Done::Yes }))
    }

    /// Clears the rows of what was written, in one transaction, once it is certain to last.
    async fn finish(&self) -> Result<()> {
        let done = self.inner.finishing.all();
        if done.is_empty() {
            return Ok(());
        }
        self.inner.storage.settle().await?;
        let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
        outbox::finish(&mut tx, &done, &self.inner.lease_terms, self.inner.clock.now()).await?;
        tx.commit().await?;
        self.inner.finishing.remove(&done);
        Ok(())
    }

    /// Clears rows whenever something was written, until `stop`, and once more then.
    pub(super) async fn finisher(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.inner.finishing.wake.notified() => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(FINISH_PAUSE) => {}
            }
            if let Err(error) = self.finish().await {
                // Their leases run out by themselves, and the objects are done once more.
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot clear released objects");
                tokio::time::sleep(WORKER_PAUSE).await;
            }
        }
        if let Err(error) = self.finish().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot clear released objects");
        }
    }

    /// Writes or deletes one object, as the rows say now.
    async fn carry_out(&self, leased: &Leased) -> Result<Done> {
        let unreadable = || Error::Internal(format!("outbox names {:?}", leased.object).into());
        let key: ObjectKey = leased.object.parse().map_err(|_| unreadable())?;
        let cache: CacheId = leased.cache_id.parse().map_err(|_| unreadable())?;
        let ObjectKey::Cache(_, object) = &key else { return Err(unreadable()) };
        let body = match object {
            CacheObject::Narinfo(hash) => {
                let mut connection = self.inner.db.read().await?;
                let path = paths::find(&mut connection, cache, *hash).await?;
                match path.filter(|path| path.state == PathState::Published) {
                    None => None,
                    Some(path) => {
                        let references = path.claim.references.iter().map(|path| path.hash());
                        let others = references.filter(|reference| reference != hash).collect::<Vec<_>>();
                        if !others.is_empty() {
                            let waiting =
                                outbox::waiting_narinfos(&mut connection, &leased.cache_id, others).await?;
                            if !waiting.iter().all(|object| self.inner.finishing.holds(object)) {
                                return Ok(Done::Later);
                            }
                        }
                        Some(super::read::render_narinfo(&mut connection, &path).await?.text)
                    }
                }
            }
            CacheObject::Nar(_) => return self.delete_nar(leased, cache, &key).await,
            CacheObject::Info => {
                let row = caches::by_id(&mut *self.inner.db.read().await?, cache).await?;
                row.map(|row| Bytes::from(CacheInfo::served(row.priority).to_string()))
            }
            CacheObject::Listing(hash) => {
                self.auxiliary_body(cache, AuxiliaryKind::Listing, hash.as_str()).await?
            }
            CacheObject::BuildLog(derivation) => {
                self.auxiliary_body(cache, AuxiliaryKind::Log, derivation.base_name()).await?
            }
            CacheObject::DebugInfo(key) => {
                self.auxiliary_body(cache, AuxiliaryKind::DebugInfo, &key.to_string()).await?
            }
            CacheObject::Realisation(key) => self.realisation_body(cache, key).await?,
        };
        match body {
            Some(body) => self.inner.storage.put_soon(&key, body).await?,
            None => self.inner.storage.delete(&key, DELETE_TIMEOUT).await?,
        }
        Ok(Done::Yes)
    }

    /// Deletes a condemned NAR. Sent only if it will have ended, one way or the other, before the lease
    /// does: an upload of the same NAR waits for exactly that moment.
    async fn delete_nar(&self, leased: &Leased, cache: CacheId, key: &ObjectKey) -> Result<Done> {
        let ObjectKey::Cache(_, CacheObject::Nar(file)) = key else { return Ok(Done::Yes) };
        let row = measured::find(&mut *self.inner.db.read().await?, cache, file).await?;
        let Some(row) = row.filter(|row| row.state == FileState::Doomed) else { return Ok(Done::Yes) };
        let timeout_millis = i64::try_from(DELETE_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        let until = self.inner.clock.now().plus_millis(timeout_millis);
        if until > leased.lease_until {
            return Ok(Done::Later);
        }
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        let condemned = measured::deleting(&mut tx, &row.id, until).await?;
        tx.commit().await?;
        if !condemned {
            return Ok(Done::Yes);
        }
        // What the bookkeeping took is no longer there for the DELETE: it has ended by `until`, or is not sent.
        let left = u64::try_from(until.0 - self.inner.clock.now().0).unwrap_or(0);
        if left < millis(DELETE_TIMEOUT).unsigned_abs() / 2 {
            return Ok(Done::Later);
        }
        self.inner.storage.delete(key, Duration::from_millis(left)).await?;
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        measured::deleted(&mut tx, &row.id, row.generation).await?;
        tx.commit().await?;
        Ok(Done::Yes)
    }

    async fn auxiliary_body(&self, cache: CacheId, kind: AuxiliaryKind, name: &str) -> Result<Option<Bytes>> {
        let body = auxiliary::visible_body(&mut *self.inner.db.read().await?, cache, kind, name).await?;
        match body {
            Some(body) => Ok(Some(super::auxiliary::decompressed(body).await?)),
            None => Ok(None),
        }
    }

    async fn realisation_body(
        &self,
        cache: CacheId,
        key: &crate::nix::realisation::RealisationKey,
    ) -> Result<Option<Bytes>> {
        let row = realisations::find(&mut *self.inner.db.read().await?, cache, &key.to_string()).await?;
        row.map(|row| super::realisations::render(key, &row)).transpose()
    }

    /// Releases what is due until `stop`, a few objects at a time.
    pub(super) async fn release_worker(self, stop: CancellationToken) {
        loop {
            let wait = match self.release_due().await {
                Ok(0) => WORKER_PAUSE,
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for due objects");
                    WORKER_PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One round of the worker: how many objects it brought in line.
    async fn release_due(&self) -> Result<usize> {
        let now = self.inner.clock.now();
        let due = outbox::due(&mut *self.inner.db.read().await?, now, WORKER_BATCH).await?;
        let results = stream::iter(due)
            .map(|object| async move { self.release_one(&object, None).await })
            .buffer_unordered(WORKER_CONCURRENCY)
            .filter(|done| std::future::ready(*done == Done::Yes))
            .count();
        tokio::select! {
            () = self.inner.stop.cancelled() => Ok(0),
            count = results => Ok(count),
        }
    }
}

/// The lease of a replica: long enough for the slowest write, and that write's own bound.
pub(super) fn lease_terms(owner: String, put_time_max: Duration) -> LeaseTerms {
    let attempt_millis_max = i64::try_from(put_time_max.as_millis()).unwrap_or(i64::MAX / 4);
    let delete_millis = i64::try_from(DELETE_TIMEOUT.as_millis()).unwrap_or(i64::MAX / 4);
    LeaseTerms { owner, lease_millis: attempt_millis_max.max(2 * delete_millis) + 5_000, attempt_millis_max }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// 20 ms, doubled with each attempt, at most 5 s.
fn waiting_pause_millis(attempts: i64) -> i64 {
    let doublings = u32::try_from(attempts.clamp(0, 8)).unwrap_or(8);
    (millis(WAITING) << doublings).min(5_000)
}

/// 0.25 s, doubled with each attempt, at most a minute.
fn retry_pause_millis(attempts: i64) -> i64 {
    let doublings = u32::try_from(attempts.clamp(0, 8)).unwrap_or(8);
    (250_i64 << doublings).min(60_000)
}

/// How long a push waits for its narinfo to reach storage before it answers anyway.
const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// The whole time that a DELETE may take.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// When an object is looked at again that could not be released.
const WAITING: Duration = Duration::from_millis(20);
const WAITING_MAX: Duration = Duration::from_millis(500);

/// How long written objects gather until their rows are cleared together: each commit is a flush of the disk
/// under the database's one write lock, and pushes wait for that lock.
const FINISH_PAUSE: Duration = Duration::from_millis(100);

const WORKER_PAUSE: Duration = Duration::from_millis(500);
const WORKER_BATCH: i64 = 64;
const WORKER_CONCURRENCY: usize = 8;
