//! A stock Nix pushes with `nix copy`, and pulls what it pushed with signatures checked.

use narvault::api::{CacheEdit, ContributorKeyAdd, EvidenceView, PathDelete, PathView, Upstream};
use narvault::nix::nar::build::Node;
use serde_json::Value;

use crate::support::client::{Answer, base_name, hash_part, lines};
use crate::support::nix::{Machine, Nix, require_nix};
use crate::support::server::{TestServer, on_each_backend};

/// Each format that a NAR may have; the default of Nix is xz.
const COMPRESSIONS: &[&str] = &["xz", "zstd", "bzip2", "gzip", "br", "none"];

/// A machine that may push to `main`.
async fn pusher(nix: &Nix, server: &TestServer, contributor: &str) -> Machine {
    let machine = nix.machine();
    machine.log_in(&server.token(contributor, &["push:main"]).await.text);
    machine
}

/// A machine that may pull, and trusts the cache's key.
fn puller(nix: &Nix, server: &TestServer) -> Machine {
    let mut machine = nix.machine();
    machine.trust(&server.public_key);
    machine
}

fn tree(text: &str) -> Node {
    Node::directory([
        ("bin", Node::directory([("run", Node::executable("#!/bin/sh\n"))])),
        ("link", Node::symlink("bin/run")),
        ("text", Node::file(text)),
    ])
}

/// What anybody gets at `object` of the cache `main`.
async fn get(server: &TestServer, object: &str) -> Answer {
    server.http().get(&format!("/main/{object}")).await
}

async fn narinfo(server: &TestServer, path: &str) -> String {
    let answer = get(server, &format!("{}.narinfo", hash_part(path))).await;
    answer.assert_status(200).text().to_owned()
}

/// The names of the keys in a narinfo's `Sig:` lines.
fn signers(narinfo: &str) -> Vec<&str> {
    lines(narinfo, "Sig").into_iter().map(|line| line.split(':').next().unwrap()).collect()
}

async fn path_view(server: &TestServer, path: &str) -> PathView {
    server.admin().path("main", hash_part(path)).await.unwrap()
}

fn kinds(evidence: &[EvidenceView]) -> Vec<(&str, &str)> {
    let mut kinds: Vec<_> = evidence.iter().map(|one| (one.kind.as_str(), one.source.as_str())).collect();
    kinds.sort_unstable();
    kinds
}

on_each_backend! {
    async fn what_was_pushed_in_each_format_is_pulled_unchanged(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let mut paths = Vec::new();
        for compression in COMPRESSIONS {
            let path = alice.add(&format!("in-{compression}"), &tree(compression), &[]).await;
            let url = format!("{}?compression={compression}", server.push_url("main"));

            alice.push(&url, &[&path]).await.success();

            assert_eq!(lines(&narinfo(&server, &path).await, "Compression"), [*compression]);
            paths.push(path);
        }
        let bob = puller(&nix, &server);
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();

        bob.pull(&server.pull_url("main"), &paths).await.success();

        for path in paths {
            assert_eq!(bob.nar(path).await, alice.nar(path).await);
            assert_eq!(bob.path_info(path).await["narHash"], alice.path_info(path).await["narHash"]);
        }
        server.stop().await;
    }

    async fn other_formats_are_refused_by_a_text_that_names_those_accepted(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let path = alice.add("thing", &tree("a"), &[]).await;
        for compression in ["lz4", "lzip", "lzma", "compress"] {
            let url = format!("{}?compression={compression}", server.push_url("main"));

            let refused = alice.push(&url, &[&path]).await.refused("use xz, zstd, bzip2, gzip, br or none");

            assert!(refused.stderr.contains("HTTP error 422"), "{}", refused.stderr);
        }
        get(&server, &format!("{}.narinfo", hash_part(&path))).await.assert_refused(404, "no such object");
        server.stop().await;
    }

    async fn a_closure_is_pulled_whole(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let library = alice.add_text("library", "nothing else", &[]).await;
        let tool = alice.add_text("tool", "uses", &[&library]).await;
        let system = alice.add_text("system", "uses", &[&tool, &library]).await;
        alice.push(&server.push_url("main"), &[&system]).await.success();
        let bob = puller(&nix, &server);

        bob.pull(&server.pull_url("main"), &[&system]).await.success();

        for path in [&library, &tool, &system] {
            assert_eq!(bob.nar(path).await, alice.nar(path).await);
            assert_eq!(bob.path_info(path).await["references"], alice.path_info(path).await["references"]);
        }
        server.stop().await;
    }

    async fn nix_refuses_what_another_key_should_have_signed(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let path = alice.add("thing", &tree("a"), &[]).await;
        alice.push(&server.push_url("main"), &[&path]).await.success();
        let mut bob = nix.machine();
        let (_, stranger) = bob.make_key("stranger-1").await;
        // The right name, with the wrong key behind it.
        let name = server.public_key.split(':').next().unwrap();
        let impostor = format!("{name}:{}", stranger.split(':').nth(1).unwrap());
        for key in [&stranger, &impostor] {
            bob.trust(key);

            let refused = bob.pull(&server.pull_url("main"), &[&path]).await;

            assert!(!refused.succeeded && refused.stderr.contains("signature"), "{}", refused.stderr);
        }
        bob.trust(&server.public_key);
        bob.pull(&server.pull_url("main"), &[&path]).await.success();
        server.stop().await;
    }

    async fn only_signatures_of_registered_keys_are_added_to_a_path(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let path = alice.add("thing", &tree("a"), &[]).await;
        let push_url = server.push_url("main");
        alice.push(&push_url, &[&path]).await.success();
        let (unknown_file, unknown_key) = alice.make_key("unknown-1").await;
        let (known_file, public_key) = alice.make_key("alice-1").await;
        server.token("bob", &["push:main"]).await;
        let body = ContributorKeyAdd { public_key: public_key.clone() };
        server.admin().contributor_key_add("bob", &body).await.unwrap();
        for file in [&unknown_file, &known_file] {
            // Fresh, because Nix would add to the narinfo that it remembers.
            let sign = ["--refresh", "store", "sign", "--store", &push_url, "--key-file", file, &path];
            alice.run_bare("nix", sign).await.success();
        }

        let narinfo = narinfo(&server, &path).await;

        let ours = server.public_key.split(':').next().unwrap();
        let mut expected = ["alice-1", ours];
        expected.sort_unstable();
        assert_eq!(signers(&narinfo), expected, "{narinfo}");
        let evidence = path_view(&server, &path).await.evidence;
        assert!(kinds(&evidence).contains(&("contributor-key", "bob")), "{evidence:?}");
        for (key, trusted) in [(&public_key, true), (&unknown_key, false)] {
            let mut machine = nix.machine();
            machine.trust(key);
            assert_eq!(machine.pull(&server.pull_url("main"), &[&path]).await.succeeded, trusted, "{key}");
        }
        server.stop().await;
    }

    async fn signatures_of_an_upstream_are_passed_on_and_count_as_evidence(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let (secret_file, public_key) = alice.make_key("upstream-1").await;
        let (other_file, _) = alice.make_key("other-1").await;
        let url = "https://upstream.example".to_owned();
        let upstreams = Some(vec![Upstream { url, public_keys: vec![public_key.clone()] }]);
        server.admin().cache_edit("main", &CacheEdit { upstreams, ..CacheEdit::default() }).await.unwrap();
        let path = alice.add("thing", &tree("a"), &[]).await;
        for file in [&secret_file, &other_file] {
            alice.nix(["store", "sign", "--key-file", file, &path]).await.success();
        }

        alice.push(&server.push_url("main"), &[&path]).await.success();

        let ours = server.public_key.split(':').next().unwrap();
        let mut expected = ["upstream-1", ours];
        expected.sort_unstable();
        assert_eq!(signers(&narinfo(&server, &path).await), expected);
        let evidence = path_view(&server, &path).await.evidence;
        assert_eq!(kinds(&evidence), [("contributor", "alice"), ("upstream", "upstream-1")]);
        let mut bob = nix.machine();
        bob.trust(&public_key);
        bob.pull(&server.pull_url("main"), &[&path]).await.success();
        server.stop().await;
    }

    async fn listings_and_debug_links_are_served_with_their_path(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let (first, rest) = ("ab", "cdef0123456789abcdef0123456789abcdef01");
        let link = format!("{rest}.debug");
        let ids = Node::directory([(first, Node::directory([(link, Node::file("debug"))]))]);
        let debug = Node::directory([("debug", Node::directory([(".build-id", ids)]))]);
        let path = alice.add("thing-debug", &Node::directory([("lib", debug)]), &[]).await;
        let url = format!("{}?write-nar-listing=true&index-debug-info=true", server.push_url("main"));

        alice.push(&url, &[&path]).await.success();

        let listing = get(&server, &format!("{}.ls", hash_part(&path))).await;
        let listing: Value = serde_json::from_slice(&listing.assert_status(200).body).unwrap();
        assert_eq!(listing["root"]["entries"]["lib"]["type"], "directory", "{listing}");
        let link = get(&server, &format!("debuginfo/{first}{rest}.debug")).await;
        let link: Value = serde_json::from_slice(&link.assert_status(200).body).unwrap();
        let narinfo = narinfo(&server, &path).await;
        assert_eq!(link["archive"], format!("../{}", lines(&narinfo, "URL")[0]));
        assert_eq!(link["member"], format!("lib/debug/.build-id/{first}/{rest}.debug"));
        server.stop().await;
    }

    async fn build_logs_are_copied_and_read_back(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let expression = alice.file("thing.nix");
        let text = r#"derivation { name = "c++thing"; system = "x86_64-linux"; builder = "/none"; }"#;
        std::fs::write(&expression, text).unwrap();
        let made = alice.run("nix-instantiate", [expression.display().to_string()]).await.success();
        let derivation = made.stdout.trim().to_owned();
        alice.write_log(&derivation, "building\nbuilt\n");

        alice.nix(["store", "copy-log", "--to", &server.push_url("main"), &derivation]).await.success();

        let log = get(&server, &format!("log/{}", base_name(&derivation))).await;
        assert_eq!(log.assert_status(200).text(), "building\nbuilt\n");
        let push_url = server.push_url("main");
        alice.nix(["copy", "--derivation", "--to", &push_url, &derivation]).await.success();
        let shown = puller(&nix, &server);
        let shown = shown.run_bare("nix", ["log", "--store", &server.pull_url("main"), &derivation]).await;
        assert_eq!(shown.success().stdout, "building\nbuilt\n");
        server.stop().await;
    }

    async fn content_addressed_derivations_are_substituted_by_their_realisation(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        if !alice.can_build().await {
            return println!("skipped: no derivation can be built here");
        }
        let text = r#"derivation {
            name = "ca-thing"; system = builtins.currentSystem; builder = "/bin/sh";
            args = [ "-c" "echo content > $out" ];
            __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
        }"#;
        std::fs::write(alice.file("ca.nix"), text).unwrap();
        alice.within(["nix-build", "--no-out-link", "ca.nix"]).await.success();
        alice.within(["nix", "copy", "--to", &server.push_url("main"), "--file", "ca.nix"]).await.success();
        let mut bob = puller(&nix, &server);
        std::fs::write(bob.file("ca.nix"), text).unwrap();
        bob.set("substituters", &server.pull_url("main"));
        // It comes from the cache, or not at all.
        bob.set("max-jobs", "0");

        let built = bob.within(["nix-build", "--no-out-link", "ca.nix"]).await.success();

        assert_eq!(std::fs::read_to_string(bob.real(built.stdout.trim())).unwrap(), "content\n");
        server.stop().await;
    }

    async fn a_deleted_path_can_be_pushed_and_pulled_again(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let path = alice.add("thing", &tree("a"), &[]).await;
        let (push_url, pull_url) = (server.push_url("main"), server.pull_url("main"));
        alice.push(&push_url, &[&path]).await.success();
        let file = lines(&narinfo(&server, &path).await, "URL")[0].to_owned();
        let body = PathDelete { reason: "a secret was in it".to_owned() };
        server.admin().path_delete("main", hash_part(&path), &body).await.unwrap();
        get(&server, &format!("{}.narinfo", hash_part(&path))).await.assert_refused(404, "no such object");
        get(&server, &file).await.assert_refused(404, "no such object");

        alice.nix(["--refresh", "copy", "--to", &push_url, &path]).await.success();

        let bob = puller(&nix, &server);
        bob.pull(&pull_url, &[&path]).await.success();
        assert_eq!(bob.nar(&path).await, alice.nar(&path).await);
        server.stop().await;
    }

    async fn a_reference_that_was_deleted_meanwhile_is_named_with_what_to_do(server: TestServer) {
        let nix = require_nix!();
        let alice = pusher(&nix, &server, "alice").await;
        let library = alice.add_text("library", "nothing else", &[]).await;
        let push_url = server.push_url("main");
        alice.push(&push_url, &[&library]).await.success();
        let body = PathDelete { reason: "broken".to_owned() };
        server.admin().path_delete("main", hash_part(&library), &body).await.unwrap();
        let tool = alice.add_text("tool", "uses", &[&library]).await;

        // Its Nix still believes that the library is there.
        let refused = alice.push(&push_url, &[&tool]).await.refused("nix --refresh copy");

        assert!(refused.stderr.contains(&library), "{}", refused.stderr);
        alice.nix(["--refresh", "copy", "--to", &push_url, &tool]).await.success();
        server.stop().await;
    }
}
