//! `narvault backup`: the whole database as one sealed file, made beside a running server, and looked at without one.
//!
//! Never leaves a file that is not whole, and never replaces one unless told.

mod source;

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

pub use self::source::SourceArgs;
use super::Context;
use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::host::{HostArgs, SecretArgs, told};
use super::text::{Fields, Table, moment, size};
use crate::service::{
    BackupError, BackupReport, BackupTarget, Call, TableCount, WrittenBackup, backup_vault, list_backups,
    verify_backup,
};
use crate::vault::random;
use crate::vault::root::UnlockError;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example:\n  narvault backup /mnt/backups/narvault.backup --config /etc/narvault/narvault.toml"
)]
pub struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// Where to write it
    #[arg(required = true, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Read a backup to its end: is it whole, does each key open, do the leaves make the log's root?
    Verify(VerifyArgs),
    /// List the backups in the storage
    List(ListArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault backup verify narvault.backup --key-file ./vault.key")]
pub struct VerifyArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault backup list --config /etc/narvault/narvault.toml")]
pub struct ListArgs {
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Serialize)]
struct Written {
    file: PathBuf,
    size_bytes: u64,
    rows: u64,
    leaves: u64,
}

#[derive(Serialize)]
struct Verified {
    cluster_id: String,
    narvault: String,
    schema: i64,
    made_at: Option<String>,
    leaves: u64,
    log_root: String,
    keys: u64,
    webhooks: u64,
    rows: u64,
    tables: Vec<TableCount>,
}

#[derive(Serialize)]
struct Listed {
    backups: Vec<ListedBackup>,
}

#[derive(Serialize)]
struct ListedBackup {
    name: String,
    made_at: String,
    size_bytes: u64,
}

pub async fn run(args: BackupArgs, context: &Context) -> Result<(), Failure> {
    harden()?;
    match args.command {
        Some(BackupCommand::Verify(args)) => verify(args, context).await,
        Some(BackupCommand::List(args)) => list(args, context).await,
        None => make(args, context).await,
    }
}

async fn make(args: BackupArgs, context: &Context) -> Result<(), Failure> {
    let path = args.file.unwrap_or_default();
    let secret = args.secret.given()?;
    let file = NewFile::beside(&path, args.overwrite)?;
    let (_, service) = args.host.open(context).await?;
    let target = BackupTarget::File(tokio::fs::File::from_std(file.open()?));
    let made = service.back_up(&Call::host(), secret, target).await;
    service.shut_down().await;
    let (target, WrittenBackup { size_bytes, rows, leaves }) = made.map_err(refused)?;
    if let BackupTarget::File(written) = target {
        file.place(written).await?;
    }
    let answer = Written { file: path, size_bytes, rows, leaves };
    context.printer.answer(&answer, |answer| {
        let (file, size_bytes) = (answer.file.display(), size(answer.size_bytes));
        format!("{file}: {size_bytes}, {} rows, {} leaves of the signature log\n", answer.rows, answer.leaves)
    })
}

async fn verify(args: VerifyArgs, context: &Context) -> Result<(), Failure> {
    let config = args.host.load()?;
    let source = args.source.find(&config).await?;
    let vault = backup_vault(source.open().await?).await.map_err(refused)?;
    let secret = args.secret.read(&config, &vault).await?;
    let verified = verify_backup(source.open().await?, secret).await.map_err(refused)?;
    context.printer.answer(&Verified::from(verified.report), fields)
}

async fn list(args: ListArgs, context: &Context) -> Result<(), Failure> {
    let config = args.host.load()?;
    let storage = super::server::open_storage(&config).await.map_err(told)?;
    let backups = list_backups(&storage).await.map_err(told)?;
    let listed = backups.into_iter().map(|backup| ListedBackup {
        name: backup.name,
        made_at: backup.made_at.rfc3339(),
        size_bytes: backup.size_bytes,
    });
    context.printer.answer(&Listed { backups: listed.collect() }, table)
}

/// A failure of a backup, with what to do.
pub fn refused(error: BackupError) -> Failure {
    let hint = match &error {
        BackupError::Unlock(UnlockError::WrongSecret { .. } | UnlockError::NoSlot { .. }) => Some(
            "name what opened the vault when the backup was made, with --key-file, --passphrase-file or --share-file",
        ),
        BackupError::Sealed => {
            Some("add --key-file, --passphrase-file or --share-file with a secret that opens the vault")
        }
        BackupError::Shares(_) => {
            Some("add --share-file FILE once for each share that is needed, all of one slot")
        }
        BackupError::NotEmpty { .. } => {
            Some("name an empty database in the configuration; what is in this one would be lost")
        }
        _ => None,
    };
    let failure = told(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A file that appears at its place only when it is whole, and that only this user can read.
struct NewFile {
    path: PathBuf,
    overwrite: bool,
    partial: PathBuf,
}

impl NewFile {
    fn beside(path: &Path, overwrite: bool) -> Result<Self, Failure> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.is_empty() {
            return Err(Failure::new(Exit::Usage, format!("{} names no file", path.display())));
        }
        let partial = path.with_file_name(format!(".{name}.{}.partial", random::text::<5>()));
        let file = Self { path: path.to_owned(), overwrite, partial };
        file.check_place()?;
        Ok(file)
    }

    fn check_place(&self) -> Result<(), Failure> {
        match self.path.symlink_metadata() {
            Ok(found) if !self.overwrite || !found.is_file() => {
                let message = format!("{} is there already", self.path.display());
                Err(Failure::new(Exit::Failure, message).hint("name another file, or add --overwrite"))
            }
            _ => Ok(()),
        }
    }

    fn open(&self) -> Result<File, Failure> {
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&self.partial);
        opened.map_err(|error| self.failed(error))
    }

    /// Makes it durable, then visible.
    async fn place(self, written: tokio::fs::File) -> Result<(), Failure> {
        written.sync_all().await.map_err(|error| self.failed(error))?;
        self.check_place()?;
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let placed = fs::rename(&self.partial, &self.path).and_then(|()| File::open(folder)?.sync_all());
        placed.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Failure {
        Failure::caused(format!("cannot write {}", self.path.display()), error)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Gone already if it was put in its place, or never made.
        let _ = fs::remove_file(&self.partial);
    }
}

impl From<BackupReport> for Verified {
    fn from(report: BackupReport) -> Self {
        Self {
            cluster_id: report.cluster_id,
            narvault: report.narvault,
            schema: report.schema,
            made_at: report.made_at.map(|made_at| made_at.rfc3339()),
            leaves: report.leaves,
            log_root: report.log_root,
            keys: report.keys,
            webhooks: report.webhooks,
            rows: report.rows,
            tables: report.tables,
        }
    }
}

fn fields(verified: &Verified) -> String {
    let filled = verified.tables.iter().filter(|table| table.rows > 0);
    let version = format!("narvault {}, migration {}", verified.narvault, verified.schema);
    Fields::default()
        .with("backup", "whole, not altered, and can be restored")
        .with_some("made at", verified.made_at.as_deref().map(moment))
        .with("made by", version)
        .with("cluster", &verified.cluster_id)
        .with("keys", format!("{}, each opens and makes its public key", verified.keys))
        .with("webhooks", format!("{}, the secret of each opens", verified.webhooks))
        .with("log", format!("{} leaves, which make the root {}", verified.leaves, verified.log_root))
        .with_all("rows", filled.map(|table| format!("{} {}", table.rows, table.table)))
        .text()
}

fn table(listed: &Listed) -> String {
    if listed.backups.is_empty() {
        return "no backups: with `backup.every_hours` the server makes them\n".to_owned();
    }
    let head = ["NAME", "MADE", "SIZE"].map(str::to_owned).to_vec();
    let rows = listed
        .backups
        .iter()
        .map(|backup| vec![backup.name.clone(), moment(&backup.made_at), size(backup.size_bytes)]);
    Table::default().text(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
