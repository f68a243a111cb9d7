//! A push that is interrupted, by a kill of either side or by a proxy of bad manners, is continued: what the server has
//! accepted, and has said so, is not sent again, to the byte.

use std::time::Duration;

use narvault::api::PathQuery;
use narvault::nix::nar::build::Node;
use serde_json::Value;

use crate::push::{done, noise, noisy, pulled_unchanged, push, pusher, store_path, summary};
use crate::support::nix::{Nix, require_nix};
use crate::support::proxy::{Hazard, Manners, Proxy, REFUSAL_DETAIL};
use crate::support::server::{Backend, Ended, TestServer, on_each_backend};

/// Kills a push once the server has accepted so many files and parts, pushes again, and counts.
async fn interrupted(server: &TestServer, nix: &Nix, paths_and_size: (usize, usize), hold_after: usize) {
    let (alice, token) = pusher(nix, server).await;
    let paths = noisy(&alice, paths_and_size.0, paths_and_size.1).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let manners = Manners { hold_after: Some(hold_after), ..Manners::default() };
    let holding = Proxy::before(&server.url, manners).await;
    let mut first = alice.narvault_push(&holding.url, &token, &arguments).spawn().unwrap();
    holding.wait_for(hold_after).await;
    first.kill().await.unwrap();
    let proxy = Proxy::before(&server.url, Manners::default()).await;

    let second = push(&alice, &proxy.url, &token, &[&["--json"], &arguments[..]].concat()).await;

    let done = done(&second);
    let [sent, kept] = ["bytes_sent", "bytes_kept"].map(|name| done[name].as_u64().unwrap());
    assert_eq!(sent, proxy.accepted_bytes(), "{done}");
    let all = file_bytes(server).await;
    if done["present"] == 0 {
        // What the proxy did not see accepted, because its client was gone, may have been.
        assert!(kept >= holding.accepted_bytes() && kept + sent == all, "of {all} bytes: {done}");
    } else {
        assert!(kept + sent < all, "of {all} bytes, some of which are published: {done}");
    }
    let (before, after) = (holding.accepted(), proxy.accepted());
    let twice: Vec<_> = before.keys().filter(|name| after.contains_key(*name)).collect();
    assert!(before.len() >= hold_after && twice.is_empty(), "sent twice: {twice:?}");
    assert!(before.values().chain(after.values()).all(|count| *count == 1), "{before:?} {after:?}");
    pulled_unchanged(nix, server, &alice, &paths).await;
}

/// Bytes of the files of all published paths.
async fn file_bytes(server: &TestServer) -> u64 {
    let query = PathQuery { limit: Some(200), ..PathQuery::default() };
    let paths = server.admin().paths("main", &query).await.unwrap().items;
    paths.iter().map(|path| path.file_size).sum()
}

on_each_backend! {
    async fn a_killed_push_is_continued_without_sending_a_file_again(server: TestServer) {
        let nix = require_nix!();
        interrupted(&server, &nix, (40, 300_000), 10).await;
        server.stop().await;
    }

    async fn a_killed_push_of_a_large_file_is_continued_without_sending_a_part_again(server: TestServer) {
        let nix = require_nix!();
        interrupted(&server, &nix, (1, 70 << 20), 2).await;
        server.stop().await;
    }
}

async fn a_server_that_is_killed_and_started_again_is_waited_for(backend: Backend) {
    let nix = require_nix!();
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 60, 300_000).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let proxy = Proxy::before(&server.url, Manners::default()).await;
    let pushing = alice.narvault_push(&proxy.url, &token, &arguments).spawn().unwrap();
    proxy.wait_for(5).await;

    server.restart_after_kill(&[]).await;

    let output = pushing.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_waited_for_on_sqlite_and_disk() {
    a_server_that_is_killed_and_started_again_is_waited_for(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_waited_for_on_postgres_and_s3() {
    a_server_that_is_killed_and_started_again_is_waited_for(Backend::POSTGRES_S3).await;
}

async fn a_server_that_is_killed_with_a_file_in_parts_gets_each_part_once(backend: Backend) {
    let nix = require_nix!();
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 1, 70 << 20).await;
    let proxy = Proxy::before(&server.url, Manners::default()).await;
    let pushing =
        alice.narvault_push(&proxy.url, &token, ["--json", "main", paths[0].as_str()]).spawn().unwrap();
    proxy.wait_for(2).await;

    server.restart_after_kill(&[]).await;

    let output = pushing.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let done: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let all = file_bytes(&server).await;
    assert_eq!((&done["bytes_sent"], &done["bytes_kept"]), (&all.into(), &0.into()), "{done}");
    assert_eq!((proxy.accepted().len(), proxy.accepted_bytes()), (5, all));
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_with_a_file_in_parts_goes_on_with_it_on_sqlite_and_disk() {
    a_server_that_is_killed_with_a_file_in_parts_gets_each_part_once(Backend::SQLITE_DISK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_with_a_file_in_parts_goes_on_with_it_on_postgres_and_s3() {
    a_server_that_is_killed_with_a_file_in_parts_gets_each_part_once(Backend::POSTGRES_S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_cuts_inside_bodies_costs_time_and_nothing_else() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let mut paths = noisy(&alice, 20, 900_000).await;
    paths.push(alice.add("large", &Node::file(noise("large", 40 << 20)), &[]).await);
    let manners = Manners { cut_body_every: 4, cut_answer_every: 6, ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();

    let ended = push(&alice, &proxy.url, &token, &arguments).await;

    assert!(summary(&ended).starts_with("21 new, 0 already there"), "{ended:?}");
    assert!(proxy.cut() >= 3, "{} bodies", proxy.cut());
    assert!(ended.stderr.contains("trying again in"), "{}", ended.stderr);
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_bad_manners_costs_time_and_nothing_else() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let mut paths = noisy(&alice, 30, 900_000).await;
    paths.push(alice.add("large", &Node::file(noise("large", 40 << 20)), &[]).await);
    let proxy = Proxy::before(
        &server.url,
        Manners {
            body_size_bytes_max: Some(32 << 20),
            bad_gateway_every: 5,
            cut_every: 7,
            lose_answer_every: 6,
            delay: Duration::from_millis(20),
            hold_after: None,
            ..Manners::default()
        },
    )
    .await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();

    let ended = push(&alice, &proxy.url, &token, &arguments).await;

    assert!(summary(&ended).starts_with("31 new, 0 already there"), "{ended:?}");
    assert!(ended.stderr.contains("trying again in"), "{}", ended.stderr);
    assert!(proxy.largest_body() <= 17 << 20, "{} bytes", proxy.largest_body());
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}

on_each_backend! {
    async fn a_hostile_proxy_costs_time_and_nothing_else_whatever_it_does_when(server: TestServer) {
        let nix = require_nix!();
        let (alice, token) = pusher(&nix, &server).await;
        let mut paths = noisy(&alice, 24, 900_000).await;
        for name in ["large", "larger"] {
            paths.push(alice.add(name, &Node::file(noise(name, 36 << 20)), &[]).await);
        }
        // Each refers to the one before it, in twenties.
        let mut tiny: Vec<(String, Node, Vec<String>)> = Vec::new();
        for number in 0..400 {
            let before = tiny.last().filter(|_| number % 20 > 0).map(|(path, ..)| path.clone());
            let text = Node::file(noise(&format!("tiny-{number}"), 2_000));
            tiny.push((store_path(&format!("tiny-{number}")), text, Vec::from_iter(before)));
        }
        alice.add_all(&tiny).await;
        paths.extend((19..400).step_by(20).map(|at: usize| tiny[at].0.clone()));
        let manners =
            Manners { body_size_bytes_max: Some(32 << 20), hazard: Some(Hazard::new()), ..Manners::default() };
        let proxy = Proxy::before(&server.url, manners).await;
        let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();

        let ended = push(&alice, &proxy.url, &token, &arguments).await;

        assert!(summary(&ended).starts_with("426 new, 0 already there"), "{ended:?}");
        assert!(proxy.mishaps() >= 6, "{} of {} requests", proxy.mishaps(), proxy.requests());
        assert!(ended.stderr.contains("trying again in"), "{}", ended.stderr);
        assert!(proxy.largest_body() <= 17 << 20, "{} bytes", proxy.largest_body());
        assert_eq!(server.admin().cache("main").await.unwrap().paths, 426);
        pulled_unchanged(&nix, &server, &alice, &paths).await;
        server.stop().await;
    }
}

/// So many files, pushed by a proxy that asks to wait for so many seconds with one of them.
async fn pushed_past_a_wait(nix: &Nix, files: usize, seconds: u64) -> (TestServer, Proxy, Ended) {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(nix, &server).await;
    let paths = noisy(&alice, files, 20_000).await;
    let manners = Manners { postpone_file: Some(seconds), ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let ended = push(&alice, &proxy.url, &token, &arguments).await;
    (server, proxy, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_the_server_asks_to_wait_with_is_waited_with_alone() {
    let nix = require_nix!();
    let (server, proxy, ended) = pushed_past_a_wait(&nix, 3, 2).await;

    assert!(summary(&ended).starts_with("3 new, 0 already there"), "{ended:?}");
    assert!(ended.stderr.contains(&format!("{REFUSAL_DETAIL}; trying again in 2.")), "{ended:?}");
    let waited = proxy.distances();
    assert!(waited.iter().any(|waited| *waited >= Duration::from_secs(2)), "{waited:?}");
    // The one again, and the two others not.
    let mut times: Vec<usize> = proxy.accepted().into_values().collect();
    times.sort_unstable();
    assert_eq!(times, [1, 1, 2]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_to_be_waited_with_for_too_long_ends_the_push_with_their_words() {
    let nix = require_nix!();
    let (server, _proxy, ended) = pushed_past_a_wait(&nix, 2, 301).await;

    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = format!("error: {REFUSAL_DETAIL}\nhint: run the same again after 301 s, as the answer asks\n");
    assert!(ended.stderr.ends_with(&told), "{ended:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_larger_than_the_parts_that_were_asked_for() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    // Some for batches, some that go alone, one just above a part, and a large one.
    let mut paths = noisy(&alice, 12, 900_000).await;
    for (name, size) in [("alone", 4_500_000), ("above", (5 << 20) + 1), ("large", 24 << 20)] {
        paths.push(alice.add(name, &Node::file(noise(name, size)), &[]).await);
    }
    let manners = Manners { body_size_bytes_max: Some((5 << 20) + 1024), ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();

    let usual = push(&alice, &proxy.url, &token, &["main", &paths[14]]).await;
    let small = push(&alice, &proxy.url, &token, &[&arguments[..], &["--part-size", "5"]].concat()).await;

    assert_eq!(usual.code, Some(4), "{usual:?}");
    assert!(usual.stderr.contains("--part-size"), "{usual:?}");
    assert!(summary(&small).starts_with("15 new, 0 already there"), "{small:?}");
    for (size, told) in [("4", "is not in 5..=64"), ("65", "is not in 5..=64"), ("all", "invalid value")] {
        let refused = push(&alice, &proxy.url, &token, &["main", &paths[0], "--part-size", size]).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(told), "{refused:?}");
    }
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_may_be_as_large_as_a_server_takes_and_an_upload_with_others_begins_anew() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 1, 70 << 20).await;
    let manners = Manners { hold_after: Some(1), ..Manners::default() };
    let holding = Proxy::before(&server.url, manners).await;
    let mut first = alice.narvault_push(&holding.url, &token, ["main", paths[0].as_str()]).spawn().unwrap();
    holding.wait_for(1).await;
    first.kill().await.unwrap();
    let proxy = Proxy::before(&server.url, Manners::default()).await;

    let second = push(&alice, &proxy.url, &token, &["--json", "main", &paths[0], "--part-size", "64"]).await;

    let done = done(&second);
    assert_eq!((&done["new"], &done["bytes_kept"]), (&1.into(), &0.into()), "{done}");
    assert_eq!((proxy.accepted().len(), proxy.largest_body()), (2, 64 << 20));
    pulled_unchanged(&nix, &server, &alice, &paths).await;
    server.stop().await;
}
