//! What still stands between an edited nix.conf and a pull, and the line that mends it.
//!
//! Asks Nix what it makes of the files; where it can not be asked, reads them as it would. Never changes anything.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::netrc_entry::DETERMINATE_NETRC;
use super::target::{Reader, Target};
use crate::cli::local_nix::{
    Effective, Places, Puller, Version, effective, has_daemon, is_trusted, puller, read_leniently,
    restart_command,
};
use crate::client::nix_conf::{Resolved, Trouble, Used};

/// Something that is missing, and what mends it: a command, or a line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub what: String,
    pub mend: String,
}

fn missing(what: impl Into<String>, mend: impl Into<String>) -> Missing {
    Missing { what: what.into(), mend: mend.into() }
}

/// What is asked about.
pub struct Question<'a> {
    pub target: &'a Target,
    pub used: &'a Used,
    pub private: bool,
    pub places: &'a Places,
    pub version: Option<Version>,
    /// Whether the file was changed just now.
    pub changed: bool,
    /// A netrc file that Determinate's daemon has to take into its own.
    pub to_take_in: Option<&'a Path>,
}

/// Everything that is missing.
pub async fn look(question: &Question<'_>) -> Vec<Missing> {
    let mut found = Vec::new();
    let resolved = resolve(question.target, question.places);
    found.extend(resolved.troubles.iter().map(trouble));
    match question.version {
        None => found.push(missing(
            "there is no `nix` on the path: what it makes of the file was not checked",
            "run `narvault doctor` where Nix is installed",
        )),
        Some(version) => match effective(version, question.target.view()).await {
            Ok(effective) => found.extend(not_in_effect(question, &resolved, &effective)),
            Err(told) => found.push(missing(
                format!("Nix cannot read its configuration: {}", told.lines().last().unwrap_or_default()),
                "mend the line that it names",
            )),
        },
    }
    if let Some(path) = question.to_take_in {
        let config = read_leniently(Path::new(DETERMINATE_CONFIG));
        found.extend(not_taken_in(path, config.as_deref(), question.changed));
    }
    match question.target.reader {
        Reader::User if puller() == Puller::Daemon => found.extend(daemon(question).await),
        Reader::Machine if question.changed && has_daemon() => {
            found.push(missing("the daemon reads its configuration only when it starts", restart_command()))
        }
        _ => {}
    }
    found
}

/// What the files say that belong to a target.
pub fn resolve(target: &Target, places: &Places) -> Resolved {
    match target.reader {
        Reader::User => places.resolve_user(&read_leniently),
        Reader::Machine => places.resolve_system(&read_leniently),
        Reader::Unknown => Resolved::read(std::slice::from_ref(&target.file.path), &read_leniently),
    }
}

fn trouble(trouble: &Trouble) -> Missing {
    match trouble {
        Trouble::Illegal(place) => missing(
            format!("{place} is no line that Nix understands: every command of Nix fails"),
            "write it as `name = value`, with blanks around the `=`, or delete it",
        ),
        Trouble::Absent(place) => missing(
            format!("{place} includes a file that is not there: every command of Nix fails"),
            "write `!include` instead of `include`, or delete the line",
        ),
        Trouble::TooDeep(place) => missing(format!("{place} includes files without end"), "delete the line"),
    }
}

/// What Nix does not see though the file says it.
fn not_in_effect(question: &Question<'_>, resolved: &Resolved, effective: &Effective) -> Vec<Missing> {
    let mut found = Vec::new();
    let wanted = std::iter::once(("substituters", &question.used.url))
        .chain(question.used.public_keys.iter().map(|key| ("trusted-public-keys", key)));
    for (name, value) in wanted {
        if effective.list(name).contains(value) {
            continue;
        }
        found.push(match resolved.loses(name, value) {
            Some(place) => missing(
                format!("{place} replaces `{name}`, and takes {value} away again"),
                format!("write there `extra-{name} = …` instead of `{name} = …`"),
            ),
            None => missing(
                format!("Nix does not have {value} in `{name}`"),
                format!("look where it is taken away: `nix show-config | grep {name}`"),
            ),
        });
    }
    if effective.flag("require-sigs") == Some(false) {
        found.push(missing(
            "`require-sigs` is off: Nix takes whatever a cache sends, signed or not",
            "require-sigs = true",
        ));
    }
    found
}

/// What keeps Determinate's daemon from taking a netrc file into the one that Nix reads. `config` is the text of its own
/// configuration.
fn not_taken_in(path: &Path, config: Option<&str>, changed: bool) -> Option<Missing> {
    let config: Value = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let sources = config["authentication"]["additionalNetrcSources"].as_array().cloned().unwrap_or_default();
    let is_named =
        sources.iter().any(|source| source.as_str().is_some_and(|source| Path::new(source) == path));
    let restart = restart_command();
    let path = path.display();
    match (is_named, changed) {
        (true, false) => None,
        (true, true) => Some(missing(
            format!("Determinate's daemon takes {path} into {DETERMINATE_NETRC} only when it starts"),
            restart,
        )),
        (false, _) => Some(missing(
            format!(
                "Nix reads {DETERMINATE_NETRC}, which Determinate's daemon writes, and which does not take in {path}"
            ),
            format!(
                "in {DETERMINATE_CONFIG}: {{\"authentication\": {{\"additionalNetrcSources\": [\"{path}\"]}}}}, and then: \
                 {restart}"
            ),
        )),
    }
}

/// Where Determinate's daemon is configured.
const DETERMINATE_CONFIG: &str = "/etc/determinate/config.json";

/// What keeps the daemon from obeying a user's own file.
async fn daemon(question: &Question<'_>) -> Vec<Missing> {
    let Used { url, public_keys } = question.used;
    let system = question.places.resolve_system(&read_leniently);
    let has =
        |name: &str| system.list(name, &[]).iter().any(|found| found == url || *found == format!("{url}/"));
    let is_asked = has("substituters");
    let is_allowed = is_asked || has("trusted-substituters");
    let keys = system.list("trusted-public-keys", &[]);
    let is_trusted_by_all = public_keys.iter().all(|key| keys.contains(key));
    if is_trusted(&system.list("trusted-users", &["root"])).await {
        return Vec::new();
    }
    let (mut ignored, mut lines) = (Vec::new(), Vec::new());
    if !is_allowed {
        ignored.push("this substituter");
        lines.push(format!("extra-trusted-substituters = {url}"));
    }
    if !is_trusted_by_all {
        ignored.push("its keys");
        lines.push(format!("extra-trusted-public-keys = {}", public_keys.join(" ")));
    }
    let mut found = Vec::new();
    if question.private && !is_asked {
        // Root has no login of its own, and the daemon no token.
        found.push(missing(
            "you are not in the daemon's `trusted-users`: builds pull by its settings and its netrc file, not yours",
            format!("sudo XDG_CONFIG_HOME=\"$HOME/.config\" narvault use {url} --system"),
        ));
    } else if !ignored.is_empty() {
        let path = question.places.system.display();
        found.push(missing(
            format!("the daemon ignores {}: you are not in its `trusted-users`", ignored.join(" and ")),
            format!("sudo narvault use {url} --system, or in {path}: {}", lines.join(" and ")),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netrc_file_that_determinate_does_not_take_in_is_named_with_the_line_that_mends_it() {
        let path = Path::new("/etc/nix/netrc");
        let named = r#"{"authentication": {"additionalNetrcSources": ["/other", "/etc/nix/netrc"]}}"#;
        for (config, changed, expected) in [
            (None, true, Some("does not take in /etc/nix/netrc")),
            (None, false, Some("does not take in /etc/nix/netrc")),
            (Some("no JSON"), false, Some("does not take in")),
            (Some("[]"), false, Some("does not take in")),
            (
                Some(r#"{"authentication": {"additionalNetrcSources": "/etc/nix/netrc"}}"#),
                false,
                Some("not take in"),
            ),
            (
                Some(r#"{"authentication": {"additionalNetrcSources": ["/other"]}}"#),
                false,
                Some("not take in"),
            ),
            (Some(named), true, Some("only when it starts")),
            (Some(named), false, None),
        ] {
            let found = not_taken_in(path, config, changed);

            let what = found.as_ref().map(|missing| missing.what.as_str());
            assert_eq!(what.is_some(), expected.is_some(), "{config:?}");
            assert!(what.unwrap_or_default().contains(expected.unwrap_or_default()), "{config:?}: {what:?}");
        }
        let mend = not_taken_in(path, None, false).unwrap().mend;
        let line = mend.split(": ").skip(1).collect::<Vec<_>>().join(": ");
        let json = line.split(", and then").next().unwrap();
        assert_eq!(not_taken_in(path, Some(json), false), None, "{mend}");
    }
}
