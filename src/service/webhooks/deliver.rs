//! The sending: each webhook by a task of its own, so that one that does not answer keeps no other waiting.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::db::webhook_deliveries::{self, Attempt, Lease, Leased, Next};
use crate::db::{Gate, restarting};
use crate::service::{Error, Result, Service};
use crate::time::Timestamp;
use crate::vault::{VaultError, random};
use crate::webhook::{ANSWER_TIMEOUT, Message};

/// The webhooks that this replica sends to at the moment.
#[derive(Default)]
pub(in crate::service) struct Busy(Mutex<HashSet<String>>);

/// The right to send to a webhook from this replica, until dropped: also by a panic.
struct Place {
    service: Service,
    webhook: String,
}

impl Place {
    /// `None` if somebody sends to it already.
    fn take(service: &Service, webhook: String) -> Option<Self> {
        let mut busy = service.inner.webhooks_busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(webhook.clone()).then(|| Self { service: service.clone(), webhook })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let busy = &self.service.inner.webhooks_busy;
        busy.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.webhook);
    }
}

impl Service {
    /// Sends what is due until `stop`.
    pub(in crate::service) async fn webhook_worker(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.begin_deliveries().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot look for what is due to webhooks");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Begins to send what is due, one task for each webhook that has none yet. Nothing while the vault is sealed: only
    /// the vault can sign.
    pub(super) async fn begin_deliveries(&self) -> Result<Vec<JoinHandle<()>>> {
        if !self.is_open() {
            return Ok(Vec::new());
        }
        let now = self.inner.clock.now();
        let due = webhook_deliveries::due(&mut *self.inner.db.read().await?, now).await?;
        let places = due.into_iter().filter_map(|webhook| Place::take(self, webhook));
        let begin = |place: Place| {
            self.inner.tasks.spawn(async move {
                if let Err(error) = place.service.deliver_in_a_row(&place.webhook).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(webhook = place.webhook, error, "cannot go on with deliveries");
                }
            })
        };
        Ok(places.map(begin).collect())
    }

    /// Sends one after the other, the oldest first, until one fails: the next ones would most likely fail too.
    async fn deliver_in_a_row(&self, webhook: &str) -> Result<()> {
        for _ in 0..IN_A_ROW_MAX {
            if self.inner.stop.is_cancelled() || !self.is_open() {
                break;
            }
            let leased = restarting(|| async {
                let now = self.inner.clock.now();
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                let lease = self.delivery_lease(now);
                let leased = webhook_deliveries::lease(&mut tx, webhook, &lease, now).await?;
                tx.commit().await?;
                Ok::<_, Error>(leased)
            });
            let Some(leased) = leased.await? else { break };
            if !self.deliver(&leased).await? {
                break;
            }
        }
        Ok(())
    }

    /// Sends a delivery that is leased, once, and writes down how that went. Whether it was taken.
    pub(super) async fn deliver(&self, leased: &Leased) -> Result<bool> {
        let mut message = self.message(leased);
        if matches!(message, Err(VaultError::UnknownKek { .. })) {
            self.catch_up_keks().await?;
            message = self.message(leased);
        }
        let attempt = match message {
            Err(error) if self.waits_for_vault(&error) => {
                let mut tx = self.inner.db.begin(Gate::Around).await?;
                webhook_deliveries::give_back(&mut tx, leased).await?;
                tx.commit().await?;
                return Ok(false);
            }
            Err(error) => {
                tracing::error!(
                    webhook = leased.secret.id,
                    error = &error as &dyn std::error::Error,
                    "cannot sign"
                );
                self.failed(leased, None, "its secret does not open; remove it and add another".to_owned())
            }
            Ok(message) => match self.inner.webhooks.send(&leased.url, message).await {
                Ok(status) => Attempt::Delivered { status },
                Err(error) => self.failed(leased, error.status(), error.to_string()),
            },
        };
        let outcome = match &attempt {
            Attempt::Delivered { .. } => "delivered",
            Attempt::Failed { next: Next::At(_), .. } => "failed",
            Attempt::Failed { next: Next::GivenUp, .. } => "given-up",
        };
        if let Attempt::Failed { error, .. } = &attempt {
            tracing::warn!(
                webhook = leased.secret.id,
                attempts = leased.attempts,
                error,
                outcome,
                "not delivered"
            );
        }
        metrics::counter!("narvault_webhook_deliveries_total", "outcome" => outcome).increment(1);
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            webhook_deliveries::finish(&mut tx, leased, &attempt, now).await?;
            tx.commit().await
        })
        .await?;
        Ok(matches!(attempt, Attempt::Delivered { .. }))
    }

    fn message(&self, leased: &Leased) -> std::result::Result<Message, VaultError> {
        let (id, body) = (leased.event_id.clone(), leased.payload.clone());
        let timestamp = self.inner.clock.now().unix_seconds();
        let signed = format!("{id}.{timestamp}.{body}");
        let mac = self.inner.keyring.sign_webhook(&leased.secret, signed.as_bytes())?;
        Ok(Message { id, timestamp, signature: format!("v1,{}", BASE64.encode(&mac)), body })
    }

    fn failed(&self, leased: &Leased, status: Option<u16>, error: String) -> Attempt {
        let next = next_attempt(leased.attempts, leased.created_at, self.inner.clock.now(), random::bytes());
        Attempt::Failed { status, error, next }
    }

    /// A lease on a delivery, from now on: longer than an attempt can take.
    pub(super) fn delivery_lease(&self, now: Timestamp) -> Lease {
        let until = now.plus_seconds(LEASE_SECONDS);
        Lease { owner: self.inner.lease_terms.owner.clone(), until }
    }
}

/// When a delivery is tried again that failed so many times: after 5 s, 10 s, 20 s and so on up to six hours, each
/// shortened by up to a half at random, so that many that failed together do not come together again. Three days after
/// it was queued it is given up.
fn next_attempt(attempts: i64, created_at: Timestamp, now: Timestamp, random: [u8; 2]) -> Next {
    let doublings = u32::try_from(attempts - 1).unwrap_or(u32::MAX).min(20);
    let longest = (BACKOFF_MILLIS << doublings).min(BACKOFF_MILLIS_MAX);
    let shortened = longest / 2 * i64::from(u16::from_be_bytes(random)) / i64::from(u16::MAX);
    let next = now.plus_millis(longest - shortened);
    if next > created_at.plus_seconds(GIVEN_UP_SECONDS) { Next::GivenUp } else { Next::At(next) }
}

/// How often it is looked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Deliveries to one webhook before it is looked again whether it was paused.
const IN_A_ROW_MAX: usize = 100;

const LEASE_SECONDS: i64 = 60;

const BACKOFF_MILLIS: i64 = 5_000;
const BACKOFF_MILLIS_MAX: i64 = 6 * 3600 * 1000;
const GIVEN_UP_SECONDS: i64 = 3 * 24 * 3600;

const _: () = assert!(ANSWER_TIMEOUT.as_secs() * 2 < LEASE_SECONDS as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_grow_apart_and_end_after_three_days() {
        let created = Timestamp(0);
        let (mut now, mut attempts, mut waits) = (created, 0, Vec::new());

        loop {
            attempts += 1;
            // The longest of each.
            match next_attempt(attempts, created, now, [0, 0]) {
                Next::At(next) => {
                    waits.push((next.0 - now.0) / 1000);
                    now = next;
                }
                Next::GivenUp => break,
            }
        }

        assert_eq!(waits[..6], [5, 10, 20, 40, 80, 160]);
        assert_eq!(waits.iter().max(), Some(&(6 * 3600)));
        assert!((20..30).contains(&waits.len()), "{waits:?}");
        assert!(now.0 > (GIVEN_UP_SECONDS - 6 * 3600) * 1000 && now.0 <= GIVEN_UP_SECONDS * 1000);
    }

    #[test]
    fn chance_shortens_a_wait_by_half_at_most() {
        assert_eq!(next_attempt(1, Timestamp(0), Timestamp(0), [0xff, 0xff]), Next::At(Timestamp(2_500)));
        assert_eq!(
            next_attempt(i64::MAX, Timestamp(0), Timestamp(0), [0, 0]),
            Next::At(Timestamp(BACKOFF_MILLIS_MAX))
        );
        assert_eq!(next_attempt(1, Timestamp(0), Timestamp(GIVEN_UP_SECONDS * 1000), [0, 0]), Next::GivenUp);
    }
}
