//! What still stands between an edited nix.conf and a pull, and the line that mends it.
//!
//! Asks Nix what it makes of the files; where it can not be asked, reads them as it would. Never changes anything.

use serde::Serialize;

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
