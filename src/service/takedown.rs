//! Taking down what rests on somebody's word, and taking that back: of a contributor, of a token, for one path.
//!
//! A call writes down what is wanted, in one transaction. What follows from that, [`carry`] does in batches, on
//! whichever replica, as often as it is broken off. The call waits for it, and for storage, at most `limits.takedown_answer_seconds`.

mod carry;

pub(super) use carry::{hide, release_entries};

use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::audit::Act;
use super::leaves::AdminEvent;
use super::webhooks::{Event, EventKind};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheName, ContributorName, TokenId};
use crate::db::impact::{self, Impact, Scope};
use crate::db::paths::{self, PathState};
use crate::db::quarantines::{self, By, QuarantineRow, Subject};
use crate::db::withdrawals::{self, AffectedRow, Counts, WithdrawalRow};
use crate::db::{Connection, Gate, PageBounds, Tx, caches, contributors, evidence, restarting, tokens};
use crate::nix::store_path::StorePathHash;
use crate::time::Timestamp;

/// Whose evidence, as callers name it.
#[derive(Debug, Clone)]
pub enum TakedownTarget {
    Contributor(ContributorName),
    Path(CacheName, StorePathHash),
    Token(TokenId),
}

impl TakedownTarget {
    fn action(&self) -> Action {
        match self {
            Self::Contributor(_) | Self::Token(_) => Action::Administer,
            Self::Path(cache, _) => Action::Delete(cache.clone()),
        }
    }

    /// The words of audit rows for the act and for its end.
    fn acts(&self) -> (&'static str, &'static str) {
        match self {
            Self::Contributor(_) => ("contributor-quarantine", "contributor-restore"),
            Self::Path(..) => ("path-quarantine", "path-restore"),
            Self::Token(_) => ("token-quarantine", "token-restore"),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Contributor(name) => name.to_string(),
            Self::Path(cache, hash) => format!("{cache}/{hash}"),
            Self::Token(id) => id.to_string(),
        }
    }
}

/// A quarantine that is asked for.
#[derive(Debug, Clone, Default)]
pub struct QuarantineRequest {
    /// Evidence from this moment on is void; `None`: all.
    pub since: Option<Timestamp>,
    pub reason: String,
    /// Whether what refers to a withdrawn path is withdrawn too.
    pub dependents: bool,
    /// Whether tokens that the subject issued, and what came with them, are left alone.
    pub keep_issued: bool,
}

/// What a quarantine would do.
#[derive(Debug)]
pub struct WhatIf {
    pub name: String,
    pub kind: &'static str,
    /// Not revoked tokens that would die, at most [`TAKEN_NAMED_MAX`].
    pub tokens: Vec<TokenId>,
    pub impact: Impact,
}

/// What a quarantine came to by the end of the call.
#[derive(Debug)]
pub struct Quarantined {
    pub row: QuarantineRow,
    /// False: it stood already, and nothing was left to do.
    pub changed: bool,
    /// Those that died by this call.
    pub tokens: Vec<TokenId>,
    /// Pieces of evidence that it voids.
    pub evidence: u64,
    pub counts: Counts,
    /// The first of the paths that it withdrew, at most [`TAKEN_NAMED_MAX`].
    pub withdrawn: Vec<WithdrawalRow>,
    /// Published paths that refer to withdrawn ones: how many, and the first of them as cache and base name.
    pub dependents: (u64, Vec<(String, String)>),
    /// Paths that are still to be withdrawn, as far as can be told; 0 once it is done.
    pub paths_left: u64,
    /// Narinfos that are still to be removed from storage.
    pub narinfos_left: u64,
}

/// What a restoration came to by the end of the call.
#[derive(Debug)]
pub struct Restored {
    pub row: QuarantineRow,
    /// False: it was restored before.
    pub changed: bool,
    pub counts: Counts,
    /// The first of the paths that did not come back.
    pub left: Vec<WithdrawalRow>,
    /// Withdrawn paths that it has not looked at yet; 0 once it is done.
    pub paths_left: u64,
    /// Narinfos that are still to be written to storage.
    pub narinfos_left: u64,
}

/// The id of a quarantine: UUIDv7 text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineId(String);

impl FromStr for QuarantineId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> std::result::Result<Self, uuid::Error> {
        // One spelling for each: the row has the id as text.
        Ok(Self(text.parse::<uuid::Uuid>()?.to_string()))
    }
}

impl Service {
    /// Refuses unless the caller may take down `target`, or restore it where `restore`.
    pub async fn require_takedown(&self, call: &Call, target: &TakedownTarget, restore: bool) -> Result<()> {
        let (quarantine, restoration) = target.acts();
        let act = if restore { restoration } else { quarantine };
        self.require(call, &target.action(), act, &target.name()).await
    }

    /// Voids evidence, withdraws what rests on it alone, and kills tokens. Done again, it changes nothing, goes on
    /// where it was broken off, or widens what stands. Needs no key: it works while the vault is sealed.
    pub async fn quarantine(
        &self,
        call: &Call,
        target: &TakedownTarget,
        asked: &QuarantineRequest,
    ) -> Result<Quarantined> {
        self.require_takedown(call, target, false).await?;
        check_reason(&asked.reason)?;
        let deadline = Instant::now() + self.inner.limits.takedown_answer;
        let (row, changed) = restarting(|| self.begin_quarantine(call, target, asked)).await?;
        let tokens = self.carried_by(&row.id, changed, deadline).await?;
        let narinfos_left = self.narinfos_left(&row.id, deadline).await?;
        let mut connection = self.inner.db.read().await?;
        let row = quarantines::by_id(&mut connection, &row.id).await?.ok_or(Error::NotFound("quarantine"))?;
        let first = PageBounds { after: None, limit: TAKEN_NAMED_MAX, descending: false };
        let dependents = withdrawals::dependents_published(&mut connection, &row.id, TAKEN_NAMED_MAX).await?;
        Ok(Quarantined {
            paths_left: paths_left(&mut connection, &row, dependents.0).await?,
            changed,
            tokens,
            evidence: evidence::count_voided_by(&mut connection, &row.id).await?,
            counts: withdrawals::counts(&mut connection, &row.id).await?,
            withdrawn: withdrawals::list(&mut connection, &row.id, &first).await?,
            dependents,
            narinfos_left,
            row,
        })
    }

    /// What a quarantine would do. Changes nothing, and counts what would be new to a quarantine that stands.
    pub async fn quarantine_impact(
        &self,
        call: &Call,
        target: &TakedownTarget,
        asked: &QuarantineRequest,
    ) -> Result<WhatIf> {
        self.require_takedown(call, target, false).await?;
        check_reason(&asked.reason)?;
        self.check_since(asked)?;
        let mut connection = self.inner.db.read().await?;
        let (subject, name) = resolve(&mut connection, target).await?;
        let since = asked.since.unwrap_or(Timestamp(0));
        let scope = Scope { subject: &subject, since, keep_issued: asked.keep_issued };
        Ok(WhatIf {
            name,
            kind: subject.kind(),
            tokens: impact::tokens(&mut connection, scope, TAKEN_NAMED_MAX).await?,
            impact: impact::of(&mut connection, scope, TAKEN_NAMED_MAX).await?,
        })
    }

    /// Has the evidence count again, and brings back, byte for byte, what was withdrawn for want of it. A path where
    /// another claim stands meanwhile stays as it is, and is told of. Tokens stay dead.
    pub async fn restore(&self, call: &Call, target: &TakedownTarget, reason: &str) -> Result<Restored> {
        self.require_takedown(call, target, true).await?;
        check_reason(reason)?;
        let deadline = Instant::now() + self.inner.limits.takedown_answer;
        let (row, changed) = restarting(|| self.begin_restore(call, target, reason)).await?;
        self.carried_by(&row.id, false, deadline).await?;
        let narinfos_left = self.narinfos_left(&row.id, deadline).await?;
        let mut connection = self.inner.db.read().await?;
        let row = quarantines::by_id(&mut connection, &row.id).await?.ok_or(Error::NotFound("quarantine"))?;
        let counts = withdrawals::counts(&mut connection, &row.id).await?;
        let is_done = row.restored_at.is_some();
        Ok(Restored {
            changed,
            counts,
            paths_left: if is_done { 0 } else { counts.evidence + counts.dependents },
            left: withdrawals::left(&mut connection, &row.id, TAKEN_NAMED_MAX).await?,
            narinfos_left,
            row,
        })
    }

    /// A page of quarantines, restored ones too.
    pub async fn list_quarantines(&self, call: &Call, page: &PageBounds) -> Result<Vec<QuarantineRow>> {
        self.require(call, &Action::Administer, "quarantine-list", "").await?;
        Ok(quarantines::list(&mut *self.inner.db.read().await?, page).await?)
    }

    /// A page of the paths that a quarantine withdrew.
    pub async fn list_withdrawals(
        &self,
        call: &Call,
        id: &QuarantineId,
        page: &PageBounds,
    ) -> Result<Vec<WithdrawalRow>> {
        self.require(call, &Action::Administer, "quarantine-list", &id.0).await?;
        let mut connection = self.inner.db.read().await?;
        if quarantines::by_id(&mut connection, &id.0).await?.is_none() {
            return Err(Error::NotFound("quarantine"));
        }
        Ok(withdrawals::list(&mut connection, &id.0, page).await?)
    }

    /// A page of what was withdrawn from a cache since then and does not stand there now, for whoever may pull from it.
    pub async fn withdrawn_since(
        &self,
        call: &Call,
        cache: &CacheName,
        since: Timestamp,
        page: &PageBounds,
    ) -> Result<Vec<AffectedRow>> {
        let cache = self.cache_to_pull(call, cache).await?;
        Ok(withdrawals::affected(&mut *self.inner.db.read().await?, cache.id, since, page).await?)
    }

    /// Writes down what is wanted. True: it is new, or wider, or there is something left for it to do.
    async fn begin_quarantine(
        &self,
        call: &Call,
        target: &TakedownTarget,
        asked: &QuarantineRequest,
    ) -> Result<(QuarantineRow, bool)> {
        self.check_since(asked)?;
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        self.recheck(&mut tx, call, &target.action(), now).await?;
        let (subject, name) = resolve(&mut tx, target).await?;
        let newest = quarantines::newest_of(&mut tx, &subject).await?;
        let standing = newest.filter(|row| row.restored_at.is_none());
        let wanted = QuarantineRow {
            id: self.new_id(now),
            subject,
            name,
            since: asked.since.unwrap_or(Timestamp(0)),
            reason: asked.reason.clone(),
            keep_issued: asked.keep_issued,
            dependents: asked.dependents,
            by: by(call),
            begun_at: now,
            tokens_dead_at: None,
            done_at: None,
            restoring_at: None,
            restore_reason: None,
            restorer: None,
            restored_at: None,
        };
        let row = match standing {
            None => {
                quarantines::insert(&mut tx, &wanted).await?;
                wanted
            }
            Some(standing) => {
                let wider = QuarantineRow {
                    id: standing.id.clone(),
                    since: wanted.since.min(standing.since),
                    keep_issued: wanted.keep_issued && standing.keep_issued,
                    dependents: wanted.dependents || standing.dependents,
                    begun_at: standing.begun_at,
                    ..wanted
                };
                if !self.adds_to(&mut tx, &standing, &wider).await? {
                    return Ok((standing, false));
                }
                quarantines::widen(&mut tx, &wider, now).await?;
                wider
            }
        };
        let detail = json!({
            "quarantine": row.id,
            "since": row.since.rfc3339(),
            "reason": row.reason,
            "dependents": row.dependents,
            "keep_issued": row.keep_issued,
        });
        self.tell(&mut tx, call, &row, false, &detail).await?;
        self.record(&mut tx, call, vec![act(target.acts().0, &row, detail)], now).await?;
        tx.commit().await?;
        tracing::warn!(
            quarantine = row.id,
            kind = row.subject.kind(),
            subject = row.name,
            "quarantine begun"
        );
        Ok((row, true))
    }

    /// Whether `wider` asks for more than stands, or anything came since.
    async fn adds_to(&self, tx: &mut Tx, standing: &QuarantineRow, wider: &QuarantineRow) -> Result<bool> {
        if standing.restoring_at.is_some()
            || wider.since < standing.since
            || wider.keep_issued != standing.keep_issued
            || wider.dependents != standing.dependents
        {
            return Ok(true);
        }
        if standing.done_at.is_none() {
            // It is under way, and finds what there is.
            return Ok(false);
        }
        let scope = Scope { subject: &wider.subject, since: wider.since, keep_issued: wider.keep_issued };
        Ok(!impact::tokens(tx, scope, 1).await?.is_empty()
            || impact::has_evidence(tx, scope).await?
            || wider.dependents && !withdrawals::dependents(tx, &wider.id, 1).await?.is_empty())
    }

    async fn begin_restore(
        &self,
        call: &Call,
        target: &TakedownTarget,
        reason: &str,
    ) -> Result<(QuarantineRow, bool)> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        self.recheck(&mut tx, call, &target.action(), now).await?;
        let (subject, _) = resolve(&mut tx, target).await?;
        let newest = quarantines::newest_of(&mut tx, &subject).await?;
        let row = newest.ok_or(Conflict::State("it was never quarantined"))?;
        if row.restored_at.is_some() || row.restoring_at.is_some() {
            return Ok((row, false));
        }
        quarantines::begin_restore(&mut tx, &row.id, reason, by(call), now).await?;
        let detail = json!({ "quarantine": row.id, "reason": reason, "restored": true });
        self.tell(&mut tx, call, &row, true, &detail).await?;
        self.record(&mut tx, call, vec![act(target.acts().1, &row, detail)], now).await?;
        tx.commit().await?;
        tracing::warn!(
            quarantine = row.id,
            kind = row.subject.kind(),
            subject = row.name,
            "restoration begun"
        );
        Ok((row, true))
    }

    /// Tells webhooks that a quarantine, or its restoration where `restored`, begins; tokens that die are told by
    /// themselves.
    async fn tell(
        &self,
        tx: &mut Tx,
        call: &Call,
        row: &QuarantineRow,
        restored: bool,
        detail: &Value,
    ) -> Result<()> {
        let (mut detail, now) = (detail.clone(), self.inner.clock.now());
        let kind = |quarantined, back| if restored { back } else { quarantined };
        let (kind, subject) = match &row.subject {
            Subject::Contributor(id) => {
                let row = contributors::by_id(tx, *id).await?.ok_or(Error::NotFound("contributor"))?;
                let kind = kind(EventKind::ContributorQuarantined, EventKind::ContributorRestored);
                let event = Event::Contributor { kind, contributor: &row, detail };
                return self.emit(tx, call, event, now).await;
            }
            Subject::Token(id) => {
                let row = tokens::by_id(tx, *id).await?.ok_or(Error::NotFound("token"))?;
                let subject =
                    json!({ "token_id": id.to_string(), "contributor_id": row.contributor.to_string() });
                (kind(EventKind::TokenQuarantined, EventKind::TokenRestored), subject)
            }
            Subject::Path(_) => {
                let (cache, base_name) = row.name.split_once('/').unwrap_or(("", &row.name));
                let subject = json!({ "cache": cache, "store_path": format!("/nix/store/{base_name}") });
                (kind(EventKind::PathQuarantined, EventKind::PathRestored), subject)
            }
        };
        if let (Value::Object(detail), Value::Object(subject)) = (&mut detail, subject) {
            detail.extend(subject);
        }
        self.emit(tx, call, Event::Takedown { kind, detail }, now).await
    }

    /// Carries a quarantine through in a task of its own, which goes on when the caller has gone, and waits for it
    /// until `deadline`. Answers with the tokens that died. `revoke`: whatever the row says of them.
    async fn carried_by(&self, id: &str, revoke: bool, deadline: Instant) -> Result<Vec<TokenId>> {
        let (service, id) = (self.clone(), id.to_owned());
        let work = self.inner.tasks.spawn(async move { service.carry_through(&id, revoke).await });
        match timeout_at(deadline, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Error::Internal(panic.into())),
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Helps storage until it is as the rows say, at most until `deadline`: how many narinfos are left.
    async fn narinfos_left(&self, id: &str, deadline: Instant) -> Result<u64> {
        loop {
            let service = self.clone();
            // In a task of its own: a client that goes away must not leave a lease behind.
            let helping = self.inner.tasks.spawn(async move {
                service.release_due().await?;
                service.finish().await
            });
            match timeout_at(deadline, helping).await {
                Ok(Ok(result)) => result?,
                Ok(Err(panic)) => return Err(Error::Internal(panic.into())),
                Err(_) => {}
            }
            let left = withdrawals::narinfos_waiting(&mut *self.inner.db.read().await?, id).await?;
            let now = Instant::now();
            if left == 0 || now >= deadline || self.inner.stop.is_cancelled() {
                return Ok(left);
            }
            tokio::time::sleep(LEFT_PAUSE.min(deadline - now)).await;
        }
    }

    fn check_since(&self, asked: &QuarantineRequest) -> Result<()> {
        if asked.since.is_some_and(|since| since > self.inner.clock.now()) {
            return Err(Rejection::value("since", "lies in the future").into());
        }
        Ok(())
    }
}

/// The row that `target` names, and its name for people.
async fn resolve(connection: &mut Connection, target: &TakedownTarget) -> Result<(Subject, String)> {
    match target {
        TakedownTarget::Contributor(name) => {
            let row = contributors::by_name(connection, name).await?;
            let row = row.ok_or(Error::NotFound("contributor"))?;
            Ok((Subject::Contributor(row.id), row.name.to_string()))
        }
        TakedownTarget::Token(id) => {
            let row = tokens::by_id(connection, *id).await?.ok_or(Error::NotFound("token"))?;
            Ok((Subject::Token(row.id), row.id.to_string()))
        }
        TakedownTarget::Path(cache, hash) => {
            let cache = caches::by_name(connection, cache).await?.ok_or(Error::NotFound("cache"))?;
            let path = paths::find(connection, cache.id, *hash).await?.ok_or(Error::NotFound("path"))?;
            if !matches!(path.state, PathState::Published | PathState::Withdrawn) {
                return Err(Conflict::State("the path is deleted").into());
            }
            Ok((Subject::Path(path.id), format!("{}/{}", cache.name, path.claim.path.base_name())))
        }
    }
}

/// How many paths a quarantine that is under way has still to withdraw: those that rest on evidence which it has not
/// voided yet, and by choice what refers to them or to those that are withdrawn. What refers to both counts once.
async fn paths_left(connection: &mut Connection, row: &QuarantineRow, dependents: u64) -> Result<u64> {
    if row.done_at.is_some() {
        return Ok(0);
    }
    let scope = Scope { subject: &row.subject, since: row.since, keep_issued: row.keep_issued };
    let left = impact::of(connection, scope, 1).await?;
    let dependents = if row.dependents { left.dependents.0.max(dependents) } else { 0 };
    Ok(left.doomed.0 + dependents)
}

fn by(call: &Call) -> By {
    call.caller.token().map(|token| (token.contributor, token.token))
}

fn act<'a>(action: &'static str, row: &QuarantineRow, detail: serde_json::Value) -> Act<'a> {
    let event = match row.subject {
        Subject::Contributor(id) => Some(AdminEvent::ContributorQuarantine(id)),
        // Leaves of the tokens and paths tell.
        Subject::Path(_) | Subject::Token(_) => None,
    };
    Act { action, subject: row.name.clone(), detail, cache: None, event }
}

pub(super) fn check_reason(reason: &str) -> Result<()> {
    if reason.trim().is_empty() {
        return Err(Rejection::value("reason", "is empty").into());
    }
    super::tokens::checked_text("reason", reason).map(drop)
}

/// Between two looks at what storage has left to do.
const LEFT_PAUSE: Duration = Duration::from_millis(100);

/// Paths and tokens that an answer names; it counts all.
pub const TAKEN_NAMED_MAX: i64 = 1000;

#[cfg(test)]
mod tests;
