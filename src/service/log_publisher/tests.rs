mod cuts;
mod references;

use std::collections::BTreeMap;

use super::health::{BEHIND_LEAVES_MAX, BEHIND_MAX};
use super::*;
use crate::db::log::LogState;
use crate::db::testing::{self as rows_of, NOON, TestDb, on_each_database};
use crate::service::Call;
use crate::service::testing::{self, Sample, TestService};
use crate::time::Clock;
use crate::tlog::tile_reader::TileReader;

fn object(name: &str) -> ObjectKey {
    ObjectKey::Log(name.parse().unwrap())
}

async fn stored(service: &Service, name: &str) -> Option<Bytes> {
    service.inner.storage.read(&object(name), TILE_SIZE_BYTES_MAX).await.unwrap()
}

async fn put(service: &Service, name: &str, bytes: &[u8]) {
    service.inner.storage.put(&object(name), Bytes::copy_from_slice(bytes)).await.unwrap();
}

async fn remove(service: &Service, name: &str) {
    service.inner.storage.delete(&object(name), Duration::from_secs(5)).await.unwrap();
}

impl Service {
    /// Publishes every leaf that there is.
    pub(in crate::service) async fn publish_whole_log(&self) {
        publish(self, &mut Published::default()).await;
    }
}

/// Appends `count` leaves as some future act would.
async fn append(service: &Service, count: usize) {
    let mut tx = service.inner.db.begin(Gate::Shared).await.unwrap();
    let row = |number| log::LeafRow {
        event: "later".to_owned(),
        leaf: format!("leaf {number}\n"),
        path_id: None,
        openings: Vec::new(),
        long_references: None,
    };
    super::super::log::append(&mut tx, &(0..count).map(row).collect::<Vec<_>>()).await.unwrap();
    tx.commit().await.unwrap();
}

async fn publish(service: &Service, published: &mut Published) -> Checkpoint {
    service.publish_round(published).await.unwrap();
    let bytes = stored(service, "checkpoint").await.unwrap();
    Checkpoint::open(&bytes, &service.log_verifier_key().await.unwrap()).unwrap().0
}

async fn fork(service: &Service, published: &mut Published) -> Fork {
    match service.publish_round(published).await {
        Err(PublishError::Fork(fork)) => fork,
        other => panic!("no fork: {other:?}"),
    }
}

/// Reads the whole log out of storage, as a stranger who knows its key; gives the entries.
async fn read_all(service: &Service, checkpoint: &Checkpoint) -> Vec<String> {
    let mut tiles = BTreeMap::new();
    for tile in Tile::added(0, checkpoint.size) {
        tiles.insert(tile, stored(service, &tile.to_string()).await);
    }
    let fetch = |tile: Tile| {
        let there = tiles[&tile].as_ref().map(|bytes| bytes.to_vec());
        there.ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    let mut reader = TileReader::open(checkpoint.size, checkpoint.root, fetch).unwrap();
    let bundles = checkpoint.size.div_ceil(256);
    let entries = (0..bundles).flat_map(|index| reader.entries(index).unwrap());
    entries.map(|entry| String::from_utf8(entry).unwrap()).collect()
}

/// Has the database know an older checkpoint than the one that was published last.
async fn put_row_back(test: &TestDb, newest: &Checkpoint, row: &CheckpointRow) {
    let mut tx = test.db.begin(Gate::Around).await.unwrap();
    let size = i64::try_from(newest.size).unwrap();
    assert!(log::replace_checkpoint(&mut tx, size, row).await.unwrap());
    tx.commit().await.unwrap();
}

/// Publishes a checkpoint, so many leaves more, and another checkpoint, of which the row then does not know. Gives the row
/// and what is in storage.
async fn published_past_the_row(
    test: &TestDb,
    service: &Service,
    count: usize,
) -> (CheckpointRow, Checkpoint) {
    publish(service, &mut Published::default()).await;
    let row = service.log_checkpoint().await.unwrap().unwrap();
    append(service, count).await;
    let newest = publish(service, &mut Published::default()).await;
    put_row_back(test, &newest, &row).await;
    (row, newest)
}

async fn leaves(service: &Service) -> Vec<String> {
    let rows = log::leaves(&mut service.inner.db.read().await.unwrap(), 0, 100_000).await.unwrap();
    rows.into_iter().map(|(_, leaf)| leaf).collect()
}

on_each_database! {
    async fn what_is_published_is_the_whole_log_and_nothing_else(test: &TestDb) {
        let server = TestService::start(test).await;
        let mut published = Published::default();

        for count in [0, 1, 300, 700, 0] {
            append(&server.service, count).await;
            let checkpoint = publish(&server.service, &mut published).await;

            let row = server.service.log_checkpoint().await.unwrap().unwrap();
            assert_eq!(stored(&server.service, "checkpoint").await.unwrap(), row.note.as_bytes());
            assert_eq!(checkpoint.origin, format!("narvault-log-{}", server.service.cluster_id()));
            assert_eq!(read_all(&server.service, &checkpoint).await, leaves(&server.service).await);
        }

    }

    async fn partial_tiles_go_once_the_full_one_is_there_and_are_still_answered(test: &TestDb) {
        let server = TestService::start(test).await;
        let mut published = Published::default();
        append(&server.service, 10).await;
        let first = publish(&server.service, &mut published).await;
        append(&server.service, 3).await;
        let second = publish(&server.service, &mut published).await;
        let partial = |size: u64| Tile::partial(size).into_iter().map(|tile| tile.to_string());
        for path in partial(first.size).chain(partial(second.size)) {
            assert!(stored(&server.service, &path).await.is_some(), "{path}");
        }

        append(&server.service, 300).await;
        let last = publish(&server.service, &mut published).await;

        for path in partial(first.size).chain(partial(second.size)) {
            assert!(stored(&server.service, &path).await.is_none(), "{path}");
        }
        assert_eq!(read_all(&server.service, &last).await, leaves(&server.service).await);
        // Whoever reads by an older checkpoint gets what it asks for.
        for checkpoint in [first, second] {
            for tile in Tile::partial(checkpoint.size) {
                assert!(server.service.log_tile(tile).await.unwrap().is_some(), "{tile}");
            }
            let nodes = [crate::tlog::tree::Node::leaf(0)];
            assert!(server.service.tile_reader(&nodes, &checkpoint).await.unwrap().inclusion(3).is_ok());
        }
    }

    async fn two_replicas_publish_one_log(test: &TestDb) {
        let server = TestService::start(test).await;
        let replica = testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await.0;
        let (mut here, mut there) = (Published::default(), Published::default());

        for count in [3, 400, 1] {
            append(&server.service, count).await;
            let (one, two) =
                tokio::join!(server.service.publish_round(&mut here), replica.publish_round(&mut there));
            assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
            append(&replica, 5).await;
            publish(&replica, &mut there).await;
        }

        let checkpoint = publish(&server.service, &mut here).await;
        assert_eq!(read_all(&server.service, &checkpoint).await, leaves(&replica).await);
    }

    async fn a_publisher_that_dies_anywhere_is_taken_up_by_the_next(test: &TestDb) {
        let server = TestService::start(test).await;
        let service = &server.service;
        publish(service, &mut Published::default()).await;
        append(service, 300).await;
        let (old, size) = (stored(service, "checkpoint").await.unwrap(), leaves(service).await.len() as u64);

        // After some tiles: those that a lost round left behind are the same ones.
        let mut edge = Edge::new();
        service.extend(&mut edge, size, true).await.unwrap();
        remove(service, "tile/0/000").await;
        publish(service, &mut Published::default()).await;
        // After the row, before the object.
        put(service, "checkpoint", &old).await;
        let checkpoint = publish(service, &mut Published::default()).await;

        assert_eq!(checkpoint.size, size);
        assert_eq!(read_all(service, &checkpoint).await, leaves(service).await);
    }

    async fn lost_tiles_are_written_anew(test: &TestDb) {
        let server = TestService::start(test).await;
        append(&server.service, 600).await;
        let checkpoint = publish(&server.service, &mut Published::default()).await;
        for tile in Tile::added(0, checkpoint.size) {
            remove(&server.service, &tile.to_string()).await;
        }
        remove(&server.service, "checkpoint").await;

        assert_eq!(publish(&server.service, &mut Published::default()).await, checkpoint);

        assert_eq!(read_all(&server.service, &checkpoint).await, leaves(&server.service).await);
    }

    async fn a_sealed_server_publishes_once_it_is_open(test: &TestDb) {
        let server = TestService::start(test).await;
        let mut published = Published::default();
        let before = publish(&server.service, &mut published).await;
        server.service.seal(&server.admin().await).await.unwrap();

        append(&server.service, 3).await;
        assert_eq!(publish(&server.service, &mut published).await, before);

        server.service.unseal(&server.admin().await, crate::service::Unseal::Configured).await.unwrap();
        let after = publish(&server.service, &mut published).await;
        assert_eq!(after.size, leaves(&server.service).await.len() as u64);
        assert!(after.size > before.size);
    }

    async fn other_bytes_at_a_tile_are_a_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        append(&server.service, 200).await;
        publish(&server.service, &mut Published::default()).await;
        append(&server.service, 100).await;
        put(&server.service, "tile/0/000", &[7; 8192]).await;

        let fork = fork(&server.service, &mut Published::default()).await;

        assert_eq!(fork, Fork::Tile { tile: "tile/0/000".parse().unwrap() });
    }

    async fn a_leaf_that_was_altered_is_a_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        let size = publish(&server.service, &mut Published::default()).await.size;
        let edge = Tile::edge(size)[0].to_string();
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        log::alter_leaf(&mut tx, 2, "another\n").await.unwrap();
        tx.commit().await.unwrap();
        remove(&server.service, &edge).await;

        let found = fork(&server.service, &mut Published::default()).await;

        let tile = Tile::in_tree(TileKind::Entries, 0, size).unwrap();
        assert!(found == Fork::Root { size } || found == Fork::Tile { tile }, "{found}");
    }

    async fn a_database_older_than_storage_is_a_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        let first = publish(&server.service, &mut Published::default()).await;
        let (state, row) = {
            let mut connection = test.db.read().await.unwrap();
            (log::read(&mut connection).await.unwrap(), log::checkpoint(&mut connection).await.unwrap())
        };
        append(&server.service, 5).await;
        let second = publish(&server.service, &mut Published::default()).await;

        put_row_back(test, &second, &row.unwrap()).await;
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        log::advance(&mut tx, &state).await.unwrap();
        tx.commit().await.unwrap();

        let older = Fork::Older { place: "storage", published: second.size, leaves: first.size };
        assert_eq!(fork(&server.service, &mut Published::default()).await, older);
    }

    /// As after a restoration from a backup that was made between the leaves and their publication.
    async fn a_row_older_than_its_own_leaves_takes_the_checkpoint_in_storage(test: &TestDb) {
        let server = TestService::start(test).await;
        let (_, newest) = published_past_the_row(test, &server.service, 300).await;
        let note = stored(&server.service, "checkpoint").await.unwrap();
        append(&server.service, 2).await;
        let sealed = testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await.0;
        sealed.inner.keyring.lock();

        assert_eq!(publish(&sealed, &mut Published::default()).await, newest);

        assert_eq!(sealed.log_checkpoint().await.unwrap().unwrap().note.as_bytes(), note);
        let next = publish(&server.service, &mut Published::default()).await;
        assert_eq!(next.size, newest.size + 2);
        assert_eq!(read_all(&server.service, &next).await, leaves(&server.service).await);
    }

    async fn a_newer_checkpoint_in_storage_of_other_leaves_is_a_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        let (row, newest) = published_past_the_row(test, &server.service, 5).await;
        append(&server.service, 1).await;
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        log::alter_leaf(&mut tx, row.size, "another\n").await.unwrap();
        tx.commit().await.unwrap();

        let found = fork(&server.service, &mut Published::default()).await;

        assert_eq!(found, Fork::Root { size: newest.size });
        assert_eq!(server.service.log_checkpoint().await.unwrap().unwrap(), row);
    }

    async fn a_checkpoint_of_more_leaves_than_there_are_is_a_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        let checkpoint = publish(&server.service, &mut Published::default()).await;
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        log::advance(&mut tx, &LogState { size: 2, frontier: vec![0; 32], frontier_size: 2, published_beyond: None, forked: None }).await.unwrap();
        tx.commit().await.unwrap();

        let older = Fork::Older { place: "the database", published: checkpoint.size, leaves: 2 };
        assert_eq!(fork(&server.service, &mut Published::default()).await, older);
    }

    async fn a_checkpoint_that_the_log_did_not_sign_is_a_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        for foreign in [b"somebody else's\n".to_vec(), Vec::new(), vec![b'x'; NOTE_SIZE_BYTES_MAX + 1]] {
            put(&server.service, "checkpoint", &foreign).await;

            let found = fork(&server.service, &mut Published::default()).await;

            assert_eq!(found, Fork::Checkpoint { place: "storage" });
        }
    }
}

#[test]
fn nothing_is_signed_after_a_fork_or_far_behind() {
    let at = |seconds| NOON.plus_seconds(seconds);
    let health = LogHealth::default();
    assert_eq!(health.check(NOON), Ok(()));

    health.seen(BEHIND_LEAVES_MAX + 5, 5, Some(NOON));
    assert_eq!(health.check(NOON), Ok(()));
    health.seen(BEHIND_LEAVES_MAX + 6, 5, Some(NOON));
    let leaves = BEHIND_LEAVES_MAX + 1;
    assert_eq!(health.check(at(1)), Err(SigningStopped::Behind { leaves, seconds: 1 }));

    // A log that moves on is never long behind, though it never stands still.
    for round in 0..2_000 {
        health.seen(20_000 + round, 19_999 + round, Some(at(round as i64)));
        assert_eq!(health.check(at(2 + round as i64)), Ok(()));
    }
    let late = at(1_999).plus_seconds(BEHIND_MAX.as_secs() as i64);
    assert_eq!(health.check(late), Ok(()));
    let behind = SigningStopped::Behind { leaves: 1, seconds: BEHIND_MAX.as_secs() };
    assert_eq!(health.check(late.plus_millis(1)), Err(behind));
    health.seen(30_000, 30_000, None);
    assert_eq!(health.check(at(9_000)), Ok(()));

    health.alarm("another root");
    assert_eq!(health.check(at(9_000)), Err(SigningStopped::Forked("another root".to_owned())));
    health.all_clear();
    assert_eq!(health.check(at(9_000)), Ok(()));
}

on_each_database! {
    async fn a_fork_that_one_replica_finds_stops_every_replica_until_it_is_cleared(test: &TestDb) {
        let server = TestService::start(test).await;
        let token = server.contributor("alice", "push:main").await;
        let alice = server.call(&token).await;
        let samples: Vec<_> = (0..4).map(Sample::numbered).collect();
        server.push(&alice, &samples[0]).await.unwrap();
        publish(&server.service, &mut Published::default()).await;
        let checkpoint = stored(&server.service, "checkpoint").await.unwrap();
        let stop = CancellationToken::new();
        let (finder, _) = testing::open(test, &server.clock, testing::vault(test)).await;

        put(&server.service, "checkpoint", b"somebody else's\n").await;
        let found = fork(&finder, &mut Published::default()).await;
        finder.raise_alarm(&found, &stop).await;

        // The other replica's publisher has not looked yet: the row stops it.
        let stopped = |result: Result<crate::service::Published>| match result {
            Err(Error::Stopped(SigningStopped::Forked(what))) => assert!(what.contains("in storage"), "{what}"),
            other => panic!("it was signed: {other:?}"),
        };
        stopped(server.push(&alice, &samples[1]).await);
        // What takes something away goes on.
        let gone = server.contributor("gone", "push:main").await;
        let gone = server.service.verify_token(&gone, server.clock.now()).unwrap().token;
        server.service.revoke_token(&server.admin().await, gone, "lost", false).await.unwrap();
        // A restart forgets nothing.
        finder.shut_down().await;
        let (again, _) = testing::open(test, &server.clock, testing::vault(test)).await;
        again.publish_round(&mut Published::default()).await.unwrap();
        assert!(again.inner.log_health.check(server.clock.now()).is_err());
        stopped(server.push(&alice, &samples[1]).await);

        // Cleared without a mend, it is raised again; after one, the log goes on.
        let admin = server.admin().await;
        let refused = server.service.clear_log_alarm(&alice, "it is fine").await;
        assert!(matches!(refused, Err(Error::Forbidden)), "{refused:?}");
        assert!(server.service.clear_log_alarm(&admin, " ").await.is_err());
        // Nor without its row.
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        rows_of::remove_audit(&mut tx).await;
        tx.commit().await.unwrap();
        assert!(matches!(server.service.clear_log_alarm(&admin, "looked").await, Err(Error::Internal(_))));
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        rows_of::put_back_audit(&mut tx).await;
        tx.commit().await.unwrap();
        stopped(server.push(&alice, &samples[1]).await);
        assert!(server.service.clear_log_alarm(&admin, "looked").await.unwrap().is_some());
        assert_eq!(server.service.clear_log_alarm(&admin, "looked").await.unwrap(), None);
        let found = fork(&again, &mut Published::default()).await;
        again.raise_alarm(&found, &stop).await;
        put(&server.service, "checkpoint", &checkpoint).await;
        server.service.clear_log_alarm(&Call::host(), "put back from a mirror").await.unwrap().unwrap();
        server.push(&alice, &samples[1]).await.unwrap();
        let published = publish(&again, &mut Published::default()).await;
        assert_eq!(published.size, leaves(&again).await.len() as u64);
        again.shut_down().await;
    }

    async fn a_push_is_refused_while_the_published_log_is_far_behind_and_taken_when_it_has_caught_up(test: &TestDb) {
        let server = TestService::start(test).await;
        let token = server.contributor("alice", "push:main").await;
        let alice = server.call(&token).await;
        publish(&server.service, &mut Published::default()).await;
        server.push(&alice, &Sample::numbered(1)).await.unwrap();
        server.clock.advance_seconds(BEHIND_MAX.as_secs() as i64 + 1);
        // A replica that was only just started knows how long it has been, and cannot publish: somebody holds storage up.
        let (fresh, _) = testing::open(test, &server.clock, testing::vault(test)).await;
        fresh.inner.log_cut.after(0);
        assert!(fresh.publish_round(&mut Published::default()).await.is_err());
        let fresh = TestService { service: fresh, clock: server.clock.clone(), admin: server.admin.clone() };

        let refused = fresh.push(&alice, &Sample::numbered(2)).await;

        let seconds = BEHIND_MAX.as_secs() + 1;
        let is_behind = |error: &Error| matches!(error, Error::Stopped(SigningStopped::Behind { seconds: found, .. }) if *found == seconds);
        assert!(refused.as_ref().is_err_and(is_behind), "{refused:?}");
        fresh.service.inner.log_cut.after(usize::MAX);
        publish(&fresh.service, &mut Published::default()).await;
        fresh.push(&alice, &Sample::numbered(2)).await.unwrap();
        fresh.service.shut_down().await;
    }
}
