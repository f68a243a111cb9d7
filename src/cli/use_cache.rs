//! `narvault use` and `narvault unuse`: Nix's configuration, edited.
//!
//! Touches one marked part of one nix.conf, and one of a netrc file where a cache is private. Never touches anything
//! else in them, never prints a token, and never edits what a package manager generates.

mod diff;
mod missing;
mod netrc_entry;
pub mod refresh;
pub mod seen;
mod snippets;
mod target;

use std::path::Path;

use clap::Args;
use serde::Serialize;

use self::missing::{Missing, Question};
use self::netrc_entry::{NetrcEdit, Reached, Wanted, marks_failure};
use self::snippets::Format;
use self::target::{FileArgs, Reader, Target, file_failure};
use super::Context;
use super::failure::{Exit, Failure};
use super::local_nix::{self, Places, Version, read_leniently};
use super::text::plain;
use crate::api::CacheView;
use crate::client::ServerUrl;
use crate::client::nix_conf::{PUBLIC_KEYS_DEFAULT, Part, Resolved, SUBSTITUTERS_DEFAULT, Spelling, Used};
use crate::client::text_file::{Openness, Secrecy, TextFile};
use crate::nix::signature::PublicKey;

#[derive(Debug, Args)]
#[command(after_help = "\
With --refresh, the keys of caches that are used already are followed from one to the next, by statements that the key \
trusted so far has signed, or root keys: no server is believed for it, and a bucket is enough.

Example:
  narvault use main")]
pub struct UseArgs {
    /// The cache's name, or its whole pull URL
    #[arg(required_unless_present = "refresh")]
    cache: Option<String>,
    /// Follow the keys of this cache, or of every cache that is used, to those that have come since
    #[arg(long)]
    refresh: bool,
    /// Where the statements are fetched that are followed: the URL of a mirror or of a bucket [default: the pull URL]
    #[arg(long, value_name = "URL", requires_all = ["refresh", "cache"])]
    from: Option<String>,
    #[command(flatten)]
    which: FileArgs,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the settings for a configuration that is made elsewhere, and change nothing
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with_all = ["which", "dry_run", "refresh"])]
    print: Option<Format>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault unuse main")]
pub struct UnuseArgs {
    /// The cache's name, or its whole pull URL
    cache: String,
    #[command(flatten)]
    which: FileArgs,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Outcome {
    /// The nix.conf.
    file: String,
    changed: bool,
    /// The file as it is without narvault's part.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netrc: Option<NetrcOutcome>,
    /// Of a dry run, secrets left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct NetrcOutcome {
    file: String,
    changed: bool,
    /// The file as it is without narvault's part.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
    /// Whether others could read it, and cannot any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
    /// Of the token that was made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
}

pub async fn use_cache(args: UseArgs, context: &Context) -> Result<(), Failure> {
    let cache = match &args.cache {
        Some(cache) if !args.refresh => cache,
        _ => return refresh::refresh(&args, context).await,
    };
    let (server, name) = named(cache, context)?;
    let session = context.session_of(server.clone())?;
    let view = session.client.cache(&name).await?;
    let used = checked(&view)?;
    let host = host_of(&used.url)?;
    if let Some(format) = args.print {
        return context.printer.data(&snippets::snippet(format, &used, (!view.public).then_some(&*host)));
    }
    let places = Places::of_this_user();
    let version = local_nix::version().await.map(|(_, version)| version);
    let target = Target::choose(&args.which, &places)?;
    let mut locks = Locks::default();
    locks.take(&target.file, &target.reader, args.dry_run)?;

    let before = target.file.read().map_err(|error| file_failure(error, &target.reader))?;
    let mut part = part_of(&target.file, before.as_deref())?;
    let without = without_us(&target, &places, before.as_deref())?;
    let netrc = if view.public {
        None
    } else {
        let place = netrc_entry::place(&target, part.netrc_file.as_deref(), &without, &places)?;
        locks.take(&place.0, &target.reader, args.dry_run)?;
        let wanted = Wanted { cache: &name, host: &host, server: &server, session: &session };
        Some(netrc_entry::plan(&wanted, place, context, args.dry_run).await?)
    };
    if let Some(netrc) = netrc.as_ref().filter(|netrc| netrc.reached == Reached::BySetting) {
        part.netrc_file = Some(in_nix_conf(&netrc.file.path)?);
    }
    part.put(used.clone());
    let spelling = spelling(version, &without);
    let after =
        part.write(before.as_deref(), &spelling).map_err(|error| marks_failure(&target.file, error))?;

    let memory = seen::at_first_use(&session.client, &view).await?;
    let edit = Edit { target: &target, before, after, netrc };
    let mut outcome = edit.apply(args.dry_run)?;
    if !args.dry_run {
        seen::SeenFile::beside(&target.file)?.update(|seen| seen.put(&used.url, memory))?;
        let changed = outcome.changed || outcome.netrc.as_ref().is_some_and(|netrc| netrc.changed);
        let private = !view.public;
        let through = |netrc: &&NetrcEdit| netrc.reached == Reached::ThroughDeterminate;
        let to_take_in = edit.netrc.as_ref().filter(through).map(|netrc| &*netrc.file.path);
        let question =
            Question { target: &target, used: &used, private, places: &places, version, changed, to_take_in };
        outcome.missing = missing::look(&question).await;
    }
    if let Some(netrc) = &edit.netrc {
        note_netrc(netrc, &host, args.dry_run, context);
    }
    context.printer.answer(&outcome, |outcome| {
        let keys = if used.public_keys.len() == 1 { "its key" } else { "its keys" };
        text(outcome, &format!("Nix asks {} and trusts {keys}", used.url))
    })
}

pub async fn unuse_cache(args: UnuseArgs, context: &Context) -> Result<(), Failure> {
    let places = Places::of_this_user();
    let version = local_nix::version().await.map(|(_, version)| version);
    let target = Target::choose(&args.which, &places)?;
    let mut locks = Locks::default();
    locks.take(&target.file, &target.reader, args.dry_run)?;

    let before = target.file.read().map_err(|error| file_failure(error, &target.reader))?;
    let mut part = part_of(&target.file, before.as_deref())?;
    let Some(url) = chosen(&part, &args.cache)? else {
        let used: Vec<&str> = part.caches.iter().map(|cache| &*cache.url).collect();
        let used = if used.is_empty() { "none".to_owned() } else { used.join(", ") };
        let path = target.file.path.display();
        let what = format!("no cache {} stands in narvault's part of {path}: {used}", args.cache);
        context.printer.note(&what);
        return Ok(());
    };
    let host = host_of(&url)?;
    part.caches.retain(|cache| cache.url != url);
    let without = without_us(&target, &places, before.as_deref())?;
    let last_of_host = part.caches.iter().all(|cache| host_of(&cache.url).is_ok_and(|other| other != host));
    let netrc = if last_of_host {
        let (file, _) = netrc_entry::place(&target, part.netrc_file.as_deref(), &without, &places)?;
        locks.take(&file, &target.reader, args.dry_run)?;
        Some(netrc_entry::plan_removal(file, &host)?).filter(NetrcEdit::is_change)
    } else {
        None
    };
    if netrc.as_ref().is_some_and(|netrc| netrc.after.is_none()) {
        part.netrc_file = None;
    }
    let spelling = spelling(version, &without);
    let after =
        part.write(before.as_deref(), &spelling).map_err(|error| marks_failure(&target.file, error))?;

    let outcome = Edit { target: &target, before, after, netrc }.apply(args.dry_run)?;
    if !args.dry_run {
        seen::SeenFile::beside(&target.file)?.update(|seen| seen.put(&url, None))?;
    }
    if let Some(netrc) = outcome.netrc.as_ref().filter(|_| !args.dry_run) {
        context.printer.note(&format!(
            "the token that stood in {} stays valid until its end: `narvault token list` shows it",
            netrc.file
        ));
    }
    if !args.dry_run && target.reader == Reader::Machine {
        let restart = local_nix::restart_command();
        context.printer.note(&format!("the daemon goes on as before until: {restart}"));
    }
    context.printer.answer(&outcome, |outcome| text(outcome, &format!("Nix does not ask {url} any more")))
}

/// Changes to one nix.conf and, maybe, to one netrc file.
struct Edit<'a> {
    target: &'a Target,
    before: Option<String>,
    after: Option<String>,
    netrc: Option<NetrcEdit>,
}

impl Edit<'_> {
    /// Writes both files, or only tells what would be written.
    fn apply(&self, dry_run: bool) -> Result<Outcome, Failure> {
        let file = &self.target.file;
        let changed = self.before != self.after;
        let mut outcome = Outcome {
            file: file.path.display().to_string(),
            changed,
            backup: None,
            netrc: self.netrc.as_ref().map(|netrc| NetrcOutcome {
                file: netrc.file.path.display().to_string(),
                changed: netrc.is_change(),
                backup: None,
                closed: netrc.closes(),
                token_id: netrc.token_id.clone(),
            }),
            diff: None,
            missing: Vec::new(),
        };
        if dry_run {
            outcome.diff = Some(self.diff());
            return Ok(outcome);
        }
        // The password first: a cache that is asked without one is a cache that is not there for an hour.
        if let (Some(netrc), Some(told)) = (&self.netrc, &mut outcome.netrc) {
            told.backup = netrc.apply()?.map(|path| path.display().to_string());
        }
        if changed {
            let failed = |error| file_failure(error, &self.target.reader);
            // What the file would be without us, so that an edit of our own part leaves the backup as it is.
            if let Some(before) = &self.before {
                let plain = Part::default().write(Some(before), &Spelling::Extra);
                let plain = plain.map_err(|error| marks_failure(file, error))?;
                if let Some(plain) = plain.filter(|_| self.after.is_some()) {
                    file.back_up(&plain, Secrecy::Open).map_err(failed)?;
                    outcome.backup = Some(file.backup_path().display().to_string());
                }
            }
            file.write(self.after.as_deref(), Secrecy::Open).map_err(failed)?;
        }
        Ok(outcome)
    }

    fn diff(&self) -> String {
        let path = self.target.file.path.display().to_string();
        let mut text =
            diff::unified(&path, self.before.as_deref(), self.after.as_deref(), diff::Kind::NixConf);
        if let Some(netrc) = &self.netrc {
            let path = netrc.file.path.display().to_string();
            let (before, after) = (netrc.before.as_deref(), netrc.after.as_deref());
            text.push_str(&diff::unified(&path, before, after, diff::Kind::Netrc));
        }
        text
    }
}

/// Folders that are locked, each once: a second lock on one would wait for the first.
#[derive(Default)]
struct Locks(Vec<(std::path::PathBuf, std::fs::File)>);

impl Locks {
    fn take(&mut self, file: &TextFile, reader: &Reader, dry_run: bool) -> Result<(), Failure> {
        let folder = file.folder().to_owned();
        if !dry_run && self.0.iter().all(|(taken, _)| *taken != folder) {
            let lock = file.lock().map_err(|error| file_failure(error, reader))?;
            self.0.push((folder, lock));
        }
        Ok(())
    }
}

/// Server and name of a cache that is given by name or by its whole pull URL.
pub fn named(text: &str, context: &Context) -> Result<(ServerUrl, String), Failure> {
    let Some((server, name)) = text.trim_end_matches('/').rsplit_once('/').filter(|_| text.contains("://"))
    else {
        return Ok((context.server(None)?, text.to_owned()));
    };
    if server.ends_with("/push") {
        return Err(Failure::new(Exit::Usage, format!("{text} is where to push, not where to pull"))
            .hint(format!("run `narvault use {}/{name}`", server.trim_end_matches("/push"))));
    }
    Ok((super::session::parse_url(server)?, name.to_owned()))
}

/// What the server says about a cache, as far as it may stand in a nix.conf: a line break in it would be a setting of
/// the server's choice.
fn checked(view: &CacheView) -> Result<Used, Failure> {
    let foreign = |what: &str| Failure::new(Exit::Failure, format!("the server's answer has {what}"));
    let url: ServerUrl = view.pull_url.parse().map_err(|_| foreign("a pull URL that is none"))?;
    let url = url.to_string();
    if url.contains(['#', '"', '\'', '$', '\\']) || url.contains(char::is_whitespace) {
        return Err(foreign("a pull URL with characters that none has"));
    }
    for key in &view.public_keys {
        key.parse::<PublicKey>().map_err(|_| foreign("a public key that is none"))?;
    }
    if view.public_keys.is_empty() {
        return Err(Failure::new(Exit::Failure, format!("the cache {} has no signing key yet", view.name))
            .hint(format!("an admin makes one by `narvault key create {}`", view.name)));
    }
    Ok(Used { url, public_keys: view.public_keys.clone() })
}

fn host_of(url: &str) -> Result<String, Failure> {
    Ok(super::session::parse_url(url)?.host())
}

/// A path as a value in nix.conf, where nothing quotes.
fn in_nix_conf(path: &Path) -> Result<String, Failure> {
    match path.to_str().filter(|text| !text.contains([' ', '\t', '\n', '\r', '#'])) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Failure::new(
            Exit::Failure,
            format!("{} cannot be named in nix.conf, where nothing quotes", path.display()),
        )
        .hint("set `netrc-file` to a path without blanks, and run this again")),
    }
}

fn part_of(file: &TextFile, text: Option<&str>) -> Result<Part, Failure> {
    Part::of(text).map_err(|error| marks_failure(file, error))
}

/// What the configuration says without our part.
fn without_us(target: &Target, places: &Places, before: Option<&str>) -> Result<Resolved, Failure> {
    let plain = Part::default().write(before, &Spelling::Extra);
    let plain = plain.map_err(|error| marks_failure(&target.file, error))?;
    let read = |path: &Path| if path == target.file.path { plain.clone() } else { read_leniently(path) };
    Ok(match target.reader {
        Reader::User => places.resolve_user(&read),
        Reader::Machine => places.resolve_system(&read),
        Reader::Unknown => Resolved::read(std::slice::from_ref(&target.file.path), &read),
    })
}

/// How this version of Nix wants lists to be added to. Where there is none, as one of today.
fn spelling(version: Option<Version>, without: &Resolved) -> Spelling {
    match version {
        Some(version) if version < EXTRA_SINCE => Spelling::Whole {
            substituters: without.list("substituters", SUBSTITUTERS_DEFAULT),
            public_keys: without.list("trusted-public-keys", PUBLIC_KEYS_DEFAULT),
        },
        _ => Spelling::Extra,
    }
}

/// The one cache of our part that was meant, if it is there.
fn chosen(part: &Part, text: &str) -> Result<Option<String>, Failure> {
    let wanted = text.trim_end_matches('/');
    let is_meant = |url: &str| url == wanted || url.rsplit('/').next() == Some(wanted);
    let found: Vec<&str> = part.caches.iter().map(|cache| &*cache.url).filter(|url| is_meant(url)).collect();
    match found[..] {
        [] => Ok(None),
        [url] => Ok(Some(url.to_owned())),
        _ => Err(Failure::new(Exit::Usage, format!("several caches are called {wanted}"))
            .hint(format!("give the whole URL: {}", found.join(", ")))),
    }
}

fn note_netrc(netrc: &NetrcEdit, host: &str, dry_run: bool, context: &Context) {
    let now = if dry_run { "it would be" } else { "now it is" };
    let path = netrc.file.path.display();
    if netrc.is_change() {
        context.printer.note(&format!(
            "netrc knows hosts and no ports: Nix sends this token to every service on {host} that it asks"
        ));
    }
    match netrc.openness.filter(|_| netrc.after.is_some()) {
        Some(Openness { mode, is_ours: true }) => context.printer.note(&format!(
            "{path} holds tokens, and others could read it (mode {mode:04o}): {now} its owner's alone (mode 0600)"
        )),
        Some(Openness { mode, is_ours: false }) => context.printer.warning(
            &format!("{path} holds tokens, and others than its owner, who is not you, may read it (mode {mode:04o})"),
            &format!("its owner runs `chmod 600 {path}`, unless its group is meant to pull with it"),
        ),
        None => {}
    }
    if let Some(line) = netrc.hides {
        context.printer.note(&format!(
            "the first entry for a host counts: the one for {host} that began in line {line} of {path} does not any more"
        ));
    }
    if let Some(id) = &netrc.token_id {
        context.printer.note(&format!("the token in {path} is {id}: `narvault token show {id}`"));
    }
}

fn text(outcome: &Outcome, done: &str) -> String {
    let mut text = String::new();
    if let Some(diff) = &outcome.diff {
        return if diff.is_empty() { "nothing would change\n".to_owned() } else { diff.clone() };
    }
    text.push_str(&file_line(&outcome.file, outcome.changed, outcome.backup.as_deref()));
    if let Some(netrc) = &outcome.netrc {
        text.push_str(&file_line(&netrc.file, netrc.changed, netrc.backup.as_deref()));
    }
    text.push_str(&format!("{done}\n"));
    for missing in &outcome.missing {
        text.push_str(&format!("missing: {}\n  mend: {}\n", plain(&missing.what), plain(&missing.mend)));
    }
    text
}

fn file_line(file: &str, changed: bool, backup: Option<&str>) -> String {
    let file = plain(file);
    match (backup, changed) {
        (_, false) => format!("{file}: nothing to change\n"),
        (None, true) => format!("{file}: changed\n"),
        (Some(backup), true) => {
            format!("{file}: changed; without narvault's lines it is {}\n", plain(backup))
        }
    }
}

/// `extra-` for any list came with it.
const EXTRA_SINCE: Version = Version(2, 4);

#[cfg(test)]
mod tests {
    use super::*;

    fn view(pull_url: &str, public_keys: &[&str]) -> CacheView {
        let json = serde_json::json!({
            "id": "c-1", "name": "main", "public": true, "priority": 41, "prefix": "main", "upstreams": [],
            "upstream_paths": "store", "undeclared_references": "record", "public_keys": public_keys,
            "pull_url": pull_url, "push_url": "https://a.example/push/main", "paths": 0, "bytes": 0,
            "created_at": "2026-11-22T13:10:00Z"
        });
        serde_json::from_value(json).unwrap()
    }

    const URL: &str = "https://a.example/main";
    const KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    #[test]
    fn a_server_cannot_write_settings_of_its_choice() {
        assert_eq!(
            checked(&view(URL, &[KEY])).unwrap(),
            Used { url: URL.into(), public_keys: vec![KEY.into()] }
        );
        for (url, keys) in [
            ("https://a.example/main#", &[KEY][..]),
            ("https://a.example/${builtins.currentTime}", &[KEY]),
            ("https://a.example/'main", &[KEY]),
            ("https://me:secret@a.example/main", &[KEY]),
            ("file:///etc", &[KEY]),
            ("", &[KEY]),
            (URL, &[]),
            (URL, &["main-1:AAAA"]),
            (URL, &["main-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\nrequire-sigs = false"]),
            (URL, &["main 1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="]),
            (URL, &[KEY, "\" ]; x = \""]),
        ] {
            assert!(checked(&view(url, keys)).is_err(), "{url:?} {keys:?}");
        }
        // A URL is one word, whatever it was.
        for url in ["https://a.example/main\npost-build-hook = /tmp/x", "https://a.example/a b\tc"] {
            let used = checked(&view(url, &[KEY])).unwrap();
            assert!(used.url.bytes().all(|byte| byte.is_ascii_graphic()), "{}", used.url);
        }
    }

    #[test]
    fn the_cache_that_is_meant_is_found_by_name_or_by_url() {
        let part = Part {
            caches: ["https://a.example/main", "https://b.example/main", "https://a.example/team"]
                .map(|url| Used { url: url.into(), public_keys: Vec::new() })
                .into(),
            netrc_file: None,
        };

        assert_eq!(chosen(&part, "team").unwrap().as_deref(), Some("https://a.example/team"));
        assert_eq!(
            chosen(&part, "https://b.example/main/").unwrap().as_deref(),
            Some("https://b.example/main")
        );
        assert_eq!(chosen(&part, "other").unwrap(), None);
        assert!(chosen(&part, "main").unwrap_err().to_string().contains("give the whole URL"));
    }
}
