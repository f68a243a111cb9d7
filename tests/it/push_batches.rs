//! Many at once: a batch of NARs and a list of narinfos are taken as each of them would be taken alone, and a refused
//! one does not sink the others.

use bytes::Bytes;
use futures_util::stream;
use narvault::api::{
    BATCH_FILES_MAX, BATCH_MEDIA_TYPE, BATCH_SIZE_BYTES_MAX, NarFrame, NarStored, NarsStored,
    PUBLISH_PATHS_MAX, PathPublished, PublishAnswer, PublishOutcome, PublishRequest, Refused, RevokeRequest,
};
use narvault::db::{Db, DbSettings, log};
use reqwest::{Body, Method};
use tokio::sync::mpsc;

use crate::support::client::{Answer, Http, TestPath, Token, lines};
use crate::support::database::on_each_database;
use crate::support::server::{TestServer, on_each_backend};
use crate::support::until;

const NARS: &str = "/api/v1/caches/main/nars";
const PUBLISH: &str = "/api/v1/caches/main/publish";

async fn pusher(server: &TestServer) -> Token {
    server.token("alice", &["push:main"]).await
}

fn file_name(path: &TestPath) -> String {
    path.nar_url().strip_prefix("nar/").unwrap().to_owned()
}

fn frame(file: &str, bytes: &[u8]) -> Vec<u8> {
    let frame = NarFrame { file: file.to_owned(), size_bytes: bytes.len() as u64 };
    [&frame.line()[..], bytes].concat()
}

fn batch<'a>(paths: impl IntoIterator<Item = &'a TestPath>) -> Vec<u8> {
    paths.into_iter().flat_map(|path| frame(&file_name(path), &path.file)).collect()
}

async fn post_batch(http: &Http, body: impl Into<Body>) -> Answer {
    let request = http.request(Method::POST, NARS).header("content-type", BATCH_MEDIA_TYPE);
    Answer::of(request.body(body)).await
}

#[track_caller]
fn stored(answer: &Answer) -> Vec<NarStored> {
    let NarsStored { results } = serde_json::from_slice(&answer.assert_status(200).body).unwrap();
    results
}

#[track_caller]
fn assert_all_stored(answer: &Answer, paths: &[TestPath]) {
    let results = stored(answer);
    let files: Vec<_> = results.iter().map(|one| one.file.clone()).collect();
    assert_eq!(files, paths.iter().map(file_name).collect::<Vec<_>>());
    assert!(results.iter().all(|one| one.refused.is_none()), "{results:?}");
}

/// A refusal of the whole call.
#[track_caller]
fn assert_problem(answer: &Answer, status: u16, slug: &str) {
    let problem = answer.text().to_owned();
    assert_eq!(answer.status, status, "{problem}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(problem.contains(&format!("urn:narvault:problem:{slug}\"")), "{slug}: {problem}");
}

#[track_caller]
fn assert_refused(refused: Option<&Refused>, status: u16, slug: &str, text: &str) {
    let refused = refused.unwrap_or_else(|| panic!("not refused: {text}"));
    assert_eq!((refused.status, &*refused.kind), (status, &*format!("urn:narvault:problem:{slug}")));
    assert!(refused.detail.contains(text), "{text:?} is not in {:?}", refused.detail);
}

async fn publish(http: &Http, narinfos: Vec<String>) -> Answer {
    Answer::of(http.request(Method::POST, PUBLISH).json(&PublishRequest { narinfos })).await
}

#[track_caller]
fn published(answer: &Answer) -> Vec<PathPublished> {
    let PublishAnswer { results } = serde_json::from_slice(&answer.assert_status(200).body).unwrap();
    results
}

fn narinfos(paths: &[TestPath]) -> Vec<String> {
    paths.iter().map(TestPath::narinfo).collect()
}

fn paths(count: usize) -> Vec<TestPath> {
    (0..count).map(|number| TestPath::new(&format!("path-{number}"), format!("contents {number}"))).collect()
}

/// Each path refers to the one before it.
fn chain(length: usize) -> Vec<TestPath> {
    let mut chain: Vec<TestPath> = Vec::new();
    for number in 0..length {
        let below: Vec<&TestPath> = chain.last().into_iter().collect();
        chain.push(TestPath::with_references(&format!("link-{number}"), number.to_string(), &below));
    }
    chain
}

/// The same store path with other contents.
fn rival(path: &TestPath, contents: &str) -> TestPath {
    let mut rival = TestPath::new("rival", contents);
    rival.store_path = path.store_path.clone();
    rival
}

async fn is_stored(http: &Http, path: &TestPath) -> bool {
    match http.head(&format!("/push/main/{}", path.nar_url())).await.status {
        200 => true,
        404 => false,
        other => panic!("{other}"),
    }
}

/// The leaves of the signature log, as they lie in the database.
async fn leaves(server: &TestServer) -> Vec<String> {
    let settings = match server.site.database_url() {
        Some(url) => DbSettings::Postgres { url: url.parse().unwrap(), connections_max: 2 },
        None => DbSettings::Sqlite { path: server.site.data().join("narvault.db") },
    };
    let db = Db::open(&settings).await.unwrap();
    let leaves = log::leaves(&mut db.read().await.unwrap(), 0, 10_000).await.unwrap();
    db.close().await;
    leaves.into_iter().map(|(_, leaf)| leaf).collect()
}

on_each_backend! {
    async fn a_thousand_paths_take_two_calls(server: TestServer) {
        let alice = pusher(&server).await;
        let paths = paths(1_000);
        let client = server.client(&alice.text);

        let pieces = paths.iter().flat_map(|path| {
            [NarFrame { file: file_name(path), size_bytes: path.file.len() as u64 }.line(), path.file.clone()]
        });
        let started = std::time::Instant::now();
        let stored = client.nars("main", pieces.collect()).await.unwrap();
        let stored_after = started.elapsed();
        let answer = client.publish("main", &PublishRequest { narinfos: narinfos(&paths) }).await.unwrap();
        println!("1 000 paths: stored after {stored_after:?}, published after {:?}", started.elapsed());

        assert!(stored.results.iter().all(|one| one.refused.is_none()), "{stored:?}");
        let key_name = server.public_key.split(':').next().unwrap();
        for (path, result) in paths.iter().zip(&answer.results) {
            assert_eq!(result.store_path, path.store_path);
            assert_eq!(result.outcome, PublishOutcome::New, "{result:?}");
            assert_eq!(result.keys, [key_name]);
        }
        for path in paths.iter().step_by(97) {
            let narinfo = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
            assert!(lines(narinfo.assert_status(200).text(), "Sig")[0].starts_with(key_name));
            let nar = server.http().get(&format!("/main/{}", path.nar_url())).await;
            assert_eq!(nar.assert_status(200).body, path.file);
        }
        server.stop().await;
    }

    async fn a_batch_is_published_and_lies_in_storage_when_the_call_answers(server: TestServer) {
        let alice = pusher(&server).await;
        let chain = chain(20);

        assert_all_stored(&post_batch(&alice.http, batch(&chain)).await, &chain);
        for path in &chain {
            assert!(is_stored(&alice.http, path).await);
            server.http().get(&format!("/main/{}", path.nar_url())).await.assert_status(404);
        }
        let results = published(&publish(&alice.http, narinfos(&chain)).await);

        assert!(results.iter().all(|one| one.outcome == PublishOutcome::New), "{results:?}");
        let backlog = server.http().get("/metrics").await;
        assert!(backlog.text().contains("narvault_paths_published_total"), "{}", backlog.text());
        let again = published(&publish(&alice.http, narinfos(&chain)).await);
        for (result, first) in again.iter().zip(&results) {
            assert_eq!((result.outcome, &result.keys), (PublishOutcome::Again, &first.keys));
        }
        // Stored once more, nothing changes.
        assert_all_stored(&post_batch(&alice.http, batch(&chain)).await, &chain);
        server.stop().await;
    }

    async fn a_refused_file_does_not_sink_the_others(server: TestServer) {
        let alice = pusher(&server).await;
        let good = paths(3);
        let (a, b) = (good[0].file.clone(), good[1].file.clone());
        let zeros = "0".repeat(52);
        let mut damaged = b.to_vec();
        damaged[100] ^= 1;
        let mut body = frame(&file_name(&good[0]), &a);
        for (file, bytes) in [
            (format!("{zeros}.nar"), &a[..]),
            (file_name(&good[1]), &damaged),
            (format!("{zeros}.nar.xz"), &a),
            (format!("{zeros}.nar.lz4"), &a),
            ("../cluster".to_owned(), &a),
            (String::new(), &a),
            (format!("{zeros}.nar"), b""),
            (format!("{zeros}.nar"), &a[..a.len() - 8]),
        ] {
            body.extend(frame(&file, bytes));
        }
        body.extend(batch(&good[2..]));
        body.extend(frame(&file_name(&good[2]), &good[2].file));

        let results = stored(&post_batch(&alice.http, body).await);

        assert_eq!(results.len(), 11);
        let texts = [
            "its name says", "its name says", "file name says one compression", "use xz, zstd", "52 characters",
            "52 characters", "is empty", "ends too early",
        ];
        for (result, text) in results[1..9].iter().zip(texts) {
            assert_refused(result.refused.as_ref(), 422, "rejected", text);
        }
        for (path, at) in [(&good[0], 0), (&good[2], 9), (&good[2], 10)] {
            assert_eq!((&results[at].file, &results[at].refused), (&file_name(path), &None));
            assert!(is_stored(&alice.http, path).await);
        }
        assert!(!is_stored(&alice.http, &good[1]).await);
        server.stop().await;
    }

    async fn a_refused_path_does_not_sink_the_others(server: TestServer) {
        let (alice, bob) = (pusher(&server).await, server.token("bob", &["push:main"]).await);
        let chain = chain(4);
        let (lonely, absent) = (TestPath::new("lonely", "x"), TestPath::new("absent", "never sent"));
        let needs_absent = TestPath::with_references("needs-absent", "y", &[&absent]);
        let needs_it = TestPath::with_references("needs-it", "z", &[&needs_absent]);
        let other = rival(&lonely, "other contents");
        bob.http.push("main", &other).await;
        let sent = [&chain[0], &chain[1], &chain[2], &chain[3], &lonely, &needs_absent, &needs_it];
        let results = stored(&post_batch(&alice.http, batch(sent)).await);
        assert!(results.iter().all(|one| one.refused.is_none()), "{results:?}");
        let wrong_size = chain[3].narinfo().replace("NarSize: ", "NarSize: 1");

        let results = published(&publish(&alice.http, vec![
            chain[0].narinfo(), "nonsense".to_owned(), chain[1].narinfo(), absent.narinfo(), needs_absent.narinfo(),
            needs_it.narinfo(), lonely.narinfo(), chain[3].narinfo(), chain[2].narinfo(), wrong_size,
            chain[3].narinfo(), chain[0].narinfo(), other.narinfo(),
        ]).await);

        let outcomes: Vec<_> = results.iter().map(|one| one.outcome).collect();
        use PublishOutcome::{Again, New, Refused};
        assert_eq!(
            outcomes,
            [New, Refused, New, Refused, Refused, Refused, Refused, Refused, New, Refused, New, Again, Again],
            "{results:?}"
        );
        for (at, status, slug, text) in [
            (1, 422, "rejected", "narinfo"),
            (3, 422, "rejected", "was not uploaded"),
            (4, 422, "rejected", &*absent.store_path),
            (5, 422, "rejected", &*needs_absent.store_path),
            (6, 409, "conflicting-claim", &*lonely.store_path),
            (7, 422, "rejected", &*chain[2].store_path),
            (9, 422, "rejected", "NarSize"),
        ] {
            assert_refused(results[at].refused.as_ref(), status, slug, text);
            assert!(results[at].keys.is_empty());
        }
        assert_eq!(results[1].store_path, "");
        for path in &chain {
            server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(200);
        }
        for path in [&absent, &needs_absent, &needs_it] {
            server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
        }
        let view = server.admin().path("main", lonely.hash()).await.unwrap();
        assert_eq!(view.conflicts.len(), 1, "{view:?}");
        assert_eq!(view.conflicts[0].contributor, "alice");
        assert_eq!(view.evidence.iter().map(|one| &one.source[..]).collect::<Vec<_>>(), ["bob", "alice"]);
        let leaves = if server.site.storage_url().is_none() { leaves(&server).await } else { Vec::new() };
        for (event, count) in [("sign", 5), ("conflict", 1)] {
            let found = leaves.iter().filter(|leaf| leaf.contains(&format!("\nevent {event}\n"))).count();
            assert!(leaves.is_empty() || found == count, "{event}: {found}");
        }
        server.stop().await;
    }
}

on_each_database! {
    async fn what_is_no_batch_is_refused_whole(server: TestServer) {
        let alice = pusher(&server).await;
        let paths = paths(2);
        let good = batch(&paths);
        let line = |size| NarFrame { file: file_name(&paths[0]), size_bytes: size }.line();
        let lying = [&line(10)[..], &paths[0].file].concat();
        let greedy = [&line(1 << 20)[..], &paths[0].file].concat();
        let many = line(0).repeat(BATCH_FILES_MAX + 1);
        for (body, status, slug) in [
            (good[..good.len() - 1].to_vec(), 400, "bad-frames"),
            ([&good[..], b"{"].concat(), 400, "bad-frames"),
            ([&good[..], b"\n"].concat(), 400, "bad-frames"),
            ([&good[..], &[b' '; 300]].concat(), 400, "bad-frames"),
            (lying, 400, "bad-frames"),
            (greedy, 400, "bad-frames"),
            ([&good[..], &line(BATCH_SIZE_BYTES_MAX)].concat(), 413, "too-large"),
            ([&good[..], &line(u64::MAX)].concat(), 413, "too-large"),
            (vec![b'{'; BATCH_SIZE_BYTES_MAX as usize + 1], 413, "too-large"),
            (many, 422, "invalid-value"),
        ] {
            assert_problem(&post_batch(&alice.http, body).await, status, slug);
        }
        for path in &paths {
            assert!(!is_stored(&alice.http, path).await);
        }
        let request = alice.http.request(Method::POST, NARS).header("content-type", "application/json");
        assert_problem(&Answer::of(request.body(good)).await, 415, "media-type");
        assert!(stored(&post_batch(&alice.http, "").await).is_empty());
        server.stop().await;
    }

    async fn what_is_no_list_of_narinfos_is_refused_whole(server: TestServer) {
        let alice = pusher(&server).await;
        let ask = async |body: String| {
            let request = alice.http.request(Method::POST, PUBLISH).header("content-type", "application/json");
            Answer::of(request.body(body)).await
        };
        for (body, status, slug) in [
            ("".to_owned(), 400, "bad-json"),
            ("{}".to_owned(), 400, "bad-json"),
            (r#"{"narinfos":[1]}"#.to_owned(), 400, "bad-json"),
            (r#"{"narinfos":[],"more":1}"#.to_owned(), 400, "bad-json"),
            (format!(r#"{{"narinfos":["{}"]}}"#, "x".repeat(8 << 20)), 413, "too-large"),
        ] {
            assert_problem(&ask(body).await, status, slug);
        }
        let many = publish(&alice.http, vec![String::new(); PUBLISH_PATHS_MAX + 1]).await;
        assert_problem(&many, 422, "invalid-value");
        assert!(published(&publish(&alice.http, Vec::new()).await).is_empty());
        let large = published(&publish(&alice.http, vec!["x".repeat((1 << 20) + 1)]).await);
        assert_refused(large[0].refused.as_ref(), 413, "too-large", "1048576 bytes");
        server.stop().await;
    }

    async fn refusals_come_in_the_order_credential_right_sealed_content(server: TestServer) {
        let pull = server.token("bob", &["pull:main"]).await.http;
        let (alice, anyone) = (pusher(&server).await, server.http());
        for (http, cache, status, slug) in [
            (&anyone, "main", 401, "unauthenticated"),
            (&anyone, "nowhere", 401, "unauthenticated"),
            (&pull, "main", 403, "forbidden"),
            (&pull, "nowhere", 403, "forbidden"),
            (&alice.http, "nowhere", 403, "forbidden"),
        ] {
            for call in ["nars", "publish"] {
                let request = http.request(Method::POST, &format!("/api/v1/caches/{cache}/{call}"));
                assert_problem(&Answer::of(request.body("nonsense")).await, status, slug);
            }
        }
        server.admin().vault_seal().await.unwrap();
        for call in [NARS, PUBLISH] {
            let answer = Answer::of(alice.http.request(Method::POST, call).body("nonsense")).await;
            assert_problem(&answer, 503, "sealed");
            assert!(!answer.header("retry-after").is_empty());
        }
        server.stop().await;
    }

    async fn nothing_of_a_batch_is_kept_whose_token_is_revoked_meanwhile(server: TestServer) {
        let alice = pusher(&server).await;
        let paths = paths(3);
        let body = Bytes::from(batch(&paths));
        let (sending, pieces) = mpsc::channel::<std::io::Result<Bytes>>(1);
        let pieces = stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
        let http = alice.http.clone();
        let answer = tokio::spawn(async move { post_batch(&http, Body::wrap_stream(pieces)).await });
        // Two pieces: the second is taken once the server reads, which it does only after it has let it in.
        sending.send(Ok(body.slice(..10))).await.unwrap();
        sending.send(Ok(body.slice(10..body.len() / 2))).await.unwrap();
        sending.send(Ok(Bytes::new())).await.unwrap();

        let reason = RevokeRequest { reason: "stolen".to_owned(), keep_issued: false };
        server.admin().token_revoke(&alice.id, &reason).await.unwrap();
        let _ = sending.send(Ok(body.slice(body.len() / 2..))).await;
        drop(sending);

        assert_problem(&answer.await.unwrap(), 401, "unauthenticated");
        let witness = server.token("witness", &["push:main"]).await.http;
        for path in &paths {
            assert!(!is_stored(&witness, path).await);
        }
        let folder = server.site.data().join("storage/main/nar");
        assert!(std::fs::read_dir(&folder).is_err() || std::fs::read_dir(&folder).unwrap().count() == 0);
        server.stop().await;
    }

    async fn one_call_and_many_single_ones_at_the_same_time_agree(server: TestServer) {
        let (alice, bob) = (pusher(&server).await, server.token("bob", &["push:main"]).await);
        let paths = paths(150);
        assert_all_stored(&post_batch(&alice.http, batch(&paths)).await, &paths);
        let mut backwards = narinfos(&paths);
        backwards.reverse();

        let (forwards, backwards) =
            tokio::join!(publish(&alice.http, narinfos(&paths)), publish(&bob.http, backwards));

        let (forwards, mut backwards) = (published(&forwards), published(&backwards));
        backwards.reverse();
        for (one, other) in forwards.iter().zip(&backwards) {
            assert_eq!(one.store_path, other.store_path);
            assert!(
                (one.outcome == PublishOutcome::New) != (other.outcome == PublishOutcome::New),
                "{one:?} {other:?}"
            );
            assert!(one.refused.is_none() && other.refused.is_none(), "{one:?} {other:?}");
        }
        let signed = leaves(&server).await.into_iter().filter(|leaf| leaf.contains("\nevent sign\n"));
        assert_eq!(signed.count(), paths.len());
        for path in paths.iter().step_by(29) {
            let view = server.admin().path("main", path.hash()).await.unwrap();
            assert_eq!((view.evidence.len(), view.signatures.len()), (2, 1));
        }
        let folder = server.site.data().join("storage/main");
        until("all narinfos", async || {
            let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
            (names.filter(|name| name.to_string_lossy().ends_with(".narinfo")).count() == paths.len()).then_some(())
        })
        .await;
        server.stop().await;
    }
}
