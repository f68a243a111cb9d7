//! `narvault check`: the server's configuration, database, storage and vault, from the server's side.
//!
//! Changes nothing, so that it may run before the first start and beside a running server. With `--ready` it only
//! asks a running server, as a container's health check does: exit code 0 or 1, no other.

mod parts;
pub(super) mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Context;
use super::failure::{Exit, Failure};
use super::hardening::harden;
use crate::config::{Config, Flags};
use report::Report;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault check --config /etc/narvault/narvault.toml")]
pub struct CheckArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "NARVAULT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data folder
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Only ask the server at `--url` (else this machine's) whether it is ready; exits 0 or 1
    #[arg(long)]
    pub ready: bool,
}

pub async fn run(args: CheckArgs, context: &Context) -> Result<(), Failure> {
    if args.ready {
        return ready(context).await;
    }
    harden()?;
    let data = args.data.map(|path| path.to_string_lossy().into_owned());
    let mut report = Report::default();
    look(&mut report, &Flags { config: args.config, data, listen: None }, context).await;
    report.print(context.printer)?;
    match report.failures() {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failure, "one check failed")),
        failures => Err(Failure::new(Exit::Failure, format!("{failures} checks failed"))),
    }
}

async fn look(report: &mut Report, flags: &Flags, context: &Context) {
    let config = match Config::load_from_system(flags) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems.0 {
                let cause = std::error::Error::source(&problem).map(|cause| format!(": {cause}"));
                let detail = format!("{problem}{}", cause.unwrap_or_default());
                report.fail("config", detail, "the table of all keys is in the README");
            }
            return;
        }
    };
    report.set_config(config.effective());
    report.ok("config", "every key is known and every value is one that it takes");
    let known = parts::database(report, &config, &context.clock).await;
    parts::storage(report, &config, &known).await;
    parts::vault(report, &config, known).await;
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    detail: String,
}

async fn ready(context: &Context) -> Result<(), Failure> {
    let url = match context.url_given()? {
        Some(url) => url,
        None => super::session::parse_url(LOCAL_URL)?,
    };
    let client = context.client_of(url, None).map_err(unhealthy)?;

    let answer = tokio::time::timeout(READY_TIMEOUT, client.ready()).await;

    let (ready, detail) = match answer {
        Ok(Ok((ready, detail))) => (ready, detail.trim().to_owned()),
        Ok(Err(error)) => return Err(unhealthy(error.into())),
        Err(_) => {
            return Err(unhealthy(Failure::new(
                Exit::Failure,
                format!("{} did not answer in time", client.url()),
            )));
        }
    };
    if !ready {
        return Err(Failure::new(Exit::Failure, format!("{} is not ready: {detail}", client.url()))
            .hint("look at the server's log, or run `narvault check` on its host"));
    }
    context.printer.answer(&Readiness { ready, detail }, |readiness| {
        format!("{}\n", super::text::plain(&readiness.detail))
    })
}

/// The same failure with exit code 1, the only one that container engines take for "unhealthy".
fn unhealthy(failure: Failure) -> Failure {
    match failure {
        Failure::Told { error, .. } => {
            let hint = "start it with `narvault serve`, or name another one with `--url URL`";
            Failure::Told { exit: Exit::Failure, error, hint: Some(hint.into()) }
        }
        told => told,
    }
}

/// Where `serve` listens unless told.
const LOCAL_URL: &str = "http://127.0.0.1:8750";

/// Below the 30 s that container engines give a health check.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::cli::Global;

    async fn ready_of(url: String) -> Result<(), Failure> {
        let global = Global {
            json: false,
            url: Some(url),
            insecure_http: false,
            quiet: true,
            token: None,
            config_home: None,
        };
        let args = CheckArgs { config: None, data: None, ready: true };
        run(args, &Context::new(global)).await
    }

    #[tokio::test]
    async fn a_server_that_is_not_ready_or_not_there_is_exit_code_1() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 11\r\nconnection: close\r\n\r\nno database";
            let _ = stream.write_all(answer.as_bytes()).await;
        });

        let not_ready = ready_of(url.clone()).await.unwrap_err();
        server.await.unwrap();
        let not_there = ready_of(url).await.unwrap_err();

        assert!(not_ready.to_string().contains("is not ready: no database"), "{not_ready}");
        for failure in [not_ready, not_there] {
            assert!(matches!(failure, Failure::Told { exit: Exit::Failure, hint: Some(_), .. }), "{failure}");
        }
    }
}
