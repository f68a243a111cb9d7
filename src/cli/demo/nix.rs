//! The stock Nix of this machine, for the demo: each user with a home, a cache and a store of their own.
//!
//! Never touches the machine's store, its daemon or its configuration: everything lies in the demo's folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::packages::{Package, export};
use crate::config::variable;
use crate::nix::store_path::StorePath;

/// One user of Nix: who they are to the server, and which keys they trust.
pub struct NixUser {
    folder: PathBuf,
}

/// How a Nix command ended.
pub struct Ended {
    pub ok: bool,
    /// What it said, for people.
    pub said: String,
}

/// The version of the Nix on this machine, in its own words; `None` if there is none that runs.
pub async fn version() -> Option<String> {
    let output = Command::new("nix").arg("--version").stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

impl NixUser {
    /// A user `name` below `folder` who has `token` for `host`, if any, and trusts `key`, if any.
    pub fn make(
        folder: &Path,
        name: &str,
        token: Option<(&str, &str)>,
        key: Option<&str>,
    ) -> io::Result<Self> {
        let user = Self { folder: folder.join(name) };
        fs::create_dir_all(user.folder.join("home"))?;
        fs::create_dir_all(user.folder.join("conf"))?;
        let mut netrc =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(user.netrc_path())?;
        if let Some((host, token)) = token {
            writeln!(netrc, "machine {host} login {name} password {token}")?;
        }
        let configuration = format!(
            "experimental-features = nix-command\n\
             netrc-file = {}\n\
             require-sigs = true\n\
             substituters =\n\
             trusted-public-keys = {}\n\
             build-users-group =\n",
            user.netrc_path().display(),
            key.unwrap_or_default(),
        );
        fs::write(user.folder.join("conf/nix.conf"), configuration)?;
        Ok(user)
    }

    /// The address of this user's store.
    pub fn store(&self) -> String {
        format!("local?root={}", self.root().display())
    }

    /// Where a path of this user's store lies on this machine.
    pub fn file_of(&self, path: &StorePath, below: &str) -> PathBuf {
        self.root().join(path.to_string().trim_start_matches('/')).join(below)
    }

    pub fn netrc_path(&self) -> PathBuf {
        self.folder.join("netrc")
    }

    /// Puts packages into this user's store, as if they had been built there.
    pub async fn import(&self, packages: &[&Package]) -> io::Result<Ended> {
        let file = self.folder.join("export");
        fs::write(&file, export(packages))?;
        let mut command = self.command("nix-store");
        command.args(["--option", "store", &self.store(), "--option", "require-sigs", "false", "--import"]);
        command.stdin(Stdio::from(File::open(&file)?));
        run(command).await
    }

    /// `nix copy` between this user's store and `url`.
    pub async fn copy(&self, direction: Direction, url: &str, path: &StorePath) -> io::Result<Ended> {
        let mut command = self.command("nix");
        let store = self.store();
        match direction {
            Direction::Push => command.args(["copy", "--from", &store, "--to", url]),
            Direction::Pull => command.args(["copy", "--from", url, "--to", &store]),
        };
        command.arg(path.to_string());
        run(command).await
    }

    /// `nix path-info`: asks a cache for a path, and remembers the answer.
    pub async fn look_up(&self, url: &str, path: &StorePath) -> io::Result<Ended> {
        let mut command = self.command("nix");
        command.args(["path-info", "--store", url]).arg(path.to_string());
        run(command).await
    }

    fn root(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// With an environment that holds nothing of the caller's but the search path.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
        if let Some(path) = variable("PATH") {
            command.env("PATH", path);
        }
        command
            .env("HOME", self.folder.join("home"))
            .env("XDG_CACHE_HOME", self.folder.join("cache"))
            .env("XDG_CONFIG_HOME", self.folder.join("home/config"))
            .env("XDG_CONFIG_DIRS", self.folder.join("home/none"))
            .env("NIX_CONF_DIR", self.folder.join("conf"))
            .env("TMPDIR", self.folder.join("home"))
            .current_dir(&self.folder);
        command
    }
}

/// Which way `nix copy` goes.
#[derive(Clone, Copy)]
pub enum Direction {
    Push,
    Pull,
}

async fn run(mut command: Command) -> io::Result<Ended> {
    let output = tokio::time::timeout(COMMAND_TIMEOUT, command.output()).await;
    let Output { status, stdout, stderr } =
        output.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let said = [stdout, stderr].concat();
    Ok(Ended { ok: status.success(), said: String::from_utf8_lossy(&said).trim().to_owned() })
}

/// A copy of these packages takes well below a second; an old Nix that waits for a lost answer takes minutes.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
