use super::super::paths::MadeSignature;
use super::super::signing_keys::KeyState;
use super::super::testing::{self, NOON, TestDb, on_each_database};
use super::super::{Gate, log};
use super::*;
use crate::nix::signature::Signature;
use crate::vault::Purpose;

/// A published path with a signature of each of these keys: the id of its claim.
async fn signed(connection: &mut Connection, cache: CacheId, number: u64, keys: &[&str]) -> String {
    let claim = testing::published_path(connection, cache, number, 10).await;
    let (path_id,): (String,) = sqlx::query_as("SELECT path_id FROM claims WHERE id = $1")
        .bind(&claim)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    for key in keys {
        let state = log::lock(connection).await.unwrap();
        let leaf = log::LeafRow {
            event: "sign".to_owned(),
            leaf: format!("{key} {number}\n"),
            path_id: Some(path_id.clone()),
            openings: Vec::new(),
            long_references: None,
        };
        let signature = Signature { name: key.parse().unwrap(), bytes: [7; 64] };
        let made = MadeSignature { claim_id: claim.clone(), signature, leaf: state.size };
        let next = log::LogState { size: state.size + 1, ..state };
        log::append(connection, state.size, &[leaf], &[made], &next).await.unwrap();
    }
    claim
}

on_each_database! {
    async fn what_a_key_has_not_signed_is_found_in_the_order_of_the_log(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let cache = testing::cache(&mut tx, "main").await.id;
        let other = testing::cache(&mut tx, "other").await.id;
        for number in [3, 1, 2] {
            signed(&mut tx, cache, number, &["a"]).await;
        }
        signed(&mut tx, cache, 4, &["a", "b"]).await;
        signed(&mut tx, other, 5, &["a"]).await;

        let found = unsigned(&mut tx, cache, "b", -1, 10).await.unwrap();
        assert_eq!(found.iter().map(|row| row.index).collect::<Vec<_>>(), [0, 1, 2]);
        let found = unsigned(&mut tx, cache, "b", 0, 1).await.unwrap();
        assert_eq!(found.iter().map(|row| row.index).collect::<Vec<_>>(), [1]);
        assert_eq!(unsigned_count(&mut tx, cache, "b").await.unwrap(), 3);
        assert_eq!(unsigned_count(&mut tx, cache, "a").await.unwrap(), 0);
        assert_eq!(signed_count(&mut tx, cache, "a").await.unwrap(), 4);

        let ids: Vec<_> = found.into_iter().map(|row| row.path_id).collect();
        assert_eq!(last_signatures(&mut tx, &ids).await.unwrap()[&ids[0]], 1);
        let leaves = leaves_at(&mut tx, [1, 4, 99]).await.unwrap();
        assert_eq!((leaves[&1].as_str(), leaves[&4].as_str(), leaves.len()), ("a 1\n", "b 4\n", 2));
        assert_eq!(path_leaves(&mut tx, &ids).await.unwrap(), [(ids[0].clone(), "a 1\n".to_owned())]);
        assert_eq!(realisation_leaves(&mut tx, &ids).await.unwrap(), []);
    }

    async fn a_signature_stands_alone_unless_another_key_is_trusted(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let cache = testing::cache(&mut tx, "main").await.id;
        for (name, state) in [
            ("a", KeyState::Retired),
            ("b", KeyState::Active),
            ("gone", KeyState::Destroyed),
            ("bad", KeyState::Compromised),
        ] {
            testing::key(&mut tx, Purpose::Cache, Some(cache), name, state).await;
        }
        let alone = signed(&mut tx, cache, 1, &["a"]).await;
        signed(&mut tx, cache, 2, &["a", "b"]).await;
        signed(&mut tx, cache, 3, &["a", "gone", "bad", "upstream"]).await;
        assert_eq!(signed_alone_count(&mut tx, cache, "a").await.unwrap(), 2);

        let rows = signed_by(&mut tx, cache, "a", 10).await.unwrap();
        assert_eq!(rows.iter().filter(|row| row.is_served).count(), 3);
        assert_eq!(rows[0].claim_id, alone);
        remove_signatures(&mut tx, "a", [&alone]).await.unwrap();
        assert_eq!(signed_alone_count(&mut tx, cache, "a").await.unwrap(), 1);
        assert_eq!(signed_by(&mut tx, cache, "a", 10).await.unwrap().len(), 2);
    }

    async fn an_unlogged_signature_is_written_down_once(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let cache = testing::cache(&mut tx, "main").await.id;
        let row = |id: &str, place: &str| UnloggedRow {
            id: id.to_owned(),
            key_name: "a".to_owned(),
            place: place.to_owned(),
            subject: "x".to_owned(),
            signature: "a:b".to_owned(),
            found_at: NOON.0,
        };

        insert_unlogged(&mut tx, cache, &[row("1", "rows"), row("2", "storage")]).await.unwrap();
        insert_unlogged(&mut tx, cache, &[row("3", "rows")]).await.unwrap();

        let page = PageBounds { after: None, limit: 10, descending: false };
        let found = unlogged(&mut tx, cache, "a", &page).await.unwrap();
        assert_eq!(found, [row("1", "rows"), row("2", "storage")]);
        assert_eq!(unlogged(&mut tx, cache, "b", &page).await.unwrap(), []);
        assert_eq!(waiting_for_storage(&mut tx, cache, NOON).await.unwrap(), 0);
        assert_eq!(realisation_count(&mut tx, cache).await.unwrap(), 0);
        assert!(realisations(&mut tx, cache, "", 10).await.unwrap().is_empty());
    }

    async fn realisations_are_found_by_who_signed_them_and_whether_they_are_served(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let cache = testing::cache(&mut tx, "main").await.id;
        let contributor = testing::contributor(&mut tx, "ci").await.id;
        let key = testing::key(&mut tx, Purpose::Token, None, "tokens", KeyState::Active).await;
        let token = testing::token(&mut tx, contributor, &key, None).await;
        for number in [1, 2] {
            signed(&mut tx, cache, number, &["a"]).await;
        }
        let found = lacking(&mut tx, cache, "b", "", 10).await.unwrap();
        let (standing, gone) = (found[0].1.to_string(), found[1].1.to_string());
        sqlx::query("UPDATE paths SET state = 'withdrawn' WHERE id = $1").bind(&found[1].0).execute(&mut *tx).await.unwrap();
        // A name that ends as another one begins, and one that has it in its middle, are others.
        for (id, output, signatures) in [
            ("1", &standing, "a:x"),
            ("2", &standing, "aa:x b:y"),
            ("3", &standing, "b:a:x"),
            ("4", &standing, "b:y a:x"),
            ("5", &gone, "a:x"),
        ] {
            let object = format!("object {id}");
            let new = crate::db::realisations::NewRealisation {
                id: id.to_owned(), cache, object: &object, output_hash: output, body: "{}", signatures, contributor, token, now: NOON,
            };
            assert!(crate::db::realisations::insert(&mut tx, &new).await.unwrap());
        }
        sqlx::query("UPDATE realisations SET void_by = 'q' WHERE id = '4'").execute(&mut *tx).await.unwrap();

        for (signed, served, expected) in [
            (true, true, vec!["1"]),
            (false, true, vec!["2", "3"]),
            (true, false, vec!["4", "5"]),
            (false, false, vec![]),
        ] {
            let asked = RealisationsBy { key_name: "a", signed, served };
            let found = realisations_by(&mut tx, cache, asked, "", 10).await.unwrap();
            assert_eq!(found.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), expected, "{asked:?}");
        }
        let asked = RealisationsBy { key_name: "a", signed: false, served: true };
        assert_eq!(realisations_by(&mut tx, cache, asked, "2", 10).await.unwrap().len(), 1);
        assert_eq!(realisations_by(&mut tx, cache, asked, "", 1).await.unwrap().len(), 1);
        assert_eq!(unsigned_realisation_count(&mut tx, cache, "a").await.unwrap(), 2);
        let among = served_realisations(&mut tx, cache, ["object 1", "object 4", "object 5"]).await.unwrap();
        assert_eq!(among.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["1"]);
    }

    async fn a_key_leaves_what_is_not_served_and_nothing_else(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let cache = testing::cache(&mut tx, "main").await.id;
        let other = testing::cache(&mut tx, "other").await.id;
        let standing = signed(&mut tx, cache, 1, &["a", "b"]).await;
        let gone = signed(&mut tx, cache, 2, &["a", "b"]).await;
        let elsewhere = signed(&mut tx, other, 3, &["a"]).await;
        for claim in [&gone, &elsewhere] {
            sqlx::query("UPDATE paths SET state = 'withdrawn' WHERE claim_id = $1").bind(claim).execute(&mut *tx).await.unwrap();
        }

        remove_unserved_signatures(&mut tx, cache, "a").await.unwrap();

        let mut left = Vec::new();
        for claim in [&standing, &gone, &elsewhere] {
            left.push(crate::db::paths::signatures(&mut tx, claim).await.unwrap().len());
        }
        assert_eq!(left, [2, 1, 1]);
    }
}
