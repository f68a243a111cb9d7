//! The Nix of this machine: its version, the files that configure it, what it makes of them, and who pulls.
//!
//! Asks Nix and the environment; never changes anything, and never prints.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::client::nix_conf::Resolved;
use crate::client::text_file::TextFile;
use crate::config::variable;

/// A version of Nix, such as 2.26.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The first version whose answers `narvault push` and the hook read; `use` edits for any.
pub const PUSH_SINCE: Version = Version(2, 8);

impl Version {
    /// From what `nix --version` says: `nix (Nix) 2.26.3`, `nix (Determinate Nix 3.5.2) 2.28.3`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().rsplit(' ').next()?.split(['.', '-', '+']);
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// Where the configuration of Nix lies on this machine, for whoever runs this command.
#[derive(Debug, Clone)]
pub struct Places {
    /// nix.conf of the machine, and so of the daemon.
    pub system: PathBuf,
    /// nix.conf of the user: what counts most comes first.
    pub user: Vec<PathBuf>,
    /// The text of NIX_CONFIG, which counts more than every file.
    pub nix_config: Option<String>,
}

impl Places {
    /// As Nix finds them: `src/libstore/globals.cc`.
    pub fn of_this_user() -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = std::env::home_dir().unwrap_or_default();
        let absolute = |path: String| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        let system = set("NIX_CONF_DIR").and_then(absolute).unwrap_or_else(|| "/etc/nix".into());
        let user = match variable("NIX_USER_CONF_FILES") {
            Some(files) => files.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect(),
            None => {
                let config_home = set("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
                let first = set("NIX_CONFIG_HOME").map_or_else(|| config_home.join("nix"), PathBuf::from);
                let others = set("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into());
                let others = others.split(':').filter(|folder| !folder.is_empty());
                let others = others.map(|folder| Path::new(folder).join("nix"));
                std::iter::once(first).chain(others).map(|folder| folder.join("nix.conf")).collect()
            }
        };
        Self { system: system.join("nix.conf"), user, nix_config: set("NIX_CONFIG") }
    }

    /// The netrc file that Nix takes where none is configured.
    pub fn netrc_default(&self) -> PathBuf {
        self.system.with_file_name("netrc")
    }

    /// What the machine's files say: the daemon's configuration.
    pub fn resolve_system(&self, read: &crate::client::nix_conf::Read<'_>) -> Resolved {
        Resolved::read(std::slice::from_ref(&self.system), read)
    }

    /// What the machine's and the user's files say.
    pub fn resolve_user(&self, read: &crate::client::nix_conf::Read<'_>) -> Resolved {
        let files: Vec<PathBuf> =
            std::iter::once(&self.system).chain(self.user.iter().rev()).cloned().collect();
        let resolved = Resolved::read(&files, read);
        match &self.nix_config {
            Some(text) => resolved.and(Path::new("NIX_CONFIG"), text, read),
            None => resolved,
        }
    }
}

/// Reads a file of Nix's configuration as Nix does: one that cannot be read counts as none.
pub fn read_leniently(path: &Path) -> Option<String> {
    // A generated file cannot be edited, but is read like any other.
    match TextFile::at(path) {
        Ok(file) => file.read().ok().flatten(),
        Err(_) => std::fs::read_to_string(path).ok(),
    }
}

/// Whose configuration is looked at.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    /// Everything that holds for whoever runs this command.
    Own,
    /// The machine's alone, as the daemon reads it.
    Daemon,
    /// One file alone.
    File(&'a Path),
}

/// The configuration as Nix itself sees it.
#[derive(Debug, Clone)]
pub struct Effective(Value);

impl Effective {
    /// A list, or the words of a single value.
    pub fn list(&self, name: &str) -> Vec<String> {
        match &self.0[name]["value"] {
            Value::Array(values) => {
                values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
            }
            Value::String(value) => value.split_whitespace().map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0[name]["value"].as_str()
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.0[name]["value"].as_i64()
    }

    /// A switch.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.0[name]["value"].as_bool()
    }
}

/// What `nix --version` says; `None` where there is no Nix that runs.
pub async fn version() -> Option<(String, Version)> {
    let mut command = nix(&["--version"]);
    // With a configuration that it cannot read, Nix does not even say its version.
    command.env("NIX_CONF_DIR", "/nonexistent").env("NIX_USER_CONF_FILES", "").env_remove("NIX_CONFIG");
    let (ok, stdout, _) = run(&mut command).await.ok()?;
    let text = stdout.trim().to_owned();
    let version = Version::parse(&text)?;
    ok.then_some((text, version))
}

/// What Nix says its configuration is, or what it says instead.
pub async fn effective(version: Version, view: View<'_>) -> Result<Effective, String> {
    let mut told = String::new();
    for words in [&["config", "show"][..], &["show-config"]] {
        if words.len() == 2 && version < CONFIG_SHOW_SINCE {
            continue;
        }
        let mut command = nix(&["--extra-experimental-features", "nix-command"]);
        command.args(words).arg("--json");
        match view {
            View::Own => {}
            View::Daemon => {
                command.env("NIX_USER_CONF_FILES", "").env_remove("NIX_CONFIG");
            }
            View::File(path) => {
                command.env("NIX_USER_CONF_FILES", path).env_remove("NIX_CONFIG");
                command.env("NIX_CONF_DIR", "/nonexistent");
            }
        }
        match run(&mut command).await {
            Ok((true, stdout, _)) => match serde_json::from_str(&stdout) {
                Ok(json) => return Ok(Effective(json)),
                Err(_) => told = "`nix` printed no JSON".to_owned(),
            },
            // The older spelling says nothing more than the first, where both fail.
            Ok((false, _, stderr)) if told.is_empty() => told = stderr.trim().to_owned(),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(told)
}

/// Which process asks the caches when something is built or fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Puller {
    /// The command of Nix itself, with the user's files.
    Own,
    /// The daemon, with the machine's files, as root.
    Daemon,
}

/// As Nix chooses its store where none is named: `src/libstore/store-api.cc`.
pub fn puller() -> Puller {
    match variable("NIX_REMOTE").filter(|value| !value.is_empty()).as_deref() {
        Some("daemon") => Puller::Daemon,
        Some(_) => Puller::Own,
        None if rustix::process::geteuid().is_root() || !has_daemon() => Puller::Own,
        None => Puller::Daemon,
    }
}

/// Whether there is a daemon on this machine, by its socket.
pub fn has_daemon() -> bool {
    let socket = variable("NIX_DAEMON_SOCKET_PATH").filter(|value| !value.is_empty());
    socket.map_or_else(|| Path::new(SOCKET).exists(), |path| Path::new(&path).exists())
}

/// Whether the daemon takes the word of whoever runs this command: `trusted-users`, by name, group or `*`.
pub async fn is_trusted(trusted_users: &[String]) -> bool {
    let id = async |what: &str| match run(Command::new("id").args([what])).await {
        Ok((true, stdout, _)) => stdout.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let (users, groups): (Vec<String>, Vec<String>) = (id("-un").await, id("-Gn").await);
    trusted_users.iter().any(|trusted| match trusted.strip_prefix('@') {
        Some(group) => groups.iter().any(|own| own == group),
        None => trusted == "*" || users.iter().any(|own| own == trusted),
    })
}

/// How the daemon is made to read its configuration again, on this kind of machine.
pub fn restart_command() -> &'static str {
    if !cfg!(target_os = "macos") {
        "sudo systemctl restart nix-daemon"
    } else if Path::new("/Library/LaunchDaemons/systems.determinate.nix-daemon.plist").exists() {
        "sudo launchctl kickstart -k system/systems.determinate.nix-daemon"
    } else {
        "sudo launchctl kickstart -k system/org.nixos.nix-daemon"
    }
}

fn nix(arguments: &[&str]) -> Command {
    let mut command = Command::new("nix");
    command.args(arguments);
    command
}

async fn run(command: &mut Command) -> std::io::Result<(bool, String, String)> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_TIMEOUT, command.output()).await;
    let output = output.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// Printing a configuration takes below a second; on a machine that swaps, some seconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the daemon listens unless told.
const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// Before it, the command was `nix show-config`.
const CONFIG_SHOW_SINCE: Version = Version(2, 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_every_nix_says() {
        for (text, expected) in [
            ("nix (Nix) 2.8.0\n", Some(Version(2, 8))),
            ("nix (Nix) 2.34.8", Some(Version(2, 34))),
            ("nix (Determinate Nix 3.5.2) 2.28.3", Some(Version(2, 28))),
            ("nix (Lix, like Nix) 2.93.0", Some(Version(2, 93))),
            ("nix (Nix) 2.36.0pre20260801_88b09c6", Some(Version(2, 36))),
            ("nix (Nix) 2.4pre-rc1", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text:?}");
        }
        assert!(Version(2, 8) < Version(2, 20) && Version(3, 0) > Version(2, 99));
    }

    #[tokio::test]
    async fn trust_is_by_name_by_group_or_for_everybody() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();

        assert!(is_trusted(&words("nobody-of-that-name *")).await);
        assert!(!is_trusted(&words("nobody-of-that-name @no-such-group")).await);
        assert!(!is_trusted(&[]).await);
    }
}
