use proptest::prelude::*;

use super::super::testing::{CACHE_ID, NOON, TestKey, chain, compromise, day, planned, roots, signed};
use super::*;

fn keys(names: &[&str]) -> Vec<PublicKey> {
    names.iter().map(|name| TestKey::named(name).public).collect()
}

fn names(keys: &[PublicKey]) -> Vec<&str> {
    keys.iter().map(|key| key.name().as_str()).collect()
}

/// What is remembered by whoever took `main-1` over when there was nothing to follow.
fn fresh() -> Memory {
    Memory::at_first_use(CACHE_ID, &Chain::default()).unwrap()
}

fn retired(seq: u64, old: &str, new: &str) -> Statement {
    Statement { retire_old: Some(NOON), ..planned(seq, old, new) }
}

/// A rotation as the server tells it: first the new key, later that the old one is retired.
fn rotation() -> Chain {
    chain(&[planned(1, "main-1", "main-2"), retired(2, "main-1", "main-2")])
}

fn refused(trusted: &[&str], memory: &Memory, chain: &Chain) -> Refusal {
    follow(&keys(trusted), memory, chain, NOON).unwrap_err()
}

const OFFLINE: [&str; 3] = ["alice", "bob", "carol"];

/// Root keys that everybody knows, and a statement about `main-1` that these keys signed.
fn stolen(signers: &[&str]) -> (Chain, Memory) {
    let set = roots(1, 2, &OFFLINE);
    let mut chain = Chain { roots: vec![signed(&set, &["alice", "bob"])], statements: Vec::new() };
    let memory = Memory::at_first_use(CACHE_ID, &chain).unwrap();
    chain.statements.push(signed(&compromise(1, "main-1", "main-2", &set), signers));
    (chain, memory)
}

#[test]
fn a_rotation_is_followed_step_by_step() {
    let first = chain(&[planned(1, "main-1", "main-2")]);

    let begun = follow(&keys(&["main-1"]), &fresh(), &first, NOON).unwrap();
    assert_eq!((names(&begun.trusted), names(&begun.added)), (vec!["main-1", "main-2"], vec!["main-2"]));
    assert!(begun.removed.is_empty() && begun.memory.pending.is_empty());

    let ended = follow(&begun.trusted, &begun.memory, &rotation(), NOON).unwrap();
    assert_eq!((names(&ended.trusted), names(&ended.removed)), (vec!["main-2"], vec!["main-1"]));

    let again = follow(&ended.trusted, &ended.memory, &rotation(), day(1000)).unwrap();
    assert_eq!((&again.trusted, &again.memory), (&ended.trusted, &ended.memory));
    assert!(again.added.is_empty() && again.removed.is_empty());
}

#[test]
fn who_was_away_goes_through_several_rotations_at_once() {
    let chain = chain(&[
        planned(1, "main-1", "main-2"),
        retired(2, "main-1", "main-2"),
        planned(3, "main-2", "main-3"),
        retired(4, "main-2", "main-3"),
    ]);

    let followed = follow(&keys(&["main-1"]), &fresh(), &chain, NOON).unwrap();

    assert_eq!(names(&followed.trusted), ["main-3"]);
    assert_eq!(followed.memory.seen.unwrap().seq, 4);
}

#[test]
fn keys_that_were_written_by_hand_are_found_in_the_middle() {
    let chain = chain(&[
        planned(1, "main-1", "main-2"),
        retired(2, "main-1", "main-2"),
        planned(3, "main-2", "main-3"),
    ]);
    for (trusted, expected) in [
        (vec!["main-1"], vec!["main-2", "main-3"]),
        (vec!["main-2"], vec!["main-2", "main-3"]),
        (vec!["main-3"], vec!["main-3"]),
        (vec!["other", "main-2"], vec!["other", "main-2", "main-3"]),
    ] {
        let followed = follow(&keys(&trusted), &Memory::default(), &chain, NOON).unwrap();

        assert_eq!(names(&followed.trusted), expected, "{trusted:?}");
        assert_eq!(followed.memory.seen.unwrap().seq, 3);
        assert_eq!(followed.memory.cache.as_deref(), Some(CACHE_ID));
    }
    assert_eq!(refused(&["other"], &Memory::default(), &chain), Refusal::NoneKnown);
}

#[test]
fn the_old_key_stays_until_its_end_and_is_remembered_till_then() {
    let statement = Statement { retire_old: Some(day(30)), ..planned(1, "main-1", "main-2") };
    let chain = chain(&[statement]);

    let now = follow(&keys(&["main-1"]), &fresh(), &chain, NOON).unwrap();
    assert_eq!(names(&now.trusted), ["main-1", "main-2"]);

    let before = follow(&now.trusted, &now.memory, &chain, day(29)).unwrap();
    let after = follow(&before.trusted, &before.memory, &chain, day(30)).unwrap();
    assert_eq!(names(&before.trusted), ["main-1", "main-2"]);
    assert_eq!((names(&after.trusted), names(&after.removed)), (vec!["main-2"], vec!["main-1"]));
}

#[test]
fn a_key_that_comes_back_is_not_removed() {
    let leaves = Statement { retire_old: Some(day(30)), ..planned(1, "main-1", "main-2") };
    let returns = planned(2, "main-2", "main-1");

    let followed = follow(&keys(&["main-1"]), &fresh(), &chain(&[leaves, returns]), day(40)).unwrap();

    assert_eq!(names(&followed.trusted), ["main-1", "main-2"]);
}

#[test]
fn what_begins_later_waits() {
    let later = Statement { not_before: day(3), ..planned(1, "main-1", "main-2") };
    let chain = chain(&[later]);

    let followed = follow(&keys(&["main-1"]), &fresh(), &chain, day(2)).unwrap();
    assert_eq!(names(&followed.trusted), ["main-1"]);
    assert_eq!(followed.waiting, Some(Waiting { seq: 1, not_before: day(3) }));
    assert_eq!(followed.memory, fresh());

    let followed = follow(&keys(&["main-1"]), &fresh(), &chain, day(3)).unwrap();
    assert_eq!(names(&followed.trusted), ["main-1", "main-2"]);
}

#[test]
fn numbers_go_up_by_one() {
    let gap = chain(&[planned(1, "main-1", "main-2"), planned(3, "main-2", "main-3")]);
    let cut = chain(&[planned(2, "main-1", "main-2")]);
    let fork = chain(&[planned(1, "main-1", "main-2"), planned(1, "main-1", "main-3")]);

    for memory in [fresh(), Memory::default()] {
        assert_eq!(refused(&["main-1"], &memory, &gap), Refusal::Gap { missing: 2, found: 3 });
        assert_eq!(refused(&["main-1"], &memory, &cut), Refusal::Gap { missing: 1, found: 2 });
        assert_eq!(refused(&["main-1"], &memory, &fork), Refusal::Fork { seq: 1 });
    }
}

#[test]
fn what_was_seen_stays() {
    let ended = follow(&keys(&["main-1"]), &fresh(), &rotation(), NOON).unwrap();
    let other = chain(&[planned(1, "main-1", "main-2"), retired(2, "main-1", "main-3")]);

    for (chain, expected) in [
        (chain(&[planned(1, "main-1", "main-2")]), Refusal::Rollback { seen: 2, found: 1 }),
        (Chain::default(), Refusal::Rollback { seen: 2, found: 0 }),
        (other, Refusal::Fork { seq: 2 }),
    ] {
        assert_eq!(refused(&["main-2"], &ended.memory, &chain), expected);
    }
}

#[test]
fn another_cache_is_refused() {
    let other = |seq| {
        let cache = CacheRef { name: "main".into(), id: "another".into() };
        Statement { cache, ..planned(seq, "main-1", "main-2") }
    };
    let expected = Refusal::OtherCache { expected: CACHE_ID.into(), found: "another".into() };

    assert_eq!(refused(&["main-1"], &fresh(), &chain(&[other(1)])), expected);
    let mixed = chain(&[planned(1, "main-1", "main-2"), other(2)]);
    assert_eq!(refused(&["main-1"], &Memory::default(), &mixed), expected);
}

#[test]
fn only_a_trusted_key_leads_on() {
    let elsewhere = chain(&[planned(1, "evil-1", "evil-2")]);
    let same_name = {
        let mut statement = planned(1, "evil-1", "main-2");
        statement.old =
            PublicKey::new("main-1".parse().unwrap(), TestKey::named("evil-1").public.bytes()).unwrap();
        Chain { roots: Vec::new(), statements: vec![signed(&statement, &["evil-1", "main-2"])] }
    };

    for chain in [&elsewhere, &same_name] {
        assert!(matches!(refused(&["main-1"], &fresh(), chain), Refusal::UnknownOld { seq: 1, .. }));
        assert_eq!(refused(&["main-1"], &Memory::default(), chain), Refusal::NoneKnown);
    }
}

#[test]
fn the_ways_of_other_keys_are_passed_over_where_the_own_one_goes_on() {
    let other = planned(1, "other-1", "other-2");
    let mixed = chain(&[other.clone(), planned(2, "main-1", "main-2")]);
    let followed = follow(&keys(&["main-1"]), &fresh(), &mixed, NOON).unwrap();
    assert_eq!((names(&followed.trusted), followed.memory.seen.unwrap().seq), (vec!["main-1", "main-2"], 2));

    // Nothing vouches for what comes after the last one that was followed: it is not remembered.
    let trailing = chain(&[planned(1, "main-1", "main-2"), Statement { seq: 2, ..other }]);
    let followed = follow(&keys(&["main-1"]), &fresh(), &trailing, NOON).unwrap();
    assert_eq!((names(&followed.trusted), followed.memory.seen.unwrap().seq), (vec!["main-1", "main-2"], 1));
    let refusal = follow(&followed.trusted, &followed.memory, &trailing, NOON).unwrap_err();
    assert!(matches!(refusal, Refusal::UnknownOld { seq: 2, .. }), "{refusal}");
}

#[test]
fn both_keys_have_to_sign() {
    let statement = planned(1, "main-1", "main-2");
    for (signers, by_new) in [
        (&["main-1"][..], true),
        (&["main-2"], false),
        (&["evil", "main-1"], true),
        (&["alice", "bob", "main-2"], false),
    ] {
        let chain = Chain { roots: Vec::new(), statements: vec![signed(&statement, signers)] };

        let refusal = refused(&["main-1"], &fresh(), &chain);

        match by_new {
            true => assert!(matches!(refusal, Refusal::UnsignedByNew { seq: 1, .. }), "{signers:?}"),
            false => assert!(matches!(refusal, Refusal::UnsignedByOld { seq: 1, .. }), "{signers:?}"),
        }
    }
}

#[test]
fn the_last_statement_must_not_have_ended() {
    let first = Statement { expires: day(10), ..planned(1, "main-1", "main-2") };
    let expired = follow(&keys(&["main-1"]), &fresh(), &chain(std::slice::from_ref(&first)), day(10));
    assert_eq!(expired.unwrap_err(), Refusal::Expired { seq: 1, expires: day(10) });

    // One in between may have: the last one speaks for it, as in The Update Framework.
    let chain = chain(&[first, planned(2, "main-2", "main-3")]);
    let followed = follow(&keys(&["main-1"]), &fresh(), &chain, day(10)).unwrap();
    assert_eq!(names(&followed.trusted), ["main-1", "main-2", "main-3"]);
    // What was followed in time stays.
    assert!(follow(&followed.trusted, &followed.memory, &chain, day(10_000)).is_ok());
}

#[test]
fn enough_root_keys_and_the_new_key_replace_a_stolen_one() {
    let (chain, memory) = stolen(&["alice", "carol", "main-2"]);

    let followed = follow(&keys(&["main-1"]), &memory, &chain, NOON).unwrap();

    assert_eq!((names(&followed.trusted), names(&followed.removed)), (vec!["main-2"], vec!["main-1"]));
}

#[test]
fn a_stolen_key_vouches_for_nothing() {
    for (signers, expected) in [
        (&["main-1", "main-2"][..], Refusal::TooFewRoots { seq: 1, found: 0, needed: 2 }),
        (&["alice", "main-1", "main-2"], Refusal::TooFewRoots { seq: 1, found: 1, needed: 2 }),
        (&["alice", "alice", "main-2"], Refusal::TooFewRoots { seq: 1, found: 1, needed: 2 }),
        (&["alice", "mallory", "main-2"], Refusal::TooFewRoots { seq: 1, found: 1, needed: 2 }),
    ] {
        let (chain, memory) = stolen(signers);

        assert_eq!(refused(&["main-1"], &memory, &chain), expected, "{signers:?}");
    }
    let (chain, memory) = stolen(&["alice", "bob", "main-1"]);
    assert!(matches!(refused(&["main-1"], &memory, &chain), Refusal::UnsignedByNew { .. }));
}

#[test]
fn root_keys_that_come_with_their_own_statement_count_for_nothing() {
    // Who can write into a bucket puts a set there, and a statement that it signs.
    let (chain, _) = stolen(&["alice", "bob", "main-2"]);

    for memory in [fresh(), Memory::default()] {
        assert_eq!(refused(&["main-1"], &memory, &chain), Refusal::NoRoots { seq: 1 });
    }
}

#[test]
fn a_trusted_key_says_which_root_keys_count() {
    let set = roots(1, 2, &OFFLINE);
    let named = Statement { roots: Some(set.reference()), ..planned(1, "main-1", "main-2") };
    let mut chain = chain(&[named]);
    assert_eq!(refused(&["main-1"], &fresh(), &chain), Refusal::OtherRoots { seq: 1, named: 1 });
    chain.roots.push(signed(&set, &["alice", "bob"]));

    let followed = follow(&keys(&["main-1"]), &fresh(), &chain, NOON).unwrap();
    assert_eq!(followed.memory.roots, Some(set.reference()));

    chain.statements.push(signed(&compromise(2, "main-2", "main-3", &set), &["bob", "carol", "main-3"]));
    let followed = follow(&followed.trusted, &followed.memory, &chain, NOON).unwrap();
    assert_eq!(names(&followed.trusted), ["main-1", "main-3"]);
}

#[test]
fn root_keys_change_with_the_word_of_enough_of_those_before() {
    let (mut chain, memory) = stolen(&["alice", "bob", "main-2"]);
    chain.statements.clear();
    let next = roots(2, 1, &["dave", "erin"]);
    for (signers, is_enough) in [
        (&["alice", "bob", "dave"][..], true),
        (&["alice", "dave"], false),
        (&["alice", "bob"], false),
        (&["dave", "erin"], false),
    ] {
        chain.roots.truncate(1);
        chain.roots.push(signed(&next, signers));

        match follow(&keys(&["main-1"]), &memory, &chain, NOON) {
            Ok(followed) if is_enough => assert_eq!(followed.memory.roots, Some(next.reference())),
            Err(refusal) if !is_enough => {
                assert_eq!(refusal, Refusal::RootsUnsigned { version: 2 }, "{signers:?}");
            }
            other => panic!("{signers:?}: {other:?}"),
        }
    }
}

#[test]
fn root_keys_of_before_count_no_more() {
    let (mut chain, memory) = stolen(&["alice", "bob", "main-2"]);
    let next = roots(2, 1, &["dave", "erin"]);
    let statement = chain.statements.pop().unwrap();
    chain.roots.push(signed(&next, &["alice", "bob", "dave"]));
    let followed = follow(&keys(&["main-1"]), &memory, &chain, NOON).unwrap();

    chain.statements.push(statement);
    let refusal = refused(&["main-1"], &followed.memory, &chain);

    assert_eq!(refusal, Refusal::OtherRoots { seq: 1, named: 1 });
}

#[test]
fn root_keys_do_not_go_back_and_do_not_fork() {
    let (chain, memory) = stolen(&["alice", "bob", "main-2"]);
    let others = roots(1, 2, &["mallory", "trudy"]);
    let with = |roots| Chain { roots, ..chain.clone() };

    for (chain, expected) in [
        (with(Vec::new()), Refusal::RootsRollback { seen: 1, found: 0 }),
        (with(vec![signed(&others, &["mallory", "trudy"])]), Refusal::RootsFork { version: 1 }),
        (
            with(vec![chain.roots[0].clone(), signed(&roots(3, 1, &["alice"]), &["alice", "bob"])]),
            Refusal::RootsGap { missing: 2 },
        ),
        (
            with(vec![chain.roots[0].clone(), signed(&others, &["alice", "bob"])]),
            Refusal::RootsFork { version: 1 },
        ),
        (
            with(vec![
                chain.roots[0].clone(),
                signed(
                    &Roots { scope: RootScope::Server("x".into()), ..roots(2, 1, &["alice"]) },
                    &["alice", "bob"],
                ),
            ]),
            Refusal::RootsUnsigned { version: 2 },
        ),
    ] {
        assert_eq!(refused(&["main-1"], &memory, &chain), expected);
    }
}

#[test]
fn a_first_use_takes_only_what_holds_together() {
    let set = roots(1, 2, &OFFLINE);
    let unsigned = Chain { roots: vec![signed(&set, &["alice"])], statements: Vec::new() };

    let refusal = Memory::at_first_use(CACHE_ID, &unsigned).unwrap_err();

    assert_eq!(refusal, Refusal::RootsUnsigned { version: 1 });
    assert!(Memory::at_first_use("another", &rotation()).is_err());
    let memory = Memory::at_first_use(CACHE_ID, &rotation()).unwrap();
    assert_eq!(memory.seen.unwrap().seq, 2);
}

#[test]
fn what_broke_off_between_keys_and_memory_is_made_up_for() {
    // The keys were written, what was remembered was not.
    for trusted in [&["main-1", "main-2"][..], &["main-2"]] {
        let followed = follow(&keys(trusted), &fresh(), &rotation(), NOON).unwrap();

        assert_eq!(names(&followed.trusted), ["main-2"], "{trusted:?}");
        assert_eq!(followed.memory.seen.unwrap().seq, 2);
    }
}

#[test]
fn every_refusal_has_a_cure() {
    let refusals = [
        refused(&["main-1"], &fresh(), &chain(&[planned(2, "main-1", "main-2")])),
        refused(&["main-1"], &fresh(), &stolen(&["alice", "main-2"]).0),
        refused(&[], &fresh(), &Chain::default()),
    ];
    for refusal in refusals {
        assert!(refusal.cure().len() > 20 && !refusal.cure().ends_with('.'), "{refusal}");
    }
}

proptest! {
    /// However long the way and wherever a client joins it, it ends with the last key, and never with none.
    #[test]
    fn a_way_leads_to_its_end_from_everywhere(length in 1..7_usize, from in 0..7_usize, stops in 0..7_usize) {
        let name = |number: usize| format!("main-{number}");
        let statements: Vec<Statement> = (1..=length)
            .flat_map(|number| {
                let seq = number as u64 * 2;
                let (old, new) = (name(number), name(number + 1));
                [planned(seq - 1, &old, &new), retired(seq, &old, &new)]
            })
            .collect();
        let from = from % (length + 1) + 1;
        let whole = chain(&statements);
        let part = chain(&statements[..(stops * 2).min(statements.len())]);
        let start = keys(&[&name(from)]);

        let mut at = (start.clone(), Memory::default());
        if let Ok(followed) = follow(&at.0, &at.1, &part, NOON) {
            prop_assert!(!followed.trusted.is_empty());
            at = (followed.trusted, followed.memory);
        }
        let followed = follow(&at.0, &at.1, &whole, NOON).unwrap();

        prop_assert_eq!(followed.trusted, keys(&[&name(length + 1)]));
    }

    /// Whatever is changed in a document that was followed, no other key comes of it.
    #[test]
    fn no_changed_byte_brings_another_key(at: prop::sample::Index, byte: u8) {
        let mut bytes = rotation().encode().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;

        if let Ok(chain) = Chain::parse(&bytes)
            && let Ok(followed) = follow(&keys(&["main-1"]), &fresh(), &chain, NOON)
        {
            for key in &followed.trusted {
                prop_assert!(["main-1", "main-2"].contains(&key.name().as_str()), "{key}");
            }
        }
    }
}
