//! The audit rows: who did what, and who tried.

use axum::Json;
use axum::extract::State;

use super::extract::{Holder, Query, Result};
use super::paging::Paging;
use super::paths::parse_time;
use super::refusals::{ToSome, Unknown, WithQuery};
use super::tokens::parse;
use crate::api::{AuditQuery, AuditView, Page, PageQuery};
use crate::http::App;
use crate::service::{self, AuditOutcome, AuditRow, Rejection};

/// List audit rows
///
/// What was done and what was denied, by whom, with which token, from where. Never a token, a claim or a
/// passphrase in any form.
#[utoipa::path(
    get, path = "/api/v1/audit", operation_id = "audit", tag = "audit",
    params(AuditQuery),
    responses((status = 200, description = "A page of audit rows", body = Page<AuditView>),
        ToSome, Unknown, WithQuery),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<AuditQuery>,
) -> Result<Json<Page<AuditView>>> {
    let AuditQuery { contributor, token, action, outcome, since, until, subject, address, .. } = asked;
    let (cursor, limit, order) = (asked.cursor, asked.limit, asked.order);
    let paging = Paging::new(PageQuery { cursor, limit, order })?;
    let query = service::AuditQuery {
        contributor: contributor.map(|name| parse("contributor", &name)).transpose()?,
        token: token.map(|id| parse("token", &id)).transpose()?,
        action,
        outcome: outcome.map(|outcome| parse_outcome(&outcome)).transpose()?,
        since: since.map(|time| parse_time("since", &time)).transpose()?,
        until: until.map(|time| parse_time("until", &time)).transpose()?,
        subject,
        address: address.map(|address| parse("address", &address)).transpose()?,
    };
    let rows = app.service.list_audit(&call, &query, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.clone(), view)))
}

fn parse_outcome(text: &str) -> std::result::Result<AuditOutcome, Rejection> {
    AuditOutcome::parse(text).ok_or_else(|| Rejection::value("outcome", "is neither done nor denied"))
}

fn view(row: AuditRow) -> AuditView {
    AuditView {
        id: row.id,
        at: row.at.rfc3339(),
        action: row.action,
        outcome: row.outcome.as_str().to_owned(),
        contributor: row.contributor,
        token_id: row.token,
        subject: row.subject,
        address: row.address,
        client: row.client,
        request_id: row.request_id,
        // Written by this server; were it not JSON, the text says more than an error would.
        detail: serde_json::from_str(&row.detail).unwrap_or_else(|_| row.detail.into()),
    }
}
