//! The vault's door: how it stands, unseal, seal.

use axum::Json;
use axum::extract::State;

use super::extract::{Anyone, Holder, Result, Unread};
use super::refusals::{Limited, ToSome, WithBody};
use crate::access::Action;
use crate::api::{SlotView, UnsealRequest, VaultView};
use crate::http::App;
use crate::service::{Slot, Unseal, VaultStatus};

/// Show the vault's state
///
/// Of the replica that answers, and the slots that open it. `/readyz` tells anybody whether it is sealed.
#[utoipa::path(
    get, path = "/api/v1/vault", operation_id = "vault", tag = "vault",
    responses((status = 200, description = "How it stands", body = VaultView), ToSome),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn show(State(app): State<App>, Holder(call): Holder) -> Result<Json<VaultView>> {
    app.service.require(&call, &Action::Administer, "vault-show", "").await?;
    Ok(Json(view(app.service.vault_status(&call).await?)))
}

/// Unseal the vault
///
/// Opens the replica that answers. `{}` tries the configured key file or passphrase file again and needs an
/// admin token; `{"passphrase": …}` is right enough by itself, and limited per address. A sealing by hand is
/// lifted for the others too, at their next start or unseal.
#[utoipa::path(
    post, path = "/api/v1/vault/unseal", operation_id = "vault_unseal", tag = "vault",
    request_body = UnsealRequest,
    responses((status = 200, description = "How it stands now", body = VaultView), ToSome, WithBody, Limited),
    security((), ("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn unseal(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<VaultView>> {
    let asked: UnsealRequest = body.json().await?;
    let with = match asked.passphrase {
        None => Unseal::Configured,
        Some(text) => Unseal::passphrase(&text)?,
    };
    Ok(Json(view(app.service.unseal(&call, with).await?)))
}

/// Seal the vault
///
/// On every replica within a second, and over restarts, until somebody unseals it. Reads and revocations go
/// on; uploads and new tokens wait.
#[utoipa::path(
    post, path = "/api/v1/vault/seal", operation_id = "vault_seal", tag = "vault",
    responses((status = 200, description = "How it stands now", body = VaultView), ToSome),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn seal(State(app): State<App>, Holder(call): Holder) -> Result<Json<VaultView>> {
    Ok(Json(view(app.service.seal(&call).await?)))
}

fn view(status: VaultStatus) -> VaultView {
    let slot = |slot: Slot| SlotView {
        id: slot.id,
        kind: slot.kind.as_str().to_owned(),
        created_at: slot.created_at.rfc3339(),
    };
    VaultView {
        state: if status.open { "open" } else { "sealed" }.to_owned(),
        sealed_by_hand: status.sealed_by_hand,
        slots: status.slots.into_iter().map(slot).collect(),
    }
}
