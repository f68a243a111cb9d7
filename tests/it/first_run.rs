//! From an empty folder to a server that its operator can hold: the first start, the next ones, and the end.

use narvault::api::{ClaimRequest, RevokeRequest, TokenCreate};
use narvault::client::Client;
use serde_json::Value;

use crate::support::client::{Http, Raw, TestPath};
use crate::support::server::{Backend, Ended, Process, Site, TestServer, narvault};
use crate::support::until;

async fn claim(url: &str, claim: &str) -> Result<Client, narvault::client::Error> {
    let anyone = Client::new(url.parse().unwrap(), None, false).unwrap();
    let issued = anyone.claim(&ClaimRequest { claim: claim.to_owned() }).await?;
    Client::new(url.parse().unwrap(), Some(&issued.token.into()), false)
}

async fn terminated(mut process: Process) {
    process.signal("TERM").await;
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_prints_what_to_paste() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let process = site.spawn(&[]).await;
    let url = &process.url;

    let told = process.stderr();

    let admin = claim(url, &process.told("--claim ").unwrap()).await.unwrap();
    let cache = admin.cache("main").await.unwrap();
    assert_eq!(process.told("extra-trusted-public-keys = "), Some(cache.public_keys[0].clone()));
    assert_eq!(process.told("extra-substituters = "), Some(cache.pull_url.clone()));
    assert!(told.contains(&format!("nix copy --to '{}'", cache.push_url)), "{told}");
    assert!(told.contains(&format!("narvault login {url}")), "{told}");
    let key_file = site.data().join("vault.key");
    assert!(told.contains(&key_file.display().to_string()) && key_file.exists(), "{told}");
    assert_eq!([cache.pull_url, cache.push_url], [format!("{url}/main"), format!("{url}/push/main")]);
    terminated(process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_commands_lead_to_a_token_that_pushes() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let process = site.spawn(&[]).await;
    let home = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = narvault();
        command.args(arguments).env("HOME", home.path()).current_dir(home.path());
        let ended = Ended::of(command).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    };
    run(&["login", &process.url, "--claim", &process.told("--claim ").unwrap()]).await;
    run(&["contributor", "add", "alice", "--kind", "person"]).await;

    let issued = run(&["token", "issue", "alice", "--scope", "push:main", "--json"]).await;

    let issued: Value = serde_json::from_str(&issued).unwrap();
    let alice = Http::new(&process.url).with_token(issued["token"].as_str().unwrap());
    alice.push("main", &TestPath::new("thing", "hello")).await;
    terminated(process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_makes_one_administrator_only() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let process = site.spawn(&[]).await;
    let secret = process.told("--claim ").unwrap();
    assert!(
        claim(&process.url, &"nvb_x".replace('x', &secret[4..].chars().rev().collect::<String>()))
            .await
            .is_err()
    );
    claim(&process.url, &secret).await.unwrap().whoami().await.unwrap();

    let again = claim(&process.url, &secret).await;

    assert!(again.is_err_and(|error| error.to_string().contains("claim")));
    terminated(process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_starts_print_no_secret_and_know_the_first_ones_tokens() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let process = site.spawn(&[]).await;
    let anyone = Client::new(process.url.parse().unwrap(), None, false).unwrap();
    let body = ClaimRequest { claim: process.told("--claim ").unwrap() };
    let token = anyone.claim(&body).await.unwrap().token;
    terminated(process).await;

    let process = site.spawn(&[]).await;

    assert!(!process.stderr().contains("nvb_"), "{}", process.stderr());
    let admin = Client::new(process.url.parse().unwrap(), Some(&token.into()), false).unwrap();
    assert_eq!(admin.whoami().await.unwrap().scopes, ["admin"]);
    terminated(process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_under_way_ends_before_the_server_does() {
    for signal in ["TERM", "INT"] {
        let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
        let token = server.token("alice", &["push:main"]).await;
        let path = TestPath::new("thing", "hello".repeat(100_000));
        let mut raw = Raw::connect(&server.url).await;
        let url = format!("/push/main/{}", path.nar_url());
        raw.expect_put(&url, Some(&token.text), path.file.len()).await;
        assert_eq!(raw.status().await, 100);
        let (first, rest) = path.file.split_at(1000);
        raw.send(first).await;

        server.process().signal(signal).await;

        let process = server.process();
        until("the signal to be heard", async || process.stderr().contains("stopping").then_some(())).await;
        raw.send(rest).await;
        assert_eq!(raw.status().await, 201);
        assert!(process.ended().await.success(), "{}", process.stderr());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_cluster_on_the_same_storage_is_refused() {
    for backend in [Backend::SQLITE_DISK, Backend::SQLITE_S3, Backend::POSTGRES_REAL_S3] {
        let Some(site) = Site::new(backend).await else { continue };
        let process = site.spawn(&[]).await;
        let intruder = site.intruder().await;
        let storage_url = site.storage_url();
        let disk = format!("file://{}", site.data().join("storage").display());
        let storage = [("NARVAULT_STORAGE_URL", storage_url.as_deref().unwrap_or(&disk))];
        let mut command = intruder.command(&storage);
        command.args(["serve", "--listen", "127.0.0.1:0"]);

        let refused = Ended::of(command).await;

        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("cluster"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("nvb_"), "{}", refused.stderr);
        terminated(process).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_the_configuration_is_named_with_what_was_meant() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let file = site.data().with_extension("toml");
    std::fs::write(&file, "[databse]\nurl = \"sqlite://x\"\n").unwrap();
    for (settings, texts) in [
        (["NARVAULT_DATABASE_ULR", "x"], ["NARVAULT_DATABASE_ULR", "NARVAULT_DATABASE_URL"]),
        (
            ["NARVAULT_LIMITS_RATE_PER_MINUTE", "0"],
            ["limits.rate_per_minute", "NARVAULT_LIMITS_RATE_PER_MINUTE"],
        ),
        (["NARVAULT_STORAGE_URL", "ftp://x"], ["storage.url", "NARVAULT_STORAGE_URL"]),
        (["NARVAULT_PUBLIC_URL", "http://cache.example"], ["public_url", "insecure_http"]),
        (["NARVAULT_CONFIG", file.to_str().unwrap()], ["databse", "database"]),
        (["NARVAULT_CONFIG", "/nowhere.toml"], ["/nowhere.toml", "No such file"]),
    ] {
        let mut command = site.command(&[(settings[0], settings[1])]);
        command.args(["serve", "--listen", "127.0.0.1:0"]);

        let refused = Ended::of(command).await;

        assert_eq!(refused.code, Some(2), "{settings:?}: {}", refused.stderr);
        for text in texts {
            assert!(refused.stderr.contains(text), "{text:?} is not in {}", refused.stderr);
        }
        assert!(!site.data().exists(), "{settings:?} left something behind");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_said_at_once() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = site.command(&[]);
    command.args(["serve", "--listen", &address]);

    let refused = Ended::of(command).await;

    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains(&address), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_can_be_made_on_the_host_while_the_server_runs() {
    for backend in [Backend::SQLITE_DISK, Backend::POSTGRES_REAL_S3] {
        let Some(site) = Site::new(backend).await else { continue };
        let process = site.spawn(&[]).await;
        let mut command = site.command(&[]);
        command.args(["admin", "claim", "--for", "operator", "--json"]);

        let made = Ended::of(command).await;

        assert_eq!(made.code, Some(0), "{}", made.stderr);
        let made: Value = serde_json::from_str(&made.stdout).unwrap();
        let admin = claim(&process.url, made["claim"].as_str().unwrap()).await.unwrap();
        let whoami = admin.whoami().await.unwrap();
        assert_eq!((whoami.contributor.as_str(), whoami.scopes), ("operator", vec!["admin".to_owned()]));
        terminated(process).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_set_up_one_cluster() {
    for backend in [Backend::POSTGRES_S3, Backend::POSTGRES_REAL_S3] {
        let Some(site) = Site::new(backend).await else { continue };
        // What operators hand to each replica.
        let passphrase = site.data().with_extension("passphrase");
        std::fs::write(&passphrase, "correct horse battery staple").unwrap();
        let vault = [("NARVAULT_VAULT_PASSPHRASE_FILE", passphrase.to_str().unwrap())];

        let (one, two) = tokio::join!(site.spawn(&vault), site.spawn(&vault));

        let claims: Vec<_> =
            [&one, &two].into_iter().filter_map(|replica| replica.told("--claim ")).collect();
        assert_eq!(claims.len(), 1);
        let admin = claim(&one.url, &claims[0]).await.unwrap();
        assert!(claim(&two.url, &claims[0]).await.is_err());
        let body = TokenCreate {
            contributor: "admin".to_owned(),
            scopes: vec!["push:main".to_owned()],
            expires_in_seconds: None,
            note: None,
        };
        let token = admin.token_issue(&body).await.unwrap();
        let (by_one, by_two) = (Http::new(&one.url), Http::new(&two.url));
        let path = TestPath::new("thing", "hello");
        by_one.with_token(&token.token).push("main", &path).await;
        let narinfo = format!("/main/{}.narinfo", path.hash());
        assert_eq!(by_two.get(&narinfo).await.assert_status(200).body, by_one.get(&narinfo).await.body);
        let body = RevokeRequest { reason: "lost".to_owned(), keep_issued: false };
        admin.token_revoke(&token.id, &body).await.unwrap();
        let other = TestPath::new("other", "hello");
        let refused = by_two.with_token(&token.token).put_nar("main", &other).await;
        refused.assert_refused(401, "this token was revoked");
        terminated(one).await;
        terminated(two).await;
    }
}
