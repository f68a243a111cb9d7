//! The open vault: ROOT and the key-encryption keys below it, made new or opened through one of the slots.
//!
//! Never hands ROOT or a key-encryption key out. What puts others in their places is in [`super::rekey`].

use std::collections::BTreeMap;
use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::VaultError;
use super::memory::LockedBytes;
use super::seal::{Binding, SealKey, Sealed};
use super::slots::{SlotError, SlotKind, SlotRow, SlotSecret};

/// Most slots that a vault may have. Each passphrase slot costs a derivation when tried, so rows that someone wrote
/// into the database must not keep the server busy.
pub const SLOTS_MAX: usize = 16;

/// A row of `vault_keks`: a key-encryption key, wrapped by ROOT. Versions count from 1 and are never used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRow {
    pub version: u32,
    pub wrapped: Sealed,
}

/// A vault just made: open, with the rows that have to be stored before anything is sealed with it.
#[derive(Debug)]
pub struct NewVault {
    pub vault: OpenVault,
    pub slot: SlotRow,
    pub kek: KekRow,
}

/// ROOT and the key-encryption keys, in locked memory; dropping it wipes them.
pub struct OpenVault {
    pub(super) cluster_id: String,
    pub(super) root: LockedBytes,
    pub(super) root_version: i64,
    pub(super) keks: BTreeMap<u32, LockedBytes>,
    pub(super) opened_by: String,
}

impl OpenVault {
    /// Makes a vault with one slot and its first key-encryption key.
    pub fn create(cluster_id: &str, slot_id: &str, secret: &SlotSecret) -> Result<NewVault, SlotError> {
        let new_secret = || LockedBytes::random().map_err(VaultError::from);
        let (root, kek) = (new_secret()?, new_secret()?);
        let slot = SlotRow::wrap(&root, cluster_id, slot_id, secret)?;
        let kek_row = KekRow::wrap(&kek, 1, &SealKey::derive(&root), cluster_id);
        let vault = Self {
            cluster_id: cluster_id.to_owned(),
            root,
            root_version: FIRST_ROOT_VERSION,
            keks: BTreeMap::from([(1, kek)]),
            opened_by: slot_id.to_owned(),
        };
        Ok(NewVault { vault, slot, kek: kek_row })
    }

    /// Opens the vault through the first of `slots` that `secret` fits. With a passphrase this takes about a second
    /// for each slot of that kind, and 256 MiB: never on an async thread.
    pub fn open(
        cluster_id: &str,
        slots: &[SlotRow],
        keks: &[KekRow],
        secret: &SlotSecret,
    ) -> Result<Self, UnlockError> {
        if slots.len() > SLOTS_MAX {
            return Err(UnlockError::TooManySlots { found: slots.len() });
        }
        let (root, slot) = unwrap_root(cluster_id, slots, secret)?;
        let opener = SealKey::derive(&root);
        let mut opened = BTreeMap::new();
        for row in keks {
            opened.insert(row.version, row.open(&opener, cluster_id)?);
        }
        if opened.is_empty() {
            return Err(UnlockError::NoKek);
        }
        Ok(Self {
            cluster_id: cluster_id.to_owned(),
            root,
            root_version: FIRST_ROOT_VERSION,
            keks: opened,
            opened_by: slot.id.clone(),
        })
    }

    /// Notes which ROOT of its cluster this is: the one whose slots it was opened through.
    pub fn of_root_version(self, root_version: i64) -> Self {
        Self { root_version, ..self }
    }

    /// A further slot for this vault, which opens it from when its row is stored.
    pub fn new_slot(&self, slot_id: &str, secret: &SlotSecret) -> Result<SlotRow, SlotError> {
        SlotRow::wrap(&self.root, &self.cluster_id, slot_id, secret)
    }

    /// The slot through which it was opened, for the audit row.
    pub fn opened_by(&self) -> &str {
        &self.opened_by
    }

    /// What new keys are sealed with: the newest key-encryption key.
    pub(super) fn newest_kek(&self) -> (u32, SealKey) {
        let (version, kek) = self.keks.last_key_value().expect("never empty: `create` and `open` see to it");
        (*version, SealKey::derive(kek))
    }

    /// 32 bytes out of ROOT that tell nothing of it, nor of what another `info` or salt makes.
    pub(super) fn stretch_root(&self, salt: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(salt), self.root.expose())
            .expand(info, key.as_mut_slice())
            .expect("32 bytes: HKDF-SHA256 makes up to 8160");
        key
    }

    /// What opens this record of the row `row_id`.
    pub(super) fn kek_of(&self, sealed: &Sealed, row_id: &str) -> Result<SealKey, VaultError> {
        let kek_version = sealed.kek_version();
        let kek = self.keks.get(&kek_version);
        let kek = kek.ok_or_else(|| VaultError::UnknownKek { row_id: row_id.to_owned(), kek_version })?;
        Ok(SealKey::derive(kek))
    }
}

impl fmt::Debug for OpenVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenVault([redacted])")
    }
}

/// Tries the slots of the secret's kind. A slot that is damaged does not stop the others: any one opens.
fn unwrap_root<'a>(
    cluster_id: &str,
    slots: &'a [SlotRow],
    secret: &SlotSecret,
) -> Result<(LockedBytes, &'a SlotRow), UnlockError> {
    let kind = secret.kind();
    let mut refusal = UnlockError::NoSlot { kind };
    for slot in slots.iter().filter(|slot| slot.kind == kind) {
        match slot.unwrap_root(cluster_id, secret) {
            Ok(root) => return Ok((root, slot)),
            Err(SlotError::OtherSecret) if matches!(refusal, UnlockError::Slot { .. }) => {}
            Err(SlotError::OtherSecret) => refusal = UnlockError::WrongSecret { kind },
            Err(source) => refusal = UnlockError::Slot { slot_id: slot.id.clone(), source },
        }
    }
    Err(refusal)
}

impl KekRow {
    /// Wraps a key-encryption key with what ROOT makes.
    pub(super) fn wrap(kek: &LockedBytes, version: u32, wrapper: &SealKey, cluster_id: &str) -> Self {
        let wrapped = wrapper.seal(kek, 0, &kek_binding(cluster_id, &version.to_string(), version));
        Self { version, wrapped }
    }

    pub(super) fn open(&self, opener: &SealKey, cluster_id: &str) -> Result<LockedBytes, VaultError> {
        opener.open(&self.wrapped, &kek_binding(cluster_id, &self.version.to_string(), self.version))
    }
}

fn kek_binding<'a>(cluster_id: &'a str, row_id: &'a str, version: u32) -> Binding<'a> {
    Binding {
        cluster_id,
        table: "vault_keks",
        row_id,
        key_name: None,
        version: Some(version),
        purpose: "kek",
        cache_id: None,
        public_key: None,
        slot: None,
    }
}

/// The ROOT that a vault is made with; each that takes the place of another one counts on.
pub const FIRST_ROOT_VERSION: i64 = 1;

/// Why the vault did not open.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    #[error("vault has no key-encryption key")]
    NoKek,
    #[error("vault has no {kind} slot")]
    NoSlot { kind: SlotKind },
    #[error("slot {slot_id} could not be tried")]
    Slot { slot_id: String, source: SlotError },
    #[error("vault has {found} slots, at most {SLOTS_MAX} are tried")]
    TooManySlots { found: usize },
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("{} opens no slot of the vault", this(*kind))]
    WrongSecret { kind: SlotKind },
}

/// The secret that was tried, in a sentence.
fn this(kind: SlotKind) -> String {
    match kind {
        SlotKind::Shamir => "what these shares make".to_owned(),
        _ => format!("this {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_file::KeyFile;
    use super::super::passphrase::{KdfCost, Passphrase};
    use super::*;

    fn key_file(byte: u8) -> SlotSecret {
        SlotSecret::KeyFile(KeyFile::of([byte; 32]))
    }

    fn passphrase() -> SlotSecret {
        SlotSecret::Passphrase(Passphrase::parse(b"correct horse battery").unwrap().with_cost(KdfCost::FLOOR))
    }

    fn new_vault() -> NewVault {
        OpenVault::create("cluster", "slot-1", &key_file(1)).unwrap()
    }

    #[test]
    fn any_slot_opens_the_same_vault() {
        let new = new_vault();
        let slots = [
            new.slot.clone(),
            new.vault.new_slot("slot-2", &passphrase()).unwrap(),
            new.vault.new_slot("slot-3", &key_file(3)).unwrap(),
        ];

        for (secret, opened_by) in
            [(key_file(1), "slot-1"), (passphrase(), "slot-2"), (key_file(3), "slot-3")]
        {
            let opened = OpenVault::open("cluster", &slots, std::slice::from_ref(&new.kek), &secret).unwrap();

            assert_eq!(opened.opened_by(), opened_by);
            assert_eq!(opened.root.expose(), new.vault.root.expose());
            assert_eq!(opened.keks[&1].expose(), new.vault.keks[&1].expose());
        }
    }

    #[test]
    fn two_new_vaults_share_nothing() {
        let (one, other) = (new_vault().vault, new_vault().vault);

        assert_ne!(one.root.expose(), other.root.expose());
        assert_ne!(one.keks[&1].expose(), other.keks[&1].expose());
        assert_ne!(one.root.expose(), one.keks[&1].expose());
    }

    #[test]
    fn a_secret_that_fits_no_slot_is_told_as_such() {
        let NewVault { slot, kek, .. } = new_vault();
        let open = |slots: &[SlotRow], secret: SlotSecret| {
            OpenVault::open("cluster", slots, std::slice::from_ref(&kek), &secret)
        };

        let slots = [slot];
        assert!(matches!(
            open(&slots, key_file(2)),
            Err(UnlockError::WrongSecret { kind: SlotKind::KeyFile })
        ));
        assert!(matches!(
            open(&slots, passphrase()),
            Err(UnlockError::NoSlot { kind: SlotKind::Passphrase })
        ));
        assert!(matches!(open(&[], key_file(1)), Err(UnlockError::NoSlot { .. })));
    }

    #[test]
    fn a_damaged_slot_does_not_keep_the_others_from_opening() {
        let new = new_vault();
        let mut bytes = new.slot.wrapped_root.as_bytes().to_vec();
        bytes[40] ^= 1;
        let damaged = SlotRow { wrapped_root: Sealed::parse(&bytes).unwrap(), ..new.slot.clone() };
        let keks = [new.kek];

        assert!(OpenVault::open("cluster", &[damaged.clone(), new.slot], &keks, &key_file(1)).is_ok());

        let refused = OpenVault::open("cluster", &[damaged], &keks, &key_file(1));
        assert!(matches!(refused, Err(UnlockError::Slot { source: SlotError::Vault(_), .. })));
    }

    #[test]
    fn too_many_slots_are_not_tried() {
        let NewVault { slot, kek, .. } = new_vault();

        let refused = OpenVault::open("cluster", &vec![slot; SLOTS_MAX + 1], &[kek], &key_file(1));

        assert!(matches!(refused, Err(UnlockError::TooManySlots { found: 17 })));
    }

    #[test]
    fn changed_or_missing_keks_do_not_open() {
        let NewVault { slot, kek, .. } = new_vault();
        let foreign = new_vault().kek;
        let slots = [slot];

        for (changed, row) in [("version", KekRow { version: 2, ..kek }), ("record", foreign)] {
            let refused = OpenVault::open("cluster", &slots, &[row], &key_file(1));

            assert!(matches!(refused, Err(UnlockError::Vault(VaultError::Tampered { .. }))), "{changed}");
        }
        let refused = OpenVault::open("cluster", &slots, &[], &key_file(1));
        assert!(matches!(refused, Err(UnlockError::NoKek)));
    }

    #[test]
    fn an_open_vault_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", new_vault().vault), "OpenVault([redacted])");
    }
}
