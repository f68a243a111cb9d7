//! Real Nix: the one on this machine, and older and newer ones in the chroots of `scripts/nix-versions`. Each
//! [`Machine`] has a home, a disk cache, a configuration and a store of its own; the machine's own Nix is left alone.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use narvault::nix::hash::Sha256Digest;
use narvault::nix::nar::build::Node;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::client::base_name;
use super::desk::{path_with, put_on_path};
use super::server::{Ended, TestServer, narvault};
use super::{is_required, output_of, until, variable};

/// The chroots that are looked for.
const SUITES: &[&str] = &["trixie", "sid"];

/// One installed version of Nix.
#[derive(Clone, Debug)]
pub struct Nix {
    /// Such as `2.26.3`.
    pub version: String,
    pub(super) suite: Option<&'static str>,
}

impl Nix {
    /// The one in the `PATH`.
    pub async fn host() -> Option<Self> {
        Self::find(None).await
    }

    /// Every one that is at hand: all three where `nix-versions` is required.
    pub async fn generations() -> Vec<Self> {
        let mut found = Vec::from_iter(Self::host().await);
        for suite in SUITES {
            found.extend(Self::find(Some(suite)).await);
        }
        let is_complete = found.len() > SUITES.len();
        assert!(
            is_complete || !is_required("nix-versions"),
            "required are three versions, here are {found:?}"
        );
        found
    }

    async fn find(suite: Option<&'static str>) -> Option<Self> {
        let mut command = command_in(suite);
        command.args(["nix", "--version"]).env_clear().envs(paths()).stdin(Stdio::null());
        let output = command.output().await.ok().filter(|output| output.status.success())?;
        let text = String::from_utf8(output.stdout).unwrap();
        let version = text.trim().rsplit(' ').next()?.to_owned();
        Some(Self { version, suite })
    }

    /// Whether it is at least this version, such as `(2, 26)`.
    pub fn is_since(&self, major_minor: (u32, u32)) -> bool {
        let mut numbers = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= major_minor
    }

    /// A machine with this Nix, an empty store, and no substituters.
    pub fn machine(&self) -> Machine {
        // In /tmp, which the chroots share with the host.
        let folder = tempfile::Builder::new().prefix("narvault-nix-").tempdir_in("/tmp").unwrap();
        for name in ["home", "store/nix/store"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        Machine { nix: self.clone(), folder, settings: Vec::new() }
    }
}

/// Runs the test's body with the machine's Nix; says so where there is none.
macro_rules! require_nix {
    () => {
        match $crate::support::nix::Nix::host().await {
            Some(nix) => nix,
            None => return println!("skipped: there is no Nix here"),
        }
    };
}
pub(crate) use require_nix;

/// Says that a version of Nix is passed over; fails where all versions are required.
pub fn pass_over(nix: &Nix, why: &str) {
    let told = format!("skipped: Nix {} {why}", nix.version);
    assert!(!is_required("nix-versions"), "{told}, but nix-versions is required");
    println!("{told}");
}

/// A computer with Nix and its user.
pub struct Machine {
    pub nix: Nix,
    folder: TempDir,
    settings: Vec<String>,
}

impl Machine {
    /// A file of this machine, by a name within its home.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("home").join(name)
    }

    /// Its store, as a store URL.
    pub fn store(&self) -> String {
        format!("local?root={}", self.root().display())
    }

    /// The folder that its store takes for `/`.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Where a store path really lies.
    pub fn real(&self, store_path: &str) -> PathBuf {
        self.root().join(store_path.strip_prefix('/').unwrap())
    }

    /// Puts a build log where Nix keeps that of `derivation`.
    pub fn write_log(&self, derivation: &str, text: &str) {
        let (first, rest) = base_name(derivation).split_at(2);
        let folder = self.root().join("nix/var/log/nix/drvs").join(first);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(rest), text).unwrap();
    }

    /// Writes the token into the netrc file, for every port of this host.
    pub fn log_in(&self, token: &str) {
        let line = format!("machine 127.0.0.1 login narvault password {token}\n");
        std::fs::write(self.file("netrc"), line).unwrap();
    }

    pub fn log_out(&self) {
        std::fs::remove_file(self.file("netrc")).unwrap();
    }

    /// Sets a line of nix.conf; a later one of the same name wins.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.push(format!("{name} = {value}"));
    }

    /// Adds a valid path without a content address, as somebody's build would, and gives its store path. Nix itself
    /// takes it over; that its hash means nothing is what nobody can see.
    pub async fn add(&self, name: &str, node: &Node, references: &[&str]) -> String {
        let nar = node.to_nar();
        let seed = [name.as_bytes(), &nar].concat();
        let path = format!("/nix/store/{}-{name}", &Sha256Digest::of(&seed).base32()[20..]);
        self.add_at(&path, node, references).await;
        path
    }

    /// As [`Machine::add`], at a store path of the test's choice.
    pub async fn add_at(&self, path: &str, node: &Node, references: &[&str]) {
        let nar = node.to_nar();
        lay_down(node, &self.real(path));
        let mut lines = vec![path.to_owned(), format!("sha256:{}", Sha256Digest::of(&nar).base32())];
        lines.extend([nar.len().to_string(), String::new(), references.len().to_string()]);
        lines.extend(references.iter().map(|path| (*path).to_owned()));
        self.load(&lines).await;
    }

    /// Adds a path of a text file that names its references.
    pub async fn add_text(&self, name: &str, text: &str, references: &[&str]) -> String {
        let text = format!("{text}\n{}\n", references.join("\n"));
        self.add(name, &Node::directory([("text", Node::file(text))]), references).await
    }

    /// As [`Machine::add`], many at once: names, trees and references.
    pub async fn add_all(&self, paths: &[(String, Node, Vec<String>)]) {
        let mut lines = Vec::new();
        for (path, node, references) in paths {
            let nar = node.to_nar();
            lay_down(node, &self.real(path));
            lines.extend([path.clone(), format!("sha256:{}", Sha256Digest::of(&nar).base32())]);
            lines.extend([nar.len().to_string(), String::new(), references.len().to_string()]);
            lines.extend(references.iter().cloned());
        }
        self.load(&lines).await;
    }

    async fn load(&self, lines: &[String]) {
        let registration = self.file("registration");
        std::fs::write(&registration, lines.join("\n") + "\n").unwrap();
        let mut command = self.command("nix-store");
        command.args(["--load-db"]).stdin(std::fs::File::open(registration).unwrap());
        Ran::of(command).await.success();
    }

    /// `narvault push` as this machine's user would run it, with this machine's Nix in the `PATH`.
    pub fn narvault_push<S: AsRef<str>>(
        &self,
        url: &str,
        token: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narvault"));
        command.args(["push", "--store", &self.store()]);
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self.prepare(&mut command);
        if let Some(suite) = self.nix.suite {
            self.link_nix_of(suite, &mut command);
        }
        command.env("NARVAULT_URL", url).env("NARVAULT_TOKEN", token);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Puts a `nix` before all others in the `PATH` that is the one of a chroot.
    fn link_nix_of(&self, suite: &str, command: &mut Command) {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = self.file("bin");
        std::fs::create_dir_all(&folder).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nix-in");
        let path = variable("PATH").unwrap_or_default();
        // The chroot has its own `nix`, and this folder too: without it in the `PATH`, that one is found there.
        let text = format!("#!/bin/sh\nPATH='{path}' exec '{}' {suite} env nix \"$@\"\n", script.display());
        std::fs::write(folder.join("nix"), text).unwrap();
        std::fs::set_permissions(folder.join("nix"), std::fs::Permissions::from_mode(0o755)).unwrap();
        command.env("PATH", format!("{}:{path}", folder.display()));
    }

    /// Runs `nix` on this machine's store.
    pub async fn nix<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        self.run("nix", arguments).await
    }

    /// Runs a program of Nix on this machine's store.
    pub async fn run<S: AsRef<str>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Ran {
        let mut command = self.command(program);
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        Ran::of(command).await
    }

    /// Runs a program of Nix that is told by its arguments which stores to use.
    pub async fn run_bare<S: AsRef<str>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Ran {
        let mut command = self.bare(program);
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        Ran::of(command).await
    }

    /// Makes a key as its owner would: writes the secret file, and gives its path and the public key.
    pub async fn make_key(&self, name: &str) -> (String, String) {
        let mut generate = self.bare("nix");
        generate.args(["key", "generate-secret", "--key-name", name]);
        let file = self.file(name);
        std::fs::write(&file, Ran::of(generate).await.success().stdout).unwrap();
        let mut convert = self.bare("nix");
        convert.args(["key", "convert-secret-to-public"]).stdin(std::fs::File::open(&file).unwrap());
        let public_key = Ran::of(convert).await.success().stdout.trim().to_owned();
        (file.display().to_string(), public_key)
    }

    /// `nix copy --to`.
    pub async fn push(&self, url: &str, paths: &[&str]) -> Ran {
        self.nix(["copy", "--to", url].into_iter().chain(paths.iter().copied())).await
    }

    /// `nix copy --from`, which checks signatures by the keys of [`Machine::trust`].
    pub async fn pull(&self, url: &str, paths: &[&str]) -> Ran {
        let mut command = self.bare("nix");
        command.args(["copy", "--from", url, "--to", &self.store()]).args(paths);
        Ran::of(command).await
    }

    /// Makes `public_key` the one trusted key.
    pub fn trust(&mut self, public_key: &str) {
        self.set("trusted-public-keys", public_key);
    }

    /// The path's entry of `nix path-info --json`, in whichever of its shapes.
    pub async fn path_info(&self, path: &str) -> Value {
        let ran = self.nix(["path-info", "--json", path]).await;
        let mut json: Value = serde_json::from_str(&ran.success().stdout).unwrap();
        match &mut json {
            Value::Array(list) => list.remove(0),
            Value::Object(map) => map.remove(path).unwrap_or_else(|| panic!("{path} is not in {map:?}")),
            other => panic!("{other}"),
        }
    }

    /// The NAR of a path as Nix dumps it: what two stores must agree on.
    pub async fn nar(&self, path: &str) -> Vec<u8> {
        let mut command = self.command("nix-store");
        command.args(["--dump", &self.real(path).display().to_string()]);
        let output = output_of(command).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Runs narvault as this machine's user, with this Nix on the path.
    pub async fn narvault(&self, server: &TestServer, arguments: &[&str]) -> Ended {
        let bin = self.file("bin");
        std::fs::create_dir_all(&bin).unwrap();
        put_on_path(&self.nix, &bin);
        let mut command = narvault();
        self.prepare(&mut command);
        command.args(arguments).env("PATH", path_with(&bin)).env("NARVAULT_URL", &server.url);
        Ended::of(command).await
    }

    /// Starts this machine's daemon, as root, with the machine's memory and configuration.
    pub async fn daemon(&self) -> Daemon {
        let mut command = self.bare("nix-daemon");
        command.args(["--option", "store", &self.store()]);
        Daemon::start(command, &self.file("socket")).await
    }

    /// Whether [`Machine::within`] works here.
    pub async fn can_build(&self) -> bool {
        self.within(["nix-store", "--version"]).await.succeeded
    }

    /// Runs a command with this machine's store at `/nix` itself, where derivations can be built without a sandbox.
    /// Needs root, and a Nix that does not live in `/nix/store`.
    pub async fn within<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        let mut command = command_within(self.nix.suite, &self.root().join("nix"));
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self.prepare(&mut command);
        Ran::of(command).await
    }

    /// A program of Nix on this machine's store.
    fn command(&self, program: &str) -> Command {
        let mut command = self.bare(program);
        command.args(["--store", &self.store()]);
        command
    }

    fn bare(&self, program: &str) -> Command {
        let mut command = command_in(self.nix.suite);
        command.arg(program);
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        let home = self.folder.path().join("home");
        let fixed = [
            "experimental-features = nix-command ca-derivations".to_owned(),
            "build-users-group =".to_owned(),
            "sandbox = false".to_owned(),
            "substituters =".to_owned(),
            "require-sigs = true".to_owned(),
            "connect-timeout = 10".to_owned(),
            format!("netrc-file = {}", home.join("netrc").display()),
        ];
        let settings: Vec<_> = fixed.iter().chain(&self.settings).map(String::as_str).collect();
        command.env_clear().envs(paths()).current_dir(&home).stdin(Stdio::null()).kill_on_drop(true);
        command.env("HOME", &home).env("XDG_CACHE_HOME", home.join("cache"));
        command.env("XDG_CONFIG_HOME", home.join("config")).env("NIX_CONFIG", settings.join("\n"));
        // No settings of the real user or system.
        command.env("NIX_CONF_DIR", home.join("no-conf")).env("NIX_USER_CONF_FILES", "");
    }
}

/// A running daemon, killed with this value.
pub struct Daemon {
    /// What its users give for `--store`.
    pub store: String,
    process: Child,
}

impl Daemon {
    /// Starts `command`, a `nix-daemon`, and waits until it listens.
    pub(super) async fn start(mut command: Command, socket: &Path) -> Self {
        // An earlier one leaves it behind.
        let _ = std::fs::remove_file(socket);
        command.env("NIX_DAEMON_SOCKET_PATH", socket);
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("the daemon", async || tokio::net::UnixStream::connect(socket).await.ok()).await;
        Self { store: format!("unix://{}", socket.display()), process }
    }

    /// Waits until it is gone.
    pub async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }
}

/// A run of a command of Nix that came to its end.
#[derive(Debug)]
pub struct Ran {
    pub succeeded: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub(super) async fn of(command: Command) -> Self {
        let output = output_of(command).await;
        Self {
            succeeded: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.succeeded, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Failed, and told its user `text`.
    #[track_caller]
    pub fn refused(self, text: &str) -> Self {
        assert!(!self.succeeded, "it did not fail\n{}\n{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(text), "{text:?} is not in:\n{}", self.stderr);
        self
    }
}

/// What begins a command on this machine, or in one of its chroots.
pub(super) fn command_in(suite: Option<&str>) -> Command {
    match suite {
        None => Command::new("env"),
        Some(suite) => {
            let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nix-in"));
            command.args([suite, "env"]);
            command
        }
    }
}

/// What begins a command for which a folder is `/nix`. Needs root.
pub(super) fn command_within(suite: Option<&str>, nix: &Path) -> Command {
    let mut command = command_in(suite);
    let script = "mkdir -p /nix && mount --bind \"$0\" /nix && exec \"$@\"";
    // In a chroot there is a namespace for this command already, and another one cannot be made.
    if suite.is_none() {
        command.args(["unshare", "--mount"]);
    }
    command.args(["sh", "-c", script]).arg(nix);
    command
}

/// What a command of Nix gets to see of this process's environment.
pub(super) fn paths() -> Vec<(&'static str, String)> {
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(format!("{}/.cache", variable("HOME")?)));
    let roots = variable("NARVAULT_TEST_NIX_ROOTS").or_else(|| Some(format!("{}/narvault/nix", cache?)));
    let found = [("PATH", variable("PATH")), ("NARVAULT_TEST_NIX_ROOTS", roots)];
    found.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Writes a tree as it lies in a store.
fn lay_down(node: &Node, at: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    match node {
        Node::File { executable, contents } => {
            std::fs::write(at, contents).unwrap();
            let mode = if *executable { 0o555 } else { 0o444 };
            std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Node::Symlink { target } => symlink(OsStr::from_bytes(target), at).unwrap(),
        Node::Directory { entries } => {
            std::fs::create_dir(at).unwrap();
            for (name, entry) in entries {
                lay_down(entry, &at.join(OsStr::from_bytes(name)));
            }
        }
    }
}
