use super::*;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::service::testing::{TestService, open_with_backups, vault};
use crate::service::verify_backup;
use crate::vault::{KeyFile, SlotSecret};

const EVERY_SIX_HOURS: BackupSchedule = BackupSchedule { every: Duration::from_secs(6 * 3600), keep: 2 };

async fn names(service: &Service) -> Vec<String> {
    list_backups(&service.inner.storage).await.unwrap().into_iter().map(|backup| backup.name).collect()
}

on_each_database! {
    async fn one_replica_makes_each_backup_when_it_is_due_and_the_oldest_go(test: &TestDb) {
        let server = TestService::start(test).await;
        let one = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        let other = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        let mut made = Vec::new();

        for round in 0..4 {
            let (first, second) = tokio::join!(one.back_up_if_due(), other.back_up_if_due());
            assert_eq!([first.unwrap(), second.unwrap()].map(usize::from).iter().sum::<usize>(), 1, "{round}");
            made.extend(names(&one).await.pop());
            server.clock.advance_seconds(5 * 3600);
            assert!(!one.back_up_if_due().await.unwrap(), "it is not due");
            server.clock.advance_seconds(3600);
        }

        assert_eq!(names(&one).await, made[2..], "the two newest stay");
        assert_eq!(one.newest_backup().await.unwrap(), Some(NOON.plus_seconds(3 * 6 * 3600)));
        let listed = list_backups(&one.inner.storage).await.unwrap();
        assert_eq!(listed[1].made_at, NOON.plus_seconds(3 * 6 * 3600));
        one.shut_down().await;
        other.shut_down().await;
    }

    async fn what_is_in_storage_is_a_whole_backup(test: &TestDb) {
        let server = TestService::start(test).await;
        let service = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        assert!(service.back_up_if_due().await.unwrap());
        let name = names(&service).await.pop().unwrap();
        let key = || SlotSecret::KeyFile(KeyFile::read(&vault(test).default_key_file).unwrap());

        let object = stored_backup(&service.inner.storage, &name).await.unwrap().unwrap();
        let size_bytes = object.size_bytes;
        let read = tokio_util::io::StreamReader::new(object.body.map_err(std::io::Error::other));
        let verified = verify_backup(read, key()).await.unwrap();

        assert!(verified.report.keys == 3 && size_bytes > 0);
        assert!(stored_backup(&service.inner.storage, "newest").await.unwrap().is_none());
        service.shut_down().await;
    }

    async fn a_sealed_replica_leaves_it_to_an_open_one(test: &TestDb) {
        let server = TestService::start(test).await;
        let sealed = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        let open = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        sealed.inner.keyring.lock();

        assert!(!sealed.back_up_if_due().await.unwrap());

        assert!(open.back_up_if_due().await.unwrap());
        assert_eq!(names(&open).await.len(), 1);
        sealed.shut_down().await;
        open.shut_down().await;
    }

    async fn a_failed_backup_takes_nothing_away_and_is_anybodys_to_try(test: &TestDb) {
        let server = TestService::start(test).await;
        let service = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        assert!(service.back_up_if_due().await.unwrap());
        server.clock.advance_seconds(6 * 3600);
        let before = names(&service).await;
        // Sealed in the middle of it.
        assert!(service.lease_backup(server.clock.now(), server.clock.now()).await.unwrap());
        service.inner.keyring.lock();
        let failed = service.store_backup(server.clock.now()).await;
        service.release_backup().await;

        let other = open_with_backups(test, &server.clock, EVERY_SIX_HOURS).await;
        assert!(matches!(failed, Err(BackupError::Sealed)), "{failed:?}");
        assert_eq!(names(&service).await, before);
        assert!(other.back_up_if_due().await.unwrap());
        service.shut_down().await;
        other.shut_down().await;
    }

    async fn nobody_who_did_not_ask_for_it_gets_a_backup(test: &TestDb) {
        let server = TestService::start(test).await;

        assert!(!server.service.back_up_if_due().await.unwrap());

        assert_eq!(names(&server.service).await, [] as [String; 0]);
        assert_eq!(server.service.newest_backup().await.unwrap(), None);
    }
}
