//! Webhooks: where the world is told what happened, and of what. Never sees a secret.

use serde_json::Value;

use super::{Connection, Result, corrupt, epoch, one_row};
use crate::time::Timestamp;
use crate::vault::{Sealed, SealedWebhook};

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRow {
    pub url: String,
    /// Kinds of events, by their names.
    pub events: Vec<String>,
    pub note: Option<String>,
    /// Its id, and the secret that messages are signed with.
    pub secret: SealedWebhook,
    pub paused_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// A webhook, and how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSummary {
    pub row: WebhookRow,
    /// Deliveries that wait.
    pub waiting: u64,
    /// Deliveries of the last days that were given up.
    pub given_up: u64,
    /// Events that were not queued because too many waited.
    pub dropped: u64,
    pub delivered_at: Option<Timestamp>,
    /// When the oldest delivery was queued that failed so far.
    pub failing_since: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    url: String,
    events: String,
    note: Option<String>,
    sealed: Vec<u8>,
    kek_version: i64,
    paused_at: Option<i64>,
    created_at: i64,
    dropped: i64,
    waiting: i64,
    given_up: i64,
    delivered_at: Option<i64>,
    failing_since: Option<i64>,
}

impl Row {
    fn read(self) -> Result<WebhookSummary> {
        let corrupt = |column| corrupt("webhooks", column, &self.id);
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let secret = secret(self.id.clone(), &self.sealed, self.kek_version)?;
        let row = WebhookRow {
            events: serde_json::from_str(&self.events).map_err(|_| corrupt("events"))?,
            url: self.url,
            note: self.note,
            secret,
            paused_at: self.paused_at.map(Timestamp),
            created_at: Timestamp(self.created_at),
        };
        Ok(WebhookSummary {
            row,
            waiting: count(self.waiting),
            given_up: count(self.given_up),
            dropped: count(self.dropped),
            delivered_at: self.delivered_at.map(Timestamp),
            failing_since: self.failing_since.map(Timestamp),
        })
    }
}

pub(super) fn secret(id: String, sealed: &[u8], kek_version: i64) -> Result<SealedWebhook> {
    let sealed = Sealed::parse(sealed).map_err(|_| corrupt("webhooks", "sealed", &id))?;
    if i64::from(sealed.kek_version()) != kek_version {
        return Err(corrupt("webhooks", "kek_version", &id));
    }
    Ok(SealedWebhook { id, sealed })
}

/// The text of a webhook with its tally; `$1` is an id, or NULL for all.
const SUMMARIES: &str = "SELECT w.id, w.url, w.events, w.note, w.sealed, w.kek_version, w.paused_at, w.created_at, w.dropped, \
     (SELECT COUNT(*) FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'waiting') AS waiting, \
     (SELECT COUNT(*) FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'given-up') AS given_up, \
     (SELECT MAX(d.finished_at) FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'delivered') \
     AS delivered_at, \
     (SELECT MIN(d.created_at) FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'waiting' \
     AND d.error IS NOT NULL) AS failing_since \
     FROM webhooks w WHERE ($1 IS NULL OR w.id = $1) AND w.removed_at IS NULL ORDER BY w.id ASC";

/// Every webhook, oldest first.
pub async fn all(connection: &mut Connection) -> Result<Vec<WebhookSummary>> {
    let rows: Vec<Row> = sqlx::query_as(SUMMARIES).bind(None::<&str>).fetch_all(connection).await?;
    rows.into_iter().map(Row::read).collect()
}

/// One webhook.
pub async fn by_id(connection: &mut Connection, id: &str) -> Result<Option<WebhookSummary>> {
    let row: Option<Row> = sqlx::query_as(SUMMARIES).bind(Some(id)).fetch_optional(connection).await?;
    row.map(Row::read).transpose()
}

/// How many webhooks there are.
pub async fn count(connection: &mut Connection) -> Result<i64> {
    let (count,) = sqlx::query_as("SELECT COUNT(*) FROM webhooks WHERE removed_at IS NULL")
        .fetch_one(connection)
        .await?;
    Ok(count)
}

/// Adds a webhook, and has every replica forget that there was none.
pub async fn insert(connection: &mut Connection, row: &WebhookRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO webhooks (id, url, events, note, sealed, kek_version, paused_at, removed_at, dropped, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, NULL, 0, $8)",
    )
    .bind(&row.secret.id)
    .bind(&row.url)
    .bind(events_text(&row.events))
    .bind(&row.note)
    .bind(row.secret.sealed.as_bytes())
    .bind(i64::from(row.secret.sealed.kek_version()))
    .bind(row.paused_at.map(|time| time.0))
    .bind(row.created_at.0)
    .execute(&mut *connection)
    .await?;
    epoch::advance(connection).await
}

/// Changes what of a webhook may change.
pub async fn update(connection: &mut Connection, row: &WebhookRow) -> Result<()> {
    let result = sqlx::query(
        "UPDATE webhooks SET url = $2, events = $3, note = $4, paused_at = $5 WHERE id = $1 AND removed_at IS NULL",
    )
    .bind(&row.secret.id)
    .bind(&row.url)
    .bind(events_text(&row.events))
    .bind(&row.note)
    .bind(row.paused_at.map(|time| time.0))
    .execute(connection)
    .await?;
    one_row("webhooks", result.rows_affected())
}

/// Ends a webhook: nothing is queued for it or sent to it any more. False: there is none. Its rows go by
/// [`purge_removed`].
pub async fn remove(connection: &mut Connection, id: &str, now: Timestamp) -> Result<bool> {
    let result = sqlx::query("UPDATE webhooks SET removed_at = $2 WHERE id = $1 AND removed_at IS NULL")
        .bind(id)
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    epoch::advance(connection).await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes rows of webhooks that were removed, at most `limit`. True: there may be more.
pub async fn purge_removed(connection: &mut Connection, limit: i64) -> Result<bool> {
    let result = sqlx::query(
        "DELETE FROM webhook_deliveries WHERE id IN (SELECT d.id FROM webhook_deliveries d \
         JOIN webhooks w ON w.id = d.webhook_id WHERE w.removed_at IS NOT NULL LIMIT $1)",
    )
    .bind(limit)
    .execute(&mut *connection)
    .await?;
    if result.rows_affected() > 0 {
        return Ok(true);
    }
    sqlx::query(
        "DELETE FROM webhooks WHERE removed_at IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.webhook_id = webhooks.id)",
    )
    .execute(connection)
    .await?;
    Ok(false)
}

fn events_text(events: &[String]) -> String {
    Value::from(events.to_vec()).to_string()
}

/// A webhook that wants to be told of a kind of event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    pub id: String,
    /// Deliveries that wait for it already.
    pub waiting: i64,
}

/// The webhooks that want to be told of this kind of event now.
pub async fn subscribed(connection: &mut Connection, kind: &str) -> Result<Vec<Subscribed>> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT w.id, w.events, (SELECT COUNT(*) FROM webhook_deliveries d WHERE d.webhook_id = w.id \
         AND d.state = 'waiting') FROM webhooks w WHERE w.paused_at IS NULL AND w.removed_at IS NULL ORDER BY w.id ASC",
    )
    .fetch_all(connection)
    .await?;
    let mut subscribed = Vec::new();
    for (id, events, waiting) in rows {
        let events: Vec<String> =
            serde_json::from_str(&events).map_err(|_| corrupt("webhooks", "events", &id))?;
        if events.iter().any(|event| event == kind) {
            subscribed.push(Subscribed { id, waiting });
        }
    }
    Ok(subscribed)
}

/// Counts an event that was not queued.
pub async fn drop_one(connection: &mut Connection, id: &str) -> Result<()> {
    sqlx::query("UPDATE webhooks SET dropped = dropped + 1 WHERE id = $1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}
