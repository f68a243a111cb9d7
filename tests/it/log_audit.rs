//! `narvault log audit` reads a log critically, from a machine that has nothing but the log's address.

use std::fs;
use std::path::Path;

use narvault::api::RevokeRequest;
use narvault::tlog::leaf::{ClaimLines, Event};
use serde_json::{Value, json};

use crate::support::client::TestPath;
use crate::support::log::{self, TOKEN, claim, first_leaves, honest, sign_leaf};
use crate::support::server::{Ended, TestServer, narvault, on_each_backend};
use crate::support::until;

/// Runs `narvault log …` on a machine that knows nobody.
async fn run(arguments: &[&str]) -> Ended {
    let home = tempfile::tempdir().unwrap();
    let mut command = narvault();
    command.arg("log").args(arguments).env("HOME", home.path()).current_dir(home.path());
    Ended::of(command).await
}

fn answer(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// Kind and leaf of everything that an audit finds in `folder`.
async fn findings(folder: &Path) -> Vec<(String, Option<u64>)> {
    let ended = run(&["audit", folder.to_str().unwrap(), "--json"]).await;
    let answer = answer(&ended);
    let found = answer["findings"].as_array().unwrap().iter();
    let found: Vec<_> =
        found.map(|one| (one["kind"].as_str().unwrap().to_owned(), one["index"].as_u64())).collect();
    assert_eq!(ended.code, Some(if found.is_empty() { 0 } else { 4 }), "{ended:?}");
    assert_eq!(answer["finding_count"], json!(found.len()));
    found
}

/// The same, of a log of these leaves.
async fn check(leaves: Vec<String>, expected: &[(&str, u64)]) {
    let folder = tempfile::tempdir().unwrap();
    log::publish(folder.path(), 1, leaves);
    let expected: Vec<_> = expected.iter().map(|(kind, index)| ((*kind).to_owned(), Some(*index))).collect();
    assert_eq!(findings(folder.path()).await, expected);
}

fn log_of(count: u64) -> Vec<String> {
    first_leaves().into_iter().chain((0..count).map(honest)).collect()
}

#[tokio::test]
async fn an_honest_log_in_a_folder_has_no_findings() {
    check(log_of(700), &[]).await;
    check(log_of(254), &[]).await;
    check(vec![], &[]).await;
}

#[tokio::test]
async fn what_a_log_must_not_hold_is_found() {
    let with = |more: Vec<String>| log_of(300).into_iter().chain(more).collect::<Vec<_>>();
    let larger = ClaimLines { nar_size: Some(7), ..claim(1) };
    let forged = sign_leaf(larger, &claim(1), TOKEN);
    check(with(vec![forged, honest(2)]), &[("signature", 302)]).await;

    let revoked = log::leaf(Event::TokenRevoke(TOKEN.parse().unwrap()), Some(TOKEN));
    check(with(vec![revoked.clone(), honest(2)]), &[("after-revocation", 303)]).await;
    check(with(vec![revoked]), &[]).await;

    check(vec![honest(1)], &[("unissued-token", 0), ("unknown-key", 0)]).await;
    check(with(vec!["narvault/log/v1\nhello\n".into()]), &[("unparsable", 302)]).await;
    let later = honest(3).replace("event sign", "event moon-landing");
    check(with(vec![later]), &[]).await;
}

#[tokio::test]
async fn what_was_changed_or_taken_away_is_found_where_it_stood() {
    for (damage, expected) in [
        ("tile/entries/001", ("tampered", Some(256))),
        ("tile/0/001", ("tampered", Some(256))),
        ("tile/entries/002.p/190", ("tampered", Some(512))),
        ("tile/0/002.p/190", ("tampered", None)),
        ("tile/1/000.p/2", ("tampered", None)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        log::publish(folder.path(), 1, log_of(700));
        let path = folder.path().join(damage);
        let mut bytes = fs::read(&path).unwrap();
        bytes[40] ^= 1;
        fs::write(&path, bytes).unwrap();
        let expected = (expected.0.to_owned(), expected.1);
        assert!(findings(folder.path()).await.contains(&expected), "{damage}");

        fs::remove_file(&path).unwrap();
        let found = findings(folder.path()).await;
        assert!(found.contains(&("gap".to_owned(), expected.1)), "{damage}: {found:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_of_another_key_is_not_believed_and_without_a_key_none_is() {
    let folder = tempfile::tempdir().unwrap();
    log::publish(folder.path(), 1, log_of(3));
    let folder_text = folder.path().to_str().unwrap();

    let stranger = log::log_key(2).to_string();
    let refused = run(&["audit", folder_text, "--log-key", &stranger]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("checkpoint is not believed"), "{refused:?}");

    fs::remove_file(folder.path().join("key")).unwrap();
    let unknown = run(&["audit", folder_text]).await;
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    let own = log::log_key(1).to_string();
    assert_eq!(run(&["audit", folder_text, "--log-key", &own]).await.code, Some(0));

    let nowhere = run(&["audit", "http://127.0.0.1:1"]).await;
    assert_eq!(nowhere.code, Some(5), "{nowhere:?}");
    assert_eq!(run(&["audit", "/nowhere"]).await.code, Some(2));
}

#[tokio::test]
async fn a_tile_that_only_the_full_one_is_left_of_is_read_from_that() {
    let folder = tempfile::tempdir().unwrap();
    log::publish(folder.path(), 1, log_of(100));
    let checkpoint = fs::read(folder.path().join("checkpoint")).unwrap();
    log::publish(folder.path(), 1, log_of(400));
    fs::write(folder.path().join("checkpoint"), checkpoint).unwrap();
    for partial in ["tile/0/000.p", "tile/entries/000.p"] {
        fs::remove_dir_all(folder.path().join(partial)).unwrap();
    }

    assert_eq!(findings(folder.path()).await, []);
}

/// Audits until the log is as far as `expected` says.
async fn audited(arguments: &[&str], server: &TestServer, done: impl Fn(&Value) -> bool) -> Value {
    until("a checkpoint", async || {
        (server.http().get("/api/v1/log/checkpoint").await.status == 200).then_some(())
    })
    .await;
    until("the log to be published", async || {
        let mut whole = vec!["log", "audit", "--json"];
        whole.extend(arguments);
        let ended = server.narvault(&whole).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let answer = answer(&ended);
        done(&answer).then_some(answer)
    })
    .await
}

on_each_backend! {
    async fn a_servers_log_is_honest_from_its_first_leaf_on(server: TestServer) {
        let body = serde_json::from_value(json!({ "name": "secret", "public": false })).unwrap();
        server.admin().cache_create(&body).await.unwrap();
        server.admin().key_create("secret", &Default::default()).await.unwrap();
        let ci = server.token("ci", &["push:main", "push:secret"]).await;
        let gone = server.token("gone", &["push:main"]).await;
        let hello = TestPath::new("hello", "hello");
        let world = TestPath::with_references("world", "world", &[&hello]);
        gone.http.push("main", &hello).await;
        ci.http.push("main", &world).await;
        ci.http.push("secret", &TestPath::new("unheard-of", "x")).await;
        let reason = RevokeRequest { reason: "lost".into(), keep_issued: false };
        server.admin().token_revoke(&gone.id, &reason).await.unwrap();
        ci.http.push("main", &TestPath::new("last", "last")).await;

        // Who may pull from the private cache sees what stands behind its leaves.
        let all = |answer: &Value| answer["signatures"] == 4 && answer["events"]["token-revoke"] == 1;
        let opened = audited(&[], &server, all).await;
        assert_eq!((&opened["hidden"], &opened["findings"]), (&json!(0), &json!([])));

        // An empty machine, which has the address alone, and one that has the bucket or folder.
        let empty = run(&["audit", &server.url, "--json"]).await;
        let stranger = answer(&empty);
        assert_eq!((empty.code, &stranger["signatures"], &stranger["hidden"]), (Some(0), &json!(3), &json!(1)));
        let key = server.http().get("/api/v1/log/key").await.text().trim_end().to_owned();
        let place = match server.site.storage_url() {
            Some(url) => url,
            None => server.site.data().join("storage").display().to_string(),
        };
        let mut command = server.site.command(&[]);
        command.args(["log", "audit", &place, "--log-key", &key, "--json"]);
        let stored = Ended::of(command).await;
        assert_eq!(stored.code, Some(0), "{stored:?}");
        assert_eq!(answer(&stored)["size"], stranger["size"]);
    }

    async fn openings_are_for_who_may_pull_from_the_cache(server: TestServer) {
        let body = serde_json::from_value(json!({ "name": "secret", "public": false })).unwrap();
        server.admin().cache_create(&body).await.unwrap();
        server.admin().key_create("secret", &Default::default()).await.unwrap();
        let ci = server.token("ci", &["push:secret"]).await;
        ci.http.push("secret", &TestPath::new("unheard-of", "x")).await;
        let url = "/api/v1/log/openings?first=0";

        let shown = ci.http.get(url).await;
        assert!(shown.assert_status(200).text().contains("unheard-of"), "{shown:?}");
        let other = server.token("other", &["push:main"]).await;
        let shown = other.http.get(url).await;
        assert_eq!(shown.assert_status(200).text(), r#"{"items":[]}"#);

        server.http().get(url).await.assert_status(401);
        ci.http.get("/api/v1/log/openings").await.assert_status(400);
        ci.http.get("/api/v1/log/openings?first=0&limit=1001").await.assert_status(422);
        let beyond = ci.http.get("/api/v1/log/openings?first=18446744073709551615").await;
        assert_eq!(beyond.assert_status(200).text(), r#"{"items":[]}"#);
    }

    async fn a_list_of_references_that_does_not_fit_is_published_beside_the_log(server: TestServer) {
        let ci = server.token("ci", &["push:main"]).await;
        let names: Vec<TestPath> =
            (0..90).map(|number| TestPath::new(&format!("{number}-{}", "x".repeat(190)), "x")).collect();
        for path in &names {
            ci.http.push("main", path).await;
        }
        let whole = TestPath::with_references("whole", "whole", &names.iter().collect::<Vec<_>>());
        ci.http.push("main", &whole).await;

        let audited = audited(&[], &server, |answer| answer["signatures"] == 91).await;

        assert_eq!(audited["findings"], json!([]));
        for name in ["0".to_owned(), "0".repeat(63), "0".repeat(64), "A".repeat(64)] {
            server.http().get(&format!("/api/v1/log/references/{name}")).await.assert_status(404);
        }
    }
}
