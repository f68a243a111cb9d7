//! A mirror of the log remembers: what a server tells it later has to go on from what it has.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::client::TestPath;
use crate::support::log::{self, first_leaves, honest};
use crate::support::server::{Ended, TestServer, narvault, on_each_backend};
use crate::support::until;

async fn run(arguments: &[&str]) -> Ended {
    let home = tempfile::tempdir().unwrap();
    let mut command = narvault();
    command.arg("log").args(arguments).env("HOME", home.path()).current_dir(home.path());
    Ended::of(command).await
}

async fn mirror(copy: &Path, from: &str) -> Ended {
    run(&["mirror", copy.to_str().unwrap(), "--from", from, "--json"]).await
}

fn copied(ended: &Ended) -> (u64, u64) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    (answer["size"].as_u64().unwrap(), answer["copied"].as_u64().unwrap())
}

/// Waits for the first one.
async fn a_checkpoint(server: &TestServer) {
    until("a checkpoint", async || {
        (server.http().get("/api/v1/log/checkpoint").await.status == 200).then_some(())
    })
    .await;
}

fn log_of(count: u64) -> Vec<String> {
    first_leaves().into_iter().chain((0..count - 2).map(honest)).collect()
}

/// Every file below a folder, by its path.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_mirror_grows_with_its_log_and_is_what_was_published() {
    let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = source.path().to_str().unwrap();
    let leaves = log_of(66_000);
    let published =
        |folder: &Path, size: u64| log::publish(folder, 1, leaves[..size as usize].iter().cloned());
    let mut before = 0;
    for size in [2, 100, 256, 257, 700, 700, 1024, 66_000] {
        published(source.path(), size);

        assert_eq!(copied(&mirror(copy.path(), from).await), (size, size - before), "{size}");

        // A fresh log has no partial tiles of older sizes, and neither has the mirror.
        let fresh = tempfile::tempdir().unwrap();
        published(fresh.path(), size);
        assert_eq!(files(copy.path()), files(fresh.path()), "{size}");
        for file in files(fresh.path()) {
            assert_eq!(
                fs::read(copy.path().join(&file)).unwrap(),
                fs::read(fresh.path().join(&file)).unwrap(),
                "{file}"
            );
        }
        before = size;
    }
    assert_eq!(run(&["audit", copy.path().to_str().unwrap()]).await.code, Some(0));
}

#[tokio::test]
async fn a_server_that_rolls_back_or_forks_is_found_out_and_the_mirror_stays() {
    let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = source.path().to_str().unwrap();
    log::publish(source.path(), 1, log_of(700));
    copied(&mirror(copy.path(), from).await);
    let kept = fs::read(copy.path().join("checkpoint")).unwrap();

    let leaves = log_of(66_000);
    let forked = |size: usize, at: usize| {
        let mut leaves = leaves[..size].to_vec();
        leaves[at] = honest(999_999);
        leaves
    };
    for (leaves, told) in [
        (log_of(699), "rolled back"),
        (log_of(2), "rolled back"),
        (forked(700, 699), "forked"),
        (forked(701, 5), "forked"),
        (forked(66_000, 256), "forked"),
    ] {
        fs::remove_dir_all(source.path().join("tile")).unwrap();
        log::publish(source.path(), 1, leaves);
        let refused = mirror(copy.path(), from).await;
        assert_eq!(refused.code, Some(4), "{refused:?}");
        assert!(refused.stderr.contains(told), "{told}: {refused:?}");
        assert_eq!(fs::read(copy.path().join("checkpoint")).unwrap(), kept);
    }
    // A log of another key is none of its business, whatever the server says its key is.
    log::publish(source.path(), 2, log_of(701));
    let refused = mirror(copy.path(), from).await;
    assert!(refused.stderr.contains("checkpoint is not believed"), "{refused:?}");
    assert_eq!(run(&["audit", copy.path().to_str().unwrap()]).await.code, Some(0));
}

#[tokio::test]
async fn nothing_that_contradicts_the_checkpoint_is_copied() {
    for damaged in ["tile/entries/001", "tile/0/001", "tile/0/002.p/188", "tile/entries/002.p/188"] {
        let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        log::publish(source.path(), 1, log_of(700));
        let mut bytes = fs::read(source.path().join(damaged)).unwrap();
        bytes[77] ^= 1;
        fs::write(source.path().join(damaged), bytes).unwrap();

        let refused = mirror(copy.path(), source.path().to_str().unwrap()).await;

        assert_eq!(refused.code, Some(4), "{damaged}: {refused:?}");
        assert!(!copy.path().join("checkpoint").exists() && !copy.path().join(damaged).exists(), "{damaged}");
    }
}

on_each_backend! {
    async fn a_servers_log_is_mirrored_and_audited_without_it(server: TestServer) {
        let ci = server.token("ci", &["push:main"]).await;
        ci.http.push("main", &TestPath::new("hello", "hello")).await;
        a_checkpoint(&server).await;
        let copy = tempfile::tempdir().unwrap();
        copied(&mirror(copy.path(), &server.url).await);
        ci.http.push("main", &TestPath::new("world", "world")).await;

        let audited = async || {
            let ended = run(&["audit", copy.path().to_str().unwrap(), "--json"]).await;
            assert_eq!(ended.code, Some(0), "{ended:?}");
            serde_json::from_str::<Value>(&ended.stdout).unwrap()
        };
        until("both signatures", async || {
            copied(&mirror(copy.path(), &server.url).await);
            (audited().await["signatures"] == 2).then_some(())
        })
        .await;
        drop(server);

        assert_eq!(audited().await["findings"], serde_json::json!([]));
    }

    async fn new_leaves_are_shown_as_they_come_until_a_signal(server: TestServer) {
        let ci = server.token("ci", &["push:main"]).await;
        a_checkpoint(&server).await;
        let home = tempfile::tempdir().unwrap();
        let mut command = narvault();
        command.args(["log", "follow", &server.url, "--since", "0", "--every", "1s", "--json"]);
        command.env("HOME", home.path()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = async |expected: u64| {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["index"], expected);
            line["leaf"].as_str().unwrap().to_owned()
        };
        let mut index = 0;
        while !next(index).await.contains("event token-issue") {
            index += 1;
        }
        ci.http.push("main", &TestPath::new("hello", "hello")).await;
        loop {
            index += 1;
            if next(index).await.contains("-hello\n") {
                break;
            }
        }

        let id = child.id().unwrap().to_string();
        assert!(tokio::process::Command::new("kill").args(["-s", "TERM", &id]).status().await.unwrap().success());
        let ended = tokio::time::timeout(crate::support::PATIENCE, child.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), Some(0));
    }
}

#[tokio::test]
async fn who_follows_a_log_that_is_rolled_back_or_forked_is_told_and_stops() {
    for (leaves, told) in
        [(log_of(5), "rolled back"), ([first_leaves(), vec![honest(7); 10]].concat(), "forked")]
    {
        let source = tempfile::tempdir().unwrap();
        log::publish(source.path(), 1, log_of(10));
        let mut command = narvault();
        let home = tempfile::tempdir().unwrap();
        let from = source.path().to_str().unwrap();
        command
            .args(["log", "follow", from, "--since", "9", "--every", "1s", "--json"])
            .env("HOME", home.path());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next_line().await.unwrap().unwrap().contains("\"index\":9"));

        fs::remove_dir_all(source.path().join("tile")).unwrap();
        log::publish(source.path(), 1, leaves);

        let output =
            tokio::time::timeout(crate::support::PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(4));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(told), "{told}: {stderr}");
    }
}
