//! What `narvault use` does to a netrc file beside its entry: a backup, a mode, and nothing at all to one that another
//! program writes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use narvault::api::KeyCreate;
use serde_json::{Value, json};

use crate::support::desk::Desk;
use crate::support::nix::{Nix, require_nix};
use crate::support::server::{Backend, TestServer};

const USER_CONF: &str = "home/.config/nix/nix.conf";
const USER_NETRC: &str = "home/.config/nix/netrc";
const USER_BACKUP: &str = "home/.config/nix/netrc.before-narvault";

/// What somebody has in a netrc file already.
const MINE: &str = "machine other.example login me password secret\n";

/// A server with two private caches.
async fn server() -> TestServer {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    for name in ["team", "second"] {
        let body = serde_json::from_value(json!({ "name": name, "public": false })).unwrap();
        server.admin().cache_create(&body).await.unwrap();
        server.admin().key_create(name, &KeyCreate::default()).await.unwrap();
    }
    server
}

/// A desk where somebody is logged in who may push to both.
async fn desk_of(nix: &Nix, server: &TestServer) -> Desk {
    let bob = server.token("bob", &["push:team", "push:second"]).await;
    let mut desk = Desk::new(nix);
    desk.set("NARVAULT_URL", &server.url);
    desk.log_in(server, &bob.text).await;
    desk
}

fn write(desk: &Desk, name: &str, text: &str, mode: u32) {
    desk.write(name, text);
    std::fs::set_permissions(desk.file(name), std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(desk: &Desk, name: &str) -> u32 {
    std::fs::metadata(desk.file(name)).unwrap().mode() & 0o777
}

/// The outcome, and what was told beside it.
async fn narvault(desk: &Desk, arguments: &[&str]) -> (Value, String) {
    let ended = desk.narvault(&[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    (serde_json::from_str(&ended.stdout).unwrap(), ended.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stood_in_a_netrc_file_lies_beside_it_for_its_owner_alone() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server).await;
    write(&desk, USER_NETRC, MINE, 0o600);

    let (dry, _) = narvault(&desk, &["use", "team", "--dry-run"]).await;
    assert_eq!((&dry["netrc"]["backup"], desk.read(USER_BACKUP)), (&Value::Null, None));
    let (first, _) = narvault(&desk, &["use", "team"]).await;
    let (second, _) = narvault(&desk, &["use", "second"]).await;
    let (again, told) = narvault(&desk, &["use", "second"]).await;

    let backup = json!(desk.file(USER_BACKUP).display().to_string());
    assert_eq!((&first["netrc"]["backup"], &second["netrc"]["backup"]), (&backup, &backup));
    assert_eq!((&again["netrc"]["changed"], &again["netrc"]["backup"]), (&json!(false), &Value::Null));
    // Also after the second change it is what there was without us.
    assert_eq!((desk.read(USER_BACKUP).as_deref(), mode(&desk, USER_BACKUP)), (Some(MINE), 0o600));
    assert!(!told.contains("could read it"), "{told}");
    for name in ["team", "second"] {
        desk.narvault_ok(&["unuse", name]).await;
    }
    assert_eq!((desk.read(USER_NETRC).as_deref(), mode(&desk, USER_NETRC)), (Some(MINE), 0o600));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_netrc_file_that_others_could_read_is_closed_and_it_is_told() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server).await;
    for before in [0o640, 0o644, 0o660, 0o604] {
        write(&desk, USER_NETRC, MINE, before);

        let (dry, would) = narvault(&desk, &["use", "team", "--dry-run"]).await;
        let untouched = mode(&desk, USER_NETRC);
        let (used, told) = narvault(&desk, &["use", "team"]).await;
        let closed = mode(&desk, USER_NETRC);
        // A token that is kept is no reason to leave the file open.
        std::fs::set_permissions(desk.file(USER_NETRC), std::fs::Permissions::from_mode(before)).unwrap();
        let (again, told_again) = narvault(&desk, &["use", "team"]).await;

        assert_eq!((untouched, closed, mode(&desk, USER_NETRC)), (before, 0o600, 0o600), "{before:o}");
        assert_eq!(mode(&desk, USER_BACKUP), 0o600);
        let line = format!("others could read it (mode {before:04o})");
        for told in [&would, &told, &told_again] {
            assert!(told.contains(&line), "{told}");
        }
        assert!(would.contains("it would be its owner's alone"), "{would}");
        for outcome in [&dry, &used, &again] {
            assert_eq!(outcome["netrc"]["closed"], json!(true), "{outcome}");
        }
        assert_eq!(again["netrc"]["changed"], json!(false));
        desk.narvault_ok(&["unuse", "team"]).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_of_somebody_elses_netrc_file_stays_and_is_warned_of() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server).await;
    write(&desk, USER_NETRC, MINE, 0o644);
    if chown(desk.file(USER_NETRC), Some(1), Some(1)).is_err() {
        return println!("skipped: only root can make a file somebody else's");
    }

    let (used, told) = narvault(&desk, &["use", "team"]).await;

    let file = std::fs::metadata(desk.file(USER_NETRC)).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (1, 1, 0o640));
    assert_eq!(used["netrc"].get("closed"), None, "{used}");
    let path = desk.file(USER_NETRC).display().to_string();
    assert!(told.contains("who is not you, may read it (mode 0644)"), "{told}");
    assert!(told.contains(&format!("chmod 600 {path}")), "{told}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_netrc_file_that_determinate_writes_is_left_alone_and_the_way_into_it_is_told() {
    let nix = require_nix!();
    let server = server().await;
    let desk = desk_of(&nix, &server).await;
    let theirs = Path::new("/nix/var/determinate/netrc");
    let before = std::fs::read(theirs).ok();
    // As Determinate Nix has it: what is left to people is included first, so that no line of theirs is the last.
    let conf =
        format!("!include nix.custom.conf\n{}netrc-file = {}\n", desk.machine_conf(), theirs.display());
    desk.write("etc/nix.conf", &conf);
    desk.write("etc/nix.custom.conf", "# yours\n");
    for (arguments, conf, netrc, conf_before) in [
        (&["use", "team", "--system"][..], "etc/nix.custom.conf", "etc/netrc", Some("# yours\n")),
        (&["use", "team"], USER_CONF, USER_NETRC, None),
    ] {
        let (outcome, _) = narvault(&desk, arguments).await;

        let path = desk.file(netrc).display().to_string();
        assert_eq!(outcome["netrc"]["file"], json!(path));
        assert!(desk.read(netrc).unwrap().contains("machine 127.0.0.1 login narvault password nvt_"));
        assert_eq!(mode(&desk, netrc), 0o600);
        assert!(!desk.read(conf).unwrap().contains("netrc-file"), "{outcome}");
        let missing = outcome["missing"].as_array().unwrap();
        let way =
            missing.iter().find(|one| one["what"].as_str().unwrap().contains("/nix/var/determinate/netrc"));
        let mend = way.unwrap_or_else(|| panic!("{outcome}"))["mend"].as_str().unwrap();
        assert!(mend.contains("/etc/determinate/config.json"), "{mend}");
        assert!(mend.contains(&format!("\"additionalNetrcSources\": [\"{path}\"]")), "{mend}");
        let effective = desk.effective().await;
        assert_eq!(effective["netrc-file"]["value"], json!("/nix/var/determinate/netrc"));
        desk.narvault_ok(&[&["unuse"], &arguments[1..]].concat()).await;
        assert_eq!((desk.read(conf).as_deref(), desk.read(netrc)), (conf_before, None));
    }
    assert_eq!(std::fs::read(theirs).ok(), before);
    server.stop().await;
}
