//! What rests on a quarantined word alone goes, whatever else is vouched for stays, and a restoration brings back what
//! was there: on both databases, broken off anywhere, and as often as it is asked for.
//!
//! Batches are of three rows here.

mod cuts;

use std::sync::Arc;
use std::time::Duration;

use super::carry::Step;
use super::*;
use crate::access::{Caller, TokenText};
use crate::db::evidence::Source;
use crate::db::measured::{self, FileState};
use crate::db::outbox::{self, LeaseTerms, OutboxKind, Wish};
use crate::db::testing::{NOON, TestDb, gate_is_free, on_each_database};
use crate::db::{log, realisations};
use crate::service::Published;
use crate::service::testing::{self, Sample, TestService};
use crate::vault::VaultError;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b";
const C: &str = "cccccccccccccccccccccccccccccccc-c";

fn contributor(name: &str) -> TakedownTarget {
    TakedownTarget::Contributor(name.parse().unwrap())
}

fn token(server: &TestService, text: &TokenText) -> TakedownTarget {
    TakedownTarget::Token(server.service.verify_token(text, server.clock.now()).unwrap().token)
}

fn path(sample: &Sample) -> TakedownTarget {
    TakedownTarget::Path("main".parse().unwrap(), sample.path.hash())
}

fn since(moment: Timestamp) -> QuarantineRequest {
    QuarantineRequest {
        since: Some(moment),
        reason: "broken into".to_owned(),
        ..QuarantineRequest::default()
    }
}

/// What somebody else could have written down about a path.
async fn add_evidence(server: &TestService, sample: &Sample, source: &Source, by: &TokenText) {
    let token = server.service.verify_token(by, server.clock.now()).unwrap().token;
    let path = row(server, sample).await;
    let now = server.clock.now();
    let id = server.service.new_id(now);
    let mut tx = server.service.inner.db.begin(Gate::Shared).await.unwrap();
    let new = evidence::NewEvidence { id, claim_id: path.claim_id, source: source.clone(), token };
    evidence::insert_all(&mut tx, &[new], now).await.unwrap();
    tx.commit().await.unwrap();
}

async fn row(server: &TestService, sample: &Sample) -> paths::PathRow {
    let mut connection = server.service.inner.db.read().await.unwrap();
    let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
    paths::find(&mut connection, cache.id, sample.path.hash()).await.unwrap().unwrap()
}

async fn state(server: &TestService, sample: &Sample) -> &'static str {
    row(server, sample).await.state.as_str()
}

async fn states(server: &TestService, samples: &[Sample]) -> Vec<&'static str> {
    let mut states = Vec::new();
    for sample in samples {
        states.push(state(server, sample).await);
    }
    states
}

/// The events of the log, in their order.
async fn events(test: &TestDb) -> Vec<String> {
    let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 10_000).await.unwrap();
    let event = |leaf: String| leaf.lines().nth(1).unwrap().strip_prefix("event ").unwrap().to_owned();
    leaves.into_iter().map(|(_, leaf)| event(leaf)).collect()
}

/// How often a path stands in the log with this event.
async fn leaves_of(test: &TestDb, event: &str, sample: &Sample) -> usize {
    let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 10_000).await.unwrap();
    let named = format!("\npath {}\n", sample.path);
    let event = format!("\nevent {event}\n");
    leaves.iter().filter(|(_, leaf)| leaf.contains(&event) && leaf.contains(&named)).count()
}

/// Alice's and Bob's pushes: seven paths of Alice's, of which Bob vouches for the last one too.
async fn seven(server: &TestService) -> (TokenText, TokenText, Vec<Sample>) {
    let alice = server.contributor("alice", "push:main").await;
    let bob = server.contributor("bob", "push:main").await;
    let samples: Vec<_> = (0..7).map(Sample::numbered).collect();
    for sample in &samples {
        server.push(&server.call(&alice).await, sample).await.unwrap();
    }
    server.push(&server.call(&bob).await, &samples[6]).await.unwrap();
    (alice, bob, samples)
}

on_each_database! {
    async fn what_rests_on_a_contributor_alone_goes_and_what_others_vouch_for_stays(test: &TestDb) {
        let server = TestService::start(test).await;
        let (alice, bob, samples) = seven(&server).await;
        let admin = server.admin().await;

        let done = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();

        assert!(done.changed && done.row.done_at.is_some());
        assert_eq!((done.tokens.len(), done.evidence, done.counts.evidence, done.narinfos_left), (1, 7, 6, 0));
        assert_eq!(states(&server, &samples[..6]).await, ["withdrawn"; 6]);
        assert_eq!(state(&server, &samples[6]).await, "published");
        let refused = testing::caller(&server.service, &alice).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))), "{refused:?}");
        testing::caller(&server.service, &bob).await.unwrap();
        let events = events(test).await;
        let expected = ["contributor-quarantine", "token-revoke"].into_iter().chain(["withdraw"; 6]);
        assert_eq!(events[events.len() - 8..], expected.map(str::to_owned).collect::<Vec<_>>());
        for sample in &samples[..6] {
            assert_eq!(leaves_of(test, "withdraw", sample).await, 1);
        }
        // The token that asked may be dead by then: it does not stand in the leaf.
        let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 10_000).await.unwrap();
        let mut withdrawn = leaves.iter().filter(|(_, leaf)| leaf.contains("\nevent withdraw\n"));
        assert!(withdrawn.all(|(_, leaf)| leaf.contains("\nby -\ntoken -\n")), "{leaves:?}");
        let openings = log::openings(&mut test.db.read().await.unwrap(), "detail", 0, 10_000).await.unwrap();
        let asked = format!(r#""asked_by":"{}""#, admin.caller.token().unwrap().contributor);
        assert_eq!(openings.iter().filter(|(_, _, text)| text.contains(&asked)).count(), 6);
    }

    async fn done_twice_it_changes_nothing(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        let first = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        let before = events(test).await;

        for moment in [NOON, NOON.plus_seconds(1)] {
            server.clock.advance_seconds(1);
            let again = server.service.quarantine(&admin, &contributor("alice"), &since(moment)).await.unwrap();
            assert!(!again.changed && again.tokens.is_empty());
            assert_eq!((again.row.id, again.counts), (first.row.id.clone(), first.counts));
        }

        assert_eq!(events(test).await, before);
        let back = server.service.restore(&admin, &contributor("alice"), "false alarm").await.unwrap();
        assert!(back.changed && back.row.restored_at.is_some());
        assert_eq!((back.counts.restored, back.counts.left), (6, 0));
        assert_eq!(states(&server, &samples).await, ["published"; 7]);
        let before = events(test).await;
        let again = server.service.restore(&admin, &contributor("alice"), "false alarm").await.unwrap();
        assert!(!again.changed);
        assert_eq!((again.counts, events(test).await), (back.counts, before));
    }

    async fn a_dry_run_tells_what_would_happen_and_changes_nothing(test: &TestDb) {
        let server = TestService::start(test).await;
        let (alice, bob, samples) = seven(&server).await;
        let user = Sample::new(A, "a", &[&samples[0].path]);
        server.push(&server.call(&bob).await, &user).await.unwrap();
        let far = Sample::new(B, "b", &[&user.path]);
        server.push(&server.call(&bob).await, &far).await.unwrap();
        let (admin, before) = (server.admin().await, events(test).await);

        let told = server.service.quarantine_impact(&admin, &contributor("alice"), &since(NOON)).await.unwrap();

        assert_eq!((told.tokens.len(), told.impact.evidence, told.impact.kept), (1, 7, 1));
        assert_eq!((told.impact.doomed.0, told.impact.doomed.1.len()), (6, 6));
        let named = |sample: &Sample| ("main".to_owned(), sample.path.base_name().to_owned());
        assert_eq!(told.impact.dependents, (2, vec![named(&user), named(&far)]));
        assert_eq!(events(test).await, before);
        assert_eq!(states(&server, &samples).await, ["published"; 7]);
        testing::caller(&server.service, &alice).await.unwrap();
        let late = since(NOON.plus_millis(1));
        server.clock.advance_seconds(1);
        let told = server.service.quarantine_impact(&admin, &contributor("alice"), &late).await.unwrap();
        assert_eq!((told.impact.evidence, told.impact.doomed.0), (0, 0));
    }

    async fn only_evidence_since_then_is_void(test: &TestDb) {
        let server = TestService::start(test).await;
        let alice = server.contributor("alice", "push:main").await;
        let samples: Vec<_> = (0..2).map(Sample::numbered).collect();
        server.push(&server.call(&alice).await, &samples[0]).await.unwrap();
        server.clock.advance_seconds(10);
        server.push(&server.call(&alice).await, &samples[1]).await.unwrap();
        let admin = server.admin().await;

        let later = since(NOON.plus_seconds(10));
        server.service.quarantine(&admin, &contributor("alice"), &later).await.unwrap();

        assert_eq!(states(&server, &samples).await, ["published", "withdrawn"]);
        // An earlier moment widens the one that stands.
        let wider = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        assert!(wider.changed);
        assert_eq!((wider.counts.evidence, wider.row.since), (2, NOON));
        assert_eq!(states(&server, &samples).await, ["withdrawn"; 2]);
    }

    async fn broken_off_anywhere_another_replica_goes_on_and_no_path_has_two_leaves(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        let (row, _) =
            server.service.begin_quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        server.service.revoke_of(&row).await.unwrap();
        let step = server.service.carry_on(&row.id, NOON).await.unwrap();
        assert!(matches!(step, Step::More(_)));
        let row = quarantines::by_id(&mut test.db.read().await.unwrap(), &row.id).await.unwrap().unwrap();
        assert_eq!(paths_left(&mut test.db.read().await.unwrap(), &row, 0).await.unwrap(), 3);
        let gone = states(&server, &samples).await.iter().filter(|state| **state == "withdrawn").count();
        assert_eq!(gone, 3, "a batch is whole");

        let (other, _) = testing::open(test, &server.clock, testing::vault(test)).await;
        // Somebody was at it just now.
        other.resume_quarantines(1).await.unwrap();
        assert_eq!(states(&server, &samples).await.iter().filter(|state| **state == "withdrawn").count(), 3);
        other.resume_quarantines(0).await.unwrap();

        assert_eq!(states(&server, &samples[..6]).await, ["withdrawn"; 6]);
        for sample in &samples[..6] {
            assert_eq!(leaves_of(test, "withdraw", sample).await, 1);
        }
        // The same the other way, and both at once.
        let (row, _) = server.service.begin_restore(&admin, &contributor("alice"), "false alarm").await.unwrap();
        server.service.carry_on(&row.id, NOON).await.unwrap();
        let (one, two) =
            tokio::join!(other.resume_quarantines(0), server.service.carry_through(&row.id, false));
        one.unwrap();
        two.unwrap();
        assert_eq!(states(&server, &samples).await, ["published"; 7]);
        for sample in &samples[..6] {
            assert_eq!(leaves_of(test, "restore", sample).await, 1);
        }
        other.shut_down().await;
    }

    async fn a_token_takes_along_what_it_issued_unless_that_is_kept(test: &TestDb) {
        let server = TestService::start(test).await;
        let parent = server.contributor("alice", "push:main").await;
        let child = server.issue(&server.call(&parent).await, "alice", "push:main").await.unwrap();
        let sibling = server.issue(&server.admin().await, "alice", "push:main").await.unwrap();
        let samples: Vec<_> = (0..3).map(Sample::numbered).collect();
        for (text, sample) in [&parent, &child, &sibling].into_iter().zip(&samples) {
            server.push(&server.call(text).await, sample).await.unwrap();
        }
        let (admin, target) = (server.admin().await, token(&server, &parent));
        let keep = QuarantineRequest { since: None, keep_issued: true, ..since(NOON) };

        server.service.quarantine(&admin, &target, &keep).await.unwrap();
        assert_eq!(states(&server, &samples).await, ["withdrawn", "published", "published"]);
        testing::caller(&server.service, &child).await.unwrap();
        let all = QuarantineRequest { keep_issued: false, ..keep.clone() };
        let done = server.service.quarantine(&admin, &target, &all).await.unwrap();

        assert_eq!((done.tokens.len(), done.changed), (1, true));
        assert_eq!(states(&server, &samples).await, ["withdrawn", "withdrawn", "published"]);
        assert!(testing::caller(&server.service, &child).await.is_err());
        testing::caller(&server.service, &sibling).await.unwrap();
        server.service.restore(&admin, &target, "nobody used it").await.unwrap();
        assert_eq!(states(&server, &samples).await, ["published"; 3]);
        assert!(testing::caller(&server.service, &parent).await.is_err(), "tokens stay dead");
    }

    async fn a_contributors_quarantine_takes_what_their_tokens_issued_to_others(test: &TestDb) {
        let server = TestService::start(test).await;
        let alice = server.contributor("alice", "admin").await;
        let samples: Vec<_> = (0..2).map(Sample::numbered).collect();
        server.contributor("bob", "push:main").await;
        let issued = server.issue(&server.call(&alice).await, "bob", "push:main").await.unwrap();
        let own = server.issue(&server.admin().await, "bob", "push:main").await.unwrap();
        for (text, sample) in [&issued, &own].into_iter().zip(&samples) {
            server.push(&server.call(text).await, sample).await.unwrap();
        }

        server.service.quarantine(&server.admin().await, &contributor("alice"), &since(NOON)).await.unwrap();

        assert_eq!(states(&server, &samples).await, ["withdrawn", "published"]);
        assert!(testing::caller(&server.service, &issued).await.is_err());
        testing::caller(&server.service, &own).await.unwrap();
    }

    async fn a_valid_signature_of_an_upstream_or_of_somebody_else_keeps_a_path(test: &TestDb) {
        let server = TestService::start(test).await;
        let (alice, bob, samples) = seven(&server).await;
        let id = |text: &TokenText| server.service.verify_token(text, NOON).unwrap().contributor;
        let upstream = Source::Upstream("cache.nixos.org-1".to_owned());
        add_evidence(&server, &samples[0], &upstream, &alice).await;
        add_evidence(&server, &samples[1], &Source::ContributorKey(id(&bob)), &alice).await;
        // Alice's own signature, whoever brought it, is her word.
        add_evidence(&server, &samples[2], &Source::ContributorKey(id(&alice)), &bob).await;

        server.service.quarantine(&server.admin().await, &contributor("alice"), &since(NOON)).await.unwrap();

        assert_eq!(states(&server, &samples[..3]).await, ["published", "published", "withdrawn"]);
        // For one path, whoever vouches for it does not count.
        let all = QuarantineRequest { since: None, ..since(NOON) };
        server.service.quarantine(&server.admin().await, &path(&samples[0]), &all).await.unwrap();
        assert_eq!(state(&server, &samples[0]).await, "withdrawn");
        server.service.restore(&server.admin().await, &path(&samples[0]), "fine").await.unwrap();
        assert_eq!(state(&server, &samples[0]).await, "published", "the upstream's word counts again");
    }

    async fn what_is_pushed_with_a_new_token_counts(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        let (row, _) =
            server.service.begin_quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        server.service.revoke_of(&row).await.unwrap();
        let new = server.issue(&admin, "alice", "push:main").await.unwrap();
        let again = Sample::numbered(0);
        server.push(&server.call(&new).await, &again).await.unwrap();

        server.service.carry_through(&row.id, false).await.unwrap();

        assert_eq!(states(&server, &samples[..2]).await, ["published", "withdrawn"]);
        // Asked for once more, the new token falls as well.
        let done = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        assert!(done.changed && done.tokens.len() == 1);
        assert_eq!(state(&server, &samples[0]).await, "withdrawn");
    }

    async fn two_quarantines_of_one_push_both_have_to_end(test: &TestDb) {
        let server = TestService::start(test).await;
        let (alice, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        let all = QuarantineRequest { since: None, ..since(NOON) };
        let targets = [token(&server, &alice), contributor("alice"), path(&samples[0])];
        for target in &targets {
            let asked = if matches!(target, TakedownTarget::Contributor(_)) { since(NOON) } else { all.clone() };
            server.service.quarantine(&admin, target, &asked).await.unwrap();
        }

        server.service.restore(&admin, &targets[0], "x").await.unwrap();
        assert_eq!(states(&server, &samples[..6]).await, ["withdrawn"; 6]);
        let back = server.service.restore(&admin, &targets[1], "x").await.unwrap();

        assert!(back.row.restored_at.is_some());
        assert_eq!(state(&server, &samples[0]).await, "withdrawn", "held by its own quarantine");
        assert_eq!(states(&server, &samples[1..]).await, ["published"; 6]);
        server.service.restore(&admin, &targets[2], "x").await.unwrap();
        assert_eq!(state(&server, &samples[0]).await, "published");
        for sample in &samples[..6] {
            assert_eq!(leaves_of(test, "withdraw", sample).await, 1);
            assert_eq!(leaves_of(test, "restore", sample).await, 1);
        }
    }

    async fn a_path_where_another_claim_stands_meanwhile_is_left_and_told_of(test: &TestDb) {
        let server = TestService::start(test).await;
        let alice = server.contributor("alice", "push:main").await;
        let bob = server.contributor("bob", "push:main delete:main").await;
        let first = Sample::new(A, "of alice", &[]);
        let (deleted, same) = (Sample::new(B, "b", &[]), Sample::new(C, "c", &[]));
        for sample in [&first, &deleted, &same] {
            server.push(&server.call(&alice).await, sample).await.unwrap();
        }
        let admin = server.admin().await;
        server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        let call = server.call(&bob).await;
        let second = Sample::new(A, "of bob", &[]);
        assert_eq!(server.push(&call, &second).await.unwrap(), Published::New);
        assert_eq!(server.put_narinfo(&call, &same).await.unwrap(), Published::New);
        server.service.delete_path(&call, &"main".parse().unwrap(), deleted.path.hash(), "x").await.unwrap();

        let back = server.service.restore(&admin, &contributor("alice"), "false alarm").await.unwrap();

        assert_eq!((back.counts.restored, back.counts.left), (0, 2));
        let mut left: Vec<_> =
            back.left.iter().map(|one| (one.store_path.as_str(), one.fate().as_str())).collect();
        left.sort_unstable();
        assert_eq!(left, [(A, "superseded"), (B, "deleted")]);
        let stands = row(&server, &first).await;
        assert_eq!((stands.state, stands.file), (PathState::Published, second.file));
        assert_eq!(states(&server, &[deleted, same]).await, ["deleted", "published"]);
        // The new leaf names the one that it replaces.
        let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 1000).await.unwrap();
        let signed = leaves.iter().filter(|(_, leaf)| {
            leaf.contains("\nevent sign\n") && leaf.contains(&format!("\npath {}\n", first.path))
        });
        let signed: Vec<_> = signed.collect();
        assert!(signed[0].1.contains("\nreplaces -\n"));
        assert!(signed[1].1.contains(&format!("\nreplaces {}\n", signed[0].0)), "{}", signed[1].1);
    }

    async fn dependents_are_told_of_and_by_choice_withdrawn_and_come_back_too(test: &TestDb) {
        let server = TestService::start(test).await;
        let alice = server.contributor("alice", "push:main").await;
        let bob = server.contributor("bob", "push:main").await;
        let a = Sample::new(A, "a", &[]);
        server.push(&server.call(&alice).await, &a).await.unwrap();
        let b = Sample::new(B, "b", &[&a.path]);
        let c = Sample::new(C, "c", &[&b.path]);
        for sample in [&b, &c] {
            server.push(&server.call(&bob).await, sample).await.unwrap();
        }
        let samples = [a, b, c];
        let admin = server.admin().await;

        let done = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        let named = |base_name: &str| ("main".to_owned(), base_name.to_owned());
        assert_eq!(done.dependents, (2, vec![named(B), named(C)]));
        assert_eq!(states(&server, &samples).await, ["withdrawn", "published", "published"]);
        let too = QuarantineRequest { dependents: true, ..since(NOON) };
        let done = server.service.quarantine(&admin, &contributor("alice"), &too).await.unwrap();

        assert_eq!((done.counts.evidence, done.counts.dependents, done.dependents.0), (1, 2, 0));
        assert_eq!(states(&server, &samples).await, ["withdrawn"; 3]);
        // Bob's own quarantine, and its end, do not bring back what refers to a path that is gone.
        server.service.quarantine(&admin, &contributor("bob"), &since(NOON)).await.unwrap();
        server.service.restore(&admin, &contributor("bob"), "x").await.unwrap();
        assert_eq!(states(&server, &samples).await, ["withdrawn"; 3]);
        server.service.restore(&admin, &contributor("alice"), "x").await.unwrap();
        assert_eq!(states(&server, &samples).await, ["published"; 3]);
        for sample in &samples {
            assert_eq!(leaves_of(test, "withdraw", sample).await, 1);
            assert_eq!(leaves_of(test, "restore", sample).await, 1);
        }
    }

    async fn a_quarantine_begun_anew_while_it_is_restored_stands(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        let (row, _) = server.service.begin_restore(&admin, &contributor("alice"), "x").await.unwrap();
        server.service.carry_on(&row.id, NOON).await.unwrap();

        let again = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();

        assert!(again.changed && again.row.restoring_at.is_none() && again.row.done_at.is_some());
        assert_eq!(states(&server, &samples[..6]).await, ["withdrawn"; 6]);
    }

    async fn it_works_while_the_vault_is_sealed(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        server.service.seal(&admin).await.unwrap();
        assert!(!server.service.is_open());

        let done = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        assert_eq!((done.counts.evidence, done.narinfos_left), (6, 0));
        let back = server.service.restore(&admin, &contributor("alice"), "x").await.unwrap();

        assert_eq!((back.counts.restored, back.narinfos_left), (6, 0));
        assert_eq!(states(&server, &samples).await, ["published"; 7]);
    }

    async fn the_sweeper_ends_what_was_withdrawn_for_too_long(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        let admin = server.admin().await;
        server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        // Far past the end of NARs that nobody claims.
        server.clock.advance_seconds(90 * 24 * 3600 - 1);
        server.service.sweep().await.unwrap();
        assert_eq!(states(&server, &samples[..6]).await, ["withdrawn"; 6]);
        let files = |test: &TestDb| {
            let (db, samples) = (test.db.clone(), samples.iter().map(|sample| sample.file).collect::<Vec<_>>());
            async move {
                let mut connection = db.read().await.unwrap();
                let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
                let states = measured::states(&mut connection, cache.id, samples.clone()).await.unwrap();
                samples.iter().map(|file| states[file].0).collect::<Vec<_>>()
            }
        };
        assert_eq!(files(test).await, [FileState::Stored; 7]);

        server.clock.advance_seconds(2);
        server.service.sweep().await.unwrap();

        assert_eq!(states(&server, &samples[..6]).await, ["deleted"; 6]);
        assert_eq!(files(test).await[..6], [FileState::Doomed; 6]);
        assert_eq!(files(test).await[6], FileState::Stored);
        let host = Call::host();
        let back = server.service.restore(&host, &contributor("alice"), "too late").await.unwrap();
        assert_eq!((back.counts.restored, back.counts.left), (0, 6));
        assert_eq!(states(&server, &samples[..6]).await, ["deleted"; 6]);
        for sample in &samples[..6] {
            assert_eq!(leaves_of(test, "delete", sample).await, 1);
        }
    }

    async fn keys_of_a_quarantined_contributor_count_no_longer(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, _) = seven(&server).await;
        let admin = server.admin().await;
        let key = format!("alice-1:{}", crate::db::testing::PUBLIC_KEY).parse().unwrap();
        server.service.add_contributor_key(&admin, &"alice".parse().unwrap(), &key).await.unwrap();
        let live = async || contributors::live_keys(&mut test.db.read().await.unwrap()).await.unwrap().len();
        assert_eq!(live().await, 1);

        server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        assert_eq!(live().await, 0);
        server.service.restore(&admin, &contributor("alice"), "x").await.unwrap();

        assert_eq!(live().await, 1);
    }

    async fn build_trace_entries_fall_with_whoever_pushed_them(test: &TestDb) {
        let server = TestService::start(test).await;
        let (alice, bob, samples) = seven(&server).await;
        let cache = "main".parse().unwrap();
        let name = |text: &str| format!("sha256:{}!{text}", "1".repeat(64));
        let put = async |by: &TokenText, name: &str, sample: &Sample| {
            let body = serde_json::json!({
                "id": name, "outPath": sample.path.base_name(), "signatures": [], "dependentRealisations": {},
            });
            let key = format!("realisations/{name}.doi").parse().unwrap();
            server.service.put_realisation(&server.call(by).await, &cache, key, body.to_string().as_bytes()).await
        };
        put(&alice, &name("out"), &samples[6]).await.unwrap();
        put(&bob, &name("bin"), &samples[6]).await.unwrap();
        put(&bob, &name("dev"), &samples[0]).await.unwrap();
        let found = async || {
            let mut connection = test.db.read().await.unwrap();
            let cache = caches::by_name(&mut connection, &cache).await.unwrap().unwrap();
            let names = ["out", "bin", "dev"].map(|text| format!("realisations/{}.doi", name(text)));
            let mut found = realisations::published_among(&mut connection, cache.id, names).await.unwrap();
            found.sort();
            found.iter().map(|name| name[name.len() - 7..name.len() - 4].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found().await, ["bin", "dev", "out"]);
        let admin = server.admin().await;

        server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();

        // Hers, though its output stays; and one whose output is gone.
        assert_eq!(found().await, ["bin"]);
        server.service.restore(&admin, &contributor("alice"), "x").await.unwrap();
        assert_eq!(found().await, ["bin", "dev", "out"]);
    }

    async fn narinfos_that_storage_does_not_let_go_of_in_time_are_counted(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, _, samples) = seven(&server).await;
        server.service.finish().await.unwrap();
        // Another replica holds the lease of one of them, and does not come back.
        let terms = LeaseTerms { owner: "other".to_owned(), lease_millis: 600_000, attempt_millis_max: 1000 };
        let object = format!("main/{}.narinfo", samples[0].path.hash());
        let subject = samples[0].path.hash().to_string();
        let wish = Wish { object: object.clone(), kind: OutboxKind::NarInfo, subject };
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        let cache = caches::by_name(&mut tx, &"main".parse().unwrap()).await.unwrap().unwrap();
        outbox::enqueue(&mut tx, &[wish], cache.id, Some(&terms), NOON).await.unwrap();
        tx.commit().await.unwrap();
        let admin = server.admin().await;

        let done = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();

        assert_eq!((done.counts.evidence, done.narinfos_left), (6, 1));
        assert!(done.row.done_at.is_some());
        server.clock.advance_seconds(700);
        let again = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        assert!(!again.changed);
        // What the other one may still write is done once more after.
        server.clock.advance_seconds(700);
        server.service.release_due().await.unwrap();
        server.service.finish().await.unwrap();
        let again = server.service.quarantine(&admin, &contributor("alice"), &since(NOON)).await.unwrap();
        assert_eq!(again.narinfos_left, 0);
    }

    async fn what_makes_no_sense_is_refused_and_leaves_nothing(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, bob, samples) = seven(&server).await;
        let (admin, bob) = (server.admin().await, server.call(&bob).await);
        let service = &server.service;
        let before = events(test).await;

        for (call, target, asked, expected) in [
            (&admin, contributor("nobody"), since(NOON), "there is no such contributor"),
            (&admin, contributor("alice"), since(NOON.plus_millis(1)), "lies in the future"),
            (&admin, contributor("alice"), QuarantineRequest { reason: " ".into(), ..since(NOON) }, "is empty"),
            (&admin, contributor("alice"), QuarantineRequest { reason: "a\nb".into(), ..since(NOON) }, "control"),
            (&admin, path(&Sample::new(A, "a", &[])), since(NOON), "there is no such path"),
            (&bob, contributor("alice"), since(NOON), "does not allow that"),
            (&bob, path(&samples[0]), since(NOON), "does not allow that"),
            (&testing::anonymous(), contributor("alice"), since(NOON), "needs a token"),
        ] {
            let refused = service.quarantine(call, &target, &asked).await.unwrap_err();
            assert!(refused.to_string().contains(expected), "{refused}");
            let refused = service.quarantine_impact(call, &target, &asked).await.unwrap_err();
            assert!(refused.to_string().contains(expected), "{refused}");
        }
        for (call, target, reason, expected) in [
            (&admin, contributor("alice"), "x", "never quarantined"),
            (&admin, contributor("nobody"), "x", "there is no such contributor"),
            (&admin, contributor("alice"), "", "is empty"),
            (&bob, contributor("alice"), "x", "does not allow that"),
        ] {
            let refused = service.restore(call, &target, reason).await.unwrap_err();
            assert!(refused.to_string().contains(expected), "{refused}");
        }

        assert_eq!(events(test).await, before);
        assert_eq!(states(&server, &samples).await, ["published"; 7]);
    }
}

/// Lets a publication go on that is held up between its checks and its commit.
struct Held {
    let_go: std::sync::mpsc::Sender<()>,
    holder: std::thread::JoinHandle<std::result::Result<(), VaultError>>,
}

/// The cache's key is opened when it signs for the first time, and that waits for whoever works with the vault.
async fn hold_up(server: &TestService) -> Held {
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let (holding, held_now) = tokio::sync::oneshot::channel();
    let keyring = server.service.inner.keyring.clone();
    let holder = std::thread::spawn(move || {
        keyring.with_vault(|_| {
            holding.send(()).unwrap();
            held.recv().unwrap();
            Ok::<_, VaultError>(())
        })
    });
    held_now.await.unwrap();
    Held { let_go, holder }
}

async fn a_publication_that_was_under_way_is_withdrawn_with_the_rest(test: TestDb) {
    let server = Arc::new(TestService::start(&test).await);
    let alice = server.contributor("alice", "push:main").await;
    let (call, admin) = (server.call(&alice).await, server.admin().await);
    let (sample, late) = (Sample::numbered(1), Sample::numbered(2));
    server.put_nar(&call, &sample).await.unwrap();
    server.put_nar(&call, &late).await.unwrap();
    let held = hold_up(&server).await;
    // On a thread of its own, for it blocks there: the runtime's have to go on.
    let publishing = {
        let (server, call, runtime) = (server.clone(), call.clone(), tokio::runtime::Handle::current());
        std::thread::spawn(move || runtime.block_on(server.put_narinfo(&call, &Sample::numbered(1))))
    };
    let passing = async {
        while gate_is_free(&test).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), passing).await.expect("it did not pass the gate");

    let quarantining = {
        let (server, asked) = (server.clone(), since(NOON));
        tokio::spawn(async move { server.service.quarantine(&admin, &contributor("alice"), &asked).await })
    };
    tokio::pin!(quarantining);
    let answered = tokio::time::timeout(Duration::from_millis(300), &mut quarantining).await;

    assert!(answered.is_err(), "quarantined while a publication was between its checks and its commit");
    held.let_go.send(()).unwrap();
    held.holder.join().unwrap().unwrap();
    assert_eq!(publishing.join().unwrap().unwrap(), Published::New);
    quarantining.await.unwrap().unwrap();
    assert_eq!(state(&server, &sample).await, "withdrawn");
    let refused = server.put_narinfo(&call, &late).await;
    assert!(matches!(refused, Err(Error::Unauthenticated(_))), "{refused:?}");
    assert!(!matches!(call.caller, Caller::Anonymous));
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quarantine_waits_for_a_publication_on_sqlite() {
    a_publication_that_was_under_way_is_withdrawn_with_the_rest(TestDb::sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quarantine_waits_for_a_publication_on_postgres() {
    if let Some(test) = TestDb::postgres().await {
        a_publication_that_was_under_way_is_withdrawn_with_the_rest(test).await;
    }
}
