//! Every row opens at every moment of a rotation, whoever dies; and the keys that went open nothing that came later.

use std::collections::BTreeSet;
use std::time::Duration;

use super::worker::{AGAIN_SECONDS, BATCH, LEASE_MILLIS};
use super::*;
use crate::access::TokenText;
use crate::db::PageBounds;
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::testing::{TestDb, on_each_database};
use crate::db::{caches, webhooks};
use crate::nix::signature::PublicKey;
use crate::service::testing::{self, Sample, TestService};
use crate::service::{AuditQuery, EventKind, FIRST_CACHE, KeySource, NewWebhook, Service, Unseal};
use crate::vault::{KeyLabel, Purpose, Sealed};

mod root;

/// Keys beside those of the server: some batches of them.
const KEYS: u32 = 2 * BATCH as u32 + 30;

/// A server with many keys, of which one signs, and a pusher.
struct Desk {
    server: TestService,
    pusher: TokenText,
}

impl Desk {
    async fn start(test: &TestDb) -> Self {
        let server = TestService::start(test).await;
        let pusher = server.contributor("ci", "push:main").await;
        add_keys(&server, KEYS).await;
        Self { server, pusher }
    }

    fn service(&self) -> &Service {
        &self.server.service
    }

    async fn push(&self, number: u64) {
        let call = self.server.call(&self.pusher).await;
        self.server.push(&call, &Sample::numbered(number)).await.unwrap();
    }

    async fn push_to(&self, replica: &Service, number: u64) -> crate::service::Result<()> {
        let (call, sample) = (self.server.call(&self.pusher).await, Sample::numbered(number));
        let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(sample.nar.clone())]);
        let cache = FIRST_CACHE.parse().unwrap();
        replica.put_nar(&call, &cache, sample.file, None, body).await?;
        replica.put_narinfo(&call, &cache, sample.path.hash(), sample.narinfo.as_bytes()).await.map(drop)
    }

    async fn status(&self) -> VaultStatus {
        self.service().vault_status(&Call::host()).await.unwrap()
    }

    async fn rotation(&self) -> KekRotation {
        self.status().await.kek_rotation.unwrap()
    }

    /// Takes the rotation on until it is at its end, or waits for the clock.
    async fn drive(&self) -> KekRotation {
        drive(self.service()).await;
        self.rotation().await
    }

    async fn replica(&self, test: &TestDb) -> Service {
        testing::open(test, &self.server.clock, testing::vault(test)).await.0
    }

    /// Every key of the server and of its cache.
    async fn keys(&self, test: &TestDb) -> Vec<KeyRow> {
        let mut connection = test.db.read().await.unwrap();
        let mut rows = Vec::new();
        for purpose in [Purpose::Cache, Purpose::Log, Purpose::Token] {
            rows.extend(signing_keys::by_purpose(&mut connection, purpose).await.unwrap());
        }
        rows
    }

    /// Whoever opens the vault now opens every row.
    async fn all_open(&self, test: &TestDb) {
        let replica = self.replica(test).await;
        for row in self.keys(test).await {
            replica.inner.keyring.prove(&row.key).unwrap();
        }
        replica.shut_down().await;
    }
}

async fn drive(service: &Service) {
    for _ in 0..1000 {
        let mut connection = service.inner.db.read().await.unwrap();
        let row = kek_rotations::newest(&mut connection).await.unwrap().unwrap();
        drop(connection);
        if row.ended_at.is_some() || row.due_at > service.inner.clock.now() {
            return;
        }
        service.advance_kek_rotation().await.unwrap();
    }
    panic!("it does not end");
}

/// Keys of the first cache that do not sign, as rows.
async fn add_keys(server: &TestService, count: u32) {
    let service = &server.service;
    let now = server.clock.now();
    let mut tx = service.inner.db.begin(Gate::Exclusive).await.unwrap();
    let cache = caches::by_name(&mut tx, &FIRST_CACHE.parse().unwrap()).await.unwrap().unwrap();
    for number in 0..count {
        let label = KeyLabel {
            id: service.new_id(now),
            name: format!("extra-{number}"),
            version: number + 2,
            purpose: Purpose::Cache,
            cache_id: Some(cache.id.to_string()),
        };
        let key = service.seal_new(&mut tx, |vault| vault.seal_new_key(label)).await.unwrap();
        let public_key = PublicKey::new(key.label.name.parse().unwrap(), &key.public_key).unwrap();
        let row = KeyRow { key, public_key, state: KeyState::Next, imported: false, created_at: now };
        signing_keys::insert(&mut tx, &row).await.unwrap();
    }
    tx.commit().await.unwrap();
}

fn versions(rows: &[KeyRow]) -> BTreeSet<u32> {
    rows.iter().map(|row| row.key.sealed.kek_version()).collect()
}

async fn live_keks(test: &TestDb) -> Vec<u32> {
    let keks = vault::keks(&mut test.db.read().await.unwrap()).await.unwrap();
    keks.into_iter().map(|kek| kek.version).collect()
}

async fn actions(desk: &Desk, action: &str) -> usize {
    let query = AuditQuery { action: Some(action.to_owned()), ..AuditQuery::default() };
    let page = PageBounds { after: None, limit: 200, descending: false };
    desk.service().list_audit(&Call::host(), &query, &page).await.unwrap().len()
}

on_each_database! {
    async fn every_row_comes_under_the_new_kek_and_the_old_one_is_overwritten(test: &TestDb) {
        let desk = Desk::start(test).await;
        let before = desk.keys(test).await;
        let admin = desk.server.admin().await;
        let (hook, _) = webhook(desk.service()).await;

        let status = desk.service().rotate_kek(&admin).await.unwrap();

        assert_eq!(status.versions, VaultVersions { root: 1, kek: 2 });
        assert_eq!(status.rows_behind, before.len() as u64 + 1);
        let done = desk.drive().await;
        assert_eq!(done.state, KekRotationState::Done);
        assert_eq!((done.total, done.done), (before.len() as u64 + 1, before.len() as u64 + 1));
        assert_eq!(desk.status().await.rows_behind, 0);
        let after = desk.keys(test).await;
        assert_eq!(versions(&after), BTreeSet::from([2]));
        let public = |rows: &[KeyRow]| rows.iter().map(|row| row.key.public_key).collect::<Vec<_>>();
        assert_eq!(public(&after), public(&before));
        assert_eq!(live_keks(test).await, [2]);
        desk.all_open(test).await;
        let moved = webhooks::by_id(&mut test.db.read().await.unwrap(), &hook.id).await.unwrap().unwrap();
        assert_eq!(moved.row.secret.sealed.kek_version(), 2);
        let keyring = &desk.service().inner.keyring;
        assert_eq!(keyring.sign_webhook(&moved.row.secret, b"x").unwrap(), keyring.sign_webhook(&hook, b"x").unwrap());
        desk.push(0).await;
        assert_eq!((actions(&desk, "vault-kek-rotate").await, actions(&desk, "vault-kek-retire").await), (1, 1));
    }

    async fn a_replica_that_dies_between_any_two_writes_loses_nothing(test: &TestDb) {
        let desk = Desk::start(test).await;
        for cut in 0..4 {
            desk.service().rotate_kek(&Call::host()).await.unwrap();
            let replica = desk.replica(test).await;
            replica.inner.log_cut.after(cut);
            let mut writes = 0;
            while replica.advance_kek_rotation().await.is_ok() {
                writes += 1;
                assert!(writes <= cut, "it goes on though it is dead");
            }

            desk.all_open(test).await;
            let kek = desk.status().await.versions.kek;
            let moved = desk.keys(test).await.iter().filter(|row| row.key.sealed.kek_version() == kek).count();
            assert_eq!(moved, (cut * BATCH as usize).min(desk.keys(test).await.len()), "cut {cut}");
            replica.shut_down().await;
            desk.server.clock.advance_seconds(LEASE_MILLIS / 1000 + 1);
            assert_eq!(desk.drive().await.state, KekRotationState::Done, "cut {cut}");
            assert_eq!(live_keks(test).await, [kek]);
            desk.push(cut as u64).await;
        }
    }

    async fn two_replicas_at_once_seal_each_row_once(test: &TestDb) {
        let desk = Desk::start(test).await;
        let other = desk.replica(test).await;
        desk.service().rotate_kek(&Call::host()).await.unwrap();

        while desk.rotation().await.ended_at.is_none() {
            let (one, two) = tokio::join!(desk.service().advance_kek_rotation(), other.advance_kek_rotation());
            one.unwrap();
            two.unwrap();
            // Neither lease holds for long.
            desk.server.clock.advance_seconds(LEASE_MILLIS / 1000 + 1);
        }

        let done = desk.rotation().await;
        assert_eq!(done.done, done.total);
        desk.all_open(test).await;
        other.shut_down().await;
    }

    async fn what_is_made_meanwhile_is_sealed_with_the_new_kek_on_every_replica(test: &TestDb) {
        let desk = Desk::start(test).await;
        let other = desk.replica(test).await;
        let cache = FIRST_CACHE.parse().unwrap();
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        desk.service().advance_kek_rotation().await.unwrap();
        let imported = "cache.example-1:uamXrYRALJLi2oaBhwBb9pdqcbKLEyLCrmYNvc8vmmGpulNzUJXvNm28dCiC85srA7yQeiMp34JIK\
            +zqxgwYQw==";

        // It did not hear of the rotation so far.
        assert_eq!(other.inner.keyring.versions().unwrap().kek, 1);
        let (hook, _) = webhook(&other).await;
        assert_eq!(hook.sealed.kek_version(), 2);
        for (service, source) in [
            (&other, KeySource::New { name: None }),
            (desk.service(), KeySource::New { name: None }),
            (&other, KeySource::import(imported).unwrap()),
        ] {
            let row = service.create_key(&Call::host(), &cache, &source).await.unwrap();
            assert_eq!(row.key.sealed.kek_version(), 2);
        }
        desk.push_to(&other, 0).await.unwrap();
        desk.push(1).await;

        assert_eq!(desk.drive().await.state, KekRotationState::Done);
        desk.all_open(test).await;
        desk.push_to(&other, 2).await.unwrap();
        other.shut_down().await;
    }

    async fn a_replica_that_heard_of_nothing_signs_mints_and_publishes(test: &TestDb) {
        let desk = Desk::start(test).await;
        let other = desk.replica(test).await;
        // So that it has all of its keys open, and remembers them.
        desk.push_to(&other, 0).await.unwrap();

        for round in 1..4 {
            desk.service().rotate_kek(&Call::host()).await.unwrap();
            desk.push_to(&other, round * 10).await.unwrap();
            drive(desk.service()).await;
            desk.push_to(&other, round * 10 + 1).await.unwrap();
            let name = format!("ci-{round}");
            let admin = desk.server.admin().await;
            other
                .create_contributor(&admin, &name.parse().unwrap(), crate::service::ContributorKind::Ci, None)
                .await
                .unwrap();
            let request = crate::service::TokenRequest {
                contributor: name.parse().unwrap(),
                scopes: "push:main".parse().unwrap(),
                lifetime_seconds: None,
                note: None,
            };
            other.issue_token(&admin, &request).await.unwrap();
        }
        other.shut_down().await;
    }

    async fn a_seal_in_the_middle_holds_it_up_until_the_vault_is_open(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        desk.service().advance_kek_rotation().await.unwrap();
        let other = desk.replica(test).await;
        desk.service().seal(&Call::host()).await.unwrap();
        let before = desk.rotation().await;
        desk.server.clock.advance_seconds(LEASE_MILLIS / 1000 + 1);

        desk.service().advance_kek_rotation().await.unwrap();
        // It has not heard of the seal.
        assert!(matches!(other.advance_kek_rotation().await, Err(Error::Sealed)));

        assert_eq!(desk.rotation().await, before);
        assert!(matches!(desk.service().rotate_kek(&Call::host()).await, Err(Error::Sealed)));
        desk.service().unseal(&Call::host(), Unseal::Configured).await.unwrap();
        desk.server.clock.advance_seconds(LEASE_MILLIS / 1000 + 1);
        assert_eq!(desk.drive().await.state, KekRotationState::Done);
        desk.all_open(test).await;
        other.shut_down().await;
    }

    async fn a_restart_goes_on_where_it_was(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        desk.service().advance_kek_rotation().await.unwrap();
        let before = desk.rotation().await.done;
        desk.server.clock.advance_seconds(LEASE_MILLIS / 1000 + 1);

        let restarted = desk.replica(test).await;
        drive(&restarted).await;

        let done = desk.rotation().await;
        assert_eq!((before, done.state), (BATCH as u64, KekRotationState::Done));
        assert_eq!(done.done, done.total);
        restarted.shut_down().await;
    }

    async fn a_row_that_does_not_open_is_named_and_keeps_its_kek_and_no_other_row(test: &TestDb) {
        let desk = Desk::start(test).await;
        let rows = desk.keys(test).await;
        let victim = |name: &str| rows.iter().find(|row| row.key.label.name == name).unwrap().key.sealed.clone();
        let mut flipped = victim("extra-7").as_bytes().to_vec();
        flipped[60] ^= 1;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        sealed_rows::overwrite(&mut tx, "extra-7", &flipped, 1).await;
        // As if it was done: the column alone would have its KEK go.
        sealed_rows::overwrite(&mut tx, "extra-8", victim("extra-8").as_bytes(), 2).await;
        sealed_rows::overwrite(&mut tx, "extra-9", victim("extra-9").erased().as_bytes(), 1).await;
        tx.commit().await.unwrap();
        desk.service().rotate_kek(&Call::host()).await.unwrap();

        let stopped = desk.drive().await;

        assert_eq!(stopped.state, KekRotationState::Rewrap);
        assert_eq!(stopped.damaged, ["key extra-7", "key extra-8", "key extra-9"]);
        assert_eq!(stopped.done, stopped.total - 3);
        assert_eq!(desk.service().kek_rows_behind().await.unwrap(), (3, 3));
        assert_eq!(live_keks(test).await, [1, 2]);
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        for name in ["extra-7", "extra-8", "extra-9"] {
            sealed_rows::overwrite(&mut tx, name, victim(name).as_bytes(), 1).await;
        }
        tx.commit().await.unwrap();
        desk.server.clock.advance_seconds(AGAIN_SECONDS);
        let done = desk.drive().await;
        assert_eq!((done.state, done.damaged.len()), (KekRotationState::Done, 0));
        assert_eq!(live_keks(test).await, [2]);
        desk.all_open(test).await;
    }

    async fn a_damaged_row_holds_only_the_kek_that_it_names(test: &TestDb) {
        let desk = Desk::start(test).await;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let record = [&Sealed::header(1)[..], &[9; 72]].concat();
        sealed_rows::overwrite(&mut tx, "extra-7", &record, 1).await;
        tx.commit().await.unwrap();
        for _ in 0..2 {
            desk.service().rotate_kek(&Call::host()).await.unwrap();
            desk.drive().await;
        }

        assert_eq!(live_keks(test).await, [1, 3]);
        let rotation = desk.rotation().await;
        assert_eq!((rotation.kek_version, rotation.damaged.as_slice()), (3, &["key extra-7".to_owned()][..]));
    }

    async fn a_destroyed_key_is_in_the_way_of_nothing(test: &TestDb) {
        let desk = Desk::start(test).await;
        let rows = desk.keys(test).await;
        let row = &rows.iter().find(|row| row.key.label.name == "extra-3").unwrap().key;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        signing_keys::overwrite_sealed(&mut tx, &row.label.id, &row.sealed.erased()).await.unwrap();
        signing_keys::change_state(&mut tx, &row.label.id, KeyState::Next, KeyState::Destroyed).await.unwrap();
        tx.commit().await.unwrap();
        desk.service().rotate_kek(&Call::host()).await.unwrap();

        assert_eq!(desk.drive().await.state, KekRotationState::Done);

        let rows = desk.keys(test).await;
        let after = &rows.iter().find(|row| row.key.label.name == "extra-3").unwrap().key.sealed;
        assert!(after.is_erased());
        assert_eq!(live_keks(test).await, [2]);
    }

    async fn a_later_rotation_takes_the_rows_of_the_former_over(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        desk.service().advance_kek_rotation().await.unwrap();

        desk.service().rotate_kek(&Call::host()).await.unwrap();

        assert_eq!(versions(&desk.keys(test).await), BTreeSet::from([1, 2]));
        assert_eq!(desk.drive().await.state, KekRotationState::Done);
        assert_eq!(versions(&desk.keys(test).await), BTreeSet::from([3]));
        assert_eq!(live_keks(test).await, [3]);
        desk.all_open(test).await;
    }

    async fn a_kek_stays_in_memory_for_a_while_and_not_for_ever(test: &TestDb) {
        let desk = Desk::start(test).await;
        let old = desk.keys(test).await.remove(0);
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        desk.drive().await;
        let keyring = &desk.service().inner.keyring;

        desk.service().follow_vault().await.unwrap();
        // Whoever read the row before is not too late.
        keyring.prove(&old.key).unwrap();
        let mut connection = test.db.read().await.unwrap();
        desk.service().forget_retired(&mut connection, Duration::ZERO).await.unwrap();

        assert_eq!(keyring.kek_versions(), [2]);
        assert!(matches!(keyring.prove(&old.key), Err(VaultError::UnknownKek { kek_version: 1, .. })));
        drop(connection);
        desk.push(0).await;
    }

    async fn a_kek_that_somebody_wrote_is_not_taken_in(test: &TestDb) {
        let desk = Desk::start(test).await;
        let other = desk.replica(test).await;
        desk.service().rotate_kek(&Call::host()).await.unwrap();
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let foreign = Sealed::parse(&[&Sealed::header(0)[..], &[9; 72]].concat()).unwrap();
        vault::overwrite_kek(&mut tx, 2, &foreign).await;
        tx.commit().await.unwrap();

        let refused = desk.push_to(&other, 0).await;

        assert!(matches!(refused, Err(Error::Vault(VaultError::Tampered { table: "vault_keks", .. }))), "{refused:?}");
        assert_eq!(other.inner.keyring.kek_versions(), [1]);
        other.shut_down().await;
    }

    async fn only_administrators_rotate(test: &TestDb) {
        let desk = Desk::start(test).await;
        let pusher = desk.server.call(&desk.pusher).await;

        let kek = desk.service().rotate_kek(&pusher).await;
        let root = desk.service().rotate_root(&pusher, NewRootRequest::default()).await;

        assert!(matches!(kek, Err(Error::Forbidden)) && matches!(root, Err(Error::Forbidden)));
        assert_eq!(desk.status().await.versions, VaultVersions { root: 1, kek: 1 });
    }
}

async fn webhook(service: &Service) -> (crate::vault::SealedWebhook, String) {
    let new =
        NewWebhook { url: "http://127.0.0.1:1/hook".to_owned(), events: EventKind::ALL.to_vec(), note: None };
    let (made, _) = service.create_webhook(&Call::host(), &new).await.unwrap();
    (made.row.secret, made.row.url)
}
