//! A machine that builds, as a client of a server: with a real Nix, and the binary under test as its hook.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use super::client::{Http, hash_part};
use super::nix::{Machine, Nix, Ran, pass_over};
use super::server::{Ended, TestServer, narvault};
use super::{PATIENCE, variable};

/// A machine that builds, and pushes what it builds as `ci`.
pub struct Builder {
    pub machine: Machine,
    pub url: String,
    pub token: String,
}

/// `None` where derivations cannot be built.
pub async fn builder(server: &TestServer) -> Option<Builder> {
    let machine = Nix::host().await?.machine();
    if !machine.can_build().await {
        pass_over(&machine.nix, "cannot build here");
        return None;
    }
    let token = server.token("ci", &["push:main"]).await.text;
    Some(Builder { machine, url: server.url.clone(), token })
}

/// Runs the test's body with a machine that builds; says so where there is none.
macro_rules! require_builder {
    ($server:expr) => {
        match $crate::support::builder::builder($server).await {
            Some(builder) => builder,
            None => return println!("skipped: nothing can be built here"),
        }
    };
}
pub(crate) use require_builder;

impl Builder {
    pub fn queue(&self) -> PathBuf {
        self.machine.file("queue.db")
    }

    /// A command of the client, on this machine's store from outside, and on its queue.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = narvault();
        command.args(arguments).args(["--queue", &self.queue().display().to_string()]);
        command.env("HOME", self.machine.file("")).env("PATH", variable("PATH").unwrap());
        command.env("NIX_CONF_DIR", self.machine.file("no-conf")).env("NIX_USER_CONF_FILES", "");
        command.env("NIX_CONFIG", "build-users-group =\nsubstituters =");
        command.env("NARVAULT_URL", &self.url).env("NARVAULT_TOKEN", &self.token);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments)).await
    }

    /// As [`Builder::run`], for what looks at the store.
    pub async fn run_on_store(&self, arguments: &[&str]) -> Ended {
        self.run(&[arguments, &["--store", &self.machine.store()]].concat()).await
    }

    /// Has Nix call `narvault hook main` after each build, as docs/hooks.md says.
    pub fn set_hook(&mut self, more: &str) {
        let program = env!("CARGO_BIN_EXE_narvault");
        let text = format!("#!/bin/sh\nexec {program} hook main --queue {} {more}\n", self.queue().display());
        let path = self.machine.file("hook");
        script(&path, &text);
        self.machine.set("post-build-hook", &path.display().to_string());
    }

    /// Writes a file with these derivations, each of which refers to the one before.
    pub fn write_chain(&self, file: &str, names: &[&str]) {
        let mut text = "let d = name: text: derivation { inherit name; system = builtins.currentSystem; \
             builder = \"/bin/sh\"; args = [ \"-c\" \"echo ${text} > $out\" ]; };\n"
            .to_owned();
        let mut before = "start".to_owned();
        for (at, name) in names.iter().enumerate() {
            text.push_str(&format!("d{at} = d \"{name}\" \"{before}\";\n"));
            before = format!("${{d{at}}}");
        }
        text.push_str(&format!("in d{}\n", names.len() - 1));
        std::fs::write(self.machine.file(file), text).unwrap();
    }

    pub async fn build(&self, file: &str) -> Ran {
        self.machine.within(["nix-build", "--no-out-link", file]).await
    }

    /// The valid paths of the store that were built, by their names.
    pub async fn built(&self, names: &[&str]) -> Vec<String> {
        let all = self.machine.nix(["path-info", "--all"]).await.success().stdout;
        let mut found: Vec<String> = Vec::new();
        for name in names {
            let suffix = format!("-{name}");
            found.extend(all.lines().filter(|path| path.ends_with(&suffix)).map(str::to_owned));
        }
        assert_eq!(found.len(), names.len(), "{all}");
        found
    }

    pub async fn status(&self) -> Value {
        json(&self.run(&["hook", "status", "--json"]).await)
    }
}

pub fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
}

pub fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub async fn is_published(http: &Http, path: &str) -> bool {
    http.get(&format!("/main/{}.narinfo", hash_part(path))).await.status == 200
}

/// Each of these was pushed exactly once: every push leaves a piece of evidence.
pub async fn assert_pushed_once(server: &TestServer, paths: &[String]) {
    for path in paths {
        let view = server.admin().path("main", hash_part(path)).await.unwrap();
        let sources: Vec<&str> = view.evidence.iter().map(|one| one.source.as_str()).collect();
        assert_eq!(sources, ["ci"], "{path}");
    }
}

impl Builder {
    /// Runs `narvault watch-exec` where this machine's store is at `/nix`, and gives its exit code and words.
    pub async fn exec(&self, options: &[&str], command: &[&str]) -> Ended {
        self.exec_by(&[], env!("CARGO_BIN_EXE_narvault"), options, command).await
    }

    /// As [`Builder::exec`], with `before` in front of the command line, and another place of the binary.
    pub async fn exec_by(&self, before: &[&str], program: &str, options: &[&str], command: &[&str]) -> Ended {
        let mut words: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
        words.push("env".to_owned());
        words.extend([format!("NARVAULT_URL={}", self.url), format!("NARVAULT_TOKEN={}", self.token)]);
        words.extend([
            "sh".to_owned(),
            "-c".to_owned(),
            "\"$@\"; echo \"code $?\" >&2".to_owned(),
            "sh".to_owned(),
        ]);
        words.extend([program, "watch-exec", "main"].map(str::to_owned));
        words.extend(options.iter().chain(&["--"]).chain(command).map(|word| (*word).to_owned()));
        let ran = self.machine.within(words).await;
        let code = ran.stderr.rsplit("code ").next().and_then(|code| code.trim().parse().ok());
        Ended { code, stdout: ran.stdout, stderr: ran.stderr }
    }
}

pub async fn signal(child: &tokio::process::Child, name: &str) {
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
}

/// A process whose words are listened to.
pub struct Listened {
    pub child: tokio::process::Child,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStderr>>,
}

impl Listened {
    pub fn to(mut child: tokio::process::Child) -> Self {
        use tokio::io::AsyncBufReadExt as _;
        let stderr = child.stderr.take().unwrap();
        Self { child, lines: tokio::io::BufReader::new(stderr).lines() }
    }

    /// Waits for a line with these words.
    pub async fn says(&mut self, words: &str) {
        let mut said = Vec::new();
        let waiting = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(words) {
                    return true;
                }
                said.push(line);
            }
            false
        };
        let heard = tokio::time::timeout(PATIENCE, waiting).await.unwrap_or(false);
        assert!(heard, "{words:?} is not in {said:#?}");
    }
}
