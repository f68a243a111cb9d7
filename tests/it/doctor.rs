//! `narvault doctor` says nothing where all is well, and names what is wrong with its cure where it is not.

use narvault::api::{KeyCreate, RevokeRequest};
use serde_json::{Value, json};

use crate::support::client::TestPath;
use crate::support::desk::Desk;
use crate::support::nix::require_nix;
use crate::support::proxy::{Manners, PROXY_DATE, Proxy};
use crate::support::server::{Backend, TestServer};
use crate::support::storage::key;

async fn server() -> TestServer {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let body = serde_json::from_value(json!({ "name": "team", "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    server.admin().key_create("team", &KeyCreate::default()).await.unwrap();
    server
}

/// What is found: exit code, and a line for each check.
async fn examined(desk: &Desk, arguments: &[&str]) -> (Option<i32>, Vec<String>) {
    let ended = desk.narvault(&[&["doctor", "--json"], arguments].concat()).await;
    let report: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let lines = report["checks"].as_array().unwrap().iter().map(|check| {
        let word = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}: {} → {}", word("status"), word("part"), word("detail"), word("hint"))
    });
    (ended.code, lines.collect())
}

/// Fails, and says this in one line.
async fn finds(desk: &Desk, arguments: &[&str], texts: &[&str]) {
    let (code, lines) = examined(desk, arguments).await;
    let fits = |line: &String| line.starts_with("fail ") && texts.iter().all(|text| line.contains(text));
    assert!(code == Some(1) && lines.iter().any(fits), "{texts:?}: {code:?} {lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_well_after_use() {
    let nix = require_nix!();
    let server = server().await;
    let bob = server.token("bob", &["push:team", "push:main"]).await;
    let desk = Desk::new(&nix);
    desk.log_in(&server, &bob.text).await;
    for cache in ["main", "team"] {
        desk.narvault_ok(&["use", cache]).await;
    }
    let path = TestPath::new("thing", "hello");
    bob.http.push("team", &path).await;
    desk.pull(&path.store_path).await.success();

    let (code, lines) = examined(&desk, &["team", "--path", &path.store_path]).await;
    let (all_code, all) = examined(&desk, &[]).await;

    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with("ok ")), "{lines:#?}");
    for part in [
        "nix",
        "config",
        "server",
        "clock",
        "token",
        "scope",
        "cache",
        "substituter",
        "key",
        "netrc",
        "path",
        "nar",
        "memory",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(&format!("ok {part}: "))), "{part}: {lines:#?}");
    }
    // Both caches are found in the configuration.
    assert!(
        all_code == Some(0) && all.iter().filter(|line| line.starts_with("ok cache: ")).count() == 2,
        "{all:#?}"
    );
    // The newest path is the one that is looked at where none is named, and none where there is none.
    let read =
        |line: &&String| line.starts_with("ok nar: team: the NAR of ") && line.contains(&path.store_path);
    assert_eq!(all.iter().filter(read).count(), 1, "{all:#?}");
    assert_eq!(all.iter().filter(|line| line.starts_with("ok nar: ")).count(), 1, "{all:#?}");
    let people = desk.narvault_ok(&["doctor", "team"]).await;
    assert!(people.contains("substituters") && !people.contains("nvt_"), "{people}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_configuration_is_found() {
    let nix = require_nix!();
    let server = server().await;
    let bob = server.token("bob", &["push:team", "push:main"]).await;
    let path = TestPath::new("thing", "hello");
    bob.http.push("main", &path).await;
    let url = server.pull_url("main");
    let mut desk = Desk::new(&nix);
    desk.set("NARVAULT_URL", &server.url);
    let conf = "home/.config/nix/nix.conf";
    let cure = format!("narvault use {url}");

    finds(&desk, &["main"], &["substituter", "does not ask", &cure]).await;
    desk.write(conf, &format!("extra-substituters = {url}\n"));
    finds(&desk, &["main"], &["key", "trusts none of its keys", &cure]).await;
    finds(&desk, &["main", "--path", &path.store_path], &["path", "no key that Nix trusts has signed it"])
        .await;
    desk.write(conf, &format!("extra-substituters = {url}\nsubstituters = https://a.example\n"));
    finds(&desk, &["main"], &["substituter", "nix.conf:2 replaces", &cure]).await;
    desk.write(conf, "max-jobs=1\n");
    finds(&desk, &["main"], &["config", "nix.conf:1", "name = value"]).await;
    desk.write(conf, &format!("extra-substituters = {}\n", server.push_url("main")));
    finds(&desk, &[], &["push url", "nix.conf:1", &format!("write {url} instead")]).await;
    desk.write(conf, "");
    desk.narvault_ok(&["use", "main"]).await;
    let missing = TestPath::new("thing", "not pushed");
    finds(&desk, &["main", "--path", &missing.store_path], &["path", "does not have", "nix copy --to"]).await;
    server.admin().key_create("main", &KeyCreate::default()).await.unwrap();
    let (code, lines) = examined(&desk, &["main"]).await;
    assert!(code == Some(0) && lines.iter().any(|line| line.starts_with("warn key: ")), "{lines:#?}");

    // A daemon that does not trust this user.
    desk.set("NIX_REMOTE", "daemon");
    desk.write("etc/nix.conf", &format!("{}trusted-users = somebody-else\n", desk.machine_conf()));
    let cure = format!("sudo narvault use {url} --system");
    finds(&desk, &["main"], &["substituter", "the daemon ignores", &cure]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_token_is_found() {
    let nix = require_nix!();
    let server = server().await;
    let bob = server.token("bob", &["push:team"]).await;
    let desk = Desk::new(&nix);
    desk.log_in(&server, &bob.text).await;
    desk.narvault_ok(&["use", "team"]).await;
    let netrc = "home/.config/nix/netrc";
    let good = desk.read(netrc).unwrap();
    let cure = format!("narvault use {}", server.pull_url("team"));

    desk.write(netrc, "machine other.example password x\n");
    finds(&desk, &["team"], &["netrc", "has no password for 127.0.0.1", &cure]).await;
    std::fs::remove_file(desk.file(netrc)).unwrap();
    finds(&desk, &["team"], &["netrc", "finds no", &cure]).await;
    desk.write(netrc, "machine 127.0.0.1 login x password nvt_wrong\n");
    finds(&desk, &["team"], &["netrc", "is refused (401)", &cure]).await;
    let other = server.token("bob", &["push:main"]).await;
    desk.write(netrc, &format!("machine 127.0.0.1 password {}\n", other.text));
    finds(&desk, &["team"], &["netrc", "is refused (403)", &cure]).await;
    let body = serde_json::from_value(json!({
        "contributor": "bob", "scopes": ["pull:team"], "expires_in_seconds": 3 * 24 * 3600 + 60
    }));
    let short = server.admin().token_issue(&body.unwrap()).await.unwrap().token;
    desk.write(netrc, &format!("machine 127.0.0.1 password {short}\n"));
    let (code, lines) = examined(&desk, &["team"]).await;
    let warned = |line: &String| line.starts_with("warn netrc: ") && line.contains("ends in 3 days");
    assert!(code == Some(0) && lines.iter().any(warned), "{lines:#?}");
    desk.write(netrc, &good);
    assert_eq!(examined(&desk, &["team"]).await.0, Some(0));

    let body = RevokeRequest { reason: "test".to_owned(), keep_issued: false };
    server.admin().token_revoke(&bob.id, &body).await.unwrap();
    finds(&desk, &["team"], &["token", "revoked", "narvault login"]).await;
    server.stop().await;
}

/// Warns, and says this in one line, and nothing fails.
async fn warns(desk: &Desk, arguments: &[&str], texts: &[&str]) {
    let (code, lines) = examined(desk, arguments).await;
    let fits = |line: &String| line.starts_with("warn ") && texts.iter().all(|text| line.contains(text));
    assert!(code == Some(0) && lines.iter().any(fits), "{texts:?}: {code:?} {lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_that_are_not_good_for_the_cache_are_found() {
    let nix = require_nix!();
    let server = server().await;
    let puller = server.token("puller", &["pull:team"]).await;
    let other = server.token("other", &["push:elsewhere"]).await;
    let desk = Desk::new(&nix);
    desk.log_in(&server, &puller.text).await;
    for cache in ["main", "team"] {
        desk.narvault_ok(&["use", cache]).await;
    }

    let cure = "narvault token issue puller --scope push:team";
    warns(&desk, &["team"], &["scope", "no `push:team`", "pulls go on", cure, "narvault login"]).await;
    warns(&desk, &["main"], &["scope", "no `push:main`", "pulls need none"]).await;
    desk.log_in(&server, &other.text).await;
    let cure = "narvault token issue other --scope pull:team";
    finds(&desk, &["team"], &["scope", "neither `pull:team` nor `push:team`", cure]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_is_gone_from_the_storage_is_found_though_its_narinfo_is_there() {
    let nix = require_nix!();
    let server = server().await;
    let bob = server.token("bob", &["push:main"]).await;
    let desk = Desk::new(&nix);
    desk.log_in(&server, &bob.text).await;
    desk.narvault_ok(&["use", "main"]).await;
    let path = TestPath::new("thing", "hello");
    bob.http.push("main", &path).await;
    assert_eq!(examined(&desk, &["main"]).await.0, Some(0));

    let storage = server.site.storage().await;
    storage
        .delete(&key(&format!("main/{}", path.nar_url())), std::time::Duration::from_secs(5))
        .await
        .unwrap();

    finds(&desk, &["main"], &["nar", &path.store_path, "status "]).await;
    finds(&desk, &["main", "--path", &path.store_path], &["nar", "status "]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_comes_from_the_bucket_is_read_there() {
    let nix = require_nix!();
    let settings = [("NARVAULT_NARS_DELIVER", "redirect")];
    let Some(server) = TestServer::start_with(Backend::SQLITE_S3, &settings).await else {
        return println!("skipped: {:?} is not here", Backend::SQLITE_S3);
    };
    let bob = server.token("bob", &["push:main"]).await;
    let desk = Desk::new(&nix);
    desk.log_in(&server, &bob.text).await;
    desk.narvault_ok(&["use", "main"]).await;
    let path = TestPath::new("thing", "hello");
    bob.http.push("main", &path).await;

    let (code, lines) = examined(&desk, &["main"]).await;

    let read = |line: &String| line.starts_with("ok nar: ") && line.contains("can be read from 127.0.0.1");
    assert!(code == Some(0) && lines.iter().any(read), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("X-Amz")), "{lines:#?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_says_something_else_is_warned_of() {
    let nix = require_nix!();
    let server = server().await;
    let proxy = Proxy::before(&server.url, Manners { date: PROXY_DATE, ..Manners::default() }).await;
    let mut desk = Desk::new(&nix);
    desk.set("NARVAULT_URL", &server.url);
    desk.narvault_ok(&["use", "main"]).await;
    let (code, lines) = examined(&desk, &["main"]).await;
    assert!(code == Some(0) && lines.iter().any(|line| line.starts_with("ok clock: ")), "{lines:#?}");

    desk.set("NARVAULT_URL", &proxy.url);

    warns(&desk, &["main"], &["clock", "this machine is ", " s ahead of the server", "timedatectl"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_or_without_nix_the_rest_is_still_examined() {
    let nix = require_nix!();
    let mut desk = Desk::new(&nix);

    let (code, lines) = examined(&desk, &[]).await;
    assert!(code == Some(0) && lines.iter().any(|line| line.starts_with("warn server: ")), "{lines:#?}");
    finds(&desk, &["http://127.0.0.1:1/main"], &["server", "cannot reach", "narvault check --ready"]).await;
    desk.set("PATH", "/nonexistent");
    finds(&desk, &[], &["nix", "there is no `nix`"]).await;
}
