//! `narvault doctor`: why a pull does not work, from a user's side, part by part, with the cure of each.
//!
//! Never changes anything: not Nix's configuration, not its memory, not the server. Never prints a token.

mod memory;
mod nix_side;
mod server_side;
mod succession;

use clap::Args;

use self::nix_side::Setup;
use super::Context;
use super::args::PathArg;
use super::check::report::Report;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::use_cache::named;
use crate::api::Whoami;
use crate::client::ServerUrl;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault doctor main")]
pub struct DoctorArgs {
    /// The cache's name, or its whole pull URL [default: all of the server's that Nix asks]
    cache: Option<String>,
    /// Look for this path in the cache, and in what Nix remembers of it [default: the newest, if the token may list]
    #[arg(long, value_name = "PATH")]
    path: Option<PathArg>,
}

pub async fn run(args: DoctorArgs, context: &Context) -> Result<(), Failure> {
    let mut report = Report::default();
    let setup = nix_side::look(&mut report).await;
    match given(&args, context)? {
        Some((server, name)) => {
            let session = context.session_of(server.clone())?;
            if let Some(who) = server_side::look(&mut report, &session, context).await {
                let examined = Examined { setup: setup.as_ref(), session: &session, who: who.as_ref() };
                let names = match name {
                    Some(name) => vec![name],
                    None => setup.as_ref().map_or_else(Vec::new, |setup| setup.caches_of(&server)),
                };
                if names.is_empty() {
                    let hint = "run `narvault use CACHE`, or name one: `narvault doctor CACHE`";
                    report.warn("cache", format!("Nix asks no cache of {server}"), hint);
                }
                for name in names {
                    cache(&mut report, &examined, &name, &args, context).await?;
                }
            }
        }
        None => report.warn("server", "no server is known", "run `narvault login URL`, or give `--url URL`"),
    }
    report.print(context.printer)?;
    match report.failures() {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Failure, "one check failed")),
        failures => Err(Failure::new(Exit::Failure, format!("{failures} checks failed"))),
    }
}

/// The server, and the cache if one was named.
fn given(args: &DoctorArgs, context: &Context) -> Result<Option<(ServerUrl, Option<String>)>, Failure> {
    if let Some(cache) = &args.cache {
        let (server, name) = named(cache, context)?;
        return Ok(Some((server, Some(name))));
    }
    let known = context.url_given()?.is_some() || context.logins()?.load()?.current().is_some();
    Ok(if known { Some((context.server(None)?, None)) } else { None })
}

/// What holds for every cache.
struct Examined<'a> {
    /// `None` without a Nix that can be asked.
    setup: Option<&'a Setup>,
    session: &'a Session,
    /// Whose token is in use, where there is one that works.
    who: Option<&'a Whoami>,
}

async fn cache(
    report: &mut Report,
    examined: &Examined<'_>,
    name: &str,
    args: &DoctorArgs,
    context: &Context,
) -> Result<(), Failure> {
    let &Examined { setup, session, who } = examined;
    let view = server_side::cache(report, session, name).await;
    if let Some(who) = who {
        server_side::scopes(report, who, name, view.as_ref(), session.client.url());
    }
    let (Some(view), Some(setup)) = (view, setup) else { return Ok(()) };
    let ended = succession::ended(session, &view, context.clock.now()).await;
    nix_side::cache(report, setup, &view, &ended);
    succession::look(report, setup, &view, session, context.clock.now()).await;
    let pull_url: ServerUrl = super::session::parse_url(&view.pull_url)?;
    let token =
        if view.public { None } else { server_side::netrc(report, setup, &view, session, context).await? };
    // Without the token that Nix has, what Nix can see cannot be seen.
    if !view.public && token.is_none() {
        return Ok(());
    }
    let cache = context.client_of(pull_url, token.as_ref())?;
    let hash = args.path.as_ref().map(|path| path.0.as_str());
    let sample = match hash {
        Some(hash) => Some(hash.to_owned()),
        None => server_side::newest(session, name).await,
    };
    if let Some(hash) = sample {
        server_side::path(report, setup, &view, &cache, &hash).await;
    }
    memory::look(report, setup, &view, &cache, hash, context.clock.now()).await;
    Ok(())
}
