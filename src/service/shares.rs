//! Shares of a slot key, handed in one at a time by different administrators until they are enough to open the vault.
//!
//! Never stored and never told: they lie in locked memory of this replica, for 15 minutes from the first one. Nothing
//! that a stranger does takes one away: a reset that anybody could ask for was a denial of service in OpenBao
//! (CVE-2025-52894).

use std::sync::{Mutex, MutexGuard, PoisonError};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::audit::Act;
use super::vault::{Opening, VaultStatus};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, ContributorId, TokenCaller, TokenId};
use crate::db::{Gate, Tx, cluster, tokens, vault};
use crate::time::Timestamp;
use crate::vault::share::{ParseShareError, SharesError, combine};
use crate::vault::{Share, ShareCount, SlotKind, SlotRow, SlotSecret, VaultError};

/// The shares that this replica holds. Bounded: a set for each slot of the vault, of which there are 16 at most, and in
/// each fewer shares than open the slot.
#[derive(Default)]
pub(super) struct Gathered {
    sets: Mutex<Vec<Set>>,
    /// One share at a time, so that the one that completes a set is one.
    handing_in: tokio::sync::Mutex<()>,
}

/// Shares of one slot.
struct Set {
    slot: SlotRow,
    count: ShareCount,
    /// The seal epoch in which they were handed in: a seal ends it.
    epoch: i64,
    until: Timestamp,
    pieces: Vec<Piece>,
}

struct Piece {
    share: Share,
    by: ContributorId,
    token: TokenId,
    shown: HandedIn,
}

/// Who handed in a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedIn {
    /// The contributor's name.
    pub contributor: String,
    pub at: Timestamp,
}

/// How far a slot is from being opened. Never a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatheredShares {
    pub slot_id: String,
    pub count: ShareCount,
    /// Fewer than the threshold, in the order in which they came.
    pub handed_in: Vec<HandedIn>,
    /// When they are forgotten.
    pub until: Timestamp,
}

impl Gathered {
    fn sets(&self) -> MutexGuard<'_, Vec<Set>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wipes all of them: the vault is open, or was sealed.
    pub fn forget_all(&self) {
        self.sets().clear();
    }

    /// Wipes those of a slot that is gone.
    pub fn forget_slot(&self, id: &str) {
        self.sets().retain(|set| set.slot.id != id);
    }

    /// What may be shown of those that count in this seal epoch.
    pub fn shown(&self, epoch: i64, now: Timestamp) -> Vec<GatheredShares> {
        let sets = self.sets();
        let counting = sets.iter().filter(|set| set.counts(epoch, now));
        let shown = counting.map(|set| GatheredShares {
            slot_id: set.slot.id.clone(),
            count: set.count,
            handed_in: set.pieces.iter().map(|piece| piece.shown.clone()).collect(),
            until: set.until,
        });
        shown.collect()
    }

    /// Refuses a share that was handed in already, or whose holder has handed in another one. Answers with how many
    /// there are before it.
    fn check(&self, slot: &SlotRow, share: &Share, by: ContributorId) -> Result<usize> {
        let sets = self.sets();
        let Some(set) = sets.iter().find(|set| set.slot.id == slot.id) else { return Ok(0) };
        if set.pieces.iter().any(|piece| piece.share.is_number_of(share)) {
            return Err(Conflict::State(SAME_SHARE).into());
        }
        if set.pieces.iter().any(|piece| piece.by == by) {
            return Err(Conflict::State(SAME_HOLDER).into());
        }
        Ok(set.pieces.len())
    }

    /// Keeps a share that was checked. The whole set, if that completes it: then nothing of it stays here.
    fn add(&self, slot: SlotRow, epoch: i64, piece: Piece) -> Option<Set> {
        let (mut sets, count, at) = (self.sets(), piece.share.count(), piece.shown.at);
        let index = sets.iter().position(|set| set.slot.id == slot.id).unwrap_or_else(|| {
            let until = at.plus_seconds(i64::from(SHARES_MINUTES) * 60);
            sets.push(Set { slot, count, epoch, until, pieces: Vec::new() });
            sets.len() - 1
        });
        sets[index].pieces.push(piece);
        (sets[index].pieces.len() >= usize::from(count.threshold())).then(|| sets.swap_remove(index))
    }
}

impl Set {
    fn counts(&self, epoch: i64, now: Timestamp) -> bool {
        self.epoch == epoch && now < self.until
    }
}

impl Service {
    /// Takes a share in, from the holder of an administrator's token; with the last one that is needed, opens the vault
    /// on this replica.
    pub async fn hand_in_share(&self, call: &Call, text: &SecretString) -> Result<VaultStatus> {
        self.require(call, &Action::Administer, SHARE, "").await?;
        // It has to be told from those of others whose share it is.
        let by =
            call.caller.token().ok_or(Error::Unauthenticated("a share needs an administrator's token"))?;
        self.inner.secret_tries.take(call.origin.address, self.inner.clock.now())?;
        let _one_at_a_time = self.inner.door.gathered.handing_in.lock().await;
        let complete = match self.add_share(call, by, text).await {
            Err(refused @ (Error::Conflict(_) | Error::Rejected(_))) => {
                return Err(self.denied(call, SHARE, "", refused).await);
            }
            added => added?,
        };
        if let Some(set) = complete {
            self.open_with_set(call, set).await?;
        }
        self.vault_status(call).await
    }

    /// Wipes what was handed in on this replica, on the word of an administrator.
    pub async fn cancel_shares(&self, call: &Call) -> Result<VaultStatus> {
        self.require(call, &Action::Administer, CANCEL, "").await?;
        let _one_at_a_time = self.inner.door.gathered.handing_in.lock().await;
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        self.recheck(&mut tx, call, &Action::Administer, now).await?;
        let row = cluster::read(&mut tx).await?.ok_or(Error::NotFound("vault"))?;
        let acts: Vec<_> = self
            .inner
            .door
            .gathered
            .shown(row.seal_epoch, now)
            .into_iter()
            .map(|set| share_act(CANCEL, set.slot_id, json!({ "shares": set.handed_in.len() })))
            .collect();
        self.record(&mut tx, call, acts, now).await?;
        tx.commit().await?;
        self.inner.door.gathered.forget_all();
        self.vault_status(call).await
    }

    /// Keeps a share, once its audit row is written. The whole set, if it is complete.
    async fn add_share(&self, call: &Call, by: &TokenCaller, text: &SecretString) -> Result<Option<Set>> {
        self.follow_seal_epoch().await?;
        if self.is_open() {
            return Err(Conflict::State(OPEN).into());
        }
        let share = Share::parse(text.expose_secret()).map_err(unreadable)?;
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        self.recheck(&mut tx, call, &Action::Administer, now).await?;
        let row = cluster::read(&mut tx).await?.ok_or(Error::NotFound("vault"))?;
        let slots: Vec<_> = vault::slots(&mut tx).await?.into_iter().map(|(slot, _)| slot).collect();
        let slot = share.slot(&row.cluster_id, &slots).map_err(misplaced)?.clone();
        self.drop_stale(&mut tx, row.seal_epoch, now).await?;
        let before = self.inner.door.gathered.check(&slot, &share, by.contributor)?;
        let live = tokens::live(&mut tx, by.token, now).await?;
        let contributor = live.map(|live| live.contributor_name.to_string()).unwrap_or_default();
        let (have, count) = (before + 1, share.count());
        let detail = json!({ "share": share.number(), "have": have, "threshold": count.threshold(), "of": count.of() });
        self.record(&mut tx, call, vec![share_act(SHARE, slot.id.clone(), detail)], now).await?;
        tx.commit().await?;
        tracing::info!(slot.id = slot.id, have, threshold = count.threshold(), "a share was handed in");
        let shown = HandedIn { contributor, at: now };
        let piece = Piece { share, by: by.contributor, token: by.token, shown };
        Ok(self.inner.door.gathered.add(slot, row.seal_epoch, piece))
    }

    /// Wipes what does not count any more: too old, of another seal epoch, or of a holder whose token was revoked since.
    async fn drop_stale(&self, tx: &mut Tx, epoch: i64, now: Timestamp) -> Result<()> {
        let gathered = &self.inner.door.gathered;
        gathered.sets().retain(|set| set.counts(epoch, now));
        let held: Vec<TokenId> =
            gathered.sets().iter().flat_map(|set| set.pieces.iter().map(|piece| piece.token)).collect();
        let mut dead = Vec::new();
        for token in held {
            if tokens::live(tx, token, now).await?.is_none() {
                dead.push(token);
            }
        }
        let mut sets = gathered.sets();
        for set in sets.iter_mut() {
            set.pieces.retain(|piece| !dead.contains(&piece.token));
        }
        sets.retain(|set| !set.pieces.is_empty());
        Ok(())
    }

    /// Opens the vault with a set that is complete. What does not open it is dropped; where only the database failed, all
    /// but the last share stay, which its holder hands in again.
    async fn open_with_set(&self, call: &Call, mut set: Set) -> Result<()> {
        let shares = set.pieces.iter().map(|piece| &piece.share);
        let combined = combine(&self.inner.cluster_id, std::slice::from_ref(&set.slot), shares);
        let key = combined.map_err(misplaced)?;
        match self.open_with(call, SlotSecret::Shamir(key), Opening::ByHand).await {
            Ok(()) => Ok(()),
            Err(error @ Error::Rejected(_)) => {
                self.unseal_refused(call, SlotKind::Shamir.as_str(), error).await;
                Err(Rejection::value("share", NOT_GENUINE).into())
            }
            Err(error @ Error::Conflict(_)) => Err(error),
            Err(error) => {
                set.pieces.pop();
                self.inner.door.gathered.sets().push(set);
                Err(error)
            }
        }
    }

    /// Wipes what does not count any more, also where nobody asks for it.
    pub(super) async fn forget_stale_shares(&self) {
        let gathered = &self.inner.door.gathered;
        if gathered.sets().is_empty() {
            return;
        }
        if self.is_open() {
            // One that came in while another secret opened the vault.
            gathered.forget_all();
            return;
        }
        let now = self.inner.clock.now();
        gathered.sets().retain(|set| now < set.until);
        let read = async { cluster::read(&mut *self.inner.db.read().await?).await };
        match read.await {
            Ok(row) => {
                gathered.sets().retain(|set| row.as_ref().is_some_and(|row| row.seal_epoch == set.epoch))
            }
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "seal epoch not read"),
        }
    }
}

fn share_act<'a>(action: &'static str, slot_id: String, detail: serde_json::Value) -> Act<'a> {
    Act { action, subject: slot_id, detail, cache: None, event: None }
}

fn unreadable(error: ParseShareError) -> Error {
    match error {
        ParseShareError::Memory(error) => VaultError::from(error).into(),
        error => Rejection::value("share", error).into(),
    }
}

pub(super) fn misplaced(error: SharesError) -> Error {
    match error {
        SharesError::Memory(error) => VaultError::from(error).into(),
        error => Rejection::value("share", error).into(),
    }
}

/// How long shares are kept after the first one of their slot, in minutes.
pub const SHARES_MINUTES: u8 = 15;

const SHARE: &str = "vault-share";
const CANCEL: &str = "vault-share-cancel";

const OPEN: &str = "the vault is open here: no share is needed, and this one was not kept";
const SAME_SHARE: &str = "this share was handed in already";
const SAME_HOLDER: &str = "you have handed in a share already; each share comes from another administrator, with a token of their own";
const NOT_GENUINE: &str = "what the shares make opens no slot: one of them is not genuine. All of them were dropped; \
     hand them in again. `narvault audit list --action vault-share` says who brought which";

#[cfg(test)]
mod tests;
