//! What was seen of the statements about each cache's keys, in a small file beside the nix.conf that it is about.
//!
//! Without it, an older state of a server could be passed off as the newest one. It holds no secret.

use std::path::Path;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::api::{CacheView, SuccessionView};
use crate::cli::failure::{Exit, Failure};
use crate::client::text_file::{Secrecy, TextFile};
use crate::client::{Client, Error as ClientError};
use crate::succession::{Chain, Memory, Pending, ReadError, RootsRef, Seen, Signed};
use crate::time::Timestamp;

/// The word that tells what the file is.
const FORMAT: &str = "narvault/succession-seen/v1";

/// What is behind the name of the nix.conf.
const ENDING: &str = ".narvault-seen";

/// The file.
pub struct SeenFile(TextFile);

/// Its content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenAll {
    format: String,
    caches: Vec<SeenCache>,
}

/// One cache by its pull URL.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenCache {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    /// Of the text of that statement, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// As statements name them.
    #[serde(skip_serializing_if = "Option::is_none")]
    roots: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    to_remove: Vec<ToRemove>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToRemove {
    key: String,
    at: String,
}

impl SeenFile {
    /// The one that belongs to a nix.conf, under whose lock it is changed.
    pub fn beside(conf: &TextFile) -> Result<Self, Failure> {
        let name = conf.path.file_name().unwrap_or_default().to_string_lossy();
        let path = conf.folder().join(format!("{name}{ENDING}"));
        TextFile::at(&path).map(Self).map_err(|error| unusable(&path, error))
    }

    /// What it says; nothing if there is none.
    pub fn read(&self) -> Result<SeenAll, Failure> {
        let path = &self.0.path;
        let Some(text) = self.0.read().map_err(|error| unusable(path, error))? else {
            return Ok(SeenAll::default());
        };
        let damaged = |why: String| {
            Failure::new(
                Exit::Failure,
                format!("{} is not what `narvault use` keeps there: {why}", path.display()),
            )
            .hint(
                "move it away, then the keys count as written by hand, and what was seen before is forgotten",
            )
        };
        let seen: SeenAll = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if seen.format != FORMAT {
            return Err(damaged(format!("its format is {:?}", seen.format)));
        }
        for cache in &seen.caches {
            cache.memory().ok_or_else(|| damaged(format!("what it says of {}", cache.url)))?;
        }
        Ok(seen)
    }

    /// Changes it, and removes it where nothing is left to be kept.
    pub fn update(&self, change: impl FnOnce(&mut SeenAll)) -> Result<(), Failure> {
        // One that cannot be read is made anew only where nothing is asked of it.
        let before = self.read()?;
        let mut after = before.clone();
        change(&mut after);
        let text = |seen: &SeenAll| -> Result<Option<String>, Failure> {
            if seen.caches.is_empty() {
                return Ok(None);
            }
            let text = serde_json::to_string_pretty(seen);
            let text =
                text.map_err(|error| Failure::caused("what was seen cannot be written".into(), error))?;
            Ok(Some(text + "\n"))
        };
        let (before, after) = (text(&before)?, text(&after)?);
        if before == after {
            return Ok(());
        }
        self.0.write(after.as_deref(), Secrecy::Open).map_err(|error| unusable(&self.0.path, error))
    }
}

impl Default for SeenAll {
    fn default() -> Self {
        Self { format: FORMAT.to_owned(), caches: Vec::new() }
    }
}

impl SeenAll {
    /// What is remembered of the cache at `url`.
    pub fn of(&self, url: &str) -> Memory {
        let found = self.caches.iter().find(|cache| cache.url == url);
        found.and_then(SeenCache::memory).unwrap_or_default()
    }

    /// Remembers this of the cache at `url`; `None`: forgets it.
    pub fn put(&mut self, url: &str, memory: Option<Memory>) {
        self.caches.retain(|cache| cache.url != url);
        self.caches.extend(memory.map(|memory| SeenCache::of(url, &memory)));
    }
}

impl SeenCache {
    fn of(url: &str, memory: &Memory) -> Self {
        let to_remove =
            |pending: &Pending| ToRemove { key: pending.key.to_string(), at: pending.at.rfc3339() };
        Self {
            url: url.to_owned(),
            cache_id: memory.cache.clone(),
            seq: memory.seen.map(|seen| seen.seq),
            sha256: memory.seen.and_then(|seen| seen.digest).map(|digest| BASE64.encode(&digest)),
            roots: memory.roots.as_ref().map(RootsRef::to_string),
            to_remove: memory.pending.iter().map(to_remove).collect(),
        }
    }

    /// `None`: it is not what [`SeenCache::of`] makes.
    fn memory(&self) -> Option<Memory> {
        let digest = match &self.sha256 {
            Some(text) => Some(BASE64.decode(text.as_bytes()).ok()?.try_into().ok()?),
            None => None,
        };
        let roots = match &self.roots {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        let pending = self.to_remove.iter().map(|one| {
            Some(Pending { key: one.key.parse().ok()?, at: Timestamp::parse_rfc3339(&one.at).ok()? })
        });
        Some(Memory {
            cache: self.cache_id.clone(),
            seen: self.seq.map(|seq| Seen { seq, digest }),
            roots,
            pending: pending.collect::<Option<_>>()?,
        })
    }
}

/// What is remembered by whoever takes the keys of a cache over from its server: `None` where that server is of a version
/// that tells nothing of successions.
pub async fn at_first_use(client: &Client, view: &CacheView) -> Result<Option<Memory>, Failure> {
    let told = match client.key_succession(&view.name).await {
        Ok(told) => told,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(ClientError::Foreign { status: 404, .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let chain = chain_of(&told).map_err(|error| {
        Failure::caused(
            format!("the server's statements about the keys of {} are unreadable", view.name),
            error,
        )
    })?;
    let memory = Memory::at_first_use(&view.id, &chain).map_err(|refusal| {
        let what = format!("the server's statements about the keys of {} are refused: {refusal}", view.name);
        Failure::new(Exit::Refused, what).hint(refusal.cure())
    })?;
    Ok(Some(memory))
}

/// The statements as a server's API gives them.
pub fn chain_of(told: &SuccessionView) -> Result<Chain, ReadError> {
    let roots = told.root_sets.iter().map(|set| Signed::parse(set.note.as_bytes()));
    let statements = told.statements.iter().map(|statement| Signed::parse(statement.note.as_bytes()));
    Ok(Chain { roots: roots.collect::<Result<_, _>>()?, statements: statements.collect::<Result<_, _>>()? })
}

fn unusable(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    Failure::caused(format!("cannot use {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::succession::testing::{CACHE_ID, NOON, TestKey, chain, planned, roots};

    const URL: &str = "https://cache.example.org/main";

    fn memory() -> Memory {
        let chain = chain(&[planned(1, "main-1", "main-2")]);
        let seen = Memory::at_first_use(CACHE_ID, &chain).unwrap();
        let key = TestKey::named("main-1").public;
        let roots = Some(roots(1, 1, &["alice"]).reference());
        Memory { pending: vec![Pending { key, at: NOON }], roots, ..seen }
    }

    fn file() -> (tempfile::TempDir, SeenFile) {
        let folder = tempfile::tempdir().unwrap();
        let conf = TextFile::at(&folder.path().join("nix.conf")).unwrap();
        (folder, SeenFile::beside(&conf).unwrap())
    }

    #[test]
    fn what_was_seen_is_remembered_cache_by_cache() {
        let (folder, file) = file();
        let other = Memory { seen: Some(Seen { seq: 0, digest: None }), ..Memory::default() };

        file.update(|seen| seen.put(URL, Some(memory()))).unwrap();
        file.update(|seen| seen.put("https://other.example/main", Some(other.clone()))).unwrap();

        let seen = file.read().unwrap();
        assert_eq!((seen.of(URL), seen.of("https://other.example/main")), (memory(), other));
        assert_eq!(seen.of("https://nobody.example"), Memory::default());
        assert!(folder.path().join("nix.conf.narvault-seen").exists());
    }

    #[test]
    fn the_file_goes_with_the_last_cache() {
        let (folder, file) = file();
        file.update(|seen| seen.put(URL, Some(memory()))).unwrap();

        file.update(|seen| seen.put(URL, None)).unwrap();
        file.update(|seen| seen.put(URL, None)).unwrap();

        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_refused_with_what_to_do() {
        let (folder, file) = file();
        file.update(|seen| seen.put(URL, Some(memory()))).unwrap();
        let path = folder.path().join("nix.conf.narvault-seen");
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("seen/v1", "seen/v2"),
            ("\"seq\": 1", "\"seq\": -1"),
            ("\"seq\": 1", "\"sek\": 1"),
            ("\"sha256\": \"", "\"sha256\": \"AA"),
            ("\"roots\": \"1 ", "\"roots\": \"x "),
            ("main-1:", "main-1;"),
            ("{", ""),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();

            let failure = file.read().unwrap_err().to_string();

            assert!(failure.contains("hint: move it away"), "{from}: {failure}");
        }
    }
}
