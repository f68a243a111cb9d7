//! The vault's door: opened at start and by hand, sealed by hand, everywhere within a second.
//!
//! A replica is open if and only if it holds the root key and opened the vault at the present seal epoch.
//! Reads and revocations do not pass here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::audit::Act;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, Caller};
use crate::db::standing::Standing;
use crate::db::{Connection, DbError, Gate, Tx, cluster, vault};
use crate::time::Timestamp;
use crate::vault::key_file::KeyFileError;
use crate::vault::passphrase::PassphraseError;
use crate::vault::root::UnlockError;
use crate::vault::{KeyFile, OpenVault, Passphrase, SlotKind, SlotSecret};

/// What the vault is made and opened with.
#[derive(Debug, Clone, Default)]
pub struct VaultSettings {
    /// 32 random bytes, and nobody else may read them.
    pub key_file: Option<PathBuf>,
    pub passphrase_file: Option<PathBuf>,
    /// Where a key file is made at the first start, and looked for later, if neither is configured.
    pub default_key_file: PathBuf,
}

/// The state of this replica's door.
pub(super) struct Door {
    pub settings: VaultSettings,
    /// The seal epoch at which this replica opened the vault.
    opened_at: AtomicI64,
    /// One opening at a time: each may take a second and 256 MiB.
    opening: tokio::sync::Mutex<()>,
}

impl Door {
    pub fn new(settings: VaultSettings) -> Self {
        Self { settings, opened_at: AtomicI64::new(NEVER), opening: tokio::sync::Mutex::default() }
    }
}

/// What is tried to open the vault.
pub enum Unseal {
    /// The key file or passphrase file of the configuration, read again.
    Configured,
    /// A passphrase that the caller hands in: its own right.
    Passphrase(Passphrase),
}

/// A slot as it may be shown.
#[derive(Debug, Clone)]
pub struct Slot {
    pub id: String,
    pub kind: SlotKind,
    pub created_at: Timestamp,
}

/// How the vault stands.
#[derive(Debug, Clone)]
pub struct VaultStatus {
    /// On this replica.
    pub open: bool,
    /// Sealed by hand, and so over restarts, on every replica.
    pub sealed_by_hand: bool,
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
        let slots = if call.caller.require(&Action::Administer).is_ok() {
            vault::slots(&mut connection).await?
        } else {
            Vec::new()
        };
        let shown =
            slots.into_iter().map(|(slot, created_at)| Slot { id: slot.id, kind: slot.kind, created_at });
        Ok(VaultStatus {
            open: self.is_open(),
            sealed_by_hand: row.sealed_by_hand_at.is_some(),
            slots: shown.collect(),
        })
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
        tracing::warn!(epoch, "sealed by hand; reads and revocations go on");
        self.vault_status(call).await
    }

    /// Opens the vault on this replica, and lets the others open it at their next start.
    pub async fn unseal(&self, call: &Call, with: Unseal) -> Result<VaultStatus> {
        match with {
            Unseal::Configured => {
                self.require(call, &Action::Administer, "vault-unseal", "configured").await?;
                let secret = self.configured_secret().await;
                let secret = secret.map_err(|error| Rejection::value("vault", causes(&error)))?;
                self.open_with(call, secret, Opening::ByHand).await?;
            }
            Unseal::Passphrase(passphrase) => {
                if call.caller != Caller::Host {
                    self.inner.secret_tries.take(call.origin.address, self.inner.clock.now())?;
                }
                self.open_with(call, SlotSecret::Passphrase(passphrase), Opening::ByHand).await?;
            }
        }
        self.vault_status(call).await
    }

    /// Opens the vault at start with what is configured, unless it was sealed by hand. A vault that does not
    /// open leaves the server sealed: reads go on, and an operator can still unseal it.
    pub async fn open_at_start(&self) -> Result<()> {
        let row = cluster::read(&mut *self.inner.db.read().await?).await?;
        if row.is_some_and(|row| row.sealed_by_hand_at.is_some()) {
            tracing::warn!("starts sealed: it was sealed by hand; run `narvault vault unseal`");
            return Ok(());
        }
        let secret = match self.configured_secret().await {
            Ok(secret) => secret,
            Err(error) => {
                tracing::error!(error = causes(&error), "starts sealed: no key to the vault");
                return Ok(());
            }
        };
        match self.open_with(&Call::host(), secret, Opening::AtStart).await {
            Err(error @ Error::Database(_)) => Err(error),
            Err(error) => {
                tracing::error!(error = causes(&error), "starts sealed: the vault does not open");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Tries the secret on the slots; takes note of the epoch first, so that a seal in between wins.
    async fn open_with(&self, call: &Call, secret: SlotSecret, opening: Opening) -> Result<()> {
        let _one_at_a_time = self.inner.door.opening.lock().await;
        let (row, slots, keks) = {
            let mut connection = self.inner.db.read().await?;
            let row = cluster::read(&mut connection).await?.ok_or(Error::NotFound("vault"))?;
            if opening == Opening::AtStart && row.sealed_by_hand_at.is_some() {
                return Err(Conflict::State("the vault was sealed by hand").into());
            }
            (row, vault::slots(&mut connection).await?, vault::keks(&mut connection).await?)
        };
        let slots: Vec<_> = slots.into_iter().map(|(slot, _)| slot).collect();
        let kind = secret.kind();
        let tried =
            tokio::task::spawn_blocking(move || OpenVault::open(&row.cluster_id, &slots, &keks, &secret));
        let opened = match tried.await.map_err(|panic| Error::Internal(panic.into()))? {
            Ok(vault) => vault,
            Err(error) => return Err(self.unlock_failed(call, kind, error, opening).await),
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
        self.inner.door.opened_at.store(row.seal_epoch, Ordering::Release);
        self.inner.keyring.unlock(opened);
        // A seal that came since is seen here or by the next poll.
        self.follow_seal_epoch().await?;
        tracing::info!(slot.id = slot_id, "the vault is open");
        Ok(())
    }

    async fn unlock_failed(
        &self,
        call: &Call,
        kind: SlotKind,
        error: UnlockError,
        opening: Opening,
    ) -> Error {
        match error {
            UnlockError::NoSlot { .. } | UnlockError::WrongSecret { .. } => {
                let refused = Rejection::value("vault", error).into();
                match opening {
                    Opening::ByHand => self.denied(call, "vault-unseal", kind.as_str(), refused).await,
                    Opening::AtStart => refused,
                }
            }
            other => Error::Internal(other.into()),
        }
    }

    /// What the configuration says opens the vault, read from its file now.
    async fn configured_secret(&self) -> std::result::Result<SlotSecret, SecretError> {
        let settings = self.inner.door.settings.clone();
        let read = move || match (settings.key_file, settings.passphrase_file) {
            (Some(path), _) => Ok(SlotSecret::KeyFile(KeyFile::read(&path)?)),
            (None, Some(path)) => Ok(SlotSecret::Passphrase(Passphrase::read_file(&path)?)),
            (None, None) => Ok(SlotSecret::KeyFile(KeyFile::read(&settings.default_key_file)?)),
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|panic| Err(SecretError::Panic(panic)))
    }

    /// Takes in a vault that was just made, at the present epoch.
    pub(super) fn adopt_vault(&self, opened: OpenVault, seal_epoch: i64) {
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
    /// answered, no replica signs, mints or makes a key.
    pub(super) async fn recheck_open(&self, tx: &mut Tx) -> Result<()> {
        self.follow_seal_epoch_on(tx).await?;
        self.require_open()
    }

    async fn follow_seal_epoch_on(&self, connection: &mut Connection) -> Result<()> {
        let present = cluster::read(connection).await?.map(|row| row.seal_epoch);
        self.follow_seal_epoch_of(present);
        Ok(())
    }

    /// Seals this replica unless it was opened at the `present` seal epoch.
    fn follow_seal_epoch_of(&self, present: Option<i64>) {
        if present != Some(self.inner.door.opened_at.load(Ordering::Acquire)) {
            self.inner.keyring.lock();
            tracing::warn!("sealed: somebody sealed the vault by hand");
        }
    }

    /// The same as [`Service::recheck_open`] for a transaction of a push, which has read all that it rests on at once.
    pub(super) fn recheck_open_in(&self, standing: &Standing) -> Result<()> {
        self.follow_seal_epoch_of(standing.seal_epoch);
        self.require_open()
    }

    /// Follows the seal epoch until the end.
    pub(super) async fn seal_poller(self) {
        loop {
            if let Err(error) = self.follow_seal_epoch().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "seal epoch not read");
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(SEAL_PAUSE) => {}
            }
        }
    }
}

/// Whether somebody asked for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    AtStart,
    ByHand,
}

/// Why the configured secret could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    #[error("reading the secret broke off")]
    Panic(#[source] tokio::task::JoinError),
}

fn door_act<'a>(action: &'static str, detail: serde_json::Value) -> Act<'a> {
    Act { action, subject: "vault".to_owned(), detail, cache: None, event: None }
}

/// An error with its causes, on one line.
fn causes(error: &dyn std::error::Error) -> String {
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
