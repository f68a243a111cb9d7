//! What is new in a store is found once, and what waits is pushed round by round: one path's trouble is not the
//! others', and a server that is down loses nothing. With a real Nix and its store; what a push answers is the test's.

use std::cell::RefCell;
use std::collections::HashSet;

use narvault::client::ErrorKind;
use narvault::nix::store_path::StorePath;
use narvault::queue::Queue;
use narvault::time::{Clock, Timestamp};
use narvault::watch::{Drain, Failed, Fault, LocalNix, Round, StoreWatch, Whose};

use crate::support::nix::{Machine, Nix, require_nix};

const NOON: Timestamp = Timestamp(1_795_353_000_000);

/// A queue of valid paths in a real store, and a push that does what the test wants.
struct Rounds {
    machine: Machine,
    nix: LocalNix,
    queue: Queue,
    clock: Clock,
    calls: RefCell<Vec<Vec<String>>>,
}

impl Rounds {
    async fn of(names: &[&str]) -> Option<Self> {
        let machine = Nix::host().await?.machine();
        let queue = Queue::open(&machine.file("queue.db")).await.unwrap();
        let mut paths = Vec::new();
        for name in names {
            paths.push(StorePath::from_absolute(&machine.add_text(name, name, &[]).await).unwrap());
        }
        queue.add("main", &paths, NOON).await.unwrap();
        let nix = LocalNix::new(machine.store());
        Some(Self { machine, nix, queue, clock: Clock::fixed(NOON), calls: RefCell::default() })
    }

    /// A round in which these paths fail and the others are pushed, or in which nothing is.
    async fn round(&self, push: impl Fn(&[StorePath]) -> Result<Failed, Fault>) -> Round {
        let push = async |_: &str, paths: &[StorePath]| {
            self.calls.borrow_mut().push(paths.iter().map(|path| path.name().to_owned()).collect());
            push(paths)
        };
        let drain = Drain { queue: &self.queue, nix: &self.nix, clock: &self.clock, cache: None };
        drain.round(&push).await.unwrap()
    }

    async fn waiting(&self) -> u64 {
        self.queue.waiting(None).await.unwrap().0
    }
}

fn fault(kind: ErrorKind, whose: Whose, text: &str) -> Fault {
    Fault { kind, whose, text: text.to_owned(), hint: None }
}

fn all_pushed(_: &[StorePath]) -> Result<Failed, Fault> {
    Ok(Failed::new())
}

#[tokio::test]
async fn a_refused_path_keeps_no_other_waiting_and_is_given_up_after_a_week() {
    let Some(rounds) = Rounds::of(&["a", "b", "c"]).await else { return println!("skipped: no Nix here") };
    let refuse_b = |paths: &[StorePath]| {
        let refused = paths.iter().filter(|path| path.name() == "b");
        Ok(refused
            .map(|path| (path.clone(), fault(ErrorKind::Refused, Whose::Path, "b is in conflict")))
            .collect())
    };

    let round = rounds.round(refuse_b).await;

    let pushed: Vec<&str> = round.pushed.iter().map(StorePath::name).collect();
    assert_eq!((pushed, round.faults.len()), (vec!["a", "c"], 1));
    assert_eq!(rounds.round(refuse_b).await.cache, None, "it waits for its time");
    rounds.clock.advance_seconds(7 * 24 * 60 * 60 - 1);
    assert_eq!(rounds.round(refuse_b).await.dropped, []);
    rounds.clock.advance_seconds(60 * 60);
    assert_eq!(rounds.round(refuse_b).await.dropped.len(), 1);
    assert_eq!(rounds.waiting().await, 0);
    let note = &rounds.queue.status(1).await.unwrap().notes[0];
    assert!(note.text.contains("given up after 7 days: b is in conflict"), "{note:?}");
}

#[tokio::test]
async fn a_server_that_is_down_is_tried_once_a_round_and_never_given_up() {
    let Some(rounds) = Rounds::of(&["a", "b", "c"]).await else { return println!("skipped: no Nix here") };

    // For a month; a week is enough to give up a path that is at fault itself.
    for kind in [ErrorKind::Unreachable, ErrorKind::NotAuthorised, ErrorKind::Refused].repeat(10) {
        let round = rounds.round(|_| Err(fault(kind, Whose::Cache, "not now"))).await;
        assert_eq!((round.pushed.len(), round.dropped.len(), round.faults.len()), (0, 0, 1));
        rounds.clock.advance_seconds(24 * 60 * 60);
    }

    assert_eq!(rounds.calls.borrow().len(), 30);
    assert_eq!(rounds.round(all_pushed).await.pushed.len(), 3);
}

#[tokio::test]
async fn a_push_that_fails_as_a_whole_for_one_path_is_made_path_by_path() {
    let Some(rounds) = Rounds::of(&["a", "b", "c"]).await else { return println!("skipped: no Nix here") };
    let stumble = |paths: &[StorePath]| match paths.iter().any(|path| path.name() == "b") {
        true => Err(fault(ErrorKind::Other, Whose::Path, "b cannot be read")),
        false => Ok(Failed::new()),
    };

    let round = rounds.round(stumble).await;

    let pushed: Vec<&str> = round.pushed.iter().map(StorePath::name).collect();
    assert_eq!((pushed, rounds.waiting().await), (vec!["a", "c"], 1));
}

#[tokio::test]
async fn the_same_words_for_each_path_mean_that_it_is_not_the_paths() {
    let names: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some(rounds) = Rounds::of(&names).await else { return println!("skipped: no Nix here") };

    rounds.round(|_| Err(fault(ErrorKind::Other, Whose::Path, "no Nix"))).await;

    // All together, then three of them alone.
    assert_eq!(rounds.calls.borrow().len(), 4);
    assert_eq!(rounds.waiting().await, 20);
    assert_eq!(rounds.round(all_pushed).await.cache, None);
}

#[tokio::test]
async fn a_path_that_is_gone_is_dropped_with_a_note() {
    let Some(rounds) = Rounds::of(&["a", "b"]).await else { return println!("skipped: no Nix here") };
    let due = rounds.queue.due(None, NOON, 1).await.unwrap();
    let gone = due[0].path.to_string();
    rounds.machine.run("nix-store", ["--delete", &gone]).await.success();

    let round = rounds.round(all_pushed).await;

    assert_eq!((round.pushed.len(), round.dropped.len()), (1, 1));
    assert_eq!(rounds.calls.borrow()[0], ["b"]);
    let note = &rounds.queue.status(1).await.unwrap().notes[0];
    assert_eq!(note.path.as_ref(), Some(&gone));
    assert!(note.text.contains("not valid any more"), "{note:?}");
}

// --- the store ---

#[tokio::test]
async fn a_watch_queues_what_came_since_it_last_ran_and_no_derivations() {
    let nix = require_nix!();
    let machine = nix.machine();
    let store = LocalNix::new(machine.store());
    let queue = Queue::open(&machine.file("queue.db")).await.unwrap();
    let begin = async |anew| StoreWatch::begin(&queue, &store, "main", anew, NOON).await.unwrap();
    let queued = async || {
        let due = queue.due(None, NOON, 100).await.unwrap();
        queue.pushed(&due).await.unwrap();
        due.iter().map(|entry| entry.path.name().to_owned()).collect::<HashSet<_>>()
    };
    machine.add_text("old", "old", &[]).await;

    let mut watch = begin(false).await;
    assert_eq!(watch.sweep(NOON).await.unwrap(), 0, "what was there already");
    let first = machine.add_text("first", "first", &[]).await;
    let derivation = "derivation { name = \"x\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; }";
    machine.run("nix-instantiate", ["--expr", derivation]).await.success();
    // What builds leave lying about.
    for name in ["lock", "tmp", "chroot"] {
        let path = format!("/nix/store/3sprlmfy5qih7ss1iq6w87830aqbm0sj-x.{name}");
        std::fs::create_dir(machine.real(&path)).unwrap();
    }
    assert_eq!(watch.sweep(NOON).await.unwrap(), 1);
    assert_eq!(watch.sweep(NOON).await.unwrap(), 0, "each once");
    assert_eq!(queued().await, ["first".to_owned()].into());
    drop(watch);
    machine.add_text("meanwhile", "meanwhile", &[]).await;
    assert_eq!(begin(false).await.sweep(NOON).await.unwrap(), 1, "it goes on where it ended");
    assert_eq!(queued().await, ["meanwhile".to_owned()].into());
    machine.add_text("later", "later", &[]).await;
    let mut anew = begin(true).await;
    assert_eq!(anew.sweep(NOON).await.unwrap(), 0, "it begins anew");
    machine.run("nix-store", ["--delete", &first]).await.success();
    assert_eq!(anew.sweep(NOON).await.unwrap(), 0);
    machine.add_text("first", "first", &[]).await;
    assert_eq!(anew.sweep(NOON).await.unwrap(), 1, "what comes back is new");
}
