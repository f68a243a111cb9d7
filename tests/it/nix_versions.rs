//! Every generation of Nix that people run can push to the cache, and pull what the others pushed.

use narvault::nix::nar::build::Node;

use crate::support::client::{hash_part, lines};
use crate::support::nix::{Machine, Nix};
use crate::support::server::{Backend, TestServer};

/// A server and every Nix at hand; says which these are.
async fn with_generations() -> (TestServer, Vec<Nix>) {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let generations = Nix::generations().await;
    let versions: Vec<_> = generations.iter().map(|nix| nix.version.as_str()).collect();
    println!("Nix at hand: {}", versions.join(" "));
    (server, generations)
}

/// A machine that may push to `main`, and trusts its key.
async fn machine(nix: &Nix, server: &TestServer) -> Machine {
    let mut machine = nix.machine();
    let contributor = format!("nix-{}", nix.version.replace('.', "-"));
    machine.log_in(&server.token(&contributor, &["push:main"]).await.text);
    machine.trust(&server.public_key);
    machine
}

fn tree(text: &str) -> Node {
    Node::directory([("run", Node::executable("#!/bin/sh\n")), ("text", Node::file(text))])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_generation_pushes_every_generation_pulls() {
    let (server, generations) = with_generations().await;
    let mut pushed = Vec::new();
    for nix in &generations {
        let pusher = machine(nix, &server).await;
        let library = pusher.add_text("library", &nix.version, &[]).await;
        for compression in ["xz", "zstd", "bzip2", "gzip", "br", "none"] {
            let name = format!("by-{}-in-{compression}", nix.version);
            let path = pusher.add_text(&name, "uses", &[&library]).await;
            let url = format!("{}?compression={compression}", server.push_url("main"));
            pusher.push(&url, &[&path]).await.success();
            pushed.push((pusher.nar(&path).await, path));
        }
    }

    for nix in &generations {
        let puller = machine(nix, &server).await;
        let paths: Vec<&str> = pushed.iter().map(|(_, path)| path.as_str()).collect();
        puller.pull(&server.pull_url("main"), &paths).await.success();

        for (nar, path) in &pushed {
            assert!(puller.nar(path).await == *nar, "{path} on {}", nix.version);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_generation_refuses_another_key() {
    let (server, generations) = with_generations().await;
    for nix in &generations {
        let pusher = machine(nix, &server).await;
        let path = pusher.add("thing", &tree(&nix.version), &[]).await;
        pusher.push(&server.push_url("main"), &[&path]).await.success();
        let mut puller = nix.machine();
        let (_, stranger) = puller.make_key("stranger-1").await;
        puller.trust(&stranger);

        puller.pull(&server.pull_url("main"), &[&path]).await.refused("signature");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_generation_shows_why_a_push_is_refused() {
    let (server, generations) = with_generations().await;
    for nix in &generations {
        let pusher = machine(nix, &server).await;
        let path = pusher.add("thing", &tree(&nix.version), &[]).await;
        let token = server.token("leaver", &["push:main"]).await;
        pusher.log_in(&token.text);
        let lz4 = format!("{}?compression=lz4", server.push_url("main"));
        pusher.push(&lz4, &[&path]).await.refused("use xz, zstd, bzip2, gzip, br or none");
        let body = narvault::api::RevokeRequest { reason: "left".to_owned(), keep_issued: false };
        server.admin().token_revoke(&token.id, &body).await.unwrap();

        // It knows nix-cache-info already, so that the PUT is what is refused, with a text.
        let text = "this token was revoked";
        pusher.push(&server.push_url("main"), &[&path]).await.refused(text);

        pusher.log_out();
        let stranger = nix.machine();
        let path = stranger.add("other", &tree(&nix.version), &[]).await;
        // Before 2.26 Nix takes a 401 on nix-cache-info for none, and then shows this alone.
        let text =
            if nix.is_since((2, 26)) { "this needs a token" } else { "does not appear to be a binary cache" };
        stranger.push(&server.push_url("main"), &[&path]).await.refused(text);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_compressed_on_the_way_are_served_plain() {
    let (server, generations) = with_generations().await;
    for nix in generations.iter().filter(|nix| nix.is_since((2, 32))) {
        let pusher = machine(nix, &server).await;
        for encoding in ["gzip", "br", "zstd", "xz", "bzip2"] {
            let path = pusher.add(&format!("thing-{encoding}"), &tree(encoding), &[]).await;
            let query =
                format!("narinfo-compression={encoding}&ls-compression={encoding}&write-nar-listing=true");

            pusher.push(&format!("{}?{query}", server.push_url("main")), &[&path]).await.success();

            let narinfo = server.http().get(&format!("/main/{}.narinfo", hash_part(&path))).await;
            assert_eq!(lines(narinfo.assert_status(200).text(), "StorePath"), [path.as_str()]);
            assert_eq!(narinfo.header("content-encoding"), "");
            let listing = server.http().get(&format!("/main/{}.ls", hash_part(&path))).await;
            serde_json::from_slice::<serde_json::Value>(&listing.assert_status(200).body).unwrap();
            machine(nix, &server).await.pull(&server.pull_url("main"), &[&path]).await.success();
        }
    }
    server.stop().await;
}
