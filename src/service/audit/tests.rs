//! No audit row, no act: whatever an administrator does leaves everything as it was while the row cannot be written, and
//! is done, with its row, once it can.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use secrecy::SecretString;

use super::*;
use crate::access::TokenText;
use crate::db::backup::{TABLES, rows};
use crate::db::contributors::ContributorKind;
use crate::db::testing::{self as rows_of, TestDb, on_each_database};
use crate::service::testing::{self, Sample, TestService, new_cache};
use crate::service::{
    BackupTarget, CacheChange, ContributorChange, KeySource, NewRootRequest, NewSlot, NewWebhook,
    PassphraseChange, QuarantineRequest, RotationRequest, SlotId, SuccessionRequest, TakedownTarget,
    TokenRequest, Unseal, WebhookChange,
};
use crate::succession::testing::{TestKey, signed_draft};
use crate::vault::{Share, SlotKind};

/// A server on which there is something to be done by an administrator, and what that is done to.
struct Scene {
    server: TestService,
    admin: Call,
    alice: TokenText,
    bob: TokenText,
    carl: TokenText,
    samples: Vec<Sample>,
    /// A claim that nobody has spent.
    claim: String,
    /// Of a slot of the vault: two of three open it.
    shares: Vec<SecretString>,
    storage: PathBuf,
}

impl Scene {
    async fn start(test: &TestDb) -> Self {
        let server = TestService::start(test).await;
        let admin = server.admin().await;
        let mut tokens = Vec::new();
        for name in ["alice", "bob", "carl"] {
            tokens.push(server.contributor(name, "push:main").await);
        }
        let samples: Vec<_> = (0..3).map(Sample::numbered).collect();
        for sample in &samples {
            server.push(&server.call(&tokens[0]).await, sample).await.unwrap();
        }
        server.service.finish().await.unwrap();
        let claim = server.service.make_admin_claim(&Call::host(), &"admin".parse().unwrap()).await.unwrap();
        let claim = claim.expose().to_owned();
        let shares = server.service.add_slot(&admin, NewSlot::shares(2, 3).unwrap()).await.unwrap().shares;
        let shares = shares.iter().map(Share::text).collect();
        let [alice, bob, carl] = tokens.try_into().unwrap_or_else(|_| panic!("three"));
        let storage = test.folder.path().join("storage");
        Self { server, admin, alice, bob, carl, samples, claim, shares, storage }
    }

    fn service(&self) -> &Service {
        &self.server.service
    }

    /// An old narinfo that no row accounts for.
    fn lay_down_an_orphan(&self) {
        let path = self.storage.join("main/00000000000000000000000000000000.narinfo");
        std::fs::write(&path, "StorePath: ").unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    fn token(&self, text: &TokenText) -> TokenId {
        self.service().verify_token(text, self.server.clock.now()).unwrap().token
    }

    async fn webhook(&self) -> crate::service::WebhookId {
        let all = self.service().list_webhooks(&self.admin).await.unwrap();
        all[0].row.secret.id.parse().unwrap()
    }

    /// The slots of this kind.
    async fn slots(&self, kind: SlotKind) -> Vec<SlotId> {
        let slots = self.service().vault_status(&self.admin).await.unwrap().slots.into_iter();
        slots.filter(|slot| slot.kind == kind).map(|slot| slot.id.parse().unwrap()).collect()
    }

    /// The only key of main in this state.
    async fn key(&self, state: crate::db::signing_keys::KeyState) -> crate::nix::signature::KeyName {
        let keys = self.service().list_keys(&self.admin, &main()).await.unwrap();
        keys.into_iter().find(|row| row.state == state).unwrap().public_key.name().clone()
    }
}

fn main() -> crate::access::CacheName {
    "main".parse().unwrap()
}

fn name(name: &str) -> ContributorName {
    name.parse().unwrap()
}

fn because() -> QuarantineRequest {
    QuarantineRequest { reason: "broken into".to_owned(), ..QuarantineRequest::default() }
}

const PASSPHRASE: &str = "correct horse battery staple";

const CONTRIBUTOR_KEY: &str = "alice-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

type Doing<'a> = BoxFuture<'a, Result<()>>;

/// The word of its audit row, and the act.
type Done = (&'static str, for<'a> fn(&'a Scene) -> Doing<'a>);

/// Acts, each of which can be done after those before it.
macro_rules! acts {
    ($($action:literal => |$scene:ident| $work:expr;)+) => {
        vec![$(($action, |$scene| Box::pin(async move { $work.await.map(drop) }))),+]
    };
}

#[expect(clippy::too_many_lines, reason = "one line for each act")]
fn acts() -> Vec<Done> {
    use crate::db::signing_keys::KeyState::{Active, Next};
    acts! {
        "storage-orphans-delete" => |at| async {
            at.lay_down_an_orphan();
            let age = Duration::from_secs(1);
            let found = at.service().orphans(&at.admin, age).await.unwrap().objects;
            at.service().delete_orphans(&at.admin, &found, age).await
        };
        "cache-create" => |at| at.service().create_cache(&at.admin, &new_cache("team"));
        "cache-edit" => |at| async {
            let change = CacheChange { priority: Some(7), ..CacheChange::default() };
            at.service().edit_cache(&at.admin, &"team".parse().unwrap(), &change).await
        };
        "cache-delete" => |at| async {
            at.service().delete_cache(&at.admin, &"team".parse().unwrap(), false).await
        };
        "contributor-create" => |at| async {
            at.service().create_contributor(&at.admin, &name("dora"), ContributorKind::Person, None).await
        };
        "contributor-key-add" => |at| async {
            let key = CONTRIBUTOR_KEY.parse().unwrap();
            at.service().add_contributor_key(&at.admin, &name("alice"), &key).await
        };
        "contributor-key-remove" => |at| async {
            let key = "alice-1".parse().unwrap();
            at.service().remove_contributor_key(&at.admin, &name("alice"), &key).await
        };
        "contributor-edit" => |at| async {
            let change = ContributorChange { group: Some("ops".parse().unwrap()), suspended: None };
            at.service().edit_contributor(&at.admin, &name("dora"), &change).await
        };
        "contributor-suspend" => |at| async {
            let change = ContributorChange { suspended: Some(true), group: None };
            at.service().edit_contributor(&at.admin, &name("dora"), &change).await
        };
        "contributor-erase" => |at| at.service().erase_contributor(&at.admin, &DORA);
        "token-issue" => |at| async {
            let request = TokenRequest {
                contributor: name("bob"),
                scopes: "pull:main".parse().unwrap(),
                lifetime_seconds: None,
                note: None,
            };
            at.service().issue_token(&at.admin, &request).await
        };
        "token-renew" => |at| async {
            at.service().renew_token(&at.server.call(&at.carl).await, None).await
        };
        "token-revoke" => |at| at.service().revoke_token(&at.admin, at.token(&at.bob), "lost", false);
        "token-revoke" => |at| async {
            at.service().report_token(&testing::anonymous(), at.carl.expose()).await
        };
        "admin-claim-make" => |at| at.service().make_admin_claim(&CALL_OF_HOST, &ADMIN);
        "admin-claim" => |at| at.service().claim_admin(&NOBODY, &at.claim);
        "path-quarantine" => |at| async {
            let target = TakedownTarget::Path(main(), at.samples[0].path.hash());
            at.service().quarantine(&at.admin, &target, &because()).await
        };
        "path-restore" => |at| async {
            let target = TakedownTarget::Path(main(), at.samples[0].path.hash());
            at.service().restore(&at.admin, &target, "false alarm").await
        };
        "token-quarantine" => |at| async {
            let target = TakedownTarget::Token(at.token(&at.alice));
            at.service().quarantine(&at.admin, &target, &because()).await
        };
        "token-restore" => |at| async {
            let target = TakedownTarget::Token(at.token(&at.alice));
            at.service().restore(&at.admin, &target, "false alarm").await
        };
        "contributor-quarantine" => |at| async {
            let target = TakedownTarget::Contributor(name("alice"));
            at.service().quarantine(&at.admin, &target, &because()).await
        };
        "contributor-restore" => |at| async {
            let target = TakedownTarget::Contributor(name("alice"));
            at.service().restore(&at.admin, &target, "false alarm").await
        };
        "path-delete" => |at| async {
            at.service().delete_path(&at.admin, &main(), at.samples[1].path.hash(), "a secret").await
        };
        "webhook-create" => |at| async {
            let events = vec![crate::service::EventKind::TokenRevoked];
            let new = NewWebhook { url: "http://127.0.0.1:1/".to_owned(), events, note: None };
            at.service().create_webhook(&at.admin, &new).await
        };
        "webhook-edit" => |at| async {
            let change = WebhookChange { paused: Some(true), ..WebhookChange::default() };
            at.service().edit_webhook(&at.admin, &at.webhook().await, &change).await
        };
        "webhook-remove" => |at| async { at.service().remove_webhook(&at.admin, &at.webhook().await).await };
        "backup" => |at| async {
            let target = BackupTarget::File(tokio::fs::File::create("/dev/null").await.unwrap());
            at.service().back_up(&at.admin, None, target).await.map_err(|error| Error::Internal(error.into()))
        };
        "vault-slot-add" => |at| async {
            at.service().add_slot(&at.admin, NewSlot::key_file(&[7; 32]).unwrap()).await
        };
        "vault-slot-remove" => |at| async {
            let slots = at.service().vault_status(&at.admin).await.unwrap().slots;
            let newest = slots.iter().max_by_key(|slot| slot.id.clone()).unwrap();
            at.service().remove_slot(&at.admin, &newest.id.parse().unwrap()).await
        };
        "vault-slot-add" => |at| async {
            at.service().add_slot(&at.admin, NewSlot::passphrase(PASSPHRASE).unwrap()).await
        };
        "vault-passphrase-change" => |at| async {
            at.server.clock.advance_seconds(60);
            let change = PassphraseChange::new(PASSPHRASE, "another horse, another staple").unwrap();
            at.service().change_passphrase(&at.admin, change).await
        };
        "vault-kek-rotate" => |at| at.service().rotate_kek(&at.admin);
        "root-set" => |at| async {
            let draft = at.service().draft_roots(&at.admin, None, 1, vec![TestKey::named("root").public]).await;
            at.service().submit_roots(&at.admin, None, &signed_draft(&draft.unwrap(), &["root"])).await
        };
        "key-resign" => |at| async {
            at.service().resign_with(&at.admin, &main(), &at.key(Active).await).await
        };
        "key-rotation-abandon" => |at| at.service().abandon_rotation(&at.admin, &MAIN);
        "key-create" => |at| async {
            at.service().create_next_key(&at.admin, &main(), &KeySource::New { name: None }).await
        };
        "key-rotate" => |at| async {
            let asked = RotationRequest { new: Some(at.key(Next).await), ..RotationRequest::default() };
            at.service().rotate_key(&at.admin, &main(), &asked).await
        };
        "key-rotation-pause" => |at| at.service().pause_rotation(&at.admin, &MAIN, true);
        "key-rotation-abandon" => |at| at.service().abandon_rotation(&at.admin, &MAIN);
        "key-state" => |at| async {
            at.service().compromise_key(&at.admin, &main(), &at.key(Active).await, "stolen").await
        };
        "key-succession" => |at| async {
            let asked = SuccessionRequest::default();
            let draft = at.service().draft_succession(&at.admin, &main(), &asked).await.unwrap();
            at.service().submit_succession(&at.admin, &main(), &signed_draft(&draft, &["root"])).await
        };
        "vault-seal" => |at| at.service().seal(&at.admin);
        "vault-share" => |at| async {
            at.server.clock.advance_seconds(60);
            at.service().hand_in_share(&at.admin, &at.shares[0]).await
        };
        "vault-share-cancel" => |at| at.service().cancel_shares(&at.admin);
        "vault-unseal" => |at| at.service().unseal(&at.admin, Unseal::Configured);
        "vault-root-rotate" => |at| async {
            let mut drop_slots = at.slots(SlotKind::Shamir).await;
            drop_slots.extend(at.slots(SlotKind::Passphrase).await);
            let asked = NewRootRequest { drop_slots, ..NewRootRequest::default() };
            at.service().rotate_root(&at.admin, asked).await
        };
        "cache-purge" => |at| at.service().delete_cache(&at.admin, &MAIN, true);
    }
}

static DORA: std::sync::LazyLock<ContributorName> = std::sync::LazyLock::new(|| name("dora"));
static ADMIN: std::sync::LazyLock<ContributorName> = std::sync::LazyLock::new(|| name("admin"));
static MAIN: std::sync::LazyLock<crate::access::CacheName> = std::sync::LazyLock::new(main);
static CALL_OF_HOST: std::sync::LazyLock<Call> = std::sync::LazyLock::new(Call::host);
static NOBODY: std::sync::LazyLock<Call> = std::sync::LazyLock::new(testing::anonymous);

/// Every row.
async fn everything(test: &TestDb) -> Vec<String> {
    let mut tx = test.db.begin_snapshot().await.unwrap();
    let mut all = Vec::new();
    for table in TABLES {
        let found: Vec<String> = rows(&mut tx, table).try_collect().await.unwrap();
        all.extend(found.into_iter().map(|row| format!("{} {row}", table.name)));
    }
    all
}

async fn newest_actions(test: &TestDb, since: usize) -> Vec<String> {
    let page = PageBounds { after: None, limit: 1000, descending: false };
    let mut connection = test.db.read().await.unwrap();
    let all = audit::list(&mut connection, &AuditFilter::default(), &page).await.unwrap();
    all[since..].iter().map(|row| row.action.clone()).collect()
}

on_each_database! {
    async fn no_act_of_an_administrator_is_done_without_its_row(test: &TestDb) {
        let scene = Scene::start(test).await;
        let mut faults = Vec::new();
        for (action, act) in acts() {
            let before = everything(test).await;
            let written = newest_actions(test, 0).await.len();
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            rows_of::remove_audit(&mut tx).await;
            tx.commit().await.unwrap();

            let refused = act(&scene).await;

            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            rows_of::put_back_audit(&mut tx).await;
            tx.commit().await.unwrap();
            let is_untouched = everything(test).await == before;
            if !matches!(refused, Err(Error::Internal(_))) || !is_untouched {
                faults.push(format!("{action} without its row: {refused:?}, untouched: {is_untouched}"));
            }
            let done = act(&scene).await;
            let new = newest_actions(test, written).await;
            if done.is_err() || !new.iter().any(|one| one == action) {
                faults.push(format!("{action}: {done:?}, rows: {new:?}"));
            }
        }
        assert_eq!(faults, Vec::<String>::new());
        assert!(scene.service().is_open());
    }

    async fn who_is_denied_is_denied_whether_or_not_that_can_be_written_down(test: &TestDb) {
        let scene = Scene::start(test).await;
        let alice = scene.server.call(&scene.alice).await;
        let denied = async || scene.service().create_cache(&alice, &new_cache("team")).await;

        assert!(matches!(denied().await, Err(Error::Forbidden)));
        let page = PageBounds { after: None, limit: 1, descending: true };
        let newest = scene.service().list_audit(&scene.admin, &AuditQuery::default(), &page).await.unwrap();
        let newest = &newest[0];
        assert_eq!((newest.action.as_str(), newest.outcome), ("cache-create", Outcome::Denied));
        assert_eq!((newest.contributor.as_deref(), newest.subject.as_str()), (Some("alice"), "team"));

        let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
        rows_of::remove_audit(&mut tx).await;
        tx.commit().await.unwrap();
        assert!(matches!(denied().await, Err(Error::Forbidden)));
    }

    async fn a_minute_of_denials_from_one_address_fills_no_table(test: &TestDb) {
        let scene = Scene::start(test).await;
        let origin = |last: u8| crate::service::Origin {
            address: Some([203, 0, 113, last].into()),
            ..crate::service::Origin::default()
        };
        let alice = scene.server.call(&scene.alice).await;
        let from = |last: u8| Call { origin: origin(last), ..alice.clone() };
        let denials = async || {
            let query = AuditQuery { outcome: Some(Outcome::Denied), ..AuditQuery::default() };
            let page = PageBounds { after: None, limit: 1000, descending: false };
            scene.service().list_audit(&scene.admin, &query, &page).await.unwrap().len()
        };
        let try_once = async |call: &Call| {
            let denied = scene.service().list_contributors(call, &PageBounds { after: None, limit: 1, descending: false });
            assert!(matches!(denied.await, Err(Error::Forbidden)));
        };

        for _ in 0..100 {
            try_once(&from(1)).await;
        }
        assert_eq!(denials().await, 60);
        // Others are heard meanwhile, and the first one again when a minute is over.
        try_once(&from(2)).await;
        assert_eq!(denials().await, 61);
        scene.server.clock.advance_seconds(61);
        try_once(&from(1)).await;
        assert_eq!(denials().await, 62);
        // Strangers never.
        let stranger = Call { origin: origin(3), ..testing::anonymous() };
        let refused = scene.service().create_cache(&stranger, &new_cache("team")).await;
        assert!(refused.is_err());
        assert_eq!(denials().await, 62);
    }
}
