//! What Nix remembers of caches, and where that is wrong by now: the user's memory, and the daemon's.
//!
//! Never changes a memory: the cures say who does.

use std::path::PathBuf;

use futures_util::StreamExt as _;

use super::nix_side::Setup;
use crate::api::CacheView;
use crate::cli::check::report::Report;
use crate::cli::local_nix::Puller;
use crate::client::Client;
use crate::config::variable;
use crate::db::nix_disk_cache::{NixDiskCache, Remembered};
use crate::nix::narinfo::NarInfo;
use crate::time::Timestamp;

/// Somebody's memory of caches.
struct Memory {
    whose: &'static str,
    folder: PathBuf,
}

impl Memory {
    /// The memories that count here: of whoever runs this command, and of the daemon.
    fn all(setup: &Setup) -> Vec<Self> {
        let own = own_folder();
        let root = PathBuf::from(if cfg!(target_os = "macos") { "/var/root" } else { "/root" });
        let root = root.join(".cache/nix");
        let is_root = rustix::process::geteuid().is_root();
        let mut all = Vec::new();
        if (setup.puller == Puller::Daemon || is_root) && root != own {
            all.push(Self { whose: "the daemon", folder: root });
        }
        all.push(Self { whose: if is_root { "root" } else { "your Nix" }, folder: own });
        all
    }

    /// The files in it, one for each layout that a version of Nix has used.
    fn files(&self) -> std::io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("binary-cache-v") && name.ends_with(".sqlite") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// What makes it forget.
    fn forget(&self) -> String {
        let sudo = if self.whose == "your Nix" { "" } else { "sudo " };
        format!("{sudo}rm {}/binary-cache-v*.sqlite", self.folder.display())
    }
}

fn own_folder() -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().unwrap_or_default().join(".cache");
    set("NIX_CACHE_HOME").unwrap_or_else(|| set("XDG_CACHE_HOME").unwrap_or_else(home).join("nix"))
}

/// Looks at everything that is remembered of a cache; of one path alone if `hash` is given.
pub async fn look(
    report: &mut Report,
    setup: &Setup,
    view: &CacheView,
    cache: &Client,
    hash: Option<&str>,
    now: Timestamp,
) {
    for memory in Memory::all(setup) {
        let files = match memory.files() {
            Ok(files) => files,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let detail = format!("what {} remembers cannot be read", memory.whose);
                report.warn("memory", detail, format!("run `sudo narvault doctor {}`", view.pull_url));
                continue;
            }
            Err(_) => Vec::new(),
        };
        let mut pushed = Vec::new();
        let mut pulled = Vec::new();
        for file in &files {
            match read(file, view, hash).await {
                Ok((under_push, under_pull)) => {
                    pushed.extend(under_push);
                    pulled.extend(under_pull);
                }
                Err(error) => {
                    let detail = format!("{} cannot be read: {error}", file.display());
                    report.warn("memory", detail, "run it again when no other command of Nix is running");
                }
            }
        }
        push_url(report, setup, view, &memory, &pushed);
        compare(report, setup, view, cache, &memory, &pulled, now).await;
    }
}

type Both = (Vec<Remembered>, Vec<Remembered>);

/// What is remembered under a cache's push URL, and under its pull URL.
async fn read(file: &std::path::Path, view: &CacheView, hash: Option<&str>) -> crate::db::Result<Both> {
    let Some(mut cache) = NixDiskCache::open(file).await? else { return Ok(Both::default()) };
    let pushed = cache.under(&view.push_url, hash, PATHS_MAX).await?;
    let pulled = cache.under(&view.pull_url, hash, PATHS_MAX).await?;
    cache.close().await?;
    Ok((pushed, pulled))
}

/// Whoever pulls from the URL that was pushed to gets the unsigned narinfo of the push out of memory.
fn push_url(report: &mut Report, setup: &Setup, view: &CacheView, memory: &Memory, pushed: &[Remembered]) {
    let bare = |url: &str| url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
    let substituters = setup.substituters();
    let Some(url) = substituters.iter().find(|url| bare(url) == view.push_url) else { return };
    let places = setup.resolved.places_of("substituters", url);
    let place = places.last().map_or("nix.conf".to_owned(), ToString::to_string);
    let known = pushed.iter().filter(|path| path.is_present).count();
    let detail = format!(
        "{} is where to push, and Nix pulls from it: {} remembers {known} paths there as they were pushed, unsigned",
        view.push_url, memory.whose
    );
    report.fail("push url", detail, format!("in {place}, write {} instead of {url}", view.pull_url));
}

/// Holds what is remembered under the pull URL against what the cache has.
async fn compare(
    report: &mut Report,
    setup: &Setup,
    view: &CacheView,
    cache: &Client,
    memory: &Memory,
    remembered: &[Remembered],
    now: Timestamp,
) {
    let positive = setup.seconds("narinfo-cache-positive-ttl", 30 * 24 * 3600);
    let negative = setup.seconds("narinfo-cache-negative-ttl", 3600);
    let ends = |path: &Remembered| path.at.plus_seconds(if path.is_present { positive } else { negative });
    let valid = remembered.iter().filter(|path| ends(path) > now);
    let asked = futures_util::stream::iter(valid)
        .map(|path| async move { (path, now_there(cache, &path.hash).await) })
        .buffered(QUESTIONS_AT_ONCE);
    let answers: Vec<_> = asked.collect().await;

    let trusted = setup.public_keys();
    let is_trusted = |name: &String| trusted.iter().any(|key| key.split(':').next() == Some(name));
    let mut missed: Vec<(&Remembered, Timestamp)> = Vec::new();
    let (mut gone, mut moved, mut unsigned, mut foreign) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &(path, ref there) in &answers {
        match (path.is_present, there) {
            (false, There::As { .. }) => missed.push((path, ends(path))),
            (true, There::No) => gone.push(path),
            (true, There::As { file, .. }) if file_name(path) != file => moved.push(path),
            (true, There::As { key_names, .. }) if !path.key_names.iter().any(is_trusted) => {
                let list = if key_names.iter().any(is_trusted) { &mut unsigned } else { &mut foreign };
                list.push(path);
            }
            _ => {}
        }
    }
    let (name, whose, forget) = (&view.name, memory.whose, memory.forget());
    if let Some((path, end)) = missed.first() {
        let end = end.rfc3339();
        let end = crate::cli::text::moment(&end);
        let detail = format!(
            "{name}: {whose} remembers until {end} that {} was not there{}; by now it is",
            path.hash,
            others(missed.len())
        );
        let hint = format!("run the command again with `--refresh`, or `{forget}`");
        report.fail("memory", detail, hint);
    }
    if let Some(path) = gone.first() {
        let detail = format!(
            "{name}: {whose} remembers that {} is there{}; by now it was taken out",
            label(path),
            others(gone.len())
        );
        let hint = format!("push and pull with `nix --refresh copy …`, or `{forget}`");
        report.fail("memory", detail, hint);
    }
    if let Some(path) = moved.first() {
        let detail = format!(
            "{name}: {whose} remembers {}{} as another file than the cache has by now",
            label(path),
            others(moved.len())
        );
        let hint = format!("run the command again with `--refresh`, or `{forget}`");
        report.fail("memory", detail, hint);
    }
    if let Some(path) = unsigned.first() {
        let detail = format!(
            "{name}: {whose} remembers {}{} without a signature of a key that is trusted",
            label(path),
            others(unsigned.len())
        );
        let hint = format!("run the command again with `--refresh`, or `{forget}`");
        report.fail("memory", detail, hint);
    }
    if let Some(path) = foreign.first() {
        let detail = format!(
            "{name}: {}{} is signed by no key that is trusted, also in the cache",
            label(path),
            others(foreign.len())
        );
        let hint = format!(
            "run `{}`; keys that are retired are to be trusted as long as paths rest on them alone",
            setup.use_command(&view.pull_url)
        );
        report.fail("key", detail, hint);
    }
    if missed.is_empty() && gone.is_empty() && moved.is_empty() && unsigned.is_empty() {
        let count = answers.len();
        report.ok("memory", format!("{name}: what {whose} remembers is still so ({count} paths looked at)"));
    }
}

/// What a cache has of a path.
enum There {
    /// It has it, in this file, signed by these keys.
    As {
        file: String,
        key_names: Vec<String>,
    },
    No,
    /// It did not say.
    Unknown,
}

async fn now_there(cache: &Client, hash: &str) -> There {
    match cache.narinfo(hash).await {
        Ok((200, body)) => match NarInfo::parse(&body) {
            Ok(narinfo) => There::As {
                file: narinfo.file.to_string(),
                key_names: narinfo.signatures.iter().map(|one| one.name.as_str().to_owned()).collect(),
            },
            Err(_) => There::Unknown,
        },
        Ok((404, _)) => There::No,
        _ => There::Unknown,
    }
}

/// The last part of the address of a remembered NAR.
fn file_name(path: &Remembered) -> &str {
    path.file.as_deref().and_then(|address| address.rsplit('/').next()).unwrap_or_default()
}

fn label(path: &Remembered) -> String {
    match &path.name {
        Some(name) => format!("{}-{name}", path.hash),
        None => path.hash.clone(),
    }
}

fn others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        _ => format!(", and {} more", count - 1),
    }
}

/// Paths that are held against the cache, the newest first: a second or two over a slow link.
const PATHS_MAX: i64 = 100;

/// Half of what Nix itself allows.
const QUESTIONS_AT_ONCE: usize = 12;
