use super::*;
use crate::db::PageBounds;
use crate::db::testing::{TestDb, on_each_database};
use crate::service::testing::{Sample, TestService};
use crate::service::{AuditQuery, ContributorChange, Origin, QuarantineRequest, TakedownTarget};
use crate::tlog::frontier::Frontier;
use crate::tlog::hash::NodeHash;

/// A call of the same caller from a place that can be recognised.
fn from_home(call: Call) -> Call {
    let origin = Origin {
        address: Some("203.0.113.77".parse().unwrap()),
        client: Some("nix/of-alice".into()),
        ..Origin::default()
    };
    Call { origin, ..call }
}

async fn suspend(server: &TestService, name: &ContributorName) {
    let change = ContributorChange { suspended: Some(true), group: None };
    server.service.edit_contributor(&server.admin().await, name, &change).await.unwrap();
}

/// Everything that the rows say in words, of the log and of the audit.
async fn words(server: &TestService) -> String {
    let page = PageBounds { after: None, limit: 10_000, descending: false };
    let rows = server.service.list_audit(&server.admin().await, &AuditQuery::default(), &page).await.unwrap();
    let mut connection = server.service.inner.db.read().await.unwrap();
    let openings = log::openings(&mut connection, "detail", 0, 10_000).await.unwrap();
    let quarantines = quarantines::list(&mut connection, &page).await.unwrap();
    format!("{rows:?} {openings:?} {quarantines:?}")
}

on_each_database! {
    async fn what_is_private_of_a_person_goes_and_the_tree_still_verifies(test: &TestDb) {
        let server = TestService::start(test).await;
        let alice: ContributorName = "alice_".parse().unwrap();
        let token = server.contributor("alice_", "push:main").await;
        let bob = server.contributor("alicex", "push:main").await;
        server.push(&from_home(server.call(&token).await), &Sample::numbered(1)).await.unwrap();
        server.push(&from_home(server.call(&bob).await), &Sample::numbered(2)).await.unwrap();
        let denied = server.service.require(&from_home(server.call(&token).await), &Action::Administer, "x", "").await;
        assert!(denied.is_err());
        server.clock.advance_seconds(3600);
        server.service.commit_audit().await.unwrap();
        suspend(&server, &alice).await;
        let before = words(&server).await;
        assert!(before.contains("alice_") && before.contains("203.0.113.77"), "{before}");

        let erased = server.service.erase_contributor(&server.admin().await, &alice).await.unwrap();

        assert!(erased.audit_rows >= 3 && erased.log_details >= 3, "{erased:?}");
        let after = words(&server).await;
        assert!(!after.contains("alice_"), "{after}");
        // Another's stays: one opening of a leaf.
        assert_eq!(after.matches("203.0.113.77").count(), 1, "{after}");
        assert!(server.service.show_contributor(&server.admin().await, &alice).await.is_err());
        let renamed = server.service.show_contributor(&server.admin().await, &erased.name).await.unwrap();
        assert_eq!((renamed.paths, renamed.row.group), (1, None));

        let mut connection = server.service.inner.db.read().await.unwrap();
        let state = log::read(&mut connection).await.unwrap();
        let mut frontier = Frontier::new();
        for (_, leaf) in log::leaves(&mut connection, 0, 10_000).await.unwrap() {
            frontier.push(NodeHash::leaf(leaf.as_bytes()));
        }
        assert_eq!(frontier.encode(), state.frontier);
        let commits = log::leaves(&mut connection, 0, 10_000).await.unwrap();
        drop(connection);
        let commits = commits.into_iter().filter(|(_, leaf)| leaf.contains("\nevent audit-commit\n"));
        let commits: Vec<_> = commits.map(|(index, leaf)| (index.unsigned_abs(), leaf)).collect();
        let check = server.service.verify_audit(&server.admin().await, &commits, u64::MAX).await.unwrap();
        assert_eq!((check.commits, check.finding_count), (1, 0), "{check:?}");
        assert!(check.erased >= 2, "{check:?}");
    }

    async fn what_was_said_of_a_persons_tokens_and_quarantines_goes_too(test: &TestDb) {
        let server = TestService::start(test).await;
        let alice: ContributorName = "alice".parse().unwrap();
        let tokens = [server.contributor("alice", "push:main").await, {
            let admin = server.admin().await;
            server.issue(&admin, "alice", "push:main").await.unwrap()
        }];
        let admin = from_home(server.admin().await);
        for (at, token) in tokens.iter().enumerate() {
            server.push(&server.call(token).await, &Sample::numbered(at as u64)).await.unwrap();
        }
        let ids = tokens.map(|text| server.service.verify_token(&text, server.clock.now()).unwrap().token);
        // Reasons tell of people in other words than their names here.
        let reason = "Mrs Liddell lost her laptop";
        let asked = QuarantineRequest { reason: reason.into(), ..QuarantineRequest::default() };
        let target = TakedownTarget::Token(ids[0]);
        server.service.quarantine(&admin, &target, &asked).await.unwrap();
        server.service.restore(&admin, &target, reason).await.unwrap();
        server.service.revoke_token(&admin, ids[1], reason, false).await.unwrap();
        let target = TakedownTarget::Contributor(alice.clone());
        server.service.quarantine(&admin, &target, &asked).await.unwrap();
        suspend(&server, &alice).await;
        let other = server.contributor("bob", "push:main").await;
        let other = server.service.verify_token(&other, server.clock.now()).unwrap().token;
        server.service.revoke_token(&admin, other, "Mr Dodgson left", false).await.unwrap();
        // Of each token, path and contributor: audit row, leaf, or both; and rows of quarantines.
        assert!(words(&server).await.matches("Liddell").count() >= 12, "{}", words(&server).await);

        server.service.erase_contributor(&server.admin().await, &alice).await.unwrap();

        let after = words(&server).await;
        assert!(!after.contains("Liddell") && !after.contains("\"alice\""), "{after}");
        assert_eq!(after.matches("Dodgson").count(), 2, "another's stays: {after}");
    }

    async fn only_who_is_suspended_is_erased_and_stays_so(test: &TestDb) {
        let server = TestService::start(test).await;
        let token = server.contributor("alice", "push:main").await;
        let alice: ContributorName = "alice".parse().unwrap();
        let admin = server.admin().await;

        let active = server.service.erase_contributor(&admin, &alice).await;
        assert!(matches!(active, Err(Error::Conflict(Conflict::State(_)))), "{active:?}");
        let own = server.service.erase_contributor(&server.call(&token).await, &alice).await;
        assert!(matches!(own, Err(Error::Forbidden)), "{own:?}");
        let nobody = server.service.erase_contributor(&admin, &"nobody".parse().unwrap()).await;
        assert!(matches!(nobody, Err(Error::NotFound(_))), "{nobody:?}");

        suspend(&server, &alice).await;
        let erased = server.service.erase_contributor(&admin, &alice).await.unwrap();
        let again = server.service.erase_contributor(&admin, &erased.name).await.unwrap();
        assert_eq!((again.audit_rows, again.log_details, again.name), (0, 0, erased.name.clone()));
        let lifted = ContributorChange { suspended: Some(false), group: None };
        let lifted = server.service.edit_contributor(&admin, &erased.name, &lifted).await;
        assert!(matches!(lifted, Err(Error::Conflict(Conflict::State(_)))), "{lifted:?}");
    }
}
