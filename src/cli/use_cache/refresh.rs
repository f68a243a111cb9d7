//! `narvault use --refresh`: from the keys that nix.conf has to those that came after them.
//!
//! Believes no server: only statements that the keys so far, or known root keys, have signed. Changes exactly the lines
//! that `narvault use` wrote, never takes the last key away, and changes nothing of a cache where anything is refused.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::Serialize;

use super::seen::{SeenAll, SeenFile};
use super::target::{Reader, Target, file_failure};
use super::{Edit, Locks, UseArgs, chosen, host_of, marks_failure, part_of, spelling, without_us};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::local_nix::{self, Places, read_leniently};
use crate::cli::text::plain;
use crate::client::netrc::entry_for;
use crate::client::nix_conf::{Part, Used};
use crate::nix::signature::PublicKey;
use crate::succession::{CHAIN_SIZE_BYTES_MAX, Chain, Followed, Memory, follow};
use crate::time::Timestamp;

/// What came of each cache.
#[derive(Debug, Serialize)]
struct Refreshed {
    /// The nix.conf.
    file: String,
    changed: bool,
    /// The file as it is without narvault's part.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
    /// Of a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
    caches: Vec<CacheOutcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Changed,
    Current,
    Refused,
    Unreachable,
}

#[derive(Debug, Serialize)]
struct CacheOutcome {
    url: String,
    result: What,
    /// Keys that are trusted from now on, `name:base64`.
    added: Vec<String>,
    /// Keys that are trusted no more.
    removed: Vec<String>,
    /// The number of the newest statement that was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    /// From when on a further statement is to be followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_until: Option<String>,
    /// Why nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

impl CacheOutcome {
    fn failed(url: &str, result: What, why: String, cure: Option<String>) -> Self {
        Self {
            url: url.to_owned(),
            result,
            added: Vec::new(),
            removed: Vec::new(),
            seq: None,
            waits_until: None,
            why: Some(why),
            cure,
        }
    }
}

pub async fn refresh(args: &UseArgs, context: &Context) -> Result<(), Failure> {
    let places = Places::of_this_user();
    let version = local_nix::version().await.map(|(_, version)| version);
    let target = Target::choose(&args.which, &places)?;
    let mut locks = Locks::default();
    locks.take(&target.file, &target.reader, args.dry_run)?;
    let before = target.file.read().map_err(|error| file_failure(error, &target.reader))?;
    let mut part = part_of(&target.file, before.as_deref())?;
    let urls = selected(&part, args.cache.as_deref(), &target)?;
    let seen_file = SeenFile::beside(&target.file)?;
    let mut seen = seen_file.read()?;
    let without = without_us(&target, &places, before.as_deref())?;
    let netrc_files = netrc_files(&part, without.value("netrc-file").as_deref(), &places);

    let source = Source { context, from: args.from.as_deref(), netrc_files };
    let mut caches = Vec::new();
    for url in urls {
        let chain = match source.fetch(&url).await {
            Ok(chain) => chain,
            Err(missed) => {
                caches.push(CacheOutcome::failed(&url, missed.result, missed.why, missed.cure));
                continue;
            }
        };
        caches.push(take(&mut part, &mut seen, &url, &chain, context.clock.now()));
    }
    let spelling = spelling(version, &without);
    let after =
        part.write(before.as_deref(), &spelling).map_err(|error| marks_failure(&target.file, error))?;
    // Where nothing is told of keys, the file stays as it was written, even if it would be spelled otherwise today.
    let is_changed = caches.iter().any(|cache| cache.result == What::Changed);
    let after = if is_changed { after } else { before.clone() };
    let edit = Edit { target: &target, before, after, netrc: None };
    let done = edit.apply(args.dry_run)?;
    // The keys first: what was seen without them would be a rotation that is never caught up with.
    if !args.dry_run {
        seen_file.update(|kept| *kept = seen)?;
    }
    if is_changed && !args.dry_run && target.reader == Reader::Machine {
        let restart = local_nix::restart_command();
        context.printer.note(&format!("the daemon goes on as before until: {restart}"));
    }
    let refreshed =
        Refreshed { file: done.file, changed: done.changed, backup: done.backup, diff: done.diff, caches };
    context.printer.answer(&refreshed, text)?;
    ended(&refreshed.caches)
}

/// The caches that are meant, by their URLs.
fn selected(part: &Part, cache: Option<&str>, target: &Target) -> Result<Vec<String>, Failure> {
    let all = || part.caches.iter().map(|cache| cache.url.clone()).collect::<Vec<_>>();
    let Some(cache) = cache else { return Ok(all()) };
    match chosen(part, cache)? {
        Some(url) => Ok(vec![url]),
        None => {
            let (path, used) = (target.file.path.display(), all().join(", "));
            let used = if used.is_empty() { "none".to_owned() } else { used };
            let what = format!("no cache {cache} stands in narvault's part of {path}: {used}");
            Err(Failure::new(Exit::Failure, what).hint(format!("run `narvault use {cache}` first")))
        }
    }
}

/// Where Nix may have a token for a private cache, what counts first.
fn netrc_files(part: &Part, configured: Option<&str>, places: &Places) -> Vec<PathBuf> {
    let own = part.netrc_file.as_deref().or(configured).map(PathBuf::from);
    own.into_iter().chain([places.netrc_default()]).collect()
}

/// Follows one cache's statements. What was there before stays where they are refused.
fn take(part: &mut Part, seen: &mut SeenAll, url: &str, chain: &Chain, now: Timestamp) -> CacheOutcome {
    let Some(used) = part.caches.iter_mut().find(|cache| cache.url == url) else {
        return CacheOutcome::failed(url, What::Refused, "it is not used any more".to_owned(), None);
    };
    let memory = seen.of(url);
    let followed = match followed(used, &memory, chain, now) {
        Ok(followed) => followed,
        Err((why, cure)) => return CacheOutcome::failed(url, What::Refused, why, Some(cure)),
    };
    let texts = |keys: &[PublicKey]| keys.iter().map(PublicKey::to_string).collect::<Vec<_>>();
    let (added, removed) = (texts(&followed.added), texts(&followed.removed));
    used.public_keys.retain(|key| !removed.contains(key));
    used.public_keys.extend(added.iter().cloned());
    let seq = followed.memory.seen.map(|seen| seen.seq);
    if followed.memory != memory {
        seen.put(url, Some(followed.memory));
    }
    CacheOutcome {
        url: url.to_owned(),
        result: if added.is_empty() && removed.is_empty() { What::Current } else { What::Changed },
        added,
        removed,
        seq,
        waits_until: followed.waiting.map(|waiting| waiting.not_before.rfc3339()),
        why: None,
        cure: None,
    }
}

/// What following comes to from these lines; or why not, and what helps.
fn followed(
    used: &Used,
    memory: &Memory,
    chain: &Chain,
    now: Timestamp,
) -> Result<Followed, (String, String)> {
    let trusted: Vec<PublicKey> = used.public_keys.iter().filter_map(|key| key.parse().ok()).collect();
    let followed = follow(&trusted, memory, chain, now)
        .map_err(|refusal| (refusal.to_string(), refusal.cure().to_owned()))?;
    // Nothing quotes in nix.conf: a `#` would cut the line.
    let unfit = |key: &&PublicKey| key.name().as_str().contains(['#', '"', '\'', '$', '\\']);
    match followed.added.iter().find(unfit) {
        Some(key) => Err((
            format!("the name of the key {} cannot stand in nix.conf", key.name()),
            "the cache's administrators have to make a key under another name".to_owned(),
        )),
        None => Ok(followed),
    }
}

/// Where statements are fetched.
struct Source<'a> {
    context: &'a Context,
    from: Option<&'a str>,
    netrc_files: Vec<PathBuf>,
}

/// Why nothing was fetched.
struct Missed {
    result: What,
    why: String,
    cure: Option<String>,
}

impl Source<'_> {
    /// The document at the cache's own address. One that is not there is empty: whether that can be is for the rules to
    /// say, and for what was seen before.
    async fn fetch(&self, url: &str) -> Result<Chain, Missed> {
        let place = self.from.unwrap_or(url);
        let bytes = match place.strip_prefix("file://") {
            Some(folder) => read_folder(folder)?,
            None => self.download(place).await?,
        };
        Chain::parse(&bytes).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Missed {
                result: What::Refused,
                why: format!(
                    "what {place} says of its keys cannot be read: {error}{}",
                    cause.unwrap_or_default()
                ),
                cure: Some("compare `narvault --version` with the server's, and update".to_owned()),
            }
        })
    }

    async fn download(&self, place: &str) -> Result<Vec<u8>, Missed> {
        match self.ask(place, None).await? {
            (401, _) => {}
            answer => return accepted(place, answer),
        }
        let Some(token) = self.token(place) else {
            return Err(Missed {
                result: What::Unreachable,
                why: format!("{place} is private, and no netrc file has a token for it"),
                cure: Some(format!("run `narvault use {place}`")),
            });
        };
        accepted(place, self.ask(place, Some(&token)).await?)
    }

    async fn ask(&self, place: &str, token: Option<&SecretString>) -> Result<(u16, Vec<u8>), Missed> {
        let asked = async {
            let client = self.context.client_of(crate::cli::session::parse_url(place)?, token)?;
            Ok::<_, Failure>(client.succession_document().await?)
        };
        asked.await.map_err(|failure| {
            let Failure::Told { error, hint, .. } = failure else {
                return Missed { result: What::Unreachable, why: "no answer".to_owned(), cure: None };
            };
            Missed { result: What::Unreachable, why: format!("{error:#}"), cure: hint }
        })
    }

    /// What Nix would send there.
    fn token(&self, place: &str) -> Option<SecretString> {
        let host = host_of(place).ok()?;
        self.netrc_files.iter().find_map(|path| entry_for(&read_leniently(path)?, &host)?.password)
    }
}

/// Some buckets answer 403 for what they do not have.
fn accepted(place: &str, (status, body): (u16, Vec<u8>)) -> Result<Vec<u8>, Missed> {
    match status {
        200 => Ok(body),
        403 | 404 => Ok(Vec::new()),
        _ => Err(Missed {
            result: What::Unreachable,
            why: format!("{place} answers {status}"),
            cure: Some("try again later".to_owned()),
        }),
    }
}

fn read_folder(folder: &str) -> Result<Vec<u8>, Missed> {
    let path = PathBuf::from(folder).join("key-succession");
    let missed = |error: std::io::Error| Missed {
        result: What::Unreachable,
        why: format!("{} cannot be read: {error}", path.display()),
        cure: None,
    };
    match std::fs::File::open(&path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            let limit = CHAIN_SIZE_BYTES_MAX as u64 + 1;
            std::io::Read::read_to_end(&mut std::io::Read::take(file, limit), &mut bytes).map_err(missed)?;
            Ok(bytes)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(missed(error)),
    }
}

/// A refusal goes before a place that did not answer; either is a failure, whatever came of the other caches.
fn ended(caches: &[CacheOutcome]) -> Result<(), Failure> {
    let of = |what| caches.iter().find(|cache| cache.result == what);
    let Some(worst) = of(What::Refused).or_else(|| of(What::Unreachable)) else { return Ok(()) };
    let exit = if worst.result == What::Refused { Exit::Refused } else { Exit::Unreachable };
    let why = worst.why.as_deref().unwrap_or_default();
    let failure = Failure::new(exit, format!("{}: {why}; its keys stay as they are", worst.url));
    Err(match &worst.cure {
        Some(cure) => failure.hint(cure.clone()),
        None => failure,
    })
}

fn text(refreshed: &Refreshed) -> String {
    let mut text = String::new();
    if let Some(diff) = refreshed.diff.as_ref().filter(|diff| !diff.is_empty()) {
        return diff.clone();
    }
    for cache in &refreshed.caches {
        let what = match cache.result {
            What::Changed => "followed",
            What::Current => "nothing new",
            What::Refused => "refused",
            What::Unreachable => "not reached",
        };
        text.push_str(&format!("{}: {what}\n", plain(&cache.url)));
        for (word, keys) in [("trusted from now on", &cache.added), ("trusted no more", &cache.removed)] {
            keys.iter().for_each(|key| text.push_str(&format!("  {word}: {}\n", plain(key))));
        }
        if let Some(until) = &cache.waits_until {
            text.push_str(&format!("  a further statement holds from {}\n", plain(until)));
        }
        if let Some(why) = &cache.why {
            text.push_str(&format!("  {}\n", plain(why)));
        }
    }
    if refreshed.caches.is_empty() {
        text.push_str(&format!("{}: no cache is used there\n", plain(&refreshed.file)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::succession::testing::{NOON, TestKey, chain, planned};

    const URL: &str = "https://cache.example.org/main";

    fn used(names: &[&str]) -> Part {
        let public_keys = names.iter().map(|name| TestKey::named(name).public.to_string()).collect();
        Part { caches: vec![Used { url: URL.into(), public_keys }], netrc_file: None }
    }

    #[test]
    fn exactly_the_keys_that_changed_change() {
        let mut part = used(&["own-1", "main-1"]);
        let mut seen = SeenAll::default();
        let retired =
            crate::succession::Statement { retire_old: Some(NOON), ..planned(2, "main-1", "main-2") };

        let outcome =
            take(&mut part, &mut seen, URL, &chain(&[planned(1, "main-1", "main-2"), retired]), NOON);

        assert_eq!((outcome.result, outcome.seq), (What::Changed, Some(2)));
        assert_eq!(part, used(&["own-1", "main-2"]));
        assert_eq!(seen.of(URL).seen.unwrap().seq, 2);
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let (mut part, mut seen) = (used(&["main-1"]), SeenAll::default());

        let outcome = take(&mut part, &mut seen, URL, &chain(&[planned(2, "main-1", "main-2")]), NOON);

        assert_eq!(outcome.result, What::Refused);
        assert!(outcome.why.is_some() && outcome.cure.is_some());
        assert_eq!((part, seen.of(URL)), (used(&["main-1"]), Memory::default()));
        assert!(ended(&[outcome]).unwrap_err().to_string().contains("its keys stay as they are"));
    }

    #[test]
    fn a_name_that_would_cut_the_line_is_refused() {
        let (mut part, mut seen) = (used(&["main-1"]), SeenAll::default());

        let outcome = take(&mut part, &mut seen, URL, &chain(&[planned(1, "main-1", "main#2")]), NOON);

        assert_eq!(outcome.result, What::Refused);
        assert_eq!(part, used(&["main-1"]));
    }

    #[test]
    fn a_refusal_is_worse_than_silence() {
        let silent = || CacheOutcome::failed("a", What::Unreachable, "no answer".into(), None);
        let refused = || CacheOutcome::failed("b", What::Refused, "a gap".into(), None);

        assert!(ended(&[]).is_ok());
        assert!(ended(&[silent(), refused()]).unwrap_err().to_string().contains("b: a gap"));
        assert!(ended(&[silent()]).unwrap_err().to_string().contains("a: no answer"));
    }
}
