//! Paths, the claims that stand at them, their references and their signatures.

use super::dialect::{Dialect, json_list};
use super::measured::file_name;
use super::{Connection, DbError, PageBounds, Result};
use crate::access::{CacheId, ContributorId, TokenId};
use crate::nix::claim::{Claim, parse_references};
use crate::nix::compression::{Compression, NarFileName};
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::nix::signature::{KeyName, Signature};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::time::Timestamp;

/// The states of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    Pending,
    Published,
    Conflict,
    Withdrawn,
    Deleted,
}

impl PathState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Published, Self::Conflict, Self::Withdrawn, Self::Deleted];

    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Published => "published",
            Self::Conflict => "conflict",
            Self::Withdrawn => "withdrawn",
            Self::Deleted => "deleted",
        }
    }

    /// Reads what [`PathState::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A path and the claim that stands there, or stood last.
#[derive(Debug, Clone)]
pub struct PathRow {
    pub id: String,
    pub state: PathState,
    pub claim_id: String,
    pub claim_sha256: Sha256Digest,
    pub claim: Claim,
    pub file: NarFileName,
    pub compression: Compression,
    pub file_size: u64,
    pub deriver: Option<StorePath>,
    pub ca: Option<String>,
    pub undeclared_refs: String,
    pub unfound_refs: String,
    pub published_at: Timestamp,
    pub changed_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    state: String,
    published_at: i64,
    changed_at: i64,
    claim_id: String,
    claim_sha256: String,
    store_path: String,
    nar_hash: String,
    nar_size: i64,
    refs: String,
    file_hash: String,
    ext: String,
    compression: String,
    file_size: i64,
    deriver: Option<String>,
    ca: Option<String>,
    undeclared_refs: String,
    unfound_refs: String,
}

impl Row {
    fn read(self) -> Result<PathRow> {
        let corrupt = |column| DbError::Corrupt { table: "claims", column, row: self.claim_id.clone() };
        let deriver = self.deriver.as_deref().map(StorePath::from_base_name).transpose();
        let claim = Claim {
            path: StorePath::from_base_name(&self.store_path).map_err(|_| corrupt("store_path"))?,
            nar_hash: NarHash::from_base32(&self.nar_hash).map_err(|_| corrupt("nar_hash"))?,
            nar_size: u64::try_from(self.nar_size).map_err(|_| corrupt("nar_size"))?,
            references: parse_references(&self.refs).map_err(|_| corrupt("refs"))?,
        };
        Ok(PathRow {
            state: PathState::parse(&self.state).ok_or_else(|| corrupt("state"))?,
            claim_sha256: Sha256Digest::from_base32(&self.claim_sha256)
                .map_err(|_| corrupt("claim_sha256"))?,
            claim,
            file: file_name(&self.file_hash, &self.ext).ok_or_else(|| corrupt("file_hash"))?,
            compression: Compression::from_label(&self.compression).map_err(|_| corrupt("compression"))?,
            file_size: u64::try_from(self.file_size).map_err(|_| corrupt("file_size"))?,
            deriver: deriver.map_err(|_| corrupt("deriver"))?,
            published_at: Timestamp(self.published_at),
            changed_at: Timestamp(self.changed_at),
            id: self.id,
            claim_id: self.claim_id,
            ca: self.ca,
            undeclared_refs: self.undeclared_refs,
            unfound_refs: self.unfound_refs,
        })
    }
}

/// The path of this hash, in whatever state.
pub async fn find(
    connection: &mut Connection,
    cache: CacheId,
    hash: StorePathHash,
) -> Result<Option<PathRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT p.id, p.state, p.published_at, p.changed_at, p.claim_id, c.claim_sha256, c.store_path, \
         c.nar_hash, c.nar_size, c.refs, c.file_hash, c.ext, c.compression, c.file_size, c.deriver, c.ca, \
         c.undeclared_refs, c.unfound_refs \
         FROM paths p JOIN claims c ON c.id = p.claim_id WHERE p.cache_id = $1 AND p.hash = $2",
    )
    .bind(cache.to_string())
    .bind(hash.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Locks the row of this hash until the end of the transaction; false where there is none.
pub async fn lock(connection: &mut Connection, cache: CacheId, hash: StorePathHash) -> Result<bool> {
    let statement = Dialect::of(connection).pick(
        "SELECT id FROM paths WHERE cache_id = $1 AND hash = $2 FOR UPDATE",
        "SELECT id FROM paths WHERE cache_id = $1 AND hash = $2",
    );
    let row: Option<(String,)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(hash.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}

/// Makes the row of a path that never was here. False: somebody else just made it; lock and look again.
pub async fn insert(
    connection: &mut Connection,
    id: &str,
    cache: CacheId,
    hash: StorePathHash,
    claim_id: &str,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO paths (id, cache_id, hash, state, claim_id, published_at, changed_at) \
         VALUES ($1, $2, $3, 'published', $4, $5, $5) ON CONFLICT (cache_id, hash) DO NOTHING",
    )
    .bind(id)
    .bind(cache.to_string())
    .bind(hash.as_str())
    .bind(claim_id)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Puts another claim at a path that is not published, and publishes it.
pub async fn republish(connection: &mut Connection, id: &str, claim_id: &str, now: Timestamp) -> Result<()> {
    let result = sqlx::query(
        "UPDATE paths SET state = 'published', claim_id = $2, published_at = $3, changed_at = $3 \
         WHERE id = $1 AND state <> 'published'",
    )
    .bind(id)
    .bind(claim_id)
    .bind(now.0)
    .execute(connection)
    .await?;
    if result.rows_affected() == 1 { Ok(()) } else { Err(DbError::Changed { table: "paths" }) }
}

/// Moves a path to another state. False: it was not in `from`.
pub async fn change_state(
    connection: &mut Connection,
    id: &str,
    from: PathState,
    to: PathState,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query("UPDATE paths SET state = $3, changed_at = $4 WHERE id = $1 AND state = $2")
        .bind(id)
        .bind(from.as_str())
        .bind(to.as_str())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// A claim to write down.
#[derive(Debug)]
pub struct NewClaim<'a> {
    pub id: String,
    pub path_id: String,
    pub claim: &'a Claim,
    pub claim_sha256: Sha256Digest,
    pub file: NarFileName,
    pub compression: Compression,
    pub file_size: u64,
    pub deriver: Option<&'a StorePath>,
    pub ca: Option<String>,
    pub ca_dropped: Option<String>,
    pub undeclared_refs: &'a str,
    pub unfound_refs: &'a str,
    pub now: Timestamp,
}

/// Writes the claim down and answers with its id. The same claim, made before the path was deleted,
/// keeps its id and takes the new file.
pub async fn insert_claim(connection: &mut Connection, new: &NewClaim<'_>) -> Result<String> {
    let (id,): (String,) = sqlx::query_as(
        "INSERT INTO claims (id, path_id, claim_sha256, store_path, nar_hash, nar_size, refs, file_hash, \
         ext, compression, file_size, deriver, ca, ca_dropped, undeclared_refs, unfound_refs, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
         ON CONFLICT (path_id, claim_sha256) DO UPDATE SET file_hash = excluded.file_hash, \
         ext = excluded.ext, compression = excluded.compression, file_size = excluded.file_size, \
         deriver = excluded.deriver, ca = excluded.ca, ca_dropped = excluded.ca_dropped, \
         undeclared_refs = excluded.undeclared_refs, unfound_refs = excluded.unfound_refs \
         RETURNING id",
    )
    .bind(&new.id)
    .bind(&new.path_id)
    .bind(new.claim_sha256.base32())
    .bind(new.claim.path.base_name())
    .bind(new.claim.nar_hash.base32())
    .bind(i64::try_from(new.claim.nar_size).unwrap_or(i64::MAX))
    .bind(new.claim.references_text())
    .bind(new.file.hash.base32())
    .bind(new.file.extension.as_str())
    .bind(new.compression.label())
    .bind(i64::try_from(new.file_size).unwrap_or(i64::MAX))
    .bind(new.deriver.map(StorePath::base_name))
    .bind(&new.ca)
    .bind(&new.ca_dropped)
    .bind(new.undeclared_refs)
    .bind(new.unfound_refs)
    .bind(new.now.0)
    .fetch_one(&mut *connection)
    .await?;
    if id == new.id && !new.claim.references.is_empty() {
        let statement = Dialect::of(connection).pick(
            "INSERT INTO path_refs (claim_id, ref_hash) \
             SELECT $1, v FROM json_array_elements_text($2::json) AS t (v)",
            "INSERT INTO path_refs (claim_id, ref_hash) SELECT $1, value FROM json_each($2)",
        );
        let hashes = new.claim.references.iter().map(|path| path.hash().to_string());
        sqlx::query(statement).bind(&id).bind(json_list(hashes)).execute(connection).await?;
    }
    Ok(id)
}

/// Those of `hashes` that are published in this cache, as base names.
pub async fn published_among(
    connection: &mut Connection,
    cache: CacheId,
    hashes: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<StorePath>> {
    let statement = Dialect::of(connection).pick(
        "SELECT c.store_path FROM paths p JOIN claims c ON c.id = p.claim_id \
         WHERE p.cache_id = $1 AND p.state = 'published' \
         AND p.hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT c.store_path FROM paths p JOIN claims c ON c.id = p.claim_id \
         WHERE p.cache_id = $1 AND p.state = 'published' AND p.hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<(String,)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(hashes))
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|(text,)| {
            StorePath::from_base_name(&text).map_err(|_| DbError::Corrupt {
                table: "claims",
                column: "store_path",
                row: text,
            })
        })
        .collect()
}

/// Whether the narinfo of a published path of this cache names this file.
pub async fn is_published(connection: &mut Connection, cache: CacheId, file: &NarFileName) -> Result<bool> {
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT c.id FROM claims c JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE c.file_hash = $1 AND c.ext = $2 AND p.cache_id = $3 AND p.state = 'published' LIMIT 1",
    )
    .bind(file.hash.base32())
    .bind(file.extension.as_str())
    .bind(cache.to_string())
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// The published paths of this cache that carry this NAR, in whatever file, at most `limit`.
pub async fn published_with_nar(
    connection: &mut Connection,
    cache: CacheId,
    nar: &NarHash,
    limit: i64,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT c.store_path FROM claims c JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE c.nar_hash = $1 AND p.cache_id = $2 AND p.state = 'published' LIMIT $3",
    )
    .bind(nar.base32())
    .bind(cache.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(path,)| path).collect())
}

/// The published paths of this cache that refer to `hash` (other than itself), at most `limit`.
pub async fn referrers(
    connection: &mut Connection,
    cache: CacheId,
    hash: StorePathHash,
    limit: i64,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT c.store_path FROM path_refs r JOIN claims c ON c.id = r.claim_id \
         JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE r.ref_hash = $1 AND p.cache_id = $2 AND p.state = 'published' AND p.hash <> $1 LIMIT $3",
    )
    .bind(hash.as_str())
    .bind(cache.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(path,)| path).collect())
}

/// A signature on a claim. `leaf` is the log index of one made here.
#[derive(Debug, Clone)]
pub struct SignatureRow {
    pub signature: Signature,
    pub leaf: Option<i64>,
}

/// Adds a signature; the first one of a key name stays. True: it is new.
pub async fn insert_signature(
    connection: &mut Connection,
    claim_id: &str,
    signature: &Signature,
    leaf: Option<i64>,
) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO signatures (claim_id, key_name, sig, leaf) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (claim_id, key_name) DO NOTHING",
    )
    .bind(claim_id)
    .bind(signature.name.as_str())
    .bind(&signature.bytes[..])
    .bind(leaf)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Puts the signature that leaf `leaf` accounts for in the place of an earlier one by the same key.
pub async fn replace_signature(
    connection: &mut Connection,
    claim_id: &str,
    signature: &Signature,
    leaf: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO signatures (claim_id, key_name, sig, leaf) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (claim_id, key_name) DO UPDATE SET sig = excluded.sig, leaf = excluded.leaf",
    )
    .bind(claim_id)
    .bind(signature.name.as_str())
    .bind(&signature.bytes[..])
    .bind(leaf)
    .execute(connection)
    .await?;
    Ok(())
}

/// The signatures on a claim, by key name.
pub async fn signatures(connection: &mut Connection, claim_id: &str) -> Result<Vec<SignatureRow>> {
    let rows: Vec<(String, Vec<u8>, Option<i64>)> =
        sqlx::query_as("SELECT key_name, sig, leaf FROM signatures WHERE claim_id = $1 ORDER BY key_name")
            .bind(claim_id)
            .fetch_all(connection)
            .await?;
    rows.into_iter()
        .map(|(name, bytes, leaf)| {
            let corrupt = |column| DbError::Corrupt { table: "signatures", column, row: claim_id.to_owned() };
            let name: KeyName = name.parse().map_err(|_| corrupt("key_name"))?;
            let bytes = bytes.try_into().map_err(|_| corrupt("sig"))?;
            Ok(SignatureRow { signature: Signature { name, bytes }, leaf })
        })
        .collect()
}

/// Which paths a list shows.
#[derive(Debug, Clone, Default)]
pub struct PathFilter {
    pub contributor: Option<ContributorId>,
    pub token: Option<TokenId>,
    /// Those whose state changed at or after this moment.
    pub since: Option<Timestamp>,
    pub state: Option<PathState>,
}

/// A path in a list. Who: the earliest evidence by a push.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PathSummaryRow {
    /// The cursor.
    pub id: String,
    /// Base name.
    pub store_path: String,
    pub state: String,
    pub nar_size: i64,
    pub file_size: i64,
    pub contributor: Option<String>,
    pub contributor_id: Option<String>,
    pub token_id: Option<String>,
    /// Names of the keys that signed it here, separated by spaces.
    pub keys: String,
    pub published_at: i64,
    pub changed_at: i64,
}

/// A page of a cache's paths, in the order in which they first came.
pub async fn list(
    connection: &mut Connection,
    cache: CacheId,
    filter: &PathFilter,
    page: &PageBounds,
) -> Result<Vec<PathSummaryRow>> {
    macro_rules! select {
        ($keys:literal, $compare:literal, $order:literal) => {
            concat!(
                "SELECT p.id, c.store_path, p.state, c.nar_size, c.file_size, k.name AS contributor, \
                 k.id AS contributor_id, e.token_id, ",
                "COALESCE((SELECT ",
                $keys,
                " FROM signatures s WHERE s.claim_id = c.id \
                 AND s.leaf IS NOT NULL), '') AS keys, p.published_at, p.changed_at \
                 FROM paths p JOIN claims c ON c.id = p.claim_id \
                 LEFT JOIN evidence e ON e.id = (SELECT MIN(f.id) FROM evidence f \
                 WHERE f.claim_id = c.id AND f.source_kind = 'contributor') \
                 LEFT JOIN contributors k ON k.id = e.source_id \
                 WHERE p.cache_id = $1 AND ($2 IS NULL OR p.id ",
                $compare,
                " $2) \
                 AND ($3 IS NULL OR p.state = $3) AND ($4 IS NULL OR p.changed_at >= $4) \
                 AND ($5 IS NULL OR EXISTS (SELECT 1 FROM evidence g WHERE g.claim_id = c.id \
                 AND g.source_kind = 'contributor' AND g.source_id = $5)) \
                 AND ($6 IS NULL OR EXISTS (SELECT 1 FROM evidence h WHERE h.claim_id = c.id \
                 AND h.token_id = $6)) \
                 ORDER BY p.id ",
                $order,
                " LIMIT $7"
            )
        };
    }
    let dialect = Dialect::of(connection);
    let statement = if page.descending {
        dialect.pick(
            select!("STRING_AGG(s.key_name, ' ' ORDER BY s.key_name)", "<", "DESC"),
            select!("GROUP_CONCAT(s.key_name, ' ')", "<", "DESC"),
        )
    } else {
        dialect.pick(
            select!("STRING_AGG(s.key_name, ' ' ORDER BY s.key_name)", ">", "ASC"),
            select!("GROUP_CONCAT(s.key_name, ' ')", ">", "ASC"),
        )
    };
    let rows = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(page.after.as_deref())
        .bind(filter.state.map(PathState::as_str))
        .bind(filter.since.map(|since| since.0))
        .bind(filter.contributor.map(|id| id.to_string()))
        .bind(filter.token.map(|id| id.to_string()))
        .bind(page.limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}
