//! A command that is watched runs as it would without: its output, its exit code, its signals. What it built is
//! pushed, and nothing of anybody else's.

use crate::support::builder::{
    Builder, Listened, assert_pushed_once, is_published, require_builder, script, signal,
};
use crate::support::nix::{Nix, require_nix};
use crate::support::server::{Backend, TestServer, narvault};
use crate::support::variable;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_keeps_its_code_and_what_it_built_is_pushed() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut builder = require_builder!(&server);
    let own = builder.machine.file("own-hook");
    let called = builder.machine.file("called");
    script(&own, &format!("#!/bin/sh\necho \"$DRV_PATH\" >> {}\n", called.display()));
    builder.machine.set("post-build-hook", &own.display().to_string());
    let before = builder.machine.add_text("before", "before", &[]).await;
    builder.write_chain("chain.nix", &["one", "two"]);
    builder.write_chain("other.nix", &["three"]);

    let built = builder.exec(&[], &["nix-build", "--no-out-link", "chain.nix"]).await;
    let failed = builder
        .exec(&["--push-failures", "fatal"], &["sh", "-c", "nix-build --no-out-link other.nix; exit 42"])
        .await;
    let absent = builder.exec(&[], &["no-such-program"]).await;

    let paths = builder.built(&["one", "two", "three"]).await;
    assert_eq!(built.code, Some(0), "{built:?}");
    assert_eq!(built.stdout.trim(), paths[1], "the command's output, and nothing else");
    assert_eq!(failed.code, Some(42), "{failed:?}");
    assert_eq!(absent.code, Some(127), "{absent:?}");
    assert_pushed_once(&server, &paths).await;
    assert!(!is_published(&server.http(), &before).await);
    assert_eq!(
        std::fs::read_to_string(called).unwrap().lines().count(),
        3,
        "the machine's own hook runs too"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_fails_warns_or_fails_the_command_as_asked() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut builder = require_builder!(&server);
    for file in ["a", "b", "c", "d"] {
        builder.write_chain(&format!("{file}.nix"), &[file]);
    }
    let build = |file: &'static str| ["nix-build", "--no-out-link", file];

    let token = std::mem::replace(&mut builder.token, "nvt_wrong".to_owned());
    let warned = builder.exec(&[], &build("a.nix")).await;
    let fatal = builder.exec(&["--push-failures=fatal"], &build("b.nix")).await;
    builder.token = token;
    builder.url = "http://127.0.0.1:1".to_owned();
    let unreachable = builder.exec(&["--push-failures=fatal"], &build("c.nix")).await;
    let failed_itself = builder
        .exec(&["--push-failures=fatal"], &["sh", "-c", "nix-build --no-out-link d.nix; exit 9"])
        .await;

    let paths = builder.built(&["a", "b", "c", "d"]).await;
    assert_eq!(warned.code, Some(0), "{warned:?}");
    assert!(warned.stderr.contains(&format!("narvault push main {}", paths[0])), "{warned:?}");
    assert_eq!(fatal.code, Some(3), "{fatal:?}");
    assert_eq!(unreachable.code, Some(5), "{unreachable:?}");
    assert_eq!(failed_itself.code, Some(9), "{failed_itself:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_nix_at_hand_tells_the_hook_what_a_command_built() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut paths = Vec::new();
    let token = server.token("ci", &["push:main"]).await.text;
    for nix in Nix::generations().await {
        let version = nix.version.clone();
        let builder = Builder { machine: nix.machine(), url: server.url.clone(), token: token.clone() };
        if !builder.machine.can_build().await {
            println!("skipped: nothing can be built with Nix {version} here");
            continue;
        }
        // Where the chroots see it.
        let program = builder.machine.file("narvault");
        std::fs::copy(env!("CARGO_BIN_EXE_narvault"), &program).unwrap();
        let name = format!("by-{version}");
        builder.write_chain("chain.nix", &["common", &name]);

        let program = program.display().to_string();
        let built = builder.exec_by(&[], &program, &[], &["nix-build", "--no-out-link", "chain.nix"]).await;

        assert_eq!(built.code, Some(0), "{version}: {built:?}");
        assert!(!built.stderr.contains("did not tell"), "{version}: {built:?}");
        assert!(built.stdout.trim().ends_with(&name), "{version}: {built:?}");
        paths.push(built.stdout.trim().to_owned());
    }

    assert_pushed_once(&server, &paths).await;
    server.stop().await;
}

/// Starts a daemon on the store at `/nix`, waits until it listens, and runs what follows as its client.
const WITH_DAEMON: &str = "\
    mkdir -p /nix/var/nix/daemon-socket; \
    nix-daemon >/dev/null 2>&1 & daemon=$!; \
    while ! [ -S /nix/var/nix/daemon-socket/socket ]; do kill -0 $daemon || exit 99; done; \
    NIX_REMOTE=daemon \"$@\"; code=$?; kill $daemon; exit $code";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_runs_the_hook_for_whom_it_trusts_and_others_are_told() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let builder = require_builder!(&server);
    // For nobody to read the command and the file, and to make a folder.
    let program = builder.machine.file("narvault");
    std::fs::copy(env!("CARGO_BIN_EXE_narvault"), &program).unwrap();
    for folder in [builder.machine.file("..").as_path(), &builder.machine.file("")] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for file in ["a", "b", "c"] {
        builder.write_chain(&format!("{file}.nix"), &[file]);
    }
    let program = program.display().to_string();
    let root = ["sh", "-c", WITH_DAEMON, "sh"];
    let nobody =
        [&root[..], &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/tmp"]]
            .concat();
    let build = |file: &'static str| ["nix-build", "--no-out-link", file];

    let trusted = builder.exec_by(&root, &program, &[], &build("a.nix")).await;
    let untrusted = builder.exec_by(&nobody, &program, &[], &build("b.nix")).await;
    let from_store = builder.exec_by(&nobody, &program, &["--from-store"], &build("c.nix")).await;

    let paths = builder.built(&["a", "b", "c"]).await;
    for (ended, told) in [(&trusted, true), (&untrusted, false), (&from_store, true)] {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(!ended.stderr.contains("add `--from-store`"), told, "{ended:?}");
    }
    assert_pushed_once(&server, &[paths[0].clone(), paths[2].clone()]).await;
    assert!(!is_published(&server.http(), &paths[1]).await, "it may be somebody else's");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_the_command() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let machine = require_nix!().machine();
    let token = server.token("ci", &["push:main"]).await.text;
    let builder = Builder { machine, url: server.url.clone(), token };
    let store = builder.machine.store();
    let start = |name: &str, text: &str| {
        let path = builder.machine.file(name);
        script(&path, text);
        let mut command = narvault();
        command.args(["watch-exec", "main", "--store", &store, "--"]).arg(path);
        command.env("HOME", builder.machine.file("")).env("PATH", variable("PATH").unwrap());
        command.env("NARVAULT_URL", &builder.url).env("NARVAULT_TOKEN", &builder.token);
        Listened::to(command.spawn().unwrap())
    };
    let mut handling =
        start("handling", "#!/bin/sh\ntrap 'exit 33' TERM\necho ready >&2\nwhile :; do sleep 0.1; done\n");
    let mut dying = start("dying", "#!/bin/sh\necho ready >&2\nexec sleep 100\n");
    handling.says("ready").await;
    dying.says("ready").await;

    signal(&handling.child, "TERM").await;
    signal(&dying.child, "HUP").await;

    assert_eq!(handling.child.wait().await.unwrap().code(), Some(33));
    assert_eq!(dying.child.wait().await.unwrap().code(), Some(128 + 1));
    server.stop().await;
}
