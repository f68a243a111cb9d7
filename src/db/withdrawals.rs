//! Withdrawals: which path went, with which claim, because of which quarantine, and how that ended.

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, with_json_rows};
use super::{Connection, PageBounds, Result, corrupt};
use crate::access::CacheId;
use crate::nix::store_path::StorePathHash;
use crate::time::Timestamp;

/// Why a path was withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It refers to a path that was withdrawn.
    Dependent,
    /// No evidence for it was left.
    Evidence,
}

impl Cause {
    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dependent => "dependent",
            Self::Evidence => "evidence",
        }
    }
}

/// How a withdrawal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The path was deleted.
    Deleted,
    /// Another quarantine goes on to hold it.
    Held,
    /// Its NAR is not in storage any more.
    Lost,
    /// The same claim was pushed anew.
    Republished,
    /// It is back as it was.
    Restored,
    /// Another claim came to stand there.
    Superseded,
}

impl Fate {
    const ALL: [Self; 6] =
        [Self::Deleted, Self::Held, Self::Lost, Self::Republished, Self::Restored, Self::Superseded];

    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Held => "held",
            Self::Lost => "lost",
            Self::Republished => "republished",
            Self::Restored => "restored",
            Self::Superseded => "superseded",
        }
    }

    /// Reads what [`Fate::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fate| fate.as_str() == text)
    }
}

/// A withdrawal to write down.
#[derive(Debug)]
pub struct NewWithdrawal<'a> {
    pub id: String,
    pub path_id: &'a str,
    pub claim_id: &'a str,
}

/// Writes withdrawals down.
pub async fn insert(
    connection: &mut Connection,
    quarantine: &str,
    cache: CacheId,
    cause: Cause,
    new: &[NewWithdrawal<'_>],
    now: Timestamp,
) -> Result<()> {
    let statement = with_json_rows!(
        connection,
        "INSERT INTO withdrawals (id, quarantine_id, cache_id, path_id, claim_id, cause, at) \
         SELECT r.value ->> 'id', $2, $3, r.value ->> 'path', r.value ->> 'claim', $4, $5",
        "$1",
        ""
    );
    let rows = new.iter().map(|new| json!({ "id": new.id, "path": new.path_id, "claim": new.claim_id }));
    sqlx::query(statement)
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .bind(quarantine)
        .bind(cache.to_string())
        .bind(cause.as_str())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends every withdrawal of these paths that has not ended.
pub async fn end_of_paths(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
    fate: Fate,
    now: Timestamp,
) -> Result<()> {
    let statement = Dialect::of(connection).pick(
        "UPDATE withdrawals SET ended_at = $2, ended_how = $3 WHERE ended_at IS NULL \
         AND path_id IN (SELECT json_array_elements_text($1::json))",
        "UPDATE withdrawals SET ended_at = $2, ended_how = $3 WHERE ended_at IS NULL \
         AND path_id IN (SELECT value FROM json_each($1))",
    );
    sqlx::query(statement)
        .bind(json_list(path_ids))
        .bind(now.0)
        .bind(fate.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends one withdrawal.
pub async fn end(connection: &mut Connection, id: &str, fate: Fate, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE withdrawals SET ended_at = $2, ended_how = $3 WHERE id = $1 AND ended_at IS NULL")
        .bind(id)
        .bind(now.0)
        .bind(fate.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// A withdrawal, and how its path stands.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct WithdrawalRow {
    pub id: String,
    pub path_id: String,
    pub cache: String,
    /// Base name.
    pub store_path: String,
    pub cause: String,
    pub at: i64,
    pub ended_how: Option<String>,
    /// The state of the path, and whether it is about the claim that was withdrawn: then both ids are one.
    pub state: String,
    pub claim_id: String,
    pub standing_claim_id: String,
    /// Of the NAR of the claim that was withdrawn; `None`: there is no such row.
    pub file_state: Option<String>,
}

impl WithdrawalRow {
    /// How it ended, or would end if it were ended now by a restoration that did not bring the path back.
    pub fn fate(&self) -> Fate {
        let same = self.claim_id == self.standing_claim_id;
        match (self.ended_how.as_deref().and_then(Fate::parse), self.state.as_str()) {
            (Some(Fate::Restored), _) => Fate::Restored,
            (_, "published") if same => Fate::Republished,
            (_, "published") => Fate::Superseded,
            (Some(fate @ (Fate::Held | Fate::Lost | Fate::Deleted)), _) => fate,
            (_, "deleted") => Fate::Deleted,
            _ if !same => Fate::Superseded,
            _ if self.file_state.as_deref() != Some("stored") => Fate::Lost,
            _ => Fate::Held,
        }
    }
}

/// The columns of [`WithdrawalRow`], before what else a statement says.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT w.id, w.path_id, k.name AS cache, c.store_path, w.cause, w.at, w.ended_how, p.state, \
             w.claim_id, p.claim_id AS standing_claim_id, m.state AS file_state FROM withdrawals w \
             JOIN paths p ON p.id = w.path_id JOIN claims c ON c.id = w.claim_id \
             JOIN caches k ON k.id = w.cache_id LEFT JOIN measured m ON m.cache_id = w.cache_id \
             AND m.file_hash = c.file_hash AND m.ext = c.ext ",
            $rest
        )
    };
}

/// Withdrawals of this quarantine that have not ended.
pub async fn standing(
    connection: &mut Connection,
    quarantine: &str,
    limit: i64,
) -> Result<Vec<WithdrawalRow>> {
    let rows = sqlx::query_as(select!(
        "WHERE w.quarantine_id = $1 AND w.ended_at IS NULL ORDER BY w.id ASC LIMIT $2"
    ))
    .bind(quarantine)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// A page of the withdrawals of this quarantine.
pub async fn list(
    connection: &mut Connection,
    quarantine: &str,
    page: &PageBounds,
) -> Result<Vec<WithdrawalRow>> {
    let statement = if page.descending {
        select!("WHERE w.quarantine_id = $1 AND ($2 IS NULL OR w.id < $2) ORDER BY w.id DESC LIMIT $3")
    } else {
        select!("WHERE w.quarantine_id = $1 AND ($2 IS NULL OR w.id > $2) ORDER BY w.id ASC LIMIT $3")
    };
    let rows = sqlx::query_as(statement)
        .bind(quarantine)
        .bind(page.after.as_deref())
        .bind(page.limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// Those withdrawals of this quarantine whose paths did not come back with it.
pub async fn left(connection: &mut Connection, quarantine: &str, limit: i64) -> Result<Vec<WithdrawalRow>> {
    let rows = sqlx::query_as(select!(
        "WHERE w.quarantine_id = $1 AND w.ended_how <> 'restored' \
         AND NOT (p.state = 'published' AND p.claim_id = w.claim_id) ORDER BY w.id ASC LIMIT $2"
    ))
    .bind(quarantine)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// How many paths went because of a quarantine, and what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Withdrawn for want of evidence, and not ended.
    pub evidence: u64,
    /// Withdrawn as dependents, and not ended.
    pub dependents: u64,
    pub restored: u64,
    /// Ended otherwise, and not published with the claim that was withdrawn.
    pub left: u64,
}

/// Counts the withdrawals of a quarantine.
pub async fn counts(connection: &mut Connection, quarantine: &str) -> Result<Counts> {
    let rows: Vec<(String, Option<String>, i64)> = sqlx::query_as(
        "SELECT w.cause, w.ended_how, COUNT(*) FROM withdrawals w JOIN paths p ON p.id = w.path_id \
         WHERE w.quarantine_id = $1 AND (w.ended_how IS NULL OR w.ended_how = 'restored' \
         OR NOT (p.state = 'published' AND p.claim_id = w.claim_id)) GROUP BY w.cause, w.ended_how",
    )
    .bind(quarantine)
    .fetch_all(connection)
    .await?;
    let mut counts = Counts::default();
    for (cause, ended_how, count) in rows {
        let place = match (ended_how.as_deref(), cause.as_str()) {
            (None, "dependent") => &mut counts.dependents,
            (None, _) => &mut counts.evidence,
            (Some("restored"), _) => &mut counts.restored,
            (Some(_), _) => &mut counts.left,
        };
        *place += u64::try_from(count).unwrap_or(0);
    }
    Ok(counts)
}

/// A path by its cache and hash.
#[derive(Debug, Clone)]
pub struct PathPlace {
    pub cache: CacheId,
    pub hash: StorePathHash,
}

/// Withdraws the published paths at which one of these claims stands without any evidence that counts.
pub async fn withdraw_unsupported(
    connection: &mut Connection,
    claim_ids: &[&str],
    now: Timestamp,
) -> Result<Vec<PathPlace>> {
    macro_rules! statement {
        ($list:literal) => {
            concat!(
                "UPDATE paths SET state = 'withdrawn', changed_at = $2 WHERE state = 'published' \
                 AND id IN (SELECT c.path_id FROM claims c WHERE c.id IN (",
                $list,
                ")) AND claim_id IN (",
                $list,
                ") AND NOT EXISTS (SELECT 1 FROM evidence e WHERE e.claim_id = paths.claim_id \
                 AND e.void_by IS NULL) RETURNING cache_id, hash"
            )
        };
    }
    let statement = Dialect::of(connection).pick(
        statement!("SELECT json_array_elements_text($1::json)"),
        statement!("SELECT value FROM json_each($1)"),
    );
    places(sqlx::query_as(statement).bind(json_list(claim_ids)).bind(now.0).fetch_all(connection).await?)
}

/// Publishes again the withdrawn paths at which one of these claims stands with evidence that counts, a signature (which
/// a key that was compromised since has lost) and a NAR in storage, unless a quarantine other than this one withdrew them as dependents.
pub async fn publish_supported(
    connection: &mut Connection,
    claim_ids: &[&str],
    quarantine: &str,
    now: Timestamp,
) -> Result<Vec<PathPlace>> {
    macro_rules! statement {
        ($list:literal) => {
            concat!(
                "UPDATE paths SET state = 'published', changed_at = $2 WHERE state = 'withdrawn' \
                 AND id IN (SELECT c.path_id FROM claims c WHERE c.id IN (",
                $list,
                ")) AND claim_id IN (",
                $list,
                ") AND EXISTS (SELECT 1 FROM evidence e WHERE e.claim_id = paths.claim_id AND e.void_by IS NULL) \
                 AND EXISTS (SELECT 1 FROM claims c JOIN measured m ON m.cache_id = paths.cache_id \
                 AND m.file_hash = c.file_hash AND m.ext = c.ext WHERE c.id = paths.claim_id \
                 AND m.state = 'stored') \
                 AND EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = paths.claim_id) \
                 AND NOT EXISTS (SELECT 1 FROM withdrawals w \
                 JOIN quarantines q ON q.id = w.quarantine_id WHERE w.path_id = paths.id \
                 AND w.ended_at IS NULL AND w.cause = 'dependent' AND q.id <> $3 \
                 AND q.restoring_at IS NULL) RETURNING cache_id, hash"
            )
        };
    }
    let statement = Dialect::of(connection).pick(
        statement!("SELECT json_array_elements_text($1::json)"),
        statement!("SELECT value FROM json_each($1)"),
    );
    let rows = sqlx::query_as(statement)
        .bind(json_list(claim_ids))
        .bind(now.0)
        .bind(quarantine)
        .fetch_all(connection)
        .await?;
    places(rows)
}

/// Paths that were withdrawn before then, longest ago first.
pub async fn withdrawn_before(
    connection: &mut Connection,
    before: Timestamp,
    limit: i64,
) -> Result<Vec<PathPlace>> {
    let rows = sqlx::query_as(
        "SELECT cache_id, hash FROM paths WHERE state = 'withdrawn' AND changed_at < $1 \
         ORDER BY changed_at ASC LIMIT $2",
    )
    .bind(before.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    places(rows)
}

fn places(rows: Vec<(String, String)>) -> Result<Vec<PathPlace>> {
    let read = |(cache, hash): (String, String)| {
        Ok(PathPlace {
            cache: cache.parse().map_err(|_| corrupt("paths", "cache_id", &hash))?,
            hash: hash.parse().map_err(|_| corrupt("paths", "hash", &hash))?,
        })
    };
    rows.into_iter().map(read).collect()
}

/// How many paths of a quarantine have a narinfo that storage does not hold, or lack, as the rows say.
pub async fn narinfos_waiting(connection: &mut Connection, quarantine: &str) -> Result<u64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(DISTINCT p.id) FROM withdrawals w JOIN paths p ON p.id = w.path_id \
         JOIN outbox o ON o.subject = p.hash AND o.kind = 'narinfo' AND o.cache_id = p.cache_id \
         WHERE w.quarantine_id = $1",
    )
    .bind(quarantine)
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Paths that refer to one that this quarantine withdrew, and that it did not withdraw yet.
pub async fn dependents(connection: &mut Connection, quarantine: &str, limit: i64) -> Result<Vec<PathPlace>> {
    let rows = sqlx::query_as(
        "SELECT DISTINCT p.cache_id, p.hash FROM withdrawals w JOIN paths d ON d.id = w.path_id \
         JOIN path_refs r ON r.ref_hash = d.hash JOIN claims c ON c.id = r.claim_id \
         JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id AND p.cache_id = d.cache_id \
         WHERE w.quarantine_id = $1 AND w.ended_at IS NULL AND p.state IN ('published', 'withdrawn') \
         AND NOT EXISTS (SELECT 1 FROM withdrawals o WHERE o.path_id = p.id \
         AND o.quarantine_id = $1 AND o.ended_at IS NULL) LIMIT $2",
    )
    .bind(quarantine)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    places(rows)
}

/// Published paths that refer to one that this quarantine withdrew, be it through others: how many there are, and
/// at most `limit` of them as cache and base name.
pub async fn dependents_published(
    connection: &mut Connection,
    quarantine: &str,
    limit: i64,
) -> Result<(u64, Vec<(String, String)>)> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "WITH RECURSIVE reached (cache_id, hash) AS ( \
         SELECT p.cache_id, p.hash FROM withdrawals w JOIN paths d ON d.id = w.path_id AND d.state = 'withdrawn' \
         JOIN path_refs r ON r.ref_hash = d.hash JOIN claims c ON c.id = r.claim_id \
         JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id AND p.cache_id = d.cache_id \
         WHERE w.quarantine_id = $1 AND w.ended_at IS NULL AND p.state = 'published' \
         UNION SELECT p.cache_id, p.hash FROM reached f JOIN path_refs r ON r.ref_hash = f.hash \
         JOIN claims c ON c.id = r.claim_id \
         JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id AND p.cache_id = f.cache_id \
         WHERE p.state = 'published') \
         SELECT k.name, c.store_path, COUNT(*) OVER () FROM reached f \
         JOIN paths p ON p.cache_id = f.cache_id AND p.hash = f.hash JOIN claims c ON c.id = p.claim_id \
         JOIN caches k ON k.id = p.cache_id ORDER BY k.name, c.store_path LIMIT $2",
    )
    .bind(quarantine)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let count = rows.first().map_or(0, |(.., count)| u64::try_from(*count).unwrap_or(0));
    Ok((count, rows.into_iter().map(|(cache, path, _)| (cache, path)).collect()))
}

/// A claim that was withdrawn from a cache and does not stand there now.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct AffectedRow {
    /// The cursor.
    pub id: String,
    /// Base name.
    pub store_path: String,
    /// Nix base-32.
    pub nar_hash: String,
    pub at: i64,
}

/// A page of the claims that were withdrawn from a cache since then and do not stand there now, each once.
pub async fn affected(
    connection: &mut Connection,
    cache: CacheId,
    since: Timestamp,
    page: &PageBounds,
) -> Result<Vec<AffectedRow>> {
    macro_rules! select {
        ($compare:literal, $order:literal) => {
            concat!(
                "SELECT w.id, c.store_path, c.nar_hash, w.at FROM withdrawals w \
                 JOIN claims c ON c.id = w.claim_id JOIN paths p ON p.id = w.path_id \
                 WHERE w.cache_id = $1 AND w.at >= $2 AND ($3 IS NULL OR w.id ",
                $compare,
                " $3) AND NOT (p.state = 'published' AND p.claim_id = w.claim_id) \
                 AND NOT EXISTS (SELECT 1 FROM withdrawals n WHERE n.path_id = w.path_id \
                 AND n.claim_id = w.claim_id AND n.id > w.id) ORDER BY w.id ",
                $order,
                " LIMIT $4"
            )
        };
    }
    let statement = if page.descending { select!("<", "DESC") } else { select!(">", "ASC") };
    let rows = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(since.0)
        .bind(page.after.as_deref())
        .bind(page.limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}
