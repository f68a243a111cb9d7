use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

use super::super::testing::{self, TestService, anonymous};
use super::super::{AuditOutcome, AuditQuery, AuditRow, NewSlot, SlotId, Unseal};
use super::*;
use crate::db::PageBounds;
use crate::db::testing::{TestDb, on_each_database};

const PASSPHRASE: &str = "correct horse battery staple";

/// A server with a slot for shares beside its key file, and administrators who keep them.
struct Keepers {
    server: TestService,
    slot_id: String,
    shares: Vec<SecretString>,
    calls: Vec<Call>,
}

impl Keepers {
    /// With an open vault.
    async fn start(test: &TestDb, threshold: u8, of: u8) -> Self {
        let server = TestService::start(test).await;
        let mut calls = Vec::new();
        for number in 1..=of {
            let token = server.contributor(&format!("keeper-{number}"), "admin").await;
            calls.push(server.call(&token).await);
        }
        let (slot_id, shares) = slot(&server, threshold, of).await;
        Self { server, slot_id, shares, calls }
    }

    /// With a vault that was sealed by hand.
    async fn sealed(test: &TestDb, threshold: u8, of: u8) -> Self {
        let keepers = Self::start(test, threshold, of).await;
        keepers.service().seal(&keepers.calls[0]).await.unwrap();
        keepers
    }

    fn service(&self) -> &Service {
        &self.server.service
    }

    /// The keeper at `who` hands in the share at `which`, some seconds after the one before, so that no try is too many.
    async fn hand_in(&self, who: usize, which: usize) -> Result<VaultStatus> {
        self.hand_in_text(who, &self.shares[which]).await
    }

    async fn hand_in_text(&self, who: usize, share: &SecretString) -> Result<VaultStatus> {
        self.server.clock.advance_seconds(SECONDS_BETWEEN);
        self.service().hand_in_share(&self.calls[who], share).await
    }

    /// Who has handed in a share so far, as an administrator sees it.
    async fn progress(&self) -> Vec<String> {
        let status = self.service().vault_status(&self.calls[0]).await.unwrap();
        let sets = status.shares.into_iter();
        sets.flat_map(|set| set.handed_in).map(|one| one.contributor).collect()
    }

    async fn audit(&self, action: &str) -> Vec<AuditRow> {
        let query = AuditQuery { action: Some(action.to_owned()), ..AuditQuery::default() };
        let page = PageBounds { after: None, limit: 200, descending: false };
        self.service().list_audit(&self.calls[0], &query, &page).await.unwrap()
    }
}

async fn slot(server: &TestService, threshold: u8, of: u8) -> (String, Vec<SecretString>) {
    let new = NewSlot::shares(threshold, of).unwrap();
    let added = server.service.add_slot(&server.admin().await, new).await.unwrap();
    (added.slot.id, added.shares.iter().map(Share::text).collect())
}

/// Another share of the same number, whose checksum fits.
fn forged(share: &SecretString) -> SecretString {
    let code = share.expose_secret().strip_prefix("nvs1-").unwrap().to_ascii_uppercase();
    let mut bytes = BASE32_NOPAD.decode(code.as_bytes()).unwrap();
    bytes[20] ^= 1;
    let checksum = Sha256::digest(&bytes[..48]);
    bytes[48..].copy_from_slice(&checksum[..4]);
    format!("nvs1-{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()).into()
}

#[track_caller]
fn refused_with(refused: Result<VaultStatus>, why: &str) {
    let error = refused.unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
    assert!(!error.contains("nvs1-a"), "{error}");
}

/// One try in six seconds is what an address has after the first ten.
const SECONDS_BETWEEN: i64 = 6;

on_each_database! {
    async fn enough_administrators_open_a_sealed_vault_one_after_the_other(test: &TestDb) {
        let keepers = Keepers::sealed(test, 3, 5).await;

        let first = keepers.hand_in(1, 1).await.unwrap();
        let second = keepers.hand_in(4, 3).await.unwrap();
        let third = keepers.hand_in(0, 0).await.unwrap();

        assert!(!first.open && !second.open && third.open && !third.sealed_by_hand);
        let [set] = &second.shares[..] else { panic!("{second:?}") };
        assert_eq!((set.slot_id.as_str(), set.count), (keepers.slot_id.as_str(), "3/5".parse().unwrap()));
        assert_eq!(set.handed_in.iter().map(|one| &one.contributor).collect::<Vec<_>>(), ["keeper-2", "keeper-5"]);
        assert_eq!(set.until, set.handed_in[0].at.plus_seconds(15 * 60));
        assert_eq!(first.shares[0].until, set.until);
        assert!(third.shares.is_empty());
        assert!(keepers.service().inner.door.gathered.sets().is_empty(), "nothing of them stays in memory");
        server_signs(&keepers).await;
    }

    async fn shares_alone_open_a_vault_after_a_restart(test: &TestDb) {
        let keepers = Keepers::start(test, 2, 3).await;
        let slots = keepers.service().vault_status(&keepers.calls[0]).await.unwrap().slots;
        let key_file: SlotId = slots[0].id.parse().unwrap();
        keepers.service().remove_slot(&keepers.calls[0], &key_file).await.unwrap();

        let (restarted, _) = testing::open(test, &keepers.server.clock, testing::vault(test)).await;

        assert!(!restarted.is_open());
        restarted.hand_in_share(&keepers.calls[2], &keepers.shares[2]).await.unwrap();
        let opened = restarted.hand_in_share(&keepers.calls[1], &keepers.shares[0]).await.unwrap();
        assert!(opened.open && restarted.is_open());
        let [only] = &opened.slots[..] else { panic!("{opened:?}") };
        assert_eq!(only.shares, Some("2/3".parse().unwrap()));
        restarted.shut_down().await;
    }

    async fn whatever_does_not_count_is_named_and_takes_nothing_away(test: &TestDb) {
        let keepers = Keepers::start(test, 3, 5).await;
        let removed = slot(&keepers.server, 2, 3).await;
        keepers.service().remove_slot(&keepers.calls[0], &removed.0.parse().unwrap()).await.unwrap();
        let elsewhere = Share::parse(keepers.shares[3].expose_secret()).unwrap();
        let elsewhere_key = crate::vault::SplitKey::generate(elsewhere.count()).unwrap();
        let elsewhere = elsewhere_key.split("another cluster", &keepers.slot_id).unwrap()[3].text();
        let other_split = elsewhere_key.split(keepers.service().cluster_id(), &keepers.slot_id).unwrap()[3].text();
        let mistyped = keepers.shares[3].expose_secret().replacen("nvs1-a", "nvs1-b", 1).into();
        keepers.service().seal(&keepers.calls[0]).await.unwrap();
        keepers.hand_in(0, 0).await.unwrap();
        keepers.hand_in(1, 1).await.unwrap();

        for (who, share, why) in [
            (2, &keepers.shares[0], "this share was handed in already"),
            (0, &keepers.shares[0], "this share was handed in already"),
            (2, &forged(&keepers.shares[1]), "this share was handed in already"),
            (1, &keepers.shares[3], "you have handed in a share already"),
            (2, &elsewhere, "share 4 belongs to another server"),
            (2, &other_split, "share 4 is of another generation"),
            (2, &removed.1[0], "share 1 belongs to a slot that this vault does not have"),
            (2, &mistyped, "its checksum does not fit"),
            (2, &"nvs1-".into(), "has 0 characters"),
            (2, &PASSPHRASE.into(), "a share begins with `nvs1-`"),
        ] {
            refused_with(keepers.hand_in_text(who, share).await, why);
            assert_eq!(keepers.progress().await, ["keeper-1", "keeper-2"], "{why}");
        }

        assert!(keepers.hand_in(2, 4).await.unwrap().open);
    }

    async fn outsiders_neither_add_nor_reset_nor_see_anything(test: &TestDb) {
        let keepers = Keepers::start(test, 2, 3).await;
        let pusher = keepers.server.call(&keepers.server.contributor("ci", "push:main").await).await;
        let revoked = keepers.server.contributor("gone", "admin").await;
        let revoked = keepers.server.call(&revoked).await;
        keepers.service().seal(&keepers.calls[0]).await.unwrap();
        let token = revoked.caller.token().unwrap().token;
        keepers.service().revoke_token(&keepers.calls[0], token, "left", false).await.unwrap();
        keepers.hand_in(0, 0).await.unwrap();

        let service = keepers.service();
        for (call, expected) in
            [(&anonymous(), "Unauthenticated"), (&pusher, "Forbidden"), (&revoked, "Unauthenticated")]
        {
            let added = service.hand_in_share(call, &keepers.shares[1]).await;
            let cancelled = service.cancel_shares(call).await;
            let _ = service.unseal(call, Unseal::passphrase("a wrong passphrase").unwrap()).await;
            let _ = service.seal(call).await;
            let shown = service.vault_status(call).await.unwrap();

            for refused in [added, cancelled] {
                assert!(format!("{:?}", refused.unwrap_err()).starts_with(expected), "{call:?}");
            }
            // A revoked token is refused where a call begins; this one has passed there.
            assert!(shown.shares.is_empty() || call.caller == revoked.caller);
            assert_eq!(keepers.progress().await, ["keeper-1"], "{call:?}");
        }
        // The operator on the host is nobody in particular, so none of those who have to be different.
        let host = service.hand_in_share(&Call::host(), &keepers.shares[1]).await;
        assert!(matches!(host, Err(Error::Unauthenticated(_))), "{host:?}");
        assert!(keepers.hand_in(1, 1).await.unwrap().open);
    }

    async fn shares_are_forgotten_15_minutes_after_the_first(test: &TestDb) {
        let keepers = Keepers::sealed(test, 3, 3).await;
        keepers.hand_in(0, 0).await.unwrap();
        keepers.server.clock.advance_seconds(15 * 60 - 2 * SECONDS_BETWEEN);
        keepers.hand_in(1, 1).await.unwrap();
        assert_eq!(keepers.progress().await, ["keeper-1", "keeper-2"]);

        let late = keepers.hand_in(2, 2).await.unwrap();

        assert!(!late.open);
        assert_eq!(keepers.progress().await, ["keeper-3"]);
        keepers.hand_in(0, 0).await.unwrap();
        assert!(keepers.hand_in(1, 1).await.unwrap().open);
    }

    async fn shares_are_wiped_also_where_nobody_comes_any_more(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 2).await;
        keepers.hand_in(0, 0).await.unwrap();
        let held = || keepers.service().inner.door.gathered.sets().len();

        keepers.service().forget_stale_shares().await;
        assert_eq!(held(), 1);
        keepers.server.clock.advance_seconds(15 * 60);
        assert!(keepers.progress().await.is_empty());
        keepers.service().forget_stale_shares().await;

        assert_eq!(held(), 0);
    }

    async fn a_seal_in_between_ends_what_was_begun_on_every_replica(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 2).await;
        let (replica, _) = testing::open(test, &keepers.server.clock, testing::vault(test)).await;
        replica.hand_in_share(&keepers.calls[0], &keepers.shares[0]).await.unwrap();
        keepers.hand_in(0, 0).await.unwrap();

        keepers.service().seal(&keepers.calls[0]).await.unwrap();

        assert!(keepers.progress().await.is_empty());
        assert!(!keepers.hand_in(1, 1).await.unwrap().open);
        // The other one finds it out by the next share, or by its poll.
        assert!(replica.vault_status(&keepers.calls[0]).await.unwrap().shares.is_empty());
        let other = replica.hand_in_share(&keepers.calls[1], &keepers.shares[1]).await.unwrap();
        assert_eq!((other.open, other.shares[0].handed_in.len()), (false, 1));
        keepers.service().seal(&keepers.calls[0]).await.unwrap();
        replica.forget_stale_shares().await;
        assert!(replica.inner.door.gathered.sets().is_empty());
        replica.shut_down().await;
    }

    async fn replicas_gather_each_for_itself(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 2).await;
        let (replica, _) = testing::open(test, &keepers.server.clock, testing::vault(test)).await;

        keepers.hand_in(0, 0).await.unwrap();
        let other = replica.hand_in_share(&keepers.calls[1], &keepers.shares[1]).await.unwrap();

        assert!(!other.open && !keepers.service().is_open());
        assert!(keepers.hand_in(1, 1).await.unwrap().open);
        assert!(!replica.is_open());
        replica.shut_down().await;
    }

    async fn a_passphrase_opens_meanwhile_and_no_share_is_kept_after_that(test: &TestDb) {
        let keepers = Keepers::start(test, 2, 2).await;
        let passphrase = || Unseal::passphrase(PASSPHRASE).unwrap();
        keepers.service().add_slot(&keepers.calls[0], NewSlot::passphrase(PASSPHRASE).unwrap()).await.unwrap();
        refused_with(keepers.hand_in(0, 0).await, "the vault is open here");
        keepers.service().seal(&keepers.calls[0]).await.unwrap();
        keepers.hand_in(0, 0).await.unwrap();

        keepers.service().unseal(&anonymous(), passphrase()).await.unwrap();

        assert!(keepers.service().inner.door.gathered.sets().is_empty());
        refused_with(keepers.hand_in(1, 1).await, "the vault is open here");
    }

    async fn a_share_that_is_not_genuine_opens_nothing_and_drops_them_all(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 3).await;
        keepers.hand_in(0, 0).await.unwrap();

        let refused = keepers.hand_in_text(1, &forged(&keepers.shares[1])).await;

        refused_with(refused, "one of them is not genuine. All of them were dropped");
        assert!(!keepers.service().is_open());
        assert!(keepers.progress().await.is_empty());
        let denied = keepers.audit("vault-unseal").await.pop().unwrap();
        assert_eq!((denied.outcome, denied.subject.as_str()), (AuditOutcome::Denied, "shamir"));
        keepers.hand_in(0, 0).await.unwrap();
        assert!(keepers.hand_in(1, 1).await.unwrap().open);
    }

    async fn an_administrator_cancels_what_was_begun(test: &TestDb) {
        let keepers = Keepers::sealed(test, 3, 3).await;
        keepers.service().cancel_shares(&keepers.calls[1]).await.unwrap();
        assert!(keepers.audit("vault-share-cancel").await.is_empty(), "nothing was there");
        keepers.hand_in(0, 0).await.unwrap();
        keepers.hand_in(1, 1).await.unwrap();

        let status = keepers.service().cancel_shares(&keepers.calls[2]).await.unwrap();

        assert!(status.shares.is_empty() && !status.open);
        let row = keepers.audit("vault-share-cancel").await.remove(0);
        assert_eq!((row.subject.as_str(), row.detail.as_str()), (keepers.slot_id.as_str(), r#"{"shares":2}"#));
        assert_eq!(row.contributor.as_deref(), Some("keeper-3"));
        assert!(!keepers.hand_in(2, 2).await.unwrap().open);
    }

    async fn the_share_of_a_holder_who_was_revoked_meanwhile_does_not_count(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 3).await;
        keepers.hand_in(1, 1).await.unwrap();
        let token = keepers.calls[1].caller.token().unwrap().token;
        keepers.service().revoke_token(&keepers.calls[0], token, "stolen", false).await.unwrap();

        let after = keepers.hand_in(0, 0).await.unwrap();

        assert!(!after.open);
        assert_eq!(keepers.progress().await, ["keeper-1"]);
        refused_with(keepers.hand_in(1, 1).await, "this token was revoked");
        assert!(keepers.hand_in(2, 2).await.unwrap().open);
    }

    async fn each_slot_is_gathered_for_itself_and_a_removed_one_no_longer(test: &TestDb) {
        let keepers = Keepers::start(test, 2, 3).await;
        let (other_id, others) = slot(&keepers.server, 2, 2).await;
        keepers.service().seal(&keepers.calls[0]).await.unwrap();
        keepers.hand_in(0, 0).await.unwrap();

        // The same person may keep one of each.
        let two = keepers.hand_in_text(0, &others[0]).await.unwrap();

        let sets: Vec<_> = two.shares.iter().map(|set| (set.slot_id.as_str(), set.handed_in.len())).collect();
        assert_eq!(sets, [(keepers.slot_id.as_str(), 1), (other_id.as_str(), 1)]);
        keepers.service().remove_slot(&keepers.calls[0], &other_id.parse().unwrap()).await.unwrap();
        assert_eq!(keepers.service().vault_status(&keepers.calls[0]).await.unwrap().shares.len(), 1);
        refused_with(keepers.hand_in_text(1, &others[1]).await, "does not have, or has no longer");
        assert!(keepers.hand_in(2, 2).await.unwrap().open);
    }

    async fn every_submission_leaves_an_audit_row_and_none_a_share(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 3).await;
        keepers.hand_in(0, 0).await.unwrap();
        refused_with(keepers.hand_in(1, 0).await, "already");
        keepers.hand_in(1, 2).await.unwrap();

        let rows = keepers.audit("vault-share").await;

        let told: Vec<_> = rows.iter().map(|row| (row.outcome, row.subject.as_str(), row.detail.as_str())).collect();
        let slot = keepers.slot_id.as_str();
        let detail = |share, have| format!(r#"{{"have":{have},"of":3,"share":{share},"threshold":2}}"#);
        assert_eq!(
            told,
            [
                (AuditOutcome::Done, slot, detail(1, 1).as_str()),
                (AuditOutcome::Denied, "", r#"{"why":"this share was handed in already"}"#),
                (AuditOutcome::Done, slot, detail(3, 2).as_str()),
            ]
        );
        let opened = keepers.audit("vault-unseal").await.pop().unwrap();
        assert!(opened.detail.contains(slot), "{opened:?}");
        let page = PageBounds { after: None, limit: 200, descending: false };
        let all = keepers.service().list_audit(&keepers.calls[0], &AuditQuery::default(), &page).await.unwrap();
        for share in &keepers.shares {
            assert!(!format!("{all:?}").contains(&share.expose_secret()[20..]));
        }
        let added: Vec<_> = all.iter().filter(|row| row.action == "vault-slot-add").collect();
        assert_eq!(added[0].detail, r#"{"change":"add","kind":"shamir"}"#);
    }

    async fn shares_cannot_be_tried_without_end(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 2).await;

        let mut tries = 0;
        let refused = loop {
            match keepers.service().hand_in_share(&keepers.calls[0], &"nvs1-x".into()).await {
                Err(Error::Rejected(_)) if tries < 100 => tries += 1,
                other => break other,
            }
        };

        assert!(matches!(refused, Err(Error::TooMany { .. })), "{refused:?}");
        assert_eq!(tries, 9, "of the first ten, the claim of the first administrator was one");
    }

    async fn where_only_the_database_fails_the_last_share_is_all_that_is_handed_in_again(test: &TestDb) {
        let keepers = Keepers::sealed(test, 2, 2).await;
        let epoch = cluster::read(&mut test.db.read().await.unwrap()).await.unwrap().unwrap().seal_epoch;
        let slots = vault::slots(&mut test.db.read().await.unwrap()).await.unwrap();
        let slot = slots.iter().find(|(slot, _)| slot.id == keepers.slot_id).unwrap().0.clone();
        let gathered = &keepers.service().inner.door.gathered;
        let piece = |at: usize| {
            let token = keepers.calls[at].caller.token().unwrap();
            let share = Share::parse(keepers.shares[at].expose_secret()).unwrap();
            let shown = HandedIn { contributor: format!("keeper-{at}"), at: keepers.server.clock.now() };
            Piece { share, by: token.contributor, token: token.token, shown }
        };
        assert!(gathered.add(slot.clone(), epoch, piece(0)).is_none());
        let complete = gathered.add(slot, epoch, piece(1)).unwrap();
        assert!(gathered.sets().is_empty());
        // Its token is not live any more when the vault would be opened: as if the transaction had failed.
        let revoked = keepers.calls[1].caller.token().unwrap().token;
        keepers.service().revoke_token(&keepers.calls[0], revoked, "x", false).await.unwrap();

        let failed = keepers.service().open_with_set(&keepers.calls[1], complete).await;

        assert!(matches!(failed, Err(Error::Unauthenticated(_))), "{failed:?}");
        assert!(!keepers.service().is_open());
        assert_eq!(gathered.sets().iter().map(|set| set.pieces.len()).collect::<Vec<_>>(), [1]);
    }
}

/// A token needs the key of the vault.
async fn server_signs(keepers: &Keepers) {
    let issued = keepers.server.issue(&keepers.calls[0], "keeper-1", "pull:main").await;
    assert!(issued.is_ok(), "{issued:?}");
}
