//! Caches and the upstreams whose signatures they honour.
//!
//! Never forgets a name: a deleted cache keeps its row, so its name is never given to another.

use std::collections::HashMap;

use super::dialect::{Dialect, json_list};
use super::{Connection, PageBounds, Result, corrupt, epoch, one_row, page_sql};
use crate::access::{CacheId, CacheName};
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePathHash;
use crate::time::Timestamp;

/// What happens to paths that an upstream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamPaths {
    /// They are stored here like any other.
    Store,
    /// They count as present.
    Skip,
}

impl UpstreamPaths {
    /// The word in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Skip => "skip",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Store, Self::Skip].into_iter().find(|it| it.as_str() == text)
    }
}

/// What happens when a store path is found in a NAR and not claimed as a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndeclaredReferences {
    /// It is recorded.
    Record,
    /// The narinfo is refused.
    Refuse,
}

impl UndeclaredReferences {
    /// The word in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Refuse => "refuse",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Record, Self::Refuse].into_iter().find(|it| it.as_str() == text)
    }
}

/// Another cache, and the keys whose signatures count as evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    pub url: String,
    pub public_keys: Vec<PublicKey>,
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRow {
    pub id: CacheId,
    pub name: CacheName,
    pub public: bool,
    /// `Priority` of `nix-cache-info`.
    pub priority: u32,
    /// Where its objects lie; `storage` reads it.
    pub prefix: String,
    pub upstream_paths: UpstreamPaths,
    pub undeclared_references: UndeclaredReferences,
    /// In the order in which they were given.
    pub upstreams: Vec<Upstream>,
    pub created_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    visibility: String,
    priority: i64,
    prefix: String,
    upstream_paths: String,
    undeclared_references: String,
    created_at: i64,
}

impl Row {
    fn read(self, upstreams: Vec<Upstream>) -> Result<CacheRow> {
        let corrupt = |column| corrupt("caches", column, &self.id);
        let public = match self.visibility.as_str() {
            "public" => true,
            "private" => false,
            _ => return Err(corrupt("visibility")),
        };
        Ok(CacheRow {
            id: self.id.parse().map_err(|_| corrupt("id"))?,
            name: self.name.parse().map_err(|_| corrupt("name"))?,
            public,
            priority: u32::try_from(self.priority).map_err(|_| corrupt("priority"))?,
            upstream_paths: UpstreamPaths::parse(&self.upstream_paths)
                .ok_or_else(|| corrupt("upstream_paths"))?,
            undeclared_references: UndeclaredReferences::parse(&self.undeclared_references)
                .ok_or_else(|| corrupt("undeclared_references"))?,
            prefix: self.prefix,
            upstreams,
            created_at: Timestamp(self.created_at),
        })
    }
}

fn visibility(public: bool) -> &'static str {
    if public { "public" } else { "private" }
}

/// The cache of this name, unless it was deleted.
pub async fn by_name(connection: &mut Connection, name: &CacheName) -> Result<Option<CacheRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, name, visibility, priority, prefix, upstream_paths, undeclared_references, created_at \
         FROM caches WHERE name = $1 AND deleted_at IS NULL",
    )
    .bind(name.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    read_one(connection, row).await
}

/// The cache of this id, unless it was deleted.
pub async fn by_id(connection: &mut Connection, id: CacheId) -> Result<Option<CacheRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, name, visibility, priority, prefix, upstream_paths, undeclared_references, created_at \
         FROM caches WHERE id = $1 AND deleted_at IS NULL",
    )
    .bind(id.to_string())
    .fetch_optional(&mut *connection)
    .await?;
    read_one(connection, row).await
}

/// The cache of this id, also one that was deleted: its objects may still have to be.
pub async fn by_id_even_deleted(connection: &mut Connection, id: CacheId) -> Result<CacheRow> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, name, visibility, priority, prefix, upstream_paths, undeclared_references, created_at \
         FROM caches WHERE id = $1",
    )
    .bind(id.to_string())
    .fetch_optional(&mut *connection)
    .await?;
    let cache = read_one(connection, row).await?;
    cache.ok_or_else(|| corrupt("caches", "id", &id.to_string()))
}

/// A page of the caches that were not deleted, by age.
pub async fn list(connection: &mut Connection, page: &PageBounds) -> Result<Vec<CacheRow>> {
    let rows: Vec<Row> = sqlx::query_as(page_sql!(
        page,
        "SELECT id, name, visibility, priority, prefix, upstream_paths, undeclared_references, created_at \
         FROM caches WHERE deleted_at IS NULL AND",
        "id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .fetch_all(&mut *connection)
    .await?;
    let mut upstreams = upstreams_of(connection, rows.iter().map(|row| &row.id)).await?;
    rows.into_iter()
        .map(|row| {
            let own = upstreams.remove(&row.id).unwrap_or_default();
            row.read(own)
        })
        .collect()
}

/// The prefixes in use: those of deleted caches too, as long as objects may still lie there.
pub async fn prefixes(connection: &mut Connection) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as("SELECT prefix FROM caches").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(prefix,)| prefix).collect())
}

/// The cache that lies at each prefix, deleted ones too. No prefix is ever given twice.
pub async fn owners(connection: &mut Connection) -> Result<HashMap<String, CacheId>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT prefix, id FROM caches").fetch_all(connection).await?;
    rows.into_iter()
        .map(|(prefix, id)| {
            let cache = id.parse().map_err(|_| corrupt("caches", "id", &id))?;
            Ok((prefix, cache))
        })
        .collect()
}

/// Writes a new cache down. [`super::DbError::Duplicate`]: the name was given before.
pub async fn insert(connection: &mut Connection, cache: &CacheRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO caches (id, name, visibility, priority, prefix, upstream_paths, \
         undeclared_references, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(cache.id.to_string())
    .bind(cache.name.as_str())
    .bind(visibility(cache.public))
    .bind(i64::from(cache.priority))
    .bind(&cache.prefix)
    .bind(cache.upstream_paths.as_str())
    .bind(cache.undeclared_references.as_str())
    .bind(cache.created_at.0)
    .execute(&mut *connection)
    .await?;
    insert_upstreams(connection, cache).await
}

/// Writes down what may change of a cache (visibility, priority, upstreams and what is done with them), and has every
/// replica forget what it knows of it.
pub async fn update(connection: &mut Connection, cache: &CacheRow) -> Result<()> {
    let result = sqlx::query(
        "UPDATE caches SET visibility = $2, priority = $3, upstream_paths = $4, undeclared_references = $5 \
         WHERE id = $1 AND deleted_at IS NULL",
    )
    .bind(cache.id.to_string())
    .bind(visibility(cache.public))
    .bind(i64::from(cache.priority))
    .bind(cache.upstream_paths.as_str())
    .bind(cache.undeclared_references.as_str())
    .execute(&mut *connection)
    .await?;
    one_row("caches", result.rows_affected())?;
    sqlx::query("DELETE FROM upstreams WHERE cache_id = $1")
        .bind(cache.id.to_string())
        .execute(&mut *connection)
        .await?;
    insert_upstreams(connection, cache).await?;
    epoch::advance(connection).await
}

/// Marks a cache as deleted, and has every replica forget it. False: it was already.
pub async fn delete(connection: &mut Connection, id: CacheId, now: Timestamp) -> Result<bool> {
    let result = sqlx::query("UPDATE caches SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL")
        .bind(id.to_string())
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    epoch::advance(connection).await?;
    Ok(result.rows_affected() == 1)
}

/// How many paths are published in a cache, and how many bytes their files have.
pub async fn published(connection: &mut Connection, id: CacheId) -> Result<(u64, u64)> {
    let (paths, bytes): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), CAST(COALESCE(SUM(c.file_size), 0) AS BIGINT) \
         FROM paths p JOIN claims c ON c.id = p.claim_id WHERE p.cache_id = $1 AND p.state = 'published'",
    )
    .bind(id.to_string())
    .fetch_one(connection)
    .await?;
    Ok((u64::try_from(paths).unwrap_or(0), u64::try_from(bytes).unwrap_or(0)))
}

/// Paths of a cache that are published or withdrawn, and so hold bytes; at most `limit`.
pub async fn standing_paths(
    connection: &mut Connection,
    id: CacheId,
    limit: i64,
) -> Result<Vec<StorePathHash>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT hash FROM paths WHERE cache_id = $1 AND state IN ('published', 'withdrawn') \
         ORDER BY hash ASC LIMIT $2",
    )
    .bind(id.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|(hash,)| hash.parse().map_err(|_| corrupt("paths", "hash", &hash))).collect()
}

/// Whether some upstream of some cache has a key of this name.
pub async fn upstream_key_exists(connection: &mut Connection, key_name: &str) -> Result<bool> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT public_keys FROM upstreams").fetch_all(connection).await?;
    let named = |key: &str| key.split_once(':').is_some_and(|(name, _)| name == key_name);
    Ok(rows.iter().any(|(keys,)| keys.split(' ').any(named)))
}

async fn read_one(connection: &mut Connection, row: Option<Row>) -> Result<Option<CacheRow>> {
    let Some(row) = row else { return Ok(None) };
    let mut upstreams = upstreams_of(connection, [&row.id]).await?;
    let own = upstreams.remove(&row.id).unwrap_or_default();
    row.read(own).map(Some)
}

async fn insert_upstreams(connection: &mut Connection, cache: &CacheRow) -> Result<()> {
    for (position, upstream) in (0i64..).zip(&cache.upstreams) {
        let keys: Vec<String> = upstream.public_keys.iter().map(PublicKey::to_string).collect();
        sqlx::query("INSERT INTO upstreams (cache_id, position, url, public_keys) VALUES ($1, $2, $3, $4)")
            .bind(cache.id.to_string())
            .bind(position)
            .bind(&upstream.url)
            .bind(keys.join(" "))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The upstreams of these caches, in their order, by the cache's id.
async fn upstreams_of(
    connection: &mut Connection,
    ids: impl IntoIterator<Item = &String>,
) -> Result<HashMap<String, Vec<Upstream>>> {
    let statement = Dialect::of(connection).pick(
        "SELECT cache_id, url, public_keys FROM upstreams \
         WHERE cache_id IN (SELECT json_array_elements_text($1::json)) ORDER BY cache_id, position",
        "SELECT cache_id, url, public_keys FROM upstreams \
         WHERE cache_id IN (SELECT value FROM json_each($1)) ORDER BY cache_id, position",
    );
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(statement).bind(json_list(ids)).fetch_all(connection).await?;
    let mut upstreams: HashMap<String, Vec<Upstream>> = HashMap::new();
    for (cache_id, url, keys) in rows {
        let keys: std::result::Result<Vec<PublicKey>, _> =
            keys.split(' ').filter(|key| !key.is_empty()).map(str::parse).collect();
        let public_keys = keys.map_err(|_| corrupt("upstreams", "public_keys", &cache_id))?;
        upstreams.entry(cache_id).or_default().push(Upstream { url, public_keys });
    }
    Ok(upstreams)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;

    on_each_database! {
        async fn a_cache_is_read_as_it_was_written(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await;
            let bare = CacheRow {
                id: CacheId::new(NOON, [1; 10]),
                name: "bare".parse().unwrap(),
                public: false,
                prefix: String::new(),
                upstream_paths: UpstreamPaths::Skip,
                undeclared_references: UndeclaredReferences::Refuse,
                upstreams: Vec::new(),
                ..cache.clone()
            };
            insert(&mut tx, &bare).await.unwrap();

            assert_eq!(by_name(&mut tx, &cache.name).await.unwrap(), Some(cache.clone()));
            assert_eq!(by_id(&mut tx, bare.id).await.unwrap(), Some(bare.clone()));
            let page = PageBounds { after: None, limit: 10, descending: false };
            let mut expected = [cache, bare];
            expected.sort_by_key(|row| row.id);
            assert_eq!(list(&mut tx, &page).await.unwrap(), expected);
            assert!(upstream_key_exists(&mut tx, "a-1").await.unwrap());
            assert!(!upstream_key_exists(&mut tx, "a").await.unwrap());
        }

        async fn a_change_replaces_the_upstreams(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let mut cache = testing::cache(&mut tx, "main").await;
            cache.upstreams.remove(0);
            cache.public = false;
            cache.priority = 30;

            update(&mut tx, &cache).await.unwrap();

            assert_eq!(by_id(&mut tx, cache.id).await.unwrap(), Some(cache));
        }

        async fn a_deleted_cache_is_gone_but_keeps_its_name_and_place(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await;

            assert!(delete(&mut tx, cache.id, NOON).await.unwrap());
            assert!(!delete(&mut tx, cache.id, NOON).await.unwrap());

            assert_eq!(by_name(&mut tx, &cache.name).await.unwrap(), None);
            assert_eq!(by_id(&mut tx, cache.id).await.unwrap(), None);
            assert_eq!(prefixes(&mut tx).await.unwrap(), ["main"]);
            assert!(matches!(update(&mut tx, &cache).await, Err(DbError::Changed { .. })));
            let page = PageBounds { after: None, limit: 10, descending: true };
            assert_eq!(list(&mut tx, &page).await.unwrap(), []);
            let again = CacheRow { id: CacheId::new(NOON, [1; 10]), ..cache };
            assert!(matches!(insert(&mut tx, &again).await, Err(DbError::Duplicate)));
        }

        async fn an_empty_cache_holds_nothing(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await;

            assert_eq!(published(&mut tx, cache.id).await.unwrap(), (0, 0));
            assert_eq!(standing_paths(&mut tx, cache.id, 10).await.unwrap(), []);
        }
    }
}
