//! Statements about keys that are published: which key comes after which, and which root keys there are. Notes as texts;
//! never reads what they say, never changes one.

use super::{Connection, Result};
use crate::access::CacheId;
use crate::time::Timestamp;

/// Whose root keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootsOf {
    /// One cache's own.
    Cache(CacheId),
    /// Those of all caches that have none of their own.
    Server,
}

impl RootsOf {
    fn column(self) -> String {
        match self {
            Self::Cache(id) => id.to_string(),
            Self::Server => "server".to_owned(),
        }
    }
}

/// A statement and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteRow {
    pub id: String,
    /// The number of a succession, the version of a set of root keys.
    pub number: i64,
    /// The signed note.
    pub note: String,
    pub created_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    number: i64,
    note: String,
    created_at: i64,
}

impl From<Row> for NoteRow {
    fn from(row: Row) -> Self {
        let Row { id, number, note, created_at } = row;
        Self { id, number, note, created_at: Timestamp(created_at) }
    }
}

/// Every succession of a cache, from the first on.
pub async fn of_cache(connection: &mut Connection, cache: CacheId) -> Result<Vec<NoteRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, seq AS number, note, created_at FROM key_successions WHERE cache_id = $1 ORDER BY seq ASC",
    )
    .bind(cache.to_string())
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(NoteRow::from).collect())
}

/// The number of the newest succession of a cache; 0 before the first.
pub async fn head(connection: &mut Connection, cache: CacheId) -> Result<i64> {
    let (head,): (i64,) =
        sqlx::query_as("SELECT COALESCE(MAX(seq), 0) FROM key_successions WHERE cache_id = $1")
            .bind(cache.to_string())
            .fetch_one(connection)
            .await?;
    Ok(head)
}

/// Writes a succession down. [`super::DbError::Duplicate`]: the number was given before.
pub async fn insert(connection: &mut Connection, cache: CacheId, row: &NoteRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO key_successions (id, cache_id, seq, note, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&row.id)
    .bind(cache.to_string())
    .bind(row.number)
    .bind(&row.note)
    .bind(row.created_at.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Every set of root keys, from the first version on.
pub async fn roots(connection: &mut Connection, of: RootsOf) -> Result<Vec<NoteRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, version AS number, note, created_at FROM key_roots WHERE scope = $1 ORDER BY version ASC",
    )
    .bind(of.column())
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(NoteRow::from).collect())
}

/// Writes a set of root keys down. [`super::DbError::Duplicate`]: the version was given before.
pub async fn insert_roots(connection: &mut Connection, of: RootsOf, row: &NoteRow) -> Result<()> {
    sqlx::query("INSERT INTO key_roots (id, scope, version, note, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(&row.id)
        .bind(of.column())
        .bind(row.number)
        .bind(&row.note)
        .bind(row.created_at.0)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;

    fn row(number: i64, id: &str) -> NoteRow {
        NoteRow { id: id.to_owned(), number, note: format!("note {number}\n"), created_at: NOON }
    }

    on_each_database! {
        async fn successions_are_read_in_their_order_and_each_number_is_given_once(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            let other = testing::cache(&mut tx, "other").await.id;
            assert_eq!(head(&mut tx, cache).await.unwrap(), 0);

            for (number, id) in [(2, "a"), (1, "b"), (3, "c")] {
                insert(&mut tx, cache, &row(number, id)).await.unwrap();
            }
            insert(&mut tx, other, &row(1, "d")).await.unwrap();

            assert_eq!(of_cache(&mut tx, cache).await.unwrap(), [row(1, "b"), row(2, "a"), row(3, "c")]);
            assert_eq!(head(&mut tx, cache).await.unwrap(), 3);
            assert_eq!(head(&mut tx, other).await.unwrap(), 1);
            assert!(matches!(insert(&mut tx, cache, &row(3, "e")).await, Err(DbError::Duplicate)));
        }

        async fn root_keys_are_a_caches_or_the_servers(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let own = RootsOf::Cache(testing::cache(&mut tx, "main").await.id);
            insert_roots(&mut tx, own, &row(1, "a")).await.unwrap();
            insert_roots(&mut tx, own, &row(2, "b")).await.unwrap();
            insert_roots(&mut tx, RootsOf::Server, &row(1, "c")).await.unwrap();

            assert_eq!(roots(&mut tx, own).await.unwrap(), [row(1, "a"), row(2, "b")]);
            assert_eq!(roots(&mut tx, RootsOf::Server).await.unwrap(), [row(1, "c")]);
            let again = insert_roots(&mut tx, RootsOf::Server, &row(1, "d")).await;
            assert!(matches!(again, Err(DbError::Duplicate)));
        }
    }
}
