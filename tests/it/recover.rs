//! A database that was restored from an older backup revives nothing: it only reads until it has caught up with the
//! published log.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use narvault::api::{KeyCompromise, KeyCreate, PathDelete, PublicKeysQuery, RotationCreate};
use narvault::client::ErrorKind;
use narvault::nix::narinfo::SignedClaim;
use narvault::nix::signature::PublicKey;
use narvault::storage::{Folder, ObjectKey};
use narvault::tlog::checkpoint::Checkpoint;

use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, Ended, Site, TestServer};
use crate::support::until;

/// Waits until the published log has the leaf of this path, which was pushed last. Answers with the log's size.
pub async fn everything_is_published(server: &TestServer, last: &TestPath) -> u64 {
    until("the log to be published", async || {
        let proof = format!("/api/v1/caches/main/paths/{}/proof", last.hash());
        if server.http().get(&proof).await.status != 200 {
            return None;
        }
        let key = server.http().get("/api/v1/log/key").await.text().trim_end().parse().unwrap();
        let note = server.http().get("/api/v1/log/checkpoint").await;
        let checkpoint = Checkpoint::open(&note.body, &key).ok()?.0;
        let stored = server.site.storage().await.read(&checkpoint_object(), 1 << 20).await.unwrap()?;
        (stored == note.body).then_some(checkpoint.size)
    })
    .await
}

fn checkpoint_object() -> ObjectKey {
    "_log/checkpoint".parse().unwrap()
}

pub async fn recover(site: &Site) -> Ended {
    let mut command = site.command(&[]);
    command.args(["recover", "--json"]);
    Ended::of(command).await
}

pub async fn narinfo(http: &Http, path: &TestPath) -> String {
    let answer = http.get(&format!("/main/{}.narinfo", path.hash())).await;
    answer.assert_status(200).text().to_owned()
}

async fn nothing_is_revived(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let (leaver, stays) =
        (server.token("leaver", &["push:main"]).await, server.token("stays", &["push:main"]).await);
    let carl = server.token("carl", &["push:main"]).await;
    let (kept, leaked) = (TestPath::new("kept", "kept"), TestPath::new("leaked", "leaked"));
    leaver.http.push("main", &kept).await;
    let listing = r#"{"root":{"size":6,"type":"regular"},"version":1}"#;
    let listing_url = format!("{}.ls", leaked.hash());
    leaver.http.put(&format!("/push/main/{listing_url}"), listing).await.assert_status(201);
    leaver.http.push("main", &leaked).await;
    let mallory = server.token("mallory", &["push:main"]).await;
    let bad = TestPath::new("bad", "bad");
    mallory.http.push("main", &bad).await;
    server.http().get(&format!("/main/{listing_url}")).await.assert_status(200);
    let kept_text = narinfo(&server.http(), &kept).await;
    server.restart_after(async |site: &Site| site.back_up_database().await).await;

    let (early, late) =
        (TestPath::new("early", "early"), TestPath::with_references("late", "late", &[&kept]));
    leaver.http.push("main", &early).await;
    server.narvault(["token", "revoke", leaver.id.as_str(), "--reason", "left", "--yes"]).await;
    let reason = PathDelete { reason: "a secret".to_owned() };
    server.admin().path_delete("main", leaked.hash(), &reason).await.unwrap();
    server.narvault(["contributor", "suspend", "carl"]).await;
    let quarantine = ["contributor", "quarantine", "mallory", "--since", "1h", "--reason", "broken into"];
    assert_eq!(server.narvault(quarantine).await.code, Some(0));
    stays.http.push("main", &late).await;
    let (early_text, late_text) =
        (narinfo(&server.http(), &early).await, narinfo(&server.http(), &late).await);
    assert_eq!(leaver.http.get("/push/main/nix-cache-info").await.status, 401);
    assert_eq!(carl.http.get("/push/main/nix-cache-info").await.status, 401);
    let published = everything_is_published(&server, &late).await;
    server.restart_after(async |site: &Site| site.restore_database().await).await;

    // The backup knows nothing of all that, and does nothing but read.
    assert_eq!(server.http().get("/readyz").await.text(), "ready, read-only\n");
    assert_eq!(narinfo(&server.http(), &kept).await, kept_text);
    let more = TestPath::new("more", "more");
    leaver.http.put_nar("main", &more).await.assert_refused(423, "narvault recover");
    let refused = server.narvault(["token", "revoke", leaver.id.as_str(), "--reason", "left", "--yes"]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("narvault recover"), "{}", refused.stderr);

    let recovered = std::sync::Mutex::new(None);
    server.restart_after(async |site: &Site| *recovered.lock().unwrap() = Some(recover(site).await)).await;
    let recovered = recovered.into_inner().unwrap().unwrap();
    assert_eq!(recovered.code, Some(0), "{}", recovered.stderr);
    let answer: serde_json::Value = serde_json::from_str(&recovered.stdout).unwrap();
    assert_eq!(answer["tokens_revoked"], 2, "{answer}");
    assert_eq!(answer["contributors_suspended"], 1, "{answer}");
    assert_eq!(answer["paths_withdrawn"], 2, "{answer}");
    assert_eq!(answer["paths_adopted"], 2, "{answer}");
    // Mallory, and the path that went with them.
    assert_eq!(answer["quarantines"], 2, "{answer}");

    assert_eq!(server.http().get("/readyz").await.text(), "ready\n");
    assert_eq!(leaver.http.get("/push/main/nix-cache-info").await.status, 401, "a revoked token lives");
    assert_eq!(carl.http.get("/push/main/nix-cache-info").await.status, 401, "a suspended contributor acts");
    let gone = server.http().get(&format!("/main/{}.narinfo", leaked.hash())).await;
    assert_eq!(gone.status, 404, "a deleted path is served");
    let listing = server.http().get(&format!("/main/{listing_url}")).await;
    assert_eq!(listing.status, 404, "the listing of a deleted path is served");
    let withdrawn = server.http().get(&format!("/main/{}.narinfo", bad.hash())).await;
    assert_eq!(withdrawn.status, 404, "a withdrawn path is served");
    assert_eq!(mallory.http.get("/push/main/nix-cache-info").await.status, 401, "a quarantined token lives");
    assert_eq!(narinfo(&server.http(), &kept).await, kept_text);
    assert_eq!(narinfo(&server.http(), &early).await, early_text);
    assert_eq!(narinfo(&server.http(), &late).await, late_text);
    let shown = server.admin().path("main", late.hash()).await.unwrap();
    assert_eq!(shown.evidence[0].source, "stays");

    // The log goes on where it was published, and nothing in storage has come back either.
    stays.http.push("main", &more).await;
    assert!(everything_is_published(&server, &more).await > published);
    let object = format!("main/{}.narinfo", leaked.hash()).parse().unwrap();
    assert!(server.site.storage().await.size(&object).await.unwrap().is_none());
    let metrics = server.http().get("/metrics").await;
    assert!(!metrics.text().contains("\nnarvault_log_forked 1\n"), "{}", metrics.text());
}

macro_rules! on_each_spawned_backend {
    ($promise:ident) => {
        mod $promise {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_disk() {
                super::$promise(Backend::SQLITE_DISK).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_s3() {
                super::$promise(Backend::SQLITE_S3).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_real_s3() {
                super::$promise(Backend::POSTGRES_REAL_S3).await;
            }
        }
    };
}

on_each_spawned_backend!(nothing_is_revived);

/// What a command of an administrator answers.
async fn answer(server: &TestServer, arguments: &[&str]) -> serde_json::Value {
    let ended = server.narvault(arguments.iter().chain(&["--json"])).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = ended.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    serde_json::Value::Array(lines.collect())
}

async fn what_was_quarantined_since_is_quarantined_again(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let mallory = server.token("mallory", &["push:main"]).await;
    let stays = server.token("stays", &["push:main"]).await;
    let (bad, shared) = (TestPath::new("bad", "bad"), TestPath::new("shared", "shared"));
    let (again, alone) = (TestPath::new("again", "again"), TestPath::new("alone", "alone"));
    for path in [&bad, &shared, &again] {
        mallory.http.push("main", path).await;
    }
    stays.http.push("main", &alone).await;
    stays.http.put_nar("main", &shared).await.assert_status(201);
    stays.http.put_narinfo("main", &shared).await.assert_status(200);
    let bad_text = narinfo(&server.http(), &bad).await;
    server.restart_after(async |site: &Site| site.back_up_database().await).await;

    let fresh = TestPath::new("fresh", "fresh");
    mallory.http.push("main", &fresh).await;
    let quarantine = ["contributor", "quarantine", "mallory", "--since", "1h", "--reason", "broken into"];
    assert_eq!(server.narvault(quarantine).await.code, Some(0));
    let quarantine = ["path", "quarantine", "main", alone.hash(), "--reason", "under suspicion"];
    assert_eq!(server.narvault(quarantine).await.code, Some(0));
    // Somebody else vouches for one of them anew.
    stays.http.push("main", &again).await;
    let again_text = narinfo(&server.http(), &again).await;
    everything_is_published(&server, &again).await;
    let recovered = std::sync::Mutex::new(None);
    server
        .restart_after(async |site: &Site| {
            site.restore_database().await;
            *recovered.lock().unwrap() = Some((recover(site).await, recover(site).await));
        })
        .await;

    let (recovered, nothing) = recovered.into_inner().unwrap().unwrap();
    assert_eq!((recovered.code, nothing.code), (Some(0), Some(0)), "{recovered:?} {nothing:?}");
    let told: serde_json::Value = serde_json::from_str(&recovered.stdout).unwrap();
    // Mallory, and each path that the backup had.
    assert_eq!((&told["quarantines"], &told["paths_withdrawn"]), (&4.into(), &3.into()), "{told}");
    let lost = told["lost"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
    let lost = lost.collect::<Vec<_>>().join("\n");
    assert!(lost.contains("`narvault contributor quarantine mallory --since TIME --reason TEXT`"), "{lost}");
    assert!(lost.contains(&format!("{} of main was pushed and withdrawn since", fresh.store_path)), "{lost}");

    // The rows are as after a quarantine.
    let listed = until("mallory's to be carried through", async || {
        let listed = answer(&server, &["quarantine", "list"]).await;
        let of = |one: &serde_json::Value| format!("{} {}", one["subject"], one["state"]).replace('"', "");
        let mut listed: Vec<_> = listed[0]["items"].as_array().unwrap().iter().map(of).collect();
        listed.sort();
        listed.iter().all(|one| one.ends_with(" standing")).then_some(listed)
    })
    .await;
    let base = |path: &TestPath| path.store_path["/nix/store/".len()..].to_owned();
    let mut expected = [&bad, &again, &alone].map(|path| format!("main/{} standing", base(path))).to_vec();
    expected.push("mallory standing".to_owned());
    expected.sort();
    assert_eq!(listed, expected);
    let affected = answer(&server, &["path", "affected", "main", "--since", "1h"]).await.to_string();
    for (path, is_gone) in [(&bad, true), (&alone, true), (&again, false), (&shared, false)] {
        assert_eq!(affected.contains(&path.store_path), is_gone, "{affected}");
    }
    let shown = server.admin().path("main", bad.hash()).await.unwrap();
    assert!(shown.evidence.iter().all(|one| one.void), "{shown:?}");
    assert_eq!(narinfo(&server.http(), &again).await, again_text);
    narinfo(&server.http(), &shared).await;

    // And they can be ended, or made as wide as they were.
    let restore = ["path", "restore", "main", bad.hash(), "--reason", "false alarm"];
    assert_eq!(server.narvault(restore).await.code, Some(0));
    assert_eq!(narinfo(&server.http(), &bad).await, bad_text);
    let wider = ["contributor", "quarantine", "mallory", "--since", "1h", "--reason", "as it was"];
    assert_eq!(server.narvault(wider).await.code, Some(0));
    let gone = server.http().get(&format!("/main/{}.narinfo", bad.hash())).await;
    assert_eq!(gone.status, 404);
    narinfo(&server.http(), &shared).await;
}

on_each_spawned_backend!(what_was_quarantined_since_is_quarantined_again);

async fn what_a_lost_key_signed_stays_valid_and_a_compromised_one_is_seen_to(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let ci = server.token("ci", &["push:main"]).await;
    let (before, after) = (TestPath::new("before", "before"), TestPath::new("after", "after"));
    ci.http.push("main", &before).await;
    let old = server.public_key.clone();
    let old_name = old.split(':').next().unwrap().to_owned();
    server.restart_after(async |site: &Site| site.back_up_database().await).await;

    // One key comes and the other is found to be known elsewhere, after the backup.
    let rotation = server.admin().key_rotate("main", &at_once()).await.unwrap();
    let lost_name = rotation.new_key.unwrap();
    until("both to sign", async || {
        let rotation = server.admin().key_rotation("main").await.unwrap();
        (rotation.step == "wait").then_some(())
    })
    .await;
    let body = KeyCompromise { reason: "the host was broken into".to_owned() };
    server.admin().key_compromise("main", &old_name, &body).await.unwrap();
    rotation_ends(&server).await;
    ci.http.push("main", &after).await;
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    let lost: PublicKey = keys.iter().find(|key| key.name == lost_name).unwrap().public_key.parse().unwrap();
    everything_is_published(&server, &after).await;
    let recovered = std::sync::Mutex::new(None);
    server
        .restart_after(async |site: &Site| {
            site.restore_database().await;
            *recovered.lock().unwrap() = Some(recover(site).await);
        })
        .await;
    let recovered = recovered.into_inner().unwrap().unwrap();
    assert_eq!(recovered.code, Some(0), "{}", recovered.stderr);
    assert!(
        recovered.stdout.contains(&format!("the secret of the key {lost_name} is lost")),
        "{recovered:?}"
    );

    // The rotation that the compromise began is begun anew, and comes to its end.
    rotation_ends(&server).await;
    let keys = server.admin().public_keys("main", &PublicKeysQuery::default()).await.unwrap();
    let keys = String::from_utf8(keys).unwrap();
    assert!(keys.contains(&lost.to_string()) && !keys.contains(&old), "{keys}");
    for path in [&before, &after] {
        let signed = SignedClaim::parse(narinfo(&server.http(), path).await.as_bytes()).unwrap();
        let fingerprint = signed.claim.fingerprint();
        let by_lost = signed.signatures.iter().any(|one| lost.verify(fingerprint.as_bytes(), one));
        assert!(by_lost, "{:?}", signed.signatures);
        assert!(signed.signatures.iter().all(|one| one.name.as_str() != old_name), "{:?}", signed.signatures);
    }
    // The name is not given again, and what is pushed now has a signature of the key that took the place.
    let create = KeyCreate { name: Some(lost_name.clone()), ..KeyCreate::default() };
    assert_eq!(server.admin().key_create("main", &create).await.unwrap_err().kind(), ErrorKind::Refused);
    let more = TestPath::new("more", "more");
    ci.http.push("main", &more).await;
    let text = narinfo(&server.http(), &more).await;
    assert!(!text.contains(&lost_name) && !text.contains(&old_name), "{text}");
    everything_is_published(&server, &more).await;
    let audited = server.narvault(["log", "audit", "--json"]).await;
    assert_eq!(audited.code, Some(0), "{audited:?}");
    server.stop().await;
}

on_each_spawned_backend!(what_a_lost_key_signed_stays_valid_and_a_compromised_one_is_seen_to);

async fn rotation_ends(server: &TestServer) {
    until("the rotation to end", async || {
        let rotation = server.admin().key_rotation("main").await.unwrap();
        (rotation.kind == "compromise" && rotation.step == "done").then_some(())
    })
    .await;
}

/// To signing at once.
fn at_once() -> RotationCreate {
    RotationCreate { publish_days: Some(0), wait_days: Some(30), ..RotationCreate::default() }
}

/// The published log, as it lies in storage.
async fn published_log(site: &Site) -> Vec<(ObjectKey, Bytes)> {
    let storage = site.storage().await;
    let entries: Vec<_> = storage.list(&Folder::Log).try_collect().await.unwrap();
    let mut objects = Vec::new();
    for key in entries.iter().filter_map(|entry| entry.key()) {
        let bytes = storage.read(&key, 1 << 24).await.unwrap().unwrap();
        objects.push((key, bytes));
    }
    objects
}

/// Puts another log in its place.
async fn put_log(site: &Site, objects: &[(ObjectKey, Bytes)]) {
    let storage = site.storage().await;
    for (key, _) in published_log(site).await {
        storage.delete(&key, Duration::from_secs(5)).await.unwrap();
    }
    for (key, bytes) in objects {
        storage.put(key, bytes.clone()).await.unwrap();
    }
}

async fn a_server_whose_history_is_another_than_the_published_one_only_reads(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let ci = server.token("ci", &["push:main"]).await;
    let kept = TestPath::new("kept", "kept");
    ci.http.push("main", &kept).await;
    server.restart_after(async |site: &Site| site.back_up_database().await).await;
    let lost = TestPath::new("lost", "lost");
    ci.http.push("main", &lost).await;
    let published = everything_is_published(&server, &lost).await;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    server
        .restart_after(async |site: &Site| {
            theirs = published_log(site).await;
            site.restore_database().await;
            put_log(site, &[]).await;
        })
        .await;

    // Nothing says that it is older: what was published is gone. It goes on, and says so.
    assert_eq!(server.http().get("/readyz").await.text(), "ready\n");
    let said = server.process().stderr();
    assert!(said.contains("storage has no checkpoint of the signature log"), "{said}");
    let others: Vec<_> = (0..3).map(|at| TestPath::new("other", at.to_string())).collect();
    for path in &others {
        ci.http.push("main", path).await;
    }
    assert!(everything_is_published(&server, &others[2]).await > published);
    server
        .restart_after(async |site: &Site| {
            ours = published_log(site).await;
            put_log(site, &theirs).await;
        })
        .await;

    // It has more leaves than were published, and others.
    assert_eq!(server.http().get("/readyz").await.text(), "ready, read-only\n");
    let metrics = server.http().get("/metrics").await;
    assert!(metrics.text().contains("\nnarvault_log_forked 1\n"), "{}", metrics.text());
    narinfo(&server.http(), &kept).await;
    narinfo(&server.http(), &others[0]).await;
    let more = TestPath::new("more", "more");
    ci.http.put_nar("main", &more).await.assert_refused(423, "narvault recover");
    let revoke = ["token", "revoke", ci.id.as_str(), "--reason", "left", "--yes"];
    let refused = server.narvault(revoke).await;
    assert!(refused.code != Some(0) && refused.stderr.contains("narvault recover"), "{refused:?}");
    server
        .restart_after(async |site: &Site| {
            let refused = recover(site).await;
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.stderr.contains("is not the beginning of the published one"), "{refused:?}");
            assert!(clear_alarm(site).await.stdout.contains("do not make the root"));
        })
        .await;
    assert_eq!(server.http().get("/readyz").await.text(), "ready, read-only\n");

    // The bucket that belongs to this database is put back.
    server
        .restart_after(async |site: &Site| {
            put_log(site, &ours).await;
            let ended = recover(site).await;
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert!(clear_alarm(site).await.stdout.contains("do not make the root"));
        })
        .await;
    assert_eq!(server.http().get("/readyz").await.text(), "ready\n");
    ci.http.push("main", &more).await;
    everything_is_published(&server, &more).await;
    assert_eq!(server.narvault(["log", "audit"]).await.code, Some(0));
    server.stop().await;
}

on_each_spawned_backend!(a_server_whose_history_is_another_than_the_published_one_only_reads);

async fn clear_alarm(site: &Site) -> Ended {
    let mut command = site.command(&[]);
    command.args(["log", "clear-alarm", "--reason", "looked into it"]);
    let ended = Ended::of(command).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_behind_is_left_alone() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let path = TestPath::new("path", "path");
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    everything_is_published(&server, &path).await;

    server
        .restart_after(async |site: &Site| {
            let ended = recover(site).await;
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let answer: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
            assert_eq!(answer["leaves"], 0, "{answer}");
        })
        .await;

    assert_eq!(server.http().get("/readyz").await.text(), "ready\n");
    narinfo(&server.http(), &path).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaves_that_are_not_in_storage_either_are_named_and_nothing_is_half_recovered() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let ci = server.token("ci", &["push:main"]).await;
    server.restart_after(async |site: &Site| site.back_up_database().await).await;
    let path = TestPath::new("path", "path");
    ci.http.push("main", &path).await;
    everything_is_published(&server, &path).await;

    server
        .restart_after(async |site: &Site| {
            site.restore_database().await;
            let entries = site.data().join("storage/_log/tile/entries");
            std::fs::rename(&entries, entries.with_file_name("elsewhere")).unwrap();
            let ended = recover(site).await;
            assert_eq!(ended.code, Some(1), "{}", ended.stdout);
            assert!(ended.stderr.contains("is not in storage"), "{}", ended.stderr);
        })
        .await;

    assert_eq!(server.http().get("/readyz").await.text(), "ready, read-only\n");
}

#[tokio::test]
async fn a_host_without_a_database_is_told_so_and_gets_none() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();

    let ended = recover(&site).await;

    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("there is no database at"), "{}", ended.stderr);
    assert!(!site.data().exists());
}
