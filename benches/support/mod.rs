//! A server of its own for a benchmark: on SQLite in a folder, with tiny paths to push.

use std::convert::Infallible;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use narvault::access::{Caller, Credential, TokenText};
use narvault::db::{Db, DbSettings};
use narvault::nix::compression::{NarExtension, NarFileName};
use narvault::nix::hash::{FileHash, Sha256Digest};
use narvault::nix::nar::build::Node;
use narvault::nix::store_path::StorePath;
use narvault::service::measure::MeasureLimits;
use narvault::service::{
    Call, ContributorKind, FIRST_CACHE, KeyLimits, Limits, Liveness, OpenSettings, Origin, Service,
    TokenRequest, VaultSettings,
};
use narvault::storage::{DiskSettings, Settings, Storage};
use narvault::time::Clock;

pub type Failure = Box<dyn Error + Send + Sync>;

/// The service, and at its first start the claim. Objects lie below `memory`.
pub async fn open(
    folder: &Path,
    memory: &Path,
    keys: KeyLimits,
) -> Result<(Service, Option<String>), Failure> {
    let db = Db::open(&DbSettings::Sqlite { path: folder.join("narvault.sqlite") }).await?;
    let disk = Settings::Disk(DiskSettings::new(memory.join("storage")));
    let storage = Storage::open(disk, uuid::Uuid::now_v7()).await?;
    let vault = VaultSettings { default_key_file: folder.join("vault.key"), ..VaultSettings::default() };
    let limits = Limits {
        measure: MeasureLimits::default(),
        narinfo_size_bytes_max: 1 << 20,
        auxiliary_size_bytes_max: 1 << 20,
        upload_memory_bytes: 1 << 30,
        uploads_per_token: 8,
        admission_wait: Duration::from_secs(60),
        upload_min_bytes_per_second: 1,
        unpublished_max: Duration::from_secs(3600),
        upload_session: Duration::from_secs(3600),
        direct_parts: false,
        withdrawn_max: Duration::from_secs(3600),
        takedown_answer: Duration::from_secs(60),
        narinfo_memory_bytes: 1 << 20,
        keys,
    };
    let settings = OpenSettings {
        db,
        storage,
        clock: Clock::System,
        limits,
        vault,
        webhooks: narvault::webhook::Allowed::default(),
        witnesses: Vec::new(),
        backups: None,
        rate_per_minute: 10,
    };
    let (service, first) = Service::open(settings).await?;
    Ok((service, first.map(|first| first.claim.expose().to_owned())))
}

/// The token of the first administrator.
pub async fn claim(service: &Service, claim: Option<String>) -> Result<TokenText, Failure> {
    let nobody = Call { caller: Caller::Anonymous, origin: Origin::default() };
    Ok(service.claim_admin(&nobody, &claim.ok_or("the folder is not empty")?).await?.text)
}

pub async fn call(service: &Service, token: &TokenText) -> Result<Call, Failure> {
    let caller = service.authenticate(&Credential::Token(token.clone()), Liveness::Recent).await?;
    Ok(Call { caller, origin: Origin::default() })
}

/// A new contributor who may push.
pub async fn pusher(service: &Service, admin: &Call, name: &str) -> Result<Call, Failure> {
    let name = name.parse()?;
    service.create_contributor(admin, &name, ContributorKind::Ci, None).await?;
    let scopes = format!("push:{FIRST_CACHE}").parse()?;
    let request = TokenRequest { contributor: name, scopes, lifetime_seconds: None, note: None };
    call(service, &service.issue_token(admin, &request).await?.text).await
}

/// A path of one small file.
#[derive(Clone)]
pub struct Sample {
    path: StorePath,
    file: NarFileName,
    nar: Bytes,
    /// As it is pushed.
    pub narinfo: String,
}

impl Sample {
    /// The same for the same text, and another one for each other.
    pub fn new(text: &str) -> Result<Self, Failure> {
        let name = Sha256Digest::of(text.as_bytes()).base32();
        let path = StorePath::from_base_name(&format!("{}-tiny", &name[..32]))?;
        let nar = Bytes::from(Node::file(name.as_str()).to_nar());
        let digest = Sha256Digest::of(&nar);
        let file = NarFileName { hash: FileHash(digest), extension: NarExtension::Nar };
        let narinfo = format!(
            "StorePath: {path}\nURL: nar/{file}\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: \n",
            digest.base32(),
            nar.len()
        );
        Ok(Self { path, file, nar, narinfo })
    }

    pub async fn put_nar(&self, service: &Service, call: &Call) -> Result<(), Failure> {
        let body = futures_util::stream::iter([Ok::<_, Infallible>(self.nar.clone())]);
        let size = Some(self.nar.len() as u64);
        Ok(service.put_nar(call, &FIRST_CACHE.parse()?, self.file, size, body).await?)
    }

    pub async fn put_narinfo(&self, service: &Service, call: &Call) -> Result<(), Failure> {
        let (hash, body) = (self.path.hash(), self.narinfo.as_bytes());
        service.put_narinfo(call, &FIRST_CACHE.parse()?, hash, body).await?;
        Ok(())
    }
}
