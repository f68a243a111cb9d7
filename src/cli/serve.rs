//! `narvault serve`: the server.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::logging;
use super::server::Server;
use crate::access::ClaimSecret;
use crate::config::{Config, Flags};
use crate::service::FirstStart;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault serve --data ./narvault-data")]
pub struct ServeArgs {
    /// Configuration file [default: /etc/narvault/narvault.toml, if there]
    #[arg(long, value_name = "FILE", env = "NARVAULT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data folder [default: ./narvault-data]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:8750]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
}

pub async fn run(args: ServeArgs, context: &Context) -> Result<(), Failure> {
    let data = args.data.map(|path| path.to_string_lossy().into_owned());
    let config = load(Flags { config: args.config, data, listen: args.listen })?;
    logging::set_up(config.log.format);
    // Before anything reads a secret.
    harden()?;
    crate::vault::random::check()
        .map_err(|error| Failure::caused("there is no source of randomness".into(), error))?;
    // Before the server listens: a signal that comes while it starts must not kill it halfway.
    let failed = |error| Failure::caused("cannot wait for signals".into(), error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;

    let server = Server::start(config, context.clock.clone()).await.map_err(start_failure)?;
    tracing::info!(
        address = %server.http.address,
        public_url = server.config.server.public_url.as_str(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
    if let Some(first) = &server.first {
        super::output::to_stderr(&welcome(first, server.config.server.public_url.as_str()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: requests under way may end");
    server.shut_down().await.map_err(|error| Failure::caused("did not stop in order".into(), error))?;
    tracing::info!("stopped");
    Ok(())
}

/// Reads the configuration, or tells everything that is wrong with it.
pub fn load(flags: Flags) -> Result<Config, Failure> {
    Config::load_from_system(&flags).map_err(|problems| {
        Failure::new(Exit::Usage, problems.to_string())
            .hint("`narvault check` shows the effective configuration and where each value comes from")
    })
}

fn start_failure(error: anyhow::Error) -> Failure {
    Failure::Told {
        exit: Exit::Failure,
        error,
        hint: Some("run `narvault check` with the same options to look at each part".into()),
    }
}

/// The block of the first start: what to paste where.
fn welcome(first: &FirstStart, url: &str) -> String {
    let FirstStart { claim, cache, public_key, key_file } = first;
    let key_file = key_file.as_ref().map_or(String::new(), |path| {
        format!("\n  The vault opens with the key file {}. Keep a copy elsewhere.\n", path.display())
    });
    let claim = ClaimSecret::expose(claim);
    format!(
        "\n\
         narvault is set up. This is shown once.\n\
         {key_file}\n\
         \x20 Become its administrator, within an hour:\n\
         \x20   narvault login {url} --claim {claim}\n\n\
         \x20 Let somebody push to the cache `{cache}`:\n\
         \x20   narvault contributor add alice --kind person\n\
         \x20   narvault token issue alice --scope push:{cache}\n\n\
         \x20 Push, with that token as the password for this host in a netrc file:\n\
         \x20   nix copy --to '{url}/push/{cache}' --option netrc-file $PWD/netrc /nix/store/...\n\n\
         \x20 Pull:\n\
         \x20   narvault use {url}/{cache}\n\n\
         \x20 or by these two lines in nix.conf:\n\
         \x20   extra-substituters = {url}/{cache}\n\
         \x20   extra-trusted-public-keys = {public_key}\n\n"
    )
}
