//! Revoked means revoked: from the next request on, and for what is under way.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use narvault::api::{
    CacheEdit, ContributorEdit, MissingRequest, PathDelete, PathQuery, RevokeRequest, TokenCreate, TokenRenew,
};
use narvault::client::ErrorKind;
use narvault::time::{Clock, Timestamp};
use reqwest::{Body, Method};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::client::{Answer, Http, TestPath, Token};
use crate::support::database::on_each_database;
use crate::support::server::TestServer;
use crate::support::until;

const REVOKED: &str = "this token was revoked, or its contributor is suspended; ask for another";

fn because(reason: &str) -> RevokeRequest {
    RevokeRequest { reason: reason.to_owned(), keep_issued: false }
}

/// An upload that waits in the middle of its body.
struct Halfway {
    rest: Bytes,
    sending: mpsc::Sender<std::io::Result<Bytes>>,
    answer: JoinHandle<Answer>,
}

impl Halfway {
    /// Sends half of the body; the server has begun to read it when this returns.
    async fn begin(server: &TestServer, http: &Http, url: &str, body: Bytes) -> Self {
        let (sending, pieces) = mpsc::channel(1);
        let pieces = stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
        let request = http.request(Method::PUT, url).body(Body::wrap_stream(pieces));
        let answer = tokio::spawn(Answer::of(request));
        let half = body.len() / 2;
        sending.send(Ok(body.slice(..half))).await.unwrap();
        // The file appears with the first poll of the body, after the right was checked.
        let folder = server.site.data().join("storage/_narvault/tmp");
        until("the upload to begin", async || std::fs::read_dir(&folder).unwrap().next().map(drop)).await;
        Self { rest: body.slice(half..), sending, answer }
    }

    async fn end(self) -> Answer {
        // Where the server has refused already, nobody takes the rest.
        let _ = self.sending.send(Ok(self.rest)).await;
        drop(self.sending);
        self.answer.await.unwrap()
    }
}

/// Neither the NAR nor the path is known to anybody.
async fn nowhere(server: &TestServer, path: &TestPath) {
    let witness = server.token("witness", &["push:main"]).await.http;
    witness.head(&format!("/push/main/{}", path.nar_url())).await.assert_status(404);
    witness.get(&format!("/push/main/{}.narinfo", path.hash())).await.assert_status(404);
    witness.put_narinfo("main", path).await.assert_refused(422, "was not uploaded to this cache");
    server.http().get(&format!("/main/{}", path.nar_url())).await.assert_status(404);
    assert!(server.admin().paths("main", &PathQuery::default()).await.unwrap().items.is_empty());
}

/// Every kind of call is refused.
async fn dead(server: &TestServer, token: &Token, path: &TestPath) {
    let http = &token.http;
    for (url, body) in [
        (path.nar_url(), path.file.clone()),
        (format!("{}.narinfo", path.hash()), path.narinfo().into()),
        (format!("{}.ls", path.hash()), Bytes::from(r#"{"version":1,"root":{"type":"regular","size":1}}"#)),
        (format!("log/{}-thing.drv", path.hash()), Bytes::from("built")),
        ("nix-cache-info".to_owned(), Bytes::from("StoreDir: /nix/store\n")),
    ] {
        let url = format!("/push/main/{url}");
        http.put(&url, body).await.assert_refused(401, REVOKED);
        http.get(&url).await.assert_refused(401, REVOKED);
        http.head(&url).await.assert_status(401);
    }
    let client = server.client(&token.text);
    let (hash, reason) = (path.hash().to_owned(), "x".to_owned());
    let issue = TokenCreate {
        contributor: "alice".to_owned(),
        scopes: vec!["pull:main".to_owned()],
        expires_in_seconds: None,
        note: None,
    };
    for error in [
        client.whoami().await.err(),
        client.renew(&TokenRenew::default()).await.err(),
        client.token_issue(&issue).await.err(),
        client.token_revoke(&token.id, &because("again")).await.err(),
        client.missing("main", &MissingRequest { hashes: vec![hash.clone()] }).await.err(),
        client.paths("main", &PathQuery::default()).await.err(),
        client.path("main", &hash).await.err(),
        client.path_delete("main", &hash, &PathDelete { reason }).await.err(),
        client.vault_seal().await.err(),
    ] {
        let error = error.expect("refused");
        assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");
    }
}

on_each_database! {
    async fn a_token_revoked_during_an_upload_stores_nothing(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let path = TestPath::new("thing", "hello".repeat(50_000));
        let url = format!("/push/main/{}", path.nar_url());
        let upload = Halfway::begin(&server, &alice.http, &url, path.file.clone()).await;

        server.admin().token_revoke(&alice.id, &because("left")).await.unwrap();

        upload.end().await.assert_refused(401, REVOKED);
        nowhere(&server, &path).await;
        dead(&server, &alice, &path).await;
        // The bytes that lie in storage under nobody's name do not stand in the way of a good push.
        server.token("bob", &["push:main"]).await.http.push("main", &path).await;
        let served = server.http().get(&format!("/main/{}", path.nar_url())).await;
        assert_eq!(served.assert_status(200).body, path.file);
        server.stop().await;
    }

    async fn a_token_revoked_between_nar_and_narinfo_publishes_nothing(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let path = TestPath::new("thing", "hello");
        alice.http.put_nar("main", &path).await.assert_status(201);

        server.admin().token_revoke(&alice.id, &because("left")).await.unwrap();

        alice.http.put_narinfo("main", &path).await.assert_refused(401, REVOKED);
        server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(404);
        assert!(server.admin().paths("main", &PathQuery::default()).await.unwrap().items.is_empty());
        server.stop().await;
    }

    async fn a_suspension_stops_an_upload_that_is_under_way(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let path = TestPath::new("thing", "hello".repeat(50_000));
        let url = format!("/push/main/{}", path.nar_url());
        let upload = Halfway::begin(&server, &alice.http, &url, path.file.clone()).await;
        let suspend = async |suspended| {
            let body = ContributorEdit { suspended: Some(suspended), group: None };
            server.admin().contributor_edit("alice", &body).await.unwrap();
        };

        suspend(true).await;

        upload.end().await.assert_refused(401, REVOKED);
        nowhere(&server, &path).await;
        dead(&server, &alice, &path).await;
        suspend(false).await;
        alice.http.push("main", &path).await;
        server.stop().await;
    }

    async fn what_a_revoked_token_issued_dies_with_it(server: TestServer) {
        let path = TestPath::new("thing", "hello");
        let parent = server.token("alice", &["push:main"]).await;
        let issue = async |from: &Token| {
            let body = TokenCreate {
                contributor: "alice".to_owned(),
                scopes: vec!["push:main".to_owned()],
                expires_in_seconds: None,
                note: None,
            };
            let issued = server.client(&from.text).token_issue(&body).await.unwrap();
            Token { id: issued.id, http: server.http().with_token(&issued.token), text: issued.token }
        };
        let child = issue(&parent).await;
        let grandchild = issue(&child).await;
        let sibling = server.client(&parent.text).renew(&TokenRenew::default()).await.unwrap();
        let cousin = server.token("alice", &["push:main"]).await;
        for token in [&parent, &child, &grandchild] {
            token.http.get("/push/main/nix-cache-info").await.assert_status(200);
        }

        let mut revoked = server.admin().token_revoke(&parent.id, &because("left")).await.unwrap().revoked;

        revoked.sort();
        let mut family = [&parent, &child, &grandchild].map(|token| token.id.clone());
        family.sort();
        assert_eq!(revoked, family);
        for token in [&parent, &child, &grandchild] {
            dead(&server, token, &path).await;
        }
        cousin.http.get("/push/main/nix-cache-info").await.assert_status(200);
        let sibling = server.http().with_token(&sibling.token);
        sibling.get("/push/main/nix-cache-info").await.assert_status(200);
        server.stop().await;
    }

    async fn reading_a_private_cache_ends_within_a_second(server: TestServer) {
        let body = serde_json::from_value(serde_json::json!({ "name": "team", "public": false })).unwrap();
        server.admin().cache_create(&body).await.unwrap();
        server.admin().key_create("team", &Default::default()).await.unwrap();
        let path = TestPath::new("thing", "hello");
        server.token("alice", &["push:team"]).await.http.push("team", &path).await;
        let reader = server.token("reader", &["pull:team"]).await;
        let (narinfo, nar) = (format!("/team/{}.narinfo", path.hash()), format!("/team/{}", path.nar_url()));
        for url in [&narinfo, &nar] {
            reader.http.get(url).await.assert_status(200);
        }

        server.admin().token_revoke(&reader.id, &because("left")).await.unwrap();

        let answered = Instant::now();
        for url in [&narinfo, &nar] {
            until("reading to end", async || (reader.http.get(url).await.status == 401).then_some(())).await;
        }
        assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
        server.stop().await;
    }

    async fn a_cache_made_private_is_closed_to_strangers_within_a_second(server: TestServer) {
        let path = TestPath::new("thing", "hello");
        server.token("alice", &["push:main"]).await.http.push("main", &path).await;
        let narinfo = format!("/main/{}.narinfo", path.hash());
        server.http().get(&narinfo).await.assert_status(200);

        let body = CacheEdit { public: Some(false), ..CacheEdit::default() };
        server.admin().cache_edit("main", &body).await.unwrap();

        let answered = Instant::now();
        for url in [narinfo, format!("/main/{}", path.nar_url())] {
            until("reading to end", async || (server.http().get(&url).await.status == 401).then_some(())).await;
        }
        assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_is_refused_at_its_last_second_even_for_an_upload_under_way() {
    let clock = Clock::fixed(Timestamp(1_795_353_000_000));
    let server = TestServer::at(clock.clone()).await;
    server.token("alice", &["push:main"]).await;
    let body = TokenCreate {
        contributor: "alice".to_owned(),
        scopes: vec!["push:main".to_owned()],
        expires_in_seconds: Some(3600),
        note: None,
    };
    let issued = server.admin().token_issue(&body).await.unwrap();
    let alice = server.http().with_token(&issued.token);
    let path = TestPath::new("thing", "hello".repeat(50_000));
    clock.advance_seconds(3599);
    alice.get("/push/main/nix-cache-info").await.assert_status(200);
    let url = format!("/push/main/{}", path.nar_url());
    let upload = Halfway::begin(&server, &alice, &url, path.file.clone()).await;

    clock.advance_seconds(1);

    upload.end().await.assert_status(401);
    alice.get("/push/main/nix-cache-info").await.assert_refused(401, "this token has expired");
    alice.put_nar("main", &path).await.assert_refused(401, "this token has expired");
    let whoami = server.client(&issued.token).whoami().await.unwrap_err();
    assert_eq!(whoami.kind(), ErrorKind::NotAuthorised, "{whoami}");
    nowhere(&server, &path).await;
    server.stop().await;
}
