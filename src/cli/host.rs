//! What the commands on a server's own host share: the configuration that names its database, and a service on it.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Exit, Failure};
use super::{Context, serve, server};
use crate::config::{Config, DatabaseUrl, Flags};
use crate::service::Service;

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
    /// The configuration, and a service that neither listens nor works in the background. Refuses where there is no
    /// database: these commands never make one.
    pub async fn open(self, context: &Context) -> Result<(Config, Service), Failure> {
        let data = self.data.map(|path| path.to_string_lossy().into_owned());
        let config = serve::load(Flags { config: self.config, data, listen: None })?;
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

/// A fault on the host, with its causes.
pub fn told<E: Into<anyhow::Error>>(error: E) -> Failure {
    Failure::Told { exit: Exit::Failure, error: error.into(), hint: None }
}
