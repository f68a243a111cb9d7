//! Bringing a database that was restored from an older backup up to what was published of its log.
//!
//! First whatever takes something away (tokens, contributors, paths, keys), then the leaves themselves, then the paths
//! that were signed since and still lie in storage. Every step may be broken off and done again. What needs a secret or
//! a name that only the lost database had does not come back, and is told.

mod adopt;
mod effects;
mod keys;
mod quarantines;
mod successions;

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::log_publisher::{TILE_SIZE_BYTES_MAX, checkpoint_key, tile_key};
use super::{Call, Conflict, Error, Result, Service};
use crate::access::Action;
use crate::db::audit::Outcome;
use crate::db::log::{self, CheckpointRow, LeafRow, LogState};
use crate::db::{Gate, epoch, restarting};
use crate::time::Timestamp;
use crate::tlog::bundle;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::hash::NodeHash;
use crate::tlog::leaf::Leaf;
use crate::tlog::note::NOTE_SIZE_BYTES_MAX;
use crate::tlog::tile::{TILE_WIDTH, Tile, TileKind};

/// What was brought back, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Leaves that the database had lost.
    pub leaves: u64,
    pub tokens_revoked: u64,
    pub contributors_suspended: u64,
    /// Withdrawn or deleted again.
    pub paths_withdrawn: u64,
    /// Paths that were signed since the backup, and are served again.
    pub paths_adopted: u64,
    pub keys_changed: u64,
    /// Statements about keys that were published since.
    pub successions_adopted: u64,
    pub caches_deleted: u64,
    /// Contributors, and withdrawn paths, that are quarantined again.
    pub quarantines: u64,
    /// What does not come back, each with what to do.
    pub lost: Vec<String>,
}

/// What the lost leaves say, as far as later steps need it.
#[derive(Default)]
struct Said {
    recovery: Recovery,
    /// Signatures made since the backup: the key's name and the bytes, to the leaf.
    signatures: HashMap<(String, [u8; 64]), SignedLeaf>,
    /// Paths of public caches whose last word was that they are not to be served: cache and store path.
    gone: HashSet<(String, String)>,
    /// Withdrawals, deletions of paths and of caches among private caches, which the leaves do not name.
    hidden_withdrawals: u64,
}

/// A leaf that accounts for a signature.
#[derive(Debug, Clone)]
struct SignedLeaf {
    index: i64,
    by: Option<String>,
    token: Option<String>,
}

/// A leaf as it was published.
struct Published {
    index: i64,
    text: String,
    leaf: Leaf,
}

impl Service {
    /// Brings back what the published log knows and the database does not. Does nothing where nothing is missing. To be
    /// run on the server's host; servers that run meanwhile only read, and are to be started anew afterwards.
    pub async fn recover(&self, call: &Call) -> Result<Recovery> {
        self.require(call, &Action::Administer, "recover", "").await?;
        let (state, first) = {
            let mut connection = self.inner.db.read().await?;
            (log::read(&mut connection).await?, log::rolled_back_to(&mut connection).await?)
        };
        let Some(first) = first else { return Ok(Recovery::default()) };
        let checkpoint = self.stored_checkpoint().await?;
        let checkpoint = checkpoint.ok_or(Conflict::State(
            "storage has no checkpoint that this log's key signed any more; put it back from a mirror",
        ))?;
        self.prove_beginning(&state, &checkpoint).await?;

        let mut said = Said::default();
        let end = size(checkpoint.size)?;
        self.each_lost(first, end, async |batch| self.apply_lost(&mut said, batch).await).await?;
        self.each_lost(state.size, end, async |batch| self.append_lost(batch).await).await?;
        said.recovery.leaves = u64::try_from(end - first).unwrap_or(0);
        self.adopt_signed(&mut said).await?;
        self.adopt_successions(&mut said).await?;
        self.end_recovery(call, &said.recovery, checkpoint.size).await?;
        Ok(said.recovery)
    }

    /// Refuses where the published leaves neither continue those of the database nor are among them.
    async fn prove_beginning(&self, state: &LogState, checkpoint: &Checkpoint) -> Result<()> {
        let mut frontier = super::log::decoded(state)?;
        let first = size(frontier.size())?;
        if size(checkpoint.size)? < first && self.has_leaves_of(checkpoint).await? {
            return Ok(());
        }
        self.each_lost(first, size(checkpoint.size)?, async |batch: &[Published]| {
            batch.iter().for_each(|one| frontier.push(NodeHash::leaf(one.text.as_bytes())));
            Ok(())
        })
        .await?;
        if frontier.size() == checkpoint.size && frontier.root() == checkpoint.root {
            return Ok(());
        }
        Err(Conflict::State(
            "the database's log is not the beginning of the published one: it went another way after the backup; \
             restore an untouched backup and recover that, or, where it is storage that is wrong, put its `_log` back \
             from a mirror",
        )
        .into())
    }

    /// Hands over the published leaves from `first` on, below `end`, as many at a time as a bundle has.
    async fn each_lost(
        &self,
        first: i64,
        end: i64,
        mut take: impl AsyncFnMut(&[Published]) -> Result<()>,
    ) -> Result<()> {
        let width = u64::from(TILE_WIDTH);
        let (mut next, end) = (number(first)?, number(end)?);
        while next < end {
            let index = next / width;
            let tile = Tile::in_tree(TileKind::Entries, index, end).ok_or_else(|| missing(next))?;
            let bytes = self.inner.storage.read(&tile_key(tile)?, TILE_SIZE_BYTES_MAX).await?;
            let bytes = bytes.ok_or_else(|| missing(next))?;
            let texts = bundle::decode(&bytes, tile.width()).map_err(internal)?;
            let skipped = usize::try_from(next - index * width).unwrap_or(usize::MAX);
            let mut batch = Vec::with_capacity(texts.len());
            for (text, index) in texts.into_iter().skip(skipped).zip(next..) {
                let leaf = Leaf::parse(text).map_err(internal)?;
                let text = String::from_utf8(text.to_vec()).map_err(internal)?;
                batch.push(Published { index: size(index)?, text, leaf });
            }
            next += batch.len() as u64;
            // One at a time may hold the gate for so many rows.
            for batch in batch.chunks(AT_ONCE) {
                take(batch).await?;
            }
        }
        Ok(())
    }

    /// Writes leaves down as they were published, with the lists of references that lie beside them. What their salted
    /// hashes stand for is lost.
    async fn append_lost(&self, batch: &[Published]) -> Result<()> {
        let mut rows = Vec::with_capacity(batch.len());
        for one in batch {
            rows.push(LeafRow {
                event: one.leaf.event.name().to_owned(),
                leaf: one.text.clone(),
                path_id: None,
                openings: Vec::new(),
                long_references: self.stored_references(&one.leaf.event).await?,
            });
        }
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            super::log::append_published(&mut tx, &rows).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await
    }

    /// Says that all is back, and takes the published checkpoint for the newest one.
    async fn end_recovery(&self, call: &Call, recovery: &Recovery, published: u64) -> Result<()> {
        let note =
            self.inner.storage.read(&checkpoint_key()?, NOTE_SIZE_BYTES_MAX).await?.unwrap_or_default();
        let note = String::from_utf8(note.to_vec()).map_err(internal)?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = log::checkpoint(&mut tx).await?.map_or(0, |row| row.size);
            if standing < size(published)? {
                let new = CheckpointRow { size: size(published)?, note: note.clone(), signed_at: now };
                log::replace_checkpoint(&mut tx, standing, &new).await?;
            }
            log::end_rollback(&mut tx).await?;
            epoch::advance(&mut tx).await?;
            let detail = json!({
                "leaves": recovery.leaves,
                "tokens_revoked": recovery.tokens_revoked,
                "paths_withdrawn": recovery.paths_withdrawn,
                "paths_adopted": recovery.paths_adopted,
                "quarantines": recovery.quarantines,
                "lost": recovery.lost.len(),
            });
            self.audit(&mut tx, call, "recover", Outcome::Done, "", detail, now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await
    }
}

/// The leaf's time, for what is said to have happened then.
fn moment(leaf: &Leaf, now: Timestamp) -> Timestamp {
    Timestamp::parse_rfc3339(leaf.time.as_str()).unwrap_or(now)
}

fn size(size: u64) -> Result<i64> {
    i64::try_from(size).map_err(internal)
}

fn number(size: i64) -> Result<u64> {
    u64::try_from(size).map_err(internal)
}

fn missing(index: u64) -> Error {
    super::log::damaged(format!("leaf {index} is not in storage; put `_log/` back from a mirror"))
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal(error.into())
}

/// Rows that are changed behind one exclusive gate.
const AT_ONCE: usize = 200;

#[cfg(test)]
mod tests;
