//! Quarantines that the lost leaves tell of: who was quarantined and what was withdrawn stands in them, since when and
//! why does not.
//!
//! A withdrawn path is held by a quarantine of its own, whoever's it was, so that nothing that vouched for it counts, that
//! consumers are told of it, and that it can be restored. A contributor is quarantined from the leaf's moment on: an
//! earlier one is for who remembers it. Their build trace entries, which no leaf withdraws, are void from the beginning.
//! Done again, none of it is done twice.

use super::effects::REASON;
use super::{Published, Said};
use crate::access::{ContributorId, TokenId};
use crate::db::Tx;
use crate::db::caches::CacheRow;
use crate::db::contributors::ContributorRow;
use crate::db::evidence;
use crate::db::paths::PathRow;
use crate::db::quarantines::{self, By, QuarantineRow, Subject};
use crate::db::realisations;
use crate::db::withdrawals::{self, Cause, NewWithdrawal};
use crate::service::{Result, Service, takedown};
use crate::time::Timestamp;

impl Service {
    /// Quarantines a contributor as the leaf `one` did, and says what is not known of it.
    pub(super) async fn quarantine_again(
        &self,
        tx: &mut Tx,
        said: &mut Said,
        contributor: &ContributorRow,
        one: &Published,
        at: Timestamp,
    ) -> Result<()> {
        let name = &contributor.name;
        match standing(tx, &Subject::Contributor(contributor.id)).await? {
            None => {
                let subject = Subject::Contributor(contributor.id);
                let new = self.quarantine_row(subject, name.to_string(), by(one), at);
                // Tokens that they issued and that died with theirs have leaves of their own.
                let new = QuarantineRow { keep_issued: true, ..new };
                quarantines::insert(tx, &QuarantineRow { since: at, ..new.clone() }).await?;
                said.recovery.quarantines += 1;
                void_entries(tx, said, &new).await?;
            }
            Some(row) if row.reason == REASON && row.begun_at == at => {}
            Some(_) => {
                said.recovery.lost.push(format!(
                    "the quarantine of {name} was made wider, or ended, at {}; it stands as it was before: \
                     `narvault contributor quarantine {name} --since TIME --reason TEXT` makes it wider, \
                     `narvault contributor restore {name} --reason TEXT` ends it",
                    at.rfc3339()
                ));
                return Ok(());
            }
        }
        said.recovery.lost.push(format!(
            "since when {name}, quarantined at {}, is not to be believed: what was withdrawn then is withdrawn, and what \
             else they vouched for counts; `narvault contributor quarantine {name} --since TIME --reason TEXT` voids it",
            at.rfc3339()
        ));
        Ok(())
    }

    /// Voids what vouches for a path that is withdrawn just now, and writes the withdrawal down.
    pub(super) async fn hold_path(
        &self,
        tx: &mut Tx,
        said: &mut Said,
        cache: &CacheRow,
        path: &PathRow,
        by: By,
        at: Timestamp,
    ) -> Result<()> {
        let subject = Subject::Path(path.id.clone());
        let id = match standing(tx, &subject).await? {
            Some(row) => row.id,
            None => {
                let name = format!("{}/{}", cache.name, path.claim.path.base_name());
                let new = self.quarantine_row(subject, name, by, at);
                quarantines::insert(tx, &new).await?;
                quarantines::done(tx, &new.id, at).await?;
                said.recovery.quarantines += 1;
                new.id
            }
        };
        loop {
            let live = evidence::live_of_path(tx, &path.id, EVIDENCE_AT_ONCE).await?;
            if live.is_empty() {
                break;
            }
            evidence::void(tx, &live.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), &id).await?;
        }
        let new = NewWithdrawal { id: self.new_id(at), path_id: &path.id, claim_id: &path.claim_id };
        Ok(withdrawals::insert(tx, &id, cache.id, Cause::Evidence, &[new], at).await?)
    }

    /// A quarantine of all there is, as far as the log tells.
    fn quarantine_row(&self, subject: Subject, name: String, by: By, at: Timestamp) -> QuarantineRow {
        QuarantineRow {
            id: self.new_id(at),
            subject,
            name,
            since: Timestamp(0),
            reason: REASON.to_owned(),
            keep_issued: false,
            dependents: false,
            by,
            begun_at: at,
            tokens_dead_at: None,
            done_at: None,
            restoring_at: None,
            restore_reason: None,
            restorer: None,
            restored_at: None,
        }
    }
}

/// Voids every build trace entry of whoever is quarantined, from the beginning: no leaf tells which ones were void, and
/// one too many is pushed again, or restored, while one too few leads to what an attacker made.
async fn void_entries(tx: &mut Tx, said: &mut Said, quarantine: &QuarantineRow) -> Result<()> {
    let (mut count, now) = (0, quarantine.begun_at);
    loop {
        let entries = realisations::void(tx, quarantine, ENTRIES_AT_ONCE).await?;
        if entries.is_empty() {
            break;
        }
        count += entries.len();
        takedown::release_entries(tx, entries, now).await?;
    }
    if count > 0 {
        said.recovery.lost.push(format!(
            "all {count} build trace entries of {name} are void now, also those from before the quarantine; \
             `narvault contributor restore {name} --reason TEXT` has them count again",
            name = quarantine.name
        ));
    }
    Ok(())
}

/// The quarantine of this subject that stands.
async fn standing(tx: &mut Tx, subject: &Subject) -> Result<Option<QuarantineRow>> {
    Ok(quarantines::newest_of(tx, subject).await?.filter(|row| row.restored_at.is_none()))
}

/// On whose word a leaf says that it came about.
pub(super) fn by(one: &Published) -> By {
    let contributor = one.leaf.by.as_ref()?.as_str().parse::<ContributorId>().ok()?;
    let token = one.leaf.token.as_ref()?.as_str().parse::<TokenId>().ok()?;
    Some((contributor, token))
}

/// Build trace entries that are voided in one step.
const ENTRIES_AT_ONCE: i64 = 200;

/// Pieces of evidence for one path that are voided in one step.
const EVIDENCE_AT_ONCE: i64 = 200;
