//! The change epoch: what a replica's memory is compared with each second.

use super::{Connection, Result};

/// The present epoch.
pub async fn read(connection: &mut Connection) -> Result<i64> {
    let (epoch,) =
        sqlx::query_as("SELECT epoch FROM change_epoch WHERE id = 1").fetch_one(connection).await?;
    Ok(epoch)
}

/// Tells every replica to forget what it remembers, within a second. Locks the row until the commit,
/// so it stands late in a transaction, right before the log.
pub async fn advance(connection: &mut Connection) -> Result<()> {
    sqlx::query("UPDATE change_epoch SET epoch = epoch + 1 WHERE id = 1").execute(connection).await?;
    Ok(())
}
