//! Whether signatures may be made as far as the log is concerned: it is not far behind, and contradicts nothing that was
//! published of it. A contradiction stands in the log's row, where every replica finds it, until an operator clears it.
//!
//! Never refuses what takes something away: revocations and withdrawals append their leaves in any case.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{PAUSE, internal};
use crate::access::Action;
use crate::db::audit::Outcome;
use crate::db::{Gate, log, restarting};
use crate::service::takedown::check_reason;
use crate::service::{Call, Error, Result, Service};
use crate::time::Timestamp;
use crate::tlog::leaf::Leaf;
use crate::tlog::tile::Tile;

/// Nothing is signed while the published log is more leaves behind than this: what is signed meanwhile nobody can
/// check.
pub(super) const BEHIND_LEAVES_MAX: u64 = 10_000;

/// Nor while a leaf waits longer than this.
pub(super) const BEHIND_MAX: Duration = Duration::from_secs(15 * 60);

/// Why nothing is signed although the vault is open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningStopped {
    #[error("the signature log contradicts what was published of it; an operator has to look ({0})")]
    Forked(String),
    #[error("the published signature log is {leaves} leaves and {seconds} seconds behind")]
    Behind { leaves: u64, seconds: u64 },
}

/// What two statements of one log contradict each other in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fork {
    #[error("storage has other bytes at `{tile}`")]
    Tile { tile: Tile },
    #[error("the leaves do not make the root that was signed for the first {size} of them")]
    Root { size: u64 },
    #[error("the checkpoint in {place} is not one that this log's key signed")]
    Checkpoint { place: &'static str },
    #[error("a checkpoint in {place} has {published} leaves, the database has {leaves}: it is older")]
    Older { place: &'static str, published: u64, leaves: u64 },
}

/// What signing asks about the log, and the publisher tells.
#[derive(Default)]
pub(in crate::service) struct LogHealth(Mutex<Health>);

#[derive(Default)]
struct Health {
    forked: Option<String>,
    behind_leaves: u64,
    /// When the oldest leaf was appended that no checkpoint covers yet, as that says. A restart takes nothing of it away.
    waiting_since: Option<Timestamp>,
}

impl LogHealth {
    /// Whether new signatures may be made.
    pub fn check(&self, now: Timestamp) -> std::result::Result<(), SigningStopped> {
        let health = self.lock();
        if let Some(what) = &health.forked {
            return Err(SigningStopped::Forked(what.clone()));
        }
        let waited = health.waiting_since.map_or(0, |since| now.0.saturating_sub(since.0));
        let waited = Duration::from_millis(u64::try_from(waited).unwrap_or(0));
        if health.behind_leaves > BEHIND_LEAVES_MAX || waited > BEHIND_MAX {
            let seconds = waited.as_secs();
            return Err(SigningStopped::Behind { leaves: health.behind_leaves, seconds });
        }
        Ok(())
    }

    /// How many leaves no checkpoint covers yet, as the last round of this replica's publisher found.
    pub fn behind_leaves(&self) -> u64 {
        self.lock().behind_leaves
    }

    /// How far the checkpoint is behind, and since when the first leaf waits that it does not cover.
    pub(super) fn seen(&self, size: u64, published: u64, waiting_since: Option<Timestamp>) {
        let mut health = self.lock();
        health.behind_leaves = size.saturating_sub(published);
        health.waiting_since = waiting_since;
        metrics::gauge!("narvault_log_behind_leaves").set(health.behind_leaves as f64);
    }

    pub fn alarm(&self, what: &str) {
        let before = self.lock().forked.replace(what.to_owned());
        if before.is_none() {
            tracing::error!(fork = what, "FORK ALARM: nothing is signed any more");
        }
    }

    pub(super) fn all_clear(&self) {
        if self.lock().forked.take().is_some() {
            tracing::warn!("the fork alarm was cleared; the signature log is published again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Whether this replica signs nothing because the log contradicts what was published of it.
    pub fn is_log_forked(&self) -> bool {
        self.inner.log_health.lock().forked.is_some()
    }

    /// Stops signing by this replica at once, and by all others as soon as the database has taken that down.
    pub(super) async fn raise_alarm(&self, fork: &Fork, stop: &CancellationToken) {
        let what = fork.to_string();
        self.inner.log_health.alarm(&what);
        loop {
            let noted = restarting(|| async {
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                log::raise_alarm(&mut tx, &what, self.inner.clock.now()).await?;
                Ok::<_, Error>(tx.commit().await?)
            });
            let Err(error) = noted.await else { return };
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the fork alarm is not in the database yet, which other replicas ask"
            );
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Lets signing go on after a fork was seen to, on the server's host. Answers with what the alarm was; `None`: there
    /// was none. Every publisher looks again, and raises it anew where the contradiction stands.
    pub async fn clear_log_alarm(&self, call: &Call, reason: &str) -> Result<Option<String>> {
        self.require(call, &Action::Administer, "log-clear-alarm", "").await?;
        check_reason(reason)?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            let Some(what) = log::lock(&mut tx).await?.forked else { return Ok(None) };
            log::clear_alarm(&mut tx).await?;
            let detail = json!({ "reason": reason, "alarm": what });
            self.audit(&mut tx, call, "log-clear-alarm", Outcome::Done, "", detail, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(Some(what))
        })
        .await
    }

    /// When the first leaf was appended that a checkpoint of `published` leaves does not cover.
    pub(super) async fn waiting_since(&self, published: u64, size: u64) -> Result<Option<Timestamp>> {
        if published >= size {
            return Ok(None);
        }
        let first = i64::try_from(published).map_err(internal)?;
        let leaves = log::leaves(&mut *self.inner.db.read().await?, first, 1).await?;
        let leaf = leaves.first().and_then(|(_, text)| Leaf::parse(text.as_bytes()).ok());
        Ok(leaf.and_then(|leaf| Timestamp::parse_rfc3339(leaf.time.as_str()).ok()))
    }
}
