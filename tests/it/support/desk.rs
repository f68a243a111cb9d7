//! Somebody's desk: real Nix with configuration files of its own, and narvault beside it, which finds that Nix on the
//! path. Unlike a [`super::nix::Machine`], nothing is set by NIX_CONFIG: what counts is what stands in the files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::builder::script;
use super::nix::{Daemon, Nix, Ran, command_in, command_within, paths};
use super::server::{Ended, TestServer, narvault};

/// Makes a `nix` and a `nix-store` in a folder that are those of that Nix, wherever it is installed; the folder is the
/// first of the search path.
pub fn put_on_path(nix: &Nix, folder: &Path) {
    if let Some(suite) = nix.suite {
        let nix_in = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/nix-in");
        for program in ["nix", "nix-store"] {
            let text = format!("#!/bin/sh\nPATH=${{PATH#*:}} exec {nix_in} {suite} {program} \"$@\"\n");
            script(&folder.join(program), &text);
        }
    }
}

/// The search path with a folder before everything else.
pub fn path_with(folder: &Path) -> String {
    let (_, path) = paths().into_iter().find(|(name, _)| *name == "PATH").unwrap();
    format!("{}:{path}", folder.display())
}

pub struct Desk {
    pub nix: Nix,
    folder: TempDir,
    variables: Vec<(String, String)>,
    is_nobody: bool,
}

impl Desk {
    /// A desk whose machine asks no substituter and has an empty store.
    pub fn new(nix: &Nix) -> Self {
        let folder = tempfile::Builder::new().prefix("narvault-desk-").tempdir_in("/tmp").unwrap();
        for name in ["home", "root", "etc", "bin", "store/nix/store"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let desk = Self { nix: nix.clone(), folder, variables: Vec::new(), is_nobody: false };
        desk.write("etc/nix.conf", &desk.machine_conf());
        put_on_path(nix, &desk.file("bin"));
        desk
    }

    /// A nix.conf of a machine with which nothing leaves this machine.
    pub fn machine_conf(&self) -> String {
        format!("{BUILDER_CONF}store = {}\n", self.store())
    }

    /// This desk's store, as a store URL.
    pub fn store(&self) -> String {
        format!("local?root={}", self.file("store").display())
    }

    /// A file of this desk: `etc/…` is the machine's, `home/…` the user's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The text of a file; `None` if it is not there.
    pub fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.file(name)).ok()
    }

    /// Sets a variable of the environment, for Nix and for narvault.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Logs in, as a person does.
    pub async fn log_in(&self, server: &TestServer, token: &str) {
        let file = self.file("home/token");
        std::fs::write(&file, token).unwrap();
        let mut command = self.program();
        command.args(["login", &server.url, "--token-stdin"]).stdin(std::fs::File::open(&file).unwrap());
        let ended = Ended::of(command).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        std::fs::remove_file(file).unwrap();
    }

    /// Starts the daemon of this machine, as root, and lets everybody ask it.
    pub async fn start_daemon(&mut self) -> Daemon {
        self.start_daemon_by(command_in(self.nix.suite)).await
    }

    /// As [`Desk::start_daemon`], one that builds: this desk's store is its `/nix` itself.
    pub async fn start_building_daemon(&mut self) -> Daemon {
        // Without it Nix may take a store for another daemon's, by the socket: that is itself.
        std::fs::create_dir_all(self.file("store/nix/var/nix")).unwrap();
        self.start_daemon_by(command_within(self.nix.suite, &self.file("store/nix"))).await
    }

    async fn start_daemon_by(&mut self, mut command: Command) -> Daemon {
        let socket = self.file("socket");
        self.prepare(&mut command);
        command.arg("nix-daemon").env("HOME", self.file("root"));
        let daemon = Daemon::start(command, &socket).await;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        self.set("NIX_DAEMON_SOCKET_PATH", &socket.display().to_string());
        daemon
    }

    /// From now on, commands are run by a user without any rights, to whom the home belongs.
    pub fn become_nobody(&mut self) {
        self.installed_narvault();
        std::fs::set_permissions(self.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(self.file("home"), Some(NOBODY), Some(NOBODY)).unwrap();
        self.is_nobody = true;
    }

    pub fn become_root(&mut self) {
        self.is_nobody = false;
    }

    /// The program under test, where everybody can run it, in a chroot too: the build's own folder may be closed to others.
    pub fn installed_narvault(&self) -> PathBuf {
        let (built, here) = (env!("CARGO_BIN_EXE_narvault"), self.file("bin/narvault"));
        if !here.exists() && std::fs::hard_link(built, &here).is_err() {
            std::fs::copy(built, &here).unwrap();
        }
        here
    }

    /// Fetches a path through the daemon.
    pub async fn pull_by_daemon(&self, path: &str) -> Ran {
        let store = format!("unix://{}", self.file("socket").display());
        self.run("nix-store", &["--store", &store, "--realise", path]).await
    }

    /// Runs narvault here.
    pub async fn narvault(&self, arguments: &[&str]) -> Ended {
        let mut command = self.program();
        command.args(arguments);
        Ended::of(command).await
    }

    /// Runs narvault here as root does, with a home of its own, whoever sits at the desk.
    pub async fn sudo_narvault(&self, arguments: &[&str]) -> Ended {
        let mut command = narvault();
        command.args(arguments);
        self.prepare(&mut command);
        command.env("PATH", path_with(&self.file("bin"))).env("HOME", self.file("root"));
        Ended::of(command).await
    }

    /// As [`Desk::narvault`], and expects that it succeeds.
    pub async fn narvault_ok(&self, arguments: &[&str]) -> String {
        let ended = self.narvault(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// As [`Desk::narvault_ok`], with `--json`.
    pub async fn narvault_json(&self, arguments: &[&str]) -> Value {
        let text = self.narvault_ok(&[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs a program of Nix here, with no options but those given.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        self.run_by(command_in(self.nix.suite), program, arguments, &[]).await
    }

    /// As [`Desk::run`], as root with its own home, whoever sits at the desk.
    pub async fn sudo(&self, program: &str, arguments: &[&str]) -> Ran {
        let mut command = command_in(self.nix.suite);
        command.arg(program).args(arguments).stdin(Stdio::null());
        self.prepare(&mut command);
        command.env("HOME", self.file("root"));
        Ran::of(command).await
    }

    /// As [`Desk::run`], with this desk's store at `/nix` itself, where derivations can be built without a sandbox.
    pub async fn run_within(&self, program: &str, arguments: &[&str]) -> Ran {
        self.run_by(command_within(self.nix.suite, &self.file("store/nix")), program, arguments, &[]).await
    }

    /// As [`Desk::run_within`], where the daemon does what is to be done.
    pub async fn run_by_daemon(&self, program: &str, arguments: &[&str]) -> Ran {
        // Nix reads from its users' `/nix` what the daemon has put there.
        let within = command_within(self.nix.suite, &self.file("store/nix"));
        self.run_by(within, program, arguments, &[("NIX_REMOTE", "daemon")]).await
    }

    async fn run_by(
        &self,
        mut command: Command,
        program: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Ran {
        command.args(self.without_rights()).arg(program).args(arguments).stdin(Stdio::null());
        self.prepare(&mut command);
        command.envs(variables.iter().copied());
        Ran::of(command).await
    }

    /// What makes a command that of a user without any rights, if such a one sits here.
    fn without_rights(&self) -> &'static [&'static str] {
        if self.is_nobody { &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] } else { &[] }
    }

    /// Fetches a path by whatever substituters are configured.
    pub async fn pull(&self, path: &str) -> Ran {
        self.run("nix-store", &["--realise", path]).await
    }

    /// What Nix says its configuration is.
    pub async fn effective(&self) -> Value {
        let words: &[&str] = if self.nix.is_since((2, 20)) {
            &["config", "show", "--json"]
        } else {
            &["show-config", "--json"]
        };
        let arguments = [&["--extra-experimental-features", "nix-command"], words].concat();
        serde_json::from_str(&self.run("nix", &arguments).await.success().stdout).unwrap()
    }

    /// narvault, which finds this desk's Nix on the path.
    fn program(&self) -> Command {
        if self.is_nobody {
            // Only root can enter a chroot: it runs within one that has that Nix.
            let mut command = command_in(self.nix.suite);
            command.args(self.without_rights()).arg(self.installed_narvault());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            self.prepare(&mut command);
            return command;
        }
        let mut command = narvault();
        self.prepare(&mut command);
        if self.variables.iter().all(|(name, _)| name != "PATH") {
            command.env("PATH", path_with(&self.file("bin")));
        }
        command
    }

    fn prepare(&self, command: &mut Command) {
        let home = self.file("home");
        command.env_clear().envs(paths()).current_dir(&home).kill_on_drop(true);
        command.env("HOME", &home).env("NIX_CONF_DIR", self.file("etc"));
        command.env("XDG_CONFIG_DIRS", self.file("none"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }
}

/// A nix.conf with which nothing leaves this machine, and with which root builds by itself.
pub const BUILDER_CONF: &str = "experimental-features = nix-command\nbuild-users-group =\nsandbox = false\n\
    substituters =\nconnect-timeout = 10\n";

/// A user that every machine has.
const NOBODY: u32 = 65534;
