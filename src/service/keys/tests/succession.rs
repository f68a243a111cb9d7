//! What clients are told of keys: when it is told, by whose word, and what is refused.

use super::*;
use crate::db::key_successions::{self, NoteRow, RootsOf};
use crate::service::{NewCache, SuccessionRequest};
use crate::succession::testing::{TestKey, signed, signed_draft};
use crate::succession::{
    Chain, Content as _, Document, Draft, Followed, Memory, Reason, RootScope, Roots, Signed, Statement,
    follow,
};

const ROOTS: [&str; 3] = ["alice", "bob", "carol"];

fn public_keys(names: &[&str]) -> Vec<PublicKey> {
    names.iter().map(|name| TestKey::named(name).public).collect()
}

async fn told(desk: &Desk) -> Chain {
    desk.service().succession(&testing::anonymous(), &main()).await.unwrap().chain
}

/// What a client that trusts this key, and took it over before anything was told, makes of it.
async fn follows(desk: &Desk, key: &KeyName) -> Followed {
    let trusted = [desk.row(key).await.public_key];
    let cache = desk.service().existing_cache(&main()).await.unwrap();
    let memory = Memory::at_first_use(&cache.id.to_string(), &Chain::default()).unwrap();
    follow(&trusted, &memory, &told(desk).await, desk.server.clock.now()).unwrap()
}

fn key_names(keys: &[PublicKey]) -> Vec<String> {
    keys.iter().map(|key| key.name().to_string()).collect()
}

/// What storage has, once all is released.
async fn stored(desk: &Desk) -> Option<String> {
    let service = desk.service();
    while service.release_due().await.unwrap() > 0 {}
    service.finish().await.unwrap();
    let cache = service.existing_cache(&main()).await.unwrap();
    let key = crate::service::key_of(&cache, CacheObject::KeySuccession).unwrap();
    let bytes = service.inner.storage.read(&key, 1 << 20).await.unwrap();
    bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

async fn leaves_of_successions(desk: &Desk) -> Vec<(String, String)> {
    let leaves = desk.leaves().await.into_iter();
    let of_it = leaves.filter_map(|leaf| match leaf.event {
        Event::KeySuccession(key) => Some((key.key.to_string(), key.state.unwrap().to_string())),
        _ => None,
    });
    of_it.collect()
}

/// Root keys for the cache, two of three.
async fn with_roots(desk: &Desk) {
    let (service, admin) = (desk.service(), desk.server.admin().await);
    let keys = public_keys(&ROOTS);
    let draft = service.draft_roots(&admin, Some(&main()), 2, keys).await.unwrap();
    service.submit_roots(&admin, Some(&main()), &signed_draft(&draft, &["alice", "carol"])).await.unwrap();
}

/// A cache with root keys whose only key was stolen, and the draft that says so.
async fn stolen(test: &TestDb) -> (Desk, KeyName, String) {
    let desk = Desk::start(test).await;
    with_roots(&desk).await;
    let admin = desk.server.admin().await;
    let old = desk.only(KeyState::Active).await;
    desk.service().compromise_key(&admin, &main(), &old, "the host was broken into").await.unwrap();
    let draft =
        desk.service().draft_succession(&admin, &main(), &SuccessionRequest::default()).await.unwrap();
    (desk, old, draft)
}

fn statement(draft: &str) -> Statement {
    match Draft::parse(draft).unwrap().content {
        Document::Succession(statement) => statement,
        Document::Roots(_) => panic!("{draft}"),
    }
}

#[track_caller]
fn assert_rejected<T: std::fmt::Debug>(result: super::super::Result<T>, text: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Rejected(_)) && error.to_string().contains(text), "{error:?}");
}

on_each_database! {
    async fn a_rotation_is_told_when_it_begins_and_when_the_old_key_is_retired(test: &TestDb) {
        let desk = Desk::start(test).await;
        let old = desk.only(KeyState::Active).await;
        assert_eq!(stored(&desk).await, None);

        desk.rotate(RotationRequest::default()).await.unwrap();
        let new = desk.only(KeyState::Next).await;
        let begun = told(&desk).await;
        let first = begun.statements[0].content();
        assert_eq!((first.seq, first.reason, first.retire_old), (1, Reason::Planned, None));
        assert_eq!((first.old.name(), first.new.name()), (&old, &new));
        assert_eq!(key_names(&follows(&desk, &old).await.trusted), [old.to_string(), new.to_string()]);
        assert_eq!(stored(&desk).await, Some(begun.encode()));

        for days in [7, 30] {
            desk.server.clock.advance_seconds(days * DAY);
            desk.drive().await;
        }
        assert_eq!(desk.only(KeyState::Retired).await, old);
        let ended = told(&desk).await;
        assert_eq!(ended.head(), 2);
        assert_eq!(ended.statements[1].content().retire_old, Some(desk.server.clock.now()));
        assert_eq!(key_names(&follows(&desk, &old).await.trusted), [new.to_string()]);
        assert_eq!(stored(&desk).await, Some(ended.encode()));
        let leaf = || (new.to_string(), "planned".to_owned());
        assert_eq!(leaves_of_successions(&desk).await, [leaf(), leaf()]);
        assert!(!desk.service().inner.keyring.holds(&desk.row(&old).await.key.label.id));
    }

    async fn a_promotion_and_a_retirement_by_hand_within_a_rotation_tell_the_same(test: &TestDb) {
        let desk = Desk::start(test).await;
        let admin = desk.server.admin().await;
        let old = desk.only(KeyState::Active).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        let new = desk.only(KeyState::Next).await;

        desk.service().promote_key(&admin, &main(), &new).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Wait);
        desk.service().retire_key(&admin, &main(), &old).await.unwrap();

        assert_eq!(told(&desk).await.head(), 2);
        assert_eq!(key_names(&follows(&desk, &old).await.trusted), [new.to_string()]);
    }

    async fn a_key_that_comes_beside_others_is_told_once(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let first = desk.only(KeyState::Active).await;
        let make = || KeySource::New { name: None };

        let second = service.create_next_key(&admin, &main(), &make()).await.unwrap();
        let second = second.public_key.name();
        let begun = told(&desk).await;
        let statement = begun.statements[0].content();
        assert_eq!((statement.old.name(), statement.new.name(), statement.retire_old), (&first, second, None));
        assert_eq!(key_names(&follows(&desk, &first).await.trusted), [first.to_string(), second.to_string()]);
        assert_eq!(stored(&desk).await, Some(begun.encode()));

        // To sign it needs no further word, and when it goes nothing is told: something may be signed by it alone.
        service.promote_key(&admin, &main(), second).await.unwrap();
        let third = service.create_key(&admin, &main(), &make()).await.unwrap();
        service.retire_key(&admin, &main(), second).await.unwrap();
        assert_eq!(told(&desk).await.head(), 2);
        let followed = follows(&desk, &first).await;
        assert_eq!(followed.removed, []);
        let third = third.public_key.name();
        assert_eq!(key_names(&followed.trusted), [first.to_string(), second.to_string(), third.to_string()]);
        let leaf = |key: &KeyName| (key.to_string(), "planned".to_owned());
        assert_eq!(leaves_of_successions(&desk).await, [leaf(second), leaf(third)]);
    }

    async fn without_anybody_who_could_be_told_or_a_name_that_can_be_nothing_is(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let cache: CacheName = "later".parse().unwrap();
        service.create_cache(&admin, &NewCache { name: cache.clone(), ..other_cache() }).await.unwrap();
        let head = async || service.succession(&testing::anonymous(), &cache).await.unwrap().chain.head();

        // The first key of a cache comes after none; and in statements this name would be too long.
        let first = service.create_key(&admin, &cache, &KeySource::New { name: None }).await.unwrap();
        let name = "+".repeat(200).parse().unwrap();
        service.create_key(&admin, &cache, &KeySource::New { name: Some(name) }).await.unwrap();
        assert_eq!(head().await, 0);

        // Of a compromise root keys tell, and nobody else.
        service.create_next_key(&admin, &cache, &KeySource::New { name: None }).await.unwrap();
        assert_eq!(head().await, 1);
        service.compromise_key(&admin, &cache, first.public_key.name(), "stolen").await.unwrap();
        assert_eq!(head().await, 1);
    }

    async fn what_cannot_be_told_does_not_begin(test: &TestDb) {
        let desk = Desk::start(test).await;
        let leaves = desk.leaves().await.len();
        // Read in the same transaction, after the new key and the rotation were written.
        let mut tx = desk.service().inner.db.begin(Gate::Exclusive).await.unwrap();
        let now = desk.server.clock.now();
        let row = NoteRow { id: "a".to_owned(), number: 1, note: "nothing".to_owned(), created_at: now };
        key_successions::insert_roots(&mut tx, RootsOf::Server, &row).await.unwrap();
        tx.commit().await.unwrap();

        let refused = desk.rotate(RotationRequest::default()).await;

        assert!(matches!(refused, Err(Error::Internal(_))), "{refused:?}");
        assert_eq!(desk.states().await.len(), 1);
        assert_eq!(desk.leaves().await.len(), leaves);
        let shown = desk.service().show_rotation(&Call::host(), &main()).await;
        assert!(matches!(shown, Err(Error::NotFound("rotation"))), "{shown:?}");
    }

    async fn a_sealed_server_retires_no_key_unsaid(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let old = desk.only(KeyState::Active).await;
        desk.rotate(RotationRequest::default()).await.unwrap();
        desk.server.clock.advance_seconds(7 * DAY);
        desk.drive().await;
        service.seal(&admin).await.unwrap();
        desk.server.clock.advance_seconds(30 * DAY);

        service.advance_rotations().await.unwrap();
        // By the host: the administrator's token has ended by now.
        assert!(matches!(service.retire_key(&Call::host(), &main(), &old).await, Err(Error::Sealed)));
        let rotation = desk.rotation().await;
        assert_eq!((rotation.step, rotation.waiting_for.as_deref()), (RotationStep::Wait, Some("the vault to be unsealed")));
        assert_eq!((desk.only(KeyState::Retiring).await, told(&desk).await.head()), (old, 1));

        service.unseal(&Call::host(), Unseal::Configured).await.unwrap();
        assert_eq!(desk.drive().await.step, RotationStep::Done);
        assert_eq!(told(&desk).await.head(), 2);
    }

    async fn root_keys_are_set_by_their_own_word_and_changed_by_that_of_those_before(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let cache = main();
        let draft = service.draft_roots(&admin, Some(&cache), 2, public_keys(&ROOTS)).await.unwrap();
        let submit = async |note: String| service.submit_roots(&admin, Some(&cache), &note).await;

        assert_rejected(submit(draft.clone()).await, "note");
        assert_rejected(submit(signed_draft(&draft, &["alice"])).await, "1 of its own keys have signed, 2 are needed");
        assert_rejected(submit(signed_draft(&draft, &["alice", "mallory"])).await, "1 of its own keys");
        submit(signed_draft(&draft, &["alice", "bob"])).await.unwrap();
        assert_conflict(submit(signed_draft(&draft, &["alice", "bob"])).await, "came in between");

        let next = service.draft_roots(&admin, Some(&cache), 1, public_keys(&["dave", "erin"])).await.unwrap();
        assert_rejected(submit(signed_draft(&next, &["dave", "erin"])).await, "0 keys of the set before");
        assert_rejected(submit(signed_draft(&next, &["dave", "alice"])).await, "1 keys of the set before");
        assert_rejected(submit(signed_draft(&next, &["alice", "bob"])).await, "0 of its own keys");
        let sets = submit(signed_draft(&next, &["alice", "bob", "erin"])).await.unwrap().sets;

        assert_eq!(sets.iter().map(|set| set.content().version).collect::<Vec<_>>(), [1, 2]);
        let shown = service.root_sets(&testing::anonymous(), Some(&cache)).await.unwrap();
        assert_eq!(shown.sets, sets);
        assert_eq!(Chain::parse(stored(&desk).await.unwrap().as_bytes()).unwrap().roots, sets);
        let leaves = desk.leaves().await;
        assert_eq!(leaves.iter().filter(|leaf| matches!(leaf.event, Event::PolicyChange(_))).count(), 2);
    }

    async fn sets_that_belong_elsewhere_are_refused(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let cache = main();
        let draft = service.draft_roots(&admin, None, 1, public_keys(&["alice"])).await.unwrap();
        let of_server = signed_draft(&draft, &["alice"]);

        assert_rejected(service.submit_roots(&admin, Some(&cache), &of_server).await, "not for cache main");
        let own = desk.row(&desk.only(KeyState::Active).await).await.public_key;
        let ours = service.draft_roots(&admin, Some(&cache), 1, vec![own.clone(), TestKey::named("alice").public]);
        let ours = signed_draft(&ours.await.unwrap(), &["alice"]);
        assert_rejected(service.submit_roots(&admin, Some(&cache), &ours).await, "root keys lie elsewhere");
        assert_rejected(service.draft_roots(&admin, Some(&cache), 2, public_keys(&["alice"])).await, "threshold");
        assert_rejected(service.draft_roots(&admin, Some(&cache), 1, public_keys(&["alice", "alice"])).await, "order");
        assert_rejected(service.draft_roots(&admin, Some(&cache), 1, Vec::new()).await, "1 to 15");
    }

    async fn the_servers_root_keys_hold_for_every_cache_without_its_own(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let draft = service.draft_roots(&admin, None, 1, public_keys(&["alice"])).await.unwrap();
        service.submit_roots(&admin, None, &signed_draft(&draft, &["alice"])).await.unwrap();

        let of_main = service.root_sets(&testing::anonymous(), Some(&main())).await.unwrap();
        assert_eq!(of_main.scope, RootScope::Server(service.cluster_id().to_owned()));
        assert_eq!(told(&desk).await.roots, of_main.sets);
        assert!(stored(&desk).await.unwrap().contains("for server "));
        let own = service.draft_roots(&admin, Some(&main()), 1, public_keys(&["alice"])).await;
        assert_conflict(own, "the server's root keys hold for this cache");

        // A cache that comes later has them from its beginning.
        let later = NewCache { name: "later".parse().unwrap(), public: true, ..other_cache() };
        service.create_cache(&admin, &later).await.unwrap();
        while service.release_due().await.unwrap() > 0 {}
        // The clock stands still: nothing else would end what this replica has leased.
        service.finish().await.unwrap();
        let cache = service.existing_cache(&later.name).await.unwrap();
        let key = crate::service::key_of(&cache, CacheObject::KeySuccession).unwrap();
        assert!(service.inner.storage.read(&key, 1 << 20).await.unwrap().is_some());
        service.delete_cache(&admin, &later.name, true).await.unwrap();
        while service.release_due().await.unwrap() > 0 {}
        assert_eq!(service.inner.storage.read(&key, 1 << 20).await.unwrap(), None);
    }

    async fn only_administrators_set_and_tell(test: &TestDb) {
        let desk = Desk::start(test).await;
        let service = desk.service();
        let pusher = desk.server.call(&desk.pusher).await;
        let request = SuccessionRequest::default();
        for call in [&pusher, &testing::anonymous()] {
            for denied in [
                service.draft_roots(call, None, 1, Vec::new()).await.map(drop),
                service.draft_roots(call, Some(&main()), 1, Vec::new()).await.map(drop),
                service.submit_roots(call, None, "").await.map(drop),
                service.submit_roots(call, Some(&main()), "").await.map(drop),
                service.root_sets(call, None).await.map(drop),
                service.draft_succession(call, &main(), &request).await.map(drop),
                service.submit_succession(call, &main(), "").await.map(drop),
            ] {
                assert!(matches!(denied, Err(Error::Forbidden | Error::Unauthenticated(_))), "{denied:?}");
            }
        }
        let private = NewCache { name: "team".parse().unwrap(), public: false, ..other_cache() };
        service.create_cache(&desk.server.admin().await, &private).await.unwrap();
        for call in [&pusher, &testing::anonymous()] {
            let denied = service.succession(call, &private.name).await;
            assert!(matches!(denied, Err(Error::Forbidden | Error::Unauthenticated(_))), "{denied:?}");
        }
    }

    async fn root_keys_and_the_new_key_tell_of_a_stolen_one(test: &TestDb) {
        let (desk, old, draft) = stolen(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let new = desk.only(KeyState::Active).await;
        let statement = statement(&draft);
        assert_eq!((statement.old.name(), statement.new.name(), statement.seq), (&old, &new, 1));
        assert_eq!(statement.retire_old, Some(desk.server.clock.now()));

        let note = signed_draft(&draft, &["bob", "carol"]);
        service.submit_succession(&admin, &main(), &note).await.unwrap();

        let chain = told(&desk).await;
        assert!(chain.statements[0].is_signed_by(&statement.new), "the vault adds the new key's word");
        assert!(!chain.statements[0].is_signed_by(&statement.old));
        let cache = service.existing_cache(&main()).await.unwrap().id.to_string();
        let before = Chain { statements: Vec::new(), ..chain.clone() };
        let memory = Memory::at_first_use(&cache, &before).unwrap();
        let followed = follow(&[statement.old], &memory, &chain, desk.server.clock.now()).unwrap();
        assert_eq!(key_names(&followed.trusted), [new.to_string()]);
        assert_eq!(stored(&desk).await, Some(chain.encode()));
        assert_eq!(leaves_of_successions(&desk).await, [(new.to_string(), "compromise".to_owned())]);
        let again = service.draft_succession(&admin, &main(), &SuccessionRequest::default()).await;
        assert_conflict(again, "no key is compromised of which clients were not told");
    }

    async fn what_does_not_come_next_is_refused(test: &TestDb) {
        let (desk, _, draft) = stolen(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let good = statement(&draft);
        let submit = async |statement: &Statement, names: &[&str]| {
            let note = signed(statement, names).note().encode();
            service.submit_succession(&admin, &main(), &note).await
        };
        let enough = ["alice", "bob"];
        let stranger = TestKey::named("stranger").public;
        let planned = Statement { reason: Reason::Planned, ..good.clone() };
        let other_cache = crate::succession::CacheRef { id: "another".into(), ..good.cache.clone() };
        let other_roots = crate::succession::testing::roots(1, 1, &["alice"]).reference();

        assert_rejected(submit(&good, &["alice"]).await, "1 root keys have signed, 2 are needed");
        assert_rejected(submit(&good, &["alice", "mallory"]).await, "1 root keys");
        assert_rejected(submit(&planned, &enough).await, "by the rotation itself");
        assert_rejected(submit(&Statement { cache: other_cache, ..good.clone() }, &enough).await, "another cache");
        assert_rejected(submit(&Statement { new: stranger.clone(), ..good.clone() }, &enough).await, "the new key is none");
        assert_rejected(submit(&Statement { old: stranger, ..good.clone() }, &enough).await, "the old key is none");
        let swapped = Statement { old: good.new.clone(), new: good.old.clone(), ..good.clone() };
        assert_rejected(submit(&swapped, &enough).await, "the new key is compromised by now");
        assert_conflict(submit(&Statement { seq: 2, ..good.clone() }, &enough).await, "draft it again");
        let of_others = Statement { roots: Some(other_roots), ..good.clone() };
        assert_conflict(submit(&of_others, &enough).await, "other root keys");
        assert_rejected(service.submit_succession(&admin, &main(), "nothing").await, "note");
        assert!(told(&desk).await.statements.is_empty());

        service.seal(&admin).await.unwrap();
        assert!(matches!(submit(&good, &enough).await, Err(Error::Sealed)));
        service.unseal(&admin, Unseal::Configured).await.unwrap();
        desk.server.clock.advance_seconds(731 * DAY);
        let admin = Call::host();
        let note = signed(&good, &enough).note().encode();
        assert_rejected(service.submit_succession(&admin, &main(), &note).await, "has ended");
    }

    async fn without_root_keys_nothing_is_drafted(test: &TestDb) {
        let desk = Desk::start(test).await;
        let (service, admin) = (desk.service(), desk.server.admin().await);
        let old = desk.only(KeyState::Active).await;
        let request = || SuccessionRequest { old: Some(old.clone()), retire_old: None };

        let draft = service.draft_succession(&admin, &main(), &SuccessionRequest::default()).await;
        assert_conflict(draft, "no key is compromised");
        assert_conflict(service.draft_succession(&admin, &main(), &request()).await, "the key is not compromised");
        service.compromise_key(&admin, &main(), &old, "stolen").await.unwrap();
        assert_conflict(service.draft_succession(&admin, &main(), &request()).await, "no root keys");
    }

    async fn a_rotation_names_the_root_keys_in_force(test: &TestDb) {
        let desk = Desk::start(test).await;
        with_roots(&desk).await;
        let old = desk.only(KeyState::Active).await;
        desk.rotate(RotationRequest::default()).await.unwrap();

        let followed = follows(&desk, &old).await;

        let set: &Signed<Roots> = &told(&desk).await.roots[0];
        assert_eq!(followed.memory.roots, Some(set.content().reference()));
        assert!(set.content().written().is_ok());
    }
}

fn other_cache() -> NewCache {
    NewCache { upstreams: Some(Vec::new()), ..new_cache("other") }
}
