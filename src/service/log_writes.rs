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
        self.pass_cut()?;
        Ok(self.inner.storage.put(key, bytes).await?)
    }

    /// Removes an object of the published log that another one has taken the place of.
    pub(super) async fn delete_log(&self, key: &ObjectKey) -> Result<()> {
        #[cfg(test)]
        self.pass_cut()?;
        Ok(self.inner.storage.delete(key, DELETION_TIME_MAX).await?)
    }

    /// Commits what the rows say of the published log.
    pub(super) async fn commit_log(&self, tx: Tx) -> Result<()> {
        #[cfg(test)]
        self.pass_cut()?;
        Ok(tx.commit().await?)
    }

    /// Ends a replica that a test lets die before its next write.
    #[cfg(test)]
    pub(super) fn pass_cut(&self) -> Result<()> {
        self.inner.log_cut.pass().map_err(|dead| super::Error::Internal(dead.into()))
    }
}

/// A partial tile that is left behind harms nobody.
const DELETION_TIME_MAX: Duration = Duration::from_secs(10);
