//! `narvault quarantine`: which there are, and what each withdrew. They are begun and ended by `contributor`, `token` and
//! `path`.

use clap::{Args, Subcommand};

use super::Context;
use super::args::ListArgs;
use super::failure::Failure;
use super::list::print_list;
use super::text::moment;
use crate::api::{QuarantineView, WithdrawalView};

#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// List quarantines, restored ones too
    List(QuarantineListArgs),
    /// List the paths that one withdrew
    Paths(PathsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault quarantine list --order desc")]
pub struct QuarantineListArgs {
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault quarantine paths 019aabcd-1234-7abc-8def-0123456789ab --all")]
pub struct PathsArgs {
    /// The quarantine's id
    id: String,
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(command: QuarantineCommand, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        QuarantineCommand::List(args) => {
            let row = |one: &QuarantineView| {
                vec![
                    one.id.clone(),
                    one.state.clone(),
                    moment(&one.begun_at),
                    one.since.as_deref().map_or_else(|| "always".into(), moment),
                    format!("{} {}", one.kind, one.subject),
                    one.reason.clone(),
                ]
            };
            let columns = ["ID", "STATE", "BEGUN", "SINCE", "OF", "REASON"];
            print_list(context.printer, &args.list, &columns, row, async |query| {
                client.quarantines(&query).await
            })
            .await
        }
        QuarantineCommand::Paths(args) => {
            let row = |one: &WithdrawalView| {
                vec![
                    one.ended.clone().unwrap_or_else(|| "withdrawn".into()),
                    one.cause.clone(),
                    moment(&one.withdrawn_at),
                    one.cache.clone(),
                    one.store_path.clone(),
                ]
            };
            let columns = ["STATE", "CAUSE", "WITHDRAWN", "CACHE", "PATH"];
            print_list(context.printer, &args.list, &columns, row, async |query| {
                client.quarantine_paths(&args.id, &query).await
            })
            .await
        }
    }
}
