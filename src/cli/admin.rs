//! `narvault admin`: what only the server's own host may do, with the data folder at hand.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Context;
use super::failure::{Exit, Failure};
use super::{serve, server};
use crate::access::ContributorName;
use crate::config::Flags;
use crate::service::{Call, FIRST_ADMIN};

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Print a new one-time secret for `narvault login --claim`
    Claim(ClaimArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault admin claim --data /var/lib/narvault")]
pub struct ClaimArgs {
    /// Configuration file [default: /etc/narvault/narvault.toml, if there]
    #[arg(long, value_name = "FILE", env = "NARVAULT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data folder [default: ./narvault-data]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// The contributor who gets the admin token
    #[arg(long = "for", value_name = "NAME", default_value = FIRST_ADMIN)]
    pub contributor: ContributorName,
}

#[derive(Serialize)]
struct Claim {
    claim: String,
    login: String,
}

pub async fn run(command: AdminCommand, context: &Context) -> Result<(), Failure> {
    match command {
        AdminCommand::Claim(args) => claim(args, context).await,
    }
}

async fn claim(args: ClaimArgs, context: &Context) -> Result<(), Failure> {
    let data = args.data.map(|path| path.to_string_lossy().into_owned());
    let config = serve::load(Flags { config: args.config, data, listen: None })?;
    if let crate::config::DatabaseUrl::Sqlite(path) = &config.database.url
        && !path.exists()
    {
        let message = format!("there is no database at {}", path.display());
        return Err(Failure::new(Exit::Failure, message).hint("name the server's data folder with --data"));
    }
    let opened = server::open_service(&config, context.clock.clone()).await;
    let (service, _) = opened.map_err(told)?;
    let secret = service.make_admin_claim(&Call::host(), &args.contributor).await;
    service.shut_down().await;
    let secret = secret.map_err(|error| told(error.into()))?;
    let claim = secret.expose().to_owned();
    let login = format!("narvault login {} --claim {claim}", config.server.public_url.as_str());
    context.printer.note("this works once, within an hour:");
    context.printer.answer(&Claim { claim, login }, |claim| format!("{}\n", claim.login))
}

fn told(error: anyhow::Error) -> Failure {
    Failure::Told { exit: Exit::Failure, error, hint: None }
}
