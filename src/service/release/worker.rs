//! The worker: what is due, in an order in which the bucket is whole at every moment.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::narinfos::Together;
use super::order::Order;
use super::{Done, WORKER_PAUSE};
use crate::db::outbox::{self, Due, Leased};
use crate::nix::store_path::StorePathHash;
use crate::service::{Result, Service};
use crate::storage::{CacheObject, ObjectKey, Prefix};

impl Service {
    /// Releases what is due until `stop`, a few objects at a time.
    pub(in crate::service) async fn release_worker(self, stop: CancellationToken) {
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
    pub(in crate::service) async fn release_due(&self) -> Result<usize> {
        let now = self.inner.clock.now();
        let due = outbox::due(&mut *self.inner.db.read().await?, now, BATCH).await?;
        let (mut caches, mut others) = (HashMap::<_, HashSet<_>>::new(), Vec::new());
        for Due { object, cache_id } in due {
            match object.parse() {
                Ok(ObjectKey::Cache(prefix, CacheObject::Narinfo(hash))) => {
                    caches.entry((cache_id, prefix)).or_default().insert(hash);
                }
                _ => others.push((object, None)),
            }
        }
        let narinfos = async {
            let mut count = 0;
            for ((cache_id, prefix), hashes) in caches {
                match self.release_in_order(&cache_id, &prefix, hashes).await {
                    Ok(released) => count += released,
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(
                            cache.id = cache_id,
                            error,
                            "cannot release narinfos; they are tried again"
                        );
                    }
                }
            }
            count
        };
        let round = async {
            let (others, narinfos) = tokio::join!(self.release_each(others), narinfos);
            others + narinfos
        };
        tokio::select! {
            () = self.inner.stop.cancelled() => Ok(0),
            count = round => Ok(count),
        }
    }

    /// Releases the narinfos of these paths, and before each those that it refers to, as far as these wait as well.
    async fn release_in_order(
        &self,
        cache_id: &str,
        prefix: &Prefix,
        hashes: HashSet<StorePathHash>,
    ) -> Result<usize> {
        let mut connection = self.inner.db.read().await?;
        let due = hashes.iter().copied();
        let references = outbox::waiting_references(&mut connection, cache_id, due).await?;
        drop(connection);
        let order = Order::of(hashes, &references);
        let mut count = 0;
        for together in order.levels.iter().flat_map(|level| level.chunks(self.inner.storage.puts_at_once()))
        {
            let object = |&hash| ObjectKey::Cache(prefix.clone(), CacheObject::Narinfo(hash)).to_string();
            let leased = self.lease_all(&together.iter().map(object).collect::<Vec<_>>()).await?;
            let Together { written, left } = self.release_narinfos(leased, &order).await;
            let left = left.into_iter().map(|leased| (leased.object.clone(), Some(leased)));
            count += written + self.release_each(left.collect()).await;
        }
        Ok(count)
    }

    /// Releases objects that do not wait for one another, some of which are leased: how many were brought in line.
    async fn release_each(&self, objects: Vec<(String, Option<Leased>)>) -> usize {
        stream::iter(objects)
            .map(|(object, leased)| async move { self.release_one(&object, leased, None).await })
            .buffer_unordered(CONCURRENCY)
            .filter(|done| std::future::ready(*done == Done::Yes))
            .count()
            .await
    }
}

/// How many due objects a round begins with.
const BATCH: i64 = 256;

/// How many objects are released at once that are not narinfos to be written.
const CONCURRENCY: usize = 8;
