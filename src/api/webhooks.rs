//! Webhooks and their deliveries.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Order;

/// Adds a webhook.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookCreate {
    /// Where messages are posted to: https, to a public address, unless the server's configuration allows more.
    pub url: String,
    /// Kinds of events, such as `path.published`; all unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<String>>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A new webhook. The secret is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct WebhookCreated {
    pub webhook: WebhookView,
    /// `whsec_` and base64: what messages are signed with.
    pub secret: String,
}

/// Changes a webhook. Fields that are absent stay as they are.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookEdit {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<String>>,
    /// Empty: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// While it is paused nothing is queued for it, and what waits goes on waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookView {
    pub id: String,
    pub url: String,
    pub events: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub paused: bool,
    /// Deliveries that wait.
    pub waiting: u64,
    /// Deliveries that were given up after three days, of the last seven days.
    pub given_up: u64,
    /// Events that were not queued because 10 000 deliveries waited.
    pub dropped: u64,
    /// When the last delivery was taken, of the last seven days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<String>,
    /// Since when the oldest delivery waits that failed so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
    pub created_at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// The receiver answered with a status of success.
    Delivered,
    /// Three days of attempts were in vain.
    GivenUp,
    /// It is to be sent, again or for the first time.
    Waiting,
}

/// Which deliveries are asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryQuery {
    /// `waiting`, `delivered` or `given-up`; all unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Where to go on: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page, 1 to 200; 100 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `asc` (oldest first, the default) or `desc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

/// What is or was to be told to a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    pub id: String,
    /// The message's `webhook-id`: the same at each attempt, and for each webhook that is told of the event.
    pub event_id: String,
    /// The event's kind.
    pub event: String,
    pub state: DeliveryState,
    pub attempts: u64,
    /// The status that the last attempt was answered with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempted_at: Option<String>,
    /// While it waits: not before then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}
