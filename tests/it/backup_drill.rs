//! The drill: a machine burns with its database and its folder. From a backup, the bucket and the vault's secret another
//! one serves, signs and proves as before, and what was revoked after the backup stays revoked.

use std::path::Path;

use serde_json::Value;

use crate::kms::PASSPHRASE;
use crate::recover::{everything_is_published, narinfo, recover};
use crate::support::client::TestPath;
use crate::support::database::DatabaseKind;
use crate::support::nix::require_nix;
use crate::support::server::{Backend, Ended, Site, TestServer};

async fn run(site: &Site, arguments: &[&str]) -> Value {
    let mut command = site.command(&[]);
    command.args(arguments).arg("--json");
    let ended = Ended::of(command).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

async fn lost_and_restored(backend: Backend, elsewhere: DatabaseKind) {
    let Some(server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let leaver = server.token("leaver", &["push:main"]).await;
    let stays = server.token("stays", &["push:main"]).await;
    let (kept, early) = (TestPath::new("kept", "kept"), TestPath::new("early", "early"));
    leaver.http.push("main", &kept).await;
    let safe = tempfile::tempdir().unwrap();
    let file = safe.path().join("narvault.backup").display().to_string();

    // While the server serves.
    let made = run(&server.site, &["backup", &file]).await;
    assert!(made["rows"].as_u64().unwrap() > 20, "{made}");
    stays.http.push("main", &early).await;
    server.narvault(["token", "revoke", leaver.id.as_str(), "--reason", "left", "--yes"]).await;
    let last = TestPath::with_references("last", "last", &[&kept]);
    stays.http.push("main", &last).await;
    let before = [&kept, &early, &last];
    let mut texts = Vec::new();
    for path in before {
        texts.push(narinfo(&server.http(), path).await);
    }
    let published = everything_is_published(&server, &last).await;

    // The machine burns. Whoever has the backup, the bucket and the key has a server.
    let moved = server
        .restart_elsewhere(elsewhere, async |site: &Site| {
            let verified = run(site, &["backup", "verify", &file]).await;
            assert_eq!(verified["keys"], 3, "{verified}");
            assert_eq!(verified["leaves"], made["leaves"], "{verified}");
            assert!(!has_database(site), "verifying made a database");
            let restored = run(site, &["restore", &file]).await;
            assert_eq!(restored["rows"], made["rows"], "{restored}");
            let recovered = recover(site).await;
            assert_eq!(recovered.code, Some(0), "{}", recovered.stderr);
            let recovered: Value = serde_json::from_str(&recovered.stdout).unwrap();
            assert_eq!(recovered["tokens_revoked"], 1, "{recovered}");
            assert_eq!(recovered["paths_adopted"], 2, "{recovered}");
        })
        .await;
    let Some(server) = moved else {
        return println!("skipped: there is no {elsewhere:?} to restore into");
    };

    assert_eq!(server.http().get("/readyz").await.text(), "ready\n");
    for (path, text) in before.into_iter().zip(&texts) {
        assert_eq!(&narinfo(&server.http(), path).await, text);
    }
    let again = |token: &crate::support::client::Token| server.http().with_token(&token.text);
    assert_eq!(again(&leaver).get("/push/main/nix-cache-info").await.status, 401, "a revoked token lives");
    let more = TestPath::with_references("more", "more", &[&last]);
    again(&stays).push("main", &more).await;
    narinfo(&server.http(), &more).await;
    assert!(everything_is_published(&server, &more).await > published);
    let verified = server.narvault(["log", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    let shown = server.admin().path("main", kept.hash()).await.unwrap();
    assert_eq!(shown.evidence[0].source, "leaver");
    let metrics = server.http().get("/metrics").await;
    assert!(!metrics.text().contains("\nnarvault_log_forked 1\n"), "{}", metrics.text());
}

fn has_database(site: &Site) -> bool {
    Path::new(&site.data()).join("narvault.db").exists()
}

macro_rules! drill {
    ($($name:ident($backend:ident, $elsewhere:ident);)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            lost_and_restored(Backend::$backend, DatabaseKind::$elsewhere).await;
        }
    )+};
}

drill! {
    a_lost_machine_with_sqlite_and_a_folder_is_replaced(SQLITE_DISK, Sqlite);
    a_lost_machine_with_sqlite_and_s3_is_replaced(SQLITE_S3, Sqlite);
    a_lost_machine_with_postgres_and_s3_is_replaced(POSTGRES_REAL_S3, Postgres);
    a_lost_machine_with_sqlite_is_replaced_by_one_with_postgres(SQLITE_DISK, Postgres);
    a_lost_machine_with_postgres_is_replaced_by_one_with_sqlite(POSTGRES_DISK, Sqlite);
}

/// The scheduled backup is all that there is, and it lies in the bucket that stays.
async fn replaced_from_the_bucket(backend: Backend) {
    let every_hour = [("NARVAULT_BACKUP_EVERY_HOURS", "1")];
    let Some(server) = TestServer::spawn(backend, &every_hour).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let made_at = "narvault_backup_newest_timestamp_seconds ";
    crate::support::until("the first backup", async || {
        let metrics = server.http().get("/metrics").await;
        metrics.text().lines().any(|line| line.starts_with(made_at)).then_some(())
    })
    .await;
    let path = TestPath::new("path", "path");
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    everything_is_published(&server, &path).await;

    let listed = run(&server.site, &["backup", "list"]).await;
    let backups = listed["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 1, "{listed}");
    let name = backups[0]["name"].as_str().unwrap();
    for url in ["", "/main", "/push/main", "/api/v1/log"] {
        let found = server.http().get(&format!("{url}/_narvault/backups/{name}")).await;
        assert!([401, 404].contains(&found.status), "{url}: {}", found.status);
    }

    let moved = server
        .restart_elsewhere(backend.database, async |site: &Site| {
            run(site, &["backup", "verify", "--from-storage", name]).await;
            run(site, &["restore", "--from-storage", "newest"]).await;
            assert_eq!(recover(site).await.code, Some(0));
        })
        .await;

    let server = moved.unwrap();
    assert_eq!(server.http().get("/readyz").await.text(), "ready\n");
    narinfo(&server.http(), &path).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_replaced_from_the_backup_in_its_folder() {
    replaced_from_the_bucket(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_replaced_from_the_backup_in_its_bucket() {
    replaced_from_the_bucket(Backend::SQLITE_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_postgres_is_replaced_from_the_backup_in_its_bucket() {
    replaced_from_the_bucket(Backend::POSTGRES_REAL_S3).await;
}

/// Stock Nix pushed before and pulls after, from a server that is opened by somebody who knows a passphrase.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_pulls_from_the_replacement_that_a_passphrase_has_opened() {
    let nix = require_nix!();
    let server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let safe = tempfile::tempdir().unwrap();
    let passphrase = safe.path().join("passphrase").display().to_string();
    std::fs::write(&passphrase, PASSPHRASE).unwrap();
    let add = ["vault", "slot", "add", "--passphrase-file", passphrase.as_str()];
    assert_eq!(server.narvault(add).await.code, Some(0));
    let alice = nix.machine();
    alice.log_in(&server.token("alice", &["push:main"]).await.text);
    let library = alice.add_text("library", "nothing else", &[]).await;
    let tool = alice.add_text("tool", "uses", &[&library]).await;
    alice.push(&server.push_url("main"), &[&tool]).await.success();
    let (file, key) = (safe.path().join("narvault.backup").display().to_string(), server.public_key.clone());
    run(&server.site, &["backup", &file]).await;

    // The key file burns as well. What somebody knows is enough.
    let moved = server
        .restart_elsewhere(DatabaseKind::Sqlite, async |site: &Site| {
            std::fs::remove_file(site.data().join("vault.key")).unwrap();
            let with = ["--passphrase-file", passphrase.as_str()];
            run(site, &[&["backup", "verify", &file][..], &with].concat()).await;
            run(site, &[&["restore", &file][..], &with].concat()).await;
            assert_eq!(recover(site).await.code, Some(0));
        })
        .await;

    let server = moved.unwrap();
    let url = server.pull_url("main");
    let puller = || {
        let mut machine = nix.machine();
        machine.trust(&key);
        machine
    };
    // Reads need no vault.
    assert_eq!(server.admin().vault().await.unwrap().state, "sealed");
    puller().pull(&url, &[&library, &tool]).await.success();
    let unseal = ["vault", "unseal", "--passphrase-file", passphrase.as_str()];
    assert_eq!(server.narvault(unseal).await.code, Some(0));
    let bob = nix.machine();
    bob.log_in(&server.token("bob", &["push:main"]).await.text);
    let more = bob.add_text("more", "later", &[]).await;
    bob.push(&server.push_url("main"), &[&more]).await.success();
    let carol = puller();
    carol.pull(&url, &[&tool, &more]).await.success();
    assert_eq!(carol.nar(&tool).await, alice.nar(&tool).await);
    let verify = carol.run_bare("nix", ["store", "verify", "--store", &url, &tool, &more]).await;
    verify.success();
    server.stop().await;
}
