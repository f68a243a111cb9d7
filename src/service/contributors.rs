//! Contributors: registered, grouped, suspended, and the public keys that speak for them.

use serde_json::json;

use super::audit::Act;
use super::leaves::AdminEvent;
use super::webhooks::{Event, EventKind};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, ContributorId, ContributorName, GroupName};
use crate::db::contributors::{self, ContributorKeyRow, ContributorKind, ContributorRow};
use crate::db::{Connection, DbError, Gate, PageBounds, caches, epoch, restarting, signing_keys};
use crate::nix::signature::{KeyName, PublicKey};
use crate::vault::random;

/// A contributor and what they did.
#[derive(Debug, Clone)]
pub struct ContributorDetails {
    pub row: ContributorRow,
    pub public_keys: Vec<PublicKey>,
    /// Published paths that they pushed.
    pub paths: u64,
    /// Those paths' files.
    pub bytes: u64,
}

/// What may change of a contributor. `None`: stays.
#[derive(Debug, Clone, Default)]
pub struct ContributorChange {
    pub suspended: Option<bool>,
    pub group: Option<GroupName>,
}

impl Service {
    /// Registers a contributor.
    pub async fn create_contributor(
        &self,
        call: &Call,
        name: &ContributorName,
        kind: ContributorKind,
        group: Option<GroupName>,
    ) -> Result<ContributorDetails> {
        self.require(call, &Action::Administer, "contributor-create", name.as_str()).await?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let row = ContributorRow {
                id: ContributorId::new(now, random::bytes()),
                name: name.clone(),
                kind,
                group: group.clone(),
                suspended_at: None,
                created_at: now,
            };
            contributors::insert(&mut tx, &row).await.map_err(|error| taken(error, name.as_str()))?;
            self.record(&mut tx, call, vec![created(&row)], now).await?;
            tx.commit().await?;
            Ok(ContributorDetails { row, public_keys: Vec::new(), paths: 0, bytes: 0 })
        })
        .await
    }

    /// A page of contributors.
    pub async fn list_contributors(&self, call: &Call, page: &PageBounds) -> Result<Vec<ContributorDetails>> {
        self.require(call, &Action::Administer, "contributor-list", "").await?;
        let mut connection = self.inner.db.read().await?;
        let mut details = Vec::new();
        for row in contributors::list(&mut connection, page).await? {
            details.push(with_details(&mut connection, row).await?);
        }
        Ok(details)
    }

    /// One contributor.
    pub async fn show_contributor(&self, call: &Call, name: &ContributorName) -> Result<ContributorDetails> {
        self.require(call, &Action::Administer, "contributor-show", name.as_str()).await?;
        let mut connection = self.inner.db.read().await?;
        let row = contributors::by_name(&mut connection, name).await?;
        with_details(&mut connection, row.ok_or(Error::NotFound("contributor"))?).await
    }

    /// Suspends a contributor, lifts that, or puts them into another group. Once a suspension has answered,
    /// none of their tokens works anywhere; lifting it revives those that were not revoked.
    pub async fn edit_contributor(
        &self,
        call: &Call,
        name: &ContributorName,
        change: &ContributorChange,
    ) -> Result<ContributorDetails> {
        self.require(call, &Action::Administer, "contributor-edit", name.as_str()).await?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let row = contributors::by_name(&mut tx, name).await?.ok_or(Error::NotFound("contributor"))?;
            let mut acts = Vec::new();
            if let Some(group) = &change.group
                && row.group.as_ref() != Some(group)
            {
                contributors::set_group(&mut tx, row.id, group).await?;
                acts.push(Act {
                    action: "contributor-edit",
                    subject: name.to_string(),
                    detail: json!({ "group": group.as_str() }),
                    cache: None,
                    event: Some(AdminEvent::PolicyChange),
                });
            }
            if change.suspended == Some(false) && contributors::is_erased(&mut tx, row.id).await? {
                return Err(Conflict::State("the contributor was erased, which is for good").into());
            }
            if let Some(suspended) = change.suspended
                && contributors::set_suspended(&mut tx, row.id, suspended.then_some(now)).await?
            {
                let kind =
                    if suspended { EventKind::ContributorSuspended } else { EventKind::ContributorResumed };
                let event = Event::Contributor { kind, contributor: &row, detail: json!({}) };
                self.emit(&mut tx, call, event, now).await?;
                acts.push(Act {
                    action: "contributor-suspend",
                    subject: name.to_string(),
                    detail: json!({ "suspended": suspended }),
                    cache: None,
                    event: Some(AdminEvent::ContributorSuspend(row.id)),
                });
            }
            if !acts.is_empty() {
                epoch::advance(&mut tx).await?;
                self.record(&mut tx, call, acts, now).await?;
            }
            tx.commit().await?;
            Ok::<_, Error>(())
        })
        .await?;
        self.note_change().await;
        self.show_contributor(call, name).await
    }

    /// Registers a public key whose `Sig:` lines count as the contributor's evidence.
    pub async fn add_contributor_key(
        &self,
        call: &Call,
        name: &ContributorName,
        public_key: &PublicKey,
    ) -> Result<()> {
        self.require(call, &Action::Administer, "contributor-key-add", name.as_str()).await?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let row = contributors::by_name(&mut tx, name).await?.ok_or(Error::NotFound("contributor"))?;
            let key_name = public_key.name();
            // A signature is attributed by its key's name: it must mean one source only.
            if signing_keys::names(&mut tx).await?.contains(key_name)
                || caches::upstream_key_exists(&mut tx, key_name.as_str()).await?
            {
                let why = "has the name of a key of this server, or of an upstream";
                return Err(Rejection::value("public_key", why).into());
            }
            let key = ContributorKeyRow { contributor: row.id, public_key: public_key.clone() };
            contributors::add_key(&mut tx, &self.new_id(now), &key, now)
                .await
                .map_err(|error| taken(error, key_name.as_str()))?;
            let act = key_act("contributor-key-add", name, key_name, Some(public_key));
            self.record(&mut tx, call, vec![act], now).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Takes a public key back: its signatures from now on count no longer.
    pub async fn remove_contributor_key(
        &self,
        call: &Call,
        name: &ContributorName,
        key_name: &KeyName,
    ) -> Result<()> {
        self.require(call, &Action::Administer, "contributor-key-remove", name.as_str()).await?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let row = contributors::by_name(&mut tx, name).await?.ok_or(Error::NotFound("contributor"))?;
            if !contributors::remove_key(&mut tx, row.id, key_name, now).await? {
                return Err(Error::NotFound("key of this contributor"));
            }
            let act = key_act("contributor-key-remove", name, key_name, None);
            self.record(&mut tx, call, vec![act], now).await?;
            Ok(tx.commit().await?)
        })
        .await
    }
}

/// The act of a contributor's first row.
pub(super) fn created<'a>(row: &ContributorRow) -> Act<'a> {
    Act {
        action: "contributor-create",
        subject: row.name.to_string(),
        detail: json!({
            "name": row.name.as_str(),
            "kind": row.kind.as_str(),
            "group": row.group.as_ref().map(GroupName::as_str),
        }),
        cache: None,
        event: Some(AdminEvent::ContributorCreate(row.id)),
    }
}

/// A taken name, where that is what the database says.
pub(super) fn taken(error: DbError, name: &str) -> Error {
    match error {
        DbError::Duplicate => Conflict::NameTaken(name.to_owned()).into(),
        other => other.into(),
    }
}

fn key_act<'a>(
    action: &'static str,
    contributor: &ContributorName,
    key_name: &KeyName,
    public_key: Option<&PublicKey>,
) -> Act<'a> {
    Act {
        action,
        subject: contributor.to_string(),
        detail: json!({
            "contributor": contributor.as_str(),
            "key": key_name.as_str(),
            "public_key": public_key.map(PublicKey::to_string),
        }),
        cache: None,
        event: Some(AdminEvent::PolicyChange),
    }
}

async fn with_details(connection: &mut Connection, row: ContributorRow) -> Result<ContributorDetails> {
    let public_keys = contributors::keys_of(connection, row.id).await?;
    let (paths, bytes) = contributors::pushed(connection, row.id).await?;
    Ok(ContributorDetails { row, public_keys, paths, bytes })
}
