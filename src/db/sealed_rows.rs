//! Rows that hold a record sealed with a key-encryption key (KEK), whatever they are: keys and webhooks. Never sees
//! what is sealed.
//!
//! A record names its KEK in its header and the row does in a column; where the two differ, or where the record cannot
//! be read, the row is handed out as damaged, so that one such row is in nobody's way.

use std::collections::BTreeSet;

use super::signing_keys;
use super::{Connection, DbError, Result, webhooks};
use crate::vault::{Sealed, SealedKey, SealedWebhook};

/// A row whose record is not sealed with the KEK that was asked for.
#[derive(Debug)]
pub struct SealedRow {
    pub id: String,
    /// What to call it: the name of a key, the id of a webhook.
    pub name: String,
    pub content: SealedContent,
}

/// What is in such a row.
#[derive(Debug)]
pub enum SealedContent {
    /// It cannot be read.
    Damaged(DbError),
    /// A key that was destroyed, or whose secret a lost database had: nothing is left to open.
    Destroyed(Sealed),
    Key(Box<SealedKey>),
    Webhook(SealedWebhook),
}

/// Keys whose record is not one of KEK `kek_version`, after the id `after`, at most `limit`.
pub async fn keys_not_under(
    connection: &mut Connection,
    kek_version: u32,
    after: &str,
    limit: i64,
) -> Result<Vec<SealedRow>> {
    let rows: Vec<signing_keys::Row> = sqlx::query_as(
        "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, imported_at, \
         created_at FROM signing_keys WHERE id > $3 AND (kek_version <> $1 OR substr(sealed, 1, 6) <> $2) \
         ORDER BY id ASC LIMIT $4",
    )
    .bind(i64::from(kek_version))
    .bind(&Sealed::header(kek_version)[..])
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(key).collect())
}

fn key(row: signing_keys::Row) -> SealedRow {
    let (id, name) = (row.id.clone(), row.name.clone());
    let content = match row.read() {
        Err(error) => SealedContent::Damaged(error),
        Ok(row) if row.is_erased() && !row.state.may_sign() => SealedContent::Destroyed(row.key.sealed),
        Ok(row) => SealedContent::Key(Box::new(row.key)),
    };
    SealedRow { id, name, content }
}

/// The same of webhooks, also of those that were removed and whose rows are still there.
pub async fn webhooks_not_under(
    connection: &mut Connection,
    kek_version: u32,
    after: &str,
    limit: i64,
) -> Result<Vec<SealedRow>> {
    let rows: Vec<(String, Vec<u8>, i64)> = sqlx::query_as(
        "SELECT id, sealed, kek_version FROM webhooks \
         WHERE id > $3 AND (kek_version <> $1 OR substr(sealed, 1, 6) <> $2) ORDER BY id ASC LIMIT $4",
    )
    .bind(i64::from(kek_version))
    .bind(&Sealed::header(kek_version)[..])
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let webhook = |(id, sealed, kek_version): (String, Vec<u8>, i64)| {
        let content = match webhooks::secret(id.clone(), &sealed, kek_version) {
            Ok(secret) => SealedContent::Webhook(secret),
            Err(error) => SealedContent::Damaged(error),
        };
        SealedRow { name: id.clone(), id, content }
    };
    Ok(rows.into_iter().map(webhook).collect())
}

/// Puts `after` in the place of a key's record. False: the row is not as it was any more.
pub async fn rewrap_key(
    connection: &mut Connection,
    id: &str,
    before: &Sealed,
    after: &Sealed,
) -> Result<bool> {
    const STATEMENT: &str = "UPDATE signing_keys SET sealed = $4, kek_version = $5 WHERE id = $1 AND sealed = $2 AND kek_version = $3";
    rewrap(connection, STATEMENT, id, before, after).await
}

/// The same of a webhook.
pub async fn rewrap_webhook(
    connection: &mut Connection,
    id: &str,
    before: &Sealed,
    after: &Sealed,
) -> Result<bool> {
    const STATEMENT: &str = "UPDATE webhooks SET sealed = $4, kek_version = $5 WHERE id = $1 AND sealed = $2 AND kek_version = $3";
    rewrap(connection, STATEMENT, id, before, after).await
}

async fn rewrap(
    connection: &mut Connection,
    statement: &'static str,
    id: &str,
    before: &Sealed,
    after: &Sealed,
) -> Result<bool> {
    let result = sqlx::query(statement)
        .bind(id)
        .bind(before.as_bytes())
        .bind(i64::from(before.kek_version()))
        .bind(after.as_bytes())
        .bind(i64::from(after.kek_version()))
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// How many rows have a record that is not one of KEK `kek_version`.
pub async fn count_not_under(connection: &mut Connection, kek_version: u32) -> Result<i64> {
    let (keys, webhooks): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT COUNT(*) FROM signing_keys WHERE kek_version <> $1 OR substr(sealed, 1, 6) <> $2), \
         (SELECT COUNT(*) FROM webhooks WHERE kek_version <> $1 OR substr(sealed, 1, 6) <> $2)",
    )
    .bind(i64::from(kek_version))
    .bind(&Sealed::header(kek_version)[..])
    .fetch_one(connection)
    .await?;
    Ok(keys + webhooks)
}

/// Every KEK that a row names, in its record or in its column: while it is in here, it must not go.
pub async fn keks_in_use(connection: &mut Connection) -> Result<BTreeSet<u32>> {
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT kek_version, substr(sealed, 3, 4) FROM signing_keys \
         UNION SELECT kek_version, substr(sealed, 3, 4) FROM webhooks",
    )
    .fetch_all(connection)
    .await?;
    let named = |(column, header): (i64, Vec<u8>)| {
        let header = <[u8; 4]>::try_from(header.as_slice()).ok().map(u32::from_be_bytes);
        [u32::try_from(column).ok(), header].into_iter().flatten()
    };
    Ok(rows.into_iter().flat_map(named).collect())
}

/// Writes a record over that of a key, as somebody with the database in hand could.
#[cfg(test)]
pub(crate) async fn overwrite(connection: &mut Connection, key_name: &str, sealed: &[u8], kek_version: i64) {
    sqlx::query("UPDATE signing_keys SET sealed = $2, kek_version = $3 WHERE name = $1")
        .bind(key_name)
        .bind(sealed)
        .bind(kek_version)
        .execute(connection)
        .await
        .unwrap();
}

#[cfg(test)]
mod tests {
    use super::super::Gate;
    use super::super::signing_keys::KeyState;
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::super::webhooks::WebhookRow;
    use super::*;
    use crate::vault::Purpose;

    fn record(kek_version: u32, byte: u8) -> Sealed {
        let mut bytes = vec![byte; 78];
        bytes[..6].copy_from_slice(&Sealed::header(kek_version));
        Sealed::parse(&bytes).unwrap()
    }

    async fn webhook(connection: &mut Connection, id: &str) {
        let row = WebhookRow {
            url: "https://hooks.example".to_owned(),
            events: Vec::new(),
            note: None,
            secret: SealedWebhook { id: id.to_owned(), sealed: record(1, 7) },
            paused_at: None,
            created_at: NOON,
        };
        webhooks::insert(connection, &row).await.unwrap();
    }

    fn names(rows: &[SealedRow]) -> Vec<&str> {
        rows.iter().map(|row| row.name.as_str()).collect()
    }

    on_each_database! {
        async fn rows_of_another_kek_are_listed_page_by_page(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let mut keys = Vec::new();
            for name in ["one", "two", "three"] {
                keys.push(testing::key(&mut tx, Purpose::Log, None, name, KeyState::Active).await.key);
            }
            webhook(&mut tx, "hook-1").await;
            webhook(&mut tx, "hook-2").await;
            assert_eq!(count_not_under(&mut tx, 1).await.unwrap(), 0);
            assert_eq!(count_not_under(&mut tx, 2).await.unwrap(), 5);

            let page = keys_not_under(&mut tx, 2, "", 2).await.unwrap();
            assert_eq!(page.len(), 2);
            let rest = keys_not_under(&mut tx, 2, &page[1].id, 2).await.unwrap();
            assert_eq!(rest.len(), 1);
            assert_eq!(names(&webhooks_not_under(&mut tx, 2, "hook-1", 9).await.unwrap()), ["hook-2"]);

            let first = &keys[0];
            assert!(rewrap_key(&mut tx, &first.label.id, &first.sealed, &record(2, 1)).await.unwrap());
            assert!(rewrap_webhook(&mut tx, "hook-1", &record(1, 7), &record(2, 8)).await.unwrap());
            assert_eq!(count_not_under(&mut tx, 2).await.unwrap(), 3);
            assert_eq!(keks_in_use(&mut tx).await.unwrap(), BTreeSet::from([1, 2]));
        }

        async fn a_row_that_changed_meanwhile_is_left_alone(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let key = testing::key(&mut tx, Purpose::Log, None, "log", KeyState::Active).await.key;
            webhook(&mut tx, "hook").await;
            signing_keys::overwrite_sealed(&mut tx, &key.label.id, &key.sealed.erased()).await.unwrap();

            assert!(!rewrap_key(&mut tx, &key.label.id, &key.sealed, &record(2, 1)).await.unwrap());
            assert!(!rewrap_webhook(&mut tx, "hook", &record(1, 8), &record(2, 1)).await.unwrap());
            assert!(!rewrap_webhook(&mut tx, "gone", &record(1, 7), &record(2, 1)).await.unwrap());
        }

        async fn a_row_that_contradicts_itself_is_damaged_and_holds_both_keks(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            for (name, sealed, kek_version) in [
                ("column-later", record(1, 1).as_bytes().to_vec(), 2),
                ("column-earlier", record(2, 1).as_bytes().to_vec(), 1),
                ("cut", vec![1, 1, 0], 2),
                ("format", [&[9, 9, 0, 0, 0, 2][..], &[0; 72]].concat(), 2),
            ] {
                testing::key(&mut tx, Purpose::Log, None, name, KeyState::Active).await;
                overwrite(&mut tx, name, &sealed, kek_version).await;

                let found = keys_not_under(&mut tx, 2, "", 9).await.unwrap();
                let row = found.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name} is left out"));
                assert!(matches!(row.content, SealedContent::Damaged(_)), "{name}: {row:?}");
            }
            assert_eq!(keks_in_use(&mut tx).await.unwrap(), BTreeSet::from([1, 2]));
        }

        async fn a_destroyed_key_is_told_from_one_whose_record_was_wiped(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            for (name, state) in [("wiped", KeyState::Active), ("destroyed", KeyState::Destroyed)] {
                let key = testing::key(&mut tx, Purpose::Log, None, name, state).await.key;
                signing_keys::overwrite_sealed(&mut tx, &key.label.id, &key.sealed.erased()).await.unwrap();
            }

            for row in keys_not_under(&mut tx, 2, "", 9).await.unwrap() {
                let destroyed = matches!(row.content, SealedContent::Destroyed(_));
                assert_eq!(destroyed, row.name == "destroyed", "{row:?}");
            }
        }
    }
}
