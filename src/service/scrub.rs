//! Storage, rows and log held against each other: every narinfo that is served is what the rows say, every signature in
//! the rows is the one of its leaf, every leaf of a published path has its signature, every NAR is there.
//!
//! Nix's signature does not cover `URL`, `FileHash`, `FileSize`, `Compression`, `Deriver` and `CA`: whoever writes to the
//! bucket can change them, and is found here. Never mends anything.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::read::render_narinfo;
use super::{Call, Error, Result, Service};
use crate::access::{Action, CacheId};
use crate::db::caches::CacheRow;
use crate::db::scrub::{self, LeafSignatureRow, PublishedRow};
use crate::db::{Connection, caches, log, outbox, paths};
use crate::nix::hash::Sha256Digest;
use crate::nix::store_path::STORE_DIR;
use crate::storage::{CacheObject, ObjectKey};
use crate::tlog::leaf::{ClaimLines, Disclosed, Event, Leaf, References, Salt, Signed, ValueError};

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubFinding {
    /// A word such as `narinfo-differs`.
    pub kind: &'static str,
    /// An object, or a leaf.
    pub subject: String,
    pub what: String,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub paths: u64,
    /// Signatures that are those of their leaves.
    pub signatures: u64,
    pub nar_bytes: u64,
    /// At most `FINDINGS_NAMED_MAX` of them.
    pub findings: Vec<ScrubFinding>,
    pub finding_count: u64,
}

impl Scrubbed {
    /// Adds something that is wrong.
    pub fn finding(&mut self, kind: &'static str, subject: impl Into<String>, what: impl Into<String>) {
        self.finding_count += 1;
        if self.findings.len() < FINDINGS_NAMED_MAX {
            self.findings.push(ScrubFinding { kind, subject: subject.into(), what: what.into() });
        }
    }
}

impl Service {
    /// Holds the rows against the leaves from `first` on, as they are published and verified.
    pub async fn scrub_leaves(
        &self,
        call: &Call,
        first: u64,
        leaves: &[String],
        scrubbed: &mut Scrubbed,
    ) -> Result<()> {
        self.require(call, &Action::Administer, "storage-scrub", "").await?;
        let first = i64::try_from(first).map_err(internal)?;
        let count = i64::try_from(leaves.len()).map_err(internal)?;
        let mut connection = self.inner.db.read().await?;
        for ((index, row), published) in log::leaves(&mut connection, first, count).await?.iter().zip(leaves)
        {
            if row != published {
                scrubbed.finding("leaf-differs", leaf_name(*index), "the database has another text");
            }
        }
        let openings = log::openings(&mut connection, "private", first, count).await?;
        let salts: HashMap<i64, Salt> = openings.into_iter().map(|(index, salt, _)| (index, salt)).collect();
        for row in scrub::signatures(&mut connection, first, count).await? {
            let text = usize::try_from(row.leaf - first).ok().and_then(|at| leaves.get(at));
            let leaf = text.and_then(|text| Leaf::parse(text.as_bytes()).ok());
            match leaf.map(|leaf| leaf.event) {
                Some(Event::Sign(signed) | Event::Resign(signed)) => {
                    match mismatch(&signed, &row, salts.get(&row.leaf)).map_err(internal)? {
                        None => scrubbed.signatures += 1,
                        Some(what) => scrubbed.finding("signature-differs", leaf_name(row.leaf), what),
                    }
                }
                _ => {
                    let what = format!("{} says that it is signed there", row.store_path);
                    scrubbed.finding("no-signature", leaf_name(row.leaf), what);
                }
            }
        }
        for index in scrub::lost_signatures(&mut connection, first, count).await? {
            let what = "its path is published, and its signature is not there";
            scrubbed.finding("lost-signature", leaf_name(index), what);
        }
        Ok(())
    }

    /// Holds storage against the rows: the narinfo and the NAR of each published path. With `deep`, every NAR is read and
    /// hashed.
    pub async fn scrub_objects(&self, call: &Call, deep: bool, scrubbed: &mut Scrubbed) -> Result<()> {
        self.require(call, &Action::Administer, "storage-scrub", "").await?;
        let mut known: HashMap<CacheId, CacheRow> = HashMap::new();
        let mut after = String::new();
        loop {
            let rows = scrub::published(&mut *self.inner.db.read().await?, &after, PATHS_AT_ONCE).await?;
            let Some(last) = rows.last() else { break };
            after.clone_from(&last.path.id);
            for row in rows {
                let cache = match known.get(&row.cache) {
                    Some(cache) => cache.clone(),
                    None => {
                        let mut connection = self.inner.db.read().await?;
                        let cache = caches::by_id_even_deleted(&mut connection, row.cache).await?;
                        known.insert(row.cache, cache.clone());
                        cache
                    }
                };
                scrubbed.paths += 1;
                self.scrub_narinfo(&cache, &row, scrubbed).await?;
                self.scrub_nar(&cache, &row, deep, scrubbed).await?;
            }
        }
        Ok(())
    }

    async fn scrub_narinfo(
        &self,
        cache: &CacheRow,
        row: &PublishedRow,
        scrubbed: &mut Scrubbed,
    ) -> Result<()> {
        let hash = row.path.claim.path.hash();
        let key = super::key_of(cache, CacheObject::Narinfo(hash))?;
        let Some((kind, what)) = self.narinfo_mismatch(&key, row).await? else { return Ok(()) };
        // What changed while it was looked at is no finding: the row may be gone, or storage about to follow.
        let mut connection = self.inner.db.read().await?;
        if waits(&mut connection, &key).await? {
            return Ok(());
        }
        let now = paths::find(&mut connection, row.cache, hash).await?;
        drop(connection);
        let Some(path) = now.filter(|path| path.state == row.path.state) else { return Ok(()) };
        let row = PublishedRow { cache: row.cache, path };
        if self.narinfo_mismatch(&key, &row).await?.is_some() {
            scrubbed.finding(kind, key.to_string(), what);
        }
        Ok(())
    }

    /// What is wrong with a narinfo in storage.
    async fn narinfo_mismatch(
        &self,
        key: &ObjectKey,
        row: &PublishedRow,
    ) -> Result<Option<(&'static str, String)>> {
        let signatures = paths::signatures(&mut *self.inner.db.read().await?, &row.path.claim_id).await?;
        let expected = render_narinfo(&row.path, &signatures)?.text;
        let limit = usize::try_from(self.inner.limits.narinfo_size_bytes_max).unwrap_or(usize::MAX);
        let found = match self.inner.storage.read(key, limit.saturating_mul(2)).await {
            Ok(found) => found,
            Err(crate::storage::StorageError::Damaged(what)) => {
                return Ok(Some(("narinfo-differs", what.to_owned())));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(match found {
            None => Some(("narinfo-missing", "the path is published".to_owned())),
            Some(found) if found == expected => None,
            Some(found) => Some(("narinfo-differs", difference(&expected, &found))),
        })
    }

    async fn scrub_nar(
        &self,
        cache: &CacheRow,
        row: &PublishedRow,
        deep: bool,
        scrubbed: &mut Scrubbed,
    ) -> Result<()> {
        let key = super::key_of(cache, CacheObject::Nar(row.path.file))?;
        let problem = if deep {
            self.hashed_nar(&key, row, scrubbed).await?
        } else {
            self.sized_nar(&key, row).await?
        };
        let Some((kind, what)) = problem else { return Ok(()) };
        let mut connection = self.inner.db.read().await?;
        let now = paths::find(&mut connection, row.cache, row.path.claim.path.hash()).await?;
        let stands = now.is_some_and(|path| path.state == row.path.state && path.file == row.path.file);
        if stands && !waits(&mut connection, &key).await? {
            scrubbed.finding(kind, key.to_string(), what);
        }
        Ok(())
    }

    async fn sized_nar(&self, key: &ObjectKey, row: &PublishedRow) -> Result<Option<(&'static str, String)>> {
        Ok(match self.inner.storage.size(key).await? {
            None => Some(("nar-missing", row.path.claim.path.to_string())),
            Some(size) if size == row.path.file_size => None,
            Some(size) => Some(("nar-differs", format!("it has {size} bytes, not {}", row.path.file_size))),
        })
    }

    async fn hashed_nar(
        &self,
        key: &ObjectKey,
        row: &PublishedRow,
        scrubbed: &mut Scrubbed,
    ) -> Result<Option<(&'static str, String)>> {
        let Some(mut object) = self.inner.storage.get(key, None).await? else {
            return Ok(Some(("nar-missing", row.path.claim.path.to_string())));
        };
        let mut hasher = Sha256::new();
        while let Some(bytes) = object.body.try_next().await? {
            hasher.update(&bytes);
            scrubbed.nar_bytes += bytes.len() as u64;
        }
        let hash = Sha256Digest(hasher.finalize().into());
        let what = || format!("its hash is {}", hash.base32());
        Ok((hash != row.path.file.hash.0).then(|| ("nar-differs", what())))
    }

    /// Narinfos in storage that no published path accounts for.
    pub async fn scrub_listing(&self, call: &Call, scrubbed: &mut Scrubbed) -> Result<()> {
        let found = self.orphans(call, std::time::Duration::ZERO).await?;
        for orphan in found.objects.iter().filter(|orphan| orphan.is_narinfo()) {
            scrubbed.finding("narinfo-unaccounted", orphan.name(), "no published path has it");
        }
        Ok(())
    }
}

/// Whether storage is about to be told what this object is.
async fn waits(connection: &mut Connection, key: &ObjectKey) -> Result<bool> {
    Ok(!outbox::waiting_among(connection, [key.to_string()]).await?.is_empty())
}

/// What a row says otherwise than its leaf.
fn mismatch(
    signed: &Signed,
    row: &LeafSignatureRow,
    salt: Option<&Salt>,
) -> std::result::Result<Option<String>, ValueError> {
    if signed.key.as_str() != row.key_name {
        return Ok(Some(format!("{} is signed by {}, not {}", row.store_path, row.key_name, signed.key)));
    }
    if signed.sig.0[..] != row.sig {
        return Ok(Some(format!("{} has another signature", row.store_path)));
    }
    let lines = ClaimLines {
        cache: row.cache.parse()?,
        path: format!("{STORE_DIR}/{}", row.store_path).parse()?,
        nar_hash: Some(format!("sha256:{}", row.nar_hash).parse()?),
        nar_size: Some(row.nar_size.unsigned_abs()),
        references: References::list(&row.refs)?,
    };
    let is_it = |lines: &ClaimLines| match (&signed.claim, salt) {
        (Disclosed::Open(open), _) => open == lines,
        (Disclosed::Private(_), Some(salt)) => signed.claim.is(lines, salt),
        // Without its opening nobody can say; the signature is the right one.
        (Disclosed::Private(_), None) => true,
    };
    let digest =
        lines.references.shortened().map(|(references, _)| ClaimLines { references, ..lines.clone() });
    if is_it(&lines) || digest.is_some_and(|lines| is_it(&lines)) {
        return Ok(None);
    }
    Ok(Some(format!("{} is another claim", row.store_path)))
}

/// Which fields of a narinfo are others than they should be.
fn difference(expected: &[u8], found: &[u8]) -> String {
    let (expected, found) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(found));
    let of = |text: &str| -> std::collections::BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (expected, found) = (of(&expected), of(&found));
    let mut fields: Vec<&str> = expected
        .symmetric_difference(&found)
        .map(|line| line.split_once(':').map_or("a line", |(field, _)| field))
        .collect();
    fields.dedup();
    match fields[..] {
        [] => "the order of its lines".to_owned(),
        _ => format!("other than the rows say: {}", fields.join(", ")),
    }
}

fn leaf_name(index: i64) -> String {
    format!("leaf {index}")
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal(error.into())
}

/// Findings that are named; more are counted.
const FINDINGS_NAMED_MAX: usize = 1000;

const PATHS_AT_ONCE: i64 = 200;
