//! `narvault use` is all that Nix needs to pull, from public and private caches, and `narvault unuse` leaves no trace.
//! Real Nix, real files: no option and no variable of Nix's is set beside what stands in them.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use narvault::api::KeyCreate;
use serde_json::{Value, json};

use crate::support::client::TestPath;
use crate::support::desk::Desk;
use crate::support::nix::{Nix, require_nix};
use crate::support::server::{Backend, TestServer};

async fn server() -> TestServer {
    TestServer::start(Backend::SQLITE_DISK).await.unwrap()
}

async fn private_cache(server: &TestServer, name: &str) {
    let body = serde_json::from_value(json!({ "name": name, "public": false })).unwrap();
    server.admin().cache_create(&body).await.unwrap();
    server.admin().key_create(name, &KeyCreate::default()).await.unwrap();
}

/// A desk that speaks to `server`, not logged in.
fn desk_of(nix: &Nix, server: &TestServer) -> Desk {
    let mut desk = Desk::new(nix);
    desk.set("NARVAULT_URL", &server.url);
    desk
}

fn mode(desk: &Desk, name: &str) -> u32 {
    std::fs::metadata(desk.file(name)).unwrap().permissions().mode() & 0o777
}

fn missing(outcome: &Value) -> String {
    outcome["missing"].to_string()
}

/// The token in the first entry of a netrc file.
fn token_in(netrc: &str) -> String {
    netrc.split("password ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

const USER_CONF: &str = "home/.config/nix/nix.conf";
const USER_NETRC: &str = "home/.config/nix/netrc";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_cache_is_pulled_from_after_one_command_by_every_generation() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    for nix in Nix::generations().await {
        let desk = desk_of(&nix, &server);
        let path = TestPath::new("public", &nix.version);
        alice.push("main", &path).await;

        let outcome = desk.narvault_json(&["use", "main"]).await;
        let conf = desk.read(USER_CONF);
        let again = desk.narvault_json(&["use", "main"]).await;

        assert_eq!((&outcome["changed"], missing(&outcome).as_str()), (&json!(true), "[]"));
        assert_eq!((&again["changed"], desk.read(USER_CONF)), (&json!(false), conf));
        desk.pull(&path.store_path).await.success();
        let unused = desk.narvault_json(&["unuse", "main"]).await;
        assert_eq!((&unused["changed"], desk.read(USER_CONF)), (&json!(true), None));
        assert_eq!(desk.effective().await["substituters"]["value"], json!([]));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_cache_is_pulled_from_with_a_token_that_can_do_nothing_else() {
    let server = server().await;
    private_cache(&server, "team").await;
    let bob = server.token("bob", &["push:team", "push:main", "pull:other"]).await;
    for nix in Nix::generations().await {
        let desk = desk_of(&nix, &server);
        desk.log_in(&server, &bob.text).await;
        let path = TestPath::new("private", &nix.version);
        bob.http.push("team", &path).await;

        let outcome = desk.narvault_json(&["use", "team"]).await;
        let (conf, netrc) = (desk.read(USER_CONF), desk.read(USER_NETRC).unwrap());
        let again = desk.narvault_json(&["use", "team"]).await;

        assert_eq!(missing(&outcome), "[]");
        desk.pull(&path.store_path).await.success();
        let token = token_in(&netrc);
        let who = server.client(&token).whoami().await.unwrap();
        assert_eq!((who.contributor.as_str(), who.scopes), ("bob", vec!["pull:team".to_owned()]));
        assert_eq!(outcome["netrc"]["token_id"], json!(who.token_id));
        assert_eq!(mode(&desk, USER_NETRC), 0o600);
        assert_eq!((&again["changed"], &again["netrc"]["changed"]), (&json!(false), &json!(false)));
        assert_eq!((desk.read(USER_CONF), desk.read(USER_NETRC)), (conf, Some(netrc)));
        desk.narvault_ok(&["unuse", "team"]).await;
        assert_eq!((desk.read(USER_CONF), desk.read(USER_NETRC)), (None, None));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machines_files_serve_everybody() {
    let nix = require_nix!();
    let server = server().await;
    private_cache(&server, "team").await;
    let bob = server.token("bob", &["push:team"]).await;
    let mut desk = desk_of(&nix, &server);
    desk.set("NIX_DAEMON_SOCKET_PATH", &desk.file("etc").display().to_string());
    desk.log_in(&server, &bob.text).await;
    let path = TestPath::new("private", "for everybody");
    bob.http.push("team", &path).await;

    let outcome = desk.narvault_json(&["use", "team", "--system"]).await;

    assert!(missing(&outcome).contains("restart"), "{outcome}");
    // The default place needs no setting.
    assert!(!desk.read("etc/nix.conf").unwrap().contains("netrc-file"));
    assert_eq!(mode(&desk, "etc/netrc"), 0o600);
    desk.pull(&path.store_path).await.success();
    assert_eq!(desk.read("etc/nix.conf.before-narvault").unwrap(), desk.machine_conf());
    desk.narvault_ok(&["unuse", "team", "--system"]).await;
    assert_eq!(desk.read("etc/nix.conf").unwrap(), desk.machine_conf());
    assert_eq!(desk.read("etc/netrc"), None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_named_is_edited_and_no_other_one() {
    let nix = require_nix!();
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await.http;
    let mut desk = desk_of(&nix, &server);
    let (named, before) = ("home/mine/extra.conf", "max-jobs = 3\n");
    desk.write(named, before);
    let file = desk.file(named).display().to_string();
    let path = TestPath::new("named", "by --file");
    alice.push("main", &path).await;

    let outcome = desk.narvault_json(&["use", "main", "--file", &file]).await;
    // From where the command runs: at home.
    let again = desk.narvault_json(&["use", "main", "--file", "mine/extra.conf"]).await;
    let both = desk.narvault(&["use", "main", "--file", &file, "--system"]).await;

    assert_eq!((&outcome["file"], &outcome["changed"]), (&json!(file), &json!(true)));
    assert_eq!((&again["file"], &again["changed"]), (&json!(file), &json!(false)));
    assert_eq!(both.code, Some(2), "{both:?}");
    assert!(desk.read(named).unwrap().starts_with(before));
    assert_eq!((desk.read(USER_CONF), desk.read("etc/nix.conf")), (None, Some(desk.machine_conf())));
    assert_eq!(desk.read("home/mine/extra.conf.before-narvault").as_deref(), Some(before));
    desk.set("NIX_USER_CONF_FILES", &file);
    desk.pull(&path.store_path).await.success();
    desk.narvault_ok(&["unuse", "main", "--file", &file]).await;
    assert_eq!(desk.read(named).as_deref(), Some(before));
    let absent = desk.file("home/absent/nix.conf").display().to_string();
    desk.narvault_ok(&["use", "main", "--file", &absent]).await;
    assert!(desk.read("home/absent/nix.conf").unwrap().contains(&server.pull_url("main")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_netrc_file_is_kept_and_gets_one_entry() {
    let nix = require_nix!();
    let server = server().await;
    for name in ["team", "second"] {
        private_cache(&server, name).await;
    }
    let bob = server.token("bob", &["push:team", "push:second"]).await;
    let desk = desk_of(&nix, &server);
    desk.log_in(&server, &bob.text).await;
    let conf = format!("netrc-file = {}\n", desk.file("home/mine").display());
    desk.write(USER_CONF, &conf);
    let mine = "machine other.example login me password secret\n";
    desk.write("home/mine", mine);
    let path = TestPath::new("second", "in the second cache");
    bob.http.push("second", &path).await;

    desk.narvault_ok(&["use", "team"]).await;
    desk.narvault_ok(&["use", "second"]).await;

    let netrc = desk.read("home/mine").unwrap();
    assert!(netrc.ends_with(mine) && netrc.matches("machine 127.0.0.1").count() == 1, "{netrc}");
    // A host has one token, so it must do for both.
    let who = server.client(&token_in(&netrc)).whoami().await.unwrap();
    assert_eq!(who.scopes, ["pull:second", "pull:team"]);
    assert_eq!(mode(&desk, "home/mine") & 0o007, 0);
    assert_eq!(desk.read(USER_NETRC), None);
    desk.pull(&path.store_path).await.success();
    desk.narvault_ok(&["unuse", "second"]).await;
    assert_eq!(desk.read("home/mine").unwrap(), netrc);
    desk.narvault_ok(&["unuse", "team"]).await;
    assert_eq!((desk.read("home/mine").unwrap(), desk.read(USER_CONF).unwrap()), (mine.to_owned(), conf));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_works_is_kept_and_a_dead_one_is_replaced() {
    let nix = require_nix!();
    let server = server().await;
    private_cache(&server, "team").await;
    let bob = server.token("bob", &["push:team"]).await;
    let desk = desk_of(&nix, &server);
    desk.log_in(&server, &bob.text).await;
    let own = server.token("bob", &["push:team"]).await;
    let by_hand = format!("machine 127.0.0.1 login bob password {}\n", own.text);
    desk.write(USER_NETRC, &by_hand);

    let kept = desk.narvault_json(&["use", "team"]).await;
    let after_kept = desk.read(USER_NETRC);
    let body = narvault::api::RevokeRequest { reason: "test".to_owned(), keep_issued: false };
    server.admin().token_revoke(&own.id, &body).await.unwrap();
    let replaced = desk.narvault_json(&["use", "team"]).await;

    assert_eq!((&kept["netrc"]["changed"], after_kept), (&json!(false), Some(by_hand.clone())));
    assert_eq!(replaced["netrc"]["changed"], json!(true));
    let netrc = desk.read(USER_NETRC).unwrap();
    assert_ne!(token_in(&netrc), own.text);
    assert!(netrc.ends_with(&by_hand));
    desk.narvault_ok(&["unuse", "team"]).await;
    assert_eq!(desk.read(USER_NETRC), Some(by_hand));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_from_the_environment_is_written_as_it_is() {
    let nix = require_nix!();
    let server = server().await;
    private_cache(&server, "team").await;
    let ci = server.token("ci", &["pull:team"]).await;
    let mut desk = desk_of(&nix, &server);
    desk.set("NARVAULT_TOKEN", &ci.text);

    desk.narvault_ok(&["use", "team"]).await;

    assert_eq!(token_in(&desk.read(USER_NETRC).unwrap()), ci.text);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_shows_everything_but_secrets_and_changes_nothing() {
    let nix = require_nix!();
    let server = server().await;
    private_cache(&server, "team").await;
    let bob = server.token("bob", &["push:team"]).await;
    let desk = desk_of(&nix, &server);
    desk.log_in(&server, &bob.text).await;
    let conf = "access-tokens = github.com=ghp_secret\nmax-jobs = 4\n";
    let netrc = "machine other.example\nlogin me\npassword\nsecret\n";
    desk.write(USER_CONF, conf);
    desk.write(USER_NETRC, netrc);

    let before = server.admin().tokens(&Default::default()).await.unwrap().items.len();
    let diff = desk.narvault_ok(&["use", "team", "--dry-run"]).await;
    let tokens = server.admin().tokens(&Default::default()).await.unwrap().items.len();

    for line in [
        &format!("+extra-substituters = {}", server.pull_url("team"))[..],
        "+machine 127.0.0.1 login narvault password [redacted]",
        " access-tokens = [redacted]",
        " machine other.example",
    ] {
        assert!(diff.lines().any(|found| found == line), "{line}\n{diff}");
    }
    assert!(!diff.contains("secret") && !diff.contains("nvt_"), "{diff}");
    assert_eq!(
        (desk.read(USER_CONF).unwrap().as_str(), desk.read(USER_NETRC).unwrap().as_str()),
        (conf, netrc)
    );
    assert_eq!((before, std::fs::read_dir(desk.file("home/.config/nix")).unwrap().count()), (tokens, 2));

    // What is written, and said, holds the token in one place only.
    let ended = desk.narvault(&["use", "team"]).await;
    let token = token_in(&desk.read(USER_NETRC).unwrap());
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains(&token[..24]), "{ended:?}");
    let diff = desk.narvault_ok(&["unuse", "team", "--dry-run"]).await;
    assert!(diff.contains("-machine 127.0.0.1 login narvault password [redacted]"), "{diff}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_and_foreign_files_are_refused_with_a_way_out() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server);
    std::fs::create_dir_all(desk.file("home/.config/nix")).unwrap();
    symlink("/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-home-manager-files/nix.conf", desk.file(USER_CONF))
        .unwrap();

    let generated = desk.narvault(&["use", "main"]).await;
    std::fs::remove_file(desk.file(USER_CONF)).unwrap();
    desk.write(USER_CONF, "# narvault: begin\nextra-substituters = https://a.example/main\n");
    let broken = desk.narvault(&["use", "main"]).await;
    let unknown = desk.narvault(&["unuse", "main", "--system"]).await;
    let nothing = desk.narvault(&["use", "none"]).await;

    assert!(generated.code == Some(1) && generated.stderr.contains("--print home-manager"), "{generated:?}");
    assert!(broken.code == Some(1) && broken.stderr.contains("line 1 begins narvault's part"), "{broken:?}");
    assert!(unknown.code == Some(0) && unknown.stderr.contains("no cache main stands in"), "{unknown:?}");
    assert!(nothing.code == Some(3), "{nothing:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_still_missing_is_told_with_the_line_that_mends_it() {
    let nix = require_nix!();
    let server = server().await;
    let url = server.pull_url("main");

    // Determinate's files, with a line behind the include that takes everything away again.
    let desk = desk_of(&nix, &server);
    desk.write(
        "etc/nix.conf",
        &format!("{}!include nix.custom.conf\nsubstituters = https://a.example\n", desk.machine_conf()),
    );
    let lost = desk.narvault_json(&["use", "main", "--system"]).await;
    assert!(lost["file"].as_str().unwrap().ends_with("nix.custom.conf"), "{lost}");
    let line = format!("{}:8 replaces `substituters`", desk.file("etc/nix.conf").display());
    assert!(missing(&lost).contains(&line), "{lost}");

    // A file that Nix cannot read at all.
    let desk = desk_of(&nix, &server);
    desk.write(USER_CONF, "max-jobs=4\n");
    let illegal = desk.narvault_json(&["use", "main"]).await;
    assert!(missing(&illegal).contains("nix.conf:1 is no line that Nix understands"), "{illegal}");

    // A daemon that does not trust this user.
    let mut desk = desk_of(&nix, &server);
    desk.write("etc/nix.conf", &format!("{}trusted-users = somebody-else\n", desk.machine_conf()));
    desk.set("NIX_REMOTE", "daemon");
    let ignored = desk.narvault_json(&["use", "main"]).await;
    assert_eq!(ignored["missing"].as_array().unwrap().len(), 1, "{ignored}");
    for part in [
        format!("sudo narvault use {url} --system"),
        format!("extra-trusted-substituters = {url}"),
        format!("extra-trusted-public-keys = {}", server.public_key),
    ] {
        assert!(missing(&ignored).contains(&part), "{part}: {ignored}");
    }
    desk.write("etc/nix.conf", &format!("{}trusted-users = root @wheel\n", desk.machine_conf()));
    assert_eq!(missing(&desk.narvault_json(&["use", "main"]).await), "[]");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_active_key_is_trusted_and_a_new_one_is_added_by_using_again() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server);
    desk.narvault_ok(&["use", "main"]).await;
    let second = server.admin().key_create("main", &KeyCreate::default()).await.unwrap().public_key;

    desk.narvault_ok(&["use", &server.pull_url("main")]).await;

    let trusted = desk.effective().await["trusted-public-keys"]["value"].clone();
    for key in [&server.public_key, &second] {
        assert!(trusted.as_array().unwrap().contains(&json!(key)), "{trusted}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_at_the_same_time_all_count() {
    let nix = require_nix!();
    let server = server().await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        private_cache(&server, name).await;
    }
    let bob =
        server.token("bob", &names.map(|name| format!("pull:{name}")).each_ref().map(String::as_str)).await;
    let desk = desk_of(&nix, &server);
    desk.log_in(&server, &bob.text).await;
    desk.write(USER_CONF, "max-jobs = 2\n");

    futures_util::future::join_all(names.map(async |name| desk.narvault_ok(&["use", name]).await)).await;

    let conf = desk.read(USER_CONF).unwrap();
    for name in names {
        assert!(conf.contains(&format!("extra-substituters = {}\n", server.pull_url(name))), "{conf}");
    }
    let token = token_in(&desk.read(USER_NETRC).unwrap());
    let scopes = server.client(&token).whoami().await.unwrap().scopes;
    assert_eq!(scopes, names.map(|name| format!("pull:{name}")));
    for name in names {
        desk.narvault_ok(&["unuse", name]).await;
    }
    assert_eq!((desk.read(USER_CONF).unwrap().as_str(), desk.read(USER_NETRC)), ("max-jobs = 2\n", None));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nix_that_knows_no_extra_gets_whole_lists() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server);
    // Says that it is older than it is, and reads the same files.
    let script = "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'nix (Nix) 2.3.16'; exit; fi\nPATH=${PATH#*:} exec nix \"$@\"\n";
    desk.write("bin/nix", script);
    std::fs::set_permissions(desk.file("bin/nix"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let conf = "substituters = https://a.example\n";
    desk.write(USER_CONF, conf);

    let outcome = desk.narvault_json(&["use", "main"]).await;
    let again = desk.narvault_json(&["use", "main"]).await;

    assert_eq!((missing(&outcome).as_str(), &again["changed"]), ("[]", &json!(false)));
    let text = desk.read(USER_CONF).unwrap();
    assert!(
        text.contains(&format!("substituters = https://a.example {}\n", server.pull_url("main"))),
        "{text}"
    );
    assert!(!text.contains("extra-"), "{text}");
    let effective = desk.effective().await;
    assert_eq!(effective["substituters"]["value"], json!(["https://a.example", server.pull_url("main")]));
    assert_eq!(effective["trusted-public-keys"]["value"].as_array().unwrap().len(), 2);
    desk.narvault_ok(&["unuse", "main"]).await;
    assert_eq!(desk.read(USER_CONF).unwrap(), conf);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whom_the_daemon_does_not_trust_is_told_what_helps_and_it_does() {
    let nix = require_nix!();
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can become another user");
    }
    let server = server().await;
    private_cache(&server, "team").await;
    let bob = server.token("bob", &["push:team"]).await;
    let path = TestPath::new("private", "by the daemon");
    bob.http.push("team", &path).await;
    let mut desk = desk_of(&nix, &server);
    let daemon = desk.start_daemon().await;
    desk.become_nobody();
    desk.log_in(&server, &bob.text).await;

    let alone = desk.narvault_json(&["use", "team"]).await;
    let refused = desk.pull_by_daemon(&path.store_path).await;
    let denied = desk.narvault(&["use", "team", "--system"]).await;

    let url = server.pull_url("team");
    assert!(missing(&alone).contains(&format!("narvault use {url} --system")), "{alone}");
    assert!(!refused.succeeded && refused.stderr.contains("untrusted substituter"), "{}", refused.stderr);
    assert!(denied.code == Some(1) && denied.stderr.contains("run it with sudo"), "{denied:?}");

    // As the hint says: by sudo, with the user's login.
    desk.become_root();
    let outcome = desk.narvault_json(&["use", &url, "--system"]).await;
    assert!(missing(&outcome).contains("restart"), "{outcome}");
    daemon.stop().await;
    let daemon = desk.start_daemon().await;
    desk.become_nobody();
    assert_eq!(missing(&desk.narvault_json(&["use", "team"]).await), "[]");
    desk.pull_by_daemon(&path.store_path).await.success();
    daemon.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_stands_in_a_netrc_file_nix_finds_our_entry_and_the_rest_comes_back() {
    let server = server().await;
    private_cache(&server, "team").await;
    let bob = server.token("bob", &["push:team"]).await;
    let generations = Nix::generations().await;
    let last = generations.len().saturating_sub(1);
    for (_, nix) in generations.iter().enumerate().filter(|(index, _)| [0, last].contains(index)) {
        for (index, before) in [
            "",
            "# nothing yet\n\n",
            "machine other.example login a password b",
            "machine other.example\r\nlogin a\r\npassword b\r\n",
            "machine other.example login a password \"b \\\" c\"\n",
            "default login a password wrong\n",
            "machine 127.0.0.1 login a password wrong\nmachine 127.0.0.1 password worse\n",
            "machine other.example login a password b\nmacdef init\nbin\n\nmachine 127.0.0.1 password wrong\n",
        ]
        .into_iter()
        .enumerate()
        {
            let desk = desk_of(nix, &server);
            desk.log_in(&server, &bob.text).await;
            desk.write(USER_NETRC, before);
            let path = TestPath::new("netrc", format!("{index} {}", nix.version));
            bob.http.push("team", &path).await;

            desk.narvault_ok(&["use", "team"]).await;

            desk.pull(&path.store_path).await.success();
            assert_eq!(mode(&desk, USER_NETRC) & 0o007, 0);
            desk.narvault_ok(&["unuse", "team"]).await;
            assert_eq!(desk.read(USER_NETRC).as_deref(), Some(before), "{before:?}");
        }
    }
    server.stop().await;
}
