//! `narvault vault`: the vault that holds the signing keys.
//!
//! Never takes a passphrase as an argument, and never echoes one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use data_encoding::BASE64;
use secrecy::ExposeSecret;

use super::Context;
use super::ask::{self, Unattended};
use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::text::{Fields, moment};
use crate::api::{SlotCreate, SlotView, UnsealRequest, VaultView};
use crate::vault::KeyFile;

#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Show whether the vault is open, and what opens it
    Status(StatusArgs),
    /// Open the vault of the replica that answers
    Unseal(UnsealArgs),
    /// Close the vault of every replica: nothing is signed until an unseal
    Seal(SealArgs),
    /// Add and remove the secrets that open the vault
    #[command(subcommand)]
    Slot(SlotCommand),
}

#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// Add a secret that opens the vault, beside those that do
    Add(AddArgs),
    /// Take a secret's slot away; the last one stays
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault vault slot add --passphrase-file ./passphrase")]
pub struct AddArgs {
    /// The file that holds the passphrase, or `-` for stdin [default: ask for it]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// A key file: 32 random bytes that only you can read
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault vault slot remove 019aabcd-1234-7abc-8def-0123456789ab --yes")]
pub struct RemoveArgs {
    /// The slot's id, as `narvault vault status` shows it
    slot: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
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
    harden()?;
    let client = context.client()?;
    let vault = match command {
        VaultCommand::Slot(SlotCommand::Add(args)) => {
            let slot = client.slot_add(&new_slot(args)?).await?;
            return context.printer.answer(&slot, |slot| format!("{}\n", slot_line(slot)));
        }
        VaultCommand::Slot(SlotCommand::Remove(args)) => {
            let question = format!("Remove slot {}? Its secret will not open the vault any more.", args.slot);
            ask::confirm(&question, args.yes, Unattended::Refuse)?;
            client.slot_remove(&args.slot).await?;
            client.vault().await?
        }
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

fn new_slot(args: AddArgs) -> Result<SlotCreate, Failure> {
    if let Some(path) = &args.key_file {
        // The same checks as at the server's start: size, owner, mode.
        KeyFile::read(path).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let bytes = std::fs::read(path)
            .map_err(|error| Failure::caused(format!("cannot read {}", path.display()), error))?;
        return Ok(SlotCreate { passphrase: None, key_file: Some(BASE64.encode(&bytes)) });
    }
    let passphrase = match &args.passphrase_file {
        Some(file) => ask::secret_from_file(file, "passphrase")?,
        None if ask::is_attended() => {
            let passphrase = ask::prompt_secret("New passphrase, at least 14 characters, not shown")?;
            let again = ask::prompt_secret("The same once more")?;
            if passphrase.expose_secret() != again.expose_secret() {
                return Err(Failure::new(Exit::Usage, "the two passphrases differ; nothing was changed"));
            }
            passphrase
        }
        None => {
            return Err(Failure::new(Exit::Usage, "nobody is there to type a passphrase")
                .hint("add `--passphrase-file FILE` or `--key-file FILE`"));
        }
    };
    Ok(SlotCreate { passphrase: Some(passphrase.expose_secret().to_owned()), key_file: None })
}

fn fields(vault: &VaultView) -> String {
    let secrets = match vault.slots.as_slice() {
        [only] => format!(
            "one secret opens the vault, a {}; if it is lost, so is every signing key: \
             add another with `narvault vault slot add`",
            only.kind
        ),
        slots => {
            format!("any one of {} secrets opens the vault; one that is lost can be replaced", slots.len())
        }
    };
    Fields::default()
        .with("state", &vault.state)
        .with("sealed by hand", if vault.sealed_by_hand { "yes" } else { "no" })
        .with_all("slots", vault.slots.iter().map(slot_line))
        .with("opens by", secrets)
        .text()
}

fn slot_line(slot: &SlotView) -> String {
    format!("{} {}, since {}", slot.kind, slot.id, moment(&slot.created_at))
}
