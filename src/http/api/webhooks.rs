//! Webhooks: who is told of what, and how that goes.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::ExposeSecret as _;

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::paging::Paging;
use super::refusals::{Conflicts, Sealed, ToSome, Unknown, WithBody, WithQuery};
use super::tokens::parse;
use crate::access::Action;
use crate::api::{
    DeliveryQuery, DeliveryState, DeliveryView, Page, PageQuery, WebhookCreate, WebhookCreated, WebhookEdit,
    WebhookView,
};
use crate::http::App;
use crate::service::{
    self, DeliveryRow, EventKind, NewWebhook, Rejection, WebhookChange, WebhookId, WebhookSummary,
};

/// Add a webhook
///
/// What is committed after this has answered is told to it. Messages are signed as Standard Webhooks has it; the secret
/// for that is shown this once.
#[utoipa::path(
    post, path = "/api/v1/webhooks", operation_id = "webhook_create", tag = "webhooks",
    request_body = WebhookCreate,
    responses((status = 201, description = "The webhook; its secret is shown this once", body = WebhookCreated),
        ToSome, Conflicts, WithBody, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn create(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<(StatusCode, Json<WebhookCreated>)> {
    app.service.require(&call, &Action::Administer, "webhook-create", "").await?;
    app.service.require_open()?;
    let asked: WebhookCreate = body.json().await?;
    let events = asked.events.map_or(Ok(EventKind::ALL.to_vec()), |events| kinds(&events))?;
    let new = NewWebhook { url: asked.url, events, note: asked.note };
    let (made, secret) = app.service.create_webhook(&call, &new).await?;
    let created = WebhookCreated { webhook: view(made), secret: secret.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, Json(created)))
}

/// List webhooks
#[utoipa::path(
    get, path = "/api/v1/webhooks", operation_id = "webhooks", tag = "webhooks",
    params(PageQuery),
    responses((status = 200, description = "A page of webhooks", body = Page<WebhookView>), ToSome, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<WebhookView>>> {
    let paging = Paging::new(asked)?;
    let rows = app.service.list_webhooks(&call).await?;
    let rows = paging.cut(rows, |webhook| webhook.row.secret.id.as_str());
    Ok(Json(paging.page(rows, |webhook| webhook.row.secret.id.clone(), view)))
}

/// Show a webhook
///
/// With what waits for it, and whether its server takes what it is told. Never its secret.
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}", operation_id = "webhook", tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses((status = 200, description = "The webhook", body = WebhookView), ToSome, Unknown),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<WebhookId>,
) -> Result<Json<WebhookView>> {
    Ok(Json(view(app.service.show_webhook(&call, &id).await?)))
}

/// Edit a webhook
///
/// Fields that are absent stay as they are; the secret always does. Works while the vault is sealed.
#[utoipa::path(
    patch, path = "/api/v1/webhooks/{id}", operation_id = "webhook_edit", tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    request_body = WebhookEdit,
    responses((status = 200, description = "The webhook as it is now", body = WebhookView),
        ToSome, Unknown, WithBody),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn edit(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(id): Named<WebhookId>,
    body: Unread,
) -> Result<Json<WebhookView>> {
    app.service.require(&call, &Action::Administer, "webhook-edit", id.as_str()).await?;
    let asked: WebhookEdit = body.json().await?;
    let events = asked.events.map(|events| kinds(&events)).transpose()?;
    let change = WebhookChange { url: asked.url, events, note: asked.note, paused: asked.paused };
    Ok(Json(view(app.service.edit_webhook(&call, &id, &change).await?)))
}

/// Remove a webhook
///
/// With what waits for it: once this has answered, no delivery begins. Works while the vault is sealed.
#[utoipa::path(
    delete, path = "/api/v1/webhooks/{id}", operation_id = "webhook_remove", tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses((status = 204, description = "It is told of nothing more"), ToSome, Unknown),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn remove(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<WebhookId>,
) -> Result<StatusCode> {
    app.service.remove_webhook(&call, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Send a test to a webhook
///
/// An event `webhook.test`, once and now, also to one that is paused. The answer is 200 also where the receiver did not
/// take it: `state` and `error` say so, and it is tried again like any other.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/test", operation_id = "webhook_test", tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses((status = 200, description = "How that went", body = DeliveryView), ToSome, Unknown, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn test(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<WebhookId>,
) -> Result<Json<DeliveryView>> {
    Ok(Json(delivery(app.service.test_webhook(&call, &id).await?)))
}

/// List deliveries to a webhook
///
/// All that wait, and what ended in the last seven days.
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}/deliveries", operation_id = "webhook_deliveries", tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id"), DeliveryQuery),
    responses((status = 200, description = "A page of deliveries", body = Page<DeliveryView>),
        ToSome, Unknown, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn deliveries(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<WebhookId>,
    Query(asked): Query<DeliveryQuery>,
) -> Result<Json<Page<DeliveryView>>> {
    let DeliveryQuery { state, cursor, limit, order } = asked;
    let paging = Paging::new(PageQuery { cursor, limit, order })?;
    let state = state.map(|state| {
        let known = service::DeliveryState::parse(&state);
        known.ok_or_else(|| Rejection::value("state", "is none of waiting, delivered and given-up"))
    });
    let rows = app.service.list_deliveries(&call, &id, state.transpose()?, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), delivery)))
}

fn kinds(texts: &[String]) -> std::result::Result<Vec<EventKind>, Rejection> {
    texts.iter().map(|text| parse("events", text)).collect()
}

fn view(webhook: WebhookSummary) -> WebhookView {
    let WebhookSummary { row, waiting, given_up, dropped, delivered_at, failing_since } = webhook;
    WebhookView {
        id: row.secret.id,
        url: row.url,
        events: row.events,
        note: row.note,
        paused: row.paused_at.is_some(),
        waiting,
        given_up,
        dropped,
        delivered_at: delivered_at.map(|time| time.rfc3339()),
        failing_since: failing_since.map(|time| time.rfc3339()),
        created_at: row.created_at.rfc3339(),
    }
}

fn delivery(row: DeliveryRow) -> DeliveryView {
    let (state, waits) = match row.state {
        service::DeliveryState::Delivered => (DeliveryState::Delivered, false),
        service::DeliveryState::GivenUp => (DeliveryState::GivenUp, false),
        service::DeliveryState::Waiting => (DeliveryState::Waiting, true),
    };
    DeliveryView {
        id: row.id,
        event_id: row.event_id,
        event: row.kind,
        state,
        attempts: row.attempts.unsigned_abs(),
        status: row.status,
        error: row.error,
        created_at: row.created_at.rfc3339(),
        attempted_at: row.attempted_at.map(|time| time.rfc3339()),
        next_attempt_at: waits.then(|| row.not_before.rfc3339()),
        finished_at: row.finished_at.map(|time| time.rfc3339()),
    }
}
