//! What the commands on a server's own host share: the configuration that names its database, a service on it, and the
//! secret that opens its vault.
//!
//! Never takes a passphrase as an argument.

use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::ExposeSecret as _;

use super::ask;
use super::backup::refused;
use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::{Context, serve, server};
use crate::config::{Config, DatabaseUrl, Flags};
use crate::service::{BackupError, Configured, Service, TrialError, Tried, VaultRows, VaultSecret};
use crate::vault::{KeyFile, Passphrase, Share, SlotSecret};

/// Which server it is about.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Configuration file [default: /etc/narvault/narvault.toml, if there]
    #[arg(long, value_name = "FILE", env = "NARVAULT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data folder [default: ./narvault-data]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
}

impl HostArgs {
    /// The configuration.
    pub fn load(self) -> Result<Config, Failure> {
        let data = self.data.map(|path| path.to_string_lossy().into_owned());
        serve::load(Flags { config: self.config, data, listen: None })
    }

    /// The configuration, and a service that neither listens nor works in the background. Refuses where there is no
    /// database: these commands never make one.
    pub async fn open(self, context: &Context) -> Result<(Config, Service), Failure> {
        harden()?;
        let config = self.load()?;
        if let DatabaseUrl::Sqlite(path) = &config.database.url
            && !path.exists()
        {
            let message = format!("there is no database at {}", path.display());
            return Err(
                Failure::new(Exit::Failure, message).hint("name the server's data folder with --data")
            );
        }
        let opened = server::open_service(&config, context.clock.clone()).await;
        let (service, _) = opened.map_err(told)?;
        Ok((config, service))
    }
}

/// What opens the vault, where it is not what the configuration names.
#[derive(Debug, Args)]
pub struct SecretArgs {
    /// Key file that opens the vault [default: what the configuration names]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// File that holds a passphrase that opens the vault, or `-` for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    passphrase_file: Option<PathBuf>,
    /// File that holds a share of a key that opens the vault; once for each share that is needed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key_file", "passphrase_file"])]
    share_file: Vec<PathBuf>,
}

impl SecretArgs {
    /// The secret that the command line names, if it names one.
    pub fn given(&self) -> Result<Option<VaultSecret>, Failure> {
        if !self.share_file.is_empty() {
            let shares = self.share_file.iter().map(|path| read_share(path));
            return Ok(Some(VaultSecret::Shares(shares.collect::<Result<_, _>>()?)));
        }
        if let Some(path) = &self.key_file {
            return Ok(Some(SlotSecret::KeyFile(KeyFile::read(path).map_err(told)?).into()));
        }
        let Some(path) = &self.passphrase_file else { return Ok(None) };
        let text = ask::secret_from_file(path, "passphrase")?;
        let passphrase = Passphrase::parse(text.expose_secret().as_bytes()).map_err(told)?;
        Ok(Some(SlotSecret::Passphrase(passphrase).into()))
    }

    /// The same, or what the configuration names that opens the vault with these rows, or what somebody types.
    pub async fn read(&self, config: &Config, rows: &VaultRows) -> Result<VaultSecret, Failure> {
        if let Some(secret) = self.given()? {
            return Ok(secret);
        }
        if opens_by_hand(config) && ask::is_attended() {
            let text = ask::prompt_secret("Passphrase, not shown")?;
            let passphrase = Passphrase::parse(text.expose_secret().as_bytes()).map_err(told)?;
            return Ok(SlotSecret::Passphrase(passphrase).into());
        }
        let hint = "name what opens the vault with --key-file, --passphrase-file or --share-file";
        let mut refusals = Vec::new();
        for Tried { outcome, .. } in server::vault_settings(config).try_on(rows).await {
            match outcome {
                Ok(fitting) => return Ok(fitting.secret.into()),
                Err(TrialError::Unlock(error)) => refusals.push(refused(BackupError::Unlock(error))),
                Err(error) => refusals.push(told(error).hint(hint)),
            }
        }
        // What lies on this machine comes first, and is what somebody can mend here.
        let first = refusals.into_iter().next();
        Err(first
            .unwrap_or_else(|| Failure::new(Exit::Failure, "nothing is configured that opens the vault")))
    }
}

/// A share that somebody keeps in a file, with the space around it.
fn read_share(path: &Path) -> Result<Share, Failure> {
    let text = ask::secret_from_file(path, "share")?;
    let share = Share::parse(text.expose_secret().trim());
    share.map_err(|error| Failure::caused(format!("cannot use {}", path.display()), error))
}

/// Whether no key is given at all, as after a first start with a passphrase that was not left behind.
pub fn opens_by_hand(config: &Config) -> bool {
    match &server::vault_settings(config).configured()[..] {
        [Configured::KeyFile(path)] => config.vault.key_file.is_none() && !path.exists(),
        _ => false,
    }
}

/// A fault on the host, with its causes.
pub fn told<E: Into<anyhow::Error>>(error: E) -> Failure {
    Failure::Told { exit: Exit::Failure, error: error.into(), hint: None }
}
