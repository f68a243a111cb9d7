//! What the world is told: kinds of events, and the JSON of each.
//!
//! Never holds a secret. A list in an event has a bound, and the event says how many there are in all.

use serde_json::{Value, json};

use crate::access::{TokenCaller, TokenId};
use crate::db::caches::CacheRow;
use crate::db::contributors::{self, ContributorRow};
use crate::db::signing_keys::{KeyRow, KeyState};
use crate::db::webhook_deliveries::{self, NewEvent};
use crate::db::{Tx, webhooks};
use crate::nix::claim::Claim;
use crate::service::{Call, Result, Service};
use crate::time::Timestamp;

/// A kind of event that a webhook may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    ContributorQuarantined,
    ContributorRestored,
    ContributorResumed,
    ContributorSuspended,
    KeyChanged,
    KeyCreated,
    PathConflict,
    PathPublished,
    PathQuarantined,
    PathRestored,
    TokenQuarantined,
    TokenRestored,
    TokenRevoked,
}

impl EventKind {
    /// All of them, as they are listed.
    pub const ALL: [Self; 13] = [
        Self::PathPublished,
        Self::PathConflict,
        Self::PathQuarantined,
        Self::PathRestored,
        Self::TokenRevoked,
        Self::TokenQuarantined,
        Self::TokenRestored,
        Self::ContributorSuspended,
        Self::ContributorResumed,
        Self::ContributorQuarantined,
        Self::ContributorRestored,
        Self::KeyCreated,
        Self::KeyChanged,
    ];

    /// The kind of what is sent for a test. Nobody can ask for it.
    pub(super) const TEST: &'static str = "webhook.test";

    /// The word in messages, in JSON and in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContributorQuarantined => "contributor.quarantined",
            Self::ContributorRestored => "contributor.restored",
            Self::ContributorResumed => "contributor.resumed",
            Self::ContributorSuspended => "contributor.suspended",
            Self::KeyChanged => "key.changed",
            Self::KeyCreated => "key.created",
            Self::PathConflict => "path.conflict",
            Self::PathPublished => "path.published",
            Self::PathQuarantined => "path.quarantined",
            Self::PathRestored => "path.restored",
            Self::TokenQuarantined => "token.quarantined",
            Self::TokenRestored => "token.restored",
            Self::TokenRevoked => "token.revoked",
        }
    }
}

impl std::str::FromStr for EventKind {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownEvent> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownEvent)
    }
}

/// A word that names no kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("names no kind of event; there are {}", EventKind::ALL.map(EventKind::as_str).join(", "))]
pub struct UnknownEvent;

/// Something that happened, told in the transaction in which it did.
#[derive(Debug)]
pub(in crate::service) enum Event<'a> {
    /// A contributor was suspended, resumed, quarantined or restored; `detail` is a JSON object of what else is known.
    Contributor {
        kind: EventKind,
        contributor: &'a ContributorRow,
        detail: Value,
    },
    /// A signing key was made, or came into another state.
    Key {
        cache: Option<&'a CacheRow>,
        key: &'a KeyRow,
        before: Option<KeyState>,
    },
    /// Claims were refused because others stand: pairs of what stands and what was claimed.
    PathConflict {
        cache: &'a CacheRow,
        claims: Vec<(&'a Claim, &'a Claim)>,
    },
    /// Paths were signed and published that were not before.
    PathPublished {
        cache: &'a CacheRow,
        claims: Vec<&'a Claim>,
    },
    /// A token or a path was quarantined or restored; `detail` is a JSON object that names it.
    Takedown {
        kind: EventKind,
        detail: Value,
    },
    TokenRevoked {
        tokens: &'a [TokenId],
        reason: &'a str,
    },
}

impl Event<'_> {
    fn kind(&self) -> EventKind {
        match self {
            Self::Contributor { kind, .. } | Self::Takedown { kind, .. } => *kind,
            Self::Key { before: None, .. } => EventKind::KeyCreated,
            Self::Key { before: Some(_), .. } => EventKind::KeyChanged,
            Self::PathConflict { .. } => EventKind::PathConflict,
            Self::PathPublished { .. } => EventKind::PathPublished,
            Self::TokenRevoked { .. } => EventKind::TokenRevoked,
        }
    }

    /// Whether nothing happened.
    fn is_empty(&self) -> bool {
        match self {
            Self::Contributor { .. } | Self::Key { .. } | Self::Takedown { .. } => false,
            Self::PathConflict { claims, .. } => claims.is_empty(),
            Self::PathPublished { claims, .. } => claims.is_empty(),
            Self::TokenRevoked { tokens, .. } => tokens.is_empty(),
        }
    }

    /// What is told of it, but for who did it.
    fn data(&self) -> Value {
        match self {
            Self::Contributor { contributor, detail, .. } => {
                let mut data = json!({ "contributor": contributor.name.as_str(), "contributor_id": contributor.id.to_string() });
                if let (Value::Object(data), Value::Object(detail)) = (&mut data, detail) {
                    data.extend(detail.clone());
                }
                data
            }
            Self::Key { cache, key, before } => json!({
                "cache": cache.map(|cache| cache.name.as_str()),
                "purpose": key.key.label.purpose.as_str(),
                "key": key.public_key.name().as_str(),
                "public_key": key.public_key.to_string(),
                "state": key.state.as_str(),
                "state_before": before.map(KeyState::as_str),
            }),
            Self::PathConflict { cache, claims } => {
                let told = claims.iter().take(LISTED_MAX).map(|(standing, claimed)| {
                    json!({
                        "store_path": claimed.path.to_string(),
                        "standing_nar_hash": standing.nar_hash.to_string(),
                        "claimed_nar_hash": claimed.nar_hash.to_string(),
                    })
                });
                of_cache(cache, claims.len(), told.collect())
            }
            Self::PathPublished { cache, claims } => {
                let told = claims.iter().take(LISTED_MAX).map(|claim| {
                    json!({ "store_path": claim.path.to_string(), "nar_hash": claim.nar_hash.to_string(), "nar_size": claim.nar_size })
                });
                of_cache(cache, claims.len(), told.collect())
            }
            Self::Takedown { detail, .. } => detail.clone(),
            Self::TokenRevoked { tokens, reason } => {
                let told: Vec<String> = tokens.iter().take(LISTED_MAX).map(ToString::to_string).collect();
                json!({ "count": tokens.len(), "token_ids": told, "reason": reason })
            }
        }
    }
}

fn of_cache(cache: &CacheRow, count: usize, paths: Vec<Value>) -> Value {
    json!({ "cache": cache.name.as_str(), "public": cache.public, "count": count, "paths": paths })
}

impl Service {
    /// Queues an event for every webhook that wants to be told, in the transaction of what happened, before its leaves:
    /// the log is locked last. Costs one question where there is no webhook.
    pub(in crate::service) async fn emit(
        &self,
        tx: &mut Tx,
        call: &Call,
        event: Event<'_>,
        now: Timestamp,
    ) -> Result<()> {
        if event.is_empty() {
            return Ok(());
        }
        let kind = event.kind().as_str();
        let mut deliveries = Vec::new();
        for webhook in webhooks::subscribed(tx, kind).await? {
            if webhook.waiting >= WAITING_MAX {
                webhooks::drop_one(tx, &webhook.id).await?;
                metrics::counter!("narvault_webhook_deliveries_total", "outcome" => "dropped").increment(1);
            } else {
                deliveries.push((self.new_id(now), webhook.id));
            }
        }
        if deliveries.is_empty() {
            return Ok(());
        }
        let mut data = event.data();
        data["by"] = acting(tx, call.caller.token()).await?;
        let event = self.new_event(kind, data, now);
        Ok(webhook_deliveries::enqueue(tx, &event, &deliveries, None).await?)
    }

    /// An event with its payload, as it will be sent.
    pub(super) fn new_event(&self, kind: &'static str, data: Value, now: Timestamp) -> NewEvent<'static> {
        let payload = json!({ "type": kind, "timestamp": now.rfc3339(), "data": data }).to_string();
        NewEvent { id: self.new_id(now), kind, payload, at: now }
    }
}

/// Who did it: a contributor with a token, or the operator on the host.
async fn acting(tx: &mut Tx, token: Option<&TokenCaller>) -> Result<Value> {
    let Some(token) = token else { return Ok(Value::Null) };
    let contributor = contributors::by_id(tx, token.contributor).await?;
    Ok(json!({
        "contributor": contributor.map(|row| row.name.to_string()),
        "contributor_id": token.contributor.to_string(),
        "token_id": token.token.to_string(),
    }))
}

/// Paths or tokens that one event lists: a message stays below 24 KiB.
const LISTED_MAX: usize = 50;

/// Deliveries that wait for one webhook. Beyond, events are counted and not queued: a server that nobody mends must not
/// fill the database.
const WAITING_MAX: i64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_read_back_and_no_other_word_does() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for text in ["", "path", "path.*", "Path.Published", EventKind::TEST] {
            assert_eq!(text.parse::<EventKind>(), Err(UnknownEvent), "{text}");
        }
    }
}
