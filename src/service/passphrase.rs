//! Another passphrase in the place of one that opens the vault: its slot and the former one's end are one transaction.
//!
//! Never touches a slot that the former passphrase does not open, and needs no open vault: that passphrase opens it.

use serde_json::json;

use super::slots::slot_act;
use super::vault::{Slot, VaultRows};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, Caller};
use crate::db::{Gate, restarting, vault};
use crate::vault::root::UnlockError;
use crate::vault::slots::SlotError;
use crate::vault::{KekRow, OpenVault, Passphrase, SlotRow, SlotSecret};

/// The passphrase that is to end, which proves which slot, and the one that comes in its place.
#[derive(Debug)]
pub struct PassphraseChange {
    former: Passphrase,
    new: Passphrase,
}

impl PassphraseChange {
    /// Refuses what is no passphrase, and one that stays as it is.
    pub fn new(former: &str, new: &str) -> Result<Self> {
        let parsed = |field, text: &str| {
            Passphrase::parse(text.as_bytes()).map_err(|error| Error::from(Rejection::value(field, error)))
        };
        let change = Self { former: parsed("former", former)?, new: parsed("new", new)? };
        if change.former.is_same(&change.new) {
            return Err(Rejection::value("new", "is the former one").into());
        }
        Ok(change)
    }
}

impl Service {
    /// Makes a slot with the new passphrase and removes that of the former one, also while sealed. The former one still
    /// opens a copy of the database from before.
    pub async fn change_passphrase(&self, call: &Call, change: PassphraseChange) -> Result<Slot> {
        const ACT: &str = "vault-passphrase-change";
        self.require(call, &Action::Administer, ACT, "").await?;
        if call.caller != Caller::Host {
            // Whoever found an administrator's token may not try passphrases faster than anybody else.
            self.inner.secret_tries.take(call.origin.address, self.inner.clock.now())?;
        }
        let VaultRows { slots, keks, .. } = self.vault_rows().await?;
        let (cluster_id, id) = (self.inner.cluster_id.clone(), self.new_id(self.inner.clock.now()));
        // Before the transaction: each derivation takes a second, and nobody shall wait behind the gate for it.
        let made = tokio::task::spawn_blocking(move || change.slots(&cluster_id, &id, slots, &keks)).await;
        let (former, slot) = match made.map_err(|panic| Error::Internal(panic.into()))? {
            Ok(slots) => slots,
            Err(error @ (UnlockError::NoSlot { .. } | UnlockError::WrongSecret { .. })) => {
                let refused = Rejection::value("former", error).into();
                return Err(self.denied(call, ACT, "", refused).await);
            }
            Err(error) => return Err(Error::Internal(error.into())),
        };
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            // What the new slot wraps is what the former one wrapped: neither removed nor wrapped anew since.
            if !vault::slots(&mut tx).await?.iter().any(|(slot, _)| *slot == former) {
                return Err(
                    Conflict::State("the vault's slots were changed in the meantime; try again").into()
                );
            }
            vault::insert_slot(&mut tx, &slot, now).await?;
            vault::remove_slot(&mut tx, &former.id, now).await?;
            let detail = json!({ "change": "replace", "kind": slot.kind.as_str(), "replaced": former.id });
            self.record(&mut tx, call, vec![slot_act(ACT, &slot.id, detail)], now).await?;
            tx.commit().await?;
            Ok(Slot::of(slot.clone(), now))
        })
        .await
    }
}

impl PassphraseChange {
    /// The slot that the former passphrase opens, and one that the new one will open.
    fn slots(
        self,
        cluster_id: &str,
        id: &str,
        slots: Vec<SlotRow>,
        keks: &[KekRow],
    ) -> std::result::Result<(SlotRow, SlotRow), UnlockError> {
        let opened = OpenVault::open(cluster_id, &slots, keks, &SlotSecret::Passphrase(self.former))?;
        let failed = |source: SlotError| UnlockError::Slot { slot_id: id.to_owned(), source };
        let slot = opened.new_slot(id, &SlotSecret::Passphrase(self.new)).map_err(failed)?;
        let former = slots.into_iter().find(|slot| slot.id == opened.opened_by());
        Ok((former.expect("it was opened by one of them: `open` says by which"), slot))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, TestService, anonymous, vault as settings};
    use super::super::{NewSlot, Origin, Unseal};
    use super::*;
    use crate::db::log;
    use crate::db::testing::{TestDb, on_each_database};

    const FORMER: &str = "correct horse battery staple";
    const NEW: &str = "another horse with another battery";

    /// A server whose vault opens by a passphrase too.
    async fn start(test: &TestDb) -> (TestService, Call, String) {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let added = server.service.add_slot(&admin, NewSlot::passphrase(FORMER).unwrap()).await.unwrap();
        (server, admin, added.slot.id)
    }

    fn change(former: &str, new: &str) -> PassphraseChange {
        PassphraseChange::new(former, new).unwrap()
    }

    on_each_database! {
        async fn the_new_passphrase_opens_and_the_former_one_does_not(test: &TestDb) {
            let (server, admin, former) = start(test).await;
            let leaves = log::leaves(&mut test.db.read().await.unwrap(), 0, 100).await.unwrap().len();

            let slot = server.service.change_passphrase(&admin, change(FORMER, NEW)).await.unwrap();

            let slots = server.service.vault_status(&admin).await.unwrap().slots;
            let ids: Vec<&str> = slots.iter().map(|slot| slot.id.as_str()).collect();
            assert!(ids.contains(&slot.id.as_str()) && !ids.contains(&former.as_str()) && ids.len() == 2);
            let after = log::leaves(&mut test.db.read().await.unwrap(), 0, 100).await.unwrap();
            assert_eq!(after.len(), leaves + 1, "one leaf for the one change");
            server.service.seal(&admin).await.unwrap();
            for (text, opens) in [(FORMER, false), (NEW, true)] {
                let unsealed = server.service.unseal(&anonymous(), Unseal::passphrase(text).unwrap()).await;
                assert_eq!(unsealed.is_ok(), opens, "{text}: {unsealed:?}");
            }
        }

        async fn a_sealed_vault_gets_another_passphrase_and_stays_sealed(test: &TestDb) {
            let (server, admin, _) = start(test).await;
            server.service.seal(&admin).await.unwrap();

            server.service.change_passphrase(&admin, change(FORMER, NEW)).await.unwrap();

            assert!(!server.service.is_open());
            let (restarted, _) = testing::open(test, &server.clock, settings(test)).await;
            assert!(!restarted.is_open(), "the seal by hand holds");
            restarted.unseal(&anonymous(), Unseal::passphrase(NEW).unwrap()).await.unwrap();
            restarted.shut_down().await;
        }

        async fn only_an_admin_who_knows_the_former_one_changes_it(test: &TestDb) {
            let (server, admin, former) = start(test).await;
            let pusher = server.call(&server.contributor("ci", "push:main").await).await;

            let forbidden = server.service.change_passphrase(&pusher, change(FORMER, NEW)).await;
            let nobody = server.service.change_passphrase(&anonymous(), change(FORMER, NEW)).await;
            let wrong = server.service.change_passphrase(&admin, change("not the former one", NEW)).await;

            assert!(matches!(forbidden, Err(Error::Forbidden)), "{forbidden:?}");
            assert!(matches!(nobody, Err(Error::Unauthenticated(_))), "{nobody:?}");
            assert!(matches!(wrong, Err(Error::Rejected(_))), "{wrong:?}");
            let slots = server.service.vault_status(&admin).await.unwrap().slots;
            assert!(slots.len() == 2 && slots.iter().any(|slot| slot.id == former));
        }

        async fn guessing_the_former_one_is_limited(test: &TestDb) {
            let (server, admin, _) = start(test).await;
            let origin = Origin { address: Some([192, 0, 2, 1].into()), ..Origin::default() };
            let near = Call { origin, ..admin };

            for _ in 0..10 {
                server.service.inner.secret_tries.take(near.origin.address, server.clock.now()).unwrap();
            }

            let limited = server.service.change_passphrase(&near, change(FORMER, NEW)).await;

            assert!(matches!(limited, Err(Error::TooMany { .. })), "{limited:?}");
        }
    }

    #[test]
    fn what_is_no_passphrase_or_no_change_is_refused() {
        for (former, new, why) in [
            ("short", NEW, "former: passphrase has 5 characters"),
            (FORMER, "short", "new: passphrase has 5 characters"),
            (FORMER, FORMER, "new: is the former one"),
            (FORMER, "correct horse battery staple\n", "new: is the former one"),
        ] {
            let refused = PassphraseChange::new(former, new).unwrap_err().to_string();
            assert!(refused.starts_with(why), "{refused}");
        }
    }
}
