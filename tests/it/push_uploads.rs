//! Files in parts: an upload goes on where it was left, whoever died meanwhile, and its file is as good as one that
//! came in one piece, or is nowhere.

use bytes::Bytes;
use data_encoding::BASE64;
use narvault::api::{
    PartUrl, PartUrlRequest, PathQuery, RevokeRequest, UploadComplete, UploadOpen, UploadPart, UploadView,
};
use narvault::nix::hash::Sha256Digest;
use narvault::storage::Stage;
use narvault::time::{Clock, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::{Answer, Http, TestPath, Token, lines};
use crate::support::database::{DatabaseKind, on_each_database};
use crate::support::rows;
use crate::support::server::{Backend, StorageKind, TestServer, on_each_backend};
use crate::support::until;

const UPLOADS: &str = "/api/v1/caches/main/uploads";

/// The smallest part that S3 takes.
const PART: usize = 5 << 20;

/// Two parts and a bit.
fn large(name: &str) -> TestPath {
    TestPath::new(name, &name.repeat(11 << 20).as_bytes()[..11 << 20])
}

fn parts(path: &TestPath) -> Vec<Bytes> {
    cut(&path.file)
}

fn cut(file: &Bytes) -> Vec<Bytes> {
    (0..file.len()).step_by(PART).map(|at| file.slice(at..file.len().min(at + PART))).collect()
}

fn opening(path: &TestPath) -> UploadOpen {
    UploadOpen {
        nar_hash: lines(&path.narinfo(), "NarHash")[0].to_owned(),
        compression: "none".to_owned(),
        part_size_bytes: Some(PART as u64),
    }
}

fn completion(path: &TestPath) -> UploadComplete {
    UploadComplete {
        file: path.nar_url().strip_prefix("nar/").unwrap().to_owned(),
        file_size_bytes: path.file.len() as u64,
        parts: parts(path).len() as u32,
    }
}

fn as_listed(number: u32, bytes: &[u8]) -> UploadPart {
    UploadPart { number, size_bytes: bytes.len() as u64, sha256: Sha256Digest::of(bytes).hex() }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", BASE64.encode(&Sha256Digest::of(bytes).0))
}

async fn call(http: &Http, method: Method, path: &str, body: Option<Value>) -> Answer {
    let request = http.request(method, path);
    Answer::of(body.iter().fold(request, |request, body| request.json(body))).await
}

async fn open(http: &Http, path: &TestPath) -> UploadView {
    let answer = call(http, Method::POST, UPLOADS, Some(json!(opening(path)))).await;
    serde_json::from_slice(&answer.assert_status(200).body).unwrap()
}

async fn put(http: &Http, id: &str, number: impl ToString, digest: &str, bytes: impl Into<Bytes>) -> Answer {
    let url = format!("{UPLOADS}/{id}/parts/{}", number.to_string());
    let request = http.request(Method::PUT, &url).header("content-type", "application/octet-stream");
    Answer::of(request.header("content-digest", digest).body(bytes.into())).await
}

async fn put_part(http: &Http, id: &str, number: u32, bytes: &Bytes) -> Answer {
    put(http, id, number, &digest(bytes), bytes.clone()).await
}

async fn put_parts(http: &Http, id: &str, path: &TestPath) {
    for (number, part) in (1..).zip(parts(path)) {
        put_part(http, id, number, &part).await.assert_status(200);
    }
}

async fn complete(http: &Http, id: &str, body: &UploadComplete) -> Answer {
    call(http, Method::POST, &format!("{UPLOADS}/{id}/complete"), Some(json!(body))).await
}

async fn is_stored(http: &Http, path: &TestPath) -> bool {
    match http.head(&format!("/push/main/{}", path.nar_url())).await.status {
        200 => true,
        404 => false,
        other => panic!("{other}"),
    }
}

async fn assert_published(server: &TestServer, http: &Http, path: &TestPath) {
    http.put_narinfo("main", path).await.assert_status(201);
    let nar = server.http().get(&format!("/main/{}", path.nar_url())).await;
    assert!(nar.assert_status(200).body == path.file);
}

#[track_caller]
fn assert_problem(answer: &Answer, status: u16, slug: &str, text: &str) {
    let problem = answer.text();
    assert_eq!(answer.status, status, "{problem}");
    assert!(problem.contains(&format!("urn:narvault:problem:{slug}\"")), "{slug}: {problem}");
    assert!(problem.contains(text), "{text}: {problem}");
}

async fn pusher(server: &TestServer) -> Token {
    server.token("alice", &["push:main"]).await
}

/// How many files of uploads lie in the folder of disk storage.
fn staged(server: &TestServer) -> usize {
    let folder = server.site.data().join("storage/_narvault/uploads");
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

on_each_backend! {
    async fn an_upload_goes_on_where_its_client_died(server: TestServer) {
        let alice = pusher(&server).await;
        let path = large("thing");
        let parts = parts(&path);
        let begun = open(&alice.http, &path).await;
        assert!(begun.parts.is_empty() && !begun.direct && begun.part_size_bytes == PART as u64);
        for number in [3, 1] {
            let part = &parts[number as usize - 1];
            let answer = put_part(&alice.http, &begun.id, number, part).await;
            let listed: UploadPart = serde_json::from_slice(&answer.assert_status(200).body).unwrap();
            assert_eq!(listed, as_listed(number, part));
        }
        // The client dies; the next one has another token, and does not ask for the same part size.
        let next = pusher(&server).await;
        let asked = UploadOpen { part_size_bytes: None, ..opening(&path) };
        let found = call(&next.http, Method::POST, UPLOADS, Some(json!(asked))).await;
        let found: UploadView = serde_json::from_slice(&found.assert_status(200).body).unwrap();

        assert_eq!((&found.id, found.part_size_bytes), (&begun.id, begun.part_size_bytes));
        assert_eq!(found.parts, [as_listed(1, &parts[0]), as_listed(3, &parts[2])]);
        assert!(found.expires_at >= begun.expires_at);
        // Sent again, sent wrong and replaced.
        put_part(&next.http, &found.id, 1, &parts[0]).await.assert_status(200);
        put_part(&next.http, &found.id, 2, &parts[0]).await.assert_status(200);
        put_part(&next.http, &found.id, 2, &parts[1]).await.assert_status(200);
        assert!(!is_stored(&next.http, &path).await);
        let shown = call(&next.http, Method::GET, &format!("{UPLOADS}/{}", found.id), None).await;
        let shown: UploadView = serde_json::from_slice(&shown.assert_status(200).body).unwrap();
        assert_eq!(shown.parts.len(), 3);

        complete(&next.http, &found.id, &completion(&path)).await.assert_status(204);

        assert!(is_stored(&next.http, &path).await);
        assert_published(&server, &next.http, &path).await;
        call(&next.http, Method::GET, &format!("{UPLOADS}/{}", found.id), None).await.assert_status(404);
        // The answer may have been lost.
        complete(&next.http, &found.id, &completion(&path)).await.assert_status(204);
        if server.site.storage_url().is_none() {
            assert_eq!(staged(&server), 0);
        }
        server.stop().await;
    }

    async fn a_file_that_is_not_what_it_says_is_nowhere_and_takes_its_upload_with_it(server: TestServer) {
        let alice = pusher(&server).await;
        let (path, other) = (large("thing"), large("other"));
        let garbage = Bytes::from(vec![7; path.file.len()]);
        let file = format!("{}.nar", Sha256Digest::of(&garbage).base32());
        for (sent, body, text) in [
            (&other.file, completion(&path), "its name says"),
            (&garbage, UploadComplete { file, ..completion(&path) }, "neither a plain NAR"),
        ] {
            let named = &path;
            let upload = open(&alice.http, named).await;
            for (number, part) in (1..).zip(cut(sent)) {
                put_part(&alice.http, &upload.id, number, &part).await.assert_status(200);
            }
            let body = UploadComplete { file_size_bytes: sent.len() as u64, ..body };

            let refused = complete(&alice.http, &upload.id, &body).await;

            assert_problem(&refused, 422, "rejected", text);
            assert!(!is_stored(&alice.http, named).await && !is_stored(&alice.http, &other).await);
            alice.http.head(&format!("/push/main/nar/{}", body.file)).await.assert_status(404);
            alice.http.put_narinfo("main", named).await.assert_refused(422, "was not uploaded");
            call(&alice.http, Method::GET, &format!("{UPLOADS}/{}", upload.id), None).await.assert_status(404);
            let again = open(&alice.http, named).await;
            assert!(again.id != upload.id && again.parts.is_empty());
            call(&alice.http, Method::DELETE, &format!("{UPLOADS}/{}", again.id), None).await.assert_status(204);
            call(&alice.http, Method::DELETE, &format!("{UPLOADS}/{}", again.id), None).await.assert_status(404);
        }
        server.stop().await;
    }

    async fn what_is_wrong_with_an_upload_is_told_and_can_be_mended(server: TestServer) {
        let alice = pusher(&server).await;
        let path = large("thing");
        let parts = parts(&path);
        for (size, status) in [(0, 422), (PART as u64 - 1, 422), ((64 << 20) + 1, 422)] {
            let body = json!(UploadOpen { part_size_bytes: Some(size), ..opening(&path) });
            call(&alice.http, Method::POST, UPLOADS, Some(body)).await.assert_status(status);
        }
        let upload = open(&alice.http, &path).await;
        let id = &upload.id;
        let (good, of_other) = (digest(&parts[0]), digest(&parts[1]));
        for (number, digest, bytes, status, text) in [
            ("1", &*of_other, parts[0].clone(), 422, "SHA-256"),
            ("1", "sha-256=:AAAA:", parts[0].clone(), 422, "RFC 9530"),
            ("1", "", parts[0].clone(), 422, "RFC 9530"),
            ("0", &*good, parts[0].clone(), 422, "from 1 to 10000"),
            ("10001", &*good, parts[0].clone(), 422, "from 1 to 10000"),
            ("x", &*good, parts[0].clone(), 422, "from 1 to 10000"),
            ("1", &*good, path.file.slice(..PART + 1), 413, "5242880"),
            ("1", &*digest(b""), Bytes::new(), 422, "empty"),
        ] {
            let answer = put(&alice.http, id, number, digest, bytes).await;
            assert_eq!(answer.status, status, "{number} {digest}: {}", answer.text());
            assert!(answer.text().contains(text), "{}", answer.text());
        }
        let whole = completion(&path);
        put_part(&alice.http, id, 1, &parts[0]).await.assert_status(200);
        put_part(&alice.http, id, 2, &parts[1].slice(1..)).await.assert_status(200);
        for (body, slug, text) in [
            (whole.clone(), "rejected", "part 2 of the upload: it is 5242879 bytes"),
            (UploadComplete { parts: 0, ..whole.clone() }, "invalid-value", "one at least"),
            (UploadComplete { parts: 10_001, ..whole.clone() }, "invalid-value", "10000"),
            (UploadComplete { parts: 1, ..whole.clone() }, "invalid-value", "file_size_bytes"),
            (UploadComplete { file: "x.nar".into(), ..whole.clone() }, "invalid-value", "file"),
        ] {
            assert_problem(&complete(&alice.http, id, &body).await, 422, slug, text);
        }
        put_part(&alice.http, id, 2, &parts[1]).await.assert_status(200);
        let missing = complete(&alice.http, id, &whole).await;
        assert_problem(&missing, 422, "rejected", "part 3 of the upload: it is missing");

        put_part(&alice.http, id, 3, &parts[2]).await.assert_status(200);
        complete(&alice.http, id, &whole).await.assert_status(204);

        assert_published(&server, &alice.http, &path).await;
        server.stop().await;
    }
}

on_each_database! {
    async fn an_upload_is_its_contributors_own(server: TestServer) {
        let (alice, bob) = (pusher(&server).await, server.token("bob", &["push:main"]).await);
        let (pull, anyone) = (server.token("carol", &["pull:main"]).await.http, server.http());
        let path = large("thing");
        let upload = open(&alice.http, &path).await;
        put_part(&alice.http, &upload.id, 1, &parts(&path)[0]).await.assert_status(200);
        for id in [&*upload.id, "00000000-0000-0000-0000-000000000000", "nonsense", "..%2f.."] {
            for (http, status) in [(&bob.http, 404), (&pull, 403), (&anyone, 401)] {
                let url = format!("{UPLOADS}/{id}");
                call(http, Method::GET, &url, None).await.assert_status(status);
                put_part(http, id, 1, &parts(&path)[0]).await.assert_status(status);
                complete(http, id, &completion(&path)).await.assert_status(status);
                call(http, Method::DELETE, &url, None).await.assert_status(status);
            }
        }

        let of_bob = open(&bob.http, &path).await;

        assert!(of_bob.id != upload.id && of_bob.parts.is_empty());
        assert_eq!(open(&alice.http, &path).await.parts.len(), 1);
        server.stop().await;
    }

    async fn no_part_and_no_end_comes_after_a_revocation(server: TestServer) {
        let alice = pusher(&server).await;
        let path = large("thing");
        let upload = open(&alice.http, &path).await;
        put_parts(&alice.http, &upload.id, &path).await;

        let reason = RevokeRequest { reason: "stolen".to_owned(), keep_issued: false };
        server.admin().token_revoke(&alice.id, &reason).await.unwrap();

        put_part(&alice.http, &upload.id, 1, &parts(&path)[0]).await.assert_status(401);
        complete(&alice.http, &upload.id, &completion(&path)).await.assert_status(401);
        let bob = server.token("bob", &["push:main"]).await;
        assert!(!is_stored(&bob.http, &path).await);
        assert!(server.admin().paths("main", &PathQuery::default()).await.unwrap().items.is_empty());
        // The contributor's next token goes on with it.
        let next = pusher(&server).await;
        assert_eq!(open(&next.http, &path).await.id, upload.id);
        server.admin().vault_seal().await.unwrap();
        for answer in [
            call(&next.http, Method::POST, UPLOADS, Some(json!(opening(&path)))).await,
            put_part(&next.http, &upload.id, 1, &parts(&path)[0]).await,
            complete(&next.http, &upload.id, &completion(&path)).await,
        ] {
            assert_problem(&answer, 503, "sealed", "unseals");
        }
        call(&next.http, Method::DELETE, &format!("{UPLOADS}/{}", upload.id), None).await.assert_status(204);
        assert_eq!(staged(&server), 0);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_ends_a_day_after_its_last_part() {
    let clock = Clock::fixed(Timestamp::parse_rfc3339("2030-01-01T00:00:00Z").unwrap());
    let server = TestServer::at(clock.clone()).await;
    let alice = pusher(&server).await;
    let (path, other) = (large("thing"), large("other"));
    let ended = open(&alice.http, &path).await;
    put_part(&alice.http, &ended.id, 1, &parts(&path)[0]).await.assert_status(200);
    clock.advance_seconds(23 * 3600);
    let kept = open(&alice.http, &other).await;
    put_part(&alice.http, &kept.id, 1, &parts(&other)[0]).await.assert_status(200);
    assert_eq!(staged(&server), 2);
    clock.advance_seconds(2 * 3600);

    let site = server.stop().await;
    // Sweeping begins with the server.
    let server = site.start_here(clock, &[]).await;

    let http = Http::new(&format!("http://{}", server.http.address)).with_token(&alice.text);
    let folder = site.data().join("storage/_narvault/uploads");
    until("the sweeper", async || (std::fs::read_dir(&folder).unwrap().count() == 1).then_some(())).await;
    call(&http, Method::GET, &format!("{UPLOADS}/{}", ended.id), None).await.assert_status(404);
    assert_eq!(open(&http, &other).await.id, kept.id);
    server.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_upload_that_ended_stays_in_a_real_bucket() {
    let backend = Backend::POSTGRES_REAL_S3;
    let Some(server) = TestServer::start(backend).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let alice = pusher(&server).await;
    let storage = server.site.storage().await;
    let mut stages = Vec::new();
    for name in ["thing", "other"] {
        let path = large(name);
        let upload = open(&alice.http, &path).await;
        put_part(&alice.http, &upload.id, 1, &parts(&path)[0]).await.assert_status(200);
        let name =
            rows::text(&server.site, format!("SELECT stage FROM uploads WHERE id = '{}'", upload.id)).await;
        let stage = Stage { id: upload.id.parse().unwrap(), name };
        assert_eq!(storage.parts_in_bucket(&stage).await.unwrap().len(), 1);
        stages.push(stage);
    }
    let [ended, kept] = &stages[..] else { panic!() };
    let is_over = format!("UPDATE uploads SET expires_at = created_at WHERE id = '{}'", ended.id);
    rows::execute(&server.site, is_over).await;

    let site = server.stop().await;
    // Sweeping begins with the server.
    let mut process = site.spawn(&[]).await;

    let is_gone = async || storage.parts_in_bucket(ended).await.unwrap().is_empty().then_some(());
    until("the sweeper", is_gone).await;
    let http = Http::new(&process.url).with_token(&alice.text);
    call(&http, Method::GET, &format!("{UPLOADS}/{}", ended.id), None).await.assert_status(404);
    assert_eq!(storage.parts_in_bucket(kept).await.unwrap().len(), 1);
    let other = large("other");
    put_part(&http, &kept.id.to_string(), 2, &parts(&other)[1]).await.assert_status(200);
    put_part(&http, &kept.id.to_string(), 3, &parts(&other)[2]).await.assert_status(200);
    complete(&http, &kept.id.to_string(), &completion(&other)).await.assert_status(204);
    assert!(is_stored(&http, &other).await && !is_stored(&http, &large("thing")).await);
    process.signal("TERM").await;
    assert!(process.ended().await.success(), "{}", process.stderr());
}

/// Another server on the same state goes on with an upload.
async fn goes_on_through_another_replica(backend: Backend) {
    let Some(server) = TestServer::start(backend).await else { return };
    let alice = pusher(&server).await;
    let path = large("thing");
    let parts = parts(&path);
    let upload = open(&alice.http, &path).await;
    put_part(&alice.http, &upload.id, 1, &parts[0]).await.assert_status(200);
    let mut other = server.site.spawn(&[]).await;
    let http = Http::new(&other.url).with_token(&alice.text);

    assert_eq!(open(&http, &path).await.parts, [as_listed(1, &parts[0])]);
    put_part(&http, &upload.id, 2, &parts[1]).await.assert_status(200);
    put_part(&alice.http, &upload.id, 3, &parts[2]).await.assert_status(200);
    complete(&http, &upload.id, &completion(&path)).await.assert_status(204);

    assert!(is_stored(&alice.http, &path).await);
    assert_published(&server, &alice.http, &path).await;
    other.signal("TERM").await;
    assert!(other.ended().await.success(), "{}", other.stderr());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_goes_on_on_postgres_and_disk() {
    goes_on_through_another_replica(Backend::POSTGRES_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_goes_on_on_postgres_and_s3() {
    goes_on_through_another_replica(Backend::POSTGRES_S3).await;
}

/// Killed after each step, and in the middle of the last one.
async fn goes_on_after_kill(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else { return };
    let alice = pusher(&server).await;
    for round in 0..4 {
        let path = large(&format!("thing-{round}"));
        let parts = parts(&path);
        let upload = open(&alice.http, &path).await;
        for (number, part) in (1..).zip(&parts) {
            put_part(&alice.http, &upload.id, number, part).await.assert_status(200);
            if number == round {
                server.restart_after_kill(&[]).await;
            }
        }
        let (body, url) = (completion(&path), format!("{UPLOADS}/{}/complete", upload.id));
        let (http, cut) = (alice.http.clone(), body.clone());
        let first = tokio::spawn(async move { http.request(Method::POST, &url).json(&cut).send().await });
        if round % 2 == 1 {
            // Somewhere between the request's arrival and its answer.
            let looked =
                async || call(&alice.http, Method::GET, &format!("{UPLOADS}/{}", upload.id), None).await;
            looked().await;
            server.restart_after_kill(&[]).await;
            let _ = first.await.unwrap();
            assert!(!is_stored(&alice.http, &path).await || looked().await.status != 500);
            complete(&alice.http, &upload.id, &body).await.assert_status(204);
        } else {
            assert_eq!(first.await.unwrap().unwrap().status(), 204);
        }
        assert!(is_stored(&alice.http, &path).await);
        assert_published(&server, &alice.http, &path).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_kill_on_sqlite_and_disk() {
    goes_on_after_kill(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_kill_on_postgres_and_real_s3() {
    goes_on_after_kill(Backend::POSTGRES_REAL_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_go_straight_to_a_bucket_if_the_server_is_set_so() {
    // The server in this process lists parts without their tags.
    let backend = Backend { database: DatabaseKind::Sqlite, storage: StorageKind::RealS3 };
    let Some(server) = TestServer::spawn(backend, &[("NARVAULT_UPLOADS_DIRECT", "true")]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let alice = pusher(&server).await;
    let path = large("thing");
    let parts = parts(&path);
    let upload = open(&alice.http, &path).await;
    assert!(upload.direct);
    let ask = async |number: usize, part: &Bytes| -> PartUrl {
        let url = format!("{UPLOADS}/{}/parts/{number}/url", upload.id);
        let body = PartUrlRequest { size_bytes: part.len() as u64, sha256: Sha256Digest::of(part).hex() };
        let answer = call(&alice.http, Method::POST, &url, Some(json!(body))).await;
        serde_json::from_slice(&answer.assert_status(200).body).unwrap()
    };
    let bucket = reqwest::Client::builder().no_proxy().build().unwrap();
    let send =
        async |place: &PartUrl, part: &Bytes| bucket.put(&place.url).body(part.clone()).send().await.unwrap();
    let place = ask(1, &parts[0]).await;
    assert_eq!(send(&place, &parts[0]).await.status(), 200);
    // Asked for, and never sent.
    ask(2, &parts[1]).await;

    let found = open(&alice.http, &path).await;

    assert_eq!((found.id, found.parts), (upload.id.clone(), vec![as_listed(1, &parts[0])]));
    let missing = complete(&alice.http, &upload.id, &completion(&path)).await;
    assert_problem(&missing, 422, "rejected", "part 2 of the upload: it is missing");
    let place = ask(2, &parts[1]).await;
    assert_eq!(send(&place, &parts[1]).await.status(), 200);
    // One goes through the server all the same.
    put_part(&alice.http, &upload.id, 3, &parts[2]).await.assert_status(200);
    complete(&alice.http, &upload.id, &completion(&path)).await.assert_status(204);
    assert_published(&server, &alice.http, &path).await;

    // A bucket is believed no more than a client.
    let other = large("other");
    let upload = open(&alice.http, &other).await;
    for (number, part) in (1..).zip(cut(&other.file)) {
        let url = format!("{UPLOADS}/{}/parts/{number}/url", upload.id);
        let body = PartUrlRequest { size_bytes: part.len() as u64, sha256: Sha256Digest::of(&part).hex() };
        let answer = call(&alice.http, Method::POST, &url, Some(json!(body))).await;
        let place: PartUrl = serde_json::from_slice(&answer.assert_status(200).body).unwrap();
        let lie = Bytes::from(vec![0; part.len()]);
        assert_eq!(send(&place, &lie).await.status(), 200);
    }
    let refused = complete(&alice.http, &upload.id, &completion(&other)).await;
    assert_problem(&refused, 422, "rejected", "neither a plain NAR");
    assert!(!is_stored(&alice.http, &other).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_parts_itself_gives_no_url() {
    // A folder has none to give, whatever the server is set to.
    let settings = [("NARVAULT_UPLOADS_DIRECT", "true")];
    let server = TestServer::start_with(Backend::SQLITE_DISK, &settings).await.unwrap();
    let alice = pusher(&server).await;
    let path = large("thing");
    let upload = open(&alice.http, &path).await;
    let body = json!(PartUrlRequest { size_bytes: 1, sha256: Sha256Digest::of(b"x").hex() });

    let refused =
        call(&alice.http, Method::POST, &format!("{UPLOADS}/{}/parts/1/url", upload.id), Some(body)).await;

    assert!(!upload.direct);
    assert_problem(&refused, 409, "state", "takes parts itself");
    server.stop().await;
}
