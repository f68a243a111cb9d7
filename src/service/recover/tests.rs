//! A recovery that dies before any of its commits, and is run again: the rows are those of one that was not cut.

use futures_util::TryStreamExt as _;
use serde_json::Value;

use super::*;
use crate::access::TokenText;
use crate::db::backup::{TABLES, rows};
use crate::db::key_rotations::RotationKind;
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::db::{caches, key_rotations};
use crate::nix::signature::KeyName;
use crate::service::testing::{self, Sample, TestService};
use crate::service::{BackupTarget, KeySource, NewCache, QuarantineRequest, TakedownTarget, verify_backup};
use crate::vault::{KeyFile, SlotSecret};

/// A server's backup, and what was published since: folder and log go on, the rows are lost.
struct Lost {
    backup: Vec<u8>,
    /// Names of keys: one that the backup has, which was found to be compromised, and one that it does not have.
    old_key: KeyName,
    new_key: KeyName,
}

fn secret(test: &TestDb) -> SlotSecret {
    SlotSecret::KeyFile(KeyFile::read(&testing::vault(test).default_key_file).unwrap())
}

async fn back_up(test: &TestDb, service: &Service) -> Vec<u8> {
    let path = test.folder.path().join("backup");
    let target = BackupTarget::File(tokio::fs::File::create(&path).await.unwrap());
    service.back_up(&Call::host(), None, target).await.unwrap();
    std::fs::read(path).unwrap()
}

async fn only_key(service: &Service, call: &Call) -> KeyRow {
    let keys = service.list_keys(call, &"main".parse().unwrap()).await.unwrap();
    keys.into_iter().find(|row| row.state == KeyState::Active).unwrap()
}

async fn push_secret(server: &TestService, token: &TokenText, sample: &Sample) {
    let (call, cache) = (server.call(token).await, "secret".parse().unwrap());
    let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(sample.nar.clone())]);
    server.service.put_nar(&call, &cache, sample.file, None, body).await.unwrap();
    let narinfo = sample.narinfo.as_bytes();
    server.service.put_narinfo(&call, &cache, sample.path.hash(), narinfo).await.unwrap();
}

fn on(reason: &str) -> QuarantineRequest {
    QuarantineRequest { reason: reason.to_owned(), ..QuarantineRequest::default() }
}

/// A busy server: backed up, then used and administered, then published.
async fn lost(test: &TestDb) -> Lost {
    let server = TestService::start(test).await;
    let (service, admin) = (server.service.clone(), server.admin().await);
    let main = "main".parse().unwrap();
    let new = NewCache { public: false, ..testing::new_cache("secret") };
    service.create_cache(&admin, &new).await.unwrap();
    service.create_key(&admin, &new.name, &KeySource::New { name: None }).await.unwrap();
    let alice = server.contributor("alice", "push:main push:secret").await;
    let mallory = server.contributor("mallory", "push:main").await;
    let carl = server.contributor("carl", "push:main").await;
    let samples: Vec<_> = (0..9).map(Sample::numbered).collect();
    for (at, sample) in samples[..5].iter().enumerate() {
        let by = if at < 2 { &alice } else { &mallory };
        server.push(&server.call(by).await, sample).await.unwrap();
    }
    for sample in &samples[7..] {
        push_secret(&server, &alice, sample).await;
    }
    let object = format!("realisations/sha256:{}!out.doi", "1".repeat(64));
    let body = serde_json::json!({
        "id": format!("sha256:{}!out", "1".repeat(64)), "outPath": samples[0].path.base_name(),
        "signatures": [], "dependentRealisations": {},
    });
    let by_mallory = server.call(&mallory).await;
    let body = body.to_string();
    service.put_realisation(&by_mallory, &main, object.parse().unwrap(), body.as_bytes()).await.unwrap();
    let backup = back_up(test, &service).await;

    let old_key = only_key(&service, &admin).await.public_key.name().clone();
    let new_key = service.create_key(&admin, &main, &KeySource::New { name: None }).await.unwrap();
    let alice = server.call(&alice).await;
    for sample in &samples[5..7] {
        server.push(&alice, sample).await.unwrap();
    }
    let carl = service.verify_token(&carl, server.clock.now()).unwrap().token;
    service.revoke_token(&admin, carl, "lost", false).await.unwrap();
    let mallory = TakedownTarget::Contributor("mallory".parse().unwrap());
    service.quarantine(&admin, &mallory, &on("broken into")).await.unwrap();
    service.delete_path(&admin, &main, samples[0].path.hash(), "a password").await.unwrap();
    let hidden = TakedownTarget::Path("secret".parse().unwrap(), samples[7].path.hash());
    service.quarantine(&admin, &hidden, &on("under suspicion")).await.unwrap();
    service.compromise_key(&admin, &main, &old_key, "the host was broken into").await.unwrap();
    while service.release_due().await.unwrap() > 0 {
        service.finish().await.unwrap();
    }
    service.publish_whole_log().await;
    service.shut_down().await;
    Lost { backup, old_key, new_key: new_key.public_key.name().clone() }
}

impl Lost {
    /// A host with the folder that `test` has, and the backup in an empty database.
    async fn restored(&self, test: &TestDb) -> TestDb {
        let other =
            if test.db.is_sqlite() { TestDb::sqlite().await } else { TestDb::postgres().await.unwrap() };
        std::fs::copy(testing::vault(test).default_key_file, testing::vault(&other).default_key_file)
            .unwrap();
        copy_folder(&test.folder.path().join("storage"), &other.folder.path().join("storage"));
        let verified = verify_backup(self.backup.as_slice(), secret(test)).await.unwrap();
        verified.restore(self.backup.as_slice(), &other.db, NOON).await.unwrap();
        other
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn open(test: &TestDb) -> Service {
    testing::open(test, &crate::time::Clock::fixed(NOON), testing::vault(test)).await.0
}

/// Every row, but for what differs from run to run: ids that are new, how often something was counted on.
async fn portrait(test: &TestDb, known: &str) -> Vec<String> {
    let mut tx = test.db.begin_snapshot().await.unwrap();
    let mut all = Vec::new();
    for table in TABLES.iter().filter(|table| !matches!(table.name, "change_epoch" | "audit")) {
        let found: Vec<String> = rows(&mut tx, table).try_collect().await.unwrap();
        for row in found {
            let mut row: Value = serde_json::from_str(&row).unwrap();
            let members = row.as_object_mut().unwrap();
            if table.name == "outbox" {
                members.retain(|_, value| value.is_string());
            }
            members.remove("generation");
            for value in members.values_mut() {
                let is_new = |text: &str| text.parse::<uuid::Uuid>().is_ok() && !known.contains(text);
                if value.as_str().is_some_and(is_new) {
                    *value = Value::Null;
                }
            }
            all.push(format!("{} {row}", table.name));
        }
    }
    all.sort();
    all.dedup();
    all
}

/// Every id that stands in a database.
async fn everything(test: &TestDb) -> String {
    let mut tx = test.db.begin_snapshot().await.unwrap();
    let mut all = String::new();
    for table in TABLES {
        let found: Vec<String> = rows(&mut tx, table).try_collect().await.unwrap();
        all.push_str(&found.concat());
    }
    all
}

on_each_database! {
    async fn cut_before_any_commit_and_run_again_it_ends_as_an_uncut_one(test: &TestDb) {
        let lost = lost(test).await;
        let whole = lost.restored(test).await;
        let known = everything(&whole).await;
        let service = open(&whole).await;
        assert!(service.rollback().is_some());
        let recovery = service.recover(&Call::host()).await.unwrap();
        assert_eq!((recovery.paths_adopted, recovery.tokens_revoked), (2, 2), "{recovery:?}");
        service.shut_down().await;
        let expected = portrait(&whole, &known).await;
        whole.finish().await;

        for commits in 0.. {
            let other = lost.restored(test).await;
            let mortal = open(&other).await;
            mortal.inner.db.cut.after(commits);
            let lived = mortal.recover(&Call::host()).await.is_ok();
            mortal.inner.db.cut.after(usize::MAX);
            mortal.shut_down().await;

            let service = open(&other).await;
            assert_eq!(service.rollback().is_none(), lived, "{commits}");
            service.recover(&Call::host()).await.unwrap();
            assert_eq!(portrait(&other, &known).await, expected, "cut before commit {commits}");
            service.shut_down().await;
            let service = open(&other).await;
            assert!(service.rollback().is_none());
            service.shut_down().await;
            other.finish().await;
            if lived {
                // What was taken away, leaves, two paths twice, those that are gone or hidden, the end.
                assert!(commits >= 7, "{commits}");
                break;
            }
        }
    }

    async fn a_lost_key_stays_known_and_signs_nothing_and_a_compromised_one_is_seen_to(test: &TestDb) {
        let lost = lost(test).await;
        let other = lost.restored(test).await;
        let service = open(&other).await;

        let recovery = service.recover(&Call::host()).await.unwrap();

        let told = recovery.lost.join("\n");
        assert!(told.contains(&format!("the secret of the key {} is lost", lost.new_key)), "{told}");
        assert!(told.contains("build trace entries of mallory are void now"), "{told}");
        let mut connection = other.db.read().await.unwrap();
        let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
        let key = async |name: KeyName| {
            signing_keys::named(&mut other.db.read().await.unwrap(), &name).await
        };
        let old = key(lost.old_key.clone()).await.unwrap().unwrap();
        assert_eq!(old.state, KeyState::Compromised);
        let rotation = key_rotations::newest(&mut connection, cache.id).await.unwrap().unwrap();
        assert_eq!((rotation.kind, rotation.new_key.as_ref()), (RotationKind::Compromise, None));
        assert_eq!(rotation.old_key.as_ref(), Some(&old.key.label.id));
        service.shut_down().await;

        // A new start opens what is left, and the rotation makes the key that signs from then on.
        let service = open(&other).await;
        assert!(service.is_open());
        service.advance_rotations().await.unwrap();
        let row = key(lost.new_key.clone()).await.unwrap().unwrap();
        assert!(row.state == KeyState::Retired && row.is_erased(), "{row:?}");
        let anybody = testing::anonymous();
        let trusted = service.public_keys(&anybody, &"main".parse().unwrap()).await.unwrap().keys;
        assert_eq!(trusted.len(), 2, "{trusted:?}");
        assert!(trusted.contains(&row.public_key) && !trusted.contains(&old.public_key));
        let signer = signing_keys::active_of_cache(&mut connection, cache.id).await.unwrap();
        let [signer] = signer.as_slice() else { panic!("{signer:?}") };
        assert!(![&lost.old_key, &lost.new_key].contains(&signer.public_key.name()), "{signer:?}");
        // A backup of this database verifies, lost key and all.
        let again = back_up(&other, &service).await;
        verify_backup(again.as_slice(), secret(&other)).await.unwrap();
        drop(connection);
        service.shut_down().await;
        other.finish().await;
    }
}
