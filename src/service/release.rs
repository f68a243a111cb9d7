//! Release: storage is brought in line with the rows, by whichever replica comes first.
//!
//! An object is rendered from the rows at the moment of writing, or as they were when the lease was taken, under a lease.
//! A narinfo waits for those of its references that still wait. Nothing here decides what is true: the rows did.

mod narinfos;
mod order;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::narinfos::Rendered;
use self::order::Order;
use super::{Error, Result, Service};
use crate::access::CacheId;
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches::{self, CacheRow};
use crate::db::measured::{self, FileState};
use crate::db::outbox::{self, LeaseTerms, Leased, OutboxKind, Wish};
use crate::db::{DbError, Gate, Tx, realisations};
use crate::nix::cache_info::CacheInfo;
use crate::nix::store_path::StorePathHash;
use crate::storage::{BegunPut, CacheObject, ObjectKey, Storage};
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
    /// What the rows say when they are committed, where that is known.
    fresh: Option<FreshNarInfo>,
}

/// A narinfo as the transaction left it that asked for its release. Under the lease that was taken with the wish it may
/// be written without a look at the rows: whoever changes them afterwards asks for the object again, and that is done
/// once the lease ends.
#[derive(Debug)]
pub(super) struct FreshNarInfo {
    /// What it refers to, but for itself.
    pub references: Vec<StorePathHash>,
    pub text: Bytes,
    /// As far as it is written already, which nobody can see yet.
    pub begun: Option<BegunPut>,
}

impl Wanted {
    /// The same, with the text known.
    pub fn with(self, fresh: Option<FreshNarInfo>) -> Self {
        Self { fresh, ..self }
    }

    /// Begins to write it, where it is known and may be written: beside the transaction that asked for it.
    pub fn begin(&mut self, storage: &Storage) {
        if let (Some(_), Some(fresh), Ok(key)) = (&self.leased, &mut self.fresh, self.object.parse()) {
            fresh.begun = Some(storage.begin_put(&key, fresh.text.clone()));
        }
    }
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
        let wanted = self.wish(tx, [object]).await?;
        self.objects.extend(wanted);
        Ok(())
    }

    /// The same for many, each once: what is wanted of each, in their order, which is not among `objects`.
    pub async fn wish(
        &self,
        tx: &mut Tx,
        objects: impl IntoIterator<Item = CacheObject>,
    ) -> Result<Vec<Wanted>> {
        let wishes: Vec<Wish> =
            objects.into_iter().map(|object| self.wish_for(object)).collect::<Result<_>>()?;
        if wishes.is_empty() {
            return Ok(Vec::new());
        }
        let leased = outbox::enqueue(tx, &wishes, self.cache.id, self.terms, self.now).await?;
        if self.terms.is_none() {
            return Ok(Vec::new());
        }
        let wanted = wishes.into_iter().zip(leased);
        Ok(wanted.map(|(wish, leased)| Wanted { object: wish.object, leased, fresh: None }).collect())
    }

    fn wish_for(&self, object: CacheObject) -> Result<Wish> {
        let (kind, subject) = match &object {
            CacheObject::Info => (OutboxKind::CacheInfo, String::new()),
            CacheObject::Narinfo(hash) => (OutboxKind::NarInfo, hash.to_string()),
            CacheObject::Nar(_) => (OutboxKind::Nar, String::new()),
            CacheObject::Listing(_) | CacheObject::BuildLog(_) | CacheObject::DebugInfo(_) => {
                (OutboxKind::Auxiliary, String::new())
            }
            CacheObject::Realisation(_) => (OutboxKind::Realisation, String::new()),
            CacheObject::KeySuccession => (OutboxKind::KeySuccession, String::new()),
        };
        Ok(Wish { object: super::key_of(self.cache, object)?.to_string(), kind, subject })
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
        let releasing = self.begin_releasing(wait);
        releasing.0.add(objects);
        releasing.end().await
    }

    /// Releases what is handed in, in that order; `wait` is for each that is handed in, and for the end.
    pub(super) fn begin_releasing(&self, wait: Duration) -> Releasing {
        let (queue, waiting) = mpsc::unbounded_channel();
        let task = Arc::new(Mutex::new(ReleaseTask::Needed(self.clone(), waiting)));
        Releasing(Releases { queue, wait, task })
    }

    async fn release_all(self, mut waiting: Waiting) -> bool {
        let mut all_done = true;
        while let Some((objects, deadline)) = waiting.recv().await {
            for object in self.release_together(objects).await {
                all_done &= self.release_until(object, deadline).await;
            }
        }
        all_done
    }

    /// Releases objects that do not wait for one another, all at once. Answers with what is left.
    async fn release_together(&self, objects: Vec<Wanted>) -> Vec<Wanted> {
        let (narinfos, mut left): (Vec<_>, Vec<_>) = objects.into_iter().partition(|wanted| {
            wanted.leased.as_ref().is_some_and(|leased| leased.kind == OutboxKind::NarInfo)
        });
        if narinfos.len() < 2 {
            left.extend(narinfos);
            return left;
        }
        let mut narinfos: Vec<Leased> = narinfos.into_iter().filter_map(|wanted| wanted.leased).collect();
        while !narinfos.is_empty() {
            let rest = narinfos.split_off(narinfos.len().min(self.inner.storage.puts_at_once()));
            let begun = std::mem::replace(&mut narinfos, rest);
            let unwritten = self.release_narinfos(begun, &Order::default()).await.left.into_iter();
            left.extend(unwritten.map(|leased| {
                let object = leased.object.clone();
                Wanted { object, leased: Some(leased), fresh: None }
            }));
        }
        left
    }

    /// Whether the longest write would end before the lease does.
    fn lasts(&self, leased: &Leased) -> bool {
        self.inner.clock.now().plus_millis(self.inner.lease_terms.attempt_millis_max) <= leased.lease_until
    }

    /// Releases one object, trying until `deadline`.
    async fn release_until(&self, wanted: Wanted, deadline: Instant) -> bool {
        let Wanted { object, mut leased, mut fresh } = wanted;
        let mut pause = WAITING;
        // At least once, also past the deadline: a lease that was taken is used or given back.
        loop {
            if self.release_one(&object, leased.take(), fresh.take()).await == Done::Yes {
                return true;
            }
            if Instant::now() + pause > deadline {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(WAITING_MAX);
        }
    }

    /// The same for the time that a push may wait.
    pub(super) async fn release_soon(&self, objects: Vec<Wanted>) {
        self.release_within(objects, RELEASE_WAIT).await;
    }

    /// Tries one object, under the lease that was taken for it already, if one was.
    async fn release_one(&self, object: &str, leased: Option<Leased>, fresh: Option<FreshNarInfo>) -> Done {
        let (leased, fresh) = match leased {
            Some(leased) => (leased, fresh),
            None => match self.lease(object).await {
                Ok(Ok(leased)) => (leased, None),
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
        if !self.lasts(&leased) {
            // It was taken together with others that took their time: what is written now could land too late.
            self.give_back_until(&leased, 0, false).await;
            return Done::Later;
        }
        match self.carry_out(&leased, fresh).await {
            Ok(Done::Yes) => {
                self.inner.finishing.add(leased);
                return Done::Yes;
            }
            Ok(Done::Later) => {
                self.give_back_until(&leased, waiting_pause_millis(leased.attempts), false).await
            }
            Err(error) => self.give_back(&leased, &error).await,
        }
        Done::Later
    }

    /// Gives a lease back after a failure.
    async fn give_back(&self, leased: &Leased, error: &Error) {
        tracing::warn!(
            object = leased.object,
            attempts = leased.attempts,
            error = error as &dyn std::error::Error,
            "cannot release an object; it is tried again"
        );
        metrics::counter!("narvault_release_failures_total").increment(1);
        // A write that got no answer may still land.
        let may_land = matches!(error, Error::Storage(_));
        self.give_back_until(leased, retry_pause_millis(leased.attempts), may_land).await;
    }

    /// Gives a lease back, for another try after `pause_millis`.
    async fn give_back_until(&self, leased: &Leased, pause_millis: i64, may_land: bool) {
        let given_back = async {
            let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
            let now = self.inner.clock.now();
            let terms = &self.inner.lease_terms;
            let landing_until = may_land.then(|| now.plus_millis(terms.attempt_millis_max));
            outbox::give_back(&mut tx, leased, terms, now.plus_millis(pause_millis), landing_until).await?;
            tx.commit().await
        };
        if let Err(error) = given_back.await {
            // The lease runs out by itself, and the object is done once more.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(object = leased.object, error, "cannot give a lease back");
        }
    }

    /// Leases an object. Inner error: nothing to lease, and whether that means that nothing is left to do.
    async fn lease(&self, object: &str) -> Result<std::result::Result<Leased, Done>> {
        if self.inner.finishing.holds(object) {
            // Written a moment ago; if it was wanted again since, its row says so once it is cleared.
            self.finish().await?;
        }
        let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
        let now = self.inner.clock.now();
        let leased = outbox::lease(&mut tx, [object], &self.inner.lease_terms, now).await?.pop();
        // The worker, or another replica, may have been first.
        let waits = leased.is_some() || outbox::is_unfinished(&mut tx, object).await?;
        tx.commit().await?;
        Ok(leased.ok_or(if waits { Done::Later } else { Done::Yes }))
    }

    /// Leases those of many objects that are due and free.
    async fn lease_all(&self, objects: &[String]) -> Result<Vec<Leased>> {
        if objects.iter().any(|object| self.inner.finishing.holds(object)) {
            self.finish().await?;
        }
        let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
        let now = self.inner.clock.now();
        let leased = outbox::lease(&mut tx, objects, &self.inner.lease_terms, now).await?;
        tx.commit().await?;
        Ok(leased)
    }

    /// Clears the rows of what was written, in one transaction, once it is certain to last.
    pub(super) async fn finish(&self) -> Result<()> {
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
    async fn carry_out(&self, leased: &Leased, fresh: Option<FreshNarInfo>) -> Result<Done> {
        let (cache, key) = named(leased)?;
        let ObjectKey::Cache(_, object) = &key else { return Err(unreadable(leased)) };
        let fresh = match fresh {
            Some(fresh) if self.may_be_written(leased, &fresh).await? => match fresh.begun {
                Some(begun) => {
                    self.inner.storage.end_put(begun).await?;
                    return Ok(Done::Yes);
                }
                None => Some(fresh.text),
            },
            _ => None,
        };
        let body = match object {
            CacheObject::Narinfo(_) if fresh.is_some() => fresh,
            CacheObject::Narinfo(_) => {
                let mut rendered =
                    self.render_narinfos(std::slice::from_ref(leased), &Order::default()).await;
                match rendered.pop().ok_or_else(|| unreadable(leased))?? {
                    Rendered::Later => return Ok(Done::Later),
                    Rendered::Write(_, body) => Some(body),
                    Rendered::Delete => None,
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
            CacheObject::KeySuccession => {
                let row = caches::by_id(&mut *self.inner.db.read().await?, cache).await?;
                match row {
                    Some(row) => self.succession_document(&row).await?.map(Bytes::from),
                    None => None,
                }
            }
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
}

/// Objects that are being released in the background.
pub(super) struct Releasing(Releases);

/// Where to hand in objects that are to be released in the background.
#[derive(Clone)]
pub(super) struct Releases {
    queue: mpsc::UnboundedSender<(Vec<Wanted>, Instant)>,
    wait: Duration,
    task: Arc<Mutex<ReleaseTask>>,
}

type Waiting = mpsc::UnboundedReceiver<(Vec<Wanted>, Instant)>;

/// Begun with the first object: another thread would have to be woken for a task that only waits.
enum ReleaseTask {
    Needed(Service, Waiting),
    Begun(JoinHandle<bool>),
    Awaited,
}

impl Releases {
    /// Hands in objects that do not wait for one another. They are released also if nobody waits for the end.
    pub fn add(&self, objects: Vec<Wanted>) {
        // Fails only if the task is gone with its runtime: then their leases run out by themselves.
        let _ = self.queue.send((objects, Instant::now() + self.wait));
        let mut task = self.task();
        *task = match std::mem::replace(&mut *task, ReleaseTask::Awaited) {
            ReleaseTask::Needed(service, waiting) => {
                ReleaseTask::Begun(service.inner.tasks.spawn(service.clone().release_all(waiting)))
            }
            other => other,
        };
    }

    fn task(&self) -> MutexGuard<'_, ReleaseTask> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Releasing {
    /// Where to hand objects in.
    pub fn releases(&self) -> Releases {
        self.0.clone()
    }

    /// Waits for the end of all, once nobody can hand in more. True: nothing is left.
    pub async fn end(self) -> bool {
        let task = std::mem::replace(&mut *self.0.task(), ReleaseTask::Awaited);
        let Releases { queue, wait, .. } = self.0;
        drop(queue);
        match task {
            ReleaseTask::Begun(task) => matches!(tokio::time::timeout(wait, task).await, Ok(Ok(true))),
            // Nothing was handed in.
            ReleaseTask::Needed(..) | ReleaseTask::Awaited => true,
        }
    }
}

/// What a lease is for.
fn named(leased: &Leased) -> Result<(CacheId, ObjectKey)> {
    let key: ObjectKey = leased.object.parse().map_err(|_| unreadable(leased))?;
    let cache: CacheId = leased.cache_id.parse().map_err(|_| unreadable(leased))?;
    Ok((cache, key))
}

fn unreadable(leased: &Leased) -> Error {
    Error::Internal(format!("outbox names {:?}", leased.object).into())
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
pub(super) const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// The whole time that a DELETE may take.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// When an object is looked at again that could not be released.
const WAITING: Duration = Duration::from_millis(20);
const WAITING_MAX: Duration = Duration::from_millis(500);

/// How long written objects gather until their rows are cleared together: each commit is a flush of the disk
/// under the database's one write lock, and pushes wait for that lock.
const FINISH_PAUSE: Duration = Duration::from_millis(100);

/// How long nothing is looked for where nothing was to do, or the database failed.
const WORKER_PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
