//! What a caller can ask for: the only code that joins access, rows, storage, vault and log.
//!
//! Never speaks HTTP and never holds SQL. Each operation begins with who asks; whatever signs, mints,
//! stores or revokes happens in one transaction behind the gate, with its log leaf and its audit row.

mod admission;
mod audit;
mod audit_commits;
mod auth;
mod auxiliary;
mod backup;
mod batch;
mod caches;
mod call;
mod contributors;
mod erasure;
mod error;
mod ingest;
mod keys;
mod leaves;
mod log;
mod log_publisher;
mod log_writes;
pub mod measure;
mod memory;
mod openings;
mod orphans;
mod passphrase;
mod paths;
mod proofs;
mod provenance;
mod publish;
mod rate;
mod read;
mod realisations;
mod recover;
mod rekey;
mod release;
mod rollback;
mod scrub;
mod setup;
mod shares;
mod sign;
mod slots;
mod status;
mod sweep;
mod takedown;
#[cfg(test)]
mod testing;
mod tokens;
mod uploads;
mod upstreams;
mod vault;
mod webhooks;
mod witnessing;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admission::Room;
pub use audit::AuditQuery;
pub use audit_commits::AuditCheck;
pub use auth::Liveness;
pub use auxiliary::Auxiliary;
pub use backup::{
    BackupError, BackupReport, BackupSchedule, BackupTarget, StoredBackup, TableCount, VerifiedBackup,
    WrittenBackup, backup_vault, list_backups, stored_backup, verify_backup,
};
pub use batch::{BATCH_SIZE_BYTES_MAX, NarOutcome, NarPiece};
pub use caches::{CacheChange, CacheDetails, NewCache};
pub use call::{Call, Origin};
pub use contributors::{ContributorChange, ContributorDetails};
pub use erasure::Erased;
pub use error::{Conflict, Error, Rejection};
pub use keys::{
    KeyLimits, KeySource, PublicKeys, RootSets, Rotation, RotationRequest, StepTime, Succession,
    SuccessionRequest,
};
pub use log_publisher::{Fork, SigningStopped};
pub use memory::RenderedNarInfo;
pub use openings::{LogOpening, OPENINGS_COUNT_MAX};
pub use orphans::{ORPHANS_NAMED_MAX, Orphan, OrphanKind, Orphans};
pub use passphrase::PassphraseChange;
pub use paths::{DeletedPath, PathDetails, PathQuery};
pub use provenance::PathAct;
pub use publish::{PathOutcome, Published, Standing};
pub use read::{Missing, NarHandle, Side};
pub use recover::Recovery;
pub use rekey::{GivenSecret, KekRotation, NewRootRequest};
pub use rollback::Rollback;
pub use scrub::{ScrubFinding, Scrubbed};
pub use setup::{FIRST_ADMIN, FIRST_CACHE, FirstStart};
pub use shares::{GatheredShares, HandedIn, SHARES_MINUTES};
pub use slots::{AddedSlot, NewSlot, SlotId};
pub use status::Backlog;
pub use takedown::{
    QuarantineId, QuarantineRequest, Quarantined, Restored, TAKEN_NAMED_MAX, TakedownTarget, WhatIf,
};
pub use tokens::{IssuedToken, TokenQuery, TokenRequest, Whoami};
pub use uploads::{NewPart, UploadDetails, WholeFile};
pub use vault::{
    Configured, Fitting, KmsWait, Slot, TrialError, Tried, Unseal, VaultRows, VaultSecret, VaultSettings,
    VaultStatus,
};
pub use webhooks::{EventKind, NewWebhook, WebhookChange, WebhookId};

// Rows that are answers as they are: whoever shows them needs to name them.
pub use crate::db::PageBounds;
pub use crate::db::audit::{AuditRow, Outcome as AuditOutcome};
pub use crate::db::caches::{CacheRow, UndeclaredReferences, Upstream, UpstreamPaths};
pub use crate::db::contributors::ContributorKind;
pub use crate::db::evidence::{ConflictRow, EvidenceRow};
pub use crate::db::kek_rotations::KekRotationState;
pub use crate::db::key_rotations::{Progress, RotationKind, RotationStep};
pub use crate::db::measured::StoredNar;
pub use crate::db::paths::{PathState, PathSummaryRow, SignatureRow};
pub use crate::db::quarantines::QuarantineRow;
pub use crate::db::resigning::UnloggedRow;
pub use crate::db::signing_keys::KeyRow;
pub use crate::db::tokens::TokenRow;
pub use crate::db::uploads::PartRow;
pub use crate::db::webhook_deliveries::{DeliveryRow, DeliveryState};
pub use crate::db::webhooks::WebhookSummary;
pub use crate::db::withdrawals::{AffectedRow, WithdrawalRow};
pub use crate::storage::CacheObject;
pub use crate::succession::{Roots, Signed, Statement};
pub use crate::tlog::tile::Tile as LogTile;

use crate::access::{Action, CacheName, TokenCaller};
use crate::db::outbox::LeaseTerms;
use crate::db::{Db, DbError, Tx, epoch};
use crate::storage::{ObjectKey, Storage};
use crate::time::{Clock, Timestamp};
use crate::upstream::Upstreams;
use crate::vault::{Keyring, random};
use crate::webhook::{self, Sender};
use crate::witness::Witness;
use admission::Admission;
use auth::LiveTokens;
use log_publisher::LogHealth;
use measure::MeasureLimits;
use memory::Memory;
use publish::Committing;
use rate::RateLimiter;
use release::Finishing;
use vault::Door;
use witnessing::Watch;

/// What every operation answers.
pub type Result<T> = std::result::Result<T, Error>;

/// The running service. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    storage: Storage,
    upstreams: Upstreams,
    webhooks: Sender,
    webhooks_busy: webhooks::Busy,
    keyring: Keyring,
    clock: Clock,
    ids: std::sync::Mutex<uuid::ContextV7>,
    limits: Limits,
    cluster_id: String,
    lease_terms: LeaseTerms,
    admission: Admission,
    committing: Committing,
    finishing: Finishing,
    memory: Memory,
    tokens: LiveTokens,
    door: Door,
    log_health: LogHealth,
    #[cfg(test)]
    log_cut: crate::db::testing::Cut,
    /// Set where the database is older than what was published from it.
    rollback: OnceLock<Rollback>,
    watch: Watch,
    /// `None`: nobody asked for backups to storage.
    backups: Option<BackupSchedule>,
    /// Tries of claims, passphrases, shares and reports, by address.
    secret_tries: RateLimiter,
    /// Denials written down, by address.
    denials: RateLimiter,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What uploads and memory may cost. Each is a configuration key.
#[derive(Debug, Clone)]
pub struct Limits {
    pub measure: MeasureLimits,
    pub narinfo_size_bytes_max: u64,
    pub auxiliary_size_bytes_max: u64,
    pub upload_memory_bytes: u64,
    pub uploads_per_token: usize,
    pub admission_wait: Duration,
    pub upload_min_bytes_per_second: u64,
    /// How long a NAR may wait for its narinfo.
    pub unpublished_max: Duration,
    pub withdrawn_max: Duration,
    /// How long a takedown waits for the end of its work, and for storage, before it answers.
    pub takedown_answer: Duration,
    /// How long an upload in parts is kept after its last one.
    pub upload_session: Duration,
    /// Whether parts may go straight to the bucket, where there is one.
    pub direct_parts: bool,
    /// Rendered narinfos kept in memory.
    pub narinfo_memory_bytes: u64,
    pub keys: KeyLimits,
}

/// What a service is opened with.
pub struct OpenSettings {
    pub db: Db,
    pub storage: Storage,
    pub clock: Clock,
    pub limits: Limits,
    pub vault: VaultSettings,
    pub webhooks: webhook::Allowed,
    /// Who is asked to cosign the log's checkpoints.
    pub witnesses: Vec<Witness>,
    /// How often the database is backed up to storage; `None`: not at all.
    pub backups: Option<BackupSchedule>,
    /// Tries of secrets from one address in a minute.
    pub rate_per_minute: u16,
}

impl Service {
    /// Joins database and storage, makes the cluster where there is none, takes the bucket, opens the vault
    /// if that can be done without asking anybody, and begins the work in the background.
    ///
    /// Answers with what a first start has to show, once. Fails on a bucket of another cluster. A vault that
    /// does not open is no failure: the service is sealed then, and says why in the log.
    pub async fn open(settings: OpenSettings) -> Result<(Self, Option<FirstStart>)> {
        let OpenSettings { db, storage, clock, limits, vault, webhooks, witnesses, backups, rate_per_minute } =
            settings;
        let cluster_id = setup::cluster_id(&db, &storage, &clock).await?;
        storage.claim_cluster(&cluster_id).await?;
        let token_keys = auth::token_keys(&mut *db.read().await?, &cluster_id).await?;
        let owner: String = random::text::<16>();
        let inner = Inner {
            lease_terms: release::lease_terms(owner, storage.put_time_max()),
            admission: Admission::new(
                limits.upload_memory_bytes,
                limits.uploads_per_token,
                limits.admission_wait,
            ),
            committing: Committing::default(),
            finishing: Finishing::default(),
            memory: Memory::new(limits.narinfo_memory_bytes),
            tokens: LiveTokens::new(token_keys),
            door: Door::new(vault),
            log_health: LogHealth::default(),
            #[cfg(test)]
            log_cut: crate::db::testing::Cut::default(),
            rollback: OnceLock::new(),
            watch: Watch::new(witnesses).map_err(|error| Error::Internal(error.into()))?,
            backups,
            secret_tries: RateLimiter::per_minute(rate_per_minute),
            denials: RateLimiter::per_minute(DENIALS_PER_MINUTE),
            keyring: Keyring::sealed(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            upstreams: Upstreams::new().map_err(|error| Error::Internal(error.into()))?,
            webhooks: Sender::new(webhooks).map_err(|error| Error::Internal(error.into()))?,
            webhooks_busy: webhooks::Busy::default(),
            db,
            storage,
            clock,
            ids: std::sync::Mutex::default(),
            limits,
            cluster_id,
        };
        let service = Self { inner: Arc::new(inner) };
        let first = service.set_up().await?;
        if first.is_none() {
            service.open_at_start().await?;
        }
        service.catch_up_log().await?;
        service.notice_rollback().await?;
        service.note_change().await;
        Ok((service, first))
    }

    /// Begins the work in the background: release, sweeping, quarantines that were broken off, the epoch, last uses,
    /// rotations of keys and of the vault's own, the published log, webhooks, backups. Where the database is older than what was published from
    /// it, nothing that writes to storage: what its outbox asks for may have been taken back since.
    pub fn start_background(&self) {
        self.spawn(self.clone().epoch_poller());
        self.spawn(self.clone().seal_poller());
        self.spawn(self.clone().kms_waiter());
        if self.rollback().is_some() {
            return;
        }
        self.spawn(self.clone().finisher(self.inner.stop.clone()));
        self.spawn(self.clone().release_worker(self.inner.stop.clone()));
        self.spawn(self.clone().sweeper(self.inner.stop.clone()));
        self.spawn(self.clone().quarantine_worker(self.inner.stop.clone()));
        self.spawn(self.clone().token_uses_worker());
        self.spawn(self.clone().key_worker(self.inner.stop.clone()));
        self.spawn(self.clone().idle_key_worker(self.inner.stop.clone()));
        self.spawn(self.clone().kek_worker(self.inner.stop.clone()));
        self.spawn(self.clone().log_publisher(self.inner.stop.clone()));
        self.spawn(self.clone().webhook_worker(self.inner.stop.clone()));
        self.spawn(self.clone().audit_committer(self.inner.stop.clone()));
        self.spawn(self.clone().backup_worker(self.inner.stop.clone()));
    }

    /// Ends background work; uploads under way are the HTTP layer's to wait for.
    pub async fn shut_down(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        // What storage keeps waiting is done by the next start: its outbox rows stand.
        let _ = tokio::time::timeout(BACKGROUND_END_MAX, self.inner.tasks.wait()).await;
        self.inner.db.close().await;
    }

    /// Whether the database answers.
    pub async fn is_ready(&self) -> bool {
        self.inner.db.ping().await.is_ok()
    }

    /// Whether the vault is open on this replica.
    pub fn is_open(&self) -> bool {
        self.inner.keyring.is_open()
    }

    /// Which cluster this is: the short random text in key names and tokens.
    pub fn cluster_id(&self) -> &str {
        &self.inner.cluster_id
    }

    /// Tells this process from other replicas and from its earlier selves: random text.
    pub fn replica(&self) -> &str {
        &self.inner.lease_terms.owner
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(async move {
            if let Err(error) = tokio::spawn(work).await {
                // Its work stays undone until the next start, so nobody shall have to guess.
                tracing::error!(%error, "a background task ended; restart this server");
            }
        });
    }

    /// Refuses where the vault is sealed: what is sent now would be for nothing.
    pub fn require_open(&self) -> Result<()> {
        if let Some(Rollback { leaves, published }) = self.rollback() {
            let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
            return Err(Error::RolledBack { leaves: number(leaves), published: number(published) });
        }
        if self.inner.keyring.is_open() { Ok(()) } else { Err(Error::Sealed) }
    }

    /// Waits for memory for a body of at most `bytes` that is held whole until what it returns is dropped.
    pub async fn room_for(&self, bytes: u64) -> Result<Room> {
        self.inner.admission.room(bytes).await
    }

    /// Largest narinfo taken in, in bytes.
    pub fn narinfo_size_bytes_max(&self) -> u64 {
        self.inner.limits.narinfo_size_bytes_max
    }

    /// Largest listing, log or link taken in, in bytes.
    pub fn auxiliary_size_bytes_max(&self) -> u64 {
        self.inner.limits.auxiliary_size_bytes_max
    }

    /// The token behind a call, if it may push to this cache. What is pushed is always somebody's.
    async fn pusher(&self, call: &Call, cache: &CacheName) -> Result<TokenCaller> {
        self.require(call, &Action::Push(cache.clone()), "push", cache.as_str()).await?;
        call.caller.token().cloned().ok_or(Error::Unauthenticated("pushing needs a token"))
    }

    /// The cache's row again, inside a transaction behind the gate.
    async fn recheck_cache(&self, tx: &mut Tx, cache: &CacheRow) -> Result<CacheRow> {
        let row = crate::db::caches::by_name(tx, &cache.name).await?;
        row.filter(|row| row.id == cache.id).ok_or(Error::NotFound("cache"))
    }

    /// A new row id: UUIDv7 text, ordered by time, and within a millisecond in the order in which this replica made
    /// them.
    fn new_id(&self, now: Timestamp) -> String {
        let millis = u64::try_from(now.0).unwrap_or(0);
        let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        uuid::Uuid::new_v7(uuid::Timestamp::from_unix(&self.inner.ids, millis / 1000, nanos)).to_string()
    }

    /// Reads the change epoch, so that this replica's memory ends with what was just changed.
    async fn note_change(&self) {
        let asked_at = Instant::now();
        let read = async { epoch::read(&mut *self.inner.db.read().await?).await };
        match read.await {
            Ok(epoch) => self.inner.memory.epoch_read(epoch, asked_at),
            // Memory is not used once the epoch is a second old.
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "epoch not read"),
        }
    }

    /// Keeps the change epoch fresh until `stop`.
    async fn epoch_poller(self) {
        loop {
            self.note_change().await;
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(EPOCH_PAUSE) => {}
            }
        }
    }
}

/// The name in storage of an object of `cache`.
fn key_of(cache: &CacheRow, object: CacheObject) -> Result<ObjectKey> {
    let corrupt = |_| DbError::Corrupt { table: "caches", column: "prefix", row: cache.id.to_string() };
    Ok(ObjectKey::Cache(cache.prefix.parse().map_err(corrupt)?, object))
}

/// How long the work in the background may take to end.
const BACKGROUND_END_MAX: Duration = Duration::from_secs(30);

/// Denials written to the audit log from one address in a minute; the others are counted.
const DENIALS_PER_MINUTE: u16 = 60;

/// Three reads fit into the second that memory may be behind.
const EPOCH_PAUSE: Duration = Duration::from_millis(300);
