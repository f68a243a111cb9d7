//! Slots: each wraps the same ROOT under another secret, and any one of them opens the vault (the LUKS idea).
//!
//! Never unwraps before the secret was compared with the slot's check value.

use std::fmt;
use std::str::FromStr;

use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::VaultError;
use super::key_file::KeyFile;
use super::kms::{KmsParams, KmsSecret, ParseKmsParamsError};
use super::memory::LockedBytes;
use super::passphrase::{DeriveError, ParseParamsError, Passphrase, PassphraseParams};
use super::seal::{Binding, SealKey, Sealed};
use super::share::{ParseSplitError, SplitKey, SplitParams};

/// A row of `vault_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRow {
    pub id: String,
    pub kind: SlotKind,
    /// What the slot key is derived with: empty for a key file, a PHC string without hash for a passphrase; for KMS
    /// the key's ARN and the encrypted slot key; for shares how it was split.
    pub params: String,
    pub wrapped_root: Sealed,
    /// Key check value: tells a wrong secret from a damaged row. It says nothing about the slot key.
    pub kcv: [u8; 32],
}

/// What opens a slot. The text stands in the row and in the associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    KeyFile,
    Kms,
    Passphrase,
    Shamir,
}

impl SlotKind {
    /// `key-file`, `kms`, `passphrase` or `shamir`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyFile => "key-file",
            Self::Kms => "kms",
            Self::Passphrase => "passphrase",
            Self::Shamir => "shamir",
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SlotKind {
    type Err = UnknownSlotKind;

    fn from_str(text: &str) -> Result<Self, UnknownSlotKind> {
        [Self::KeyFile, Self::Kms, Self::Passphrase, Self::Shamir]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownSlotKind)
    }
}

/// A slot of a kind that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("slot is of a kind that this version does not know")]
pub struct UnknownSlotKind;

/// What someone brought to open the vault, or to make a slot with.
#[derive(Debug)]
pub enum SlotSecret {
    KeyFile(KeyFile),
    /// Of one slot alone, since each has a slot key of its own.
    Kms(KmsSecret),
    Passphrase(Passphrase),
    /// A new key that is to be split, or one that shares made.
    Shamir(SplitKey),
}

impl SlotSecret {
    /// Which slots this may open.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::Kms(_) => SlotKind::Kms,
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::Shamir(_) => SlotKind::Shamir,
        }
    }

    /// The slot key by a row's parameters, which are checked first.
    fn slot_key(&self, params: &str) -> Result<LockedBytes, SlotError> {
        match self {
            Self::KeyFile(file) if params.is_empty() => Ok(file.slot_key().map_err(VaultError::from)?),
            Self::KeyFile(_) => Err(SlotError::Params(ParseParamsError::Shape)),
            Self::Kms(secret) => {
                let params: KmsParams = params.parse().map_err(SlotError::KmsParams)?;
                secret.slot_key(&params).map_err(VaultError::from)?.ok_or(SlotError::OtherSecret)
            }
            Self::Passphrase(passphrase) => {
                let params: PassphraseParams = params.parse().map_err(SlotError::Params)?;
                passphrase.slot_key(&params).map_err(SlotError::Derive)
            }
            Self::Shamir(key) => {
                let params: SplitParams = params.parse().map_err(SlotError::Split)?;
                if params != key.params() {
                    return Err(SlotError::OtherSecret);
                }
                Ok(key.slot_key().map_err(VaultError::from)?)
            }
        }
    }

    fn new_params(&self) -> String {
        match self {
            Self::KeyFile(_) => String::new(),
            Self::Kms(secret) => secret.params().to_string(),
            Self::Passphrase(passphrase) => passphrase.new_params().to_string(),
            Self::Shamir(key) => key.params().to_string(),
        }
    }
}

/// Why one slot did not give ROOT.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("slot key could not be derived")]
    Derive(#[source] DeriveError),
    #[error("slot's parameters are refused")]
    KmsParams(#[source] ParseKmsParamsError),
    /// The secret is not this slot's: the everyday answer to a mistyped passphrase.
    #[error("secret is not that of the slot")]
    OtherSecret,
    #[error("slot's parameters are refused")]
    Params(#[source] ParseParamsError),
    #[error("slot's parameters are refused")]
    Split(#[source] ParseSplitError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl SlotRow {
    fn binding<'a>(&'a self, cluster_id: &'a str) -> Binding<'a> {
        binding(cluster_id, &self.id, self.kind, &self.params)
    }

    /// A slot that gives `root` to whoever has `secret`.
    pub(super) fn wrap(
        root: &LockedBytes,
        cluster_id: &str,
        slot_id: &str,
        secret: &SlotSecret,
    ) -> Result<Self, SlotError> {
        let (kind, params) = (secret.kind(), secret.new_params());
        let slot_key = secret.slot_key(&params)?;
        let wrapped_root =
            SealKey::derive(&slot_key).seal(root, 0, &binding(cluster_id, slot_id, kind, &params));
        Ok(Self { id: slot_id.to_owned(), kind, params, wrapped_root, kcv: key_check_value(&slot_key) })
    }

    /// ROOT, if `secret` is this slot's.
    pub(super) fn unwrap_root(
        &self,
        cluster_id: &str,
        secret: &SlotSecret,
    ) -> Result<LockedBytes, SlotError> {
        Ok(self.prove(secret)?.root(cluster_id)?)
    }

    /// The slot with its key, if `secret` is this slot's. A passphrase takes about a second.
    pub fn prove(&self, secret: &SlotSecret) -> Result<ProvenSlot, SlotError> {
        let slot_key = secret.slot_key(&self.params)?;
        if !bool::from(key_check_value(&slot_key).ct_eq(&self.kcv)) {
            return Err(SlotError::OtherSecret);
        }
        Ok(ProvenSlot { row: self.clone(), slot_key })
    }
}

/// A slot whose secret somebody brought: what it takes to wrap another ROOT for it.
pub struct ProvenSlot {
    row: SlotRow,
    slot_key: LockedBytes,
}

impl ProvenSlot {
    /// The row as it was when its secret was proven.
    pub fn row(&self) -> &SlotRow {
        &self.row
    }

    /// ROOT as this slot wraps it.
    pub(super) fn root(&self, cluster_id: &str) -> Result<LockedBytes, VaultError> {
        SealKey::derive(&self.slot_key).open(&self.row.wrapped_root, &self.row.binding(cluster_id))
    }

    /// The same slot, opened by the same secret with the same parameters, around another ROOT.
    pub(super) fn rewrap(&self, root: &LockedBytes, cluster_id: &str) -> SlotRow {
        let wrapped_root = SealKey::derive(&self.slot_key).seal(root, 0, &self.row.binding(cluster_id));
        SlotRow { wrapped_root, ..self.row.clone() }
    }
}

impl fmt::Debug for ProvenSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProvenSlot").field("slot", &self.row.id).field("slot_key", &self.slot_key).finish()
    }
}

fn binding<'a>(cluster_id: &'a str, slot_id: &'a str, kind: SlotKind, params: &'a str) -> Binding<'a> {
    Binding {
        cluster_id,
        table: "vault_slots",
        row_id: slot_id,
        key_name: None,
        version: None,
        purpose: "root",
        cache_id: None,
        public_key: None,
        slot: Some((kind.as_str(), params)),
    }
}

/// Expanded under a label of its own, so that a published check value tells nothing of the wrapping key.
fn key_check_value(slot_key: &LockedBytes) -> [u8; 32] {
    let mut kcv = [0; 32];
    Hkdf::<Sha256>::from_prk(slot_key.expose())
        .expect("32 bytes: as long as a SHA-256")
        .expand(b"narvault/v1/kcv", &mut kcv)
        .expect("32 bytes: HKDF-SHA256 makes up to 8160");
    kcv
}

#[cfg(test)]
mod tests {
    use super::super::passphrase::KdfCost;
    use super::*;

    fn key_file(byte: u8) -> SlotSecret {
        SlotSecret::KeyFile(KeyFile::of([byte; 32]))
    }

    fn passphrase(text: &str) -> SlotSecret {
        SlotSecret::Passphrase(Passphrase::parse(text.as_bytes()).unwrap().with_cost(KdfCost::FLOOR))
    }

    /// The secret of a slot with this ciphertext: what a service would have made of it.
    fn kms(ciphertext: u8, slot_key: u8) -> SlotSecret {
        let key = "arn:aws:kms:us-east-1:123456789012:key/1".parse().unwrap();
        let params = KmsParams::new(key, vec![ciphertext; 60]).unwrap();
        SlotSecret::Kms(KmsSecret::new(params, LockedBytes::copy_of(&[slot_key; 32]).unwrap()))
    }

    fn root() -> LockedBytes {
        LockedBytes::copy_of(&[1; 32]).unwrap()
    }

    fn wrap(secret: &SlotSecret) -> SlotRow {
        SlotRow::wrap(&root(), "cluster", "slot-1", secret).unwrap()
    }

    #[test]
    fn a_key_file_slot_gives_root_to_its_file_only() {
        let slot = wrap(&key_file(5));

        assert_eq!(slot.params, "");
        assert_eq!(slot.unwrap_root("cluster", &key_file(5)).unwrap().expose(), &[1; 32]);
        assert!(matches!(slot.unwrap_root("cluster", &key_file(6)), Err(SlotError::OtherSecret)));
    }

    #[test]
    fn a_passphrase_slot_gives_root_to_its_passphrase_and_tells_a_wrong_one_clearly() {
        let slot = wrap(&passphrase("correct horse battery"));

        let opened = slot.unwrap_root("cluster", &passphrase("correct horse battery\n")).unwrap();
        let refused = slot.unwrap_root("cluster", &passphrase("correct horse batterz"));

        assert_eq!(opened.expose(), &[1; 32]);
        assert!(matches!(refused, Err(SlotError::OtherSecret)));
    }

    #[test]
    fn a_kms_slot_gives_root_to_the_slot_key_that_its_row_has_encrypted() {
        let slot = wrap(&kms(7, 1));

        assert_eq!(slot.unwrap_root("cluster", &kms(7, 1)).unwrap().expose(), &[1; 32]);
        // Another slot's, or one that the service made of other bytes.
        for other in [kms(8, 1), kms(7, 2)] {
            assert!(matches!(slot.unwrap_root("cluster", &other), Err(SlotError::OtherSecret)));
        }
    }

    #[test]
    fn changed_parameters_of_a_kms_slot_do_not_open_it() {
        let slot = wrap(&kms(7, 1));
        for (changed, other) in [("us-east-1", "us-east-2"), ("key/1", "key/2")] {
            let params = slot.params.replace(changed, other);
            // The service agrees: whoever wrote the row has that key.
            let secret = KmsSecret::new(params.parse().unwrap(), LockedBytes::copy_of(&[1; 32]).unwrap());

            let refused = SlotRow { params, ..slot.clone() }.unwrap_root("cluster", &SlotSecret::Kms(secret));

            assert!(matches!(refused, Err(SlotError::Vault(VaultError::Tampered { .. }))), "{changed}");
        }
        let longer = SlotRow { params: format!("{}=", slot.params), ..slot };
        assert!(matches!(longer.unwrap_root("cluster", &kms(7, 1)), Err(SlotError::KmsParams(_))));
    }

    #[test]
    fn changed_costs_are_refused_before_deriving() {
        let slot = wrap(&passphrase("correct horse battery"));
        for (cost, changed) in [("m=65536", "m=8"), ("m=65536", "m=4294967295"), ("t=3", "t=4000000000")] {
            let slot = SlotRow { params: slot.params.replace(cost, changed), ..slot.clone() };

            let refused = slot.unwrap_root("cluster", &passphrase("correct horse battery"));

            assert!(matches!(refused, Err(SlotError::Params(ParseParamsError::Cost(_)))), "{changed}");
        }
    }

    #[test]
    fn a_weaker_accepted_cost_does_not_open_either() {
        let slot = wrap(&passphrase("correct horse battery"));
        let secret = passphrase("correct horse battery");
        let weaker = SlotRow { params: slot.params.replace("t=3", "t=1"), ..slot };

        let refused = weaker.unwrap_root("cluster", &secret);
        assert!(matches!(refused, Err(SlotError::OtherSecret)));

        // Even with a check value that agrees, the record is bound to the parameters that it was made with.
        let kcv = key_check_value(&secret.slot_key(&weaker.params).unwrap());
        let refused = SlotRow { kcv, ..weaker }.unwrap_root("cluster", &secret);
        assert!(matches!(refused, Err(SlotError::Vault(VaultError::Tampered { .. }))));
    }

    #[test]
    fn a_moved_or_changed_slot_is_told_from_a_wrong_secret() {
        let slot = wrap(&key_file(5));
        let other_record = wrap(&key_file(6)).wrapped_root;

        for (changed, row, cluster) in [
            ("cluster", slot.clone(), "other"),
            ("row id", SlotRow { id: "slot-2".into(), ..slot.clone() }, "cluster"),
            ("kind", SlotRow { kind: SlotKind::Passphrase, ..slot.clone() }, "cluster"),
            ("record", SlotRow { wrapped_root: other_record, ..slot.clone() }, "cluster"),
        ] {
            let refused = row.unwrap_root(cluster, &key_file(5));

            assert!(matches!(refused, Err(SlotError::Vault(VaultError::Tampered { .. }))), "{changed}");
        }
        let with_params = SlotRow { params: "x".into(), ..slot };
        assert!(matches!(with_params.unwrap_root("cluster", &key_file(5)), Err(SlotError::Params(_))));
    }

    #[test]
    fn kinds_read_back_as_written() {
        for kind in [SlotKind::KeyFile, SlotKind::Kms, SlotKind::Passphrase, SlotKind::Shamir] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for text in ["", "keyfile", "Passphrase", "KMS", "shares"] {
            assert_eq!(text.parse::<SlotKind>(), Err(UnknownSlotKind), "{text}");
        }
    }

    #[test]
    fn a_secret_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", key_file(65)), "KeyFile(KeyFile([redacted]))");
        assert_eq!(format!("{:?}", kms(65, 65)), "Kms(KmsSecret([redacted]))");
        assert_eq!(
            format!("{:?}", passphrase("correct horse battery")),
            "Passphrase(Passphrase([redacted]))"
        );
    }
}
