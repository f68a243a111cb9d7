//! Realisations go with their outputs: signed again where the log accounts for them and they are served, purged after a
//! compromise, left alone by what would leave them without a signature.

use super::compromise::{compromise, stolen, until_inspection};
use super::*;
use crate::db::testing::overwrite_realisation;
use crate::db::{key_rotations::RotationKind, realisations};
use crate::nix::realisation::{Realisation, RealisationKey};
use crate::nix::signature::Signature;
use crate::service::{QuarantineRequest, TakedownTarget};

/// The name of an output of some derivation, in the one generation or the other.
fn entry_key(number: u64) -> RealisationKey {
    let text = if number.is_multiple_of(2) {
        format!("realisations/sha256:{number:064x}!out.doi")
    } else {
        format!("build-trace-v2/{number:032}-thing.drv/out.doi")
    };
    text.parse().unwrap()
}

/// What Nix puts for it.
fn unsigned(key: &RealisationKey, output: &Sample) -> Realisation {
    Realisation {
        key: key.clone(),
        out_path: output.path.clone(),
        dependents: Default::default(),
        signatures: Vec::new(),
    }
}

/// Pushes the entry of this number, which says that this is the output.
async fn put_entry(desk: &Desk, by: &TokenText, number: u64, output: &Sample) -> RealisationKey {
    put_entry_in(desk, &main(), by, number, output).await
}

/// The same in another cache.
pub(super) async fn put_entry_in(
    desk: &Desk,
    cache: &CacheName,
    by: &TokenText,
    number: u64,
    output: &Sample,
) -> RealisationKey {
    let (call, key) = (desk.server.call(by).await, entry_key(number));
    let body = unsigned(&key, output).to_json();
    desk.service().put_realisation(&call, cache, key.clone(), body.as_bytes()).await.unwrap();
    // The clock stands still: nothing else would end what this replica has leased.
    desk.service().finish().await.unwrap();
    key
}

/// The names of the keys whose valid signatures the entry has that is served, and the one in storage. `None`: there is
/// none, in neither.
async fn entry_signers(desk: &Desk, key: &RealisationKey) -> Option<BTreeSet<String>> {
    entry_signers_in(desk, &main(), key).await
}

/// The same in another cache.
pub(super) async fn entry_signers_in(
    desk: &Desk,
    cache: &CacheName,
    key: &RealisationKey,
) -> Option<BTreeSet<String>> {
    let service = desk.service();
    let row = service.existing_cache(cache).await.unwrap();
    let served = service.realisation(&row, key).await.unwrap();
    let object = crate::service::key_of(&row, CacheObject::Realisation(key.clone())).unwrap();
    let stored = service.inner.storage.read(&object, 1 << 20).await.unwrap();
    assert_eq!(served, stored, "storage says what the rows say");
    let entry = Realisation::parse(key.clone(), &served?).unwrap();
    let keys = service.list_keys(&Call::host(), cache).await.unwrap();
    for signature in &entry.signatures {
        let key = keys.iter().find(|row| *row.public_key.name() == signature.name).unwrap();
        assert!(key.public_key.verify(entry.fingerprint().as_bytes(), signature), "{signature}");
    }
    Some(entry.signatures.iter().map(|one| one.name.to_string()).collect())
}

async fn object(desk: &Desk, key: &RealisationKey) -> crate::storage::ObjectKey {
    let cache = desk.service().existing_cache(&main()).await.unwrap();
    crate::service::key_of(&cache, CacheObject::Realisation(key.clone())).unwrap()
}

/// How often realisations stand in the log, by the key that signed them.
async fn logged(desk: &Desk) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for leaf in desk.leaves().await {
        if let Event::Realisation(signed) = leaf.event {
            *counts.entry(signed.key.to_string()).or_default() += 1;
        }
    }
    counts
}

async fn overwrite(desk: &Desk, key: &RealisationKey, column: &str, value: &str) {
    let mut tx = desk.service().inner.db.begin(Gate::Exclusive).await.unwrap();
    overwrite_realisation(&mut tx, &key.to_string(), column, value).await;
    epoch::advance(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

fn carl() -> TakedownTarget {
    TakedownTarget::Contributor("carl".parse().unwrap())
}

async fn quarantine_carl(desk: &Desk) {
    let asked = QuarantineRequest { reason: "an exercise".to_owned(), ..QuarantineRequest::default() };
    desk.service().quarantine(&Call::host(), &carl(), &asked).await.unwrap();
    settle(desk).await;
}

async fn restore_carl(desk: &Desk) {
    desk.service().restore(&Call::host(), &carl(), "it was one").await.unwrap();
    settle(desk).await;
}

async fn settle(desk: &Desk) {
    while desk.service().release_due().await.unwrap() > 0 {}
    desk.service().finish().await.unwrap();
}

/// Three entries: of the pusher's own; of the pusher's, but its output is Carl's alone; of Carl's, but its output is the
/// pusher's.
struct Scene {
    own: RealisationKey,
    of_carls: RealisationKey,
    by_carl: RealisationKey,
    outputs: Vec<Sample>,
}

impl Scene {
    async fn set(desk: &Desk) -> Self {
        let carl = desk.server.contributor("carl", "push:main").await;
        let outputs = desk.push_many(0..1).await;
        let carls = Sample::numbered(50);
        desk.server.push(&desk.server.call(&carl).await, &carls).await.unwrap();
        desk.service().finish().await.unwrap();
        Self {
            own: put_entry(desk, &desk.pusher, 1, &outputs[0]).await,
            of_carls: put_entry(desk, &desk.pusher, 2, &carls).await,
            by_carl: put_entry(desk, &carl, 3, &outputs[0]).await,
            outputs: outputs.into_iter().chain([carls]).collect(),
        }
    }

    fn entries(&self) -> [&RealisationKey; 3] {
        [&self.own, &self.of_carls, &self.by_carl]
    }
}

/// Rotates until the new key signs and everything has its signature: the old key and the new one.
async fn rotated(desk: &Desk) -> (KeyName, KeyName) {
    let old = desk.only(KeyState::Active).await;
    desk.rotate(RotationRequest::default()).await.unwrap();
    let new = desk.only(KeyState::Next).await;
    desk.server.clock.advance_seconds(7 * DAY);
    assert_eq!(desk.drive().await.step, RotationStep::Wait);
    (old, new)
}

/// Rotates to the end: the retired key and the active one.
async fn retired(desk: &Desk) -> (KeyName, KeyName) {
    let keys = rotated(desk).await;
    desk.server.clock.advance_seconds(30 * DAY);
    assert_eq!(desk.drive().await.step, RotationStep::Done);
    keys
}

on_each_database! {
    async fn a_rotation_signs_them_again_once(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let (old, new) = rotated(&desk).await;
        let during = put_entry(&desk, &desk.pusher, 4, &scene.outputs[0]).await;

        for key in scene.entries().into_iter().chain([&during]) {
            assert_eq!(entry_signers(&desk, key).await, Some(names(&[&old, &new])), "{key}");
        }
        let expected = [(old.to_string(), 4), (new.to_string(), 4)];
        assert_eq!(logged(&desk).await, BTreeMap::from(expected));
        let rotation = desk.rotation().await;
        assert_eq!((rotation.progress.total, rotation.progress.done, rotation.progress.refused), (5, 5, 0));

        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        let after = put_entry(&desk, &desk.pusher, 6, &scene.outputs[0]).await;
        assert_eq!(entry_signers(&desk, &after).await, Some(names(&[&new])));
        assert_eq!(entry_signers(&desk, &scene.own).await, Some(names(&[&old, &new])));
    }

    async fn two_replicas_sign_them_once(test: &TestDb) {
        let slow = KeyLimits { resign_paths_per_second: 2, publish_days: 0, wait_days: 1 };
        let desk = Desk::start_paced(test, slow).await;
        let output = desk.push_many(0..1).await.remove(0);
        let mut entries = Vec::new();
        for number in 0..5 {
            entries.push(put_entry(&desk, &desk.pusher, number, &output).await);
        }
        let old = desk.only(KeyState::Active).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        let new = desk.only(KeyState::Next).await;
        // Begins to sign, the path, two realisations.
        for _ in 0..3 {
            desk.service().advance_rotations().await.unwrap();
        }
        assert_eq!(desk.rotation().await.progress.done, 3);
        let others = testing::Others { keys: slow, ..testing::Others::default() };
        let (other, _) = testing::open_with(test, &desk.server.clock, testing::vault(test), others).await;
        let stale = key_rotations::under_way(&mut test.db.read().await.unwrap()).await.unwrap().remove(0);
        desk.service().advance_rotations().await.unwrap();

        assert_eq!(desk.service().resign_batch(&stale).await.unwrap(), resign::Batch::Elsewhere);
        desk.server.clock.advance_seconds(11);
        drive(&other).await;

        assert_eq!(desk.rotation().await.step, RotationStep::Wait);
        for key in &entries {
            assert_eq!(entry_signers(&desk, key).await, Some(names(&[&old, &new])), "{key}");
        }
        assert_eq!(logged(&desk).await[new.as_str()], 5);
        other.shut_down().await;
    }

    async fn what_is_not_served_is_passed_over_and_signed_before_the_old_key_retires(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        quarantine_carl(&desk).await;
        assert_eq!(entry_signers(&desk, &scene.of_carls).await, None);
        assert_eq!(entry_signers(&desk, &scene.by_carl).await, None);
        let (old, new) = rotated(&desk).await;
        // Nothing was said of what is suspected.
        assert_eq!(logged(&desk).await[new.as_str()], 1);
        restore_carl(&desk).await;
        for key in [&scene.of_carls, &scene.by_carl] {
            assert_eq!(entry_signers(&desk, key).await, Some(names(&[&old])), "{key}");
        }

        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Wait);

        for key in scene.entries() {
            assert_eq!(entry_signers(&desk, key).await, Some(names(&[&old, &new])), "{key}");
        }
        assert_eq!(logged(&desk).await[new.as_str()], 3);
        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
    }

    async fn one_that_comes_back_alone_holds_the_old_key_back(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        // The pusher's path stands all the time, and only Carl's entry for it is away.
        quarantine_carl(&desk).await;
        let (old, new) = rotated(&desk).await;
        restore_carl(&desk).await;
        let sample = &scene.outputs[1];
        desk.service().delete_path(&Call::host(), &main(), sample.path.hash(), "not wanted").await.unwrap();
        settle(&desk).await;

        assert_conflict(desk.service().retire_key(&Call::host(), &main(), &old).await, "signed first");

        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        assert_eq!(entry_signers(&desk, &scene.by_carl).await, Some(names(&[&old, &new])));
        desk.service().retire_key(&Call::host(), &main(), &old).await.unwrap();
    }

    async fn what_no_leaf_accounts_for_is_left_alone_listed_and_holds_nothing_up(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let old = desk.only(KeyState::Active).await;
        let key = desk.row(&old).await;
        // Somebody with the database in hand, and the key: another output, properly signed; and something that is none.
        let entry = unsigned(&scene.own, &scene.outputs[1]);
        let signature = stolen(&desk, &key, &entry.fingerprint());
        overwrite(&desk, &scene.own, "body", &entry.to_json()).await;
        overwrite(&desk, &scene.own, "signatures", &signature.to_string()).await;
        overwrite(&desk, &scene.by_carl, "body", "nothing").await;
        let (_, new) = rotated(&desk).await;

        let rotation = desk.rotation().await;
        assert_eq!((rotation.progress.done, rotation.progress.refused), (3, 2));
        assert_eq!(logged(&desk).await[new.as_str()], 1);
        assert_eq!(desk.unlogged(&old).await, [("rows".to_owned(), scene.own.to_string())]);
        desk.server.clock.advance_seconds(30 * DAY);
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_conflict(
            desk.service().drop_signatures(&Call::host(), &main(), &old).await,
            "2 published paths and realisations are signed by this key alone",
        );
    }

    async fn after_a_compromise_they_stand_under_the_new_key_alone_or_are_gone(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let old = desk.only(KeyState::Active).await;
        let row = desk.row(&old).await;
        let [forged, broken] = [7, 8].map(entry_key);
        for number in [7, 8] {
            put_entry(&desk, &desk.pusher, number, &scene.outputs[0]).await;
        }
        let entry = unsigned(&forged, &scene.outputs[1]);
        overwrite(&desk, &forged, "body", &entry.to_json()).await;
        overwrite(&desk, &forged, "signatures", &stolen(&desk, &row, &entry.fingerprint()).to_string()).await;
        overwrite(&desk, &broken, "signatures", "nothing").await;
        quarantine_carl(&desk).await;

        compromise(&desk, &old).await.unwrap();
        let new = desk.only(KeyState::Active).await;
        let rotation = desk.drive().await;

        assert_eq!((rotation.step, rotation.progress.refused), (RotationStep::Done, 2));
        assert_eq!(entry_signers(&desk, &scene.own).await, Some(names(&[&new])));
        assert_eq!(logged(&desk).await[new.as_str()], 1);
        assert_eq!(desk.unlogged(&old).await, [("rows".to_owned(), forged.to_string())]);
        // What was not served has lost its signature, and does not come back with it.
        restore_carl(&desk).await;
        for key in [&scene.of_carls, &scene.by_carl, &forged] {
            assert_eq!(entry_signers(&desk, key).await, None, "{key}");
        }
        desk.service().destroy_key(&Call::host(), &main(), &old).await.unwrap();
        let again = put_entry(&desk, &desk.pusher, 7, &scene.outputs[0]).await;
        assert_eq!(entry_signers(&desk, &again).await, Some(names(&[&new])));
    }

    async fn one_that_was_written_to_storage_is_found_and_replaced(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let old = desk.only(KeyState::Active).await;
        let row = desk.row(&old).await;
        let storage = &desk.service().inner.storage;
        let copy = storage.read(&object(&desk, &scene.own).await, 1 << 20).await.unwrap().unwrap();
        let unknown = entry_key(99);

        compromise(&desk, &old).await.unwrap();
        until_inspection(&desk).await;
        // Another output under a name that is known, one of whose leaf the log has as well; a name that is not; an old
        // copy; and something that nobody can read.
        for (key, output) in [(&scene.of_carls, &scene.outputs[0]), (&unknown, &scene.outputs[0])] {
            let mut entry = unsigned(key, output);
            entry.signatures = vec![stolen(&desk, &row, &entry.fingerprint())];
            storage.put(&object(&desk, key).await, entry.to_json().into()).await.unwrap();
        }
        storage.put(&object(&desk, &scene.own).await, copy).await.unwrap();
        storage.put(&object(&desk, &scene.by_carl).await, "nothing".into()).await.unwrap();
        let rotation = desk.drive().await;
        settle(&desk).await;

        let new = desk.only(KeyState::Active).await;
        assert_eq!((rotation.step, rotation.progress.refused), (RotationStep::Done, 2));
        let found = BTreeSet::from_iter(desk.unlogged(&old).await);
        let expected = [&scene.of_carls, &unknown].map(|key| ("storage".to_owned(), key.to_string()));
        assert_eq!(found, BTreeSet::from_iter(expected));
        for key in scene.entries() {
            assert_eq!(entry_signers(&desk, key).await, Some(names(&[&new])), "{key}");
        }
        assert_eq!(entry_signers(&desk, &unknown).await, None);
    }

    async fn looking_through_storage_goes_on_where_it_was_stopped(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.push_many(0..7).await;
        let old = desk.only(KeyState::Active).await;
        let row = desk.row(&old).await;
        // The first one of all by its name, and another one.
        let (evil, last) = (Sample::new(&format!("{}-evil", "0".repeat(32)), "evil", &[]), entry_key(2));
        compromise(&desk, &old).await.unwrap();
        until_inspection(&desk).await;
        let storage = &desk.service().inner.storage;
        let claim = crate::nix::narinfo::SignedClaim::parse(evil.narinfo.as_bytes()).unwrap().claim;
        let text = format!("{}Sig: {}\n", evil.narinfo, stolen(&desk, &row, &claim.fingerprint()));
        let cache = desk.service().existing_cache(&main()).await.unwrap();
        let key = crate::service::key_of(&cache, CacheObject::Narinfo(evil.path.hash())).unwrap();
        storage.put(&key, text.into()).await.unwrap();
        let mut entry = unsigned(&last, &evil);
        entry.signatures = vec![stolen(&desk, &row, &entry.fingerprint())];
        storage.put(&object(&desk, &last).await, entry.to_json().into()).await.unwrap();
        let (other, _) = testing::open(test, &desk.server.clock, testing::vault(test)).await;

        // One listing's worth, then this replica is gone.
        desk.service().advance_rotations().await.unwrap();
        let seen = desk.rotation().await.progress;
        assert_eq!((seen.done, seen.refused), (3, 1));
        desk.server.clock.advance_seconds(11);
        other.advance_rotations().await.unwrap();
        let seen = desk.rotation().await.progress;
        assert!(seen.done == 6 && seen.refused >= 1, "{seen:?}");
        drive(&other).await;

        let rotation = desk.rotation().await;
        assert_eq!((rotation.step, rotation.progress.done, rotation.progress.refused), (RotationStep::Done, 9, 2));
        let found = desk.unlogged(&old).await;
        assert_eq!(found.len(), 2, "{found:?}");
        other.shut_down().await;
    }

    async fn what_a_purge_has_found_is_told_at_the_end(test: &TestDb) {
        let desk = Desk::start(test).await;
        desk.push_many(0..2).await;
        let old = desk.only(KeyState::Active).await;
        super::compromise::plant(&desk, &desk.row(&old).await, 77).await;

        compromise(&desk, &old).await.unwrap();
        let rotation = desk.drive().await;

        assert_eq!((rotation.step, rotation.kind), (RotationStep::Done, RotationKind::Compromise));
        assert_eq!(rotation.progress.refused, 1);
    }

    async fn a_retired_keys_signatures_leave_what_is_served_and_nothing_else(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let (old, new) = retired(&desk).await;
        quarantine_carl(&desk).await;

        desk.service().drop_signatures(&Call::host(), &main(), &old).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);

        assert_eq!(entry_signers(&desk, &scene.own).await, Some(names(&[&new])));
        restore_carl(&desk).await;
        for key in [&scene.of_carls, &scene.by_carl] {
            assert_eq!(entry_signers(&desk, key).await, Some(names(&[&old, &new])), "{key}");
        }
    }

    async fn one_that_stands_alone_keeps_its_signature_and_its_key(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let (old, new) = retired(&desk).await;
        let service = desk.service();
        // Of a key that nobody is to trust, and of nobody that is known here.
        let third = service.create_key(&Call::host(), &main(), &KeySource::New { name: None }).await.unwrap();
        let cache = service.existing_cache(&main()).await.unwrap();
        let mut connection = test.db.read().await.unwrap();
        let (_, both) = realisations::find(&mut connection, cache.id, &scene.own.to_string()).await.unwrap().unwrap();
        let of = |name: &KeyName| both.split(' ').find(|text| text.starts_with(&format!("{name}:"))).unwrap().to_owned();
        let stranger = Signature { name: third.public_key.name().clone(), bytes: [7; 64] };
        overwrite(&desk, &scene.own, "signatures", &format!("{} {stranger}", of(&old))).await;
        service.compromise_key(&Call::host(), &main(), third.public_key.name(), "stolen").await.unwrap();
        // Nobody is left to see to that one: the purge has looked elsewhere.
        service.pause_rotation(&Call::host(), &main(), true).await.unwrap();

        assert_conflict(service.destroy_key(&Call::host(), &main(), &old).await, "1 published paths and realisations");

        overwrite(&desk, &scene.own, "signatures", &both).await;
        service.pause_rotation(&Call::host(), &main(), false).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        service.drop_signatures(&Call::host(), &main(), &old).await.unwrap();
        // It loses the other one while signatures are dropped.
        overwrite(&desk, &scene.own, "signatures", &of(&old)).await;
        assert_eq!(desk.drive().await.step, RotationStep::Abandoned);
        settle(&desk).await;
        let (_, left) = realisations::find(&mut connection, cache.id, &scene.own.to_string()).await.unwrap().unwrap();
        assert_eq!(left, of(&old));
        assert_eq!(desk.only(KeyState::Active).await, new);
    }

    async fn what_is_away_when_a_key_is_destroyed_does_not_come_back_under_it(test: &TestDb) {
        let desk = Desk::start(test).await;
        let scene = Scene::set(&desk).await;
        let old = desk.only(KeyState::Active).await;
        quarantine_carl(&desk).await;
        let (retired, new) = retired(&desk).await;
        assert_eq!(retired, old);
        desk.service().drop_signatures(&Call::host(), &main(), &old).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);

        desk.service().destroy_key(&Call::host(), &main(), &old).await.unwrap();
        restore_carl(&desk).await;

        for key in [&scene.of_carls, &scene.by_carl] {
            assert_eq!(entry_signers(&desk, key).await, None, "{key}");
        }
        let cache = desk.service().existing_cache(&main()).await.unwrap();
        let gone = desk.service().narinfo(&cache, scene.outputs[1].path.hash()).await.unwrap();
        assert!(gone.is_none(), "served under a key that nobody trusts");
        assert_eq!(entry_signers(&desk, &scene.own).await, Some(names(&[&new])));
    }
}
