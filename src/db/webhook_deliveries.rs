//! What is to be told to webhooks, and how far that has come.
//!
//! Events are queued in the transaction of what happened; deliveries are leased, so that any replica sends them and a
//! crash loses none.

use serde_json::{Value, json};

use super::dialect::with_json_rows;
use super::webhooks::secret;
use super::{Connection, DbError, PageBounds, Result, page_sql};
use crate::time::Timestamp;
use crate::vault::SealedWebhook;

/// An event to queue.
#[derive(Debug, Clone)]
pub struct NewEvent<'a> {
    pub id: String,
    pub kind: &'a str,
    pub payload: String,
    pub at: Timestamp,
}

/// Who holds a lease, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub owner: String,
    pub until: Timestamp,
}

/// Queues an event for webhooks: pairs of a new delivery's id and the webhook's. With a lease, the first attempt is
/// the holder's.
pub async fn enqueue(
    connection: &mut Connection,
    event: &NewEvent<'_>,
    deliveries: &[(String, String)],
    lease: Option<&Lease>,
) -> Result<()> {
    sqlx::query("INSERT INTO webhook_events (id, kind, payload, at) VALUES ($1, $2, $3, $4)")
        .bind(&event.id)
        .bind(event.kind)
        .bind(&event.payload)
        .bind(event.at.0)
        .execute(&mut *connection)
        .await?;
    let statement = with_json_rows!(
        connection,
        "INSERT INTO webhook_deliveries (id, webhook_id, event_id, state, attempts, not_before, lease_owner, \
         lease_until, created_at) SELECT r.value ->> 'id', r.value ->> 'webhook', r.value ->> 'event', 'waiting', \
         CAST(r.value ->> 'attempts' AS BIGINT), CAST(r.value ->> 'now' AS BIGINT), r.value ->> 'owner', \
         CAST(r.value ->> 'until' AS BIGINT), CAST(r.value ->> 'now' AS BIGINT)",
        "$1",
        ""
    );
    let (owner, until) = (lease.map(|lease| &lease.owner), lease.map(|lease| lease.until.0));
    let rows = deliveries.iter().map(|(id, webhook)| {
        json!({
            "id": id, "webhook": webhook, "event": event.id, "attempts": i64::from(lease.is_some()),
            "now": event.at.0, "owner": owner, "until": until,
        })
    });
    sqlx::query(statement)
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// Webhooks for which something is due and free.
pub async fn due(connection: &mut Connection, now: Timestamp) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT DISTINCT d.webhook_id FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id \
         WHERE d.state = 'waiting' AND d.not_before <= $1 AND (d.lease_until IS NULL OR d.lease_until < $1) \
         AND w.paused_at IS NULL AND w.removed_at IS NULL",
    )
    .bind(now.0)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// A delivery under a lease, with what is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    pub id: String,
    pub event_id: String,
    pub payload: String,
    pub url: String,
    pub secret: SealedWebhook,
    /// This one included.
    pub attempts: i64,
    pub created_at: Timestamp,
    pub lease: Lease,
}

/// Leases the oldest delivery to this webhook that is due and free.
pub async fn lease(
    connection: &mut Connection,
    webhook: &str,
    lease: &Lease,
    now: Timestamp,
) -> Result<Option<Leased>> {
    let id: Option<(String,)> = sqlx::query_as(
        "UPDATE webhook_deliveries SET lease_owner = $2, lease_until = $3, attempts = attempts + 1 \
         WHERE id = (SELECT id FROM webhook_deliveries WHERE webhook_id = $1 AND state = 'waiting' \
         AND not_before <= $4 AND (lease_until IS NULL OR lease_until < $4) ORDER BY id ASC LIMIT 1) \
         AND state = 'waiting' AND (lease_until IS NULL OR lease_until < $4) RETURNING id",
    )
    .bind(webhook)
    .bind(&lease.owner)
    .bind(lease.until.0)
    .bind(now.0)
    .fetch_optional(&mut *connection)
    .await?;
    match id {
        Some((id,)) => leased(connection, &id, lease).await,
        None => Ok(None),
    }
}

/// A delivery that is under this lease, with what is to be sent. `None` if the webhook was removed or paused.
pub async fn leased(connection: &mut Connection, id: &str, lease: &Lease) -> Result<Option<Leased>> {
    #[derive(sqlx::FromRow)]
    struct LeasedRow {
        event_id: String,
        payload: String,
        webhook_id: String,
        url: String,
        sealed: Vec<u8>,
        kek_version: i64,
        attempts: i64,
        created_at: i64,
    }
    let row: Option<LeasedRow> = sqlx::query_as(
        "SELECT d.event_id, e.payload, d.webhook_id, w.url, w.sealed, w.kek_version, d.attempts, d.created_at \
         FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id \
         JOIN webhooks w ON w.id = d.webhook_id \
         WHERE d.id = $1 AND d.lease_owner = $2 AND d.lease_until = $3 AND w.removed_at IS NULL",
    )
    .bind(id)
    .bind(&lease.owner)
    .bind(lease.until.0)
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Leased {
            id: id.to_owned(),
            event_id: row.event_id,
            payload: row.payload,
            url: row.url,
            secret: secret(row.webhook_id, &row.sealed, row.kek_version)?,
            attempts: row.attempts,
            created_at: Timestamp(row.created_at),
            lease: lease.clone(),
        })
    })
    .transpose()
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    Delivered { status: u16 },
    Failed { status: Option<u16>, error: String, next: Next },
}

/// What comes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    At(Timestamp),
    GivenUp,
}

/// Writes down how an attempt ended, unless its lease has gone to another.
pub async fn finish(
    connection: &mut Connection,
    leased: &Leased,
    attempt: &Attempt,
    now: Timestamp,
) -> Result<()> {
    let (state, status, error, not_before) = match attempt {
        Attempt::Delivered { status } => (DeliveryState::Delivered, Some(*status), None, now),
        Attempt::Failed { status, error, next: Next::At(at) } => {
            (DeliveryState::Waiting, *status, Some(error.as_str()), *at)
        }
        Attempt::Failed { status, error, next: Next::GivenUp } => {
            (DeliveryState::GivenUp, *status, Some(error.as_str()), now)
        }
    };
    sqlx::query(
        "UPDATE webhook_deliveries SET lease_owner = NULL, lease_until = NULL, state = $4, status = $5, error = $6, \
         not_before = $7, attempted_at = $8, finished_at = $9 \
         WHERE id = $1 AND lease_owner = $2 AND lease_until = $3",
    )
    .bind(&leased.id)
    .bind(&leased.lease.owner)
    .bind(leased.lease.until.0)
    .bind(state.as_str())
    .bind(status.map(i64::from))
    .bind(error)
    .bind(not_before.0)
    .bind(now.0)
    .bind((state != DeliveryState::Waiting).then_some(now.0))
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a lease back, as if it had not been taken.
pub async fn give_back(connection: &mut Connection, leased: &Leased) -> Result<()> {
    sqlx::query(
        "UPDATE webhook_deliveries SET lease_owner = NULL, lease_until = NULL, attempts = attempts - 1 \
         WHERE id = $1 AND lease_owner = $2 AND lease_until = $3",
    )
    .bind(&leased.id)
    .bind(&leased.lease.owner)
    .bind(leased.lease.until.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// How far a delivery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    Delivered,
    GivenUp,
    Waiting,
}

impl DeliveryState {
    const ALL: [Self; 3] = [Self::Delivered, Self::GivenUp, Self::Waiting];

    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::GivenUp => "given-up",
            Self::Waiting => "waiting",
        }
    }

    /// Reads what [`DeliveryState::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A delivery, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    pub id: String,
    pub event_id: String,
    pub kind: String,
    pub state: DeliveryState,
    pub attempts: i64,
    pub created_at: Timestamp,
    /// When it is tried next, while it waits.
    pub not_before: Timestamp,
    pub attempted_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub status: Option<u16>,
    pub error: Option<String>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    event_id: String,
    kind: String,
    state: String,
    attempts: i64,
    created_at: i64,
    not_before: i64,
    attempted_at: Option<i64>,
    finished_at: Option<i64>,
    status: Option<i64>,
    error: Option<String>,
}

impl Row {
    fn read(self) -> Result<DeliveryRow> {
        let corrupt = |column| DbError::Corrupt { table: "webhook_deliveries", column, row: self.id.clone() };
        Ok(DeliveryRow {
            state: DeliveryState::parse(&self.state).ok_or_else(|| corrupt("state"))?,
            status: self.status.map(u16::try_from).transpose().map_err(|_| corrupt("status"))?,
            event_id: self.event_id,
            kind: self.kind,
            attempts: self.attempts,
            created_at: Timestamp(self.created_at),
            not_before: Timestamp(self.not_before),
            attempted_at: self.attempted_at.map(Timestamp),
            finished_at: self.finished_at.map(Timestamp),
            error: self.error,
            id: self.id,
        })
    }
}

/// A page of the deliveries to a webhook, of one state or of all.
pub async fn deliveries(
    connection: &mut Connection,
    webhook: &str,
    state: Option<DeliveryState>,
    page: &PageBounds,
) -> Result<Vec<DeliveryRow>> {
    let rows: Vec<Row> = sqlx::query_as(page_sql!(
        page,
        "SELECT d.id, d.event_id, e.kind, d.state, d.attempts, d.created_at, d.not_before, d.attempted_at, \
         d.finished_at, d.status, d.error FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id \
         WHERE d.webhook_id = $3 AND ($4 IS NULL OR d.state = $4) AND",
        "d.id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .bind(webhook)
    .bind(state.map(DeliveryState::as_str))
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// One delivery.
pub async fn by_id(connection: &mut Connection, id: &str) -> Result<Option<DeliveryRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT d.id, d.event_id, e.kind, d.state, d.attempts, d.created_at, d.not_before, d.attempted_at, \
         d.finished_at, d.status, d.error FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id \
         WHERE d.id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Forgets deliveries that ended before, and events that nobody waits for, at most `limit` of each. Answers with how
/// many deliveries.
pub async fn sweep(connection: &mut Connection, before: Timestamp, limit: i64) -> Result<u64> {
    let swept = sqlx::query(
        "DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries \
         WHERE finished_at IS NOT NULL AND finished_at < $1 LIMIT $2)",
    )
    .bind(before.0)
    .bind(limit)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM webhook_events WHERE id IN (SELECT e.id FROM webhook_events e WHERE e.at < $1 \
         AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.event_id = e.id) LIMIT $2)",
    )
    .bind(before.0)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(swept.rows_affected())
}

/// How many deliveries wait, and since when the oldest does.
pub async fn backlog(connection: &mut Connection) -> Result<(i64, Option<Timestamp>)> {
    let (count, oldest): (i64, Option<i64>) = sqlx::query_as(
        "SELECT COUNT(*), MIN(d.created_at) FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id \
         WHERE d.state = 'waiting' AND w.paused_at IS NULL AND w.removed_at IS NULL",
    )
    .fetch_one(connection)
    .await?;
    Ok((count, oldest.map(Timestamp)))
}
