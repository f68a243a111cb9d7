//! Storage or database fail, come back, or fill up: answers are clean, nothing half is visible, and the server goes on.

use std::net::SocketAddr;
use std::path::PathBuf;

use narvault::api::ClaimRequest;
use narvault::client::Client;
use narvault::nix::hash::Sha256Digest;
use reqwest::Method;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use url::Url;

use crate::support::chaos::{Call, Chaos, Fault};
use crate::support::client::{Http, TestPath};
use crate::support::server::{Backend, Process, Site, TestServer};
use crate::support::{no_temporary_file, until};

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
    let chaos = Chaos::before(site.storage_endpoint()).await;
    let storage = site.storage_url_at(chaos.address);
    let (_process, http, pusher) = start(&site, &[("NARVAULT_STORAGE_URL", &storage)]).await;

    for (round, fault) in (0..).zip([
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::CutRequest,
        Fault::CutAnswer(0),
        Fault::LoseAnswer,
        Fault::FailAfterSuccess,
    ]) {
        println!("{fault:?}");
        for (call, times) in
            [(Call::Put, 2), (Call::Head, 1), (Call::UploadPart, 1), (Call::CompleteUpload, 1)]
        {
            chaos.inject(call, fault, times);
        }
        let small = TestPath::new("small", format!("{round}"));
        for path in [small, large(round)] {
            pusher.push("main", &path).await;
            whole(&http, &path).await;
        }
    }
}

/// Patience as short as configuration allows: what stalls is given up while a test still waits.
const IMPATIENT: [(&str, &str); 4] = [
    ("NARVAULT_STORAGE_CONNECT_TIMEOUT_SECONDS", "1"),
    ("NARVAULT_STORAGE_ANSWER_TIMEOUT_SECONDS", "1"),
    ("NARVAULT_STORAGE_TIMEOUT_SECONDS", "5"),
    ("NARVAULT_STORAGE_ATTEMPTS_MAX", "2"),
];

/// A server whose storage can be disturbed, and who gives up soon.
async fn impatient(site: &Site) -> (Chaos, Process, Http, Http) {
    let chaos = Chaos::before(site.storage_endpoint()).await;
    let storage = site.storage_url_at(chaos.address);
    let settings = [("NARVAULT_STORAGE_URL", storage.as_str())];
    let (process, http, pusher) = start(site, &[&settings[..], &IMPATIENT[..]].concat()).await;
    (chaos, process, http, pusher)
}

/// More than one part of an upload; `number` tells them apart.
fn large(number: u32) -> TestPath {
    let pieces = (0..200_000_u32).flat_map(|n| (u64::from(n) << 32 | u64::from(number)).to_le_bytes());
    TestPath::new("large", pieces.collect::<Vec<u8>>().repeat(6))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_storage_never_takes_is_refused_and_leaves_nothing_to_be_seen() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let (chaos, _process, http, pusher) = impatient(&site).await;
    let storage = site.storage().await;

    for (round, (call, fault)) in (0..).zip([
        (Call::Put, Fault::Stall),
        (Call::Put, Fault::Answer(500, "InternalError")),
        (Call::Put, Fault::Answer(503, "SlowDown")),
        (Call::Put, Fault::CutRequest),
        (Call::CreateUpload, Fault::Stall),
        (Call::UploadPart, Fault::Answer(503, "SlowDown")),
        (Call::UploadPart, Fault::CutRequest),
        (Call::CompleteUpload, Fault::Answer(500, "InternalError")),
        (Call::CompleteUpload, Fault::CutRequest),
    ]) {
        println!("{call:?}: {fault:?}");
        let path = match call {
            Call::Put => TestPath::new("small", round.to_string()),
            _ => large(round),
        };
        chaos.inject(call, fault, 100);

        let refused = pusher.put_nar("main", &path).await;

        refused.assert_refused(503, "storage cannot take or give objects now");
        assert!(!refused.header("retry-after").is_empty());
        chaos.calm();
        pusher.head(&format!("/push/main/{}", path.nar_url())).await.assert_status(404);
        pusher.put_narinfo("main", &path).await.assert_refused(422, "was not uploaded to this cache");
        nowhere(&http, &path).await;
        let object = format!("main/{}", path.nar_url()).parse().unwrap();
        assert_eq!(storage.size(&object).await.unwrap(), None, "visible in the bucket");
        pusher.push("main", &path).await;
        whole(&http, &path).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_stalls_once_or_is_answered_late_is_done_again() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let (chaos, _process, http, pusher) = impatient(&site).await;

    for (round, (call, fault)) in (0..).zip([
        (Call::Put, Fault::Stall),
        (Call::Put, Fault::LateAnswer),
        (Call::CompleteUpload, Fault::LateAnswer),
        (Call::Head, Fault::Stall),
    ]) {
        println!("{call:?}: {fault:?}");
        let path = if call == Call::CompleteUpload {
            large(round)
        } else {
            TestPath::new("small", round.to_string())
        };
        chaos.inject(call, fault, 1);

        pusher.push("main", &path).await;

        whole(&http, &path).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narinfo_that_storage_does_not_take_is_served_and_written_once_it_does() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let (chaos, _process, http, pusher) = impatient(&site).await;
    let storage = site.storage().await;
    let path = TestPath::new("thing", "hello");
    let narinfo = format!("main/{}.narinfo", path.hash()).parse().unwrap();
    pusher.put_nar("main", &path).await.assert_status(201);
    chaos.inject(Call::Put, Fault::Answer(503, "SlowDown"), 1000);

    pusher.put_narinfo("main", &path).await.assert_status(201);

    whole(&http, &path).await;
    assert_eq!(storage.size(&narinfo).await.unwrap(), None);
    chaos.calm();
    until("the narinfo to be written", async || storage.size(&narinfo).await.unwrap().map(drop)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_storage_cuts_or_stalls_is_taken_up_again_or_ends_in_an_error() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let (chaos, _process, http, pusher) = impatient(&site).await;
    let path = large(0);
    pusher.push("main", &path).await;
    let url = format!("/main/{}", path.nar_url());

    for fault in
        [Fault::CutAnswer(0), Fault::CutAnswer(1_000_000), Fault::Stall, Fault::Answer(503, "SlowDown")]
    {
        println!("{fault:?}, once");
        chaos.inject(Call::Get, fault, 1);
        assert_eq!(http.get(&url).await.assert_status(200).body, path.file);
    }
    for fault in [Fault::Stall, Fault::Answer(500, "InternalError")] {
        println!("{fault:?}, for good");
        chaos.inject(Call::Get, fault, 100);
        http.get(&url).await.assert_refused(503, "storage cannot take or give objects now");
        chaos.calm();
    }
    // The head is on its way when the bytes end: what the client gets must not look whole.
    chaos.inject(Call::Get, Fault::CutAnswer(1_000_000), 1);
    chaos.inject(Call::Get, Fault::CutAnswer(0), 100);
    let answer = http.request(Method::GET, &url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert!(answer.bytes().await.is_err(), "a part was taken for the whole");
    chaos.calm();
    whole(&http, &path).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_storage_narinfos_are_served_and_everything_else_is_refused_until_it_is_back() {
    let site = Site::new(Backend::SQLITE_S3).await.unwrap();
    let wire = Wire::before(site.storage_endpoint()).await;
    let storage = site.storage_url_at(wire.address);
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
    no_temporary_file(&mount.folder.join("storage")).await;
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
