//! The gate, with the real functions: what a publication found true is true when it commits, and a revocation does
//! not starve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::testing::{Sample, TestService};
use super::*;
use crate::access::{TokenId, TokenText};
use crate::db::testing::{NOON, TestDb, gate_is_free};
use crate::db::{caches, log};
use crate::service::read::Side;
use crate::vault::VaultError;

fn id(server: &TestService, text: &TokenText) -> TokenId {
    server.service.verify_token(text, server.clock.now()).unwrap().token
}

/// The events of the log, in their order.
async fn events(test: &TestDb) -> Vec<String> {
    let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 10_000).await.unwrap();
    let event = |leaf: String| leaf.lines().nth(1).unwrap().strip_prefix("event ").unwrap().to_owned();
    leaves.into_iter().map(|(_, leaf)| event(leaf)).collect()
}

async fn published(server: &TestService) -> u64 {
    let mut connection = server.service.inner.db.read().await.unwrap();
    let cache = caches::by_name(&mut connection, &"main".parse().unwrap()).await.unwrap().unwrap();
    caches::published(&mut connection, cache.id).await.unwrap().0
}

/// Runs each test on both databases, with threads enough that one may be held up.
macro_rules! on_each_database_with_threads {
    ($(async fn $name:ident($db:ident: TestDb) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn check($db: TestDb) {
                $body
                $db.finish().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn on_sqlite() {
                check(TestDb::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn on_postgres() {
                if let Some(db) = TestDb::postgres().await {
                    check(db).await;
                }
            }
        }
    )+};
}

on_each_database_with_threads! {
    async fn a_revocation_waits_for_a_publication_between_its_checks_and_its_commit(test: TestDb) {
        let server = Arc::new(TestService::start(&test).await);
        let token = server.contributor("ci", "push:main").await;
        let (call, admin) = (server.call(&token).await, server.admin().await);
        let sample = Sample::numbered(1);
        server.put_nar(&call, &sample).await.unwrap();
        // The cache's key is opened when it signs for the first time, and that waits for whoever works with the vault.
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let (holding, held_now) = tokio::sync::oneshot::channel();
        let keyring = server.service.inner.keyring.clone();
        let holder = std::thread::spawn(move || {
            keyring.with_vault(|_| {
                holding.send(()).unwrap();
                held.recv().unwrap();
                Ok::<_, VaultError>(())
            })
        });
        held_now.await.unwrap();
        // On a thread of its own, for it blocks there: the runtime's have to go on.
        let publishing = {
            let (server, call, runtime) = (server.clone(), call.clone(), tokio::runtime::Handle::current());
            std::thread::spawn(move || runtime.block_on(server.put_narinfo(&call, &sample)))
        };
        let passing = async {
            while gate_is_free(&test).await {
                tokio::task::yield_now().await;
            }
        };
        let passed = tokio::time::timeout(Duration::from_secs(60), passing).await;
        passed.expect("the publication did not pass the gate");

        let token = id(&server, &token);
        let revoking = {
            let server = server.clone();
            tokio::spawn(async move { server.service.revoke_token(&admin, token, "left", false).await })
        };
        tokio::pin!(revoking);
        let answered = tokio::time::timeout(Duration::from_millis(300), &mut revoking).await;

        assert!(answered.is_err(), "revoked while a publication was between its checks and its commit");
        assert!(!publishing.is_finished(), "the publication was not held up");
        let_go.send(()).unwrap();
        holder.join().unwrap().unwrap();
        assert_eq!(publishing.join().unwrap().unwrap(), Published::New);
        assert_eq!(revoking.await.unwrap().unwrap(), [token]);
        let events = events(&test).await;
        assert_eq!(&events[events.len() - 2..], ["sign", "token-revoke"]);
        let late = Sample::numbered(2);
        let refused = server.push(&call, &late).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))), "{refused:?}");
    }

    async fn publications_that_wait_together_are_refused_and_accepted_each_by_itself(test: TestDb) {
        let server = Arc::new(TestService::start(&test).await);
        let mut calls = Vec::new();
        for number in 0..PUBLISHERS {
            let token = server.contributor(&format!("ci-{number}"), "push:main").await;
            calls.push((server.call(&token).await, id(&server, &token)));
        }
        let hello = Sample::numbered(0);
        let same = Sample::numbered(1);
        let unknown = Sample::numbered(PUBLISHERS + 1);
        for (number, (call, _)) in calls.iter().enumerate() {
            server.put_nar(call, &Sample::numbered(number as u64)).await.unwrap();
        }
        server.put_nar(&calls[0].0, &hello).await.unwrap();
        // Nobody gets through the gate until all of them stand in line.
        let mut held = test.db.begin(Gate::Exclusive).await.unwrap();
        let mut publishing = Vec::new();
        for (number, (call, _)) in calls.iter().enumerate() {
            let sample = match number {
                2 => Sample::numbered(1),
                3 => Sample::new(unknown.path.base_name(), "never sent", &[]),
                _ => Sample::numbered(number as u64),
            };
            let (server, call) = (server.clone(), call.clone());
            publishing.push(tokio::spawn(async move { server.put_narinfo(&call, &sample).await }));
        }
        while server.service.inner.committing.handed_in() < publishing.len() - 1 {
            tokio::task::yield_now().await;
        }
        assert!(crate::db::tokens::revoke(&mut held, calls[4].1, "left", NOON).await.unwrap());
        held.commit().await.unwrap();

        let mut ended = Vec::new();
        for one in publishing {
            ended.push(one.await.unwrap());
        }

        for (number, result) in ended.iter().enumerate() {
            match (number, result) {
                (3, Err(Error::Rejected(_))) | (4, Err(Error::Unauthenticated(_))) => {}
                (3 | 4, _) => panic!("{number}: {result:?}"),
                (_, result) => drop(result.as_ref().unwrap()),
            }
        }
        let both = [ended[1].as_ref().unwrap(), ended[2].as_ref().unwrap()];
        assert!(both.contains(&&Published::New) && both.contains(&&Published::Again), "{both:?} of {}", same.path);
        assert_eq!(published(&server).await, PUBLISHERS - 3);
        let signed = events(&test).await.into_iter().filter(|event| event == "sign").count() as u64;
        assert_eq!(signed, PUBLISHERS - 3);
    }

    async fn each_of_many_paths_gets_its_own_signature_whichever_of_them_stand_already(test: TestDb) {
        let server = TestService::start(&test).await;
        let call = server.call(&server.contributor("ci", "push:main").await).await;
        let main: CacheName = "main".parse().unwrap();
        let samples: Vec<_> = (0..12).map(Sample::numbered).collect();
        for sample in &samples {
            server.put_nar(&call, sample).await.unwrap();
        }
        for sample in samples.iter().step_by(3) {
            server.put_narinfo(&call, sample).await.unwrap();
        }
        let narinfos: Vec<_> = samples.iter().map(|sample| sample.narinfo.clone()).collect();

        let outcomes = server.service.publish(&call, &main, &narinfos).await.unwrap();

        for (at, outcome) in outcomes.into_iter().enumerate() {
            let expected = if at % 3 == 0 { Published::Again } else { Published::New };
            assert_eq!(outcome.result.unwrap().published, expected, "{at}");
        }
        let cache = server.service.existing_cache(&main).await.unwrap();
        let keys = {
            let mut connection = test.db.read().await.unwrap();
            crate::db::signing_keys::active_of_cache(&mut connection, cache.id).await.unwrap()
        };
        for sample in &samples {
            let served = server.service.narinfo(&cache, sample.path.hash()).await.unwrap().unwrap();
            let narinfo = NarInfo::parse(&served.text).unwrap();
            let fingerprint = narinfo.claim.fingerprint();
            assert_eq!(narinfo.signatures.len(), keys.len());
            let signed = |key: &crate::db::signing_keys::KeyRow| {
                key.public_key.verify(fingerprint.as_bytes(), &narinfo.signatures[0])
            };
            assert!(keys.iter().all(signed), "{}", sample.path);
        }
        assert_eq!(events(&test).await.into_iter().filter(|event| event == "sign").count(), samples.len());
    }

    async fn a_file_that_may_not_last_is_not_published_until_it_is_pushed_again(test: TestDb) {
        let server = TestService::start(&test).await;
        let call = server.call(&server.contributor("ci", "push:main").await).await;
        let cache = server.service.existing_cache(&"main".parse().unwrap()).await.unwrap();
        let (sample, other) = (Sample::numbered(1), Sample::numbered(2));
        for sample in [&sample, &other] {
            server.put_nar(&call, sample).await.unwrap();
        }

        // Of a later push nothing is taken away.
        server.service.lose(&cache, &[(sample.file, 1), (other.file, 7)]).await;

        assert!(server.service.nar(&cache, sample.file, Side::Push).await.unwrap().is_none());
        let refused = server.put_narinfo(&call, &sample).await;
        assert!(matches!(refused, Err(Error::Rejected(Rejection::LostNar(_)))), "{refused:?}");
        assert_eq!(server.push(&call, &sample).await.unwrap(), Published::New);
        assert_eq!(server.put_narinfo(&call, &other).await.unwrap(), Published::New);
    }

    async fn a_revocation_is_not_held_up_by_32_publishers_and_none_publishes_after_it(test: TestDb) {
        let server = Arc::new(TestService::start(&test).await);
        let token = server.contributor("ci", "push:main").await;
        let (call, admin) = (server.call(&token).await, server.admin().await);
        let next = Arc::new(AtomicU64::new(0));
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|_| {
                let (server, call, next) = (server.clone(), call.clone(), next.clone());
                tokio::spawn(async move {
                    loop {
                        let sample = Sample::numbered(next.fetch_add(1, Ordering::Relaxed));
                        match server.push(&call, &sample).await {
                            Ok(_) => {}
                            Err(Error::Unauthenticated(_)) => return,
                            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
                        }
                    }
                })
            })
            .collect();
        // Each of them is in the queue once some have been through it.
        let before = loop {
            let published = published(&server).await;
            if published >= 2 * PUBLISHERS {
                break published;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };

        let begun = Instant::now();
        server.service.revoke_token(&admin, id(&server, &token), "left", false).await.unwrap();
        let took = begun.elapsed();

        let after = published(&server).await;
        for publisher in publishers {
            publisher.await.unwrap();
        }
        println!("revoked in {took:?} beside {PUBLISHERS} publishers; {} passed it", after - before);
        assert_eq!(published(&server).await, after, "published after the revocation had answered");
        assert_eq!(events(&test).await.last().unwrap(), "token-revoke");
        // The gate is a queue: who stood before the revocation passes, who comes later does not. The rest of the bound
        // is for what went on before the revocation came to it.
        assert!(after - before <= 3 * PUBLISHERS, "{} publications passed it", after - before);
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

const PUBLISHERS: u64 = 32;
