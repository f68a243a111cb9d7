//! From a configuration to a running server: the only place where all sections meet.
//!
//! Each layer is handed its own section, as values of its own.

use std::num::TryFromIntError;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;
use url::Url;
use uuid::Uuid;

use crate::config::{self, Config, DatabaseUrl, Deliver, S3Location, StorageUrl};
use crate::db::{Db, DbSettings};
use crate::http::{self, App, HttpSettings, RunningServer};
use crate::kms::KmsSettings;
use crate::nix::nar::NarLimits;
use crate::service::measure::MeasureLimits;
use crate::service::{BackupSchedule, FirstStart, KeyLimits, Limits, OpenSettings, Service, VaultSettings};
use crate::storage::{self, DiskSettings, Patience, S3Settings, Storage};
use crate::time::Clock;
use crate::vault::random;
use crate::web;
use crate::webhook;

/// A server that takes requests, and what its first start has to show.
pub struct Server {
    pub service: Service,
    pub http: RunningServer,
    pub first: Option<FirstStart>,
    /// With the address that was really bound.
    pub config: Config,
}

impl Server {
    /// Opens everything that `config` names and begins to listen.
    pub async fn start(mut config: Config, clock: Clock) -> anyhow::Result<Self> {
        // Before anything that takes time: a port that is taken shall be said at once, and a balancer that
        // asks too early waits in the queue instead of being refused.
        let listener = http::listen(config.server.listen)?;
        config.bound_to(listener.local_addr().context("cannot learn the address listened on")?);
        let (service, first) = open_service(&config, clock).await?;
        service.start_background();
        let pages = web::router(&serde_json::to_value(http::openapi())?);
        let app = App::new(service.clone(), http_settings(&config)?).with_pages(pages);
        let http = http::serve(app, listener)?;
        Ok(Self { service, http, first, config })
    }

    /// Lets requests end within the configured time, then stops.
    pub async fn shut_down(self) -> anyhow::Result<()> {
        let stopped = self.http.shut_down().await;
        self.service.shut_down().await;
        Ok(stopped?)
    }
}

/// Opens database, storage and vault, without listening and without work in the background.
pub async fn open_service(config: &Config, clock: Clock) -> anyhow::Result<(Service, Option<FirstStart>)> {
    prepare_data(config)?;
    let db = Db::open(&db_settings(config)?).await.context("cannot open the database")?;
    let storage = open_storage(config).await?;
    let settings = OpenSettings {
        db,
        storage,
        clock,
        limits: limits(config)?,
        vault: vault_settings(config),
        webhooks: webhook::Allowed {
            private: config.webhooks.allow_private,
            http: config.webhooks.allow_http,
        },
        witnesses: config.signature_log.witnesses.clone(),
        backups: backup_schedule(config)?,
        rate_per_minute: config.limits.rate_per_minute.try_into()?,
    };
    Service::open(settings).await.context("cannot open the service")
}

/// What the configuration says opens the vault.
pub fn vault_settings(config: &Config) -> VaultSettings {
    VaultSettings {
        key_file: config.vault.key_file.clone(),
        passphrase_file: config.vault.passphrase_file.clone(),
        kms: KmsSettings {
            key_id: config.vault_kms.key_id.clone(),
            region: config.vault_kms.region.clone(),
            endpoint: config.vault_kms.endpoint.as_ref().map(|url| url.as_str().to_owned()),
        },
        default_key_file: config.key_file_default(),
    }
}

/// Opens the storage that the configuration names.
pub async fn open_storage(config: &Config) -> anyhow::Result<Storage> {
    let settings = match &config.storage.url {
        StorageUrl::Disk { path } => {
            let put_time_max = Duration::from_secs(config.storage.timeout_seconds);
            storage::Settings::Disk(DiskSettings { root: path.clone(), put_time_max })
        }
        StorageUrl::S3(location) => {
            let mut settings = s3_settings(location)?;
            settings.object_size_bytes_max = config.limits.nar_size_bytes.0;
            settings.patience = patience(&config.storage)?;
            storage::Settings::S3(Box::new(settings))
        }
    };
    let instance = Uuid::from_bytes(random::bytes());
    Storage::open(settings, instance).await.context("cannot open the storage")
}

/// Opens a bucket that no configuration is about, to read from it.
pub async fn open_bucket(location: &S3Location) -> anyhow::Result<Storage> {
    let settings = storage::Settings::S3(Box::new(s3_settings(location)?));
    Storage::open(settings, Uuid::from_bytes(random::bytes())).await.context("cannot open the storage")
}

fn s3_settings(location: &S3Location) -> anyhow::Result<S3Settings> {
    let region = location.region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let mut settings = S3Settings::new(&location.bucket, region);
    settings.prefix = location.prefix.parse()?;
    settings.endpoint = location.endpoint.as_deref().map(Url::parse).transpose()?;
    settings.path_style = location.path_style;
    Ok(settings)
}

/// One attempt may take four fifths of the whole time, so that another can follow it.
fn patience(storage: &config::Storage) -> Result<Patience, TryFromIntError> {
    let total = Duration::from_secs(storage.timeout_seconds);
    let defaults = Patience::default();
    Ok(Patience {
        connect: Duration::from_secs(storage.connect_timeout_seconds),
        answer: Duration::from_secs(storage.answer_timeout_seconds),
        attempt: total * 4 / 5,
        total,
        stalled: defaults.stalled.min(total),
        attempts_max: storage.attempts_max.try_into()?,
        ..defaults
    })
}

/// What the database layer is opened with; the password comes from its file now.
pub fn db_settings(config: &Config) -> anyhow::Result<DbSettings> {
    match &config.database.url {
        DatabaseUrl::Sqlite(path) => Ok(DbSettings::Sqlite { path: path.clone() }),
        DatabaseUrl::Postgres(_) => {
            let url = config.database.connection_url(|path| std::fs::read_to_string(path))?;
            Ok(DbSettings::Postgres {
                url: Url::parse(url.expose_secret())?,
                connections_max: config.database.connections_max.try_into()?,
            })
        }
    }
}

/// Makes the data folder where something of it is used. Only its owner may look into it.
pub fn prepare_data(config: &Config) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let data = &config.server.data;
    if data.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(data).with_context(|| format!("cannot make the data folder {}", data.display()))
}

/// What uploads and memory may cost.
pub fn limits(config: &Config) -> Result<Limits, TryFromIntError> {
    let limits = &config.limits;
    let nar = NarLimits { nar_size_bytes_max: limits.nar_size_bytes.0, ..NarLimits::default() };
    // A NAR that does not compress makes a slightly larger file.
    let file_size_bytes_max = nar.nar_size_bytes_max.saturating_add(nar.nar_size_bytes_max >> 6);
    Ok(Limits {
        measure: MeasureLimits { file_size_bytes_max, nar },
        narinfo_size_bytes_max: limits.narinfo_size_bytes.0,
        auxiliary_size_bytes_max: limits.auxiliary_size_bytes.0,
        upload_memory_bytes: limits.upload_memory_bytes.0,
        uploads_per_token: limits.uploads_per_token.try_into()?,
        admission_wait: Duration::from_secs(limits.admission_wait_seconds),
        upload_min_bytes_per_second: limits.upload_min_bytes_per_second,
        unpublished_max: Duration::from_secs(limits.unpublished_nar_hours.saturating_mul(3600)),
        upload_session: Duration::from_secs(limits.upload_session_hours.saturating_mul(3600)),
        direct_parts: config.uploads.direct,
        withdrawn_max: Duration::from_secs(limits.withdrawn_days.saturating_mul(24 * 3600)),
        takedown_answer: Duration::from_secs(limits.takedown_answer_seconds),
        narinfo_memory_bytes: NARINFO_MEMORY_BYTES,
        keys: KeyLimits {
            resign_paths_per_second: config.keys.resign_paths_per_second,
            publish_days: config.keys.rotation_publish_days,
            wait_days: config.keys.rotation_wait_days,
        },
    })
}

fn backup_schedule(config: &Config) -> Result<Option<BackupSchedule>, TryFromIntError> {
    let Some(hours) = config.backup.every_hours else { return Ok(None) };
    let every = Duration::from_secs(hours.saturating_mul(3600));
    Ok(Some(BackupSchedule { every, keep: config.backup.keep.try_into()? }))
}

fn http_settings(config: &Config) -> anyhow::Result<HttpSettings> {
    Ok(HttpSettings {
        public_url: Url::parse(config.server.public_url.as_str())?,
        trusted_proxies: config.server.trusted_proxies.clone(),
        deliver: match config.nars.deliver {
            Deliver::Proxy => http::Deliver::Proxy,
            Deliver::Redirect => http::Deliver::Redirect,
        },
        redirect_private: config.nars.redirect_private,
        shutdown_wait: Duration::from_secs(config.limits.shutdown_seconds),
    })
}

/// Rendered narinfos kept in memory: some 20 000 of usual size.
const NARINFO_MEMORY_BYTES: u64 = 32 << 20;

/// What S3 services without regions expect in signatures.
const DEFAULT_REGION: &str = "us-east-1";
