//! `narvault path`: store paths in a cache, and who vouches for them.

use clap::{Args, Subcommand};

use super::Context;
use super::affected::{self, AffectedArgs};
use super::args::{ListArgs, PathArg, Since};
use super::ask::{self, Unattended};
use super::failure::{Exit, Failure};
use super::list::print_list;
use super::takedown::{self, QuarantineHow, RestoreHow};
use super::text::{Fields, moment, plain, size};
use crate::api::{PathActView, PathDelete, PathDeleted, PathQuery, PathSummary, PathView};
use crate::client::{Client, Error as ClientError};

#[derive(Debug, Subcommand)]
pub enum PathCommand {
    /// List paths, with who pushed them
    List(PathListArgs),
    /// Show one path: hashes, signatures, every piece of evidence
    Show(ShowArgs),
    /// Withdraw a path and remove its bytes, at once
    Delete(DeleteArgs),
    /// Withdraw a path, whoever vouches for it, and keep its bytes unserved
    Quarantine(QuarantineArgs),
    /// Undo `quarantine`
    Restore(RestoreArgs),
    /// List what was withdrawn from a cache, and which of it this machine holds
    Affected(AffectedArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault path list main --contributor ci --since 7d")]
pub struct PathListArgs {
    /// The cache's name
    cache: String,
    /// Only those that this contributor gave evidence for
    #[arg(long, value_name = "NAME")]
    contributor: Option<String>,
    /// Only those that a push with this token gave evidence for
    #[arg(long = "token-id", value_name = "ID")]
    token_id: Option<String>,
    /// Only those that changed since then: RFC 3339, or how long ago, such as 7d
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Only those in this state
    #[arg(long, value_parser = ["published", "withdrawn", "deleted", "pending", "conflict"])]
    state: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault path show main mmjhp110f3wf5kp5q70rc7p49yln4qzy")]
pub struct ShowArgs {
    /// The cache's name
    cache: String,
    /// `/nix/store/…`, its base name, or its 32-character hash
    path: PathArg,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault path delete main mmjhp110f3wf5kp5q70rc7p49yln4qzy --reason 'holds a password' --yes"
)]
pub struct DeleteArgs {
    /// The cache's name
    cache: String,
    /// `/nix/store/…`, its base name, or its 32-character hash
    path: PathArg,
    /// Why, for the audit
    #[arg(long)]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault path quarantine main mmjhp110f3wf5kp5q70rc7p49yln4qzy --reason 'under suspicion' --dry-run"
)]
pub struct QuarantineArgs {
    /// The cache's name
    cache: String,
    /// `/nix/store/…`, its base name, or its 32-character hash
    path: PathArg,
    #[command(flatten)]
    how: QuarantineHow,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault path restore main mmjhp110f3wf5kp5q70rc7p49yln4qzy --reason 'it was fine'"
)]
pub struct RestoreArgs {
    /// The cache's name
    cache: String,
    /// `/nix/store/…`, its base name, or its 32-character hash
    path: PathArg,
    #[command(flatten)]
    how: RestoreHow,
}

pub async fn run(command: PathCommand, context: &Context) -> Result<(), Failure> {
    match command {
        PathCommand::List(args) => list(args, context).await,
        PathCommand::Show(args) => {
            let path = show(&context.client()?, &args.cache, args.path).await?;
            context.printer.answer(&path, fields)
        }
        PathCommand::Delete(args) => delete(args, context).await,
        PathCommand::Quarantine(QuarantineArgs { cache, path, how }) => {
            let client = context.client()?;
            takedown::quarantine(context, &how, None, false, async |body, query| {
                client.path_quarantine(&cache, path.0.as_str(), body, query).await
            })
            .await
        }
        PathCommand::Restore(RestoreArgs { cache, path, how }) => {
            let client = context.client()?;
            takedown::restore(context, how, async |body| {
                client.path_restore(&cache, path.0.as_str(), body).await
            })
            .await
        }
        PathCommand::Affected(args) => affected::run(args, context).await,
    }
}

async fn list(args: PathListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let since = args.since.map(|since| since.rfc3339(context.clock.now()));
    let row = |path: &PathSummary| {
        vec![
            path.state.clone(),
            size(path.file_size),
            path.contributor.clone(),
            moment(&path.published_at),
            path.store_path.clone(),
        ]
    };
    let columns = ["STATE", "SIZE", "CONTRIBUTOR", "PUBLISHED", "PATH"];
    print_list(context.printer, &args.list, &columns, row, async |query| {
        let query = PathQuery {
            contributor: args.contributor.clone(),
            token: args.token_id.clone(),
            since: since.clone(),
            state: args.state.clone(),
            cursor: query.cursor,
            limit: query.limit,
            order: query.order,
        };
        client.paths(&args.cache, &query).await
    })
    .await
}

async fn delete(args: DeleteArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    if !args.yes && ask::is_attended() {
        let path = show(&client, &args.cache, args.path).await?;
        context.printer.note_lines(&fields(&path));
    }
    ask::confirm("Withdraw this path and remove its bytes?", args.yes, Unattended::Refuse)?;
    let body = PathDelete { reason: args.reason };
    let deleted = client.path_delete(&args.cache, args.path.0.as_str(), &body).await;
    let deleted = deleted.map_err(|error| not_found_hint(error, &args.cache))?;
    context.printer.answer(&deleted, deleted_text)?;
    if !deleted.gone {
        context.printer.note("it is no longer served; the server goes on removing its bytes from storage");
    }
    if !deleted.file_shared_with.is_empty() {
        context.printer.warning(
            "other paths have the same file, which therefore stays",
            "delete those too, if it must go",
        );
    }
    Ok(())
}

async fn show(client: &Client, cache: &str, path: PathArg) -> Result<PathView, Failure> {
    client.path(cache, path.0.as_str()).await.map_err(|error| not_found_hint(error, cache))
}

fn not_found_hint(error: ClientError, cache: &str) -> Failure {
    let not_found = error.is_not_found();
    let failure = Failure::from(error);
    match failure {
        Failure::Told { exit: Exit::Failure, .. } if not_found => {
            failure.hint(format!("run `narvault path list {cache}` to see which there are"))
        }
        _ => failure,
    }
}

fn deleted_text(deleted: &PathDeleted) -> String {
    Fields::default()
        .with("deleted", &deleted.store_path)
        .with("bytes", if deleted.gone { "removed" } else { "being removed" })
        .with_all("file shared with", deleted.file_shared_with.clone())
        .with_all("still referred to by", deleted.referrers.clone())
        .text()
}

/// What one leaf tells of the path.
fn act(act: &PathActView) -> String {
    let mut text = format!("leaf {}: {} at {}", act.log_index, act.event, moment(&act.at));
    let by = act.contributor.as_ref().or(act.contributor_id.as_ref());
    for (word, part) in [
        ("by", by),
        ("with token", act.token_id.as_ref()),
        ("key", act.key.as_ref()),
        ("from", act.address.as_ref()),
        ("client", act.client.as_ref()),
        ("because", act.reason.as_ref()),
    ] {
        text.extend(part.map(|part| format!(", {word} {part}")));
    }
    text
}

fn fields(path: &PathView) -> String {
    let signatures = path.signatures.iter().map(|signature| match signature.log_index {
        Some(index) => format!("{} (log index {index})", signature.key),
        None => format!("{} (made elsewhere)", signature.key),
    });
    let evidence = path.evidence.iter().map(|evidence| {
        let void = if evidence.void { ", void" } else { "" };
        let token = evidence.token_id.as_ref().map(|id| format!(", token {id}")).unwrap_or_default();
        format!("{} {} at {}{token}{void}", evidence.kind, evidence.source, moment(&evidence.at))
    });
    let history = path.history.iter().map(act);
    let conflicts = path.conflicts.iter().map(|conflict| {
        format!(
            "{} claimed {} at {}, token {}",
            conflict.contributor,
            conflict.nar_hash,
            moment(&conflict.at),
            conflict.token_id
        )
    });
    Fields::default()
        .with("path", &path.store_path)
        .with("state", plain(&path.state))
        .with("NAR hash", &path.nar_hash)
        .with("NAR size", size(path.nar_size))
        .with("file", &path.url)
        .with("file size", size(path.file_size))
        .with_all("references", path.references.clone())
        .with_some("deriver", path.deriver.as_ref())
        .with_some("content address", path.ca.as_ref())
        .with_all("signatures", signatures)
        .with_all("evidence", evidence)
        .with_all("conflicts", conflicts)
        .with_all("history", history)
        .with_all("undeclared references", path.undeclared_references.clone())
        .with_all("unfound references", path.unfound_references.clone())
        .with("published", moment(&path.published_at))
        .with("changed", moment(&path.changed_at))
        .text()
}
