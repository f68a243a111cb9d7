//! Two servers on one database and one storage are one server: what one did, the other knows.

use std::time::{Duration, Instant};

use narvault::api::{PathDelete, RevokeRequest, TokenRenew, UnsealRequest};
use narvault::cli::server::Server;
use narvault::client::{Client, ErrorKind};
use narvault::time::Clock;

use crate::support::chaos::{Call, Chaos, Fault};
use crate::support::client::{Http, TestPath, Token};
use crate::support::server::{Backend, Process, StorageKind, TestServer};
use crate::support::until;

/// Two replicas. The first has the administrator's calls; clients of the second are made here.
struct Pair {
    one: TestServer,
    two: Two,
}

enum Two {
    Here(Box<Server>),
    Process(Box<Process>),
}

impl Pair {
    /// `None` where a part of the backend is not at hand.
    async fn start(backend: Backend) -> Option<Self> {
        Self::start_with(backend, &[]).await
    }

    /// With settings for the second one.
    async fn start_with(backend: Backend, settings: &[(&str, &str)]) -> Option<Self> {
        let Some(one) = TestServer::start(backend).await else {
            println!("skipped: {backend:?} is not here");
            return None;
        };
        let two = match backend.storage {
            StorageKind::Disk => Two::Here(one.site.start_here(Clock::System, settings).await.into()),
            _ => Two::Process(one.site.spawn(settings).await.into()),
        };
        Some(Self { one, two })
    }

    fn other_url(&self) -> String {
        match &self.two {
            Two::Here(server) => format!("http://{}", server.http.address),
            Two::Process(process) => process.url.clone(),
        }
    }

    /// The second replica, as a stranger and as whoever has the token.
    fn other(&self) -> Http {
        Http::new(&self.other_url())
    }

    fn other_of(&self, token: &Token) -> Http {
        self.other().with_token(&token.text)
    }

    /// The administrator's calls to the second replica.
    fn other_admin(&self) -> Client {
        let token = self.one.admin_token().to_owned().into();
        Client::new(self.other_url().parse().unwrap(), Some(&token), false).unwrap()
    }

    async fn stop(self) {
        match self.two {
            Two::Here(server) => server.shut_down().await.unwrap(),
            Two::Process(mut process) => {
                process.signal("TERM").await;
                assert!(process.ended().await.success(), "{}", process.stderr());
            }
        }
        self.one.stop().await;
    }
}

/// Waits for something that has to come within a second.
async fn within_a_second(what: &str, found: impl AsyncFnMut() -> Option<()>) {
    let asked = Instant::now();
    until(what, found).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{what}: {:?}", asked.elapsed());
}

async fn gone(http: &Http, path: &TestPath) {
    for url in [format!("/main/{}.narinfo", path.hash()), format!("/main/{}", path.nar_url())] {
        within_a_second("the path to be gone", async || (http.get(&url).await.status == 404).then_some(()))
            .await;
    }
}

async fn whole(http: &Http, path: &TestPath) {
    let narinfo = http.get(&format!("/main/{}.narinfo", path.hash())).await;
    assert!(narinfo.assert_status(200).text().contains("\nSig: "), "{}", narinfo.text());
    let nar = http.get(&format!("/main/{}", path.nar_url())).await;
    assert_eq!(nar.assert_status(200).body, path.file);
}

/// Runs each test on replicas that share a folder, and on replicas that share a bucket.
macro_rules! on_replicas {
    ($(async fn $name:ident($pair:ident: Pair) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn promise(backend: Backend) {
                let Some($pair) = Pair::start(backend).await else { return };
                $body
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_disk() {
                promise(Backend::POSTGRES_DISK).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_s3() {
                promise(Backend::POSTGRES_S3).await;
            }
        }
    )+};
}

on_replicas! {
    async fn what_is_pushed_through_one_is_pulled_through_the_other_at_once(pair: Pair) {
        let alice = pair.one.token("alice", &["push:main"]).await;

        for round in 0..10 {
            let (path, other) =
                (TestPath::new("one", round.to_string()), TestPath::new("two", round.to_string()));
            let unknown = format!("/main/{}.narinfo", path.hash());
            pair.other().get(&unknown).await.assert_status(404);
            alice.http.push("main", &path).await;
            whole(&pair.other(), &path).await;
            pair.other_of(&alice).push("main", &other).await;
            whole(&pair.one.http(), &other).await;
            // The two halves of a push may meet different replicas.
            let halves = TestPath::with_references("halves", round.to_string(), &[&path, &other]);
            alice.http.put_nar("main", &halves).await.assert_status(201);
            pair.other_of(&alice).put_narinfo("main", &halves).await.assert_status(201);
            whole(&pair.one.http(), &halves).await;
            whole(&pair.other(), &halves).await;
        }
        pair.stop().await;
    }

    async fn a_token_revoked_through_one_is_refused_by_the_other_at_once(pair: Pair) {
        let path = TestPath::new("thing", "hello");
        let body = RevokeRequest { reason: "left".to_owned(), keep_issued: false };

        for through_the_other in [false, true] {
            let alice = pair.one.token("alice", &["push:main"]).await;
            let (near, far) = (alice.http.clone(), pair.other_of(&alice));
            for http in [&near, &far] {
                http.get("/push/main/nix-cache-info").await.assert_status(200);
                http.put_nar("main", &path).await.assert_status(201);
            }
            if through_the_other {
                pair.other_admin().token_revoke(&alice.id, &body).await.unwrap();
            } else {
                pair.one.admin().token_revoke(&alice.id, &body).await.unwrap();
            }
            for http in [&near, &far] {
                let nar = TestPath::new("late", "late");
                let refused = http.put_nar("main", &nar).await;
                refused.assert_refused(401, "this token was revoked");
                http.put_narinfo("main", &path).await.assert_refused(401, "this token was revoked");
                let token = Some(&alice.text.clone().into());
                let url = if through_the_other { pair.one.url.clone() } else { pair.other_url() };
                let client = Client::new(url.parse().unwrap(), token, false).unwrap();
                let renewed = client.renew(&TokenRenew::default()).await.err().unwrap();
                assert_eq!(renewed.kind(), ErrorKind::NotAuthorised, "{renewed}");
                within_a_second("reading to end", async || {
                    (http.get("/push/main/nix-cache-info").await.status == 401).then_some(())
                })
                .await;
            }
        }
        pair.stop().await;
    }

    async fn one_sealed_is_both_sealed_within_a_second(pair: Pair) {
        let alice = pair.one.token("alice", &["push:main"]).await;
        let before = TestPath::new("before", "hello");
        let after = TestPath::new("after", "hello");
        alice.http.push("main", &before).await;
        pair.other_of(&alice).put_nar("main", &after).await.assert_status(201);

        pair.one.admin().vault_seal().await.unwrap();

        alice.http.put_narinfo("main", &after).await.assert_refused(423, "narvault is sealed");
        within_a_second("the other to seal itself", async || {
            (pair.other().get("/readyz").await.text() == "ready, sealed\n").then_some(())
        })
        .await;
        pair.other_of(&alice).put_narinfo("main", &after).await.assert_refused(423, "narvault is sealed");
        whole(&pair.other(), &before).await;
        pair.one.admin().vault_unseal(&UnsealRequest::default()).await.unwrap();
        alice.http.put_narinfo("main", &after).await.assert_status(201);
        pair.other_admin().vault_unseal(&UnsealRequest::default()).await.unwrap();
        pair.other_of(&alice).put_narinfo("main", &after).await.assert_status(200);
        pair.stop().await;
    }

    async fn what_is_deleted_through_one_is_gone_from_the_other_within_a_second(pair: Pair) {
        let alice = pair.one.token("alice", &["push:main"]).await;
        let path = TestPath::new("thing", "hello");
        let body = PathDelete { reason: "a password was in it".to_owned() };

        for through_the_other in [false, true] {
            alice.http.push("main", &path).await;
            whole(&pair.one.http(), &path).await;
            whole(&pair.other(), &path).await;
            let (deleting, remembering) = if through_the_other {
                (pair.other_admin(), pair.one.http())
            } else {
                (pair.one.client(pair.one.admin_token()), pair.other())
            };
            deleting.path_delete("main", path.hash(), &body).await.unwrap();
            gone(&remembering, &path).await;
            gone(&pair.one.http(), &path).await;
            gone(&pair.other(), &path).await;
        }
        pair.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_wins_over_a_replica_that_stalls_while_it_writes() {
    let backend = Backend::POSTGRES_S3;
    let Some(one) = TestServer::start(backend).await else { return println!("skipped: no Postgres") };
    let chaos = Chaos::before(one.site.storage_endpoint()).await;
    let storage_url = one.site.storage_url_at(chaos.address);
    // It gives up on the answer in four fifths of this.
    let settings =
        [("NARVAULT_STORAGE_URL", storage_url.as_str()), ("NARVAULT_STORAGE_TIMEOUT_SECONDS", "5")];
    let two = one.site.spawn(&settings).await;
    let pair = Pair { one, two: Two::Process(two.into()) };
    let alice = pair.one.token("alice", &["push:main"]).await;
    let path = TestPath::new("thing", "hello");
    let stalling = pair.other_of(&alice);
    stalling.put_nar("main", &path).await.assert_status(201);
    // The narinfo lands in the bucket, but the replica that wrote it does not hear of it.
    chaos.inject(Call::Put, Fault::LateAnswer, 1);
    stalling.put_narinfo("main", &path).await.assert_status(201);
    whole(&pair.one.http(), &path).await;

    let body = PathDelete { reason: "a password was in it".to_owned() };
    pair.one.admin().path_delete("main", path.hash(), &body).await.unwrap();

    for http in [pair.one.http(), pair.other()] {
        gone(&http, &path).await;
    }
    // Whether or not the bytes are gone already, a push brings the path back whole.
    alice.http.push("main", &path).await;
    for http in [pair.one.http(), pair.other()] {
        whole(&http, &path).await;
    }
    pair.stop().await;
}
