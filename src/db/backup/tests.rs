use std::collections::BTreeMap;

use super::super::signing_keys::KeyState;
use super::super::testing::{self, NOON, TestDb, on_each_database};
use super::super::{Gate, cluster, log};
use super::*;
use crate::vault::Purpose;

/// The columns of each table as the database itself has them, each with its mark.
async fn schema_of(test: &TestDb) -> BTreeMap<String, Vec<String>> {
    let mut connection = test.db.read().await.unwrap();
    let statement = if test.db.is_sqlite() {
        "SELECT m.name, c.name, c.type FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
    } else {
        "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT), CAST(data_type AS TEXT) \
         FROM information_schema.columns WHERE table_schema = 'public'"
    };
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(statement).fetch_all(&mut *connection).await.unwrap();
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (table, column, kind) in
        rows.into_iter().filter(|(table, ..)| !tables::LEFT_OUT.contains(&table.as_str()))
    {
        let mark = match kind.to_lowercase().as_str() {
            "bigint" | "integer" => "#",
            "blob" | "bytea" => "*",
            _ => "",
        };
        tables.entry(table).or_default().push(format!("{column}{mark}"));
    }
    tables.values_mut().for_each(|columns| columns.sort());
    tables
}

fn listed() -> BTreeMap<String, Vec<String>> {
    let columns = |table: &Table| {
        let mut columns: Vec<_> = table
            .kinds()
            .map(|(name, kind)| match kind {
                Kind::Bytes => format!("{name}*"),
                Kind::Number => format!("{name}#"),
                Kind::Text => name.to_owned(),
            })
            .collect();
        columns.sort();
        columns
    };
    TABLES.iter().map(|table| (table.name.to_owned(), columns(table))).collect()
}

async fn read_all(test: &TestDb, table: &Table) -> Vec<String> {
    let mut tx = test.db.begin_snapshot().await.unwrap();
    rows(&mut tx, table).try_collect().await.unwrap()
}

fn all_columns(table: &Table) -> Vec<String> {
    table.columns().map(str::to_owned).collect()
}

on_each_database! {
    async fn a_backup_has_every_table_and_every_column(test: &TestDb) {
        // A migration that adds something has to add it to `tables.rs` too.
        assert_eq!(listed(), schema_of(test).await);
        assert_eq!(schema(&mut test.db.read().await.unwrap()).await.unwrap(), schema_known());
    }

    async fn rows_come_back_as_they_were_whatever_they_hold(test: &TestDb) {
        let table = Table::named("vault_slots").unwrap();
        let quotes = serde_json::json!({
            "id": "a", "kind": "it's", "params": "\"\\\n\u{1F511}", "wrapped_root": "00ff10", "kcv": "",
            "created_at": i64::MAX, "removed_at": null,
        });
        let state = Table::named("log_state").unwrap();
        let frontier = serde_json::json!({
            "id": 1, "size": 0, "frontier": null, "frontier_size": 0, "published_beyond": null, "rolled_back_to": -1,
            "forked_what": "another root", "forked_at": 5,
        });
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        prepare(&mut tx).await.unwrap();

        insert(&mut tx, table, &all_columns(table), &[quotes.to_string()]).await.unwrap();
        clear_seed(&mut tx, table).await.unwrap();
        clear_seed(&mut tx, state).await.unwrap();
        insert(&mut tx, state, &all_columns(state), &[frontier.to_string()]).await.unwrap();
        settle(&mut tx).await.unwrap();
        tx.commit().await.unwrap();

        for (table, expected) in [(table, quotes), (state, frontier)] {
            let found = read_all(test, table).await;
            let found: Vec<serde_json::Value> = found.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
            assert_eq!(found, [expected]);
        }
    }

    async fn a_row_without_a_column_of_a_later_migration_gets_its_default(test: &TestDb) {
        let table = Table::named("log_state").unwrap();
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        clear_seed(&mut tx, table).await.unwrap();

        let older = ["id".to_owned(), "size".to_owned()];
        insert(&mut tx, table, &older, &[r#"{"id":1,"size":3}"#.to_owned()]).await.unwrap();

        let state = log::read(&mut tx).await.unwrap();
        assert_eq!((state.size, state.frontier_size, state.published_beyond), (3, 0, None));
    }

    async fn a_token_may_come_before_the_one_that_issued_it_but_not_without(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        let contributor = testing::contributor(&mut tx, "alice").await.id;
        let key = testing::key(&mut tx, Purpose::Token, None, "token-1", KeyState::Active).await.key.label.id;
        tx.commit().await.unwrap();
        let token = |id: &str, issuer: Option<&str>| {
            serde_json::json!({
                "id": id, "contributor_id": contributor.to_string(), "scopes": "", "issued_by": issuer, "key_id": key,
                "note": null, "created_at": 0, "expires_at": 0, "renewable_until": null, "revoked_at": null,
                "revoke_reason": null,
            })
            .to_string()
        };
        let table = Table::named("tokens").unwrap();
        let columns = all_columns(table);

        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        prepare(&mut tx).await.unwrap();
        insert(&mut tx, table, &columns, &[token("a", Some("b"))]).await.unwrap();
        insert(&mut tx, table, &columns, &[token("b", None)]).await.unwrap();
        settle(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        prepare(&mut tx).await.unwrap();
        insert(&mut tx, table, &columns, &[token("c", Some("nobody"))]).await.unwrap();
        let refused = match settle(&mut tx).await {
            Ok(()) => tx.commit().await,
            Err(error) => Err(error),
        };

        assert!(refused.is_err());
    }

    async fn a_snapshot_does_not_see_what_is_written_meanwhile(test: &TestDb) {
        let table = Table::named("cluster").unwrap();
        let mut snapshot = test.db.begin_snapshot().await.unwrap();
        assert_eq!(schema(&mut snapshot).await.unwrap(), schema_known());
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        cluster::create(&mut tx, "cluster", NOON).await.unwrap();
        tx.commit().await.unwrap();

        let seen: Vec<String> = rows(&mut snapshot, table).try_collect().await.unwrap();

        assert_eq!(seen, [] as [String; 0]);
        assert_eq!(read_all(test, table).await.len(), 1);
    }

    async fn a_snapshot_writes_nothing(test: &TestDb) {
        let mut snapshot = test.db.begin_snapshot().await.unwrap();

        assert!(cluster::create(&mut snapshot, "cluster", NOON).await.is_err());
    }

    async fn only_a_migrated_database_without_rows_is_empty(test: &TestDb) {
        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        assert_eq!(occupied(&mut tx).await.unwrap(), None);

        cluster::create(&mut tx, "cluster", NOON).await.unwrap();

        assert_eq!(occupied(&mut tx).await.unwrap(), Some("cluster"));
    }
}

#[test]
fn a_line_that_is_no_row_is_refused() {
    for (table, line) in [
        ("cluster", ""),
        ("cluster", "{"),
        ("log_leaves", "{}"),
        ("log_leaves", r#"{"idx":"0","leaf":"x"}"#),
        ("webhooks", r#"{"id":"a","sealed":"0"}"#),
        ("webhooks", r#"{"id":"a","sealed":"00"}"#),
        ("signing_keys", r#"{"id":"a"}"#),
    ] {
        assert!(look_into(Table::named(table).unwrap(), line).is_err(), "{table} {line}");
    }
}

#[test]
fn what_was_overwritten_is_nothing_to_check() {
    let row = r#"{"id":"a","sealed":"","url":"x"}"#;

    assert!(look_into(Table::named("webhooks").unwrap(), row).unwrap().is_none());
}
