//! A backup of format 1, as bytes in `tests/golden/backup-v1/`. It must open and be restored for ever: the file is never
//! made anew, and a later format gets a folder of its own.

use super::verify_backup;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::service::testing::{open, vault};
use crate::time::Clock;
use crate::vault::{KeyFile, Passphrase, SlotSecret};

const BACKUP: &[u8] = include_bytes!("../../../tests/golden/backup-v1/narvault.backup");
const KEY_FILE: &[u8] = include_bytes!("../../../tests/golden/backup-v1/vault.key");
const PASSPHRASE: &[u8] = b"correct horse battery";

fn key_file() -> SlotSecret {
    SlotSecret::KeyFile(KeyFile::from_bytes(KEY_FILE).unwrap())
}

#[tokio::test]
async fn a_backup_of_format_1_still_opens_by_each_of_its_secrets() {
    for secret in [key_file(), SlotSecret::Passphrase(Passphrase::parse(PASSPHRASE).unwrap())] {
        let verified = verify_backup(BACKUP, secret).await.unwrap();

        let report = verified.report;
        assert_eq!((report.narvault.as_str(), report.schema), ("0.1.0", 17));
        assert_eq!((report.rows, report.leaves, report.keys, report.webhooks), (ROWS, LEAVES, 3, 1));
    }
}

on_each_database! {
    async fn a_backup_of_format_1_is_still_restored_and_serves(test: &TestDb) {
        let verified = verify_backup(BACKUP, key_file()).await.unwrap();

        let rows = verified.restore(BACKUP, &test.db, NOON).await.unwrap();

        assert_eq!(rows, ROWS);
        write_key(test);
        let (service, first) = open(test, &Clock::fixed(NOON), vault(test)).await;
        assert!(first.is_none() && service.is_open());
    }
}

fn write_key(test: &TestDb) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
    options.open(vault(test).default_key_file).unwrap().write_all(KEY_FILE).unwrap();
}

const ROWS: u64 = 65;
const LEAVES: u64 = 12;
