//! What each lost leaf did to the rows: whatever took something away is done again, by the leaf's own words.

use super::quarantines::by;
use super::{Published, Said, SignedLeaf, moment};
use crate::access::ContributorId;
use crate::db::paths::{self, PathState};
use crate::db::{Gate, Tx, caches, contributors, epoch, restarting, tokens};
use crate::nix::store_path::StorePath;
use crate::service::release::Release;
use crate::service::{Call, Error, Result, Service, takedown};
use crate::storage::CacheObject;
use crate::time::Timestamp;
use crate::tlog::leaf::{CacheLine, Disclosed, Event, PathLines, Signed, Word};

impl Service {
    /// Does again what these leaves took away.
    pub(super) async fn apply_lost(&self, said: &mut Said, batch: &[Published]) -> Result<()> {
        let counted = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let mut counted = Said::default();
            for one in batch {
                self.apply(&mut tx, &mut counted, one, now).await?;
            }
            epoch::advance(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, Error>(counted)
        })
        .await?;
        said.add(counted, batch);
        Ok(())
    }

    async fn apply(&self, tx: &mut Tx, said: &mut Said, one: &Published, now: Timestamp) -> Result<()> {
        let at = moment(&one.leaf, now);
        match &one.leaf.event {
            Event::TokenRevoke(token) => {
                if let Ok(token) = token.as_str().parse()
                    && tokens::revoke(tx, token, REASON, at).await?
                {
                    said.recovery.tokens_revoked += 1;
                }
            }
            Event::ContributorSuspend(id) => suspend(tx, said, id, at).await?,
            Event::ContributorQuarantine(id) => self.quarantine_contributor(tx, said, id, one, at).await?,
            Event::Withdraw(lines) => self.take_away(tx, said, lines, PathState::Withdrawn, one, at).await?,
            Event::Delete(lines) => self.take_away(tx, said, lines, PathState::Deleted, one, at).await?,
            Event::Restore(Disclosed::Open(lines)) => tell_restored(tx, said, lines, now).await?,
            Event::KeyCreate(key) => self.keep_lost_key(tx, said, key, at).await?,
            Event::KeyState(key) => self.change_lost_key(tx, said, key, at).await?,
            Event::CacheDelete(Disclosed::Open(CacheLine { cache: Some(name) })) => {
                if let Ok(name) = name.as_str().parse()
                    && let Some(cache) = caches::by_name(tx, &name).await?
                    && caches::delete(tx, cache.id, at).await?
                {
                    said.recovery.caches_deleted += 1;
                }
            }
            Event::CacheDelete(Disclosed::Private(_)) => {
                // Once its objects leave storage, so do its paths here.
                said.hidden_withdrawals += 1;
                said.recovery.lost.push(format!(
                    "a private cache was deleted at {}, and its leaf does not name it: `narvault cache list` shows \
                     those that are back; delete it again with `narvault cache delete NAME`",
                    at.rfc3339()
                ));
            }
            event => tell_lost(tx, said, event).await?,
        }
        Ok(())
    }

    /// Kills what a quarantined contributor could act with, and quarantines them.
    async fn quarantine_contributor(
        &self,
        tx: &mut Tx,
        said: &mut Said,
        id: &Word,
        one: &Published,
        at: Timestamp,
    ) -> Result<()> {
        let Ok(id) = id.as_str().parse::<ContributorId>() else { return Ok(()) };
        let Some(row) = contributors::by_id(tx, id).await? else { return Ok(()) };
        for token in tokens::unrevoked_of(tx, id, TOKENS_MAX).await? {
            said.recovery.tokens_revoked += u64::from(tokens::revoke(tx, token, REASON, at).await?);
        }
        self.quarantine_again(tx, said, &row, one, at).await
    }

    /// Moves a path of a public cache out of what is served.
    async fn take_away(
        &self,
        tx: &mut Tx,
        said: &mut Said,
        lines: &Disclosed<PathLines>,
        to: PathState,
        one: &Published,
        at: Timestamp,
    ) -> Result<()> {
        let Disclosed::Open(lines) = lines else {
            said.hidden_withdrawals += 1;
            return Ok(());
        };
        let (Ok(name), Ok(path)) =
            (lines.cache.as_str().parse(), StorePath::from_absolute(lines.path.as_str()))
        else {
            return Ok(());
        };
        let Some(cache) = caches::by_name(tx, &name).await? else { return Ok(()) };
        let Some(row) = paths::find(tx, cache.id, path.hash()).await? else {
            if to == PathState::Withdrawn {
                said.recovery.lost.push(format!(
                    "{path} of {name} was pushed and withdrawn since the backup: `narvault path affected` does not tell \
                     those who pulled it"
                ));
            }
            return Ok(());
        };
        match (row.state, to) {
            (PathState::Published | PathState::Withdrawn, PathState::Deleted) => {
                let mut release = Release::by_worker(&cache, at);
                // Its leaf is the lost one.
                self.delete_in_tx(tx, &Call::host(), &mut release, &row, REASON, at).await?;
            }
            (PathState::Published, _) => {
                paths::change_state(tx, &row.id, PathState::Published, to, at).await?;
                takedown::hide(tx, &cache, &[&row], at).await?;
                self.hold_path(tx, said, &cache, &row, by(one), at).await?;
            }
            _ => return Ok(()),
        }
        said.recovery.paths_withdrawn += 1;
        Ok(())
    }
}

/// Suspends a contributor. What the leaf's detail said is lost: it may have been the end of a suspension.
async fn suspend(tx: &mut Tx, said: &mut Said, id: &Word, at: Timestamp) -> Result<()> {
    let Ok(id) = id.as_str().parse::<ContributorId>() else { return Ok(()) };
    let Some(row) = contributors::by_id(tx, id).await? else { return Ok(()) };
    if contributors::set_suspended(tx, id, Some(at)).await? {
        said.recovery.contributors_suspended += 1;
        let name = &row.name;
        said.recovery.lost.push(format!(
            "{name} was suspended, or that was lifted; they are suspended now: \
             `narvault contributor resume {name}` lifts it"
        ));
    }
    Ok(())
}

/// Leaves a path withdrawn whose quarantine ended since, has storage follow, and says how to end it again.
async fn tell_restored(tx: &mut Tx, said: &mut Said, lines: &PathLines, now: Timestamp) -> Result<()> {
    let (Ok(name), Ok(path)) = (lines.cache.as_str().parse(), StorePath::from_absolute(lines.path.as_str()))
    else {
        return Ok(());
    };
    let Some(cache) = caches::by_name(tx, &name).await? else { return Ok(()) };
    let row = paths::find(tx, cache.id, path.hash()).await?;
    if row.is_some_and(|row| row.state == PathState::Withdrawn) {
        Release::by_worker(&cache, now).object(tx, CacheObject::Narinfo(path.hash())).await?;
        said.recovery.lost.push(format!(
            "{path} of {name} was restored from a quarantine; it is withdrawn now: \
             `narvault path restore {name} {} --reason TEXT` brings it back, or the restoration of whom else \
             `narvault quarantine list` names",
            path.hash()
        ));
    }
    Ok(())
}

/// What was made since the backup, and whose row nobody has any more.
async fn tell_lost(tx: &mut Tx, said: &mut Said, event: &Event) -> Result<()> {
    let lost = match event {
        Event::CacheCreate(Disclosed::Open(CacheLine { cache: Some(name) })) => {
            let known = match name.as_str().parse() {
                Ok(name) => caches::by_name(tx, &name).await?.is_some(),
                Err(_) => true,
            };
            (!known).then(|| format!("the cache {name} is lost; its objects still lie in storage"))
        }
        Event::ContributorCreate(id) => {
            let known = match id.as_str().parse() {
                Ok(id) => contributors::by_id(tx, id).await?.is_some(),
                Err(_) => true,
            };
            (!known).then(|| format!("the contributor {id} is lost; add them again under another name"))
        }
        Event::TokenIssue(token) => {
            Some(format!("the token {token} is dead if it was issued after the backup"))
        }
        Event::VaultSlot => {
            Some("a slot of the vault was added or removed; compare `narvault vault status`".to_owned())
        }
        Event::PolicyChange(_) => {
            Some("settings of a cache or a contributor were changed; compare them".to_owned())
        }
        Event::Restore(Disclosed::Private(_)) => Some(
            "a path of a private cache was restored from a quarantine, and its leaf does not name it; \
             `narvault quarantine list` shows what is withdrawn now"
                .to_owned(),
        ),
        Event::Realisation(signed) => Some(match &signed.claim {
            Disclosed::Open(claim) => format!(
                "a build trace entry of {} in {} is lost if it was pushed after the backup; push it again",
                claim.path, claim.cache
            ),
            Disclosed::Private(_) => "build trace entries of a private cache are lost if they were pushed after \
                                      the backup; push them again"
                .to_owned(),
        }),
        Event::Conflict(Disclosed::Open(lines)) => Some(format!(
            "another claim for {} of {} was refused as a conflict, and the row that tells of it is lost; the leaf names \
             who made it",
            lines.path, lines.cache
        )),
        Event::Conflict(Disclosed::Private(_)) => Some(
            "another claim for a path of a private cache was refused as a conflict, and the row that tells of it is lost"
                .to_owned(),
        ),
        _ => None,
    };
    said.recovery.lost.extend(lost);
    Ok(())
}

impl Said {
    /// Takes in what a batch said, once it is committed.
    fn add(&mut self, counted: Said, batch: &[Published]) {
        let (all, more) = (&mut self.recovery, counted.recovery);
        all.tokens_revoked += more.tokens_revoked;
        all.contributors_suspended += more.contributors_suspended;
        all.paths_withdrawn += more.paths_withdrawn;
        all.keys_changed += more.keys_changed;
        all.caches_deleted += more.caches_deleted;
        all.quarantines += more.quarantines;
        for lost in more.lost {
            if !all.lost.contains(&lost) && all.lost.len() < LOST_MAX {
                all.lost.push(lost);
            }
        }
        self.hidden_withdrawals += counted.hidden_withdrawals;
        batch.iter().for_each(|one| self.remember(one));
    }

    fn remember(&mut self, one: &Published) {
        let word = |word: &Option<Word>| word.as_ref().map(ToString::to_string);
        match &one.leaf.event {
            Event::Sign(signed) | Event::Resign(signed) => {
                let Signed { claim, key, sig, .. } = signed;
                if let Disclosed::Open(claim) = claim {
                    self.gone.remove(&(claim.cache.to_string(), claim.path.to_string()));
                }
                let (by, token) = (word(&one.leaf.by), word(&one.leaf.token));
                let leaf = SignedLeaf { index: one.index, by, token };
                self.signatures.insert((key.to_string(), sig.0), leaf);
            }
            Event::Withdraw(Disclosed::Open(lines)) | Event::Delete(Disclosed::Open(lines)) => {
                self.gone.insert((lines.cache.to_string(), lines.path.to_string()));
            }
            Event::Restore(Disclosed::Open(lines)) => {
                self.gone.remove(&(lines.cache.to_string(), lines.path.to_string()));
            }
            _ => {}
        }
    }
}

/// Why a token is revoked and a path deleted, as far as it is known.
pub(super) const REASON: &str = "as the signature log says";

/// Tokens of one contributor that are killed in one step.
const TOKENS_MAX: i64 = 10_000;

/// What is told of losses: enough to see what happened.
const LOST_MAX: usize = 1000;
