//! A database that is not what the log was published from: older, or gone another way. Noticed at the start, and nothing
//! but reading from then on, until `recover` has brought the missing leaves back, or an operator has seen to the fork.
//!
//! Whatever would append a leaf is refused where it would append it, so no act goes on: not even a revocation, which
//! would have the index of a leaf that others have seen.

use super::log::{decoded, push_next};
use super::{Error, Fork, Result, Service};
use crate::db::log::{self, CheckpointRow, LogState};
use crate::db::{Gate, restarting};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::frontier::Frontier;
use crate::tlog::verifier_key::VerifierKey;

/// How a database contradicts what was published from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollback {
    /// Leaves that the database has.
    pub leaves: u64,
    /// Leaves of the checkpoint in storage. Where the database has as many, they are others.
    pub published: u64,
}

impl Service {
    /// Holds the database's tree against the checkpoint in storage. One that is not of this log's key is the publisher's
    /// to tell.
    pub(super) async fn notice_rollback(&self) -> Result<()> {
        let key = match self.log_verifier_key().await {
            Ok(key) => key,
            // Before the first start there is neither key nor leaf.
            Err(Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        // Before the rows: what another replica publishes meanwhile, it has appended before.
        let bytes = self.checkpoint_object().await?;
        let (row, state) = {
            let mut connection = self.inner.db.read().await?;
            (log::checkpoint(&mut connection).await?, log::read(&mut connection).await?)
        };
        if let (None, Some(row)) = (&bytes, &row) {
            tracing::warn!(
                published = row.size,
                "storage has no checkpoint of the signature log: all is published anew, and nobody can tell here whether \
                 this database is the newest one; hold it against a mirror"
            );
        }
        let leaves = u64::try_from(state.size).unwrap_or(0);
        let stored = bytes.and_then(|bytes| Checkpoint::open(&bytes, &key).ok()).map(|(stored, _)| stored);
        let noted = state.published_beyond.map(|published| u64::try_from(published).unwrap_or(0));
        let published = match (stored, noted) {
            (Some(stored), _) if !self.has_tree_of(&stored, &state, row.as_ref(), &key).await? => {
                self.note_rollback(stored.size, stored.size <= leaves).await?;
                stored.size
            }
            // Until all that was lost is done again.
            (_, Some(noted)) => noted,
            (_, None) => return Ok(()),
        };
        tracing::error!(
            leaves,
            published,
            "the database is not what the published signature log goes on from: this server only reads until \
             `narvault recover`"
        );
        // At most once in the life of a service.
        let _ = self.inner.rollback.set(Rollback { leaves, published });
        Ok(())
    }

    /// Whether the first leaves of the database make the root of this checkpoint. Where the frontier or the row's own
    /// checkpoint is of its size, that says it: neither is ever written but with its leaves.
    pub(super) async fn has_tree_of(
        &self,
        stored: &Checkpoint,
        state: &LogState,
        row: Option<&CheckpointRow>,
        key: &VerifierKey,
    ) -> Result<bool> {
        let size = size(stored)?;
        if size > state.size {
            return Ok(false);
        }
        if size == state.frontier_size {
            return Ok(decoded(state)?.root() == stored.root);
        }
        if let Some(row) = row.filter(|row| row.size == size)
            && let Ok((own, _)) = Checkpoint::open(row.note.as_bytes(), key)
        {
            return Ok(own.root == stored.root);
        }
        self.has_leaves_of(stored).await
    }

    /// The same by the leaves themselves, all of them read.
    pub(super) async fn has_leaves_of(&self, stored: &Checkpoint) -> Result<bool> {
        let mut connection = self.inner.db.read().await?;
        let mut frontier = Frontier::new();
        while frontier.size() < stored.size {
            push_next(&mut connection, &mut frontier, size(stored)?).await?;
        }
        Ok(frontier.root() == stored.root)
    }

    /// Has every replica refuse what would append a leaf; a fork is an alarm too.
    async fn note_rollback(&self, published: u64, is_fork: bool) -> Result<()> {
        let fork = is_fork.then(|| Fork::Root { size: published }.to_string());
        if let Some(what) = &fork {
            self.inner.log_health.alarm(what);
        }
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            log::note_rollback(&mut tx, i64::try_from(published).unwrap_or(i64::MAX)).await?;
            if let Some(what) = &fork {
                log::raise_alarm(&mut tx, what, self.inner.clock.now()).await?;
            }
            Ok::<_, Error>(tx.commit().await?)
        })
        .await
    }

    /// The checkpoint in storage, if there is one that this log's key signed.
    pub(super) async fn stored_checkpoint(&self) -> Result<Option<Checkpoint>> {
        let Some(bytes) = self.checkpoint_object().await? else { return Ok(None) };
        let key = self.log_verifier_key().await?;
        Ok(Checkpoint::open(&bytes, &key).ok().map(|(checkpoint, _)| checkpoint))
    }

    /// Why this server only reads, if it does.
    pub fn rollback(&self) -> Option<Rollback> {
        self.inner.rollback.get().copied()
    }
}

/// A checkpoint's size as columns have it.
fn size(checkpoint: &Checkpoint) -> Result<i64> {
    i64::try_from(checkpoint.size).map_err(|error| Error::Internal(error.into()))
}

#[cfg(test)]
mod tests;
