//! What was written, and waits for its outbox rows to be cleared.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::WORKER_PAUSE;
use crate::db::Gate;
use crate::db::outbox::{self, Leased};
use crate::service::{Result, Service};

/// Objects that were written, and whose outbox rows are about to be cleared in one batch with others.
#[derive(Default)]
pub(in crate::service) struct Finishing {
    leased: Mutex<HashMap<String, Leased>>,
    wake: Notify,
}

impl Finishing {
    pub(super) fn add(&self, leased: Leased) {
        let mut all = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(leased.object.clone(), leased);
        self.wake.notify_one();
    }

    pub(super) fn holds(&self, object: &str) -> bool {
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
    /// Clears the rows of what was written, in one transaction, once it is certain to last.
    pub(in crate::service) async fn finish(&self) -> Result<()> {
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
    pub(in crate::service) async fn finisher(self, stop: CancellationToken) {
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
}

/// How long written objects gather until their rows are cleared together: each commit is a flush of the disk
/// under the database's one write lock, and pushes wait for that lock.
const FINISH_PAUSE: Duration = Duration::from_millis(100);
