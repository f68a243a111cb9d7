//! The vault's door: how it stands, unseal, seal, and the slots that open it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use data_encoding::BASE64;
use secrecy::ExposeSecret as _;

use super::extract::{Anyone, Holder, Named, Result, Unread};
use super::refusals::{Conflicts, KmsAway, Limited, Sealed, ToSome, Unknown, WithBody};
use crate::access::Action;
use crate::api::{
    GatheredSharesView, HandedInView, KekRotationView, KmsWaitView, PassphraseReplace, RootRotate,
    ShareCount, SlotAdded, SlotCreate, SlotView, UnsealRequest, VaultView,
};
use crate::http::App;
use crate::service::{
    AddedSlot, GatheredShares, GivenSecret, KekRotation, KmsWait, NewRootRequest, NewSlot, PassphraseChange,
    Rejection, Slot, SlotId, Unseal, VaultStatus,
};

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
/// Opens the replica that answers. `{}` tries the configured key file, passphrase file and KMS again and needs an
/// admin token; `{"passphrase": …}` is right enough by itself, and limited per address. `{"share": …}` hands in one of
/// several shares: each by another administrator, on the same replica, within 15 minutes of the first one; `shares` in
/// the answer says how many are still missing, and the last one opens the vault. A sealing by hand is lifted for the
/// others too, at their next start or unseal.
#[utoipa::path(
    post, path = "/api/v1/vault/unseal", operation_id = "vault_unseal", tag = "vault",
    request_body = UnsealRequest,
    responses((status = 200, description = "How it stands now", body = VaultView),
        ToSome, Conflicts, WithBody, KmsAway, Limited),
    security((), ("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn unseal(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<VaultView>> {
    let asked: UnsealRequest = body.json().await?;
    let status = match (asked.passphrase, asked.share) {
        (None, None) => app.service.unseal(&call, Unseal::Configured).await?,
        (Some(text), None) => app.service.unseal(&call, Unseal::passphrase(&text)?).await?,
        (None, Some(text)) => app.service.hand_in_share(&call, &text.into()).await?,
        (Some(_), Some(_)) => {
            return Err(Rejection::value("share", "give at most one of `passphrase` and `share`").into());
        }
    };
    Ok(Json(view(status)))
}

/// Forget the shares
///
/// Those that were handed in on the replica that answers, and were not enough yet. They are handed in again from the
/// first one on.
#[utoipa::path(
    delete, path = "/api/v1/vault/unseal", operation_id = "vault_shares_cancel", tag = "vault",
    responses((status = 200, description = "How it stands now", body = VaultView), ToSome),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn cancel_shares(State(app): State<App>, Holder(call): Holder) -> Result<Json<VaultView>> {
    Ok(Json(view(app.service.cancel_shares(&call).await?)))
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

/// Rotate the key-encryption key
///
/// From the answer on everything new is sealed with another one. In the background every key and webhook that is there is
/// sealed anew, too; then the old one is overwritten. Nothing waits for it. Another call while that is under way begins
/// again, with yet another one.
#[utoipa::path(
    post, path = "/api/v1/vault/rotate-kek", operation_id = "vault_rotate_kek", tag = "vault",
    responses((status = 200, description = "How it stands now", body = VaultView), ToSome, Conflicts, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn rotate_kek(State(app): State<App>, Anyone(call): Anyone) -> Result<Json<VaultView>> {
    Ok(Json(view(app.service.rotate_kek(&call).await?)))
}

/// Rotate the root key
///
/// Every slot that stays wraps another one from then on, for which its secret is needed; what the server is configured
/// with is tried by itself. A slot whose secret is not there has to be among `drop_slots`. Whoever has the secret of a
/// dropped slot and a copy of the database from before opens nothing that is written from the answer on, and with
/// `with_kek`, within minutes, nothing of a later copy. A passphrase takes the server a second. Other replicas open the
/// vault anew with what they are configured with, or seal.
#[utoipa::path(
    post, path = "/api/v1/vault/rotate-root", operation_id = "vault_rotate_root", tag = "vault",
    request_body = RootRotate,
    responses((status = 200, description = "How it stands now", body = VaultView),
        ToSome, Unknown, Conflicts, WithBody, Limited, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn rotate_root(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<VaultView>> {
    app.service.require(&call, &Action::Administer, "vault-root-rotate", "").await?;
    app.service.require_open()?;
    let asked: RootRotate = body.json().await?;
    let mut secrets = Vec::new();
    for text in &asked.passphrases {
        secrets.push(GivenSecret::passphrase(text)?);
    }
    for text in &asked.key_files {
        let bytes = BASE64.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| Rejection::value("key_files", "is not base64"))?;
        secrets.push(GivenSecret::key_file(&bytes)?);
    }
    let slot =
        |id: &String| id.parse().map_err(|_| Rejection::value("drop_slots", "is not the id of a slot"));
    let drop_slots = asked.drop_slots.iter().map(slot).collect::<std::result::Result<_, _>>()?;
    let request = NewRootRequest { secrets, drop_slots, with_kek: asked.with_kek };
    Ok(Json(view(app.service.rotate_root(&call, request).await?)))
}

/// Add a slot
///
/// A further secret that opens the vault, any one of which is enough. A passphrase takes the server a second. A key in
/// KMS encrypts a random slot key, and decrypts it again to see that this server may. With `{"shares": …}` the server
/// makes a key and splits it; the answer has the shares, which are told this once: each is to be given to another
/// person.
#[utoipa::path(
    post, path = "/api/v1/vault/slots", operation_id = "slot_add", tag = "vault",
    request_body = SlotCreate,
    responses((status = 201, description = "The slot, with its shares if it has some", body = SlotAdded),
        ToSome, Conflicts, WithBody, Sealed),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn add_slot(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<(StatusCode, Json<SlotAdded>)> {
    app.service.require(&call, &Action::Administer, "vault-slot-add", "").await?;
    app.service.require_open()?;
    let asked: SlotCreate = body.json().await?;
    let new = match (asked.passphrase, asked.key_file, asked.kms, asked.shares) {
        (Some(text), None, None, None) => NewSlot::passphrase(&text)?,
        (None, None, Some(kms), None) => NewSlot::kms(&kms.key_id)?,
        (None, None, None, Some(ShareCount { threshold, of })) => NewSlot::shares(threshold, of)?,
        (None, Some(text), None, None) => {
            let bytes = BASE64.decode(text.as_bytes());
            NewSlot::key_file(&bytes.map_err(|_| Rejection::value("key_file", "is not base64"))?)?
        }
        _ => {
            let why = "give exactly one of `passphrase`, `key_file`, `kms` and `shares`";
            return Err(Rejection::value("passphrase", why).into());
        }
    };
    let added = app.service.add_slot(&call, new).await?;
    Ok((StatusCode::CREATED, Json(added_view(added))))
}

/// Remove a slot
///
/// Its secret opens this vault no longer, but still a copy of the database from before. The last slot stays. Works
/// while the vault is sealed.
#[utoipa::path(
    delete, path = "/api/v1/vault/slots/{slot}", operation_id = "slot_remove", tag = "vault",
    params(("slot" = String, Path, description = "The slot's id")),
    responses((status = 204, description = "It is gone"), ToSome, Unknown, Conflicts),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn remove_slot(
    State(app): State<App>,
    Anyone(call): Anyone,
    Named(slot): Named<SlotId>,
) -> Result<StatusCode> {
    app.service.remove_slot(&call, &slot).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change a passphrase
///
/// The former one's slot goes and one of the new one comes, at once or not at all. Its slot is the one that the former
/// passphrase opens. Works while the vault is sealed, and is limited per address.
#[utoipa::path(
    post, path = "/api/v1/vault/passphrase", operation_id = "passphrase_change", tag = "vault",
    request_body = PassphraseReplace,
    responses((status = 200, description = "The new slot; never a secret", body = SlotView),
        ToSome, Conflicts, WithBody, Limited),
    security(("bearer" = ["admin"]), ("basic" = ["admin"])),
)]
pub(super) async fn change_passphrase(
    State(app): State<App>,
    Anyone(call): Anyone,
    body: Unread,
) -> Result<Json<SlotView>> {
    app.service.require(&call, &Action::Administer, "vault-passphrase-change", "").await?;
    let asked: PassphraseReplace = body.json().await?;
    let change = PassphraseChange::new(&asked.former, &asked.new)?;
    Ok(Json(slot_view(app.service.change_passphrase(&call, change).await?)))
}

fn added_view(AddedSlot { slot, shares: made }: AddedSlot) -> SlotAdded {
    let SlotView { id, kind, kms_key, created_at, shares } = slot_view(slot);
    let share_texts = made.iter().map(|share| share.text().expose_secret().to_owned()).collect();
    SlotAdded { id, kind, kms_key, created_at, shares, share_texts }
}

fn slot_view(slot: Slot) -> SlotView {
    SlotView {
        id: slot.id,
        kind: slot.kind.as_str().to_owned(),
        kms_key: slot.kms_key,
        created_at: slot.created_at.rfc3339(),
        shares: slot.shares.map(|count| ShareCount { threshold: count.threshold(), of: count.of() }),
    }
}

fn shares_view(shares: GatheredShares) -> GatheredSharesView {
    let handed_in = shares.handed_in.into_iter();
    GatheredSharesView {
        slot: shares.slot_id,
        needed: ShareCount { threshold: shares.count.threshold(), of: shares.count.of() },
        handed_in: handed_in
            .map(|one| HandedInView { contributor: one.contributor, at: one.at.rfc3339() })
            .collect(),
        until: shares.until.rfc3339(),
    }
}

fn view(status: VaultStatus) -> VaultView {
    VaultView {
        state: if status.open { "open" } else { "sealed" }.to_owned(),
        sealed_by_hand: status.sealed_by_hand,
        kms_wait: status.kms_wait.map(kms_wait_view),
        shares: status.shares.into_iter().map(shares_view).collect(),
        slots: status.slots.into_iter().map(slot_view).collect(),
        root_version: status.versions.root,
        kek_version: status.versions.kek,
        rows_behind: status.rows_behind,
        kek_rotation: status.kek_rotation.map(kek_rotation_view),
    }
}

fn kms_wait_view(wait: KmsWait) -> KmsWaitView {
    KmsWaitView { key: wait.key, since: wait.since.rfc3339(), said: wait.said }
}

fn kek_rotation_view(rotation: KekRotation) -> KekRotationView {
    KekRotationView {
        kek_version: rotation.kek_version,
        state: rotation.state.as_str().to_owned(),
        total: rotation.total,
        done: rotation.done,
        damaged: rotation.damaged,
        started_at: rotation.started_at.rfc3339(),
        ended_at: rotation.ended_at.map(|at| at.rfc3339()),
    }
}
