//! What the configuration names, tried on rows of a vault wherever they come from: a database that is looked at, a backup.
//!
//! Never opens the vault of a server: that is `configured`'s, which heeds seals and writes down who did it.

use std::fmt;
use std::time::Duration;

use super::VaultSettings;
use super::configured::Configured;
use crate::kms::{CALL_MAX, Kms, KmsError, KmsKeyId, SlotPlace};
use crate::vault::key_file::KeyFileError;
use crate::vault::kms::ParseKmsParamsError;
use crate::vault::passphrase::PassphraseError;
use crate::vault::root::UnlockError;
use crate::vault::{
    KekRow, KeyFile, KmsParams, KmsSecret, OpenVault, Passphrase, SlotKind, SlotRow, SlotSecret,
};

/// The rows that a secret is tried on.
#[derive(Debug, Clone)]
pub struct VaultRows {
    pub cluster_id: String,
    pub slots: Vec<SlotRow>,
    pub keks: Vec<KekRow>,
}

/// Something that the configuration names, and what came of it.
#[derive(Debug)]
pub struct Tried {
    pub configured: Configured,
    pub outcome: Result<Fitting, TrialError>,
}

/// A secret that opens the vault, and by which slot.
#[derive(Debug)]
pub struct Fitting {
    pub secret: SlotSecret,
    pub slot_id: String,
}

/// Why something that is configured does not open the vault.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Kms(#[from] KmsError),
    #[error("vault has no slot of the KMS key {0}")]
    NoKmsSlot(KmsKeyId),
    #[error("trying it broke off")]
    Panic(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    #[error("slot {slot_id} could not be tried")]
    Slot { slot_id: String, source: ParseKmsParamsError },
    #[error(transparent)]
    Unlock(#[from] UnlockError),
}

impl VaultSettings {
    /// Tries all that is configured, as a start would, but all of it. A passphrase takes a second.
    pub async fn try_on(&self, rows: &VaultRows) -> Vec<Tried> {
        let mut tried = Vec::new();
        for configured in self.configured() {
            let outcome = match &configured {
                Configured::Kms(key) => try_kms(&Kms::new(self.kms.clone()), key, rows).await,
                file => {
                    let (file, rows) = (file.clone(), rows.clone());
                    let tried = tokio::task::spawn_blocking(move || fitting(&rows, file.read()?));
                    tried.await.unwrap_or_else(|panic| Err(panic.into()))
                }
            };
            tried.push(Tried { configured, outcome });
        }
        tried
    }
}

impl Configured {
    /// Which slots this may open.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::Kms(_) => SlotKind::Kms,
            Self::PassphraseFile(_) => SlotKind::Passphrase,
        }
    }

    /// Reads the secret that lies in a file; one in KMS needs the rows that it is of. Never on an async thread.
    pub(super) fn read(&self) -> Result<SlotSecret, TrialError> {
        match self {
            Self::KeyFile(path) => Ok(SlotSecret::KeyFile(KeyFile::read(path)?)),
            Self::Kms(key) => Err(TrialError::NoKmsSlot(key.clone())),
            Self::PassphraseFile(path) => Ok(SlotSecret::Passphrase(Passphrase::read_file(path)?)),
        }
    }
}

impl fmt::Display for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyFile(path) => write!(f, "key file {}", path.display()),
            Self::Kms(key) => write!(f, "KMS key {key}"),
            Self::PassphraseFile(path) => write!(f, "passphrase file {}", path.display()),
        }
    }
}

/// The slot key of this slot; `None`: it is not one of `key`. What the row says decides nothing but which ciphertext is
/// sent: whoever writes it cannot have another key asked.
pub(super) async fn kms_secret(
    kms: &Kms,
    key: &KmsKeyId,
    cluster_id: &str,
    slot: &SlotRow,
    limit: Duration,
) -> Result<Option<KmsSecret>, TrialError> {
    if slot.kind != SlotKind::Kms {
        return Ok(None);
    }
    let params = slot.params.parse::<KmsParams>();
    let params = params.map_err(|source| TrialError::Slot { slot_id: slot.id.clone(), source })?;
    if !key.may_be(params.key()) {
        return Ok(None);
    }
    let place = SlotPlace { cluster_id, slot_id: &slot.id };
    Ok(Some(kms.secret(key, place, &params, limit).await?))
}

async fn try_kms(kms: &Kms, key: &KmsKeyId, rows: &VaultRows) -> Result<Fitting, TrialError> {
    let mut refusal = TrialError::NoKmsSlot(key.clone());
    for slot in &rows.slots {
        let fits = match kms_secret(kms, key, &rows.cluster_id, slot, CALL_MAX).await {
            Ok(None) => continue,
            Ok(Some(secret)) => fitting(rows, SlotSecret::Kms(secret)),
            Err(error) => Err(error),
        };
        match fits {
            Ok(fitting) => return Ok(fitting),
            Err(error @ TrialError::Kms(_)) if error.is_away() => return Err(error),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

impl TrialError {
    /// Whether KMS is not there, so that asking it about another slot would only take its time again.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Kms(error) if error.is_away())
    }
}

fn fitting(rows: &VaultRows, secret: SlotSecret) -> Result<Fitting, TrialError> {
    let opened = OpenVault::open(&rows.cluster_id, &rows.slots, &rows.keks, &secret)?;
    Ok(Fitting { slot_id: opened.opened_by().to_owned(), secret })
}
