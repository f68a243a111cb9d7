//! Who follows a log remembers what was seen of it, from one call to the next, and believes nothing that contradicts it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::log::{self, first_leaves, honest};
use crate::support::server::{Ended, narvault};

/// A log in a folder, and the file of somebody who follows it.
struct Watched {
    folder: tempfile::TempDir,
}

impl Watched {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("watch/seen")
    }

    /// Puts another log in its place.
    fn publish(&self, seed: u8, leaves: Vec<String>) {
        let _ = fs::remove_dir_all(self.log());
        fs::create_dir(self.log()).unwrap();
        log::publish(&self.log(), seed, leaves);
    }

    /// One look, from a process of its own.
    async fn look(&self, more: &[&str]) -> Ended {
        let mut command = narvault();
        command.args(["log", "follow", "--once", "--json", "--state"]).arg(self.state());
        command.arg(self.log()).args(more).env("HOME", self.folder.path());
        Ended::of(command).await
    }

    /// The indices of the leaves that a look shows.
    async fn shown(&self, more: &[&str]) -> Vec<u64> {
        let ended = self.look(more).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let index = |line: &str| serde_json::from_str::<Value>(line).unwrap()["index"].as_u64().unwrap();
        ended.stdout.lines().map(index).collect()
    }

    /// A look ends with this code and these words, and what was seen before is what is known.
    async fn refused(&self, more: &[&str], code: i32, told: &str) {
        let before = fs::read(self.state()).unwrap();
        let ended = self.look(more).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(told), "{told}: {ended:?}");
        assert_eq!(ended.stdout, "", "nothing of it is shown");
        assert_eq!(fs::read(self.state()).unwrap(), before);
    }
}

fn log_of(count: u64) -> Vec<String> {
    first_leaves().into_iter().chain((0..count - 2).map(honest)).collect()
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..to).collect()
}

#[tokio::test]
async fn a_log_is_trusted_at_its_first_sight_which_is_told_and_followed_from_there() {
    let watched = Watched::new();
    watched.publish(1, log_of(10));

    let first = watched.look(&[]).await;
    assert_eq!((first.code, first.stdout.as_str()), (Some(0), ""), "{first:?}");
    assert!(first.stderr.contains("nothing is known of this log"), "{first:?}");
    assert!(first.stderr.contains(&log::log_key(1).to_string()), "{first:?}");

    watched.publish(1, log_of(300));
    assert_eq!(watched.shown(&[]).await, range(10, 300));
    let again = watched.look(&[]).await;
    assert_eq!((again.code, again.stdout.as_str(), again.stderr.as_str()), (Some(0), "", ""));
    // Who wants to see more than that says so.
    assert_eq!(watched.shown(&["--since", "298"]).await, [298, 299]);
    watched.publish(1, log_of(301));
    assert_eq!(watched.shown(&["--since", "298"]).await, [298, 299, 300]);
    assert_eq!(watched.shown(&[]).await, [0u64; 0]);
}

#[tokio::test]
async fn a_log_that_was_rolled_back_or_forked_between_two_calls_is_refused() {
    let watched = Watched::new();
    watched.publish(1, log_of(300));
    watched.shown(&[]).await;
    let forked = |count: u64, at: usize| {
        let mut leaves = log_of(count);
        leaves[at] = honest(999_999);
        leaves
    };
    for (leaves, told) in [
        (log_of(299), "rolled back: it has 299 leaves, and had 300 before"),
        (log_of(2), "rolled back"),
        (forked(300, 299), "forked"),
        (forked(301, 5), "forked"),
        (forked(1000, 256), "forked"),
    ] {
        watched.publish(1, leaves);
        watched.refused(&[], 4, told).await;
    }

    watched.publish(1, log_of(302));
    assert_eq!(watched.shown(&[]).await, [300, 301]);
}

#[tokio::test]
async fn the_key_of_the_first_sight_is_the_one_that_is_believed() {
    let watched = Watched::new();
    watched.publish(1, log_of(10));
    watched.shown(&[]).await;

    // Whatever the place says of its key later.
    watched.publish(2, log_of(11));
    watched.refused(&[], 1, "checkpoint is not believed").await;
    let other = log::log_key(2).to_string();
    watched.refused(&["--log-key", &other], 1, "checkpoint is not believed").await;

    watched.publish(1, log_of(11));
    fs::remove_file(watched.log().join("key")).unwrap();
    assert_eq!(watched.shown(&[]).await, [10]);
}

#[tokio::test]
async fn a_policy_may_say_who_is_believed_and_the_first_key_is_not_forgotten() {
    let watched = Watched::new();
    watched.publish(1, log_of(10));
    let policy = watched.folder.path().join("policy");
    fs::write(&policy, format!("log {}\nquorum none\n", log::log_key(1))).unwrap();
    let by_policy = ["--policy", policy.to_str().unwrap()];
    watched.shown(&by_policy).await;
    assert!(fs::read_to_string(watched.state()).unwrap().contains("\nkey -\n"));

    watched.publish(1, log_of(11));
    assert_eq!(watched.shown(&by_policy).await, [10]);
    watched.publish(1, log_of(12));
    assert_eq!(watched.shown(&[]).await, [11]);
    watched.publish(1, log_of(13));
    assert_eq!(watched.shown(&by_policy).await, [12]);
    let key = format!("\nkey {}\n", log::log_key(1));
    assert!(fs::read_to_string(watched.state()).unwrap().contains(&key));
}

#[tokio::test]
async fn what_could_not_be_shown_is_not_taken_for_seen() {
    let watched = Watched::new();
    watched.publish(1, log_of(10));
    watched.shown(&[]).await;
    watched.publish(1, log_of(600));
    let tile = watched.log().join("tile/entries/001");
    let sound = fs::read(&tile).unwrap();
    let mut changed = sound.clone();
    changed[77] ^= 1;
    fs::write(&tile, changed).unwrap();
    let before = fs::read(watched.state()).unwrap();

    let ended = watched.look(&[]).await;

    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert_eq!(fs::read(watched.state()).unwrap(), before);
    fs::write(&tile, sound).unwrap();
    assert_eq!(watched.shown(&[]).await, range(10, 600));
}

#[tokio::test]
async fn a_file_that_is_no_state_is_left_as_it_is() {
    let watched = Watched::new();
    watched.publish(1, log_of(10));
    watched.shown(&[]).await;
    let sound = fs::read_to_string(watched.state()).unwrap();
    let note = sound.split_once("\n\n").unwrap().1;
    for damaged in [
        String::new(),
        "hello\n".to_owned(),
        note.to_owned(),
        sound.replace("narvault/log-seen/v1", "narvault/log-seen/v2"),
        sound.replace("\nkey ", "\nkey x"),
        sound.replace(note, ""),
        sound[..sound.len() - 5].to_owned(),
    ] {
        fs::write(watched.state(), damaged).unwrap();
        watched.refused(&[], 1, "is not what `narvault log follow` keeps there").await;
    }
    // One that is whole, and that the log did not sign.
    fs::write(watched.state(), sound.replace("\n10\n", "\n11\n")).unwrap();
    watched.refused(&[], 1, "checkpoint is not believed").await;
    assert!(!Path::new(&watched.folder.path().join("watch/seen.narvault-new")).exists());
}
