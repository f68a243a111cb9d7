//! `narvault storage scrub` finds whatever somebody wrote past the server: into the bucket, or into the database.

use serde_json::Value;

use crate::support::client::TestPath;
use crate::support::server::{Ended, Site, TestServer, on_each_backend};
use crate::support::storage::{key, narinfo, read};
use crate::support::until;

/// Kind and subject of everything that is found, in order.
async fn scrubbed(site: &Site, deep: bool) -> (Vec<(String, String)>, Value) {
    let mut command = site.command(&[]);
    command.args(["storage", "scrub", "--json"]);
    if deep {
        command.arg("--deep");
    }
    let ended = Ended::of(command).await;
    let answer: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = answer["findings"].as_array().unwrap().iter();
    let mut findings: Vec<_> =
        findings.map(|finding| (text(&finding["kind"]), text(&finding["subject"]))).collect();
    findings.sort();
    assert_eq!(ended.code, Some(if findings.is_empty() { 0 } else { 4 }), "{ended:?}");
    (findings, answer)
}

/// A server with a public and a private cache, whose signatures are all in the published log.
async fn filled(server: &TestServer) -> [TestPath; 3] {
    let body = serde_json::from_value(serde_json::json!({ "name": "secret", "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    server.admin().key_create("secret", &Default::default()).await.unwrap();
    let ci = server.token("ci", &["push:main", "push:secret"]).await;
    let hello = TestPath::new("hello", "hello");
    let world = TestPath::with_references("world", "world", &[&hello]);
    let unheard = TestPath::new("unheard-of", "x");
    ci.http.push("main", &hello).await;
    ci.http.push("main", &world).await;
    ci.http.push("secret", &unheard).await;
    until("a checkpoint", async || {
        (server.http().get("/api/v1/log/checkpoint").await.status == 200).then_some(())
    })
    .await;
    until("the log to be published", async || {
        (scrubbed(&server.site, false).await.1["signatures"] == 3).then_some(())
    })
    .await;
    [hello, world, unheard]
}

on_each_backend! {
    async fn a_sound_server_has_nothing_to_find(server: TestServer) {
        let [hello, ..] = filled(&server).await;
        let reason = narvault::api::PathDelete { reason: "gone".into() };
        let deleted = server.admin().path_delete("main", hello.hash(), &reason).await.unwrap();
        assert!(deleted.gone);

        let (findings, answer) = scrubbed(&server.site, true).await;

        assert_eq!(findings, []);
        assert_eq!((&answer["paths"], &answer["signatures"]), (&Value::from(2), &Value::from(2)));
        assert!(answer["nar_bytes"].as_u64().unwrap() > 0);
    }

    async fn what_somebody_wrote_into_the_bucket_is_found(server: TestServer) {
        let [hello, world, unheard] = filled(&server).await;
        let storage = server.site.storage().await;
        // None of these fields is under Nix's signature.
        let object = narinfo("main", &hello);
        let sound = read(&storage, &object).await;
        for (from, to) in [
            ("Compression: none", "Compression: xz"),
            ("FileHash: sha256:", "FileHash: sha256:0"),
            ("URL: nar/", "URL: nar/0"),
            ("StorePath:", "Deriver: evil.drv\nStorePath:"),
            ("StorePath:", "CA: text:sha256:0\nStorePath:"),
            ("Sig: ", "Sig: other-1:AAAA\nSig: "),
        ] {
            let changed = sound.replace(from, to);
            assert_ne!(changed, sound, "{from}");
            storage.put(&key(&object), changed.into()).await.unwrap();

            let (findings, _) = scrubbed(&server.site, false).await;

            assert_eq!(findings, [("narinfo-differs".to_owned(), object.clone())], "{to}");
        }
        storage.put(&key(&object), sound.into()).await.unwrap();

        let stray = TestPath::new("stray", "x");
        storage.put(&key(&narinfo("main", &stray)), stray.narinfo().into()).await.unwrap();
        storage.delete(&key(&narinfo("main", &world)), std::time::Duration::from_secs(5)).await.unwrap();
        let nar = format!("secret/{}", unheard.nar_url());
        let mut same_size = unheard.file.to_vec();
        same_size[100] ^= 1;
        storage.put(&key(&nar), same_size.into()).await.unwrap();
        let cut = format!("main/{}", hello.nar_url());
        storage.put(&key(&cut), hello.file.slice(1..)).await.unwrap();
        let expected = [
            ("nar-differs".to_owned(), cut),
            ("narinfo-missing".to_owned(), narinfo("main", &world)),
            ("narinfo-unaccounted".to_owned(), narinfo("main", &stray)),
        ];

        assert_eq!(scrubbed(&server.site, false).await.0, expected);

        let mut deep = expected.to_vec();
        deep.push(("nar-differs".to_owned(), nar));
        deep.sort();
        assert_eq!(scrubbed(&server.site, true).await.0, deep);
    }
}
