//! Who a caller is, and how they come by a token.

use axum::Json;
use axum::extract::State;

use super::extract::{Anyone, Holder, Result, Unread};
use super::refusals::{Limited, Sealed, ToAnyone, ToHolders, WithBody};
use super::tokens::issued_view;
use crate::api::{ClaimRequest, TokenIssued, TokenRenew, Whoami};
use crate::http::App;

/// Spend a one-time claim
///
/// The first start prints a claim, `nvb_…`, and so does `narvault admin claim` on the server. Whoever spends
/// it within the hour becomes an admin. It works once.
#[utoipa::path(
    post, path = "/api/v1/auth/claim", operation_id = "claim", tag = "auth",
    request_body = ClaimRequest,
    responses((status = 200, description = "The first admin token; shown this once", body = TokenIssued),
        ToAnyone, WithBody, Limited, Sealed),
)]
pub(super) async fn claim(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<TokenIssued>> {
    let asked: ClaimRequest = body.json().await?;
    let token = app.service.claim_admin(&call, &asked.claim).await?;
    Ok(Json(issued_view(token)))
}

/// Ask who you are
///
/// The contributor behind the token that is shown, what it allows, and until when.
#[utoipa::path(
    get, path = "/api/v1/auth/whoami", operation_id = "whoami", tag = "auth",
    responses((status = 200, description = "The token's holder", body = Whoami), ToHolders),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn whoami(State(app): State<App>, Holder(call): Holder) -> Result<Json<Whoami>> {
    let found = app.service.whoami(&call).await?;
    Ok(Json(Whoami {
        contributor: found.contributor.to_string(),
        token_id: found.token.to_string(),
        scopes: found.scopes.iter().map(ToString::to_string).collect(),
        expires_at: found.expires_at.rfc3339(),
    }))
}

/// Renew your token
///
/// A new token of the same scopes, within the bound that the issuer of the first one had. The old one stays
/// alive until it ends or is revoked; the new one is its sibling, not its child.
#[utoipa::path(
    post, path = "/api/v1/auth/renew", operation_id = "renew", tag = "auth",
    request_body = TokenRenew,
    responses((status = 200, description = "The new token; shown this once", body = TokenIssued),
        ToHolders, WithBody, Sealed),
    security(("bearer" = []), ("basic" = [])),
)]
pub(super) async fn renew(
    State(app): State<App>,
    Holder(call): Holder,
    body: Unread,
) -> Result<Json<TokenIssued>> {
    app.service.require_open()?;
    let asked: TokenRenew = body.json().await?;
    let token = app.service.renew_token(&call, asked.expires_in_seconds).await?;
    Ok(Json(issued_view(token)))
}
