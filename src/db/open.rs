//! Opening: pools, connection settings, and migrations under a lock.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AnyPool, Connection as _};
use url::Url;

use super::gate::{Gate, Held, Tx, gate_lock_id};
use super::sqlite::Shelf;
use super::{Connection, Result, sqlite};

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
    connections: Connections,
    /// Ends this replica before one of its commits.
    #[cfg(test)]
    pub(crate) cut: std::sync::Arc<super::testing::Cut>,
}

#[derive(Clone)]
enum Connections {
    Sqlite {
        writer: Shelf,
        readers: Shelf,
        /// For what reads whole tables, row by row.
        snapshots: AnyPool,
    },
    Postgres {
        writers: AnyPool,
        readers: AnyPool,
    },
}

impl Db {
    /// Connects, migrates, and checks that commits are durable.
    pub async fn open(settings: &DbSettings) -> std::result::Result<Self, OpenError> {
        sqlite::install_drivers();
        match settings {
            DbSettings::Sqlite { path } => open_sqlite(path).await,
            DbSettings::Postgres { url, connections_max } => open_postgres(url, *connections_max).await,
        }
    }

    /// Begins a write transaction behind the gate. Once committed, nothing takes it back.
    pub async fn begin(&self, gate: Gate) -> Result<Tx> {
        let (sqlite, postgres) = ("PRAGMA synchronous = FULL; BEGIN IMMEDIATE", postgres_begin!(gate, ""));
        self.begin_with(sqlite, postgres).await
    }

    /// The same, but a power failure may take the commit back until a later one of [`Db::begin`] is on the disk;
    /// the end of this process takes nothing. Costs no flush of the disk: for bookkeeping that is done once more
    /// where it is lost.
    pub async fn begin_lazy(&self, gate: Gate) -> Result<Tx> {
        let sqlite = "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE";
        self.begin_with(sqlite, postgres_begin!(gate, "SET LOCAL synchronous_commit = off; ")).await
    }

    async fn begin_with(&self, sqlite: &'static str, postgres: &'static str) -> Result<Tx> {
        Ok(match &self.connections {
            Connections::Sqlite { writer, .. } => {
                let connection = Held::Lent(writer.lend(SQLITE_PATIENCE).await?);
                self.tx(connection, sqlite).await?
            }
            Connections::Postgres { writers, .. } => {
                self.tx(Held::Pooled(writers.acquire().await?), postgres).await?
            }
        })
    }

    /// A transaction that only reads, and sees all rows as they are at its first statement, however long it takes. It
    /// holds no gate, so it may wait for storage.
    pub async fn begin_snapshot(&self) -> Result<Tx> {
        let (pool, statement) = match &self.connections {
            Connections::Sqlite { snapshots, .. } => (snapshots, "BEGIN"),
            Connections::Postgres { readers, .. } => (
                readers,
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                 SET LOCAL idle_in_transaction_session_timeout = '10min'",
            ),
        };
        self.tx(Held::Pooled(pool.acquire().await?), statement).await
    }

    async fn tx(&self, connection: Held, statement: &'static str) -> Result<Tx> {
        Tx::begin(
            connection,
            statement,
            #[cfg(test)]
            self.cut.clone(),
        )
        .await
    }

    /// A connection for reading.
    pub async fn read(&self) -> Result<Held> {
        Ok(match &self.connections {
            Connections::Sqlite { readers, .. } => Held::Lent(readers.lend(SQLITE_PATIENCE).await?),
            Connections::Postgres { readers, .. } => Held::Pooled(readers.acquire().await?),
        })
    }

    /// Whether this is the embedded database.
    #[cfg(test)]
    pub fn is_sqlite(&self) -> bool {
        matches!(self.connections, Connections::Sqlite { .. })
    }

    /// Answers when the database takes statements.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&mut *self.read().await?).await?;
        Ok(())
    }

    /// Closes the pools; waits a little for connections that are still out.
    pub async fn close(&self) {
        let all = async {
            match &self.connections {
                Connections::Sqlite { writer, readers, snapshots } => {
                    snapshots.close().await;
                    readers.close().await;
                    writer.close().await;
                }
                Connections::Postgres { writers, readers } => {
                    readers.close().await;
                    writers.close().await;
                }
            }
        };
        // Each waits for ever for a connection that is still held.
        let _ = tokio::time::timeout(Duration::from_secs(5), all).await;
    }
}

async fn open_sqlite(path: &Path) -> std::result::Result<Db, OpenError> {
    let threaded = |connections, read_only| {
        AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(SQLITE_PATIENCE)
            .after_connect(move |connection, _| Box::pin(sqlite::set_up(connection, read_only)))
    };
    let first = threaded(1, false).connect(&sqlite_url(path, "rwc")).await.map_err(OpenError::Connect)?;
    let lock_path = path.with_extension("migrate-lock");
    let lock = lock_file(&lock_path).await.map_err(|source| OpenError::Lock { path: lock_path, source })?;
    migrate(&SQLITE, &first).await?;
    drop(lock);
    first.close().await;
    let snapshots = threaded(SQLITE_SNAPSHOTS, true).connect_lazy(&sqlite_url(path, "rw"));
    Ok(Db {
        connections: Connections::Sqlite {
            // One writer: two would meet as "database is locked", and wait longer in all.
            writer: Shelf::new(path, 1, false),
            readers: Shelf::new(path, SQLITE_READERS, true),
            snapshots: snapshots.map_err(OpenError::Connect)?,
        },
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
    let readers_max = (connections_max / 2).max(2);
    let writers =
        pool(connections_max.saturating_sub(readers_max).max(1)).await.map_err(OpenError::Connect)?;
    migrate(&POSTGRES, &writers).await?;
    let readers = pool(readers_max).await.map_err(OpenError::Connect)?;
    Ok(Db {
        connections: Connections::Postgres { writers, readers },
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

/// What reads whole tables at once: backups, and lists of all sealed rows.
const SQLITE_SNAPSHOTS: u32 = 4;

/// How long a connection is waited for.
const SQLITE_PATIENCE: Duration = Duration::from_secs(30);

pub(super) static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
pub(super) static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
