//! Storage or database fail, come back, or fill up: answers are clean, nothing half is visible, and the server goes on.

use std::net::SocketAddr;
use std::path::PathBuf;

use narvault::api::ClaimRequest;
use narvault::client::Client;
use narvault::nix::hash::Sha256Digest;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use url::Url;

use crate::support::chaos::{Call, Chaos, Fault};
use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, Process, Site, TestServer};
use crate::support::until;

/// A connection between two machines, which can be cut and mended: while it is cut, nobody gets through.
struct Wire {
    address: SocketAddr,
    whole: watch::Sender<bool>,
}

impl Wire {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let whole = watch::Sender::new(true);
        let watching = whole.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut watching = watching.clone();
                tokio::spawn(async move {
                    if !*watching.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = watching.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { address, whole }
    }

    fn cut(&self) {
        self.whole.send_replace(false);
    }

    fn mend(&self) {
        self.whole.send_replace(true);
    }
}

/// Where the storage of a site is.
fn endpoint(site: &Site) -> SocketAddr {
    let url: Url = site.storage_url().unwrap().parse().unwrap();
    let endpoint = url.query_pairs().find(|(name, _)| name == "endpoint").unwrap().1.into_owned();
    endpoint.parse::<Url>().unwrap().socket_addrs(|| None).unwrap()[0]
}

/// `storage.url` with another address for the endpoint.
fn storage_at(site: &Site, address: SocketAddr) -> String {
    let mut url: Url = site.storage_url().unwrap().parse().unwrap();
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let mut query = url.query_pairs_mut();
    query.clear().extend_pairs(pairs.iter().filter(|(name, _)| name != "endpoint"));
    query.append_pair("endpoint", &format!("http://{address}"));
    drop(query);
    url.into()
}

/// A server on a new site, requests of a stranger, and of the first administrator.
async fn start(site: &Site, settings: &[(&str, &str)]) -> (Process, Http, Http) {
    let process = site.spawn(settings).await;
    let http = Http::new(&process.url);
    let claim = process.told("--claim ").unwrap();
    let anyone = Client::new(process.url.parse().unwrap(), None, false).unwrap();
    let admin = anyone.claim(&ClaimRequest { claim }).await.unwrap().token;
    (process, http.clone(), http.with_token(&admin))
}

async fn whole(http: &Http, path: &TestPath) {
    let narinfo = http.get(&format!("/main/{}.narinfo", path.hash())).await;
    assert!(narinfo.assert_status(200).text().contains("\nSig: "), "{}", narinfo.text());
    let nar = http.get(&format!("/main/{}", path.nar_url())).await;
    assert_eq!(nar.assert_status(200).body, path.file);
}

async fn nowhere(http: &Http, path: &TestPath) {
    http.get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
    http.get(&format!("/main/{}", path.nar_url())).await.assert_status(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_storage_that_passes_is_not_noticed() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let chaos = Chaos::before(endpoint(&site)).await;
    let storage = storage_at(&site, chaos.address);
    let (_process, http, pusher) = start(&site, &[("NARVAULT_STORAGE_URL", &storage)]).await;

    for (round, fault) in [
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::CutRequest,
        Fault::CutAnswer(0),
        Fault::LoseAnswer,
        Fault::FailAfterSuccess,
    ]
    .into_iter()
    .enumerate()
    {
        println!("{fault:?}");
        for (call, times) in
            [(Call::Put, 2), (Call::Head, 1), (Call::UploadPart, 1), (Call::CompleteUpload, 1)]
        {
            chaos.inject(call, fault, times);
        }
        let small = TestPath::new("small", format!("{round}"));
        // More than one part.
        let pieces = (0..200_000_u32).flat_map(|n| (u64::from(n) << 32 | round as u64).to_le_bytes());
        let large = TestPath::new("large", pieces.collect::<Vec<u8>>().repeat(6));
        for path in [small, large] {
            pusher.push("main", &path).await;
            whole(&http, &path).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_storage_narinfos_are_served_and_everything_else_is_refused_until_it_is_back() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let wire = Wire::before(endpoint(&site)).await;
    let storage = storage_at(&site, wire.address);
    let (_process, http, pusher) = start(&site, &[("NARVAULT_STORAGE_URL", &storage)]).await;
    let before = TestPath::new("before", "hello");
    let between = TestPath::new("between", "hello, between");
    let late = TestPath::new("late", "hello, late");
    pusher.push("main", &before).await;
    pusher.put_nar("main", &between).await.assert_status(201);

    wire.cut();

    let sentence = "storage cannot take or give objects now";
    let nar_url = format!("/main/{}", before.nar_url());
    let (nar, late_nar, late_narinfo) = tokio::join!(
        http.get(&nar_url),
        pusher.put_nar("main", &late),
        pusher.put_narinfo("main", &between),
    );
    for refused in [nar, late_nar, late_narinfo] {
        refused.assert_refused(503, sentence);
        assert!(!refused.header("retry-after").is_empty());
    }
    http.get(&format!("/main/{}.narinfo", before.hash())).await.assert_status(200);
    http.get("/main/nix-cache-info").await.assert_status(200);
    for path in [&between, &late] {
        http.get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
    }
    assert_eq!(http.get("/readyz").await.status, 200);
    wire.mend();
    pusher.put_narinfo("main", &between).await.assert_status(201);
    pusher.push("main", &late).await;
    for path in [&before, &between, &late] {
        whole(&http, path).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_database_says_so_and_works_again_when_it_is_back() {
    let Some(site) = Site::new(Backend::POSTGRES_DISK).await else { return println!("skipped: no Postgres") };
    let mut url: Url = site.database_url().unwrap().parse().unwrap();
    let address = url.socket_addrs(|| Some(5432)).unwrap()[0];
    let wire = Wire::before(address).await;
    url.set_port(Some(wire.address.port())).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    let (_process, http, pusher) = start(&site, &[("NARVAULT_DATABASE_URL", url.as_str())]).await;
    let before = TestPath::new("before", "hello");
    let late = TestPath::new("late", "hello, again");
    pusher.push("main", &before).await;

    wire.cut();

    until("readiness to end", async || (http.get("/readyz").await.status == 503).then_some(())).await;
    http.get("/livez").await.assert_status(200);
    let sentence = "the database does not answer now";
    let narinfo = format!("/main/{}.narinfo", late.hash());
    let (get, put_nar, put_narinfo, call) = tokio::join!(
        http.get(&narinfo),
        pusher.put_nar("main", &late),
        pusher.put_narinfo("main", &before),
        pusher.get("/api/v1/auth/whoami"),
    );
    for refused in [get, put_nar, put_narinfo] {
        refused.assert_refused(503, sentence);
    }
    assert_eq!(call.assert_status(503).header("content-type"), "application/problem+json");
    assert!(!call.text().contains("postgres"), "{}", call.text());
    wire.mend();
    until("readiness", async || (http.get("/readyz").await.status == 200).then_some(())).await;
    nowhere(&http, &late).await;
    pusher.push("main", &late).await;
    whole(&http, &before).await;
    whole(&http, &late).await;
}

/// A file system of its own, unmounted with this value.
struct Mount {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl Mount {
    /// `None` where mounting is not allowed.
    async fn new(size: &str) -> Option<Self> {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("small");
        std::fs::create_dir(&folder).unwrap();
        let options = format!("size={size},mode=0755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder);
        let output = mount.output().await.ok()?;
        output.status.success().then_some(Self { folder, _parent: parent })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_does_not_fit_and_the_server_goes_on() {
    let Some(mount) = Mount::new("4m").await else { return println!("skipped: mounting is not allowed") };
    let storage = Url::from_file_path(mount.folder.join("storage")).unwrap();
    let settings = [("NARVAULT_STORAGE_URL", storage.as_str())];
    let server = TestServer::start_with(Backend::SQLITE_DISK, &settings).await.unwrap();
    let alice = server.token("alice", &["push:main"]).await.http;
    let before = TestPath::new("before", "hello");
    let after = TestPath::new("after", "hello, after");
    // It does not matter that this compresses: it is stored as it comes.
    let large = TestPath::new("large", vec![b'x'; 6 << 20]);
    alice.push("main", &before).await;

    for _ in 0..3 {
        alice.put_nar("main", &large).await.assert_refused(413, "storage is full");
    }

    nowhere(&server.http(), &large).await;
    alice.put_narinfo("main", &large).await.assert_refused(422, "was not uploaded to this cache");
    assert_eq!(std::fs::read_dir(mount.folder.join("storage/_narvault/tmp")).unwrap().count(), 0);
    whole(&server.http(), &before).await;
    alice.push("main", &after).await;
    whole(&server.http(), &after).await;
    // Until nothing fits any more, and again once there is room.
    let filler = mount.folder.join("filler");
    let mut fill = Command::new("dd");
    fill.arg("if=/dev/zero").arg(format!("of={}", filler.display())).args(["bs=4k", "status=none"]);
    assert!(!fill.output().await.unwrap().status.success(), "the file system has an end");
    let last = TestPath::new("last", Sha256Digest::of(b"last").base32().repeat(1000));
    alice.put_nar("main", &last).await.assert_refused(413, "storage is full");
    whole(&server.http(), &before).await;
    std::fs::remove_file(filler).unwrap();
    alice.push("main", &last).await;
    whole(&server.http(), &last).await;
    server.stop().await;
}
