//! SQLite on the thread that awaits it, as a driver of `sqlx::Any`.
//!
//! The driver that comes with sqlx gives each connection a thread and hands it every statement, and every row back. Between
//! short statements that is most of the time: a small path is pushed by some forty of them. Here a statement runs where it
//! is awaited. One that took long the last time, as a commit does on a slow disk, first hands over what else its thread
//! looks after; the wait for another process's write transaction is a timer.
//!
//! A query gives all its rows at once, so what reads a whole table goes through sqlx's own driver (`Db::begin_snapshot`).

mod checkpoint;
mod connection;
mod driver;
#[cfg(test)]
mod plan;
mod shelf;

use std::sync::Once;

use sqlx::AnyConnection;

pub(super) use shelf::{Lent, Shelf};

/// Makes `sqlx::Any` know its drivers: Postgres and SQLite as they come with sqlx, and this one. May be called again.
pub(super) fn install_drivers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let drivers = &[sqlx::postgres::any::DRIVER, sqlx::sqlite::any::DRIVER, driver::DRIVER];
        sqlx::any::install_drivers(drivers).expect("nobody else installs drivers");
    });
}

/// How each connection of the server is set.
pub(super) async fn set_up(connection: &mut AnyConnection, read_only: bool) -> sqlx::Result<()> {
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

#[cfg(test)]
mod tests;
