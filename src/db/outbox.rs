//! Objects that storage does not hold yet as the rows say.
//!
//! A row names an object, never its text: whoever holds the lease renders it from the rows as they are
//! at that moment. A lease that ended by expiry leaves the row to be done once more, after the last
//! moment at which the stalled holder's write can still land.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, with_json_rows};
use super::{Connection, Result, corrupt};
use crate::access::CacheId;
use crate::nix::store_path::StorePathHash;
use crate::time::Timestamp;

/// What is done for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxKind {
    /// Write or delete a listing, log or debug-info link.
    Auxiliary,
    /// Write or delete a cache's `nix-cache-info`.
    CacheInfo,
    /// Write or delete a cache's statements about its keys.
    KeySuccession,
    /// Delete a condemned NAR.
    Nar,
    /// Write or delete a narinfo.
    NarInfo,
    /// Write or delete a build trace entry.
    Realisation,
}

impl OutboxKind {
    const ALL: [Self; 6] =
        [Self::Auxiliary, Self::CacheInfo, Self::KeySuccession, Self::Nar, Self::NarInfo, Self::Realisation];

    fn as_str(self) -> &'static str {
        match self {
            Self::Auxiliary => "auxiliary",
            Self::CacheInfo => "cache-info",
            Self::KeySuccession => "key-succession",
            Self::Nar => "nar",
            Self::NarInfo => "narinfo",
            Self::Realisation => "realisation",
        }
    }
}

/// A leased row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    pub object: String,
    pub kind: OutboxKind,
    pub cache_id: String,
    pub subject: String,
    pub generation: i64,
    pub attempts: i64,
    pub lease_until: Timestamp,
}

/// Who holds leases, for how long, and how long a write of theirs may land after it was given up.
#[derive(Debug, Clone)]
pub struct LeaseTerms {
    pub owner: String,
    pub lease_millis: i64,
    pub attempt_millis_max: i64,
}

/// An object, and what it is rendered from.
#[derive(Debug, Clone)]
pub struct Wish {
    pub object: String,
    pub kind: OutboxKind,
    pub subject: String,
}

/// Asks for objects to be brought in line with the rows, each of them once. With `terms`, takes the lease for each
/// at once unless the object waits already: then whoever comes first does it.
pub async fn enqueue(
    connection: &mut Connection,
    wishes: &[Wish],
    cache: CacheId,
    terms: Option<&LeaseTerms>,
    now: Timestamp,
) -> Result<Vec<Option<Leased>>> {
    let statement = with_json_rows!(
        connection,
        "INSERT INTO outbox (object, kind, cache_id, subject, generation, not_before, lease_owner, \
         lease_until, attempts, enqueued_at) SELECT r.value ->> 'object', r.value ->> 'kind', $2, \
         r.value ->> 'subject', 1, CAST(r.value ->> 'now' AS BIGINT), r.value ->> 'owner', \
         CAST(r.value ->> 'until' AS BIGINT), 0, CAST(r.value ->> 'now' AS BIGINT)",
        "$1",
        "WHERE TRUE ON CONFLICT (object) DO UPDATE SET generation = outbox.generation + 1, \
         kind = excluded.kind, subject = excluded.subject, not_before = excluded.not_before, attempts = 0 \
         RETURNING object, kind, cache_id, subject, generation, attempts, lease_until"
    );
    let lease_until = terms.map(|terms| now.plus_millis(terms.lease_millis).0);
    let owner = terms.map(|terms| &terms.owner);
    let rows = wishes.iter().map(|Wish { object, kind, subject }| {
        json!({
            "object": object, "kind": kind.as_str(), "subject": subject,
            "now": now.0, "owner": owner, "until": lease_until,
        })
    });
    let rows: Vec<Row> = sqlx::query_as(statement)
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .bind(cache.to_string())
        .fetch_all(connection)
        .await?;
    // A row that stood there keeps its lease, if it had one, and counts on from another generation.
    let fresh = rows.into_iter().filter(|row| row.generation == 1 && terms.is_some());
    let mut leased: HashMap<_, _> = fresh.map(|row| (row.object.clone(), row.read())).collect();
    Ok(wishes.iter().map(|wish| leased.remove(&wish.object).flatten()).collect())
}

#[derive(sqlx::FromRow)]
struct Row {
    object: String,
    kind: String,
    cache_id: String,
    subject: String,
    generation: i64,
    attempts: i64,
    lease_until: Option<i64>,
}

impl Row {
    fn read(self) -> Option<Leased> {
        let kind = OutboxKind::ALL.into_iter().find(|kind| kind.as_str() == self.kind)?;
        Some(Leased {
            object: self.object,
            kind,
            cache_id: self.cache_id,
            subject: self.subject,
            generation: self.generation,
            attempts: self.attempts,
            lease_until: Timestamp(self.lease_until?),
        })
    }
}

macro_rules! lease_sql {
    ($objects:literal, $skip:literal) => {
        concat!(
            "UPDATE outbox SET redo_at = CASE WHEN lease_until IS NOT NULL THEN $4 \
             WHEN redo_at <= $5 THEN NULL ELSE redo_at END, \
             lease_owner = $2, lease_until = $3, attempts = attempts + 1 \
             WHERE object IN (SELECT object FROM outbox WHERE object IN (",
            $objects,
            ") AND not_before <= $5 AND (lease_until IS NULL OR lease_until < $5)",
            $skip,
            ") RETURNING object, kind, cache_id, subject, generation, attempts, lease_until"
        )
    };
}

/// Leases named rows, as far as they are due and free. One that somebody changes at this moment is not waited for.
pub async fn lease(
    connection: &mut Connection,
    objects: impl IntoIterator<Item = impl AsRef<str>>,
    terms: &LeaseTerms,
    now: Timestamp,
) -> Result<Vec<Leased>> {
    let statement = Dialect::of(connection).pick(
        lease_sql!("SELECT json_array_elements_text($1::json)", " FOR UPDATE SKIP LOCKED"),
        lease_sql!("SELECT value FROM json_each($1)", ""),
    );
    let rows: Vec<Row> = sqlx::query_as(statement)
        .bind(json_list(objects))
        .bind(&terms.owner)
        .bind(now.plus_millis(terms.lease_millis).0)
        .bind(now.plus_millis(terms.attempt_millis_max).0)
        .bind(now.0)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().filter_map(Row::read).collect())
}

/// An object that is due and free.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Due {
    pub object: String,
    pub cache_id: String,
}

/// Objects that are due and free, oldest first.
pub async fn due(connection: &mut Connection, now: Timestamp, limit: i64) -> Result<Vec<Due>> {
    let rows = sqlx::query_as(
        "SELECT object, cache_id FROM outbox WHERE not_before <= $1 AND (lease_until IS NULL OR lease_until < $1) \
         ORDER BY not_before ASC, enqueued_at ASC LIMIT $2",
    )
    .bind(now.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Clears the rows that were done, unless they were asked for again meanwhile, or a stalled earlier
/// holder may still write: those are freed, and due again at once or after that moment.
pub async fn finish(
    connection: &mut Connection,
    done: &[Leased],
    terms: &LeaseTerms,
    now: Timestamp,
) -> Result<()> {
    for leased in done {
        let result = sqlx::query(
            "DELETE FROM outbox WHERE object = $1 AND generation = $2 AND lease_owner = $3 \
             AND lease_until = $4 AND redo_at IS NULL",
        )
        .bind(&leased.object)
        .bind(leased.generation)
        .bind(&terms.owner)
        .bind(leased.lease_until.0)
        .execute(&mut *connection)
        .await?;
        if result.rows_affected() == 0 {
            // The repetition stays noted until it is leased: a wish in between must not end it.
            sqlx::query(
                "UPDATE outbox SET lease_owner = NULL, lease_until = NULL, attempts = 0, \
                 not_before = CASE WHEN generation = $2 THEN COALESCE(redo_at, $5) ELSE not_before END \
                 WHERE object = $1 AND lease_owner = $3 AND lease_until = $4",
            )
            .bind(&leased.object)
            .bind(leased.generation)
            .bind(&terms.owner)
            .bind(leased.lease_until.0)
            .bind(now.0)
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

/// Gives a lease back: the object is due again at `not_before`. `landing_until`: a write that was given
/// up may land until then, so the object is done once more after.
pub async fn give_back(
    connection: &mut Connection,
    leased: &Leased,
    terms: &LeaseTerms,
    not_before: Timestamp,
    landing_until: Option<Timestamp>,
) -> Result<()> {
    sqlx::query(
        "UPDATE outbox SET lease_owner = NULL, lease_until = NULL, redo_at = COALESCE($6, redo_at), \
         not_before = CASE WHEN generation = $4 THEN $5 ELSE not_before END \
         WHERE object = $1 AND lease_owner = $2 AND lease_until = $3",
    )
    .bind(&leased.object)
    .bind(&terms.owner)
    .bind(leased.lease_until.0)
    .bind(leased.generation)
    .bind(not_before.0)
    .bind(landing_until.map(|until| until.0))
    .execute(connection)
    .await?;
    Ok(())
}

/// The narinfos of these paths that still wait in this cache.
pub async fn waiting_narinfos(
    connection: &mut Connection,
    cache_id: &str,
    hashes: impl IntoIterator<Item = StorePathHash>,
) -> Result<HashMap<StorePathHash, String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT subject, object FROM outbox WHERE kind = 'narinfo' AND cache_id = $1 \
         AND subject IN (SELECT json_array_elements_text($2::json))",
        "SELECT subject, object FROM outbox WHERE kind = 'narinfo' AND cache_id = $1 \
         AND subject IN (SELECT value FROM json_each($2))",
    );
    let hashes = json_list(hashes.into_iter().map(|hash| hash.to_string()));
    let rows: Vec<(String, String)> =
        sqlx::query_as(statement).bind(cache_id).bind(hashes).fetch_all(connection).await?;
    rows.into_iter()
        .map(|(subject, object)| {
            let hash = subject.parse().map_err(|_| corrupt("outbox", "subject", &object))?;
            Ok((hash, object))
        })
        .collect()
}

/// Of these paths, and of those that they refer to, be it by way of others: which refers to which, as far as both are
/// published in this cache and the narinfo of the second waits. A path is not told to refer to itself.
pub async fn waiting_references(
    connection: &mut Connection,
    cache_id: &str,
    hashes: impl IntoIterator<Item = StorePathHash>,
) -> Result<Vec<(StorePathHash, StorePathHash)>> {
    let statement = Dialect::of(connection).pick(
        waiting_references_sql!("SELECT json_array_elements_text($2::json)"),
        waiting_references_sql!("SELECT value FROM json_each($2)"),
    );
    let hashes = json_list(hashes.into_iter().map(|hash| hash.to_string()));
    let rows: Vec<(String, String)> =
        sqlx::query_as(statement).bind(cache_id).bind(hashes).fetch_all(connection).await?;
    let read = |hash: &str| hash.parse().map_err(|_| corrupt("path_refs", "ref_hash", hash));
    rows.iter().map(|(from, to)| Ok((read(from)?, read(to)?))).collect()
}

macro_rules! waiting_references_sql {
    ($hashes:literal) => {
        concat!(
            "WITH RECURSIVE reached (hash) AS (",
            $hashes,
            " UNION SELECT r.ref_hash FROM reached f ",
            waiting_references_sql!(),
            ") SELECT f.hash, r.ref_hash FROM reached f ",
            waiting_references_sql!(),
        )
    };
    () => {
        "CROSS JOIN paths p CROSS JOIN path_refs r CROSS JOIN outbox o WHERE p.cache_id = $1 AND p.hash = f.hash \
         AND p.state = 'published' AND r.claim_id = p.claim_id AND r.ref_hash <> f.hash \
         AND o.subject = r.ref_hash AND o.kind = 'narinfo' AND o.cache_id = $1"
    };
}
use waiting_references_sql;

/// Whether an object waits for more than to be done once more by and by, as [`finish`] has noted.
pub async fn is_unfinished(connection: &mut Connection, object: &str) -> Result<bool> {
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT object FROM outbox WHERE object = $1 AND NOT (lease_owner IS NULL AND attempts = 0 \
         AND redo_at IS NOT NULL AND not_before = redo_at)",
    )
    .bind(object)
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Of these objects, those that wait, leased or not.
pub async fn waiting_among(
    connection: &mut Connection,
    objects: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT object FROM outbox WHERE object IN (SELECT json_array_elements_text($1::json))",
        "SELECT object FROM outbox WHERE object IN (SELECT value FROM json_each($1))",
    );
    let rows: Vec<(String,)> =
        sqlx::query_as(statement).bind(json_list(objects)).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(object,)| object).collect())
}

/// How many objects wait, and since when the oldest does.
pub async fn backlog(connection: &mut Connection) -> Result<(i64, Option<Timestamp>)> {
    let (count, oldest): (i64, Option<i64>) =
        sqlx::query_as("SELECT COUNT(*), MIN(enqueued_at) FROM outbox").fetch_one(connection).await?;
    Ok((count, oldest.map(Timestamp)))
}
