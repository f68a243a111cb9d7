//! Opening: the file, its tables, and the locks beside it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection as _, Sqlite, SqliteConnection, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use super::{QueueError, Result};

/// The open queue.
pub struct Queue {
    connection: Mutex<SqliteConnection>,
    path: PathBuf,
}

impl Queue {
    /// Opens the file, and makes it and its folder if absent.
    ///
    /// What root makes, as a hook of the Nix daemon does, it gives to the owner of the folder: the service that
    /// pushes need not be root.
    pub async fn open(path: &Path) -> Result<Self> {
        let failed = |source| QueueError::File { path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // Two processes must not turn one new file to WAL and make its tables at once.
        let lock_path = beside(path, "lock");
        let locked = tokio::task::spawn_blocking(move || {
            let file = own_file(&lock_path)?;
            file.lock()?;
            Ok(file)
        });
        let lock = locked.await.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed)?;
        own_file(path).map_err(failed)?;
        let connected = Self::connect(path).await;
        drop(lock);
        connected
    }

    /// Opens a file that is there already.
    pub async fn open_existing(path: &Path) -> Result<Self> {
        if !path.try_exists().map_err(|source| QueueError::File { path: path.to_owned(), source })? {
            return Err(QueueError::Absent { path: path.to_owned() });
        }
        Self::open(path).await
    }

    async fn connect(path: &Path) -> Result<Self> {
        let failed = |source| QueueError::of(path.to_owned(), source);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        let version: i64 =
            sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.map_err(failed)?;
        match version {
            0 => make_tables(&mut connection).await.map_err(failed)?,
            SCHEMA_VERSION => {}
            _ => return Err(QueueError::Newer { path: path.to_owned(), version }),
        }
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// The file's place.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The right to push what is in this queue, if no other process has it. Held until dropped.
    pub fn claim(&self) -> Result<Option<Claim>> {
        let failed = |source| QueueError::File { path: self.path.clone(), source };
        let file = own_file(&beside(&self.path, "pushing")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Claim { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    pub(super) async fn connection(&self) -> MutexGuard<'_, SqliteConnection> {
        self.connection.lock().await
    }

    /// Runs `change` in one transaction that has the write lock from its beginning.
    pub(super) async fn change<T>(
        &self,
        change: impl AsyncFnOnce(&mut Transaction<'_, Sqlite>) -> sqlx::Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection().await;
        let changed = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let result = change(&mut transaction).await?;
            transaction.commit().await?;
            Ok(result)
        };
        changed.await.map_err(|source| self.failed(source))
    }

    pub(super) fn failed(&self, source: sqlx::Error) -> QueueError {
        QueueError::of(self.path.clone(), source)
    }
}

/// The right to push what is in a queue.
pub struct Claim {
    // The lock ends with the open file, also when the process is killed.
    _file: File,
}

async fn make_tables(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for statement in TABLES {
        sqlx::query(*statement).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// `queue.db` → `queue.db.<name>`.
fn beside(path: &Path, name: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(".");
    text.push(name);
    text.into()
}

/// Opens a file for its lock or its being there. One that root makes goes to the owner of its folder.
fn own_file(path: &Path) -> io::Result<File> {
    let open = |options: &mut OpenOptions| options.append(true).mode(0o600).open(path);
    let file = match open(OpenOptions::new().create_new(true)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return open(&mut OpenOptions::new()),
        made => made?,
    };
    if rustix::process::geteuid().is_root() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let owner = fs::metadata(folder)?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(file)
}

/// How long a statement waits for another process's. Transactions here take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// `PRAGMA user_version` of a file with these tables.
const SCHEMA_VERSION: i64 = 1;

/// `generation` counts how often a path was added: one that is added again while it is pushed is pushed again.
/// `watched` holds the hashes that a watch has dealt with; `watches` tells an empty store from a first start.
const TABLES: &[&str] = &[
    "CREATE TABLE paths (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        cache TEXT NOT NULL,
        path TEXT NOT NULL,
        generation BIGINT NOT NULL DEFAULT 1,
        added_at BIGINT NOT NULL,
        due_at BIGINT NOT NULL,
        attempts BIGINT NOT NULL DEFAULT 0,
        error TEXT,
        UNIQUE (cache, path)
    )",
    "CREATE TABLE notes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        cache TEXT NOT NULL,
        path TEXT,
        at BIGINT NOT NULL,
        text TEXT NOT NULL
    )",
    "CREATE TABLE watches (watch TEXT PRIMARY KEY, since BIGINT NOT NULL)",
    "CREATE TABLE watched (
        watch TEXT NOT NULL,
        hash TEXT NOT NULL,
        PRIMARY KEY (watch, hash)
    ) WITHOUT ROWID",
    "PRAGMA user_version = 1",
];
