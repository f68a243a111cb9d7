//! Opening: pools, connection settings, and migrations under a lock.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool, Connection as _};
use url::Url;

use super::gate::{Gate, Tx, gate_lock_id};
use super::{Connection, Result};

/// Where the database is.
#[derive(Debug, Clone)]
pub enum DbSettings {
    /// One file, made if absent.
    Sqlite { path: PathBuf },
    /// `url` carries the password already; it is never printed.
    Postgres { url: Url, connections_max: u32 },
}

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot reach the database")]
    Connect(#[source] sqlx::Error),
    #[error("cannot take the migration lock beside {}", path.display())]
    Lock { path: PathBuf, source: std::io::Error },
    #[error(
        "the database was migrated by a newer narvault (migration {version}); run that version or a later one"
    )]
    Newer { version: i64 },
    #[error(
        "migration {version} differs from what was applied; this binary was built from altered migrations"
    )]
    Altered { version: i64 },
    #[error("a migration failed")]
    Migrate(#[source] MigrateError),
    #[error(
        "Postgres runs with synchronous_commit = {found}, so it may lose what was acknowledged; \
         set it to `on` for this database or role"
    )]
    NotDurable { found: String },
}

/// How a transaction begins on Postgres, behind the gate, in one turn of the network. The isolation is named, not left to
/// the server's default: a snapshot taken before the gate would let a publish that waited there still see its token
/// live. `Any` cannot decode void, hence the CASE.
macro_rules! postgres_begin {
    ($gate:expr, $settings:literal) => {
        match $gate {
            Gate::Shared => concat!(
                "BEGIN ISOLATION LEVEL READ COMMITTED; ",
                $settings,
                "SELECT CASE WHEN pg_advisory_xact_lock_shared(",
                gate_lock_id!(),
                ") IS NULL THEN 0 ELSE 1 END"
            ),
            Gate::Exclusive => concat!(
                "BEGIN ISOLATION LEVEL READ COMMITTED; ",
                $settings,
                "SELECT CASE WHEN pg_advisory_xact_lock(",
                gate_lock_id!(),
                ") IS NULL THEN 0 ELSE 1 END"
            ),
            Gate::Around => concat!("BEGIN ISOLATION LEVEL READ COMMITTED; ", $settings),
        }
    };
}

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: AnyPool,
    reader: AnyPool,
    /// Ends this replica before one of its commits.
    #[cfg(test)]
    pub(crate) cut: std::sync::Arc<super::testing::Cut>,
}

impl Db {
    /// Connects, migrates, and checks that commits are durable.
    pub async fn open(settings: &DbSettings) -> std::result::Result<Self, OpenError> {
        install_default_drivers();
        match settings {
            DbSettings::Sqlite { path } => open_sqlite(path).await,
            DbSettings::Postgres { url, connections_max } => open_postgres(url, *connections_max).await,
        }
    }

    /// Begins a write transaction behind the gate. Once committed, nothing takes it back.
    pub async fn begin(&self, gate: Gate) -> Result<Tx> {
        let statement = if self.is_sqlite() {
            "PRAGMA synchronous = FULL; BEGIN IMMEDIATE"
        } else {
            postgres_begin!(gate, "")
        };
        Ok(self.tx(self.writer.begin_with(statement).await?))
    }

    /// The same, but a power failure may take the commit back until a later one of [`Db::begin`] is on the disk;
    /// the end of this process takes nothing. Costs no flush of the disk: for bookkeeping that is done once more
    /// where it is lost.
    pub async fn begin_lazy(&self, gate: Gate) -> Result<Tx> {
        let statement = if self.is_sqlite() {
            "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE"
        } else {
            postgres_begin!(gate, "SET LOCAL synchronous_commit = off; ")
        };
        Ok(self.tx(self.writer.begin_with(statement).await?))
    }

    /// A transaction that only reads, and sees all rows as they are at its first statement, however long it takes. It
    /// holds no gate, so it may wait for storage.
    pub async fn begin_snapshot(&self) -> Result<Tx> {
        let statement = if self.is_sqlite() {
            "BEGIN"
        } else {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
             SET LOCAL idle_in_transaction_session_timeout = '10min'"
        };
        Ok(self.tx(self.reader.begin_with(statement).await?))
    }

    fn tx(&self, inner: sqlx::Transaction<'static, sqlx::Any>) -> Tx {
        Tx::new(
            inner,
            #[cfg(test)]
            self.cut.clone(),
        )
    }

    /// A connection for reading.
    pub async fn read(&self) -> Result<PoolConnection<Any>> {
        Ok(self.reader.acquire().await?)
    }

    /// Whether this is the embedded database.
    pub fn is_sqlite(&self) -> bool {
        self.writer.connect_options().database_url.scheme() == "sqlite"
    }

    /// Answers when the database takes statements.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&mut *self.read().await?).await?;
        Ok(())
    }

    /// Closes the pools; waits a little for connections that are still out.
    pub async fn close(&self) {
        let both = async {
            self.reader.close().await;
            self.writer.close().await;
        };
        // `Pool::close` waits for ever for a connection that is still held.
        let _ = tokio::time::timeout(Duration::from_secs(5), both).await;
    }
}

async fn open_sqlite(path: &Path) -> std::result::Result<Db, OpenError> {
    let url = sqlite_url(path, "rwc");
    // One writer: two would meet as "database is locked", and wait longer in all.
    let writer = AnyPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(30))
        .idle_timeout(None)
        .max_lifetime(None)
        // A file does not go away behind our back, and each question costs a turn of the connection's thread.
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(set_up_sqlite(connection, false)))
        .connect(&url)
        .await
        .map_err(OpenError::Connect)?;
    let lock_path = path.with_extension("migrate-lock");
    let lock = lock_file(&lock_path).await.map_err(|source| OpenError::Lock { path: lock_path, source })?;
    migrate(&SQLITE, &writer).await?;
    drop(lock);
    let reader = AnyPoolOptions::new()
        .max_connections(SQLITE_READERS)
        .acquire_timeout(Duration::from_secs(30))
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(set_up_sqlite(connection, true)))
        .connect(&url)
        .await
        .map_err(OpenError::Connect)?;
    Ok(Db {
        writer,
        reader,
        #[cfg(test)]
        cut: std::sync::Arc::default(),
    })
}

async fn open_postgres(url: &Url, connections_max: u32) -> std::result::Result<Db, OpenError> {
    // A bare connection first: the pool would retry a refused one and then say only "timed out".
    let probe = async {
        let mut connection = Connection::connect(url.as_str()).await?;
        let (durable,): (String,) =
            sqlx::query_as("SELECT current_setting('synchronous_commit')").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(durable)
    };
    let found = probe.await.map_err(OpenError::Connect)?;
    if found == "off" {
        return Err(OpenError::NotDurable { found });
    }
    let pool = |connections_max| {
        AnyPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(Duration::from_secs(5))
            .after_connect(|connection, _| Box::pin(set_up_postgres(connection)))
            .connect(url.as_str())
    };
    // Apart: writers that queue at the gate must not keep readers, and the polls of the epochs, waiting. Two at the least:
    // a backup holds one for as long as it takes.
    let readers = (connections_max / 2).max(2);
    let writer = pool(connections_max.saturating_sub(readers).max(1)).await.map_err(OpenError::Connect)?;
    migrate(&POSTGRES, &writer).await?;
    let reader = pool(readers).await.map_err(OpenError::Connect)?;
    Ok(Db {
        writer,
        reader,
        #[cfg(test)]
        cut: std::sync::Arc::default(),
    })
}

/// Runs what is missing. On Postgres the migrator holds an advisory lock meanwhile.
async fn migrate(migrator: &Migrator, pool: &AnyPool) -> std::result::Result<(), OpenError> {
    migrator.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => OpenError::Newer { version },
        MigrateError::VersionMismatch(version) => OpenError::Altered { version },
        other => OpenError::Migrate(other),
    })
}

async fn set_up_sqlite(connection: &mut Connection, read_only: bool) -> sqlx::Result<()> {
    for pragma in [
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA busy_timeout = 10000",
        "PRAGMA temp_store = MEMORY",
        "PRAGMA cache_size = -16384",
    ] {
        sqlx::query(pragma).execute(&mut *connection).await?;
    }
    if read_only {
        sqlx::query("PRAGMA query_only = ON").execute(&mut *connection).await?;
    }
    Ok(())
}

async fn set_up_postgres(connection: &mut Connection) -> sqlx::Result<()> {
    // A replica that stalls inside a transaction must not hold the gate for long.
    sqlx::query("SET idle_in_transaction_session_timeout = '10s'").execute(&mut *connection).await?;
    sqlx::query("SET lock_timeout = '30s'").execute(connection).await?;
    Ok(())
}

/// `mode` is SQLite's: `rwc` makes the file if absent, `rw` does not.
pub(super) fn sqlite_url(path: &Path, mode: &str) -> String {
    let encoded = percent_encoding::utf8_percent_encode(&path.to_string_lossy(), PATH_ENCODED).to_string();
    format!("sqlite://{encoded}?mode={mode}")
}

/// Waits for the lock file, so that two processes do not migrate one SQLite file at once.
async fn lock_file(path: &Path) -> std::io::Result<std::fs::File> {
    let path = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.lock()?;
        Ok(file)
    });
    locked.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
}

/// What would end the path of a URL or change its meaning.
const PATH_ENCODED: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'?').add(b'#').add(b'%').add(b'"').add(b'<').add(b'>');

/// Readers of the embedded database: more only queue on two cores.
const SQLITE_READERS: u32 = 4;

pub(super) static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
pub(super) static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
