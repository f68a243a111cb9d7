//! The vault's door: opened at start and by hand, sealed by hand, everywhere within a second.
//!
//! A replica is open if and only if it holds the root key and opened the vault at the present seal epoch.
//! Reads and revocations do not pass here. That it holds the present keys is the matter of `rekey::follow`.

mod configured;
mod trial;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

pub use self::configured::Configured;
pub use self::trial::{Fitting, TrialError, Tried, VaultRows};
use super::audit::Act;
use super::rekey::{Behind, KekRotation};
use super::shares::{Gathered, GatheredShares, misplaced};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, Caller};
use crate::db::standing::Standing;
use crate::db::{Connection, DbError, Gate, Tx, cluster, kek_rotations, sealed_rows, vault};
use crate::kms::{Kms, KmsKeyId, KmsSettings};
use crate::time::Timestamp;
use crate::vault::root::UnlockError;
use crate::vault::share::{SharesError, combine};
use crate::vault::{OpenVault, Passphrase, Share, ShareCount, SlotKind, SlotRow, SlotSecret, VaultVersions};

/// What the vault is made and opened with: each of them has a slot, and any one opens it.
#[derive(Debug, Clone, Default)]
pub struct VaultSettings {
    /// 32 random bytes, and nobody else may read them.
    pub key_file: Option<PathBuf>,
    pub passphrase_file: Option<PathBuf>,
    pub kms: KmsSettings,
    /// Where a key file is made at the first start, and looked for later, if nothing is configured.
    pub default_key_file: PathBuf,
}

/// The state of this replica's door.
pub(super) struct Door {
    pub settings: VaultSettings,
    pub kms: Kms,
    /// What KMS said when it did not open the vault, and may later.
    kms_said: Mutex<Option<String>>,
    /// While it is asked again.
    kms_wait: Mutex<Option<KmsWait>>,
    /// The seal epoch at which this replica opened the vault.
    opened_at: AtomicI64,
    /// One opening at a time: each may take a second and 256 MiB. A rotation of the root key holds it, too.
    pub(super) opening: tokio::sync::Mutex<()>,
    pub(super) behind: Behind,
    /// Shares handed in so far.
    pub gathered: Gathered,
}

impl Door {
    pub fn new(settings: VaultSettings) -> Self {
        Self {
            kms: Kms::new(settings.kms.clone()),
            settings,
            kms_said: Mutex::default(),
            kms_wait: Mutex::default(),
            opened_at: AtomicI64::new(NEVER),
            opening: tokio::sync::Mutex::default(),
            behind: Behind::default(),
            gathered: Gathered::default(),
        }
    }

    /// Takes note of what may pass by itself.
    fn note_kms(&self, error: &Error) {
        if let Error::Kms(error) = error
            && error.may_pass()
        {
            *lock(&self.kms_said) = Some(causes(error));
        }
    }

    /// The key to ask for again, if KMS did not open the vault at start, and what it said.
    fn awaited_kms(&self) -> Option<(KmsKeyId, String)> {
        self.settings.kms.key_id.clone().zip(lock(&self.kms_said).clone())
    }

    /// What is asked of KMS again and again, if it is.
    pub fn kms_wait(&self) -> Option<KmsWait> {
        lock(&self.kms_wait).clone()
    }
}

/// KMS is asked again and again until it opens the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsWait {
    /// As the configuration names it.
    pub key: String,
    pub since: Timestamp,
    /// Why it did not open the vault the last time.
    pub said: String,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is tried to open the vault.
pub enum Unseal {
    /// What the configuration names: its files are read again, and its KMS is asked again.
    Configured,
    /// A passphrase that the caller hands in: its own right.
    Passphrase(Passphrase),
}

/// What opens the vault, where somebody has all of it at hand: on the server's host, or beside a backup.
#[derive(Debug)]
pub enum VaultSecret {
    /// Enough shares of one slot, all at once.
    Shares(Vec<Share>),
    Slot(SlotSecret),
}

impl VaultSecret {
    /// What is to be tried on `slots`.
    pub(super) fn into_slot_secret(
        self,
        cluster_id: &str,
        slots: &[SlotRow],
    ) -> std::result::Result<SlotSecret, SharesError> {
        match self {
            Self::Shares(shares) => Ok(SlotSecret::Shamir(combine(cluster_id, slots, &shares)?)),
            Self::Slot(secret) => Ok(secret),
        }
    }
}

impl From<SlotSecret> for VaultSecret {
    fn from(secret: SlotSecret) -> Self {
        Self::Slot(secret)
    }
}

/// A slot as it may be shown.
#[derive(Debug, Clone)]
pub struct Slot {
    pub id: String,
    pub kind: SlotKind,
    /// The ARN of the key of a KMS slot.
    pub kms_key: Option<String>,
    pub created_at: Timestamp,
    /// Of a slot that shares open: how many there are, and how many are needed.
    pub shares: Option<ShareCount>,
}

/// How the vault stands.
#[derive(Debug, Clone)]
pub struct VaultStatus {
    /// On this replica.
    pub open: bool,
    /// Sealed by hand, and so over restarts, on every replica.
    pub sealed_by_hand: bool,
    /// On this replica, while it is sealed because KMS does not open the vault. For administrators.
    pub kms_wait: Option<KmsWait>,
    /// Shares handed in on this replica, for each slot that has some. For administrators; empty for others.
    pub shares: Vec<GatheredShares>,
    /// Which root key the slots wrap, and with which key-encryption key everything new is sealed.
    pub versions: VaultVersions,
    /// Rows that are sealed with an older key-encryption key.
    pub rows_behind: u64,
    /// The newest rotation of the key-encryption key, under way or at its end; `None`: there was none.
    pub kek_rotation: Option<KekRotation>,
    /// For administrators; empty for others.
    pub slots: Vec<Slot>,
}

impl Unseal {
    /// With the passphrase that a caller sent.
    pub fn passphrase(text: &str) -> Result<Self> {
        match Passphrase::parse(text.as_bytes()) {
            Ok(passphrase) => Ok(Self::Passphrase(passphrase)),
            Err(error) => Err(Rejection::value("passphrase", error).into()),
        }
    }
}

impl Service {
    /// How the vault stands: the state for anybody, the slots for administrators.
    pub async fn vault_status(&self, call: &Call) -> Result<VaultStatus> {
        let mut connection = self.inner.db.read().await?;
        let row = cluster::read(&mut connection).await?.ok_or(Error::NotFound("vault"))?;
        let (mut slots, mut shares, mut kms_wait) = (Vec::new(), Vec::new(), None);
        if call.caller.require(&Action::Administer).is_ok() {
            kms_wait = self.kms_wait();
            slots = vault::slots(&mut connection).await?;
            shares = self.inner.door.gathered.shown(row.seal_epoch, self.inner.clock.now());
        }
        let rows_behind = sealed_rows::count_not_under(&mut connection, row.versions.kek).await?;
        Ok(VaultStatus {
            open: self.is_open(),
            sealed_by_hand: row.sealed_by_hand_at.is_some(),
            versions: row.versions,
            rows_behind: u64::try_from(rows_behind).unwrap_or(0),
            kek_rotation: kek_rotations::newest(&mut connection).await?.map(KekRotation::of),
            kms_wait,
            shares,
            slots: slots.into_iter().map(|(slot, created_at)| Slot::of(slot, created_at)).collect(),
        })
    }

    /// What this replica asks of KMS again and again to open the vault, if it does.
    pub fn kms_wait(&self) -> Option<KmsWait> {
        // One that was opened otherwise notices at the next try.
        self.inner.door.kms_wait().filter(|_| !self.is_open())
    }

    /// Seals every replica until somebody unseals it; this one at once, the others within a second.
    pub async fn seal(&self, call: &Call) -> Result<VaultStatus> {
        self.require(call, &Action::Administer, "vault-seal", "").await?;
        let now = self.inner.clock.now();
        // Exclusive: signatures that were begun commit first, later ones find the vault sealed.
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        self.recheck(&mut tx, call, &Action::Administer, now).await?;
        let epoch = cluster::seal(&mut tx, now).await?;
        self.record(&mut tx, call, vec![door_act("vault-seal", json!({ "epoch": epoch }))], now).await?;
        tx.commit().await?;
        self.inner.keyring.lock();
        self.inner.door.gathered.forget_all();
        tracing::warn!(epoch, "sealed by hand; reads and revocations go on");
        self.vault_status(call).await
    }

    /// Opens the vault on this replica, and lets the others open it at their next start.
    pub async fn unseal(&self, call: &Call, with: Unseal) -> Result<VaultStatus> {
        match with {
            Unseal::Configured => {
                self.require(call, &Action::Administer, "vault-unseal", "configured").await?;
                if let Err(error) = self.open_configured(call, Opening::ByHand).await {
                    return Err(self.unseal_refused(call, "configured", error).await);
                }
            }
            Unseal::Passphrase(passphrase) => {
                if call.caller != Caller::Host {
                    self.inner.secret_tries.take(call.origin.address, self.inner.clock.now())?;
                }
                let secret = SlotSecret::Passphrase(passphrase);
                if let Err(error) = self.open_with(call, secret, Opening::ByHand).await {
                    return Err(self.unseal_refused(call, SlotKind::Passphrase.as_str(), error).await);
                }
            }
        }
        self.vault_status(call).await
    }

    /// The rows of this server's vault, for a secret to be tried on. Whoever calls has asked for the right.
    pub async fn vault_rows(&self) -> Result<VaultRows> {
        // As of one moment: slots of one root key do not open key-encryption keys of another.
        let mut snapshot = self.inner.db.begin_snapshot().await?;
        let slots = vault::slots(&mut snapshot).await?.into_iter().map(|(slot, _)| slot).collect();
        let keks = vault::keks(&mut snapshot).await?;
        Ok(VaultRows { cluster_id: self.inner.cluster_id.clone(), slots, keks })
    }

    /// Opens the vault in this process alone, on the server's host: to add a slot to it where no server can be unsealed
    /// any more, as when the tokens of all keepers of shares have run out. A seal by hand stays.
    pub async fn open_on_host(&self, secret: VaultSecret) -> Result<()> {
        let rows = self.vault_rows().await?;
        let secret = secret.into_slot_secret(&rows.cluster_id, &rows.slots).map_err(misplaced)?;
        let (call, kind) = (Call::host(), secret.kind());
        match self.open_with(&call, secret, Opening::OnHost).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.unseal_refused(&call, kind.as_str(), error).await),
        }
    }

    /// Opens the vault at start with what is configured, unless it was sealed by hand. A vault that does not
    /// open leaves the server sealed: reads go on, and an operator can still unseal it.
    pub async fn open_at_start(&self) -> Result<()> {
        let row = cluster::read(&mut *self.inner.db.read().await?).await?;
        if row.is_some_and(|row| row.sealed_by_hand_at.is_some()) {
            tracing::warn!("starts sealed: it was sealed by hand; run `narvault vault unseal`");
            return Ok(());
        }
        match self.open_configured(&Call::host(), Opening::AtStart).await {
            Err(error @ Error::Database(_)) => Err(error),
            Err(error) => {
                tracing::error!(error = causes(&error), "starts sealed: the vault does not open");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Tries the secret on the slots; takes note of the epoch first, so that a seal in between wins.
    pub(super) async fn open_with(&self, call: &Call, secret: SlotSecret, opening: Opening) -> Result<()> {
        let _one_at_a_time = self.inner.door.opening.lock().await;
        let (row, slots, keks) = {
            // As of one moment: slots of one root key do not open key-encryption keys of another.
            let mut snapshot = self.inner.db.begin_snapshot().await?;
            let row = cluster::read(&mut snapshot).await?.ok_or(Error::NotFound("vault"))?;
            let by_itself = matches!(opening, Opening::AtStart | Opening::InBackground);
            if by_itself && row.sealed_by_hand_at.is_some() {
                return Err(Conflict::State("the vault was sealed by hand").into());
            }
            if opening == Opening::InBackground && self.is_open() {
                return Ok(());
            }
            (row, vault::slots(&mut snapshot).await?, vault::keks(&mut snapshot).await?)
        };
        let slots: Vec<_> = slots.into_iter().map(|(slot, _)| slot).collect();
        let cluster_id = row.cluster_id.clone();
        let tried = tokio::task::spawn_blocking(move || OpenVault::open(&cluster_id, &slots, &keks, &secret));
        let opened = match tried.await.map_err(|panic| Error::Internal(panic.into()))? {
            Ok(vault) => vault.of_root_version(row.versions.root),
            Err(error) => return Err(unlock_failed(error)),
        };
        let slot_id = opened.opened_by().to_owned();
        if opening == Opening::ByHand {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            // Whoever unseals with a token needs it alive now, not a moment ago.
            self.recheck_live(&mut tx, call, now).await?;
            cluster::clear_manual(&mut tx, row.seal_epoch).await.map_err(|error| match error {
                DbError::Changed { .. } => Conflict::State("the vault was sealed in the meantime").into(),
                other => Error::from(other),
            })?;
            let detail = json!({ "epoch": row.seal_epoch, "slot": slot_id });
            self.record(&mut tx, call, vec![door_act("vault-unseal", detail)], now).await?;
            tx.commit().await?;
        }
        self.adopt_vault(opened, row.seal_epoch);
        self.inner.door.gathered.forget_all();
        // A seal that came since is seen here or by the next poll.
        self.follow_seal_epoch().await?;
        tracing::info!(slot.id = slot_id, "the vault is open");
        Ok(())
    }

    /// Writes a secret that opens nothing down as a denial, and hands the error back.
    pub(super) async fn unseal_refused(&self, call: &Call, subject: &str, error: Error) -> Error {
        match error {
            Error::Rejected(_) => self.denied(call, "vault-unseal", subject, error).await,
            other => other,
        }
    }

    /// Takes in a vault that was just made or opened, at the present epoch.
    pub(super) fn adopt_vault(&self, opened: OpenVault, seal_epoch: i64) {
        self.inner.door.behind.ends();
        self.inner.door.opened_at.store(seal_epoch, Ordering::Release);
        self.inner.keyring.unlock(opened);
    }

    /// Seals this replica if the vault was sealed since it opened it.
    pub(super) async fn follow_seal_epoch(&self) -> Result<()> {
        if !self.is_open() {
            return Ok(());
        }
        self.follow_seal_epoch_on(&mut *self.inner.db.read().await?).await
    }

    /// Refuses where the vault is sealed. Whatever uses a key asks this behind the gate: once a seal call has
    /// answered, no replica signs, mints or makes a key. And until the commit no row is sealed with a key-encryption key
    /// that this replica has not learnt.
    pub(super) async fn recheck_open(&self, tx: &mut Tx) -> Result<()> {
        let row = cluster::read(tx).await?;
        self.follow_seal_epoch_of(row.as_ref().map(|row| row.seal_epoch));
        self.require_open()?;
        self.learn_keks(tx, row.map(|row| row.versions)).await
    }

    async fn follow_seal_epoch_on(&self, connection: &mut Connection) -> Result<()> {
        let present = cluster::read(connection).await?.map(|row| row.seal_epoch);
        self.follow_seal_epoch_of(present);
        Ok(())
    }

    /// Seals this replica unless it was opened at the `present` seal epoch.
    pub(super) fn follow_seal_epoch_of(&self, present: Option<i64>) {
        if present != Some(self.inner.door.opened_at.load(Ordering::Acquire)) {
            self.inner.keyring.lock();
            self.inner.door.gathered.forget_all();
            tracing::warn!("sealed: somebody sealed the vault by hand");
        }
    }

    /// The same as [`Service::recheck_open`] for a transaction of a push, which has read all that it rests on at once.
    pub(super) async fn recheck_open_in(&self, tx: &mut Tx, standing: &Standing) -> Result<()> {
        self.follow_seal_epoch_of(standing.seal_epoch);
        self.require_open()?;
        self.learn_keks(tx, standing.versions).await
    }

    /// Follows the seal epoch, and the keys that took the places of others, until the end.
    pub(super) async fn seal_poller(self) {
        loop {
            if let Err(error) = self.follow_vault().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "seal epoch not read");
            }
            self.forget_stale_shares().await;
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(SEAL_PAUSE) => {}
            }
        }
    }
}

/// Whether somebody asked for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    AtStart,
    ByHand,
    /// By this server itself, while it serves.
    InBackground,
    /// For the work of one command, which no server hears of.
    OnHost,
}

fn unlock_failed(error: UnlockError) -> Error {
    match error {
        UnlockError::NoSlot { .. } | UnlockError::WrongSecret { .. } => {
            Rejection::value("vault", error).into()
        }
        other => Error::Internal(other.into()),
    }
}

pub(super) fn door_act<'a>(action: &'static str, detail: serde_json::Value) -> Act<'a> {
    Act { action, subject: "vault".to_owned(), detail, cache: None, event: None }
}

/// An error with its causes, on one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// No epoch in the database is negative.
const NEVER: i64 = -1;

/// Two reads fit into the second in which every replica is sealed.
const SEAL_PAUSE: Duration = Duration::from_millis(400);
