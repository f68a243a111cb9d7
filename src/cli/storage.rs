//! `narvault storage`: what lies in the storage, looked at on the server's own host, beside a running server or not.
//!
//! Never deletes an object itself: what is to go is asked for in the rows, and a server does it.

mod scrub;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Context;
use super::args::Lifetime;
use super::failure::Failure;
use super::host::{HostArgs, told};
use super::text::{Table, moment, size};
use crate::service::{Call, OrphanKind, Orphans, Service};

#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// List objects that no row of the database accounts for
    Orphans(OrphansArgs),
    /// Hold narinfos, rows and the signature log against each other
    Scrub(Box<scrub::ScrubArgs>),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault storage orphans --data /var/lib/narvault")]
pub struct OrphansArgs {
    #[command(flatten)]
    pub host: HostArgs,
    /// Only what was last written longer ago than this
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub older_than: Lifetime,
    /// Have the server delete them
    #[arg(long)]
    pub delete: bool,
}

#[derive(Serialize)]
struct Listed {
    objects: Vec<ListedObject>,
    /// Of all orphans, named or not.
    count: u64,
    size_bytes: u64,
    /// How many go, with `--delete`.
    deleting: u64,
}

#[derive(Serialize)]
struct ListedObject {
    object: String,
    kind: &'static str,
    size_bytes: u64,
    modified: String,
}

pub async fn run(command: StorageCommand, context: &Context) -> Result<(), Failure> {
    match command {
        StorageCommand::Orphans(args) => orphans(args, context).await,
        StorageCommand::Scrub(args) => scrub::scrub(*args, context).await,
    }
}

async fn orphans(args: OrphansArgs, context: &Context) -> Result<(), Failure> {
    let (_, service) = args.host.open(context).await?;
    let age = Duration::from_secs(args.older_than.as_seconds());
    let found = find(&service, age, args.delete).await;
    service.shut_down().await;
    let (found, deleting) = found.map_err(told)?;

    if deleting > 0 {
        context.printer.note(&format!("{deleting} objects go as soon as a server runs"));
    }
    let stay = found.objects.iter().filter(|orphan| orphan.kind == OrphanKind::Unmeasured).count();
    if args.delete && stay > 0 {
        context.printer.warning(
            &format!("{stay} NARs have no row, so an upload of the same would not wait for their deletion"),
            "push their paths again, or delete them in the storage while no server runs",
        );
    }
    let named = found.objects.len() as u64;
    if found.count > named {
        context.printer.note(&format!("{named} of {} are listed", found.count));
    }
    context.printer.answer(&listed(&found, deleting), table)
}

async fn find(service: &Service, age: Duration, delete: bool) -> crate::service::Result<(Orphans, u64)> {
    let found = service.orphans(&Call::host(), age).await?;
    let deleting = if delete { service.delete_orphans(&Call::host(), &found.objects, age).await? } else { 0 };
    Ok((found, deleting))
}

fn listed(found: &Orphans, deleting: u64) -> Listed {
    let objects = found.objects.iter().map(|orphan| ListedObject {
        object: orphan.name(),
        kind: orphan.kind.as_str(),
        size_bytes: orphan.size_bytes,
        modified: orphan.modified.rfc3339(),
    });
    Listed { objects: objects.collect(), count: found.count, size_bytes: found.size_bytes, deleting }
}

fn table(listed: &Listed) -> String {
    if listed.objects.is_empty() {
        return "no orphans: a row accounts for every object\n".to_owned();
    }
    let head = ["OBJECT", "KIND", "SIZE", "MODIFIED"].map(str::to_owned).to_vec();
    let rows = listed.objects.iter().map(|row| {
        vec![row.object.clone(), row.kind.to_owned(), size(row.size_bytes), moment(&row.modified)]
    });
    Table::default().text(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
