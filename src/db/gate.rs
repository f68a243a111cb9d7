//! The gate: one lock per server that orders signing against revoking.
//!
//! Whatever signs, mints, records evidence or stores takes it shared, as the first statement of its
//! transaction; whatever revokes, withdraws or deletes takes it exclusive. A row read behind the gate
//! stays true until the commit, so no signature commits after a revocation has answered. Row locks do
//! not give that on Postgres: a reader that saw "not revoked" may commit after the revoke.

use std::future::Future;
use std::ops::{Deref, DerefMut};

use sqlx::any::AnyTransactionManager;
use sqlx::pool::PoolConnection;
use sqlx::{Any, SqlSafeStr as _};
use sqlx_core::transaction::TransactionManager as _;

use super::sqlite::Lent;
use super::{Connection, DbError, Result};

/// How a transaction passes the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nobody revokes while this transaction is open.
    Shared,
    /// Nobody else signs, mints, stores or revokes while this transaction is open.
    Exclusive,
    /// For bookkeeping that no revocation has to wait for: leases, last use, denials.
    Around,
}

/// A connection that goes back to where it was taken from when this is dropped.
pub enum Held {
    Lent(Lent),
    Pooled(PoolConnection<Any>),
}

impl Deref for Held {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::Lent(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Connection {
        match self {
            Self::Lent(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

/// A write transaction. Dropped without [`Tx::commit`], it never happened.
pub struct Tx {
    connection: Held,
    is_open: bool,
    #[cfg(test)]
    cut: std::sync::Arc<super::testing::Cut>,
}

impl Tx {
    pub(super) async fn begin(
        connection: Held,
        statement: &'static str,
        #[cfg(test)] cut: std::sync::Arc<super::testing::Cut>,
    ) -> Result<Self> {
        // Open from here on: an answer that nobody waits for any more may still be "begun".
        let mut tx = Self {
            connection,
            is_open: true,
            #[cfg(test)]
            cut,
        };
        AnyTransactionManager::begin(&mut tx.connection, Some(statement.into_sql_str())).await?;
        Ok(tx)
    }

    /// Makes it so. An error leaves open whether it happened, as with any database.
    pub async fn commit(mut self) -> Result<()> {
        #[cfg(test)]
        self.cut.pass().map_err(|_| sqlx::Error::WorkerCrashed)?;
        AnyTransactionManager::commit(&mut self.connection).await?;
        self.is_open = false;
        Ok(())
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if self.is_open {
            AnyTransactionManager::start_rollback(&mut self.connection);
        }
    }
}

impl Deref for Tx {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// Errors that may carry a database's wish to run the transaction again.
pub trait Restartable {
    /// Whether the same transaction may succeed when it is run again.
    fn is_restartable(&self) -> bool;
}

impl Restartable for DbError {
    fn is_restartable(&self) -> bool {
        DbError::is_restartable(self)
    }
}

/// Runs `transaction` again after a deadlock or a serialization failure, a few times.
pub async fn restarting<T, E, F>(mut transaction: impl FnMut() -> F) -> std::result::Result<T, E>
where
    E: Restartable,
    F: Future<Output = std::result::Result<T, E>>,
{
    let mut tries_left = 4;
    loop {
        match transaction().await {
            Err(error) if error.is_restartable() && tries_left > 0 => {
                tries_left -= 1;
                tracing::debug!("transaction restarted");
            }
            result => return result,
        }
    }
}

/// The advisory lock that is the gate on Postgres, as text. Any number, the same for all replicas: "narvault" in ASCII.
/// (On SQLite `BEGIN IMMEDIATE` is the gate: there is one writer.)
macro_rules! gate_lock_id {
    () => {
        "7953764269679799412"
    };
}
pub(super) use gate_lock_id;

#[cfg(test)]
mod tests;
