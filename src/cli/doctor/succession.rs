//! Whether the keys that nix.conf has can be followed to those of today.
//!
//! Looks only: `narvault use --refresh` does it.

use super::nix_side::Setup;
use crate::api::CacheView;
use crate::cli::check::report::Report;
use crate::cli::local_nix::{Places, read_leniently};
use crate::cli::session::Session;
use crate::cli::text::moment;
use crate::cli::use_cache::seen::{SeenFile, chain_of};
use crate::client::nix_conf::{Part, Used};
use crate::client::text_file::TextFile;
use crate::nix::signature::PublicKey;
use crate::succession::{Memory, follow};
use crate::time::Timestamp;

/// The word in front of each line.
const PART: &str = "succession";

/// Looks at what the server tells of a cache's keys, from where this machine stands.
pub async fn look(report: &mut Report, setup: &Setup, view: &CacheView, session: &Session, now: Timestamp) {
    let Some((used, memory, command)) = standing(view) else { return };
    // One of a former version tells nothing.
    let Ok(told) = session.client.key_succession(&view.name).await else { return };
    let name = &view.name;
    let Ok(chain) = chain_of(&told) else {
        let hint = "compare `narvault --version` with the server's";
        return report.fail(PART, format!("{name}: what is told of its keys cannot be read"), hint);
    };
    let trusted: Vec<PublicKey> = used.public_keys.iter().filter_map(|key| key.parse().ok()).collect();
    match follow(&trusted, &memory, &chain, now) {
        Ok(followed) if followed.added.is_empty() && followed.removed.is_empty() => {
            let waiting = followed.waiting.map(|waiting| {
                format!("; the next one holds from {}", moment(&waiting.not_before.rfc3339()))
            });
            let detail =
                format!("{name}: {} statements are followed{}", chain.head(), waiting.unwrap_or_default());
            report.ok(PART, detail);
        }
        Ok(followed) => {
            let names = |keys: &[PublicKey]| {
                keys.iter().map(|key| key.name().to_string()).collect::<Vec<_>>().join(", ")
            };
            let mut changes = Vec::new();
            if !followed.added.is_empty() {
                changes.push(format!("{} comes", names(&followed.added)));
            }
            if !followed.removed.is_empty() {
                changes.push(format!("{} goes", names(&followed.removed)));
            }
            report.warn(
                PART,
                format!("{name}: keys have changed: {}", changes.join(", ")),
                format!("run `{command}`"),
            );
        }
        Err(refusal) => {
            let command = setup.use_command(&view.pull_url);
            let hint = refusal.cure().replace("`narvault use`", &format!("`{command}`"));
            report.warn(PART, format!("{name}: its keys cannot be followed: {refusal}"), hint);
        }
    }
}

/// Keys of a cache whose successors have taken their place for good, as the server tells it, `name:base64`: whoever goes
/// on without them has followed, and misses nothing.
pub async fn ended(session: &Session, view: &CacheView, now: Timestamp) -> Vec<String> {
    let Ok(told) = session.client.key_succession(&view.name).await else { return Vec::new() };
    let Ok(chain) = chain_of(&told) else { return Vec::new() };
    let statements = chain.statements.iter().map(|signed| signed.content());
    let over = statements.filter(|statement| statement.retire_old.is_some_and(|at| at <= now));
    over.map(|statement| statement.old.to_string()).collect()
}

/// The lines that `narvault use` wrote for this cache, what was seen since, and what goes on from there.
fn standing(view: &CacheView) -> Option<(Used, Memory, String)> {
    let places = Places::of_this_user();
    let own = places.user.first().map(|path| (path, ""));
    own.into_iter().chain([(&places.system, " --system")]).find_map(|(path, flag)| {
        let part = Part::of(read_leniently(path).as_deref()).ok()?;
        let bare = |url: &str| url.trim_end_matches('/').to_owned();
        let used = part.caches.into_iter().find(|used| bare(&used.url) == bare(&view.pull_url))?;
        let seen = SeenFile::beside(&TextFile::at(path).ok()?).ok()?.read().ok()?;
        let memory = seen.of(&used.url);
        Some((used, memory, format!("narvault use --refresh{flag}")))
    })
}
