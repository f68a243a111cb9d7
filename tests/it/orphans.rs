//! What lies in storage and no row accounts for is listed, and deleted only on request and only if it is still nobody's.

use bytes::Bytes;
use narvault::api::PathDelete;
use narvault::storage::ObjectKey;
use serde_json::Value;

use crate::support::chaos::{Call, Chaos};
use crate::support::client::TestPath;
use crate::support::server::{Backend, Ended, Site, TestServer, on_each_backend};
use crate::support::until;

/// The host's command: every orphan as its object and its kind, in order, and how many it asked to be deleted.
async fn listed(site: &Site, delete: bool) -> (Vec<(String, String)>, u64) {
    let mut command = site.command(&[]);
    // The least that there is: nothing is under way in these tests.
    command.args(["storage", "orphans", "--json", "--older-than", "1s"]);
    if delete {
        command.arg("--delete");
    }
    let ended = Ended::of(command).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let objects = answer["objects"].as_array().unwrap().iter();
    let mut objects: Vec<_> =
        objects.map(|object| (text(&object["object"]), text(&object["kind"]))).collect();
    objects.sort();
    assert_eq!(answer["count"].as_u64().unwrap(), objects.len() as u64);
    (objects, answer["deleting"].as_u64().unwrap())
}

/// Waits until these are old enough to be told of.
async fn told(site: &Site, expected: &[(String, &str)]) {
    let mut expected: Vec<_> =
        expected.iter().map(|(object, kind)| (object.clone(), (*kind).to_owned())).collect();
    expected.sort();
    until("the orphans to be listed", async || (listed(site, false).await.0 == expected).then_some(())).await;
}

fn key(object: &str) -> ObjectKey {
    object.parse().unwrap()
}

fn nar(path: &TestPath) -> String {
    format!("main/{}", path.nar_url())
}

fn narinfo(path: &TestPath) -> String {
    format!("main/{}.narinfo", path.hash())
}

on_each_backend! {
    async fn what_no_row_accounts_for_is_listed_and_deleted_on_request(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await.http;
        let storage = server.site.storage().await;
        let (kept, waiting) = (TestPath::new("kept", "hello"), TestPath::new("waiting", "for its narinfo"));
        let (gone, unknown) = (TestPath::new("gone", "deleted"), TestPath::new("unknown", "restored"));
        alice.push("main", &kept).await;
        alice.put_nar("main", &waiting).await.assert_status(201);
        alice.push("main", &gone).await;
        let reason = "a password was in it".to_owned();
        let deleted = server.admin().path_delete("main", gone.hash(), &PathDelete { reason }).await.unwrap();
        assert!(deleted.gone);
        told(&server.site, &[]).await;
        // As another write of the same would, that was given up and lands late.
        for path in [&gone, &unknown] {
            storage.put(&key(&nar(path)), path.file.clone()).await.unwrap();
            storage.put(&key(&narinfo(path)), path.narinfo().into()).await.unwrap();
        }
        let listing = format!("main/{}.ls", kept.hash());
        storage.put(&key(&listing), Bytes::from("{}")).await.unwrap();
        // None of ours.
        storage.put(&key(&narinfo(&kept).replace("main/", "other/")), Bytes::from("x")).await.unwrap();
        let expected = [
            (nar(&gone), "deleted"),
            (narinfo(&gone), "unpublished"),
            (nar(&unknown), "unmeasured"),
            (narinfo(&unknown), "unpublished"),
            (listing.clone(), "unpublished"),
        ];
        told(&server.site, &expected).await;

        let (_, deleting) = listed(&server.site, true).await;

        assert_eq!(deleting, 4, "all but the NAR without a row");
        for object in [nar(&gone), narinfo(&gone), narinfo(&unknown), listing] {
            let key = key(&object);
            until("the object to go", async || storage.size(&key).await.unwrap().is_none().then_some(())).await;
        }
        until("the listing to end", async || {
            (listed(&server.site, false).await.0 == [(nar(&unknown), "unmeasured".to_owned())]).then_some(())
        })
        .await;
        // What was nobody's is somebody's once it is pushed.
        for path in [&gone, &unknown] {
            alice.push("main", path).await;
            let served = server.http().get(&format!("/{}", nar(path))).await;
            assert_eq!(served.assert_status(200).body, path.file);
        }
        alice.put_narinfo("main", &waiting).await.assert_status(201);
        told(&server.site, &[]).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_a_kill_cut_off_from_its_row_is_listed() {
    for backend in [Backend::SQLITE_S3, Backend::POSTGRES_S3] {
        let Some(site) = Site::new(backend).await else { return println!("skipped: no Postgres") };
        let chaos = Chaos::before(site.storage_endpoint()).await;
        let storage_url = site.storage_url_at(chaos.address);
        let mut server = TestServer::spawn_on(site, &[("NARVAULT_STORAGE_URL", &storage_url)]).await;
        let alice = server.token("alice", &["push:main"]).await.http;
        let path = TestPath::new("thing", "hello");
        // The bytes arrive, and the server that sent them dies before it hears of that.
        let mut held = chaos.hold(Call::Put, "/nar/");
        let pushing = {
            let (alice, url) = (alice.clone(), format!("/push/main/{}", path.nar_url()));
            let request = alice.request(reqwest::Method::PUT, &url).body(path.file.clone());
            tokio::spawn(request.send())
        };
        held.reached().await;
        server.process().kill().await;
        held.let_go();
        assert!(pushing.await.unwrap().is_err(), "acknowledged by a dead server");
        let storage = server.site.storage().await;
        let object = key(&nar(&path));
        until("the bytes to land", async || storage.size(&object).await.unwrap().map(drop)).await;

        server.restart_after_kill(&[]).await;

        told(&server.site, &[(nar(&path), "unfinished")]).await;
        server.http().get(&format!("/{}", nar(&path))).await.assert_status(404);
        alice.head(&format!("/push/{}", nar(&path))).await.assert_status(404);
        let (_, deleting) = listed(&server.site, true).await;
        assert_eq!(deleting, 1);
        until("the bytes to go", async || storage.size(&object).await.unwrap().is_none().then_some(())).await;
        alice.push("main", &path).await;
        told(&server.site, &[]).await;
        server.stop().await;
    }
}
