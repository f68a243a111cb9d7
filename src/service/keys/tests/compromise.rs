//! A key that others may hold: what it signed here stands under another key, what it signed elsewhere is found.

use super::*;
use crate::db::caches;
use crate::db::key_rotations::RotationKind;
use crate::db::paths::PathState;
use crate::nix::narinfo::SignedClaim;
use crate::nix::signature::Signature;

/// A signature by the holder of a stolen key, of which no leaf tells.
pub(super) fn stolen(desk: &Desk, key: &KeyRow, fingerprint: &str) -> Signature {
    let bytes = desk.service().inner.keyring.sign_claim(&key.key, fingerprint.as_bytes()).unwrap();
    Signature { name: key.public_key.name().clone(), bytes }
}

/// Writes a path that nobody pushed into the database, with such a signature.
pub(super) async fn plant(desk: &Desk, key: &KeyRow, number: u64) -> String {
    let mut tx = desk.service().inner.db.begin(Gate::Exclusive).await.unwrap();
    let cache = caches::by_name(&mut tx, &main()).await.unwrap().unwrap();
    let claim_id = crate::db::testing::published_path(&mut tx, cache.id, number, 100).await;
    let rows = caches::standing_paths(&mut tx, cache.id, 100).await.unwrap();
    let rows = paths::find_all(&mut tx, cache.id, rows).await.unwrap();
    let row = rows.into_iter().find(|row| row.claim_id == claim_id).unwrap();
    let signature = stolen(desk, key, &row.claim.fingerprint());
    // With the index of a leaf that tells of something else.
    let made = paths::MadeSignature { claim_id, signature, leaf: 3 };
    paths::put_signatures(&mut tx, &[made]).await.unwrap();
    tx.commit().await.unwrap();
    row.claim.path.base_name().to_owned()
}

async fn row_of(connection: &mut Connection, base_name: &str) -> paths::PathRow {
    let cache = caches::by_name(connection, &main()).await.unwrap().unwrap();
    paths::find(connection, cache.id, base_name[..32].parse().unwrap()).await.unwrap().unwrap()
}

async fn state(desk: &Desk, base_name: &str) -> PathState {
    row_of(&mut desk.service().inner.db.read().await.unwrap(), base_name).await.state
}

pub(super) async fn compromise(desk: &Desk, key: &KeyName) -> super::super::super::Result<Rotation> {
    let admin = desk.server.admin().await;
    desk.service().compromise_key(&admin, &main(), key, "the host was broken into").await
}

/// Goes on until storage is about to be looked through.
pub(super) async fn until_inspection(desk: &Desk) {
    let service = desk.service();
    while desk.rotation().await.step != RotationStep::Inspect {
        service.advance_rotations().await.unwrap();
        while service.release_due().await.unwrap() > 0 {}
        service.finish().await.unwrap();
    }
}

on_each_database! {
    async fn what_the_log_accounts_for_stands_under_another_key(test: &TestDb) {
        let desk = Desk::start(test).await;
        let samples = desk.push_many(0..3).await;
        let old = desk.only(KeyState::Active).await;

        let rotation = compromise(&desk, &old).await.unwrap();

        // From the answer on, whatever else goes on.
        assert_eq!((rotation.kind, rotation.step), (RotationKind::Compromise, RotationStep::Purge));
        assert_eq!(desk.only(KeyState::Compromised).await, old);
        let new = desk.only(KeyState::Active).await;
        let sample = desk.push_many(3..4).await.remove(0);
        assert_eq!(desk.signers(&sample).await, names(&[&new]));
        let trusted = desk.service().public_keys(&testing::anonymous(), &main()).await.unwrap().keys;
        assert_eq!(trusted.iter().map(PublicKey::name).collect::<Vec<_>>(), [&new]);
        assert_conflict(compromise(&desk, &old).await, "known");
        let admin = desk.server.admin().await;
        assert_conflict(desk.service().abandon_rotation(&admin, &main()).await, "has to be seen to");

        assert_eq!(desk.drive().await.step, RotationStep::Done);
        for sample in samples.iter().chain([&sample]) {
            assert_eq!(desk.signers(sample).await, names(&[&new]));
        }
        assert_eq!(desk.unlogged(&old).await, []);
        assert_eq!(desk.resigned().await.len(), 3);
        desk.service().destroy_key(&admin, &main(), &old).await.unwrap();
    }

    async fn what_nothing_accounts_for_is_withdrawn_and_listed(test: &TestDb) {
        let desk = Desk::start(test).await;
        let samples = desk.push_many(0..2).await;
        let old = desk.only(KeyState::Active).await;
        let key = desk.row(&old).await;
        let planted = plant(&desk, &key, 77).await;
        assert_eq!(state(&desk, &planted).await, PathState::Published);

        compromise(&desk, &old).await.unwrap();
        let rotation = desk.drive().await;

        assert_eq!(rotation.step, RotationStep::Done);
        assert_eq!(state(&desk, &planted).await, PathState::Withdrawn);
        assert_eq!(desk.unlogged(&old).await, [("rows".to_owned(), planted.clone())]);
        let withdrawn = desk.leaves().await.into_iter().filter(|leaf| matches!(leaf.event, Event::Withdraw(_)));
        assert_eq!(withdrawn.count(), 1);
        let new = desk.only(KeyState::Active).await;
        assert_eq!(desk.signers(&samples[1]).await, names(&[&new]));
    }

    async fn only_a_valid_signature_of_a_known_key_keeps_what_no_leaf_accounts_for(test: &TestDb) {
        let desk = Desk::start(test).await;
        let admin = desk.server.admin().await;
        let old = desk.only(KeyState::Active).await;
        let key = desk.row(&old).await;
        // Another key of this server plays alice's own.
        desk.service().create_cache(&admin, &new_cache("other")).await.unwrap();
        let other = "other".parse().unwrap();
        let alices = desk.service().create_key(&admin, &other, &KeySource::New { name: None }).await.unwrap();
        let planted = [plant(&desk, &key, 77).await, plant(&desk, &key, 78).await, plant(&desk, &key, 79).await];
        let [vouched, forged, unknown] = &planted;
        let sign = |text: String| stolen(&desk, &alices, &text);
        let stranger = Signature { name: "stranger-1".parse().unwrap(), bytes: [7; 64] };
        let mut tx = desk.service().inner.db.begin(Gate::Exclusive).await.unwrap();
        let ci = contributors::by_name(&mut tx, &"ci".parse().unwrap()).await.unwrap().unwrap();
        let own = contributors::ContributorKeyRow { contributor: ci.id, public_key: alices.public_key.clone() };
        contributors::add_key(&mut tx, "key", &own, desk.server.clock.now()).await.unwrap();
        for base_name in &planted {
            let row = row_of(&mut tx, base_name).await;
            let signature = match base_name {
                name if name == vouched => sign(row.claim.fingerprint()),
                name if name == forged => sign(format!("{}?", row.claim.fingerprint())),
                _ => stranger.clone(),
            };
            paths::insert_signature(&mut tx, &row.claim_id, &signature, None).await.unwrap();
        }
        tx.commit().await.unwrap();

        compromise(&desk, &old).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);

        assert_eq!(state(&desk, vouched).await, PathState::Published);
        assert_eq!(state(&desk, forged).await, PathState::Withdrawn);
        assert_eq!(state(&desk, unknown).await, PathState::Withdrawn);
        assert_eq!(desk.unlogged(&old).await.len(), 3);
    }

    async fn a_narinfo_that_was_written_to_storage_is_found_and_replaced(test: &TestDb) {
        let desk = Desk::start(test).await;
        let samples = desk.push_many(0..2).await;
        let old = desk.only(KeyState::Active).await;
        let key = desk.row(&old).await;
        let service = desk.service();
        let cache = service.existing_cache(&main()).await.unwrap();
        let object = |hash| crate::service::key_of(&cache, CacheObject::Narinfo(hash)).unwrap();
        // Another content under the path of the first, and a path that never was here.
        let evil = Sample::new(samples[0].path.base_name(), "evil", &[]);
        let unknown = Sample::numbered(9);
        let put = async |sample: &Sample| {
            let claim = SignedClaim::parse(sample.narinfo.as_bytes()).unwrap().claim;
            let signature = stolen(&desk, &key, &claim.fingerprint());
            let text = format!("{}Sig: {signature}\n", sample.narinfo);
            service.inner.storage.put(&object(sample.path.hash()), text.into()).await.unwrap();
        };

        compromise(&desk, &old).await.unwrap();
        until_inspection(&desk).await;
        put(&evil).await;
        put(&unknown).await;
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        while service.release_due().await.unwrap() > 0 {}

        let found = BTreeSet::from_iter(desk.unlogged(&old).await);
        let expected = [&evil, &unknown].map(|sample| ("storage".to_owned(), sample.path.base_name().to_owned()));
        assert_eq!(found, BTreeSet::from_iter(expected));
        let new = desk.only(KeyState::Active).await;
        assert_eq!(desk.signers(&samples[0]).await, names(&[&new]));
        assert_eq!(service.inner.storage.read(&object(unknown.path.hash()), 1 << 20).await.unwrap(), None);
    }

    async fn an_old_copy_in_storage_is_mended_and_no_secret(test: &TestDb) {
        let desk = Desk::start(test).await;
        let sample = desk.push_many(0..1).await.remove(0);
        let old = desk.only(KeyState::Active).await;
        let service = desk.service();
        let cache = service.existing_cache(&main()).await.unwrap();
        let object = crate::service::key_of(&cache, CacheObject::Narinfo(sample.path.hash())).unwrap();
        let copy = service.inner.storage.read(&object, 1 << 20).await.unwrap().unwrap();

        compromise(&desk, &old).await.unwrap();
        until_inspection(&desk).await;
        service.inner.storage.put(&object, copy).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        while service.release_due().await.unwrap() > 0 {}

        assert_eq!(desk.unlogged(&old).await, []);
        assert_eq!(desk.signers(&sample).await, names(&[&desk.only(KeyState::Active).await]));
    }

    async fn a_second_compromise_sees_to_the_first_one_as_well(test: &TestDb) {
        let desk = Desk::start(test).await;
        let mut samples = desk.push_many(0..3).await;
        let first = desk.only(KeyState::Active).await;
        compromise(&desk, &first).await.unwrap();
        let second = desk.only(KeyState::Active).await;
        samples.extend(desk.push_many(3..5).await);

        // Both were in the same stolen copy, and nothing of the first one was done yet.
        compromise(&desk, &second).await.unwrap();
        let third = desk.only(KeyState::Active).await;
        assert_eq!(desk.drive().await.step, RotationStep::Done);

        for sample in &samples {
            assert_eq!(desk.signers(sample).await, names(&[&third]));
        }
        let admin = desk.server.admin().await;
        for stolen in [&first, &second] {
            assert_eq!(desk.unlogged(stolen).await, []);
            desk.service().destroy_key(&admin, &main(), stolen).await.unwrap();
        }
    }

    async fn a_path_that_lost_its_only_signature_is_not_restored_without_one(test: &TestDb) {
        let desk = Desk::start(test).await;
        let sample = desk.push_many(0..1).await.remove(0);
        let base_name = sample.path.base_name().to_owned();
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let taken = crate::service::QuarantineRequest {
            since: None,
            reason: "an exercise".to_owned(),
            dependents: false,
            keep_issued: false,
        };
        let target = crate::service::TakedownTarget::Contributor("ci".parse().unwrap());
        service.quarantine(&admin, &target, &taken).await.unwrap();
        assert_eq!(state(&desk, &base_name).await, PathState::Withdrawn);
        compromise(&desk, &desk.only(KeyState::Active).await).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);

        service.restore(&admin, &target, "it was one").await.unwrap();

        assert_eq!(state(&desk, &base_name).await, PathState::Withdrawn);
    }

    async fn the_next_key_or_the_old_one_takes_the_place(test: &TestDb) {
        let desk = Desk::start(test).await;
        let sample = desk.push_many(0..1).await.remove(0);
        let first = desk.only(KeyState::Active).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        let second = desk.only(KeyState::Next).await;

        // Clients know the next one already.
        let rotation = compromise(&desk, &first).await.unwrap();
        assert_eq!(rotation.new_key.as_deref(), Some(second.as_str()));
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_eq!(desk.signers(&sample).await, names(&[&second]));

        // On its way out, and better than nothing.
        desk.rotate(RotationRequest::default()).await.unwrap();
        let third = desk.only(KeyState::Next).await;
        desk.server.clock.advance_seconds(7 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        let rotation = compromise(&desk, &third).await.unwrap();
        assert_eq!(rotation.new_key.as_deref(), Some(second.as_str()));
        assert_eq!(desk.only(KeyState::Active).await, second);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_eq!(desk.signers(&sample).await, names(&[&second]));
    }

    async fn a_sealed_server_stops_signing_and_makes_the_new_key_once_it_is_unsealed(test: &TestDb) {
        let desk = Desk::start(test).await;
        let sample = desk.push_many(0..1).await.remove(0);
        let old = desk.only(KeyState::Active).await;
        let admin = desk.server.admin().await;
        desk.service().seal(&admin).await.unwrap();

        let rotation = compromise(&desk, &old).await.unwrap();
        assert_eq!((rotation.new_key, rotation.waiting_for.as_deref()), (None, Some("the vault to be unsealed")));
        assert_eq!(desk.states().await.len(), 1);
        desk.service().advance_rotations().await.unwrap();
        desk.service().unseal(&admin, Unseal::Configured).await.unwrap();

        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_eq!(desk.signers(&sample).await, names(&[&desk.only(KeyState::Active).await]));
    }

    async fn purging_goes_on_where_it_was_stopped(test: &TestDb) {
        let desk = Desk::start(test).await;
        let samples = desk.push_many(0..4).await;
        let old = desk.only(KeyState::Active).await;
        compromise(&desk, &old).await.unwrap();
        let (other, _) = testing::open(test, &desk.server.clock, testing::vault(test)).await;
        desk.service().advance_rotations().await.unwrap();

        desk.server.clock.advance_seconds(11);
        drive(&other).await;

        assert_eq!(desk.rotation().await.step, RotationStep::Done);
        assert_eq!(desk.resigned().await.values().sum::<usize>(), 4);
        let new = desk.only(KeyState::Active).await;
        for sample in &samples {
            assert_eq!(desk.signers(sample).await, names(&[&new]));
        }
        other.shut_down().await;
    }

    async fn a_reason_is_needed_and_an_administrator(test: &TestDb) {
        let desk = Desk::start(test).await;
        let old = desk.only(KeyState::Active).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);

        let refused = service.compromise_key(&admin, &main(), &old, "").await.unwrap_err();
        assert!(refused.to_string().starts_with("reason"), "{refused}");
        let pusher = desk.server.call(&desk.pusher).await;
        let refused = service.compromise_key(&pusher, &main(), &old, "x").await.unwrap_err();
        assert!(matches!(refused, Error::Forbidden), "{refused:?}");
        assert_eq!(desk.only(KeyState::Active).await, old);
    }
}
