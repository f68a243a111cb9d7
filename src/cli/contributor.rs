//! `narvault contributor`: people, CI jobs and builders.

use clap::{Args, Subcommand, ValueEnum};

use super::Context;
use super::args::{ListArgs, Since};
use super::ask::{self, Unattended};
use super::failure::Failure;
use super::list::print_list;
use super::takedown::{self, QuarantineHow, RestoreHow};
use super::text::{Fields, moment, size};
use crate::api::{ContributorCreate, ContributorEdit, ContributorKeyAdd, ContributorKind, ContributorView};

#[derive(Debug, Subcommand)]
pub enum ContributorCommand {
    /// Add a contributor
    Add(AddArgs),
    /// List the contributors
    List(ContributorListArgs),
    /// Show one contributor
    Show(ShowArgs),
    /// Move a contributor to another group
    Edit(EditArgs),
    /// Refuse every token of a contributor, until `resume`
    Suspend(SuspendArgs),
    /// Undo `suspend`
    Resume(ResumeArgs),
    /// Kill a contributor's tokens, and withdraw what rests on their word alone since then
    Quarantine(QuarantineArgs),
    /// Undo `quarantine`, but for the tokens
    Restore(RestoreArgs),
    /// Forget who a suspended contributor is, for good; what they pushed stays
    Erase(EraseArgs),
    /// Public keys whose signatures count as the contributor's
    #[command(subcommand)]
    Key(ContributorKeyCommand),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor add alice --kind person")]
pub struct AddArgs {
    /// The contributor's name
    name: String,
    /// What it is
    #[arg(long, value_enum)]
    kind: KindArg,
    /// The group it belongs to
    #[arg(long)]
    group: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor list")]
pub struct ContributorListArgs {
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor show alice")]
pub struct ShowArgs {
    /// The contributor's name
    name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor edit alice --group release")]
pub struct EditArgs {
    /// The contributor's name
    name: String,
    /// The group it belongs to from now on
    #[arg(long)]
    group: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor suspend alice")]
pub struct SuspendArgs {
    /// The contributor's name
    name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor resume alice")]
pub struct ResumeArgs {
    /// The contributor's name
    name: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault contributor quarantine ci --since 2026-11-20T00:00:00Z --reason 'runner broken into' --dry-run"
)]
pub struct QuarantineArgs {
    /// The contributor's name
    name: String,
    /// What they pushed and signed since then counts no longer: RFC 3339, or how long ago, such as 7d
    #[arg(long, value_name = "TIME")]
    since: Since,
    #[command(flatten)]
    how: QuarantineHow,
    /// Leave alone tokens that they issued to others, and what came with them
    #[arg(long)]
    keep_issued: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor restore ci --reason 'false alarm'")]
pub struct RestoreArgs {
    /// The contributor's name
    name: String,
    #[command(flatten)]
    how: RestoreHow,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor erase alice --yes")]
pub struct EraseArgs {
    /// The contributor's name
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
pub enum ContributorKeyCommand {
    /// Register a public key
    Add(KeyAddArgs),
    /// Remove a public key; what it signed before stays
    Remove(KeyRemoveArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault contributor key add alice alice-1:5MrQBjJEl8Zaxg7m5rLkWEhCEgPhjmJZVjvyZvHRjYk="
)]
pub struct KeyAddArgs {
    /// The contributor's name
    name: String,
    /// The public key, `name:base64`, as `nix key convert-secret-to-public` prints it
    #[arg(value_name = "PUBLIC-KEY")]
    public_key: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault contributor key remove alice alice-1")]
pub struct KeyRemoveArgs {
    /// The contributor's name
    name: String,
    /// The key's name, before its `:`
    #[arg(value_name = "KEY-NAME")]
    key_name: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Person,
    Ci,
    Builder,
}

impl From<KindArg> for ContributorKind {
    fn from(arg: KindArg) -> Self {
        match arg {
            KindArg::Person => Self::Person,
            KindArg::Ci => Self::Ci,
            KindArg::Builder => Self::Builder,
        }
    }
}

pub async fn run(command: ContributorCommand, context: &Context) -> Result<(), Failure> {
    match command {
        ContributorCommand::Add(args) => add(args, context).await,
        ContributorCommand::List(args) => list(args, context).await,
        ContributorCommand::Show(args) => {
            let contributor = context.client()?.contributor(&args.name).await?;
            context.printer.answer(&contributor, fields)
        }
        ContributorCommand::Edit(args) => {
            edit(&args.name, ContributorEdit { group: Some(args.group), suspended: None }, context).await
        }
        ContributorCommand::Suspend(args) => {
            edit(&args.name, ContributorEdit { group: None, suspended: Some(true) }, context).await?;
            context.printer.note(&format!("hint: undo it with `narvault contributor resume {}`", args.name));
            Ok(())
        }
        ContributorCommand::Resume(args) => {
            edit(&args.name, ContributorEdit { group: None, suspended: Some(false) }, context).await
        }
        ContributorCommand::Quarantine(args) => {
            let client = context.client()?;
            let QuarantineArgs { name, since, how, keep_issued } = args;
            takedown::quarantine(context, &how, Some(since), keep_issued, async |body, query| {
                client.contributor_quarantine(&name, body, query).await
            })
            .await
        }
        ContributorCommand::Restore(RestoreArgs { name, how }) => {
            let client = context.client()?;
            takedown::restore(context, how, async |body| client.contributor_restore(&name, body).await).await
        }
        ContributorCommand::Erase(args) => erase(args, context).await,
        ContributorCommand::Key(ContributorKeyCommand::Add(args)) => {
            let body = ContributorKeyAdd { public_key: args.public_key };
            let contributor = context.client()?.contributor_key_add(&args.name, &body).await?;
            context.printer.answer(&contributor, fields)
        }
        ContributorCommand::Key(ContributorKeyCommand::Remove(args)) => {
            context.client()?.contributor_key_remove(&args.name, &args.key_name).await?;
            context.printer.note(&format!("removed the key {} of {}", args.key_name, args.name));
            Ok(())
        }
    }
}

async fn add(args: AddArgs, context: &Context) -> Result<(), Failure> {
    let body = ContributorCreate { name: args.name, kind: args.kind.into(), group: args.group };
    let contributor = context.client()?.contributor_create(&body).await?;
    context.printer.answer(&contributor, fields)?;
    let name = &contributor.name;
    context
        .printer
        .note(&format!("hint: run `narvault token issue {name} --scope push:CACHE` to let it push"));
    Ok(())
}

async fn list(args: ContributorListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let row = |contributor: &ContributorView| {
        vec![
            contributor.name.clone(),
            kind(contributor).to_owned(),
            contributor.group.clone().unwrap_or_else(|| "-".into()),
            state(contributor).to_owned(),
            contributor.paths.to_string(),
            size(contributor.bytes),
        ]
    };
    let columns = ["NAME", "KIND", "GROUP", "STATE", "PATHS", "SIZE"];
    print_list(context.printer, &args.list, &columns, row, async |query| client.contributors(&query).await)
        .await
}

async fn edit(name: &str, body: ContributorEdit, context: &Context) -> Result<(), Failure> {
    let contributor = context.client()?.contributor_edit(name, &body).await?;
    context.printer.answer(&contributor, fields)
}

async fn erase(args: EraseArgs, context: &Context) -> Result<(), Failure> {
    let question = format!("Erase the name, the addresses and the notes of {}, for good?", args.name);
    ask::confirm(&question, args.yes, Unattended::Refuse)?;
    let erased = context.client()?.contributor_erase(&args.name).await?;
    context.printer.answer(&erased, |erased| {
        Fields::default()
            .with("called from now on", &erased.name)
            .with("audit rows", erased.audit_rows)
            .with("particulars of leaves", erased.log_details)
            .text()
    })
}

fn kind(contributor: &ContributorView) -> &'static str {
    match contributor.kind {
        ContributorKind::Person => "person",
        ContributorKind::Ci => "ci",
        ContributorKind::Builder => "builder",
    }
}

fn state(contributor: &ContributorView) -> &'static str {
    if contributor.suspended { "suspended" } else { "active" }
}

fn fields(contributor: &ContributorView) -> String {
    Fields::default()
        .with("name", &contributor.name)
        .with("id", &contributor.id)
        .with("kind", kind(contributor))
        .with_some("group", contributor.group.as_ref())
        .with("state", state(contributor))
        .with_all("public keys", contributor.public_keys.clone())
        .with("paths", contributor.paths)
        .with("size", size(contributor.bytes))
        .with("created", moment(&contributor.created_at))
        .text()
}
