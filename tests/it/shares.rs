//! A vault that several people open together: shares are handed out once, handed in one at a time by different
//! administrators, and nothing that others do takes them away.

use std::path::{Path, PathBuf};

use narvault::api::{SlotAdded, UnsealRequest, VaultView};
use narvault::cli::server::Server;
use narvault::client::Client;
use narvault::time::Clock;
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::support::client::{Answer, Http};
use crate::support::database::on_each_database;
use crate::support::server::{Backend, Ended, Site, TestServer, narvault};
use crate::support::until;

const KEEPERS: [&str; 3] = ["alice", "bob", "carol"];

/// Three people, each with a token and, in a file, a share of which two open the vault.
struct Keepers {
    folder: TempDir,
    tokens: Vec<String>,
    slot: SlotAdded,
}

impl Keepers {
    async fn of(server: &TestServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut tokens = Vec::new();
        for name in KEEPERS {
            tokens.push(server.token(name, &["admin"]).await.text);
        }
        let out_dir = folder.path().to_str().unwrap();
        let added = server
            .narvault(["vault", "slot", "add", "--shares", "2/3", "--out-dir", out_dir, "--json"])
            .await;
        assert!(added.stderr.contains("give each share to another person"), "{}", added.stderr);
        Self { folder, tokens, slot: json(&added) }
    }

    fn file(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("share-{number}-of-3"))
    }

    fn share(&self, number: usize) -> String {
        std::fs::read_to_string(self.file(number)).unwrap().trim().to_owned()
    }

    /// The one at `who` hands in a share on the command line.
    async fn hand_in(&self, url: &str, who: usize, file: &Path) -> Ended {
        self.unseal(url, who, &["--share-file", file.to_str().unwrap()]).await
    }

    async fn unseal(&self, url: &str, who: usize, arguments: &[&str]) -> Ended {
        let home = tempfile::tempdir().unwrap();
        let mut command = narvault();
        command.args(["vault", "unseal"]).args(arguments).env("HOME", home.path());
        command.env("NARVAULT_URL", url).env("NARVAULT_TOKEN", &self.tokens[who]);
        Ended::of(command).await
    }

    fn client(&self, url: &str, who: usize) -> Client {
        Client::new(url.parse().unwrap(), Some(&self.tokens[who].clone().into()), false).unwrap()
    }
}

fn json<T: serde::de::DeserializeOwned>(ended: &Ended) -> T {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[track_caller]
fn refused(ended: &Ended, code: i32, why: &str) {
    assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
    assert!(!ended.stderr.contains("nvs1-a"), "{}", ended.stderr);
}

fn url(server: &Server) -> String {
    format!("http://{}", server.http.address)
}

/// Starts the server of this site again, whose key file opens nothing any more.
async fn restarted_sealed(server: TestServer) -> (Site, Server, String) {
    let slots = server.admin().vault().await.unwrap().slots;
    let key_file = slots.iter().find(|slot| slot.kind == "key-file").unwrap();
    server.admin().slot_remove(&key_file.id).await.unwrap();
    let site = server.stop().await;
    let server = site.start_here(Clock::System, &[]).await;
    let url = url(&server);
    (site, server, url)
}

on_each_database! {
    async fn three_administrators_open_a_server_that_started_sealed(server: TestServer) {
        let keepers = Keepers::of(&server).await;
        let both = server.narvault(["vault", "status"]).await;
        assert!(both.stdout.contains("any 2 of its 3 shares, each handed in by another administrator"), "{}", both.stdout);
        let (site, server, url) = restarted_sealed(server).await;
        assert_eq!(Http::new(&url).get("/readyz").await.text(), "ready, sealed\n");

        let first = keepers.hand_in(&url, 0, &keepers.file(1)).await;

        assert_eq!(first.code, Some(0), "{}", first.stderr);
        assert!(first.stdout.contains("state:           sealed"), "{}", first.stdout);
        let progress = format!("1 of 2 for slot {}, by alice at ", keepers.slot.id);
        assert!(first.stdout.contains(&progress), "{}", first.stdout);
        assert!(first.stdout.contains("shares alone open the vault, any 2; if more than 1 are lost"), "{}", first.stdout);

        refused(&keepers.hand_in(&url, 0, &keepers.file(2)).await, 4, "you have handed in a share already");
        refused(&keepers.hand_in(&url, 1, &keepers.file(1)).await, 4, "this share was handed in already");

        let last = keepers.hand_in(&url, 2, &keepers.file(3)).await;
        assert_eq!(last.code, Some(0), "{}", last.stderr);
        assert!(last.stdout.contains("open") && !last.stdout.contains("1 of 2 for slot"), "{}", last.stdout);
        // What needs the vault goes on.
        let body = serde_json::from_value(json!({ "contributor": "alice", "scopes": ["pull:main"] })).unwrap();
        keepers.client(&url, 0).token_issue(&body).await.unwrap();
        server.shut_down().await.unwrap();
        drop(site);
    }

    async fn strangers_and_slips_take_nothing_away(server: TestServer) {
        let keepers = Keepers::of(&server).await;
        let ci = server.token("ci", &["push:main"]).await;
        let (site, server, url) = restarted_sealed(server).await;
        keepers.hand_in(&url, 0, &keepers.file(1)).await;
        let http = Http::new(&url);
        let post = async |http: &Http, body: serde_json::Value| {
            let request = http.request(Method::POST, "/api/v1/vault/unseal");
            Answer::of(request.header("content-type", "application/json").body(body.to_string())).await.status
        };
        let delete = async |http: &Http| Answer::of(http.request(Method::DELETE, "/api/v1/vault/unseal")).await.status;

        let share = json!({ "share": keepers.share(2) });
        assert_eq!(post(&http, share.clone()).await, 401);
        assert_eq!(post(&http.with_token(&ci.text), share.clone()).await, 403);
        assert_eq!(post(&http.with_token("nvt_x"), share).await, 401);
        assert_eq!(post(&http, json!({ "passphrase": "correct horse battery staple" })).await, 422);
        assert_eq!(post(&http, json!({})).await, 401);
        assert_eq!((delete(&http).await, delete(&http.with_token(&ci.text)).await), (401, 403));
        let both = json!({ "share": keepers.share(2), "passphrase": "correct horse battery staple" });
        assert_eq!(post(&http.with_token(&keepers.tokens[1]), both).await, 422);
        let mistyped = keepers.share(2).replacen("nvs1-a", "nvs1-b", 1);
        assert_eq!(post(&http.with_token(&keepers.tokens[1]), json!({ "share": mistyped })).await, 422);
        let file = keepers.folder.path().join("mistyped");
        std::fs::write(&file, mistyped).unwrap();
        refused(&keepers.hand_in(&url, 1, &file).await, 2, "its checksum does not fit");
        refused(&keepers.unseal(&url, 1, &["--share"]).await, 2, "nobody is there to type a share");

        let vault = keepers.client(&url, 1).vault().await.unwrap();
        assert_eq!(vault.shares[0].handed_in[0].contributor, "alice");
        assert_eq!(vault.state, "sealed");
        assert_eq!(json::<VaultView>(&keepers.unseal(&url, 1, &["--json", "--share-file", keepers.file(2).to_str().unwrap()]).await).state, "open");
        server.shut_down().await.unwrap();
        drop(site);
    }

    async fn a_seal_and_a_cancel_end_what_was_begun(server: TestServer) {
        let keepers = Keepers::of(&server).await;
        let url = server.url.clone();
        let progress = async || server.admin().vault().await.unwrap().shares.len();
        refused(&keepers.hand_in(&url, 0, &keepers.file(1)).await, 4, "the vault is open here: no share is needed");
        server.admin().vault_seal().await.unwrap();

        keepers.hand_in(&url, 0, &keepers.file(1)).await;
        assert_eq!(progress().await, 1);
        server.admin().vault_seal().await.unwrap();
        assert_eq!(progress().await, 0);
        keepers.hand_in(&url, 1, &keepers.file(2)).await;
        assert_eq!(progress().await, 1);
        let cancelled = keepers.unseal(&url, 2, &["--cancel-shares"]).await;
        assert_eq!((cancelled.code, progress().await), (Some(0), 0), "{}", cancelled.stderr);

        keepers.hand_in(&url, 0, &keepers.file(3)).await;
        assert_eq!(keepers.hand_in(&url, 1, &keepers.file(1)).await.code, Some(0));
        assert_eq!(server.admin().vault().await.unwrap().state, "open");
        let audit = server.narvault(["audit", "list", "--action", "vault-share", "--all"]).await;
        assert_eq!(audit.code, Some(0), "{}", audit.stderr);
        for name in &KEEPERS[..2] {
            assert!(audit.stdout.contains(name), "{}", audit.stdout);
        }
        assert!(!audit.stdout.contains("nvs1-"), "{}", audit.stdout);
        server.stop().await;
    }

    async fn a_share_of_another_server_is_named(server: TestServer) {
        let elsewhere = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
        let (keepers, others) = (Keepers::of(&server).await, Keepers::of(&elsewhere).await);
        server.admin().vault_seal().await.unwrap();

        let other = keepers.hand_in(&server.url, 0, &others.file(2)).await;

        refused(&other, 4, "share 2 belongs to another server");
        assert!(server.admin().vault().await.unwrap().shares.is_empty());
        elsewhere.stop().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_forgotten_after_15_minutes() {
    let clock = Clock::fixed(Clock::System.now());
    let server = TestServer::at(clock.clone()).await;
    let keepers = Keepers::of(&server).await;
    server.admin().vault_seal().await.unwrap();
    let hand_in = async |who: usize| {
        let body = UnsealRequest { share: Some(keepers.share(who + 1)), ..UnsealRequest::default() };
        keepers.client(&server.url, who).vault_unseal(&body).await.unwrap()
    };
    hand_in(0).await;
    clock.advance_seconds(15 * 60 - 1);
    assert_eq!(server.admin().vault().await.unwrap().shares.len(), 1);

    clock.advance_seconds(1);

    assert!(server.admin().vault().await.unwrap().shares.is_empty());
    let late = hand_in(1).await;
    assert_eq!((late.state.as_str(), late.shares[0].handed_in[0].contributor.as_str()), ("sealed", "bob"));
    assert_eq!(hand_in(0).await.state, "open");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_forgets_the_shares_and_its_replicas_never_had_them() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let keepers = Keepers::of(&server).await;
    server.admin().vault_seal().await.unwrap();
    keepers.hand_in(&server.url, 0, &keepers.file(1)).await;

    server.restart_after_kill(&[]).await;

    let http = server.http();
    until("it is sealed", async || (http.get("/readyz").await.text() == "ready, sealed\n").then_some(()))
        .await;
    assert!(server.admin().vault().await.unwrap().shares.is_empty());
    keepers.hand_in(&server.url, 1, &keepers.file(1)).await;
    assert_eq!(keepers.hand_in(&server.url, 0, &keepers.file(2)).await.code, Some(0));
    assert_eq!(server.admin().vault().await.unwrap().state, "open");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_told_once_and_written_over_nothing() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out_dir = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("share-3-of-3"), "somebody's").unwrap();

    let taken = server.narvault(["vault", "slot", "add", "--shares", "2/3", "--out-dir", out_dir]).await;

    refused(&taken, 1, "share-3-of-3 is there already\nhint: name another folder; nothing was changed");
    assert_eq!(server.admin().vault().await.unwrap().slots.len(), 1, "no slot without its shares");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    for (shares, code) in [("1/3", 2), ("4/3", 2), ("2/16", 2), ("3", 2), ("2/2", 0)] {
        assert_eq!(
            server.narvault(["vault", "slot", "add", "--shares", shares]).await.code,
            Some(code),
            "{shares}"
        );
    }
    let shown = server.narvault(["vault", "slot", "add", "--shares", "3/5"]).await;
    assert_eq!(shown.stdout.lines().count(), 6, "{}", shown.stdout);
    for (number, line) in (1..).zip(shown.stdout.lines().skip(1)) {
        let share = line.strip_prefix(&format!("share {number} of 5: nvs1-")).unwrap();
        assert_eq!(share.len(), 84);
    }
    let status = server.narvault(["vault", "status", "--json"]).await;
    assert!(!status.stdout.contains("nvs1-"), "{}", status.stdout);
    let alone = server.narvault(["vault", "slot", "add", "--out-dir", out_dir]).await;
    assert_eq!(alone.code, Some(2), "{}", alone.stdout);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_opens_with_shares_at_one_time() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let keepers = Keepers::of(&server).await;
    let elsewhere = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let others = Keepers::of(&elsewhere).await;
    let (site, server, _) = restarted_sealed(server).await;
    let backup = keepers.folder.path().join("a.backup");
    let run = async |site: &Site, command: &[&str], files: &[PathBuf]| {
        let mut narvault = site.command(&[]);
        narvault.args(command).arg(&backup);
        for file in files {
            narvault.arg("--share-file").arg(file);
        }
        Ended::of(narvault).await
    };

    refused(
        &run(&site, &["backup"], &[]).await,
        1,
        "hint: add --key-file, --passphrase-file or --share-file",
    );
    let written = run(&site, &["backup"], &[keepers.file(3), keepers.file(1)]).await;
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    for (files, why) in [
        (vec![keepers.file(2)], "1 of the 2 shares that are needed are here"),
        (vec![keepers.file(2), keepers.file(2)], "share 2 is there twice"),
        (vec![keepers.file(2), others.file(1)], "share 1 belongs to another server"),
        (vec![keepers.file(2), backup.clone()], "cannot read the share"),
    ] {
        refused(&run(&site, &["backup", "verify"], &files).await, 1, why);
    }
    let verified = run(&site, &["backup", "verify"], &[keepers.file(1), keepers.file(2)]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    std::fs::remove_file(site.data().join("vault.key")).unwrap();
    let mut check = site.command(&[]);
    check.arg("check");
    let checked = Ended::of(check).await;
    let words = "a server that starts is sealed until its shares are handed in";
    assert!(checked.stdout.contains(words), "{}{}", checked.stdout, checked.stderr);
    let empty = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let restored = run(&empty, &["restore"], &[keepers.file(3), keepers.file(2), keepers.file(1)]).await;
    assert_eq!(restored.code, Some(0), "{}", restored.stderr);
    server.shut_down().await.unwrap();
    elsewhere.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepers_whose_tokens_ran_out_are_not_locked_out_on_the_servers_host() {
    let clock = Clock::fixed(Clock::System.now());
    let server = TestServer::at(clock.clone()).await;
    let keepers = Keepers::of(&server).await;
    server.admin().vault_seal().await.unwrap();
    clock.advance_seconds(31 * 24 * 3600);
    let (site, late) = restart_at(server, clock).await;
    let url = url(&late);
    refused(&keepers.hand_in(&url, 0, &keepers.file(1)).await, 3, "this token has expired");
    let passphrase = keepers.folder.path().join("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple").unwrap();
    let add = async |files: &[PathBuf]| {
        let mut command = site.command(&[]);
        command.args(["admin", "add-passphrase", "--new-passphrase-file"]).arg(&passphrase);
        for file in files {
            command.arg("--share-file").arg(file);
        }
        Ended::of(command).await
    };

    refused(&add(&[keepers.file(1)]).await, 1, "1 of the 2 shares that are needed are here");
    let added = add(&[keepers.file(1), keepers.file(3)]).await;

    assert_eq!(added.code, Some(0), "{}", added.stderr);
    assert_eq!(Http::new(&url).get("/readyz").await.text(), "ready, sealed\n", "the seal by hand stays");
    // With the token that ran out in its environment: a passphrase needs none.
    let unsealed = keepers.unseal(&url, 0, &["--passphrase-file", passphrase.to_str().unwrap()]).await;
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.stderr);
    assert_eq!(Http::new(&url).get("/readyz").await.text(), "ready\n");
    late.shut_down().await.unwrap();
}

async fn restart_at(server: TestServer, clock: Clock) -> (Site, Server) {
    let site = server.stop().await;
    let late = site.start_here(clock, &[]).await;
    (site, late)
}
