//! `narvault vault rotate-kek` and `rotate-root`: other keys in the places of the vault's own.
//!
//! Never takes a secret as an argument; the server does the work, and goes on with it after this command has ended.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use data_encoding::BASE64;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use secrecy::ExposeSecret;

use super::{fields, read_key_file};
use crate::api::{RootRotate, VaultView};
use crate::cli::Context;
use crate::cli::ask::{self, Unattended};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Printer;
use crate::client::Client;

/// Between two looks at a rotation that is waited for.
const WAIT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(after_help = "\
Everything new is sealed with another key at once; what is there follows in the background, and nothing waits for it.

Example:
  narvault vault rotate-kek --wait")]
pub struct RotateKekArgs {
    /// Return when nothing is sealed with an older one any more
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each slot that stays needs its secret: give it here, unless it is what the server is configured with. A slot whose
secret is lost or stolen is named with --drop-slot. After a theft add --with-kek. Other replicas open the vault anew
with what they are configured with, or seal.

Example:
  narvault vault rotate-root --key-file ./new.key --drop-slot 019aabcd-1234-7abc-8def-0123456789ab --with-kek")]
pub struct RotateRootArgs {
    /// A file that holds the passphrase of a slot that stays, or `-` for stdin; may be given again
    #[arg(long, value_name = "FILE")]
    passphrase_file: Vec<PathBuf>,
    /// The key file of a slot that stays; may be given again
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// A slot that goes, by its id; may be given again
    #[arg(long, value_name = "SLOT")]
    drop_slot: Vec<String>,
    /// Seal what is there anew, too: later copies of the database then say nothing to whoever has an older one
    #[arg(long)]
    with_kek: bool,
    /// Return when nothing is sealed with an older key any more
    #[arg(long, requires = "with_kek")]
    wait: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn rotate_kek(args: RotateKekArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let vault = client.vault_rotate_kek().await?;
    answer(&client, vault, args.wait, context).await
}

pub async fn rotate_root(args: RotateRootArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let body = request(&args, &client.vault().await?)?;
    let question = match args.drop_slot.as_slice() {
        [] => "Rotate the vault's root key?".to_owned(),
        dropped => format!(
            "Rotate the vault's root key, and drop {}? Nothing but a copy from before opens with it then.",
            dropped.join(", ")
        ),
    };
    ask::confirm(&question, args.yes, Unattended::Refuse)?;
    let vault = client.vault_rotate_root(&body).await?;
    answer(&client, vault, args.wait, context).await?;
    if !args.with_kek {
        context.printer.note(
            "hint: what is there is still sealed as it was; after a theft, `narvault vault rotate-kek` changes that",
        );
    }
    Ok(())
}

fn request(args: &RotateRootArgs, vault: &VaultView) -> Result<RootRotate, Failure> {
    let mut body =
        RootRotate { drop_slots: args.drop_slot.clone(), with_kek: args.with_kek, ..RootRotate::default() };
    for file in &args.passphrase_file {
        body.passphrases.push(passphrase(file)?);
    }
    for file in &args.key_file {
        body.key_files.push(BASE64.encode(&read_key_file(file)?));
    }
    if args.passphrase_file.is_empty() && ask::is_attended() {
        let stays = |id: &String| !args.drop_slot.contains(id);
        for slot in vault.slots.iter().filter(|slot| slot.kind == "passphrase" && stays(&slot.id)) {
            let question = format!("Passphrase of slot {}, not shown (nothing: the server has it)", slot.id);
            let text = ask::prompt_secret(&question)?;
            if !text.expose_secret().is_empty() {
                body.passphrases.push(text.expose_secret().to_owned());
            }
        }
    }
    Ok(body)
}

fn passphrase(file: &Path) -> Result<String, Failure> {
    Ok(ask::secret_from_file(file, "passphrase")?.expose_secret().to_owned())
}

/// Shows how the vault stands, at once or when the rotation is at its end.
async fn answer(client: &Client, vault: VaultView, wait: bool, context: &Context) -> Result<(), Failure> {
    let vault = if wait { wait_for(client, vault, context.printer).await? } else { vault };
    context.printer.answer(&vault, fields)?;
    match damaged(&vault) {
        Some(names) if wait => Err(Failure::new(
            Exit::Failure,
            format!("the rotation cannot end: these do not open: {names}"),
        )
        .hint("restore the rows from a backup, or give them up: `narvault key destroy`, `narvault webhook remove`")),
        _ => Ok(()),
    }
}

/// Asks again and again until the rotation is at its end, or cannot get there.
async fn wait_for(client: &Client, mut vault: VaultView, printer: Printer) -> Result<VaultView, Failure> {
    let shown = !printer.json && !printer.quiet && std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}");
    bar.set_style(style.map_err(|error| Failure::new(Exit::Failure, error))?);
    while let Some(rotation) = vault.kek_rotation.as_ref().filter(|rotation| rotation.state == "rewrap") {
        if damaged(&vault).is_some() {
            break;
        }
        bar.set_length(rotation.total);
        bar.set_position(rotation.done);
        tokio::time::sleep(WAIT_PAUSE).await;
        vault = client.vault().await?;
    }
    bar.finish_and_clear();
    Ok(vault)
}

/// What does not open, of a rotation that is under way.
fn damaged(vault: &VaultView) -> Option<String> {
    let rotation = vault.kek_rotation.as_ref()?;
    (rotation.state == "rewrap" && !rotation.damaged.is_empty()).then(|| rotation.damaged.join(", "))
}
