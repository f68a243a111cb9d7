//! Tokens: issue, list, show, revoke, report.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Anyone, Holder, Named, Query, Result, Unread};
use super::paging::Paging;
use super::refusals::{Conflicts, Limited, Sealed, ToAnyone, ToSome, Unknown, WithBody, WithQuery};
use crate::access::{Scopes, TokenId};
use crate::api::{
    Page, PageQuery, RevokeRequest, Revoked, TokenCreate, TokenIssued, TokenQuery, TokenReport, TokenView,
};
use crate::http::App;
use crate::service::{IssuedToken, Rejection, TokenRequest, TokenRow};

/// Issue a token
///
/// An admin issues for anybody; others for themselves, a subset of their own scopes, ending no later than
/// their own token. The default lifetime is 90 days, the longest 365; admin tokens live for 30 days at most.
#[utoipa::path(
    post, path = "/api/v1/tokens", operation_id = "token_issue", tag = "tokens",
    request_body = TokenCreate,
    responses((status = 201, description = "The token; its text is shown this once", body = TokenIssued),
        ToSome, Unknown, Conflicts, WithBody, Sealed),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn issue(
    State(app): State<App>,
    Holder(call): Holder,
    body: Unread,
) -> Result<(StatusCode, Json<TokenIssued>)> {
    app.service.require_open()?;
    let asked: TokenCreate = body.json().await?;
    let request = TokenRequest {
        contributor: parse("contributor", &asked.contributor)?,
        scopes: parse_scopes(&asked.scopes)?,
        lifetime_seconds: asked.expires_in_seconds,
        note: asked.note,
    };
    let token = app.service.issue_token(&call, &request).await?;
    Ok((StatusCode::CREATED, Json(issued_view(token))))
}

/// List tokens
///
/// All of them for an admin, their own for others; never their texts. Revoked and expired ones stay listed.
#[utoipa::path(
    get, path = "/api/v1/tokens", operation_id = "tokens", tag = "tokens",
    params(TokenQuery),
    responses((status = 200, description = "A page of tokens", body = Page<TokenView>), ToSome, WithQuery),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn list(
    State(app): State<App>,
    Holder(call): Holder,
    Query(asked): Query<TokenQuery>,
) -> Result<Json<Page<TokenView>>> {
    let TokenQuery { contributor, issued_by, cursor, limit, order } = asked;
    let paging = Paging::new(PageQuery { cursor, limit, order })?;
    let query = crate::service::TokenQuery {
        contributor: contributor.map(|name| parse("contributor", &name)).transpose()?,
        issued_by: issued_by.map(|id| parse("issued_by", &id)).transpose()?,
    };
    let rows = app.service.list_tokens(&call, &query, &paging.bounds).await?;
    Ok(Json(paging.page(rows, |row| row.id.to_string(), view)))
}

/// Show a token
///
/// Everything but its text, which nobody has but its holder.
#[utoipa::path(
    get, path = "/api/v1/tokens/{id}", operation_id = "token", tag = "tokens",
    params(("id" = String, Path, description = "The token's `jti`")),
    responses((status = 200, description = "The token", body = TokenView), ToSome, Unknown),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn show(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<TokenId>,
) -> Result<Json<TokenView>> {
    Ok(Json(view(app.service.show_token(&call, id).await?)))
}

/// Revoke a token
///
/// Once this has answered, no request that begins later succeeds with it, on any replica. What it issued dies
/// with it unless `keep_issued`. Doing it again changes nothing. Works while the vault is sealed.
#[utoipa::path(
    post, path = "/api/v1/tokens/{id}/revoke", operation_id = "token_revoke", tag = "tokens",
    params(("id" = String, Path, description = "The token's `jti`")),
    request_body = RevokeRequest,
    responses((status = 200, description = "What died by this call", body = Revoked),
        ToSome, Unknown, WithBody),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn revoke(
    State(app): State<App>,
    Holder(call): Holder,
    Named(id): Named<TokenId>,
    body: Unread,
) -> Result<Json<Revoked>> {
    let asked: RevokeRequest = body.json().await?;
    let revoked = app.service.revoke_token(&call, id, &asked.reason, asked.keep_issued).await?;
    Ok(Json(revoked_view(&revoked)))
}

/// Report a leaked token
///
/// Whoever holds a token's text may kill it, and all that it issued. Needs no login: finders of leaked tokens
/// have none.
#[utoipa::path(
    post, path = "/api/v1/tokens/report", operation_id = "token_report", tag = "tokens",
    request_body = TokenReport,
    responses((status = 200, description = "What died by this call", body = Revoked),
        ToAnyone, WithBody, Limited),
)]
pub(super) async fn report(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<Revoked>> {
    let asked: TokenReport = body.json().await?;
    let revoked = app.service.report_token(&call, &asked.token).await?;
    Ok(Json(revoked_view(&revoked)))
}

pub(super) fn issued_view(token: IssuedToken) -> TokenIssued {
    TokenIssued {
        id: token.id.to_string(),
        token: token.text.expose().to_owned(),
        contributor: token.contributor.to_string(),
        scopes: token.scopes.iter().map(ToString::to_string).collect(),
        expires_at: token.expires_at.rfc3339(),
    }
}

pub(super) fn revoked_view(ids: &[TokenId]) -> Revoked {
    Revoked { revoked: ids.iter().map(ToString::to_string).collect() }
}

fn view(row: TokenRow) -> TokenView {
    TokenView {
        id: row.id.to_string(),
        contributor: row.contributor_name.to_string(),
        scopes: row.scopes.iter().map(ToString::to_string).collect(),
        note: row.note,
        issued_by: row.issued_by.map(|id| id.to_string()),
        created_at: row.created_at.rfc3339(),
        expires_at: row.expires_at.rfc3339(),
        last_used_at: row.last_used_at.map(|time| time.rfc3339()),
        revoked_at: row.revoked_at.map(|time| time.rfc3339()),
        revoke_reason: row.revoke_reason,
    }
}

/// Each element is one scope: two in one text would read as two in the token.
fn parse_scopes(texts: &[String]) -> std::result::Result<Scopes, Rejection> {
    let scopes =
        texts.iter().map(|text| parse("scopes", text)).collect::<std::result::Result<Vec<_>, _>>()?;
    Scopes::new(scopes).map_err(|error| Rejection::value("scopes", error))
}

/// A value of a field, or a refusal that names the field.
pub(super) fn parse<T>(field: &'static str, text: &str) -> std::result::Result<T, Rejection>
where
    T: std::str::FromStr<Err: ToString>,
{
    text.parse().map_err(|error| Rejection::value(field, error))
}
