//! A vault sealed by format 1, as bytes in `tests/golden/vault-v1/`. It must open for ever: the files are never made
//! anew, and a later format gets a folder of its own.

use data_encoding::HEXLOWER as HEX;
use serde_json::Value;

use super::key_file::KeyFile;
use super::memory::LockedBytes;
use super::{KekRow, KeyLabel, KmsSecret, OpenVault, Passphrase, Sealed, SealedKey, SlotRow, SlotSecret};

const VAULT: &str = include_str!("../../tests/golden/vault-v1/vault.json");

/// A slot in KMS of the same vault, written by another implementation, which lies beside it.
const KMS_SLOT: &str = include_str!("../../tests/golden/vault-kms-v1/slot.json");

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    HEX.decode(value.as_str().unwrap().as_bytes()).unwrap().try_into().unwrap()
}

fn sealed(value: &Value) -> Sealed {
    Sealed::parse(&bytes::<78>(value)).unwrap()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn rows<T>(value: &Value, row: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(row).collect()
}

fn slot(row: &Value) -> SlotRow {
    SlotRow {
        id: text(&row["id"]),
        kind: text(&row["kind"]).parse().unwrap(),
        params: text(&row["params"]),
        wrapped_root: sealed(&row["wrapped_root"]),
        kcv: bytes(&row["kcv"]),
    }
}

fn kek(row: &Value) -> KekRow {
    KekRow { version: number(&row["version"]), wrapped: sealed(&row["wrapped"]) }
}

fn key(row: &Value) -> SealedKey {
    SealedKey {
        label: KeyLabel {
            id: text(&row["id"]),
            name: text(&row["name"]),
            version: number(&row["version"]),
            purpose: text(&row["purpose"]).parse().unwrap(),
            cache_id: row["cache_id"].as_str().map(str::to_owned),
        },
        public_key: bytes(&row["public_key"]),
        sealed: sealed(&row["sealed"]),
    }
}

#[test]
fn a_vault_sealed_by_format_1_still_opens_and_signs_the_same() {
    let vault: Value = serde_json::from_str(VAULT).unwrap();
    let (slots, keks) = (rows(&vault["slots"], slot), rows(&vault["keks"], kek));
    let key_file = SlotSecret::KeyFile(KeyFile::of(bytes(&vault["key_file"])));
    let passphrase = Passphrase::parse(vault["passphrase"].as_str().unwrap().as_bytes()).unwrap();
    let kms: Value = serde_json::from_str(KMS_SLOT).unwrap();
    let slots = [slots, vec![slot(&kms["slot"])]].concat();
    let slot_key = LockedBytes::copy_of(&bytes(&kms["slot_key"])).unwrap();
    let kms =
        SlotSecret::Kms(KmsSecret::new(kms["slot"]["params"].as_str().unwrap().parse().unwrap(), slot_key));

    for secret in [key_file, SlotSecret::Passphrase(passphrase), kms] {
        let opened = OpenVault::open(&text(&vault["cluster_id"]), &slots, &keks, &secret).unwrap();

        let [cache, log, token] = rows(&vault["keys"], |row| opened.open_key(&key(row)).unwrap())
            .try_into()
            .expect("the file has three keys");
        let [claim, note, jwt] = rows(&vault["signatures"], text).try_into().expect("and three signatures");
        assert_eq!(HEX.encode(&cache.sign_claim(b"1;golden").unwrap()), claim);
        assert_eq!(HEX.encode(&log.sign_note(b"golden\n").unwrap()), note);
        assert_eq!(token.mint_token(&serde_json::json!({ "sub": "golden" })).unwrap(), jwt);
    }
}
