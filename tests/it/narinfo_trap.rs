//! What Nix remembers of a cache does no harm: who pushes to the push URL pulls from the pull URL, whatever was pushed
//! again, deleted or signed anew. Where a trap stays, `narvault doctor` finds it and names a cure that works.

use std::os::unix::fs::PermissionsExt as _;

use narvault::api::{KeyCreate, PathDelete};
use narvault::nix::nar::build::Node;
use serde_json::Value;

use crate::support::client::{hash_part, lines};
use crate::support::nix::{Machine, Nix, Ran, pass_over};
use crate::support::server::{Backend, TestServer};

async fn server() -> TestServer {
    TestServer::start(Backend::SQLITE_DISK).await.unwrap()
}

/// A machine that may push to `main` and delete from it, and trusts its key.
async fn machine(nix: &Nix, server: &TestServer) -> Machine {
    let mut machine = nix.machine();
    let contributor = format!("nix-{}", nix.version.replace('.', "-"));
    machine.log_in(&server.token(&contributor, &["push:main"]).await.text);
    machine.trust(&server.public_key);
    machine
}

/// Builds something that no cache has, another thing with each version of Nix.
async fn built(machine: &Machine, name: &str) -> String {
    let name = &format!("{name}-{}", machine.nix.version);
    machine.add(name, &Node::directory([("text", Node::file(name.as_str()))]), &[]).await
}

/// Substitutes into a store of its own, as the same user with the same memory.
async fn pull(machine: &Machine, url: &str, path: &str, options: &[&str]) -> Ran {
    let store = tempfile::Builder::new().prefix("narvault-nix-").tempdir_in("/tmp").unwrap();
    let to = format!("local?root={}", store.path().display());
    let fixed = ["--store", &to, "--option", "substituters", url];
    machine.run_bare("nix-store", [&fixed[..], options, &["--realise", path]].concat()).await
}

async fn delete(server: &TestServer, path: &str) {
    let body = PathDelete { reason: "test".to_owned() };
    server.admin().path_delete("main", hash_part(path), &body).await.unwrap();
}

/// The failures that `doctor` finds, as part and detail and hint; its exit code says whether there are any.
async fn doctor(machine: &Machine, server: &TestServer, arguments: &[&str]) -> Vec<String> {
    let ended = machine.narvault(server, &[&["doctor", "main", "--json"], arguments].concat()).await;
    let report: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let failed: Vec<String> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["status"] == "fail")
        .map(|check| format!("{}: {} {}", check["part"], check["detail"], check["hint"]))
        .collect();
    assert_eq!(ended.code, Some(i32::from(!failed.is_empty())), "{ended:?}");
    failed
}

#[track_caller]
fn found(failures: &[String], texts: &[&str]) {
    let fits = |failure: &&String| texts.iter().all(|text| failure.contains(text));
    assert!(failures.iter().any(|failure| fits(&failure)), "{texts:?} is not in {failures:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pushed_pulls_and_pulls_again_after_pushing_again() {
    let server = server().await;
    for nix in Nix::generations().await {
        let mut machine = machine(&nix, &server).await;
        machine.set("extra-substituters", &server.pull_url("main"));
        let path = built(&machine, "again").await;
        let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));

        machine.push(&push_url, &[&path]).await.success();
        pull(&machine, &pull_url, &path, &[]).await.success();
        machine.push(&push_url, &[&path]).await.success();
        pull(&machine, &pull_url, &path, &[]).await.success();
        machine
            .nix(["copy", "--refresh", "--to", &format!("{push_url}?compression=zstd"), &path])
            .await
            .success();
        pull(&machine, &pull_url, &path, &[]).await.success();

        assert_eq!(doctor(&machine, &server, &["--path", &path]).await, [] as [&str; 0], "{}", nix.version);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulling_from_the_push_url_is_found() {
    let server = server().await;
    for nix in Nix::generations().await {
        let mut machine = machine(&nix, &server).await;
        machine.set("extra-substituters", &server.push_url("main"));
        let path = built(&machine, "trap").await;
        machine.push(&server.push_url("main"), &[&path]).await.success();

        let trapped = pull(&machine, &server.push_url("main"), &path, &[]).await;
        let failures = doctor(&machine, &server, &[]).await;

        assert!(!trapped.succeeded, "Nix {} does not fall into it any more", nix.version);
        found(&failures, &["push url", "remembers 1 paths", &format!("write {}", server.pull_url("main"))]);
        machine.set("substituters", &server.pull_url("main"));
        pull(&machine, &server.pull_url("main"), &path, &[]).await.success();
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0], "{}", nix.version);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_was_looked_for_too_early_is_found() {
    let server = server().await;
    for nix in Nix::generations().await {
        let mut machine = machine(&nix, &server).await;
        machine.set("extra-substituters", &server.pull_url("main"));
        let path = built(&machine, "early").await;
        let pull_url = server.pull_url("main");
        assert!(!pull(&machine, &pull_url, &path, &[]).await.succeeded);
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0], "nobody has it yet");

        machine.push(&server.push_url("main"), &[&path]).await.success();
        let trapped = pull(&machine, &pull_url, &path, &[]).await;
        let failures = doctor(&machine, &server, &["--path", &path]).await;

        assert!(!trapped.succeeded, "Nix {} does not fall into it any more", nix.version);
        found(&failures, &["memory", hash_part(&path), "was not there", "--refresh"]);
        let cure = ["--option", "narinfo-cache-negative-ttl", "0"];
        pull(&machine, &pull_url, &path, &cure).await.success();
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0], "{}", nix.version);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_was_deleted_is_found_and_comes_back_with_refresh() {
    let server = server().await;
    for nix in Nix::generations().await {
        let mut machine = machine(&nix, &server).await;
        machine.set("extra-substituters", &server.pull_url("main"));
        let path = built(&machine, "deleted").await;
        let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));
        machine.push(&push_url, &[&path]).await.success();
        pull(&machine, &pull_url, &path, &[]).await.success();
        delete(&server, &path).await;

        let trapped = pull(&machine, &pull_url, &path, &[]).await;
        let gone = doctor(&machine, &server, &[]).await;
        machine.push(&push_url, &[&path]).await.success();
        let narinfo = server.http().get(&format!("/main/{}.narinfo", hash_part(&path))).await;

        assert!(!trapped.succeeded);
        found(&gone, &["memory", hash_part(&path), "was taken out", "--refresh copy"]);
        assert_eq!(
            narinfo.status, 404,
            "Nix {} believes that the path is there, and sends nothing",
            nix.version
        );
        // Another compression is another file: what is remembered under the pull URL is of no use any more.
        let zstd = format!("{push_url}?compression=zstd");
        machine.nix(["copy", "--refresh", "--to", &zstd, &path]).await.success();
        let moved = doctor(&machine, &server, &[]).await;
        found(&moved, &["memory", hash_part(&path), "as another file", "--refresh"]);
        let cure = ["--option", "narinfo-cache-positive-ttl", "0"];
        pull(&machine, &pull_url, &path, &cure).await.success();
        pull(&machine, &pull_url, &path, &[]).await.success();
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0], "{}", nix.version);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_was_withdrawn_is_found_and_pulled_again_once_it_is_restored() {
    let server = server().await;
    for nix in Nix::generations().await {
        let mut machine = machine(&nix, &server).await;
        machine.set("extra-substituters", &server.pull_url("main"));
        let path = built(&machine, "withdrawn").await;
        let pull_url = server.pull_url("main");
        machine.push(&server.push_url("main"), &[&path]).await.success();
        pull(&machine, &pull_url, &path, &[]).await.success();
        let withdraw = ["path", "quarantine", "main", &path, "--reason", "a doubt", "--yes"];
        let withdrawn = server.narvault(withdraw).await;
        assert_eq!(withdrawn.code, Some(0), "{}", withdrawn.stderr);

        let trapped = pull(&machine, &pull_url, &path, &[]).await;
        let gone = doctor(&machine, &server, &[]).await;
        let restore = ["path", "restore", "main", &path, "--reason", "none is left"];
        let restored = server.narvault(restore).await;

        assert!(!trapped.succeeded, "Nix {}", nix.version);
        found(&gone, &["memory", hash_part(&path), "was taken out"]);
        assert_eq!(restored.code, Some(0), "{}", restored.stderr);
        // What is remembered is true again: there is no trap on the way back.
        pull(&machine, &pull_url, &path, &[]).await.success();
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0], "{}", nix.version);
    }
    server.stop().await;
}

async fn signatures(server: &TestServer, path: &str) -> usize {
    let narinfo = server.http().get(&format!("/main/{}.narinfo", hash_part(path))).await;
    lines(narinfo.assert_status(200).text(), "Sig").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_key_is_no_trap_while_both_are_trusted_and_found_when_only_it_is() {
    let server = server().await;
    let mut old_paths = Vec::new();
    let generations = Nix::generations().await;
    for nix in &generations {
        let mut machine = machine(nix, &server).await;
        machine.set("extra-substituters", &server.pull_url("main"));
        let path = built(&machine, "rotated").await;
        machine.push(&server.push_url("main"), &[&path]).await.success();
        pull(&machine, &server.pull_url("main"), &path, &[]).await.success();
        old_paths.push((machine, path));
    }
    let again = server.token("again", &["push:main"]).await.http;
    let second = server.admin().key_create("main", &KeyCreate::default()).await.unwrap().public_key;

    for (mut machine, path) in old_paths {
        let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));
        let both = format!("{} {second}", server.public_key);
        machine.trust(&both);
        let after = built(&machine, "after").await;
        machine.push(&push_url, &[&path, &after]).await.success();
        for path in [&path, &after] {
            pull(&machine, &pull_url, path, &[]).await.success();
        }
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0]);
        assert_eq!(signatures(&server, &after).await, 2);

        // A stock client sends nothing for what is there: the old path has the old signature alone.
        assert_eq!(signatures(&server, &path).await, 1);
        machine.trust(&second);
        assert!(!pull(&machine, &pull_url, &path, &[]).await.succeeded);
        found(
            &doctor(&machine, &server, &[]).await,
            &["key", hash_part(&path), "also in the cache", "narvault use"],
        );

        // Whoever sends the claim again gets it signed by all active keys, and Nix remembers what was before.
        let url = format!("/push/main/{}.narinfo", hash_part(&path));
        let narinfo = again.get(&url).await.assert_status(200).text().to_owned();
        again.put(&url, narinfo).await.assert_status(200);
        assert_eq!(signatures(&server, &path).await, 2);
        assert!(!pull(&machine, &pull_url, &path, &[]).await.succeeded);
        let failures = doctor(&machine, &server, &[]).await;
        found(
            &failures,
            &["memory", hash_part(&path), "without a signature of a key that is trusted", "--refresh"],
        );
        let cure = ["--option", "narinfo-cache-positive-ttl", "0"];
        pull(&machine, &pull_url, &path, &cure).await.success();
        assert_eq!(doctor(&machine, &server, &[]).await, [] as [&str; 0]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_pulls_what_its_hook_pushed_and_remembers_like_everybody() {
    let server = server().await;
    let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));
    for nix in Nix::generations().await {
        let mut root = machine(&nix, &server).await;
        root.set("substituters", &pull_url);
        let daemon = root.daemon().await;
        let mut user = nix.machine();
        user.set("substituters", &pull_url);
        user.trust(&server.public_key);
        let realise = async |path: &str| {
            user.run_bare("nix-store", ["--store", &daemon.store, "--realise", path]).await
        };
        let path = built(&root, "hooked").await;

        // What a hook does: it runs as root, with the daemon's memory.
        root.push(&push_url, &[&path]).await.success();
        root.run("nix-store", ["--delete", &path]).await.success();
        realise(&path).await.success();

        let early = built(&root, "early").await;
        root.run("nix-store", ["--delete", &early]).await.success();
        assert!(!realise(&early).await.succeeded);
        let pusher = machine(&nix, &server).await;
        assert_eq!(built(&pusher, "early").await, early);
        pusher.push(&push_url, &[&early]).await.success();
        assert!(!realise(&early).await.succeeded, "Nix {} does not fall into it any more", nix.version);
        found(&doctor(&root, &server, &[]).await, &["memory", hash_part(&early), "was not there"]);
        daemon.stop().await;
        for entry in std::fs::read_dir(root.file("cache/nix")).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("binary-cache-v") {
                std::fs::remove_file(path).unwrap();
            }
        }
        let daemon = root.daemon().await;
        user.run_bare("nix-store", ["--store", &daemon.store, "--realise", &early]).await.success();
        daemon.stop().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_post_build_hook_pushed_is_pulled_with_the_same_memory() {
    let server = server().await;
    let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));
    for nix in Nix::generations().await {
        let mut root = machine(&nix, &server).await;
        if !root.can_build().await {
            pass_over(&nix, "cannot build here");
            continue;
        }
        // Nix 2.8.0 leaves OUT_PATHS empty.
        let hook = format!(
            "#!/bin/sh\nset -e\nexec nix copy --to '{push_url}' ${{OUT_PATHS:-$(nix-store --query --outputs \"$DRV_PATH\")}}\n"
        );
        let file = root.file("hook");
        std::fs::write(&file, hook).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        root.set("post-build-hook", &file.display().to_string());
        let text = format!(
            r#"derivation {{
                name = "built-{}"; system = builtins.currentSystem; builder = "/bin/sh";
                args = [ "-c" "echo content > $out" ];
            }}"#,
            nix.version
        );
        std::fs::write(root.file("built.nix"), text).unwrap();

        let built = root.within(["nix-build", "--no-out-link", "built.nix"]).await.success();

        let path = built.stdout.trim();
        pull(&root, &pull_url, path, &[]).await.success();
        root.set("extra-substituters", &pull_url);
        assert_eq!(doctor(&root, &server, &["--path", path]).await, [] as [&str; 0], "{}", nix.version);
    }
    server.stop().await;
}
