//! A published path does not change: of two claims one stands, the other is written down and is no evidence.

use narvault::api::{ConflictView, PathDelete, PathView};
use narvault::db::{Db, DbSettings, log};

use crate::support::client::{TestPath, hash_part, lines};
use crate::support::database::on_each_database;
use crate::support::server::TestServer;
use crate::support::until;

/// The same store path with other contents, as from a builder that is not reproducible.
fn rival(path: &TestPath, contents: &str) -> TestPath {
    let mut rival = TestPath::new("rival", contents);
    rival.store_path = path.store_path.clone();
    rival
}

fn nar_hash(path: &TestPath) -> String {
    lines(&path.narinfo(), "NarHash")[0].to_owned()
}

async fn view(server: &TestServer, path: &TestPath) -> PathView {
    server.admin().path("main", path.hash()).await.unwrap()
}

/// The leaves of the signature log, as they lie in the database.
async fn leaves(server: &TestServer) -> Vec<String> {
    let settings = match server.site.database_url() {
        Some(url) => DbSettings::Postgres { url: url.parse().unwrap(), connections_max: 2 },
        None => DbSettings::Sqlite { path: server.site.data().join("narvault.db") },
    };
    let db = Db::open(&settings).await.unwrap();
    let leaves = log::leaves(&mut db.read().await.unwrap(), 0, 10_000).await.unwrap();
    db.close().await;
    leaves.into_iter().map(|(_, leaf)| leaf).collect()
}

on_each_database! {
    async fn of_two_claims_at_the_same_time_one_stands_and_the_other_is_recorded(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let bob = server.token("bob", &["push:main"]).await;

        for round in 0..100 {
            let of_alice = TestPath::new(&format!("path-{round}"), format!("of alice, {round}"));
            let of_bob = rival(&of_alice, &format!("of bob, {round}"));
            tokio::join!(
                async { alice.http.put_nar("main", &of_alice).await.assert_status(201); },
                async { bob.http.put_nar("main", &of_bob).await.assert_status(201); },
            );
            let (first, second) = tokio::join!(
                alice.http.put_narinfo("main", &of_alice),
                bob.http.put_narinfo("main", &of_bob)
            );

            let alice_won = first.status == 201;
            let (winner, loser, won, lost, refused) = if alice_won {
                ((&alice, "alice"), (&bob, "bob"), &of_alice, &of_bob, &second)
            } else {
                ((&bob, "bob"), (&alice, "alice"), &of_bob, &of_alice, &first)
            };
            if !alice_won {
                second.assert_status(201);
            }
            refused.assert_refused(409, "is published here with another content");
            assert!(refused.text().contains(&nar_hash(won)) && refused.text().contains(&nar_hash(lost)));
            let view = view(&server, won).await;
            assert_eq!((view.state.as_str(), &view.nar_hash), ("published", &nar_hash(won)));
            let evidence: Vec<_> = view.evidence.iter().map(|one| one.source.as_str()).collect();
            assert_eq!(evidence, [winner.1]);
            assert_eq!(view.evidence[0].token_id.as_ref(), Some(&winner.0.id));
            let [ConflictView { contributor, token_id, nar_hash: claimed, .. }] = &view.conflicts[..] else {
                panic!("round {round}: {:?}", view.conflicts)
            };
            assert_eq!((contributor.as_str(), token_id), (loser.1, &loser.0.id));
            assert_eq!(*claimed, nar_hash(lost));
        }

        let leaves = leaves(&server).await;
        let conflicts = leaves.iter().filter(|leaf| leaf.contains("\nevent conflict\n"));
        assert_eq!(conflicts.count(), 100, "one leaf for each conflict");
        server.stop().await;
    }

    async fn what_is_served_stays_whatever_is_claimed_later(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await.http;
        let bob = server.token("bob", &["push:main"]).await.http;
        let path = TestPath::new("thing", "the first");
        let reference = TestPath::new("reference", "x");
        alice.push("main", &path).await;
        alice.push("main", &reference).await;
        let narinfo = format!("/main/{}.narinfo", path.hash());
        let served = server.http().get(&narinfo).await.body;

        for contents in ["another", "and another", "the first, once more"] {
            let rival = rival(&path, contents);
            bob.put_nar("main", &rival).await.assert_status(201);
            bob.put_narinfo("main", &rival).await.assert_refused(409, "the first one stays");
            server.http().get(&format!("/main/{}", rival.nar_url())).await.assert_status(404);
            assert_eq!(server.http().get(&narinfo).await.body, served);
        }
        let others = path.narinfo().replace("References: ", &format!("References: {}", &reference.store_path[11..]));
        let answer = bob.put(&format!("/push/main/{}.narinfo", path.hash()), others).await;
        answer.assert_refused(409, "with other references; the first ones stay");

        assert_eq!(server.http().get(&narinfo).await.body, served);
        assert_eq!(server.http().get(&format!("/main/{}", path.nar_url())).await.body, path.file);
        let view = view(&server, &path).await;
        assert_eq!(view.conflicts.len(), 4, "{:?}", view.conflicts);
        assert_eq!(view.evidence.len(), 1, "{:?}", view.evidence);
        server.stop().await;
    }

    async fn the_same_claim_of_two_is_two_pieces_of_evidence(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let bob = server.token("bob", &["push:main"]).await;
        let path = TestPath::new("thing", "hello");
        alice.http.push("main", &path).await;
        let narinfo = format!("/main/{}.narinfo", path.hash());
        let served = server.http().get(&narinfo).await.body;

        bob.http.put_nar("main", &path).await.assert_status(201);
        bob.http.put_narinfo("main", &path).await.assert_status(200);

        let view = view(&server, &path).await;
        let found: Vec<_> = view.evidence.iter().map(|one| (one.source.as_str(), one.token_id.clone())).collect();
        assert_eq!(found, [("alice", Some(alice.id.clone())), ("bob", Some(bob.id.clone()))]);
        assert!(view.conflicts.is_empty());
        assert_eq!(server.http().get(&narinfo).await.body, served);
        let leaves = leaves(&server).await;
        let signed = leaves.iter().filter(|leaf| leaf.contains("\nevent sign\n"));
        assert_eq!(signed.count(), 1, "the same claim is not signed twice");
        server.stop().await;
    }

    async fn a_deleted_path_may_become_another_and_its_leaf_names_the_one_before(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await.http;
        let path = TestPath::new("thing", "the first");
        let other = rival(&path, "the second");
        alice.push("main", &path).await;
        let before = view(&server, &path).await.signatures[0].log_index.unwrap();
        let body = PathDelete { reason: "a password was in it".to_owned() };
        server.admin().path_delete("main", hash_part(&path.store_path), &body).await.unwrap();
        until("the path to be gone", async || {
            let answer = server.http().get(&format!("/main/{}.narinfo", path.hash())).await;
            (answer.status == 404).then_some(())
        })
        .await;

        alice.push("main", &other).await;

        let view = view(&server, &path).await;
        assert_eq!((view.state.as_str(), view.nar_hash), ("published", nar_hash(&other)));
        let after = view.signatures[0].log_index.unwrap();
        let leaves = leaves(&server).await;
        let leaf = |index: u64| leaves[usize::try_from(index).unwrap()].as_str();
        for (index, replaces) in [(before, "-".to_owned()), (after, before.to_string())] {
            assert!(leaf(index).contains("\nevent sign\n"), "{}", leaf(index));
            assert!(leaf(index).contains(&format!("\nreplaces {replaces}\n")), "{}", leaf(index));
        }
        let served = server.http().get(&format!("/main/{}", other.nar_url())).await;
        assert_eq!(served.assert_status(200).body, other.file);
        server.http().get(&format!("/main/{}", path.nar_url())).await.assert_status(404);
        server.stop().await;
    }
}
