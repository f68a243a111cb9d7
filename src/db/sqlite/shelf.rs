//! The connections to one database, lent out and given back.
//!
//! sqlx's pool gives a connection back in a task of its own, for what a server may have to say to it. A file has nothing
//! to say, and a small path is pushed with seven loans.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use sqlx::{AnyConnection, Connection as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::driver;

/// Up to so many connections, opened when they are first wanted and then kept.
#[derive(Clone)]
pub struct Shelf(Arc<Inner>);

struct Inner {
    url: String,
    count: u32,
    read_only: bool,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<AnyConnection>>,
}

impl Shelf {
    /// For the database at `path`, which has to be there.
    pub fn new(path: &Path, count: u32, read_only: bool) -> Self {
        let permits = Arc::new(Semaphore::new(count as usize));
        Self(Arc::new(Inner { url: driver::url(path), count, read_only, permits, idle: Mutex::default() }))
    }

    /// A connection, as soon as one is free. [`sqlx::Error::PoolTimedOut`] if none is within `patience`,
    /// [`sqlx::Error::PoolClosed`] once the shelf is.
    pub async fn lend(&self, patience: Duration) -> sqlx::Result<Lent> {
        let permit = Arc::clone(&self.0.permits).acquire_owned();
        let permit = match tokio::time::timeout(patience, permit).await {
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Ok(Ok(permit)) => permit,
        };
        let idle = self.0.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let mut connection = AnyConnection::connect(&self.0.url).await?;
                super::set_up(&mut connection, self.0.read_only).await?;
                connection
            }
        };
        Ok(Lent { connection: Some(connection), shelf: Arc::clone(&self.0), _permit: permit })
    }

    /// Lends no more, and closes each connection when it is back.
    pub async fn close(&self) {
        if let Ok(all) = self.0.permits.acquire_many(self.0.count).await {
            all.forget();
        }
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.0.idle());
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "a connection to the database did not close");
            }
        }
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<AnyConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back to its shelf when this is dropped.
pub struct Lent {
    /// `None` only while this is dropped.
    connection: Option<AnyConnection>,
    shelf: Arc<Inner>,
    // Given back last, so that whoever waits for it finds the connection.
    _permit: OwnedSemaphorePermit,
}

const TAKEN: &str = "the connection is taken only by the end of the loan";

impl Deref for Lent {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        self.connection.as_ref().expect(TAKEN)
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        self.connection.as_mut().expect(TAKEN)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut connection = self.connection.take().expect(TAKEN);
        // This driver answers at once.
        if matches!(connection.ping().now_or_never(), Some(Ok(()))) {
            self.shelf.idle().push(connection);
        }
    }
}
