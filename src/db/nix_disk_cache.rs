//! What a Nix client remembers of caches: its own SQLite file, `binary-cache-v6.sqlite` and later versions.
//!
//! It is no table of ours, and stands here because SQL does. Never writes: the connection refuses to.

use std::path::Path;

use sqlx::Connection as _;

use super::open::sqlite_url;
use super::{Connection, DbError, Result, sqlite};
use crate::time::Timestamp;

/// A client's memory, open for reading.
pub struct NixDiskCache(Connection);

/// What is remembered of one path under one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The 32 characters of the store path.
    pub hash: String,
    /// The name after them, of a path that was there.
    pub name: Option<String>,
    /// Whether it was there.
    pub is_present: bool,
    /// Its NAR's address within the cache, of a path that was there.
    pub file: Option<String>,
    /// The names of the keys that had signed it.
    pub key_names: Vec<String>,
    /// When it was asked for, or pushed.
    pub at: Timestamp,
}

impl NixDiskCache {
    /// Opens the file at `path`. `None`: it is not there.
    pub async fn open(path: &Path) -> Result<Option<Self>> {
        sqlite::install_drivers();
        if !path.exists() {
            return Ok(None);
        }
        let connection = Connection::connect(&sqlite_url(path, "ro")).await?;
        Ok(Some(Self(connection)))
    }

    /// What is remembered under the address `url`, with or without a slash at its end, the newest first. With `hash`,
    /// of that path alone.
    pub async fn under(&mut self, url: &str, hash: Option<&str>, limit: i64) -> Result<Vec<Remembered>> {
        let url = url.trim_end_matches('/');
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT n.hashPart, n.namePart, n.url, n.sigs, n.present, n.timestamp \
             FROM NARs n JOIN BinaryCaches b ON b.id = n.cache \
             WHERE (b.url = $1 OR b.url = $2) AND ($3 IS NULL OR n.hashPart = $3) \
             ORDER BY n.timestamp DESC LIMIT $4",
        )
        .bind(url)
        .bind(format!("{url}/"))
        .bind(hash)
        .bind(limit)
        .fetch_all(&mut self.0)
        .await?;
        let remembered = |(hash, name, file, sigs, present, at): Row| Remembered {
            hash,
            name,
            is_present: present != 0,
            file,
            key_names: key_names(&sigs.unwrap_or_default()),
            at: Timestamp(at.saturating_mul(1000)),
        };
        Ok(rows.into_iter().map(remembered).collect())
    }

    /// Ends the connection.
    pub async fn close(self) -> Result<()> {
        self.0.close().await.map_err(DbError::from)
    }
}

/// Hash, name, address of the NAR, signatures, presence, time in seconds.
type Row = (String, Option<String>, Option<String>, Option<String>, i64, i64);

/// `name:signature name:signature…`
fn key_names(sigs: &str) -> Vec<String> {
    sigs.split_whitespace().filter_map(|sig| Some(sig.split_once(':')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";

    /// A file as Nix 2.8 makes it: `src/libstore/nar-info-disk-cache.cc`.
    async fn made_by_nix(path: &Path) {
        sqlite::install_drivers();
        let mut connection = Connection::connect(&sqlite_url(path, "rwc")).await.unwrap();
        for statement in [
            "CREATE TABLE BinaryCaches (id integer primary key autoincrement not null, url text unique not null, \
             timestamp integer not null, storeDir text not null, wantMassQuery integer not null, \
             priority integer not null)",
            "CREATE TABLE NARs (cache integer not null, hashPart text not null, namePart text, url text, \
             compression text, fileHash text, fileSize integer, narHash text, narSize integer, refs text, \
             deriver text, sigs text, ca text, timestamp integer not null, present integer not null, \
             primary key (cache, hashPart))",
            "INSERT INTO BinaryCaches VALUES (1, 'https://a.example/main', 1795353000, '/nix/store', 1, 41)",
            "INSERT INTO BinaryCaches VALUES (2, 'https://a.example/team/', 1795353000, '/nix/store', 1, 41)",
            "INSERT INTO NARs (cache, hashPart, timestamp, present) \
             VALUES (1, 'mmjhp110f3wf5kp5q70rc7p49yln4qzy', 1795353000, 0)",
            "INSERT INTO NARs (cache, hashPart, namePart, url, sigs, timestamp, present) \
             VALUES (1, '00000000000000000000000000000000', 'hello', 'nar/x.nar', 'main-1:AA== old-1:BB==', 1795353001, 1)",
            "INSERT INTO NARs (cache, hashPart, namePart, timestamp, present) \
             VALUES (2, 'mmjhp110f3wf5kp5q70rc7p49yln4qzy', 'team', 1795353002, 1)",
        ] {
            sqlx::query(statement).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
    }

    #[tokio::test]
    async fn what_a_client_remembers_is_read_by_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("binary-cache-v6.sqlite");
        made_by_nix(&path).await;
        let mut cache = NixDiskCache::open(&path).await.unwrap().unwrap();

        let main = cache.under("https://a.example/main/", None, 10).await.unwrap();
        let one = cache.under("https://a.example/main", Some(HASH), 10).await.unwrap();
        let team = cache.under("https://a.example/team", None, 10).await.unwrap();

        assert_eq!(main.len(), 2);
        assert_eq!(main[0].key_names, ["main-1", "old-1"]);
        assert_eq!((main[0].name.as_deref(), main[0].is_present), (Some("hello"), true));
        assert_eq!(main[0].file.as_deref(), Some("nar/x.nar"));
        assert_eq!((one.len(), one[0].is_present, one[0].at), (1, false, Timestamp(1_795_353_000_000)));
        assert_eq!((team.len(), team[0].key_names.len()), (1, 0));
        assert_eq!(cache.under("https://b.example", None, 10).await.unwrap(), []);
        cache.close().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_made_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("binary-cache-v6.sqlite");

        assert!(NixDiskCache::open(&path).await.unwrap().is_none());
        assert!(!path.exists());
        made_by_nix(&path).await;
        let mut cache = NixDiskCache::open(&path).await.unwrap().unwrap();
        assert!(sqlx::query("DELETE FROM NARs").execute(&mut cache.0).await.is_err());
    }
}
