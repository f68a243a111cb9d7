//! The sweeper: NARs that no narinfo names, auxiliary objects that never became visible, uploads that
//! nobody will finish, paths that were withdrawn long ago, deliveries to webhooks that ended days ago. Once a day it
//! counts orphans, and leaves them alone.
//!
//! Condemning takes the gate exclusive, in small batches; deleting is the outbox's work.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::release::Release;
use super::{Call, Error, Origin, Result, Service};
use crate::access::Caller;
use crate::db::{Gate, auxiliary, caches, measured, paths, restarting, withdrawals};
use crate::storage::CacheObject;

impl Service {
    /// Sweeps now and then until `stop`.
    pub(super) async fn sweeper(self, stop: CancellationToken) {
        let mut orphans_due = Instant::now();
        loop {
            if let Err(error) = self.sweep().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "sweeping failed; it is tried again"
                );
            }
            if Instant::now() >= orphans_due {
                orphans_due = Instant::now() + ORPHANS_PAUSE;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.count_orphans() => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_PAUSE) => {}
            }
        }
    }

    /// Tells operators of objects that no row accounts for.
    async fn count_orphans(&self) {
        match self.look_for_orphans(ORPHAN_AGE).await {
            Ok(found) => {
                metrics::gauge!("narvault_orphan_objects").set(found.count as f64);
                if found.count > 0 {
                    tracing::warn!(
                        objects = found.count,
                        size_bytes = found.size_bytes,
                        "no row accounts for objects in storage; `narvault storage orphans` lists them"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot look for orphans in storage"
                );
            }
        }
    }

    /// One round: how many NARs it condemned.
    pub async fn sweep(&self) -> Result<u64> {
        let now = self.inner.clock.now();
        let unpublished_before = now.plus_millis(-millis(self.inner.limits.unpublished_max));
        let arriving_before = now.plus_millis(-millis(ARRIVING_MAX));
        let mut condemned = 0;
        loop {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let unclaimed = measured::unclaimed(&mut tx, unpublished_before, arriving_before, BATCH).await?;
            for nar in &unclaimed {
                measured::doom(&mut tx, &nar.id).await?;
                let cache = caches::by_id_even_deleted(&mut tx, nar.cache).await?;
                Release::by_worker(&cache, now).object(&mut tx, CacheObject::Nar(nar.file)).await?;
            }
            tx.commit().await?;
            condemned += unclaimed.len() as u64;
            if unclaimed.len() < BATCH as usize {
                break;
            }
        }
        let ended = self.end_withdrawn().await?;
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        let dropped = auxiliary::drop_unrevealed(&mut tx, unpublished_before).await?;
        tx.commit().await?;
        let age_millis = u64::try_from(now.plus_millis(-millis(UPLOAD_AGE_MAX)).0).unwrap_or(0);
        let older_than = std::time::UNIX_EPOCH + Duration::from_millis(age_millis);
        let aborted = self.inner.storage.abort_stale_uploads(older_than).await?;
        let uploads = self.sweep_uploads(older_than).await?;
        let deliveries = self.sweep_webhooks(now).await?;
        if condemned + ended + dropped + aborted + uploads + deliveries > 0 {
            tracing::info!(condemned, ended, dropped, aborted, uploads, deliveries, "swept");
        }
        Ok(condemned)
    }

    /// Deletes paths, bytes too, that nobody restored in time: how many.
    async fn end_withdrawn(&self) -> Result<u64> {
        let days = self.inner.limits.withdrawn_max.as_secs() / (24 * 3600);
        let reason = format!("withdrawn for {days} days");
        let nobody = Call { caller: Caller::Anonymous, origin: Origin::default() };
        let mut ended = 0;
        loop {
            let batch = restarting(|| async {
                let now = self.inner.clock.now();
                let before = now.plus_millis(-millis(self.inner.limits.withdrawn_max));
                let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
                let places = withdrawals::withdrawn_before(&mut tx, before, BATCH).await?;
                let mut leaves = Vec::with_capacity(places.len());
                for place in &places {
                    let cache = caches::by_id_even_deleted(&mut tx, place.cache).await?;
                    let Some(path) = paths::find(&mut tx, cache.id, place.hash).await? else { continue };
                    let mut release = Release::by_worker(&cache, now);
                    leaves
                        .push(self.delete_in_tx(&mut tx, &nobody, &mut release, &path, &reason, now).await?);
                }
                super::log::append(&mut tx, &leaves).await?;
                tx.commit().await?;
                Ok::<_, Error>(places.len())
            })
            .await?;
            ended += batch as u64;
            if batch < BATCH as usize {
                return Ok(ended);
            }
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// At most so many rows under one exclusive gate.
const BATCH: i64 = 200;

const SWEEP_PAUSE: Duration = Duration::from_secs(600);

/// Between the two rows of an upload there is one write to storage, of minutes at most.
const ARRIVING_MAX: Duration = Duration::from_secs(3600);

/// A listing reads the whole bucket, a thousand objects a request.
const ORPHANS_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// How old an object is at least that is told of as an orphan, and the row of an upload that ended midway.
const ORPHAN_AGE: Duration = ARRIVING_MAX;

/// No upload that goes on is older: 64 GiB at 1 MiB/s take 18 hours.
const UPLOAD_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests;
