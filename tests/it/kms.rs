//! A key in KMS opens the vault: by itself, while KMS is there; and what happens while it is not, or not any more.

use narvault::api::{SlotView, UnsealRequest, VaultView};

use crate::support::client::TestPath;
use crate::support::kms::{Mood, TestKms, on_each_kms};
use crate::support::server::{Backend, Ended, Site, TestServer};
use crate::support::until;

pub const PASSPHRASE: &str = "correct horse battery staple";

/// Settings as the support takes them.
pub fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

pub async fn status(server: &TestServer) -> VaultView {
    server.admin().vault().await.unwrap()
}

async fn open(server: &TestServer) {
    until("the vault to open", async || (status(server).await.state == "open").then_some(())).await;
}

async fn reads(server: &TestServer, path: &TestPath) {
    let narinfo = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
    assert!(narinfo.assert_status(200).text().contains("\nSig: "), "{}", narinfo.text());
}

/// The server signs.
pub async fn signs(server: &TestServer, name: &str) -> TestPath {
    let path = TestPath::new(name, name);
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    reads(server, &path).await;
    path
}

/// The value of a metric without labels.
async fn metric(server: &TestServer, name: &str) -> String {
    let metrics = server.http().get("/metrics").await;
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {}", metrics.text())).to_owned()
}

/// `narvault check` on the server's host.
async fn check(server: &TestServer, settings: &[(&'static str, String)]) -> Ended {
    let mut command = server.site.command(&borrowed(settings));
    command.arg("check");
    Ended::of(command).await
}

async fn add_passphrase(server: &TestServer) -> SlotView {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passphrase");
    std::fs::write(&file, PASSPHRASE).unwrap();
    let added = server
        .narvault(["vault", "slot", "add", "--json", "--passphrase-file", file.to_str().unwrap()])
        .await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    serde_json::from_str(&added.stdout).unwrap()
}

async fn unseal(server: &TestServer) {
    let body = UnsealRequest { passphrase: Some(PASSPHRASE.to_owned()), ..UnsealRequest::default() };
    assert_eq!(server.admin().vault_unseal(&body).await.unwrap().state, "open");
}

on_each_kms! {
    async fn a_vault_made_with_kms_opens_by_itself_at_the_next_start(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;

        let vault = status(&server).await;

        let [slot] = &vault.slots[..] else { panic!("{vault:?}") };
        assert_eq!((slot.kind.as_str(), slot.kms_key.as_deref()), ("kms", Some(key.as_str())));
        assert!(!server.site.data().join("vault.key").exists(), "a key file was made beside the data");
        assert!(server.process().stderr().contains("KMS alone opens the vault"));
        let words = server.narvault(["vault", "status"]).await.stdout;
        for said in ["WARNING: KMS alone opens the vault", &format!("If {key} is deleted"), "never decrypts again"] {
            assert!(words.contains(said), "{said:?} is not in {words}");
        }
        let path = signs(&server, "before").await;
        server.restart_after_kill(&borrowed(&settings)).await;
        assert_eq!(status(&server).await.state, "open");
        reads(&server, &path).await;
        signs(&server, "after").await;
        server.stop().await;
    }

    async fn while_kms_is_away_a_start_is_sealed_and_reads_go_on_until_it_comes(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let path = signs(&server, "before").await;
        kms.set_mood(Mood::Away);
        // A server that is open already does not notice.
        signs(&server, "meanwhile").await;

        server.restart_after_kill(&borrowed(&settings)).await;

        assert_eq!(status(&server).await.state, "sealed");
        reads(&server, &path).await;
        let refused = server.admin().vault_unseal(&UnsealRequest::default()).await.unwrap_err();
        assert!(refused.to_string().contains("KMS cannot answer now"), "{refused}");
        let log = server.process().stderr();
        assert!(log.contains("KMS cannot answer now: status 503") && log.contains("KMS is asked again"), "{log}");
        // Whoever looks sees what is waited for.
        let wait = status(&server).await.kms_wait.expect("nothing is waited for");
        assert_eq!(wait.key, key);
        let why = "KMS cannot answer now: status 503";
        assert!(wait.said.starts_with(why), "{}", wait.said);
        let words = server.narvault(["vault", "status"]).await.stdout;
        let line = words.lines().find(|line| line.starts_with("waits for:")).expect("no such line");
        assert!(line.contains(&key) && line.contains(why), "{line}");
        assert_eq!(metric(&server, "narvault_vault_waiting_for_kms").await, "1");
        let checked = check(&server, &settings).await;
        assert!(checked.code != Some(0) && checked.stdout.contains("is sealed and asks again"), "{}", checked.stdout);
        let stranger = server.http().get("/readyz").await;
        assert!(!stranger.text().contains(&key), "{}", stranger.text());
        kms.set_mood(Mood::Open);
        open(&server).await;
        until("the waiting to end", async || status(&server).await.kms_wait.is_none().then_some(())).await;
        assert_eq!(metric(&server, "narvault_vault_waiting_for_kms").await, "0");
        assert!(!server.narvault(["vault", "status"]).await.stdout.contains("waits for"));
        signs(&server, "after").await;
        server.stop().await;
    }

    async fn a_key_that_is_disabled_doomed_or_deleted_says_so_and_a_second_slot_opens(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let added = add_passphrase(&server).await;
        assert!(server.narvault(["vault", "status"]).await.stdout.contains("any one of 2 secrets opens the vault"));

        for (change, words) in [("disable", "is disabled"), ("doom", "scheduled for deletion"), ("delete", "KMS has no key")] {
            match change {
                "disable" => kms.disable(&key).await,
                "doom" => kms.schedule_deletion(&key).await,
                _ => kms.delete(&key),
            }
            server.restart_after_kill(&borrowed(&settings)).await;

            assert_eq!(status(&server).await.state, "sealed", "{change}");
            let refused = server.narvault(["vault", "unseal", "--configured"]).await;
            assert_ne!(refused.code, Some(0), "{change}");
            assert!(refused.stderr.contains(words), "{words:?} is not in {}", refused.stderr);
            assert!(server.process().stderr().contains(words), "{}", server.process().stderr());
            unseal(&server).await;
            signs(&server, change).await;
        }
        // The dead slot can go, and the other one stays.
        let slots = status(&server).await.slots;
        let dead = slots.iter().find(|slot| slot.kind == "kms").unwrap();
        server.admin().slot_remove(&dead.id).await.unwrap();
        assert_eq!(status(&server).await.slots.iter().map(|slot| &slot.id).collect::<Vec<_>>(), [&added.id]);
        server.stop().await;
    }

    async fn a_key_that_is_enabled_again_opens_without_anybody(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        kms.disable(&key).await;
        server.restart_after_kill(&borrowed(&settings)).await;
        assert_eq!(status(&server).await.state, "sealed");

        kms.enable(&key).await;

        open(&server).await;
        server.stop().await;
    }

    async fn a_seal_by_hand_ends_the_waiting(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        kms.set_mood(Mood::Away);
        server.restart_after_kill(&borrowed(&settings)).await;

        server.admin().vault_seal().await.unwrap();
        kms.set_mood(Mood::Open);

        let process = server.process();
        until("the waiting to end", async || {
            process.stderr().contains("not waited for any more: the vault was sealed by hand").then_some(())
        })
        .await;
        assert_eq!(status(&server).await.state, "sealed");
        let opened = server.admin().vault_unseal(&UnsealRequest::default()).await.unwrap();
        assert_eq!((opened.state.as_str(), opened.sealed_by_hand), ("open", false));
        server.stop().await;
    }

    async fn an_unseal_by_another_slot_ends_the_waiting(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        add_passphrase(&server).await;
        kms.set_mood(Mood::Refusing("AccessDeniedException", "not this one"));
        server.restart_after_kill(&borrowed(&settings)).await;
        assert!(server.process().stderr().contains("does not let this server use"));

        unseal(&server).await;

        let process = server.process();
        until("the waiting to end", async || {
            process.stderr().contains("not waited for any more: the vault was opened otherwise").then_some(())
        })
        .await;
        server.stop().await;
    }

    async fn replicas_that_start_together_open_by_one_key(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let settings = kms.settings(&key);
        let settings = borrowed(&settings);
        let (one, two) = if site.database_url().is_some() {
            tokio::join!(site.spawn(&settings), site.spawn(&settings))
        } else {
            (site.spawn(&settings).await, site.spawn(&settings).await)
        };

        let claims: Vec<_> = [&one, &two].into_iter().filter_map(|replica| replica.told("--claim ")).collect();

        assert_eq!(claims.len(), 1);
        for replica in [&one, &two] {
            let ready = crate::support::client::Http::new(&replica.url).get("/readyz").await;
            assert!(!ready.text().contains("sealed"), "{}", replica.stderr());
        }
    }

    async fn the_slot_key_is_in_no_log_however_much_is_logged(kms: TestKms, site: Site) {
        let key = kms.key().await;
        let mut settings = kms.settings(&key);
        settings.push(("RUST_LOG", "trace".to_owned()));
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let mut log = server.process().stderr();

        server.restart_after_kill(&borrowed(&settings)).await;

        log.push_str(&server.process().stderr());
        assert!(log.contains("TRACE"), "the log has no traces to look through");
        let [slot_key] = &kms.heard()[..] else { panic!("more than one key was encrypted") };
        assert_eq!(slot_key.len(), 32);
        for spelled in [data_encoding::BASE64.encode(slot_key), data_encoding::HEXLOWER.encode(slot_key), format!("{slot_key:?}")] {
            assert!(!log.contains(&spelled[..20]), "the slot key is in the log");
        }
        server.stop().await;
    }
}

/// What a first start that comes to nothing says.
async fn refused_start(site: &Site, settings: &[(&'static str, String)]) -> Ended {
    let mut command = site.command(&borrowed(settings));
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    Ended::of(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_kms_refuses_makes_nothing_and_can_be_repeated() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let kms = TestKms::here().await;
    let key = kms.key().await;
    let nobody: Vec<_> = kms
        .settings(&key)
        .into_iter()
        .filter(|(name, _)| !name.starts_with("AWS_"))
        .chain([("AWS_REGION", "us-east-1".to_owned())])
        .collect();
    let nowhere: Vec<_> =
        kms.settings("alias/a").into_iter().filter(|(name, _)| *name != "AWS_REGION").collect();
    let mut closed = kms.settings(&key);
    closed.push(("NARVAULT_VAULT_KMS_ENDPOINT", "http://127.0.0.1:1".to_owned()));

    for (settings, mood, words) in [
        (&kms.settings("alias/none"), Mood::Open, "KMS has no key alias/none"),
        (
            &kms.settings(&key),
            Mood::Refusing("AccessDeniedException", "no"),
            "allow its credentials `kms:Encrypt`",
        ),
        (&kms.settings(&key), Mood::Away, "KMS cannot answer now"),
        (&kms.settings(&key), Mood::Silent, "KMS does not answer"),
        (&kms.settings(&key), Mood::Lying(31), "what it decrypted is not 32 bytes"),
        (&kms.settings(&key), Mood::Lying(32), "it decrypts what it encrypted to something else"),
        (&closed, Mood::Open, "KMS does not answer"),
        (&nobody, Mood::Open, "no usable AWS credentials"),
        (&nowhere, Mood::Open, "no region is known"),
    ] {
        kms.set_mood(mood.clone());

        let refused = refused_start(&site, settings).await;

        assert_eq!(refused.code, Some(1), "{mood:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{mood:?}: {words:?} is not in {}", refused.stderr);
    }
    kms.set_mood(Mood::Open);
    let settings = kms.settings(&key);
    let server = TestServer::spawn_on(site, &borrowed(&settings)).await;
    signs(&server, "at-last").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_configured_at_the_first_start_opens_the_vault_by_itself() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let kms = TestKms::here().await;
    let key = kms.key().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let key_file = ("NARVAULT_VAULT_KEY_FILE", file("vault.key", &[7; 32]));
    let passphrase = ("NARVAULT_VAULT_PASSPHRASE_FILE", file("passphrase", PASSPHRASE.as_bytes()));
    let all = [kms.settings(&key), vec![key_file.clone(), passphrase.clone()]].concat();

    let mut server = TestServer::spawn_on(site, &borrowed(&all)).await;

    let mut kinds: Vec<String> = status(&server).await.slots.into_iter().map(|slot| slot.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["key-file", "kms", "passphrase"]);
    for settings in [kms.settings(&key), vec![key_file.clone()], vec![passphrase]] {
        server.restart_after_kill(&borrowed(&settings)).await;
        assert_eq!(status(&server).await.state, "open", "{settings:?}");
    }
    // One that does not open leaves it to the next.
    let wrong = ("NARVAULT_VAULT_KEY_FILE", file("wrong.key", &[8; 32]));
    server.restart_after_kill(&borrowed(&[kms.settings(&key), vec![wrong]].concat())).await;
    assert_eq!(status(&server).await.state, "open");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_kms_holds_a_start_up_for_seconds_only() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let kms = TestKms::here().await;
    let key = kms.key().await;
    let settings = kms.settings(&key);
    let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
    kms.set_mood(Mood::Silent);

    let begun = std::time::Instant::now();
    server.restart_after_kill(&borrowed(&settings)).await;

    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    assert_eq!(status(&server).await.state, "sealed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_leads_to_another_key_does_not_open_and_says_which_did() {
    for kms in [Some(TestKms::here().await), TestKms::moto().await].into_iter().flatten() {
        let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
        let (alias, first, second) =
            (format!("alias/{}", uuid::Uuid::now_v7()), kms.key().await, kms.key().await);
        kms.alias(&alias, &first).await;
        let settings = kms.settings(&alias);
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        assert_eq!(status(&server).await.slots[0].kms_key.as_deref(), Some(first.as_str()));

        kms.alias(&alias, &second).await;
        server.restart_after_kill(&borrowed(&settings)).await;

        assert_eq!(status(&server).await.state, "sealed");
        let log = server.process().stderr();
        // moto has another word for it.
        assert!(
            log.contains(&format!("made with the KMS key {first}")) || log.contains("does not let"),
            "{log}"
        );
        server.restart_after_kill(&borrowed(&kms.settings(&first))).await;
        assert_eq!(status(&server).await.state, "open");
        server.stop().await;
    }
}
