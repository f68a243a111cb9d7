//! Who supports which claim, and who made another one.

use serde_json::{Value, json};

use super::dialect::with_json_rows;
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
