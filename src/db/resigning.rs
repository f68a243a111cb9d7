//! What is signed by which key, and what signs again, drops and accounts for signatures asks of the rows.
//!
//! Never decides what is signed: it lists, in the order of the log.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, with_json_rows};
use super::{Connection, PageBounds, Result, corrupt, page_sql};
use crate::access::CacheId;
use crate::nix::store_path::StorePathHash;
use crate::time::Timestamp;

/// A published path that a key has not signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    /// The index of a leaf of its signatures.
    pub index: i64,
    pub path_id: String,
    pub hash: StorePathHash,
}

/// The published paths of a cache that a key has not signed, by the leaves of their signatures after `after`, at most
/// `limit` leaves. A path with several comes several times.
pub async fn unsigned(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<Unsigned>> {
    // CROSS JOIN: SQLite would begin at the paths, and sort all of them for each batch.
    let rows: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT l.idx, p.id, p.hash FROM log_leaves l CROSS JOIN paths p WHERE p.id = l.path_id \
         AND l.idx > $1 AND l.event IN ('sign', 'resign') AND p.cache_id = $2 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.key_name = $3) \
         ORDER BY l.idx ASC LIMIT $4",
    )
    .bind(after)
    .bind(cache.to_string())
    .bind(key_name)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |(index, path_id, hash): (i64, String, String)| {
        let hash = hash.parse().map_err(|_| corrupt("paths", "hash", &path_id))?;
        Ok(Unsigned { index, path_id, hash })
    };
    rows.into_iter().map(read).collect()
}

/// The published paths of a cache that a key has not signed, whatever the log knows of them, by their ids after `after`,
/// at most `limit`.
pub async fn lacking(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, StorePathHash)>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT p.id, p.hash FROM paths p WHERE p.cache_id = $1 AND p.id > $2 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.key_name = $3) \
         ORDER BY p.id ASC LIMIT $4",
    )
    .bind(cache.to_string())
    .bind(after)
    .bind(key_name)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |(id, hash): (String, String)| {
        let hash = hash.parse().map_err(|_| corrupt("paths", "hash", &id))?;
        Ok((id, hash))
    };
    rows.into_iter().map(read).collect()
}

/// How many published paths of a cache a key has not signed.
pub async fn unsigned_count(connection: &mut Connection, cache: CacheId, key_name: &str) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM paths p WHERE p.cache_id = $1 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.key_name = $2)",
    )
    .bind(cache.to_string())
    .bind(key_name)
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// A signature of a key, on whatever claim.
#[derive(Debug, Clone)]
pub struct SignedClaim {
    pub claim_id: String,
    pub path_id: String,
    pub hash: StorePathHash,
    /// Whether the claim is the one that is published at its path.
    pub is_served: bool,
}

/// What a key has signed, in the order of the log, at most `limit`.
pub async fn signed_by(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    limit: i64,
) -> Result<Vec<SignedClaim>> {
    signed(connection, cache, key_name, "none", limit).await
}

/// The same, without what is withdrawn.
pub async fn signed_by_but_withdrawn(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    limit: i64,
) -> Result<Vec<SignedClaim>> {
    signed(connection, cache, key_name, "withdrawn", limit).await
}

async fn signed(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    but: &str,
    limit: i64,
) -> Result<Vec<SignedClaim>> {
    let rows: Vec<(String, String, String, String, String)> = sqlx::query_as(
        "SELECT s.claim_id, p.id, p.hash, p.state, p.claim_id FROM signatures s \
         JOIN claims c ON c.id = s.claim_id JOIN paths p ON p.id = c.path_id \
         WHERE s.key_name = $1 AND p.cache_id = $2 AND p.state <> $3 \
         ORDER BY s.leaf ASC, s.claim_id ASC LIMIT $4",
    )
    .bind(key_name)
    .bind(cache.to_string())
    .bind(but)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |(claim_id, path_id, hash, state, standing): (String, String, String, String, String)| {
        let hash = hash.parse().map_err(|_| corrupt("paths", "hash", &path_id))?;
        let is_served = state == "published" && standing == claim_id;
        Ok(SignedClaim { claim_id, path_id, hash, is_served })
    };
    rows.into_iter().map(read).collect()
}

/// How many claims of a cache a key has signed.
pub async fn signed_count(connection: &mut Connection, cache: CacheId, key_name: &str) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM signatures s JOIN claims c ON c.id = s.claim_id \
         JOIN paths p ON p.id = c.path_id WHERE s.key_name = $1 AND p.cache_id = $2",
    )
    .bind(key_name)
    .bind(cache.to_string())
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// How many published paths of a cache carry the signature of this key, and of no other key of the cache that is to be
/// trusted.
pub async fn signed_alone_count(connection: &mut Connection, cache: CacheId, key_name: &str) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM signatures s JOIN claims c ON c.id = s.claim_id \
         JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE s.key_name = $1 AND p.cache_id = $2 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures o JOIN signing_keys k ON k.name = o.key_name \
         WHERE o.claim_id = s.claim_id AND o.key_name <> $1 AND k.cache_id = $2 \
         AND k.state NOT IN ('compromised', 'destroyed'))",
    )
    .bind(key_name)
    .bind(cache.to_string())
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// Takes the signatures of a key off the claims that are not served: with no other one they are not published again.
pub async fn remove_unserved_signatures(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
) -> Result<()> {
    sqlx::query(
        "DELETE FROM signatures WHERE key_name = $2 AND claim_id IN (SELECT c.id FROM claims c \
         JOIN paths p ON p.id = c.path_id WHERE p.cache_id = $1 \
         AND (p.state <> 'published' OR p.claim_id <> c.id))",
    )
    .bind(cache.to_string())
    .bind(key_name)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes the signatures of a key off these claims.
pub async fn remove_signatures(
    connection: &mut Connection,
    key_name: &str,
    claims: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<()> {
    let statement = Dialect::of(connection).pick(
        "DELETE FROM signatures WHERE key_name = $1 \
         AND claim_id IN (SELECT json_array_elements_text($2::json))",
        "DELETE FROM signatures WHERE key_name = $1 AND claim_id IN (SELECT value FROM json_each($2))",
    );
    sqlx::query(statement).bind(key_name).bind(json_list(claims)).execute(connection).await?;
    Ok(())
}

/// The leaves at these indices.
pub async fn leaves_at(
    connection: &mut Connection,
    indices: impl IntoIterator<Item = i64>,
) -> Result<HashMap<i64, String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT idx, leaf FROM log_leaves \
         WHERE idx IN (SELECT CAST(value AS BIGINT) FROM json_array_elements_text($1::json) AS v (value))",
        "SELECT idx, leaf FROM log_leaves WHERE idx IN (SELECT value FROM json_each($1))",
    );
    let indices: Vec<i64> = indices.into_iter().collect();
    let rows: Vec<(i64, String)> =
        sqlx::query_as(statement).bind(json!(indices).to_string()).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// The index of the last leaf that put a signature on each of these paths.
pub async fn last_signatures(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<HashMap<String, i64>> {
    let statement = Dialect::of(connection).pick(
        "SELECT path_id, MAX(idx) FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT json_array_elements_text($1::json)) GROUP BY path_id",
        "SELECT path_id, MAX(idx) FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT value FROM json_each($1)) GROUP BY path_id",
    );
    let rows: Vec<(String, i64)> =
        sqlx::query_as(statement).bind(json_list(path_ids)).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// The leaves of signatures on these paths: path and leaf.
pub async fn path_leaves(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<(String, String)>> {
    let statement = Dialect::of(connection).pick(
        "SELECT path_id, leaf FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT json_array_elements_text($1::json))",
        "SELECT path_id, leaf FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT value FROM json_each($1))",
    );
    Ok(sqlx::query_as(statement).bind(json_list(path_ids)).fetch_all(connection).await?)
}

/// The leaves of realisations whose outputs are these paths: path and leaf.
pub async fn realisation_leaves(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<(String, String)>> {
    let statement = Dialect::of(connection).pick(
        "SELECT path_id, leaf FROM log_leaves WHERE event = 'realisation' \
         AND path_id IN (SELECT json_array_elements_text($1::json))",
        "SELECT path_id, leaf FROM log_leaves WHERE event = 'realisation' \
         AND path_id IN (SELECT value FROM json_each($1))",
    );
    Ok(sqlx::query_as(statement).bind(json_list(path_ids)).fetch_all(connection).await?)
}

/// A realisation, as it is signed.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RealisationRow {
    pub id: String,
    pub object: String,
    /// The hash of its output's path.
    pub output_hash: String,
    pub body: String,
    /// `name:base64`, separated by spaces.
    pub signatures: String,
    /// The quarantine that voids it.
    pub void_by: Option<String>,
}

/// Realisations of a cache after the id `after`, at most `limit`, oldest first.
pub async fn realisations(
    connection: &mut Connection,
    cache: CacheId,
    after: &str,
    limit: i64,
) -> Result<Vec<RealisationRow>> {
    let rows = sqlx::query_as(
        "SELECT id, object, output_hash, body, signatures, void_by FROM realisations \
         WHERE cache_id = $1 AND id > $2 ORDER BY id ASC LIMIT $3",
    )
    .bind(cache.to_string())
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Which realisations are asked for.
#[derive(Debug, Clone, Copy)]
pub struct RealisationsBy<'a> {
    pub key_name: &'a str,
    /// Whether the key has signed them.
    pub signed: bool,
    /// Whether they are served: they count, and their outputs are published.
    pub served: bool,
}

/// Those of a cache's realisations after the id `after`, at most `limit`, oldest first.
pub async fn realisations_by(
    connection: &mut Connection,
    cache: CacheId,
    asked: RealisationsBy<'_>,
    after: &str,
    limit: i64,
) -> Result<Vec<RealisationRow>> {
    macro_rules! select {
        ($position:literal) => {
            concat!(
                "SELECT r.id, r.object, r.output_hash, r.body, r.signatures, r.void_by FROM realisations r \
                 WHERE r.cache_id = $1 AND r.id > $2 AND CASE WHEN ",
                $position,
                "(' ' || r.signatures, $3) > 0 THEN 1 ELSE 0 END = $4 \
                 AND CASE WHEN r.void_by IS NULL AND EXISTS (SELECT 1 FROM paths p \
                 WHERE p.cache_id = r.cache_id AND p.hash = r.output_hash AND p.state = 'published') \
                 THEN 1 ELSE 0 END = $5 ORDER BY r.id ASC LIMIT $6"
            )
        };
    }
    let statement = Dialect::of(connection).pick(select!("strpos"), select!("instr"));
    let rows = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(after)
        .bind(format!(" {}:", asked.key_name))
        .bind(i64::from(asked.signed))
        .bind(i64::from(asked.served))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// How many realisations that are served a key has not signed.
pub async fn unsigned_realisation_count(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
) -> Result<i64> {
    let statement = Dialect::of(connection).pick(
        "SELECT COUNT(*) FROM realisations r JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND r.void_by IS NULL AND p.state = 'published' \
         AND strpos(' ' || r.signatures, $2) = 0",
        "SELECT COUNT(*) FROM realisations r JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND r.void_by IS NULL AND p.state = 'published' \
         AND instr(' ' || r.signatures, $2) = 0",
    );
    let (count,): (i64,) = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(format!(" {key_name}:"))
        .fetch_one(connection)
        .await?;
    Ok(count)
}

/// Those of these objects that are realisations which are served.
pub async fn served_realisations(
    connection: &mut Connection,
    cache: CacheId,
    objects: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<RealisationRow>> {
    let statement = Dialect::of(connection).pick(
        "SELECT r.id, r.object, r.output_hash, r.body, r.signatures, r.void_by FROM realisations r \
         JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND r.void_by IS NULL AND p.state = 'published' \
         AND r.object IN (SELECT json_array_elements_text($2::json))",
        "SELECT r.id, r.object, r.output_hash, r.body, r.signatures, r.void_by FROM realisations r \
         JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND r.void_by IS NULL AND p.state = 'published' \
         AND r.object IN (SELECT value FROM json_each($2))",
    );
    let rows = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(objects))
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// How many realisations a cache has.
pub async fn realisation_count(connection: &mut Connection, cache: CacheId) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM realisations WHERE cache_id = $1")
        .bind(cache.to_string())
        .fetch_one(connection)
        .await?;
    Ok(count)
}

/// Puts other signatures on a realisation. False: it was removed, or somebody else has just done so.
pub async fn sign_realisation(
    connection: &mut Connection,
    row: &RealisationRow,
    signatures: &str,
) -> Result<bool> {
    let result = sqlx::query("UPDATE realisations SET signatures = $2 WHERE id = $1 AND signatures = $3")
        .bind(&row.id)
        .bind(signatures)
        .bind(&row.signatures)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// Removes a realisation.
pub async fn remove_realisation(connection: &mut Connection, id: &str) -> Result<()> {
    sqlx::query("DELETE FROM realisations WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}

/// How many narinfos and realisations of a cache that were wanted by this moment still wait for storage.
pub async fn waiting_for_storage(
    connection: &mut Connection,
    cache: CacheId,
    wanted_by: Timestamp,
) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM outbox WHERE cache_id = $1 AND kind IN ('narinfo', 'realisation') \
         AND enqueued_at <= $2",
    )
    .bind(cache.to_string())
    .bind(wanted_by.0)
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// A signature under the name of a key of ours that no leaf accounts for.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct UnloggedRow {
    pub id: String,
    pub key_name: String,
    /// `rows` or `storage`.
    pub place: String,
    /// The path's base name, or the object of a realisation.
    pub subject: String,
    /// `name:base64`.
    pub signature: String,
    pub found_at: i64,
}

/// Writes such signatures down, each once.
pub async fn insert_unlogged(
    connection: &mut Connection,
    cache: CacheId,
    rows: &[UnloggedRow],
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = with_json_rows!(
        connection,
        "INSERT INTO unlogged_signatures (id, cache_id, key_name, place, subject, signature, found_at) \
         SELECT r.value ->> 'id', $2, r.value ->> 'key', r.value ->> 'place', r.value ->> 'subject', \
         r.value ->> 'signature', CAST(r.value ->> 'found_at' AS BIGINT)",
        "$1",
        "WHERE TRUE ON CONFLICT (key_name, place, subject, signature) DO NOTHING"
    );
    let rows = rows.iter().map(|row| {
        json!({
            "id": row.id, "key": row.key_name, "place": row.place, "subject": row.subject,
            "signature": row.signature, "found_at": row.found_at,
        })
    });
    sqlx::query(statement)
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .bind(cache.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// A page of the signatures under a key's name that no leaf accounts for.
pub async fn unlogged(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    page: &PageBounds,
) -> Result<Vec<UnloggedRow>> {
    let rows = sqlx::query_as(page_sql!(
        page,
        "SELECT id, key_name, place, subject, signature, found_at FROM unlogged_signatures \
         WHERE cache_id = $3 AND key_name = $4 AND",
        "id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .bind(cache.to_string())
    .bind(key_name)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
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
}
