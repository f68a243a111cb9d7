//! `narvault who`: the short form of `path show`: who caused what is served at a path, one line for each act.
//!
//! Never shows more than `path show` does.

use clap::Args;

use super::Context;
use super::args::PathArg;
use super::failure::{Exit, Failure};
use super::text::{Table, moment};
use crate::api::{PageQuery, PathView};
use crate::client::Client;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault who /nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-hello-2.12")]
pub struct WhoArgs {
    /// `/nix/store/…`, its base name, or its 32-character hash
    path: PathArg,
    /// Only in this cache [default: every one, which takes an admin]
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
}

pub async fn run(args: WhoArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let caches = match args.cache {
        Some(cache) => vec![cache],
        None => every_cache(&client).await?,
    };
    let mut found = Vec::new();
    for cache in caches {
        match client.path(&cache, args.path.0.as_str()).await {
            Ok(path) => found.push((cache, path)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if found.is_empty() {
        let what = format!("no cache has had {}", args.path.0);
        return Err(Failure::new(Exit::Failure, what));
    }
    context.printer.answer(&found.iter().map(|(_, path)| path).collect::<Vec<_>>(), |_| text(&found))
}

async fn every_cache(client: &Client) -> Result<Vec<String>, Failure> {
    let (mut names, mut query) = (Vec::new(), PageQuery::default());
    loop {
        let page = client.caches(&query).await.map_err(|error| {
            let failure = Failure::from(error);
            match &failure {
                Failure::Told { exit: Exit::NotAuthorised, .. } => {
                    failure.hint("name a cache with `--cache`")
                }
                _ => failure,
            }
        })?;
        names.extend(page.items.into_iter().map(|cache| cache.name));
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(names),
        }
    }
}

fn text(found: &[(String, PathView)]) -> String {
    let head = ["CACHE", "LEAF", "EVENT", "AT", "CONTRIBUTOR", "TOKEN", "KEY", "FROM"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".into());
    for (cache, path) in found {
        for act in &path.history {
            rows.push(vec![
                cache.clone(),
                act.log_index.to_string(),
                act.event.clone(),
                moment(&act.at),
                or_dash(act.contributor.as_ref().or(act.contributor_id.as_ref())),
                or_dash(act.token_id.as_ref()),
                or_dash(act.key.as_ref()),
                or_dash(act.address.as_ref()),
            ]);
        }
        for evidence in path.evidence.iter().filter(|evidence| evidence.kind != "contributor") {
            rows.push(vec![
                cache.clone(),
                "-".into(),
                evidence.kind.clone(),
                moment(&evidence.at),
                evidence.source.clone(),
                or_dash(evidence.token_id.as_ref()),
                "-".into(),
                "-".into(),
            ]);
        }
    }
    Table::default().text(&rows)
}
