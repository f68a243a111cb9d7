//! Forgetting a person: names, addresses and what else is private goes from the rows; the log's tree, the signatures and
//! the commitments to the audit rows stay as they are, and verify.
//!
//! Never changes a leaf, and never takes back what was signed.

use serde_json::json;

use super::audit::Act;
use super::leaves::AdminEvent;
use super::{Call, Conflict, Error, Result, Service};
use crate::access::{Action, ContributorId, ContributorName};
use crate::db::contributors::ContributorRow;
use crate::db::{Gate, audit, contributors, epoch, log, quarantines, restarting, tokens};

/// What was erased of a contributor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// What they are called from now on.
    pub name: ContributorName,
    pub audit_rows: u64,
    /// Openings of leaves.
    pub log_details: u64,
}

impl Service {
    /// Erases what is private of a suspended contributor, for good: where their calls came from, reasons and notes of
    /// theirs and about them and their tokens, and their name, in whose place an id stands. A call that was interrupted goes on when it is repeated.
    pub async fn erase_contributor(&self, call: &Call, name: &ContributorName) -> Result<Erased> {
        self.require(call, &Action::Administer, "contributor-erase", name.as_str()).await?;
        let row = restarting(|| self.begin_erasure(call, name)).await?;
        let audit_rows = self.erase_audit_rows(&row).await?;
        let log_details = self.erase_log_details(&row).await?;
        let name = pseudonym(row.id)?;
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            quarantines::erase(&mut tx, row.id, &name).await?;
            contributors::rename(&mut tx, row.id, &name).await?;
            epoch::advance(&mut tx).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.note_change().await;
        tracing::info!(contributor.id = %row.id, audit_rows, log_details, "contributor erased");
        Ok(Erased { name, audit_rows, log_details })
    }

    /// Marks the contributor, so that nothing new comes, and writes down who asked for it.
    async fn begin_erasure(&self, call: &Call, name: &ContributorName) -> Result<ContributorRow> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        self.recheck(&mut tx, call, &Action::Administer, now).await?;
        let row = contributors::by_name(&mut tx, name).await?.ok_or(Error::NotFound("contributor"))?;
        if row.suspended_at.is_none() {
            return Err(Conflict::State("the contributor is active; suspend them first").into());
        }
        if contributors::mark_erased(&mut tx, row.id, now).await? {
            tokens::erase_texts(&mut tx, row.id).await?;
            let act = Act {
                action: "contributor-erase",
                subject: row.id.to_string(),
                detail: json!({ "erased": true }),
                cache: None,
                event: Some(AdminEvent::ContributorSuspend(row.id)),
            };
            self.record(&mut tx, call, vec![act], now).await?;
        }
        tx.commit().await?;
        Ok(row)
    }

    async fn erase_audit_rows(&self, row: &ContributorRow) -> Result<u64> {
        let mut erased = 0;
        loop {
            let now = self.inner.clock.now();
            let some = restarting(|| async {
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                let some = audit::erase(&mut tx, row.id, &row.name, now, ROWS_AT_ONCE).await?;
                tx.commit().await?;
                Ok::<_, Error>(some)
            })
            .await?;
            erased += some;
            if some < ROWS_AT_ONCE.unsigned_abs() {
                return Ok(erased);
            }
        }
    }

    async fn erase_log_details(&self, row: &ContributorRow) -> Result<u64> {
        let size = log::read(&mut *self.inner.db.read().await?).await?.size;
        let (mut erased, mut first) = (0, 0);
        while first < size {
            erased += restarting(|| async {
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                let some = log::erase_details(&mut tx, row.id, &row.name, first, LEAVES_AT_ONCE).await?;
                tx.commit().await?;
                Ok::<_, Error>(some)
            })
            .await?;
            first += LEAVES_AT_ONCE;
        }
        Ok(erased)
    }
}

/// What stands in place of a name: the random part of the id.
fn pseudonym(id: ContributorId) -> Result<ContributorName> {
    let id = id.to_string();
    let random = id.rsplit('-').next().unwrap_or_default();
    format!("erased-{random}").parse().map_err(internal)
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal(error.into())
}

const ROWS_AT_ONCE: i64 = 500;

/// Leaves that are looked through while nobody else writes, on SQLite.
const LEAVES_AT_ONCE: i64 = 5000;

#[cfg(test)]
mod tests;
