//! What a quarantine would do, asked of the rows without changing any.

use super::quarantines::Subject;
use super::{Connection, Result, corrupt};
use crate::access::TokenId;
use crate::time::Timestamp;

/// Whose evidence would be void.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub subject: &'a Subject,
    pub since: Timestamp,
    /// Whether tokens that the subject issued are left alone.
    pub keep_issued: bool,
}

/// How much a quarantine would touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Impact {
    /// Pieces of evidence that would be void.
    pub evidence: u64,
    /// Published paths of which some evidence would be void, and which would stay by other evidence.
    pub kept: u64,
    /// Published paths that would be withdrawn: how many, and some as cache and base name.
    pub doomed: (u64, Vec<(String, String)>),
    /// Published paths that refer to those, be it through others: the same.
    pub dependents: (u64, Vec<(String, String)>),
}

/// The evidence in the scope of `$1` (since), `$2` (the subject's id, of whichever kind) and `$3` (1: what the subject
/// issued is left alone), and the paths that rest on it alone. Ids of one kind are never those of another, so that one
/// text serves all three kinds.
macro_rules! in_scope {
    ($rest:literal) => {
        concat!(
            "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE contributor_id = $2 OR id = $2 \
             UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id \
             WHERE CAST($3 AS BIGINT) = 0), \
             touched (id, claim_id) AS (SELECT e.id, e.claim_id FROM evidence e \
             WHERE e.void_by IS NULL AND e.at >= $1 \
             AND (e.source_kind IN ('contributor', 'contributor-key') AND e.source_id = $2 \
             OR e.source_kind = 'contributor' AND e.token_id IN (SELECT id FROM family) \
             OR e.claim_id IN (SELECT p.claim_id FROM paths p WHERE p.id = $2))), \
             claims_touched (claim_id) AS (SELECT DISTINCT claim_id FROM touched), \
             standing (id, cache_id, hash, claim_id, store_path, supported) AS ( \
             SELECT p.id, p.cache_id, p.hash, c.id, c.store_path, \
             (SELECT COUNT(*) FROM evidence e WHERE e.claim_id = c.id AND e.void_by IS NULL \
             AND e.id NOT IN (SELECT id FROM touched)) \
             FROM claims_touched t JOIN claims c ON c.id = t.claim_id \
             JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id WHERE p.state = 'published'), \
             reached (cache_id, hash) AS (SELECT s.cache_id, s.hash FROM standing s WHERE s.supported = 0 \
             UNION SELECT p.cache_id, p.hash FROM reached d JOIN path_refs r ON r.ref_hash = d.hash \
             JOIN claims c ON c.id = r.claim_id \
             JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id AND p.cache_id = d.cache_id \
             WHERE p.state = 'published') ",
            $rest
        )
    };
}

/// What a quarantine of this scope would do; names at most `named` paths of each kind.
pub async fn of(connection: &mut Connection, scope: Scope<'_>, named: i64) -> Result<Impact> {
    let (evidence, kept): (i64, i64) = sqlx::query_as(in_scope!(
        "SELECT (SELECT COUNT(*) FROM touched), (SELECT COUNT(*) FROM standing WHERE supported > 0)"
    ))
    .bind(scope.since.0)
    .bind(scope.subject.id())
    .bind(i64::from(scope.keep_issued))
    .fetch_one(&mut *connection)
    .await?;
    let doomed = in_scope!(
        "SELECT k.name, s.store_path, COUNT(*) OVER () FROM standing s JOIN caches k ON k.id = s.cache_id \
         WHERE s.supported = 0 ORDER BY k.name, s.store_path LIMIT $4"
    );
    let dependents = in_scope!(
        "SELECT k.name, c.store_path, COUNT(*) OVER () FROM reached d \
         JOIN paths p ON p.cache_id = d.cache_id AND p.hash = d.hash JOIN claims c ON c.id = p.claim_id \
         JOIN caches k ON k.id = p.cache_id WHERE NOT EXISTS (SELECT 1 FROM standing s \
         WHERE s.cache_id = d.cache_id AND s.hash = d.hash AND s.supported = 0) \
         ORDER BY k.name, c.store_path LIMIT $4"
    );
    Ok(Impact {
        evidence: u64::try_from(evidence).unwrap_or(0),
        kept: u64::try_from(kept).unwrap_or(0),
        doomed: named_paths(connection, doomed, scope, named).await?,
        dependents: named_paths(connection, dependents, scope, named).await?,
    })
}

async fn named_paths(
    connection: &mut Connection,
    statement: &'static str,
    scope: Scope<'_>,
    named: i64,
) -> Result<(u64, Vec<(String, String)>)> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(statement)
        .bind(scope.since.0)
        .bind(scope.subject.id())
        .bind(i64::from(scope.keep_issued))
        .bind(named)
        .fetch_all(connection)
        .await?;
    let count = rows.first().map_or(0, |(.., count)| u64::try_from(*count).unwrap_or(0));
    Ok((count, rows.into_iter().map(|(cache, path, _)| (cache, path)).collect()))
}

/// Whether any evidence in this scope is not void yet.
pub async fn has_evidence(connection: &mut Connection, scope: Scope<'_>) -> Result<bool> {
    let (found,): (i64,) =
        sqlx::query_as(in_scope!("SELECT COUNT(*) FROM (SELECT id FROM touched LIMIT 1) AS one"))
            .bind(scope.since.0)
            .bind(scope.subject.id())
            .bind(i64::from(scope.keep_issued))
            .fetch_one(connection)
            .await?;
    Ok(found > 0)
}

/// The not revoked tokens that would die, at most `limit`, oldest first.
pub async fn tokens(connection: &mut Connection, scope: Scope<'_>, limit: i64) -> Result<Vec<TokenId>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE contributor_id = $1 OR id = $1 \
         UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id WHERE CAST($2 AS BIGINT) = 0) \
         SELECT t.id FROM family f JOIN tokens t ON t.id = f.id WHERE t.revoked_at IS NULL \
         ORDER BY t.id ASC LIMIT $3",
    )
    .bind(scope.subject.id())
    .bind(i64::from(scope.keep_issued))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|(id,)| id.parse().map_err(|_| corrupt("tokens", "id", &id))).collect()
}
