//! A key is put in the place of another while machines with a real Nix pull: each trusts one key only. And a server
//! that is killed while it signs again goes on where it was.

use narvault::api::{KeyCompromise, KeyCreate, PublicKeysQuery, RotationCreate, RotationEdit, RotationView};
use narvault::client::ErrorKind;
use narvault::nix::nar::build::Node;
use narvault::nix::narinfo::SignedClaim;
use narvault::nix::signature::PublicKey;
use narvault::tlog::bundle;
use narvault::tlog::leaf::{Event, Leaf};
use narvault::tlog::tile::{TILE_WIDTH, Tile, TileKind};

use crate::support::client::{Http, TestPath, hash_part, lines};
use crate::support::nix::{Machine, Nix, require_nix};
use crate::support::server::{Backend, StorageKind, TestServer, on_each_backend};
use crate::support::until;

/// At once to signing, and from there to the end of the waiting by hand.
fn at_once() -> RotationCreate {
    RotationCreate { publish_days: Some(0), wait_days: Some(30), ..RotationCreate::default() }
}

async fn reaches(server: &TestServer, step: &str) -> RotationView {
    until(&format!("step {step}"), async || {
        let rotation = server.admin().key_rotation("main").await.unwrap();
        (rotation.step == step).then_some(rotation)
    })
    .await
}

/// The public key of this name, `name:base64`.
async fn public_key(server: &TestServer, name: &str) -> String {
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    keys.into_iter().find(|key| key.name == name).unwrap().public_key
}

fn trusting(nix: &Nix, key: &str) -> Machine {
    let mut machine = nix.machine();
    machine.trust(key);
    machine
}

/// A machine that pushes one path with a reference: both.
async fn push_closure(server: &TestServer, nix: &Nix, name: &str) -> [String; 2] {
    let machine = nix.machine();
    machine.log_in(&server.token("alice", &["push:main"]).await.text);
    let library = machine.add(&format!("{name}-library"), &Node::file(name), &[]).await;
    let tool = machine.add_text(name, "uses", &[&library]).await;
    machine.push(&server.push_url("main"), &[&tool]).await.success();
    [library, tool]
}

/// Every signature of the cache's keys that is served verifies, and has a leaf with the same bytes.
async fn all_is_logged(server: &TestServer, paths: &[TestPath], signers: usize) {
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    let keys: Vec<PublicKey> = keys.iter().map(|key| key.public_key.parse().unwrap()).collect();
    // The published log is a second behind.
    let mut logged = until("all leaves", async || {
        let leaves = signed_leaves(server).await;
        (leaves.len() >= paths.len() * signers).then_some(leaves)
    })
    .await;
    let count = logged.len();
    for path in paths {
        let narinfo = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
        let narinfo = SignedClaim::parse(&narinfo.assert_status(200).body).unwrap();
        assert_eq!(narinfo.signatures.len(), signers, "{:?}", narinfo.signatures);
        let fingerprint = narinfo.claim.fingerprint();
        for signature in &narinfo.signatures {
            assert!(keys.iter().any(|key| key.verify(fingerprint.as_bytes(), signature)), "{signature}");
            let leaf = (signature.name.to_string(), signature.bytes);
            let at = logged.iter().position(|found| *found == leaf);
            // Each has one leaf and no more.
            logged.swap_remove(at.unwrap_or_else(|| panic!("no leaf for {signature}")));
        }
    }
    assert!(logged.is_empty(), "{} of {count} leaves are of no signature", logged.len());
}

/// Key and signature of every leaf of a path's signature, as the log is published.
async fn signed_leaves(server: &TestServer) -> Vec<(String, [u8; 64])> {
    let signed = leaves(server).await.into_iter().filter_map(|leaf| match leaf.event {
        Event::Sign(signed) | Event::Resign(signed) => Some((signed.key.to_string(), signed.sig.0)),
        _ => None,
    });
    signed.collect()
}

/// Every leaf, as the log is published.
pub async fn leaves(server: &TestServer) -> Vec<Leaf> {
    let checkpoint =
        String::from_utf8(server.admin().log_file("checkpoint").await.unwrap().unwrap()).unwrap();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let mut found = Vec::new();
    for index in 0..size.div_ceil(u64::from(TILE_WIDTH)) {
        let tile = Tile::in_tree(TileKind::Entries, index, size).unwrap();
        let bytes = server.admin().log_file(&tile.to_string()).await.unwrap().unwrap();
        let leaves = bundle::decode(&bytes, tile.width()).unwrap();
        found.extend(leaves.into_iter().map(|leaf| Leaf::parse(leaf).unwrap()));
    }
    found
}

on_each_backend! {
    async fn nix_pulls_with_either_key_until_the_old_one_retires(server: TestServer) {
        let nix = require_nix!();
        let old = server.public_key.clone();
        let [library, tool] = push_closure(&server, &nix, "before").await;
        let rotation = server.admin().key_rotate("main", &at_once()).await.unwrap();
        let new_name = rotation.new_key.unwrap();
        let new = public_key(&server, &new_name).await;
        reaches(&server, "wait").await;
        let url = server.pull_url("main");
        let [_, between] = push_closure(&server, &nix, "between").await;

        for key in [&old, &new] {
            let machine = trusting(&nix, key);
            machine.pull(&url, &[&library, &tool, &between]).await.success();
        }
        // The bucket by itself, too.
        let narinfo = server.http().get(&format!("/main/{}.narinfo", hash_part(&tool))).await;
        assert_eq!(lines(narinfo.text(), "Sig").len(), 2, "{}", narinfo.text());
        let storage = server.site.storage().await;
        let object = format!("main/{}.narinfo", hash_part(&tool)).parse().unwrap();
        assert_eq!(storage.read(&object, 1 << 20).await.unwrap().unwrap(), narinfo.body);

        let old_name = old.split(':').next().unwrap();
        server.admin().key_retire("main", old_name).await.unwrap();
        assert_eq!(reaches(&server, "done").await.waiting_for, None);
        let [_, after] = push_closure(&server, &nix, "after").await;
        trusting(&nix, &new).pull(&url, &[&tool, &between, &after]).await.success();
        let machine = trusting(&nix, &old);
        machine.pull(&url, &[&tool, &between]).await.success();
        let refused = machine.pull(&url, &[&after]).await;
        assert!(!refused.succeeded && refused.stderr.contains("signature"), "{}", refused.stderr);
        server.stop().await;
    }

    async fn after_a_compromise_nix_pulls_with_the_new_key_alone(server: TestServer) {
        let nix = require_nix!();
        let old = server.public_key.clone();
        let old_name = old.split(':').next().unwrap();
        let [_, tool] = push_closure(&server, &nix, "before").await;
        let body = KeyCompromise { reason: "the host was broken into".to_owned() };

        let rotation = server.admin().key_compromise("main", old_name, &body).await.unwrap();

        let new = public_key(&server, &rotation.new_key.unwrap()).await;
        assert_eq!(server.admin().cache("main").await.unwrap().public_keys, std::slice::from_ref(&new));
        let done = reaches(&server, "done").await;
        assert_eq!(done.refused, 0);
        let unlogged = server.admin().key_unlogged("main", old_name, &Default::default()).await.unwrap();
        assert!(unlogged.items.is_empty(), "{:?}", unlogged.items);
        let url = server.pull_url("main");
        trusting(&nix, &new).pull(&url, &[&tool]).await.success();
        let refused = trusting(&nix, &old).pull(&url, &[&tool]).await;
        assert!(!refused.succeeded && refused.stderr.contains("signature"), "{}", refused.stderr);
        server.admin().key_destroy("main", old_name).await.unwrap();
        server.stop().await;
    }

    async fn what_is_pushed_during_a_rotation_is_signed_by_both_and_logged_once(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await.http;
        let mut paths: Vec<TestPath> =
            (0..30).map(|number| TestPath::new("before", number.to_string())).collect();
        for path in &paths {
            alice.push("main", path).await;
        }
        server.admin().key_rotate("main", &at_once()).await.unwrap();
        let during: Vec<TestPath> = (0..30).map(|number| TestPath::new("during", number.to_string())).collect();
        for path in &during {
            alice.push("main", path).await;
        }
        reaches(&server, "wait").await;
        paths.extend(during);

        all_is_logged(&server, &paths, 2).await;

        let verified = server.narvault(["log", "verify"]).await;
        assert_eq!(verified.code, Some(0), "{}", verified.stderr);
        server.stop().await;
    }

    async fn public_keys_are_at_an_address_that_stays_and_knows_what_is_new(server: TestServer) {
        let http = server.http();
        let url = "/api/v1/caches/main/public-keys";
        for (format, start) in [
            ("", "{\"cache\":\"main\""),
            ("?format=json", "{\"cache\":\"main\""),
            ("?format=nix-conf", "extra-substituters = http"),
            ("?format=nixos", "{\n  nix.settings"),
            ("?format=flake", "{\n  # Users"),
        ] {
            let answer = http.get(&format!("{url}{format}")).await;
            let text = answer.assert_status(200).text();
            assert!(text.starts_with(start) && text.contains(&server.public_key), "{text}");
            assert_eq!(answer.header("cache-control"), "public, max-age=60");
            let again = http.request(reqwest::Method::GET, &format!("{url}{format}"));
            let again = crate::support::client::Answer::of(again.header("if-none-match", answer.header("etag")));
            assert_eq!(again.await.assert_status(304).body.len(), 0);
        }
        let etag = http.get(url).await.header("etag").to_owned();
        server.admin().key_create("main", &KeyCreate { next: true, ..KeyCreate::default() }).await.unwrap();
        let after = http.get(url).await;
        assert_ne!(after.header("etag"), etag);
        assert_eq!(after.text().matches("main-").count(), 2, "{}", after.text());
        http.get(&format!("{url}?format=yaml")).await.assert_status(400);
        http.get("/api/v1/caches/other/public-keys").await.assert_status(401);
        let query = PublicKeysQuery::default();
        let anyone = narvault::client::Client::new(server.url.parse().unwrap(), None, false).unwrap();
        let private = narvault::api::CacheEdit { public: Some(false), ..Default::default() };
        server.admin().cache_edit("main", &private).await.unwrap();
        let refused = anyone.public_keys("main", &query).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::NotAuthorised, "{refused}");
        let puller = server.token("bob", &["pull:main"]).await;
        assert!(server.client(&puller.text).public_keys("main", &query).await.is_ok());
        server.stop().await;
    }

    async fn the_commands_show_dates_and_refuse_what_would_hurt(server: TestServer) {
        let old = server.public_key.split(':').next().unwrap().to_owned();
        for (arguments, code, text) in [
            (vec!["key", "schedule", "main"], 1, "no such rotation"),
            (vec!["key", "retire", "main", &old], 4, "only key that signs"),
            (vec!["key", "destroy", "main", &old], 2, "nobody is there to confirm"),
            (vec!["key", "destroy", "main", &old, "--yes"], 4, "only a retired or compromised key"),
            (vec!["key", "drop-signatures", "main", &old], 4, "only a retired key"),
            (vec!["key", "pause", "main"], 4, "no rotation of this cache is under way"),
            (vec!["key", "promote", "main", "nobody-1"], 1, "no such key"),
        ] {
            let ended = server.narvault(&arguments).await;
            assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(text), "{arguments:?}: {}", ended.stderr);
        }
        let ended = server.narvault(["key", "rotate", "main", "--wait-days", "14"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        for part in ["publish  since 20", "resign   from 20", "done     from 20", "learn the new public key"] {
            assert!(ended.stdout.contains(part), "{part:?} is not in {}", ended.stdout);
        }
        let json = server.narvault(["key", "schedule", "main", "--json"]).await;
        let json: RotationView = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!((json.step.as_str(), json.steps.len(), json.paused), ("publish", 5, false));
        let paused = server.narvault(["key", "pause", "main"]).await;
        assert!(paused.stdout.contains("publish, paused"), "{}", paused.stdout);
        server.admin().key_rotation_edit("main", &RotationEdit { paused: false }).await.unwrap();
        let ended = server.narvault(["key", "public", "main", "--format", "nix-conf"]).await;
        assert_eq!(ended.stdout.matches(" main-").count(), 2, "{}", ended.stdout);
        let ended = server.narvault(["key", "abandon", "main", "--yes"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let metrics = server.http().get("/metrics").await;
        assert!(metrics.text().contains("narvault_rotation_left 0"), "{}", metrics.text());
        server.stop().await;
    }
}

/// Pushes some paths, begins a rotation that signs a few paths a second, and kills the server in the middle of it, some
/// times.
async fn a_server_that_is_killed_goes_on(backend: Backend) {
    // What a killed server was about to write is left alone for as long as it might still land: half a minute, with
    // this patience.
    let settings =
        [("NARVAULT_KEYS_RESIGN_PATHS_PER_SECOND", "25"), ("NARVAULT_STORAGE_TIMEOUT_SECONDS", "5")];
    let Some(mut server) = TestServer::spawn(backend, &settings).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let alice = server.token("alice", &["push:main"]).await.http;
    let paths: Vec<TestPath> =
        (0..90).map(|number| TestPath::new("path", format!("{backend:?} {number}"))).collect();
    let pushes = paths.chunks(23).map(|share| {
        let (alice, share): (Http, Vec<TestPath>) = (alice.clone(), share.to_vec());
        tokio::spawn(async move {
            for path in &share {
                alice.push("main", path).await;
            }
        })
    });
    for push in pushes.collect::<Vec<_>>() {
        push.await.unwrap();
    }
    server.admin().key_rotate("main", &at_once()).await.unwrap();
    let mut done = 0;
    for wanted in [10, 35, 60] {
        until("some paths to be signed again", async || {
            let rotation = server.admin().key_rotation("main").await.ok()?;
            (rotation.done >= wanted || rotation.step == "wait").then_some(())
        })
        .await;
        server.restart_after_kill(&settings).await;
        let rotation = server.admin().key_rotation("main").await.unwrap();
        assert!(rotation.done >= done, "{} after {done}", rotation.done);
        done = rotation.done;
    }

    let rotation = reaches(&server, "wait").await;

    assert_eq!(rotation.refused, 0);
    all_is_logged(&server, &paths, 2).await;
    let storage = server.site.storage().await;
    for path in &paths {
        let served = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
        let object = format!("main/{}.narinfo", path.hash()).parse().unwrap();
        assert_eq!(storage.read(&object, 1 << 20).await.unwrap().unwrap(), served.body);
    }
    let verified = server.narvault(["log", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_signing_on_sqlite_and_s3() {
    a_server_that_is_killed_goes_on(Backend::SQLITE_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_signing_on_postgres_and_s3() {
    a_server_that_is_killed_goes_on(Backend::POSTGRES_S3).await;
}

/// Two replicas at work on one rotation: everything is signed, and nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_sign_everything_once() {
    let backend = Backend { storage: StorageKind::Disk, ..Backend::POSTGRES_S3 };
    let settings = [("NARVAULT_KEYS_RESIGN_PATHS_PER_SECOND", "20")];
    let Some(server) = TestServer::start_with(backend, &settings).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let other = server.site.start_here(narvault::time::Clock::System, &settings).await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let paths: Vec<TestPath> = (0..60).map(|number| TestPath::new("path", number.to_string())).collect();
    for path in &paths {
        alice.push("main", path).await;
    }

    server.admin().key_rotate("main", &at_once()).await.unwrap();
    reaches(&server, "wait").await;

    all_is_logged(&server, &paths, 2).await;
    other.shut_down().await.unwrap();
    server.stop().await;
}
