//! Listings, build logs and debug-info links: small objects that come beside NARs.

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, update_by_json_rows, with_json_rows};
use super::{Connection, Result, corrupt};
use crate::access::{CacheId, ContributorId, TokenId};
use crate::time::Timestamp;

/// The kinds of auxiliary objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuxiliaryKind {
    DebugInfo,
    Listing,
    Log,
}

impl AuxiliaryKind {
    /// The word in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DebugInfo => "debuginfo",
            Self::Listing => "listing",
            Self::Log => "log",
        }
    }

    /// Reads what [`AuxiliaryKind::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::DebugInfo, Self::Listing, Self::Log].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// An object to keep.
#[derive(Debug)]
pub struct NewAuxiliary<'a> {
    pub id: String,
    pub cache: CacheId,
    pub kind: AuxiliaryKind,
    pub name: &'a str,
    /// What makes it visible: a path's hash, a NAR's file name, nothing.
    pub subject: &'a str,
    /// zstd.
    pub body: &'a [u8],
    pub contributor: ContributorId,
    pub token: TokenId,
    pub now: Timestamp,
    pub visible: bool,
}

/// What is known of an object without its body.
#[derive(Debug, Clone)]
pub struct AuxiliaryRow {
    pub id: String,
    pub contributor_id: String,
    pub visible: bool,
}

/// The row of an object.
pub async fn find(
    connection: &mut Connection,
    cache: CacheId,
    kind: AuxiliaryKind,
    name: &str,
) -> Result<Option<AuxiliaryRow>> {
    let row: Option<(String, String, Option<i64>)> = sqlx::query_as(
        "SELECT id, contributor_id, visible_at FROM auxiliary \
         WHERE cache_id = $1 AND kind = $2 AND name = $3",
    )
    .bind(cache.to_string())
    .bind(kind.as_str())
    .bind(name)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(id, contributor_id, visible_at)| AuxiliaryRow {
        id,
        contributor_id,
        visible: visible_at.is_some(),
    }))
}

/// Keeps an object, in place of one that stood there unseen, or of the same contributor's log. False: one
/// that is visible stays.
pub async fn put(connection: &mut Connection, new: &NewAuxiliary<'_>) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO auxiliary (id, cache_id, kind, name, subject, body, contributor_id, token_id, \
         stored_at, visible_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         ON CONFLICT (cache_id, kind, name) DO UPDATE SET subject = excluded.subject, \
         body = excluded.body, contributor_id = excluded.contributor_id, token_id = excluded.token_id, \
         stored_at = excluded.stored_at, visible_at = excluded.visible_at \
         WHERE auxiliary.visible_at IS NULL \
         OR (auxiliary.kind = 'log' AND auxiliary.contributor_id = excluded.contributor_id)",
    )
    .bind(&new.id)
    .bind(new.cache.to_string())
    .bind(new.kind.as_str())
    .bind(new.name)
    .bind(new.subject)
    .bind(new.body)
    .bind(new.contributor.to_string())
    .bind(new.token.to_string())
    .bind(new.now.0)
    .bind(new.visible.then_some(new.now.0))
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The zstd body of a visible object.
pub async fn visible_body(
    connection: &mut Connection,
    cache: CacheId,
    kind: AuxiliaryKind,
    name: &str,
) -> Result<Option<Vec<u8>>> {
    let row: Option<(Vec<u8>,)> = sqlx::query_as(
        "SELECT body FROM auxiliary \
         WHERE cache_id = $1 AND kind = $2 AND name = $3 AND visible_at IS NOT NULL",
    )
    .bind(cache.to_string())
    .bind(kind.as_str())
    .bind(name)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(body,)| body))
}

/// Of these names, those of visible objects.
pub async fn visible_among(
    connection: &mut Connection,
    cache: CacheId,
    kind: AuxiliaryKind,
    names: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT name FROM auxiliary WHERE cache_id = $1 AND kind = $2 AND visible_at IS NOT NULL \
         AND name IN (SELECT json_array_elements_text($3::json))",
        "SELECT name FROM auxiliary WHERE cache_id = $1 AND kind = $2 AND visible_at IS NOT NULL \
         AND name IN (SELECT value FROM json_each($3))",
    );
    let rows: Vec<(String,)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(kind.as_str())
        .bind(json_list(names))
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(name,)| name).collect())
}

/// Makes visible what contributors sent for these subjects, each for its own: contributor, kind and name of what became so.
pub async fn reveal(
    connection: &mut Connection,
    cache: CacheId,
    subjects: &[(ContributorId, AuxiliaryKind, String)],
    now: Timestamp,
) -> Result<Vec<(ContributorId, AuxiliaryKind, String)>> {
    let statement = update_by_json_rows!(
        connection,
        "auxiliary",
        "visible_at = $3",
        "$2",
        "auxiliary.cache_id = $1 AND auxiliary.kind = r.value ->> 'kind' \
         AND auxiliary.subject = r.value ->> 'subject' AND auxiliary.contributor_id = r.value ->> 'by' \
         AND auxiliary.visible_at IS NULL",
        "RETURNING contributor_id, kind, name"
    );
    let rows = subjects.iter().map(|(contributor, kind, subject)| {
        json!({ "by": contributor.to_string(), "kind": kind.as_str(), "subject": subject })
    });
    let rows: Vec<(String, String, String)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .bind(now.0)
        .fetch_all(connection)
        .await?;
    let read = |(contributor, kind, name): (String, String, String)| {
        let contributor = contributor.parse().map_err(|_| corrupt("auxiliary", "contributor_id", &name))?;
        let kind = AuxiliaryKind::parse(&kind).ok_or_else(|| corrupt("auxiliary", "kind", &name))?;
        Ok((contributor, kind, name))
    };
    rows.into_iter().map(read).collect()
}

/// Removes what stands for `subject`: the names of what was visible.
pub async fn remove(
    connection: &mut Connection,
    cache: CacheId,
    kind: AuxiliaryKind,
    subject: &str,
) -> Result<Vec<String>> {
    let rows: Vec<(String, Option<i64>)> = sqlx::query_as(
        "DELETE FROM auxiliary WHERE cache_id = $1 AND kind = $2 AND subject = $3 \
         RETURNING name, visible_at",
    )
    .bind(cache.to_string())
    .bind(kind.as_str())
    .bind(subject)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().filter(|(_, visible_at)| visible_at.is_some()).map(|(name, _)| name).collect())
}

/// Drops what was stored before `before` and never became visible. Answers with how many.
pub async fn drop_unrevealed(connection: &mut Connection, before: Timestamp) -> Result<u64> {
    let result = sqlx::query("DELETE FROM auxiliary WHERE visible_at IS NULL AND stored_at < $1")
        .bind(before.0)
        .execute(connection)
        .await?;
    Ok(result.rows_affected())
}

/// Removes up to `limit` objects of a cache: kind and name of each that was visible, and how many there were.
pub async fn remove_any(
    connection: &mut Connection,
    cache: CacheId,
    limit: i64,
) -> Result<(Vec<(AuxiliaryKind, String)>, usize)> {
    let rows: Vec<(String, String, Option<i64>)> = sqlx::query_as(
        "DELETE FROM auxiliary WHERE id IN (SELECT id FROM auxiliary WHERE cache_id = $1 LIMIT $2) \
         RETURNING kind, name, visible_at",
    )
    .bind(cache.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let count = rows.len();
    let visible = rows.into_iter().filter(|(_, _, visible_at)| visible_at.is_some());
    let named = visible.filter_map(|(kind, name, _)| Some((AuxiliaryKind::parse(&kind)?, name)));
    Ok((named.collect(), count))
}

/// What stands for a claim: kind and subject of objects, and the claim's id.
#[derive(Debug, Clone)]
pub struct Belongs {
    pub kind: AuxiliaryKind,
    pub subject: String,
    pub claim_id: String,
}

/// Puts aside, as it is, what is visible for these claims, until [`put_back`] or [`drop_aside`]: kind and name of each.
pub async fn put_aside(
    connection: &mut Connection,
    cache: CacheId,
    belongs: &[Belongs],
) -> Result<Vec<(AuxiliaryKind, String)>> {
    let rows = belongs
        .iter()
        .map(|one| json!({ "kind": one.kind.as_str(), "subject": one.subject, "claim": one.claim_id }));
    let rows = Value::from(rows.collect::<Vec<_>>()).to_string();
    let copy = with_json_rows!(
        connection,
        "INSERT INTO withdrawn_auxiliary (id, claim_id, cache_id, kind, name, subject, body, contributor_id, \
         token_id, stored_at, visible_at) SELECT a.id, r.value ->> 'claim', a.cache_id, a.kind, a.name, \
         a.subject, a.body, a.contributor_id, a.token_id, a.stored_at, a.visible_at",
        "$2",
        "CROSS JOIN auxiliary a WHERE a.cache_id = $1 AND a.kind = r.value ->> 'kind' \
         AND a.subject = r.value ->> 'subject' AND a.visible_at IS NOT NULL ON CONFLICT (id) DO NOTHING"
    );
    sqlx::query(copy).bind(cache.to_string()).bind(&rows).execute(&mut *connection).await?;
    let take = with_json_rows!(
        connection,
        "DELETE FROM auxiliary WHERE id IN (SELECT a.id",
        "$2",
        "CROSS JOIN auxiliary a WHERE a.cache_id = $1 AND a.kind = r.value ->> 'kind' \
         AND a.subject = r.value ->> 'subject' AND a.visible_at IS NOT NULL) RETURNING kind, name"
    );
    let taken: Vec<(String, String)> =
        sqlx::query_as(take).bind(cache.to_string()).bind(rows).fetch_all(connection).await?;
    kinds(taken)
}

/// Puts back what was put aside for these claims, where nothing else is visible by now: kind and name of each.
pub async fn put_back(
    connection: &mut Connection,
    cache: CacheId,
    claim_ids: &[&str],
) -> Result<Vec<(AuxiliaryKind, String)>> {
    macro_rules! statement {
        ($before:literal, $list:literal, $after:literal) => {
            concat!($before, "WHERE cache_id = $1 AND claim_id IN (", $list, ") ", $after)
        };
    }
    macro_rules! copy {
        ($list:literal) => {
            statement!(
                "INSERT INTO auxiliary (id, cache_id, kind, name, subject, body, contributor_id, token_id, \
                 stored_at, visible_at) SELECT id, cache_id, kind, name, subject, body, contributor_id, \
                 token_id, stored_at, visible_at FROM withdrawn_auxiliary ",
                $list,
                "ON CONFLICT (cache_id, kind, name) DO UPDATE SET subject = excluded.subject, \
                 body = excluded.body, contributor_id = excluded.contributor_id, \
                 token_id = excluded.token_id, stored_at = excluded.stored_at, \
                 visible_at = excluded.visible_at WHERE auxiliary.visible_at IS NULL RETURNING kind, name"
            )
        };
    }
    let dialect = Dialect::of(connection);
    let copy = dialect
        .pick(copy!("SELECT json_array_elements_text($2::json)"), copy!("SELECT value FROM json_each($2)"));
    let ids = json_list(claim_ids);
    let back: Vec<(String, String)> =
        sqlx::query_as(copy).bind(cache.to_string()).bind(&ids).fetch_all(&mut *connection).await?;
    let take = dialect.pick(
        statement!("DELETE FROM withdrawn_auxiliary ", "SELECT json_array_elements_text($2::json)", ""),
        statement!("DELETE FROM withdrawn_auxiliary ", "SELECT value FROM json_each($2)", ""),
    );
    sqlx::query(take).bind(cache.to_string()).bind(ids).execute(connection).await?;
    kinds(back)
}

/// Drops what was put aside for the claims of a path.
pub async fn drop_aside(connection: &mut Connection, path_id: &str) -> Result<()> {
    sqlx::query(
        "DELETE FROM withdrawn_auxiliary WHERE claim_id IN (SELECT id FROM claims WHERE path_id = $1)",
    )
    .bind(path_id)
    .execute(connection)
    .await?;
    Ok(())
}

fn kinds(rows: Vec<(String, String)>) -> Result<Vec<(AuxiliaryKind, String)>> {
    let read = |(kind, name): (String, String)| match AuxiliaryKind::parse(&kind) {
        Some(kind) => Ok((kind, name)),
        None => Err(corrupt("auxiliary", "kind", &name)),
    };
    rows.into_iter().map(read).collect()
}
