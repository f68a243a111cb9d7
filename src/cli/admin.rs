//! `narvault admin`: what only the server's own host may do, with the data folder at hand.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Context;
use super::failure::Failure;
use super::host::{HostArgs, told};
use crate::access::ContributorName;
use crate::service::{Call, FIRST_ADMIN};

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Print a new one-time secret for `narvault login --claim`
    Claim(ClaimArgs),
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
    let (config, service) = args.host.open(context).await?;
    let secret = service.make_admin_claim(&Call::host(), &args.contributor).await;
    service.shut_down().await;
    let secret = secret.map_err(told)?;
    let claim = secret.expose().to_owned();
    let login = format!("narvault login {} --claim {claim}", config.server.public_url.as_str());
    context.printer.note("this works once, within an hour:");
    context.printer.answer(&Claim { claim, login }, |claim| format!("{}\n", claim.login))
}
