//! `narvault vault`: the vault that holds the signing keys.
//!
//! Never takes a passphrase or a share as an argument, and never echoes one.

mod rekey;
mod shares;
mod words;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data_encoding::BASE64;
use secrecy::{ExposeSecret, SecretString};

use super::Context;
use super::ask::{self, Unattended};
use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::text::{Fields, moment, plain};
use crate::api::{
    KekRotationView, KmsSlot, KmsWaitView, PassphraseReplace, SlotCreate, SlotView, UnsealRequest, VaultView,
};
use crate::client::Client;
use crate::vault::{KeyFile, ShareCount};

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
    /// Change a passphrase that opens the vault
    #[command(subcommand)]
    Passphrase(PassphraseCommand),
    /// Seal every key anew, with another key-encryption key
    RotateKek(rekey::RotateKekArgs),
    /// Put another root key in the place of the one that all slots wrap
    RotateRoot(rekey::RotateRootArgs),
}

#[derive(Debug, Subcommand)]
pub enum PassphraseCommand {
    /// Put another passphrase in the place of one, at once or not at all
    Change(ChangeArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault vault passphrase change --former-file ./passphrase --new-file ./new-passphrase"
)]
pub struct ChangeArgs {
    /// The file that holds the passphrase that is to end [default: ask for it]
    #[arg(long, value_name = "FILE")]
    former_file: Option<PathBuf>,
    /// The file that holds the new one [default: ask for it]
    #[arg(long, value_name = "FILE")]
    new_file: Option<PathBuf>,
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
    /// A key in KMS, by its ARN, id or alias; the server uses it with AWS credentials of its own
    #[arg(long, value_name = "KEY-ID", conflicts_with_all = ["passphrase_file", "key_file"])]
    kms: Option<String>,
    /// Make a key and split it: K of the N shares, which are shown once, open the vault
    #[arg(long, value_name = "K/N", conflicts_with_all = ["key_file", "passphrase_file", "kms"])]
    shares: Option<ShareCount>,
    /// Write each share to a file of its own in this folder, instead of to stdout
    #[arg(long, value_name = "FOLDER", requires = "shares")]
    out_dir: Option<PathBuf>,
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
    /// Try the server's own key file, passphrase file and KMS again
    #[arg(long, conflicts_with = "passphrase_file")]
    configured: bool,
    /// Hand in a share, and be asked for it
    #[arg(long, conflicts_with_all = ["configured", "passphrase_file"])]
    share: bool,
    /// Hand in the share that this file holds, or `-` for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["configured", "passphrase_file", "share"])]
    share_file: Option<PathBuf>,
    /// Make the replica that answers forget the shares that were handed in
    #[arg(long, conflicts_with_all = ["configured", "passphrase_file", "share", "share_file"])]
    cancel_shares: bool,
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
        VaultCommand::Slot(SlotCommand::Add(args)) => return add_slot(args, &client, context).await,
        VaultCommand::Slot(SlotCommand::Remove(args)) => {
            let question = format!("Remove slot {}? Its secret will not open the vault any more.", args.slot);
            ask::confirm(&question, args.yes, Unattended::Refuse)?;
            client.slot_remove(&args.slot).await?;
            client.vault().await?
        }
        VaultCommand::Passphrase(PassphraseCommand::Change(args)) => {
            let slot = client.passphrase_change(&passphrase_change(args)?).await?;
            context
                .printer
                .note("where a server has the former one in its `vault.passphrase_file`, replace it there");
            return context.printer.answer(&slot, |slot| format!("{}\n", slot_line(slot)));
        }
        VaultCommand::RotateKek(args) => return rekey::rotate_kek(args, context).await,
        VaultCommand::RotateRoot(args) => return rekey::rotate_root(args, context).await,
        VaultCommand::Status(StatusArgs {}) => client.vault().await?,
        VaultCommand::Unseal(args) if args.cancel_shares => client.vault_shares_cancel().await?,
        VaultCommand::Unseal(args) => unseal(&unseal_request(args)?, &client, context).await?,
        VaultCommand::Seal(args) => {
            let question = "Seal the vault? Nothing is signed until it is unsealed by hand.";
            ask::confirm(question, args.yes, Unattended::Proceed)?;
            client.vault_seal().await?
        }
    };
    context.printer.answer(&vault, fields)
}

async fn unseal(request: &UnsealRequest, client: &Client, context: &Context) -> Result<VaultView, Failure> {
    match client.vault_unseal(request).await {
        // A passphrase is right enough by itself, and who has a token that ran out gets no other one while sealed.
        Err(error) if error.status() == Some(401) && request.passphrase.is_some() => {
            let anyone = context.client_of(context.server(None)?, None)?;
            Ok(anyone.vault_unseal(request).await?)
        }
        answered => Ok(answered?),
    }
}

fn unseal_request(args: UnsealArgs) -> Result<UnsealRequest, Failure> {
    if args.configured {
        return Ok(UnsealRequest::default());
    }
    if args.share || args.share_file.is_some() {
        let share = shares::given(args.share_file.as_deref())?;
        return Ok(UnsealRequest {
            share: Some(share.expose_secret().to_owned()),
            ..UnsealRequest::default()
        });
    }
    let passphrase = match &args.passphrase_file {
        Some(file) => ask::secret_from_file(file, "passphrase")?,
        None if ask::is_attended() => ask::prompt_secret("Passphrase, not shown")?,
        None => {
            return Err(Failure::new(Exit::Usage, "nobody is there to type a passphrase")
                .hint("add `--passphrase-file FILE`, `--share-file FILE`, or `--configured`"));
        }
    };
    let passphrase = Some(passphrase.expose_secret().to_owned());
    Ok(UnsealRequest { passphrase, ..UnsealRequest::default() })
}

async fn add_slot(args: AddArgs, client: &Client, context: &Context) -> Result<(), Failure> {
    if let Some(count) = args.shares {
        return shares::add_slot(count, args.out_dir.as_deref(), client, context).await;
    }
    let added = client.slot_add(&new_slot(args)?).await?;
    if let Some(key) = &added.kms_key {
        context.printer.note(&format!(
            "a server opens by this slot at its start if its configuration has `vault.kms.key_id = \"{key}\"`"
        ));
    }
    context
        .printer
        .answer(&added, |added| format!("{} {}, since {}\n", added.kind, added.id, moment(&added.created_at)))
}

fn new_slot(args: AddArgs) -> Result<SlotCreate, Failure> {
    if let Some(path) = &args.key_file {
        let bytes = read_key_file(path)?;
        return Ok(SlotCreate { key_file: Some(BASE64.encode(&bytes)), ..SlotCreate::default() });
    }
    if let Some(key_id) = args.kms {
        return Ok(SlotCreate { kms: Some(KmsSlot { key_id }), ..SlotCreate::default() });
    }
    let passphrase = match &args.passphrase_file {
        Some(file) => ask::secret_from_file(file, "passphrase")?,
        None => new_passphrase(
            "add `--passphrase-file FILE`, `--key-file FILE`, `--kms KEY-ID` or `--shares K/N`",
        )?,
    };
    let passphrase = Some(passphrase.expose_secret().to_owned());
    Ok(SlotCreate { passphrase, ..SlotCreate::default() })
}

fn passphrase_change(args: ChangeArgs) -> Result<PassphraseReplace, Failure> {
    let hint = "add `--former-file FILE` and `--new-file FILE`";
    let former = match &args.former_file {
        Some(file) => ask::secret_from_file(file, "former passphrase")?,
        None if ask::is_attended() => ask::prompt_secret("The passphrase until now, not shown")?,
        None => return Err(Failure::new(Exit::Usage, "nobody is there to type a passphrase").hint(hint)),
    };
    let new = match &args.new_file {
        Some(file) => ask::secret_from_file(file, "passphrase")?,
        None => new_passphrase(hint)?,
    };
    let [former, new] = [former, new].map(|text| text.expose_secret().to_owned());
    Ok(PassphraseReplace { former, new })
}

/// A passphrase that somebody types twice. `hint` says what to do where nobody can.
pub(super) fn new_passphrase(hint: &str) -> Result<SecretString, Failure> {
    if !ask::is_attended() {
        return Err(Failure::new(Exit::Usage, "nobody is there to type a passphrase").hint(hint));
    }
    let passphrase = ask::prompt_secret("New passphrase, at least 14 characters, not shown")?;
    let again = ask::prompt_secret("The same once more")?;
    if passphrase.expose_secret() != again.expose_secret() {
        return Err(Failure::new(Exit::Usage, "the two passphrases differ; nothing was changed"));
    }
    Ok(passphrase)
}

/// The bytes of a key file, after the same checks as at the server's start: size, owner, mode.
fn read_key_file(path: &Path) -> Result<Vec<u8>, Failure> {
    KeyFile::read(path).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    std::fs::read(path).map_err(|error| Failure::caused(format!("cannot read {}", path.display()), error))
}

fn fields(vault: &VaultView) -> String {
    Fields::default()
        .with("state", &vault.state)
        .with("sealed by hand", if vault.sealed_by_hand { "yes" } else { "no" })
        .with_some("waits for", vault.kms_wait.as_ref().map(kms_wait))
        .with_all("slots", vault.slots.iter().map(slot_line))
        .with_some("shares", shares::progress(vault))
        .with("opens by", words::opens_by(&vault.slots))
        .with_all("if lost", words::if_lost(&vault.slots))
        .with("root key", format!("number {}", vault.root_version))
        .with("sealed with", sealed_with(vault))
        .with_some("rotation", vault.kek_rotation.as_ref().map(rotation))
        .with_all("damaged", damaged(vault))
        .text()
}

fn kms_wait(wait: &KmsWaitView) -> String {
    let KmsWaitView { key, since, said } = wait;
    format!("KMS to open it with {}, asked since {}: {}", plain(key), moment(since), plain(said))
}

fn sealed_with(vault: &VaultView) -> String {
    let kek = format!("key-encryption key {}", vault.kek_version);
    match vault.rows_behind {
        0 => kek,
        behind => format!("{kek}; {behind} keys and webhooks still with an older one"),
    }
}

fn rotation(rotation: &KekRotationView) -> String {
    let KekRotationView { kek_version, state, total, done, .. } = rotation;
    match &rotation.ended_at {
        Some(at) => format!("to key-encryption key {kek_version}: {}, {}", plain(state), moment(at)),
        None => format!("to key-encryption key {kek_version}: {done} of {total} are sealed anew"),
    }
}

fn damaged(vault: &VaultView) -> impl Iterator<Item = String> {
    let names = vault.kek_rotation.iter().flat_map(|rotation| &rotation.damaged);
    names.map(|name| format!("{} does not open, and keeps an older key-encryption key", plain(name)))
}

fn slot_line(slot: &SlotView) -> String {
    let key = slot.kms_key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
    let line = format!("{} {}, since {}{key}", slot.kind, slot.id, moment(&slot.created_at));
    match slot.shares {
        None => line,
        Some(count) => format!("{line}: {}", shares::needs(count)),
    }
}
