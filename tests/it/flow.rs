//! The whole story: two contributors push, anybody pulls and verifies, one loses the right, and it is known who
//! brought what.

use narvault::api::{AuditQuery, ContributorEdit, PathQuery, RevokeRequest, TokenCreate, TokenRenew};
use narvault::time::{Clock, Timestamp};

use crate::support::client::hash_part;
use crate::support::nix::require_nix;
use crate::support::server::{Backend, Ended, TestServer, on_each_backend};

fn json(ended: &Ended) -> serde_json::Value {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

on_each_backend! {
    async fn a_revoked_contributor_is_refused_and_everything_is_known_of_everyone(server: TestServer) {
        let nix = require_nix!();
        let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));
        let (alice_token, bob_token) =
            (server.token("alice", &["push:main"]).await, server.token("bob", &["push:main"]).await);
        let (alice, bob) = (nix.machine(), nix.machine());
        alice.log_in(&alice_token.text);
        bob.log_in(&bob_token.text);
        let by_alice = alice.add_text("by-alice", "hello", &[]).await;
        let by_bob = bob.add_text("by-bob", "hello", &[]).await;
        alice.push(&push_url, &[&by_alice]).await.success();
        bob.push(&push_url, &[&by_bob]).await.success();
        let mut carol = nix.machine();
        carol.trust(&server.public_key);
        carol.pull(&pull_url, &[&by_alice, &by_bob]).await.success();

        let body = RevokeRequest { reason: "laptop stolen".to_owned(), keep_issued: false };
        server.admin().contributor_revoke_tokens("bob", &body).await.unwrap();

        let late = bob.add_text("late", "hello", &[]).await;
        bob.push(&push_url, &[&late]).await.refused("this token was revoked");
        let again = alice.add_text("again", "hello", &[]).await;
        alice.push(&push_url, &[&again]).await.success();
        carol.pull(&pull_url, &[&again]).await.success();
        carol.pull(&pull_url, &[&late]).await.refused(&late);
        for (path, contributor, token) in
            [(&by_alice, "alice", &alice_token.id), (&by_bob, "bob", &bob_token.id)]
        {
            let view = server.admin().path("main", hash_part(path)).await.unwrap();
            assert_eq!(view.store_path, *path);
            assert_eq!(view.evidence.len(), 1, "{view:?}");
            assert_eq!(view.evidence[0].source, contributor);
            assert_eq!(view.evidence[0].token_id.as_ref(), Some(token));
            let shown = json(&server.narvault(["path", "show", "main", path, "--json"]).await);
            assert_eq!(shown["evidence"][0]["source"], contributor, "{shown}");
        }
        let query = PathQuery { contributor: Some("bob".to_owned()), ..PathQuery::default() };
        let paths = server.admin().paths("main", &query).await.unwrap().items;
        assert_eq!(paths.iter().map(|path| &path.store_path).collect::<Vec<_>>(), [&by_bob]);
        let query = AuditQuery { contributor: Some("admin".to_owned()), ..AuditQuery::default() };
        let audit = server.admin().audit(&query).await.unwrap().items;
        assert!(audit.iter().any(|row| row.detail.to_string().contains("laptop stolen")), "{audit:?}");
        server.stop().await;
    }

    async fn a_suspended_contributor_is_refused_until_the_suspension_ends(server: TestServer) {
        let nix = require_nix!();
        let push_url = server.push_url("main");
        let bob = nix.machine();
        bob.log_in(&server.token("bob", &["push:main"]).await.text);
        let (first, second) = (bob.add_text("first", "a", &[]).await, bob.add_text("second", "b", &[]).await);
        bob.push(&push_url, &[&first]).await.success();
        let suspend = async |suspended| {
            let body = ContributorEdit { suspended: Some(suspended), group: None };
            server.admin().contributor_edit("bob", &body).await.unwrap();
        };

        suspend(true).await;

        bob.push(&push_url, &[&second]).await.refused("its contributor is suspended");
        suspend(false).await;
        bob.push(&push_url, &[&second]).await.success();
        server.stop().await;
    }

    async fn a_private_cache_is_read_with_a_token_only(server: TestServer) {
        let nix = require_nix!();
        json(&server.narvault(["cache", "create", "team", "--private", "--json"]).await);
        let key = json(&server.narvault(["key", "create", "team", "--json"]).await);
        let alice = nix.machine();
        alice.log_in(&server.token("alice", &["push:team"]).await.text);
        let path = alice.add_text("secret", "plan", &[]).await;
        alice.push(&server.push_url("team"), &[&path]).await.success();
        let mut bob = nix.machine();
        bob.trust(key["public_key"].as_str().unwrap());
        let pull_url = server.pull_url("team");
        let narinfo = format!("/team/{}.narinfo", hash_part(&path));
        server.http().get(&narinfo).await.assert_refused(401, "this needs a token");
        let stranger = server.token("stranger", &["pull:main"]).await;
        stranger.http.get(&narinfo).await.assert_refused(403, "this token does not allow that");
        assert!(!bob.pull(&pull_url, &[&path]).await.succeeded);

        bob.log_in(&server.token("bob", &["pull:team"]).await.text);

        bob.nix(["--refresh", "copy", "--from", &pull_url, "--to", &bob.store(), &path]).await.success();
        assert_eq!(bob.nar(&path).await, alice.nar(&path).await);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pushed_survives_a_power_cut() {
    let nix = require_nix!();
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let alice = nix.machine();
    alice.log_in(&server.token("alice", &["push:main"]).await.text);
    let path = alice.add_text("thing", "hello", &[]).await;
    alice.push(&server.push_url("main"), &[&path]).await.success();

    server.restart_after_kill(&[]).await;

    let mut bob = nix.machine();
    bob.trust(&server.public_key);
    bob.pull(&server.pull_url("main"), &[&path]).await.success();
    assert_eq!(bob.nar(&path).await, alice.nar(&path).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_at_its_time_and_its_renewal_later() {
    let clock = Clock::fixed(Timestamp::parse_rfc3339("2026-11-22T13:10:00Z").unwrap());
    let server = TestServer::at(clock.clone()).await;
    server.token("alice", &["push:main"]).await;
    let hour = TokenCreate {
        contributor: "alice".to_owned(),
        scopes: vec!["push:main".to_owned()],
        expires_in_seconds: Some(3600),
        note: None,
    };
    let first = server.admin().token_issue(&hour).await.unwrap();
    clock.advance_seconds(1800);
    let hour = TokenRenew { expires_in_seconds: Some(3600) };
    let second = server.client(&first.token).renew(&hour).await.unwrap();

    clock.advance_seconds(1801);

    let get = async |token: &str| server.http().with_token(token).get("/push/main/nix-cache-info").await;
    get(&first.token).await.assert_refused(401, "this token has expired");
    get(&second.token).await.assert_status(200);
    assert_eq!(second.expires_at, "2026-11-22T14:40:00.000Z");
    server.stop().await;
}
