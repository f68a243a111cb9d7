//! What waits in the outbox comes out of it, in an order in which the bucket is whole.

use super::super::testing::{Sample, TestService};
use super::*;
use crate::db::testing::{TestDb, on_each_database};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b";
const C: &str = "cccccccccccccccccccccccccccccccc-c";

/// Has the narinfos of these paths written again, as a change to all of them would.
async fn enqueue(server: &TestService, samples: &[&Sample]) {
    let inner = &server.service.inner;
    let cache = caches::by_name(&mut inner.db.read().await.unwrap(), &"main".parse().unwrap()).await;
    let cache = cache.unwrap().unwrap();
    let mut tx = inner.db.begin(Gate::Exclusive).await.unwrap();
    let mut release = Release::by_worker(&cache, inner.clock.now());
    for sample in samples {
        release.object(&mut tx, CacheObject::Narinfo(sample.path.hash())).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Does a round of the worker's work, and lets as much time go by as anything waits for.
async fn round(server: &TestService) {
    server.service.release_due().await.unwrap();
    server.service.finish().await.unwrap();
    server.clock.advance_seconds(6);
}

async fn waiting(server: &TestService, sample: &Sample) -> bool {
    let key = ObjectKey::Cache("main".parse().unwrap(), CacheObject::Narinfo(sample.path.hash()));
    let mut connection = server.service.inner.db.read().await.unwrap();
    !outbox::waiting_among(&mut connection, [key.to_string()]).await.unwrap().is_empty()
}

/// Paths `a` and `b` that refer to each other, and `c`, to which `a` refers as well.
async fn push_cycle(server: &TestService) -> [Sample; 3] {
    let pusher = server.contributor("ci", "push:main delete:main").await;
    let call = server.call(&pusher).await;
    let before = Sample::new(A, "before", &[]);
    let c = Sample::new(C, "c", &[]);
    let b = Sample::new(B, "b", &[&before.path]);
    for sample in [&before, &c, &b] {
        server.push(&call, sample).await.unwrap();
    }
    let cache = "main".parse().unwrap();
    server.service.delete_path(&call, &cache, before.path.hash(), "to be pushed anew").await.unwrap();
    let a = Sample::new(A, "after", &[&b.path, &c.path]);
    server.push(&call, &a).await.unwrap();
    server.service.finish().await.unwrap();
    assert_eq!(server.service.outbox_backlog().await.unwrap().count, 0);
    [a, b, c]
}

on_each_database! {
    async fn what_is_done_already_and_only_repeated_later_is_not_waited_for(test: &TestDb) {
        let server = TestService::start(test).await;
        let call = server.call(&server.contributor("ci", "push:main").await).await;
        let sample = Sample::new(A, "a", &[]);
        server.push(&call, &sample).await.unwrap();
        server.service.finish().await.unwrap();
        enqueue(&server, &[&sample]).await;
        let object = ObjectKey::Cache("main".parse().unwrap(), CacheObject::Narinfo(sample.path.hash())).to_string();
        // Another replica stalls with it beyond its lease.
        let terms = LeaseTerms { owner: "stalled".into(), ..server.service.inner.lease_terms.clone() };
        let mut tx = test.db.begin(Gate::Around).await.unwrap();
        assert_eq!(outbox::lease(&mut tx, [&object], &terms, server.clock.now()).await.unwrap().len(), 1);
        tx.commit().await.unwrap();
        assert_eq!(server.service.release_one(&object, None, None).await, Done::Later);
        server.clock.advance_seconds(terms.lease_millis / 1000 + 1);

        assert_eq!(server.service.release_due().await.unwrap(), 1);
        server.service.finish().await.unwrap();

        assert!(waiting(&server, &sample).await, "what the other one still writes is not looked after");
        assert_eq!(server.service.release_one(&object, None, None).await, Done::Yes);
        assert!(waiting(&server, &sample).await);
        server.clock.advance_seconds(terms.attempt_millis_max / 1000 + 1);
        round(&server).await;
        assert!(!waiting(&server, &sample).await);
    }

    async fn a_long_chain_of_references_takes_one_round(test: &TestDb) {
        let server = TestService::start(test).await;
        let pusher = server.contributor("ci", "push:main").await;
        let call = server.call(&pusher).await;
        let mut chain = Vec::<Sample>::new();
        for number in 0..40 {
            let references: Vec<_> = chain.iter().rev().take(2).map(|sample| &sample.path).collect();
            let sample = Sample::new(&format!("{number:032}-link"), "link", &references);
            server.push(&call, &sample).await.unwrap();
            chain.push(sample);
        }
        server.service.finish().await.unwrap();
        // Each is looked at before those that it refers to.
        enqueue(&server, &chain.iter().rev().collect::<Vec<_>>()).await;

        assert_eq!(server.service.release_due().await.unwrap(), chain.len());

        server.service.finish().await.unwrap();
        assert_eq!(server.service.outbox_backlog().await.unwrap().count, 0);
    }

    async fn what_is_due_takes_along_what_it_refers_to(test: &TestDb) {
        let server = TestService::start(test).await;
        let [_, b, c] = push_cycle(&server).await;
        let pusher = server.contributor("another", "push:main").await;
        let top = Sample::new("dddddddddddddddddddddddddddddddd-d", "top", &[&b.path, &c.path]);
        server.push(&server.call(&pusher).await, &top).await.unwrap();
        server.service.finish().await.unwrap();
        let below = 300;
        let mut first = Vec::new();
        for number in 0..below {
            let sample = Sample::new(&format!("{number:032}-one"), "one", &[&top.path]);
            server.push(&server.call(&pusher).await, &sample).await.unwrap();
            first.push(sample);
        }
        server.service.finish().await.unwrap();
        enqueue(&server, &first.iter().collect::<Vec<_>>()).await;
        server.clock.advance_seconds(1);
        enqueue(&server, &[&top, &b, &c]).await;

        // More than a round begins with are older than what they refer to.
        let done = server.service.release_due().await.unwrap();

        assert!(done > 3, "{done} were released, and nothing was in the way of the rest");
        server.service.finish().await.unwrap();
        for sample in [&top, &b, &c] {
            assert!(!waiting(&server, sample).await, "{} was to come first", sample.path);
        }
    }

    async fn paths_that_refer_to_each_other_do_not_wait_for_each_other_for_ever(test: &TestDb) {
        let server = TestService::start(test).await;
        let [a, b, c] = push_cycle(&server).await;
        enqueue(&server, &[&a, &b, &c]).await;

        for _ in 0..20 {
            round(&server).await;
        }

        for sample in [&a, &b, &c] {
            assert!(!waiting(&server, sample).await, "{} waits for ever", sample.path);
        }
    }

    async fn a_path_in_a_cycle_still_waits_for_what_is_not(test: &TestDb) {
        let server = TestService::start(test).await;
        let [a, b, c] = push_cycle(&server).await;
        enqueue(&server, &[&a, &b, &c]).await;
        // Somebody else is writing `c`.
        let object = ObjectKey::Cache("main".parse().unwrap(), CacheObject::Narinfo(c.path.hash()));
        let others = LeaseTerms { owner: "another".to_owned(), ..server.service.inner.lease_terms.clone() };
        let others = LeaseTerms { lease_millis: 3600 * 1000, ..others };
        let mut tx = server.service.inner.db.begin(Gate::Around).await.unwrap();
        let now = server.clock.now();
        let leased = outbox::lease(&mut tx, [object.to_string()], &others, now).await.unwrap().remove(0);
        tx.commit().await.unwrap();

        for _ in 0..20 {
            round(&server).await;
        }

        assert!(!waiting(&server, &b).await, "nothing but `a` was in its way");
        assert!(waiting(&server, &a).await, "written before its reference");
        let mut tx = server.service.inner.db.begin(Gate::Around).await.unwrap();
        outbox::finish(&mut tx, &[leased], &others, server.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        round(&server).await;
        assert!(!waiting(&server, &a).await);
    }
}
