//! Who supports which claim, whose support counts no longer, and who made another claim.

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, with_json_rows};
use super::quarantines::QuarantineRow;
use super::{Connection, Result};
use crate::access::{ContributorId, TokenId};
use crate::nix::claim::Claim;
use crate::time::Timestamp;

/// Where a piece of evidence comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A contributor pushed the bytes.
    Contributor(ContributorId),
    /// A registered key of the contributor made a valid `Sig:` line.
    ContributorKey(ContributorId),
    /// An upstream's key made one.
    Upstream(String),
}

impl Source {
    /// The words of the columns `source_kind` and `source_id`.
    pub fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Contributor(id) => ("contributor", id.to_string()),
            Self::ContributorKey(id) => ("contributor-key", id.to_string()),
            Self::Upstream(key) => ("upstream", key.clone()),
        }
    }
}

/// One act of support.
#[derive(Debug, Clone)]
pub struct EvidenceRow {
    pub kind: String,
    pub source_id: String,
    /// The contributor's name, where the source is one.
    pub contributor: Option<String>,
    pub token_id: Option<String>,
    pub at: Timestamp,
    pub void: bool,
}

/// An act of support to write down.
#[derive(Debug, Clone)]
pub struct NewEvidence {
    pub id: String,
    pub claim_id: String,
    pub source: Source,
    pub token: TokenId,
}

/// Writes acts of support down.
pub async fn insert_all(connection: &mut Connection, new: &[NewEvidence], now: Timestamp) -> Result<()> {
    let statement = with_json_rows!(
        connection,
        "INSERT INTO evidence (id, claim_id, source_kind, source_id, token_id, at) \
         SELECT r.value ->> 'id', r.value ->> 'claim', r.value ->> 'kind', r.value ->> 'source', \
         r.value ->> 'token', $2",
        "$1",
        ""
    );
    let rows = new.iter().map(|new| {
        let (kind, source) = new.source.columns();
        json!({
            "id": new.id, "claim": new.claim_id, "kind": kind, "source": source, "token": new.token.to_string(),
        })
    });
    sqlx::query(statement)
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether `source` supports the claim already, through this token.
pub async fn exists(
    connection: &mut Connection,
    claim_id: &str,
    source: &Source,
    token: TokenId,
) -> Result<bool> {
    let (kind, source_id) = source.columns();
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT id FROM evidence WHERE claim_id = $1 AND source_kind = $2 AND source_id = $3 \
         AND token_id = $4 AND void_by IS NULL LIMIT 1",
    )
    .bind(claim_id)
    .bind(kind)
    .bind(source_id)
    .bind(token.to_string())
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// Every piece of evidence for a claim, oldest first.
pub async fn of_claim(connection: &mut Connection, claim_id: &str) -> Result<Vec<EvidenceRow>> {
    #[derive(sqlx::FromRow)]
    struct Row {
        source_kind: String,
        source_id: String,
        name: Option<String>,
        token_id: Option<String>,
        at: i64,
        void_by: Option<String>,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT e.source_kind, e.source_id, c.name, e.token_id, e.at, e.void_by FROM evidence e \
         LEFT JOIN contributors c ON c.id = e.source_id WHERE e.claim_id = $1 ORDER BY e.id ASC LIMIT 1000",
    )
    .bind(claim_id)
    .fetch_all(connection)
    .await?;
    let read = |row: Row| EvidenceRow {
        kind: row.source_kind,
        source_id: row.source_id,
        contributor: row.name,
        token_id: row.token_id,
        at: Timestamp(row.at),
        void: row.void_by.is_some(),
    };
    Ok(rows.into_iter().map(read).collect())
}

/// A piece of evidence that a quarantine takes or gives back.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct TakenRow {
    pub id: String,
    pub claim_id: String,
    pub at: i64,
}

/// Evidence of a contributor that is not void, of one `kind` (a word of [`Source::columns`]), from a moment on, oldest
/// first. What was pushed with a token that lives is left alone: it was issued after the quarantine had begun.
pub async fn live_of_contributor(
    connection: &mut Connection,
    contributor: ContributorId,
    kind: &'static str,
    from: Timestamp,
    limit: i64,
) -> Result<Vec<TakenRow>> {
    let rows = sqlx::query_as(
        "SELECT e.id, e.claim_id, e.at FROM evidence e WHERE e.source_kind = $1 AND e.source_id = $2 \
         AND e.at >= $3 AND e.void_by IS NULL AND (e.source_kind = 'contributor-key' \
         OR EXISTS (SELECT 1 FROM tokens t WHERE t.id = e.token_id AND t.revoked_at IS NOT NULL)) \
         ORDER BY e.at ASC LIMIT $4",
    )
    .bind(kind)
    .bind(contributor.to_string())
    .bind(from.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Evidence that is not void and came from then on with a revoked token of this family: the tokens of the subject
/// (a token's or a contributor's id) and, unless `keep_issued`, those that they issued, directly or through others.
pub async fn live_of_family(
    connection: &mut Connection,
    subject: &str,
    keep_issued: bool,
    since: Timestamp,
    limit: i64,
) -> Result<Vec<TakenRow>> {
    let rows = sqlx::query_as(
        "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE contributor_id = $1 OR id = $1 \
         UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id WHERE CAST($2 AS BIGINT) = 0) \
         SELECT e.id, e.claim_id, e.at FROM family f JOIN tokens t ON t.id = f.id \
         JOIN evidence e ON e.token_id = f.id WHERE t.revoked_at IS NOT NULL \
         AND e.source_kind = 'contributor' AND e.at >= $3 AND e.void_by IS NULL LIMIT $4",
    )
    .bind(subject)
    .bind(i64::from(keep_issued))
    .bind(since.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Evidence that is not void for the claim that stands, or stood last, at a path.
pub async fn live_of_path(connection: &mut Connection, path_id: &str, limit: i64) -> Result<Vec<TakenRow>> {
    let rows = sqlx::query_as(
        "SELECT e.id, e.claim_id, e.at FROM paths p JOIN evidence e ON e.claim_id = p.claim_id \
         WHERE p.id = $1 AND e.void_by IS NULL LIMIT $2",
    )
    .bind(path_id)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Has evidence count no longer, until the quarantine is restored.
pub async fn void(connection: &mut Connection, ids: &[&str], quarantine: &str) -> Result<()> {
    let statement = Dialect::of(connection).pick(
        "UPDATE evidence SET void_by = $2 WHERE void_by IS NULL \
         AND id IN (SELECT json_array_elements_text($1::json))",
        "UPDATE evidence SET void_by = $2 WHERE void_by IS NULL AND id IN (SELECT value FROM json_each($1))",
    );
    sqlx::query(statement).bind(json_list(ids)).bind(quarantine).execute(connection).await?;
    Ok(())
}

/// Evidence that a quarantine voids, at most `limit`.
pub async fn voided_by(connection: &mut Connection, quarantine: &str, limit: i64) -> Result<Vec<TakenRow>> {
    let rows = sqlx::query_as("SELECT id, claim_id, at FROM evidence WHERE void_by = $1 LIMIT $2")
        .bind(quarantine)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// How much evidence a quarantine voids.
pub async fn count_voided_by(connection: &mut Connection, quarantine: &str) -> Result<u64> {
    let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM evidence WHERE void_by = $1")
        .bind(quarantine)
        .fetch_one(connection)
        .await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Leaves those of `ids` void that are within another quarantine too, which then voids them.
pub async fn hand_over(
    connection: &mut Connection,
    ids: &[&str],
    from: &str,
    to: &QuarantineRow,
) -> Result<()> {
    macro_rules! statement {
        ($list:literal) => {
            concat!(
                "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE contributor_id = $6 OR id = $6 \
                 UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id \
                 WHERE CAST($7 AS BIGINT) = 0) \
                 UPDATE evidence SET void_by = $3 WHERE void_by = $2 AND at >= $4 AND at <= $5 \
                 AND (source_kind IN ('contributor', 'contributor-key') AND source_id = $6 \
                 OR source_kind = 'contributor' AND token_id IN (SELECT id FROM family) \
                 OR claim_id IN (SELECT c.id FROM claims c WHERE c.path_id = $6)) AND id IN (",
                $list,
                ")"
            )
        };
    }
    let statement = Dialect::of(connection).pick(
        statement!("SELECT json_array_elements_text($1::json)"),
        statement!("SELECT value FROM json_each($1)"),
    );
    sqlx::query(statement)
        .bind(json_list(ids))
        .bind(from)
        .bind(&to.id)
        .bind(to.since.0)
        // What came later, with a new token, was never its matter.
        .bind(to.done_at.map_or(i64::MAX, |done| done.0))
        .bind(to.subject.id())
        .bind(i64::from(to.keep_issued))
        .execute(connection)
        .await?;
    Ok(())
}

/// Has those of `ids` count again that this quarantine still voids.
pub async fn clear(connection: &mut Connection, ids: &[&str], quarantine: &str) -> Result<()> {
    let statement = Dialect::of(connection).pick(
        "UPDATE evidence SET void_by = NULL WHERE void_by = $2 \
         AND id IN (SELECT json_array_elements_text($1::json))",
        "UPDATE evidence SET void_by = NULL WHERE void_by = $2 AND id IN (SELECT value FROM json_each($1))",
    );
    sqlx::query(statement).bind(json_list(ids)).bind(quarantine).execute(connection).await?;
    Ok(())
}

/// A refused claim for a path where another one stands.
#[derive(Debug, Clone)]
pub struct ConflictRow {
    pub contributor: String,
    pub token_id: String,
    pub nar_hash: String,
    pub at: Timestamp,
}

/// Writes down that `contributor` made another claim for a published path. False: known already.
pub async fn insert_conflict(
    connection: &mut Connection,
    id: &str,
    (path_id, standing_claim_id): (&str, &str),
    claim: &Claim,
    (contributor, token): (ContributorId, TokenId),
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO conflicts (id, path_id, standing_claim_id, claim_sha256, nar_hash, refs, \
         contributor_id, token_id, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (path_id, claim_sha256, token_id) DO NOTHING",
    )
    .bind(id)
    .bind(path_id)
    .bind(standing_claim_id)
    .bind(claim.sha256().base32())
    .bind(claim.nar_hash.base32())
    .bind(claim.references_text())
    .bind(contributor.to_string())
    .bind(token.to_string())
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The refused claims of a path, oldest first.
pub async fn conflicts(connection: &mut Connection, path_id: &str) -> Result<Vec<ConflictRow>> {
    let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
        "SELECT c.name, x.token_id, x.nar_hash, x.at FROM conflicts x \
         JOIN contributors c ON c.id = x.contributor_id WHERE x.path_id = $1 ORDER BY x.id ASC LIMIT 1000",
    )
    .bind(path_id)
    .fetch_all(connection)
    .await?;
    let read = |(contributor, token_id, nar_hash, at)| ConflictRow {
        contributor,
        token_id,
        nar_hash,
        at: Timestamp(at),
    };
    Ok(rows.into_iter().map(read).collect())
}
