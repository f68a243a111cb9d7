//! Tokens are worth what their issuer had, and are dead everywhere once a revocation has answered.

use super::super::testing::{self, TestService, anonymous, caller};
use super::*;
use crate::access::Credential;
use crate::db::audit::Outcome;
use crate::db::log;
use crate::db::testing::{self as rows, NOON, TestDb, on_each_database};
use crate::service::{AuditQuery, ContributorChange, Liveness};

fn id(text: &TokenText, server: &TestService) -> TokenId {
    server.service.verify_token(text, server.clock.now()).unwrap().token
}

async fn is_live(server: &TestService, token: &TokenText) -> bool {
    match caller(&server.service, token).await {
        Ok(_) => true,
        Err(Error::Unauthenticated(_)) => false,
        Err(other) => panic!("{other}"),
    }
}

async fn events(test: &TestDb) -> Vec<String> {
    let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 1000).await.unwrap();
    let event = |leaf: String| leaf.lines().nth(1).unwrap().strip_prefix("event ").unwrap().to_owned();
    leaves.into_iter().map(|(_, leaf)| event(leaf)).collect()
}

fn request(contributor: &str, scopes: &str, seconds: u64) -> TokenRequest {
    TokenRequest {
        contributor: contributor.parse().unwrap(),
        scopes: scopes.parse().unwrap(),
        lifetime_seconds: Some(seconds),
        note: None,
    }
}

on_each_database! {
    async fn a_token_that_was_shown_before_vouches_for_no_other_text_and_for_no_other_time(test: &TestDb) {
        let server = TestService::start(test).await;
        let token = server.contributor("alice", "push:main").await;
        let (signed, signature) = token.expose().rsplit_once('.').unwrap();
        let other = server.contributor("alice-2", "push:main").await;
        let (_, other_signature) = other.expose().rsplit_once('.').unwrap();
        assert!(is_live(&server, &token).await && is_live(&server, &other).await);

        let reversed: String = signature.chars().rev().collect();
        for signature in [other_signature, &reversed, &signature[1..]] {
            let forged = format!("{signed}.{signature}").parse().unwrap();
            assert!(!is_live(&server, &forged).await);
        }
        assert!(is_live(&server, &token).await);
        server.clock.advance_seconds(400 * 24 * 3600);
        let late = caller(&server.service, &token).await;
        assert!(matches!(late, Err(Error::Unauthenticated(why)) if why.contains("expired")), "{late:?}");
    }

    async fn a_claim_makes_an_admin_once(test: &TestDb) {
        let server = TestService::start(test).await;
        let host = Call::host();
        let name = "root@example.org".parse().unwrap();
        let claim = server.service.make_admin_claim(&host, &name).await.unwrap();

        let issued = server.service.claim_admin(&anonymous(), claim.expose()).await.unwrap();

        assert!(issued.scopes.is_admin());
        assert_eq!(issued.contributor, name);
        assert_eq!(issued.expires_at, NOON.plus_seconds(30 * 24 * 3600));
        for text in [claim.expose(), "nvb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "", "nvt_a.b.c"] {
            let refused = server.service.claim_admin(&anonymous(), text).await;
            assert!(matches!(refused, Err(Error::Unauthenticated(_))), "{refused:?}");
        }
        let admin = server.admin().await;
        let refused = server.service.make_admin_claim(&admin, &name).await;
        assert!(matches!(refused, Err(Error::Forbidden)));
    }

    async fn a_claim_ends_after_an_hour_and_tries_are_counted(test: &TestDb) {
        let server = TestService::start(test).await;
        let claim = server.service.make_admin_claim(&Call::host(), &"b".parse().unwrap()).await.unwrap();
        server.clock.advance_seconds(3600);

        let late = server.service.claim_admin(&anonymous(), claim.expose()).await;
        assert!(matches!(late, Err(Error::Unauthenticated(_))));
        for _ in 0..9 {
            let _ = server.service.claim_admin(&anonymous(), "nvb_").await;
        }

        let eleventh = server.service.claim_admin(&anonymous(), "nvb_").await;
        assert!(matches!(eleventh, Err(Error::TooMany { .. })));
    }

    async fn only_what_one_has_can_be_issued(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main*").await;
        server.contributor("other", "pull:main").await;
        let (admin, ci) = (server.admin().await, server.call(&ci).await);
        let day = 24 * 3600;

        for (call, contributor, scopes, seconds, allowed) in [
            (&admin, "other", "push:main", 365 * day, true),
            (&admin, "ci", "admin", 30 * day, true),
            (&ci, "ci", "push:main", 90 * day, true),
            (&ci, "ci", "pull:main-x", day, true),
            (&admin, "other", "push:main", 366 * day, false),
            (&admin, "ci", "admin", 31 * day, false),
            (&admin, "nobody", "push:main", day, false),
            (&ci, "ci", "push:main", 91 * day, false),
            (&ci, "ci", "push:main", 0, false),
            (&ci, "ci", "push:other", day, false),
            (&ci, "ci", "push:*", day, false),
            (&ci, "ci", "delete:main", day, false),
            (&ci, "ci", "admin", day, false),
            (&ci, "other", "pull:main", day, false),
            (&ci, "nobody", "pull:main", day, false),
            (&anonymous(), "ci", "pull:main", day, false),
        ] {
            let request = request(contributor, scopes, seconds);
            let issued = server.service.issue_token(call, &request).await;
            assert_eq!(issued.is_ok(), allowed, "{contributor} {scopes} {seconds}: {issued:?}");
        }
        // Whether a contributor exists is nobody's business.
        for name in ["other", "nobody"] {
            let refused = server.issue(&ci, name, "pull:main").await;
            assert!(matches!(refused, Err(Error::Forbidden)), "{name}");
        }
    }

    async fn a_renewed_token_is_a_sibling_within_the_issuers_bound(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let parent = server.call(&ci).await;
        let short = server.service.issue_token(&parent, &request("ci", "pull:main", 60)).await.unwrap();
        server.clock.advance_seconds(30);

        let holder = server.call(&short.text).await;
        let renewed = server.service.renew_token(&holder, None).await.unwrap();
        let bound = parent.caller.token().unwrap().expires_at;
        assert_eq!((renewed.expires_at, renewed.scopes.to_string()), (bound, "pull:main".to_owned()));
        let too_long = server.service.renew_token(&holder, Some(91 * 24 * 3600)).await;
        assert!(matches!(too_long, Err(Error::Rejected(_))));

        let row = server.service.show_token(&holder, renewed.id).await.unwrap();
        assert_eq!(row.issued_by, Some(parent.caller.token().unwrap().token));
        server.service.revoke_token(&holder, short.id, "rotated", false).await.unwrap();
        assert!(is_live(&server, &renewed.text).await);
        server.service.revoke_token(&server.admin().await, id(&ci, &server), "gone", false).await.unwrap();
        assert!(!is_live(&server, &renewed.text).await);
    }

    async fn revoking_takes_along_what_was_issued_unless_told_otherwise(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        for keep_issued in [false, true] {
            let root = server.contributor(&format!("ci-{keep_issued}"), "push:main").await;
            let name = format!("ci-{keep_issued}");
            let child = server.issue(&server.call(&root).await, &name, "push:main").await.unwrap();
            let grandchild = server.issue(&server.call(&child).await, &name, "pull:main").await.unwrap();

            let id = id(&root, &server);
            let revoked = server.service.revoke_token(&admin, id, "leaked", keep_issued).await.unwrap();

            assert_eq!(revoked.len(), if keep_issued { 1 } else { 3 });
            assert!(!is_live(&server, &root).await);
            for token in [&child, &grandchild] {
                assert_eq!(is_live(&server, token).await, keep_issued);
            }
            let again = server.service.revoke_token(&admin, id, "again", true).await.unwrap();
            assert_eq!(again, [], "idempotent");
        }
        let revocations = events(test).await.iter().filter(|event| *event == "token-revoke").count();
        assert_eq!(revocations, 4, "one leaf each");
    }

    async fn more_tokens_than_a_batch_die_in_one_call(test: &TestDb) {
        let server = TestService::start(test).await;
        let root = server.contributor("ci", "push:main").await;
        let call = server.call(&root).await;
        let mut last = root.clone();
        for _ in 0..REVOKE_BATCH + 5 {
            last = server.issue(&call, "ci", "push:main").await.unwrap();
        }

        // By its own hand: the first batch kills the caller, and the rest goes on.
        let revoked = server.service.revoke_token(&call, id(&root, &server), "all", false).await.unwrap();

        assert_eq!(i64::try_from(revoked.len()).unwrap(), REVOKE_BATCH + 6);
        assert!(!is_live(&server, &last).await);
    }

    async fn a_contributors_tokens_die_together(test: &TestDb) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let boss = server.contributor("boss", "admin").await;
        let second = server.issue(&admin, "boss", "pull:main").await.unwrap();
        server.contributor("ci", "push:main").await;
        let of_ci = server.issue(&server.call(&boss).await, "ci", "push:main").await.unwrap();
        let stranger = server.issue(&admin, "ci", "push:main").await.unwrap();

        let name = "boss".parse().unwrap();
        let revoked = server.service.revoke_contributor_tokens(&admin, &name, "left", false).await.unwrap();

        assert_eq!(revoked.len(), 3);
        for (token, lives) in [(&boss, false), (&second, false), (&of_ci, false), (&stranger, true)] {
            assert_eq!(is_live(&server, token).await, lives);
        }
    }

    async fn others_tokens_are_not_ones_own(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let other = server.contributor("other", "push:main").await;
        let call = server.call(&ci).await;
        let unknown = TokenId::new(NOON, [3; 10]);

        for token in [id(&other, &server), unknown] {
            let refused = server.service.revoke_token(&call, token, "x", false).await;
            assert!(matches!(refused, Err(Error::Forbidden)), "{refused:?}");
            let refused = server.service.show_token(&call, token).await;
            assert!(matches!(refused, Err(Error::Forbidden)), "{refused:?}");
        }
        let name = "other".parse().unwrap();
        let refused = server.service.revoke_contributor_tokens(&call, &name, "x", false).await;
        assert!(matches!(refused, Err(Error::Forbidden)));
        let page = PageBounds { after: None, limit: 100, descending: false };
        let query = TokenQuery { contributor: Some(name), issued_by: None };
        assert!(matches!(server.service.list_tokens(&call, &query, &page).await, Err(Error::Forbidden)));
        let own = server.service.list_tokens(&call, &TokenQuery::default(), &page).await.unwrap();
        assert_eq!(own.iter().map(|row| row.id).collect::<Vec<_>>(), [id(&ci, &server)]);
        let admin = server.admin().await;
        let refused = server.service.revoke_token(&admin, unknown, "x", false).await;
        assert!(matches!(refused, Err(Error::NotFound(_))));
        assert!(is_live(&server, &other).await);
    }

    async fn whoever_holds_a_leaked_token_may_kill_it(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;

        let forged = format!("{}x", &ci.expose()[..ci.expose().len() - 1]);
        for text in ["", "hunter2", "nvt_a.b.c", &forged] {
            let refused = server.service.report_token(&anonymous(), text).await;
            assert!(matches!(refused, Err(Error::Rejected(_))), "{text}: {refused:?}");
        }
        assert!(is_live(&server, &ci).await);
        let killed = server.service.report_token(&anonymous(), ci.expose()).await.unwrap();

        assert_eq!(killed, [id(&ci, &server)]);
        assert!(!is_live(&server, &ci).await);
        assert_eq!(server.service.report_token(&anonymous(), ci.expose()).await.unwrap(), []);
    }

    async fn a_revocation_holds_on_every_replica_for_writes_at_once_and_for_reads_soon(test: &TestDb) {
        let server = TestService::start(test).await;
        let (replica, first) = testing::open(test, &server.clock, testing::vault(test)).await;
        assert!(first.is_none());
        let ci = server.contributor("ci", "push:main").await;
        let remembered = Call { caller: caller(&replica, &ci).await.unwrap(), origin: Default::default() };

        server.service.revoke_token(&server.admin().await, id(&ci, &server), "x", false).await.unwrap();

        // What this replica remembers is good for reading and pushing, and for nothing that administers.
        let shown = Credential::Token(ci.clone());
        let refused = replica.authenticate(&shown, Liveness::Now).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))));
        let issued = replica.issue_token(&remembered, &request("ci", "pull:main", 60)).await;
        assert!(matches!(issued, Err(Error::Unauthenticated(_))), "{issued:?}");
        replica.note_change().await;
        assert!(matches!(caller(&replica, &ci).await, Err(Error::Unauthenticated(_))));
        replica.shut_down().await;
    }

    async fn a_suspension_ends_every_token_and_its_end_revives_them(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let call = server.call(&ci).await;
        let admin = server.admin().await;
        let name = "ci".parse().unwrap();

        for suspended in [true, false] {
            let change = ContributorChange { suspended: Some(suspended), group: None };
            server.service.edit_contributor(&admin, &name, &change).await.unwrap();

            assert_eq!(is_live(&server, &ci).await, !suspended);
            let issued = server.issue(&call, "ci", "pull:main").await;
            assert_eq!(issued.is_ok(), !suspended);
            let for_them = server.issue(&admin, "ci", "pull:main").await;
            assert_eq!(for_them.is_ok(), !suspended);
        }
    }

    async fn a_bad_credential_is_refused_and_never_anonymous(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let text = ci.expose();
        let (head, signature) = text.rsplit_once('.').unwrap();
        let admin = server.admin().await;
        let short = server.service.issue_token(&admin, &request("ci", "pull:main", 1)).await.unwrap().text;
        server.clock.advance_seconds(1);

        for header in [
            "Bearer nothing".to_owned(),
            format!("Token {text}"),
            format!("Bearer {head}.{}", signature.to_ascii_lowercase()),
            format!("Bearer {}", short.expose()),
        ] {
            let credential = Credential::from_headers([header.as_bytes()]);
            let refused = server.service.authenticate(&credential, Liveness::Recent).await;
            assert!(matches!(refused, Err(Error::Unauthenticated(_))), "{header}: {refused:?}");
        }
        let nobody = server.service.authenticate(&Credential::None, Liveness::Recent).await.unwrap();
        assert_eq!(nobody, Caller::Anonymous);
    }

    async fn who_writes_to_the_database_alone_gains_nothing(test: &TestDb) {
        let server = TestService::start(test).await;
        let owner = id(&server.admin, &server);
        let admin = server.service.show_token(&server.admin().await, owner).await.unwrap().contributor;
        for (number, column, value) in [(1, "scopes", "admin"), (2, "contributor_id", &admin.to_string())] {
            let ci = server.contributor(&format!("ci-{number}"), "push:main").await;
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            rows::overwrite_token(&mut tx, id(&ci, &server), column, value).await;
            tx.commit().await.unwrap();

            assert!(!is_live(&server, &ci).await, "{column}");
        }
    }

    async fn acts_and_denials_leave_rows(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let call = server.call(&ci).await;
        let _ = server.issue(&call, "ci", "admin").await;
        let admin = server.admin().await;
        let page = PageBounds { after: None, limit: 100, descending: false };

        let rows = server.service.list_audit(&admin, &AuditQuery::default(), &page).await.unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.action.as_str(), row.outcome)).collect();
        for expected in [
            ("vault-slot", Outcome::Done),
            ("key-create", Outcome::Done),
            ("cache-create", Outcome::Done),
            ("admin-claim", Outcome::Done),
            ("contributor-create", Outcome::Done),
            ("token-issue", Outcome::Done),
            ("token-issue", Outcome::Denied),
        ] {
            assert!(told.contains(&expected), "{expected:?} in {told:?}");
        }
        let query = AuditQuery { outcome: Some(Outcome::Denied), ..AuditQuery::default() };
        let denied = server.service.list_audit(&admin, &query, &page).await.unwrap();
        assert_eq!(denied.len(), 1);
        assert_eq!(denied[0].contributor.as_deref(), Some("ci"));
        assert!(matches!(server.service.list_audit(&call, &query, &page).await, Err(Error::Forbidden)));
        let secrets = [ci.expose(), server.admin.expose()];
        let everything = format!("{rows:?}");
        assert!(secrets.iter().all(|secret| !everything.contains(secret)));
        assert!(!everything.contains("nvb_"));
    }

    async fn last_uses_are_written_when_flushed(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        server.clock.advance_seconds(5);
        assert!(is_live(&server, &ci).await);

        server.service.flush_token_uses().await;

        let row = server.service.show_token(&server.admin().await, id(&ci, &server)).await.unwrap();
        assert_eq!(row.last_used_at, Some(NOON.plus_seconds(5)));
    }

    async fn nothing_is_done_whose_audit_row_cannot_be_written(test: &TestDb) {
        let server = TestService::start(test).await;
        let ci = server.contributor("ci", "push:main").await;
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        rows::remove_audit(&mut tx).await;
        tx.commit().await.unwrap();

        let refused = server.service.revoke_token(&server.admin().await, id(&ci, &server), "x", false).await;

        assert!(refused.is_err());
        assert!(is_live(&server, &ci).await);
    }
}
