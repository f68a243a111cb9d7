//! Slots of keys in KMS as rows: added, listed, moved, altered; what `check` and backups make of them.

use narvault::api::{SlotView, VaultView};
use serde_json::{Value, json};

use crate::kms::{borrowed, signs, status};
use crate::support::database::DatabaseKind;
use crate::support::kms::{Mood, TestKms, on_each_kms};
use crate::support::rows;
use crate::support::server::{Ended, Site, TestServer};

async fn params(site: &Site, slot: &str) -> String {
    rows::text(site, format!("SELECT params FROM vault_slots WHERE id = '{slot}'")).await
}

async fn set_params(site: &Site, slot: &str, params: &str) {
    rows::execute(site, format!("UPDATE vault_slots SET params = '{params}' WHERE id = '{slot}'")).await;
}

async fn add(server: &TestServer, key: &str) -> Ended {
    server.narvault(["vault", "slot", "add", "--json", "--kms", key]).await
}

fn json<T: serde::de::DeserializeOwned>(ended: &Ended) -> T {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Starts the server anew; it has to be sealed, and to say why.
async fn starts_sealed(server: &mut TestServer, settings: &[(&'static str, String)], why: &str) {
    server.restart_after_kill(&borrowed(settings)).await;
    assert_eq!(status(server).await.state, "sealed", "{why}");
    let log = server.process().stderr();
    assert!(log.contains(why), "{why:?} is not in {log}");
}

on_each_kms! {
    async fn a_slot_of_a_key_joins_the_others_and_goes_like_them(kms: TestKms, site: Site) {
        let (first, second) = (kms.key().await, kms.key().await);
        let settings = kms.settings(&first);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let old = status(&server).await.slots.remove(0);

        let added = add(&server, &second).await;

        assert!(added.stderr.contains(&format!("vault.kms.key_id = \"{second}\"")), "{}", added.stderr);
        let added: SlotView = json(&added);
        assert_eq!((added.kind.as_str(), added.kms_key.as_deref()), ("kms", Some(second.as_str())));
        let words = server.narvault(["vault", "status"]).await.stdout;
        assert!(words.contains("only KMS opens the vault, by any one of 2 keys") && words.contains(&second), "{words}");
        let audit = server.narvault(["audit", "list", "--action", "vault-slot-add", "--json"]).await.stdout;
        assert!(audit.contains(&second), "{audit}");
        // A server opens by the key that it is told of, and asks no other.
        server.restart_after_kill(&borrowed(&kms.settings(&second))).await;
        assert_eq!(status(&server).await.state, "open");
        let after: VaultView = json(&server.narvault(["vault", "slot", "remove", &old.id, "--yes", "--json"]).await);
        assert_eq!(after.slots.iter().map(|slot| &slot.id).collect::<Vec<_>>(), [&added.id]);
        let last = server.narvault(["vault", "slot", "remove", &added.id, "--yes"]).await;
        assert_eq!(last.code, Some(4), "{}", last.stderr);
        starts_sealed(&mut server, &settings, "vault has no slot of the KMS key").await;
        server.restart_after_kill(&borrowed(&kms.settings(&second))).await;
        signs(&server, "after").await;
        server.stop().await;
    }

    async fn a_slot_that_could_not_be_opened_is_not_added(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let server = TestServer::spawn_on(site, &borrowed(&settings)).await;

        for (named, mood, words) in [
            ("alias/none", Mood::Open, "KMS has no key alias/none"),
            ("not a key", Mood::Open, "kms.key_id: is neither the ARN nor the id"),
            (key.as_str(), Mood::Away, "KMS cannot answer now"),
            (key.as_str(), Mood::Refusing("AccessDeniedException", "no"), "kms:Decrypt"),
            (key.as_str(), Mood::Refusing("InvalidKeyUsageException", ""), "symmetric"),
            (key.as_str(), Mood::Lying(32), "decrypts what it encrypted to something else"),
        ] {
            kms.set_mood(mood.clone());

            let refused = add(&server, named).await;

            assert!(refused.code != Some(0) && refused.stderr.contains(words), "{mood:?}: {}", refused.stderr);
        }
        kms.set_mood(Mood::Open);
        assert_eq!(status(&server).await.slots.len(), 1);
        for (body, status, slug) in [
            (json!({ "kms": {} }), 400, "bad-json"),
            (json!({ "kms": { "key_id": key, "endpoint": "http://example.org" } }), 400, "bad-json"),
            (json!({ "kms": { "key_id": "" } }), 422, "invalid-value"),
            (json!({ "kms": { "key_id": "alias/none" } }), 422, "kms-refused"),
            (json!({ "kms": { "key_id": key }, "passphrase": "correct horse battery staple" }), 422, "invalid-value"),
        ] {
            let answer = post(&server, server.admin_token(), &body).await;
            assert_eq!((answer.0, answer.1.ends_with(slug)), (status, true), "{body}: {answer:?}");
        }
        let pusher = server.token("ci", &["push:main"]).await;
        assert_eq!(post(&server, &pusher.text, &json!({ "kms": { "key_id": key } })).await.0, 403);
        server.admin().vault_seal().await.unwrap();
        let sealed = post(&server, server.admin_token(), &json!({ "kms": { "key_id": key } })).await;
        assert_eq!((sealed.0, sealed.1.ends_with("sealed")), (503, true), "{sealed:?}");
        server.stop().await;
    }

    async fn what_was_moved_or_altered_opens_nothing(kms: TestKms, site: Site) {
        let (key, other) = (kms.key().await, kms.key().await);
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let one = status(&server).await.slots.remove(0).id;
        let two: SlotView = json(&add(&server, &key).await);
        server.admin().slot_remove(&one).await.unwrap();
        let two = two.id;
        let right = params(&server.site, &two).await;
        let (head, ciphertext) = right.rsplit_once('$').unwrap();
        let at = ciphertext.len() / 2;
        let letter = if &ciphertext[at..=at] == "A" { "B" } else { "A" };
        let altered = format!("{head}${}{letter}{}", &ciphertext[..at], &ciphertext[at + 1..]);

        for (params, why) in [
            (altered, "does not decrypt this slot's key"),
            // Another key's, which the server has a right to as well: it asks only the configured one.
            (right.replace(&key, &other), "vault has no slot of the KMS key"),
            (format!("{right}="), "parameters are not of the form"),
            (right.replace("v=1", "v=2"), "parameters are not of the form"),
            (right.replace("arn:aws", "arn"), "key is not named by an ARN"),
            (format!("{right}{}", "A".repeat(2048)), "at most 2048 are taken"),
            (String::new(), "parameters are not of the form"),
        ] {
            set_params(&server.site, &two, &params).await;
            starts_sealed(&mut server, &settings, why).await;
        }
        // The other end of it: the ciphertext is right, and the row's id is another one.
        set_params(&server.site, &two, &right).await;
        rows::execute(&server.site, format!("UPDATE vault_slots SET id = '{one}x' WHERE id = '{two}'")).await;
        starts_sealed(&mut server, &settings, "is that of another slot or cluster").await;
        rows::execute(&server.site, format!("UPDATE vault_slots SET id = '{two}' WHERE id = '{one}x'")).await;
        server.restart_after_kill(&borrowed(&settings)).await;
        assert_eq!(status(&server).await.state, "open", "{}", server.process().stderr());
        server.stop().await;
    }

    async fn a_slot_of_another_cluster_opens_nothing(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let another = Site::new(site.backend).await.unwrap();
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let foreign = TestServer::spawn_on(another, &borrowed(&settings)).await;
        let own = status(&server).await.slots.remove(0).id;
        let theirs = status(&foreign).await.slots.remove(0).id;
        let params = params(&foreign.site, &theirs).await;

        rows::execute(&server.site, format!("UPDATE vault_slots SET id = '{theirs}', params = '{params}' WHERE id = '{own}'")).await;

        starts_sealed(&mut server, &settings, "is that of another slot or cluster").await;
        server.stop().await;
        foreign.stop().await;
    }

    async fn check_lets_the_key_encrypt_and_decrypt(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let check = async |site: &Site| {
            let mut command = site.command(&borrowed(&settings));
            command.arg("check");
            Ended::of(command).await
        };

        let before = check(&site).await;
        let server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let good = check(&server.site).await;
        kms.disable(&key).await;
        let bad = check(&server.site).await;

        let works = format!("{key} encrypts, and decrypts it again");
        assert!(before.code == Some(0) && before.stdout.contains(&works), "{}{}", before.stdout, before.stderr);
        assert_eq!(good.code, Some(0), "{}{}", good.stdout, good.stderr);
        for words in [works.as_str(), "the configured kms opens slot", "KMS alone opens the vault: 1 slots (kms)"] {
            assert!(good.stdout.contains(words), "{words:?} is not in {}", good.stdout);
        }
        assert_eq!(bad.code, Some(1), "{}", bad.stdout);
        for words in ["is disabled: enable it", "a server that starts now is sealed"] {
            assert!(bad.stdout.contains(words), "{words:?} is not in {}", bad.stdout);
        }
        server.stop().await;
    }

    async fn a_backup_opens_by_the_key_on_another_machine(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let path = signs(&server, "path").await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("narvault.backup").display().to_string();
        let run = async |site: &Site, arguments: &[&str]| {
            let mut command = site.command(&borrowed(&settings));
            command.args(arguments);
            Ended::of(command).await
        };
        let made = run(&server.site, &["backup", &file]).await;
        assert_eq!(made.code, Some(0), "{}", made.stderr);
        let site = server.stop().await.on_another_machine(DatabaseKind::Sqlite).await.unwrap();

        let verified = run(&site, &["backup", "verify", &file]).await;
        kms.set_mood(Mood::Away);
        let away = run(&site, &["restore", &file]).await;
        kms.set_mood(Mood::Open);
        let restored = run(&site, &["restore", &file]).await;

        assert_eq!(verified.code, Some(0), "{}", verified.stderr);
        assert!(away.code == Some(1) && away.stderr.contains("KMS cannot answer now"), "{}", away.stderr);
        assert_eq!(restored.code, Some(0), "{}", restored.stderr);
        let process = site.spawn(&borrowed(&settings)).await;
        let http = crate::support::client::Http::new(&process.url);
        assert!(!http.get("/readyz").await.text().contains("sealed"), "{}", process.stderr());
        http.get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(200);
    }
}

/// Asks for a slot; status and problem.
async fn post(server: &TestServer, token: &str, body: &Value) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = http.post(format!("{}/api/v1/vault/slots", server.url)).bearer_auth(token).json(body);
    let answer = asked.send().await.unwrap();
    let status = answer.status().as_u16();
    let answer: Value = answer.json().await.unwrap();
    (status, answer["type"].as_str().unwrap_or_default().to_owned())
}
