//! One cache tells nothing of another: a NAR that is known by its hash alone cannot be had.

use narvault::api::KeyCreate;
use reqwest::Method;

use crate::support::client::{Answer, Http, TestPath};
use crate::support::database::on_each_database;
use crate::support::server::TestServer;

async fn private_cache(server: &TestServer, name: &str) {
    let body = serde_json::from_value(serde_json::json!({ "name": name, "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    server.admin().key_create(name, &KeyCreate::default()).await.unwrap();
}

/// Asks for an object by each method that reads.
async fn absent(http: &Http, url: &str) {
    http.get(url).await.assert_refused(404, "there is no such object in this cache");
    let head = http.head(url).await;
    assert_eq!((head.status, head.body.len()), (404, 0), "{url}");
    let part = http.request(Method::GET, url).header("range", "bytes=0-3");
    Answer::of(part).await.assert_refused(404, "there is no such object in this cache");
}

on_each_database! {
    async fn a_nar_of_a_private_cache_cannot_be_had_through_another(server: TestServer) {
        private_cache(&server, "team").await;
        private_cache(&server, "other").await;
        let secret = TestPath::new("secret", "the plan");
        server.token("alice", &["push:team"]).await.http.push("team", &secret).await;
        let mallory = server.token("mallory", &["push:main", "push:other"]).await.http;
        let (nar, narinfo) = (secret.nar_url(), format!("{}.narinfo", secret.hash()));

        absent(&server.http(), &format!("/main/{nar}")).await;
        absent(&server.http(), &format!("/main/{narinfo}")).await;
        for cache in ["main", "other"] {
            for object in [&nar, &narinfo] {
                absent(&mallory, &format!("/{cache}/{object}")).await;
                absent(&mallory, &format!("/push/{cache}/{object}")).await;
            }
            // Nor by a narinfo that names it: who has not sent the bytes does not get them.
            let claim = mallory.put_narinfo(cache, &secret).await;
            claim.assert_refused(422, "was not uploaded to this cache");
            absent(&server.http(), &format!("/main/{nar}")).await;
        }
        for object in [&nar, &narinfo] {
            for side in ["", "/push"] {
                mallory.get(&format!("{side}/team/{object}")).await.assert_refused(403, "does not allow that");
            }
        }
        server.stop().await;
    }

    async fn the_same_nar_in_two_caches_ends_in_one_without_the_other(server: TestServer) {
        private_cache(&server, "team").await;
        let path = TestPath::new("thing", "hello");
        let alice = server.token("alice", &["push:team", "push:main", "delete:main"]).await;
        alice.http.push("main", &path).await;
        alice.http.push("team", &path).await;

        let body = narvault::api::PathDelete { reason: "not for the public".to_owned() };
        server.client(&alice.text).path_delete("main", path.hash(), &body).await.unwrap();

        crate::support::until("the path to be gone from one cache", async || {
            let answer = server.http().get(&format!("/main/{}", path.nar_url())).await;
            (answer.status == 404).then_some(())
        })
        .await;
        let served = alice.http.get(&format!("/team/{}", path.nar_url())).await;
        assert_eq!(served.assert_status(200).body, path.file);
        server.stop().await;
    }

    async fn a_private_cache_needs_a_token_for_everything(server: TestServer) {
        private_cache(&server, "team").await;
        let path = TestPath::new("thing", "hello");
        let alice = server.token("alice", &["push:team"]).await.http;
        alice.push("team", &path).await;
        let reader = server.token("reader", &["pull:team"]).await.http;
        let stranger = server.token("stranger", &["pull:main"]).await.http;
        let bad = server.http().with_token("nvt_nobody");
        let base = &path.store_path["/nix/store/".len()..];

        for object in [
            "nix-cache-info".to_owned(),
            path.nar_url(),
            format!("{}.narinfo", path.hash()),
            format!("{}.ls", path.hash()),
            format!("log/{base}.drv"),
            format!("debuginfo/{}.debug", "a".repeat(40)),
            format!("realisations/sha256:{}!out.doi", "0".repeat(64)),
        ] {
            for side in ["", "/push"] {
                let url = format!("{side}/team/{object}");
                server.http().get(&url).await.assert_refused(401, "this needs a token");
                assert_eq!(server.http().head(&url).await.status, 401, "{url}");
                bad.get(&url).await.assert_refused(401, "this is not a token of this server");
                stranger.get(&url).await.assert_refused(403, "this token does not allow that");
            }
            let answer = reader.get(&format!("/team/{object}")).await;
            assert!(matches!(answer.status, 200 | 404), "{object}: {answer:?}");
            if answer.status == 200 {
                assert_eq!(answer.header("cache-control"), "private, no-store", "{object}");
            }
            reader.get(&format!("/push/team/{object}")).await.assert_refused(403, "does not allow that");
        }
        for (object, body) in [(path.nar_url(), path.file.clone()), (format!("{}.narinfo", path.hash()), path.narinfo().into())] {
            let url = format!("/push/team/{object}");
            server.http().put(&url, body.clone()).await.assert_refused(401, "this needs a token");
            reader.put(&url, body).await.assert_refused(403, "does not allow that");
        }
        server.stop().await;
    }

    async fn the_pull_url_of_a_public_cache_does_not_look_at_tokens(server: TestServer) {
        let path = TestPath::new("thing", "hello");
        let alice = server.token("alice", &["push:main"]).await;
        alice.http.push("main", &path).await;
        let body = narvault::api::RevokeRequest { reason: "left".to_owned(), keep_issued: false };
        server.admin().token_revoke(&alice.id, &body).await.unwrap();
        let objects = ["nix-cache-info".to_owned(), path.nar_url(), format!("{}.narinfo", path.hash())];

        for authorization in [
            format!("Bearer {}", alice.text),
            "Bearer nvt_nobody".to_owned(),
            "Basic &&&&".to_owned(),
            "Negotiate x".to_owned(),
        ] {
            let http = server.http().with_authorization(&authorization);
            for object in &objects {
                let (theirs, anybodys) = (
                    http.get(&format!("/main/{object}")).await,
                    server.http().get(&format!("/main/{object}")).await,
                );
                theirs.assert_status(200);
                assert_eq!((theirs.body, theirs.headers["cache-control"].clone()), (anybodys.body, anybodys.headers["cache-control"].clone()));
                http.get(&format!("/push/main/{object}")).await.assert_status(401);
            }
        }
        server.stop().await;
    }
}
