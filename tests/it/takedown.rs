//! Takedown: what rests on a quarantined word alone is gone from every replica and from the bucket when the call
//! answers, and a restoration brings it back byte for byte.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use narvault::api::{
    PathDelete, PathQuery, QuarantineCreate, QuarantineOutcome, QuarantineQuery, RestoreCreate, TokenCreate,
    WithdrawnQuery,
};
use narvault::client::{Client, Error, ErrorKind};
use narvault::db::{Db, DbSettings, log};
use narvault::nix::nar::build::Node;
use narvault::storage::Storage;
use narvault::time::Clock;
use serde_json::{Value, json};

use crate::support::api::ApiServer;
use crate::support::chaos::{Call, Chaos, Fault};
use crate::support::client::{Http, TestPath, hash_part};
use crate::support::database::on_each_database;
use crate::support::nix::require_nix;
use crate::support::server::{Backend, Site, TestServer, on_each_backend};
use crate::support::until;

const LISTING: &str = r#"{"version":1,"root":{"type":"regular","size":5}}"#;

fn all() -> QuarantineCreate {
    QuarantineCreate { reason: "broken into".to_owned(), ..QuarantineCreate::default() }
}

fn since_ever() -> QuarantineCreate {
    QuarantineCreate { since: Some("2020-01-01T00:00:00Z".to_owned()), ..all() }
}

fn fine() -> RestoreCreate {
    RestoreCreate { reason: "false alarm".to_owned() }
}

async fn quarantine(server: &TestServer, name: &str) -> QuarantineOutcome {
    let query = QuarantineQuery::default();
    server.admin().contributor_quarantine(name, &since_ever(), &query).await.unwrap()
}

async fn object(storage: &Storage, name: &str) -> Option<Vec<u8>> {
    let object = storage.get(&name.parse().unwrap(), None).await.unwrap()?;
    Some(object.body.try_collect::<Vec<_>>().await.unwrap().concat())
}

/// What strangers get, by address: the bodies of those that are answered 200.
async fn served(http: &Http, urls: &[String]) -> BTreeMap<String, Vec<u8>> {
    let mut served = BTreeMap::new();
    for url in urls {
        let answer = http.get(url).await;
        match answer.status {
            200 => drop(served.insert(url.clone(), answer.body.to_vec())),
            404 => assert_eq!(answer.header("cache-control"), "no-store", "{url}"),
            status => panic!("{url}: {status}"),
        }
    }
    served
}

/// The leaves of the signature log, as they lie in the database.
async fn leaves(site: &Site) -> Vec<String> {
    let settings = match site.database_url() {
        Some(url) => DbSettings::Postgres { url: url.parse().unwrap(), connections_max: 2 },
        None => DbSettings::Sqlite { path: site.data().join("narvault.db") },
    };
    let db = Db::open(&settings).await.unwrap();
    let leaves = log::leaves(&mut db.read().await.unwrap(), 0, 10_000).await.unwrap();
    db.close().await;
    leaves.into_iter().map(|(_, leaf)| leaf).collect()
}

fn count(leaves: &[String], event: &str) -> usize {
    leaves.iter().filter(|leaf| leaf.contains(&format!("\nevent {event}\n"))).count()
}

async fn published(client: &Client) -> usize {
    let query = PathQuery { state: Some("published".to_owned()), limit: Some(200), ..PathQuery::default() };
    client.paths("main", &query).await.unwrap().items.len()
}

/// Audits the whole log, once it is published: there is nothing to find.
async fn assert_honest(server: &TestServer) {
    let size = leaves(&server.site).await.len() as u64;
    until("the whole log to be published", async || {
        if server.http().get("/api/v1/log/checkpoint").await.status != 200 {
            return None;
        }
        let ended = server.narvault(["log", "audit", "--json"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
        (answer["size"].as_u64() >= Some(size)).then_some(())
    })
    .await;
}

/// A path with a listing, pushed by Alice; one that refers to it, and one that does not, pushed by Bob.
async fn taken_down_and_restored(server: TestServer) {
    let alice = server.token("alice", &["push:main"]).await;
    let bob = server.token("bob", &["push:main"]).await;
    let thing = TestPath::new("thing", "hello");
    alice.http.put_nar("main", &thing).await.assert_status(201);
    alice.http.put(&format!("/push/main/{}.ls", thing.hash()), LISTING).await;
    alice.http.put_narinfo("main", &thing).await.assert_status(201);
    let user = TestPath::with_references("user", "uses", &[&thing]);
    let other = TestPath::new("other", "nothing to do with it");
    bob.http.push("main", &user).await;
    bob.http.push("main", &other).await;
    let urls = |side: &str, path: &TestPath| {
        let hash = path.hash();
        vec![
            format!("{side}/main/{hash}.narinfo"),
            format!("{side}/main/{}", path.nar_url()),
            format!("{side}/main/{hash}.ls"),
        ]
    };
    let (stranger, storage) = (server.http(), server.site.storage().await);
    let before = served(&stranger, &urls("", &thing)).await;
    assert_eq!(before.len(), 3);
    let names = [format!("main/{}.narinfo", thing.hash()), format!("main/{}.ls", thing.hash())];
    let mut in_bucket = Vec::new();
    for name in &names {
        in_bucket.push(until(name, async || object(&storage, name).await).await);
    }

    let done = quarantine(&server, "alice").await;

    assert!(done.changed && done.finished, "{done:?}");
    assert_eq!((done.paths, done.narinfos_left, done.dependents), (1, 0, 1), "{done:?}");
    assert_eq!(done.tokens, std::slice::from_ref(&alice.id));
    assert_eq!(done.withdrawn[0].store_path, thing.store_path);
    assert_eq!(done.dependent_paths[0].store_path, user.store_path);
    assert!(served(&stranger, &urls("", &thing)).await.is_empty());
    // The push URL knows what need not be sent again, which is the NAR alone.
    let pushed = served(&bob.http, &urls("/push", &thing)).await;
    assert_eq!(pushed.keys().collect::<Vec<_>>(), [&format!("/push/main/{}", thing.nar_url())]);
    assert_eq!(object(&storage, &names[0]).await, None, "the narinfo is still in the bucket");
    until("the listing to leave the bucket", async || {
        object(&storage, &names[1]).await.is_none().then_some(())
    })
    .await;
    let nar = format!("main/{}", thing.nar_url());
    assert_eq!(object(&storage, &nar).await.unwrap(), thing.file, "the NAR stays for a restoration");
    alice.http.get("/push/main/nix-cache-info").await.assert_status(401);
    assert_eq!(served(&stranger, &urls("", &user)).await.len(), 2);
    assert_eq!(served(&stranger, &urls("", &other)).await.len(), 2);
    let view = server.admin().path("main", thing.hash()).await.unwrap();
    assert_eq!((view.state.as_str(), view.evidence[0].void), ("withdrawn", true));
    let late = TestPath::with_references("late", "x", &[&thing]);
    bob.http.put_nar("main", &late).await.assert_status(201);
    bob.http.put_narinfo("main", &late).await.assert_refused(422, "is not published in this cache");

    let back = server.admin().contributor_restore("alice", &fine()).await.unwrap();

    assert!(back.changed && back.finished, "{back:?}");
    assert_eq!((back.restored, back.left, back.narinfos_left), (1, 0, 0), "{back:?}");
    assert_eq!(served(&stranger, &urls("", &thing)).await, before, "byte for byte");
    assert_eq!(object(&storage, &names[0]).await.as_ref(), Some(&in_bucket[0]), "in the bucket too");
    until("the listing to be back in the bucket", async || {
        (object(&storage, &names[1]).await.as_ref() == Some(&in_bucket[1])).then_some(())
    })
    .await;
    alice.http.get("/push/main/nix-cache-info").await.assert_status(401);
    let leaves = leaves(&server.site).await;
    let events = ["contributor-quarantine", "withdraw", "restore", "token-revoke"];
    assert_eq!(events.map(|event| count(&leaves, event)), [2, 1, 1, 1]);
    assert_honest(&server).await;
    server.stop().await;
}

on_each_backend! {
    async fn a_contributor_is_taken_down_and_restored_byte_for_byte(server: TestServer) {
        taken_down_and_restored(server).await;
    }

    async fn a_token_and_a_path_are_taken_down_and_restored(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let again = server.token("alice", &["push:main"]).await;
        let paths = [TestPath::new("one", "1"), TestPath::new("two", "2")];
        alice.http.push("main", &paths[0]).await;
        again.http.push("main", &paths[1]).await;
        let (admin, query) = (server.admin(), QuarantineQuery::default());
        let storage = server.site.storage().await;
        let narinfo = |at: usize| format!("main/{}.narinfo", paths[at].hash());

        let done = admin.token_quarantine(&alice.id, &all(), &query).await.unwrap();
        assert_eq!((done.paths, done.narinfos_left, done.finished), (1, 0, true), "{done:?}");
        assert_eq!(object(&storage, &narinfo(0)).await, None);
        assert!(object(&storage, &narinfo(1)).await.is_some());
        again.http.get("/push/main/nix-cache-info").await.assert_status(200);
        let done = admin.path_quarantine("main", paths[1].hash(), &all(), &query).await.unwrap();
        assert_eq!((done.paths, done.tokens.len(), done.narinfos_left), (1, 0, 0), "{done:?}");
        assert_eq!(object(&storage, &narinfo(1)).await, None);
        again.http.get("/push/main/nix-cache-info").await.assert_status(200);

        admin.token_restore(&alice.id, &fine()).await.unwrap();
        admin.path_restore("main", paths[1].hash(), &fine()).await.unwrap();
        for at in [0, 1] {
            assert!(object(&storage, &narinfo(at)).await.is_some());
            server.http().get(&format!("/{}", narinfo(at))).await.assert_status(200);
        }
        alice.http.get("/push/main/nix-cache-info").await.assert_status(401);
        assert_honest(&server).await;
        server.stop().await;
    }

    async fn stock_nix_does_not_get_what_was_taken_down_and_gets_what_was_restored(server: TestServer) {
        let nix = require_nix!();
        let pusher = nix.machine();
        pusher.log_in(&server.token("alice", &["push:main"]).await.text);
        let path = pusher.add("thing", &Node::file("hello"), &[]).await;
        pusher.push(&server.push_url("main"), &[&path]).await.success();
        let machine = || {
            let mut machine = nix.machine();
            machine.trust(&server.public_key);
            machine
        };
        let (early, late, last) = (machine(), machine(), machine());
        early.pull(&server.pull_url("main"), &[&path]).await.success();

        quarantine(&server, "alice").await;

        assert!(!late.pull(&server.pull_url("main"), &[&path]).await.succeeded);
        // Who pulled before is told, by an exit code too; who did not holds nothing.
        for (machine, code, said) in [(&early, 4, "holds 1 withdrawn path"), (&late, 0, "holds none")] {
            let store = machine.store();
            let arguments = ["path", "affected", "main", "--since", "1d", "--check-store", "--store", &store];
            let ended = machine.narvault(&server, &arguments).await;
            assert_eq!(ended.code, Some(code), "{ended:?}");
            assert!(ended.stderr.contains(said), "{ended:?}");
            assert_eq!(ended.stdout.contains(&path), code == 4, "{ended:?}");
        }
        server.admin().contributor_restore("alice", &fine()).await.unwrap();
        last.pull(&server.pull_url("main"), &[&path]).await.success();
        assert_eq!(last.nar(&path).await, pusher.nar(&path).await);
        let ended = early.narvault(&server, &["path", "affected", "main", "--since", "1d", "--json"]).await;
        assert_eq!((ended.code, ended.stdout.trim()), (Some(0), "[]"), "{ended:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contributor_is_taken_down_on_postgres_and_disk() {
    Backend::POSTGRES_DISK.run(taken_down_and_restored).await;
}

on_each_database! {
    async fn another_replica_forgets_within_a_second(server: TestServer) {
        let path = TestPath::new("thing", "hello");
        server.token("alice", &["push:main"]).await.http.push("main", &path).await;
        let replica = server.site.start_here(Clock::System, &[]).await;
        let other = Http::new(&format!("http://{}", replica.http.address));
        let url = format!("/main/{}.narinfo", path.hash());
        let before = other.get(&url).await;
        before.assert_status(200);

        quarantine(&server, "alice").await;

        let answered = Instant::now();
        until("the other replica to forget", async || (other.get(&url).await.status == 404).then_some(())).await;
        assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
        server.admin().contributor_restore("alice", &fine()).await.unwrap();
        assert_eq!(other.get(&url).await.assert_status(200).body, before.body);
        replica.shut_down().await.unwrap();
        server.stop().await;
    }

    async fn what_was_withdrawn_may_be_published_anew_by_others(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let bob = server.token("bob", &["push:main"]).await;
        let path = TestPath::new("thing", "of alice");
        let mut rival = TestPath::new("rival", "of bob");
        rival.store_path = path.store_path.clone();
        alice.http.push("main", &path).await;
        quarantine(&server, "alice").await;
        let query = WithdrawnQuery::default();
        let affected = async || server.admin().withdrawn("main", &query).await.unwrap().items;
        assert_eq!(affected().await[0].store_path, path.store_path);

        bob.http.push("main", &rival).await;

        let served = server.http().get(&format!("/main/{}", rival.nar_url())).await;
        assert_eq!(served.assert_status(200).body, rival.file);
        server.http().get(&format!("/main/{}", path.nar_url())).await.assert_status(404);
        // Who holds the first content still holds what was withdrawn.
        assert_eq!(affected().await.len(), 1);
        let back = server.admin().contributor_restore("alice", &fine()).await.unwrap();
        assert_eq!((back.restored, back.left), (0, 1));
        assert_eq!(back.left_paths[0].why, "superseded");
        server.http().get(&format!("/main/{}", path.nar_url())).await.assert_status(404);
        server.stop().await;
    }

    async fn a_withdrawn_path_can_be_deleted_bytes_and_all(server: TestServer) {
        let path = TestPath::new("thing", "hello");
        server.token("alice", &["push:main"]).await.http.push("main", &path).await;
        quarantine(&server, "alice").await;
        let body = PathDelete { reason: "a password was in it".to_owned() };

        let deleted = server.admin().path_delete("main", path.hash(), &body).await.unwrap();

        assert!(deleted.gone, "{deleted:?}");
        let storage = server.site.storage().await;
        assert_eq!(object(&storage, &format!("main/{}", path.nar_url())).await, None);
        let back = server.admin().contributor_restore("alice", &fine()).await.unwrap();
        assert_eq!((back.restored, back.left_paths[0].why.as_str()), (0, "deleted"));
        server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
        server.stop().await;
    }

    async fn the_command_line_tells_what_would_happen_and_what_did(server: TestServer) {
        let path = TestPath::new("thing", "hello");
        let alice = server.token("alice", &["push:main"]).await;
        alice.http.push("main", &path).await;
        let words = ["contributor", "quarantine", "alice", "--since", "7d", "--reason", "broken into"];
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();

        let dry = server.narvault(words.iter().chain(&["--dry-run", "--json"])).await;
        assert_eq!(dry.code, Some(0), "{dry:?}");
        let told = json(&dry.stdout);
        assert_eq!((&told["paths"], &told["tokens"], &told["id"]), (&json!(1), &json!([alice.id]), &Value::Null));
        alice.http.get("/push/main/nix-cache-info").await.assert_status(200);
        assert_eq!(published(server.admin()).await, 1);

        let done = server.narvault(words).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.stdout.contains(&path.store_path), "{done:?}");
        let again = server.narvault(words).await;
        assert_eq!(again.code, Some(0), "{again:?}");
        assert!(again.stderr.contains("stood already"), "{again:?}");
        let listed = server.narvault(["quarantine", "list", "--json"]).await;
        let row = json(&listed.stdout)["items"][0].clone();
        assert_eq!((&row["state"], &row["subject"]), (&json!("standing"), &json!("alice")));
        let id = row["id"].as_str().unwrap().to_owned();
        let paths = server.narvault(["quarantine", "paths", &id]).await;
        assert!(paths.stdout.contains(&path.store_path) && paths.stdout.contains("evidence"), "{paths:?}");
        let back = server.narvault(["contributor", "restore", "alice", "--reason", "false alarm"]).await;
        assert_eq!(back.code, Some(0), "{back:?}");
        assert_eq!(published(server.admin()).await, 1);
        for (words, code) in [
            (["contributor", "quarantine", "nobody", "--since", "7d", "--reason", "x"], 1),
            (["contributor", "quarantine", "alice", "--since", "2999-01-01T00:00:00Z", "--reason", "x"], 4),
            (["contributor", "quarantine", "alice", "--since", "7d", "--reason", ""], 4),
        ] {
            let ended = server.narvault(words).await;
            assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_it_is_carried_through_by_the_next_start() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let alice = server.token("alice", &["push:main"]).await;
    let paths: Vec<_> = (0..PATHS).map(|at| TestPath::new(&format!("path-{at}"), format!("{at}"))).collect();
    stream::iter(&paths).for_each_concurrent(8, |path| alice.http.push("main", path)).await;
    let admin = server.admin().clone();
    let calling = tokio::spawn(async move {
        admin.contributor_quarantine("alice", &since_ever(), &QuarantineQuery::default()).await
    });
    until("the tokens to die", async || {
        (alice.http.get("/push/main/nix-cache-info").await.status == 401).then_some(())
    })
    .await;

    server.restart_after_kill(&[]).await;

    let _ = calling.await.unwrap();
    until("all to be withdrawn", async || (published(server.admin()).await == 0).then_some(())).await;
    // The bucket follows when the leases have run out that the killed one held.
    for path in &paths {
        server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
    }
    let leaves = leaves(&server.site).await;
    assert_eq!(count(&leaves, "withdraw"), PATHS);
    for path in &paths {
        let named = format!("\npath {}\n", path.store_path);
        let withdrawn =
            leaves.iter().filter(|leaf| leaf.contains("\nevent withdraw\n") && leaf.contains(&named));
        assert_eq!(withdrawn.count(), 1, "{}", path.store_path);
    }
    assert_honest(&server).await;
    server.stop().await;
}

/// Whoever asks while the bucket stands still is answered in time, with what is left, and is told when it is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takedown_that_storage_holds_up_answers_in_time_with_the_number_that_is_left() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let chaos = Chaos::before(site.storage_endpoint()).await;
    let storage_url = site.storage_url_at(chaos.address);
    let settings = [
        ("NARVAULT_STORAGE_URL", storage_url.as_str()),
        ("NARVAULT_STORAGE_CONNECT_TIMEOUT_SECONDS", "1"),
        ("NARVAULT_STORAGE_ANSWER_TIMEOUT_SECONDS", "1"),
        ("NARVAULT_STORAGE_TIMEOUT_SECONDS", "5"),
        ("NARVAULT_STORAGE_ATTEMPTS_MAX", "2"),
        ("NARVAULT_LIMITS_TAKEDOWN_ANSWER_SECONDS", "2"),
    ];
    let server = TestServer::spawn_on(site, &settings).await;
    let alice = server.token("alice", &["push:main"]).await;
    let paths: Vec<_> = (0..3).map(|at| TestPath::new("thing", at.to_string())).collect();
    for path in &paths {
        alice.http.push("main", path).await;
    }
    let storage = server.site.storage().await;
    let stored = async || {
        let mut bodies = Vec::new();
        for path in &paths {
            bodies.extend(object(&storage, &format!("main/{}.narinfo", path.hash())).await);
        }
        bodies
    };
    let before = stored().await;
    assert_eq!(before.len(), 3);

    let words = ["contributor", "quarantine", "alice", "--since", "7d", "--reason", "broken into", "--yes"];
    let back = ["contributor", "restore", "alice", "--reason", "false alarm"];
    for (words, call, status, left) in [
        (&words[..], Call::Delete, 404, "3 narinfos are still to be removed from storage"),
        (&back[..], Call::Put, 200, "3 narinfos are still to be written to storage"),
    ] {
        let there = stored().await;
        chaos.inject(call, Fault::Stall, 10_000);
        let asked = Instant::now();

        let ended = server.narvault(words).await;

        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(left), "{ended:?}");
        assert!(ended.stderr.contains("run the same command again to wait for the rest"), "{ended:?}");
        // The server itself has followed, and the bucket has not.
        for path in &paths {
            server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(status);
        }
        assert_eq!(stored().await, there);

        chaos.calm();
        until("the rest", async || (server.narvault(words).await.code == Some(0)).then_some(())).await;
        assert_ne!(stored().await.len(), there.len());
    }
    assert_eq!(stored().await, before, "byte for byte");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_refused_before_anything_is_said_of_what_there_is() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let alice = server.token("alice", &["push:main"]).await;
    let path = TestPath::new("thing", "hello");
    alice.http.push("main", &path).await;
    let (dry, real) = (QuarantineQuery { dry_run: true }, QuarantineQuery::default());
    let not_authorised = |error: Error| assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");

    let client = server.client(&alice.text);
    for query in [&dry, &real] {
        for name in ["alice", "nobody"] {
            not_authorised(client.contributor_quarantine(name, &since_ever(), query).await.unwrap_err());
        }
        not_authorised(client.token_quarantine(&alice.id, &all(), query).await.unwrap_err());
        not_authorised(client.path_quarantine("main", path.hash(), &all(), query).await.unwrap_err());
    }
    not_authorised(client.contributor_restore("alice", &fine()).await.unwrap_err());
    not_authorised(client.path_restore("main", path.hash(), &fine()).await.unwrap_err());
    not_authorised(client.quarantines(&Default::default()).await.unwrap_err());
    server.http().get("/api/v1/caches/nowhere/withdrawn").await.assert_status(401);
    server.http().get("/api/v1/caches/main/withdrawn").await.assert_status(200);

    // The right to delete from a cache is the right to withdraw its paths, and no other.
    let deleter = server.client(&server.token("carol", &["delete:main"]).await.text);
    not_authorised(deleter.contributor_quarantine("alice", &since_ever(), &real).await.unwrap_err());
    deleter.path_quarantine("main", path.hash(), &all(), &real).await.unwrap();
    server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
    deleter.path_restore("main", path.hash(), &fine()).await.unwrap();
    server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_make_no_sense_are_refused() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let made = json!({ "name": "alice", "kind": "ci" });
    assert_eq!(server.call("POST", "/api/v1/contributors", Some(&admin), Some(made)).await.status, 201);
    let token = "019aabcd-1234-7abc-8def-0123456789ab";
    let path = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";
    let contributor = "/api/v1/contributors/alice/quarantine";
    let of_path = format!("/api/v1/caches/main/paths/{path}/quarantine");
    let since = "2020-01-01T00:00:00Z";
    for (url, body, status) in [
        (contributor.to_owned(), json!({ "reason": "x" }), 422),
        (contributor.to_owned(), json!({ "since": since }), 400),
        (contributor.to_owned(), json!({ "since": since, "reason": "" }), 422),
        (contributor.to_owned(), json!({ "since": "yesterday", "reason": "x" }), 422),
        (contributor.to_owned(), json!({ "since": "2999-01-01T00:00:00Z", "reason": "x" }), 422),
        (contributor.to_owned(), json!({ "since": since, "reason": "x", "more": 1 }), 400),
        (format!("{contributor}?dry=true"), json!({ "since": since, "reason": "x" }), 400),
        ("/api/v1/contributors/nobody/quarantine".to_owned(), json!({ "since": since, "reason": "x" }), 404),
        (format!("/api/v1/tokens/{token}/quarantine"), json!({ "reason": "x" }), 404),
        ("/api/v1/tokens/x/quarantine".to_owned(), json!({ "reason": "x" }), 404),
        (of_path.clone(), json!({ "reason": "x" }), 404),
        (of_path.clone(), json!({ "reason": "x", "since": since }), 422),
        (of_path.clone(), json!({ "reason": "x", "keep_issued": true }), 422),
        ("/api/v1/contributors/alice/restore".to_owned(), json!({ "reason": "x" }), 409),
        ("/api/v1/contributors/alice/restore".to_owned(), json!({}), 400),
        ("/api/v1/contributors/nobody/restore".to_owned(), json!({ "reason": "x" }), 404),
    ] {
        let answer = server.call("POST", &url, Some(&admin), Some(body.clone())).await;
        assert_eq!(answer.refusal().0, status, "{url} {body}: {answer:?}");
    }
    for (url, status) in [
        (format!("/api/v1/quarantines/{token}/paths"), 404),
        ("/api/v1/quarantines/x/paths".to_owned(), 404),
        ("/api/v1/caches/main/withdrawn?since=soon".to_owned(), 422),
        ("/api/v1/caches/main/withdrawn?until=x".to_owned(), 400),
    ] {
        let answer = server.call("GET", &url, Some(&admin), None).await;
        assert_eq!(answer.refusal().0, status, "{url}: {answer:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_who_is_taken_down_dies_by_it_and_it_is_carried_through() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mallory = server.token("mallory", &["admin"]).await;
    let path = TestPath::new("thing", "hello");
    let issued = server.client(&mallory.text);
    let body = TokenCreate {
        contributor: "mallory".to_owned(),
        scopes: vec!["push:main".to_owned()],
        expires_in_seconds: None,
        note: None,
    };
    let issued = issued.token_issue(&body).await.unwrap();
    server.http().with_token(&issued.token).push("main", &path).await;

    let client = server.client(&mallory.text);
    let done =
        client.contributor_quarantine("mallory", &since_ever(), &QuarantineQuery::default()).await.unwrap();

    assert_eq!((done.finished, done.paths, done.tokens.len()), (true, 1, 2), "{done:?}");
    assert_eq!(client.whoami().await.unwrap_err().kind(), ErrorKind::NotAuthorised);
    server.http().get(&format!("/main/{}.narinfo", hash_part(&path.store_path))).await.assert_status(404);
    server.admin().contributor_restore("mallory", &fine()).await.unwrap();
    // The token that asked was dead when the paths went; whoever reads the log is not alarmed by that.
    let leaves = leaves(&server.site).await;
    assert_eq!(["withdraw", "restore"].map(|event| count(&leaves, event)), [1, 1]);
    assert_honest(&server).await;
    server.stop().await;
}

/// More than two batches.
const PATHS: usize = 430;
