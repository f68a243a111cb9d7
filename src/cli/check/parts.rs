//! The parts that `narvault check` looks at, each for itself: a part that is broken does not hide the others.
//!
//! Makes no database, no key and no row; only storage that is there gets a probe, which is removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::report::Report;
use crate::cli::host::opens_by_hand;
use crate::cli::server;
use crate::config::{Config, DatabaseUrl, StorageUrl};
use crate::db::cluster::ClusterRow;
use crate::db::{self, DbSettings, Inspection, OpenError, Schema};
use crate::kms::Kms;
use crate::service::{Configured, Tried, VaultRows};
use crate::storage::StorageError;
use crate::time::{Clock, Timestamp};
use crate::vault::{KeyFile, SlotKind, memory};

/// What the database says, for the checks that come after.
pub enum Known {
    /// A server was started on it.
    SetUp(Rows),
    /// None was.
    Fresh,
    /// It could not be read, so nothing can be said.
    Nothing,
}

/// What the vault and the storage are held against.
pub struct Rows {
    cluster: ClusterRow,
    vault: VaultRows,
}

/// Looks at the database, and at the clock beside it.
pub async fn database(report: &mut Report, config: &Config, clock: &Clock) -> Known {
    const PART: &str = "database";
    let settings = match server::db_settings(config) {
        Ok(settings) => settings,
        Err(error) => {
            report.fail(PART, format!("{error:#}"), "look at `database.url` and `database.password_file`");
            return Known::Nothing;
        }
    };
    let place = config.database.url.to_string();
    let mut inspection = match Inspection::open(&settings).await {
        Ok(Some(inspection)) => inspection,
        Ok(None) => {
            report.warn(PART, format!("{place}: not set up yet"), SERVE);
            return Known::Fresh;
        }
        Err(error) => {
            report.fail(PART, format!("{place}: {}", told(&error)), reach_hint(config));
            return Known::Nothing;
        }
    };
    let known = look(report, &mut inspection, &settings, &place, clock).await;
    let closed = inspection.close().await;
    match (known, closed) {
        (Err(error), _) | (Ok(_), Err(error)) => {
            report.fail(PART, format!("{place}: {}", told(&error)), reach_hint(config));
            Known::Nothing
        }
        (Ok(known), Ok(())) => known,
    }
}

async fn look(
    report: &mut Report,
    inspection: &mut Inspection,
    settings: &DbSettings,
    place: &str,
    clock: &Clock,
) -> db::Result<Known> {
    const PART: &str = "database";
    let server = inspection.server().await?;
    report.ok(PART, format!("{server} answers at {place}"));
    let schema = match inspection.schema().await {
        Ok(schema) => schema,
        Err(error @ OpenError::Newer { .. }) => {
            report.fail(PART, told(&error), "run the version that migrated it, or a later one");
            return Ok(Known::Nothing);
        }
        Err(error @ OpenError::Altered { .. }) => {
            report.fail(PART, told(&error), "run a released binary");
            return Ok(Known::Nothing);
        }
        Err(error) => {
            report.fail(PART, told(&error), "look at the rights of the database user");
            return Ok(Known::Nothing);
        }
    };
    match schema {
        Schema::Absent => report.warn(PART, "the database is empty: not set up yet", SERVE),
        Schema::Behind { pending } => report.warn(
            PART,
            format!("schema is {pending} migrations behind this binary"),
            "take a backup; the next start of `narvault serve` migrates",
        ),
        Schema::Current { applied } => {
            report.ok(PART, format!("schema is that of this binary ({applied} migrations)"));
        }
    }
    match (settings, inspection.synchronous_commit().await?) {
        (_, Some(found)) if found == "off" => report.fail(
            PART,
            "synchronous_commit is off: what was acknowledged may be lost",
            "ALTER DATABASE … SET synchronous_commit = on",
        ),
        (_, Some(found)) => report.ok(PART, format!("commits are durable (synchronous_commit = {found})")),
        (_, None) => report.ok(PART, "commits are durable (write-ahead log, synchronous = full)"),
    }
    match schema {
        Schema::Absent => return Ok(Known::Fresh),
        Schema::Behind { .. } => return Ok(Known::Nothing),
        Schema::Current { .. } => {}
    }
    clock_beside(report, clock.now(), inspection.clock().await?, inspection.newest_audit().await?);
    let connection = inspection.connection();
    let Some(cluster) = db::cluster::read(connection).await? else {
        report.warn(PART, "no cluster in the database: not set up yet", SERVE);
        return Ok(Known::Fresh);
    };
    let slots = db::vault::slots(connection).await?.into_iter().map(|(slot, _)| slot).collect();
    let keks = db::vault::keks(connection).await?;
    report.ok(PART, format!("cluster {} since {}", cluster.cluster_id, cluster.created_at));
    let vault = VaultRows { cluster_id: cluster.cluster_id.clone(), slots, keks };
    Ok(Known::SetUp(Rows { cluster, vault }))
}

/// Holds this machine's clock against the database's, and against what was written down last.
fn clock_beside(report: &mut Report, now: Timestamp, database: Option<Timestamp>, newest: Option<Timestamp>) {
    const PART: &str = "clock";
    const HINT: &str = "let both machines follow an NTP server; tokens end by these clocks";
    if let Some(newest) = newest.filter(|newest| newest.0 > now.0 + SKEW_MILLIS_MAX) {
        report.fail(PART, format!("it is {now} here, and the newest audit row is of {newest}"), HINT);
        return;
    }
    match database {
        Some(there) if (there.0 - now.0).abs() > SKEW_MILLIS_MAX => {
            report.fail(PART, format!("it is {now} here, and {there} at the database"), HINT);
        }
        Some(_) => report.ok(PART, format!("{now}, as at the database")),
        None => report.ok(PART, format!("{now}")),
    }
}

/// Writes, reads and removes a probe, and looks whose storage it is.
pub async fn storage(report: &mut Report, config: &Config, known: &Known) {
    const PART: &str = "storage";
    let place = config.storage.url.to_string();
    if let StorageUrl::Disk { path } = &config.storage.url
        && !path.exists()
    {
        match known {
            Known::Fresh => report.warn(PART, format!("{place}: not set up yet"), SERVE),
            Known::SetUp(_) | Known::Nothing => report.fail(
                PART,
                format!("{place} is not there"),
                "mount it, or put its folder back from the backup",
            ),
        }
        return;
    }
    let storage = match server::open_storage(config).await {
        Ok(storage) => storage,
        Err(error) => {
            report.fail(
                PART,
                format!("{place}: {error:#}"),
                "look at `storage.url` and at the folder's rights",
            );
            return;
        }
    };
    match storage.check().await {
        Ok(()) => report.ok(PART, format!("{place}: a probe was written, read and removed")),
        Err(error) => {
            report.fail(PART, format!("{place}: {}", told(&error)), storage_hint(&config.storage.url));
            return;
        }
    }
    match (storage.owner().await, known) {
        (Err(error), _) => report.fail(PART, told(&error), storage_hint(&config.storage.url)),
        (Ok(Some(found)), Known::SetUp(rows)) if found == rows.cluster.cluster_id => {
            report.ok(PART, "marked as this cluster's");
        }
        (Ok(Some(found)), Known::SetUp(rows)) => {
            let error = StorageError::OtherCluster { found, expected: rows.cluster.cluster_id.clone() };
            report.fail(PART, told(&error), "give each cluster a bucket, folder or prefix of its own");
        }
        (Ok(Some(found)), Known::Fresh) => report.fail(
            PART,
            format!("marked as cluster {found}'s, and the database here is not that cluster's"),
            "bring back that cluster's database, or set another `storage.url`",
        ),
        (Ok(Some(found)), Known::Nothing) => report.ok(PART, format!("marked as cluster {found}'s")),
        (Ok(None), Known::SetUp(_)) => report.warn(PART, "not marked as this cluster's", SERVE),
        (Ok(None), Known::Fresh | Known::Nothing) => report.ok(PART, "not marked as any cluster's"),
    }
}

/// Tries what is configured on the vault's slots, as a start would, but all of it.
pub async fn vault(report: &mut Report, config: &Config, known: Known) {
    const PART: &str = "vault";
    key_file_place(report, config, &known);
    kms(report, config).await;
    let Rows { cluster, vault } = match known {
        Known::SetUp(rows) if !rows.vault.keks.is_empty() => rows,
        Known::SetUp(_) | Known::Fresh => {
            report.warn(PART, "not set up yet", SERVE);
            return;
        }
        Known::Nothing => {
            report.warn(PART, "not looked at: the database could not be read", "mend the database first");
            return;
        }
    };
    slots(report, &vault);
    let by_hand = vault.slots.iter().filter_map(|slot| match slot.kind {
        SlotKind::Passphrase => Some("somebody types the passphrase"),
        SlotKind::Shamir => Some("its shares are handed in"),
        SlotKind::KeyFile | SlotKind::Kms => None,
    });
    let by_hand: BTreeSet<&str> = by_hand.filter(|_| opens_by_hand(config)).collect();
    let tried = server::vault_settings(config).try_on(&vault).await;
    let opens = tried.iter().any(|tried| tried.outcome.is_ok());
    for Tried { configured, outcome } in tried {
        let kind = configured.kind();
        match (outcome, cluster.sealed_by_hand_at) {
            (Ok(fitting), None) => {
                report.ok(PART, format!("the configured {kind} opens slot {}", fitting.slot_id));
            }
            (Ok(fitting), Some(since)) => report.warn(
                PART,
                format!(
                    "sealed by hand since {since}; the configured {kind} would open slot {}",
                    fitting.slot_id
                ),
                "reads and revocations go on; `narvault vault unseal --configured` ends it",
            ),
            (Err(_), _) if !by_hand.is_empty() => report.warn(
                PART,
                format!(
                    "a server that starts is sealed until {}",
                    by_hand.iter().copied().collect::<Vec<_>>().join(", or until ")
                ),
                "`narvault vault unseal`; or set `vault.passphrase_file`",
            ),
            (Err(error), _) if opens => report.warn(
                PART,
                format!("the configured {kind} does not open the vault: {}", told(&error)),
                "another one does; mend this one, or take it out of the configuration",
            ),
            (Err(error), _) => report.fail(
                PART,
                format!("a server that starts now is sealed: {}", told(&error)),
                "mend that; reads and revocations go on meanwhile",
            ),
        }
    }
    if memory::lock_was_refused() {
        report.warn(
            PART,
            "the system refuses to lock memory: keys may reach swap space",
            "raise RLIMIT_MEMLOCK (LimitMEMLOCK= of systemd)",
        );
    } else {
        report.ok(PART, "secrets are kept in locked memory");
    }
}

/// Lets the configured key in KMS encrypt and decrypt something of no meaning.
async fn kms(report: &mut Report, config: &Config) {
    const PART: &str = "kms";
    let settings = server::vault_settings(config).kms;
    let Some(key) = settings.key_id.clone() else { return };
    match Kms::new(settings).check(&key).await {
        Ok(arn) => report.ok(PART, format!("{arn} encrypts, and decrypts it again")),
        Err(error) => report.fail(
            PART,
            told(&error),
            "a server that runs goes on; one that starts opens by another slot, or is sealed and asks again",
        ),
    }
}

/// Warns where one loss would be the end.
fn slots(report: &mut Report, vault: &VaultRows) {
    const PART: &str = "vault";
    let kinds: Vec<&str> = vault.slots.iter().map(|slot| slot.kind.as_str()).collect();
    let detail = format!("{} slots ({})", kinds.len(), kinds.join(", "));
    if vault.slots.iter().all(|slot| slot.kind == SlotKind::Kms) {
        let hint = "if the key in KMS is deleted, every signing key is lost, here and in every backup: add a passphrase, \
                    `narvault vault slot add`";
        report.warn(PART, format!("KMS alone opens the vault: {detail}"), hint);
    } else if let [kind] = kinds[..] {
        let hint =
            "if its secret is lost, so is every key: keep a copy of it apart from the database's backups";
        report.warn(PART, format!("one slot only ({kind})"), hint);
    } else {
        report.ok(PART, detail);
    }
}

/// Warns of a key file that every copy of the data takes along.
fn key_file_place(report: &mut Report, config: &Config, known: &Known) {
    const PART: &str = "vault";
    let configured = server::vault_settings(config).configured();
    let key_file = configured.into_iter().find_map(|configured| match configured {
        Configured::KeyFile(path) => Some(path),
        Configured::Kms(_) | Configured::PassphraseFile(_) => None,
    });
    let Some(path) = key_file else { return };
    if !path.exists() {
        if matches!(known, Known::Fresh) && config.vault.key_file.is_some() {
            let hint = format!("make it: `(umask 077; head -c 32 /dev/urandom > {})`", path.display());
            report.fail(PART, format!("key file {} is absent", path.display()), hint);
        }
        return;
    }
    if let Err(error) = KeyFile::read(&path) {
        // Where there is a vault, trying to open it tells the same.
        if !matches!(known, Known::SetUp(_)) {
            report.fail(PART, told(&error), "the server cannot use it like that");
        }
        return;
    }
    let folders = [Some(config.server.data.clone()), database_folder(config)];
    if folders.iter().flatten().any(|folder| lies_below(&path, folder)) {
        report.warn(
            PART,
            format!("key file {} lies beside the data", path.display()),
            "whoever copies the folder has the keys; for production set `vault.key_file` to a place elsewhere",
        );
    } else {
        report.ok(
            PART,
            format!("key file {} lies apart from the data, only its owner can read it", path.display()),
        );
    }
}

fn database_folder(config: &Config) -> Option<PathBuf> {
    match &config.database.url {
        DatabaseUrl::Sqlite(path) => path.parent().map(Path::to_owned),
        DatabaseUrl::Postgres(_) => None,
    }
}

fn lies_below(path: &Path, folder: &Path) -> bool {
    // A folder that is not there holds nothing.
    match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => false,
    }
}

/// An error and what lies under it.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors of libraries tell their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    text
}

fn reach_hint(config: &Config) -> &'static str {
    match &config.database.url {
        DatabaseUrl::Sqlite(_) => "look at the file's owner and rights; run this as the server's user",
        DatabaseUrl::Postgres(_) => {
            "is the server up, and do host, user, password and database name agree with it?"
        }
    }
}

fn storage_hint(url: &StorageUrl) -> &'static str {
    match url {
        StorageUrl::Disk { .. } => "look at the folder's owner and rights; run this as the server's user",
        StorageUrl::S3(_) => {
            "look at endpoint, region, path_style and the AWS credentials; the key needs to list, read, write and \
             delete in the bucket"
        }
    }
}

const SERVE: &str = "`narvault serve` does it at its first start";

/// Half of the leeway that a token's times are given; NTP keeps clocks within a few milliseconds.
const SKEW_MILLIS_MAX: i64 = 30_000;

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    fn clock_line(now: i64, database: Option<i64>, newest: Option<i64>) -> Status {
        let mut report = Report::default();
        clock_beside(&mut report, Timestamp(now), database.map(Timestamp), newest.map(Timestamp));
        report.checks[0].status
    }

    #[test]
    fn a_clock_that_went_back_or_differs_is_a_failure() {
        for (now, database, newest, expected) in [
            (1_000_000, None, None, Status::Ok),
            (1_000_000, Some(1_000_500), Some(999_000), Status::Ok),
            (1_000_000, Some(1_060_000), None, Status::Fail),
            (1_000_000, Some(940_000), None, Status::Fail),
            (1_000_000, None, Some(1_060_000), Status::Fail),
        ] {
            assert_eq!(clock_line(now, database, newest), expected, "{now} {database:?} {newest:?}");
        }
    }
}
