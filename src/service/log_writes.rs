//! The writes of the log's publisher, one at a time: each may be the last thing that a replica does.
//!
//! Tests end a publisher between any two of them. Nothing else may write what is published of the log.

use std::time::Duration;

use bytes::Bytes;

use super::{Result, Service};
use crate::db::Tx;
use crate::storage::ObjectKey;

impl Service {
    /// Writes an object of the published log.
    pub(super) async fn write_log(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        #[cfg(test)]
        self.inner.log_cut.pass()?;
        Ok(self.inner.storage.put(key, bytes).await?)
    }

    /// Removes an object of the published log that another one has taken the place of.
    pub(super) async fn delete_log(&self, key: &ObjectKey) -> Result<()> {
        #[cfg(test)]
        self.inner.log_cut.pass()?;
        Ok(self.inner.storage.delete(key, DELETION_TIME_MAX).await?)
    }

    /// Commits what the rows say of the published log.
    pub(super) async fn commit_log(&self, tx: Tx) -> Result<()> {
        #[cfg(test)]
        self.inner.log_cut.pass()?;
        Ok(tx.commit().await?)
    }
}

/// A partial tile that is left behind harms nobody.
const DELETION_TIME_MAX: Duration = Duration::from_secs(10);

/// How many writes a publisher, or a replica that rotates the vault's keys, gets to do before it is dead.
#[cfg(test)]
pub(super) struct Cut(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl Cut {
    /// It dies before the write after the next `writes` ones.
    pub fn after(&self, writes: usize) {
        self.0.store(writes, std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether it is dead.
    pub fn is_dead(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst) == 0
    }

    pub(super) fn pass(&self) -> Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| super::Error::Internal("the replica is dead".into()))
    }
}

#[cfg(test)]
impl Default for Cut {
    fn default() -> Self {
        Self(std::sync::atomic::AtomicUsize::new(usize::MAX))
    }
}
