use super::*;
use crate::db::log;
use crate::db::measured::{self, FileState};
use crate::db::paths::{PathRow, PathState};
use crate::db::testing::{TestDb, on_each_database};
use crate::service::testing::{Sample, TestService};
use crate::service::{QuarantineRequest, TakedownTarget};

const DAY_SECONDS: i64 = 24 * 3600;

async fn row(server: &TestService, sample: &Sample) -> PathRow {
    let mut connection = server.service.inner.db.read().await.unwrap();
    let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
    paths::find(&mut connection, cache.id, sample.path.hash()).await.unwrap().unwrap()
}

async fn states(server: &TestService, samples: &[Sample]) -> Vec<&'static str> {
    let mut states = Vec::new();
    for sample in samples {
        states.push(row(server, sample).await.state.as_str());
    }
    states
}

on_each_database! {
    async fn what_is_withdrawn_ends_in_time_whether_a_quarantine_tells_of_it_or_not(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let samples: Vec<_> = (0..3).map(Sample::numbered).collect();
        for sample in &samples {
            server.push(&server.call(&ci).await, sample).await.unwrap();
        }
        // As a recovery left paths behind that wrote no withdrawals: nothing says by what it went.
        let bare = row(&server, &samples[0]).await;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let now = server.clock.now();
        assert!(
            paths::change_state(&mut tx, &bare.id, PathState::Published, PathState::Withdrawn, now).await.unwrap()
        );
        tx.commit().await.unwrap();
        let target = TakedownTarget::Path("main".parse().unwrap(), samples[1].path.hash());
        let asked = QuarantineRequest { reason: "under suspicion".to_owned(), ..QuarantineRequest::default() };
        server.service.quarantine(&server.admin().await, &target, &asked).await.unwrap();

        server.clock.advance_seconds(89 * DAY_SECONDS);
        server.service.sweep().await.unwrap();
        assert_eq!(states(&server, &samples).await, ["withdrawn", "withdrawn", "published"]);
        server.clock.advance_seconds(2 * DAY_SECONDS);
        server.service.sweep().await.unwrap();

        assert_eq!(states(&server, &samples).await, ["deleted", "deleted", "published"]);
        let mut connection = test.db.read().await.unwrap();
        for sample in &samples[..2] {
            let leaves = log::leaves(&mut connection, 0, 10_000).await.unwrap();
            let named = "\nevent delete\n";
            let of_it = leaves.iter().filter(|(_, leaf)| {
                leaf.contains(named) && leaf.contains(&format!("\npath {}\n", sample.path))
            });
            assert_eq!(of_it.count(), 1, "{}", sample.path);
            let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
            let states = measured::states(&mut connection, cache.id, [sample.file]).await.unwrap();
            assert_eq!(states[&sample.file].0, FileState::Doomed);
        }
    }
}
