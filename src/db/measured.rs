//! NARs that this server streamed and checked, and where their bytes stand.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, update_by_json_rows, with_json_rows};
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

/// The rows of those of `files` that this cache has one of.
pub async fn find_all(
    connection: &mut Connection,
    cache: CacheId,
    files: impl IntoIterator<Item = NarFileName>,
) -> Result<HashMap<NarFileName, Measured>> {
    let statement = Dialect::of(connection).pick(
        "SELECT id, file_hash, ext, state, generation, compression, file_size, nar_hash, nar_size, \
         found_refs, found_refs_truncated_at, single_file_sha256, single_file_executable, stored_at, \
         deleting_until FROM measured WHERE cache_id = $1 \
         AND file_hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT id, file_hash, ext, state, generation, compression, file_size, nar_hash, nar_size, \
         found_refs, found_refs_truncated_at, single_file_sha256, single_file_executable, stored_at, \
         deleting_until FROM measured WHERE cache_id = $1 AND file_hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<Row> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(files.into_iter().map(|file| file.hash.base32())))
        .fetch_all(connection)
        .await?;
    let read = |row: Row| row.read().map(|measured| (measured.file, measured));
    rows.into_iter().map(read).collect()
}

/// How large the column `found_refs` of each of `files` is, in bytes: what [`find_all`] would hold of it.
pub async fn found_refs_sizes(
    connection: &mut Connection,
    cache: CacheId,
    files: impl IntoIterator<Item = NarFileName>,
) -> Result<HashMap<NarFileName, u64>> {
    let statement = Dialect::of(connection).pick(
        "SELECT file_hash, ext, CAST(LENGTH(found_refs) AS BIGINT) FROM measured WHERE cache_id = $1 \
         AND file_hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT file_hash, ext, LENGTH(found_refs) FROM measured WHERE cache_id = $1 \
         AND file_hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<(String, String, i64)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(files.into_iter().map(|file| file.hash.base32())))
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|(hash, ext, size)| {
            let file = file_name(&hash, &ext).ok_or_else(|| corrupt("measured", "file_hash", &hash))?;
            Ok((file, u64::try_from(size).unwrap_or(0)))
        })
        .collect()
}

/// State and generation of those of `files` that this cache has a row of.
pub async fn states(
    connection: &mut Connection,
    cache: CacheId,
    files: impl IntoIterator<Item = NarFileName>,
) -> Result<HashMap<NarFileName, (FileState, i64)>> {
    let standings = standings(connection, cache, files).await?;
    Ok(standings.into_iter().map(|row| (row.file, (row.state, row.generation))).collect())
}

/// Of these files, those that have a row in this cache, and how they stand.
pub async fn standings(
    connection: &mut Connection,
    cache: CacheId,
    files: impl IntoIterator<Item = NarFileName>,
) -> Result<Vec<Standing>> {
    let statement = Dialect::of(connection).pick(
        "SELECT id, file_hash, ext, state, generation, stored_at FROM measured \
         WHERE cache_id = $1 AND file_hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT id, file_hash, ext, state, generation, stored_at FROM measured \
         WHERE cache_id = $1 AND file_hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<(String, String, String, String, i64, i64)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(files.into_iter().map(|file| file.hash.base32())))
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|(id, hash, ext, state, generation, stored_at)| {
            let file = file_name(&hash, &ext).ok_or_else(|| corrupt("measured", "file_hash", &id))?;
            let state = FileState::parse(&state).ok_or_else(|| corrupt("measured", "state", &id))?;
            Ok(Standing { id, file, state, generation, stored_at: Timestamp(stored_at) })
        })
        .collect()
}

/// How a file stands, without what was measured of it.
#[derive(Debug)]
pub struct Standing {
    pub id: String,
    pub file: NarFileName,
    pub state: FileState,
    /// Counts each time the object was made or doomed.
    pub generation: i64,
    pub stored_at: Timestamp,
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

/// A NAR that stands in storage, and one of the files that carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNar {
    pub nar_hash: NarHash,
    pub file: NarFileName,
    pub compression: Compression,
    /// In bytes.
    pub file_size: u64,
}

/// Those of `nars` that stand in this cache's storage, each once, as the smallest of its files.
pub async fn stored_among(
    connection: &mut Connection,
    cache: CacheId,
    nars: impl IntoIterator<Item = NarHash>,
) -> Result<Vec<StoredNar>> {
    let statement = Dialect::of(connection).pick(
        "SELECT nar_hash, file_hash, ext, compression, file_size FROM measured \
         WHERE cache_id = $1 AND state = 'stored' \
         AND nar_hash IN (SELECT json_array_elements_text($2::json)) ORDER BY nar_hash, file_size, id",
        "SELECT nar_hash, file_hash, ext, compression, file_size FROM measured \
         WHERE cache_id = $1 AND state = 'stored' \
         AND nar_hash IN (SELECT value FROM json_each($2)) ORDER BY nar_hash, file_size, id",
    );
    let rows: Vec<(String, String, String, String, i64)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(nars.into_iter().map(|nar| nar.base32())))
        .fetch_all(connection)
        .await?;
    let mut stored: Vec<StoredNar> = Vec::with_capacity(rows.len());
    for (nar, hash, ext, compression, size) in rows {
        let corrupt = |column| corrupt("measured", column, &hash);
        let nar_hash = NarHash::from_base32(&nar).map_err(|_| corrupt("nar_hash"))?;
        if stored.last().is_some_and(|last| last.nar_hash == nar_hash) {
            continue;
        }
        stored.push(StoredNar {
            nar_hash,
            file: file_name(&hash, &ext).ok_or_else(|| corrupt("file_hash"))?,
            compression: Compression::from_label(&compression).map_err(|_| corrupt("compression"))?,
            file_size: u64::try_from(size).map_err(|_| corrupt("file_size"))?,
        });
    }
    Ok(stored)
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
    pub file: NarFileName,
    pub compression: Compression,
    pub file_size: u64,
    pub nar_hash: NarHash,
    pub nar_size: u64,
    pub found_refs: &'a str,
    pub found_refs_truncated: bool,
    pub single_file: Option<(Sha256Digest, bool)>,
}

/// What uploads that are verified meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// The objects may be put in their places; [`store`] then expects these generations, in the order asked.
    Generations(Vec<i64>),
    /// A DELETE that was sent may land until then, and must not meet a new object. The transaction is to be given up.
    Wait(Timestamp),
}

/// Writes down that objects are about to stand in their places, each file once. From then on no deletion that
/// was wished for earlier touches them, and a row that stays like this tells of bytes that nobody acknowledged.
pub async fn arrive(
    connection: &mut Connection,
    cache: CacheId,
    new: &[NewMeasured<'_>],
    token: TokenId,
    now: Timestamp,
) -> Result<Arrival> {
    // In one order for all: two uploads of the same files must not each wait for a row of the other.
    let mut ordered: Vec<_> = new.iter().collect();
    ordered.sort_unstable_by_key(|new| new.file);
    let rows: Vec<_> = ordered.into_iter().map(|new| new.row(now)).collect();
    // An object that stands stays as it is: the same bytes come once more.
    let statement = with_json_rows!(
        connection,
        "INSERT INTO measured (id, cache_id, file_hash, ext, state, generation, compression, file_size, \
         nar_hash, nar_size, found_refs, found_refs_truncated_at, single_file_sha256, \
         single_file_executable, token_id, stored_at) \
         SELECT r.value ->> 'id', $1, r.value ->> 'hash', r.value ->> 'ext', 'arriving', 1, \
         r.value ->> 'compression', CAST(r.value ->> 'file_size' AS BIGINT), r.value ->> 'nar_hash', \
         CAST(r.value ->> 'nar_size' AS BIGINT), r.value ->> 'found_refs', \
         CAST(r.value ->> 'found_refs_truncated_at' AS BIGINT), r.value ->> 'single_file_sha256', \
         CAST(r.value ->> 'single_file_executable' AS BIGINT), $3, $4",
        "$2",
        "WHERE TRUE ON CONFLICT (cache_id, file_hash, ext) DO UPDATE SET \
         state = CASE WHEN measured.state = 'stored' THEN 'stored' ELSE 'arriving' END, \
         generation = CASE WHEN measured.state IN ('stored', 'arriving') THEN measured.generation \
         ELSE measured.generation + 1 END, \
         stored_at = CASE WHEN measured.state = 'stored' THEN measured.stored_at \
         ELSE excluded.stored_at END, deleting_until = NULL \
         WHERE measured.deleting_until IS NULL OR measured.deleting_until <= $4 \
         RETURNING file_hash, ext, generation"
    );
    let written: Vec<(String, String, i64)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(Value::from(rows).to_string())
        .bind(token.to_string())
        .bind(now.0)
        .fetch_all(&mut *connection)
        .await?;
    if written.len() < new.len() {
        let standing = deleting_until(connection, cache, new).await?;
        return standing.map(Arrival::Wait).ok_or(DbError::Changed { table: "measured" });
    }
    let mut generations = HashMap::with_capacity(written.len());
    for (hash, ext, generation) in written {
        let file = file_name(&hash, &ext).ok_or_else(|| corrupt("measured", "file_hash", &hash))?;
        generations.insert(file, generation);
    }
    let asked = new.iter().map(|new| generations.get(&new.file).copied());
    asked.collect::<Option<_>>().map(Arrival::Generations).ok_or(DbError::Changed { table: "measured" })
}

/// Until when a DELETE of one of these files may land.
async fn deleting_until(
    connection: &mut Connection,
    cache: CacheId,
    new: &[NewMeasured<'_>],
) -> Result<Option<Timestamp>> {
    let statement = Dialect::of(connection).pick(
        "SELECT MAX(deleting_until) FROM measured WHERE cache_id = $1 \
         AND file_hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT MAX(deleting_until) FROM measured WHERE cache_id = $1 \
         AND file_hash IN (SELECT value FROM json_each($2))",
    );
    let (until,): (Option<i64>,) = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(new.iter().map(|new| new.file.hash.base32())))
        .fetch_one(connection)
        .await?;
    Ok(until.map(Timestamp))
}

impl NewMeasured<'_> {
    fn row(&self, now: Timestamp) -> Value {
        json!({
            "id": self.id,
            "hash": self.file.hash.base32(),
            "ext": self.file.extension.as_str(),
            "compression": self.compression.label(),
            "file_size": i64::try_from(self.file_size).unwrap_or(i64::MAX),
            "nar_hash": self.nar_hash.base32(),
            "nar_size": i64::try_from(self.nar_size).unwrap_or(i64::MAX),
            "found_refs": self.found_refs,
            "found_refs_truncated_at": self.found_refs_truncated.then_some(now.0),
            "single_file_sha256": self.single_file.map(|(digest, _)| digest.base32()),
            "single_file_executable": self.single_file.map(|(_, executable)| i64::from(executable)),
        })
    }
}

/// Writes down that objects stand in storage, each provided that nothing happened to its row since [`arrive`].
/// Answers with those; the others were condemned in the meantime.
pub async fn store(
    connection: &mut Connection,
    cache: CacheId,
    files: &[(NarFileName, i64)],
    token: TokenId,
    now: Timestamp,
) -> Result<HashSet<NarFileName>> {
    let mut ordered = files.to_vec();
    ordered.sort_unstable();
    let rows: Vec<_> = ordered
        .iter()
        .map(|(file, generation)| {
            json!({ "hash": file.hash.base32(), "ext": file.extension.as_str(), "generation": generation })
        })
        .collect();
    let statement = update_by_json_rows!(
        connection,
        "measured",
        "state = 'stored', token_id = $3, stored_at = $4",
        "$2",
        "measured.cache_id = $1 AND measured.file_hash = r.value ->> 'hash' AND measured.ext = r.value ->> 'ext' \
         AND measured.generation = CAST(r.value ->> 'generation' AS BIGINT) \
         AND measured.state IN ('arriving', 'stored')",
        "RETURNING file_hash, ext"
    );
    let stored: Vec<(String, String)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(Value::from(rows).to_string())
        .bind(token.to_string())
        .bind(now.0)
        .fetch_all(connection)
        .await?;
    stored
        .into_iter()
        .map(|(hash, ext)| file_name(&hash, &ext).ok_or_else(|| corrupt("measured", "file_hash", &hash)))
        .collect()
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
