//! However many push at once, and through whichever replica: one log, without a gap and without a fork, which somebody
//! who follows it meanwhile sees grow, and which accounts for each signature once.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use narvault::cli::server::Server;
use narvault::time::Clock;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, Ended, Process, Site, StorageKind, TestServer, narvault};
use crate::support::until;

/// Who push at once, each with a token of their own.
const PUBLISHERS: usize = 64;

/// What each of them pushes alone.
const PATHS: usize = 32;

/// What all of them push: the first one's is signed, the others' is evidence.
const SHARED: usize = 4;

/// Somebody who follows the log of one replica, and ends with 4 where it contradicts itself.
struct Follower {
    child: Child,
    folder: tempfile::TempDir,
}

impl Follower {
    fn of(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = narvault();
        command.args(["log", "follow", url, "--json", "--state"]).arg(folder.path().join("seen"));
        command.env("HOME", folder.path());
        command.stdout(std::fs::File::create(folder.path().join("shown")).unwrap());
        Self { child: command.spawn().unwrap(), folder }
    }

    /// The indices of the leaves that it has shown.
    fn shown(&self) -> Vec<u64> {
        let shown = std::fs::read_to_string(self.folder.path().join("shown")).unwrap();
        // The last line may not be whole yet.
        let whole = shown.rfind('\n').map_or("", |end| &shown[..end]);
        let index = |line: &str| serde_json::from_str::<Value>(line).unwrap()["index"].as_u64().unwrap();
        whole.lines().map(index).collect()
    }

    async fn ended(self) -> Ended {
        let id = self.child.id().expect("it still follows").to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &id]).status().await.unwrap().success());
        let output = self.child.wait_with_output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A second server on the same database and storage.
enum Replica {
    Here(Box<Server>),
    Process(Box<Process>),
}

impl Replica {
    async fn start(site: &Site) -> Self {
        match site.backend.storage {
            StorageKind::Disk => Self::Here(site.start_here(Clock::System, &[]).await.into()),
            _ => Self::Process(site.spawn(&[]).await.into()),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Here(server) => format!("http://{}", server.http.address),
            Self::Process(process) => process.url.clone(),
        }
    }

    async fn stop(self) {
        match self {
            Self::Here(server) => server.shut_down().await.unwrap(),
            Self::Process(mut process) => {
                process.signal("TERM").await;
                assert!(process.ended().await.success(), "{}", process.stderr());
            }
        }
    }
}

/// One publisher's work: their own paths, and those that all push.
async fn publish(http: &Http, number: usize) {
    for at in 0..PATHS {
        push(http, &TestPath::new(&format!("path-{number}-{at}"), format!("{number} {at}"))).await;
        if at % (PATHS / SHARED) == 0 {
            push(http, &shared(at / (PATHS / SHARED))).await;
        }
    }
}

/// Puts again, as Nix does, while the server says that it is too busy; it has waited for its database before it says so.
async fn push(http: &Http, path: &TestPath) {
    for part in [Part::Nar, Part::Narinfo] {
        let mut tries = 0;
        loop {
            let answer = match part {
                Part::Nar => http.put_nar("main", path).await,
                Part::Narinfo => http.put_narinfo("main", path).await,
            };
            tries += 1;
            if answer.status != 503 || tries == TRIES {
                assert!([200, 201].contains(&answer.status), "{answer:?} after {tries} tries");
                break;
            }
        }
    }
}

enum Part {
    Nar,
    Narinfo,
}

/// Of one request. More than Nix makes: that many publishers share two cores with the servers and the database.
const TRIES: usize = 40;

fn shared(number: usize) -> TestPath {
    TestPath::new("shared", number.to_string())
}

/// Audits log and bucket from a machine that has the log's key and can read the bucket.
async fn audited(server: &TestServer) -> Value {
    let key = server.http().get("/api/v1/log/key").await.text().trim_end().to_owned();
    let site = &server.site;
    let place = site.storage_url().unwrap_or_else(|| site.data().join("storage").display().to_string());
    let mut command = site.command(&[]);
    command.args(["log", "audit", &place, "--log-key", &key, "--json"]);
    let ended = Ended::of(command).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

async fn many_publishers_leave_one_log(backend: Backend, replicas: usize) {
    let Some(server) = TestServer::start(backend).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let mut others = Vec::new();
    for _ in 1..replicas {
        others.push(Replica::start(&server.site).await);
    }
    let urls: Vec<_> = std::iter::once(server.url.clone()).chain(others.iter().map(Replica::url)).collect();
    let mut tokens = Vec::new();
    for number in 0..PUBLISHERS {
        tokens.push(server.token(&format!("ci-{number}"), &["push:main"]).await);
    }
    until("a first checkpoint", async || {
        (server.http().get("/api/v1/log/checkpoint").await.status == 200).then_some(())
    })
    .await;
    let followers: Vec<_> = urls.iter().map(|url| Follower::of(url)).collect();
    for follower in &followers {
        let seen = follower.folder.path().join("seen");
        until("somebody to follow", async || seen.exists().then_some(())).await;
    }

    let publishing = tokens.iter().enumerate().map(|(number, token)| {
        let http = Http::new(&urls[number % urls.len()]).with_token(&token.text);
        tokio::spawn(async move { publish(&http, number).await })
    });
    for ended in join_all(publishing).await {
        ended.unwrap();
    }

    // Each path was signed once, by a leaf that the published log has.
    let signed = (PUBLISHERS * PATHS + SHARED) as u64;
    let answer = until("all of it to be published", async || {
        let answer = audited(&server).await;
        (answer["signatures"].as_u64() >= Some(signed)).then_some(answer)
    })
    .await;
    assert_eq!((&answer["signatures"], &answer["events"]["sign"]), (&signed.into(), &signed.into()));
    assert_eq!(answer["narinfos"], signed, "{answer}");
    let size = answer["size"].as_u64().unwrap();
    let verified = server.narvault(["log", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");

    // Nobody who looked at one of the replicas meanwhile saw a contradiction, or a gap.
    for follower in followers {
        let shown = until("the follower to see the end", async || {
            let shown = follower.shown();
            (shown.last() >= Some(&(size - 1))).then_some(shown)
        })
        .await;
        assert!(shown.windows(2).all(|two| two[1] == two[0] + 1), "{shown:?}");
        let ended = follower.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }

    // Each shared path has the word of all.
    let mut evidence = BTreeMap::new();
    for at in 0..SHARED {
        let shown = server.admin().path("main", shared(at).hash()).await.unwrap();
        evidence.insert(at, shown.evidence.len());
        assert_eq!(shown.signatures.len(), 1);
    }
    assert!(evidence.values().all(|count| *count == PUBLISHERS), "{evidence:?}");
    for other in others {
        other.stop().await;
    }
    server.stop().await;
}

mod many_publishers {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leave_one_log_of_one_server_on_sqlite() {
        many_publishers_leave_one_log(Backend::SQLITE_DISK, 1).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leave_one_log_of_two_replicas_on_postgres_and_disk() {
        many_publishers_leave_one_log(Backend::POSTGRES_DISK, 2).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leave_one_log_of_two_replicas_on_postgres_and_s3() {
        many_publishers_leave_one_log(Backend::POSTGRES_S3, 2).await;
    }
}
