//! What operators look at: what waits for storage and for webhooks, and the public keys that verify tokens.

use super::{Result, Service};
use crate::db::{outbox, signing_keys, webhook_deliveries};
use crate::time::Timestamp;
use crate::vault::Purpose;
use crate::vault::token::PublicJwk;

/// What waits to be written to storage or deleted from it, or to be sent to webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Objects, or deliveries.
    pub count: u64,
    /// How long the oldest has waited.
    pub oldest_seconds: u64,
}

impl Service {
    /// How far storage is behind the rows.
    pub async fn outbox_backlog(&self) -> Result<Backlog> {
        Ok(self.backlog(outbox::backlog(&mut *self.inner.db.read().await?).await?))
    }

    /// How far webhooks are behind what happened, but for those that are paused.
    pub async fn webhook_backlog(&self) -> Result<Backlog> {
        Ok(self.backlog(webhook_deliveries::backlog(&mut *self.inner.db.read().await?).await?))
    }

    fn backlog(&self, (count, oldest): (i64, Option<Timestamp>)) -> Backlog {
        let now = self.inner.clock.now();
        let waited = oldest.map_or(0, |since| now.unix_seconds() - since.unix_seconds());
        Backlog {
            count: u64::try_from(count).unwrap_or(0),
            oldest_seconds: u64::try_from(waited).unwrap_or(0),
        }
    }

    /// The public keys that verify tokens, those that will sign next included.
    pub async fn token_keys(&self) -> Result<Vec<PublicJwk>> {
        let rows = signing_keys::by_purpose(&mut *self.inner.db.read().await?, Purpose::Token).await?;
        let trusted = rows.iter().filter(|row| row.state.is_trusted());
        Ok(trusted.map(|row| PublicJwk::of(&row.key.public_key)).collect())
    }
}
