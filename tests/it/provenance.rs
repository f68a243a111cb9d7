//! Of everything that is served it is told who caused it, with which token, from where, when, and by which key; and what
//! is private of it can be erased.

use narvault::api::{ContributorEdit, PathDelete};
use serde_json::Value;

use crate::support::client::TestPath;
use crate::support::server::{Ended, on_each_backend};

on_each_backend! {
    async fn a_path_tells_who_signed_it_with_which_token_and_from_where(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let bob = server.token("bob", &["push:main"]).await;
        let hello = TestPath::new("hello", "hello");
        let mut other = TestPath::new("hello", "other bytes");
        other.store_path.clone_from(&hello.store_path);
        alice.http.push("main", &hello).await;
        bob.http.put_nar("main", &hello).await.assert_status(201);
        bob.http.put_narinfo("main", &hello).await.assert_status(200);
        bob.http.put_nar("main", &other).await.assert_status(201);
        bob.http.put_narinfo("main", &other).await.assert_status(409);

        let view = server.admin().path("main", hello.hash()).await.unwrap();

        let events: Vec<_> = view.history.iter().map(|act| (act.event.as_str(), act.contributor.as_deref())).collect();
        assert_eq!(events, [("sign", Some("alice")), ("conflict", Some("bob"))]);
        let signed = &view.history[0];
        assert_eq!(signed.token_id.as_deref(), Some(alice.id.as_str()));
        assert_eq!(signed.key.as_deref(), Some(view.signatures[0].key.as_str()));
        assert_eq!(Some(signed.log_index), view.signatures[0].log_index);
        assert_eq!(signed.address.as_deref(), Some("127.0.0.1"));
        let sources: Vec<_> = view.evidence.iter().map(|evidence| evidence.source.as_str()).collect();
        assert_eq!(sources, ["alice", "bob"]);
        assert_eq!(view.conflicts[0].contributor, "bob");

        // Another contributor sees who, and not from where.
        let theirs = server.client(&bob.text).path("main", hello.hash()).await.unwrap();
        assert_eq!(theirs.history[0].contributor.as_deref(), Some("alice"));
        assert!(theirs.history.iter().all(|act| act.address.is_none() && act.client.is_none()));

        let who = server.narvault(["who", &hello.store_path]).await;
        assert_eq!(who.code, Some(0), "{who:?}");
        for told in ["alice", &alice.id, "127.0.0.1", "conflict", &view.signatures[0].key] {
            assert!(who.stdout.contains(told), "{told}: {}", who.stdout);
        }
        let reason = PathDelete { reason: "a secret".into() };
        server.admin().path_delete("main", hello.hash(), &reason).await.unwrap();
        let who = server.narvault(["who", &hello.store_path, "--cache", "main", "--json"]).await;
        let answer: Value = serde_json::from_str(&who.stdout).unwrap();
        assert_eq!(answer[0]["history"][2]["event"], "delete");
        assert_eq!(answer[0]["history"][2]["reason"], "a secret");
        let nobody = server.narvault(["who", &TestPath::new("never", "x").store_path]).await;
        assert_eq!(nobody.code, Some(1), "{nobody:?}");
    }

    async fn a_path_tells_what_it_holds_that_nobody_declared(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let (hello, declared) = (TestPath::new("hello", "hello"), TestPath::new("declared", "x"));
        alice.http.push("main", &hello).await;
        alice.http.push("main", &declared).await;
        let contents = format!("see {} and {}", hello.store_path, declared.store_path);
        let mut path = TestPath::new("sloppy", contents);
        path.references.insert(declared.store_path.clone());
        let mut vain = TestPath::new("vain", "nothing of it in here");
        vain.references.insert(hello.store_path.clone());
        alice.http.push("main", &path).await;
        alice.http.push("main", &vain).await;

        for (path, undeclared, unfound) in [(&path, vec![&hello], vec![]), (&vain, vec![], vec![&hello])] {
            let view = server.admin().path("main", path.hash()).await.unwrap();

            let names = |paths: &[&TestPath]| paths.iter().map(|path| path.hash().to_owned()).collect::<Vec<_>>();
            let hashes = |found: &[String]| found.iter().map(|one| one[..32].to_owned()).collect::<Vec<_>>();
            assert_eq!(hashes(&view.undeclared_references), names(&undeclared), "{view:?}");
            assert_eq!(hashes(&view.unfound_references), names(&unfound), "{view:?}");
            let shown = server.narvault(["path", "show", "main", path.hash()]).await;
            assert_eq!(shown.code, Some(0), "{shown:?}");
            for (what, found) in [("undeclared references", undeclared), ("unfound references", unfound)] {
                let line = shown.stdout.lines().find(|line| line.starts_with(what));
                assert_eq!(line.is_some_and(|line| line.contains(hello.hash())), !found.is_empty(), "{shown:?}");
            }
        }
    }

    async fn an_erased_contributor_is_an_id_and_nothing_that_was_signed_is_lost(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let hello = TestPath::new("hello", "hello");
        alice.http.push("main", &hello).await;
        let refused = server.narvault(["contributor", "erase", "alice", "--yes"]).await;
        assert_eq!(refused.code, Some(4), "{refused:?}");
        assert!(refused.stderr.contains("suspend them first"), "{refused:?}");
        let edit = ContributorEdit { suspended: Some(true), group: None };
        server.admin().contributor_edit("alice", &edit).await.unwrap();

        let erased = server.narvault(["contributor", "erase", "alice", "--yes", "--json"]).await;

        assert_eq!(erased.code, Some(0), "{erased:?}");
        let answer: Value = serde_json::from_str(&erased.stdout).unwrap();
        let name = answer["name"].as_str().unwrap();
        assert!(name.starts_with("erased-"), "{answer}");
        let view = server.admin().path("main", hello.hash()).await.unwrap();
        assert_eq!(view.history[0].contributor.as_deref(), Some(name));
        assert_eq!((&view.history[0].address, &view.state), (&None, &"published".to_owned()));
        server.http().get(&format!("/main/{}.narinfo", hello.hash())).await.assert_status(200);
        let listed = server.narvault(["audit", "list", "--all", "--json"]).await;
        assert!(!listed.stdout.contains("\"alice\""), "{}", listed.stdout);
        let audited = server.narvault(["log", "audit"]).await;
        assert_eq!(audited.code, Some(0), "{audited:?}");
    }

    async fn audit_rows_are_found_by_who_what_how_and_from_where(server: TestServer) {
        let alice = server.token("alice", &["push:main"]).await;
        let bob = server.token("bob", &["push:main"]).await;
        assert!(server.client(&alice.text).contributors(&Default::default()).await.is_err());
        server.narvault(["token", "revoke", bob.id.as_str(), "--reason", "lost", "--yes"]).await;
        let found = async |filter: &[&str]| {
            let listed = server.narvault(["audit", "list", "--all", "--json"].iter().chain(filter)).await;
            assert_eq!(listed.code, Some(0), "{filter:?}: {listed:?}");
            let pages = listed.stdout.lines().map(|page| serde_json::from_str::<Value>(page).unwrap());
            let rows = pages.flat_map(|page| page["items"].as_array().unwrap().clone());
            let words = |row: Value| format!("{} {} {}", row["outcome"], row["action"], row["subject"]);
            rows.map(|row| words(row).replace('"', "")).collect::<Vec<_>>()
        };
        let denied = "denied contributor-list ".to_owned();
        let revoked = format!("done token-revoke {}", bob.id);

        // A login is a row, a denial is one, and each act of the administrator.
        assert!(found(&[]).await.iter().any(|row| row.starts_with("done admin-claim ")));
        assert_eq!(found(&["--outcome", "denied"]).await, std::slice::from_ref(&denied));
        assert_eq!(found(&["--contributor", "alice"]).await, std::slice::from_ref(&denied));
        assert_eq!(found(&["--token-id", &alice.id]).await, std::slice::from_ref(&denied));
        assert_eq!(found(&["--action", "token-revoke"]).await, std::slice::from_ref(&revoked));
        assert_eq!(found(&["--subject", &bob.id, "--action", "token-revoke"]).await, [revoked]);
        assert_eq!(found(&["--subject", "alice"]).await.len(), 1);
        let made = ["bob", "alice", "admin"].map(|name| format!("done contributor-create {name}"));
        assert_eq!(found(&["--action", "contributor-create"]).await, made);
        let oldest = ["--action", "contributor-create", "--order", "asc"];
        let reversed: Vec<String> = made.iter().rev().cloned().collect();
        assert_eq!(found(&oldest).await, reversed);
        assert!(found(&["--address", "127.0.0.1"]).await.contains(&denied));
        for nothing in [
            &["--address", "203.0.113.9"][..],
            &["--until", "1d"],
            &["--since", "1d", "--until", "1h"],
            &["--action", "token"],
            &["--contributor", "bob"],
        ] {
            assert_eq!(found(nothing).await, [""; 0], "{nothing:?}");
        }
        for (refused, code) in [
            (["--contributor", "nobody"], 1),
            (["--outcome", "maybe"], 2),
            (["--address", "here"], 2),
            (["--since", "soon"], 2),
            (["--token-id", "x"], 4),
        ] {
            let ended = server.narvault(["audit", "list"].iter().chain(&refused)).await;
            assert_eq!(ended.code, Some(code), "{refused:?}: {ended:?}");
        }
        let theirs = server.client(&alice.text).audit(&Default::default()).await;
        assert_eq!(theirs.unwrap_err().kind(), narvault::client::ErrorKind::NotAuthorised);
    }

    async fn audit_rows_are_held_against_the_log_on_the_servers_host(server: TestServer) {
        server.token("alice", &["push:main"]).await;
        let mut command = server.site.command(&[]);
        command.args(["audit", "verify", "--json"]);
        crate::support::until("a checkpoint", async || {
            (server.http().get("/api/v1/log/checkpoint").await.status == 200).then_some(())
        })
        .await;

        let verified = Ended::of(command).await;

        assert_eq!(verified.code, Some(0), "{verified:?}");
        let answer: Value = serde_json::from_str(&verified.stdout).unwrap();
        assert_eq!(answer["findings"], serde_json::json!([]));
        assert!(answer["waiting"].as_u64().unwrap() > 0, "{answer}");
    }
}
