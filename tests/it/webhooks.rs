//! Webhooks from outside: added by the command, told by a running server, and told again after a crash.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use data_encoding::BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use narvault::api::{DeliveryQuery, DeliveryState, RevokeRequest, UnsealRequest, WebhookCreate, WebhookEdit};
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;

use crate::support::api::ApiServer;
use crate::support::client::TestPath;
use crate::support::server::{Backend, TestServer};
use crate::support::until;

/// Receivers on this machine, without TLS.
const ALLOWED: [(&str, &str); 2] =
    [("NARVAULT_WEBHOOKS_ALLOW_PRIVATE", "true"), ("NARVAULT_WEBHOOKS_ALLOW_HTTP", "true")];

/// A server that takes webhooks, once it does.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    status: Arc<Mutex<u16>>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let receiver = Self { url, got: Arc::default(), status: Arc::new(Mutex::new(204)) };
        let (got, status) = (receiver.got.clone(), receiver.status.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (got, status) = (got.clone(), status.clone());
                let take = move |request: Request<Incoming>| {
                    let (got, status) = (got.clone(), status.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        got.lock().unwrap().push((head.headers, body));
                        let status = *status.lock().unwrap();
                        Ok::<_, hyper::Error>(
                            Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap(),
                        )
                    }
                };
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service_fn(take)),
                );
            }
        });
        receiver
    }

    fn answers(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    /// What came of this kind: id and body, each verified with the secret.
    fn got(&self, kind: &str, secret: &str) -> Vec<(String, Value)> {
        let key = BASE64.decode(secret.trim().strip_prefix("whsec_").unwrap().as_bytes()).unwrap();
        let mut found = Vec::new();
        for (headers, body) in self.got.lock().unwrap().iter() {
            let header = |name: &str| headers[name].to_str().unwrap().to_owned();
            let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            let signature = header("webhook-signature");
            let signature = BASE64.decode(signature.strip_prefix("v1,").unwrap().as_bytes()).unwrap();
            assert!(mac.verify_slice(&signature).is_ok(), "{headers:?}");
            let body: Value = serde_json::from_slice(body).unwrap();
            if body["type"] == kind {
                found.push((id, body));
            }
        }
        found
    }

    async fn wait_for(&self, kind: &str, secret: &str) -> Vec<(String, Value)> {
        until(kind, async || Some(self.got(kind, secret)).filter(|got| !got.is_empty())).await
    }
}

async fn told_of_what_happens(backend: Backend) {
    let Some(server) = TestServer::spawn(backend, &ALLOWED).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let receiver = Receiver::start().await;
    let added = server.narvault(["webhook", "add", &receiver.url, "--note", "tests"]).await;
    assert_eq!(added.code, Some(0), "{added:?}");
    let secret = added.stdout;
    let alice = server.token("alice", &["push:main"]).await;
    let path = TestPath::new("thing", "contents");

    alice.http.put_nar("main", &path).await.assert_status(201);
    alice.http.put_narinfo("main", &path).await.assert_status(201);
    let reason = RevokeRequest { reason: "left".into(), keep_issued: false };
    server.admin().token_revoke(&alice.id, &reason).await.unwrap();

    let published = receiver.wait_for("path.published", &secret).await;
    assert_eq!(published[0].1["data"]["paths"][0]["store_path"], path.store_path);
    assert_eq!(published[0].1["data"]["by"]["token_id"], alice.id);
    let revoked = receiver.wait_for("token.revoked", &secret).await;
    assert_eq!(revoked[0].1["data"]["token_ids"][0], alice.id);
    assert!(published[0].0 < revoked[0].0, "ids sort by time");
    let listed = server.narvault(["webhook", "list"]).await;
    assert!(listed.stdout.contains("active") && listed.stdout.contains(&receiver.url), "{listed:?}");
    assert!(!listed.stdout.contains("whsec_"), "{listed:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_what_happens_on_sqlite_and_disk() {
    told_of_what_happens(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_what_happens_on_postgres_and_real_s3() {
    told_of_what_happens(Backend::POSTGRES_REAL_S3).await;
}

/// The server is killed after the commit, and before anybody was told: sealed, it tells nothing.
async fn told_after_kill(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &ALLOWED).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let receiver = Receiver::start().await;
    let body = WebhookCreate { url: receiver.url.clone(), events: None, note: None };
    let created = server.admin().webhook_create(&body).await.unwrap();
    let alice = server.token("alice", &["push:main"]).await;
    server.admin().vault_seal().await.unwrap();
    let reason = RevokeRequest { reason: "left".into(), keep_issued: false };
    server.admin().token_revoke(&alice.id, &reason).await.unwrap();

    server.restart_after_kill(&ALLOWED).await;

    assert!(receiver.got("token.revoked", &created.secret).is_empty());
    let waiting = server.admin().webhook(&created.webhook.id).await.unwrap().waiting;
    server.admin().vault_unseal(&UnsealRequest::default()).await.unwrap();
    let told = receiver.wait_for("token.revoked", &created.secret).await;
    assert_eq!((waiting, &told[0].1["data"]["token_ids"][0]), (1, &alice.id.into()));
    let query = DeliveryQuery { state: Some("delivered".into()), ..DeliveryQuery::default() };
    let delivered = until("the row", async || {
        let page = server.admin().webhook_deliveries(&created.webhook.id, &query).await.unwrap();
        page.items.into_iter().next()
    });
    let delivered = delivered.await;
    assert_eq!((delivered.event_id, delivered.state), (told[0].0.clone(), DeliveryState::Delivered));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_before_a_crash_is_told_after_it_on_sqlite_and_disk() {
    told_after_kill(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_before_a_crash_is_told_after_it_on_postgres_and_real_s3() {
    told_after_kill(Backend::POSTGRES_REAL_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_edits_tests_and_removes() {
    let server = TestServer::start_with(Backend::SQLITE_DISK, &ALLOWED).await.unwrap();
    let receiver = Receiver::start().await;
    let body =
        WebhookCreate { url: receiver.url.clone(), events: Some(vec!["key.created".into()]), note: None };
    let created = server.admin().webhook_create(&body).await.unwrap();
    let id = created.webhook.id.as_str();

    let tested = server.narvault(["webhook", "test", id]).await;
    assert_eq!(
        (tested.code, tested.stdout.as_str()),
        (Some(0), "delivered, answered with 204\n"),
        "{tested:?}"
    );
    receiver.answers(500);
    let refused = server.narvault(["webhook", "test", id]).await;
    assert_eq!(
        (refused.code, refused.stdout.as_str()),
        (Some(1), "waiting, answered with 500\n"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("the receiver did not take it: answered with status 500"), "{refused:?}");
    let paused = server.narvault(["webhook", "edit", id, "--pause", "--event", "path.conflict"]).await;
    assert!(paused.stdout.contains("paused") && paused.stdout.contains("path.conflict"), "{paused:?}");
    let shown = server.narvault(["webhook", "show", id]).await;
    assert_eq!(shown.stdout, paused.stdout);
    let listed = server.narvault(["webhook", "deliveries", id, "--state", "waiting"]).await;
    assert!(listed.stdout.contains("webhook.test") && listed.stdout.contains("status 500"), "{listed:?}");
    let wrong = server.narvault(["webhook", "edit", id, "--event", "path"]).await;
    assert_eq!(wrong.code, Some(4), "{wrong:?}");
    assert!(wrong.stderr.contains("path.published, path.conflict"), "{wrong:?}");
    assert_eq!(server.narvault(["webhook", "remove", id]).await.code, Some(0));
    assert_eq!(server.narvault(["webhook", "show", id]).await.code, Some(1));
    assert_eq!(receiver.got("webhook.test", &created.secret).len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unconfigured_server_leads_nowhere_but_to_the_public() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let call = async |url: &str| {
        let body = serde_json::json!({ "url": url });
        server.call("POST", "/api/v1/webhooks", Some(&admin), Some(body)).await
    };

    for url in [
        "http://hooks.example.org/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.0.0.1/",
        "https://[::ffff:169.254.169.254]/",
        "https://user:word@hooks.example.org/",
        "nonsense",
    ] {
        let refused = call(url).await;
        assert_eq!(refused.refusal(), (422, "invalid-value"), "{url}: {refused:?}");
        assert!(!refused.body.to_string().contains("word@"), "{refused:?}");
    }
    let made = call("https://hooks.example.org/").await;
    assert_eq!(made.status, 201, "{made:?}");
    assert!(made.body["secret"].as_str().unwrap().starts_with("whsec_"), "{made:?}");
    let id = made.body["webhook"]["id"].as_str().unwrap();
    let shown = server.call("GET", &format!("/api/v1/webhooks/{id}"), Some(&admin), None).await;
    assert_eq!((shown.status, shown.body.get("secret")), (200, None), "{shown:?}");
    let edit =
        serde_json::to_value(WebhookEdit { url: Some("https://[::1]/".into()), ..WebhookEdit::default() });
    let refused =
        server.call("PATCH", &format!("/api/v1/webhooks/{id}"), Some(&admin), Some(edit.unwrap())).await;
    assert_eq!(refused.refusal(), (422, "invalid-value"), "{refused:?}");
    server.stop().await;
}
