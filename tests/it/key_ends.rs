//! How keys come and end: taken over, signing again, signatures dropped or purged, with realisations and all, while
//! servers are killed and replicas work side by side.

use narvault::api::{KeyCompromise, RotationCreate, RotationView};
use narvault::nix::realisation::{Realisation, RealisationKey};
use narvault::nix::signature::PublicKey;
use narvault::succession::Chain;
use narvault::tlog::leaf::Event;
use serde_json::json;

use crate::key_rotation::leaves;
use crate::support::client::{Http, TestPath, base_name, lines};
use crate::support::server::{Backend, TestServer, on_each_backend};
use crate::support::until;

/// Published and signing at once, and retired as soon as that may be.
fn at_once() -> RotationCreate {
    RotationCreate { publish_days: Some(0), wait_days: Some(0), ..RotationCreate::default() }
}

async fn reaches(server: &TestServer, step: &str) -> RotationView {
    until(&format!("step {step}"), async || {
        let rotation = server.admin().key_rotation("main").await.ok()?;
        (rotation.step == step).then_some(rotation)
    })
    .await
}

/// Names and states of the cache's keys, in the order in which they were made.
async fn keys(server: &TestServer) -> Vec<(String, String)> {
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    keys.into_iter().map(|key| (key.name, key.state)).collect()
}

/// The objects of an output's entry in both generations of Nix.
fn entries(number: u64) -> [String; 2] {
    [
        format!("realisations/sha256:{number:064x}!out.doi"),
        format!("build-trace-v2/{number:032}-thing.drv/out.doi"),
    ]
}

/// Pushes them, as Nix would.
async fn push_entries(alice: &Http, number: u64, output: &TestPath) {
    for object in entries(number) {
        let mut body = json!({ "outPath": base_name(&output.store_path), "signatures": [] });
        if let Some(id) = object.strip_prefix("realisations/").and_then(|file| file.strip_suffix(".doi")) {
            body["id"] = json!(id);
            body["dependentRealisations"] = json!({});
        }
        alice.put(&format!("/push/main/{object}"), body.to_string()).await.assert_status(201);
    }
}

/// The names of the keys that have signed everything, by valid signatures, where it is served and in storage.
async fn signers(server: &TestServer, paths: &[TestPath], numbers: std::ops::Range<u64>) -> Vec<String> {
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    let keys: Vec<PublicKey> = keys.iter().map(|key| key.public_key.parse().unwrap()).collect();
    let storage = server.site.storage().await;
    let mut all: Option<Vec<String>> = None;
    let mut objects: Vec<String> = paths.iter().map(|path| format!("{}.narinfo", path.hash())).collect();
    objects.extend(numbers.flat_map(entries));
    for object in objects {
        let served = server.http().get(&format!("/main/{object}")).await;
        let stored = storage.read(&format!("main/{object}").parse().unwrap(), 1 << 20).await.unwrap();
        assert_eq!(stored.as_ref(), Some(&served.assert_status(200).body), "{object}");
        let names = match object.parse::<RealisationKey>() {
            Ok(key) => {
                let entry = Realisation::parse(key, &served.body).unwrap();
                for signature in &entry.signatures {
                    let is_valid = |key: &PublicKey| key.verify(entry.fingerprint().as_bytes(), signature);
                    assert!(keys.iter().any(is_valid), "{signature} on {object}");
                }
                entry.signatures.iter().map(|one| one.name.to_string()).collect()
            }
            Err(_) => {
                let of = |line: &&str| line.split(':').next().unwrap().to_owned();
                lines(served.text(), "Sig").iter().map(of).collect::<Vec<_>>()
            }
        };
        assert_eq!(*all.get_or_insert_with(|| names.clone()), names, "{object} is signed by others");
    }
    all.unwrap()
}

on_each_backend! {
    async fn realisations_go_along_with_all_that_happens_to_a_key(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await.http;
        let paths: Vec<TestPath> = (0..2).map(|number| TestPath::new("path", number.to_string())).collect();
        for (number, path) in (0..).zip(&paths) {
            alice.push("main", path).await;
            push_entries(&alice, number, path).await;
        }
        let first = keys(&server).await[0].0.clone();
        assert_eq!(signers(&server, &paths, 0..2).await, std::slice::from_ref(&first));

        let asked = RotationCreate { wait_days: Some(30), ..at_once() };
        let second = server.admin().key_rotate("main", &asked).await.unwrap().new_key.unwrap();
        reaches(&server, "wait").await;
        push_entries(&alice, 2, &paths[0]).await;
        assert_eq!(signers(&server, &paths, 0..3).await, [first.clone(), second.clone()]);
        let alone = server.narvault(["key", "destroy", "main", &first, "--yes"]).await;
        assert_eq!(alone.code, Some(4), "{}", alone.stderr);
        server.admin().key_retire("main", &first).await.unwrap();
        let dropped = server.narvault(["key", "drop-signatures", "main", &first]).await;
        assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
        reaches(&server, "done").await;
        assert_eq!(signers(&server, &paths, 0..3).await, std::slice::from_ref(&second));
        server.admin().key_destroy("main", &first).await.unwrap();

        let body = KeyCompromise { reason: "the host was broken into".to_owned() };
        let third = server.admin().key_compromise("main", &second, &body).await.unwrap().new_key.unwrap();
        let done = reaches(&server, "done").await;

        // Two paths and six entries were looked through.
        assert_eq!((done.refused, done.done), (0, 8));
        assert_eq!(signers(&server, &paths, 0..3).await, [third]);
        let unlogged = server.admin().key_unlogged("main", &second, &Default::default()).await.unwrap();
        assert!(unlogged.items.is_empty(), "{:?}", unlogged.items);
        server.admin().key_destroy("main", &second).await.unwrap();
        let verified = server.narvault(["log", "verify"]).await;
        assert_eq!(verified.code, Some(0), "{}", verified.stderr);
        server.stop().await;
    }

    async fn keys_are_taken_over_listed_and_ended_by_the_commands(server: TestServer) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file.display().to_string()
        };
        let own = genuine("imported-1");
        let mut other = own.0.clone().into_bytes();
        let at = other.len() - 10;
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        let first = keys(&server).await[0].0.clone();
        for (name, text, why) in [
            ("empty", "", "is empty"),
            ("of-two-keys", std::str::from_utf8(&other).unwrap(), "is not the one that its seed makes"),
            ("public", own.1.as_str(), "import"),
            ("unnamed", own.0.split_once(':').unwrap().1, "import"),
        ] {
            let ended = server.narvault(["key", "import", "main", "--file", &write(name, text)]).await;

            assert_ne!(ended.code, Some(0), "{name}");
            assert!(ended.stderr.contains(why), "{name}: {why:?} is not in {}", ended.stderr);
            assert!(!ended.stderr.contains(&own.0[12..40]), "{name}: {}", ended.stderr);
        }
        let file = write("genuine", &format!("{}\n", own.0));
        let imported = server.narvault(["key", "import", "main", "--next", "--file", &file]).await;
        assert_eq!((imported.code, imported.stdout.trim()), (Some(0), own.1.as_str()), "{}", imported.stderr);
        let again = server.narvault(["key", "import", "main", "--file", &file]).await;
        assert_eq!(again.code, Some(4), "{}", again.stderr);
        let listed = server.narvault(["key", "list", "main"]).await;
        let line = listed.stdout.lines().find(|line| line.contains(&own.1)).expect("it is not listed");
        assert!(line.contains("next") && line.contains("imported"), "{line}");

        for (arguments, code, why) in [
            (vec!["key", "resign", "main", "imported-1"], 4, "the key does not sign"),
            (vec!["key", "resign", "main", "nobody-1"], 1, "no such key"),
            (vec!["key", "resign", "other", "imported-1"], 1, "no such cache"),
            (vec!["key", "drop-signatures", "main", "imported-1"], 4, "only a retired key"),
            (vec!["key", "drop-signatures", "main", "nobody-1"], 1, "no such key"),
            (vec!["key", "list", "other"], 1, "no such cache"),
        ] {
            let ended = server.narvault(&arguments).await;
            assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(why), "{arguments:?}: {why:?} is not in {}", ended.stderr);
        }
        let alice = server.token("alice", &["push:main"]).await;
        let path = TestPath::new("path", "path");
        alice.http.push("main", &path).await;
        push_entries(&alice.http, 0, &path).await;
        // Whoever may push may not touch keys.
        let pusher = server.client(&alice.text);
        for refused in [
            pusher.key_resign("main", &first).await.map(drop),
            pusher.key_drop_signatures("main", &first).await.map(drop),
            pusher.key_retire("main", &first).await.map(drop),
            pusher.key_promote("main", "imported-1").await.map(drop),
            pusher.key_destroy("main", &first).await.map(drop),
            pusher.key_create("main", &Default::default()).await.map(drop),
            pusher.key_rotate("main", &at_once()).await.map(drop),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), narvault::client::ErrorKind::NotAuthorised, "{error}");
        }

        assert_eq!(server.narvault(["key", "promote", "main", "imported-1"]).await.code, Some(0));
        let resigned = server.narvault(["key", "resign", "main", "imported-1"]).await;
        assert!(resigned.stdout.contains("kind:") && resigned.stdout.contains("resign"), "{}", resigned.stdout);
        let followed = server.narvault(["key", "schedule", "main", "--follow"]).await;
        assert_eq!(followed.code, Some(0), "{}", followed.stderr);
        assert_eq!(signers(&server, std::slice::from_ref(&path), 0..1).await, ["imported-1".to_owned(), first.clone()]);
        assert_eq!(server.narvault(["key", "retire", "main", &first]).await.code, Some(0));
        let dropped = server.narvault(["key", "drop-signatures", "main", &first]).await;
        assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
        reaches(&server, "done").await;
        assert_eq!(signers(&server, std::slice::from_ref(&path), 0..1).await, ["imported-1"]);
        assert_eq!(server.narvault(["key", "destroy", "main", &first, "--yes"]).await.code, Some(0));
        let listed = server.narvault(["key", "list", "main", "--json"]).await;
        let states: Vec<(String, String)> = keys(&server).await;
        assert_eq!(states, [(first, "destroyed".to_owned()), ("imported-1".to_owned(), "active".to_owned())]);
        assert!(listed.stdout.contains("\"imported\":true"), "{}", listed.stdout);
        server.stop().await;
    }

    async fn a_wait_that_is_shorter_than_the_memory_of_clients_is_warned_of(server: TestServer) {
        for (days, warns) in [("29", true), ("0", true), ("30", false)] {
            let ended = server.narvault(["key", "rotate", "main", "--wait-days", days]).await;

            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let words = format!("warning: the old key retires {days} days after everything is signed again");
            assert_eq!(ended.stderr.contains(&words), warns, "{days}: {}", ended.stderr);
            assert_eq!(ended.stderr.contains("up to 30 days"), warns, "{days}: {}", ended.stderr);
            assert_eq!(server.narvault(["key", "abandon", "main", "--yes"]).await.code, Some(0));
            assert_eq!(keys(&server).await.last().unwrap().1, "next");
        }
        // By the server's own setting, too.
        let ended = server.narvault(["key", "rotate", "main"]).await;
        assert!(ended.code == Some(0) && !ended.stderr.contains("warning"), "{}", ended.stderr);
        server.stop().await;
    }
}

/// A key as `nix key generate-secret` prints one, and its public half.
fn genuine(name: &str) -> (String, String) {
    use data_encoding::BASE64;
    let seed = *b"a seed that is of no use at all!";
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    let pair = [&seed[..], public.as_bytes()].concat();
    (format!("{name}:{}", BASE64.encode(&pair)), format!("{name}:{}", BASE64.encode(public.as_bytes())))
}

/// So many paths and entries, pushed by several clients at once.
async fn fill(server: &TestServer, count: u64) -> Vec<TestPath> {
    let alice = server.token("alice", &["push:main"]).await.http;
    let paths: Vec<TestPath> = (0..count)
        .map(|number| TestPath::new("path", format!("{:?} {number}", server.site.backend)))
        .collect();
    let shares = paths.chunks(20).enumerate().map(|(share, paths)| {
        let (alice, paths) = (alice.clone(), paths.to_vec());
        tokio::spawn(async move {
            for path in &paths {
                alice.push("main", path).await;
            }
            push_entries(&alice, share as u64, &paths[0]).await;
        })
    });
    for share in shares.collect::<Vec<_>>() {
        share.await.unwrap();
    }
    paths
}

/// Kills the server at some points of what it does until `step`.
async fn killed_until(
    server: &mut TestServer,
    settings: &[(&str, &str)],
    at: &[u64],
    step: &str,
) -> RotationView {
    for wanted in at {
        until("some work to be done", async || {
            let rotation = server.admin().key_rotation("main").await.ok()?;
            (rotation.done >= *wanted || rotation.step == step).then_some(())
        })
        .await;
        server.restart_after_kill(settings).await;
    }
    reaches(server, step).await
}

/// Signatures leave, by a compromise and by being dropped, though the server is killed again and again.
async fn a_server_that_is_killed_goes_on(backend: Backend) {
    // What a killed server was about to write is left alone for as long as it might still land: half a minute, with
    // this patience.
    let settings =
        [("NARVAULT_KEYS_RESIGN_PATHS_PER_SECOND", "25"), ("NARVAULT_STORAGE_TIMEOUT_SECONDS", "5")];
    let Some(mut server) = TestServer::spawn(backend, &settings).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let paths = fill(&server, 60).await;
    let first = keys(&server).await[0].0.clone();
    let body = KeyCompromise { reason: "the host was broken into".to_owned() };
    let second = server.admin().key_compromise("main", &first, &body).await.unwrap().new_key.unwrap();

    let done = killed_until(&mut server, &settings, &[5, 30, 55], "done").await;

    assert_eq!(done.refused, 0);
    assert_eq!(signers(&server, &paths, 0..3).await, std::slice::from_ref(&second));
    let third = server.admin().key_rotate("main", &at_once()).await.unwrap().new_key.unwrap();
    // What clients are to be told may be on its way to storage.
    server.restart_after_kill(&settings).await;
    reaches(&server, "done").await;
    assert_eq!(keys(&server).await[1], (second.clone(), "retired".to_owned()));
    let storage = server.site.storage().await;
    until("both statements to be in storage", async || {
        let stored = storage.read(&"main/key-succession".parse().unwrap(), 1 << 20).await.unwrap()?;
        let told = server.http().get("/main/key-succession").await;
        let both = Chain::parse(&stored).unwrap().head() == 2;
        (both && stored == told.assert_status(200).body).then_some(())
    })
    .await;
    server.admin().key_drop_signatures("main", &second).await.unwrap();
    killed_until(&mut server, &settings, &[5, 40], "done").await;
    assert_eq!(signers(&server, &paths, 0..3).await, [third]);
    server.admin().key_destroy("main", &second).await.unwrap();
    let verified = server.narvault(["log", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_purging_and_dropping_on_sqlite_and_disk() {
    a_server_that_is_killed_goes_on(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_goes_on_purging_and_dropping_on_postgres_and_s3() {
    a_server_that_is_killed_goes_on(Backend::POSTGRES_S3).await;
}

/// Two replicas at work on one purge, then on one drop: everything is done, and nothing twice.
async fn two_replicas_share_it(backend: Backend) {
    let settings = [("NARVAULT_KEYS_RESIGN_PATHS_PER_SECOND", "20")];
    let Some(server) = TestServer::spawn(backend, &settings).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let _other = server.site.spawn(&settings).await;
    let paths = fill(&server, 60).await;
    let first = keys(&server).await[0].0.clone();
    let body = KeyCompromise { reason: "the host was broken into".to_owned() };

    let second = server.admin().key_compromise("main", &first, &body).await.unwrap().new_key.unwrap();
    let done = reaches(&server, "done").await;

    assert_eq!(done.refused, 0);
    assert_eq!(signers(&server, &paths, 0..3).await, std::slice::from_ref(&second));
    // A leaf each for 60 paths and 6 entries, by each of the two keys.
    assert_eq!(signed_by(&server, &second, 66).await, 66);
    let third = server.admin().key_rotate("main", &at_once()).await.unwrap().new_key.unwrap();
    reaches(&server, "done").await;
    server.admin().key_drop_signatures("main", &second).await.unwrap();
    reaches(&server, "done").await;
    assert_eq!(signers(&server, &paths, 0..3).await, std::slice::from_ref(&third));
    assert_eq!((signed_by(&server, &third, 66).await, signed_by(&server, &second, 66).await), (66, 66));
    server.stop().await;
}

/// How many leaves of the log are of signatures by this key, once there are as many.
async fn signed_by(server: &TestServer, key: &str, expected: usize) -> usize {
    // The published log is a second behind.
    until("the leaves", async || {
        let signed = leaves(server).await.into_iter().filter(|leaf| match &leaf.event {
            Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed) => {
                signed.key.as_str() == key
            }
            _ => false,
        });
        let count = signed.count();
        (count >= expected).then_some(count)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_purge_and_drop_everything_once_on_postgres_and_disk() {
    two_replicas_share_it(Backend::POSTGRES_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_purge_and_drop_everything_once_on_postgres_and_real_s3() {
    two_replicas_share_it(Backend::POSTGRES_REAL_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_signing_again_is_can_be_seen() {
    let settings = [("NARVAULT_KEYS_RESIGN_PATHS_PER_SECOND", "10")];
    let server = TestServer::spawn(Backend::SQLITE_DISK, &settings).await.unwrap();
    fill(&server, 40).await;
    let metric = async |name: &str| -> u64 {
        let metrics = server.http().get("/metrics").await;
        let value = metrics.text().lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.map_or(0, |value| value.parse().unwrap())
    };
    server.admin().key_rotate("main", &RotationCreate { wait_days: Some(30), ..at_once() }).await.unwrap();

    let mut seen = std::collections::BTreeSet::new();
    until("the end", async || {
        seen.insert(metric("narvault_rotation_left").await);
        (server.admin().key_rotation("main").await.unwrap().step == "wait").then_some(())
    })
    .await;

    // Forty paths and four entries, ten at a time.
    assert!(seen.iter().any(|left| (1..44).contains(left)), "{seen:?}");
    assert_eq!((metric("narvault_rotation_left").await, metric("narvault_resigned_total").await), (0, 44));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_a_bar_shows_how_far_it_is() {
    let settings = [("NARVAULT_KEYS_RESIGN_PATHS_PER_SECOND", "10")];
    let server = TestServer::spawn(Backend::SQLITE_DISK, &settings).await.unwrap();
    fill(&server, 40).await;
    server.admin().key_rotate("main", &RotationCreate { wait_days: Some(30), ..at_once() }).await.unwrap();
    reaches(&server, "resign").await;
    let home = tempfile::tempdir().unwrap();
    let follow = format!("stty cols 100; '{}' key schedule main --follow", env!("CARGO_BIN_EXE_narvault"));
    let mut terminal = tokio::process::Command::new("script");
    terminal.args(["-qfec", &follow, "/dev/null"]).current_dir(home.path()).kill_on_drop(true);
    terminal.env("HOME", home.path()).env("NARVAULT_URL", &server.url).env("TERM", "xterm");
    terminal.env("NARVAULT_TOKEN", server.admin_token()).stdin(std::process::Stdio::null());

    let Ok(output) = terminal.output().await else { return println!("skipped: there is no `script` here") };

    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    for part in ["/44", "resign: ", "wait     since"] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    server.stop().await;
}
