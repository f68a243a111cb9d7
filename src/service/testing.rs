//! A service for tests: on a database of its own, with objects in a folder and a clock that is set by hand.

use std::time::Duration;

use bytes::Bytes;

use super::measure::MeasureLimits;
use super::{
    BackupSchedule, Call, FIRST_CACHE, FirstStart, KeyLimits, Limits, Liveness, NewCache, OpenSettings,
    Origin, Published, Service, TokenRequest, VaultSettings,
};
use crate::access::{CacheName, Caller, ContributorName, Credential, TokenText};
use crate::db::Db;
use crate::db::contributors::ContributorKind;
use crate::db::testing::{NOON, TestDb};
use crate::nix::compression::{NarExtension, NarFileName};
use crate::nix::hash::{FileHash, Sha256Digest};
use crate::nix::nar::build::Node;
use crate::nix::store_path::StorePath;
use crate::storage::{self, DiskSettings, Storage};
use crate::time::Clock;
use crate::webhook;
use crate::witness::Witness;

/// A public cache without anything of its own but a name.
pub fn new_cache(name: &str) -> NewCache {
    NewCache::named(name.parse().unwrap())
}

/// An open service and the admin's token.
pub struct TestService {
    pub service: Service,
    pub clock: Clock,
    pub admin: TokenText,
}

/// Opens a service; several on one database are replicas.
pub async fn open(test: &TestDb, clock: &Clock, vault: VaultSettings) -> (Service, Option<FirstStart>) {
    open_with(test, clock, vault, Others::default()).await
}

/// What few tests are about: limits for keys, witnesses that are shown checkpoints, backups to storage.
#[derive(Default)]
pub struct Others {
    pub keys: KeyLimits,
    pub witnesses: Vec<Witness>,
    pub backups: Option<BackupSchedule>,
}

/// The same, with these.
pub async fn open_with(
    test: &TestDb,
    clock: &Clock,
    vault: VaultSettings,
    others: Others,
) -> (Service, Option<FirstStart>) {
    open_on(test, Db::open(&test.settings).await.unwrap(), clock, vault, others).await
}

/// A further replica, which backs up to storage.
pub async fn open_with_backups(test: &TestDb, clock: &Clock, schedule: BackupSchedule) -> Service {
    let others = Others { backups: Some(schedule), ..Others::default() };
    open_with(test, clock, vault(test), others).await.0
}

async fn open_on(
    test: &TestDb,
    db: Db,
    clock: &Clock,
    vault: VaultSettings,
    others: Others,
) -> (Service, Option<FirstStart>) {
    let root = test.folder.path().join("storage");
    let storage = Storage::open(storage::Settings::Disk(DiskSettings::new(root)), uuid::Uuid::now_v7());
    let settings = OpenSettings {
        db,
        storage: storage.await.unwrap(),
        clock: clock.clone(),
        limits: Limits { keys: others.keys, ..limits() },
        vault,
        webhooks: webhook::Allowed { private: true, http: true },
        witnesses: others.witnesses,
        backups: others.backups,
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
        upload_session: Duration::from_secs(24 * 3600),
        direct_parts: false,
        withdrawn_max: Duration::from_secs(90 * 24 * 3600),
        takedown_answer: Duration::from_secs(2),
        narinfo_memory_bytes: 1 << 20,
        keys: KeyLimits::default(),
    }
}

impl TestService {
    /// A server after its first start, with an admin.
    pub async fn start(test: &TestDb) -> Self {
        Self::start_paced(test, KeyLimits::default()).await
    }

    /// The same, with other limits for keys.
    pub async fn start_paced(test: &TestDb, keys: KeyLimits) -> Self {
        let clock = Clock::fixed(NOON);
        let others = Others { keys, ..Others::default() };
        let (service, first) = open_on(test, test.db.clone(), &clock, vault(test), others).await;
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

/// A store path of one regular file, uncompressed, as it is pushed.
pub struct Sample {
    pub path: StorePath,
    pub file: NarFileName,
    pub nar: Bytes,
    pub narinfo: String,
}

impl Sample {
    /// `base_name` and the references as they stand in a store; `contents` make no difference to the name.
    pub fn new(base_name: &str, contents: &str, references: &[&StorePath]) -> Self {
        let path = StorePath::from_base_name(base_name).unwrap();
        let nar = Bytes::from(Node::file(contents).to_nar());
        let digest = Sha256Digest::of(&nar);
        let file = NarFileName { hash: FileHash(digest), extension: NarExtension::Nar };
        let (hash, size) = (digest.base32(), nar.len());
        let references: Vec<&str> = references.iter().map(|path| path.base_name()).collect();
        let references = references.join(" ");
        let narinfo = format!(
            "StorePath: {path}\nURL: nar/{file}\nCompression: none\nNarHash: sha256:{hash}\nNarSize: {size}\n\
             References: {references}\n"
        );
        Self { path, file, nar, narinfo }
    }

    /// One of many; `number` tells them apart.
    pub fn numbered(number: u64) -> Self {
        let digest = Sha256Digest::of(&number.to_be_bytes()).base32();
        Self::new(&format!("{}-sample-{number}", &digest[..32]), &digest, &[])
    }
}

impl TestService {
    /// Uploads the NAR of a sample to the first cache.
    pub async fn put_nar(&self, call: &Call, sample: &Sample) -> super::Result<()> {
        let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(sample.nar.clone())]);
        let cache = FIRST_CACHE.parse().unwrap();
        self.service.put_nar(call, &cache, sample.file, None, body).await
    }

    /// Publishes a sample whose NAR was uploaded.
    pub async fn put_narinfo(&self, call: &Call, sample: &Sample) -> super::Result<Published> {
        let cache = FIRST_CACHE.parse().unwrap();
        self.service.put_narinfo(call, &cache, sample.path.hash(), sample.narinfo.as_bytes()).await
    }

    /// Uploads and publishes a sample in another cache than the first.
    pub async fn push_to(&self, cache: &CacheName, call: &Call, sample: &Sample) -> super::Result<Published> {
        let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(sample.nar.clone())]);
        self.service.put_nar(call, cache, sample.file, None, body).await?;
        self.service.put_narinfo(call, cache, sample.path.hash(), sample.narinfo.as_bytes()).await
    }

    /// Both, as a push does it.
    pub async fn push(&self, call: &Call, sample: &Sample) -> super::Result<Published> {
        self.put_nar(call, sample).await?;
        self.put_narinfo(call, sample).await
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
