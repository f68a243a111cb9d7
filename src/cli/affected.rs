//! `narvault path affected`: what was withdrawn from a cache, and which of it this machine holds.
//!
//! Only asks: the cache what was withdrawn, and this machine's Nix what is valid. Deletes nothing.

use std::collections::HashSet;

use clap::Args;
use serde::Serialize;

use super::Context;
use super::args::Since;
use super::failure::{Exit, Failure};
use super::text::{Table, moment, plain};
use crate::api::{WithdrawnPath, WithdrawnQuery};
use crate::client::Client;
use crate::nix::hash::NarHash;
use crate::nix::store_path::StorePath;
use crate::watch::LocalNix;

#[derive(Debug, Args)]
#[command(after_help = "\
With `--check-store`, exit code 4 says that this machine holds some of it, 0 that it holds none.

Example:
  narvault path affected main --since 30d --check-store")]
pub struct AffectedArgs {
    /// The cache's name
    cache: String,
    /// Only what was withdrawn since then: RFC 3339, or how long ago, such as 7d
    #[arg(long, value_name = "TIME")]
    since: Since,
    /// Look which of it is valid, with that content, in the store of this machine's Nix
    #[arg(long)]
    check_store: bool,
    /// That store's URL, for `--check-store`
    #[arg(long, value_name = "URL", default_value = "auto", requires = "check_store")]
    store: String,
}

/// A withdrawn path, as it is printed.
#[derive(Debug, Serialize)]
struct Affected {
    store_path: String,
    nar_hash: String,
    withdrawn_at: String,
    /// Whether this machine holds it; absent where nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<bool>,
}

pub async fn run(args: AffectedArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let since = args.since.rfc3339(context.clock.now());
    let withdrawn = all(&client, &args.cache, &since).await?;
    let held =
        if args.check_store { Some(held(&LocalNix::new(&args.store), &withdrawn).await?) } else { None };
    let affected: Vec<Affected> = withdrawn
        .into_iter()
        .map(|path| Affected {
            held: held.as_ref().map(|held| held.contains(&path.store_path)),
            store_path: path.store_path,
            nar_hash: path.nar_hash,
            withdrawn_at: path.withdrawn_at,
        })
        .filter(|path| path.held != Some(false))
        .collect();
    context.printer.answer(&affected, |affected| text(affected))?;
    match (args.check_store, affected.len()) {
        (false, 0) => context.printer.note("nothing was withdrawn since then that is not back"),
        (true, 0) => context.printer.note("this machine holds none of what was withdrawn"),
        (false, _) => {}
        (true, count) => {
            let what = if count == 1 { "path" } else { "paths" };
            return Err(Failure::new(Exit::Refused, format!("this machine holds {count} withdrawn {what}"))
                .hint("see what uses one with `nix-store --query --roots PATH`, and end that, then `nix-store --delete PATH`"));
        }
    }
    Ok(())
}

/// Every page.
async fn all(client: &Client, cache: &str, since: &str) -> Result<Vec<WithdrawnPath>, Failure> {
    let mut paths = Vec::new();
    let mut query =
        WithdrawnQuery { since: Some(since.to_owned()), limit: Some(200), ..WithdrawnQuery::default() };
    loop {
        let page = client.withdrawn(cache, &query).await?;
        paths.extend(page.items);
        match page.next {
            None => return Ok(paths),
            next if next == query.cursor => {
                return Err(Failure::new(Exit::Failure, "the server's list does not go on"));
            }
            next => query.cursor = next,
        }
    }
}

/// Those that are valid in the store with the content that was withdrawn. A path of the same name and another content
/// is not what was withdrawn.
async fn held(nix: &LocalNix, withdrawn: &[WithdrawnPath]) -> Result<HashSet<String>, Failure> {
    let asked: Vec<(StorePath, Option<NarHash>)> = withdrawn
        .iter()
        // What this version cannot read, no Nix holds.
        .filter_map(|path| Some((StorePath::from_absolute(&path.store_path).ok()?, nar_hash(&path.nar_hash))))
        .collect();
    let failed = |error| Failure::caused("cannot ask this machine's Nix".into(), anyhow::Error::new(error));
    let paths: Vec<&StorePath> = asked.iter().map(|(path, _)| path).collect();
    let invalid = nix.invalid(&paths).await.map_err(failed)?;
    let valid: Vec<_> = asked.iter().filter(|(path, _)| !invalid.contains(path)).collect();
    let paths: Vec<&StorePath> = valid.iter().map(|(path, _)| path).collect();
    let hashes = nix.nar_hashes(&paths).await.map_err(failed)?;
    let same =
        valid.iter().zip(hashes).filter(|((_, withdrawn), here)| withdrawn.is_none_or(|hash| hash == *here));
    Ok(same.map(|((path, _), _)| path.to_string()).collect())
}

fn nar_hash(text: &str) -> Option<NarHash> {
    NarHash::from_base32(text.strip_prefix("sha256:")?).ok()
}

fn text(affected: &[Affected]) -> String {
    if affected.is_empty() {
        return String::new();
    }
    let mut rows = vec![vec!["WITHDRAWN".to_owned(), "PATH".to_owned()]];
    rows.extend(affected.iter().map(|path| vec![moment(&path.withdrawn_at), plain(&path.store_path).into()]));
    Table::default().text(&rows)
}
