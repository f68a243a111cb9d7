//! Commitments to the audit rows: each hour one leaf of the signature log says what the rows of the hours before were,
//! so that none of them can be changed, taken away or slipped in afterwards, by the database's owner neither.
//!
//! Never shows a row: the log has a salted hash over salted hashes, which stands also when a person was erased.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::leaves::{AdminEvent, Leaf, LeafEvent};
use super::{Call, Result, Service};
use crate::access::Action;
use crate::db::audit_commits::{self, AuditCommit, CommittedRow, Seal};
use crate::db::{Connection, DbError, Gate, log, restarting};
use crate::time::Timestamp;
use crate::tlog::leaf::{self, Event, Salt};
use crate::vault::random;

/// What came out of holding the audit rows against the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditCheck {
    /// Commitments that hold.
    pub commits: u64,
    /// Rows under them.
    pub rows: u64,
    /// Those of them that were erased: that they were there is all that is left to see.
    pub erased: u64,
    /// Rows that no commitment covers yet.
    pub waiting: u64,
    /// What does not hold; at most `FINDINGS_NAMED_MAX` of them.
    pub findings: Vec<String>,
    pub finding_count: u64,
}

impl AuditCheck {
    fn finding(&mut self, what: String) {
        self.finding_count += 1;
        if self.findings.len() < FINDINGS_NAMED_MAX {
            self.findings.push(what);
        }
    }
}

impl Service {
    /// Commits whenever an hour has ended, until `stop`.
    pub(super) async fn audit_committer(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.commit_audit().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "audit rows were not committed to; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Commits to every row of the hours that have ended: how many leaves that took. A row that a transaction writes
    /// late is covered by the next commitment.
    pub(super) async fn commit_audit(&self) -> Result<u64> {
        let mut made = 0;
        while restarting(|| self.commit_audit_once()).await? {
            made += 1;
        }
        Ok(made)
    }

    /// False: there is nothing to commit to, or another replica does it.
    async fn commit_audit_once(&self) -> Result<bool> {
        let now = self.inner.clock.now();
        let hour = Timestamp(now.0 - now.0.rem_euclid(HOUR_MILLIS));
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        let rows = audit_commits::uncommitted(&mut tx, hour, ROWS_MAX).await?;
        if rows.is_empty() {
            return Ok(false);
        }
        let last = audit_commits::last(&mut tx).await?;
        let seals: Vec<Seal> = rows.iter().map(sealed).collect();
        let before = last.as_ref().map_or_else(first_head, |last| last.head);
        let commit = AuditCommit {
            seq: last.map_or(0, |last| last.seq) + 1,
            leaf: None,
            row_count: i64::try_from(rows.len()).unwrap_or(i64::MAX),
            head: head(before, seals.iter().map(|seal| &seal.commitment)),
        };
        match audit_commits::reserve(&mut tx, &commit, now).await {
            Err(DbError::Duplicate) => return Ok(false),
            reserved => reserved?,
        }
        if audit_commits::seal(&mut tx, commit.seq, &seals).await? != seals.len() as u64 {
            return Ok(false);
        }
        let leaf = self.leaf_row(Leaf {
            call: &Call::host(),
            by: None,
            cache: None,
            path_id: None,
            event: LeafEvent::Admin(AdminEvent::AuditCommit),
            detail: detail(&commit),
            now,
        })?;
        let index = super::log::append(&mut tx, &[leaf]).await?.start;
        audit_commits::set_leaf(&mut tx, commit.seq, index).await?;
        tx.commit().await?;
        tracing::debug!(commit.seq, rows = commit.row_count, leaf = index, "audit rows committed to");
        Ok(true)
    }

    /// Recomputes every commitment from the rows, and holds it against its leaf. `leaves` are all of the published log
    /// whose event is `audit-commit`, with their places, as it was when it had `size` leaves.
    pub async fn verify_audit(&self, call: &Call, leaves: &[(u64, String)], size: u64) -> Result<AuditCheck> {
        self.require(call, &Action::Administer, "audit-verify", "").await?;
        let mut check = AuditCheck::default();
        let mut connection = self.inner.db.read().await?;
        check.waiting = audit_commits::uncommitted_count(&mut connection).await?.unsigned_abs();
        let published: HashMap<u64, &str> =
            leaves.iter().map(|(index, text)| (*index, text.as_str())).collect();
        let (mut head, mut seq, mut seen) = (first_head(), 0, 0);
        loop {
            let commits = audit_commits::list(&mut connection, seq, COMMITS_AT_ONCE).await?;
            let Some(last) = commits.last() else { break };
            let last = last.seq;
            for commit in commits {
                seq += 1;
                if commit.seq != seq {
                    check.finding(format!("commitment {seq} is missing"));
                    seq = commit.seq;
                }
                head = check_rows(&mut connection, &commit, head, &mut check).await?;
                let leaf = commit.leaf.and_then(|leaf| published.get(&leaf.unsigned_abs()));
                match leaf {
                    Some(text) => {
                        seen += 1;
                        check_leaf(&mut connection, &commit, text, &mut check).await?;
                    }
                    // Published a second or two later.
                    None if commit.leaf.is_some_and(|leaf| leaf.unsigned_abs() >= size) => check.commits += 1,
                    None => check.finding(format!("commitment {seq} is not in the published log")),
                }
            }
            seq = last;
        }
        if seen < leaves.len() {
            let more = leaves.len() - seen;
            check.finding(format!("the log has {more} commitments that the database does not have"));
        }
        Ok(check)
    }
}

/// Recomputes one commitment: the hash over its rows and everything before.
async fn check_rows(
    connection: &mut Connection,
    commit: &AuditCommit,
    before: [u8; 32],
    check: &mut AuditCheck,
) -> Result<[u8; 32]> {
    let (mut hasher, mut count, mut after) = (Sha256::new().chain_update(before), 0, String::new());
    loop {
        let rows = audit_commits::committed(connection, commit.seq, &after, ROWS_AT_ONCE).await?;
        let Some(last) = rows.last() else { break };
        after.clone_from(&last.id);
        for row in &rows {
            count += 1;
            check.rows += 1;
            check.erased += u64::from(row.is_erased);
            if !holds(row) {
                check.finding(format!("the audit row {} is not what was committed to", row.id));
            }
            hasher.update(row.commitment.unwrap_or_default());
        }
    }
    let head: [u8; 32] = hasher.finalize().into();
    if count != commit.row_count || head != commit.head {
        let (seq, rows) = (commit.seq, commit.row_count);
        check.finding(format!("commitment {seq} is to {rows} rows, and these are other rows"));
    }
    // What comes after was made with this one.
    Ok(commit.head)
}

/// Holds a commitment against its leaf.
async fn check_leaf(
    connection: &mut Connection,
    commit: &AuditCommit,
    text: &str,
    check: &mut AuditCheck,
) -> Result<()> {
    let leaf = leaf::Leaf::parse(text.as_bytes());
    let opening = match commit.leaf {
        Some(index) => log::opening(connection, index, "detail").await?,
        None => None,
    };
    let holds = leaf.is_ok_and(|leaf| {
        let is_commit = leaf.event == Event::AuditCommit;
        let opening = opening.as_ref().filter(|(salt, text)| {
            leaf.detail.is_some_and(|committed| committed.opens(salt, text.as_bytes()))
        });
        let said = opening.and_then(|(_, text)| serde_json::from_str::<Value>(text).ok());
        is_commit && said == Some(detail(commit))
    });
    if holds {
        check.commits += 1;
    } else {
        check.finding(format!("commitment {} is not the one that its leaf is to", commit.seq));
    }
    Ok(())
}

/// Whether a row is what it was when it was committed to, as far as that can be seen.
fn holds(row: &CommittedRow) -> bool {
    match (row.commitment, row.salt) {
        (Some(commitment), Some(salt)) => commitment == commitment_to(&salt, &row.text),
        (Some(_), None) => row.is_erased,
        (None, _) => false,
    }
}

fn sealed(row: &CommittedRow) -> Seal {
    let salt: Salt = random::bytes();
    Seal { id: row.id.clone(), salt, commitment: commitment_to(&salt, &row.text) }
}

fn commitment_to(salt: &Salt, text: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(text).finalize().into()
}

/// The hash over what was before and the rows' salted hashes, in the order of their ids.
fn head<'a>(before: [u8; 32], commitments: impl Iterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let hasher = commitments.fold(Sha256::new().chain_update(before), |hasher, one| hasher.chain_update(one));
    hasher.finalize().into()
}

/// What the first commitment goes on from.
fn first_head() -> [u8; 32] {
    Sha256::digest("narvault/audit/v1").into()
}

/// What the leaf commits to.
fn detail(commit: &AuditCommit) -> Value {
    let head = data_encoding::BASE64.encode(&commit.head);
    json!({ "commitment": commit.seq, "rows": commit.row_count, "head": head })
}

/// Findings that are named; more are counted.
pub const FINDINGS_NAMED_MAX: usize = 1000;

const HOUR_MILLIS: i64 = 3_600_000;

/// How long an ended hour waits at most.
const PAUSE: Duration = Duration::from_secs(60);

/// Rows under one commitment at most: some megabytes of statement.
const ROWS_MAX: i64 = 5000;

const ROWS_AT_ONCE: i64 = 1000;

const COMMITS_AT_ONCE: i64 = 100;

#[cfg(test)]
mod tests;
