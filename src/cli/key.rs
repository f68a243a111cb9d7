//! `narvault key`: signing keys of a cache.
//!
//! Never prints a secret key: there is no call that gives one.

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
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key create main")]
pub struct CreateArgs {
    /// The cache's name
    cache: String,
    /// The key's name, never to be used again [default: made from the cache's name]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key import main --file ./cache-key.secret")]
pub struct ImportArgs {
    /// The cache's name
    cache: String,
    /// The file that holds the secret key (`name:base64`), or `-` for stdin
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
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
            create(&args.cache, KeyCreate { name: args.name, import: None }, context).await
        }
        KeyCommand::Import(args) => {
            let secret = ask::secret_from_file(&args.file, "secret key")?;
            let import = Some(secret.expose_secret().trim().to_owned());
            create(&args.cache, KeyCreate { name: None, import }, context).await
        }
        KeyCommand::List(args) => list(args, context).await,
    }
}

async fn create(cache: &str, body: KeyCreate, context: &Context) -> Result<(), Failure> {
    let key = context.client()?.key_create(cache, &body).await?;
    context.printer.answer(&key, |key| format!("{}\n", plain(&key.public_key)))?;
    if key.imported {
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
