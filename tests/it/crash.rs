//! `kill -9` at any moment: nothing acknowledged is lost, nothing partial is to be seen, and pushing again heals.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use narvault::nix::hash::Sha256Digest;
use reqwest::{Method, RequestBuilder};
use tokio::task::JoinSet;

use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, StorageKind, TestServer};
use crate::support::until;

/// Paths in one round.
const PATHS: usize = 20;

/// Pushes at the same time.
const WIDTH: usize = 5;

/// When each round ends: after so many of its 40 requests were answered, spread by a fixed pattern from the
/// first request to the last.
const ROUNDS: [usize; 12] = [0, 1, 3, 5, 9, 14, 18, 22, 27, 31, 35, 39];

/// As [`Http::put`], where the server may die meanwhile. Answers whether it said yes.
async fn acknowledged(request: RequestBuilder) -> bool {
    let Ok(response) = request.send().await else { return false };
    let status = response.status();
    assert!(status.is_success(), "{status}");
    true
}

/// Pushes one path after the other until the server dies: those whose narinfo was acknowledged.
async fn push_until_death(http: Http, paths: Vec<TestPath>, answered: Arc<AtomicUsize>) -> Vec<TestPath> {
    let put = |object: &str| http.request(Method::PUT, &format!("/push/main/{object}"));
    let mut published = Vec::new();
    for path in paths {
        if !acknowledged(put(&path.nar_url()).body(path.file.clone())).await {
            break;
        }
        answered.fetch_add(1, Ordering::SeqCst);
        let narinfo = put(&format!("{}.narinfo", path.hash())).body(path.narinfo());
        if !acknowledged(narinfo).await {
            break;
        }
        answered.fetch_add(1, Ordering::SeqCst);
        published.push(path);
    }
    published
}

/// Pushes all paths, some at a time.
fn push(http: &Http, paths: &[TestPath], answered: &Arc<AtomicUsize>) -> JoinSet<Vec<TestPath>> {
    let shares = paths.chunks(PATHS / WIDTH);
    shares.map(|share| push_until_death(http.clone(), share.to_vec(), answered.clone())).collect()
}

/// The path is served as it was pushed.
async fn whole(server: &TestServer, path: &TestPath) {
    let narinfo = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
    let narinfo = narinfo.assert_status(200).text();
    for line in path.narinfo().lines() {
        assert!(narinfo.contains(line.trim_end()), "{line} is not in {narinfo}");
    }
    assert!(narinfo.contains("\nSig: "), "{narinfo}");
    let nar = server.http().get(&format!("/main/{}", path.nar_url())).await;
    assert_eq!(nar.assert_status(200).body, path.file);
}

/// Every file under a final name is the whole one: NARs have the hash of their name, narinfos are signed.
fn nothing_partial(root: &Path) -> BTreeSet<String> {
    let mut nars = BTreeSet::new();
    for path in files(&root.join("main")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        if let Some(hash) = name.strip_suffix(".nar") {
            assert_eq!(Sha256Digest::of(&bytes).base32(), hash);
            nars.insert(name);
        } else if name.ends_with(".narinfo") {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("\nSig: ") && text.ends_with('\n'), "{name}: {text}");
        } else {
            assert_eq!(name, "nix-cache-info");
        }
    }
    nars
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let entries = entries.map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        println!("skipped: {backend:?} is not here");
        return;
    };
    let alice = server.token("alice", &["push:main"]).await.http;
    let root = (backend.storage == StorageKind::Disk).then(|| server.site.data().join("storage"));
    let mut kept = Vec::new();
    for (round, requests) in ROUNDS.into_iter().enumerate() {
        let contents = |number| format!("{backend:?} {round} {number} ").repeat(500);
        let paths: Vec<_> =
            (0..PATHS).map(|number| TestPath::new(&format!("path-{number}"), contents(number))).collect();
        let answered = Arc::new(AtomicUsize::new(0));
        let pushing = push(&alice, &paths, &answered);
        until("enough answers", async || (answered.load(Ordering::SeqCst) >= requests).then_some(())).await;

        server.restart_after_kill(&[]).await;

        let published = pushing.join_all().await.concat();
        println!("round {round}: killed after {requests} answers, {} paths published", published.len());
        for path in &published {
            whole(&server, path).await;
        }
        kept.extend(published);
        if let Some(root) = &root {
            let stored = nothing_partial(root);
            // What was stored and is nobody's is found by its row: whoever may push sees it, nobody else.
            for path in &paths {
                let known = alice.head(&format!("/push/main/{}", path.nar_url())).await.status == 200;
                assert!(
                    !known || stored.contains(&path.nar_url()[4..]),
                    "{} has a row alone",
                    path.nar_url()
                );
            }
            assert_eq!(files(&root.join("_narvault/tmp")), [""; 0].map(PathBuf::from), "left from before");
        }
        assert_eq!(push(&alice, &paths, &answered).join_all().await.concat().len(), PATHS, "healed");
        for path in &paths {
            whole(&server, path).await;
        }
    }
    for path in &kept {
        whole(&server, path).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_and_disk() {
    a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_and_s3() {
    a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(Backend::POSTGRES_S3).await;
}
