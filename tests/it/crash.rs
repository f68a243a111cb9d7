//! `kill -9` at any moment: nothing acknowledged is lost, nothing partial is to be seen, what is nobody's is listed, and
//! pushing again heals. The moments are drawn from a seed, which is printed: `NARVAULT_TEST_CRASH_SEED` repeats them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use narvault::nix::hash::Sha256Digest;
use narvault::storage::{Folder, Storage};
use reqwest::{Method, RequestBuilder};
use tokio::task::JoinSet;

use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, Ended, StorageKind, TestServer};
use crate::support::{no_temporary_file, until, variable};

/// Paths in one round.
const PATHS: usize = 20;

/// Pushes at the same time.
const WIDTH: usize = 5;

/// Requests in one round: a NAR and a narinfo for each path.
const REQUESTS: u64 = 2 * PATHS as u64;

/// Most rounds, as long as there is time for them. Two always are.
const ROUNDS: u64 = 8;
const TIME: Duration = Duration::from_secs(12);

/// When a round ends: after so many of its requests were answered, and then so much later.
#[derive(Debug)]
struct Moment {
    answers: usize,
    later: Duration,
}

impl Moment {
    fn drawn(seed: u64, backend: Backend, round: u64) -> Self {
        let digest = Sha256Digest::of(format!("{seed} {backend:?} {round}").as_bytes()).0;
        let number = |at: usize| u64::from_be_bytes(digest[at..at + 8].try_into().unwrap());
        // A request takes some milliseconds.
        let later = Duration::from_micros(number(8) % 10_000);
        Self { answers: usize::try_from(number(0) % REQUESTS).unwrap(), later }
    }
}

fn seed() -> u64 {
    match variable("NARVAULT_TEST_CRASH_SEED") {
        Some(seed) => seed.parse().unwrap(),
        None => uuid::Uuid::now_v7().as_u64_pair().1,
    }
}

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

/// Every object under a final name is the whole one: NARs have the hash of their name, narinfos are signed. The NARs.
async fn nothing_partial(storage: &Storage) -> BTreeSet<String> {
    let mut nars = BTreeSet::new();
    let entries: Vec<_> = storage.list(&Folder::Cache("main".parse().unwrap())).try_collect().await.unwrap();
    for name in entries.into_iter().map(|entry| entry.name) {
        let bytes = storage.read(&name.parse().unwrap(), 1 << 20).await.unwrap().unwrap();
        if let Some(hash) = name.strip_prefix("main/nar/").and_then(|file| file.strip_suffix(".nar")) {
            assert_eq!(Sha256Digest::of(&bytes).base32(), hash);
            nars.insert(name);
        } else if name.ends_with(".narinfo") {
            let text = str::from_utf8(&bytes).unwrap();
            assert!(text.contains("\nSig: ") && text.ends_with('\n'), "{name}: {text}");
        } else {
            assert_eq!(name, "main/nix-cache-info");
        }
    }
    nars
}

/// NARs in storage are those of rows, which whoever may push sees, and those that the host's command lists.
async fn orphans_are_listed(server: &TestServer, pusher: &Http, stored: &BTreeSet<String>) {
    let mut nobodys = BTreeSet::new();
    for name in stored {
        match pusher.head(&format!("/push/{name}")).await.status {
            200 => {}
            status => {
                assert_eq!(status, 404, "{name}");
                nobodys.insert(name.clone());
            }
        }
    }
    until("the orphans to be listed", async || {
        let mut command = server.site.command(&[]);
        command.args(["storage", "orphans", "--json", "--older-than", "1s"]);
        let ended = Ended::of(command).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let answer: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let objects = answer["objects"].as_array().unwrap().iter();
        let listed: BTreeSet<String> =
            objects.map(|object| object["object"].as_str().unwrap().to_owned()).collect();
        (listed == nobodys).then_some(())
    })
    .await;
    println!("{} of {} NARs are orphans, and listed", nobodys.len(), stored.len());
}

async fn a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        println!("skipped: {backend:?} is not here");
        return;
    };
    let (seed, begun) = (seed(), Instant::now());
    println!("NARVAULT_TEST_CRASH_SEED={seed}");
    let alice = server.token("alice", &["push:main"]).await.http;
    let storage = server.site.storage().await;
    let (mut kept, mut all) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let contents = |number| format!("{backend:?} {round} {number} ").repeat(500);
        let paths: Vec<_> =
            (0..PATHS).map(|number| TestPath::new(&format!("path-{number}"), contents(number))).collect();
        let answered = Arc::new(AtomicUsize::new(0));
        let pushing = push(&alice, &paths, &answered);
        let moment = Moment::drawn(seed, backend, round);
        let enough = async || (answered.load(Ordering::SeqCst) >= moment.answers).then_some(());
        until("enough answers", enough).await;
        tokio::time::sleep(moment.later).await;

        server.restart_after_kill(&[]).await;

        let published = pushing.join_all().await.concat();
        println!("round {round}: killed at {moment:?}, {} paths published", published.len());
        for path in &published {
            whole(&server, path).await;
        }
        nothing_partial(&storage).await;
        kept.extend(published);
        all.extend(paths);
        if round > 0 && begun.elapsed() > TIME {
            break;
        }
    }
    if backend.storage == StorageKind::Disk {
        no_temporary_file(&server.site.data().join("storage")).await;
    }
    let stored = nothing_partial(&storage).await;
    orphans_are_listed(&server, &alice, &stored).await;
    for path in &kept {
        whole(&server, path).await;
    }
    let answered = Arc::default();
    for paths in all.chunks(PATHS) {
        assert_eq!(push(&alice, paths, &answered).join_all().await.concat().len(), PATHS, "healed");
    }
    for path in &all {
        whole(&server, path).await;
    }
    orphans_are_listed(&server, &alice, &nothing_partial(&storage).await).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_and_disk() {
    a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_and_s3() {
    a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(Backend::SQLITE_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_and_disk() {
    a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(Backend::POSTGRES_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_and_s3() {
    a_crash_loses_nothing_acknowledged_and_shows_nothing_partial(Backend::POSTGRES_S3).await;
}
