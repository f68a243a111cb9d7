//! How a replica keeps up with keys of the vault that others have changed.
//!
//! | what came | who notices | what this replica does |
//! |---|---|---|
//! | a KEK | every transaction behind the gate, at once; the poller, within half a second | opens it with the root key |
//! | another root key | the same | goes on with the KEKs it has; the poller opens the vault anew, or seals |
//! | the end of a KEK | the poller | wipes it a minute later |
//!
//! Never wraps or seals with what is not the newest: [`Service::seal_new`] and [`Service::recheck_root`] look behind the
//! gate.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::OTHER_ROOT;
use crate::db::{Connection, Tx, cluster, vault};
use crate::service::vault::{Opening, causes};
use crate::service::{Call, Error, Result, Service};
use crate::threads::in_place;
use crate::vault::{OpenVault, VaultError, VaultVersions};

/// What this replica has not caught up with.
#[derive(Default)]
pub(in crate::service) struct Behind {
    /// Another root key than the one that this replica holds wraps the slots.
    root: AtomicBool,
    /// KEKs that are retired and still in memory, each with the moment at which that was noticed.
    retired: Mutex<HashMap<u32, Instant>>,
}

impl Behind {
    /// The vault was opened as it is now.
    pub fn ends(&self) {
        self.root.store(false, Ordering::Release);
    }
}

impl Service {
    /// Whether this replica holds a root key that was rotated since, until the poller has opened the vault anew.
    pub(in crate::service) fn is_behind(&self) -> bool {
        self.inner.door.behind.root.load(Ordering::Acquire)
    }

    /// Takes in the KEKs that came since. `connection` sees rows as of one moment: behind the gate, or in a snapshot.
    pub(in crate::service) async fn learn_keks(
        &self,
        connection: &mut Connection,
        present: Option<VaultVersions>,
    ) -> Result<()> {
        let (Some(held), Some(present)) = (self.inner.keyring.versions(), present) else { return Ok(()) };
        let behind = &self.inner.door.behind;
        if held == present {
            behind.ends();
            return Ok(());
        }
        if held.root != present.root || held.kek > present.kek {
            behind.root.store(true, Ordering::Release);
            return Ok(());
        }
        let rows = vault::keks(connection).await?;
        match in_place(|| self.inner.keyring.learn_keks(present.root, &rows)) {
            // On this replica itself it was rotated in between.
            Ok(()) | Err(VaultError::OtherRoot) => Ok(()),
            Err(error) => Err(self.key_error(error)),
        }
    }

    /// The same for work that passes no gate: what a row that was read before is sealed with, is known afterwards.
    pub(in crate::service) async fn catch_up_keks(&self) -> Result<()> {
        let mut snapshot = self.inner.db.begin_snapshot().await?;
        let row = cluster::read(&mut snapshot).await?;
        self.learn_keks(&mut snapshot, row.map(|row| row.versions)).await
    }

    /// Seals something new with the newest KEK, of which this transaction is sure until its commit.
    pub(in crate::service) async fn seal_new<T>(
        &self,
        tx: &mut Tx,
        work: impl FnOnce(&OpenVault) -> std::result::Result<T, VaultError>,
    ) -> Result<T> {
        let present = cluster::read(tx).await?.ok_or(Error::NotFound("vault"))?.versions;
        self.learn_keks(tx, Some(present)).await?;
        let sealed = self.inner.keyring.with_vault(|vault| match vault.versions().kek {
            newest if newest == present.kek => work(vault),
            // Until the vault is open anew: a second at most.
            _ => Err(VaultError::Sealed),
        });
        sealed.map_err(|error| self.key_error(error))
    }

    /// Refuses where another root key than this wraps the slots by now.
    pub(in crate::service) async fn recheck_root(&self, tx: &mut Tx, root_version: i64) -> Result<()> {
        match cluster::read(tx).await? {
            Some(row) if row.versions.root == root_version => Ok(()),
            _ => Err(OTHER_ROOT.into()),
        }
    }

    /// What the vault's refusal means to a caller.
    pub(in crate::service) fn key_error(&self, error: VaultError) -> Error {
        if self.waits_for_vault(&error) { Error::Sealed } else { Error::Vault(error) }
    }

    /// Whether the same will do once the vault is open, or open anew.
    pub(in crate::service) fn waits_for_vault(&self, error: &VaultError) -> bool {
        match error {
            VaultError::Sealed => true,
            // It opens by the root key that this replica is about to take in.
            VaultError::UnknownKek { .. } => self.is_behind(),
            _ => false,
        }
    }

    /// Seals this replica if the vault was sealed since it opened it, and catches up with whatever else came.
    pub(in crate::service) async fn follow_vault(&self) -> Result<()> {
        if !self.is_open() {
            return Ok(());
        }
        let mut snapshot = self.inner.db.begin_snapshot().await?;
        let row = cluster::read(&mut snapshot).await?;
        self.follow_seal_epoch_of(row.as_ref().map(|row| row.seal_epoch));
        self.learn_keks(&mut snapshot, row.map(|row| row.versions)).await?;
        self.forget_retired(&mut snapshot, RETIRED_KEPT).await?;
        drop(snapshot);
        if self.is_behind() { self.open_anew().await } else { Ok(()) }
    }

    /// Opens the vault by the root key that took the place of the one that this replica holds. Where what is configured
    /// does not do that, it is sealed, and says so; for KMS that is away it waits, as after a start.
    async fn open_anew(&self) -> Result<()> {
        if self.has_followed().await? {
            return Ok(());
        }
        match self.open_configured(&Call::host(), Opening::AtStart).await {
            Ok(()) => Ok(()),
            // At the next look.
            Err(error @ Error::Database(_)) => Err(error),
            // Somebody has opened it by hand meanwhile.
            Err(_) if self.has_followed().await? => Ok(()),
            Err(error) => {
                self.inner.keyring.lock();
                self.inner.door.behind.ends();
                tracing::error!(
                    error = causes(&error),
                    "sealed: the vault's root key was rotated, and what is configured here does not open it; \
                     run `narvault vault unseal`"
                );
                self.spawn(self.clone().kms_waiter());
                Ok(())
            }
        }
    }

    /// Whether this replica holds the present keys, or none: somebody was quicker, or it was this replica that rotated
    /// the root key.
    async fn has_followed(&self) -> Result<bool> {
        let _one_at_a_time = self.inner.door.opening.lock().await;
        let present = cluster::read(&mut *self.inner.db.read().await?).await?.map(|row| row.versions);
        let held = self.inner.keyring.versions();
        let has_followed = held.is_none() || held == present;
        if has_followed {
            self.inner.door.behind.ends();
        }
        Ok(has_followed)
    }

    /// Wipes KEKs that were retired at least `kept` ago.
    pub(super) async fn forget_retired(&self, connection: &mut Connection, kept: Duration) -> Result<()> {
        let held = self.inner.keyring.kek_versions();
        if held.len() < 2 {
            return Ok(());
        }
        let live: Vec<u32> = vault::keks(connection).await?.iter().map(|kek| kek.version).collect();
        let now = Instant::now();
        let due: Vec<u32> = {
            let retired = &self.inner.door.behind.retired;
            let mut retired = retired.lock().unwrap_or_else(PoisonError::into_inner);
            retired.retain(|version, _| held.contains(version) && !live.contains(version));
            for version in held.into_iter().filter(|version| !live.contains(version)) {
                retired.entry(version).or_insert(now);
            }
            let is_due = |since: &Instant| now.duration_since(*since) >= kept;
            retired.iter().filter(|(_, since)| is_due(since)).map(|(version, _)| *version).collect()
        };
        if !due.is_empty() {
            self.inner.keyring.forget_keks(&due);
        }
        Ok(())
    }
}

/// How long a KEK stays in memory after its end: whoever read a row before, and uses it without the gate, is through by
/// then.
const RETIRED_KEPT: Duration = Duration::from_secs(60);
