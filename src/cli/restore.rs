//! `narvault restore`: puts a backup into an empty database, after reading it to its end.
//!
//! Never touches a database that has rows, and never makes one before the backup was verified.

use clap::Args;
use serde::Serialize;

use super::Context;
use super::backup::{SourceArgs, refused};
use super::failure::Failure;
use super::hardening::harden;
use super::host::{HostArgs, SecretArgs, told};
use super::server;
use super::text::moment;
use crate::db::Db;
use crate::service::{backup_vault, verify_backup};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault restore narvault.backup --config /etc/narvault/narvault.toml")]
pub struct RestoreArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    secret: SecretArgs,
}

#[derive(Serialize)]
struct Restored {
    database: String,
    cluster_id: String,
    made_at: Option<String>,
    rows: u64,
    leaves: u64,
}

pub async fn run(args: RestoreArgs, context: &Context) -> Result<(), Failure> {
    harden()?;
    let config = args.host.load()?;
    let source = args.source.find(&config).await?;
    let vault = backup_vault(source.open().await?).await.map_err(refused)?;
    let secret = args.secret.read(&config, &vault).await?;
    let backup = verify_backup(source.open().await?, secret).await.map_err(refused)?;

    server::prepare_data(&config).map_err(told)?;
    let settings = server::db_settings(&config).map_err(told)?;
    let db = Db::open(&settings).await.map_err(told)?;
    let restored = backup.restore(source.open().await?, &db, context.clock.now()).await;
    db.close().await;
    let rows = restored.map_err(refused)?;

    let shown = config.effective().into_iter().find(|effective| effective.key == "database.url");
    let answer = Restored {
        database: shown.map(|effective| effective.value).unwrap_or_default(),
        cluster_id: backup.report.cluster_id,
        made_at: backup.report.made_at.map(|made_at| made_at.rfc3339()),
        rows,
        leaves: backup.report.leaves,
    };
    context.printer.note(
        "start the server; if it only reads, more was published after the backup was made: stop it, run \
         `narvault recover`, and start it again",
    );
    context.printer.answer(&answer, |answer| {
        let made_at = answer.made_at.as_deref().map(moment).unwrap_or_default();
        format!(
            "{} rows are in {} as they were at {made_at}, with {} leaves of the signature log\n",
            answer.rows, answer.database, answer.leaves
        )
    })
}
