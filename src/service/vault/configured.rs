//! What the configuration says opens the vault: files that are read anew each time, and a key in KMS.
//!
//! Never waits for KMS at start for long: reads need no key, and the work in the background asks again.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::trial::{TrialError, kms_secret};
use super::{KmsWait, Opening, VaultSettings, causes, lock, unlock_failed};
use crate::db::{cluster, vault};
use crate::kms::{CALL_MAX, KmsError, KmsKeyId};
use crate::service::{Call, Error, Rejection, Result, Service};
use crate::time::Timestamp;
use crate::vault::share::SplitParams;
use crate::vault::{KmsParams, SlotKind, SlotRow, SlotSecret, random};

/// One thing that opens the vault, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configured {
    KeyFile(PathBuf),
    Kms(KmsKeyId),
    PassphraseFile(PathBuf),
}

impl VaultSettings {
    /// All that is configured, in the order in which it is tried: what lies on this machine first.
    pub fn configured(&self) -> Vec<Configured> {
        let key_file = self.key_file.clone().map(Configured::KeyFile);
        let passphrase_file = self.passphrase_file.clone().map(Configured::PassphraseFile);
        let kms = self.kms.key_id.clone().map(Configured::Kms);
        let named: Vec<_> = [key_file, passphrase_file, kms].into_iter().flatten().collect();
        if named.is_empty() { vec![Configured::KeyFile(self.default_key_file.clone())] } else { named }
    }
}

impl Service {
    /// Opens the vault with the first of what is configured that does. Where nothing does, each is told.
    pub(in crate::service) async fn open_configured(&self, call: &Call, opening: Opening) -> Result<()> {
        let mut refusals = Vec::new();
        for configured in self.inner.door.settings.configured() {
            let opened = match configured {
                Configured::Kms(key) => self.open_by_kms(call, &key, opening).await,
                file => self.open_by_file(call, file, opening).await,
            };
            match opened {
                Ok(()) => return Ok(()),
                Err(error) if ends_it(&error) => return Err(error),
                Err(error) => {
                    self.inner.door.note_kms(&error);
                    refusals.push(error);
                }
            }
        }
        match refusals.len() {
            1 => Err(refusals.remove(0)),
            _ => {
                let told: Vec<String> = refusals.iter().map(|error| causes(error)).collect();
                Err(Rejection::value("vault", told.join("; ")).into())
            }
        }
    }

    /// All that is configured and can be had now, for these slots; what cannot is passed over.
    pub(in crate::service) async fn configured_secrets(&self, slots: &[SlotRow]) -> Vec<SlotSecret> {
        let mut secrets = Vec::new();
        for configured in self.inner.door.settings.configured() {
            if let Configured::Kms(key) = &configured {
                for slot in slots {
                    let (kms, cluster_id) = (&self.inner.door.kms, &self.inner.cluster_id);
                    let secret = kms_secret(kms, key, cluster_id, slot, CALL_MAX).await;
                    secrets.extend(secret.ok().flatten().map(SlotSecret::Kms));
                }
                continue;
            }
            let read = tokio::task::spawn_blocking(move || configured.read()).await;
            secrets.extend(read.ok().and_then(|read| read.ok()));
        }
        secrets
    }

    async fn open_by_file(&self, call: &Call, file: Configured, opening: Opening) -> Result<()> {
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        let secret = read.unwrap_or_else(|panic| Err(panic.into()))?;
        self.open_with(call, secret, opening).await
    }

    /// Opens the vault by a slot of this key, if there is one.
    async fn open_by_kms(&self, call: &Call, key: &KmsKeyId, opening: Opening) -> Result<()> {
        let slots = vault::slots(&mut *self.inner.db.read().await?).await?;
        let limit = if opening == Opening::AtStart { AT_START_MAX } else { CALL_MAX };
        let mut refusal = TrialError::NoKmsSlot(key.clone()).into();
        for (slot, _) in &slots {
            let secret = kms_secret(&self.inner.door.kms, key, &self.inner.cluster_id, slot, limit).await;
            let opened = match secret {
                Ok(None) => continue,
                Ok(Some(secret)) => self.open_with(call, SlotSecret::Kms(secret), opening).await,
                Err(error) if error.is_away() => return Err(error.into()),
                Err(error) => Err(error.into()),
            };
            match opened {
                Ok(()) => return Ok(()),
                Err(error) if ends_it(&error) => return Err(error),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Where KMS was not there at start, or not willing, asks it again and again until the vault is open.
    pub(in crate::service) async fn kms_waiter(self) {
        let Some((key, said)) = self.inner.door.awaited_kms() else { return };
        tracing::warn!(kms.key = %key, "KMS is asked again until the vault is open");
        let wait = KmsWait { key: key.to_string(), since: self.inner.clock.now(), said };
        *lock(&self.inner.door.kms_wait) = Some(wait);
        self.wait_for_kms(&key).await;
        *lock(&self.inner.door.kms_wait) = None;
    }

    async fn wait_for_kms(&self, key: &KmsKeyId) {
        let (mut pause, mut told) = (PAUSE_MIN, String::new());
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(with_jitter(pause)) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
            let asked = tokio::select! {
                () = self.inner.stop.cancelled() => return,
                asked = self.ask_kms_again(key) => asked,
            };
            match asked {
                Err(Error::Kms(error)) if error.may_pass() => {
                    let text = causes(&error);
                    if text != told {
                        tracing::warn!(kms.key = %key, error = text, "still sealed: KMS does not open the vault");
                        if let Some(wait) = &mut *lock(&self.inner.door.kms_wait) {
                            wait.said.clone_from(&text);
                        }
                        told = text;
                    }
                }
                Err(Error::Conflict(_)) => {
                    tracing::warn!("KMS is not waited for any more: the vault was sealed by hand");
                    return;
                }
                Err(error @ Error::Database(_)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "KMS not asked again yet");
                }
                Err(error) => {
                    tracing::error!(error = causes(&error), "sealed, and KMS is not asked any more");
                    return;
                }
                Ok(()) => return,
            }
        }
    }

    /// `Ok`: there is nothing to wait for any more.
    async fn ask_kms_again(&self, key: &KmsKeyId) -> Result<()> {
        if self.is_open() {
            tracing::info!("KMS is not waited for any more: the vault was opened otherwise");
            return Ok(());
        }
        let row = cluster::read(&mut *self.inner.db.read().await?).await?;
        if row.is_some_and(|row| row.sealed_by_hand_at.is_some()) {
            tracing::warn!("KMS is not waited for any more: the vault was sealed by hand");
            return Ok(());
        }
        self.open_by_kms(&Call::host(), key, Opening::InBackground).await
    }
}

/// Whether nothing else needs to be tried.
fn ends_it(error: &Error) -> bool {
    matches!(error, Error::Database(_) | Error::Conflict(_) | Error::Unauthenticated(_) | Error::Forbidden)
}

/// Of several replicas that wait, not all shall ask at once: from half of `pause` to the whole.
fn with_jitter(pause: Duration) -> Duration {
    let part = u32::from(u16::from_be_bytes(random::bytes()));
    pause / 2 + pause / 2 * part / u32::from(u16::MAX)
}

impl super::Slot {
    /// As it may be shown: never what it wraps.
    pub(in crate::service) fn of(row: SlotRow, created_at: Timestamp) -> Self {
        let kms_key = match row.kind {
            SlotKind::Kms => row.params.parse().ok().map(|params: KmsParams| params.key().to_string()),
            _ => None,
        };
        let shares = match row.kind {
            SlotKind::Shamir => row.params.parse().ok().map(SplitParams::count),
            _ => None,
        };
        Self { id: row.id, kind: row.kind, kms_key, created_at, shares }
    }

    /// For the audit row of what became of it.
    pub(in crate::service) fn detail(&self, change: &str) -> Value {
        let mut detail = json!({ "change": change, "kind": self.kind.as_str() });
        if let Some(key) = &self.kms_key {
            detail["kms_key"] = json!(key);
        }
        detail
    }
}

impl From<TrialError> for Error {
    fn from(error: TrialError) -> Self {
        match error {
            TrialError::Kms(error) => Self::Kms(error),
            TrialError::Panic(panic) => Self::Internal(panic.into()),
            TrialError::Unlock(error) => unlock_failed(error),
            other => Rejection::value("vault", causes(&other)).into(),
        }
    }
}

impl From<KmsError> for Error {
    fn from(error: KmsError) -> Self {
        Self::Kms(error)
    }
}

/// How long a start waits for KMS: a healthy one answers within 50 ms, and reads wait behind the start.
const AT_START_MAX: Duration = Duration::from_secs(5);

const PAUSE_MIN: Duration = Duration::from_secs(1);

/// With what one call takes at most, a KMS that comes back opens this server within a minute.
const PAUSE_MAX: Duration = Duration::from_secs(45);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_this_machine_is_tried_before_kms_is_asked() {
        let key: KmsKeyId = "alias/narvault".parse().unwrap();
        let default = VaultSettings { default_key_file: "default".into(), ..VaultSettings::default() };
        let mut all = VaultSettings {
            key_file: Some("key".into()),
            passphrase_file: Some("passphrase".into()),
            ..default.clone()
        };
        all.kms.key_id = Some(key.clone());
        let mut kms = default.clone();
        kms.kms.key_id = Some(key.clone());

        assert_eq!(default.configured(), [Configured::KeyFile("default".into())]);
        assert_eq!(kms.configured(), [Configured::Kms(key.clone())]);
        let (key_file, file) =
            (Configured::KeyFile("key".into()), Configured::PassphraseFile("passphrase".into()));
        assert_eq!(all.configured(), [key_file, file, Configured::Kms(key)]);
    }

    #[test]
    fn a_pause_is_at_least_half_and_at_most_whole() {
        for _ in 0..1000 {
            let pause = with_jitter(PAUSE_MAX);
            assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&pause), "{pause:?}");
        }
    }
}
