//! Appending to the signature log: leaves, size and frontier in one step, as the last lock of the transaction that
//! they tell of.
//!
//! Never publishes: that is `log_publisher`, afterwards and as often as it takes.

use std::ops::Range;

use super::{Error, Result, Service, SigningStopped};
use crate::db::log::{self, LeafRow, LogState};
use crate::db::paths::MadeSignature;
use crate::db::{Connection, Gate, Tx, restarting};
use crate::tlog::frontier::Frontier;
use crate::tlog::hash::NodeHash;

/// Leaves that are read at once. They are at most 16 KiB each, and mostly below 1 KiB.
pub(super) const LEAVES_AT_ONCE: i64 = 1000;

/// Appends leaves, and answers with their indices. The last lock of any transaction: everything that appends waits
/// here for whoever did and has not committed.
pub(super) async fn append(tx: &mut Tx, leaves: &[LeafRow]) -> Result<Range<i64>> {
    append_signed(tx, leaves, |_| Vec::new()).await
}

/// The same, with the signatures that the leaves account for: `signatures` is told the index of the first leaf.
pub(super) async fn append_signed(
    tx: &mut Tx,
    leaves: &[LeafRow],
    signatures: impl FnOnce(i64) -> Vec<MadeSignature>,
) -> Result<Range<i64>> {
    if leaves.is_empty() {
        return Ok(0..0);
    }
    let (first, mut frontier) = lock(tx, leaves).await?;
    leaves.iter().for_each(|leaf| frontier.push(NodeHash::leaf(leaf.leaf.as_bytes())));
    let state = state_of(&frontier)?;
    log::append(tx, first, leaves, &signatures(first), &state).await?;
    Ok(first..state.size)
}

impl Service {
    /// Brings the frontier of a log that was written without one up to the log's size, in transactions that nobody
    /// has to wait long for.
    pub(super) async fn catch_up_log(&self) -> Result<()> {
        loop {
            let state = log::read(&mut *self.inner.db.read().await?).await?;
            if state.frontier_size == state.size {
                return Ok(());
            }
            restarting(|| async {
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                let state = log::lock(&mut tx).await?;
                let mut frontier = decoded(&state)?;
                push_next(&mut tx, &mut frontier, state.size).await?;
                log::advance(&mut tx, &LogState { size: state.size, ..state_of(&frontier)? }).await?;
                tx.commit().await?;
                Ok::<_, Error>(())
            })
            .await?;
        }
    }
}

/// Locks the log for these leaves; gives its size, and its frontier caught up with it. Refuses signatures while it
/// contradicts what was published, whichever replica found that; whatever takes something away goes on.
async fn lock(tx: &mut Tx, leaves: &[LeafRow]) -> Result<(i64, Frontier)> {
    let state = log::lock(tx).await?;
    if let Some(what) = &state.forked
        && leaves.iter().any(|leaf| matches!(leaf.event.as_str(), "sign" | "resign" | "realisation"))
    {
        return Err(SigningStopped::Forked(what.clone()).into());
    }
    if let Some(published) = state.published_beyond {
        return Err(Error::RolledBack { leaves: state.size, published });
    }
    Ok((state.size, whole(tx, &state).await?))
}

/// The frontier of all leaves, those included that were appended by who does not know it.
pub(super) async fn whole(tx: &mut Tx, state: &LogState) -> Result<Frontier> {
    let mut frontier = decoded(state)?;
    while size_of(&frontier)? < state.size {
        push_next(tx, &mut frontier, state.size).await?;
    }
    Ok(frontier)
}

/// Pushes the leaves that come next, as many as are read at once.
pub(super) async fn push_next(connection: &mut Connection, frontier: &mut Frontier, size: i64) -> Result<()> {
    let first = size_of(frontier)?;
    let leaves = log::leaves(connection, first, LEAVES_AT_ONCE.min(size - first)).await?;
    for ((index, leaf), expected) in leaves.iter().zip(first..) {
        if *index != expected {
            return Err(damaged(format!("leaf {expected} is missing")));
        }
        frontier.push(NodeHash::leaf(leaf.as_bytes()));
    }
    if leaves.is_empty() && first < size { Err(damaged(format!("leaf {first} is missing"))) } else { Ok(()) }
}

/// The row of a log whose frontier this is.
fn state_of(frontier: &Frontier) -> Result<LogState> {
    let size = size_of(frontier)?;
    let frontier = frontier.encode();
    Ok(LogState { size, frontier, frontier_size: size, published_beyond: None, forked: None })
}

/// Appends leaves that were published once, and that this database lost: their texts alone are known.
pub(super) async fn append_published(tx: &mut Tx, leaves: &[LeafRow]) -> Result<()> {
    let state = log::lock(tx).await?;
    let mut frontier = decoded(&state)?;
    leaves.iter().for_each(|leaf| frontier.push(NodeHash::leaf(leaf.leaf.as_bytes())));
    Ok(log::append(tx, state.size, leaves, &[], &state_of(&frontier)?).await?)
}

/// The frontier as it is stored, which may be of fewer leaves than the log has.
pub(super) fn decoded(state: &LogState) -> Result<Frontier> {
    let size = u64::try_from(state.frontier_size).ok().filter(|_| state.frontier_size <= state.size);
    let size = size.ok_or_else(|| damaged("frontier is of more leaves than there are".to_owned()))?;
    Frontier::decode(size, &state.frontier).map_err(|error| Error::Internal(error.into()))
}

/// A tree's size as columns have it.
fn size_of(frontier: &Frontier) -> Result<i64> {
    i64::try_from(frontier.size()).map_err(|error| Error::Internal(error.into()))
}

/// Rows that no version of narvault leaves behind.
#[derive(Debug, thiserror::Error)]
#[error("the signature log in the database is damaged: {0}")]
struct Damaged(String);

pub(super) fn damaged(what: String) -> Error {
    Error::Internal(Damaged(what).into())
}

/// Whether rows are in the way, rather than a fault that passes.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Internal(source) if source.is::<Damaged>())
}

#[cfg(test)]
mod tests;
