//! `narvault key`: signing keys of a cache.
//!
//! Never prints a secret key: there is no call that gives one.

mod rotation;
mod succession;

pub use succession::text as succession_text;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret;

use super::Context;
use super::args::ListArgs;
use super::ask;
use super::failure::Failure;
use super::list::print_list;
use super::text::{moment, plain};
use crate::api::{KeyCreate, KeyView};

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a signing key in the vault; prints its public key
    Create(CreateArgs),
    /// Take over a key of `nix key generate-secret`; prints its public key
    Import(ImportArgs),
    /// List the keys of a cache
    List(KeyListArgs),
    /// Print the public keys that clients are to trust
    Public(rotation::PublicArgs),
    /// Put a new key in the place of an old one, step by step over weeks; prints the dates
    Rotate(rotation::RotateArgs),
    /// Show the rotation that is under way, or the last one
    Schedule(rotation::ScheduleArgs),
    /// Pause the rotation that is under way
    Pause(rotation::PauseArgs),
    /// Let a paused rotation go on
    Resume(rotation::ResumeArgs),
    /// Give the rotation up that is under way
    Abandon(rotation::AbandonArgs),
    /// Let a key sign that is published and does not yet
    Promote(rotation::PromoteArgs),
    /// End a key's signing; it stays to be trusted
    Retire(rotation::RetireArgs),
    /// Sign everything published again with a key
    Resign(rotation::ResignArgs),
    /// Take a retired key's signatures off everything published
    DropSignatures(rotation::DropArgs),
    /// Say that others may hold a key: it signs nothing any more
    Compromise(rotation::CompromiseArgs),
    /// List signatures under a key's name that the log does not account for
    Unlogged(rotation::UnloggedArgs),
    /// Show what clients are told of keys that come after others, or draft what root keys sign after a compromise
    Succession(succession::SuccessionArgs),
    /// Destroy the secret of a retired or compromised key
    Destroy(rotation::DestroyArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key create main")]
pub struct CreateArgs {
    /// The cache's name
    cache: String,
    /// The key's name, never to be used again [default: made from the cache's name]
    #[arg(long)]
    name: Option<String>,
    /// Only publish it: clients learn to trust it before it signs
    #[arg(long)]
    next: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key import main --file ./cache-key.secret")]
pub struct ImportArgs {
    /// The cache's name
    cache: String,
    /// The file that holds the secret key (`name:base64`), or `-` for stdin
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Only publish it: clients learn to trust it before it signs
    #[arg(long)]
    next: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key list main")]
pub struct KeyListArgs {
    /// The cache's name
    cache: String,
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(command: KeyCommand, context: &Context) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(args) => {
            let body = KeyCreate { name: args.name, import: None, next: args.next };
            create(&args.cache, body, context).await
        }
        KeyCommand::Import(args) => {
            let secret = ask::secret_from_file(&args.file, "secret key")?;
            let import = Some(secret.expose_secret().trim().to_owned());
            create(&args.cache, KeyCreate { name: None, import, next: args.next }, context).await
        }
        KeyCommand::List(args) => list(args, context).await,
        KeyCommand::Public(args) => rotation::public(args, context).await,
        KeyCommand::Rotate(args) => rotation::rotate(args, context).await,
        KeyCommand::Schedule(args) => rotation::schedule(args, context).await,
        KeyCommand::Pause(args) => rotation::pause(&args.cache, true, context).await,
        KeyCommand::Resume(args) => rotation::pause(&args.cache, false, context).await,
        KeyCommand::Abandon(args) => rotation::abandon(args, context).await,
        KeyCommand::Promote(args) => rotation::promote(args, context).await,
        KeyCommand::Retire(args) => rotation::retire(args, context).await,
        KeyCommand::Resign(args) => rotation::resign(args, context).await,
        KeyCommand::DropSignatures(args) => rotation::drop_signatures(args, context).await,
        KeyCommand::Compromise(args) => rotation::compromise(args, context).await,
        KeyCommand::Unlogged(args) => rotation::unlogged(args, context).await,
        KeyCommand::Destroy(args) => rotation::destroy(args, context).await,
        KeyCommand::Succession(args) => succession::run(args, context).await,
    }
}

async fn create(cache: &str, body: KeyCreate, context: &Context) -> Result<(), Failure> {
    let key = context.client()?.key_create(cache, &body).await?;
    context.printer.answer(&key, |key| format!("{}\n", plain(&key.public_key)))?;
    if body.next {
        context.printer.note(&format!(
            "`{}` is published and does not sign yet; `narvault key promote {cache} {}` lets it",
            key.name, key.name
        ));
    } else if key.imported {
        context.printer.note(&format!(
            "`{}` signs for {cache}; now delete every other copy of the secret key",
            key.name
        ));
    } else {
        context
            .printer
            .note(&format!("`{}` signs for {cache}; clients trust it by `trusted-public-keys`", key.name));
    }
    Ok(())
}

async fn list(args: KeyListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let row = |key: &KeyView| {
        let origin = if key.imported { "imported" } else { "made here" };
        vec![key.state.clone(), origin.to_owned(), moment(&key.created_at), key.public_key.clone()]
    };
    let columns = ["STATE", "ORIGIN", "CREATED", "PUBLIC KEY"];
    print_list(context.printer, &args.list, &columns, row, async |query| {
        client.keys(&args.cache, &query).await
    })
    .await
}
