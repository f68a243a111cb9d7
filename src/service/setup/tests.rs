//! The first start makes one server, however many replicas come at once; the vault opens as it was sealed.

use super::super::testing::{self, TestService, anonymous, caller};
use super::*;
use crate::access::Caller;
use crate::db::signing_keys;
use crate::db::testing::{NOON, TestDb, on_each_database};
use crate::db::{cluster as cluster_row, log};
use crate::service::{KeySource, Unseal, VaultSettings};

const PASSPHRASE: &str = "correct horse battery staple";

fn with_passphrase(test: &TestDb, text: &str) -> VaultSettings {
    let path = test.folder.path().join("passphrase");
    std::fs::write(&path, text).unwrap();
    VaultSettings { passphrase_file: Some(path), ..testing::vault(test) }
}

on_each_database! {
    async fn a_first_start_makes_everything_that_a_push_needs(test: &TestDb) {
        let clock = Clock::fixed(NOON);
        let (service, first) = testing::open(test, &clock, testing::vault(test)).await;

        let first = first.unwrap();

        assert!(service.is_open());
        let id = service.cluster_id();
        assert_eq!(first.public_key.name().as_str(), format!("main-{}-1", &id[..6]));
        let cache = service.show_cache(&anonymous(), &first.cache).await.unwrap();
        assert!(cache.row.public);
        assert_eq!((cache.row.priority, cache.row.prefix.as_str()), (41, "main"));
        assert_eq!(cache.public_keys, [first.public_key]);
        assert_eq!(cache.row.upstreams[0].public_keys[0].name().as_str(), "cache.nixos.org-1");
        let mut connection = test.db.read().await.unwrap();
        let names = signing_keys::names(&mut connection).await.unwrap();
        assert!(names.iter().any(|name| name.as_str() == format!("narvault-log-{id}")));
        assert_eq!(log::leaves(&mut connection, 0, 100).await.unwrap().len(), 5);
        let key_file = first.key_file.unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key_file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        service.shut_down().await;
    }

    async fn a_second_start_opens_what_the_first_made(test: &TestDb) {
        let server = TestService::start(test).await;

        let (again, first) = testing::open(test, &server.clock, testing::vault(test)).await;

        assert!(first.is_none());
        assert!(again.is_open());
        assert_eq!(again.cluster_id(), server.service.cluster_id());
        assert!(matches!(caller(&again, &server.admin).await, Ok(Caller::Token(_))));
        again.shut_down().await;
    }

    async fn of_two_first_starts_at_once_one_makes_the_server(test: &TestDb) {
        let clock = Clock::fixed(NOON);
        let folder = |name| VaultSettings {
            default_key_file: test.folder.path().join(name),
            ..VaultSettings::default()
        };

        let (one, other) = tokio::join!(
            testing::open(test, &clock, folder("one.key")),
            testing::open(test, &clock, folder("other.key")),
        );

        let ((one, first_of_one), (other, first_of_other)) = (one, other);
        assert!(first_of_one.is_some() ^ first_of_other.is_some());
        assert_eq!(one.cluster_id(), other.cluster_id());
        // The other has no key to this vault, and its own useless file is gone.
        assert!(one.is_open() ^ other.is_open());
        assert_eq!(
            test.folder.path().join("one.key").exists(),
            first_of_one.is_some(),
            "a key file that opens nothing was left behind"
        );
        let claim = first_of_one.or(first_of_other).unwrap().claim;
        let maker = if one.is_open() { &one } else { &other };
        let admin = maker.claim_admin(&anonymous(), claim.expose()).await.unwrap().text;
        for replica in [&one, &other] {
            assert!(matches!(caller(replica, &admin).await, Ok(Caller::Token(_))));
        }
        one.shut_down().await;
        other.shut_down().await;
    }

    async fn a_vault_made_with_a_passphrase_starts_sealed_without_it(test: &TestDb) {
        let clock = Clock::fixed(NOON);
        let (first, _) = testing::open(test, &clock, with_passphrase(test, PASSPHRASE)).await;
        assert!(first.is_open());
        first.shut_down().await;

        let (sealed, none) = testing::open(test, &clock, testing::vault(test)).await;

        assert!(none.is_none());
        assert!(!sealed.is_open());
        for (text, opens) in [("wrong horse battery staple", false), (PASSPHRASE, true)] {
            let passphrase = Passphrase::parse(text.as_bytes()).unwrap();
            let unsealed = sealed.unseal(&anonymous(), Unseal::Passphrase(passphrase)).await;
            assert_eq!((unsealed.is_ok(), sealed.is_open()), (opens, opens), "{text}: {unsealed:?}");
        }
        sealed.shut_down().await;
    }

    async fn a_seal_holds_on_every_replica_and_over_restarts_until_an_admin_lifts_it(test: &TestDb) {
        let server = TestService::start(test).await;
        let (replica, _) = testing::open(test, &server.clock, testing::vault(test)).await;
        let ci = server.contributor("ci", "push:main").await;
        let (admin, pusher) = (server.admin().await, server.call(&ci).await);
        assert!(matches!(server.service.seal(&pusher).await, Err(Error::Forbidden)));
        assert!(server.service.is_open());

        let status = server.service.seal(&admin).await.unwrap();

        // Also where nobody has told the replica yet.
        assert!(replica.is_open());
        let key = replica.create_key(&admin, &"main".parse().unwrap(), &KeySource::New { name: None }).await;
        assert!(matches!(key, Err(Error::Sealed)), "{key:?}");
        assert!(!status.open && status.sealed_by_hand);
        assert!(!replica.is_open());
        assert!(matches!(server.issue(&admin, "ci", "pull:main").await, Err(Error::Sealed)));
        let (restarted, _) = testing::open(test, &server.clock, testing::vault(test)).await;
        assert!(!restarted.is_open());
        // What needs no secret goes on.
        let token = pusher.caller.token().unwrap().token;
        assert_eq!(server.service.revoke_token(&admin, token, "x", false).await.unwrap(), [token]);
        assert!(matches!(server.service.unseal(&anonymous(), Unseal::Configured).await, Err(Error::Unauthenticated(_))));

        let status = replica.unseal(&admin, Unseal::Configured).await.unwrap();

        assert!(status.open && !status.sealed_by_hand);
        assert!(!server.service.is_open(), "unsealing is for one replica");
        let (restarted_again, _) = testing::open(test, &server.clock, testing::vault(test)).await;
        assert!(restarted_again.is_open());
        for service in [replica, restarted, restarted_again] {
            service.shut_down().await;
        }
    }

    async fn a_vault_unsealed_before_a_seal_was_noticed_is_sealed_by_it(test: &TestDb) {
        let server = TestService::start(test).await;
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        cluster_row::seal(&mut tx, NOON).await.unwrap();
        tx.commit().await.unwrap();

        server.service.follow_seal_epoch().await.unwrap();

        assert!(!server.service.is_open());
        let shown = server.service.vault_status(&anonymous()).await.unwrap();
        assert!(shown.slots.is_empty(), "slots are for administrators");
        assert_eq!(server.service.vault_status(&server.admin().await).await.unwrap().slots.len(), 1);
    }
}
