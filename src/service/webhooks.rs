//! Webhooks: who is told what, queued with what happened, and sent by whichever replica comes first.
//!
//! Never loses an event that was committed with a webhook for it, and never waits for anybody's server where something
//! happens. A message may come twice; its id is the same then.

mod deliver;
mod event;

use std::str::FromStr;

use secrecy::SecretString;
use serde_json::{Value, json};

use super::audit::Act;
use super::tokens::checked_text;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::Action;
use crate::db::webhook_deliveries::{self, DeliveryRow, DeliveryState};
use crate::db::webhooks::{self, WebhookRow, WebhookSummary};
use crate::db::{Gate, PageBounds, Tx, restarting};
use crate::time::Timestamp;

pub(super) use deliver::Busy;
pub(super) use event::Event;
pub use event::EventKind;

/// The id of a webhook: UUIDv7 text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookId(String);

impl WebhookId {
    /// As it stands in the row.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebhookId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> std::result::Result<Self, uuid::Error> {
        // One spelling for each: the row has the id as text.
        Ok(Self(text.parse::<uuid::Uuid>()?.to_string()))
    }
}

/// A webhook that is asked for.
#[derive(Debug, Clone)]
pub struct NewWebhook {
    pub url: String,
    pub events: Vec<EventKind>,
    pub note: Option<String>,
}

/// What may change of a webhook. `None`: stays.
#[derive(Debug, Clone, Default)]
pub struct WebhookChange {
    pub url: Option<String>,
    pub events: Option<Vec<EventKind>>,
    pub note: Option<String>,
    pub paused: Option<bool>,
}

impl Service {
    /// Adds a webhook. Whatever is committed after this has answered is told to it. Answers with its secret too, which
    /// nobody can ask for again.
    pub async fn create_webhook(
        &self,
        call: &Call,
        new: &NewWebhook,
    ) -> Result<(WebhookSummary, SecretString)> {
        self.require(call, &Action::Administer, "webhook-create", "").await?;
        self.require_open()?;
        let url = self.checked_url(&new.url)?;
        let events = checked_events(&new.events)?;
        let note = new.note.as_deref().map(|note| checked_text("note", note)).transpose()?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.recheck_open(&mut tx).await?;
            if webhooks::count(&mut tx).await? >= WEBHOOKS_MAX {
                return Err(Conflict::State("there are 32 webhooks; remove one first").into());
            }
            let id = self.new_id(now);
            let (secret, text) = self.seal_new(&mut tx, |vault| vault.seal_new_webhook(&id)).await?;
            let row = WebhookRow {
                url: url.clone(),
                events: events.clone(),
                note: note.map(str::to_owned),
                secret,
                paused_at: None,
                created_at: now,
            };
            webhooks::insert(&mut tx, &row).await?;
            let detail = json!({ "to": origin(&row.url), "events": row.events });
            self.record(&mut tx, call, vec![act("webhook-create", &id, detail)], now).await?;
            let made = webhooks::by_id(&mut tx, &id).await?.ok_or(Error::NotFound("webhook"))?;
            tx.commit().await?;
            Ok((made, text))
        })
        .await
    }

    /// Every webhook, oldest first.
    pub async fn list_webhooks(&self, call: &Call) -> Result<Vec<WebhookSummary>> {
        self.require(call, &Action::Administer, "webhook-list", "").await?;
        Ok(webhooks::all(&mut *self.inner.db.read().await?).await?)
    }

    /// One webhook.
    pub async fn show_webhook(&self, call: &Call, id: &WebhookId) -> Result<WebhookSummary> {
        self.require(call, &Action::Administer, "webhook-show", id.as_str()).await?;
        let found = webhooks::by_id(&mut *self.inner.db.read().await?, id.as_str()).await?;
        found.ok_or(Error::NotFound("webhook"))
    }

    /// Changes a webhook. While it is paused nothing is queued for it, and what waits goes on waiting.
    pub async fn edit_webhook(
        &self,
        call: &Call,
        id: &WebhookId,
        change: &WebhookChange,
    ) -> Result<WebhookSummary> {
        self.require(call, &Action::Administer, "webhook-edit", id.as_str()).await?;
        let url = change.url.as_deref().map(|url| self.checked_url(url)).transpose()?;
        let events = change.events.as_deref().map(checked_events).transpose()?;
        let note = change.note.as_deref().map(|note| checked_text("note", note)).transpose()?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let mut row = self.existing_webhook(&mut tx, id).await?.row;
            let mut detail = json!({});
            if let Some(url) = &url {
                row.url.clone_from(url);
                detail["to"] = origin(url).into();
            }
            if let Some(events) = &events {
                row.events.clone_from(events);
                detail["events"] = events.clone().into();
            }
            if let Some(note) = note {
                row.note = (!note.is_empty()).then(|| note.to_owned());
            }
            if let Some(paused) = change.paused {
                row.paused_at = paused.then(|| row.paused_at.unwrap_or(now));
                detail["paused"] = paused.into();
            }
            webhooks::update(&mut tx, &row).await?;
            self.record(&mut tx, call, vec![act("webhook-edit", id.as_str(), detail)], now).await?;
            let changed = self.existing_webhook(&mut tx, id).await?;
            tx.commit().await?;
            Ok(changed)
        })
        .await
    }

    /// Removes a webhook, and what waits for it: once this has answered no delivery begins. One that is under way may
    /// still arrive.
    pub async fn remove_webhook(&self, call: &Call, id: &WebhookId) -> Result<()> {
        self.require(call, &Action::Administer, "webhook-remove", id.as_str()).await?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let row = self.existing_webhook(&mut tx, id).await?.row;
            if !webhooks::remove(&mut tx, id.as_str(), now).await? {
                return Err(Error::NotFound("webhook"));
            }
            let detail = json!({ "to": origin(&row.url) });
            self.record(&mut tx, call, vec![act("webhook-remove", id.as_str(), detail)], now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.purge_webhooks().await
    }

    /// Sends an event of no meaning to a webhook, paused or not, once and now. Answers with how that went; where it went
    /// wrong, it is tried again like any other.
    pub async fn test_webhook(&self, call: &Call, id: &WebhookId) -> Result<DeliveryRow> {
        self.require(call, &Action::Administer, "webhook-test", id.as_str()).await?;
        self.require_open()?;
        let (delivery, lease) = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.existing_webhook(&mut tx, id).await?;
            let (delivery, lease) = (self.new_id(now), self.delivery_lease(now));
            let event = self.new_event(EventKind::TEST, json!({ "webhook": id.as_str() }), now);
            let deliveries = [(delivery.clone(), id.as_str().to_owned())];
            webhook_deliveries::enqueue(&mut tx, &event, &deliveries, Some(&lease)).await?;
            self.record(&mut tx, call, vec![act("webhook-test", id.as_str(), json!({}))], now).await?;
            tx.commit().await?;
            Ok::<_, Error>((delivery, lease))
        })
        .await?;
        // Goes on if the caller goes away: the lease is to be given back.
        let service = self.clone();
        let sending = self.inner.tasks.spawn(async move {
            let leased =
                webhook_deliveries::leased(&mut *service.inner.db.read().await?, &delivery, &lease).await?;
            service.deliver(&leased.ok_or(Error::NotFound("webhook"))?).await?;
            let row = webhook_deliveries::by_id(&mut *service.inner.db.read().await?, &delivery).await?;
            row.ok_or(Error::NotFound("webhook"))
        });
        sending.await.map_err(|panic| Error::Internal(panic.into()))?
    }

    /// A page of the deliveries to a webhook: those of the last days, and all that wait.
    pub async fn list_deliveries(
        &self,
        call: &Call,
        id: &WebhookId,
        state: Option<DeliveryState>,
        page: &PageBounds,
    ) -> Result<Vec<DeliveryRow>> {
        self.require(call, &Action::Administer, "webhook-deliveries", id.as_str()).await?;
        let mut connection = self.inner.db.read().await?;
        let found = webhooks::by_id(&mut connection, id.as_str()).await?;
        found.ok_or(Error::NotFound("webhook"))?;
        Ok(webhook_deliveries::deliveries(&mut connection, id.as_str(), state, page).await?)
    }

    async fn existing_webhook(&self, tx: &mut Tx, id: &WebhookId) -> Result<WebhookSummary> {
        webhooks::by_id(tx, id.as_str()).await?.ok_or(Error::NotFound("webhook"))
    }

    fn checked_url(&self, text: &str) -> Result<String> {
        let url = self.inner.webhooks.url(text).map_err(|error| Rejection::value("url", error))?;
        Ok(url.into())
    }

    /// Deletes the rows of webhooks that were removed.
    async fn purge_webhooks(&self) -> Result<()> {
        loop {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            let more = webhooks::purge_removed(&mut tx, ROWS_AT_ONCE).await?;
            tx.commit().await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Forgets deliveries that ended some days ago, and what is left of webhooks that were removed.
    pub(super) async fn sweep_webhooks(&self, now: Timestamp) -> Result<u64> {
        self.purge_webhooks().await?;
        let mut swept = 0;
        loop {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            let before = now.plus_seconds(-DELIVERIES_KEPT_SECONDS);
            let some = webhook_deliveries::sweep(&mut tx, before, ROWS_AT_ONCE).await?;
            tx.commit().await?;
            swept += some;
            if some < ROWS_AT_ONCE.unsigned_abs() {
                return Ok(swept);
            }
        }
    }
}

fn checked_events(events: &[EventKind]) -> Result<Vec<String>> {
    if events.is_empty() {
        return Err(Rejection::value("events", "is empty; leave it out for all kinds").into());
    }
    // Each once, in one order.
    let kinds = EventKind::ALL.into_iter().filter(|kind| events.contains(kind));
    Ok(kinds.map(|kind| kind.as_str().to_owned()).collect())
}

/// Where a URL leads, without what may be a secret in it.
fn origin(url: &str) -> String {
    url.parse::<url::Url>().map_or_else(|_| String::new(), |url| url.origin().ascii_serialization())
}

fn act<'a>(action: &'static str, id: &str, detail: Value) -> Act<'a> {
    Act { action, subject: id.to_owned(), detail, cache: None, event: None }
}

/// So many events fan out at most from one transaction, and so many servers are waited for at once.
const WEBHOOKS_MAX: i64 = 32;

/// Rows that one transaction deletes.
const ROWS_AT_ONCE: i64 = 500;

/// How long a delivery that ended is listed.
const DELIVERIES_KEPT_SECONDS: i64 = 7 * 24 * 3600;

#[cfg(test)]
mod tests;
