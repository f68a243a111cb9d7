//! Paths, the claims that stand at them, their references and their signatures.

use std::collections::HashMap;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, with_json_rows};
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

/// The paths of these hashes, in whatever state.
pub async fn find_all(
    connection: &mut Connection,
    cache: CacheId,
    hashes: impl IntoIterator<Item = StorePathHash>,
) -> Result<Vec<PathRow>> {
    let statement = Dialect::of(connection).pick(
        "SELECT p.id, p.state, p.published_at, p.changed_at, p.claim_id, c.claim_sha256, c.store_path, \
         c.nar_hash, c.nar_size, c.refs, c.file_hash, c.ext, c.compression, c.file_size, c.deriver, c.ca, \
         c.undeclared_refs, c.unfound_refs FROM paths p JOIN claims c ON c.id = p.claim_id \
         WHERE p.cache_id = $1 AND p.hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT p.id, p.state, p.published_at, p.changed_at, p.claim_id, c.claim_sha256, c.store_path, \
         c.nar_hash, c.nar_size, c.refs, c.file_hash, c.ext, c.compression, c.file_size, c.deriver, c.ca, \
         c.undeclared_refs, c.unfound_refs FROM paths p JOIN claims c ON c.id = p.claim_id \
         WHERE p.cache_id = $1 AND p.hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<Row> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(hashes.into_iter().map(|hash| hash.to_string())))
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Locks the rows of these hashes until the end of the transaction, in one order for all, and gives them as they
/// stand then.
pub async fn lock(
    connection: &mut Connection,
    cache: CacheId,
    hashes: impl IntoIterator<Item = StorePathHash> + Clone,
) -> Result<Vec<PathRow>> {
    if Dialect::of(connection) == Dialect::Postgres {
        let locked: Vec<(String,)> = sqlx::query_as(
            "SELECT id FROM paths WHERE cache_id = $1 \
             AND hash IN (SELECT json_array_elements_text($2::json)) ORDER BY hash FOR UPDATE",
        )
        .bind(cache.to_string())
        .bind(json_list(hashes.clone().into_iter().map(|hash| hash.to_string())))
        .fetch_all(&mut *connection)
        .await?;
        if locked.is_empty() {
            return Ok(Vec::new());
        }
    }
    find_all(connection, cache, hashes).await
}

/// The row of a path that never was here.
#[derive(Debug, Clone)]
pub struct NewPath {
    pub id: String,
    pub hash: StorePathHash,
    pub claim_id: String,
}

/// Makes the rows of paths that never were here. False: somebody else just made one of them, and this transaction is
/// to be given up: the next one meets it.
pub async fn insert(
    connection: &mut Connection,
    cache: CacheId,
    new: &[NewPath],
    now: Timestamp,
) -> Result<bool> {
    // In one order for all: two pushes of the same paths must not each wait for a row of the other.
    let mut ordered: Vec<_> = new.iter().collect();
    ordered.sort_unstable_by_key(|new| new.hash);
    let rows: Vec<_> = ordered
        .into_iter()
        .map(|new| json!({ "id": new.id, "hash": new.hash.as_str(), "claim_id": new.claim_id }))
        .collect();
    let statement = with_json_rows!(
        connection,
        "INSERT INTO paths (id, cache_id, hash, state, claim_id, published_at, changed_at) \
         SELECT r.value ->> 'id', $1, r.value ->> 'hash', 'published', r.value ->> 'claim_id', $3, $3",
        "$2",
        "WHERE TRUE ON CONFLICT (cache_id, hash) DO NOTHING"
    );
    let result = sqlx::query(statement)
        .bind(cache.to_string())
        .bind(Value::from(rows).to_string())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == new.len() as u64)
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

impl NewClaim<'_> {
    fn row(&self) -> Value {
        json!({
            "id": self.id,
            "path_id": self.path_id,
            "claim_sha256": self.claim_sha256.base32(),
            "store_path": self.claim.path.base_name(),
            "nar_hash": self.claim.nar_hash.base32(),
            "nar_size": i64::try_from(self.claim.nar_size).unwrap_or(i64::MAX),
            "refs": self.claim.references_text(),
            "file_hash": self.file.hash.base32(),
            "ext": self.file.extension.as_str(),
            "compression": self.compression.label(),
            "file_size": i64::try_from(self.file_size).unwrap_or(i64::MAX),
            "deriver": self.deriver.map(StorePath::base_name),
            "ca": self.ca,
            "ca_dropped": self.ca_dropped,
            "undeclared_refs": self.undeclared_refs,
            "unfound_refs": self.unfound_refs,
            "created_at": self.now.0,
        })
    }
}

/// Writes claims down with their references, one for each path, and answers with their ids in the order given. The same
/// claim, made before the path was deleted, keeps its id and takes the new file.
pub async fn insert_claims(connection: &mut Connection, new: &[NewClaim<'_>]) -> Result<Vec<String>> {
    macro_rules! insert {
        ($rows:literal) => {
            concat!(
                "INSERT INTO claims (id, path_id, claim_sha256, store_path, nar_hash, nar_size, refs, file_hash, \
                 ext, compression, file_size, deriver, ca, ca_dropped, undeclared_refs, unfound_refs, created_at) \
                 SELECT r.value ->> 'id', r.value ->> 'path_id', r.value ->> 'claim_sha256', \
                 r.value ->> 'store_path', r.value ->> 'nar_hash', CAST(r.value ->> 'nar_size' AS BIGINT), \
                 r.value ->> 'refs', r.value ->> 'file_hash', r.value ->> 'ext', r.value ->> 'compression', \
                 CAST(r.value ->> 'file_size' AS BIGINT), r.value ->> 'deriver', r.value ->> 'ca', \
                 r.value ->> 'ca_dropped', r.value ->> 'undeclared_refs', r.value ->> 'unfound_refs', \
                 CAST(r.value ->> 'created_at' AS BIGINT) FROM ",
                $rows,
                " WHERE TRUE ON CONFLICT (path_id, claim_sha256) DO UPDATE SET file_hash = excluded.file_hash, \
                 ext = excluded.ext, compression = excluded.compression, file_size = excluded.file_size, \
                 deriver = excluded.deriver, ca = excluded.ca, ca_dropped = excluded.ca_dropped, \
                 undeclared_refs = excluded.undeclared_refs, unfound_refs = excluded.unfound_refs \
                 RETURNING path_id, id"
            )
        };
    }
    // References of a claim that is there already are there as well: it has another id than the one given.
    let statement = Dialect::of(connection).pick(
        concat!(
            "WITH written AS (",
            insert!("json_array_elements($1::json) AS r (value)"),
            "), refs AS (INSERT INTO path_refs (claim_id, ref_hash) \
             SELECT w.id, r.value ->> 'hash' FROM json_array_elements($2::json) AS r (value) \
             JOIN written w ON w.id = r.value ->> 'claim') SELECT path_id, id FROM written"
        ),
        concat!(
            insert!("jsonb_each($1) AS r"),
            "; INSERT INTO path_refs (claim_id, ref_hash) SELECT c.id, r.value ->> 'hash' \
             FROM jsonb_each($2) AS r JOIN claims c ON c.id = r.value ->> 'claim'"
        ),
    );
    let references = new.iter().flat_map(|new| {
        let references = new.claim.references.iter();
        references.map(|path| json!({ "claim": new.id, "hash": path.hash().as_str() }))
    });
    let references: Vec<_> = references.collect();
    let rows: Vec<_> = new.iter().map(NewClaim::row).collect();
    let written: Vec<(String, String)> = sqlx::query_as(statement)
        .bind(Value::from(rows).to_string())
        .bind(Value::from(references).to_string())
        .fetch_all(connection)
        .await?;
    let written: HashMap<_, _> = written.into_iter().collect();
    let ids = new.iter().map(|new| written.get(&new.path_id).cloned());
    ids.collect::<Option<_>>().ok_or(DbError::Changed { table: "claims" })
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

/// The published or withdrawn paths of this cache that carry this NAR, in whatever file, at most `limit`.
pub async fn standing_with_nar(
    connection: &mut Connection,
    cache: CacheId,
    nar: &NarHash,
    limit: i64,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT c.store_path FROM claims c JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE c.nar_hash = $1 AND p.cache_id = $2 AND p.state IN ('published', 'withdrawn') LIMIT $3",
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

/// A signature made here, and the leaf that accounts for it.
#[derive(Debug, Clone)]
pub struct MadeSignature {
    pub claim_id: String,
    pub signature: Signature,
    pub leaf: i64,
}

impl MadeSignature {
    /// As `put_signatures_sql` reads it.
    pub(super) fn row(&self) -> Value {
        let Self { claim_id, signature, leaf } = self;
        let sig = HEXLOWER.encode(&signature.bytes);
        json!({ "claim": claim_id, "key": signature.name.as_str(), "sig": sig, "leaf": leaf })
    }
}

/// The texts that put signatures in the places of earlier ones by the same keys; the parameter is a list of
/// [`MadeSignature::row`].
macro_rules! put_signatures_sql {
    (postgres $parameter:literal) => {
        concat!(
            "INSERT INTO signatures (claim_id, key_name, sig, leaf) \
             SELECT r.value ->> 'claim', r.value ->> 'key', decode(r.value ->> 'sig', 'hex'), \
             CAST(r.value ->> 'leaf' AS BIGINT) FROM json_array_elements(",
            $parameter,
            "::json) AS r (value) WHERE TRUE \
             ON CONFLICT (claim_id, key_name) DO UPDATE SET sig = excluded.sig, leaf = excluded.leaf"
        )
    };
    (sqlite $parameter:literal) => {
        concat!(
            "INSERT INTO signatures (claim_id, key_name, sig, leaf) \
             SELECT r.value ->> 'claim', r.value ->> 'key', unhex(r.value ->> 'sig'), \
             CAST(r.value ->> 'leaf' AS BIGINT) FROM jsonb_each(",
            $parameter,
            ") AS r WHERE TRUE \
             ON CONFLICT (claim_id, key_name) DO UPDATE SET sig = excluded.sig, leaf = excluded.leaf"
        )
    };
}
pub(super) use put_signatures_sql;

/// Puts signatures in the places of earlier ones by the same keys, where their leaves stand already.
pub async fn put_signatures(connection: &mut Connection, made: &[MadeSignature]) -> Result<()> {
    let statement =
        Dialect::of(connection).pick(put_signatures_sql!(postgres "$1"), put_signatures_sql!(sqlite "$1"));
    let rows: Vec<_> = made.iter().map(MadeSignature::row).collect();
    sqlx::query(statement).bind(Value::from(rows).to_string()).execute(connection).await?;
    Ok(())
}

/// The signatures on a claim, by key name.
pub async fn signatures(connection: &mut Connection, claim_id: &str) -> Result<Vec<SignatureRow>> {
    let mut all = signatures_of(connection, [claim_id]).await?;
    Ok(all.remove(claim_id).unwrap_or_default())
}

/// The signatures on each of these claims, by key name.
pub async fn signatures_of(
    connection: &mut Connection,
    claim_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<HashMap<String, Vec<SignatureRow>>> {
    let statement = Dialect::of(connection).pick(
        "SELECT claim_id, key_name, sig, leaf FROM signatures \
         WHERE claim_id IN (SELECT json_array_elements_text($1::json)) ORDER BY key_name",
        "SELECT claim_id, key_name, sig, leaf FROM signatures \
         WHERE claim_id IN (SELECT value FROM json_each($1)) ORDER BY key_name",
    );
    let rows: Vec<(String, String, Vec<u8>, Option<i64>)> =
        sqlx::query_as(statement).bind(json_list(claim_ids)).fetch_all(connection).await?;
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    for (claim_id, name, bytes, leaf) in rows {
        let corrupt = |column| DbError::Corrupt { table: "signatures", column, row: claim_id.clone() };
        let name: KeyName = name.parse().map_err(|_| corrupt("key_name"))?;
        let bytes = bytes.try_into().map_err(|_| corrupt("sig"))?;
        let row = SignatureRow { signature: Signature { name, bytes }, leaf };
        all.entry(claim_id).or_default().push(row);
    }
    Ok(all)
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
