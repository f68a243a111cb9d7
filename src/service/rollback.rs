//! A database that is older than the log that was published from it: noticed at the start, and nothing but reading from
//! then on until `recover` has brought the missing leaves back.
//!
//! Whatever would append a leaf is refused where it would append it, so no act goes on: not even a revocation, which
//! would have the index of a leaf that others have seen.

use super::log_publisher::checkpoint_key;
use super::{Error, Result, Service};
use crate::db::{Gate, log};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::note::NOTE_SIZE_BYTES_MAX;

/// How far a database is behind what was published from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollback {
    /// Leaves that the database has.
    pub leaves: u64,
    /// Leaves of the checkpoint in storage.
    pub published: u64,
}

impl Service {
    /// Compares the log with the checkpoint in storage. One that is not of this log's key is the publisher's to tell.
    pub(super) async fn notice_rollback(&self) -> Result<()> {
        let state = log::read(&mut *self.inner.db.read().await?).await?;
        let leaves = u64::try_from(state.size).unwrap_or(0);
        let published = match state.published_beyond {
            Some(published) => Some(u64::try_from(published).unwrap_or(0)),
            None => self.published_beyond(leaves).await?,
        };
        let Some(published) = published else { return Ok(()) };
        if state.published_beyond.is_none() {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            log::note_rollback(&mut tx, i64::try_from(published).unwrap_or(i64::MAX)).await?;
            tx.commit().await?;
        }
        tracing::error!(
            leaves,
            published,
            "the database is older than the published signature log: this server only reads until `narvault recover`"
        );
        // At most once in the life of a service.
        let _ = self.inner.rollback.set(Rollback { leaves, published });
        Ok(())
    }

    /// The size of the checkpoint in storage, if that is of more leaves than `leaves`.
    async fn published_beyond(&self, leaves: u64) -> Result<Option<u64>> {
        let stored = self.stored_checkpoint().await?;
        Ok(stored.map(|checkpoint| checkpoint.size).filter(|published| *published > leaves))
    }

    /// The checkpoint in storage, if there is one that this log's key signed.
    pub(super) async fn stored_checkpoint(&self) -> Result<Option<Checkpoint>> {
        let Some(bytes) = self.inner.storage.read(&checkpoint_key()?, NOTE_SIZE_BYTES_MAX).await? else {
            return Ok(None);
        };
        let key = match self.log_verifier_key().await {
            Ok(key) => key,
            // Before the first start there is neither key nor leaf.
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Checkpoint::open(&bytes, &key).ok().map(|(checkpoint, _)| checkpoint))
    }

    /// Why this server only reads, if it does.
    pub fn rollback(&self) -> Option<Rollback> {
        self.inner.rollback.get().copied()
    }
}
