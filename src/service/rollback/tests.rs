//! Databases that went another way than what was published, and the many that did not.

use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::service::testing::{self, TestService};
use crate::service::{BackupTarget, Call, SigningStopped, verify_backup};
use crate::storage::ObjectKey;
use crate::time::Clock;
use crate::tlog::note::NOTE_SIZE_BYTES_MAX;
use crate::vault::{KeyFile, SlotSecret};

async fn open(test: &TestDb) -> Service {
    testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await.0
}

/// Appends `count` leaves, with a word that tells one history from another.
async fn append(service: &Service, count: usize, word: &str) -> Result<()> {
    let mut tx = service.inner.db.begin(Gate::Shared).await?;
    let row = |number| log::LeafRow {
        event: "later".to_owned(),
        leaf: format!(
            "narvault/log/v1\nevent later\ntime 2026-11-22T13:10:00.123Z\nby {word}-{number}\ntoken -\ndetail -\n"
        ),
        path_id: None,
        openings: Vec::new(),
        long_references: None,
    };
    crate::service::log::append(&mut tx, &(0..count).map(row).collect::<Vec<_>>()).await?;
    Ok(tx.commit().await?)
}

fn published_log(test: &TestDb) -> std::path::PathBuf {
    test.folder.path().join("storage/_log")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Puts the published log of one in the place of the other's.
fn replace_log(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy_folder(from, to);
}

/// The backup on another host, with a storage of its own as it is now.
async fn elsewhere(test: &TestDb, backup: &[u8]) -> TestDb {
    let other = if test.db.is_sqlite() { TestDb::sqlite().await } else { TestDb::postgres().await.unwrap() };
    let key_file = testing::vault(test).default_key_file;
    fs::copy(&key_file, testing::vault(&other).default_key_file).unwrap();
    copy_folder(&test.folder.path().join("storage"), &other.folder.path().join("storage"));
    let secret = SlotSecret::KeyFile(KeyFile::read(&key_file).unwrap());
    let verified = verify_backup(backup, secret).await.unwrap();
    verified.restore(backup, &other.db, NOON).await.unwrap();
    other
}

async fn back_up(test: &TestDb, service: &Service) -> Vec<u8> {
    let path = test.folder.path().join("backup");
    let target = BackupTarget::File(tokio::fs::File::create(&path).await.unwrap());
    service.back_up(&Call::host(), None, target).await.unwrap();
    fs::read(path).unwrap()
}

on_each_database! {
    async fn a_database_that_went_another_way_only_reads_however_many_leaves_it_has(test: &TestDb) {
        let server = TestService::start(test).await;
        server.service.publish_whole_log().await;
        let backup = back_up(test, &server.service).await;
        // Leaves that were appended there after the backup, and whether they were published there; here it is five.
        let mut others = Vec::new();
        for (count, publishes) in [(3, true), (5, false), (5, true), (9, false), (9, true)] {
            others.push((elsewhere(test, &backup).await, count, publishes));
        }
        append(&server.service, 5, "here").await.unwrap();
        server.service.publish_whole_log().await;

        for (other, count, publishes) in others {
            let case = format!("{count} leaves, published: {publishes}");
            let service = open(&other).await;
            append(&service, count, "there").await.unwrap();
            if publishes {
                service.publish_whole_log().await;
            }
            service.shut_down().await;
            let (ours, aside) = (published_log(&other), other.folder.path().join("aside"));
            copy_folder(&ours, &aside);
            replace_log(&published_log(test), &ours);

            // Again and again, whatever an operator says, as long as it stands.
            for _ in 0..2 {
                let service = open(&other).await;
                let rollback = service.rollback().unwrap_or_else(|| panic!("{case}"));
                assert_eq!(rollback.leaves as i64 - rollback.published as i64, count as i64 - 5, "{case}");
                let appended = append(&service, 1, "more").await;
                assert!(matches!(appended, Err(Error::RolledBack { .. })), "{case}: {appended:?}");
                let recovered = service.recover(&Call::host()).await.map(drop);
                assert!(matches!(recovered, Err(Error::Conflict(_))), "{case}: {recovered:?}");
                let alarm = service.clear_log_alarm(&Call::host(), "looked").await.unwrap();
                assert_eq!(alarm.is_some(), count >= 5, "{case}");
                service.shut_down().await;
            }

            // The bucket that belongs to it is put back.
            replace_log(&aside, &ours);
            let service = open(&other).await;
            assert!(service.rollback().is_some(), "{case}: it ended by itself");
            service.recover(&Call::host()).await.unwrap_or_else(|error| panic!("{case}: {error}"));
            service.shut_down().await;
            let service = open(&other).await;
            assert_eq!(service.rollback(), None, "{case}");
            append(&service, 1, "more").await.unwrap();
            service.publish_whole_log().await;
            service.shut_down().await;
            other.finish().await;
        }
    }

    async fn a_fork_that_is_noticed_at_a_start_stops_the_replicas_that_run(test: &TestDb) {
        let server = TestService::start(test).await;
        server.service.publish_whole_log().await;
        let backup = back_up(test, &server.service).await;
        let other = elsewhere(test, &backup).await;
        let running = open(&other).await;
        append(&running, 7, "there").await.unwrap();
        running.publish_whole_log().await;
        append(&server.service, 5, "here").await.unwrap();
        server.service.publish_whole_log().await;
        replace_log(&published_log(test), &published_log(&other));

        let starting = open(&other).await;

        assert!(starting.rollback().is_some());
        let stopped = starting.inner.log_health.check(NOON);
        assert!(matches!(stopped, Err(SigningStopped::Forked(_))), "{stopped:?}");
        let appended = append(&running, 1, "more").await;
        assert!(matches!(appended, Err(Error::RolledBack { .. })), "{appended:?}");
        starting.shut_down().await;
        running.shut_down().await;
        other.finish().await;
    }

    async fn a_checkpoint_of_the_same_history_stops_nobody(test: &TestDb) {
        let server = TestService::start(test).await;
        let object = ObjectKey::Log("checkpoint".parse().unwrap());
        let storage = &server.service.inner.storage;
        let mut kept = Vec::new();
        for count in [0, 1, 300, 2000] {
            append(&server.service, count, "here").await.unwrap();
            server.service.publish_whole_log().await;
            kept.push(storage.read(&object, NOTE_SIZE_BYTES_MAX).await.unwrap().unwrap());
        }
        append(&server.service, 10, "unpublished").await.unwrap();

        // An older one, as after a crash between row and object, or of a bucket that was put back.
        for checkpoint in kept {
            storage.put(&object, checkpoint).await.unwrap();
            let replica = open(test).await;
            assert_eq!(replica.rollback(), None);
            replica.shut_down().await;
        }
        // None, and one that this log's key did not sign: the publisher sees to that.
        for foreign in [b"somebody else's\n".to_vec(), vec![b'x'; 1 << 20]] {
            storage.put(&object, Bytes::from(foreign)).await.unwrap();
            let replica = open(test).await;
            assert_eq!(replica.rollback(), None);
            replica.shut_down().await;
        }
        fs::remove_dir_all(published_log(test)).unwrap();
        let replica = open(test).await;
        assert_eq!(replica.rollback(), None);
        replica.publish_whole_log().await;
        assert!(storage.read(&object, NOTE_SIZE_BYTES_MAX).await.unwrap().is_some());
        replica.shut_down().await;
    }

    async fn a_replica_that_starts_while_another_one_publishes_sees_no_rollback(test: &TestDb) {
        let server = TestService::start(test).await;
        let busy = server.service.clone();
        let publishing = tokio::spawn(async move {
            loop {
                append(&busy, 1, "here").await.unwrap();
                busy.publish_whole_log().await;
            }
        });

        for _ in 0..100 {
            server.service.notice_rollback().await.unwrap();
            assert_eq!(server.service.rollback(), None);
        }

        publishing.abort();
        let _ = publishing.await;
    }
}
