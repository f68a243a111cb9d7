//! The gate's promise: a row read behind it stays true until the commit, and revoking does not starve.

use std::time::{Duration, Instant};

use super::super::signing_keys::KeyState;
use super::super::testing::{self, NOON, TestDb, on_each_database};
use super::super::{Db, Gate, audit, epoch, tokens};
use crate::access::TokenId;
use crate::vault::Purpose;

async fn pushing_token(db: &Db) -> TokenId {
    let mut tx = db.begin(Gate::Shared).await.unwrap();
    let contributor = testing::contributor(&mut tx, "ci").await;
    let key = testing::key(&mut tx, Purpose::Token, None, "token-1", KeyState::Active).await;
    let token = testing::token(&mut tx, contributor.id, &key, None).await;
    tx.commit().await.unwrap();
    token
}

/// Like a publication: asks whether the token is live, then writes. False: it is not.
async fn publish(db: &Db, token: TokenId) -> bool {
    let mut tx = db.begin(Gate::Shared).await.unwrap();
    if tokens::live(&mut tx, token, NOON).await.unwrap().is_none() {
        return false;
    }
    write(&mut tx, token).await;
    tx.commit().await.unwrap();
    true
}

async fn write(tx: &mut super::Tx, token: TokenId) {
    let id = TokenId::new(NOON, testing::unique()).to_string();
    let row = audit::NewAudit {
        id,
        at: NOON,
        action: "publish",
        outcome: audit::Outcome::Done,
        contributor: None,
        token: Some(token),
        subject: "a path",
        address: None,
        client: None,
        request_id: None,
        detail: "{}".to_owned(),
    };
    audit::insert(tx, &row).await.unwrap();
}

async fn revoke(db: &Db, token: TokenId) {
    let mut tx = db.begin(Gate::Exclusive).await.unwrap();
    assert!(tokens::revoke(&mut tx, token, "test", NOON).await.unwrap());
    epoch::advance(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

on_each_database! {
    async fn a_revocation_waits_for_a_publication_that_found_the_token_live(test: &TestDb) {
        let token = pushing_token(&test.db).await;
        let mut publication = test.db.begin(Gate::Shared).await.unwrap();
        assert!(tokens::live(&mut publication, token, NOON).await.unwrap().is_some());

        let revocation = revoke(&test.db, token);
        tokio::pin!(revocation);
        let answered = tokio::time::timeout(Duration::from_millis(300), &mut revocation).await;
        assert!(answered.is_err(), "revoked while a publication was between its check and its commit");
        write(&mut publication, token).await;
        publication.commit().await.unwrap();
        revocation.await;

        assert!(!publish(&test.db, token).await);
    }

    async fn a_publication_that_begins_during_a_revocation_finds_the_token_dead(test: &TestDb) {
        let token = pushing_token(&test.db).await;
        let mut revocation = test.db.begin(Gate::Exclusive).await.unwrap();
        tokens::revoke(&mut revocation, token, "test", NOON).await.unwrap();

        let publication = publish(&test.db, token);
        tokio::pin!(publication);
        let answered = tokio::time::timeout(Duration::from_millis(300), &mut publication).await;
        assert!(answered.is_err(), "published beside a revocation");
        revocation.commit().await.unwrap();

        assert!(!publication.await);
    }

    async fn a_revocation_answers_within_a_second_under_32_publishers(test: &TestDb) {
        let token = pushing_token(&test.db).await;
        let publishers: Vec<_> = (0..32)
            .map(|_| {
                let db = test.db.clone();
                tokio::spawn(async move {
                    let mut published = 0;
                    while publish(&db, token).await {
                        published += 1;
                    }
                    published
                })
            })
            .collect();
        // Each of them is in the queue once some have been through it.
        for _ in 0..64 {
            assert!(publish(&test.db, token).await);
        }

        let begun = Instant::now();
        revoke(&test.db, token).await;
        let took = begun.elapsed();

        let mut published = 0;
        for publisher in publishers {
            published += publisher.await.unwrap();
        }
        assert!(took < Duration::from_secs(1), "{took:?} beside {published} publications");
    }
}
