//! NARs that this server streamed and checked, and where their bytes stand.

use super::dialect::Dialect;
use super::{Connection, DbError, Result, corrupt};
use crate::access::{CacheId, TokenId};
use crate::nix::compression::{Compression, NarExtension, NarFileName};
use crate::nix::hash::{FileHash, NarHash, Sha256Digest};
use crate::time::Timestamp;

/// Where the bytes of a measured NAR are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// Verified, and on its way to its final name: neither served nor deleted meanwhile.
    Arriving,
    /// In storage, as far as is known.
    Stored,
    /// Should be in storage and is not; another push heals it.
    Lost,
    /// Condemned; the outbox deletes the object.
    Doomed,
    /// Gone.
    Deleted,
}

impl FileState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Arriving => "arriving",
            Self::Stored => "stored",
            Self::Lost => "lost",
            Self::Doomed => "doomed",
            Self::Deleted => "deleted",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Arriving, Self::Stored, Self::Lost, Self::Doomed, Self::Deleted]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// One measured NAR.
#[derive(Debug, Clone)]
pub struct Measured {
    pub id: String,
    pub file: NarFileName,
    pub state: FileState,
    /// Counts each time the object was made or doomed.
    pub generation: i64,
    pub compression: Compression,
    pub file_size: u64,
    pub nar_hash: NarHash,
    pub nar_size: u64,
    /// Hashes found in the NAR, separated by spaces.
    pub found_refs: String,
    pub found_refs_truncated: bool,
    /// SHA-256 of the contents and whether it is executable, where the NAR is one regular file.
    pub single_file: Option<(Sha256Digest, bool)>,
    pub stored_at: Timestamp,
    pub deleting_until: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    file_hash: String,
    ext: String,
    state: String,
    generation: i64,
    compression: String,
    file_size: i64,
    nar_hash: String,
    nar_size: i64,
    found_refs: String,
    found_refs_truncated_at: Option<i64>,
    single_file_sha256: Option<String>,
    single_file_executable: Option<i64>,
    stored_at: i64,
    deleting_until: Option<i64>,
}

impl Row {
    fn read(self) -> Result<Measured> {
        let corrupt = |column| DbError::Corrupt { table: "measured", column, row: self.id.clone() };
        let single_file = match (&self.single_file_sha256, self.single_file_executable) {
            (Some(digest), executable) => {
                let digest = Sha256Digest::from_base32(digest).map_err(|_| corrupt("single_file_sha256"))?;
                Some((digest, executable == Some(1)))
            }
            (None, _) => None,
        };
        Ok(Measured {
            file: file_name(&self.file_hash, &self.ext).ok_or_else(|| corrupt("file_hash"))?,
            state: FileState::parse(&self.state).ok_or_else(|| corrupt("state"))?,
            generation: self.generation,
            compression: Compression::from_label(&self.compression).map_err(|_| corrupt("compression"))?,
            file_size: u64::try_from(self.file_size).map_err(|_| corrupt("file_size"))?,
            nar_hash: NarHash::from_base32(&self.nar_hash).map_err(|_| corrupt("nar_hash"))?,
            nar_size: u64::try_from(self.nar_size).map_err(|_| corrupt("nar_size"))?,
            found_refs: self.found_refs,
            found_refs_truncated: self.found_refs_truncated_at.is_some(),
            single_file,
            stored_at: Timestamp(self.stored_at),
            deleting_until: self.deleting_until.map(Timestamp),
            id: self.id,
        })
    }
}

/// The columns `file_hash` and `ext` as the file's name.
pub(super) fn file_name(hash: &str, ext: &str) -> Option<NarFileName> {
    let extension = NarExtension::ALL.into_iter().find(|extension| extension.as_str() == ext)?;
    Some(NarFileName { hash: FileHash::from_base32(hash).ok()?, extension })
}

/// The row of a file in this cache.
pub async fn find(
    connection: &mut Connection,
    cache: CacheId,
    file: &NarFileName,
) -> Result<Option<Measured>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, file_hash, ext, state, generation, compression, file_size, nar_hash, nar_size, \
         found_refs, found_refs_truncated_at, single_file_sha256, single_file_executable, stored_at, \
         deleting_until FROM measured WHERE cache_id = $1 AND file_hash = $2 AND ext = $3",
    )
    .bind(cache.to_string())
    .bind(file.hash.base32())
    .bind(file.extension.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Every file of this cache that carries this NAR, in whatever compression.
pub async fn of_nar(connection: &mut Connection, cache: CacheId, nar: &NarHash) -> Result<Vec<Measured>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, file_hash, ext, state, generation, compression, file_size, nar_hash, nar_size, \
         found_refs, found_refs_truncated_at, single_file_sha256, single_file_executable, stored_at, \
         deleting_until FROM measured WHERE cache_id = $1 AND nar_hash = $2",
    )
    .bind(cache.to_string())
    .bind(nar.base32())
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Whether a published or withdrawn path of this cache needs the file.
pub async fn is_claimed(connection: &mut Connection, cache: CacheId, file: &NarFileName) -> Result<bool> {
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT c.id FROM claims c JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE c.file_hash = $1 AND c.ext = $2 AND p.cache_id = $3 \
         AND p.state IN ('published', 'withdrawn') LIMIT 1",
    )
    .bind(file.hash.base32())
    .bind(file.extension.as_str())
    .bind(cache.to_string())
    .fetch_optional(connection)
    .await?;
    Ok(row.is_some())
}

/// What a finished upload writes down.
#[derive(Debug)]
pub struct NewMeasured<'a> {
    pub id: String,
    pub cache: CacheId,
    pub file: NarFileName,
    pub compression: Compression,
    pub file_size: u64,
    pub nar_hash: NarHash,
    pub nar_size: u64,
    pub found_refs: &'a str,
    pub found_refs_truncated: bool,
    pub single_file: Option<(Sha256Digest, bool)>,
    pub token: TokenId,
    pub stored_at: Timestamp,
}

/// What an upload that is verified meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The object may be put in its place; [`store`] then expects this generation.
    Generation(i64),
    /// A DELETE that was sent may land until then, and must not meet the new object.
    Wait(Timestamp),
}

/// Writes down that the object is about to stand in its place. From then on no deletion that was wished
/// for earlier touches it, and a row that stays like this tells of bytes that nobody acknowledged.
pub async fn arrive(connection: &mut Connection, new: &NewMeasured<'_>) -> Result<Arrival> {
    let statement = Dialect::of(connection).pick(
        "SELECT deleting_until FROM measured WHERE cache_id = $1 AND file_hash = $2 AND ext = $3 FOR UPDATE",
        "SELECT deleting_until FROM measured WHERE cache_id = $1 AND file_hash = $2 AND ext = $3",
    );
    let standing: Option<(Option<i64>,)> = sqlx::query_as(statement)
        .bind(new.cache.to_string())
        .bind(new.file.hash.base32())
        .bind(new.file.extension.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    if let Some((Some(until),)) = standing
        && until > new.stored_at.0
    {
        return Ok(Arrival::Wait(Timestamp(until)));
    }
    let single_file_sha256 = new.single_file.map(|(digest, _)| digest.base32());
    let single_file_executable = new.single_file.map(|(_, executable)| i64::from(executable));
    // An object that stands stays as it is: the same bytes come once more.
    let (generation,): (i64,) = sqlx::query_as(
        "INSERT INTO measured (id, cache_id, file_hash, ext, state, generation, compression, file_size, \
         nar_hash, nar_size, found_refs, found_refs_truncated_at, single_file_sha256, \
         single_file_executable, token_id, stored_at) \
         VALUES ($1, $2, $3, $4, 'arriving', 1, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
         ON CONFLICT (cache_id, file_hash, ext) DO UPDATE SET \
         state = CASE WHEN measured.state = 'stored' THEN 'stored' ELSE 'arriving' END, \
         generation = CASE WHEN measured.state IN ('stored', 'arriving') THEN measured.generation \
         ELSE measured.generation + 1 END, \
         stored_at = CASE WHEN measured.state = 'stored' THEN measured.stored_at \
         ELSE excluded.stored_at END, deleting_until = NULL RETURNING generation",
    )
    .bind(&new.id)
    .bind(new.cache.to_string())
    .bind(new.file.hash.base32())
    .bind(new.file.extension.as_str())
    .bind(new.compression.label())
    .bind(i64::try_from(new.file_size).unwrap_or(i64::MAX))
    .bind(new.nar_hash.base32())
    .bind(i64::try_from(new.nar_size).unwrap_or(i64::MAX))
    .bind(new.found_refs)
    .bind(new.found_refs_truncated.then_some(new.stored_at.0))
    .bind(single_file_sha256)
    .bind(single_file_executable)
    .bind(new.token.to_string())
    .bind(new.stored_at.0)
    .fetch_one(connection)
    .await?;
    Ok(Arrival::Generation(generation))
}

/// Writes down that the object stands in storage, provided that nothing happened to its row since
/// [`arrive`]. False: it was condemned in the meantime.
pub async fn store(
    connection: &mut Connection,
    cache: CacheId,
    file: &NarFileName,
    token: TokenId,
    generation: i64,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE measured SET state = 'stored', token_id = $4, stored_at = $6 \
         WHERE cache_id = $1 AND file_hash = $2 AND ext = $3 AND generation = $5 \
         AND state IN ('arriving', 'stored')",
    )
    .bind(cache.to_string())
    .bind(file.hash.base32())
    .bind(file.extension.as_str())
    .bind(token.to_string())
    .bind(generation)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Writes down that a stored object was found missing, or of another size.
pub async fn lose(connection: &mut Connection, id: &str, generation: i64) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE measured SET state = 'lost' WHERE id = $1 AND generation = $2 AND state = 'stored'",
    )
    .bind(id)
    .bind(generation)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Condemns the object: from the commit on it is not served, and the outbox deletes it.
pub async fn doom(connection: &mut Connection, id: &str) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE measured SET state = 'doomed', generation = generation + 1 \
         WHERE id = $1 AND state <> 'doomed'",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Notes until when a DELETE that is about to be sent may land. False: it is no longer condemned.
pub async fn deleting(connection: &mut Connection, id: &str, until: Timestamp) -> Result<bool> {
    let result = sqlx::query("UPDATE measured SET deleting_until = $2 WHERE id = $1 AND state = 'doomed'")
        .bind(id)
        .bind(until.0)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// Writes down that the object is gone.
pub async fn deleted(connection: &mut Connection, id: &str, generation: i64) -> Result<()> {
    sqlx::query(
        "UPDATE measured SET state = 'deleted', deleting_until = NULL \
         WHERE id = $1 AND generation = $2 AND state = 'doomed'",
    )
    .bind(id)
    .bind(generation)
    .execute(connection)
    .await?;
    Ok(())
}

/// NARs stored before `before`, and such that began to arrive before `arriving_before` and never did, that no claim of a published or withdrawn path of their cache names.
pub async fn unclaimed(
    connection: &mut Connection,
    before: Timestamp,
    arriving_before: Timestamp,
    limit: i64,
) -> Result<Vec<Unclaimed>> {
    let rows: Vec<(String, String, String, String)> = sqlx::query_as(
        "SELECT m.id, m.cache_id, m.file_hash, m.ext FROM measured m \
         WHERE (m.state IN ('stored', 'lost') AND m.stored_at < $1 \
         OR m.state = 'arriving' AND m.stored_at < $3) AND NOT EXISTS (SELECT 1 FROM claims c JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE c.file_hash = m.file_hash AND c.ext = m.ext AND p.cache_id = m.cache_id \
         AND p.state IN ('published', 'withdrawn')) \
         ORDER BY m.stored_at ASC LIMIT $2",
    )
    .bind(before.0)
    .bind(limit)
    .bind(arriving_before.0)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(id, cache, hash, ext)| {
            let cache = cache.parse().map_err(|_| corrupt("measured", "cache_id", &id))?;
            let file = file_name(&hash, &ext).ok_or_else(|| corrupt("measured", "file_hash", &id))?;
            Ok(Unclaimed { id, cache, file })
        })
        .collect()
}

/// A stored NAR that nobody's narinfo names.
#[derive(Debug)]
pub struct Unclaimed {
    pub id: String,
    pub cache: CacheId,
    pub file: NarFileName,
}

/// Files of this cache that are not condemned yet, at most `limit`: for the cache's own end.
pub async fn standing(connection: &mut Connection, cache: CacheId, limit: i64) -> Result<Vec<Unclaimed>> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT id, file_hash, ext FROM measured WHERE cache_id = $1 \
         AND state IN ('stored', 'lost', 'arriving') LIMIT $2",
    )
    .bind(cache.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(id, hash, ext)| {
            let file = file_name(&hash, &ext).ok_or_else(|| corrupt("measured", "file_hash", &id))?;
            Ok(Unclaimed { id, cache, file })
        })
        .collect()
}
