//! What opens the vault can be added to and taken away while the server serves, and the last of it stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use narvault::api::{SlotView, VaultView};

use crate::support::client::TestPath;
use crate::support::database::on_each_database;
use crate::support::server::{Ended, TestServer};

fn json<T: serde::de::DeserializeOwned>(ended: &Ended) -> T {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

async fn add(server: &TestServer, flag: &str, file: &std::path::Path) -> Ended {
    server.narvault(["vault", "slot", "add", "--json", flag, file.to_str().unwrap()]).await
}

on_each_database! {
    async fn a_passphrase_joins_the_key_file_and_replaces_it(server: TestServer) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("passphrase");
        std::fs::write(&file, "correct horse battery staple\n").unwrap();
        let before: VaultView = json(&server.narvault(["vault", "status", "--json"]).await);
        let [first] = &before.slots[..] else { panic!("{before:?}") };
        let alone = server.narvault(["vault", "status"]).await;
        assert!(alone.stdout.contains("if it is lost, so is every signing key"), "{}", alone.stdout);

        let added: SlotView = json(&add(&server, "--passphrase-file", &file).await);

        assert_eq!(added.kind, "passphrase");
        let both = server.narvault(["vault", "status"]).await;
        assert!(both.stdout.contains("any one of 2 secrets opens the vault"), "{}", both.stdout);
        let unconfirmed = server.narvault(["vault", "slot", "remove", &first.id]).await;
        assert_eq!(unconfirmed.code, Some(2), "{}", unconfirmed.stderr);
        let after: VaultView = json(&server.narvault(["vault", "slot", "remove", &first.id, "--yes", "--json"]).await);
        assert_eq!(after.slots.iter().map(|slot| &slot.id).collect::<Vec<_>>(), [&added.id]);
        let last = server.narvault(["vault", "slot", "remove", &added.id, "--yes"]).await;
        assert_eq!(last.code, Some(4), "{}", last.stderr);
        assert!(last.stderr.contains("this is the last slot"), "{}", last.stderr);
        server.admin().vault_seal().await.unwrap();
        let unseal = ["vault", "unseal", "--passphrase-file", file.to_str().unwrap()];
        assert_eq!(server.narvault(unseal).await.code, Some(0));
        let wrong = server.narvault(["vault", "unseal", "--configured"]).await;
        assert_ne!(wrong.code, Some(0), "the key file opens nothing any more");
        server.stop().await;
    }

    async fn a_passphrase_is_changed_at_once_and_stays_what_it_was_if_it_is_not_known(server: TestServer) {
        let folder = tempfile::tempdir().unwrap();
        let [former, new, wrong] = ["former", "new", "wrong"].map(|name| {
            let file = folder.path().join(name);
            std::fs::write(&file, format!("correct {name} battery staple\n")).unwrap();
            file
        });
        let before: SlotView = json(&add(&server, "--passphrase-file", &former).await);
        let change = async |former: &std::path::Path, new: &std::path::Path| {
            let files = ["--former-file", former.to_str().unwrap(), "--new-file", new.to_str().unwrap()];
            server.narvault([&["vault", "passphrase", "change", "--json"][..], &files].concat()).await
        };

        let refused = change(&wrong, &new).await;
        let same = change(&former, &former).await;
        let changed = change(&former, &new).await;

        assert_eq!(refused.code, Some(4), "{}", refused.stderr);
        assert!(refused.stderr.contains("former: this passphrase opens no slot of the vault"), "{}", refused.stderr);
        assert!(same.code != Some(0) && same.stderr.contains("new: is the former one"), "{}", same.stderr);
        assert!(changed.stderr.contains("`vault.passphrase_file`"), "{}", changed.stderr);
        let after: SlotView = json(&changed);
        let vault: VaultView = json(&server.narvault(["vault", "status", "--json"]).await);
        assert!(vault.slots.len() == 2 && vault.slots.iter().all(|slot| slot.id != before.id), "{vault:?}");
        assert!(vault.slots.iter().any(|slot| slot.id == after.id && slot.kind == "passphrase"), "{vault:?}");
        server.admin().vault_seal().await.unwrap();
        for (file, opens) in [(&former, false), (&new, true)] {
            let ended = server.narvault(["vault", "unseal", "--passphrase-file", file.to_str().unwrap()]).await;
            assert_eq!(ended.code == Some(0), opens, "{}", ended.stderr);
        }
        let audit = server.narvault(["audit", "list", "--action", "vault-passphrase-change", "--json"]).await.stdout;
        assert!(audit.contains(&before.id) && audit.contains(&after.id), "{audit}");
        server.stop().await;
    }

    async fn pushes_do_not_notice_that_slots_and_passphrases_change(server: TestServer) {
        let folder = tempfile::tempdir().unwrap();
        let [former, new] = ["former", "new"].map(|name| {
            let file = folder.path().join(name);
            std::fs::write(&file, format!("correct {name} battery staple\n")).unwrap();
            file
        });
        let key_file = folder.path().join("vault.key");
        std::fs::write(&key_file, [7; 32]).unwrap();
        std::fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let alice = server.token("alice", &["push:main"]).await.http;
        let done = Arc::new(AtomicBool::new(false));
        let pushers = (0..2).map(|pusher| {
            let (alice, done) = (alice.clone(), done.clone());
            tokio::spawn(async move {
                let mut pushed = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let path = TestPath::new("path", format!("{pusher} {}", pushed.len()));
                    // Panics on any other answer than that it was published.
                    alice.push("main", &path).await;
                    pushed.push(path);
                }
                pushed
            })
        });
        let pushers: Vec<_> = pushers.collect();

        let passphrase: SlotView = json(&add(&server, "--passphrase-file", &former).await);
        let files = ["--former-file", former.to_str().unwrap(), "--new-file", new.to_str().unwrap()];
        let change = [&["vault", "passphrase", "change", "--json"][..], &files].concat();
        let changed: SlotView = json(&server.narvault(change).await);
        let file: SlotView = json(&add(&server, "--key-file", &key_file).await);
        let split = server.narvault(["vault", "slot", "add", "--json", "--shares", "2/3"]).await;
        let shares: SlotView = json(&split);
        for slot in [&changed, &file, &shares] {
            let removed = server.narvault(["vault", "slot", "remove", &slot.id, "--yes"]).await;
            assert_eq!(removed.code, Some(0), "{}", removed.stderr);
        }

        done.store(true, Ordering::Relaxed);
        let mut count = 0;
        for pusher in pushers {
            for path in pusher.await.unwrap() {
                let narinfo = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
                assert!(narinfo.assert_status(200).text().contains("\nSig: "), "{}", narinfo.text());
                count += 1;
            }
        }
        assert!(count > 20, "{count} pushes are too few to notice anything");
        assert_ne!(passphrase.id, changed.id);
        server.stop().await;
    }

    async fn a_key_file_is_checked_before_it_is_sent(server: TestServer) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.key");
        for (bytes, mode, why) in [(31, 0o600, "31 bytes"), (32, 0o644, "chmod 600")] {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(&file, vec![7; bytes]).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();

            let refused = add(&server, "--key-file", &file).await;

            assert_eq!(refused.code, Some(2), "{}", refused.stderr);
            assert!(refused.stderr.contains(why), "{}", refused.stderr);
        }
        server.stop().await;
    }
}
