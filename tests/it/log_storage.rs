//! `narvault log audit` holds a bucket against the log both ways, from a machine that has neither database nor login.

use std::time::Duration;

use narvault::api::{CacheEdit, PathDelete};
use serde_json::{Value, json};

use crate::support::client::TestPath;
use crate::support::server::{Ended, Site, TestServer, on_each_backend};
use crate::support::storage::{key, narinfo, read};
use crate::support::until;

/// The bucket, or the folder, that a server keeps everything in.
fn place(site: &Site) -> String {
    site.storage_url().unwrap_or_else(|| site.data().join("storage").display().to_string())
}

/// Audits with nothing but these arguments and the credentials of the bucket.
async fn audit(site: &Site, arguments: &[&str]) -> (Ended, Value) {
    let mut command = site.command(&[]);
    command.env("HOME", site.data().join("nobody")).args(["log", "audit", "--json", "--wait", "1s"]);
    command.args(arguments);
    let ended = Ended::of(command).await;
    let answer = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    (ended, answer)
}

/// Kind and text of every finding.
fn findings((ended, answer): &(Ended, Value)) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found = answer["findings"].as_array().unwrap().iter();
    let found: Vec<_> = found.map(|one| (text(&one["kind"]), text(&one["what"]))).collect();
    assert_eq!(ended.code, Some(if found.is_empty() { 0 } else { 4 }), "{ended:?}");
    found
}

/// What is found, each with the object that it is about.
fn check(answered: &(Ended, Value), expected: &[(&str, &str)]) {
    let mut found = findings(answered);
    found.sort();
    let objects: Vec<_> =
        found.iter().map(|(kind, what)| (kind.as_str(), what.split(": ").next().unwrap())).collect();
    assert_eq!(objects, expected, "{found:?}");
}

/// The name of a build trace entry, and what is put there.
fn entry(path: &TestPath) -> (String, String) {
    let id = format!("sha256:{}!out", "0a".repeat(32));
    let out = &path.store_path["/nix/store/".len()..];
    let body = format!(r#"{{"id":"{id}","outPath":"{out}","dependentRealisations":{{}},"signatures":[]}}"#);
    (format!("realisations/{id}.doi"), body)
}

/// A server with three paths, one of them in a private cache, and a build trace entry, all of it in the published log.
/// Also the log's key.
async fn filled(server: &TestServer) -> ([TestPath; 3], String) {
    let body = serde_json::from_value(json!({ "name": "secret", "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    server.admin().key_create("secret", &Default::default()).await.unwrap();
    let ci = server.token("ci", &["push:main", "push:secret"]).await;
    let hello = TestPath::new("hello", "hello");
    let world = TestPath::with_references("world", "world", &[&hello]);
    let unheard = TestPath::new("unheard-of", "x");
    ci.http.push("main", &hello).await;
    ci.http.push("main", &world).await;
    ci.http.push("secret", &unheard).await;
    let (name, body) = entry(&hello);
    ci.http.put(&format!("/push/main/{name}"), body).await.assert_status(201);
    until("a checkpoint", async || {
        (server.http().get("/api/v1/log/checkpoint").await.status == 200).then_some(())
    })
    .await;
    let key = server.http().get("/api/v1/log/key").await.text().trim_end().to_owned();
    let place = place(&server.site);
    until("the log and the bucket to agree on all of it", async || {
        let (ended, answer) = audit(&server.site, &[&place, "--log-key", &key]).await;
        let all = answer["narinfos"] == 2 && answer["realisations_verified"] == 1 && answer["hidden"] == 1;
        (ended.code == Some(0) && all).then_some(())
    })
    .await;
    ([hello, world, unheard], key)
}

on_each_backend! {
    async fn a_bucket_alone_is_held_against_its_log_both_ways(server: TestServer) {
        let ([hello, world, unheard], log_key) = filled(&server).await;
        let storage = server.site.storage().await;
        let place = place(&server.site);
        let arguments = [place.as_str(), "--log-key", &log_key];
        let gone = read(&storage, &narinfo("main", &world)).await;

        // What is signed by nobody, and what is not there.
        let stray = TestPath::new("stray", "x");
        let stray_object = narinfo("main", &stray);
        storage.put(&key(&stray_object), stray.narinfo().into()).await.unwrap();
        storage.delete(&key(&narinfo("main", &world)), Duration::from_secs(5)).await.unwrap();
        let nar = format!("secret/{}", unheard.nar_url());
        storage.put(&key(&nar), unheard.file.slice(1..)).await.unwrap();
        let (trace, _) = entry(&hello);
        let trace = format!("main/{trace}");
        let sound = read(&storage, &trace).await;
        let other = &world.store_path["/nix/store/".len()..];
        let changed = sound.replace(&hello.store_path["/nix/store/".len()..], other);
        assert_ne!(changed, sound);
        storage.put(&key(&trace), changed.into()).await.unwrap();
        let answered = audit(&server.site, &arguments).await;
        check(&answered, &[
            ("entry-differs", &trace),
            ("nar-differs", &narinfo("secret", &unheard)),
            ("nar-missing", &stray_object),
            ("narinfo-missing", &narinfo("main", &world)),
            ("narinfo-unaccounted", &stray_object),
        ]);
        assert_eq!(answered.1["realisations_verified"], 0);
        // None of which is in the log.
        check(&audit(&server.site, &[&place, "--log-key", &log_key, "--log-only"]).await, &[]);
        storage.delete(&key(&stray_object), Duration::from_secs(5)).await.unwrap();
        storage.put(&key(&nar), unheard.file.clone()).await.unwrap();
        storage.put(&key(&narinfo("main", &world)), gone.clone().into()).await.unwrap();

        // An entry may go: nothing says that it stays. Its signature is not verified then, which is told.
        storage.delete(&key(&trace), Duration::from_secs(5)).await.unwrap();
        let answered = audit(&server.site, &arguments).await;
        check(&answered, &[]);
        assert_eq!((&answered.1["realisations"], &answered.1["realisations_verified"]), (&json!(1), &json!(0)));

        // What was taken away, and was put back past the server.
        let reason = PathDelete { reason: "gone".into() };
        assert!(server.admin().path_delete("main", world.hash(), &reason).await.unwrap().gone);
        storage.put(&key(&narinfo("main", &world)), gone.into()).await.unwrap();
        let found = until("the deletion to be published", async || {
            let answered = audit(&server.site, &arguments).await;
            (answered.1["events"]["delete"] == 1).then_some(answered)
        })
        .await;
        // Its NAR goes too, sooner or later.
        let found = findings(&found);
        let object = narinfo("main", &world);
        assert!(found.iter().any(|(kind, _)| kind == "narinfo-withdrawn"), "{found:?}");
        assert!(found.iter().all(|(_, what)| what.starts_with(&object)), "{found:?}");
    }

    async fn what_a_private_cache_lacks_is_found_by_who_may_pull_from_it(server: TestServer) {
        let ([_, _, unheard], _) = filled(&server).await;
        let storage = server.site.storage().await;
        let place = place(&server.site);
        let as_one = async |token: &str, done: &dyn Fn(&Value) -> bool| {
            until("the log to be as far", async || {
                let mut command = server.site.command(&[]);
                command.env("NARVAULT_URL", &server.url).env("NARVAULT_TOKEN", token);
                command.args(["log", "audit", &server.url, "--storage", &place, "--json", "--wait", "1s"]);
                let ended = Ended::of(command).await;
                let answer = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
                done(&answer).then_some((ended, answer))
            })
            .await
        };
        let object = narinfo("secret", &unheard);
        let sound = read(&storage, &object).await;
        let reader = server.token("reader", &["pull:secret"]).await;
        let other = server.token("other", &["pull:main"]).await;
        let any = |_: &Value| true;
        let answered = as_one(&reader.text, &any).await;
        check(&answered, &[]);
        assert_eq!((&answered.1["narinfos"], &answered.1["hidden"]), (&json!(3), &json!(0)));

        storage.delete(&key(&object), Duration::from_secs(5)).await.unwrap();
        check(&as_one(&reader.text, &any).await, &[("narinfo-missing", &object)]);
        check(&as_one(&other.text, &any).await, &[]);

        // Taken away in order, and put back past the server.
        let words = ["path", "quarantine", "secret", unheard.hash(), "--reason", "under suspicion"];
        assert_eq!(server.narvault(words).await.code, Some(0));
        let withdrawn = |answer: &Value| answer["events"]["withdraw"] == 1;
        check(&as_one(&reader.text, &withdrawn).await, &[]);
        storage.put(&key(&object), sound.into()).await.unwrap();
        check(&as_one(&reader.text, &withdrawn).await, &[("narinfo-withdrawn", &object)]);
        check(&as_one(&other.text, &withdrawn).await, &[]);
        let words = ["path", "restore", "secret", unheard.hash(), "--reason", "false alarm"];
        assert_eq!(server.narvault(words).await.code, Some(0));
        let restored = |answer: &Value| answer["events"]["restore"] == 1;
        let answered = as_one(&reader.text, &restored).await;
        check(&answered, &[]);
        assert_eq!(answered.1["narinfos"], 3);
    }

    async fn a_cache_that_became_private_is_told_of_once_to_who_may_not_pull_from_it(server: TestServer) {
        filled(&server).await;
        let reader = server.token("reader", &["pull:main"]).await;
        let as_one = async |token: Option<&str>| {
            let mut command = server.site.command(&[]);
            command.args(["log", "audit", &server.url, "--storage", &server.url, "--json", "--wait", "1s"]);
            command.env("NARVAULT_URL", &server.url).envs(token.map(|token| ("NARVAULT_TOKEN", token)));
            let ended = Ended::of(command).await;
            let answer = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
            (ended, answer)
        };
        check(&as_one(None).await, &[]);

        let private = CacheEdit { public: Some(false), ..CacheEdit::default() };
        server.admin().cache_edit("main", &private).await.unwrap();

        let answered = as_one(None).await;
        check(&answered, &[("cache-hidden", "main")]);
        assert!(findings(&answered)[0].1.contains("2 paths were not looked at"), "{answered:?}");
        check(&as_one(Some(&reader.text)).await, &[]);
    }

    async fn what_nix_does_not_sign_is_looked_at_too(server: TestServer) {
        let ([hello, ..], log_key) = filled(&server).await;
        let storage = server.site.storage().await;
        let place = place(&server.site);
        let object = narinfo("main", &hello);
        let sound = read(&storage, &object).await;
        for (from, to) in [
            ("Compression: none", "Compression: xz"),
            ("FileHash: sha256:", "FileHash: sha256:0"),
            ("URL: nar/", "URL: nar/0"),
            ("StorePath:", "CA: text:sha256:0\nStorePath:"),
        ] {
            let changed = sound.replace(from, to);
            assert_ne!(changed, sound, "{from}");
            storage.put(&key(&object), changed.into()).await.unwrap();

            let answered = audit(&server.site, &[&place, "--log-key", &log_key]).await;

            let found = findings(&answered);
            assert!(found.iter().any(|(kind, _)| kind == "narinfo-differs"), "{to}: {found:?}");
            assert!(found.iter().all(|(_, what)| what.starts_with(&object)), "{to}: {found:?}");
        }
    }

    async fn a_server_that_cannot_be_listed_is_asked_for_what_its_leaves_tell_of(server: TestServer) {
        let ([hello, world, _], log_key) = filled(&server).await;
        let mirror = server.site.data().join("mirror").display().to_string();
        let mut command = server.site.command(&[]);
        command.args(["log", "mirror", &mirror, "--from", &server.url]);
        assert_eq!(Ended::of(command).await.code, Some(0));
        let arguments = [mirror.as_str(), "--log-key", &log_key, "--storage", &server.url];

        let answered = audit(&server.site, &arguments).await;
        check(&answered, &[]);
        assert_eq!(answered.1["narinfos"], 2);

        // By the leaves of the mirror, which stays as it is, the path is to be served.
        let reason = PathDelete { reason: "gone".into() };
        server.admin().path_delete("main", world.hash(), &reason).await.unwrap();
        let answered = audit(&server.site, &arguments).await;
        check(&answered, &[("narinfo-missing", &narinfo("main", &world))]);
        assert_eq!(answered.1["narinfos"], 1);
        assert_ne!(hello.hash(), world.hash());
    }
}

#[tokio::test]
async fn a_storage_that_is_not_there_is_told() {
    let site = Site::new(crate::support::server::Backend::SQLITE_DISK).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    crate::support::log::publish(folder.path(), 1, crate::support::log::first_leaves());
    let log = folder.path().to_str().unwrap();
    for (storage, code) in [("/nowhere", 2), ("s3://", 1), ("http://127.0.0.1:1", 0)] {
        let mut command = site.command(&[]);
        command.args(["log", "audit", log, "--storage", storage]);

        let ended = Ended::of(command).await;

        assert_eq!(ended.code, Some(code), "{storage}: {ended:?}");
    }
}
