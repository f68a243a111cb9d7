//! The vault's own keys are put in the places of others while the server serves: no request fails for it, no crash loses a
//! row, and what the commands refuse stays as it was.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use narvault::api::{TokenCreate, VaultView};
use narvault::db::signing_keys::{KeyRow, KeyState};
use narvault::db::{Db, DbSettings, Gate, caches, signing_keys, vault};
use narvault::nix::signature::PublicKey;
use narvault::time::Clock;
use narvault::vault::{KeyFile, KeyLabel, OpenVault, Purpose, SlotSecret};
use uuid::Uuid;

use crate::support::client::{Http, TestPath};
use crate::support::database::on_each_database;
use crate::support::server::{Backend, Ended, TestServer};
use crate::support::until;

const PASSPHRASE: &str = "correct horse battery staple";

/// Enough for some batches. What 10 000 take is measured by `benches/rekey.rs`.
const KEYS: u32 = 500;

async fn database(server: &TestServer) -> Db {
    let settings = match server.site.database_url() {
        Some(url) => DbSettings::Postgres { url: url.parse().unwrap(), connections_max: 2 },
        None => DbSettings::Sqlite { path: server.site.data().join("narvault.db") },
    };
    Db::open(&settings).await.unwrap()
}

/// The vault as whoever has the key file opens it.
async fn opened(server: &TestServer, db: &Db) -> OpenVault {
    let mut snapshot = db.begin_snapshot().await.unwrap();
    let slots = vault::slots(&mut snapshot).await.unwrap();
    let slots: Vec<_> = slots.into_iter().map(|(slot, _)| slot).collect();
    let keks = vault::keks(&mut snapshot).await.unwrap();
    let cluster = narvault::db::cluster::read(&mut snapshot).await.unwrap().unwrap();
    let secret = SlotSecret::KeyFile(KeyFile::read(&server.site.data().join("vault.key")).unwrap());
    OpenVault::open(&cluster.cluster_id, &slots, &keks, &secret).unwrap()
}

/// Keys of `main` that do not sign, as rows: a call for each would take longer.
async fn add_keys(server: &TestServer) {
    let db = database(server).await;
    let open = opened(server, &db).await;
    let mut tx = db.begin(Gate::Exclusive).await.unwrap();
    let cache = caches::by_name(&mut tx, &"main".parse().unwrap()).await.unwrap().unwrap();
    for number in 0..KEYS {
        let label = KeyLabel {
            id: Uuid::now_v7().to_string(),
            name: format!("extra-{number}"),
            version: number + 2,
            purpose: Purpose::Cache,
            cache_id: Some(cache.id.to_string()),
        };
        let key = open.seal_new_key(label).unwrap();
        let public_key = PublicKey::new(key.label.name.parse().unwrap(), &key.public_key).unwrap();
        let created_at = Clock::System.now();
        let row = KeyRow { key, public_key, state: KeyState::Next, imported: false, created_at };
        signing_keys::insert(&mut tx, &row).await.unwrap();
    }
    tx.commit().await.unwrap();
    db.close().await;
}

/// Every key opens, and under which key-encryption keys they lie.
async fn keks_of_keys(server: &TestServer) -> Vec<u32> {
    let db = database(server).await;
    let open = opened(server, &db).await;
    let mut keks = Vec::new();
    let mut connection = db.read().await.unwrap();
    for purpose in [Purpose::Cache, Purpose::Log, Purpose::Token] {
        for row in signing_keys::by_purpose(&mut connection, purpose).await.unwrap() {
            open.open_key(&row.key).unwrap_or_else(|error| panic!("{}: {error}", row.key.label.name));
            keks.push(row.key.sealed.kek_version());
        }
    }
    drop(connection);
    db.close().await;
    keks.sort_unstable();
    keks.dedup();
    keks
}

/// Pushes, reads and mints, at each of these servers, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn begin(server: &TestServer, token: &str, urls: &[String]) -> Self {
        let mut load = Self { stop: Arc::default(), answered: Arc::default(), tasks: Vec::new() };
        for (place, url) in urls.iter().enumerate() {
            let pusher = Http::new(url).with_token(token);
            for lane in 0..2 {
                load.lane(format!("{place}-{lane}"), pusher.clone());
            }
            let token = server.admin_token().to_owned().into();
            let admin = narvault::client::Client::new(url.parse().unwrap(), Some(&token), false).unwrap();
            let (stop, answered) = (load.stop.clone(), load.answered.clone());
            load.tasks.push(tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let asked = TokenCreate {
                        contributor: "ci".to_owned(),
                        scopes: vec!["push:main".to_owned()],
                        expires_in_seconds: None,
                        note: None,
                    };
                    match admin.token_issue(&asked).await {
                        Ok(_) => answered.fetch_add(1, Ordering::SeqCst),
                        Err(error) => {
                            failed.push(format!("mint: {error}"));
                            0
                        }
                    };
                }
                failed
            }));
        }
        load
    }

    fn lane(&mut self, name: String, http: Http) {
        let (stop, answered) = (self.stop.clone(), self.answered.clone());
        self.tasks.push(tokio::spawn(async move {
            let mut failed = Vec::new();
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let path = TestPath::new("path", format!("{name} {number}"));
                let put_nar = http.put_nar("main", &path).await;
                let put_narinfo = http.put_narinfo("main", &path).await;
                let get = http.get(&format!("/main/{}.narinfo", path.hash())).await;
                for (answer, status) in [(put_nar, 201), (put_narinfo, 201), (get, 200)] {
                    if answer.status != status {
                        failed.push(format!("{}: {}", answer.status, answer.text()));
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
            failed
        }));
    }

    /// Waits until so many more requests were answered.
    async fn goes_on(&self, requests: u64) {
        let until_now = self.answered.load(Ordering::SeqCst);
        until("requests", async || {
            (self.answered.load(Ordering::SeqCst) >= until_now + requests).then_some(())
        })
        .await;
    }

    async fn ends_without_a_failure(self) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            let failed = task.await.unwrap();
            assert!(failed.is_empty(), "{failed:?}");
        }
    }
}

async fn pusher(server: &TestServer) -> String {
    server.token("ci", &["push:main"]).await.text
}

async fn rotated(server: &TestServer, arguments: &[&str]) -> VaultView {
    json(&server.narvault([&["vault"], arguments, &["--json"]].concat()).await)
}

fn json<T: serde::de::DeserializeOwned>(ended: &Ended) -> T {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

on_each_database! {
    async fn no_request_fails_while_every_key_is_sealed_anew(server: TestServer) {
        add_keys(&server).await;
        let load = Load::begin(&server, &pusher(&server).await, std::slice::from_ref(&server.url));
        load.goes_on(20).await;

        for kek in 2..4 {
            let done = rotated(&server, &["rotate-kek", "--wait"]).await;
            assert_eq!((done.kek_version, done.rows_behind), (kek, 0));
            let rotation = done.kek_rotation.unwrap();
            assert_eq!((rotation.state.as_str(), rotation.done), ("done", rotation.total));
            assert!(rotation.total > u64::from(KEYS));
            load.goes_on(20).await;
        }

        load.ends_without_a_failure().await;
        assert_eq!(keks_of_keys(&server).await, [3]);
        let metrics = server.http().get("/metrics").await;
        assert!(metrics.text().contains("narvault_kek_rows_behind 0"), "{}", metrics.text());
        assert!(metrics.text().contains("narvault_kek_rows_damaged 0"), "{}", metrics.text());
        server.stop().await;
    }

    async fn the_commands_show_what_goes_on_and_refuse_what_would_lock_the_vault(server: TestServer) {
        let folder = tempfile::tempdir().unwrap();
        let (file, wrong) = (folder.path().join("passphrase"), folder.path().join("wrong"));
        std::fs::write(&file, PASSPHRASE).unwrap();
        std::fs::write(&wrong, "incorrect horse battery").unwrap();
        std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let first = server.admin().vault().await.unwrap().slots.remove(0).id;
        let added = server.narvault(["vault", "slot", "add", "--json", "--passphrase-file", text(&file)]).await;
        let second = json::<narvault::api::SlotView>(&added).id;
        let nobody = Uuid::nil().to_string();

        for (arguments, code, told) in [
            (vec!["--yes"], 4, second.as_str()),
            (vec!["--yes", "--passphrase-file", text(&wrong)], 4, "opens none of the slots that stay"),
            (vec!["--yes", "--drop-slot", &nobody], 1, "no such slot"),
            (vec!["--yes", "--drop-slot", "x"], 4, "is not the id of a slot"),
            (vec!["--yes", "--drop-slot", &first, "--drop-slot", &second], 4, "at least one slot has to stay"),
            (vec!["--drop-slot", &second], 2, "nobody is there to confirm"),
            (vec!["--yes", "--wait"], 2, "--with-kek"),
            (vec!["--yes", "--key-file", text(&wrong)], 2, "23 bytes"),
        ] {
            let ended = server.narvault([&["vault", "rotate-root"], &arguments[..]].concat()).await;
            assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(told), "{arguments:?}: {}", ended.stderr);
        }
        let before = server.admin().vault().await.unwrap();
        assert_eq!((before.root_version, before.kek_version, before.slots.len()), (1, 1, 2));

        let ended = server.narvault(["vault", "rotate-root", "--yes", "--passphrase-file", text(&file)]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains("number 2") && ended.stdout.contains("still with an older one"), "{}", ended.stdout);
        assert!(ended.stderr.contains("narvault vault rotate-kek"), "{}", ended.stderr);
        let ended = server.narvault(["vault", "rotate-kek", "--wait"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains("key-encryption key 3\n"), "{}", ended.stdout);
        let dropped = ["rotate-root", "--yes", "--drop-slot", &first, "--passphrase-file", text(&file)];
        let after = rotated(&server, &dropped).await;
        assert_eq!(after.slots.iter().map(|slot| &slot.id).collect::<Vec<_>>(), [&second]);
        server.admin().vault_seal().await.unwrap();
        let ended = server.narvault(["vault", "rotate-kek"]).await;
        assert!(ended.code != Some(0) && ended.stderr.contains("sealed"), "{}", ended.stderr);
        let ended = server.narvault(["vault", "unseal", "--configured"]).await;
        assert_ne!(ended.code, Some(0), "the dropped key file opens nothing");
        let unseal = ["vault", "unseal", "--passphrase-file", text(&file)];
        assert_eq!(server.narvault(unseal).await.code, Some(0));
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_to_either_replica_fails_while_keys_are_rotated_through_one() {
    let Some(server) = TestServer::start(Backend::POSTGRES_DISK).await else {
        return println!("skipped: no Postgres");
    };
    let other = server.site.start_here(Clock::System, &[]).await;
    let other_url = format!("http://{}", other.http.address);
    add_keys(&server).await;
    let load = Load::begin(&server, &pusher(&server).await, &[server.url.clone(), other_url]);
    load.goes_on(20).await;

    rotated(&server, &["rotate-kek", "--wait"]).await;
    load.goes_on(20).await;
    // The root key, too: the other replica has the same key file.
    rotated(&server, &["rotate-root", "--with-kek", "--wait", "--yes"]).await;
    load.goes_on(20).await;

    load.ends_without_a_failure().await;
    assert_eq!(keks_of_keys(&server).await, [3]);
    other.shut_down().await.unwrap();
    server.stop().await;
}

/// Kills a server while it seals keys anew, some times, and lets the last one come to the end.
async fn a_server_that_is_killed_goes_on(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    add_keys(&server).await;
    let token = pusher(&server).await;
    for round in 0..3 {
        let body = narvault::api::RootRotate { with_kek: true, ..Default::default() };
        let asked = if round == 1 {
            server.admin().vault_rotate_root(&body).await
        } else {
            server.admin().vault_rotate_kek().await
        };
        let begun = asked.unwrap();
        assert_eq!(begun.kek_version, round + 2);
        server.restart_after_kill(&[]).await;
        let keks = keks_of_keys(&server).await;
        assert!(keks.iter().all(|kek| *kek <= round + 2), "{keks:?}");
        let path = TestPath::new("path", format!("{backend:?} {round}"));
        server.http().with_token(&token).push("main", &path).await;
    }

    until("the rotation to end", async || {
        let vault = server.admin().vault().await.unwrap();
        (vault.kek_rotation.unwrap().state == "done").then_some(())
    })
    .await;

    assert_eq!(keks_of_keys(&server).await, [4]);
    let path = TestPath::new("path", "the last one");
    server.http().with_token(&token).push("main", &path).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_on_sqlite() {
    a_server_that_is_killed_goes_on(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_on_postgres() {
    a_server_that_is_killed_goes_on(Backend::POSTGRES_DISK).await;
}
