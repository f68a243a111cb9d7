//! `narvault admin`: what only the server's own host may do, with the data folder at hand.
//!
//! Never takes a secret as an argument.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use secrecy::ExposeSecret as _;

use super::Context;
use super::failure::Failure;
use super::hardening::harden;
use super::host::{HostArgs, SecretArgs, told};
use super::{ask, vault};
use crate::access::ContributorName;
use crate::service::{Call, FIRST_ADMIN, NewSlot};

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Print a new one-time secret for `narvault login --claim`
    Claim(ClaimArgs),
    /// Give the vault another passphrase, with a secret that opens it, when no token is left to unseal it with
    AddPassphrase(AddPassphraseArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault admin claim --data /var/lib/narvault")]
pub struct ClaimArgs {
    #[command(flatten)]
    pub host: HostArgs,
    /// The contributor who gets the admin token
    #[arg(long = "for", value_name = "NAME", default_value = FIRST_ADMIN)]
    pub contributor: ContributorName,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault admin add-passphrase --share-file ./share-1-of-3 --share-file ./share-2-of-3 --data /var/lib/narvault"
)]
pub struct AddPassphraseArgs {
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// The file that holds the new passphrase [default: ask for it]
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Added {
    slot: String,
}

#[derive(Serialize)]
struct Claim {
    claim: String,
    login: String,
}

pub async fn run(command: AdminCommand, context: &Context) -> Result<(), Failure> {
    match command {
        AdminCommand::Claim(args) => claim(args, context).await,
        AdminCommand::AddPassphrase(args) => add_passphrase(args, context).await,
    }
}

async fn add_passphrase(args: AddPassphraseArgs, context: &Context) -> Result<(), Failure> {
    harden()?;
    let passphrase = match &args.new_passphrase_file {
        Some(file) => ask::secret_from_file(file, "passphrase")?,
        None => vault::new_passphrase("add `--new-passphrase-file FILE`")?,
    };
    let new = NewSlot::passphrase(passphrase.expose_secret()).map_err(told)?;
    let given = args.secret.given()?;
    let (config, service) = args.host.open(context).await?;
    let added = async {
        let secret = match given {
            Some(secret) => secret,
            None => args.secret.read(&config, &service.vault_rows().await.map_err(told)?).await?,
        };
        service.open_on_host(secret).await.map_err(told)?;
        service.add_slot(&Call::host(), new).await.map_err(told)
    };
    let added = added.await;
    service.shut_down().await;
    let slot = added?.slot.id;
    context.printer.note("`narvault vault unseal` opens a server with it, and needs no token");
    context.printer.answer(&Added { slot }, |added| format!("passphrase {}\n", added.slot))
}

async fn claim(args: ClaimArgs, context: &Context) -> Result<(), Failure> {
    let (config, service) = args.host.open(context).await?;
    let secret = service.make_admin_claim(&Call::host(), &args.contributor).await;
    service.shut_down().await;
    let secret = secret.map_err(told)?;
    let claim = secret.expose().to_owned();
    let login = format!("narvault login {} --claim {claim}", config.server.public_url.as_str());
    context.printer.note("this works once, within an hour:");
    context.printer.answer(&Claim { claim, login }, |claim| format!("{}\n", claim.login))
}
