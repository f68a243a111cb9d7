//! What operators look at: what waits for storage, and the public keys that verify tokens.

use super::{Result, Service};
use crate::db::{outbox, signing_keys};
use crate::vault::Purpose;
use crate::vault::token::PublicJwk;

/// What waits to be written to storage, or deleted from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxBacklog {
    pub objects: u64,
    /// How long the oldest has waited.
    pub oldest_seconds: u64,
}

impl Service {
    /// How far storage is behind the rows.
    pub async fn outbox_backlog(&self) -> Result<OutboxBacklog> {
        let (objects, oldest) = outbox::backlog(&mut *self.inner.db.read().await?).await?;
        let now = self.inner.clock.now();
        let waited = oldest.map_or(0, |since| now.unix_seconds() - since.unix_seconds());
        Ok(OutboxBacklog {
            objects: u64::try_from(objects).unwrap_or(0),
            oldest_seconds: u64::try_from(waited).unwrap_or(0),
        })
    }

    /// The public keys that verify tokens, those that will sign next included.
    pub async fn token_keys(&self) -> Result<Vec<PublicJwk>> {
        let rows = signing_keys::by_purpose(&mut *self.inner.db.read().await?, Purpose::Token).await?;
        let trusted = rows.iter().filter(|row| row.state.is_trusted());
        Ok(trusted.map(|row| PublicJwk::of(&row.key.public_key)).collect())
    }
}
