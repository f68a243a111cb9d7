//! `narvault vault`: the vault that holds the signing keys.
//!
//! Never takes a passphrase as an argument, and never echoes one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret;

use super::Context;
use super::ask::{self, Unattended};
use super::failure::{Exit, Failure};
use super::text::{Fields, moment};
use crate::api::{UnsealRequest, VaultView};

#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Show whether the vault is open, and what opens it
    Status(StatusArgs),
    /// Open the vault of the replica that answers
    Unseal(UnsealArgs),
    /// Close the vault of every replica: nothing is signed until an unseal
    Seal(SealArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault vault status")]
pub struct StatusArgs {}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault vault unseal --passphrase-file ./passphrase")]
pub struct UnsealArgs {
    /// The file that holds the passphrase, or `-` for stdin [default: ask for it]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Try the server's own key file or passphrase file again
    #[arg(long, conflicts_with = "passphrase_file")]
    configured: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault vault seal --yes")]
pub struct SealArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(command: VaultCommand, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let vault = match command {
        VaultCommand::Status(StatusArgs {}) => client.vault().await?,
        VaultCommand::Unseal(args) => client.vault_unseal(&unseal_request(args)?).await?,
        VaultCommand::Seal(args) => {
            let question = "Seal the vault? Nothing is signed until it is unsealed by hand.";
            ask::confirm(question, args.yes, Unattended::Proceed)?;
            client.vault_seal().await?
        }
    };
    context.printer.answer(&vault, fields)
}

fn unseal_request(args: UnsealArgs) -> Result<UnsealRequest, Failure> {
    if args.configured {
        return Ok(UnsealRequest { passphrase: None });
    }
    let passphrase = match &args.passphrase_file {
        Some(file) => ask::secret_from_file(file, "passphrase")?,
        None if ask::is_attended() => ask::prompt_secret("Passphrase, not shown")?,
        None => {
            return Err(Failure::new(Exit::Usage, "nobody is there to type a passphrase")
                .hint("add `--passphrase-file FILE`, or `--configured`"));
        }
    };
    Ok(UnsealRequest { passphrase: Some(passphrase.expose_secret().to_owned()) })
}

fn fields(vault: &VaultView) -> String {
    let slots = vault
        .slots
        .iter()
        .map(|slot| format!("{} {}, since {}", slot.kind, slot.id, moment(&slot.created_at)));
    Fields::default()
        .with("state", &vault.state)
        .with("sealed by hand", if vault.sealed_by_hand { "yes" } else { "no" })
        .with_all("slots", slots)
        .text()
}
