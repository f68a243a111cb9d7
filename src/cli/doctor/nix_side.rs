//! What Nix is configured to do, as Nix itself sees it.
//!
//! Never asks the server.

use std::collections::BTreeSet;

use crate::api::CacheView;
use crate::cli::check::report::Report;
use crate::cli::local_nix::{
    self, Effective, Places, Puller, Version, View, effective, is_trusted, puller, read_leniently,
};
use crate::client::ServerUrl;
use crate::client::nix_conf::{Resolved, Trouble};

/// The Nix of this machine, and what holds for what it pulls.
pub struct Setup {
    pub puller: Puller,
    /// Whether the daemon takes the user's settings; true where there is no daemon.
    is_obeyed: bool,
    own: Effective,
    daemon: Effective,
    pub resolved: Resolved,
}

impl Setup {
    /// The substituters that are asked.
    pub fn substituters(&self) -> Vec<String> {
        let mut own = self.own.list("substituters");
        if !self.is_obeyed {
            let allowed =
                [self.daemon.list("substituters"), self.daemon.list("trusted-substituters")].concat();
            let bare = |url: &String| url.trim_end_matches('/').to_owned();
            own.retain(|url| allowed.iter().any(|other| bare(other) == bare(url)));
        }
        own
    }

    /// The keys that count.
    pub fn public_keys(&self) -> Vec<String> {
        self.in_effect().list("trusted-public-keys")
    }

    /// The netrc file of the process that pulls.
    pub fn netrc_file(&self) -> Option<&str> {
        self.in_effect().text("netrc-file").filter(|path| !path.is_empty())
    }

    /// A number of seconds.
    pub fn seconds(&self, name: &str, default: i64) -> i64 {
        self.in_effect().number(name).unwrap_or(default)
    }

    fn in_effect(&self) -> &Effective {
        if self.is_obeyed { &self.own } else { &self.daemon }
    }

    /// The caches of a server that Nix asks, by their names.
    pub fn caches_of(&self, server: &ServerUrl) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for url in self.own.list("substituters") {
            let Some(path) = url.strip_prefix(&format!("{server}/")) else { continue };
            let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
            let name = path.strip_prefix("push/").unwrap_or(path);
            if !name.is_empty() && !name.contains('/') && names.iter().all(|known| known != name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// What edits the configuration that counts.
    pub fn use_command(&self, url: &str) -> String {
        if self.is_obeyed {
            format!("narvault use {url}")
        } else {
            format!("sudo narvault use {url} --system")
        }
    }
}

/// Looks at Nix and its configuration; `None` if there is nothing to go on with.
pub async fn look(report: &mut Report) -> Option<Setup> {
    let Some((told, version)) = local_nix::version().await else {
        report.fail("nix", "there is no `nix` on the path", "install Nix, or put it on the path");
        return None;
    };
    nix(report, told, version);
    let places = Places::of_this_user();
    let resolved = places.resolve_user(&read_leniently);
    for trouble in &resolved.troubles {
        let (Trouble::Illegal(place) | Trouble::Absent(place) | Trouble::TooDeep(place)) = trouble;
        let hint = "write it as `name = value`, or as `!include file`, or delete the line";
        report.fail("config", format!("{place}: Nix does not understand this line"), hint);
    }
    let (own, daemon) = match (effective(version, View::Own).await, effective(version, View::Daemon).await) {
        (Ok(own), Ok(daemon)) => (own, daemon),
        (Err(told), _) | (_, Err(told)) => {
            let last = told.lines().last().unwrap_or_default().to_owned();
            report.fail("config", format!("Nix cannot read it: {last}"), "mend the line that it names");
            return None;
        }
    };
    let puller = puller();
    let is_obeyed = match puller {
        Puller::Own => true,
        Puller::Daemon => is_trusted(&daemon.list("trusted-users")).await,
    };
    let setup = Setup { puller, is_obeyed, own, daemon, resolved };
    let (from, who) = match (puller, is_obeyed) {
        (Puller::Own, _) => ("your commands", "your own commands pull"),
        (Puller::Daemon, true) => ("the daemon, and you", "the daemon pulls, and takes your settings"),
        (Puller::Daemon, false) => ("the daemon", "the daemon pulls, by its own settings"),
    };
    for (name, values) in
        [("substituters", setup.substituters()), ("trusted-public-keys", setup.public_keys())]
    {
        let mut seen = BTreeSet::new();
        for value in values.into_iter().filter(|value| seen.insert(value.clone())) {
            report.show(name, value, from);
        }
    }
    report.show("netrc-file", setup.netrc_file().unwrap_or_default().to_owned(), from);
    match setup.in_effect().flag("require-sigs") {
        Some(false) => report.warn(
            "config",
            "`require-sigs` is off: Nix takes whatever a cache sends, signed or not",
            "set `require-sigs = true`",
        ),
        _ => report.ok("config", format!("Nix can read it; {who}")),
    }
    Some(setup)
}

/// Whether this version of Nix can do what is asked of it.
fn nix(report: &mut Report, told: String, version: Version) {
    let cure = "install a newer Nix: https://nixos.org/download; until then push by `nix copy`";
    if version < local_nix::PUSH_SINCE {
        let Version(major, minor) = local_nix::PUSH_SINCE;
        let detail = format!("{told}: `narvault push` and the hook need {major}.{minor}; pulls go on");
        report.warn("nix", detail, cure);
    } else {
        report.ok("nix", told);
    }
}

/// Whether a cache is asked, and its keys are trusted; those that have `ended` need not be.
pub fn cache(report: &mut Report, setup: &Setup, view: &CacheView, ended: &[String]) {
    let CacheView { name, pull_url, push_url, public_keys, .. } = view;
    let substituters = setup.substituters();
    let bare = |url: &str| url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
    if substituters.contains(pull_url) {
        report.ok("substituter", format!("{name}: {pull_url} is asked"));
    } else if let Some(other) = substituters.iter().find(|url| bare(url) == *pull_url) {
        report.ok("substituter", format!("{name}: it is asked as {other}"));
    } else if setup.own.list("substituters").contains(pull_url) {
        let hint = setup.use_command(pull_url);
        let detail = format!("{name}: the daemon ignores {pull_url}: you are not in its `trusted-users`");
        report.fail("substituter", detail, format!("run `{hint}`"));
    } else if !substituters.iter().any(|url| bare(url) == *push_url) {
        let detail = match setup.resolved.loses("substituters", pull_url) {
            Some(place) => format!("{name}: {place} replaces `substituters`, and takes {pull_url} away"),
            None => format!("{name}: Nix does not ask {pull_url}"),
        };
        report.fail("substituter", detail, format!("run `{}`", setup.use_command(pull_url)));
    }
    let trusted = setup.public_keys();
    let (missing, known): (Vec<&String>, Vec<&String>) =
        public_keys.iter().partition(|key| !trusted.contains(key));
    let untrusted: Vec<&String> = missing.into_iter().filter(|key| !ended.contains(key)).collect();
    if public_keys.is_empty() {
        let hint = format!("an admin makes one by `narvault key create {name}`");
        report.fail("key", format!("{name} has no signing key"), hint);
    } else if untrusted.is_empty() {
        report.ok("key", format!("{name}: trusted, {}", key_names(&known)));
    } else if !known.is_empty() {
        let detail = format!("{name}: not every key is trusted: {} is new", key_names(&untrusted));
        report.warn("key", detail, format!("run `{}`", setup.use_command(pull_url)));
    } else {
        let detail = format!("{name}: Nix trusts none of its keys: {}", key_names(&untrusted));
        report.fail("key", detail, format!("run `{}`", setup.use_command(pull_url)));
    }
}

/// The names of keys that are given as `name:base64`.
fn key_names(keys: &[impl AsRef<str>]) -> String {
    keys.iter().filter_map(|key| key.as_ref().split(':').next()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::report::Status;

    #[test]
    fn a_nix_that_is_too_old_to_push_is_told_of_with_what_helps() {
        for (told, expected) in [
            ("nix (Nix) 2.3.16", Status::Warn),
            ("nix (Nix) 2.7.0", Status::Warn),
            ("nix (Nix) 2.8.0", Status::Ok),
            ("nix (Determinate Nix 3.5.2) 2.28.3", Status::Ok),
            ("nix (Nix) 3.0", Status::Ok),
        ] {
            let mut report = Report::default();

            nix(&mut report, told.to_owned(), Version::parse(told).unwrap());

            let line = &report.checks[0];
            assert_eq!(line.status, expected, "{told}");
            assert_eq!(line.hint.is_some(), expected == Status::Warn, "{told}");
            assert!(line.detail.starts_with(told), "{}", line.detail);
        }
    }
}
