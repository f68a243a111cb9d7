//! What Nix remembers of a cache around real builds whose results a real `narvault hook` pushes: for who builds alone, and
//! for users without rights whose daemon builds, pulls and remembers as root. Where a trap stays, `narvault doctor` finds
//! it, and the cure that it names works.

use serde_json::Value;

use crate::support::builder::{is_published, script};
use crate::support::client::hash_part;
use crate::support::desk::{BUILDER_CONF, Desk};
use crate::support::nix::{Daemon, Nix, Ran, pass_over};
use crate::support::server::{Backend, TestServer};
use crate::support::until;

/// Who builds and pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Puller {
    /// Root by itself, without a daemon.
    Own,
    /// The daemon, as root, for a user without any rights.
    Daemon,
}

/// How a path came to be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Built,
    Fetched,
}

/// A machine that builds with the cache `main` as its only substituter, set up by `narvault use --system`, and with
/// narvault's hook in its nix.conf.
struct Workshop<'a> {
    server: &'a TestServer,
    desk: Desk,
    puller: Puller,
    daemon: Option<Daemon>,
}

impl<'a> Workshop<'a> {
    /// `None` where nothing can be built.
    async fn new(server: &'a TestServer, nix: &Nix, puller: Puller, settings: &str) -> Option<Self> {
        let mut desk = Desk::new(nix);
        let token = server.token("builder", &["push:main"]).await.text;
        desk.set("NARVAULT_URL", &server.url);
        desk.set("NARVAULT_TOKEN", &token);
        let (program, hook) = (desk.installed_narvault(), desk.file("etc/hook"));
        let queue = desk.file("queue.db").display().to_string();
        script(&hook, &format!("#!/bin/sh\nexec {} hook main --queue {queue} || true\n", program.display()));
        let hook = format!("post-build-hook = {}\n", hook.display());
        desk.write("etc/nix.conf", &format!("{BUILDER_CONF}{hook}{settings}"));
        desk.write("root/netrc", &format!("machine 127.0.0.1 login builder password {token}\n"));
        if !desk.run_within("nix-store", &["--version"]).await.succeeded {
            pass_over(nix, "cannot build here");
            return None;
        }
        let mut workshop = Self { server, desk, puller, daemon: None };
        workshop.sudo(&["use", "main", "--system"]).await;
        if puller == Puller::Daemon {
            workshop.desk.become_nobody();
        }
        workshop.restart_daemon().await;
        Some(workshop)
    }

    /// As after an edit of the machine's nix.conf.
    async fn restart_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
        if self.puller == Puller::Daemon {
            self.daemon = Some(self.desk.start_building_daemon().await);
        }
    }

    async fn sudo(&self, arguments: &[&str]) -> String {
        let ended = self.desk.sudo_narvault(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Runs a program of Nix as the user who builds.
    async fn nix(&self, program: &str, arguments: &[&str]) -> Ran {
        match self.puller {
            Puller::Own => self.desk.run_within(program, arguments).await,
            Puller::Daemon => self.desk.run_by_daemon(program, arguments).await,
        }
    }

    /// Has a thing of this name, which is built or fetched: its path, and which of the two it was.
    async fn build(&self, name: &str) -> (String, Came) {
        let text = format!(
            r#"derivation {{
                name = "{name}-{}"; system = builtins.currentSystem; builder = "/bin/sh";
                args = [ "-c" "echo {name} > $out" ];
            }}"#,
            self.desk.nix.version
        );
        self.desk.write("home/thing.nix", &text);
        let ran = self.nix("nix-build", &["--no-out-link", "thing.nix"]).await.success();
        let came = match (ran.stderr.contains("building '"), ran.stderr.contains("copying path '")) {
            (true, false) => Came::Built,
            (false, true) => Came::Fetched,
            _ => panic!("neither built nor fetched: {}", ran.stderr),
        };
        (ran.stdout.trim().to_owned(), came)
    }

    /// Takes a path out of the store, and has it again.
    async fn rebuild(&self, name: &str, path: &str) -> Came {
        self.nix("nix-store", &["--delete", path]).await.success();
        let (again, came) = self.build(name).await;
        assert_eq!(again, path);
        came
    }

    /// The service that pushes what the hook has queued, once.
    async fn push_queued(&self, path: &str) {
        let (queue, store) = (self.desk.file("queue.db").display().to_string(), self.desk.store());
        self.sudo(&["hook", "run", "--once", "--queue", &queue, "--store", &store]).await;
        assert!(is_published(&self.server.http(), path).await, "{path}");
    }

    /// The failures that `doctor` finds, run by whoever pulls: with a daemon that is root.
    async fn doctor(&self) -> Vec<Failure> {
        self.findings(&["fail"]).await
    }

    /// What `doctor` finds with these words in front.
    async fn findings(&self, statuses: &[&str]) -> Vec<Failure> {
        let arguments = ["doctor", "main", "--json"];
        let ended = match self.puller {
            Puller::Own => self.desk.narvault(&arguments).await,
            Puller::Daemon => self.desk.sudo_narvault(&arguments).await,
        };
        let report: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        let word = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let checks = report["checks"].as_array().unwrap();
        let fails = checks.iter().any(|check| check["status"] == "fail");
        assert_eq!(ended.code, Some(i32::from(fails)), "{ended:?}");
        let found = checks.iter().filter(|check| statuses.contains(&word(check, "status").as_str()));
        found
            .map(|check| Failure {
                text: format!("{}: {}", word(check, "part"), word(check, "detail")),
                hint: word(check, "hint"),
            })
            .collect()
    }

    /// `doctor` finds nothing, and has nothing to say about keys and what is remembered.
    async fn assert_well(&self) {
        let mut found = self.findings(&["fail", "warn"]).await;
        let warned_of = |one: &Failure| ["key: ", "memory: "].iter().any(|part| one.text.starts_with(part));
        let failures = self.doctor().await;
        found.retain(|one| warned_of(one));
        assert!(
            failures.is_empty() && found.is_empty(),
            "{:?}, Nix {}: {failures:#?} {found:#?}",
            self.puller,
            self.desk.nix.version
        );
    }

    /// `doctor` finds what all `texts` are of, and does what its hint says last.
    async fn found_and_cured(&self, texts: &[&str]) {
        let failures = self.doctor().await;
        let fits = |failure: &&Failure| texts.iter().all(|text| failure.text.contains(text));
        let found = failures.iter().find(fits);
        let found = found.unwrap_or_else(|| panic!("{texts:?} is not in {failures:#?}"));
        assert!(found.hint.contains("--refresh"), "{found:?}");
        let command = found.hint.rsplit('`').nth(1).unwrap();
        let command = command.strip_prefix("sudo ").unwrap_or(command);
        assert!(command.starts_with("rm /tmp/"), "{command}");
        let status = tokio::process::Command::new("sh").args(["-c", command]).status().await.unwrap();
        assert!(status.success(), "{command}");
    }

    /// Fetches a path that is named, without saying how it would be built.
    async fn realise(&self, path: &str) -> Ran {
        self.nix("nix-store", &["--realise", path]).await
    }

    async fn close(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
    }
}

#[derive(Debug)]
struct Failure {
    text: String,
    hint: String,
}

/// With every version of Nix, for both who pull: on a server of its own each.
async fn with_each(settings: &str, promise: impl AsyncFn(&mut Workshop<'_>)) {
    for nix in Nix::generations().await {
        for puller in [Puller::Own, Puller::Daemon] {
            println!("Nix {}, {puller:?}", nix.version);
            let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
            if let Some(mut workshop) = Workshop::new(&server, &nix, puller, settings).await {
                promise(&mut workshop).await;
                workshop.close().await;
            }
            server.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_built_pushed_and_deleted_is_built_again_until_the_cure_and_then_fetched() {
    with_each("", async |workshop| {
        let (path, came) = workshop.build("thing").await;
        assert_eq!(came, Came::Built);
        workshop.push_queued(&path).await;

        // Whoever builds asks the cache first, and remembers for an hour that it was not there.
        assert_eq!(workshop.rebuild("thing", &path).await, Came::Built, "it is no trap any more");
        workshop.found_and_cured(&["memory: main: ", hash_part(&path), "was not there"]).await;

        assert_eq!(workshop.rebuild("thing", &path).await, Came::Fetched);
        workshop.assert_well().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_hook_pushed_is_built_again_where_nix_is_set_to_forget_what_was_not_there() {
    with_each("narinfo-cache-negative-ttl = 0\n", async |workshop| {
        let server = workshop.server;
        let (path, came) = workshop.build("thing").await;
        assert_eq!(came, Came::Built);
        workshop.push_queued(&path).await;

        assert_eq!(workshop.rebuild("thing", &path).await, Came::Fetched, "after the hook");
        workshop.assert_well().await;

        // Pushed again, by narvault and by Nix itself.
        let store = workshop.desk.store();
        let again = workshop.sudo(&["push", "main", &path, "--store", &store]).await;
        assert!(again.starts_with("0 new, 1 already there"), "{again}");
        let netrc = workshop.desk.file("root/netrc").display().to_string();
        let url = format!("{}?compression=zstd", server.push_url("main"));
        let copy =
            ["copy", "--refresh", "--option", "netrc-file", &netrc, "--to", &url, "--store", &store, &path];
        let copied = match workshop.puller {
            Puller::Own => workshop.desk.run("nix", &copy).await,
            Puller::Daemon => workshop.desk.sudo("nix", &copy).await,
        };
        copied.success();
        assert_eq!(workshop.rebuild("thing", &path).await, Came::Fetched, "after it was pushed again");
        workshop.assert_well().await;

        // Withdrawn, it is believed to be there; brought back, what is remembered is true again.
        let withdraw = ["path", "quarantine", "main", &path, "--reason", "a doubt", "--yes"];
        let withdrawn = server.narvault(withdraw).await;
        assert_eq!(withdrawn.code, Some(0), "{}", withdrawn.stderr);
        workshop.nix("nix-store", &["--delete", &path]).await.success();
        assert!(!workshop.realise(&path).await.succeeded, "it was withdrawn");
        let gone = workshop.doctor().await;
        let is_told =
            |one: &Failure| one.text.contains(hash_part(&path)) && one.text.contains("was taken out");
        assert!(gone.iter().any(is_told), "{gone:#?}");
        let restored = server.narvault(["path", "restore", "main", &path, "--reason", "none is left"]).await;
        assert_eq!(restored.code, Some(0), "{}", restored.stderr);
        workshop.realise(&path).await.success();
        workshop.assert_well().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_by_its_commands_is_no_trap_until_the_old_key_is_not_trusted_any_more() {
    with_each("narinfo-cache-negative-ttl = 0\n", async |workshop| {
        let server = workshop.server;
        let typed = async |words: &[&str]| {
            let ended = server.narvault(words).await;
            assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.stderr);
        };
        let reaches = async |step: &str| {
            until(&format!("step {step}"), async || {
                let rotation = server.admin().key_rotation("main").await.unwrap();
                (rotation.step == step).then_some(rotation)
            })
            .await
        };
        let old = server.public_key.split(':').next().unwrap();
        let (path, _) = workshop.build("before").await;
        workshop.push_queued(&path).await;
        assert_eq!(workshop.rebuild("before", &path).await, Came::Fetched);

        typed(&["key", "rotate", "main", "--publish-days", "7", "--wait-days", "30"]).await;
        let new = reaches("publish").await.new_key.unwrap();
        follow(workshop, &new, true).await;
        assert_eq!(workshop.rebuild("before", &path).await, Came::Fetched, "the new key is published");
        workshop.assert_well().await;

        typed(&["key", "promote", "main", &new]).await;
        reaches("wait").await;
        let (between, _) = workshop.build("between").await;
        workshop.push_queued(&between).await;
        for (name, path) in [("before", &path), ("between", &between)] {
            assert_eq!(workshop.rebuild(name, path).await, Came::Fetched, "both keys sign");
        }
        workshop.assert_well().await;

        // The wait, in which every client forgets what it knew with the old signature alone, is cut short.
        typed(&["key", "retire", "main", old]).await;
        reaches("done").await;
        let (after, _) = workshop.build("after").await;
        workshop.push_queued(&after).await;
        assert_eq!(workshop.rebuild("after", &after).await, Came::Fetched, "the new key alone signs");
        assert_eq!(workshop.rebuild("before", &path).await, Came::Fetched, "the old key is trusted still");
        follow(workshop, old, false).await;
        for (name, path) in [("between", &between), ("after", &after)] {
            assert_eq!(
                workshop.rebuild(name, path).await,
                Came::Fetched,
                "remembered with the new signature"
            );
        }
        workshop.nix("nix-store", &["--delete", &path]).await.success();
        let trapped = workshop.realise(&path).await;
        assert!(!trapped.succeeded, "Nix {} does not fall into it any more", workshop.desk.nix.version);
        let hash = hash_part(&path);
        workshop.found_and_cured(&["memory", hash, "without a signature of a key that is trusted"]).await;
        workshop.realise(&path).await.success();
        workshop.assert_well().await;
    })
    .await;
}

/// The machine follows the cache's keys, until that of this name has come, or gone; then its daemon reads them.
async fn follow(workshop: &mut Workshop<'_>, key: &str, has_come: bool) {
    until("the statement about the key", async || {
        workshop.sudo(&["use", "--refresh", "--system"]).await;
        let conf = workshop.desk.read("etc/nix.conf").unwrap();
        (conf.contains(&format!("{key}:")) == has_come).then_some(())
    })
    .await;
    workshop.restart_daemon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_the_daemons_memory_is_told_who_may() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = std::fs::metadata("/root").map_or(0, |root| root.permissions().mode());
    if root & 0o001 != 0 {
        return println!("skipped: everybody may look into root's home here");
    }
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    for nix in Nix::generations().await {
        let Some(workshop) = Workshop::new(&server, &nix, Puller::Daemon, "").await else { continue };

        let ended = workshop.desk.narvault(&["doctor", "main"]).await;

        assert_eq!(ended.code, Some(0), "{ended:?}");
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains("what the daemon remembers cannot be read"), "{told}");
        assert!(told.contains(&format!("sudo narvault doctor {}", server.pull_url("main"))), "{told}");
        workshop.close().await;
    }
    server.stop().await;
}
