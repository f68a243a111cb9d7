//! Lists of references that leaves have only the digests of, also of leaves that were published before lists were.

use super::*;
use crate::tlog::leaf::{Basis, ClaimLines, Disclosed, Event, Leaf, References, SignatureBytes, Signed};

/// A leaf with the digest of a list in its place, as it would be appended.
fn listed(number: usize) -> log::LeafRow {
    let list = format!("mmjhp110f3wf5kp5q70rc7p49yln4qzy-reference-{number}");
    let (references, list) = References::list(&list).unwrap().shortened().unwrap();
    let claim = ClaimLines {
        cache: "main".parse().unwrap(),
        path: "/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-x".parse().unwrap(),
        nar_hash: None,
        nar_size: None,
        references,
    };
    let event = Event::Sign(Signed {
        claim: Disclosed::Open(claim),
        key: "main-1".parse().unwrap(),
        sig: SignatureBytes([0; 64]),
        basis: Basis { policy: None, replaces: None },
    });
    let time = "2026-11-22T13:10:00.123Z".parse().unwrap();
    let leaf = Leaf { event, time, by: None, token: None, detail: None };
    log::LeafRow {
        event: "sign".to_owned(),
        leaf: leaf.encode().unwrap(),
        path_id: None,
        openings: Vec::new(),
        long_references: Some(list),
    }
}

async fn append_row(service: &Service, row: log::LeafRow) {
    let mut tx = service.inner.db.begin(Gate::Shared).await.unwrap();
    crate::service::log::append(&mut tx, &[row]).await.unwrap();
    tx.commit().await.unwrap();
}

pub(super) async fn append_listed(service: &Service, number: usize) {
    append_row(service, listed(number)).await;
}

/// Whether the list of that leaf is published.
pub(super) async fn has_list(service: &Service, number: usize) -> bool {
    let event = Leaf::parse(listed(number).leaf.as_bytes()).unwrap().event;
    service.stored_references(&event).await.unwrap().is_some()
}

/// Takes a list away, as if it had never been published.
pub(super) async fn lose_list(service: &Service, number: usize) {
    let Event::Sign(Signed { claim: Disclosed::Open(claim), .. }) =
        Leaf::parse(listed(number).leaf.as_bytes()).unwrap().event
    else {
        panic!("not signed openly");
    };
    let References::Digest(digest) = claim.references else { panic!("no digest") };
    remove(service, &format!("references/{}", data_encoding::HEXLOWER.encode(&digest))).await;
    let mut tx = service.inner.db.begin(Gate::Around).await.unwrap();
    log::forget_references(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

on_each_database! {
    async fn lists_of_leaves_that_were_published_before_lists_were_are_completed(test: &TestDb) {
        let server = TestService::start(test).await;
        let service = &server.service;
        append_listed(service, 0).await;
        append(service, 1200).await;
        append_listed(service, 1).await;
        append(service, 1200).await;
        append_listed(service, 2).await;
        let size = publish(service, &mut Published::default()).await.size;
        for number in 0..3 {
            assert!(has_list(service, number).await);
            lose_list(service, number).await;
        }
        let to = async || log::references_to(&mut test.db.read().await.unwrap()).await.unwrap().unwrap().0;

        // Range by range, and whoever comes next goes on there.
        service.publish_round(&mut Published::default()).await.unwrap();
        assert_eq!((to().await, has_list(service, 0).await, has_list(service, 1).await), (1000, true, false));
        let replica = testing::open(test, &Clock::fixed(NOON), testing::vault(test)).await.0;
        let mut published = Published::default();
        replica.publish_round(&mut published).await.unwrap();
        assert_eq!((to().await, has_list(service, 1).await, has_list(service, 2).await), (2000, true, false));
        // What is published meanwhile does not make it forget.
        append_listed(service, 3).await;
        replica.publish_round(&mut published).await.unwrap();

        assert_eq!(to().await as u64, size + 1);
        for number in 0..4 {
            assert!(has_list(service, number).await, "{number}");
        }
        replica.publish_round(&mut published).await.unwrap();
        assert!(published.has_references);
    }

    async fn a_list_that_nobody_has_any_more_holds_nothing_up(test: &TestDb) {
        let server = TestService::start(test).await;
        let service = &server.service;
        // It lies in storage alone, as after a recovery by a server that did not take it in.
        let listed = listed(7);
        let digest = listed.leaf.split_once("\nreferences-sha256 ").unwrap().1[..64].to_owned();
        put(service, &format!("references/{digest}"), listed.long_references.as_ref().unwrap().as_bytes()).await;
        append_row(service, log::LeafRow { long_references: None, ..listed }).await;
        publish(service, &mut Published::default()).await;
        lose_list(service, 7).await;

        service.publish_round(&mut Published::default()).await.unwrap();

        assert!(!has_list(service, 7).await);
        let (to, size) = log::references_to(&mut test.db.read().await.unwrap()).await.unwrap().unwrap();
        assert_eq!(to, size);
    }
}
