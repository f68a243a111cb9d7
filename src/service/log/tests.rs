use super::*;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::service::testing::{self, TestService};
use crate::time::Clock;

async fn recomputed(test: &TestDb) -> Frontier {
    let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 100_000).await.unwrap();
    let mut frontier = Frontier::new();
    for ((index, leaf), expected) in leaves.iter().zip(0..) {
        assert_eq!(*index, expected);
        frontier.push(NodeHash::leaf(leaf.as_bytes()));
    }
    frontier
}

async fn stored(test: &TestDb) -> (LogState, Frontier) {
    let state = log::read(&mut test.db.read().await.unwrap()).await.unwrap();
    let frontier = decoded(&state).unwrap();
    (state, frontier)
}

fn leaf(text: String) -> LeafRow {
    let (event, path_id) = ("later".to_owned(), None);
    LeafRow { event, leaf: text, path_id, openings: Vec::new(), long_references: None }
}

on_each_database! {
    async fn every_act_moves_the_frontier_with_the_log(test: &TestDb) {
        let server = TestService::start(test).await;
        server.contributor("ci", "push:main").await;

        let (state, frontier) = stored(test).await;

        assert_eq!(state.frontier_size, state.size);
        assert!(state.size >= 7, "{}", state.size);
        assert_eq!(frontier, recomputed(test).await);
    }

    async fn what_is_rolled_back_leaves_no_gap(test: &TestDb) {
        let _server = TestService::start(test).await;
        let before = stored(test).await;

        let mut tx = test.db.begin(Gate::Shared).await.unwrap();
        append(&mut tx, &[leaf("lost\n".to_owned())]).await.unwrap();
        drop(tx);
        assert_eq!(stored(test).await, before);

        let mut tx = test.db.begin(Gate::Shared).await.unwrap();
        let kept = append(&mut tx, &[leaf("a\n".to_owned()), leaf("b\n".to_owned())]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(kept, before.0.size..before.0.size + 2);
        assert_eq!(stored(test).await.1, recomputed(test).await);
    }

    async fn a_log_without_a_frontier_gets_one_at_the_next_start(test: &TestDb) {
        let server = TestService::start(test).await;
        let (state, frontier) = stored(test).await;
        drop(server);

        for (frontier_size, frontier_before) in [(0, Vec::new()), (1, recomputed_of_one(test).await)] {
            let before = LogState { frontier: frontier_before, frontier_size, ..state.clone() };
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            log::advance(&mut tx, &before).await.unwrap();
            tx.commit().await.unwrap();

            testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await;

            assert_eq!(stored(test).await, (state.clone(), frontier.clone()));
        }
    }

    async fn appends_by_a_server_that_knows_no_frontier_are_caught_up_with(test: &TestDb) {
        let _server = TestService::start(test).await;
        let before = stored(test).await.0;
        let mut tx = test.db.begin(Gate::Shared).await.unwrap();
        // As an older version does it.
        let after = LogState { size: before.size + LEAVES_AT_ONCE + 5, ..before.clone() };
        let rows: Vec<_> = (before.size..after.size).map(|index| leaf(format!("old {index}\n"))).collect();
        log::append(&mut tx, before.size, &rows, &[], &after).await.unwrap();
        tx.commit().await.unwrap();

        let mut tx = test.db.begin(Gate::Shared).await.unwrap();
        append(&mut tx, &[leaf("new\n".to_owned())]).await.unwrap();
        tx.commit().await.unwrap();

        let (state, frontier) = stored(test).await;
        assert_eq!(state.frontier_size, before.size + LEAVES_AT_ONCE + 6);
        assert_eq!(state.size, state.frontier_size);
        assert_eq!(frontier, recomputed(test).await);
    }

    async fn a_damaged_log_takes_no_leaf(test: &TestDb) {
        let _server = TestService::start(test).await;
        let state = stored(test).await.0;
        for bad in [
            LogState { frontier: state.frontier[1..].to_vec(), ..state.clone() },
            LogState { frontier_size: state.size + 1, ..state.clone() },
            LogState { frontier_size: -1, ..state.clone() },
            // A leaf that the row counts and the table has not.
            LogState { size: state.size + 1, ..state.clone() },
        ] {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            log::advance(&mut tx, &bad).await.unwrap();

            let appended = append(&mut tx, &[leaf("x\n".to_owned())]).await;

            assert!(matches!(appended, Err(Error::Internal(_))), "{bad:?}: {appended:?}");
        }
    }

    async fn many_who_append_at_once_leave_no_gap_and_no_fork(test: &TestDb) {
        let server = TestService::start(test).await;
        let replica = testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await.0;
        let before = stored(test).await.0.size;

        let appenders = (0..64).map(|number: i64| {
            let service = if number % 2 == 0 { server.service.clone() } else { replica.clone() };
            tokio::spawn(async move {
                for round in 0..10 {
                    restarting(|| async {
                        // More than the pool has connections: some wait longer than it lets them.
                        let mut tx = loop {
                            if let Ok(tx) = service.inner.db.begin(Gate::Shared).await {
                                break tx;
                            }
                        };
                        let texts = (0..1 + number % 3).map(|part| leaf(format!("{number} {round} {part}\n")));
                        append(&mut tx, &texts.collect::<Vec<_>>()).await?;
                        // Some change their mind.
                        if round % 5 != 4 { tx.commit().await? }
                        Ok::<_, Error>(())
                    })
                    .await
                    .unwrap();
                }
            })
        });
        for appender in appenders.collect::<Vec<_>>() {
            appender.await.unwrap();
        }

        let appended: i64 = (0..64).map(|number| 8 * (1 + number % 3)).sum();
        let (state, frontier) = stored(test).await;
        assert_eq!(state.size, before + appended);
        assert_eq!(frontier, recomputed(test).await);
    }
}

async fn recomputed_of_one(test: &TestDb) -> Vec<u8> {
    let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 1).await.unwrap();
    NodeHash::leaf(leaves[0].1.as_bytes()).bytes().to_vec()
}
