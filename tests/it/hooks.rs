//! What is built is pushed, once, with a real Nix that really builds: by a post-build-hook, and by watching the store.
//! The server being down makes it late; nothing is lost, and no build fails for it.

use narvault::nix::nar::build::Node;
use narvault::nix::store_path::StorePath;
use narvault::queue::Queue;
use narvault::time::Clock;

use crate::push::store_path;
use crate::support::builder::{
    Builder, Listened, assert_pushed_once, is_published, json, require_builder, script, signal,
};
use crate::support::nix::{Nix, require_nix};
use crate::support::server::{Backend, Ended, TestServer, narvault};
use crate::support::until;

// --- the hook ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_built_while_the_server_is_down_arrives_when_it_is_back() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let mut builder = require_builder!(&server);
    builder.set_hook("");
    let names = ["one", "two", "three"];
    builder.write_chain("chain.nix", &names);
    server.process().kill().await;

    builder.build("chain.nix").await.success();

    let paths = builder.built(&names).await;
    let tried = builder.run_on_store(&["hook", "run", "--once"]).await;
    assert_eq!(tried.code, Some(5), "{tried:?}");
    let status = builder.status().await;
    assert_eq!(status["caches"][0]["waiting"], 3, "{status}");
    assert!(status["caches"][0]["error"].as_str().unwrap().contains("cannot reach"), "{status}");
    let people = builder.run(&["hook", "status"]).await.stdout;
    assert!(people.starts_with("CACHE") && people.contains("\nmain "), "{people}");
    server.restart_after_kill(&[]).await;
    let flushed = builder.run_on_store(&["hook", "flush", "--timeout", "50s", "--json"]).await;
    assert_eq!(flushed.code, Some(0), "{flushed:?}");
    assert_eq!(json(&flushed)["pushed"], 3);
    assert_pushed_once(&server, &paths).await;
    let status = builder.status().await;
    assert_eq!(status["caches"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_cannot_queue_fails_no_build_and_says_why() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut builder = require_builder!(&server);
    builder.set_hook("");
    let (damaged, not_a_folder) = ("no database ".repeat(500), builder.machine.file("file"));
    std::fs::write(builder.queue(), &damaged).unwrap();
    std::fs::write(&not_a_folder, "").unwrap();
    builder.write_chain("a.nix", &["a"]);
    builder.write_chain("b.nix", &["b"]);
    builder.write_chain("c.nix", &["c"]);

    let with_damaged = builder.build("a.nix").await.success();
    builder.set_hook(&format!("--queue {}/queue.db", not_a_folder.display()));
    let hook = std::fs::read_to_string(builder.machine.file("hook")).unwrap();
    let first_queue = format!("--queue {} ", builder.queue().display());
    script(&builder.machine.file("hook"), &hook.replacen(&first_queue, "", 1));
    let without_folder = builder.build("b.nix").await.success();
    script(
        &builder.machine.file("hook"),
        &hook.replacen("hook main", "hook UPPER", 1).replacen(&first_queue, "", 1),
    );
    let without_cache = builder.build("c.nix").await.success();

    for (ran, expected) in [
        (with_damaged, "is damaged, or is no queue"),
        (without_folder, "cannot open the queue"),
        (without_cache, "`UPPER` is no cache"),
    ] {
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
        assert!(ran.stderr.contains("is not queued"), "{}", ran.stderr);
    }
    assert_eq!(std::fs::read_to_string(builder.queue()).unwrap(), damaged);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_that_nix_names_are_queued_without_asking_it() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let machine = require_nix!().machine();
    let token = server.token("ci", &["push:main"]).await.text;
    let builder = Builder { machine, url: server.url.clone(), token };
    let path = builder.machine.add_text("named", "hello", &[]).await;
    let mut hook = builder.command(&["hook", "main"]);
    // No Nix in sight: the daemon's PATH may have none.
    hook.env("PATH", "").env("OUT_PATHS", format!("{path} {path}")).env("DRV_PATH", "/nix/store/x.drv");
    hook.env_remove("NARVAULT_URL").env_remove("NARVAULT_TOKEN");

    let hooked = Ended::of(hook).await;
    let outside = builder.run(&["hook", "main"]).await;
    let ran = builder.run_on_store(&["hook", "run", "--once"]).await;

    assert_eq!((hooked.code, hooked.stderr.as_str()), (Some(0), ""));
    assert_eq!(outside.code, Some(2), "{outside:?}");
    assert!(outside.stderr.contains("post-build-hook"), "{}", outside.stderr);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "1 pushed, 0 dropped, 0 waiting\n"), "{ran:?}");
    assert_pushed_once(&server, &[path]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_that_are_killed_damage_nothing_and_those_that_ended_have_queued() {
    let machine = require_nix!().machine();
    let builder = Builder { machine, url: "http://127.0.0.1:1".to_owned(), token: "nvt_none".to_owned() };
    let hook = |name: String| {
        let mut hook = builder.command(&["hook", "main"]);
        hook.env("OUT_PATHS", format!("/nix/store/3sprlmfy5qih7ss1iq6w87830aqbm0sj-{name}"));
        hook
    };

    // Each is killed at another moment: when so many hooks that began after it have ended.
    let mut running: Vec<(usize, tokio::process::Child)> = Vec::new();
    for number in 0..24 {
        running.push((number + number % 3, hook(format!("killed-{number}")).spawn().unwrap()));
        let ended = Ended::of(hook(format!("ended-{number}"))).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        for (_, child) in running.iter_mut().filter(|(at, _)| *at == number) {
            child.kill().await.unwrap();
        }
        running.retain(|(at, _)| *at > number);
    }

    let status = builder.status().await;
    let waiting = status["caches"][0]["waiting"].as_u64().unwrap();
    assert!((24..=48).contains(&waiting), "{status}");
    let queue = narvault::queue::Queue::open(&builder.queue()).await.unwrap();
    let due = queue.due(None, narvault::time::Clock::System.now(), 100).await.unwrap();
    for number in 0..24 {
        let name = format!("ended-{number}");
        assert_eq!(due.iter().filter(|entry| entry.path.name() == name).count(), 1, "{name}");
    }
}

#[tokio::test]
async fn what_roots_hook_makes_belongs_to_the_owner_of_the_queues_folder() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    let folder = tempfile::tempdir().unwrap();
    let queue = folder.path().join("queue.db");
    if chown(folder.path(), Some(65534), Some(65534)).is_err() {
        return println!("skipped: only root may give a folder away");
    }
    let mut hook = narvault();
    hook.args(["hook", "main", "--queue"]).arg(&queue);
    hook.env("OUT_PATHS", "/nix/store/3sprlmfy5qih7ss1iq6w87830aqbm0sj-x")
        .env("DRV_PATH", "/nix/store/x.drv");
    // While another process has it open, so that its log stays.
    let open = narvault::queue::Queue::open(&queue).await.unwrap();

    assert_eq!(Ended::of(hook).await.code, Some(0));

    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.iter().any(|file| file.ends_with("queue.db-wal")), "{files:?}");
    for file in files {
        assert_eq!(std::fs::metadata(&file).unwrap().uid(), 65534, "{}", file.display());
    }
    assert_eq!(open.waiting(Some("main")).await.unwrap().0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_pushes_what_hooks_of_parallel_builds_queue_and_goes_on_after_a_kill() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut builder = require_builder!(&server);
    builder.set_hook("");
    let mut service = builder.command(&["hook", "run", "--store", &builder.machine.store()]).spawn().unwrap();
    let names: Vec<String> = (0..12).map(|number| format!("part-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (at, names) in names.chunks(3).enumerate() {
        builder.write_chain(&format!("{at}.nix"), names);
    }
    let build = async |at: usize| builder.build(&format!("{at}.nix")).await.success();

    tokio::join!(build(0), build(1));
    let early = builder.built(&names[..6]).await;
    until("the first paths", async || is_published(&server.http(), &early[5]).await.then_some(())).await;
    service.kill().await.unwrap();
    tokio::join!(build(2), build(3));
    let mut service = builder.command(&["hook", "run", "--store", &builder.machine.store()]).spawn().unwrap();

    let flushed = builder.run_on_store(&["hook", "flush", "--timeout", "50s"]).await;

    assert_eq!(flushed.code, Some(0), "{flushed:?}");
    assert_pushed_once(&server, &builder.built(&names).await).await;
    signal(&service, "TERM").await;
    assert!(service.wait().await.unwrap().success());
    server.stop().await;
}

/// A service that pushes a queue, and one path in it that it has tried in vain: its next try is 5 s away. The server
/// is down.
async fn service_that_waits(server: &mut TestServer, builder: &Builder, more: &[&str]) -> (Listened, String) {
    server.process().kill().await;
    let path = builder.machine.add_text("late", "late", &[]).await;
    let mut hook = builder.command(&["hook", "main"]);
    hook.env("OUT_PATHS", &path).env("DRV_PATH", "/nix/store/x.drv");
    assert_eq!(Ended::of(hook).await.code, Some(0));
    let store = builder.machine.store();
    let arguments = [&["hook", "run", "--store", &store], more].concat();
    let mut service = Listened::to(builder.command(&arguments).spawn().unwrap());
    service.says("main: cannot reach").await;
    (service, path)
}

async fn builder_without_builds(server: &TestServer) -> Option<Builder> {
    let machine = Nix::host().await?.machine();
    let token = server.token("ci", &["push:main"]).await.text;
    Some(Builder { machine, url: server.url.clone(), token })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_told_to_stop_pushes_first_what_waits() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    let (mut service, path) = service_that_waits(&mut server, &builder, &[]).await;
    server.restart_after_kill(&[]).await;

    signal(&service.child, "TERM").await;

    service.says("stopping: pushing what waits, for at most 30 s").await;
    service.says("0 paths waiting").await;
    assert_eq!(service.child.wait().await.unwrap().code(), Some(0));
    assert_pushed_once(&server, &[path]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_stops_within_its_time_and_its_exit_code_says_that_something_is_left() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    // Three tries with at most 1.5 s between them.
    let (mut service, path) = service_that_waits(&mut server, &builder, &["--flush-timeout", "4s"]).await;

    signal(&service.child, "TERM").await;

    service.says("stopped; 0 paths pushed meanwhile, 1 path waiting").await;
    service.says("error: cannot reach").await;
    service.says("hint: run `narvault hook status`").await;
    assert_eq!(service.child.wait().await.unwrap().code(), Some(5));
    let status = builder.status().await;
    assert_eq!(status["caches"][0]["waiting"], 1, "{status}");
    // And it is there for the next start.
    server.restart_after_kill(&[]).await;
    let ran = builder.run_on_store(&["hook", "flush", "--timeout", "50s"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_pushed_once(&server, &[path]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_last_flush_at_once() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    let (mut service, _) = service_that_waits(&mut server, &builder, &["--flush-timeout", "1h"]).await;

    signal(&service.child, "TERM").await;
    service.says("for at most 3600 s").await;
    signal(&service.child, "TERM").await;

    service.says("1 path waiting").await;
    // Whether a try has failed meanwhile decides which of the two it is.
    assert!(matches!(service.child.wait().await.unwrap().code(), Some(1 | 5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_never_had_the_queue_leaves_it_to_the_one_that_has() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    let (service, _) = service_that_waits(&mut server, &builder, &[]).await;
    let mut second = builder.command(&["hook", "run", "--store", &builder.machine.store()]);
    let mut second = Listened::to(second.spawn().unwrap());
    second.says("another process pushes this queue").await;

    signal(&second.child, "TERM").await;

    second.says("1 path waiting").await;
    assert_eq!(second.child.wait().await.unwrap().code(), Some(0));
    drop(service);
}

/// What a process takes of memory at the moment, and what it took at most, in KiB.
#[cfg(target_os = "linux")]
fn memory_of(process: &tokio::process::Child) -> [u64; 2] {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id().unwrap())).unwrap();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    })
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_a_service_does_not_grow_with_what_went_through_its_queue() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    let nodes: Vec<_> = (0..1_000)
        .map(|number| {
            let name = format!("turn-{number}");
            (store_path(&name), Node::file(name), Vec::new())
        })
        .collect();
    builder.machine.add_all(&nodes).await;
    let as_paths = |paths: &[String]| -> Vec<StorePath> {
        paths.iter().map(|path| StorePath::from_absolute(path).unwrap()).collect()
    };
    let valid: Vec<String> = nodes.into_iter().map(|(path, ..)| path).collect();
    let valid = as_paths(&valid);
    let collected: Vec<String> =
        (0..20_000).map(|number| store_path(&format!("collected-{number}"))).collect();
    let queue = Queue::open(&builder.queue()).await.unwrap();
    let mut service = builder.command(&["hook", "run", "--store", &builder.machine.store()]);
    let mut service = service.stderr(std::process::Stdio::null()).spawn().unwrap();
    let through = async |paths: &[StorePath]| {
        queue.add("main", paths, Clock::System.now()).await.unwrap();
        until("an empty queue", async || (queue.waiting(None).await.unwrap().0 == 0).then_some(())).await;
    };

    // The first rounds make what is kept from then on: connections, statements, buffers.
    through(&valid).await;
    through(&valid).await;
    let [early, _] = memory_of(&service);
    for some in collected.chunks(10_000) {
        through(&as_paths(some)).await;
        through(&valid).await;
        through(&valid).await;
    }

    let [late, most] = memory_of(&service);
    println!("after 2 000 paths {early} KiB, after 26 000 {late} KiB, at most {most} KiB");
    assert!(late <= early + 8 * 1024, "it grew from {early} to {late} KiB");
    assert!(most <= 100 * 1024, "{most} KiB");
    assert_eq!(server.admin().cache("main").await.unwrap().paths, 1_000);
    signal(&service, "TERM").await;
    assert!(service.wait().await.unwrap().success());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_may_push_in_the_background_by_itself() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut builder = require_builder!(&server);
    builder.set_hook("--push");
    let hook = std::fs::read_to_string(builder.machine.file("hook")).unwrap();
    let set = format!("export NARVAULT_URL={} NARVAULT_TOKEN={}\nexec", builder.url, builder.token);
    script(&builder.machine.file("hook"), &hook.replacen("exec", &set, 1));
    builder.write_chain("chain.nix", &["one", "two"]);

    builder.build("chain.nix").await.success();

    let paths = builder.built(&["one", "two"]).await;
    for path in &paths {
        until("the path", async || is_published(&server.http(), path).await.then_some(())).await;
    }
    server.stop().await;
}

// --- the store ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_the_store_pushes_each_path_of_parallel_builds_once() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let builder = require_builder!(&server);
    let old = builder.machine.add_text("old", "old", &[]).await;
    let mut watch = builder.command(&["watch-store", "main", "--store", &builder.machine.store()]);
    let mut watch = Listened::to(watch.spawn().unwrap());
    watch.says("told of changes").await;
    let names: Vec<String> = (0..12).map(|number| format!("part-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (at, names) in names.chunks(3).enumerate() {
        builder.write_chain(&format!("{at}.nix"), names);
    }
    let build = async |at: usize| builder.build(&format!("{at}.nix")).await.success();

    tokio::join!(build(0), build(1), build(2), build(3));

    let paths = builder.built(&names).await;
    for path in &paths {
        until("the path", async || is_published(&server.http(), path).await.then_some(())).await;
    }
    let last = builder.machine.add_text("last", "added when it is told to stop", &[]).await;
    signal(&watch.child, "TERM").await;
    assert!(watch.child.wait().await.unwrap().success());
    watch.says("0 paths waiting").await;
    assert_pushed_once(&server, &paths).await;
    assert_pushed_once(&server, &[last]).await;
    assert!(!is_published(&server.http(), &old).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_that_race_for_the_same_paths_have_each_pushed_once_and_nothing_that_failed() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let builder = require_builder!(&server);
    let mut watch = builder.command(&["watch-store", "main", "--store", &builder.machine.store()]);
    let mut watch = Listened::to(watch.spawn().unwrap());
    watch.says("told of changes").await;
    let text = r#"
        let
          d = name: script: derivation {
            inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ];
          };
          base = d "base" "echo base > $out";
          wide = map (n: d "wide-${toString n}" "echo ${base} ${toString n} > $out") (builtins.genList (n: n) 30);
        in {
          one = d "one" "echo ${toString wide} > $out";
          two = d "two" "echo ${toString wide} 2 > $out";
          broken = d "broken" "echo ${base} > $out; exit 1";
        }
    "#;
    std::fs::write(builder.machine.file("race.nix"), text).unwrap();
    let build = async |what: &str| {
        // Who finds a path locked by another build looks again so many seconds later: five, if nothing is said.
        let poll = ["--option", "build-poll-interval", "1"];
        let build = ["nix-build", "--no-out-link", "--max-jobs", "4", "race.nix", "-A", what];
        builder.machine.within([&build[..], &poll].concat()).await
    };

    // One derivation each: of those that it is asked for, Nix 2.8 keeps locked what another build has made meanwhile, so
    // that two builds of a whole list may wait for each other for ever.
    let (one, two, broken, again) = tokio::join!(build("one"), build("two"), build("broken"), build("one"));

    for ran in [one, two, again] {
        ran.success();
    }
    assert!(!broken.succeeded);
    let all = builder.machine.nix(["path-info", "--all"]).await.success().stdout;
    let valid: Vec<String> = all.lines().filter(|path| !path.ends_with(".drv")).map(str::to_owned).collect();
    assert_eq!(valid.len(), 33, "{valid:?}");
    for path in &valid {
        until("the path", async || is_published(&server.http(), path).await.then_some(())).await;
    }
    signal(&watch.child, "TERM").await;
    assert!(watch.child.wait().await.unwrap().success());
    watch.says("0 paths waiting").await;
    assert_eq!(server.admin().cache("main").await.unwrap().paths, 33);
    assert_pushed_once(&server, &valid).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_path_takes_along_the_older_ones_that_it_refers_to() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    let old = builder.machine.add_text("old", "old", &[]).await;
    let alone = builder.machine.add_text("alone", "nobody refers to it", &[]).await;
    let mut watch = builder.command(&["watch-store", "main", "--store", &builder.machine.store()]);
    let mut watch = Listened::to(watch.spawn().unwrap());
    watch.says("told of changes").await;

    let new = builder.machine.add_text("new", "new", &[&old]).await;

    until("the path", async || is_published(&server.http(), &new).await.then_some(())).await;
    assert!(is_published(&server.http(), &old).await, "what is published refers to nothing that is not");
    signal(&watch.child, "TERM").await;
    assert!(watch.child.wait().await.unwrap().success());
    assert_pushed_once(&server, &[old, new]).await;
    assert!(!is_published(&server.http(), &alone).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_nobody_tells_of_is_looked_at() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let Some(builder) = builder_without_builds(&server).await else {
        return println!("skipped: no Nix here");
    };
    // Its database is made by the first question to it, which is after the watch has looked for a folder to watch.
    let mut watch = builder.command(&["watch-store", "main", "--store", &builder.machine.store()]);
    let mut watch = Listened::to(watch.spawn().unwrap());
    watch.says("looking every few seconds").await;

    let path = builder.machine.add_text("new", "new", &[]).await;

    until("the path", async || is_published(&server.http(), &path).await.then_some(())).await;
    signal(&watch.child, "TERM").await;
    assert!(watch.child.wait().await.unwrap().success());
    assert_pushed_once(&server, &[path]).await;
    server.stop().await;
}
