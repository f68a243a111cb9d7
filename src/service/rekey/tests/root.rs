//! Another root key: what it takes, who goes on, and what the former one opens no more.

use super::*;
use crate::service::rekey::root::OTHERS_FOLLOW_SECONDS;
use crate::service::{BackupTarget, NewSlot, Rejection, SlotId, VaultSettings, verify_backup};
use crate::vault::{KekRow, KeyFile, OpenVault, SlotRow, SlotSecret};

const PASSPHRASE: &str = "correct horse battery staple";

/// What a thief of the database has of the vault.
async fn copied(test: &TestDb) -> (Vec<SlotRow>, Vec<KekRow>) {
    let mut connection = test.db.read().await.unwrap();
    let slots = vault::slots(&mut connection).await.unwrap();
    (slots.into_iter().map(|(slot, _)| slot).collect(), vault::keks(&mut connection).await.unwrap())
}

fn key_file(test: &TestDb) -> SlotSecret {
    SlotSecret::KeyFile(KeyFile::read(&test.folder.path().join("vault.key")).unwrap())
}

async fn drop_key_file(desk: &Desk, with_kek: bool) -> crate::service::Result<VaultStatus> {
    let slots = desk.status().await.slots;
    let key_file = slots.iter().find(|slot| slot.kind.as_str() == "key-file").unwrap();
    let asked = NewRootRequest {
        secrets: vec![GivenSecret::passphrase(PASSPHRASE).unwrap()],
        drop_slots: vec![key_file.id.parse().unwrap()],
        with_kek,
    };
    desk.service().rotate_root(&Call::host(), asked).await
}

on_each_database! {
    async fn a_new_root_key_needs_the_secret_of_each_slot_that_stays(test: &TestDb) {
        let desk = Desk::start(test).await;
        let host = Call::host();
        let added = desk.service().add_slot(&host, NewSlot::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        let slot = added.slot;
        let first: SlotId = desk.status().await.slots[0].id.parse().unwrap();
        let second: SlotId = slot.id.parse().unwrap();
        let nobody: SlotId = uuid::Uuid::nil().to_string().parse().unwrap();
        let rotate = async |secrets: Vec<GivenSecret>, drop_slots: Vec<SlotId>| {
            let asked = NewRootRequest { secrets, drop_slots, with_kek: true };
            desk.service().rotate_root(&host, asked).await.unwrap_err()
        };

        let unsaid = rotate(Vec::new(), Vec::new()).await;
        let Error::Conflict(Conflict::SlotsWithoutSecret { slots }) = unsaid else { panic!("{unsaid}") };
        assert_eq!(slots, format!("{} (passphrase)", slot.id));
        let wrong = rotate(vec![GivenSecret::key_file(&[7; 32]).unwrap()], vec![second.clone()]).await;
        assert!(matches!(&wrong, Error::Rejected(Rejection::Value { .. })), "{wrong}");
        let gone = rotate(Vec::new(), vec![nobody]).await;
        assert!(matches!(gone, Error::NotFound("slot")), "{gone}");
        let none = rotate(Vec::new(), vec![first, second]).await;
        assert!(matches!(none, Error::Conflict(Conflict::State(_))), "{none}");

        assert_eq!(desk.status().await.versions, VaultVersions { root: 1, kek: 1 });
        assert_eq!(desk.status().await.kek_rotation, None);
        desk.all_open(test).await;
    }

    async fn an_old_secret_with_an_old_copy_opens_nothing_that_is_written_later(test: &TestDb) {
        let desk = Desk::start(test).await;
        let cache = FIRST_CACHE.parse().unwrap();
        desk.service().add_slot(&Call::host(), NewSlot::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        let (slots, keks) = copied(test).await;

        let status = drop_key_file(&desk, true).await.unwrap();

        assert_eq!(status.versions, VaultVersions { root: 2, kek: 2 });
        assert_eq!(status.slots.len(), 1);
        // Before a single row was sealed anew.
        let later = desk.service().create_key(&Call::host(), &cache, &KeySource::New { name: None }).await.unwrap();
        let mut thief = OpenVault::open(desk.service().cluster_id(), &slots, &keks, &key_file(test)).unwrap();
        assert!(matches!(thief.open_key(&later.key), Err(VaultError::UnknownKek { kek_version: 2, .. })));
        let (new_slots, new_keks) = copied(test).await;
        let mixed: Vec<SlotRow> = new_slots.iter().chain(&slots).cloned().collect();
        for slots in [&new_slots, &mixed] {
            let opened = OpenVault::open(desk.service().cluster_id(), slots, &new_keks, &key_file(test));
            assert!(opened.is_err());
        }
        assert!(matches!(thief.learn_keks(&new_keks), Err(VaultError::Tampered { .. })));
        // Nor, once the rotation is at its end, what a later copy has of keys that were there before.
        desk.server.clock.advance_seconds(OTHERS_FOLLOW_SECONDS);
        assert_eq!(desk.drive().await.state, KekRotationState::Done);
        for row in desk.keys(test).await {
            assert!(matches!(thief.open_key(&row.key), Err(VaultError::UnknownKek { .. })));
        }
        assert_eq!((actions(&desk, "vault-root-rotate").await, actions(&desk, "vault-slot-remove").await), (1, 1));
        let (restarted, _) = testing::open(test, &desk.server.clock, testing::vault(test)).await;
        assert!(!restarted.is_open(), "the key file opens nothing any more");
        restarted.unseal(&Call::host(), Unseal::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        for row in desk.keys(test).await {
            restarted.inner.keyring.prove(&row.key).unwrap();
        }
        restarted.shut_down().await;
    }

    async fn a_root_key_without_the_rows_still_seals_what_is_new_apart(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (slots, keks) = copied(test).await;

        let status = desk.service().rotate_root(&Call::host(), NewRootRequest::default()).await.unwrap();

        assert_eq!((status.versions, status.kek_rotation), (VaultVersions { root: 2, kek: 2 }, None));
        assert_eq!(versions(&desk.keys(test).await), BTreeSet::from([1]));
        let cache = FIRST_CACHE.parse().unwrap();
        let later = desk.service().create_key(&Call::host(), &cache, &KeySource::New { name: None }).await.unwrap();
        let thief = OpenVault::open(desk.service().cluster_id(), &slots, &keks, &key_file(test)).unwrap();
        assert!(matches!(thief.open_key(&later.key), Err(VaultError::UnknownKek { .. })));
        desk.all_open(test).await;
        desk.push(0).await;
    }

    async fn a_rotation_that_is_under_way_goes_on_with_the_kek_of_the_new_root_key(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        desk.service().advance_kek_rotation().await.unwrap();

        let status = desk.service().rotate_root(&Call::host(), NewRootRequest::default()).await.unwrap();

        assert_eq!(status.kek_rotation.unwrap().kek_version, 3);
        desk.server.clock.advance_seconds(OTHERS_FOLLOW_SECONDS);
        assert_eq!(desk.drive().await.state, KekRotationState::Done);
        assert_eq!(live_keks(test).await, [3]);
        desk.all_open(test).await;
    }

    async fn a_crash_before_the_commit_of_a_root_key_leaves_the_former_one(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().inner.log_cut.after(0);

        let refused = desk.service().rotate_root(&Call::host(), NewRootRequest::default()).await;

        assert!(refused.is_err());
        desk.service().inner.log_cut.after(usize::MAX);
        assert_eq!(desk.status().await.versions, VaultVersions { root: 1, kek: 1 });
        desk.all_open(test).await;
        desk.push(0).await;
        // And one that comes right after it, by the next process.
        desk.service().rotate_root(&Call::host(), NewRootRequest::default()).await.unwrap();
        desk.all_open(test).await;
        desk.push(1).await;
    }

    async fn a_stale_replica_wraps_nothing_and_goes_on_once_it_has_opened_the_vault_anew(test: &TestDb) {
        let desk = Desk::start(test).await;
        let other = desk.replica(test).await;
        let host = Call::host();
        desk.service().rotate_root(&host, NewRootRequest::default()).await.unwrap();
        let cache = FIRST_CACHE.parse().unwrap();

        let slot = other.add_slot(&host, NewSlot::key_file(&[7; 32]).unwrap()).await;
        assert!(matches!(slot, Err(Error::Conflict(_))), "{slot:?}");
        let kek = other.rotate_kek(&host).await;
        assert!(matches!(kek, Err(Error::Conflict(_))), "{kek:?}");
        let root = other.rotate_root(&host, NewRootRequest::default()).await;
        assert!(matches!(root, Err(Error::Conflict(_))), "{root:?}");
        // It would seal with a KEK that the thief has, so it waits.
        let key = other.create_key(&host, &cache, &KeySource::New { name: None }).await;
        assert!(matches!(key, Err(Error::Sealed)), "{key:?}");
        // What needs no other key than those it has goes on.
        desk.push_to(&other, 0).await.unwrap();
        assert!(other.is_behind());

        other.follow_vault().await.unwrap();

        assert!(!other.is_behind());
        assert_eq!(other.inner.keyring.versions(), Some(VaultVersions { root: 2, kek: 2 }));
        other.add_slot(&host, NewSlot::key_file(&[7; 32]).unwrap()).await.unwrap();
        other.create_key(&host, &cache, &KeySource::New { name: None }).await.unwrap();
        desk.push_to(&other, 1).await.unwrap();
        other.shut_down().await;
    }

    async fn a_replica_whose_secret_opens_nothing_any_more_seals(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().add_slot(&Call::host(), NewSlot::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        let other = desk.replica(test).await;
        drop_key_file(&desk, true).await.unwrap();

        other.follow_vault().await.unwrap();

        assert!(!other.is_open());
        assert!(matches!(desk.push_to(&other, 0).await, Err(Error::Sealed)));
        // The one that rotated holds the new one.
        desk.service().follow_vault().await.unwrap();
        assert!(desk.service().is_open());
        other.unseal(&Call::host(), Unseal::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        desk.push_to(&other, 0).await.unwrap();
        other.shut_down().await;
    }

    async fn a_stale_replica_takes_no_row_under_the_new_kek_for_a_forged_one(test: &TestDb) {
        let desk = Desk::start(test).await;
        let other = desk.replica(test).await;
        let asked = NewRootRequest { with_kek: true, ..NewRootRequest::default() };
        desk.service().rotate_root(&Call::host(), asked).await.unwrap();
        desk.server.clock.advance_seconds(OTHERS_FOLLOW_SECONDS);
        desk.drive().await;

        // It cannot sign with that now, and says so as a sealed one does: nothing is broken.
        assert!(matches!(desk.push_to(&other, 0).await, Err(Error::Sealed)));
        let keys = signing_keys::of_cache(&mut test.db.read().await.unwrap(), cache_id(test).await).await.unwrap();
        assert!(other.proven_keys(&keys, false).is_err());

        other.follow_vault().await.unwrap();
        desk.push_to(&other, 0).await.unwrap();
        other.shut_down().await;
    }

    async fn a_backup_opens_with_the_slots_of_its_time_and_no_others(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().add_slot(&Call::host(), NewSlot::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        let other = desk.replica(test).await;
        let before = backup(desk.service(), test, "before").await;
        drop_key_file(&desk, false).await.unwrap();
        let after = backup(desk.service(), test, "after").await;
        desk.service().add_slot(&Call::host(), NewSlot::key_file(&[7; 32]).unwrap()).await.unwrap();
        let new = || SlotSecret::KeyFile(KeyFile::from_bytes(&[7; 32]).unwrap());
        let latest = backup(desk.service(), test, "latest").await;

        assert!(opens(&before, key_file(test)).await);
        assert!(!opens(&after, key_file(test)).await);
        assert!(!opens(&after, new()).await, "the slot came later");
        assert!(opens(&latest, new()).await);
        assert!(!opens(&latest, key_file(test)).await);
        // One that holds the former root key makes none that nothing opens.
        let path = test.folder.path().join("stale");
        let file = BackupTarget::File(tokio::fs::File::create(&path).await.unwrap());
        assert!(other.back_up(&Call::host(), None, file).await.is_err());
        other.shut_down().await;
    }

    async fn each_replica_brings_the_secret_that_it_is_configured_with(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().add_slot(&Call::host(), NewSlot::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        let file = test.folder.path().join("passphrase");
        std::fs::write(&file, PASSPHRASE).unwrap();
        let settings = VaultSettings { passphrase_file: Some(file), ..testing::vault(test) };
        let (other, _) = testing::open(test, &desk.server.clock, settings).await;
        // Its own secret is the passphrase; the key file's is brought.
        let bytes = std::fs::read(test.folder.path().join("vault.key")).unwrap();
        let secrets = vec![GivenSecret::key_file(&bytes).unwrap(), GivenSecret::key_file(&bytes).unwrap()];

        let asked = NewRootRequest { secrets, ..NewRootRequest::default() };
        let status = other.rotate_root(&Call::host(), asked).await.unwrap();

        assert_eq!((status.slots.len(), status.versions.root), (2, 2));
        desk.service().follow_vault().await.unwrap();
        assert!(desk.service().is_open(), "the key file opens it as before");
        desk.push(0).await;
        other.shut_down().await;
    }
}

async fn cache_id(test: &TestDb) -> crate::access::CacheId {
    let mut connection = test.db.read().await.unwrap();
    caches::by_name(&mut connection, &FIRST_CACHE.parse().unwrap()).await.unwrap().unwrap().id
}

async fn backup(service: &Service, test: &TestDb, name: &str) -> std::path::PathBuf {
    use tokio::io::AsyncWriteExt as _;
    let path = test.folder.path().join(name);
    let target = BackupTarget::File(tokio::fs::File::create(&path).await.unwrap());
    let (target, _) = service.back_up(&Call::host(), None, target).await.unwrap();
    if let BackupTarget::File(mut file) = target {
        file.flush().await.unwrap();
    }
    path
}

async fn opens(path: &std::path::Path, secret: SlotSecret) -> bool {
    let file = tokio::fs::File::open(path).await.unwrap();
    verify_backup(tokio::io::BufReader::new(file), secret).await.is_ok()
}
