use super::*;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::service::testing::{self, TestService};
use crate::time::Clock;

/// Every leaf about audit rows, as the published log has them.
async fn leaves(service: &Service) -> Vec<(u64, String)> {
    let rows = log::leaves(&mut service.inner.db.read().await.unwrap(), 0, 100_000).await.unwrap();
    let commits = rows.into_iter().filter(|(_, leaf)| leaf.contains("\nevent audit-commit\n"));
    commits.map(|(index, leaf)| (index.unsigned_abs(), leaf)).collect()
}

async fn verify(server: &TestService) -> AuditCheck {
    let leaves = leaves(&server.service).await;
    server.service.verify_audit(&server.admin().await, &leaves, u64::MAX).await.unwrap()
}

/// A server with rows of three hours, committed to hour by hour.
async fn with_commits(test: &TestDb) -> TestService {
    let server = TestService::start(test).await;
    for hour in 0..3 {
        for number in 0..=hour {
            server.contributor(&format!("ci-{hour}-{number}"), "push:main").await;
        }
        server.clock.advance_seconds(3600);
        assert_eq!(server.service.commit_audit().await.unwrap(), 1);
    }
    server
}

async fn alter(server: &TestService, statement: &'static str) {
    let mut tx = server.service.inner.db.begin(Gate::Around).await.unwrap();
    assert!(audit_commits::alter(&mut tx, statement).await.unwrap() > 0, "{statement}");
    tx.commit().await.unwrap();
}

on_each_database! {
    async fn every_row_of_an_ended_hour_is_committed_to_once(test: &TestDb) {
        let server = TestService::start(test).await;
        assert_eq!(server.service.commit_audit().await.unwrap(), 0);
        assert!(verify(&server).await.waiting > 0);

        server.clock.advance_seconds(3600);
        assert_eq!(server.service.commit_audit().await.unwrap(), 1);
        assert_eq!(server.service.commit_audit().await.unwrap(), 0);
        server.clock.advance_seconds(7200);
        assert_eq!(server.service.commit_audit().await.unwrap(), 0);

        let check = verify(&server).await;
        assert_eq!((check.commits, check.waiting, check.finding_count), (1, 0, 0), "{check:?}");
        assert!(check.rows > 0);
    }

    async fn two_replicas_do_not_do_it_twice(test: &TestDb) {
        let server = TestService::start(test).await;
        let replica = testing::open(test, &server.clock, testing::vault(test)).await.0;
        for hour in 0..5 {
            server.contributor(&format!("ci-{hour}"), "push:main").await;
            server.clock.advance_seconds(3600);

            let (here, there) = tokio::join!(server.service.commit_audit(), replica.commit_audit());

            assert_eq!(here.unwrap() + there.unwrap(), 1, "{hour}");
        }
        let check = verify(&server).await;
        assert_eq!((check.commits, check.finding_count), (5, 0), "{check:?}");
    }

    async fn whatever_is_changed_in_the_rows_is_found(test: &TestDb) {
        let server = with_commits(test).await;
        let check = verify(&server).await;
        assert_eq!((check.commits, check.finding_count), (3, 0), "{check:?}");

        alter(&server, "UPDATE audit SET subject = 'nobody' WHERE commit_seq = 2 AND action = 'token-issue'").await;
        let check = verify(&server).await;
        assert!(check.findings.iter().all(|what| what.contains("is not what was committed to")), "{check:?}");
        assert!(check.finding_count > 0);
    }

    async fn a_row_that_is_taken_away_or_slipped_in_is_found(test: &TestDb) {
        let server = with_commits(test).await;
        alter(&server, "DELETE FROM audit WHERE commit_seq = 3 AND action = 'contributor-create'").await;
        let check = verify(&server).await;
        assert!(check.findings.iter().any(|what| what.starts_with("commitment 3 is to")), "{check:?}");
        assert_eq!(check.finding_count, 1, "{check:?}");
    }

    async fn a_commitment_that_is_taken_away_or_made_anew_is_found(test: &TestDb) {
        let server = with_commits(test).await;
        alter(&server, "DELETE FROM audit_commits WHERE seq = 3").await;
        let check = verify(&server).await;
        assert!(check.findings.iter().any(|what| what.contains("the log has 1 commitments")), "{check:?}");

        alter(&server, "UPDATE audit_commits SET row_count = 1 WHERE seq = 2").await;
        let check = verify(&server).await;
        assert!(check.findings.iter().any(|what| what.contains("not the one that its leaf is to")), "{check:?}");
    }

    async fn a_row_that_comes_late_is_covered_by_the_next(test: &TestDb) {
        let server = with_commits(test).await;
        // As by a replica whose clock is behind, or whose transaction took its time.
        let behind = testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await.0;
        let call = server.admin().await;
        behind.require(&call, &Action::Administer, "x", "").await.unwrap();
        let name = "late".parse().unwrap();
        behind.create_contributor(&call, &name, crate::service::ContributorKind::Ci, None).await.unwrap();

        assert_eq!(server.service.commit_audit().await.unwrap(), 1);

        let check = verify(&server).await;
        assert_eq!((check.commits, check.waiting, check.finding_count), (4, 0, 0), "{check:?}");
    }
}
