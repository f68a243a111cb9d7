//! What can go wrong with the database, sorted by what the caller can do about it.

/// A failed statement, or a row that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The statement or the connection failed.
    #[error("the database failed")]
    Sqlx(#[source] sqlx::Error),
    /// A column holds what no version of narvault writes there.
    #[error("table {table} has an unreadable {column} in row {row}")]
    Corrupt { table: &'static str, column: &'static str, row: String },
    /// An UPDATE met no row, or not the row that it was meant for.
    #[error("table {table} has changed in the meantime")]
    Changed { table: &'static str },
    /// A unique name or number exists already.
    #[error("the database holds that already")]
    Duplicate,
}

impl DbError {
    /// Whether the transaction may succeed when it is simply run again: deadlock (40P01),
    /// serialization failure (40001), or SQLite's busy answer.
    pub fn is_restartable(&self) -> bool {
        let Self::Sqlx(sqlx::Error::Database(error)) = self else { return false };
        matches!(error.code().as_deref(), Some("40P01" | "40001" | "5" | "517"))
    }

    /// Whether the database could not be reached, or is not taking statements now.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Sqlx(sqlx::Error::Database(error)) => {
                // 08: connection, 53: resources, 57: operator intervention; SQLite 10: I/O, 13: full.
                let code = error.code().unwrap_or_default();
                code.len() == 5 && ["08", "53", "57"].contains(&&code[..2])
                    // 55P03: the gate was not free in time.
                    || ["10", "13", "14", "55P03"].contains(&code.as_ref())
                    || self.is_restartable()
            }
            Self::Sqlx(error) => matches!(
                error,
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::Protocol(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::WorkerCrashed
            ),
            _ => false,
        }
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) if cause.is_unique_violation() => Self::Duplicate,
            _ => Self::Sqlx(error),
        }
    }
}
