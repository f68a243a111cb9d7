//! Keys from their making to their end: each change and each refusal, rotations by a clock that is set by hand, and
//! what survives a stop in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::access::TokenText;
use crate::db::PageBounds;
use crate::db::key_rotations::{self, RotationStep};
use crate::db::testing::{TestDb, on_each_database};
use crate::db::{epoch, log, paths};
use crate::service::testing::{self, Sample, TestService, new_cache};
use crate::service::{Rotation, RotationRequest, Unseal};
use crate::storage::CacheObject;
use crate::tlog::leaf::{Event, Leaf};
use crate::vault::Sealed;

mod compromise;
mod cuts;
mod realisations;
mod succession;

pub(super) const DAY: i64 = 24 * 3600;

/// A server with a pusher, and its cache.
pub(super) struct Desk {
    pub server: TestService,
    pub pusher: TokenText,
}

impl Desk {
    pub async fn start(test: &TestDb) -> Self {
        Self::start_paced(test, KeyLimits::default()).await
    }

    pub async fn start_paced(test: &TestDb, keys: KeyLimits) -> Self {
        let server = TestService::start_paced(test, keys).await;
        let pusher = server.contributor("ci", "push:main").await;
        Self { server, pusher }
    }

    pub fn service(&self) -> &Service {
        &self.server.service
    }

    pub async fn push(&self, sample: &Sample) {
        let call = self.server.call(&self.pusher).await;
        self.server.push(&call, sample).await.unwrap();
    }

    pub async fn push_many(&self, numbers: std::ops::Range<u64>) -> Vec<Sample> {
        let samples: Vec<Sample> = numbers.map(Sample::numbered).collect();
        for sample in &samples {
            self.push(sample).await;
        }
        // The clock stands still: nothing else would end what this replica has leased.
        self.service().finish().await.unwrap();
        samples
    }

    /// Every key of the cache by its name, with its state.
    pub async fn states(&self) -> BTreeMap<String, KeyState> {
        let rows = self.service().list_keys(&Call::host(), &main()).await.unwrap();
        rows.into_iter().map(|row| (row.key.label.name, row.state)).collect()
    }

    /// The name of the only key in this state.
    pub async fn only(&self, state: KeyState) -> KeyName {
        let states = self.states().await;
        let mut found = states.iter().filter(|(_, found)| **found == state).map(|(name, _)| name);
        let name = found.next().unwrap_or_else(|| panic!("none is {state:?}: {states:?}"));
        assert!(found.next().is_none(), "{states:?}");
        name.parse().unwrap()
    }

    pub async fn row(&self, name: &KeyName) -> KeyRow {
        let rows = self.service().list_keys(&Call::host(), &main()).await.unwrap();
        rows.into_iter().find(|row| row.public_key.name() == name).unwrap()
    }

    pub async fn rotate(&self, asked: RotationRequest) -> super::super::Result<Rotation> {
        self.service().rotate_key(&Call::host(), &main(), &asked).await
    }

    pub async fn rotation(&self) -> Rotation {
        self.service().show_rotation(&Call::host(), &main()).await.unwrap()
    }

    /// Takes rotations on until nothing is left to do but to wait for the clock or for somebody.
    pub async fn drive(&self) -> Rotation {
        drive(self.service()).await;
        self.rotation().await
    }

    /// The names of the keys whose valid signatures the narinfo has that is served, and the one in storage.
    pub async fn signers(&self, sample: &Sample) -> BTreeSet<String> {
        self.signers_in(&main(), sample).await
    }

    /// The same in another cache.
    pub async fn signers_in(&self, cache: &CacheName, sample: &Sample) -> BTreeSet<String> {
        let service = self.service();
        let row = service.existing_cache(cache).await.unwrap();
        let served = service.narinfo(&row, sample.path.hash()).await.unwrap().unwrap().text.clone();
        let key = crate::service::key_of(&row, CacheObject::Narinfo(sample.path.hash())).unwrap();
        let stored = service.inner.storage.read(&key, 1 << 20).await.unwrap().unwrap();
        assert_eq!(served, stored, "storage says what the rows say");
        let narinfo = crate::nix::narinfo::SignedClaim::parse(&served).unwrap();
        let keys = service.list_keys(&Call::host(), cache).await.unwrap();
        let fingerprint = narinfo.claim.fingerprint();
        for signature in &narinfo.signatures {
            let key = keys.iter().find(|row| *row.public_key.name() == signature.name).unwrap();
            assert!(key.public_key.verify(fingerprint.as_bytes(), signature), "{signature}");
        }
        narinfo.signatures.iter().map(|one| one.name.to_string()).collect()
    }

    /// The log's leaves.
    pub async fn leaves(&self) -> Vec<Leaf> {
        let mut connection = self.service().inner.db.read().await.unwrap();
        let leaves = log::leaves(&mut connection, 0, 10_000).await.unwrap();
        leaves.iter().map(|(_, text)| Leaf::parse(text.as_bytes()).unwrap()).collect()
    }

    /// How often each path was signed again, by which key.
    pub async fn resigned(&self) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for leaf in self.leaves().await {
            let Event::Resign(signed) = leaf.event else { continue };
            assert_eq!((leaf.by, leaf.token), (None, None));
            let crate::tlog::leaf::Disclosed::Open(claim) = signed.claim else { panic!("main is public") };
            *counts.entry((claim.path.to_string(), signed.key.to_string())).or_default() += 1;
        }
        counts
    }

    pub async fn unlogged(&self, name: &KeyName) -> Vec<(String, String)> {
        let page = PageBounds { after: None, limit: 100, descending: false };
        let rows = self.service().unlogged_signatures(&Call::host(), &main(), name, &page).await.unwrap();
        rows.into_iter().map(|row| (row.place, row.subject)).collect()
    }
}

pub(super) fn main() -> CacheName {
    "main".parse().unwrap()
}

pub(super) async fn drive(service: &Service) {
    for _ in 0..200 {
        service.advance_rotations().await.unwrap();
        // The worker's part, and the finisher's.
        while service.release_due().await.unwrap() > 0 {}
        service.finish().await.unwrap();
        let rows = key_rotations::under_way(&mut service.inner.db.read().await.unwrap()).await.unwrap();
        let at_work = rows.iter().any(|row| {
            !matches!(row.step, RotationStep::Publish | RotationStep::Wait) && row.paused_at.is_none()
        });
        if !at_work {
            return;
        }
    }
    panic!("a rotation does not come to its end");
}

fn names(all: &[&KeyName]) -> BTreeSet<String> {
    all.iter().map(ToString::to_string).collect()
}

#[track_caller]
pub(super) fn assert_conflict<T: std::fmt::Debug>(result: super::super::Result<T>, text: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Conflict(_)) && error.to_string().contains(text), "{error:?}");
}

on_each_database! {
    async fn a_rotation_goes_through_its_steps_on_their_dates(test: &TestDb) {
        let desk = Desk::start(test).await;
        let before = desk.push_many(0..3).await;
        let old = desk.only(KeyState::Active).await;

        let rotation = desk.rotate(RotationRequest::default()).await.unwrap();
        let new = desk.only(KeyState::Next).await;
        let day = |days: i64| desk.server.clock.now().plus_seconds(days * DAY);
        let expected: Vec<_> = rotation.steps.iter().map(|step| (step.step, step.at)).collect();
        assert_eq!(
            expected,
            [
                (RotationStep::Publish, day(0)),
                (RotationStep::Resign, day(7)),
                (RotationStep::Release, day(7)),
                (RotationStep::Wait, day(7)),
                (RotationStep::Done, day(37)),
            ]
        );
        assert!(rotation.waiting_for.unwrap().contains("learn the new public key"));
        let trusted = desk.service().public_keys(&testing::anonymous(), &main()).await.unwrap().keys;
        assert_eq!(trusted.iter().map(PublicKey::name).collect::<Vec<_>>(), [&old, &new]);

        assert_eq!(desk.drive().await.step, RotationStep::Publish);
        assert_eq!(desk.signers(&before[0]).await, names(&[&old]));

        desk.server.clock.advance_seconds(7 * DAY);
        let rotation = desk.drive().await;
        assert_eq!((rotation.step, rotation.progress.refused), (RotationStep::Wait, 0));
        assert_eq!(desk.only(KeyState::Active).await, new);
        assert_eq!(desk.only(KeyState::Retiring).await, old);
        let between = desk.push_many(3..5).await;
        for sample in before.iter().chain(&between) {
            assert_eq!(desk.signers(sample).await, names(&[&old, &new]));
        }

        desk.server.clock.advance_seconds(30 * DAY - 1);
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        desk.server.clock.advance_seconds(1);
        let rotation = desk.drive().await;
        assert_eq!((rotation.step, rotation.waiting_for), (RotationStep::Done, None));
        assert_eq!(desk.only(KeyState::Retired).await, old);
        let after = desk.push_many(5..6).await;
        assert_eq!(desk.signers(&after[0]).await, names(&[&new]));
        assert_eq!(desk.signers(&before[0]).await, names(&[&old, &new]));
        let changes = desk.leaves().await.into_iter().filter_map(|leaf| match leaf.event {
            Event::KeyState(key) => Some((key.key.to_string(), key.state.unwrap().to_string())),
            _ => None,
        });
        let changes: Vec<_> = changes.collect();
        let change = |key: &KeyName, state: &str| (key.to_string(), state.to_owned());
        assert_eq!(
            changes[1..],
            [change(&new, "active"), change(&old, "retiring"), change(&old, "retired")]
        );
        assert!(desk.resigned().await.values().all(|count| *count == 1));
        assert_eq!(desk.resigned().await.len(), 3);
    }

    async fn signing_again_goes_on_where_it_was_stopped(test: &TestDb) {
        let slow = KeyLimits { resign_paths_per_second: 2, publish_days: 0, wait_days: 1 };
        let desk = Desk::start_paced(test, slow).await;
        let samples = desk.push_many(0..7).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        // Begins to sign, then two batches of two.
        for _ in 0..3 {
            desk.service().advance_rotations().await.unwrap();
        }
        assert_eq!(desk.rotation().await.progress.done, 4);
        let others = testing::Others { keys: slow, ..testing::Others::default() };
        let (other, _) = testing::open_with(test, &desk.server.clock, testing::vault(test), others).await;

        // The first one may still be alive.
        other.advance_rotations().await.unwrap();
        assert_eq!(desk.rotation().await.progress.done, 4);
        desk.server.clock.advance_seconds(11);
        drive(&other).await;

        assert_eq!(desk.rotation().await.step, RotationStep::Wait);
        let resigned = desk.resigned().await;
        assert_eq!((resigned.len(), resigned.values().max()), (7, Some(&1)));
        for sample in &samples {
            assert_eq!(desk.signers(sample).await.len(), 2);
        }
        other.shut_down().await;
    }

    async fn a_replica_changes_no_more_paths_a_second_than_it_may(test: &TestDb) {
        let slow = KeyLimits { resign_paths_per_second: 4, publish_days: 0, wait_days: 1 };
        let desk = Desk::start_paced(test, slow).await;
        let (admin, other) = (desk.server.admin().await, "other".parse().unwrap());
        desk.service().create_cache(&admin, &new_cache("other")).await.unwrap();
        desk.service().create_key(&admin, &other, &KeySource::New { name: None }).await.unwrap();
        desk.push_many(0..9).await;
        let everywhere = desk.server.contributor("cd", "push:*").await;
        let call = desk.server.call(&everywhere).await;
        for sample in (10..19).map(Sample::numbered) {
            desk.server.push_to(&other, &call, &sample).await.unwrap();
        }
        desk.service().finish().await.unwrap();
        for cache in [&main(), &other] {
            desk.service().rotate_key(&admin, cache, &RotationRequest::default()).await.unwrap();
        }
        // Both begin to sign.
        assert_eq!(desk.service().advance_rotations().await.unwrap(), Duration::ZERO);

        // Four of each.
        let pause = desk.service().advance_rotations().await.unwrap();

        assert_eq!(desk.rotation().await.progress.done, 4);
        assert_eq!(pause, Duration::from_secs(2));
        let old = desk.only(KeyState::Retiring).await;
        desk.service().compromise_key(&admin, &main(), &old, "stolen").await.unwrap();
        desk.service().abandon_rotation(&admin, &other).await.unwrap();
        let pause = desk.service().advance_rotations().await.unwrap();
        assert_eq!(desk.rotation().await.progress.done, 4, "of what is purged, too");
        assert_eq!(pause, Duration::from_secs(1));
    }

    async fn a_replica_that_believes_in_an_old_batch_does_nothing(test: &TestDb) {
        let slow = KeyLimits { resign_paths_per_second: 2, publish_days: 0, wait_days: 1 };
        let desk = Desk::start_paced(test, slow).await;
        desk.push_many(0..6).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        desk.service().advance_rotations().await.unwrap();
        let read = || async {
            let mut connection = desk.service().inner.db.read().await.unwrap();
            key_rotations::under_way(&mut connection).await.unwrap().remove(0)
        };
        desk.service().advance_rotations().await.unwrap();
        let stale = read().await;
        desk.service().advance_rotations().await.unwrap();
        let (done, leaves) = (read().await.progress.done, desk.leaves().await.len());

        let batch = desk.service().resign_batch(&stale).await.unwrap();

        assert_eq!(batch, resign::Batch::Elsewhere);
        assert_eq!((read().await.progress.done, desk.leaves().await.len()), (done, leaves));
        // Nor does whoever has lost the lease.
        let others = testing::Others { keys: slow, ..testing::Others::default() };
        let (other, _) = testing::open_with(test, &desk.server.clock, testing::vault(test), others).await;
        assert_eq!(other.resign_batch(&read().await).await.unwrap(), resign::Batch::Elsewhere);
        assert_eq!(desk.leaves().await.len(), leaves);
        other.shut_down().await;
    }

    async fn a_key_is_promoted_and_retired_by_hand_but_never_the_last_one(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let first = desk.only(KeyState::Active).await;
        let sample = desk.push_many(0..1).await.remove(0);
        assert_conflict(service.retire_key(&admin, &main(), &first).await, "only key that signs");
        assert_conflict(service.promote_key(&admin, &main(), &first).await, "next or retiring");
        let next = service.create_next_key(&admin, &main(), &KeySource::New { name: None }).await.unwrap();
        let next = next.public_key.name().clone();
        assert_eq!(desk.states().await[next.as_str()], KeyState::Next);
        assert_conflict(service.resign_with(&admin, &main(), &next).await, "does not sign");

        service.promote_key(&admin, &main(), &next).await.unwrap();
        service.resign_with(&admin, &main(), &next).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_eq!(desk.signers(&sample).await, names(&[&first, &next]));
        service.retire_key(&admin, &main(), &first).await.unwrap();
        assert_conflict(service.retire_key(&admin, &main(), &first).await, "does not sign any more");
        assert_conflict(service.promote_key(&admin, &main(), &first).await, "next or retiring");
        assert_eq!(desk.signers(&desk.push_many(1..2).await[0]).await, names(&[&next]));

        for unknown in [main(), "other".parse().unwrap()] {
            let key = "nobody-1".parse().unwrap();
            let refused = service.promote_key(&admin, &unknown, &key).await.unwrap_err();
            assert!(matches!(refused, Error::NotFound(_)), "{refused:?}");
        }
    }

    async fn a_rotation_leaves_keys_to_nobody_else(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let old = desk.only(KeyState::Active).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        let new = desk.only(KeyState::Next).await;

        assert_conflict(desk.rotate(RotationRequest::default()).await, "under way");
        assert_conflict(service.resign_with(&admin, &main(), &old).await, "under way");
        assert_conflict(service.retire_key(&admin, &main(), &old).await, "under way");
        assert_conflict(service.retire_key(&admin, &main(), &new).await, "under way");
        // Paused, it does not go on, also not by hand.
        service.pause_rotation(&admin, &main(), true).await.unwrap();
        desk.server.clock.advance_seconds(8 * DAY);
        let rotation = desk.drive().await;
        assert!(rotation.paused && rotation.waiting_for.unwrap().contains("narvault key resume"));
        assert_eq!(rotation.step, RotationStep::Publish);
        assert_conflict(service.promote_key(&admin, &main(), &new).await, "under way");
        service.pause_rotation(&admin, &main(), false).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        service.abandon_rotation(&admin, &main()).await.unwrap();
        assert_eq!(desk.rotation().await.step, RotationStep::Abandoned);
        assert_conflict(service.abandon_rotation(&admin, &main()).await, "no rotation");
        assert_conflict(service.pause_rotation(&admin, &main(), true).await, "no rotation");
        assert_eq!(desk.states().await[old.as_str()], KeyState::Retiring);
        service.retire_key(&admin, &main(), &old).await.unwrap();
    }

    async fn by_hand_a_rotation_waits_no_longer(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let old = desk.only(KeyState::Active).await;
        let sample = desk.push_many(0..1).await.remove(0);
        desk.rotate(RotationRequest { wait_days: Some(90), ..RotationRequest::default() }).await.unwrap();
        let new = desk.only(KeyState::Next).await;

        service.promote_key(&admin, &main(), &new).await.unwrap();
        assert_conflict(service.retire_key(&admin, &main(), &old).await, "under way");
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        service.retire_key(&admin, &main(), &old).await.unwrap();

        assert_eq!(desk.rotation().await.step, RotationStep::Done);
        assert_eq!(desk.states().await[old.as_str()], KeyState::Retired);
        assert_eq!(desk.signers(&sample).await, names(&[&old, &new]));
    }

    async fn what_a_rotation_is_asked_for_has_to_make_sense(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let first = desk.only(KeyState::Active).await;
        let second = service.create_key(&admin, &main(), &KeySource::New { name: None }).await.unwrap();
        let second = second.public_key.name().clone();
        let of = |old: Option<&KeyName>, new: Option<&KeyName>| RotationRequest {
            old: old.cloned(),
            new: new.cloned(),
            ..RotationRequest::default()
        };

        assert_conflict(desk.rotate(of(None, None)).await, "several keys are active");
        assert_conflict(desk.rotate(of(Some(&first), Some(&second))).await, "one that is next");
        let unknown = "nobody-1".parse().unwrap();
        let refused = desk.rotate(of(Some(&unknown), None)).await.unwrap_err();
        assert!(matches!(refused, Error::NotFound("key")), "{refused:?}");
        let long = RotationRequest { publish_days: Some(4000), ..of(Some(&first), None) };
        assert!(desk.rotate(long).await.unwrap_err().to_string().starts_with("publish_days"));
        let stranger = service.rotate_key(&testing::anonymous(), &main(), &of(None, None)).await.unwrap_err();
        assert!(matches!(stranger, Error::Unauthenticated(_)), "{stranger:?}");
        let pusher = desk.server.call(&desk.pusher).await;
        let refused = service.rotate_key(&pusher, &main(), &of(None, None)).await.unwrap_err();
        assert!(matches!(refused, Error::Forbidden), "{refused:?}");

        let chosen: KeyName = "main-2027".parse().unwrap();
        desk.rotate(of(Some(&first), Some(&chosen))).await.unwrap();
        assert_eq!(desk.only(KeyState::Next).await, chosen);
    }

    async fn a_retired_key_is_destroyed_once_nothing_rests_on_it_alone(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let old = desk.only(KeyState::Active).await;
        let sample = desk.push_many(0..1).await.remove(0);
        let new = service.create_key(&admin, &main(), &KeySource::New { name: None }).await.unwrap();
        let new = new.public_key.name().clone();
        assert_conflict(service.destroy_key(&admin, &main(), &old).await, "only a retired or compromised");
        assert_conflict(service.drop_signatures(&admin, &main(), &old).await, "only a retired");
        service.retire_key(&admin, &main(), &old).await.unwrap();
        for refused in [
            service.destroy_key(&admin, &main(), &old).await.map(drop),
            service.drop_signatures(&admin, &main(), &old).await.map(drop),
        ] {
            assert_conflict(refused, "1 published paths and realisations are signed by this key alone");
        }
        service.resign_with(&admin, &main(), &new).await.unwrap();
        desk.drive().await;

        service.drop_signatures(&admin, &main(), &old).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_eq!(desk.signers(&sample).await, names(&[&new]));
        let before = desk.row(&old).await;
        service.destroy_key(&admin, &main(), &old).await.unwrap();

        let after = desk.row(&old).await;
        assert_eq!(after.state, KeyState::Destroyed);
        assert_ne!(after.key.sealed, before.key.sealed);
        assert!(after.key.sealed.as_bytes()[6..].iter().all(|byte| *byte == 0));
        assert!(Sealed::parse(after.key.sealed.as_bytes()).is_ok());
        assert!(service.inner.keyring.prove(&after.key).is_err());
        assert_conflict(service.destroy_key(&admin, &main(), &old).await, "only a retired or compromised");
        let trusted = service.public_keys(&testing::anonymous(), &main()).await.unwrap().keys;
        assert_eq!(trusted.iter().map(PublicKey::name).collect::<Vec<_>>(), [&new]);
        let again = KeySource::New { name: Some(old.clone()) };
        assert_conflict(service.create_key(&admin, &main(), &again).await, "given before");
    }

    async fn a_sealed_server_waits_and_goes_on_when_it_is_unsealed(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        desk.push_many(0..2).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        service.seal(&admin).await.unwrap();
        desk.server.clock.advance_seconds(8 * DAY);

        service.advance_rotations().await.unwrap();
        let rotation = desk.rotation().await;
        assert_eq!((rotation.step, rotation.waiting_for.as_deref()), (RotationStep::Publish, Some("the vault to be unsealed")));
        let refused = desk.rotate(RotationRequest::default()).await.unwrap_err();
        assert!(matches!(refused, Error::Sealed), "{refused:?}");
        service.unseal(&admin, Unseal::Configured).await.unwrap();

        assert_eq!(desk.drive().await.step, RotationStep::Wait);
    }

    async fn a_path_that_comes_back_unsigned_is_signed_before_the_old_key_retires(test: &TestDb) {
        let desk = Desk::start(test).await;
        let samples = desk.push_many(0..2).await;
        let (old, request) = (desk.only(KeyState::Active).await, RotationRequest::default());
        desk.rotate(request).await.unwrap();
        let new = desk.only(KeyState::Next).await;
        // Away while everything is signed again.
        let set = async |from: paths::PathState, to: paths::PathState| {
            let mut tx = desk.service().inner.db.begin(Gate::Exclusive).await.unwrap();
            let cache = caches::by_name(&mut tx, &main()).await.unwrap().unwrap();
            let path = paths::find(&mut tx, cache.id, samples[0].path.hash()).await.unwrap().unwrap();
            let now = desk.server.clock.now();
            assert!(paths::change_state(&mut tx, &path.id, from, to, now).await.unwrap());
            epoch::advance(&mut tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        set(paths::PathState::Published, paths::PathState::Withdrawn).await;
        desk.server.clock.advance_seconds(7 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        set(paths::PathState::Withdrawn, paths::PathState::Published).await;

        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        desk.service().note_change().await;
        assert_eq!(desk.signers(&samples[0]).await, names(&[&old, &new]));
        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
    }

    async fn what_the_log_does_not_account_for_is_not_signed_again(test: &TestDb) {
        let desk = Desk::start(test).await;
        let samples = desk.push_many(0..3).await;
        let old = desk.only(KeyState::Active).await;
        // Somebody with the database in hand: a signature that is none, and one that no leaf tells of.
        let mut tx = desk.service().inner.db.begin(Gate::Exclusive).await.unwrap();
        let cache = caches::by_name(&mut tx, &main()).await.unwrap().unwrap();
        for (sample, leaf) in samples.iter().zip([Some(0), None]) {
            let path = paths::find(&mut tx, cache.id, sample.path.hash()).await.unwrap().unwrap();
            let mut standing = paths::signatures(&mut tx, &path.claim_id).await.unwrap().remove(0);
            standing.leaf = leaf.or(standing.leaf);
            if leaf.is_none() {
                standing.signature.bytes[5] ^= 1;
            }
            let Some(leaf) = standing.leaf else { panic!("signed here") };
            let made = paths::MadeSignature { claim_id: path.claim_id, signature: standing.signature, leaf };
            paths::put_signatures(&mut tx, &[made]).await.unwrap();
        }
        tx.commit().await.unwrap();
        desk.rotate(RotationRequest::default()).await.unwrap();
        desk.server.clock.advance_seconds(7 * DAY);

        let rotation = desk.drive().await;

        assert_eq!((rotation.step, rotation.progress.done, rotation.progress.refused), (RotationStep::Wait, 1, 2));
        assert_eq!(desk.resigned().await.keys().map(|(path, _)| path.clone()).collect::<Vec<_>>(), [samples[2].path.to_string()]);
        let unlogged = desk.unlogged(&old).await;
        let mut expected: Vec<_> =
            samples[..2].iter().map(|sample| ("rows".to_owned(), sample.path.base_name().to_owned())).collect();
        expected.sort();
        assert_eq!(BTreeSet::from_iter(unlogged), BTreeSet::from_iter(expected));
        // It does not hold the old key back.
        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
    }

    async fn a_row_that_somebody_wrote_is_left_alone_and_holds_no_rotation_up(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.push_many(0..2).await;
        let old = desk.only(KeyState::Active).await;
        let planted = compromise::plant(&desk, &desk.row(&old).await, 77).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        desk.server.clock.advance_seconds(7 * DAY);

        let rotation = desk.drive().await;

        assert_eq!((rotation.step, rotation.progress.done, rotation.progress.refused), (RotationStep::Wait, 2, 1));
        assert_eq!(rotation.steps.iter().filter(|step| step.step == RotationStep::Resign).count(), 1);
        assert_eq!(desk.unlogged(&old).await, [("rows".to_owned(), planted)]);
        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
    }

    async fn idle_keys_are_wiped_on_every_replica(test: &TestDb) {
        let desk = Desk::start(test).await;
        let admin = desk.server.admin().await;
        let old = desk.only(KeyState::Active).await;
        desk.push_many(0..1).await;
        let row = desk.row(&old).await;
        let (other, _) = testing::open(test, &desk.server.clock, testing::vault(test)).await;
        other.inner.keyring.sign_claim(&row.key, b"1;").unwrap();
        desk.service().create_key(&admin, &main(), &KeySource::New { name: None }).await.unwrap();
        desk.service().retire_key(&admin, &main(), &old).await.unwrap();

        other.forget_idle_keys().await.unwrap();

        assert!(!other.inner.keyring.holds(&row.key.label.id));
        assert!(!desk.service().inner.keyring.holds(&row.key.label.id));
        other.shut_down().await;
    }
}
