//! Who did what: audit rows and the leaves of administration.
//!
//! An act and its rows are one transaction: where the row cannot be written, the act does not happen.
//! Denials are written in a transaction of their own, as well as that goes.

use std::net::IpAddr;

use serde_json::Value;

use super::leaves::{AdminEvent, Leaf, LeafEvent};
use super::{Call, Error, Result, Service};
use crate::access::{Action, Caller, ContributorName, TokenId};
use crate::db::audit::{self, AuditFilter, AuditRow, NewAudit, Outcome};
use crate::db::caches::CacheRow;
use crate::db::log::LeafRow;
use crate::db::{Gate, PageBounds, Tx, contributors};
use crate::time::Timestamp;

/// An act of administration.
pub(super) struct Act<'a> {
    /// The word in the audit row.
    pub action: &'static str,
    /// What was acted on: a name or an id.
    pub subject: String,
    /// For the audit row and, salted and hashed, for the leaf.
    pub detail: Value,
    /// The cache that it is about.
    pub cache: Option<&'a CacheRow>,
    /// What the log says of it; `None`: the log does not.
    pub event: Option<AdminEvent>,
}

/// Which audit rows are asked for; names are resolved here.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    pub contributor: Option<ContributorName>,
    pub token: Option<TokenId>,
    pub action: Option<String>,
    pub outcome: Option<Outcome>,
    pub since: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
    pub subject: Option<String>,
    pub address: Option<IpAddr>,
}

impl Service {
    /// A page of audit rows.
    pub async fn list_audit(
        &self,
        call: &Call,
        query: &AuditQuery,
        page: &PageBounds,
    ) -> Result<Vec<AuditRow>> {
        self.require(call, &Action::Administer, "audit-list", "").await?;
        let mut connection = self.inner.db.read().await?;
        let contributor = match &query.contributor {
            None => None,
            Some(name) => {
                let row = contributors::by_name(&mut connection, name).await?;
                Some(row.ok_or(Error::NotFound("contributor"))?.id)
            }
        };
        let filter = AuditFilter {
            contributor,
            token: query.token,
            action: query.action.clone(),
            outcome: query.outcome,
            since: query.since,
            until: query.until,
            subject: query.subject.clone(),
            address: query.address,
        };
        Ok(audit::list(&mut connection, &filter, page).await?)
    }

    /// Refuses unless the caller may do `action`, and writes the refusal down under the name `act`.
    pub async fn require(
        &self,
        call: &Call,
        action: &Action,
        act: &'static str,
        subject: &str,
    ) -> Result<()> {
        match call.caller.require(action) {
            Ok(()) => Ok(()),
            Err(denied) => Err(self.denied(call, act, subject, denied.into()).await),
        }
    }

    /// Writes a refusal down and hands the error back. Callers without a token leave a line in the server's
    /// log only, unless they tried a secret: strangers must not fill the table.
    pub(super) async fn denied(&self, call: &Call, act: &'static str, subject: &str, error: Error) -> Error {
        let token = call.caller.token();
        tracing::info!(
            action = act,
            subject,
            token.id = token.map(|token| token.token.to_string()),
            address = call.origin.address.map(|address| address.to_string()),
            error = %error,
            "denied"
        );
        metrics::counter!("narvault_denials_total").increment(1);
        let now = self.inner.clock.now();
        // Whoever holds a token is known, and still bounded.
        let room = self.inner.denials.take(call.origin.address, now).is_ok();
        let tried_a_secret = matches!(act, "admin-claim" | "vault-unseal" | "token-report");
        if room && (token.is_some() || tried_a_secret) {
            let written = async {
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                let detail = serde_json::json!({ "why": error.to_string() });
                self.audit(&mut tx, call, act, Outcome::Denied, subject, detail, now).await?;
                Ok::<_, Error>(tx.commit().await?)
            };
            if let Err(failed) = written.await {
                tracing::warn!(error = &failed as &dyn std::error::Error, "a denial was not written down");
            }
        }
        error
    }

    /// Writes an audit row in the transaction of the act.
    #[expect(clippy::too_many_arguments, reason = "the parts of one row")]
    pub(super) async fn audit(
        &self,
        tx: &mut Tx,
        call: &Call,
        action: &'static str,
        outcome: Outcome,
        subject: &str,
        detail: Value,
        now: Timestamp,
    ) -> Result<()> {
        let token = call.caller.token();
        let mut detail = detail;
        if call.caller == Caller::Host
            && let Value::Object(members) = &mut detail
        {
            members.insert("host".into(), true.into());
        }
        let row = NewAudit {
            id: self.new_id(now),
            at: now,
            action,
            outcome,
            contributor: token.map(|token| token.contributor),
            token: token.map(|token| token.token),
            subject,
            address: call.origin.address.map(|address| address.to_string()),
            client: call.origin.client.as_deref(),
            request_id: call.origin.request_id.as_deref(),
            detail: detail.to_string(),
        };
        Ok(audit::insert(tx, &row).await?)
    }

    /// Writes down what a transaction did: the audit rows, then, as its last lock, the leaves.
    pub(super) async fn record(
        &self,
        tx: &mut Tx,
        call: &Call,
        acts: Vec<Act<'_>>,
        now: Timestamp,
    ) -> Result<()> {
        self.record_after(tx, call, Vec::new(), acts, now).await
    }

    /// The same, with leaves that stand before those of the acts.
    pub(super) async fn record_after(
        &self,
        tx: &mut Tx,
        call: &Call,
        mut leaves: Vec<LeafRow>,
        acts: Vec<Act<'_>>,
        now: Timestamp,
    ) -> Result<()> {
        for act in acts {
            if let Some(event) = act.event {
                leaves.push(self.leaf_row(Leaf {
                    call,
                    by: call.caller.token(),
                    cache: act.cache,
                    path_id: None,
                    event: LeafEvent::Admin(event),
                    detail: act.detail.clone(),
                    now,
                })?);
            }
            self.audit(tx, call, act.action, Outcome::Done, &act.subject, act.detail, now).await?;
        }
        super::log::append(tx, &leaves).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
