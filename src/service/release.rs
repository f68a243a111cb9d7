//! Release: storage is brought in line with the rows, by whichever replica comes first.
//!
//! An object is rendered from the rows at the moment of writing, or as they were when the lease was taken, under a lease.
//! A narinfo waits for those of its references that still wait. Nothing here decides what is true: the rows did.

mod background;
mod finishing;
mod narinfos;
mod order;
mod wish;
mod worker;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub(super) use self::background::{RELEASE_WAIT, Releases};
pub(super) use self::finishing::Finishing;
use self::narinfos::Rendered;
use self::order::Order;
pub(super) use self::wish::{FreshNarInfo, Release, Wanted};
use super::{Error, Result, Service};
use crate::access::CacheId;
use crate::db::auxiliary::{self, AuxiliaryKind};
use crate::db::caches;
use crate::db::measured::{self, FileState};
use crate::db::outbox::{self, LeaseTerms, Leased, OutboxKind};
use crate::db::{Gate, realisations};
use crate::nix::cache_info::CacheInfo;
use crate::storage::{CacheObject, ObjectKey};

/// How a piece of work under a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Storage holds what the rows say.
    Yes,
    /// Not yet: a reference still waits, or somebody else has the lease, or storage failed.
    Later,
}

impl Service {
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

/// The whole time that a DELETE may take.
const DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// When an object is looked at again that could not be released.
const WAITING: Duration = Duration::from_millis(20);
const WAITING_MAX: Duration = Duration::from_millis(500);

/// How long nothing is looked for where nothing was to do, or the database failed.
const WORKER_PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
