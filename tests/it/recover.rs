//! A database that was restored from an older backup revives nothing: it only reads until it has caught up with the
//! published log.

use narvault::api::PathDelete;
use narvault::storage::ObjectKey;
use narvault::tlog::checkpoint::Checkpoint;

use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, Ended, Site, TestServer};
use crate::support::until;

/// Waits until the published log has the leaf of this path, which was pushed last. Answers with the log's size.
async fn everything_is_published(server: &TestServer, last: &TestPath) -> u64 {
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

async fn recover(site: &Site) -> Ended {
    let mut command = site.command(&[]);
    command.args(["recover", "--json"]);
    Ended::of(command).await
}

async fn narinfo(http: &Http, path: &TestPath) -> String {
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
    assert!(!metrics.text().contains("narvault_log_forked 1"), "{}", metrics.text());
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
