use std::path::PathBuf;

use futures_util::TryStreamExt as _;

use super::header::{CHUNK_SIZE_BYTES, FORMAT, MAGIC};
use super::*;
use crate::db::Db;
use crate::db::backup::Table;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::service::testing::{Sample, TestService, open, vault as vault_settings};
use crate::tlog::hash::NodeHash;
use crate::vault::{KeyFile, KeyLabel, NewVault, Purpose, SlotSecret};

fn key_file(test: &TestDb) -> SlotSecret {
    SlotSecret::KeyFile(KeyFile::read(&vault_settings(test).default_key_file).unwrap())
}

fn key(byte: u8) -> SlotSecret {
    SlotSecret::KeyFile(KeyFile::from_bytes(&[byte; 32]).unwrap())
}

async fn target(folder: &std::path::Path) -> (BackupTarget, PathBuf) {
    let path = folder.join(format!("backup-{}", random::text::<5>()));
    (BackupTarget::File(tokio::fs::File::create(&path).await.unwrap()), path)
}

async fn back_up(test: &TestDb, service: &Service) -> Vec<u8> {
    let (target, path) = target(test.folder.path()).await;
    service.back_up(&Call::host(), None, target).await.unwrap();
    std::fs::read(path).unwrap()
}

async fn verify(backup: &[u8], secret: SlotSecret) -> Result<VerifiedBackup, BackupError> {
    verify_backup(backup, secret).await
}

async fn refusal(backup: &[u8], secret: SlotSecret) -> BackupError {
    match verify(backup, secret).await {
        Ok(verified) => panic!("it was taken: {:?}", verified.report),
        Err(error) => error,
    }
}

/// Every row of every table, as a backup would have it.
async fn all_rows(db: &Db) -> Vec<(&'static str, Vec<String>)> {
    let mut tx = db.begin_snapshot().await.unwrap();
    let mut all = Vec::new();
    for table in TABLES {
        let mut rows: Vec<String> = backup::rows(&mut tx, table).try_collect().await.unwrap();
        // Postgres puts spaces into its JSON.
        rows.iter_mut().for_each(|row| {
            *row = serde_json::from_str::<serde_json::Value>(row).unwrap().to_string();
        });
        rows.sort();
        all.push((table.name, rows));
    }
    all
}

/// The same without the audit rows that a backup and a restoration write themselves.
fn without_acts(mut all: Vec<(&'static str, Vec<String>)>) -> Vec<(&'static str, Vec<String>)> {
    let audit = all.iter_mut().find(|(table, _)| *table == "audit").unwrap();
    audit.1.retain(|row| !row.contains(r#""action":"backup"#));
    all
}

/// A server with something in most of its tables.
async fn busy(test: &TestDb) -> TestService {
    let server = TestService::start(test).await;
    let token = server.contributor("alice", "push:main").await;
    let alice = server.call(&token).await;
    for number in 0..3 {
        server.push(&alice, &Sample::numbered(number)).await.unwrap();
    }
    server
}

on_each_database! {
    async fn a_backup_comes_back_row_by_row_in_either_database(test: &TestDb) {
        let server = busy(test).await;
        let before = all_rows(&test.db).await;
        let backup = back_up(test, &server.service).await;

        let verified = verify(&backup, key_file(test)).await.unwrap();

        let rows: usize = before.iter().map(|(_, rows)| rows.len()).sum();
        assert_eq!(verified.report.rows, rows as u64);
        assert_eq!(verified.report.keys, 3, "cache, token, log");
        assert!(verified.report.leaves > 5, "{:?}", verified.report);
        let postgres = TestDb::postgres().await;
        for other in [Some(TestDb::sqlite().await), postgres].into_iter().flatten() {
            verified.restore(backup.as_slice(), &other.db, NOON).await.unwrap();

            assert_eq!(without_acts(all_rows(&other.db).await), without_acts(before.clone()));
            std::fs::copy(vault_settings(test).default_key_file, vault_settings(&other).default_key_file).unwrap();
            let (restored, first) = open(&other, &server.clock, vault_settings(&other)).await;
            assert!(first.is_none() && restored.is_open());
            assert!(restored.rollback().is_none());
            restored.shut_down().await;
            other.finish().await;
        }
    }

    async fn only_a_secret_of_its_vault_opens_a_backup(test: &TestDb) {
        let server = busy(test).await;
        let backup = back_up(test, &server.service).await;

        let refused = refusal(&backup, key(9)).await;

        assert!(matches!(refused, BackupError::Unlock(_)), "{refused:?}");
        for word in ["alice", "main", "signing_keys", "token", "sample"] {
            let found = backup.windows(word.len()).position(|window| window == word.as_bytes());
            assert_eq!(found, None, "{word} stands in the backup in clear");
        }
    }

    async fn a_sealed_server_backs_up_only_with_a_secret(test: &TestDb) {
        let server = busy(test).await;
        server.service.seal(&server.admin().await).await.unwrap();
        let (first, _) = target(test.folder.path()).await;
        let (second, path) = target(test.folder.path()).await;

        let refused = server.service.back_up(&Call::host(), None, first).await;
        server.service.back_up(&Call::host(), Some(key_file(test).into()), second).await.unwrap();

        assert!(matches!(refused, Err(BackupError::Sealed)));
        verify(&std::fs::read(path).unwrap(), key_file(test)).await.unwrap();
    }

    async fn only_the_host_and_administrators_back_up(test: &TestDb) {
        let server = busy(test).await;
        let token = server.contributor("bob", "push:main").await;
        let (target, _) = target(test.folder.path()).await;

        let refused = server.service.back_up(&server.call(&token).await, None, target).await;

        assert!(matches!(refused, Err(BackupError::Service(Error::Forbidden))));
    }

    async fn a_database_with_rows_is_left_alone(test: &TestDb) {
        let server = busy(test).await;
        let backup = back_up(test, &server.service).await;
        let verified = verify(&backup, key_file(test)).await.unwrap();
        let before = all_rows(&test.db).await;

        let refused = verified.restore(backup.as_slice(), &test.db, NOON).await;

        assert!(matches!(refused, Err(BackupError::NotEmpty { table: "cluster" })), "{refused:?}");
        assert_eq!(all_rows(&test.db).await, before);
    }

    async fn a_restoration_that_fails_leaves_nothing(test: &TestDb) {
        let source = TestDb::sqlite().await;
        let server = busy(&source).await;
        let (backup, other) = (back_up(&source, &server.service).await, back_up(&source, &server.service).await);
        let verified = verify(&backup, key_file(&source)).await.unwrap();
        let before = all_rows(&test.db).await;

        let cut = verified.restore(&backup[..backup.len() - 1], &test.db, NOON).await;
        let changed = verified.restore(other.as_slice(), &test.db, NOON).await;

        assert!(matches!(cut, Err(BackupError::Cut { .. })), "{cut:?}");
        assert!(matches!(changed, Err(BackupError::Changed)), "{changed:?}");
        assert_eq!(all_rows(&test.db).await, before);
        verified.restore(backup.as_slice(), &test.db, NOON).await.unwrap();
        source.finish().await;
    }

    async fn leaves_that_were_altered_in_the_database_are_found(test: &TestDb) {
        let server = busy(test).await;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        log::alter_leaf(&mut tx, 2, "another\n").await.unwrap();
        tx.commit().await.unwrap();

        let refused = refusal(&back_up(test, &server.service).await, key_file(test)).await;

        assert!(matches!(refused, BackupError::Log { .. }), "{refused:?}");
    }

    async fn tables_that_this_version_does_not_know_are_not_left_out_silently(test: &TestDb) {
        let server = busy(test).await;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        sqlx::query("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1").execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let (target, _) = target(test.folder.path()).await;

        let refused = server.service.back_up(&Call::host(), None, target).await;

        assert!(matches!(refused, Err(BackupError::NewerDatabase { schema: 9999 })));
    }
}

/// A vault of its own, and the header of a backup of it without a log.
fn header() -> (Header, NewVault) {
    let vault = OpenVault::create("cluster", "slot", &key(1)).unwrap();
    let header = Header {
        cluster_id: "cluster".to_owned(),
        narvault: "0.0.1".to_owned(),
        schema: backup::schema_known(),
        made_at: NOON,
        salt: [3; 32],
        log_size: 0,
        log_root: NodeHash::empty(),
        slots: vec![vault.slot.clone()],
        keks: vec![vault.kek.clone()],
    };
    (header, vault)
}

/// A backup with these rows of one table.
async fn written(header: &Header, vault: &NewVault, table: &str, rows: &[String]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (target, path) = target(folder.path()).await;
    let mut writer = BackupWriter::begin(target, header, vault.vault.backup_key(&header.salt)).await.unwrap();
    writer.table(Table::named(table).unwrap()).await.unwrap();
    for row in rows {
        writer.row(row).await.unwrap();
    }
    writer.finish().await.unwrap();
    std::fs::read(path).unwrap()
}

/// A backup of several chunks: its rows do not shrink.
async fn large() -> Vec<u8> {
    let (header, vault) = header();
    let row = |_| serde_json::json!({ "id": random::text::<40_000>() }).to_string();
    written(&header, &vault, "caches", &(0..8).map(row).collect::<Vec<_>>()).await
}

/// Where each chunk begins, and where the last one ends.
fn chunk_places(backup: &[u8]) -> Vec<usize> {
    let at = MAGIC.len() + FORMAT.len();
    let length = |at: usize| u32::from_be_bytes(backup[at..at + 4].try_into().unwrap()) as usize;
    let mut places = vec![at + 4 + length(at)];
    while places[places.len() - 1] < backup.len() {
        let at = places[places.len() - 1];
        places.push(at + 5 + length(at + 1));
    }
    places
}

#[tokio::test]
async fn a_large_backup_is_cut_into_chunks_that_are_read_one_by_one() {
    let backup = large().await;

    let verified = verify(&backup, key(1)).await.unwrap();

    assert_eq!(verified.report.rows, 8);
    let places = chunk_places(&backup);
    assert!(places.len() > 3, "{places:?}");
    assert!(places.windows(2).all(|pair| pair[1] - pair[0] <= CHUNK_SIZE_BYTES + 21));
}

#[tokio::test]
async fn a_backup_with_one_byte_changed_is_refused() {
    let (header, vault) = header();
    let backup = written(&header, &vault, "caches", &[r#"{"id":"a"}"#.to_owned()]).await;

    for at in 0..backup.len() {
        let mut changed = backup.clone();
        changed[at] ^= 1;
        let refused = refusal(&changed, key(1)).await;
        let expected = match at {
            at if at < MAGIC.len() => matches!(refused, BackupError::NotABackup),
            at if at < MAGIC.len() + FORMAT.len() => matches!(refused, BackupError::OtherFormat { .. }),
            _ => !matches!(refused, BackupError::NotABackup | BackupError::OtherFormat { .. }),
        };
        assert!(expected, "{at}: {refused:?}");
    }
}

#[tokio::test]
async fn a_cut_backup_is_refused_as_such_wherever_it_is_cut() {
    let backup = large().await;
    let places = chunk_places(&backup);
    let header_end = places[0];
    let begin = MAGIC.len();
    let ends = (0..64).chain(places.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1, at + 7]));

    for end in ends.filter(|end| *end < backup.len()) {
        let refused = refusal(&backup[..end], key(1)).await;
        let expected = match end {
            end if end < begin => matches!(refused, BackupError::NotABackup),
            end if end < header_end => matches!(refused, BackupError::HeaderCut),
            end => {
                let whole = places.iter().filter(|place| **place <= end).count() as u64 - 1;
                matches!(refused, BackupError::Cut { chunk } if chunk == whole)
            }
        };
        assert!(expected, "{end}: {refused:?}");
    }
}

#[tokio::test]
async fn chunks_that_were_moved_left_out_doubled_or_appended_are_refused() {
    let (backup, other) = (large().await, large().await);
    let (places, of_other) = (chunk_places(&backup), chunk_places(&other));
    let chunk = |number: usize| &backup[places[number]..places[number + 1]];
    let (head, tail) = (&backup[..places[0]], &backup[places[2]..]);
    let foreign = &other[of_other[1]..of_other[2]];

    for (what, changed) in [
        ("moved", [head, chunk(1), chunk(0), tail].concat()),
        ("left out", [head, chunk(0), tail].concat()),
        ("doubled", [head, chunk(0), chunk(0), chunk(1), tail].concat()),
        ("of another backup", [head, chunk(0), foreign, tail].concat()),
    ] {
        let refused = refusal(&changed, key(1)).await;
        assert!(matches!(refused, BackupError::Damaged { .. }), "{what}: {refused:?}");
    }
    let refused = refusal(&[&backup, b"x".as_slice()].concat(), key(1)).await;
    assert!(matches!(refused, BackupError::Trailing), "{refused:?}");
}

#[tokio::test]
async fn what_is_no_backup_or_of_a_later_version_is_told_as_such() {
    let (header, vault) = header();
    let later = Header { schema: 9999, narvault: "9.9.9".to_owned(), ..header.clone() };
    let later = written(&later, &vault, "caches", &[]).await;

    assert!(matches!(refusal(b"", key(1)).await, BackupError::NotABackup));
    assert!(matches!(refusal(b"SQLite format 3\0", key(1)).await, BackupError::NotABackup));
    let refused = refusal(b"narvault-backup/2\n", key(1)).await;
    assert!(matches!(&refused, BackupError::OtherFormat { found } if found == "2"), "{refused:?}");
    let refused = refusal(&later, key(1)).await;
    assert!(
        matches!(&refused, BackupError::Newer { narvault, schema: 9999, .. } if narvault == "9.9.9"),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("use that version or a later one"));
}

#[tokio::test]
async fn a_seed_that_does_not_make_its_public_key_is_found() {
    let (header, vault) = header();
    let label = |id: &str| KeyLabel {
        id: id.to_owned(),
        name: format!("{id}-1"),
        version: 1,
        purpose: Purpose::Log,
        cache_id: None,
    };
    let [one, two] = ["one", "two"].map(|id| vault.vault.seal_new_key(label(id)).unwrap());
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let row = |public_key: &[u8; 32], state: &str| {
        serde_json::json!({
            "id": "one", "purpose": "log", "cache_id": null, "name": "one-1", "version": 1, "kek_version": 1,
            "public_key": hex(public_key), "sealed": hex(one.sealed.as_bytes()), "state": state,
            "imported_at": null, "created_at": 0,
        })
        .to_string()
    };
    let backup = async |row| written(&header, &vault, "signing_keys", &[row]).await;

    let whole = verify(&backup(row(&one.public_key, "active")).await, key(1)).await.unwrap();
    let refused = refusal(&backup(row(&two.public_key, "active")).await, key(1)).await;
    let destroyed = verify(&backup(row(&two.public_key, "destroyed")).await, key(1)).await.unwrap();

    assert_eq!((whole.report.keys, destroyed.report.keys), (1, 0));
    assert!(matches!(refused, BackupError::SealedRow(_)), "{refused:?}");
}

#[tokio::test]
async fn a_log_that_is_shorter_than_its_header_says_is_found() {
    let (header, vault) = header();
    let header = Header { log_size: 2, ..header };
    let leaf =
        |index: i64| serde_json::json!({ "idx": index, "event": "sign", "leaf": "x", "path_id": null });

    let short = written(&header, &vault, "log_leaves", &[leaf(0).to_string()]).await;
    let gap = written(&header, &vault, "log_leaves", &[leaf(1).to_string()]).await;

    let refused = refusal(&short, key(1)).await;
    assert!(matches!(refused, BackupError::Log { expected: 2, found: 1 }), "{refused:?}");
    let refused = refusal(&gap, key(1)).await;
    assert!(matches!(refused, BackupError::Content(_)), "{refused:?}");
}

#[test]
fn no_error_and_no_header_prints_a_secret() {
    let (header, vault) = header();
    let shown = format!("{header:?} {:?} {:?}", vault.vault.backup_key(&[0; 32]), vault.vault);

    assert!(shown.contains("[redacted]"));
    assert!(!shown.contains(&data_encoding::HEXLOWER.encode(vault.slot.wrapped_root.as_bytes())), "{shown}");
}
