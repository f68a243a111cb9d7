use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::nix::store_path::StorePath;
use crate::time::Timestamp;

const NOON: Timestamp = Timestamp(1_795_353_000_000);

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("3sprlmfy5qih7ss1iq6w87830aqbm0sj-{name}")).unwrap()
}

fn numbered(number: u32) -> StorePath {
    StorePath::from_base_name(&format!("{number:032}-p")).unwrap()
}

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/queue.db");
    (folder, path)
}

async fn names(queue: &Queue, now: Timestamp) -> Vec<String> {
    let due = queue.due(None, now, 100).await.unwrap();
    due.iter().map(|entry| format!("{} {}", entry.cache, entry.path.name())).collect()
}

#[tokio::test]
async fn paths_come_out_in_the_order_in_which_they_went_in_one_cache_at_a_time() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    queue.add("b", &[path("z"), path("y")], NOON).await.unwrap();
    queue.add("a", &[path("x")], NOON).await.unwrap();
    queue.add("b", &[path("w")], NOON).await.unwrap();

    assert_eq!(names(&queue, NOON).await, ["b z", "b y", "b w"]);
    let only = queue.due(Some("a"), NOON, 100).await.unwrap();
    assert_eq!(only.len(), 1);
    assert_eq!(queue.due(None, NOON, 2).await.unwrap().len(), 2);
    assert_eq!(queue.due(Some("c"), NOON, 100).await.unwrap(), []);
}

#[tokio::test]
async fn a_path_waits_once_for_each_cache() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();

    for _ in 0..3 {
        queue.add("a", &[path("x"), path("x")], NOON).await.unwrap();
    }
    queue.add("b", &[path("x")], NOON).await.unwrap();

    assert_eq!(names(&queue, NOON).await, ["a x"]);
    assert_eq!(queue.waiting(None).await.unwrap().0, 2);
}

#[tokio::test]
async fn a_path_that_is_added_again_while_it_is_pushed_stays() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    queue.add("a", &[path("x"), path("y")], NOON).await.unwrap();
    let due = queue.due(None, NOON, 100).await.unwrap();

    queue.add("a", &[path("x")], NOON).await.unwrap();
    queue.pushed(&due).await.unwrap();

    assert_eq!(names(&queue, NOON).await, ["a x"]);
}

#[tokio::test]
async fn what_was_added_is_there_after_the_process_is_gone() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    queue.add("a", &[path("x")], NOON).await.unwrap();
    // Neither closed nor dropped: what a killed process leaves behind, log and all.
    std::mem::forget(queue);

    let again = Queue::open(&place).await.unwrap();

    assert_eq!(names(&again, NOON).await, ["a x"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_lose_nothing() {
    let (_folder, place) = place();
    let adding = (0..16).map(|writer| {
        let place = place.clone();
        tokio::spawn(async move {
            for number in 0..8 {
                // Each as a process of its own would: opened anew, on a file that is not there at first.
                let queue = Queue::open(&place).await.unwrap();
                queue.add("a", &[numbered(writer * 8 + number)], NOON).await.unwrap();
            }
        })
    });
    for added in adding.collect::<Vec<_>>() {
        added.await.unwrap();
    }

    let queue = Queue::open(&place).await.unwrap();

    assert_eq!(queue.waiting(None).await.unwrap().0, 128);
}

#[tokio::test]
async fn a_failure_keeps_a_path_waiting_until_its_time() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    queue.add("a", &[path("x"), path("y")], NOON).await.unwrap();
    let due = queue.due(None, NOON, 100).await.unwrap();
    let later = NOON.plus_seconds(10);

    queue.postpone(&due[0], "refused", later).await.unwrap();

    assert_eq!(names(&queue, NOON).await, ["a y"]);
    assert_eq!(names(&queue, later).await, ["a x", "a y"]);
    assert_eq!(queue.due(None, later, 1).await.unwrap()[0].attempts, 1);
    let status = queue.status(10).await.unwrap();
    assert_eq!((status.caches[0].waiting, status.caches[0].failing), (2, 1));
    assert_eq!(status.caches[0].error.as_deref(), Some("refused"));
    queue.hurry(None, NOON).await.unwrap();
    assert_eq!(names(&queue, NOON).await, ["a x", "a y"]);
}

#[tokio::test]
async fn a_server_that_is_down_keeps_its_whole_cache_waiting_and_no_other() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    queue.add("a", &[path("x"), path("y")], NOON).await.unwrap();
    queue.add("b", &[path("z")], NOON).await.unwrap();
    let tried = queue.due(None, NOON, 1).await.unwrap();

    queue.postpone_cache("a", &tried, "down", NOON.plus_seconds(10)).await.unwrap();

    assert_eq!(names(&queue, NOON).await, ["b z"]);
    assert_eq!(queue.waiting(Some("a")).await.unwrap(), (2, Some(NOON.plus_seconds(10))));
    // One that is built now shows soon whether the server is back.
    queue.add("a", &[path("new")], NOON).await.unwrap();
    assert_eq!(queue.due(Some("a"), NOON, 100).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_dropped_leaves_a_note_and_notes_have_a_bound() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    let paths: Vec<StorePath> = (0..1_200).map(numbered).collect();
    queue.add("a", &paths, NOON).await.unwrap();
    let due = queue.due(None, NOON, 2_000).await.unwrap();

    queue.dropped(&due, &"long ".repeat(1_000), NOON).await.unwrap();

    assert_eq!(queue.waiting(None).await.unwrap(), (0, None));
    let notes = queue.status(5_000).await.unwrap().notes;
    assert_eq!(notes.len() as i64, super::status::NOTES_MAX);
    assert_eq!(notes[0].path.as_deref(), Some(numbered(1_199).to_string().as_str()));
    assert!(notes.iter().all(|note| note.text.len() <= 500));
}

#[tokio::test]
async fn a_watch_goes_on_where_it_ended_and_adds_each_path_once() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    let hashes: Vec<_> = (0..4).map(|number| numbered(number).hash()).collect();
    assert_eq!(queue.seen("a auto").await.unwrap(), None);
    queue.begin_watch("a auto", &[hashes[0], hashes[1]].into(), NOON).await.unwrap();

    queue.observe("a auto", "a", &hashes[2..], &[numbered(2)], &hashes[..1], NOON).await.unwrap();
    drop(queue);

    let queue = Queue::open(&place).await.unwrap();
    assert_eq!(queue.seen("a auto").await.unwrap(), Some(hashes[1..].iter().copied().collect()));
    assert_eq!(queue.seen("b auto").await.unwrap(), None);
    assert_eq!(queue.waiting(Some("a")).await.unwrap().0, 1);
    queue.begin_watch("a auto", &[hashes[3]].into(), NOON).await.unwrap();
    assert_eq!(queue.seen("a auto").await.unwrap(), Some([hashes[3]].into()));
}

#[tokio::test]
async fn one_process_at_a_time_pushes() {
    let (_folder, place) = place();
    let (one, two) = (Queue::open(&place).await.unwrap(), Queue::open(&place).await.unwrap());

    let claim = one.claim().unwrap();
    assert!(claim.is_some());
    assert!(two.claim().unwrap().is_none());
    // Adding needs no claim.
    two.add("a", &[path("x")], NOON).await.unwrap();
    drop(claim);

    assert!(two.claim().unwrap().is_some());
}

#[tokio::test]
async fn a_damaged_file_is_told_and_left_as_it_is() {
    let (_folder, place) = place();
    std::fs::create_dir(place.parent().unwrap()).unwrap();
    let rubbish = b"this is not a database, but it is long enough to be looked at as one ".repeat(20);
    std::fs::write(&place, &rubbish).unwrap();

    let error = Queue::open(&place).await.err().unwrap();

    assert!(matches!(error, QueueError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(&place.display().to_string()));
    assert!(error.hint().unwrap().contains("move"));
    assert_eq!(std::fs::read(&place).unwrap(), rubbish);
}

#[tokio::test]
async fn a_row_that_no_version_writes_is_damage_not_a_panic() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    queue.add("a", &[path("x")], NOON).await.unwrap();
    sqlx::query("UPDATE paths SET path = 'x'").execute(&mut *queue.connection().await).await.unwrap();

    let error = queue.due(None, NOON, 1).await.unwrap_err();

    assert!(matches!(error, QueueError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn a_newer_file_is_refused() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    sqlx::query("PRAGMA user_version = 2").execute(&mut *queue.connection().await).await.unwrap();
    drop(queue);

    let error = Queue::open(&place).await.err().unwrap();

    assert!(matches!(error, QueueError::Newer { version: 2, .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_made_only_by_who_writes() {
    let (_folder, place) = place();

    let error = Queue::open_existing(&place).await.err().unwrap();

    assert!(matches!(error, QueueError::Absent { .. }), "{error:?}");
    assert!(!place.exists());
    Queue::open(&place).await.unwrap();
    assert!(Queue::open_existing(&place).await.is_ok());
    for (path, expected) in [(place.as_path(), 0o600), (place.parent().unwrap(), 0o700)] {
        assert_eq!(mode(path), expected, "{}", path.display());
    }
}

#[tokio::test]
async fn commits_are_written_through() {
    let (_folder, place) = place();
    let queue = Queue::open(&place).await.unwrap();
    let mut connection = queue.connection().await;

    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await.unwrap();
    let synchronous: i64 =
        sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await.unwrap();

    // 2 is FULL: the log is synced at each commit.
    assert_eq!((mode.as_str(), synchronous), ("wal", 2));
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
