//! Two replicas, one of which stalls in the middle of a write: whatever lands and whenever, the bucket ends as the rows
//! say, and bytes that were acknowledged stay.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use narvault::access::{CacheName, Caller, Credential};
use narvault::api::PathDelete;
use narvault::cli::server::{db_settings, limits};
use narvault::config::{Config, Flags};
use narvault::db::Db;
use narvault::service::{
    Call as ServiceCall, Conflict, Error, Liveness, OpenSettings, Origin, Published, Service, VaultSettings,
};
use narvault::storage::{Folder, ObjectKey, S3Settings, Settings, Storage};
use narvault::time::{Clock, Timestamp};
use narvault::webhook::Allowed;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::chaos::{Call, Chaos};
use crate::support::client::TestPath;
use crate::support::database::on_each_database;
use crate::support::server::{Backend, Site};
use crate::support::until;

/// Longer than any lease, and than any write that was given up may still take to land: both follow from
/// `storage.timeout_seconds`.
const LEASE_SECONDS: i64 = 200;

/// Two services on one database and, by way of a proxy, one bucket. Their clock is moved by hand.
struct Pair {
    one: Service,
    two: Service,
    admin: ServiceCall,
    clock: Clock,
    chaos: Chaos,
    bucket: Storage,
    /// Last: what the others lie on.
    site: Site,
}

impl Pair {
    /// `None` where a part of the backend is not at hand.
    async fn start(backend: Backend) -> Option<Self> {
        let site = Site::new(backend).await?;
        let chaos = Chaos::before(site.storage_endpoint()).await;
        let clock = Clock::fixed(Timestamp(1_795_353_000_000));
        std::fs::create_dir(site.data()).unwrap();
        let (one, claim) = open(&site, &chaos, &clock).await;
        let (two, _) = open(&site, &chaos, &clock).await;
        let anyone = ServiceCall { caller: Caller::Anonymous, origin: Origin::default() };
        let token = one.claim_admin(&anyone, &claim.unwrap()).await.unwrap().text;
        let caller = one.authenticate(&Credential::Token(token), Liveness::Recent).await.unwrap();
        let admin = ServiceCall { caller, origin: Origin::default() };
        for service in [&one, &two] {
            service.start_background();
        }
        let bucket = site.storage().await;
        let pair = Self { one, two, admin, clock, chaos, bucket, site };
        pair.settled().await;
        Some(pair)
    }

    /// Nothing waits in the outbox.
    async fn settled(&self) {
        let empty = async || (self.one.outbox_backlog().await.unwrap().count == 0).then_some(());
        self.flowing(until("the outbox to be empty", empty)).await;
    }

    /// Lets time go by, ten times as fast as it does, while something is done: what failed in passing is tried again
    /// only later.
    async fn flowing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => self.clock.advance_seconds(1),
            }
        }
    }

    /// Leases end, and what is noted for after them is done, until nothing is left.
    async fn time_passes(&self) {
        until("the outbox to be empty in the end", async || {
            self.clock.advance_seconds(LEASE_SECONDS);
            // Not at once again: a lease is to be used, too, also on a machine that has much else to do.
            tokio::time::timeout(Duration::from_secs(10), self.settled()).await.ok()
        })
        .await;
    }

    /// What lies in the bucket, but for what the server writes by itself: names and sizes.
    async fn objects(&self) -> BTreeMap<String, u64> {
        let entries: Vec<_> =
            self.bucket.list(&Folder::Cache("main".parse().unwrap())).try_collect().await.unwrap();
        let objects = entries.into_iter().map(|entry| (entry.name, entry.size_bytes));
        objects.filter(|(name, _)| name != "main/nix-cache-info").collect()
    }

    async fn lies_in_bucket(&self, object: &str) -> bool {
        self.bucket.size(&key(object)).await.unwrap().is_some()
    }

    async fn put_nar(&self, service: &Service, path: &TestPath) -> Result<(), Error> {
        put_nar(service, &self.admin, path).await
    }

    async fn push(&self, service: &Service, path: &TestPath) {
        self.put_nar(service, path).await.unwrap();
        put_narinfo(service, &self.admin, path).await.unwrap();
    }

    /// Puts a narinfo, and does not wait for the answer.
    fn publishing(&self, service: &Service, path: &TestPath) -> JoinHandle<Result<Published, Error>> {
        let (service, admin, path) = (service.clone(), self.admin.clone(), path.clone());
        tokio::spawn(async move { put_narinfo(&service, &admin, &path).await })
    }

    /// Uploads a NAR, and does not wait for the answer.
    fn uploading(&self, service: &Service, path: &TestPath) -> JoinHandle<Result<(), Error>> {
        let (service, admin, path) = (service.clone(), self.admin.clone(), path.clone());
        tokio::spawn(async move { put_nar(&service, &admin, &path).await })
    }

    /// Deletes a path, and does not wait for the answer: whether storage has lost it already.
    fn deleting(&self, service: &Service, path: &TestPath) -> JoinHandle<bool> {
        let (service, admin, path) = (service.clone(), self.admin.clone(), path.clone());
        tokio::spawn(async move {
            let hash = path.hash().parse().unwrap();
            service.delete_path(&admin, &main(), hash, "a password was in it").await.unwrap().gone
        })
    }

    /// The rows say that the path is deleted.
    async fn deleted(&self, path: &TestPath) {
        let hash = path.hash().parse().unwrap();
        until("the path to be deleted", async || {
            let shown = self.one.show_path(&self.admin, &main(), hash).await.unwrap();
            (shown.path.state.as_str() == "deleted").then_some(())
        })
        .await;
    }

    /// Both lie in the bucket as they were pushed.
    async fn whole(&self, path: &TestPath) {
        let found = self.bucket.read(&key(&nar(path)), path.file.len()).await.unwrap();
        assert_eq!(found, Some(path.file.clone()));
        assert!(self.lies_in_bucket(&narinfo(path)).await);
    }

    async fn stop(self) {
        self.one.shut_down().await;
        self.two.shut_down().await;
        drop(self.site);
    }
}

async fn open(site: &Site, chaos: &Chaos, clock: &Clock) -> (Service, Option<String>) {
    let config =
        Config::load(&Flags::default(), site.settings(), |_| Err(std::io::ErrorKind::NotFound.into()));
    let config = config.unwrap();
    let endpoint = Some(format!("http://{}", chaos.address).parse().unwrap());
    let bucket = Settings::S3(S3Settings { endpoint, ..site.s3_settings().unwrap() }.into());
    let settings = OpenSettings {
        db: Db::open(&db_settings(&config).unwrap()).await.unwrap(),
        storage: Storage::open(bucket, Uuid::now_v7()).await.unwrap(),
        clock: clock.clone(),
        limits: limits(&config).unwrap(),
        vault: VaultSettings { default_key_file: config.key_file_default(), ..VaultSettings::default() },
        webhooks: Allowed::default(),
        witnesses: Vec::new(),
        backups: None,
        rate_per_minute: 10,
    };
    let (service, first) = Service::open(settings).await.unwrap();
    (service, first.map(|first| first.claim.expose().to_owned()))
}

async fn put_nar(service: &Service, call: &ServiceCall, path: &TestPath) -> Result<(), Error> {
    let file = path.nar_url().strip_prefix("nar/").unwrap().parse().unwrap();
    let body = stream::iter([Ok::<Bytes, Infallible>(path.file.clone())]);
    service.put_nar(call, &main(), file, None, body).await
}

async fn put_narinfo(service: &Service, call: &ServiceCall, path: &TestPath) -> Result<Published, Error> {
    service.put_narinfo(call, &main(), path.hash().parse().unwrap(), path.narinfo().as_bytes()).await
}

fn main() -> CacheName {
    "main".parse().unwrap()
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

/// It does not come to an end while what holds it up does.
async fn held_up<T: std::fmt::Debug>(work: &mut JoinHandle<T>) {
    let ended = tokio::time::timeout(Duration::from_millis(500), work).await;
    assert!(ended.is_err(), "went on meanwhile: {ended:?}");
}

/// Runs each test on both databases, with a bucket between.
macro_rules! on_replicas {
    ($(async fn $name:ident($pair:ident: Pair) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn promise(backend: Backend) {
                let Some($pair) = Pair::start(backend).await else { return println!("skipped: no Postgres") };
                $body
                $pair.stop().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_s3() {
                promise(Backend::SQLITE_S3).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_s3() {
                promise(Backend::POSTGRES_S3).await;
            }
        }
    )+};
}

on_replicas! {
    async fn a_write_that_lands_after_its_lease_is_undone(pair: Pair) {
        let path = TestPath::new("thing", "hello");
        pair.put_nar(&pair.one, &path).await.unwrap();
        let mut held = pair.chaos.hold(Call::Put, ".narinfo");
        let publishing = pair.publishing(&pair.one, &path);
        held.reached().await;

        // The first replica stalls beyond its lease, and the second one deletes the path.
        pair.clock.advance_seconds(LEASE_SECONDS);
        let gone = pair.flowing(pair.deleting(&pair.two, &path)).await.unwrap();
        assert!(gone, "the second replica could not delete it");
        assert!(pair.objects().await.is_empty(), "{:?}", pair.objects().await);
        held.let_go();

        assert_eq!(publishing.await.unwrap().unwrap(), Published::New);
        until("the stalled write to land", async || pair.lies_in_bucket(&narinfo(&path)).await.then_some(())).await;
        // It was noted that it might, so it is looked after once nothing of the kind can come any more.
        until("the rest to be done", async || {
            (pair.two.outbox_backlog().await.unwrap().count == 1).then_some(())
        })
        .await;
        pair.time_passes().await;
        assert!(pair.objects().await.is_empty(), "{:?}", pair.objects().await);
        pair.push(&pair.two, &path).await;
        pair.settled().await;
        pair.whole(&path).await;
    }

    async fn a_deletion_that_lands_after_its_lease_is_undone(pair: Pair) {
        let path = TestPath::new("thing", "hello");
        pair.push(&pair.one, &path).await;
        pair.settled().await;
        let mut held = pair.chaos.hold(Call::Delete, ".narinfo");
        let deleting = pair.deleting(&pair.one, &path);
        held.reached().await;

        // The first replica stalls beyond its lease, and the path is pushed anew through the second one.
        pair.clock.advance_seconds(LEASE_SECONDS);
        pair.push(&pair.two, &path).await;
        pair.whole(&path).await;
        held.let_go();

        deleting.await.unwrap();
        assert!(!pair.lies_in_bucket(&narinfo(&path)).await, "the stalled deletion did not land");
        pair.time_passes().await;
        pair.whole(&path).await;
    }

    async fn a_deletion_wins_over_a_write_that_stalls_within_its_lease(pair: Pair) {
        let path = TestPath::new("thing", "hello");
        pair.put_nar(&pair.one, &path).await.unwrap();
        let mut held = pair.chaos.hold(Call::Put, ".narinfo");
        let publishing = pair.publishing(&pair.one, &path);
        held.reached().await;

        let mut deleting = pair.deleting(&pair.two, &path);
        pair.deleted(&path).await;
        held_up(&mut deleting).await;
        held.let_go();

        assert_eq!(publishing.await.unwrap().unwrap(), Published::New);
        assert!(pair.flowing(deleting).await.unwrap(), "the deletion gave up waiting");
        pair.settled().await;
        assert!(pair.objects().await.is_empty(), "{:?}", pair.objects().await);
    }

    async fn an_upload_waits_while_a_deletion_of_the_same_nar_may_still_land(pair: Pair) {
        let path = TestPath::new("thing", "hello");
        pair.push(&pair.one, &path).await;
        pair.settled().await;
        let mut held = pair.chaos.hold(Call::Delete, "/nar/");
        let deleting = pair.deleting(&pair.two, &path);
        held.reached().await;

        // A moment before the last one at which it may land.
        pair.clock.advance_seconds(14);
        let mut uploading = pair.uploading(&pair.one, &path);
        held_up(&mut uploading).await;
        held.let_go();

        pair.flowing(deleting).await.unwrap();
        pair.flowing(uploading).await.unwrap().unwrap();
        put_narinfo(&pair.one, &pair.admin, &path).await.unwrap();
        pair.settled().await;
        pair.whole(&path).await;
        pair.time_passes().await;
        pair.whole(&path).await;
    }

    async fn an_upload_that_a_deletion_overtakes_is_not_acknowledged_and_leaves_nothing(pair: Pair) {
        let path = TestPath::new("thing", "hello");
        pair.push(&pair.one, &path).await;
        pair.settled().await;
        let mut held = pair.chaos.hold(Call::Put, "/nar/");
        let uploading = pair.uploading(&pair.one, &path);
        held.reached().await;

        assert!(pair.flowing(pair.deleting(&pair.two, &path)).await.unwrap());
        held.let_go();

        let refused = pair.flowing(uploading).await.unwrap().unwrap_err();
        assert!(matches!(refused, Error::Conflict(Conflict::DeletedMeanwhile)), "{refused}");
        pair.settled().await;
        assert!(pair.objects().await.is_empty(), "{:?}", pair.objects().await);
        pair.push(&pair.one, &path).await;
        pair.settled().await;
        pair.whole(&path).await;
    }
}

on_each_database! {
    async fn a_path_that_is_pushed_and_deleted_at_once_is_whole_or_gone(server: TestServer) {
        let alice = Arc::new(server.token("alice", &["push:main"]).await.http);
        let path = TestPath::new("thing", "hello".repeat(1000));
        let narinfo = format!("/main/{}.narinfo", path.hash());
        let mut outcomes = BTreeMap::new();
        for _ in 0..40 {
            let pushing = {
                let (alice, path) = (alice.clone(), path.clone());
                tokio::spawn(async move {
                    let nar = alice.put_nar("main", &path).await.status;
                    (nar, alice.put_narinfo("main", &path).await.status)
                })
            };
            let body = PathDelete { reason: "a race".to_owned() };
            let deleted = server.admin().path_delete("main", path.hash(), &body).await;
            let (nar_status, narinfo_status) = pushing.await.unwrap();
            assert!(matches!(nar_status, 201 | 409), "{nar_status}");
            assert!(matches!(narinfo_status, 200 | 201 | 422), "{narinfo_status}");

            let served = server.http().get(&narinfo).await.status;
            if served == 200 {
                let nar = server.http().get(&format!("/main/{}", path.nar_url())).await;
                assert_eq!(nar.assert_status(200).body, path.file);
            }
            *outcomes.entry((deleted.is_ok(), nar_status, narinfo_status, served)).or_insert(0) += 1;
        }
        println!("deleted, status of the NAR and of the narinfo, then served: {outcomes:?}");
        assert!(outcomes.len() > 1, "nothing raced: {outcomes:?}");
        // What is still on its way out of storage does not take along what is pushed now.
        assert_eq!(alice.put_nar("main", &path).await.status, 201);
        assert!(matches!(alice.put_narinfo("main", &path).await.status, 200 | 201));
        until("the outbox to be empty", async || {
            let metrics = server.http().get("/metrics").await;
            metrics.text().contains("\nnarvault_outbox_objects 0\n").then_some(())
        })
        .await;
        let nar = server.http().get(&format!("/main/{}", path.nar_url())).await;
        assert_eq!(nar.assert_status(200).body, path.file);
        server.stop().await;
    }
}
