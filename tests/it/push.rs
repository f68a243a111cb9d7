//! `narvault push` from a real store to a real server: whole closures arrive, once, whatever the network does, and what
//! cannot be pushed says why.

use std::collections::BTreeSet;
use std::process::Stdio;

use narvault::api::{ContributorEdit, PathDelete, StoredRequest};
use narvault::nix::hash::Sha256Digest;
use narvault::nix::nar::build::Node;
use serde_json::Value;

use crate::support::client::{TestPath, hash_part, lines};
use crate::support::database::{DatabaseKind, on_each_database};
use crate::support::nix::{Machine, Nix, require_nix};
use crate::support::proxy::{Manners, Proxy};
use crate::support::server::{Backend, Ended, StorageKind, TestServer, narvault, on_each_backend};

/// A machine with a token for `main`.
pub async fn pusher(nix: &Nix, server: &TestServer) -> (Machine, String) {
    (nix.machine(), server.token("alice", &["push:main"]).await.text)
}

pub async fn push(machine: &Machine, url: &str, token: &str, arguments: &[&str]) -> Ended {
    Ended::of(machine.narvault_push(url, token, arguments)).await
}

/// The summary of a push that went well.
#[track_caller]
pub fn summary(ended: &Ended) -> &str {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.trim_end().lines().last().unwrap()
}

/// The last line of `--json` of a push that went well.
#[track_caller]
pub fn done(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap()
}

/// A path's files that are not the same anywhere, and compress to nothing less.
pub fn noise(seed: &str, size: usize) -> Vec<u8> {
    let mut noise = Vec::with_capacity(size + 32);
    let mut block = Sha256Digest::of(seed.as_bytes());
    while noise.len() < size {
        block = Sha256Digest::of(&block.0);
        noise.extend_from_slice(&block.0);
    }
    noise.truncate(size);
    noise
}

/// A store path that nobody built.
pub fn store_path(name: &str) -> String {
    format!("/nix/store/{}-{name}", &Sha256Digest::of(name.as_bytes()).base32()[20..])
}

/// A closure with every kind of file and of reference; the first of its paths refers to all others.
async fn closure(machine: &Machine) -> Vec<String> {
    let library = machine.add_text("library-1.0", "nothing else", &[]).await;
    let odd = Node::directory([
        (b"\xff\xfe".to_vec(), Node::file("not UTF-8")),
        (b"Z".to_vec(), Node::file("upper case")),
        (b"a b\n".to_vec(), Node::file("")),
        (b"empty".to_vec(), Node::directory([] as [(&str, Node); 0])),
        (b"run".to_vec(), Node::executable("#!/bin/sh\n")),
        (b"to".to_vec(), Node::symlink("/nowhere")),
    ]);
    let odd = machine.add("c++odd?x=1", &odd, &[]).await;
    let own = store_path("self-1.0");
    let node = Node::directory([("self", Node::file(own.clone())), ("uses", Node::symlink(library.clone()))]);
    machine.add_at(&own, &node, &[&own, &library]).await;
    let file = machine.add("file", &Node::file(format!("uses {own}")), &[&own]).await;
    let top = machine.add_text("top", "uses", &[&odd, &file, &library]).await;
    vec![top, file, own, odd, library]
}

/// Pulls with signatures checked, and compares every NAR.
pub async fn pulled_unchanged(nix: &Nix, server: &TestServer, from: &Machine, paths: &[String]) {
    let mut bob = nix.machine();
    bob.trust(&server.public_key);
    let all: Vec<&str> = paths.iter().map(String::as_str).collect();
    bob.pull(&server.pull_url("main"), &all).await.success();
    for path in paths {
        assert!(bob.nar(path).await == from.nar(path).await, "{path}");
    }
}

on_each_backend! {
    async fn a_closure_arrives_with_every_kind_of_file_and_is_not_sent_twice(server: TestServer) {
        let nix = require_nix!();
        let (alice, token) = pusher(&nix, &server).await;
        let paths = closure(&alice).await;

        let first = push(&alice, &server.url, &token, &["main", &paths[0]]).await;

        let key = server.public_key.split(':').next().unwrap();
        let told = summary(&first);
        assert!(told.starts_with("5 new, 0 already there, 0 upstream; 0.0 MiB sent of 0.0 MiB in "), "{told}");
        assert!(told.ends_with(&format!(" s, signed by {key}")), "{told}");
        pulled_unchanged(&nix, &server, &alice, &paths).await;

        let proxy = Proxy::before(&server.url, Manners::default()).await;
        let second = push(&alice, &proxy.url, &token, &["main", &paths[0]]).await;

        assert!(summary(&second).starts_with("0 new, 5 already there, 0 upstream; 0.0 MiB sent"), "{second:?}");
        assert_eq!(proxy.requests(), 1, "one question is enough");
        server.stop().await;
    }

    async fn each_compression_is_pulled_unchanged(server: TestServer) {
        let nix = require_nix!();
        let (alice, token) = pusher(&nix, &server).await;
        let mut paths = Vec::new();
        for how in [
            &["--compression", "none"][..],
            &["--compression", "xz", "--level", "0"],
            &["--level", "19"],
            &["--jobs", "1"],
            &["--jobs", "64"],
        ] {
            let node = Node::directory([("text", Node::file("text ".repeat(10_000) + how[1]))]);
            let path = alice.add(&format!("in{}", how.concat()), &node, &[]).await;

            summary(&push(&alice, &server.url, &token, &[&["main", &path], how].concat()).await);

            paths.push(path);
        }
        pulled_unchanged(&nix, &server, &alice, &paths).await;
        server.stop().await;
    }
}

on_each_backend! {
    async fn a_thousand_tiny_paths_take_few_round_trips(server: TestServer) {
        let nix = require_nix!();
        let (alice, token) = pusher(&nix, &server).await;
        let mut paths: Vec<(String, Node, Vec<String>)> = Vec::new();
        for number in 0..1_000 {
            // Each refers to the one before it: no two can be published without order.
            let before: Vec<String> = paths.last().map(|(path, ..)| path.clone()).into_iter().collect();
            let text = Node::file(format!("{number} {before:?}"));
            paths.push((store_path(&format!("tiny-{number}")), text, before));
        }
        alice.add_all(&paths).await;
        let proxy = Proxy::before(&server.url, Manners::default()).await;

        let ended = push(&alice, &proxy.url, &token, &["main", &paths[999].0]).await;

        assert!(summary(&ended).starts_with("1000 new, 0 already there"), "{ended:?}");
        assert!(proxy.requests() <= 40, "{} requests", proxy.requests());
        let cache = server.admin().cache("main").await.unwrap();
        assert_eq!(cache.paths, 1_000);
        // Nix fetches a chain path by path, and takes its time: all of it once, elsewhere the first of it.
        let last = if server.site.backend == Backend::SQLITE_DISK { 999 } else { 60 };
        let some: Vec<String> = [last, last / 2, 0].map(|at| paths[at].0.clone()).into();
        pulled_unchanged(&nix, &server, &alice, &some).await;
        server.stop().await;
    }
}

on_each_database! {
    async fn stored_nars_are_told_of_by_their_hash_and_only_in_their_cache(server: TestServer) {
        let created = server.narvault(["cache", "create", "other", "--public"]).await;
        assert_eq!(created.code, Some(0), "{created:?}");
        let token = server.token("alice", &["push:main", "push:other"]).await;
        let alice = server.client(&token.text);
        let [waiting, published, deleted, absent] =
            ["waiting", "published", "deleted", "absent"].map(|name| TestPath::new(name, name));
        token.http.put_nar("main", &waiting).await.assert_status(201);
        token.http.push("main", &published).await;
        token.http.push("main", &deleted).await;
        let reason = "broken".to_owned();
        server.admin().path_delete("main", deleted.hash(), &PathDelete { reason }).await.unwrap();
        let nar_hash = |path: &TestPath| lines(&path.narinfo(), "NarHash")[0].to_owned();
        let nar_hashes = [&waiting, &published, &deleted, &absent].map(nar_hash).to_vec();
        let request = StoredRequest { nar_hashes };

        let stored = alice.nars_stored("main", &request).await.unwrap().nars;
        let elsewhere = alice.nars_stored("other", &request).await.unwrap().nars;

        let mut found: Vec<_> = stored.iter().map(|nar| (nar.nar_hash.clone(), nar.file.clone())).collect();
        found.sort();
        let file = |path: &TestPath| path.nar_url().strip_prefix("nar/").unwrap().to_owned();
        let mut expected = [&waiting, &published].map(|path| (nar_hash(path), file(path)));
        expected.sort();
        assert_eq!(found, expected);
        assert!(stored.iter().all(|nar| nar.compression == "none" && nar.file_size_bytes > 0), "{stored:?}");
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        server.stop().await;
    }
}

/// Paths without references, of noise.
pub async fn noisy(machine: &Machine, count: usize, size: usize) -> Vec<String> {
    let paths: Vec<_> = (0..count)
        .map(|number| {
            let name = format!("noise-{number}");
            (store_path(&name), Node::file(noise(&name, size)), Vec::new())
        })
        .collect();
    machine.add_all(&paths).await;
    paths.into_iter().map(|(path, ..)| path).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_every_body_is_named_with_its_cure() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 1, 2 << 20).await;
    let manners = Manners { body_size_bytes_max: Some(1 << 20), ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;

    let ended = push(&alice, &proxy.url, &token, &["main", &paths[0]]).await;

    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(
        ended.stderr.contains("status 413") && ended.stderr.contains("client_max_body_size"),
        "{ended:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_path_is_refused_before_it_is_sent_and_keeps_no_other_back() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let good = alice.add("good", &Node::file("good"), &[]).await;
    let mut damaged = Vec::new();
    for (name, now) in [("same-size", "evil!"), ("shorter", "ev"), ("longer", "evil, and more of it")] {
        let path = alice.add(name, &Node::file("good!"), &[]).await;
        std::fs::remove_file(alice.real(&path)).unwrap();
        std::fs::write(alice.real(&path), now).unwrap();
        damaged.push(path);
    }
    let user = alice.add_text("user", "uses", &[&good, &damaged[0]]).await;
    let proxy = Proxy::before(&server.url, Manners::default()).await;

    let ended = push(&alice, &proxy.url, &token, &["main", &user, &damaged[1], &damaged[2]]).await;

    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.starts_with("1 new, 0 already there, 0 upstream, 4 failed; "), "{ended:?}");
    for path in &damaged {
        assert!(ended.stderr.contains(&format!("error: cannot push {path}: ")), "{ended:?}");
    }
    assert!(ended.stderr.contains(&format!("cannot push {user}: it refers to {}", damaged[0])), "{ended:?}");
    assert!(ended.stderr.contains("hint: run `nix-store --verify"), "{ended:?}");
    // That of what refers to it may have been on its way already.
    assert!((1..=2).contains(&proxy.accepted().len()), "{:?}", proxy.accepted());
    let paths = server.admin().paths("main", &Default::default()).await.unwrap().items;
    assert_eq!(paths.iter().map(|path| &path.store_path).collect::<Vec<_>>(), [&good]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_cannot_sign_is_a_refusal() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let created = server.narvault(["cache", "create", "keyless", "--public"]).await;
    assert_eq!(created.code, Some(0), "{created:?}");
    let alice = nix.machine();
    let token = server.token("alice", &["push:keyless"]).await.text;
    let path = alice.add("thing", &Node::file("x"), &[]).await;

    let ended = push(&alice, &server.url, &token, &["keyless", &path]).await;

    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains("key"), "{ended:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_not_push_is_told_so_by_exit_code_three() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let alice = nix.machine();
    let path = alice.add("thing", &Node::file("x"), &[]).await;
    let reader = server.token("reader", &["pull:main"]).await.text;
    let suspended = server.token("suspended", &["push:main"]).await.text;
    let edit = ContributorEdit { suspended: Some(true), group: None };
    server.admin().contributor_edit("suspended", &edit).await.unwrap();
    for (token, told, hint) in [
        ("", "a token is needed", "narvault login"),
        ("nvt_nonsense", "", "NARVAULT_TOKEN"),
        (&reader, "", "narvault whoami"),
        (&suspended, "", "hint: "),
    ] {
        let ended = push(&alice, &server.url, token, &["main", &path]).await;

        assert_eq!(ended.code, Some(3), "{token}: {ended:?}");
        assert!(ended.stderr.contains(told) && ended.stderr.contains(hint), "{token}: {ended:?}");
        assert_eq!(ended.stdout, "");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_server_is_named_with_its_cure() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let path = alice.add("thing", &Node::file("x"), &[]).await;
    server.admin().vault_seal().await.unwrap();

    let ended = push(&alice, &server.url, &token, &["main", &path]).await;

    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("sealed") && ended.stderr.contains("narvault vault unseal"), "{ended:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_takes_no_more_of_is_a_refusal() {
    let nix = require_nix!();
    let settings = [("NARVAULT_LIMITS_NAR_SIZE_BYTES", "1MiB")];
    let server = TestServer::start_with(Backend::SQLITE_DISK, &settings).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let large = alice.add("large", &Node::file(noise("large", 2 << 20)), &[]).await;
    let small = alice.add("small", &Node::file("x"), &[]).await;

    let ended = push(&alice, &server.url, &token, &["main", &large, &small]).await;

    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stdout.starts_with("1 new, 0 already there, 0 upstream, 1 failed; "), "{ended:?}");
    assert!(ended.stderr.contains(&format!("error: cannot push {large}: ")), "{ended:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_exit_code_five() {
    let nix = require_nix!();
    let alice = nix.machine();
    let path = alice.add("thing", &Node::file("x"), &[]).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);

    let ended = push(&alice, &url, "nvt_x", &["main", &path]).await;

    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.stderr.contains("hint: run `narvault check --ready"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_store_path_is_named() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let absent = store_path("absent");
    for (arguments, code, told) in [
        (vec!["main", &absent], 1, "is not valid"),
        (vec!["main", "."], 1, "is not in the Nix store"),
        (vec!["main", "./result"], 1, "cannot read"),
        (vec!["main", "/nix/store/nonsense"], 1, "is not a store path"),
        (vec!["nothere", &absent], 1, "is not valid"),
        (vec!["main", &absent, "--level", "20"], 2, "from 1 to 19"),
        (vec!["main", &absent, "--jobs", "0"], 2, "is not in 1..=64"),
        (vec!["main", &absent, "--jobs", "65"], 2, "is not in 1..=64"),
        (vec!["main", &absent, "--jobs", "all"], 2, "invalid value"),
        (vec!["main", &absent, "--compression", "none", "--level", "1"], 2, "no level"),
    ] {
        let ended = push(&alice, &server.url, &token, &arguments).await;

        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(told), "{arguments:?}: {ended:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_nix_it_says_so() {
    let home = tempfile::tempdir().unwrap();
    let mut command = narvault();
    command.args(["push", "main", &store_path("thing")]).env("HOME", home.path()).env("PATH", home.path());
    command.env("NARVAULT_URL", "http://127.0.0.1:9").env("NARVAULT_TOKEN", "nvt_x");

    let ended = Ended::of(command).await;

    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("there is no Nix here") && ended.stderr.contains("hint: install Nix"),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_come_as_links_and_by_stdin_and_alone() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let library = alice.add_text("library", "nothing else", &[]).await;
    let tool = alice.add_text("tool", "uses", &[&library]).await;
    let other = alice.add_text("other", "uses", &[]).await;
    std::os::unix::fs::symlink(&tool, alice.file("result")).unwrap();
    let list = alice.file("list");
    std::fs::write(&list, format!("\n{other}\n  {library}\n")).unwrap();

    let dry = push(&alice, &server.url, &token, &["main", "./result", "--dry-run"]).await;
    let alone = push(&alice, &server.url, &token, &["main", "./result", "--no-closure"]).await;
    let mut command = alice.narvault_push(&server.url, &token, ["main", "--stdin"]);
    command.stdin(Stdio::from(std::fs::File::open(list).unwrap()));
    let by_stdin = Ended::of(command).await;
    let after = push(&alice, &server.url, &token, &["main", "result", "--no-closure"]).await;

    assert!(summary(&dry).starts_with("2 to push, 0 already there"), "{dry:?}");
    let listed: BTreeSet<&str> = dry.stdout.lines().take(2).collect();
    assert_eq!(listed, [tool.as_str(), &library].into());
    assert_eq!(alone.code, Some(4), "its reference is not there: {alone:?}");
    assert!(alone.stderr.contains(&library), "{alone:?}");
    assert!(summary(&by_stdin).starts_with("2 new, 0 already there"), "{by_stdin:?}");
    assert!(summary(&after).starts_with("1 new, 0 already there"), "{after:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_one_event_a_line_and_the_summary_last() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let paths = closure(&alice).await;

    let ended = push(&alice, &server.url, &token, &["--json", "main", &paths[0]]).await;

    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!((events[0], *events.last().unwrap()), ("planned", "done"), "{events:?}");
    assert_eq!(lines[0]["missing"], 5);
    for (event, count) in [("started", 5), ("stored", 5), ("published", 5), ("read", 0), ("failed", 0)] {
        assert_eq!(events.iter().filter(|other| **other == event).count(), count, "{event}: {events:?}");
    }
    let done = lines.last().unwrap();
    assert_eq!((&done["new"], &done["present"], &done["paths"]), (&5.into(), &0.into(), &5.into()), "{done}");
    assert!(done["bytes_sent"].as_u64().unwrap() > 0, "{done}");
    assert_eq!(ended.stderr, "");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn derivations_are_pushed_as_the_files_that_they_are() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let expression = alice.file("thing.nix");
    std::fs::write(
        &expression,
        r#"derivation { name = "thing"; system = "x86_64-linux"; builder = "/none"; }"#,
    )
    .unwrap();
    let made = alice.run("nix-instantiate", [expression.display().to_string()]).await.success();
    let derivation = made.stdout.trim().to_owned();

    summary(&push(&alice, &server.url, &token, &["main", &derivation]).await);

    let mut bob = nix.machine();
    bob.trust(&server.public_key);
    let (from, to) = (server.pull_url("main"), bob.store());
    let copy = ["copy", "--derivation", "--from", &from, "--to", &to, &derivation];
    bob.run_bare("nix", copy).await.success();
    assert_eq!(bob.nar(&derivation).await, alice.nar(&derivation).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_nix_tells_what_is_to_be_pushed() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    for nix in Nix::generations().await {
        let (alice, token) = pusher(&nix, &server).await;
        let top = format!("top-{}", nix.version);
        let library = alice.add_text(&format!("library-{}", nix.version), "nothing else", &[]).await;
        let (_, public_key) = alice.make_key("builder-1").await;
        let top = alice.add_text(&top, &public_key, &[&library]).await;
        let file = alice.file("builder-1").display().to_string();
        alice.nix(["store", "sign", "--key-file", &file, &top]).await.success();

        let ended = push(&alice, &server.url, &token, &["main", &top]).await;

        assert!(summary(&ended).starts_with("2 new, 0 already there"), "{}: {ended:?}", nix.version);
        let view = server.admin().path("main", hash_part(&top)).await.unwrap();
        assert_eq!(view.references, std::slice::from_ref(&library), "{}", nix.version);
        pulled_unchanged(&nix, &server, &alice, &[top, library]).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_large_file_go_straight_to_the_bucket_where_the_server_is_set_so() {
    let nix = require_nix!();
    let backend = Backend { database: DatabaseKind::Sqlite, storage: StorageKind::RealS3 };
    let Some(server) = TestServer::spawn(backend, &[("NARVAULT_UPLOADS_DIRECT", "true")]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let (alice, token) = pusher(&nix, &server).await;
    let path = alice.add("large", &Node::file(noise("large", 40 << 20)), &[]).await;
    let proxy = Proxy::before(&server.url, Manners::default()).await;

    let pushed = push(&alice, &proxy.url, &token, &["main", &path]).await;

    assert!(summary(&pushed).starts_with("1 new, 0 already there"), "{pushed:?}");
    assert!(proxy.largest_body() < 64 << 10, "{} bytes came by the server", proxy.largest_body());
    pulled_unchanged(&nix, &server, &alice, &[path]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_cannot_be_reached_is_given_up_once_with_one_warning() {
    let nix = require_nix!();
    let Some(server) = TestServer::spawn(Backend::SQLITE_S3, &[("NARVAULT_UPLOADS_DIRECT", "true")]).await
    else {
        return println!("skipped: {:?} is not here", Backend::SQLITE_S3);
    };
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 2, 40 << 20).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let proxy = Proxy::before(&server.url, Manners { lose_bucket: true, ..Manners::default() }).await;

    let pushed = push(&alice, &proxy.url, &token, &arguments).await;

    assert!(summary(&pushed).starts_with("2 new, 0 already there"), "{pushed:?}");
    let warnings: Vec<&str> = pushed.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    let expected = "warning: 127.0.0.1, where the server has parts sent to, cannot be reached: parts go through the server";
    assert_eq!(warnings, [expected], "{pushed:?}");
    assert!(!pushed.stderr.contains("trying again") && !pushed.stderr.contains("secret"), "{pushed:?}");
    // Three tries of each part that was under way when the first one failed, at most three, instead of all six, which came
    // by the server.
    assert!(proxy.bucket_urls() <= 9, "{} times asked for", proxy.bucket_urls());
    assert_eq!(proxy.accepted().len(), 6);
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}

/// Pushes a path, one that refers to it and another one, while somebody else publishes the first one with other
/// contents. Gives what the push said, and the path.
async fn overtaken(server: &TestServer, nix: &Nix, arguments: &[&str]) -> (Ended, [String; 3]) {
    let (alice, token) = pusher(nix, server).await;
    let rival = server.token("bob", &["push:main"]).await;
    let theirs = TestPath::new("contested", "as bob built it");
    let contested = theirs.store_path.clone();
    alice.add_at(&contested, &Node::file("as alice built it"), &[]).await;
    let referrer = alice.add_text("referrer", "uses", &[&contested]).await;
    let other = alice.add_text("other", "nothing else", &[]).await;
    let manners = Manners { hold_publications: true, ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;
    let arguments = [arguments, &["main", &referrer, &other]].concat();
    let pushing = push(&alice, &proxy.url, &token, &arguments);
    let overtaking = async {
        proxy.publication().await;
        rival.http.put_nar("main", &theirs).await.assert_status(201);
        rival.http.put_narinfo("main", &theirs).await.assert_status(201);
        proxy.let_publish();
    };
    let (ended, ()) = tokio::join!(pushing, overtaking);
    (ended, [contested, referrer, other])
}

on_each_backend! {
    async fn another_claim_that_was_published_meanwhile_is_told_and_keeps_no_other_back(server: TestServer) {
        let nix = require_nix!();

        let (ended, [contested, referrer, other]) = overtaken(&server, &nix, &[]).await;

        assert_eq!(ended.code, Some(4), "{ended:?}");
        assert!(ended.stdout.starts_with("2 new, 0 already there, 0 upstream, 1 failed; "), "{ended:?}");
        let told = format!("error: cannot push {contested}: ");
        let told = ended.stderr.lines().find(|line| line.starts_with(&told)).expect("the conflict is told");
        assert!(told.contains("is published here with another content"), "{told}");
        let end: Vec<&str> = ended.stderr.lines().rev().take(2).collect();
        assert_eq!(end[1], "error: 1 of 3 paths could not be pushed");
        assert!(end[0].starts_with("hint: run `narvault path show"), "{ended:?}");
        // Its reference is there, be it with other contents: so says the next push too.
        for path in [&referrer, &other] {
            assert_eq!(server.admin().path("main", hash_part(path)).await.unwrap().state, "published");
        }
        let view = server.admin().path("main", hash_part(&contested)).await.unwrap();
        assert_eq!((view.evidence.len(), view.conflicts.len()), (1, 1), "{view:?}");
        assert_eq!(view.conflicts[0].contributor, "alice");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_told_of_a_conflict_by_its_status() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();

    let (ended, [contested, referrer, other]) = overtaken(&server, &nix, &["--json"]).await;

    assert_eq!(ended.code, Some(4), "{ended:?}");
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| -> Vec<&str> {
        let lines = lines.iter().filter(|line| line["event"] == event);
        lines.map(|line| line["path"].as_str().unwrap()).collect()
    };
    assert_eq!(of("failed"), [contested.as_str()], "{lines:?}");
    assert_eq!(of("published").into_iter().collect::<BTreeSet<_>>(), [referrer.as_str(), &other].into());
    assert!(lines.iter().any(|line| line["event"] == "failed" && line["status"] == 409), "{lines:?}");
    let done = lines.last().unwrap();
    assert_eq!((&done["event"], &done["new"]), (&"done".into(), &2.into()), "{done}");
    assert_eq!(done["failed"][0]["path"], contested.as_str(), "{done}");
    server.stop().await;
}
