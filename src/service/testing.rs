//! A service for tests: on a database of its own, with objects in a folder and a clock that is set by hand.

use std::time::Duration;

use super::measure::MeasureLimits;
use super::{Call, FirstStart, Limits, Liveness, OpenSettings, Origin, Service, TokenRequest, VaultSettings};
use crate::access::{Caller, ContributorName, Credential, TokenText};
use crate::db::Db;
use crate::db::contributors::ContributorKind;
use crate::db::testing::{NOON, TestDb};
use crate::storage::{self, DiskSettings, Storage};
use crate::time::Clock;

/// An open service and the admin's token.
pub struct TestService {
    pub service: Service,
    pub clock: Clock,
    pub admin: TokenText,
}

/// Opens a service; several on one database are replicas.
pub async fn open(test: &TestDb, clock: &Clock, vault: VaultSettings) -> (Service, Option<FirstStart>) {
    open_on(test, Db::open(&test.settings).await.unwrap(), clock, vault).await
}

async fn open_on(
    test: &TestDb,
    db: Db,
    clock: &Clock,
    vault: VaultSettings,
) -> (Service, Option<FirstStart>) {
    let root = test.folder.path().join("storage");
    let storage = Storage::open(storage::Settings::Disk(DiskSettings { root }), uuid::Uuid::now_v7());
    let settings = OpenSettings {
        db,
        storage: storage.await.unwrap(),
        clock: clock.clone(),
        limits: limits(),
        vault,
        rate_per_minute: 10,
    };
    Service::open(settings).await.unwrap()
}

/// Settings that make a key file beside the database.
pub fn vault(test: &TestDb) -> VaultSettings {
    VaultSettings { default_key_file: test.folder.path().join("vault.key"), ..VaultSettings::default() }
}

fn limits() -> Limits {
    Limits {
        measure: MeasureLimits::default(),
        narinfo_size_bytes_max: 1 << 20,
        auxiliary_size_bytes_max: 1 << 20,
        upload_memory_bytes: 1 << 28,
        uploads_per_token: 8,
        admission_wait: Duration::from_secs(5),
        upload_min_bytes_per_second: 1024,
        unpublished_max: Duration::from_secs(7 * 24 * 3600),
        withdrawn_max: Duration::from_secs(90 * 24 * 3600),
        narinfo_memory_bytes: 1 << 20,
    }
}

impl TestService {
    /// A server after its first start, with an admin.
    pub async fn start(test: &TestDb) -> Self {
        let clock = Clock::fixed(NOON);
        let (service, first) = open_on(test, test.db.clone(), &clock, vault(test)).await;
        let claim = first.unwrap().claim;
        let admin = service.claim_admin(&anonymous(), claim.expose()).await.unwrap().text;
        Self { service, clock, admin }
    }

    /// A call by whoever shows this token.
    pub async fn call(&self, token: &TokenText) -> Call {
        Call { caller: caller(&self.service, token).await.unwrap(), origin: Origin::default() }
    }

    /// A call by the admin.
    pub async fn admin(&self) -> Call {
        self.call(&self.admin).await
    }

    /// A new contributor's token.
    pub async fn contributor(&self, name: &str, scopes: &str) -> TokenText {
        let name: ContributorName = name.parse().unwrap();
        let admin = self.admin().await;
        self.service.create_contributor(&admin, &name, ContributorKind::Ci, None).await.unwrap();
        self.issue(&admin, name.as_str(), scopes).await.unwrap()
    }

    /// A token that `call` issues.
    pub async fn issue(&self, call: &Call, contributor: &str, scopes: &str) -> super::Result<TokenText> {
        let request = TokenRequest {
            contributor: contributor.parse().unwrap(),
            scopes: scopes.parse().unwrap(),
            lifetime_seconds: None,
            note: None,
        };
        self.service.issue_token(call, &request).await.map(|issued| issued.text)
    }
}

/// Nobody, from nowhere.
pub fn anonymous() -> Call {
    Call { caller: Caller::Anonymous, origin: Origin::default() }
}

/// Who shows this token, to this replica.
pub async fn caller(service: &Service, token: &TokenText) -> super::Result<Caller> {
    service.authenticate(&Credential::Token(token.clone()), Liveness::Recent).await
}
