//! Looks at a database for `narvault check`: which server, which schema, how durable.
//!
//! Never migrates, never makes a file, and never writes: the connection refuses to.

use std::path::Path;

use sqlx::Connection as _;

use super::open::{POSTGRES, SQLITE, sqlite_url};
use super::{Connection, DbError, DbSettings, OpenError, Result, sqlite};
use crate::time::Timestamp;

/// A connection that only reads.
pub struct Inspection {
    connection: Connection,
    is_sqlite: bool,
}

/// How the schema stands to the migrations of this binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// No migration was ever applied.
    Absent,
    /// So many of this binary's migrations are not applied yet; the next start of a server does it.
    Behind { pending: usize },
    /// All of this binary's migrations, and no others.
    Current { applied: usize },
}

impl Inspection {
    /// Connects. `None`: the embedded database's file is not there.
    pub async fn open(settings: &DbSettings) -> std::result::Result<Option<Self>, OpenError> {
        sqlite::install_drivers();
        match settings {
            DbSettings::Sqlite { path } => open_sqlite(path).await,
            DbSettings::Postgres { url, .. } => {
                let mut connection = Connection::connect(url.as_str()).await.map_err(OpenError::Connect)?;
                sqlx::query("SET default_transaction_read_only = on")
                    .execute(&mut connection)
                    .await
                    .map_err(OpenError::Connect)?;
                Ok(Some(Self { connection, is_sqlite: false }))
            }
        }
    }

    /// To read tables with.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// `SQLite 3.50.2`, `Postgres 15.14`.
    pub async fn server(&mut self) -> Result<String> {
        let (name, statement) = if self.is_sqlite {
            ("SQLite", "SELECT sqlite_version()")
        } else {
            ("Postgres", "SELECT current_setting('server_version')")
        };
        let (version,): (String,) = sqlx::query_as(statement).fetch_one(&mut self.connection).await?;
        Ok(format!("{name} {version}"))
    }

    /// What Postgres has for `synchronous_commit`; `None` for SQLite, where this program sets it itself.
    pub async fn synchronous_commit(&mut self) -> Result<Option<String>> {
        if self.is_sqlite {
            return Ok(None);
        }
        let (found,): (String,) = sqlx::query_as("SELECT current_setting('synchronous_commit')")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(Some(found))
    }

    /// The clock of the database's machine; `None` for SQLite, which has this machine's.
    pub async fn clock(&mut self) -> Result<Option<Timestamp>> {
        if self.is_sqlite {
            return Ok(None);
        }
        let (millis,): (i64,) =
            sqlx::query_as("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
                .fetch_one(&mut self.connection)
                .await?;
        Ok(Some(Timestamp(millis)))
    }

    /// Compares what was applied with the migrations of this binary.
    pub async fn schema(&mut self) -> std::result::Result<Schema, OpenError> {
        let migrator = if self.is_sqlite { &SQLITE } else { &POSTGRES };
        let applied: Vec<(i64, Vec<u8>)> =
            match sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations ORDER BY version ASC")
                .fetch_all(&mut self.connection)
                .await
            {
                Ok(rows) => rows,
                Err(sqlx::Error::Database(error)) if is_absent_table(error.as_ref()) => {
                    return Ok(Schema::Absent);
                }
                Err(error) => return Err(OpenError::Connect(error)),
            };
        for (version, checksum) in &applied {
            match migrator.iter().find(|known| known.version == *version) {
                None => return Err(OpenError::Newer { version: *version }),
                Some(known) if known.checksum.as_ref() != checksum.as_slice() => {
                    return Err(OpenError::Altered { version: *version });
                }
                Some(_) => {}
            }
        }
        let known = migrator.iter().filter(|migration| !migration.migration_type.is_down_migration()).count();
        Ok(match known.saturating_sub(applied.len()) {
            _ if applied.is_empty() => Schema::Absent,
            0 => Schema::Current { applied: applied.len() },
            pending => Schema::Behind { pending },
        })
    }

    /// When the newest audit row was written.
    pub async fn newest_audit(&mut self) -> Result<Option<Timestamp>> {
        let newest: Option<(i64,)> = sqlx::query_as("SELECT at FROM audit ORDER BY id DESC LIMIT 1")
            .fetch_optional(&mut self.connection)
            .await?;
        Ok(newest.map(|(at,)| Timestamp(at)))
    }

    /// Ends the connection.
    pub async fn close(self) -> Result<()> {
        self.connection.close().await.map_err(DbError::from)
    }
}

async fn open_sqlite(path: &Path) -> std::result::Result<Option<Inspection>, OpenError> {
    if !path.exists() {
        return Ok(None);
    }
    let connect = async {
        // Not read-only: that could not open a database that a server has just left, with its log beside it.
        let mut connection = Connection::connect(&sqlite_url(path, "rw")).await?;
        for pragma in ["PRAGMA query_only = ON", "PRAGMA busy_timeout = 10000"] {
            sqlx::query(pragma).execute(&mut connection).await?;
        }
        Ok(Some(Inspection { connection, is_sqlite: true }))
    };
    connect.await.map_err(OpenError::Connect)
}

/// Whether a statement failed because its table does not exist: Postgres has a code for it, SQLite only words.
fn is_absent_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().as_deref() == Some("42P01") || error.message().starts_with("no such table")
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::super::testing::{TestDb, on_each_database};
    use super::*;

    on_each_database! {
        async fn a_database_is_looked_at_and_not_written_to(test: &TestDb) {
            let mut inspection = Inspection::open(&test.settings).await.unwrap().unwrap();

            let schema = inspection.schema().await.unwrap();
            let written = sqlx::query("INSERT INTO cluster (id, cluster_id, seal_epoch, created_at) VALUES (1, 'x', 0, 0)")
                .execute(inspection.connection())
                .await;

            assert!(matches!(schema, Schema::Current { applied } if applied >= 8), "{schema:?}");
            assert!(written.is_err());
            assert!(!inspection.server().await.unwrap().ends_with(' '));
            assert_eq!(inspection.newest_audit().await.unwrap(), None);
            assert_eq!(inspection.synchronous_commit().await.unwrap().is_none(), test.db.is_sqlite());
            assert_eq!(inspection.clock().await.unwrap().is_none(), test.db.is_sqlite());
        }
    }

    #[tokio::test]
    async fn what_is_absent_stays_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("narvault.db");
        let settings = DbSettings::Sqlite { path: path.clone() };

        let absent = Inspection::open(&settings).await.unwrap();
        std::fs::write(&path, "").unwrap();
        let empty = Inspection::open(&settings).await.unwrap().unwrap().schema().await.unwrap();

        assert!(absent.is_none());
        assert_eq!(empty, Schema::Absent);
    }

    #[tokio::test]
    async fn a_schema_of_a_later_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let settings = DbSettings::Sqlite { path: folder.path().join("narvault.db") };
        let db = Db::open(&settings).await.unwrap();
        let mut tx = db.begin(super::super::Gate::Exclusive).await.unwrap();
        sqlx::query("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        db.close().await;

        let found = Inspection::open(&settings).await.unwrap().unwrap().schema().await;

        assert!(matches!(found, Err(OpenError::Newer { version: 9999 })), "{found:?}");
    }
}
