//! The rows that are the truth: the only code with SQL text, one file per table family.
//!
//! One text serves SQLite and Postgres through `sqlx::Any`. Every function takes the connection that
//! its caller holds, so that functions compose in one transaction. Never decides who may do what.

mod dialect;
mod error;
mod gate;
mod inspect;
mod open;
mod sqlite;

pub mod admin_claims;
pub mod audit;
pub mod audit_commits;
pub mod auxiliary;
pub mod backup;
pub mod backup_schedule;
pub mod caches;
pub mod cluster;
pub mod contributors;
pub mod epoch;
pub mod evidence;
pub mod impact;
pub mod kek_rotations;
pub mod key_rotations;
pub mod key_successions;
pub mod log;
pub mod measured;
pub mod nix_disk_cache;
pub mod outbox;
pub mod paths;
pub mod quarantines;
pub mod realisations;
pub mod resigning;
pub mod scrub;
pub mod sealed_rows;
pub mod signing_keys;
pub mod standing;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokens;
pub mod uploads;
pub mod upstream_paths;
pub mod vault;
pub mod webhook_deliveries;
pub mod webhooks;
pub mod withdrawals;

pub use error::DbError;
pub use gate::{Gate, Restartable, Tx, restarting};
pub use inspect::{Inspection, Schema};
pub use open::{Db, DbSettings, OpenError};
pub use sqlx::AnyConnection as Connection;

/// What every function of this layer answers.
pub type Result<T> = std::result::Result<T, DbError>;

/// A page's bounds: rows after `cursor` (an id that the page before ended with), at most `limit`.
#[derive(Debug, Clone)]
pub struct PageBounds {
    pub after: Option<String>,
    pub limit: i64,
    pub descending: bool,
}

/// The text of a page: `$select` ends in `WHERE` or `AND`; `$1` is the cursor, `$2` the limit.
macro_rules! page_sql {
    ($page:expr, $select:literal, $id:literal) => {
        if $page.descending {
            concat!($select, " ($1 IS NULL OR ", $id, " < $1) ORDER BY ", $id, " DESC LIMIT $2")
        } else {
            concat!($select, " ($1 IS NULL OR ", $id, " > $1) ORDER BY ", $id, " ASC LIMIT $2")
        }
    };
}
use page_sql;

/// The `DbError` of a column that holds what no version writes there.
fn corrupt(table: &'static str, column: &'static str, row: &str) -> DbError {
    DbError::Corrupt { table, column, row: row.to_owned() }
}

/// `Ok` if a conditional UPDATE met exactly its row.
fn one_row(table: &'static str, rows_affected: u64) -> Result<()> {
    if rows_affected == 1 { Ok(()) } else { Err(DbError::Changed { table }) }
}
